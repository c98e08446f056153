// SPDX-License-Identifier: Apache-2.0
//! What daemons and operator say to a real Prometheus, and what it answers to the chart's alerts and dashboard.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde::Deserialize as _;
use serde_yaml::Value;
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::command::output_of;
use wardline_e2e::layout::{Layout, NODES};
use wardline_e2e::logging;
use wardline_e2e::monitoring::{alerts, alerts_file, panels};
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::wait_until;
use wardline_e2e::prometheus::{Prometheus, Target, faults_of};

use crate::WEB_TAKES_FRIENDS;

const PATIENCE: Duration = Duration::from_mins(2);

/// The daemons of both nodes, and the operators, one a node.
async fn targets(lab: &Lab) -> Result<Vec<Target>> {
    let mut targets: Vec<Target> = NODES
        .iter()
        .map(|node| Target {
            job: "wardline-node",
            node: node.name.to_owned(),
            address: format!("{}:9470", node.address),
        })
        .collect();
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/name=wardline-operator");
    for pod in pods.list(&operators).await.context("failed to list operators")?.items {
        let status = pod.status.unwrap_or_default();
        targets.push(Target {
            job: "wardline-operator",
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            address: format!("{}:9472", status.host_ip.context("the operator has no node yet")?),
        });
    }
    ensure!(targets.len() == 2 * NODES.len(), "{targets:?}");
    Ok(targets)
}

/// Every query has an answer, and of the dashboard's each has at least one series.
async fn ask_all(lab: &Lab) -> Result<()> {
    let layout = lab.layout();
    let targets = targets(lab).await?;
    let prometheus = Prometheus::start(layout, &targets, &alerts_file(layout)).await?;
    wait_until("Prometheus to have scraped everybody", PATIENCE, async || {
        Ok((prometheus.query("up == 1").await?.len() == targets.len()).then_some(()))
    })
    .await?;
    for panel in panels(layout)? {
        for target in &panel.targets {
            let query = target.query();
            // Rates come with the second scrape, and some series with the first request.
            wait_until(&format!("{}: {query}", panel.title), PATIENCE, async || {
                let series = prometheus.query(&query).await?;
                Ok((!series.is_empty()).then_some(()))
            })
            .await?;
        }
    }
    for alert in alerts(layout)? {
        prometheus.query(&alert.expr).await?;
    }
    let evaluated = wait_until("the rules to be evaluated", PATIENCE, async || {
        let rules = prometheus.rules().await?;
        Ok(rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules))
    })
    .await?;
    ensure!(evaluated.len() == alerts(layout)?.len(), "{evaluated:?}");
    for rule in &evaluated {
        ensure!(rule["health"] == "ok", "{rule}");
    }
    for missing in ["WardlineDaemonsAbsent", "WardlineOperatorDown"] {
        let rule = evaluated.iter().find(|rule| rule["name"] == missing);
        ensure!(rule.is_some_and(|rule| rule["state"] == "inactive"), "{rule:?}");
    }
    Ok(())
}

#[tokio::test]
async fn every_query_of_alerts_and_dashboard_has_an_answer() -> Result<()> {
    with_namespace("monitoring", async |namespace: &TestNamespace| {
        // Closes generations, which is when the account is checked.
        let _logged = logging::on(&namespace.lab).await?;
        // Pods that start, so that both daemons have had requests of the plugin.
        namespace.server("web", "node1").await?;
        namespace.client("foe", "node2").await?;
        namespace.ready().await?;
        // A policy denies.
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe", "web", false).await?;
        ask_all(&namespace.lab).await
    })
    .await
}

#[tokio::test]
async fn metrics_are_as_the_conventions_of_prometheus_ask() -> Result<()> {
    let lab = Lab::connect().await?;
    for target in targets(&lab).await? {
        let metrics = wardline_e2e::cluster::metrics_of(&target.address).await?;
        ensure!(metrics.text().contains("# HELP wardline_"), "{target:?}");
        let faults = faults_of(lab.layout(), metrics.text())?;
        ensure!(faults.is_empty(), "{target:?}: {faults}");
    }
    Ok(())
}

const IMAGES: &str = "operator.image.repository=wardline/operator,daemon.image.repository=wardline/node";

pub(crate) fn rendered(values: &str) -> Result<Vec<Value>> {
    rendered_with(&[IMAGES, values])
}

fn rendered_with(values: &[&str]) -> Result<Vec<Value>> {
    let layout = Layout::of_workspace();
    let mut helm = Command::new(layout.bin("helm"));
    helm.args(["template", "wardline"])
        .arg(layout.workspace().join("charts/wardline"));
    helm.args(["--namespace", SYSTEM_NAMESPACE]);
    helm.args(values.iter().flat_map(|values| ["--set", values]));
    let text = output_of(&mut helm)?;
    let documents = serde_yaml::Deserializer::from_str(&text);
    let objects = documents.map(|document| Value::deserialize(document).context("failed to parse what helm rendered"));
    objects.collect()
}

pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    // What hooks make for a moment is not what is installed.
    let is_hook = |object: &Value| !object["metadata"]["annotations"]["helm.sh/hook"].is_null();
    let of_kind = objects.iter().filter(|object| object["kind"] == *kind);
    of_kind.filter(|object| !is_hook(object)).collect()
}

#[test]
fn the_chart_says_how_images_are_set_where_they_are_not() -> Result<()> {
    for (values, missing) in [
        ("operator.image.repository=wardline/operator", "daemon"),
        ("daemon.image.repository=wardline/node", "operator"),
        (
            "operator.image.repository=wardline/operator,daemon.image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
            "daemon",
        ),
    ] {
        let refused = rendered_with(&[values])
            .err()
            .context("the chart rendered without images")?;
        let told = format!("{refused:#}");
        let wanted = [
            &format!("{missing}.image.repository is not set"),
            "make images",
            "--set",
        ];
        ensure!(wanted.iter().all(|text| told.contains(text)), "{told}");
    }
    // NetworkLogging only where it is asked for.
    for (values, count) in [("networkLogging.create=false", 0), ("networkLogging.create=true", 1)] {
        ensure!(of_kind(&rendered(values)?, "NetworkLogging").len() == count, "{values}");
    }
    ensure!(
        of_kind(&rendered_with(&[IMAGES])?, "NetworkLogging").is_empty(),
        "by default"
    );
    Ok(())
}

#[test]
fn the_chart_renders_what_it_is_asked_for() -> Result<()> {
    let layout = Layout::of_workspace();
    let read = |file: &str| std::fs::read_to_string(layout.workspace().join("charts/wardline/files").join(file));
    let kinds = ["Service", "ServiceMonitor", "PrometheusRule", "ConfigMap"];
    let plain = rendered("monitoring.serviceMonitor.enabled=false")?;
    ensure!(kinds.iter().all(|kind| of_kind(&plain, kind).is_empty()), "{plain:?}");

    let all = "monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true,\
               monitoring.dashboard.enabled=true,monitoring.serviceMonitor.labels.release=prometheus,\
               operator.metricsAddress=0.0.0.0:9999";
    let objects = rendered(all)?;
    let counts = kinds.map(|kind| of_kind(&objects, kind).len());
    ensure!(counts == [2, 1, 1, 1], "{counts:?}");
    let ports = of_kind(&objects, "Service")
        .iter()
        .map(|service| {
            (
                service["metadata"]["name"].as_str(),
                service["spec"]["ports"][0]["port"].as_u64(),
            )
        })
        .collect::<Vec<_>>();
    ensure!(
        ports
            == [
                (Some("wardline-node"), Some(9470)),
                (Some("wardline-operator"), Some(9999))
            ],
        "{ports:?}"
    );
    let monitor = of_kind(&objects, "ServiceMonitor")[0];
    ensure!(monitor["metadata"]["labels"]["release"] == *"prometheus", "{monitor:?}");
    let rules: Value = serde_yaml::from_str(&read("alerts.yaml")?)?;
    ensure!(of_kind(&objects, "PrometheusRule")[0]["spec"] == rules);
    let dashboard = of_kind(&objects, "ConfigMap")[0]["data"]["wardline.json"].as_str();
    ensure!(dashboard.map(str::trim) == Some(read("dashboard.json")?.trim()));

    let fewer =
        rendered("monitoring.prometheusRule.enabled=true,monitoring.prometheusRule.disabled={WardlineLogDeleted}")?;
    let text = serde_yaml::to_string(&of_kind(&fewer, "PrometheusRule"))?;
    ensure!(!text.contains("WardlineLogDeleted") && text.contains("WardlineLogLost"));
    let unknown =
        rendered("monitoring.prometheusRule.enabled=true,monitoring.prometheusRule.disabled={WardlineLogLots}");
    let refused = format!(
        "{:#}",
        unknown.err().context("an alert that is not there can be disabled")?
    );
    ensure!(refused.contains("there is no alert \"WardlineLogLots\""), "{refused}");
    Ok(())
}
