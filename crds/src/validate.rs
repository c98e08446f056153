// SPDX-License-Identifier: Apache-2.0
//! The ranges of the CRDs once more, in Rust: an object may have been stored under a laxer CRD, and a daemon must never
//! see what the API server would refuse today. `tests/cases` holds
//! what both must accept and refuse.

use std::ops::RangeInclusive;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use thiserror::Error;

use crate::quantity::{QuantityError, parse_bytes};
use crate::{DaemonSpec, DataplaneSpec, NetworkLoggingSpec, SINGLETON_NAME};

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
const RESOURCE_SUFFIXES: [&str; 14] = [
    "", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
];
const FORBIDDEN_DIRS: [&str; 5] = ["/proc/", "/sys/", "/dev/", "/run/wardline/", "/etc/wardline/"];

/// Checks the name of a singleton.
pub fn name(kind: &str, name: &str) -> Result<(), SpecError> {
    ensure(name == SINGLETON_NAME, "metadata.name", || {
        format!("a {kind} must be named '{SINGLETON_NAME}'")
    })
}

/// Checks what the CRD of `Dataplane` checks.
pub fn dataplane(spec: &DataplaneSpec) -> Result<(), SpecError> {
    let logging = &spec.logging;
    number(
        "spec.logging.denyAggregationSeconds",
        logging.deny_aggregation_seconds,
        0..=300,
    )?;
    number("spec.logging.file.maxFiles", logging.file.max_files, 1..=100)?;
    if let Some(seconds) = logging.file.max_age_seconds {
        number("spec.logging.file.maxAgeSeconds", seconds, 60..=31_536_000)?;
    }
    number(
        "spec.logging.file.minFreePercent",
        logging.file.min_free_percent,
        0..=50,
    )?;
    number(
        "spec.logging.file.maxSize",
        parse_bytes(&logging.file.max_size)?,
        MAX_SIZE,
    )?;
    number("spec.metrics.policies", spec.metrics.policies, 0..=10_000)?;
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
    daemon(&spec.daemon)
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
    })?;
    ensure(!cluster.deny.events || cluster.deny.log, "spec.cluster.deny", || {
        "events needs log".into()
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
    T: Copy + PartialOrd + std::fmt::Display,
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

fn daemon(spec: &DaemonSpec) -> Result<(), SpecError> {
    if let Some(tag) = &spec.image.tag {
        let field = "spec.daemon.image.tag";
        text(field, tag, 128, |b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))?;
        ensure(!tag.is_empty() && !tag.starts_with(['.', '-']), field, || {
            format!("{tag:?} is not a tag")
        })?;
    }
    if let Some(digest) = &spec.image.digest {
        let hex = |s: &str| s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let ok = digest.strip_prefix("sha256:").is_some_and(hex);
        ensure(ok, "spec.daemon.image.digest", || {
            format!("{digest:?} is not a SHA-256 digest")
        })?;
    }
    let secrets = &spec.image_pull_secrets;
    let twice = secrets
        .iter()
        .enumerate()
        .find(|(i, secret)| secrets[..*i].contains(secret));
    ensure(twice.is_none(), "spec.daemon.imagePullSecrets", || {
        "a Secret is named twice".into()
    })?;
    for (name, quantity) in spec.resources.requests.iter().chain(&spec.resources.limits) {
        let number = quantity.0.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let suffix = &quantity.0[number.len()..];
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let ok = digits(whole) && digits(fraction) && RESOURCE_SUFFIXES.contains(&suffix);
        ensure(ok, "spec.daemon.resources", || {
            format!("{:?} is not a quantity of {name}", quantity.0)
        })?;
    }
    let rollout = &spec.rollout;
    number("spec.daemon.rollout.canary.nodes", rollout.canary.nodes, 0..=100)?;
    number(
        "spec.daemon.rollout.minReadySeconds",
        rollout.min_ready_seconds,
        0..=3600,
    )?;
    number(
        "spec.daemon.rollout.progressDeadlineSeconds",
        rollout.progress_deadline_seconds,
        30..=3600,
    )?;
    max_unavailable(&rollout.max_unavailable)
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
