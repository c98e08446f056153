// SPDX-License-Identifier: Apache-2.0
//! What Prometheus is told. Names and labels are documented in docs/operations.md.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use wardline_bpf::abi::{Direction, Reason, Verdict};

use crate::control::NodeState;
use crate::datapath::{Cause, Ledger};
use crate::events::{Imbalance, Meters};

/// How long the control thread may be busy before the daemon counts as hanging.
const HANGING: Duration = Duration::from_mins(1);

/// What is registered so far.
struct Families(Registry);

impl Families {
    fn register<F: Collector + Clone + 'static>(&self, family: F) -> Result<F, prometheus::Error> {
        self.0.register(Box::new(family.clone()))?;
        Ok(family)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::new(name, help)?)
    }
}

/// From a tenth of a millisecond to three seconds.
fn histogram_options(name: &str, help: &str) -> Result<HistogramOpts, prometheus::Error> {
    let buckets = prometheus::exponential_buckets(0.000_1, 2.0, 16)?;
    Ok(HistogramOpts::new(name, help).buckets(buckets))
}

#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    packets: IntCounterVec,
    log: LogMetrics,
    deny_events: IntCounterVec,
    endpoints: IntGaugeVec,
    connections: IntGauge,
    invalid: IntGaugeVec,
    refused: IntGauge,
    restored: IntCounter,
    apply: Histogram,
    service_fronts: IntGauge,
    service_backends: IntGauge,
    service_apply: Histogram,
    plugin_requests: IntCounterVec,
    plugin_add: Histogram,
    plugin_phases: HistogramVec,
    alive: Mutex<Instant>,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let families = Families(Registry::new());
        let counters = |name, help, labels: &[&str]| families.counters(name, help, labels);
        let counter = |name, help| families.counter(name, help);
        let gauges = |name, help, labels: &[&str]| families.gauges(name, help, labels);
        let gauge = |name, help| families.gauge(name, help);
        let histogram = |name, help| families.register(Histogram::with_opts(histogram_options(name, help)?)?);
        Ok(Self {
            packets: counters(
                "wardline_packets_total",
                "Packets by what the packet programs decided.",
                &["direction", "verdict", "reason"],
            )?,
            log: LogMetrics::new(&families)?,
            deny_events: counters(
                "wardline_deny_events_total",
                "First denies of a pair that were to be Events on their pods, by what became of them.",
                &["outcome"],
            )?,
            endpoints: gauges("wardline_endpoints", "Pods of the node.", &["state"])?,
            connections: gauge(
                "wardline_conntrack_entries",
                "Entries of the connection table when last swept.",
            )?,
            invalid: gauges(
                "wardline_invalid_objects",
                "Objects that are not in force as they stand.",
                &["kind"],
            )?,
            refused: gauge("wardline_change_refused", "1 while a change is not in force.")?,
            restored: counter(
                "wardline_programs_restored_total",
                "Programs that somebody took off a pod, and that were put back.",
            )?,
            apply: histogram(
                "wardline_apply_seconds",
                "Time from a batch of changes to their being in force.",
            )?,
            service_fronts: gauge(
                "wardline_service_fronts",
                "Addresses and ports of Services in the kernel.",
            )?,
            service_backends: gauge("wardline_service_backends", "Backends of Services in the kernel.")?,
            service_apply: histogram(
                "wardline_service_apply_seconds",
                "Time from a batch of changes of Services to their being in force.",
            )?,
            plugin_requests: counters(
                "wardline_cni_requests_total",
                "Requests of the CNI plugin.",
                &["command", "outcome"],
            )?,
            plugin_add: histogram(
                "wardline_cni_add_seconds",
                "Time that the CNI plugin waits for a pod's policy to be in force and its addresses to be announced.",
            )?,
            plugin_phases: families.register(HistogramVec::new(
                histogram_options(
                    "wardline_cni_add_phase_seconds",
                    "Time that a new pod waits to be known; then for its policy, and for its addresses to be announced.",
                )?,
                &["phase"],
            )?)?,
            registry: families.0,
            alive: Mutex::new(Instant::now()),
        })
    }

    /// The text format that Prometheus scrapes.
    pub fn encode(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    pub fn control_alive(&self) {
        *self.alive.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    pub fn is_alive(&self) -> bool {
        self.alive
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .elapsed()
            < HANGING
    }

    pub fn observe_apply(&self, elapsed: Duration) {
        self.apply.observe(elapsed.as_secs_f64());
    }

    pub fn observe_service_apply(&self, elapsed: Duration) {
        self.service_apply.observe(elapsed.as_secs_f64());
    }

    /// A request of the CNI plugin was answered.
    pub fn observe_cni(&self, command: &str, is_done: bool, elapsed: Duration) {
        let outcome = if is_done { "done" } else { "refused" };
        self.plugin_requests.with_label_values(&[command, outcome]).inc();
        if command == "add" && is_done {
            self.plugin_add.observe(elapsed.as_secs_f64());
        }
    }

    /// A phase of an ADD: wait, apply, announce; the latter two side by side.
    pub fn observe_add(&self, phase: &str, elapsed: Duration) {
        let phase = self.plugin_phases.with_label_values(&[phase]);
        phase.observe(elapsed.as_secs_f64());
    }

    pub fn set_node(&self, state: &NodeState) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.endpoints.with_label_values(&["managed"]).set(count(state.managed));
        self.endpoints
            .with_label_values(&["unmanaged"])
            .set(count(state.unmanaged.len()));
        let is_refused = !state.synced || !state.refused_services.is_empty();
        self.refused.set(i64::from(is_refused));
        self.service_fronts.set(count(state.services.fronts));
        self.service_backends.set(count(state.services.backends));
        self.invalid.reset();
        for object in &state.invalid {
            self.invalid.with_label_values(&[object.kind.as_str()]).inc();
        }
    }

    /// What measures records; verdicts are counted by so many policies.
    pub fn meters(&self, policies: u32) -> Meters {
        Meters::new(self.log.delay.clone(), self.log.by_policy.clone(), policies)
    }

    pub fn program_restored(&self) {
        self.restored.inc();
    }

    pub fn set_connections(&self, entries: usize) {
        self.connections.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// What became of a first deny that was to be an Event.
    pub fn deny_event(&self, outcome: &str) {
        self.deny_events.with_label_values(&[outcome]).inc();
    }

    /// The policy log is not written, and whoever would say so does not come to it.
    pub fn log_hangs(&self) {
        self.log.stopped.set(1);
    }

    /// Totals that only grow, also over a restart: what is shown is raised to them.
    pub fn set_account(&self, ledger: &Ledger, packets: &[[u64; Reason::ALL.len()]; 2], log: &LogFigures) {
        for direction in Direction::ALL {
            for reason in Reason::ALL {
                let labels = [direction.as_str(), reason.verdict().as_str(), reason.as_str()];
                raise(
                    &self.packets.with_label_values(&labels),
                    packets[direction.index()][reason as usize],
                );
            }
        }
        self.log.set(ledger, log);
    }
}

/// Of the policy log.
#[derive(Debug)]
struct LogMetrics {
    due: IntCounterVec,
    written: IntCounterVec,
    lost: IntCounterVec,
    imbalance: IntGaugeVec,
    stopped: IntGauge,
    write_errors: IntCounter,
    rotations: IntCounter,
    deleted_bytes: IntCounter,
    deleted_records: IntCounterVec,
    left_out: IntCounter,
    backlog: IntGauge,
    delay: Histogram,
    by_policy: IntCounterVec,
}

impl LogMetrics {
    fn new(families: &Families) -> Result<Self, prometheus::Error> {
        let outcome = ["direction", "verdict"];
        Ok(Self {
            due: families.counters("wardline_log_due_total", "Verdicts that ask for a record.", &outcome)?,
            written: families.counters(
                "wardline_log_written_total",
                "Verdicts whose record is written.",
                &outcome,
            )?,
            lost: families.counters(
                "wardline_log_lost_total",
                "Verdicts whose record is lost, each told by a line as soon as it can be written.",
                &["direction", "verdict", "cause"],
            )?,
            imbalance: families.gauges(
                "wardline_log_imbalance",
                "Due less written and lost when a generation was closed last; other than 0 is a bug.",
                &outcome,
            )?,
            stopped: families.gauge("wardline_log_stopped", "1 while the policy log cannot be written.")?,
            write_errors: families.counter(
                "wardline_log_write_errors_total",
                "Failures to write, rotate or delete the policy log.",
            )?,
            rotations: families.counter(
                "wardline_log_rotations_total",
                "Policy log files begun because one was full or old.",
            )?,
            deleted_bytes: families.counter(
                "wardline_log_deleted_bytes_total",
                "Bytes of old policy log files that were deleted.",
            )?,
            deleted_records: families.counters(
                "wardline_log_deleted_records_total",
                "Records in old policy log files that were deleted.",
                &["disposition"],
            )?,
            left_out: families.counter(
                "wardline_log_stdout_dropped_total",
                "Lines of the policy log that standard output was too slow for; they are in the file.",
            )?,
            backlog: families.gauge(
                "wardline_log_backlog_bytes",
                "Bytes of events in the kernel that are not read yet.",
            )?,
            delay: families.register(Histogram::with_opts(histogram_options(
                "wardline_log_delay_seconds",
                "Time from the first packet of an allowed connection, or a deny that is told alone, to its line in the policy log.",
            )?)?)?,
            by_policy: families.counters(
                "wardline_policy_verdicts_total",
                "Verdicts whose record is written, by each policy that it names.",
                &["namespace", "policy", "direction", "verdict"],
            )?,
        })
    }

    fn set(&self, ledger: &Ledger, log: &LogFigures) {
        for direction in Direction::ALL {
            for verdict in Verdict::ALL {
                let labels = [direction.as_str(), verdict.as_str()];
                let (d, v) = (direction.index(), verdict as usize);
                raise(&self.due.with_label_values(&labels), ledger.due[d][v]);
                raise(&self.written.with_label_values(&labels), ledger.written[d][v]);
                for (cause, count) in Cause::ALL.iter().zip(ledger.lost[d][v]) {
                    let labels = [direction.as_str(), verdict.as_str(), cause.as_str(verdict)];
                    raise(&self.lost.with_label_values(&labels), count);
                }
                if let Some(imbalance) = &log.imbalance {
                    self.imbalance.with_label_values(&labels).set(imbalance[d][v]);
                }
            }
        }
        raise(&self.deleted_bytes, ledger.deleted_bytes);
        for (disposition, count) in ["allow", "deny", "lost"].into_iter().zip(ledger.deleted_records) {
            raise(&self.deleted_records.with_label_values(&[disposition]), count);
        }
        raise(&self.rotations, log.rotations);
        raise(&self.write_errors, log.write_errors);
        raise(&self.left_out, log.left_out);
        self.stopped.set(i64::from(log.is_stopped));
        self.backlog.set(i64::try_from(log.backlog).unwrap_or(i64::MAX));
    }
}

/// Figures of the policy log beside the account.
#[derive(Clone, Copy, Debug)]
pub struct LogFigures {
    pub imbalance: Option<Imbalance>,
    pub rotations: u64,
    pub write_errors: u64,
    /// Nothing can be written.
    pub is_stopped: bool,
    /// Lines that standard output was too slow for.
    pub left_out: u64,
    /// Bytes of the ring that are not read yet.
    pub backlog: u64,
}

fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}
