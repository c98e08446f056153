// SPDX-License-Identifier: Apache-2.0
//! The daemon is killed, and policies change while it is away: the old ones hold until it is back, then the new.

use crate::flows::Server;
use crate::wire::{Plugin, on_a_cluster, retransmissions};

const SERVER: u8 = 1;

fn admitting(clients: &str) -> String {
    format!(
        "{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{podSelector: {{matchExpressions: \
         [{{key: app, operator: In, values: {clients}}}]}}}}]}}]}}"
    )
}

#[test]
fn the_old_policy_holds_until_the_daemon_is_back() {
    on_a_cluster(Plugin::Bridge, |cluster| {
        for (i, name) in ["server", "was", "will", "both"].into_iter().enumerate() {
            cluster.pod(name, SERVER + u8::try_from(i).unwrap());
        }
        cluster.apply();
        let server = Server::start("server", SERVER);
        let [mut was, mut will, mut both] = ["was", "will", "both"].map(|client| server.open(client));
        cluster.policy("server", &admitting("[was, both]"));
        cluster.apply();
        let before = retransmissions("both");
        let admits = |clients: [bool; 3]| {
            for (client, expected) in ["was", "will", "both"].into_iter().zip(clients) {
                server.admits(client, expected);
            }
        };

        // From here on nobody applies anything, as after a kill.
        cluster.policy("server", &admitting("[will, both]"));
        was.talk(&server, true);
        will.talk(&server, false);
        both.talk(&server, true);
        admits([true, false, true]);

        cluster.restart();
        was.talk(&server, true);
        will.talk(&server, false);
        admits([true, false, true]);

        cluster.apply();
        was.talk(&server, false);
        server.open("will").talk(&server, true);
        both.talk(&server, true);
        admits([false, true, true]);
        cluster.life().datapath.collect_garbage().unwrap();
        was.talk(&server, false);
        both.talk(&server, true);
        assert_eq!(retransmissions("both"), before, "what both admit lost segments");
    });
}
