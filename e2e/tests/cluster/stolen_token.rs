// SPDX-License-Identifier: Apache-2.0
//! Who has the token of one node's daemon can write what that daemon writes, and nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use wardline_e2e::audit::STOLEN;
use wardline_e2e::cluster::{Lab, LabNode, SYSTEM_NAMESPACE};
use wardline_e2e::control_plane::token_client;
use wardline_e2e::namespace::{TestNamespace, with_namespace};
use wardline_e2e::progress::wait_until;

const ACCOUNT: &str = "wardline-node";
const TOKEN: &str = "var/run/secrets/kubernetes.io/serviceaccount/token";
const CONDITION: &str = "wardline.io/AddressesAssigned";
/// The API server remembers for ten seconds that a token is good.
const REMEMBERED: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_stolen_token_writes_for_its_own_node_only() -> Result<()> {
    with_namespace("stolen", async |namespace: &TestNamespace| {
        namespace.server("here", "node1").await?;
        namespace.server("there", "node2").await?;
        namespace.ready().await?;
        let thief = Thief {
            client: thief(&namespace.lab, &stolen(namespace.lab.node("node1")?)?).await?,
            namespace,
        };
        thief.writes_what_the_daemon_writes().await?;
        thief.writes_no_other_node().await?;
        thief.writes_nothing_else_of_pods().await?;
        thief.writes_no_other_events().await
    })
    .await
}

#[tokio::test]
async fn a_token_that_is_of_no_node_or_no_longer_good_writes_nothing() -> Result<()> {
    with_namespace("stale", async |namespace: &TestNamespace| {
        let lab = &namespace.lab;
        let unbound = Thief {
            client: thief(lab, &issue(lab, TokenRequestSpec::default()).await?).await?,
            namespace,
        };
        let version = json!({"status": {"version": "0.0.0"}});
        refused(
            unbound.patch_status(&dataplane_nodes(), "node1", &version).await,
            403,
            "'wardline-node-dataplanenodes' denied request: a daemon writes the DataplaneNode of its own node, which by \
             its token is \"\"",
        )?;
        let elsewhere = TokenRequestSpec {
            audiences: Some(vec!["https://elsewhere.example".into()]),
            ..TokenRequestSpec::default()
        };
        let elsewhere = Thief {
            client: thief(lab, &issue(lab, elsewhere).await?).await?,
            namespace,
        };
        refused(
            elsewhere.patch_status(&dataplane_nodes(), "node1", &version).await,
            401,
            "Unauthorized",
        )?;
        a_pod_takes_its_token_along(namespace).await
    })
    .await
}

/// As a daemon's does that is replaced.
async fn a_pod_takes_its_token_along(namespace: &TestNamespace) -> Result<()> {
    let lab = &namespace.lab;
    let pods: Api<Pod> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": namespace.name},
        "spec": {
            "nodeName": "node1",
            "serviceAccountName": ACCOUNT,
            "hostNetwork": true,
            "containers": [{"name": "none", "image": "lab.wardline.io/not-there:1", "imagePullPolicy": "Never"}],
        },
    }))?;
    let pod = pods.create(&PostParams::default(), &pod).await?;
    let bound = TokenRequestSpec {
        bound_object_ref: Some(BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        }),
        ..TokenRequestSpec::default()
    };
    let tried = async {
        let thief = Thief {
            client: thief(lab, &issue(lab, bound).await?).await?,
            namespace,
        };
        thief.patches_its_own_status("node1").await?;
        pods.delete(&namespace.name, &DeleteParams::default().grace_period(0))
            .await?;
        wait_until("the token to be no longer good", REMEMBERED, async || {
            let patched = thief.patches_its_own_status("node1").await;
            Ok(refused(patched, 401, "Unauthorized").ok())
        })
        .await
    };
    let tried = tried.await;
    lab.delete("v1", "Pod", SYSTEM_NAMESPACE, &namespace.name).await?;
    tried
}

/// The token of a node's daemon, read out of its container.
fn stolen(node: LabNode<'_>) -> Result<String> {
    let path = format!("/proc/{}/root/{TOKEN}", node.daemon_pid()?);
    let token = node.run(&["busybox", "cat", &path])?;
    ensure!(token.starts_with("eyJ"), "{path} holds no token");
    Ok(token.trim().to_owned())
}

/// Another token of the daemons' service account.
async fn issue(lab: &Lab, spec: TokenRequestSpec) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(lab.client().clone(), SYSTEM_NAMESPACE);
    let request = TokenRequest {
        spec: Some(spec),
        ..TokenRequest::default()
    };
    let issued = accounts
        .create_token_request(ACCOUNT, &PostParams::default(), &request)
        .await
        .context("failed to ask for a token")?;
    let token = issued.status.and_then(|status| status.token);
    token.context("the answer to a token request has no token")
}

async fn thief(lab: &Lab, token: &str) -> Result<Client> {
    token_client(lab.layout(), token, STOLEN).await
}

fn dataplane_nodes() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("wardline.io", "v1alpha1", "DataplaneNode"))
}

fn pods() -> ApiResource {
    ApiResource::erase::<Pod>(&())
}

fn events() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("events.k8s.io", "v1", "Event"))
}

/// Fails unless the API server refused it with that code, and a message that holds `why`.
fn refused<T>(tried: kube::Result<T>, code: u16, why: &str) -> Result<()> {
    match tried {
        Ok(_) => anyhow::bail!("was allowed, and should be refused: {why}"),
        Err(kube::Error::Api(status)) if status.code == code && status.message.contains(why) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed in another way than by {code}, {why}")),
    }
}

/// Someone with a token of ours.
struct Thief<'a> {
    client: Client,
    namespace: &'a TestNamespace,
}

impl Thief<'_> {
    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        match &*resource.kind {
            "DataplaneNode" => Api::all_with(self.client.clone(), resource),
            _ => Api::namespaced_with(self.client.clone(), &self.namespace.name, resource),
        }
    }

    async fn patch_status(&self, resource: &ApiResource, name: &str, patch: &Value) -> kube::Result<DynamicObject> {
        let parameters = PatchParams::default();
        let api = self.api(resource);
        if resource.kind == "Pod" {
            return api.patch_status(name, &parameters, &Patch::Strategic(patch)).await;
        }
        api.patch_status(name, &parameters, &Patch::Merge(patch)).await
    }

    async fn create(&self, resource: &ApiResource, object: Value) -> kube::Result<DynamicObject> {
        let object = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        self.api(resource).create(&PostParams::default(), &object).await
    }

    /// Writes what stands there already.
    async fn patches_its_own_status(&self, node: &str) -> kube::Result<DynamicObject> {
        let admin = Api::<DynamicObject>::all_with(self.namespace.lab.client().clone(), &dataplane_nodes());
        let version = admin.get(node).await?.data["status"]["version"].clone();
        let same = json!({"status": {"version": version}});
        self.patch_status(&dataplane_nodes(), node, &same).await
    }

    async fn writes_what_the_daemon_writes(&self) -> Result<()> {
        self.patches_its_own_status("node1").await?;
        // It is there already, which is only looked for once the request is admitted.
        let created = self.create(&dataplane_nodes(), dataplane_node("node1")).await;
        refused(created, 409, "already exists")?;
        let address = self.namespace.ip("here").await?.to_string();
        for (status, message) in [("True", &*address), ("False", ""), ("True", &*address)] {
            let condition = json!([{"type": CONDITION, "status": status, "reason": "Assigned", "message": message}]);
            let patch = json!({"status": {"conditions": condition}});
            self.patch_status(&pods(), "here", &patch).await?;
        }
        self.create(&events(), self.event(&[])).await?;
        Ok(())
    }

    async fn writes_no_other_node(&self) -> Result<()> {
        let why = "'wardline-node-dataplanenodes' denied request: a daemon writes the DataplaneNode of its own node, \
                   which by its token is \"node1\"";
        refused(self.patches_its_own_status("node2").await, 403, why)?;
        for name in ["node2", "node3"] {
            refused(self.create(&dataplane_nodes(), dataplane_node(name)).await, 403, why)?;
        }
        let address = self.namespace.ip("there").await?.to_string();
        let condition = json!([{"type": CONDITION, "status": "True", "reason": "Assigned", "message": address}]);
        let patch = json!({"status": {"conditions": condition}});
        refused(
            self.patch_status(&pods(), "there", &patch).await,
            403,
            "'wardline-node-pods' denied request: a daemon writes to the pods of its own node, which by its token is \
             \"node1\"",
        )
    }

    /// Alone, and hidden behind what may be written.
    async fn writes_nothing_else_of_pods(&self) -> Result<()> {
        let address = "10.244.0.200";
        let ours = json!({"type": CONDITION, "status": "True", "reason": "Assigned", "message": address});
        for (patch, changed) in [
            (json!({"status": {"phase": "Failed"}}), "status.phase"),
            (
                json!({"status": {"podIPs": [{"$patch": "replace"}, {"ip": address}], "podIP": address}}),
                "status.podIP",
            ),
            (json!({"status": {"reason": "Evicted"}}), "status.reason"),
            (json!({"status": {"hostIP": null, "hostIPs": null}}), "status.hostIP"),
            (json!({"metadata": {"labels": {"app": "there"}}}), "metadata.labels"),
            (json!({"metadata": {"labels": null}}), "metadata.labels"),
            (json!({"metadata": {"annotations": {"a": "b"}}}), "metadata.annotations"),
            (
                json!({"metadata": {"finalizers": ["example.com/stay"]}}),
                "metadata.finalizers",
            ),
        ] {
            let mut hidden = patch.clone();
            hidden["status"]["conditions"] = json!([ours]);
            for patch in [patch, hidden] {
                let why =
                    "'wardline-node-pods' denied request: a daemon writes one condition of a pod, and this changes ";
                let patched = self.patch_status(&pods(), "here", &patch).await;
                let told = format!("{patch} by node1's daemon");
                refused(patched, 403, &format!("{why}{changed}")).context(told)?;
            }
        }
        for condition in [
            json!({"type": "Ready", "status": "False"}),
            json!({"type": "Ready", "$patch": "delete"}),
            json!({"type": "example.com/gate", "status": "True"}),
        ] {
            let patch = json!({"status": {"conditions": [condition, ours]}});
            let why = "a daemon writes no condition of a pod but wardline.io/AddressesAssigned";
            let patched = self.patch_status(&pods(), "here", &patch).await;
            refused(patched, 403, why).with_context(|| patch.to_string())?;
        }
        Ok(())
    }

    async fn writes_no_other_events(&self) -> Result<()> {
        const OWN: &str = "'wardline-node-events' denied request: the Events of a daemon are reported by wardline-node of \
                           its own node, which by its token is \"node1\"";
        const DENIES: &str = "'wardline-node-events' denied request: a daemon writes Events about denies";
        for (pointer, value, why) in [
            ("/reportingInstance", "node2", OWN),
            ("/reportingController", "kubelet", OWN),
            ("/reason", "Evicted", DENIES),
            ("/type", "Normal", DENIES),
            ("/regarding/kind", "Deployment", DENIES),
        ] {
            let created = self.create(&events(), self.event(&[(pointer, value)])).await;
            refused(created, 403, why).with_context(|| format!("{pointer}: {value}"))?;
        }
        Ok(())
    }

    /// As node1's daemon would write it, but for some of its fields.
    fn event(&self, changes: &[(&str, &str)]) -> Value {
        let namespace = &self.namespace.name;
        let mut event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": "here-", "namespace": namespace},
            "action": "Deny",
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "note": "a thief was here",
            "reason": "NetworkPolicyDeny",
            "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": "here"},
            "reportingController": "wardline-node",
            "reportingInstance": "node1",
            "type": "Warning",
        });
        for (pointer, value) in changes {
            if let Some(field) = event.pointer_mut(pointer) {
                *field = json!(value);
            }
        }
        event
    }
}

fn dataplane_node(name: &str) -> Value {
    json!({"apiVersion": "wardline.io/v1alpha1", "kind": "DataplaneNode", "metadata": {"name": name}, "spec": {}})
}
