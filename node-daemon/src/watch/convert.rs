// SPDX-License-Identifier: Apache-2.0
//! From API objects to what the index keeps of them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use wardline_crds::{Dataplane, NetworkLogging, validate};
use wardline_policy::model::{ObjectName, Policy};

use super::{ObjectKey, Seen};
use crate::index::{Event, Logged, LoggingSpec, NamespaceInfo, NodeInfo, PodInfo, PolicyInfo, Update, Workload};
use crate::services;

/// Ours, and GKE's, which means the same.
const LOG_DENIES: [&str; 2] = [
    "wardline.io/enable-deny-logging",
    "policy.network.gke.io/enable-deny-logging",
];

const ZONE: &str = "topology.kubernetes.io/zone";

fn update<K, T>(seen: Seen<K>, convert: impl FnOnce(K) -> Result<T, String>) -> Update<T> {
    match seen {
        Seen::Gone => Update::Gone,
        Seen::Undecodable(cause) => Update::Invalid(cause),
        Seen::Here(object) => convert(object).map_or_else(Update::Invalid, Update::Set),
    }
}

/// As [`update`], for objects that may mean nothing here and are then as good as gone.
fn update_some<K, T>(seen: Seen<K>, convert: impl FnOnce(K) -> Result<Option<T>, String>) -> Update<T> {
    match update(seen, convert) {
        Update::Set(Some(object)) => Update::Set(object),
        Update::Set(None) | Update::Gone => Update::Gone,
        Update::Invalid(cause) => Update::Invalid(cause),
    }
}

fn object_name(key: &ObjectKey) -> ObjectName {
    ObjectName {
        namespace: Arc::clone(&key.namespace),
        name: Arc::clone(&key.name),
    }
}

pub fn namespace(key: &ObjectKey, seen: Seen<Namespace>) -> Event {
    let update = update(seen, |namespace| {
        let annotations = namespace.metadata.annotations.unwrap_or_default();
        Ok(NamespaceInfo {
            labels: namespace.metadata.labels.unwrap_or_default(),
            log_denies: LOG_DENIES
                .iter()
                .any(|key| annotations.get(*key).is_some_and(|value| value == "true")),
        })
    });
    Event::Namespace(Arc::clone(&key.name), update)
}

pub fn pod(key: &ObjectKey, seen: Seen<Pod>) -> Event {
    let update = update(seen, |pod| {
        Ok(PodInfo {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            static_uid: static_uid(&pod.metadata),
            node: pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.as_deref())
                .unwrap_or_default()
                .into(),
            is_written: pod
                .status
                .as_ref()
                .is_some_and(|status| status.pod_ip.is_some() || status.pod_ips.iter().flatten().next().is_some()),
            policy: wardline_policy::convert::pod(&pod).map(|(_, pod)| Arc::new(pod)),
            host_ports: pod.spec.as_ref().map(services::host_ports).unwrap_or_default(),
            created: created(&pod.metadata),
            workload: workload(&pod.metadata),
        })
    });
    Event::Pod(object_name(key), update)
}

fn created(metadata: &ObjectMeta) -> u64 {
    let time = metadata.creation_timestamp.as_ref();
    time.map_or(0, |time| u64::try_from(time.0.as_second()).unwrap_or_default())
}

/// kubelet knows a static pod by a uid of its own making, which it notes on the object that mirrors it.
fn static_uid(metadata: &ObjectMeta) -> Option<Arc<str>> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get("kubernetes.io/config.mirror")?;
    Some(annotations.get("kubernetes.io/config.hash")?.as_str().into())
}

pub fn policy(key: &ObjectKey, seen: Seen<NetworkPolicy>) -> Event {
    let (name, uid) = (object_name(key), Arc::clone(&key.uid));
    let policy = match seen {
        Seen::Gone => return Event::Policy(name, Update::Gone),
        Seen::Undecodable(cause) => {
            return Event::PolicyRefused {
                name,
                uid,
                cause,
                instead: None,
            };
        }
        Seen::Here(policy) => policy,
    };
    match Policy::try_from(&policy) {
        Ok(policy) => Event::Policy(name, Update::Set(PolicyInfo { uid, policy })),
        Err(error) => Event::PolicyRefused {
            name,
            uid,
            cause: error.to_string(),
            instead: wardline_policy::convert::isolating(policy),
        },
    }
}

pub fn node(key: &ObjectKey, seen: Seen<Node>) -> Event {
    let update = update(seen, |node| {
        let labels = node.metadata.labels.unwrap_or_default();
        let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .filter_map(|address| address.address.parse().ok())
            .collect();
        Ok(NodeInfo {
            uid: node.metadata.uid.unwrap_or_default(),
            addresses,
            zone: labels.get(ZONE).map(|zone| zone.as_str().into()),
        })
    });
    Event::Node(Arc::clone(&key.name), update)
}

pub fn service(key: &ObjectKey, seen: Seen<Service>) -> Event {
    Event::Service(object_name(key), update_some(seen, services::service))
}

pub fn slice(key: &ObjectKey, seen: Seen<EndpointSlice>) -> Event {
    Event::Slice(object_name(key), update_some(seen, services::slice))
}

pub fn logging(_key: &ObjectKey, seen: Seen<NetworkLogging>) -> Event {
    Event::Logging(update(seen, |logging| {
        let cluster = &logging.spec.cluster;
        for (side, log, delegate) in [
            ("allow", cluster.allow.log, cluster.allow.delegate),
            ("deny", cluster.deny.log, cluster.deny.delegate),
        ] {
            if delegate && !log {
                return Err(format!("spec.cluster.{side}.delegate: needs spec.cluster.{side}.log"));
            }
        }
        if cluster.deny.events && !cluster.deny.log {
            return Err("spec.cluster.deny.events: needs spec.cluster.deny.log".to_owned());
        }
        Ok(LoggingSpec {
            generation: logging.metadata.generation.unwrap_or_default(),
            allow: Logged::from_switches(cluster.allow.log, cluster.allow.delegate),
            deny: Logged::from_switches(cluster.deny.log, cluster.deny.delegate),
            deny_events: cluster.deny.events,
        })
    }))
}

/// Only whether it can be used: what is in force of it comes with the pod's configuration.
pub fn dataplane(_key: &ObjectKey, seen: Seen<Dataplane>) -> Event {
    Event::Dataplane(update(seen, |dataplane| {
        validate::dataplane(&dataplane.spec).map_err(|error| error.to_string())
    }))
}

/// The controlling owner; a ReplicaSet of a Deployment is told as the Deployment, whose name is the ReplicaSet's less
/// the hash that the pod carries as a label.
fn workload(metadata: &ObjectMeta) -> Option<Workload> {
    let owner = metadata
        .owner_references
        .as_ref()?
        .iter()
        .find(|owner| owner.controller == Some(true))?;
    let labels = metadata.labels.as_ref();
    let created = metadata.creation_timestamp.as_ref();
    let owners = match &*owner.kind {
        "ReplicaSet" => deployment(&owner.name, labels).map(|name| ("Deployment", name)),
        "Job" => cron_job(&owner.name, created).map(|name| ("CronJob", name)),
        _ => None,
    };
    let (kind, name) = owners.unwrap_or((&owner.kind, &owner.name));
    Some(Workload {
        kind: kind.into(),
        name: name.into(),
    })
}

/// The `CronJob` of a Job. Its controller puts the minute behind its name at which the Job was due, counted from the epoch;
/// a number that says another time is part of the Job's own name.
fn cron_job<'a>(job: &'a str, created: Option<&Time>) -> Option<&'a str> {
    /// How long after that the Job's last pod may be made, and by how much clocks differ, in seconds.
    const LATE: RangeInclusive<i64> = -60..=7 * 24 * 3600;
    let (name, minute) = job.rsplit_once('-')?;
    let is_number = minute.bytes().all(|byte| byte.is_ascii_digit());
    let due = minute.parse::<i64>().ok().filter(|_| is_number)?.checked_mul(60)?;
    let late = created?.0.as_second() - due;
    (!name.is_empty() && LATE.contains(&late)).then_some(name)
}

fn deployment<'a>(replica_set: &'a str, labels: Option<&BTreeMap<String, String>>) -> Option<&'a str> {
    let hash = labels?.get("pod-template-hash")?;
    replica_set.strip_suffix(hash.as_str())?.strip_suffix('-')
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn owned(kind: &str, name: &str, hash: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            labels: hash.map(|hash| BTreeMap::from([("pod-template-hash".to_owned(), hash.to_owned())])),
            owner_references: Some(vec![OwnerReference {
                kind: kind.into(),
                name: name.into(),
                controller: Some(true),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_policy_that_cannot_be_used_still_isolates() {
        let table = [
            (
                r#"{"podSelector":{},"ingress":[{"ports":[{"port":0}]}]}"#,
                Some((true, false)),
            ),
            (
                r#"{"podSelector":{},"egress":[{"ports":[{"protocol":"QUIC","port":1}]}]}"#,
                Some((true, true)),
            ),
            (
                r#"{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{}]}]}"#,
                Some((false, true)),
            ),
            (
                r#"{"podSelector":{"matchExpressions":[{"key":"a","operator":"Near"}]},"ingress":[]}"#,
                None,
            ),
        ];
        for (spec, expected) in table {
            let object = format!(r#"{{"metadata":{{"namespace":"shop","name":"bad"}},"spec":{spec}}}"#);
            let key = ObjectKey {
                namespace: "shop".into(),
                name: "bad".into(),
                uid: "".into(),
            };
            let event = policy(&key, Seen::Here(serde_json::from_str(&object).unwrap()));
            let Event::PolicyRefused { cause, instead, .. } = event else {
                panic!("{spec} is accepted")
            };
            assert!(cause.contains("spec."), "{cause}");
            let isolated = instead.map(|policy| (policy.ingress.is_some(), policy.egress.is_some()));
            assert_eq!(isolated, expected, "{spec}");
        }
    }

    #[test]
    fn a_dataplane_that_cannot_be_used_is_told_with_its_field() {
        let key = ObjectKey {
            namespace: "".into(),
            name: "default".into(),
            uid: "".into(),
        };
        for (spec, field) in [("{}", None), (r#"{"limits":{"rules":5}}"#, Some("spec.limits.rules"))] {
            let object = format!(r#"{{"metadata":{{"name":"default"}},"spec":{spec}}}"#);
            let event = dataplane(&key, Seen::Here(serde_json::from_str(&object).unwrap()));
            match (event, field) {
                (Event::Dataplane(Update::Set(())), None) => {}
                (Event::Dataplane(Update::Invalid(cause)), Some(field)) => assert!(cause.contains(field), "{cause}"),
                (event, _) => panic!("{spec}: {event:?}"),
            }
        }
    }

    #[test]
    fn a_job_is_of_the_cron_job_that_it_was_due_of() {
        // 2026-06-13T21:30:05Z, 29689770 minutes after the epoch.
        let created = 1_781_386_205;
        for (job, created, expected) in [
            ("backup-29689770", Some(created), ("CronJob", "backup")),
            ("a-b-29689700", Some(created), ("CronJob", "a-b")),
            ("backup-29689770", None, ("Job", "backup-29689770")),
            ("backup-29689773", Some(created), ("Job", "backup-29689773")),
            ("backup-29679000", Some(created), ("Job", "backup-29679000")),
            ("backup-2", Some(created), ("Job", "backup-2")),
            ("backup", Some(created), ("Job", "backup")),
            ("-29689770", Some(created), ("Job", "-29689770")),
            ("backup-+29689770", Some(created), ("Job", "backup-+29689770")),
        ] {
            let time = |seconds| Time(Timestamp::from_second(seconds).unwrap());
            let metadata = ObjectMeta {
                creation_timestamp: created.map(time),
                ..owned("Job", job, None)
            };
            let found = workload(&metadata).unwrap();
            assert_eq!((&*found.kind, &*found.name), expected, "{job}");
        }
    }

    #[test]
    fn the_workload_is_the_owner_that_a_person_knows() {
        let table = [
            (
                owned("ReplicaSet", "web-5d9c", Some("5d9c")),
                Some(("Deployment", "web")),
            ),
            (
                owned("ReplicaSet", "own-replicas", None),
                Some(("ReplicaSet", "own-replicas")),
            ),
            (
                owned("ReplicaSet", "web-5d9c", Some("other")),
                Some(("ReplicaSet", "web-5d9c")),
            ),
            (owned("StatefulSet", "db", None), Some(("StatefulSet", "db"))),
            (owned("DaemonSet", "agent", None), Some(("DaemonSet", "agent"))),
            (owned("Node", "node1", None), Some(("Node", "node1"))),
            (ObjectMeta::default(), None),
        ];
        for (metadata, expected) in table {
            let found = workload(&metadata);
            let found = found.as_ref().map(|w| (&*w.kind, &*w.name));
            assert_eq!(found, expected, "{metadata:?}");
        }
    }
}
