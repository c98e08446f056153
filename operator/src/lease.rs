// SPDX-License-Identifier: Apache-2.0
//! Leader election by a `coordination.k8s.io` Lease, as client-go does it (tools/leaderelection): a holder renews; others
//! take a Lease that they have seen unchanged for its whole duration by their own clock, so clocks need not agree. Each
//! write carries the resourceVersion that was read, so of two writers one fails.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use thiserror::Error;

use crate::error::explain;

/// A Lease that is not renewed for this long may be taken by another.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops, so that it has stopped before another one starts.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
pub(crate) enum LeaseError {
    #[error("failed to {verb} lease {name}: {cause}", cause = explain(.source))]
    Api {
        verb: &'static str,
        name: String,
        source: kube::Error,
    },
    #[error("failed to keep lease {name}: {holder} holds it now")]
    Taken { name: String, holder: String },
    #[error("failed to keep lease {name}: it could not be renewed for {}s", DEADLINE.as_secs())]
    Expired { name: String },
}

/// The Lease of this operator, seen from one replica.
pub(crate) struct Election {
    api: Api<Lease>,
    name: String,
    me: String,
    seen: Option<Seen>,
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
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Renews the Lease; returns why it is lost.
    pub(crate) async fn hold(&mut self) -> LeaseError {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY).await;
            let attempt = tokio::time::timeout(DEADLINE.saturating_sub(renewed.elapsed()), self.attempt()).await;
            match attempt {
                Ok(Ok(None)) => renewed = Instant::now(),
                Ok(Ok(Some(holder))) => {
                    return LeaseError::Taken {
                        name: self.name.clone(),
                        holder,
                    };
                }
                Ok(Err(error)) => tracing::warn!(%error, "failed to renew lease; trying again"),
                Err(_) => {}
            }
            if renewed.elapsed() >= DEADLINE {
                return LeaseError::Expired {
                    name: self.name.clone(),
                };
            }
        }
    }

    /// Gives the Lease back, so that another replica need not wait for it to run out.
    pub(crate) async fn release(&mut self) -> Result<(), LeaseError> {
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
        let found = self.api.get_opt(&self.name).await.map_err(self.failed("read"))?;
        let unchanged_for = self.observe(found.as_ref());
        let written = match decide(found.as_ref(), &self.me, unchanged_for) {
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

fn decide(lease: Option<&Lease>, me: &str, unchanged_for: Duration) -> Decision {
    let Some(lease) = lease else { return Decision::Create };
    let spec = lease.spec.clone().unwrap_or_default();
    let duration = spec
        .lease_duration_seconds
        .and_then(|s| u64::try_from(s).ok())
        .map_or(DURATION, Duration::from_secs);
    match spec.holder_identity.filter(|holder| !holder.is_empty()) {
        None => Decision::Take,
        Some(holder) if holder == me => Decision::Renew,
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, failure};

    const PATH: &str = "/leases/wardline-operator";

    fn election(api: &FakeApi) -> Election {
        Election::new(api.client(), "wardline-system", "wardline-operator", "a")
    }

    fn held_by(holder: &str) -> serde_json::Value {
        json!({"metadata": {"name": "wardline-operator", "resourceVersion": "7"}, "spec": {
            "holderIdentity": holder, "leaseDurationSeconds": 15, "leaseTransitions": 2,
            "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"}})
    }

    #[tokio::test]
    async fn the_first_one_creates_it() {
        let api = FakeApi::default().answer(PATH, 404, failure(404, "not found"));
        assert_eq!(election(&api).attempt().await.unwrap(), None);
        let sent = api.take();
        assert_eq!(
            (sent[1].method.as_str(), &sent[1].body["spec"]["holderIdentity"]),
            ("POST", &json!("a"))
        );
        assert_eq!(sent[1].body["spec"]["leaseTransitions"], 0);
    }

    #[tokio::test]
    async fn a_lease_that_was_given_back_is_taken_with_the_version_that_was_read() {
        let api = FakeApi::default().answer(PATH, 200, held_by(""));
        assert_eq!(election(&api).attempt().await.unwrap(), None);
        let sent = api.take();
        assert_eq!(sent[1].method, "PUT");
        assert_eq!(sent[1].body["metadata"]["resourceVersion"], "7");
        assert_eq!(sent[1].body["spec"]["leaseTransitions"], 3);
    }

    #[tokio::test]
    async fn a_lease_that_another_holds_is_left_alone() {
        let api = FakeApi::default().answer(PATH, 200, held_by("b"));
        let mut election = election(&api);
        assert_eq!(election.attempt().await.unwrap(), Some("b".into()));
        election.release().await.unwrap();
        assert!(api.take().iter().all(|sent| sent.method == "GET"));
    }

    #[tokio::test]
    async fn ours_is_renewed_and_given_back() {
        let api = FakeApi::default().answer(PATH, 200, held_by("a"));
        let mut election = election(&api);
        assert_eq!(election.attempt().await.unwrap(), None);
        election.release().await.unwrap();
        let puts: Vec<_> = api.take().into_iter().filter(|sent| sent.method == "PUT").collect();
        assert_eq!(puts[0].body["spec"]["leaseTransitions"], 2);
        assert_eq!(puts[0].body["spec"]["acquireTime"], held_by("a")["spec"]["acquireTime"]);
        assert!(puts[1].body["spec"].get("holderIdentity").is_none());
    }

    fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
        let spec = LeaseSpec {
            holder_identity: holder.map(Into::into),
            lease_duration_seconds: seconds,
            ..LeaseSpec::default()
        };
        Lease {
            spec: Some(spec),
            ..Lease::default()
        }
    }

    #[test]
    fn decisions() {
        let wait = || Decision::Wait("b".into());
        for (what, lease, unchanged, expected) in [
            ("none", None, 0, Decision::Create),
            ("ours", Some(lease(Some("a"), Some(15))), 0, Decision::Renew),
            (
                "ours, though old",
                Some(lease(Some("a"), Some(15))),
                99,
                Decision::Renew,
            ),
            ("released", Some(lease(None, Some(15))), 0, Decision::Take),
            (
                "released with an empty name",
                Some(lease(Some(""), Some(15))),
                0,
                Decision::Take,
            ),
            ("another's, just seen", Some(lease(Some("b"), Some(15))), 0, wait()),
            ("another's, to the second", Some(lease(Some("b"), Some(15))), 15, wait()),
            (
                "another's, run out",
                Some(lease(Some("b"), Some(15))),
                16,
                Decision::Take,
            ),
            (
                "another's, of a longer duration",
                Some(lease(Some("b"), Some(60))),
                16,
                wait(),
            ),
            (
                "another's, of no duration",
                Some(lease(Some("b"), None)),
                16,
                Decision::Take,
            ),
        ] {
            assert_eq!(
                decide(lease.as_ref(), "a", Duration::from_secs(unchanged)),
                expected,
                "{what}"
            );
        }
    }
}
