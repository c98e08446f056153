// SPDX-License-Identifier: Apache-2.0
//! Least privilege, after everything was tried: what roles grant Wardline against what it asked for.
//!
//! ```text
//!   API server --> target/lab/log/audit.jsonl --> each right was used      (or it is to go)
//!   roles in the cluster, and of the chart's hooks --^   no request was refused   (or one is missing)
//!   logs of Wardline's pods --> no token stands in them
//! ```

pub mod event;
pub mod grant;
pub mod tokens;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{Api, ListParams};
use serde::Deserialize as _;
use serde_yaml::Value;

use self::event::{Event, Use};
use self::grant::Roles;
use crate::cluster::{Lab, SYSTEM_NAMESPACE};
use crate::progress::step;
use crate::wardline;

/// What the API server writes down: what service accounts of Wardline's namespace ask, without contents.
pub const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: [system:serviceaccounts:wardline-system]
  - level: None
";

/// Used by a version alone that brings a kind which the one before it did not have; there is none yet.
const FOR_NEW_KINDS: &str =
    "ClusterRole wardline-crds grants wardline-crds: create customresourcedefinitions.apiextensions.k8s.io";
/// What a client calls itself, at the beginning, that is a test's and not Wardline's.
pub const STOLEN: &str = "wardline-e2e-stolen";

/// Compares what was granted with what was asked for since the cluster came up, and looks for tokens in logs.
///
/// # Errors
/// Names each right that was not used, each request that was refused, and each line that shows a token.
pub async fn check(lab: &Lab) -> Result<()> {
    let grants = roles(lab).await?.grants_of(SYSTEM_NAMESPACE)?;
    ensure!(!grants.is_empty(), "no role is bound to Wardline: is it installed?");
    ensure_complete(lab).await?;
    let (mut uses, mut faults, mut requests) = (BTreeSet::<Use>::new(), BTreeSet::new(), 0);
    for event in events(lab)?.iter().filter(|event| !event.is_of_a_thief()) {
        requests += 1;
        uses.extend(event.uses());
        // A right that has just been granted comes to the API server's knowledge a moment later.
        let is_late = || {
            event
                .needs()
                .iter()
                .all(|need| grants.iter().any(|grant| grant.allows(need)))
        };
        let refused = event.refusal().filter(|_| !is_late());
        faults.extend(refused.map(|refused| format!("was refused: {refused}")));
    }
    let unused = grants.iter().filter(|grant| !uses.iter().any(|one| grant.allows(one)));
    let unused = unused.map(ToString::to_string).filter(|grant| grant != FOR_NEW_KINDS);
    faults.extend(unused.map(|grant| format!("was never used: {grant}")));
    let logs = tokens::logs(lab)?;
    for log in &logs {
        faults.extend(tokens::find(log)?.into_iter().map(|at| format!("shows a token: {at}")));
    }
    step(&format!(
        "{} rights of Wardline's service accounts, {requests} requests, {} logs of its pods",
        grants.len(),
        logs.len()
    ));
    let faults: Vec<String> = faults.into_iter().collect();
    ensure!(
        faults.is_empty(),
        "privileges are not the least:\n  {}",
        faults.join("\n  ")
    );
    step("each right was used, no request was refused, and no log shows a token");
    Ok(())
}

/// The API server counts what it could not write down.
async fn ensure_complete(lab: &Lab) -> Result<()> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let metrics = lab.client().request_text(request).await;
    let metrics = metrics.context("failed to read the API server's metrics")?;
    let mut lost = metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_audit_error_total"));
    ensure!(
        lost.all(|line| line.ends_with(" 0")),
        "the API server has lost audit events"
    );
    Ok(())
}

fn events(lab: &Lab) -> Result<Vec<Event>> {
    let path = lab.layout().audit_log();
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let event = |line: &str| serde_json::from_str(line).with_context(|| format!("failed to decode {line}"));
    // It may be in the middle of its last line.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(event).collect()
}

/// Those in the cluster, and those that Helm makes for as long as its hooks run.
async fn roles(lab: &Lab) -> Result<Roles> {
    let client = || lab.client().clone();
    let all = ListParams::default();
    let mut roles = Roles {
        cluster_roles: Api::<ClusterRole>::all(client()).list(&all).await?.items,
        cluster_role_bindings: Api::<ClusterRoleBinding>::all(client()).list(&all).await?.items,
        roles: Api::<Role>::all(client()).list(&all).await?.items,
        role_bindings: Api::<RoleBinding>::all(client()).list(&all).await?.items,
    };
    for document in serde_yaml::Deserializer::from_str(&wardline::hooks(lab)?) {
        let object = Value::deserialize(document).context("failed to parse the chart's hooks")?;
        let kind = object
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let read = || format!("failed to read {kind} of the chart's hooks");
        match &*kind {
            "ClusterRole" => roles
                .cluster_roles
                .push(serde_yaml::from_value(object).with_context(read)?),
            "ClusterRoleBinding" => {
                let binding = serde_yaml::from_value(object).with_context(read)?;
                roles.cluster_role_bindings.push(binding);
            }
            "Role" => roles.roles.push(serde_yaml::from_value(object).with_context(read)?),
            "RoleBinding" => roles
                .role_bindings
                .push(serde_yaml::from_value(object).with_context(read)?),
            _ => {}
        }
    }
    Ok(roles)
}
