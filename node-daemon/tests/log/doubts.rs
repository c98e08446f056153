// SPDX-License-Identifier: Apache-2.0
//! What a life cannot know of those before it stands in the log.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use wardline_crds::config::DaemonConfig;
use wardline_record::Timestamp;

use crate::support::{Life, Node, on_a_node};
use crate::{Count, Traffic, desired, written};

const AGGREGATION: Duration = Duration::from_secs(5);

fn start(node: &Node, log: &Path) -> Life {
    let options = wardline_node::events::FileOptions {
        path: log.to_owned(),
        ..node.file_options()
    };
    let mut life = node.start_logging_to(&DaemonConfig::default(), options, AGGREGATION);
    life.apply(&desired(node));
    life
}

fn settle(life: &mut Life) {
    while life.log.drain().unwrap() {}
    life.log.close().unwrap();
}

/// The lines that tell of losses, in their order.
fn losses(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["disposition"] == "lost").collect()
}

fn time(timestamp: &Value) -> u64 {
    serde_json::from_value::<Timestamp>(timestamp.clone()).unwrap().0
}

/// One line for each direction and verdict, of an unknown number.
#[track_caller]
fn check(losses: &[Value], why: &str) {
    let told: Vec<_> = losses
        .iter()
        .map(|line| {
            assert_eq!(
                (&line["lost"]["why"], &line["count"]),
                (&why.into(), &0.into()),
                "{line}"
            );
            let part = |part: &Value| part.as_str().unwrap().to_owned();
            (
                part(&line["connection"]["direction"]),
                part(&line["lost"]["disposition"]),
            )
        })
        .collect();
    let both = |direction: &str| ["allow", "deny"].map(|verdict| (direction.to_owned(), verdict.to_owned()));
    assert_eq!(told, [both("ingress"), both("egress")].concat());
}

#[test]
fn a_gap_in_the_kernels_account_is_told_once() {
    on_a_node(1, |node| {
        let log = node.file_options().path;
        let mut life = start(node, &log);
        let mut traffic = Traffic::of(node, &life);
        traffic.send(3, 2);
        settle(&mut life);
        assert!(losses(&log).is_empty(), "the first life ever follows nothing");
        traffic.send(1, 0);
        drop(life);
        let before = fs::read_to_string(&log).unwrap();
        let last: Value = serde_json::from_str(before.lines().last().unwrap()).unwrap();

        // Another bpf file system, as after a reboot.
        let anew = node.beside("anew", &node.veths);
        let mut life = start(&anew, &log);
        settle(&mut life);
        assert!(losses(&log).is_empty(), "nothing is logged yet");
        Traffic::of(&anew, &life).send(1, 0);
        settle(&mut life);
        let told = losses(&log);
        check(&told, "gap");
        let (first, last) = (time(&told[0]["timestamp"]), time(&last["last_timestamp"]));
        let wait = AGGREGATION + Duration::from_secs(1);
        assert_eq!(first, last - u64::try_from(wait.as_nanos()).unwrap(), "denies wait");
        assert!(time(&told[0]["last_timestamp"]) > last);
        drop(life);
        // Somebody takes away what is of this account.
        fs::write(&log, before).unwrap();
        let mut life = start(&anew, &log);
        Traffic::of(&anew, &life).send(2, 0);
        settle(&mut life);
        assert!(!losses(&log).iter().any(|line| line["lost"]["why"] == "gap"), "once");
        assert_eq!(written(&log).records, Count { allow: 4, deny: 2 });
    });
}

#[test]
fn a_gap_is_told_also_where_the_last_file_cannot_be_read() {
    for has_old in [true, false] {
        on_a_node(1, |node| {
            let log = node.file_options().path;
            let mut life = start(node, &log);
            Traffic::of(node, &life).send(3, 2);
            settle(&mut life);
            drop(life);
            let away = if has_old {
                log.with_file_name("policy_action-2026-01-01T00-00-00.000000.log")
            } else {
                log.with_file_name("away")
            };
            fs::rename(&log, &away).unwrap();
            let before = fs::read_to_string(&away).unwrap();
            let last: Value = serde_json::from_str(before.lines().last().unwrap()).unwrap();
            fs::create_dir(&log).unwrap();

            let anew = node.beside("anew", &node.veths);
            let mut life = start(&anew, &log);
            assert!(life.log.stopped().is_some_and(|told| told.contains("a directory")));
            fs::remove_dir(&log).unwrap();
            Traffic::of(&anew, &life).send(1, 0);
            std::thread::sleep(Duration::from_millis(600));
            settle(&mut life);
            let told = losses(&log);
            check(&told, "gap");
            let (since, until) = (time(&told[0]["timestamp"]), time(&told[0]["last_timestamp"]));
            if has_old {
                assert!(since < time(&last["last_timestamp"]), "{told:?}");
            } else {
                assert_eq!(since, until, "nobody knows since when");
            }
            drop(life);
            settle(&mut start(&anew, &log));
            assert_eq!(losses(&log).len(), 4, "once");
        });
    }
}

#[test]
fn lines_that_may_repeat_others_are_announced() {
    for (is_killed, is_taken, is_told) in [(true, true, true), (true, false, false), (false, true, false)] {
        on_a_node(1, |node| {
            let log = node.file_options().path;
            let mut life = start(node, &log);
            let mut traffic = Traffic::of(node, &life);
            traffic.send(3, 2);
            while life.log.drain().unwrap() {}
            if is_killed {
                drop(life.log);
            } else {
                life.log.finish().unwrap();
            }
            if is_taken {
                fs::remove_file(&log).unwrap();
            }
            traffic.send(4, 0);
            let mut life = start(node, &log);
            settle(&mut life);
            let told = losses(&log);
            if is_told {
                check(&told, "may-repeat");
                let first = fs::read_to_string(&log).unwrap();
                assert!(
                    first.starts_with(r#"{"disposition":"lost""#),
                    "ahead of what may: {first}"
                );
            } else {
                assert!(told.is_empty(), "{is_killed} {is_taken}: {told:?}");
            }
            let left = if is_taken { 4 } else { 7 };
            assert_eq!(written(&log).all(), Count { allow: left, deny: 2 });
        });
    }
}
