// SPDX-License-Identifier: Apache-2.0
//! From `Valid` to the objects themselves. Pure: the same input gives the same bytes, so that a hash tells a change.
//!
//! A revision is what a daemon runs with: its configuration, and its pod template. Both stand in one immutable ConfigMap
//! that is named by their hash, so that whoever leads later can go back to it.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, ConfigMap, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
    ExecAction, HTTPGetAction, HostPathVolumeSource, KeyToPath, LocalObjectReference, ObjectFieldSelector,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, SELinuxOptions, SeccompProfile, SecurityContext, Toleration,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};
use wardline_crds::PullPolicy;
use wardline_crds::config::CONFIG_KEY;

use super::validate::Valid;
use crate::error::Error;

/// Name of the DaemonSet, and of the application in its labels.
pub(crate) const DAEMON_SET: &str = "wardline-node";
/// What every object of the daemon can be found by.
pub(crate) const SELECTOR: &str = "app.kubernetes.io/name=wardline-node,app.kubernetes.io/managed-by=wardline-operator";

/// The daemon runs as root, with these and nothing else:
/// BPF for maps and programs; PERFMON for programs that the verifier lets use pointers as such; `NET_ADMIN` to attach them
/// to interfaces and to ask for the addresses at the other end of a veth. They are enough from kernel 5.8 on, where
/// they split off from `SYS_ADMIN`. `SYS_RESOURCE` would lift the limit on locked memory, which map memory has not
/// counted against since 5.11.
const CAPABILITIES: [&str; 3] = ["BPF", "NET_ADMIN", "PERFMON"];

/// Pins: what enforces outlives the daemon here.
const BPF_FS: &str = "/sys/fs/bpf";
/// The daemon's socket, for tools and plugins on the node.
const RUN_DIR: &str = "/run/wardline";
const CONFIG_DIR: &str = "/etc/wardline";
const LOOPBACK: &str = "127.0.0.1";
/// Of a revision's ConfigMap: the pod template, as JSON.
const TEMPLATE_KEY: &str = "template.json";
/// Label of the daemon's pods.
pub(super) const REVISION_LABEL: &str = "wardline.io/revision";

/// Label's value of pods that clean their node.
pub(super) const REMOVAL: &str = "removal";
/// Where libcni keeps what it knows of pods.
const CNI_CACHE: &str = "/var/lib/cni";

/// The objects of the daemon.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Built {
    pub(super) config_map: ConfigMap,
    /// Without a pod template: [`Built::daemon_set_with`].
    daemon_set: DaemonSet,
    pub(super) revision: Revision,
}

/// What a daemon runs with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Revision {
    /// The hash of all that follows.
    pub(super) name: String,
    /// Knows neither its name nor that of its ConfigMap.
    template: PodTemplateSpec,
}

pub(super) fn build(valid: &Valid) -> Result<Built, Error> {
    let yaml = valid.config.to_yaml()?;
    let template = template(valid);
    let json = serde_json::to_string(&template).map_err(|source| Error::Serialise {
        object: format!("the pod template of DaemonSet {DAEMON_SET}"),
        source,
    })?;
    let revision = Revision {
        name: short_hash(&[yaml.as_bytes(), json.as_bytes()]),
        template,
    };
    let config_map = ConfigMap {
        metadata: metadata(&valid.namespace, revision.config_map()),
        immutable: Some(true),
        data: Some(BTreeMap::from([
            (CONFIG_KEY.to_owned(), yaml),
            (TEMPLATE_KEY.to_owned(), json),
        ])),
        ..ConfigMap::default()
    };
    Ok(Built {
        config_map,
        daemon_set: daemon_set(&valid.namespace),
        revision,
    })
}

impl Built {
    /// The DaemonSet, whose new pods are of that revision.
    pub(super) fn daemon_set_with(&self, revision: &Revision) -> DaemonSet {
        let mut daemon_set = self.daemon_set.clone();
        if let Some(spec) = &mut daemon_set.spec {
            spec.template = revision.pod_template();
        }
        daemon_set
    }
}

impl Revision {
    /// Reads it from its ConfigMap.
    pub(super) fn from_config_map(name: &str, config_map: &ConfigMap) -> Result<Self, Error> {
        let json = config_map.data.as_ref().and_then(|data| data.get(TEMPLATE_KEY));
        let template = serde_json::from_str(json.map_or("", String::as_str)).map_err(|source| Error::Deserialise {
            object: format!("{TEMPLATE_KEY} of ConfigMap {}", config_map_of(name)),
            source,
        })?;
        Ok(Self {
            name: name.to_owned(),
            template,
        })
    }

    /// Name of the ConfigMap that holds it.
    pub(super) fn config_map(&self) -> String {
        config_map_of(&self.name)
    }

    pub(super) fn pod_template(&self) -> PodTemplateSpec {
        let mut template = self.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(REVISION_LABEL.to_owned(), self.name.clone());
        let volumes = template
            .spec
            .iter_mut()
            .flat_map(|spec| spec.volumes.iter_mut().flatten());
        for config in volumes.filter_map(|volume| volume.config_map.as_mut()) {
            config.name = self.config_map();
        }
        template
    }
}

/// Name of the ConfigMap of a revision.
pub(super) fn config_map_of(revision: &str) -> String {
    format!("{DAEMON_SET}-{revision}")
}

/// Ten hexadecimal digits: 40 bits, for the few revisions that are alive at a time.
pub(super) fn short_hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let number = hash
        .finalize()
        .iter()
        .take(5)
        .fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    format!("{number:010x}")
}

fn labels() -> BTreeMap<String, String> {
    let labels = [
        ("app.kubernetes.io/name", DAEMON_SET),
        ("app.kubernetes.io/part-of", "wardline"),
        ("app.kubernetes.io/managed-by", "wardline-operator"),
    ];
    labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Without an owner: see `removal`.
fn metadata(namespace: &str, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels()),
        ..ObjectMeta::default()
    }
}

fn daemon_set(namespace: &str) -> DaemonSet {
    let selector = BTreeMap::from([("app.kubernetes.io/name".to_owned(), DAEMON_SET.to_owned())]);
    DaemonSet {
        metadata: metadata(namespace, DAEMON_SET.to_owned()),
        spec: Some(DaemonSetSpec {
            selector: LabelSelector {
                match_labels: Some(selector),
                ..LabelSelector::default()
            },
            revision_history_limit: Some(5),
            // The operator alone decides which node is next, and whether there is a next one.
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("OnDelete".into()),
                rolling_update: None,
            }),
            ..DaemonSetSpec::default()
        }),
        status: None,
    }
}

/// The DaemonSet whose pods clean their nodes, made of a daemon's: the same image, rights and place.
pub(super) fn removal(namespace: &str, daemon: &PodTemplateSpec) -> DaemonSet {
    let mut template = daemon.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.to_owned(), REMOVAL.to_owned());
    if let Some(pod) = &mut template.spec {
        // Wherever a daemon was once.
        pod.node_selector = None;
        // What the daemon has, at the same paths; what lies around its state, so that its directory can go; and what
        // libcni keeps of pods.
        let volumes = pod.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != "run");
        volumes.push(host_path("run", "/run", "Directory"));
        volumes.push(host_path("cni-cache", CNI_CACHE, "DirectoryOrCreate"));
        for container in &mut pod.containers {
            let cleanup = ["cleanup".to_owned(), format!("--config={CONFIG_DIR}/{CONFIG_KEY}")];
            let with = |last: &str| cleanup.iter().cloned().chain([last.to_owned()]).collect::<Vec<_>>();
            let check = ["/wardline-node".to_owned()].into_iter().chain(with("--check"));
            container.readiness_probe = Some(Probe {
                exec: Some(ExecAction {
                    command: Some(check.collect()),
                }),
                period_seconds: Some(1),
                failure_threshold: Some(1),
                timeout_seconds: Some(10),
                ..Probe::default()
            });
            container.args = Some(with("--stay"));
            container.liveness_probe = None;
            container.startup_probe = None;
            container.ports = None;
            // What was enough for the daemon may not be for this.
            container.resources = None;
            let mounts = container.volume_mounts.get_or_insert_default();
            mounts.retain(|mount| mount.name != "run");
            mounts.push(mount("run", "/run"));
            mounts.push(mount("cni-cache", CNI_CACHE));
        }
    }
    let mut daemon_set = daemon_set(namespace);
    if let Some(spec) = &mut daemon_set.spec {
        spec.template = template;
    }
    daemon_set
}

fn template(valid: &Valid) -> PodTemplateSpec {
    let metrics_port = valid.config.metrics_address.port();
    // For Prometheus installations that find their targets by annotation; others have the port's name.
    let annotations = [
        ("kubectl.kubernetes.io/default-container", "wardline-node".to_owned()),
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", metrics_port.to_string()),
    ];
    let annotations = annotations.into_iter().map(|(key, value)| (key.to_owned(), value));
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels()),
            annotations: Some(annotations.collect()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(valid)),
    }
}

fn pod(valid: &Valid) -> PodSpec {
    // A node is never too broken for its policies, and the daemon may be what makes it ready.
    let everywhere = Toleration {
        operator: Some("Exists".into()),
        ..Toleration::default()
    };
    let secrets = valid
        .pull_secrets
        .iter()
        .map(|name| LocalObjectReference { name: name.clone() });
    PodSpec {
        service_account_name: Some(valid.service_account.clone()),
        // On the host network the daemon sees the pods' host-side interfaces, and works before any other network does.
        host_network: Some(true),
        // The node's own: `apiServer.host` may be a name, and the cluster's DNS a Service that nobody has translated yet.
        dns_policy: Some("Default".into()),
        priority_class_name: Some(valid.priority_class.clone()).filter(|name| !name.is_empty()),
        node_selector: Some(valid.node_selector.clone()).filter(|labels| !labels.is_empty()),
        tolerations: Some(
            std::iter::once(everywhere)
                .chain(valid.tolerations.iter().cloned())
                .collect(),
        ),
        image_pull_secrets: Some(secrets.collect()).filter(|secrets: &Vec<_>| !secrets.is_empty()),
        termination_grace_period_seconds: Some(10),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(0),
            run_as_group: Some(0),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".into(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        containers: vec![container(valid)],
        volumes: Some(vec![
            Volume {
                name: "config".into(),
                config_map: Some(ConfigMapVolumeSource {
                    items: Some(vec![KeyToPath {
                        key: CONFIG_KEY.into(),
                        path: CONFIG_KEY.into(),
                        mode: None,
                    }]),
                    ..Default::default()
                }),
                ..Volume::default()
            },
            host_path("bpf", BPF_FS, "Directory"),
            host_path("run", RUN_DIR, "DirectoryOrCreate"),
            host_path("log", &log_dir(valid), "DirectoryOrCreate"),
            host_path("cni-conf", &path(&valid.config.cni.conf_dir), "DirectoryOrCreate"),
            host_path("cni-bin", &path(&valid.config.cni.bin_dir), "DirectoryOrCreate"),
        ]),
        ..PodSpec::default()
    }
}

fn container(valid: &Valid) -> Container {
    let metrics_port = i32::from(valid.config.metrics_address.port());
    let log_dir = log_dir(valid);
    Container {
        name: "wardline-node".into(),
        image: Some(valid.image.clone()),
        image_pull_policy: Some(pull_policy(valid.pull_policy).into()),
        // Whoever looks at the pod sees why it ended.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        command: Some(vec!["/wardline-node".into()]),
        args: Some(vec!["--config".into(), format!("{CONFIG_DIR}/{CONFIG_KEY}")]),
        env: Some(environment(valid)),
        ports: Some(vec![ContainerPort {
            name: Some("metrics".into()),
            container_port: metrics_port,
            ..ContainerPort::default()
        }]),
        resources: Some(valid.resources.clone()),
        security_context: Some(security_context()),
        // Start-up loads programs and fills tables, which may take a while on a large cluster; kubelet waits two minutes.
        startup_probe: Some(Probe {
            failure_threshold: Some(60),
            period_seconds: Some(2),
            ..probe(valid, "/healthz")
        }),
        liveness_probe: Some(Probe {
            failure_threshold: Some(6),
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            ..probe(valid, "/healthz")
        }),
        readiness_probe: Some(Probe {
            failure_threshold: Some(2),
            period_seconds: Some(5),
            ..probe(valid, "/readyz")
        }),
        volume_mounts: Some(vec![
            VolumeMount {
                read_only: Some(true),
                ..mount("config", CONFIG_DIR)
            },
            mount("bpf", BPF_FS),
            mount("run", RUN_DIR),
            mount("log", &log_dir),
            mount("cni-conf", &path(&valid.config.cni.conf_dir)),
            mount("cni-bin", &path(&valid.config.cni.bin_dir)),
        ]),
        ..Container::default()
    }
}

fn security_context() -> SecurityContext {
    SecurityContext {
        privileged: Some(false),
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".into()]),
            add: Some(CAPABILITIES.map(Into::into).to_vec()),
        }),
        // The container runtimes' default AppArmor profile forbids writing below /sys/fs/bpf, and the default SELinux type
        // has no right to bpf(2); neither setting does anything on nodes without them.
        app_armor_profile: Some(AppArmorProfile {
            type_: "Unconfined".into(),
            localhost_profile: None,
        }),
        se_linux_options: Some(SELinuxOptions {
            type_: Some("spc_t".into()),
            ..SELinuxOptions::default()
        }),
        ..SecurityContext::default()
    }
}

fn environment(valid: &Valid) -> Vec<EnvVar> {
    let plain = |name: &str, value: String| EnvVar {
        name: name.into(),
        value: Some(value),
        value_from: None,
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".into()),
                field_path: path.into(),
            }),
            ..EnvVarSource::default()
        }),
    };
    let mut environment = vec![
        field("NODE_NAME", "spec.nodeName"),
        field("POD_NAME", "metadata.name"),
        field("WARDLINE_REVISION", &format!("metadata.labels['{REVISION_LABEL}']")),
    ];
    let api_server = &valid.config.api_server;
    if !api_server.host.is_empty() {
        environment.push(plain("KUBERNETES_SERVICE_HOST", api_server.host.clone()));
        environment.push(plain("KUBERNETES_SERVICE_PORT", api_server.port.to_string()));
    }
    environment
}

fn probe(valid: &Valid, path: &str) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            host: Some(LOOPBACK.into()),
            path: Some(path.into()),
            port: IntOrString::Int(i32::from(valid.config.health_address.port())),
            ..HTTPGetAction::default()
        }),
        ..Probe::default()
    }
}

fn host_path(name: &str, path: &str, type_: &str) -> Volume {
    Volume {
        name: name.into(),
        host_path: Some(HostPathVolumeSource {
            path: path.into(),
            type_: Some(type_.into()),
        }),
        ..Volume::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        ..VolumeMount::default()
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// The log's directory, the same inside the daemon as on the node; validation has seen that there is one.
fn log_dir(valid: &Valid) -> String {
    let file = &valid.config.logging.file.path;
    path(file.parent().unwrap_or(Path::new("/var/log/network")))
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use wardline_crds::{Dataplane, DataplaneSpec};

    use super::super::validate::validate;
    use super::*;
    use crate::testing;

    fn built(spec: &str) -> Built {
        let mut dataplane = Dataplane::new("default", serde_yaml::from_str::<DataplaneSpec>(spec).unwrap());
        dataplane.metadata.uid = Some("0f0e0d0c-0b0a-0908-0706-050403020100".into());
        build(&validate(&dataplane, &testing::args()).unwrap()).unwrap()
    }

    /// The whole of what is applied, as a reviewer reads it. `WARDLINE_WRITE_GOLDEN=1` writes the files anew.
    #[test]
    fn objects_are_as_committed() {
        let full = "
            cni: {confDir: /etc/kubernetes/cni/net.d, binDir: /usr/libexec/cni, failurePolicy: Ignore}
            policy: {enforcement: Audit, sourceAddressCheck: Enforce}
            logging: {clusterName: prod, denyAggregationSeconds: 30, stdout: true,
                      file: {path: /var/log/wardline/policy.log, maxSize: 1Mi, maxFiles: 2, maxAgeSeconds: 3600, minFreePercent: 20}}
            metrics: {policies: 50}
            limits: {connections: 65536}
            services: {mode: Disabled}
            apiServer: {host: 10.0.0.1, port: 443}
            daemon:
              image: {repository: r.example/node, tag: v2, pullPolicy: Always}
              imagePullSecrets: [{name: pull}]
              rollout: {maxUnavailable: 10%}
              nodeSelector: {pool: a}
              tolerations: [{key: gpu, operator: Exists, effect: NoExecute}]
              resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {memory: 1Gi}}
              priorityClassName: high
              logLevel: Debug";
        for (file, spec) in [("defaults.yaml", "{}"), ("full.yaml", full)] {
            let built = built(spec);
            let config_map = serde_yaml::to_string(&built.config_map).unwrap();
            let daemon_set = serde_yaml::to_string(&built.daemon_set_with(&built.revision)).unwrap();
            assert_golden(file, &format!("{config_map}---\n{daemon_set}"));
        }
        let built = built(full);
        let removal = removal("wardline-system", &built.revision.pod_template());
        assert_golden("removal.yaml", &serde_yaml::to_string(&removal).unwrap());
    }

    fn assert_golden(file: &str, found: &str) {
        let found = format!("# SPDX-License-Identifier: Apache-2.0\n{found}");
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(file);
        if std::env::var_os("WARDLINE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap();
        assert!(found == expected, "{} is not what is built:\n{found}", path.display());
    }

    #[test]
    fn a_revision_is_told_by_all_that_a_daemon_runs_with_and_reads_back() {
        let base = built("{}");
        assert_eq!(built("{}"), base);
        for spec in [
            "{daemon: {image: {tag: v2}}}",
            "{policy: {enforcement: Audit}}",
            "{daemon: {nodeSelector: {pool: a}}}",
        ] {
            assert_ne!(built(spec).revision.name, base.revision.name, "{spec}");
        }
        // How it comes to the nodes is no part of it.
        let slowly = built("{daemon: {rollout: {minReadySeconds: 60, canary: {nodes: 3}}}}");
        assert_eq!(slowly.revision, base.revision);
        let read = Revision::from_config_map(&base.revision.name, &base.config_map).unwrap();
        assert_eq!(read, base.revision);
        let error = Revision::from_config_map("x", &ConfigMap::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("failed to read template.json of ConfigMap wardline-node-x: "),
            "{error}"
        );
    }

    #[test]
    fn the_selector_finds_what_is_labelled() {
        let labels: Vec<String> = labels()
            .into_iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert!(
            SELECTOR.split(',').all(|label| labels.contains(&label.to_owned())),
            "{labels:?}"
        );
    }
}
