// SPDX-License-Identifier: Apache-2.0
//! Whatever changes what policies say of an open flow stops it with its next packet, and lets it go on again.

use wardline_node::index::{Event, NamespaceInfo, Update};

use crate::flows::Server;
use crate::wire::{Cluster, NAMESPACE, Plugin, on_a_cluster, pod_event, pod_gone, policy_event};

const SERVER: u8 = 1;
const CLIENT: u8 = 2;

const FROM_CLIENT: &str =
    "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}";
const FROM_TEAM: &str =
    "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}";
const TO_SERVER: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}";
const FROM_ADDRESSES: &str = "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24}}, {ipBlock: {cidr: 'fd00:1::/64'}}]}]}";
const BUT_FOR_THE_CLIENT: &str = "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/24, except: [10.1.0.2/32]}}, {ipBlock: {cidr: 'fd00:1::/64', except: ['fd00:1::2/128']}}]}]}";
const FROM_NOBODY: &str = "{podSelector: {matchLabels: {app: server}}}";
const TO_NOBODY: &str = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}";

fn policy(spec: &str) -> Event {
    policy_event("p", 1, spec)
}

fn edited(spec: &str) -> Event {
    policy_event("p", 2, spec)
}

fn pod(name: &str, app: &str, host: u8, node: &str) -> Event {
    pod_event(name, &format!("{{app: {app}}}"), host, node, "Running")
}

fn client(app: &str) -> Event {
    pod("client", app, CLIENT, "node1")
}

fn team(labels: &str) -> Event {
    let labels = serde_yaml::from_str(labels).unwrap();
    let info = NamespaceInfo {
        labels,
        log_denies: false,
    };
    Event::Namespace(NAMESPACE.into(), Update::Set(info))
}

struct Row {
    what: &'static str,
    /// Admits the flow.
    admits: Vec<Event>,
    /// What stops it, and what lets it go on.
    stops: Event,
    goes_on: Event,
}

fn row(what: &'static str, admits: Vec<Event>, stops: Event, goes_on: Event) -> Row {
    Row {
        what,
        admits,
        stops,
        goes_on,
    }
}

fn rows() -> Vec<Row> {
    let gone = |name| Event::Policy(wardline_policy::model::ObjectName::new(NAMESPACE, name), Update::Gone);
    vec![
        row("the first policy of the pod", vec![], policy(FROM_NOBODY), gone("p")),
        row(
            "the first egress policy of the pod",
            vec![],
            policy(TO_NOBODY),
            gone("p"),
        ),
        row(
            "an edited policy",
            vec![policy(FROM_CLIENT)],
            edited(FROM_NOBODY),
            edited(FROM_CLIENT),
        ),
        row(
            "an edited egress policy",
            vec![policy(TO_SERVER)],
            edited(TO_NOBODY),
            edited(TO_SERVER),
        ),
        row(
            "a block",
            vec![policy(FROM_ADDRESSES)],
            edited(BUT_FOR_THE_CLIENT),
            edited(FROM_ADDRESSES),
        ),
        row(
            "the peer's label",
            vec![policy(FROM_CLIENT)],
            client("other"),
            client("client"),
        ),
        row(
            "the label that a policy selects the pod by",
            vec![policy(&FROM_NOBODY.replace("server", "other"))],
            pod("server", "other", SERVER, "node1"),
            pod("server", "server", SERVER, "node1"),
        ),
        row(
            "the label of an egress peer",
            vec![policy(TO_SERVER)],
            pod("server", "other", SERVER, "node1"),
            pod("server", "server", SERVER, "node1"),
        ),
        row(
            "the label of a namespace",
            vec![team("{team: a}"), policy(FROM_TEAM)],
            team("{team: b}"),
            team("{team: a}"),
        ),
        row(
            "another pod that claims the peer's address",
            vec![policy(FROM_CLIENT)],
            pod("thief", "client", CLIENT, "node2"),
            pod_gone("thief"),
        ),
        row(
            "a peer that has finished",
            vec![policy(FROM_CLIENT)],
            pod_event("client", "{app: client}", CLIENT, "node1", "Succeeded"),
            client("client"),
        ),
        row(
            "the peer's address",
            vec![policy(FROM_CLIENT)],
            pod("client", "client", 77, "node1"),
            client("client"),
        ),
    ]
}

fn start_over(cluster: &mut Cluster) {
    for event in [
        team("{}"),
        pod("server", "server", SERVER, "node1"),
        client("client"),
        pod_gone("thief"),
    ] {
        cluster.tell(event);
    }
    cluster.no_policy("p");
}

#[test]
fn changes_take_effect_on_open_flows() {
    on_a_cluster(Plugin::Ptp, |cluster| {
        cluster.pod("server", SERVER);
        cluster.pod("client", CLIENT);
        let server = Server::start("server", SERVER);
        for row in rows() {
            println!("{}", row.what);
            start_over(cluster);
            row.admits.into_iter().for_each(|event| cluster.tell(event));
            cluster.apply();
            let mut flows = server.open("client");
            flows.talk(&server, true);
            cluster.tell(row.stops);
            cluster.apply();
            flows.talk(&server, false);
            server.admits("client", false);
            cluster.tell(row.goes_on);
            cluster.apply();
            flows.talk(&server, true);
        }
    });
}
