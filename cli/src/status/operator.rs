// SPDX-License-Identifier: Apache-2.0
//! Whether an operator works: what it is to do, nobody does without one, and statuses say what they said last.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;

use super::look::{Asked, LEASE};
use super::pods;
use super::report::{Counts, Report, Row};

const OPERATOR: &str = "Operator";
const NAME: &str = "wardline-operator";
/// Clocks of nodes and API server may differ by so much.
const SKEW: SignedDuration = SignedDuration::from_secs(5);
/// Seconds, where the Lease does not say.
const DURATION: i32 = 15;

pub(super) fn tell(
    report: &mut Report,
    now: Timestamp,
    namespace: &str,
    lease: &Asked<Option<Lease>>,
    pods: &Asked<Vec<Pod>>,
) {
    let look = format!("kubectl get pods -n {namespace} -l app.kubernetes.io/name={NAME}");
    let mut row = Row {
        kind: OPERATOR,
        name: NAME.to_owned(),
        ..Row::default()
    };
    match lease {
        Err(why) => report
            .notes
            .push(format!("it is not known whether an operator works: {why}")),
        Ok(lease) => {
            let idle = why_idle(lease.as_ref(), now);
            row.ready = Some(if idle.is_none() { "True" } else { "False" }.to_owned());
            if let Some(why) = idle {
                report.problem(
                    OPERATOR,
                    NAME,
                    format!("{why}. Nothing is rolled out, and statuses are old; policies stay in force. Look: {look}"),
                );
            }
        }
    }
    match pods {
        Err(why) => report
            .notes
            .push(format!("the pods of operator and daemons are not known: {why}")),
        Ok(pods) => {
            let pods: Vec<&Pod> = pods.iter().filter(|pod| pods::is_operator(pod)).collect();
            if pods.is_empty() {
                let message = format!("it has no pod. Look: kubectl describe deployment -n {namespace} {NAME}");
                report.problem(OPERATOR, NAME, message);
            }
            for pod in pods.iter().filter(|pod| !pods::is_ready(pod)) {
                let (name, why) = (pod.name_any(), pods::why_not_ready(pod));
                let message =
                    format!("its Pod {name}: {why}. Look: kubectl logs -n {namespace} {name} --all-containers");
                report.problem(OPERATOR, NAME, message);
            }
            let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
            row.nodes = Some(Counts {
                desired: count(pods.len()),
                done: count(pods.iter().filter(|pod| pods::is_ready(pod)).count()),
            });
        }
    }
    report.objects.push(row);
}

fn why_idle(lease: Option<&Lease>, now: Timestamp) -> Option<String> {
    let Some(spec) = lease.and_then(|lease| lease.spec.as_ref()) else {
        return Some(format!("no operator has ever worked here: there is no Lease {LEASE}"));
    };
    let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
    let Some(holder) = holder else {
        return Some(format!("no operator works: nobody holds Lease {LEASE}"));
    };
    let renewed = spec.renew_time.as_ref()?.0;
    let duration = i64::from(spec.lease_duration_seconds.unwrap_or(DURATION));
    let is_over = now.duration_since(renewed) > SignedDuration::from_secs(duration) + SKEW;
    // To the second: whoever watches is told of changes, and this is none.
    let renewed = Timestamp::from_second(renewed.as_second()).unwrap_or(renewed);
    is_over.then(|| format!("no operator works: {holder} has not renewed Lease {LEASE} since {renewed}"))
}
