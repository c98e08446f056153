// SPDX-License-Identifier: Apache-2.0
//! A daemon that starts lets verdicts wait for the names of those whom they are about, but not for ever, and not until
//! there is no room for more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wardline_crds::config::DaemonConfig;
use wardline_node::events::{Succession, follow_events};
use wardline_node::metrics::Metrics;

use crate::support::on_a_node;
use crate::{Count, Traffic, desired, written};

/// Longer than a line takes that waits for nothing.
const SOON: Duration = Duration::from_millis(300);
/// How long verdicts wait at most, and a bit.
const LONG: Duration = Duration::from_secs(20);

/// What makes the daemon begin to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Named,
    Filling,
    Late,
    Cancelled,
}

#[test]
fn verdicts_wait_for_names_when_a_daemon_starts() {
    for until in [Until::Named, Until::Filling, Until::Late, Until::Cancelled] {
        on_a_node(8, |node| {
            let options = node.file_options();
            let mut life = node.start_logging_to(&DaemonConfig::default(), options.clone(), Duration::from_millis(100));
            life.apply(&desired(node));
            let mut traffic = Traffic::of(node, &life);
            traffic.send(10, 0);
            let (is_named, cancel) = (AtomicBool::new(false), CancellationToken::new());
            let metrics = Metrics::new().unwrap();
            // While lines are being written.
            let lines = || {
                let text = std::fs::read(&options.path).unwrap_or_default();
                text.into_iter().filter(|byte| *byte == b'\n').count() as u64
            };
            std::thread::scope(|scope| {
                let follower = scope.spawn(|| {
                    let knows_names = || is_named.load(Ordering::Relaxed);
                    follow_events(life.log, Succession::none(), &metrics, &cancel, knows_names, |_| true)
                });
                let _ends = cancel.clone().drop_guard();
                let began = Instant::now();
                std::thread::sleep(SOON);
                assert_eq!(lines(), 0, "{until:?}");
                match until {
                    Until::Named => is_named.store(true, Ordering::Relaxed),
                    // More than half of the ring.
                    Until::Filling => traffic.send(50_000, 0),
                    Until::Late => {}
                    Until::Cancelled => cancel.cancel(),
                }
                while lines() < traffic.sent.allow {
                    assert!(began.elapsed() < LONG, "{until:?}: {} of {:?}", lines(), traffic.sent);
                    std::thread::sleep(Duration::from_millis(10));
                }
                assert_eq!(
                    began.elapsed() > Duration::from_secs(9),
                    until == Until::Late,
                    "{until:?}"
                );
                cancel.cancel();
                follower.join().unwrap().unwrap();
            });
            assert_eq!(
                written(&options.path).records,
                Count {
                    deny: 0,
                    ..traffic.sent
                }
            );
        });
    }
}
