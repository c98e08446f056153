// SPDX-License-Identifier: Apache-2.0
//! The operator's replicas: one leads, another follows it whatever becomes of it; what it owns is as it should be, what
//! others own is left alone, and what it says is so.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, EvictParams, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::command::output_of;
use wardline_e2e::control_plane::admin_config;
use wardline_e2e::namespace::{TestNamespace, is_ready, with_namespace_alone};
use wardline_e2e::operators::{self, Replica};
use wardline_e2e::progress::wait_until;
use wardline_e2e::{dataplane, wardline};

use crate::monitoring::{of_kind, rendered};

const PATIENCE: Duration = Duration::from_mins(2);
/// The lease's fifteen seconds, two attempts, and a start on a busy machine.
const LEASE_TIME: Duration = Duration::from_secs(90);
/// Nobody has to wait for a lease that was given back.
const AT_ONCE: Duration = Duration::from_mins(1);
/// The operator looks at most once a second.
const SECONDS: Duration = Duration::from_secs(15);

/// Waits until both replicas are ready, and one of them leads.
async fn settled(lab: &Lab) -> Result<[Replica; 2]> {
    wait_until("both replicas to be ready, and one to lead", PATIENCE, async || {
        let replicas = operators::replicas(lab).await?;
        ensure!(
            replicas.len() == 2 && replicas.iter().all(|replica| is_ready(&replica.pod)),
            "{replicas:?}"
        );
        let leader = operators::leader(lab).await?;
        let other = replicas.into_iter().find(|replica| replica.name() != leader.name());
        let other = other.context("failed to find the other replica")?;
        ensure!(!other.leads().await?, "both lead");
        Ok(Some([leader, other]))
    })
    .await
}

/// Waits until another replica leads: the one that stood by, or one that came in the place of the former leader.
async fn until_another_leads(lab: &Lab, former: &Replica, within: Duration) -> Result<Replica> {
    wait_until(&format!("another than {} to lead", former.name()), within, async || {
        let leader = operators::leader(lab).await?;
        ensure!(leader.name() != former.name(), "it leads");
        Ok(Some(leader))
    })
    .await
}

#[tokio::test]
async fn another_replica_follows_a_leader_that_hangs_or_is_gone() -> Result<()> {
    with_namespace_alone("leader", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let [leader, _] = settled(lab).await?;
        // It hangs, and does not know of it.
        leader.signal(lab, "-STOP")?;
        let (debug, info) = (
            json!({"daemon": {"logLevel": "Debug"}}),
            json!({"daemon": {"logLevel": null}}),
        );
        let followed = dataplane::while_patched(lab, &debug, &info, async || {
            let followed = until_another_leads(lab, &leader, LEASE_TIME).await;
            leader.signal(lab, "-CONT")?;
            followed?;
            // What was changed meanwhile comes to the nodes.
            wardline::wait_ready(lab).await
        });
        followed.await?;
        wait_until("the former leader to stand by", SECONDS, async || {
            ensure!(!leader.leads().await?, "both lead");
            Ok(Some(()))
        })
        .await?;
        // Its pod is taken away without a word, so that nobody gives the lease back.
        let [leader, _] = settled(lab).await?;
        let at_once = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        leader.signal(lab, "-KILL")?;
        operators::pods(lab).delete(&leader.name(), &at_once).await?;
        until_another_leads(lab, &leader, LEASE_TIME).await?;
        settled(lab).await?;
        wardline::wait_ready(lab).await
    })
    .await
}

#[tokio::test]
async fn a_leader_that_is_told_to_stop_gives_the_lease_back_and_ends_well() -> Result<()> {
    with_namespace_alone("stop", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let [leader, _] = settled(lab).await?;
        let transitions = async || {
            let spec = operators::lease(lab).await?.spec.context("the lease has no spec")?;
            Ok::<_, anyhow::Error>(spec.lease_transitions.unwrap_or_default())
        };
        let before = transitions().await?;
        leader.signal(lab, "-TERM")?;
        // Perhaps the same pod once more: its container starts again.
        wait_until("the lease to be given back and taken", AT_ONCE, async || {
            ensure!(transitions().await? > before, "it is still the same");
            operators::leader(lab).await.map(Some)
        })
        .await?;
        wait_until("the container that ended to be told of", PATIENCE, async || {
            let pod = operators::pods(lab).get(&leader.name()).await?;
            let status = pod
                .status
                .and_then(|status| status.container_statuses)
                .unwrap_or_default();
            let ended = status
                .into_iter()
                .find_map(|one| one.last_state?.terminated)
                .context("none has ended")?;
            ensure!(ended.exit_code == 0, "it ended with {}", ended.exit_code);
            Ok(Some(()))
        })
        .await?;
        settled(lab).await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn replicas_are_on_different_nodes_and_a_drain_takes_one_after_the_other() -> Result<()> {
    with_namespace_alone("drain", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let [leader, other] = settled(lab).await?;
        ensure!(
            leader.node(lab)?.spec.name != other.node(lab)?.spec.name,
            "both are on one node"
        );
        for replica in [&leader, &other] {
            check_security(&replica.pod)?;
        }
        let budgets: Api<PodDisruptionBudget> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
        wait_until("the budget to know both", SECONDS, async || {
            let status = budgets.get("wardline-operator").await?.status.unwrap_or_default();
            ensure!(
                status.disruptions_allowed == Some(1) && status.current_healthy == Some(2),
                "{status:?}"
            );
            Ok(Some(()))
        })
        .await?;
        let mut config = admin_config(lab.layout()).await?;
        // It would ask again until it may.
        config.default_retry = false;
        let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, SYSTEM_NAMESPACE);
        pods.evict(&leader.name(), &EvictParams::default()).await?;
        let second = pods.evict(&other.name(), &EvictParams::default()).await;
        ensure!(
            matches!(&second, Err(kube::Error::Api(status)) if status.code == 429),
            "{second:?}"
        );
        until_another_leads(lab, &leader, AT_ONCE).await?;
        settled(lab).await?;
        Ok(())
    })
    .await
}

#[test]
fn the_chart_deploys_replicas_that_are_spread_and_restricted() -> Result<()> {
    for (replicas, budgets) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let objects = rendered(&format!("operator.replicas={replicas}"))?;
        let found = of_kind(&objects, "PodDisruptionBudget");
        ensure!(found.len() == budgets, "{replicas} replicas: {found:?}");
        for budget in found {
            ensure!(budget["spec"]["maxUnavailable"] == 1, "{budget:?}");
        }
    }
    let objects = rendered("removal.hook=false")?;
    let deployment = of_kind(&objects, "Deployment")[0];
    ensure!(deployment["spec"]["replicas"] == 2, "by default: {deployment:?}");
    let budget = of_kind(&objects, "PodDisruptionBudget")[0];
    ensure!(
        budget["spec"]["selector"] == deployment["spec"]["selector"],
        "{budget:?}"
    );
    let template = &deployment["spec"]["template"];
    let pod: Pod = serde_yaml::from_value(template.clone()).context("failed to read the operator's pods")?;
    check_security(&pod)?;
    let spec = pod.spec.context("pods without a spec")?;
    let spread = spec.topology_spread_constraints.unwrap_or_default();
    let keys: Vec<&str> = spread.iter().map(|one| &*one.topology_key).collect();
    ensure!(
        keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"],
        "{spread:?}"
    );
    // The parts of an end that is not hurried add up to 25 s.
    ensure!(spec.termination_grace_period_seconds == Some(30));
    Ok(())
}

fn check_security(pod: &Pod) -> Result<()> {
    let spec = pod.spec.as_ref().context("a pod without a spec")?;
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let seccomp = of_pod.seccomp_profile.map(|profile| profile.type_);
    ensure!(
        of_pod.run_as_non_root == Some(true) && seccomp.as_deref() == Some("RuntimeDefault"),
        "{pod:?}"
    );
    ensure!(
        spec.priority_class_name.as_deref() == Some("system-cluster-critical"),
        "{pod:?}"
    );
    for container in &spec.containers {
        let context = container.security_context.clone().unwrap_or_default();
        ensure!(context.read_only_root_filesystem == Some(true), "{container:?}");
        ensure!(context.allow_privilege_escalation == Some(false), "{container:?}");
        let capabilities = context.capabilities.unwrap_or_default();
        ensure!(
            capabilities.drop == Some(vec!["ALL".into()]) && capabilities.add.is_none(),
            "{container:?}"
        );
    }
    Ok(())
}

fn daemon_sets(lab: &Lab) -> Api<DaemonSet> {
    Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE)
}

fn config_maps(lab: &Lab) -> Api<ConfigMap> {
    Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE)
}

/// Waits until the DaemonSet is as it should be.
async fn until_put_right(lab: &Lab, what: &str, is_right: impl Fn(&DaemonSet) -> bool) -> Result<()> {
    wait_until(&format!("{what} to be put right"), SECONDS, async || {
        Ok(is_right(&daemon_sets(lab).get("wardline-node").await?).then_some(()))
    })
    .await
}

/// What others have set, each in its own way.
fn has_theirs(daemon_set: &DaemonSet) -> bool {
    let spec = daemon_set.spec.as_ref();
    let template = spec.and_then(|spec| spec.template.metadata.as_ref());
    let annotation = template.and_then(|meta| meta.annotations.as_ref()?.get("example.com/note"));
    daemon_set
        .annotations()
        .get("example.com/note")
        .is_some_and(|note| note == "theirs")
        && daemon_set
            .labels()
            .get("example.com/team")
            .is_some_and(|team| team == "net")
        && spec.and_then(|spec| spec.min_ready_seconds) == Some(3)
        && annotation.is_some_and(|note| note == "theirs")
}

#[tokio::test]
async fn what_somebody_changes_is_put_right_and_what_is_theirs_stays() -> Result<()> {
    with_namespace_alone("drift", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        settled(lab).await?;
        let theirs = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "wardline-node", "annotations": {"example.com/note": "theirs"},
                "labels": {"example.com/team": "net"}},
            "spec": {"minReadySeconds": 3, "template": {"metadata": {"annotations": {"example.com/note": "theirs"}}}},
        });
        let before = daemon_sets(lab).get("wardline-node").await?;
        ensure!(!has_theirs(&before), "a test before left something");
        let apply = async |patch: &Value| {
            let params = PatchParams::apply("somebody");
            daemon_sets(lab)
                .patch("wardline-node", &params, &Patch::Apply(patch))
                .await
        };
        apply(&theirs).await?;
        let changed = drift(lab, &before).await;
        // Who owns a field takes it back by applying nothing.
        let nothing = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "wardline-node"}});
        apply(&nothing).await?;
        changed?;
        until_put_right(lab, "the DaemonSet", |now| now.labels() == before.labels()).await?;
        wardline::wait_ready(lab).await
    })
    .await
}

async fn drift(lab: &Lab, before: &DaemonSet) -> Result<()> {
    let image = |daemon_set: &DaemonSet| -> Option<String> {
        daemon_set
            .spec
            .as_ref()?
            .template
            .spec
            .as_ref()?
            .containers
            .first()?
            .image
            .clone()
    };
    let pods = daemons(lab).await?;
    let edit = async |patch: Value| {
        daemon_sets(lab)
            .patch("wardline-node", &PatchParams::default(), &Patch::Strategic(patch))
            .await
    };
    let container = json!({"name": "wardline-node", "image": "example.com/other:1"});
    edit(json!({"spec": {"template": {"spec": {"containers": [container]}}}})).await?;
    until_put_right(lab, "the image", |now| image(now) == image(before)).await?;
    // The first is one that the operator finds it by.
    for label in ["app.kubernetes.io/managed-by", "app.kubernetes.io/part-of"] {
        edit(json!({"metadata": {"labels": {label: null}}})).await?;
        until_put_right(lab, label, |now| now.labels().get(label) == before.labels().get(label)).await?;
    }
    edit(json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}})).await?;
    let strategy = |daemon_set: &DaemonSet| daemon_set.spec.as_ref()?.update_strategy.as_ref()?.type_.clone();
    until_put_right(lab, "how pods are replaced", |now| {
        strategy(now).as_deref() == Some("OnDelete")
    })
    .await?;

    let revision =
        lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?.data["status"]["rollout"]["revision"]
            .clone();
    let name = format!(
        "wardline-node-{}",
        revision.as_str().context("the status names no revision")?
    );
    let found = config_maps(lab).get(&name).await?;
    config_maps(lab).delete(&name, &DeleteParams::default()).await?;
    wait_until("the ConfigMap to be there again", SECONDS, async || {
        let again = config_maps(lab).get(&name).await?;
        ensure!(again.metadata.uid != found.metadata.uid, "it is still the former");
        ensure!(
            again.data == found.data && again.labels() == found.labels(),
            "{again:?}"
        );
        Ok(Some(()))
    })
    .await?;
    let now = daemon_sets(lab).get("wardline-node").await?;
    ensure!(has_theirs(&now), "what is theirs is gone: {now:?}");
    // Nobody's daemon was replaced for all that; the controller's own rolling update may have come between.
    let replaced = daemons(lab)
        .await?
        .into_iter()
        .filter(|pod| !pods.contains_key(&pod.0))
        .count();
    ensure!(replaced <= 1, "{replaced} daemons were replaced");
    Ok(())
}

/// The daemons' pods by their uids, and their nodes.
async fn daemons(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let ours = ListParams::default().labels("app.kubernetes.io/name=wardline-node");
    let pods = operators::pods(lab)
        .list(&ours)
        .await
        .context("failed to list daemons")?;
    let node = |pod: &Pod| {
        pod.spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default()
    };
    Ok(pods
        .into_iter()
        .map(|pod| (pod.uid().unwrap_or_default(), node(&pod)))
        .collect())
}

/// The versions of all that the operator writes.
async fn versions(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    let daemon_set = daemon_sets(lab).get("wardline-node").await?;
    versions.insert(
        "DaemonSet".to_owned(),
        daemon_set.resource_version().unwrap_or_default(),
    );
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=wardline-operator");
    for config_map in config_maps(lab).list(&ours).await? {
        versions.insert(config_map.name_any(), config_map.resource_version().unwrap_or_default());
    }
    for kind in ["Dataplane", "NetworkLogging"] {
        if let Ok(object) = lab.get("wardline.io/v1alpha1", kind, "", "default").await {
            versions.insert(kind.to_owned(), object.resource_version().unwrap_or_default());
        }
    }
    Ok(versions)
}

#[tokio::test]
async fn an_operator_that_starts_writes_nothing_where_all_is_as_it_should_be() -> Result<()> {
    with_namespace_alone("idempotent", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let [leader, _] = settled(lab).await?;
        let before = wait_until("everything to stand still", PATIENCE, async || {
            let before = versions(lab).await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok((versions(lab).await? == before).then_some(before))
        })
        .await?;
        ensure!(before.len() >= 3, "{before:?}");
        // It has applied nothing yet, so it applies everything.
        operators::pods(lab)
            .delete(&leader.name(), &DeleteParams::default())
            .await?;
        let other = until_another_leads(lab, &leader, AT_ONCE).await?;
        wait_until("it to have looked at the Dataplane", PATIENCE, async || {
            let of_dataplane = ["kind=\"Dataplane\"", "result=\"ok\""];
            let count = other
                .metrics()
                .await?
                .sum("wardline_operator_reconciles_total", &of_dataplane);
            Ok(count.filter(|count| *count >= 1.0).map(drop))
        })
        .await?;
        let now = versions(lab).await?;
        ensure!(now == before, "something was written: {before:?}, {now:?}");
        settled(lab).await?;
        Ok(())
    })
    .await
}

/// What scripts and other tools wait for.
#[tokio::test]
async fn kubectl_waits_until_all_nodes_have_a_change() -> Result<()> {
    with_namespace_alone("wait", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        settled(lab).await?;
        wardline::wait_ready(lab).await?;
        let (debug, info) = (
            json!({"daemon": {"logLevel": "Debug"}}),
            json!({"daemon": {"logLevel": null}}),
        );
        dataplane::while_patched(lab, &debug, &info, async || {
            let layout = lab.layout();
            let wait = |condition: &str| {
                let mut kubectl = Command::new(layout.bin("kubectl"));
                kubectl.arg(format!("--kubeconfig={}", layout.kubeconfig().display()));
                kubectl.args(["wait", "dataplane/default", "--timeout=120s"]);
                kubectl.arg(format!("--for=condition={condition}"));
                output_of(&mut kubectl)
            };
            // At once: what the status says now is of the generation before.
            let began = Instant::now();
            wait("Ready")?;
            let object = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
            let status = &object.data["status"];
            ensure!(
                status["observedGeneration"].as_i64() == object.metadata.generation,
                "{status}"
            );
            ensure!(
                status["nodes"]["updated"] == 2 && status["nodes"]["ready"] == 2,
                "{status}"
            );
            ensure!(began.elapsed() > Duration::from_secs(2), "nobody can be so fast");
            wait("Available")?;
            Ok(())
        })
        .await
    })
    .await
}
