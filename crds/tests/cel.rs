// SPDX-License-Identifier: Apache-2.0
//! The CRDs in a real API server: each case is accepted or refused as the table says. Needs a cluster whose administrator
//! `KUBECONFIG` names, and fails without one. It works on copies of the CRDs under other kinds, which it deletes again, so
//! neither what the cluster holds nor what it is doing matters.

#![allow(clippy::unwrap_used, clippy::expect_used)] // the functions here are tests, or called by them

mod cases;

use std::time::Duration;

use cases::CASES;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use serde_json::{Value, json};
use wardline_crds::schema::crds;
use wardline_crds::{DataplaneSpec, NetworkLoggingSpec};

const MANAGER: &str = "wardline-cel-test";
const API_VERSION: &str = "wardline.io/v1alpha1";

/// The kind that stands for another one here.
fn copy_of(kind: &str) -> String {
    format!("CelTest{kind}")
}

/// A copy of that kind's CRD. It knows a second CNI mode, for with one alone nothing could try to change it.
fn copy(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let names = &mut crd.spec.names;
    names.kind = copy_of(&names.kind);
    names.plural = format!("celtest{}", names.plural);
    names.singular = Some(names.kind.to_lowercase());
    names.list_kind = None;
    names.short_names = None;
    names.categories = None;
    crd.metadata.name = Some(format!("{}.{}", names.plural, crd.spec.group));
    let schema = crd.spec.versions[0]
        .schema
        .as_mut()
        .unwrap()
        .open_api_v3_schema
        .as_mut()
        .unwrap();
    let mode = ["spec", "cni", "mode"]
        .iter()
        .try_fold(schema, |schema: &mut JSONSchemaProps, property| {
            schema.properties.as_mut()?.get_mut(*property)
        });
    if let Some(mode) = mode {
        mode.enum_.as_mut().unwrap().push(JSON(json!("Another")));
    }
    crd
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(wardline_crds::GROUP, wardline_crds::VERSION, &copy_of(kind));
    Api::all_with(client.clone(), &ApiResource::from_gvk(&gvk))
}

async fn install(client: &Client, crd: &CustomResourceDefinition) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = crd.metadata.name.clone().unwrap();
    definitions
        .patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(crd))
        .await
        .unwrap();
    // The API server says Established a moment before it serves the kind.
    let kind = crd.spec.names.kind.trim_start_matches("CelTest");
    let served = async {
        while api(client, kind).list(&ListParams::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), served)
        .await
        .expect("the copied CRD is not served");
}

async fn apply(client: &Client, kind: &str, name: &str, spec: &Value, dry: bool) -> Result<DynamicObject, String> {
    let object = json!({"apiVersion": API_VERSION, "kind": copy_of(kind), "metadata": {"name": name}, "spec": spec});
    let params = PatchParams {
        dry_run: dry,
        ..PatchParams::apply(MANAGER).force()
    };
    api(client, kind)
        .patch(name, &params, &Patch::Apply(&object))
        .await
        .map_err(|e| e.to_string())
}

/// What is not as the table says.
async fn wrong_cases(client: &Client) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in CASES {
        let spec: Value = serde_yaml::from_str(case.spec).unwrap();
        let found = apply(client, case.kind, case.name, &spec, true).await;
        let right = match (case.refused, &found) {
            (None, found) => found.is_ok(),
            (Some(message), found) => found.as_ref().is_err_and(|e| e.contains(message)),
        };
        if !right {
            let expected = case.refused.unwrap_or("to be accepted");
            wrong.push(format!(
                "{} {} ({}): expected {expected}, found {found:?}",
                case.kind, case.what, case.spec
            ));
        }
    }
    wrong
}

/// What the API server fills in, beside what Rust does.
async fn defaults(client: &Client) -> [(Value, Value); 2] {
    let dataplane = apply(client, "Dataplane", "default", &json!({}), true).await.unwrap();
    let logging = apply(client, "NetworkLogging", "default", &json!({}), true)
        .await
        .unwrap();
    [
        (
            dataplane.data["spec"].clone(),
            serde_json::to_value(DataplaneSpec::default()).unwrap(),
        ),
        (
            logging.data["spec"].clone(),
            serde_json::to_value(NetworkLoggingSpec::default()).unwrap(),
        ),
    ]
}

/// Answers to the same mode once more, and to another one.
async fn change_of_mode(client: &Client) -> [Result<DynamicObject, String>; 2] {
    let spec = |mode: &str| json!({"cni": {"mode": mode}});
    apply(client, "Dataplane", "default", &spec("Chained"), false)
        .await
        .unwrap();
    [
        apply(client, "Dataplane", "default", &spec("Chained"), true).await,
        apply(client, "Dataplane", "default", &spec("Another"), true).await,
    ]
}

#[tokio::test]
async fn the_api_server_accepts_and_refuses_as_the_table_says() {
    assert!(
        std::env::var_os("KUBECONFIG").is_some(),
        "KUBECONFIG must name a cluster to test against"
    );
    let client = Client::try_default().await.unwrap();
    let copies: Vec<_> = crds().into_iter().map(copy).collect();
    for crd in &copies {
        install(&client, crd).await;
    }
    let wrong = wrong_cases(&client).await;
    let defaults = defaults(&client).await;
    let [same, other] = change_of_mode(&client).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    for crd in &copies {
        definitions
            .delete(crd.metadata.name.as_ref().unwrap(), &DeleteParams::default())
            .await
            .unwrap();
    }

    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (found, expected) in defaults {
        assert_eq!(found, expected);
    }
    assert!(same.is_ok(), "{same:?}");
    assert!(
        other.as_ref().is_err_and(|e| e.contains("cni.mode is immutable")),
        "{other:?}"
    );
}
