// SPDX-License-Identifier: Apache-2.0
//! The ranges of the CRDs once more, in Rust: an object may have been stored under a laxer CRD, and a daemon must never
//! see what the API server would refuse today. A test walks the cases of both.

use std::ops::RangeInclusive;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use thiserror::Error;

use crate::quantity::{QuantityError, parse_bytes};
use crate::{DataplaneSpec, NetworkLoggingSpec};

/// Why a spec that decodes cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    #[error("failed to validate {field}: {message}")]
    Field { field: &'static str, message: String },
    #[error("failed to validate spec.logging.file.maxSize: {0}")]
    Quantity(#[from] QuantityError),
}

/// Bytes that `spec.logging.file.maxSize` may stand for.
pub const MAX_SIZE: RangeInclusive<u64> = 64 << 10..=1 << 30;
const FORBIDDEN_DIRS: [&str; 5] = ["/proc/", "/sys/", "/dev/", "/run/wardline/", "/etc/wardline/"];

/// Checks what the CRD of `Dataplane` checks.
pub fn dataplane(spec: &DataplaneSpec) -> Result<(), SpecError> {
    let logging = &spec.logging;
    number(
        "spec.logging.denyAggregationSeconds",
        logging.deny_aggregation_seconds,
        1..=300,
    )?;
    number("spec.logging.file.maxFiles", logging.file.max_files, 1..=100)?;
    number(
        "spec.logging.file.maxSize",
        parse_bytes(&logging.file.max_size)?,
        MAX_SIZE,
    )?;
    number("spec.limits.connections", spec.limits.connections, 1024..=16_777_216)?;
    number("spec.limits.peers", spec.limits.peers, 1024..=4_194_304)?;
    number("spec.limits.rules", spec.limits.rules, 1024..=4_194_304)?;
    number(
        "spec.limits.denyAggregates",
        spec.limits.deny_aggregates,
        1024..=1_048_576,
    )?;
    number("spec.apiServer.port", spec.api_server.port, 1..=65535)?;

    let field = "spec.logging.clusterName";
    text(field, &logging.cluster_name, 253, |b| {
        b.is_ascii_alphanumeric() || b"-_.".contains(&b)
    })?;
    let ends = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric()) && s.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    ensure(
        logging.cluster_name.is_empty() || ends(&logging.cluster_name),
        field,
        || format!("{:?} must start and end with a letter or digit", logging.cluster_name),
    )?;
    let host = &spec.api_server.host;
    text("spec.apiServer.host", host, 253, |b| {
        b.is_ascii_alphanumeric() || b".:-".contains(&b)
    })?;

    directory("spec.cni.confDir", &spec.cni.conf_dir)?;
    directory("spec.cni.binDir", &spec.cni.bin_dir)?;
    log_path(&logging.file.path)?;
    max_unavailable(&spec.daemon.rollout.max_unavailable)
}

/// Checks what the CRD of `NetworkLogging` checks.
pub fn network_logging(spec: &NetworkLoggingSpec) -> Result<(), SpecError> {
    let cluster = &spec.cluster;
    ensure(
        !cluster.allow.delegate || cluster.allow.log,
        "spec.cluster.allow",
        || "delegate needs log".into(),
    )?;
    ensure(!cluster.deny.delegate || cluster.deny.log, "spec.cluster.deny", || {
        "delegate needs log".into()
    })
}

fn ensure(ok: bool, field: &'static str, message: impl FnOnce() -> String) -> Result<(), SpecError> {
    if ok {
        Ok(())
    } else {
        Err(SpecError::Field {
            field,
            message: message(),
        })
    }
}

fn number<T>(field: &'static str, value: T, range: RangeInclusive<T>) -> Result<(), SpecError>
where
    T: PartialOrd + std::fmt::Display,
{
    ensure(range.contains(&value), field, || {
        format!("{value} is not in {} to {}", range.start(), range.end())
    })
}

fn text(field: &'static str, value: &str, max: usize, allowed: fn(u8) -> bool) -> Result<(), SpecError> {
    ensure(value.len() <= max, field, || {
        format!("it is longer than {max} characters")
    })?;
    ensure(value.bytes().all(allowed), field, || {
        format!("{value:?} holds a character that is not allowed")
    })
}

fn directory(field: &'static str, path: &str) -> Result<(), SpecError> {
    text(field, path, 256, |b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))?;
    let mut parts = path.split('/');
    let absolute = parts.next() == Some("") && parts.clone().next().is_some() && parts.all(|p| !p.is_empty());
    ensure(absolute, field, || format!("{path:?} is not an absolute path"))
}

fn log_path(path: &str) -> Result<(), SpecError> {
    let field = "spec.logging.file.path";
    directory(field, path)?;
    ensure(path.matches('/').count() >= 2, field, || {
        format!("{path:?} must lie in a directory")
    })?;
    ensure(!path.split('/').any(|p| p == "." || p == ".."), field, || {
        format!("{path:?} must not hold '.' or '..'")
    })?;
    let forbidden = FORBIDDEN_DIRS.iter().find(|dir| path.starts_with(**dir));
    ensure(forbidden.is_none(), field, || {
        format!("{path:?} must not lie under {}", FORBIDDEN_DIRS.join(", "))
    })
}

fn max_unavailable(value: &IntOrString) -> Result<(), SpecError> {
    let ok = match value {
        IntOrString::Int(n) => *n >= 1,
        IntOrString::String(s) => s
            .strip_suffix('%')
            .is_some_and(|n| !n.starts_with(['0', '+']) && n.parse::<u8>().is_ok_and(|n| (1..=100).contains(&n))),
    };
    ensure(ok, "spec.daemon.rollout.maxUnavailable", || {
        "it must be 1 or more, or 1% to 100%".into()
    })
}
