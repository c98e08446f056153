// SPDX-License-Identifier: Apache-2.0
//! The chart in a cluster: its test, its hooks, and definitions of an older version.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use wardline_e2e::chart::schemas;
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::namespace::{TestNamespace, with_namespace, with_namespace_alone};
use wardline_e2e::{gobuild, wardline};

const CRDS: &str = "apiextensions.k8s.io/v1";

#[tokio::test]
async fn helm_test_sees_that_policies_are_enforced() -> Result<()> {
    with_namespace("helm-test", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        // Somebody admits everybody: what is to be dropped comes through, as where nothing is enforced.
        let wide = wide_open();
        lab.apply(SYSTEM_NAMESPACE, &wide).await?;
        let failed = wardline::test(lab);
        let at = "networking.k8s.io/v1";
        lab.delete(at, "NetworkPolicy", SYSTEM_NAMESPACE, "test-wide-open")
            .await?;
        ensure!(
            failed.is_err(),
            "helm test passes where a stranger comes through: {failed:?}"
        );
        let stranger = lab.get("v1", "Pod", SYSTEM_NAMESPACE, "wardline-test-stranger").await?;
        let ended = &stranger.data["status"]["containerStatuses"][0]["state"]["terminated"];
        let why = ended["message"].as_str().unwrap_or_default();
        ensure!(why.contains("policies are not enforced"), "{stranger:?}");

        // It takes away what the one that failed has left.
        let printed = wardline::test(lab)?;
        for pod in ["status", "friend", "stranger"] {
            let suite = format!("wardline-test-{pod}");
            ensure!(printed.contains(&suite), "no {suite} in\n{printed}");
        }
        // What `helm template` leaves out is what the API takes too.
        gobuild::helm(lab.layout())?;
        schemas::prepare(lab.layout())?;
        let hooks = wardline::hooks(lab)?;
        for job in ["wardline-crds", "wardline-removal"] {
            ensure!(hooks.contains(&format!("name: {job}\n")), "no {job} in\n{hooks}");
        }
        schemas::conform(lab.layout(), &hooks).map(drop)
    })
    .await
}

fn wide_open() -> String {
    let matches = "{matchLabels: {app.kubernetes.io/name: wardline-test-server}}";
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: test-wide-open}}\n\
         spec: {{podSelector: {matches}, policyTypes: [Ingress], ingress: [{{}}]}}\n"
    )
}

#[tokio::test]
async fn an_upgrade_brings_older_definitions_up_to_date_and_objects_live_on() -> Result<()> {
    with_namespace_alone("definitions", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let values = wardline::values_in_use(lab)?;
        let before = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
        make_older(lab)?;

        // One that the old definition does not know, and one that it bounds.
        let newer = [
            "dataplane.spec.logging.stdout=false",
            "dataplane.spec.logging.denyAggregationSeconds=5",
        ];
        let with: Vec<String> = values.iter().cloned().chain(newer.map(str::to_owned)).collect();
        let without = wardline::upgrade_chart(lab, &with, &["--set=crds.upgrade=false"]);
        let refused = without.err().context("an old definition took what it does not know")?;
        ensure!(format!("{refused:#}").contains("stdout"), "{refused:#}");

        wardline::install_chart(lab, &with).await?;
        let logging = logging_schema(
            &lab.get(CRDS, "CustomResourceDefinition", "", "dataplanes.wardline.io")
                .await?
                .data,
        );
        ensure!(logging["stdout"].is_object(), "{logging}");
        ensure!(logging["denyAggregationSeconds"]["maximum"] == 300, "{logging}");
        let after = lab.get("wardline.io/v1alpha1", "Dataplane", "", "default").await?;
        ensure!(before.metadata.uid == after.metadata.uid, "{after:?}");
        wardline::install_chart(lab, &values).await
    })
    .await
}

fn logging_schema(crd: &Value) -> Value {
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    schema["properties"]["spec"]["properties"]["logging"]["properties"].clone()
}

/// Takes a field from the definition of the Dataplane, and gives another one a bound that it no longer has; takes an
/// annotation from the other definitions.
fn make_older(lab: &Lab) -> Result<()> {
    let mut kubectl = wardline::kubectl(lab);
    kubectl.args([
        "annotate",
        "crd",
        "dataplanenodes.wardline.io",
        "networkloggings.wardline.io",
    ]);
    wardline_e2e::command::output_of(kubectl.arg("helm.sh/resource-policy-"))?;
    let at = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/logging/properties";
    let older = json!([
        {"op": "remove", "path": format!("{at}/stdout")},
        {"op": "replace", "path": format!("{at}/denyAggregationSeconds/maximum"), "value": 4},
        {"op": "replace", "path": format!("{at}/denyAggregationSeconds/default"), "value": 4},
    ]);
    let mut kubectl = wardline::kubectl(lab);
    kubectl.args(["patch", "crd", "dataplanes.wardline.io", "--type=json", "--patch"]);
    wardline_e2e::command::output_of(kubectl.arg(older.to_string())).map(drop)
}
