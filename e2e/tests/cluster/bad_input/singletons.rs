// SPDX-License-Identifier: Apache-2.0
//! A Dataplane and a NetworkLogging that do not decode: the API server takes them while their CRDs are laxer than the
//! types. The CRDs are restored whatever happens.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionSpec, JSONSchemaProps,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::fence::Fences;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::wait_until;
use wardline_e2e::traffic::Protocol;
use wardline_e2e::{logging, wardline};

use super::{Bad, PATIENCE, condition, until_counted};
use crate::{WEB_TAKES_FRIENDS, lines, of_client};

/// The API server takes a CRD in within seconds.
const CRD_PATIENCE: Duration = Duration::from_secs(30);

/// One of the kinds, and how it is broken.
struct Singleton {
    kind: &'static str,
    plural: &'static str,
    /// The field that does not decode, as messages name it and as a JSON pointer.
    field: &'static str,
    pointer: &'static str,
    /// A merge patch that sets the field.
    set: fn(Value) -> Value,
    /// What the field is set to.
    broken: fn() -> Value,
    /// Conditions, with their status and reason while it is broken.
    conditions: [(&'static str, &'static str); 2],
}

const SINGLETONS: [Singleton; 2] = [
    Singleton {
        kind: "NetworkLogging",
        plural: "networkloggings",
        field: "spec.cluster",
        pointer: "/spec/cluster",
        set: |value| json!({"spec": {"cluster": value}}),
        broken: || json!("yes"),
        conditions: [("Accepted", "False"), ("Ready", "False")],
    },
    Singleton {
        kind: "Dataplane",
        plural: "dataplanes",
        field: "spec.policy.enforcement",
        pointer: "/spec/policy/enforcement",
        set: |value| json!({"spec": {"policy": {"enforcement": value}}}),
        broken: || json!(7),
        conditions: [("Ready", "False"), ("Degraded", "True")],
    },
];

/// What must not change: the `DaemonSet`'s generation, and the pids of the daemons.
#[derive(Debug, PartialEq, Eq)]
struct Daemons {
    generation: Option<i64>,
    pids: Vec<u32>,
}

impl Daemons {
    async fn look(lab: &Lab) -> Result<Self> {
        let daemon_sets: Api<DaemonSet> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
        let daemon_set = daemon_sets
            .get("wardline-node")
            .await
            .context("failed to get the DaemonSet")?;
        Ok(Self {
            generation: daemon_set.metadata.generation,
            pids: lab
                .nodes()
                .iter()
                .map(wardline_e2e::cluster::LabNode::daemon_pid)
                .collect::<Result<_>>()?,
        })
    }
}

#[tokio::test]
async fn a_dataplane_and_a_network_logging_that_do_not_decode_change_nothing_that_is_in_force() -> Result<()> {
    with_namespace("badobject", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let _switched = logging::alone().await;
        logging::set(lab, true).await?;
        let fences = Fences::create(namespace).await?;
        namespace.server("web", "node1").await?;
        namespace.client("friend2", "node2").await?;
        namespace.client("foe2", "node2").await?;
        fences.ready().await?;
        namespace.apply(WEB_TAKES_FRIENDS).await?;
        namespace.until_reach("foe2", "web", false).await?;
        let before = Daemons::look(lab).await?;

        let since = Timestamp::now();
        let mut broken = Vec::new();
        for singleton in &SINGLETONS {
            broken.push(Broken::prepare(lab, singleton).await?);
        }
        let told = while_broken(namespace, &fences, &broken, since).await;
        let after = Daemons::look(lab).await;
        let mut mended = Ok(());
        for one in &broken {
            mended = mended.and(one.mend().await);
        }
        told.and(mended)?;
        let after = after?;
        ensure!(before == after, "the daemons were touched: {before:?}, {after:?}");
        recovered(lab).await
    })
    .await
}

/// Breaks both, and looks at everything that should and should not follow.
async fn while_broken(
    namespace: &TestNamespace,
    fences: &Fences<'_>,
    broken: &[Broken],
    since: Timestamp,
) -> Result<()> {
    let lab = &namespace.lab;
    for one in broken {
        one.widen().await?;
        one.break_it().await?;
    }
    for Broken { singleton, .. } in broken {
        let bad = Bad::singleton(singleton.kind);
        bad.until_named(lab, "").await?;
        let reason = format!("Invalid{}", singleton.kind);
        bad.until_event(lab, &reason, singleton.field, since).await?;
        until_counted(lab, singleton.kind, 1).await?;
        for (type_, status) in singleton.conditions {
            let what = format!("{type_} of {} to be {status}", singleton.kind);
            wait_until(&what, PATIENCE, async || {
                let object = lab.get("wardline.io/v1alpha1", singleton.kind, "", "default").await?;
                let found = condition(&object.data["status"], type_);
                ensure!(
                    found[..2] == [status, reason.as_str()] && found[2].contains(singleton.field),
                    "it is {found:?}"
                );
                Ok(Some(()))
            })
            .await?;
        }
    }
    check_in_force(namespace, fences).await
}

/// Policies are enforced and logged as before.
async fn check_in_force(namespace: &TestNamespace, fences: &Fences<'_>) -> Result<()> {
    let seen = of_client(&fences.settled_records().await?, "friend2").len();
    let admitted = namespace.attempt("friend2", "web", Protocol::Tcp).await?;
    ensure!(admitted.ok, "an admitted client was refused: {admitted:?}");
    let refused = namespace.attempt("foe2", "web", Protocol::Tcp).await?;
    ensure!(refused.timed_out(), "a client was not refused: {refused:?}");
    let records = fences.settled_records().await?;
    let allowed = of_client(&records, "friend2");
    ensure!(
        allowed.len() == seen + 1 && allowed.iter().all(|record| record.disposition == "allow"),
        "the connection has no record of its own:\n{}",
        lines(&records)
    );
    Ok(())
}

async fn recovered(lab: &Lab) -> Result<()> {
    for singleton in &SINGLETONS {
        Bad::singleton(singleton.kind).until_forgotten(lab).await?;
        until_counted(lab, singleton.kind, 0).await?;
    }
    wait_until(
        "NetworkLogging default to be Accepted and Ready",
        PATIENCE,
        async || {
            let object = lab.get("wardline.io/v1alpha1", "NetworkLogging", "", "default").await?;
            let status = &object.data["status"];
            Ok((wardline::is_true(status, "Accepted") && wardline::is_true(status, "Ready")).then_some(()))
        },
    )
    .await?;
    wardline::wait_ready(lab).await
}

/// A singleton with what is needed to break and to mend it.
struct Broken {
    singleton: &'static Singleton,
    client: Client,
    /// The CRD's own spec.
    strict: CustomResourceDefinitionSpec,
    /// What the field held.
    value: Value,
}

impl Broken {
    /// Reads, and changes nothing yet.
    async fn prepare(lab: &Lab, singleton: &'static Singleton) -> Result<Self> {
        let object = lab.get("wardline.io/v1alpha1", singleton.kind, "", "default").await?;
        let pointer = singleton.pointer;
        let value = object.data.pointer(pointer);
        let value = value.with_context(|| format!("failed to read {pointer} of {}", singleton.kind))?;
        let broken = Self {
            singleton,
            client: lab.client().clone(),
            strict: CustomResourceDefinitionSpec::default(),
            value: value.clone(),
        };
        let strict = broken.crd().await?.spec;
        let is_strict = strict.versions.iter().all(|version| {
            let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
            schema.is_some_and(|schema| schema.properties.is_some())
        });
        ensure!(
            is_strict,
            "the CRD of {} has no schema that could be restored",
            singleton.kind
        );
        Ok(Self { strict, ..broken })
    }

    fn crds(&self) -> Api<CustomResourceDefinition> {
        Api::all(self.client.clone())
    }

    async fn crd(&self) -> Result<CustomResourceDefinition> {
        let name = format!("{}.wardline.io", self.singleton.plural);
        self.crds()
            .get(&name)
            .await
            .with_context(|| format!("failed to get CRD {name}"))
    }

    async fn set_crd(&self, spec: CustomResourceDefinitionSpec) -> Result<()> {
        let mut crd = self.crd().await?;
        crd.spec = spec;
        let name = crd.name_any();
        self.crds()
            .replace(&name, &PostParams::default(), &crd)
            .await
            .with_context(|| format!("failed to replace CRD {name}"))?;
        Ok(())
    }

    /// Lets the CRD accept any object.
    async fn widen(&self) -> Result<()> {
        let mut spec = self.strict.clone();
        for version in &mut spec.versions {
            if let Some(schema) = &mut version.schema {
                schema.open_api_v3_schema = Some(JSONSchemaProps {
                    type_: Some("object".into()),
                    x_kubernetes_preserve_unknown_fields: Some(true),
                    ..JSONSchemaProps::default()
                });
            }
        }
        self.set_crd(spec).await
    }

    /// Waits until the API server takes the object with the wrong type in it.
    async fn break_it(&self) -> Result<()> {
        let what = format!("the API server to take a {} that does not decode", self.singleton.kind);
        let patch = (self.singleton.set)((self.singleton.broken)());
        wait_until(&what, CRD_PATIENCE, async || {
            self.patch(&patch).await?;
            Ok(Some(()))
        })
        .await
    }

    /// Restores the object and its CRD, and waits until the CRD refuses again what it refused before.
    async fn mend(&self) -> Result<()> {
        let kind = self.singleton.kind;
        let restore = (self.singleton.set)(self.value.clone());
        let mended = wait_until(&format!("{kind} default to be restored"), CRD_PATIENCE, async || {
            self.patch(&restore).await?;
            Ok(Some(()))
        })
        .await;
        self.set_crd(self.strict.clone()).await?;
        mended?;
        let wrong = (self.singleton.set)((self.singleton.broken)());
        let dry = PatchParams {
            dry_run: true,
            ..PatchParams::default()
        };
        wait_until(
            &format!("the CRD of {kind} to be strict again"),
            CRD_PATIENCE,
            async || match self.api().patch("default", &dry, &Patch::Merge(&wrong)).await {
                Err(kube::Error::Api(status)) if status.code == 422 => Ok(Some(())),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(None),
            },
        )
        .await
    }

    fn api(&self) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: "wardline.io".into(),
            version: "v1alpha1".into(),
            api_version: "wardline.io/v1alpha1".into(),
            kind: self.singleton.kind.into(),
            plural: self.singleton.plural.into(),
        };
        Api::all_with(self.client.clone(), &resource)
    }

    async fn patch(&self, patch: &Value) -> Result<()> {
        let params = PatchParams {
            field_manager: Some("wardline-e2e".into()),
            ..PatchParams::default()
        };
        let patched = self.api().patch("default", &params, &Patch::Merge(patch)).await;
        patched.with_context(|| format!("failed to patch {} default", self.singleton.kind))?;
        Ok(())
    }
}
