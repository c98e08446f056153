// SPDX-License-Identifier: Apache-2.0
//! The CRDs in a real API server: each case is accepted or refused as the table says. Needs a cluster whose administrator
//! `KUBECONFIG` names, and fails without one; objects are sent as dry runs, so nothing is left behind but the CRDs.

#![allow(clippy::unwrap_used, clippy::expect_used)] // the functions here are tests, or called by them

mod cases;

use std::time::Duration;

use cases::CASES;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, JSON};
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::runtime::{conditions, wait::await_condition};
use kube::{Api, Client};
use serde_json::json;
use wardline_crds::schema::crds;

const MANAGER: &str = "wardline-cel-test";

async fn client() -> Client {
    assert!(
        std::env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG must name a cluster to test against"
    );
    Client::try_default().await.unwrap()
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(wardline_crds::GROUP, wardline_crds::VERSION, kind);
    Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
}

async fn install(client: &Client, crd: &CustomResourceDefinition) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = crd.metadata.name.clone().unwrap();
    api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(crd))
        .await
        .unwrap();
    let established = await_condition(api, &name, conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(30), established)
        .await
        .expect("CRD is not established")
        .unwrap();
}

async fn dry_run(client: &Client, kind: &str, name: &str, spec: &serde_json::Value) -> Result<DynamicObject, String> {
    let object = json!({
        "apiVersion": format!("{}/{}", wardline_crds::GROUP, wardline_crds::VERSION),
        "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    let params = PatchParams::apply(MANAGER).force().dry_run();
    api(client, kind)
        .patch(name, &params, &Patch::Apply(&object))
        .await
        .map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_api_server_accepts_and_refuses_as_the_table_says() {
    let client = client().await;
    for crd in crds() {
        install(&client, &crd).await;
    }
    for case in CASES {
        let spec: serde_json::Value = serde_yaml::from_str(case.spec).unwrap();
        let found = dry_run(&client, case.kind, case.name, &spec).await;
        let what = format!("{} {} ({}): {found:?}", case.kind, case.what, case.spec);
        match case.refused {
            None => assert!(found.is_ok(), "{what}"),
            Some(message) => assert!(found.is_err_and(|e| e.contains(message)), "{what}\nlacks: {message}"),
        }
    }
    defaults_are_filled_in(&client).await;
    mode_is_immutable(&client).await;
}

async fn defaults_are_filled_in(client: &Client) {
    let stored = dry_run(client, "Dataplane", "default", &json!({})).await.unwrap();
    let expected = serde_json::to_value(wardline_crds::DataplaneSpec::default()).unwrap();
    assert_eq!(stored.data["spec"], expected);
    let stored = dry_run(client, "NetworkLogging", "default", &json!({})).await.unwrap();
    let expected = serde_json::to_value(wardline_crds::NetworkLoggingSpec::default()).unwrap();
    assert_eq!(stored.data["spec"], expected);
}

/// There is one mode, so the rule is tried under the name of a copy of the CRD that knows a second one.
async fn mode_is_immutable(client: &Client) {
    let mut crd = crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == "Dataplane")
        .unwrap();
    crd.metadata.name = Some("modetests.wardline.io".into());
    crd.spec.names.kind = "ModeTest".into();
    crd.spec.names.plural = "modetests".into();
    crd.spec.names.singular = Some("modetest".into());
    crd.spec.names.short_names = None;
    let schema = crd.spec.versions[0]
        .schema
        .as_mut()
        .unwrap()
        .open_api_v3_schema
        .as_mut()
        .unwrap();
    let cni = schema.properties.as_mut().unwrap().get_mut("spec").unwrap();
    let cni = cni.properties.as_mut().unwrap().get_mut("cni").unwrap();
    let mode = cni.properties.as_mut().unwrap().get_mut("mode").unwrap();
    mode.enum_.as_mut().unwrap().push(JSON(json!("Primary")));
    install(client, &crd).await;

    let api = api(client, "ModeTest");
    let object = |mode: &str| json!({"apiVersion": "wardline.io/v1alpha1", "kind": "ModeTest", "metadata": {"name": "default"}, "spec": {"cni": {"mode": mode}}});
    let params = PatchParams::apply(MANAGER).force();
    api.patch("default", &params, &Patch::Apply(object("Chained")))
        .await
        .unwrap();
    let same = api
        .patch("default", &params.clone().dry_run(), &Patch::Apply(object("Chained")))
        .await;
    let other = api
        .patch("default", &params.dry_run(), &Patch::Apply(object("Primary")))
        .await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions
        .delete("modetests.wardline.io", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    assert!(same.is_ok(), "{same:?}");
    assert!(
        other
            .as_ref()
            .is_err_and(|e| e.to_string().contains("cni.mode is immutable")),
        "{other:?}"
    );
}
