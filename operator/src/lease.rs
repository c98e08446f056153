// SPDX-License-Identifier: Apache-2.0
//! Leader election by a `coordination.k8s.io` Lease, as client-go does it (tools/leaderelection): a holder renews; others
//! take a Lease that they have seen unchanged for its whole duration by their own clock, so clocks need not agree. Each
//! write carries the resourceVersion that was read, so of two writers one fails.
//!
//! ```text
//! holder   |--- renewed (the attempt began) ---------- DEADLINE: leads nothing any more --|
//! others             |--- seen so ------------------------------------------- DURATION: take it --|
//! ```
//!
//! A holder counts from the moment at which the attempt began, and others from when they saw what came of it, which is
//! later: however long an answer takes, the one has stopped before another starts.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::error::explain;

/// A Lease that is not renewed for this long may be taken by another.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops, so that it has stopped before another one starts.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_secs(2);
/// An attempt that takes longer is begun anew: one answer that is lost must not cost the lease.
const ANSWER: Duration = Duration::from_secs(4);
/// Attempts to give the Lease back. The last renewal may still be on its way.
const RELEASES: u32 = 3;

#[derive(Debug, Error)]
pub(crate) enum LeaseError {
    #[error("failed to {verb} lease {name}: {cause}", cause = explain(.source))]
    Api {
        verb: &'static str,
        name: String,
        source: kube::Error,
    },
    #[error("failed to read or write lease {name}: no answer within {} s", ANSWER.as_secs())]
    Unanswered { name: String },
    #[error("failed to keep lease {name}: {holder} holds it now")]
    Taken { name: String, holder: String },
    #[error("failed to keep lease {name}: it could not be renewed for {} s", DEADLINE.as_secs())]
    Expired { name: String },
}

/// The Lease of this operator, seen from one replica.
pub(crate) struct Election {
    api: Api<Lease>,
    name: String,
    me: String,
    seen: Option<Seen>,
    /// Whether a Lease of our name is ours. Not once it ran out: whose renewals arrive, but never their answers, would keep it
    /// from everybody, itself too.
    is_ours: bool,
    /// When the last attempt began that made it ours, or left it ours.
    renewed_at: Instant,
}

/// The Lease as it was read last, and when it was first read so.
struct Seen {
    version: String,
    since: Instant,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Create,
    /// It is ours.
    Renew,
    /// Nobody holds it, or its holder is gone.
    Take,
    /// That one holds it.
    Wait(String),
}

impl Election {
    pub(crate) fn new(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            me: me.into(),
            seen: None,
            // A container that starts again in its pod goes on with the Lease.
            is_ours: true,
            renewed_at: Instant::now(),
        }
    }

    /// Returns once this replica holds the Lease.
    pub(crate) async fn acquire(&mut self) {
        let mut said = None;
        loop {
            match self.attempt().await {
                Ok(None) => return,
                Ok(holder) if holder != said => {
                    tracing::info!(lease = self.name, ?holder, "another replica works; standing by");
                    said = holder;
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "failed to acquire lease; trying again"),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews the Lease; returns why it is lost, before another can take it.
    pub(crate) async fn hold(&mut self) -> LeaseError {
        loop {
            let deadline = self.renewed_at + DEADLINE;
            sleep_until(deadline.min(Instant::now() + RETRY)).await;
            match timeout_at(deadline, self.attempt()).await {
                Ok(Ok(None)) | Err(_) => {}
                Ok(Ok(Some(holder))) => {
                    return LeaseError::Taken {
                        name: self.name.clone(),
                        holder,
                    };
                }
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew lease; trying again"),
            }
            if self.renewed_at.elapsed() >= DEADLINE {
                self.is_ours = false;
                return LeaseError::Expired {
                    name: self.name.clone(),
                };
            }
        }
    }

    /// Gives the Lease back, so that another replica need not wait for it to run out.
    pub(crate) async fn release(&self) -> Result<(), LeaseError> {
        let mut attempts = 1;
        loop {
            match self.try_release().await {
                Err(LeaseError::Api {
                    source: kube::Error::Api(status),
                    ..
                }) if status.code == 409 && attempts < RELEASES => attempts += 1,
                released => return released,
            }
        }
    }

    async fn try_release(&self) -> Result<(), LeaseError> {
        let Some(mut lease) = self.api.get_opt(&self.name).await.map_err(self.failed("read"))? else {
            return Ok(());
        };
        let held = lease
            .spec
            .as_mut()
            .filter(|spec| spec.holder_identity.as_deref() == Some(&self.me));
        let Some(spec) = held else { return Ok(()) };
        spec.holder_identity = None;
        spec.renew_time = Some(now());
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await
            .map_err(self.failed("release"))?;
        Ok(())
    }

    /// One attempt to hold the Lease. Returns who holds it instead.
    async fn attempt(&mut self) -> Result<Option<String>, LeaseError> {
        let began = Instant::now();
        let attempt = timeout(ANSWER, self.read_and_write()).await;
        let holder = attempt.map_err(|_| LeaseError::Unanswered {
            name: self.name.clone(),
        })??;
        if holder.is_none() {
            (self.renewed_at, self.is_ours) = (began, true);
        }
        Ok(holder)
    }

    async fn read_and_write(&mut self) -> Result<Option<String>, LeaseError> {
        let found = self.api.get_opt(&self.name).await.map_err(self.failed("read"))?;
        let unchanged_for = self.observe(found.as_ref());
        let written = match decide(found.as_ref(), &self.me, self.is_ours, unchanged_for) {
            Decision::Wait(holder) => return Ok(Some(holder)),
            Decision::Create => {
                self.api
                    .create(&PostParams::default(), &self.renewed(Lease::default(), true))
                    .await
            }
            decision => {
                let lease = self.renewed(found.unwrap_or_default(), decision == Decision::Take);
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        let lease = written.map_err(self.failed("write"))?;
        self.observe(Some(&lease));
        Ok(None)
    }

    /// Notes what was read, and returns for how long it has been so.
    fn observe(&mut self, lease: Option<&Lease>) -> Duration {
        let version = lease
            .and_then(|lease| lease.metadata.resource_version.clone())
            .unwrap_or_default();
        match &self.seen {
            Some(seen) if seen.version == version => seen.since.elapsed(),
            _ => {
                self.seen = Some(Seen {
                    version,
                    since: Instant::now(),
                });
                Duration::ZERO
            }
        }
    }

    fn renewed(&self, old: Lease, taken: bool) -> Lease {
        let spec = old.spec.unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(taken && spec.acquire_time.is_some());
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..old.metadata
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: if taken { Some(now()) } else { spec.acquire_time },
                renew_time: Some(now()),
                lease_transitions: Some(transitions),
                ..LeaseSpec::default()
            }),
        }
    }

    fn failed(&self, verb: &'static str) -> impl FnOnce(kube::Error) -> LeaseError + use<> {
        let name = self.name.clone();
        move |source| LeaseError::Api { verb, name, source }
    }
}

fn decide(lease: Option<&Lease>, me: &str, is_ours: bool, unchanged_for: Duration) -> Decision {
    let Some(lease) = lease else { return Decision::Create };
    let spec = lease.spec.clone().unwrap_or_default();
    let duration = spec
        .lease_duration_seconds
        .and_then(|s| u64::try_from(s).ok())
        .map_or(DURATION, Duration::from_secs);
    match spec.holder_identity.filter(|holder| !holder.is_empty()) {
        None => Decision::Take,
        Some(holder) if holder == me && is_ours => Decision::Renew,
        // Others first.
        Some(holder) if holder == me && unchanged_for <= 2 * duration => Decision::Wait(holder),
        Some(_) if unchanged_for > duration => Decision::Take,
        Some(holder) => Decision::Wait(holder),
    }
}

/// The API server keeps microseconds.
fn now() -> MicroTime {
    let now = Timestamp::now();
    MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
}

#[cfg(test)]
mod tests;
