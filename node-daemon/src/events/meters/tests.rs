// SPDX-License-Identifier: Apache-2.0

use std::path::Path;
use std::sync::Arc;

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, Opts};
use wardline_policy::tables::{Allowing, Attribution, PolicyRef};

use super::*;
use crate::events::observed::sample;
use crate::names::{Meaning, TableName};

const START: u64 = 1_781_386_171_000_000_000;

fn policy(name: &str) -> PolicyRef {
    PolicyRef {
        name: ObjectName::new("shop", name),
        generation: 1,
    }
}

/// Policy `pN` allows by attribution N, and isolates by table N; 100 is of both `p1` and `quiet`, which is not annotated.
fn names(directory: &Path) -> Names {
    let names = Names::open(directory).unwrap();
    let allowing = |name: &str| Allowing {
        policy: policy(name),
        rules: vec![0],
        log: name != "quiet",
    };
    let attribution = |id, policies: &[&str]| Meaning::Attribution {
        id,
        attribution: Arc::new(Attribution {
            policies: policies.iter().map(|name| allowing(name)).collect(),
        }),
    };
    let table = |id| Meaning::Table {
        id,
        name: Arc::new(TableName {
            direction: Direction::Ingress,
            isolated_by: vec![policy(&format!("p{id}"))],
        }),
    };
    let mut entries = vec![attribution(100, &["p1", "quiet"])];
    for id in 1..5 {
        entries.extend([attribution(id, &[&format!("p{id}")]), table(id)]);
    }
    names.tell(entries).unwrap();
    names
}

struct Measured {
    meters: Meters,
    names: Names,
    verdicts: IntCounterVec,
    _directory: tempfile::TempDir,
}

impl Measured {
    fn new(policies: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let labels = ["namespace", "policy", "direction", "verdict"];
        let verdicts = IntCounterVec::new(Opts::new("verdicts", "Of policies."), &labels).unwrap();
        let delay = Histogram::with_opts(HistogramOpts::new("delay", "Of lines.")).unwrap();
        Self {
            meters: Meters::new(delay, verdicts.clone(), policies),
            names: names(directory.path()),
            verdicts,
            _directory: directory,
        }
    }

    fn add(&mut self, verdict: Verdict, seconds: u64) {
        let seen = Observed {
            time: START + seconds * 1_000_000_000,
            ..sample(verdict)
        };
        let since = matches!(verdict, Verdict::Allow { .. }).then(monotonic);
        self.meters.add(&seen, since);
    }

    fn write(&mut self, verdict: Verdict, seconds: u64) {
        self.add(verdict, seconds);
        self.meters.written(&self.names);
    }

    /// `policy verdict count` of each series, sorted.
    fn series(&self) -> Vec<String> {
        let families = self.verdicts.collect();
        let samples = families.iter().flat_map(MetricFamily::get_metric);
        let mut series: Vec<String> = samples
            .map(|sample| {
                let label = |name| {
                    let mut labels = sample.get_label().iter();
                    labels.find(|label| label.name() == name).unwrap().value()
                };
                assert_eq!(label("direction"), "ingress");
                assert_eq!(label("namespace").is_empty(), label("policy").is_empty());
                format!(
                    "{} {} {}",
                    label("policy"),
                    label("verdict"),
                    sample.get_counter().get_value()
                )
            })
            .collect();
        series.sort();
        series
    }
}

fn allow(attribution: u32, only_annotated: bool) -> Verdict {
    Verdict::Allow {
        attribution,
        only_annotated,
    }
}

fn deny(table: u32, count: u64) -> Verdict {
    Verdict::Deny {
        table,
        count,
        last: START,
    }
}

#[test]
fn a_verdict_counts_for_each_policy_that_its_record_names() {
    let mut measured = Measured::new(10);
    measured.write(allow(100, false), 0);
    measured.write(allow(100, true), 0);
    measured.write(deny(1, 7), 0);
    assert_eq!(measured.series(), ["p1 allow 2", "p1 deny 7", "quiet allow 1"]);
}

#[test]
fn what_is_not_written_does_not_count() {
    let mut measured = Measured::new(10);
    measured.add(deny(1, 7), 0);
    measured.add(allow(1, false), 0);
    measured.meters.forget();
    measured.write(deny(1, 7), 0);
    assert_eq!(measured.series(), ["p1 deny 7"]);
    assert_eq!(measured.meters.delay.get_sample_count(), 0);
}

#[test]
fn only_allows_have_a_delay() {
    let mut measured = Measured::new(0);
    measured.write(allow(1, false), 0);
    measured.write(deny(1, 7), 0);
    assert_eq!(measured.series(), [""; 0]);
    assert_eq!(measured.meters.delay.get_sample_count(), 1);
    assert!(measured.meters.delay.get_sample_sum() < 60.0);
}

#[test]
fn further_policies_are_counted_together_until_one_is_idle_for_an_hour() {
    let mut measured = Measured::new(2);
    for (policy, count) in [(1, 1), (2, 2), (3, 4), (4, 8)] {
        measured.write(deny(policy, count), 0);
    }
    assert_eq!(measured.series(), [" deny 12", "p1 deny 1", "p2 deny 2"]);
    measured.write(deny(2, 16), 1800);
    measured.write(deny(3, 32), 3601);
    assert_eq!(measured.series(), [" deny 12", "p2 deny 18", "p3 deny 32"]);
    // Looked for once a minute only.
    measured.write(deny(4, 64), 3602);
    measured.write(deny(4, 128), 6602);
    assert_eq!(measured.series(), [" deny 76", "p3 deny 32", "p4 deny 128"]);
}
