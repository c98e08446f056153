// SPDX-License-Identifier: Apache-2.0
//! The operator's own metrics. Labels are bounded: kinds, results and error categories.

use std::sync::{Arc, Mutex};

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::context::lock;
use crate::error::Category;

/// Sets the gauges that are counted when they are asked for.
type Source = Box<dyn Fn(&Metrics) + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Metrics {
    source: Arc<Mutex<Option<Source>>>,
    registry: Registry,
    reconciles: IntCounterVec,
    errors: IntCounterVec,
    seconds: HistogramVec,
    watch_errors: IntCounterVec,
    invalid_objects: IntGaugeVec,
    pub(crate) leader: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> prometheus::Result<Self> {
        let name = |name: &str| format!("wardline_operator_{name}");
        let metrics = Self {
            source: Arc::default(),
            registry: Registry::new(),
            reconciles: IntCounterVec::new(
                Opts::new(
                    name("reconciles_total"),
                    "Reconciliations, by kind and result (ok, refused, error).",
                ),
                &["kind", "result"],
            )?,
            errors: IntCounterVec::new(
                Opts::new(
                    name("reconcile_errors_total"),
                    "Reconciliations that failed, by kind and category of error.",
                ),
                &["kind", "category"],
            )?,
            seconds: HistogramVec::new(
                HistogramOpts::new(
                    name("reconcile_duration_seconds"),
                    "Time that a reconciliation took, by kind.",
                ),
                &["kind"],
            )?,
            watch_errors: IntCounterVec::new(
                Opts::new(name("watch_errors_total"), "Failed attempts to list or watch, by kind."),
                &["kind"],
            )?,
            invalid_objects: IntGaugeVec::new(
                Opts::new(
                    name("invalid_objects"),
                    "Objects that exist and cannot be used, by kind.",
                ),
                &["kind"],
            )?,
            leader: IntGauge::new(name("leader"), "1 while this replica is the one that works.")?,
        };
        let build = IntGaugeVec::new(
            Opts::new(name("build_info"), "1, with the version as a label."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.registry.register(Box::new(build))?;
        metrics.registry.register(Box::new(metrics.reconciles.clone()))?;
        metrics.registry.register(Box::new(metrics.errors.clone()))?;
        metrics.registry.register(Box::new(metrics.seconds.clone()))?;
        metrics.registry.register(Box::new(metrics.watch_errors.clone()))?;
        metrics.registry.register(Box::new(metrics.invalid_objects.clone()))?;
        metrics.registry.register(Box::new(metrics.leader.clone()))?;
        Ok(metrics)
    }

    pub(crate) fn reconciled(&self, kind: &str, result: &str, seconds: f64) {
        self.reconciles.with_label_values(&[kind, result]).inc();
        self.seconds.with_label_values(&[kind]).observe(seconds);
    }

    pub(crate) fn failed(&self, kind: &str, category: Category) {
        self.errors.with_label_values(&[kind, category.as_str()]).inc();
    }

    pub(crate) fn watch_failed(&self, kind: &str) {
        self.watch_errors.with_label_values(&[kind]).inc();
    }

    pub(crate) fn set_invalid(&self, kind: &str, objects: usize) {
        self.invalid_objects
            .with_label_values(&[kind])
            .set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    /// Counts with `source` from now on; without one, nothing is invalid that anybody knows of.
    pub(crate) fn count_with(&self, source: Option<Source>) {
        self.invalid_objects.reset();
        *lock(&self.source) = source;
    }

    /// The text format of Prometheus.
    pub(crate) fn render(&self) -> prometheus::Result<Vec<u8>> {
        if let Some(source) = lock(&self.source).as_ref() {
            source(self);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
