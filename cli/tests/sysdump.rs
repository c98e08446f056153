// SPDX-License-Identifier: Apache-2.0
//! `sysdump` of a cluster that a test plays, with a secret wherever somebody could put one; e2e/tests/cluster/sysdump.rs
//! has the real one.

#![allow(clippy::unwrap_used, reason = "tests")]

mod api_server;
mod shell;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use api_server::{Answer, Exec, STDERR, STDOUT, kubeconfig, list};
use serde_json::{Value, json};
use shell::wardline;

/// Nowhere in an archive.
const SECRET: &str = "hunter2-secret";

/// An object's metadata, with the secret where it can stand.
fn metadata(name: &str) -> Value {
    json!({
        "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 3, "labels": {"app": "web"},
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": format!("{{\"password\": \"{SECRET}\"}}"),
            "example.com/token": SECRET,
            SECRET: "true",
            "wardline.io/enable-logging": "true",
            "wardline.io/enable-deny-logging": SECRET,
        },
        "managedFields": [{"manager": SECRET, "fieldsV1": {SECRET: {}}}],
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "uid": SECRET, "apiVersion": SECRET}],
    })
}

fn container(name: &str) -> Value {
    json!({
        "name": name, "image": format!("registry.example.com/{SECRET}"), "command": ["sh", "-c", SECRET], "args": [SECRET],
        "workingDir": SECRET,
        "env": [{"name": "PASSWORD", "value": SECRET}, {"name": "X", "valueFrom": {"secretKeyRef": {"name": SECRET}}}],
        "envFrom": [{"secretRef": {"name": SECRET}}],
        "ports": [{"name": "metrics", "containerPort": 9470, "protocol": "TCP", "unknown": SECRET}],
        "livenessProbe": {"httpGet": {"httpHeaders": [{"name": "Authorization", "value": SECRET}]}},
        "readinessProbe": {"exec": {"command": [SECRET]}}, "startupProbe": {"exec": {"command": [SECRET]}},
        "lifecycle": {"preStop": {"exec": {"command": [SECRET]}}},
        "volumeMounts": [{"name": SECRET, "mountPath": SECRET, "subPathExpr": SECRET}],
        "resources": {"limits": {SECRET: "1"}}, "securityContext": {"seLinuxOptions": {"user": SECRET}},
        "terminationMessagePath": SECRET,
    })
}

/// `message` is what kubelet says, and the end of a container's output.
fn status(message: &str) -> Value {
    let ended = json!({"exitCode": 1, "reason": "Error", "message": message, "containerID": SECRET});
    json!({
        "phase": "Running", "message": message, "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
        "conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": message}],
        "containerStatuses": [{
            "name": "c", "ready": true, "restartCount": 1, "image": SECRET, "imageID": SECRET, "containerID": SECRET,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": message}},
            "lastState": {"terminated": ended}, "volumeMounts": [{"name": SECRET}],
        }],
        "initContainerStatuses": [{"name": SECRET, "lastState": {"terminated": ended}}],
        "ephemeralContainerStatuses": [{"name": SECRET}],
    })
}

fn pod(name: &str) -> Value {
    json!({"metadata": metadata(name), "status": status(SECRET), "spec": {
        "nodeName": "node1", "containers": [container("c")], "initContainers": [container("init")],
        "ephemeralContainers": [container("debug")], "hostname": SECRET, "subdomain": SECRET,
        "serviceAccountName": SECRET, "imagePullSecrets": [{"name": SECRET}], "schedulerName": SECRET,
        "hostAliases": [{"ip": "10.0.0.9", "hostnames": [SECRET]}], "dnsConfig": {"searches": [SECRET]},
        "nodeSelector": {"a": SECRET}, "tolerations": [{"key": SECRET}],
        "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": SECRET}]}},
        "volumes": [
            {"name": "v", "hostPath": {"path": SECRET}}, {"name": SECRET, "secret": {"secretName": SECRET}},
            {"name": "w", "csi": {"driver": SECRET, "volumeAttributes": {"token": SECRET}}},
            {"name": "x", "flexVolume": {"driver": SECRET, "options": {"password": SECRET}}},
        ],
    }})
}

/// Of Wardline, which is made by its chart and its operator: what is free text there may be shown, and its environment not.
fn own(name: &str, app: &str) -> Value {
    let mut own = pod(name);
    own["metadata"]["labels"] = json!({"app.kubernetes.io/name": app});
    own["metadata"]["namespace"] = json!("wardline-system");
    own["status"] = status("it runs out of memory");
    own["status"]["containerStatuses"][0] = json!({
        "name": "c", "ready": true, "restartCount": 1, "image": "i", "imageID": "i", "containerID": SECRET,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        "lastState": {"terminated": {"exitCode": 1, "message": "it runs out of memory"}},
    });
    let spec = own["spec"].as_object_mut().unwrap();
    for (key, value) in [
        ("nodeSelector", json!({})),
        ("tolerations", json!([])),
        ("serviceAccountName", json!("s")),
    ] {
        spec.insert(key.to_owned(), value);
    }
    for (key, value) in [
        ("image", json!("i")),
        ("resources", json!({})),
        ("securityContext", json!({})),
    ] {
        own["spec"]["containers"][0][key] = value;
    }
    own
}

/// A DaemonSet or a Deployment of Wardline.
fn workload(name: &str) -> Value {
    let mut template = own(name, name);
    template["spec"]["volumes"] =
        json!([{"name": "config", "configMap": {"name": "c"}, "secret": {"secretName": SECRET}}]);
    template["spec"]["containers"][0]["ports"] = json!([{"name": "metrics", "containerPort": 9470}]);
    template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "config", "mountPath": "/etc/wardline"}]);
    json!({"metadata": metadata(name), "spec": {"replicas": 1, "template": template}, "status": {"readyReplicas": 1}})
}

fn event(name: &str, reason: &str, about: &Value) -> Value {
    json!({"metadata": metadata(name), "reason": reason, "message": "node1: it crashes", "involvedObject": about})
}

fn answer(path: &str) -> Answer {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if path.ends_with("/log") {
        let which = if query.contains("previous=true") {
            "before"
        } else {
            "now"
        };
        return Answer::Text(format!("what it says {which}\n"));
    }
    match path {
        "/version" => Answer::Json(json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0"})),
        "/api/v1/pods" => list(vec![pod("web")]),
        "/api/v1/namespaces/wardline-system/pods" => {
            let all = [("operator", "wardline-operator"), ("daemon", "wardline-node")];
            list(
                all.iter()
                    .filter(|(_, app)| query.contains(app))
                    .map(|(name, app)| own(name, app))
                    .collect(),
            )
        }
        "/apis/apps/v1/namespaces/wardline-system/daemonsets" => list(vec![workload("wardline-node")]),
        "/apis/apps/v1/namespaces/wardline-system/deployments" => list(vec![workload("wardline-operator")]),
        "/apis/apps/v1/namespaces/wardline-system/controllerrevisions" => list(vec![json!({
            "metadata": metadata("revision"), "revision": 2, "data": {"spec": {"template": workload("wardline-node")}},
        })]),
        "/api/v1/namespaces/wardline-system/configmaps" => list(vec![json!({
            "metadata": metadata("wardline-node-abc"),
            "data": {"config.yaml": "logLevel: Debug\n", "template.json": SECRET, "other": SECRET},
            "binaryData": {"x": SECRET},
        })]),
        "/apis/coordination.k8s.io/v1/namespaces/wardline-system/leases" => list(vec![
            json!({"metadata": metadata("lease"), "spec": {"holderIdentity": "operator"}}),
        ]),
        "/api/v1/nodes" => list(vec![json!({
            "metadata": metadata("node1"),
            "spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": SECRET, "taints": [{"key": "t", "value": SECRET}]},
            "status": {
                "nodeInfo": {"kernelVersion": "6.18.1", "machineID": SECRET, "systemUUID": SECRET, "bootID": SECRET}, "images": [{"names": [SECRET]}],
                "volumesAttached": [{"name": SECRET}], "config": {"error": SECRET},
                "conditions": [{"type": "Ready", "status": "True", "message": SECRET}],
            },
        })]),
        "/api/v1/namespaces" => list(vec![json!({
            "metadata": metadata("shop"), "status": {"phase": "Active", "conditions": [{"message": SECRET}]},
        })]),
        "/api/v1/services" => list(vec![json!({
            "metadata": metadata("web"), "spec": {"clusterIPs": ["10.96.0.9"], "externalName": SECRET, "selector": {"a": "b"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "hostname": SECRET}]}, "conditions": [SECRET]},
        })]),
        "/apis/discovery.k8s.io/v1/endpointslices" => list(vec![json!({
            "metadata": metadata("web-1"), "addressType": "IPv4",
            "endpoints": [{
                "addresses": ["10.0.0.1"], "hostname": SECRET, "deprecatedTopology": {"x": SECRET},
                "targetRef": {"kind": "Pod", "name": "web", "fieldPath": SECRET},
            }],
        })]),
        "/apis/networking.k8s.io/v1/networkpolicies" => list(vec![
            json!({"metadata": metadata("web-takes"), "spec": {"podSelector": {"matchLabels": {"app": "web"}}}}),
        ]),
        "/api/v1/events" | "/api/v1/namespaces/wardline-system/events" => list(vec![
            event(
                "about-ours",
                "RolledBack",
                &json!({"apiVersion": "wardline.io/v1alpha1", "kind": "Dataplane", "name": "default", "fieldPath": SECRET}),
            ),
            event(
                "about-a-pod-of-ours",
                "BackOff",
                &json!({"apiVersion": "v1", "kind": "Pod", "name": "wardline-node-x"}),
            ),
            event(
                "about-another",
                SECRET,
                &json!({"apiVersion": "v1", "kind": "Pod", "name": "guest"}),
            ),
        ]),
        path if path.ends_with("/proxy/metrics") => Answer::Text("wardline_log_stopped 0\n".into()),
        path if path.contains("wardline.io/v1alpha1") => list(vec![
            json!({"metadata": metadata("default"), "spec": {}, "status": {}, "data": SECRET}),
        ]),
        path => Answer::Refused(404, format!("no {path}")),
    }
}

fn exec(pod: &str, exec: &mut Exec) {
    if pod != "daemon" {
        return exec.fails("there is no such program");
    }
    exec.send(STDOUT, "{\"disposition\":\"deny\"}\n");
    exec.send(
        STDERR,
        "wardline-node: Wardline is on this node:\n/sys/fs/bpf/wardline\n",
    );
    exec.fails("command terminated with exit code 1");
}

/// `sysdump` into a directory: what it says, its exit code, and the files of the archive without their folder.
fn dumped(answer: fn(&str) -> Answer, arguments: &str) -> (String, u8, BTreeMap<String, String>) {
    let (server, _asked) = api_server::start(answer, exec);
    let directory = tempfile::tempdir().unwrap();
    let config = kubeconfig(directory.path(), &server);
    let file = directory.path().join("dump.tar.gz");
    let command = format!(
        "sysdump --kubeconfig {} --output {} {arguments}",
        config.display(),
        file.display()
    );
    let (text, code) = wardline(&command, "");
    let mode = file.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others may not read it");
    let (again, refused) = wardline(&command, "");
    assert!(again.ends_with("it is there already") && refused == 2, "{again}");
    (text, code, unpacked(&file))
}

fn unpacked(file: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(std::fs::File::open(file).unwrap()));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let (folder, name) = path.split_once('/').unwrap();
        assert!(folder.starts_with("wardline-sysdump-test-2"), "{folder}");
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(name.to_owned(), text);
    }
    files
}

#[test]
fn there_is_no_secret_in_it() {
    let (_, _, files) = dumped(answer, "");
    for (name, text) in &files {
        assert!(!text.contains(SECRET), "{name}: {text}");
    }
    let read = |name: &str| serde_json::from_str::<Value>(&files[name]).unwrap();
    // What policy needs is.
    let pod = &read("pods.json")[0];
    assert_eq!(pod["metadata"]["labels"], json!({"app": "web"}));
    assert_eq!(
        pod["metadata"]["annotations"],
        json!({"wardline.io/enable-logging": "true"})
    );
    assert_eq!(
        pod["spec"]["containers"],
        json!([{"name": "c", "ports": [{"name": "metrics", "containerPort": 9470, "protocol": "TCP"}]}])
    );
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "10.0.0.1"}]));
    assert_eq!(read("wardline/configurations.json")[0]["config"]["logLevel"], "Debug");
    let daemon_set = &read("wardline/daemonsets.json")[0]["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(daemon_set["env"], json!([{"name": "PASSWORD"}, {"name": "X"}]));
    assert_eq!(
        read("networkpolicies.json")[0]["spec"]["podSelector"]["matchLabels"]["app"],
        "web"
    );
    assert_eq!(read("nodes.json")[0]["status"]["nodeInfo"]["kernelVersion"], "6.18.1");
    assert_eq!(read("events.json").as_array().unwrap().len(), 2, "each once");
}

#[test]
fn what_each_node_tells_is_in_it_and_what_it_does_not_is_listed() {
    let (text, code, files) = dumped(answer, "");
    assert_eq!(files["wardline/daemon/c.log"], "what it says now\n");
    assert_eq!(files["wardline/daemon/c.previous.log"], "what it says before\n");
    assert_eq!(files["wardline/operator/metrics.txt"], "wardline_log_stopped 0\n");
    assert_eq!(files["nodes/node1/metrics.txt"], "wardline_log_stopped 0\n");
    assert_eq!(
        files["nodes/node1/on-node.txt"],
        "Wardline is on this node:\n/sys/fs/bpf/wardline\n"
    );
    // Of these, the same is no answer but a failure.
    for missing in ["nodes/node1/kernel.txt", "nodes/node1/policy-log.jsonl"] {
        assert!(
            files["errors.txt"].contains(&format!("{missing}: Wardline is on this node")),
            "{}",
            files["errors.txt"]
        );
    }
    assert!(
        text.contains("errors.txt in it tells of 2 parts that are missing") && code == 1,
        "{text}"
    );
    let manifest: Value = serde_json::from_str(&files["manifest.json"]).unwrap();
    let mut listed: Vec<&str> = manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    listed.extend(["errors.txt", "manifest.json"]);
    listed.sort_unstable();
    assert_eq!(listed, files.keys().collect::<Vec<_>>());
    assert_eq!(
        (manifest["kubernetes"].as_str(), manifest["context"].as_str()),
        (Some("v1.36.0"), Some("test"))
    );
    assert_eq!(manifest["errors"].as_array().unwrap().len(), 2);
}

#[test]
fn rights_that_are_missing_cost_their_part_alone() {
    let few = |path: &str| match path.split('?').next().unwrap_or(path) {
        "/api/v1/services" => Answer::Refused(403, "no right to services".into()),
        path if path.ends_with("/log") => Answer::Refused(403, "no right to pods/log".into()),
        path if path.ends_with("/proxy/metrics") => Answer::Refused(403, "no right to pods/proxy".into()),
        _ => answer(path),
    };
    let (_, code, files) = dumped(few, "--log-lines 0");
    assert_eq!(code, 1);
    let errors = &files["errors.txt"];
    for line in [
        "services.json: no right to services\n",
        "wardline/daemon/c.log: no right to pods/log\n",
        "nodes/node1/metrics.txt: no right to pods/proxy\n",
    ] {
        assert!(errors.contains(line), "{errors}");
    }
    assert!(files.contains_key("pods.json") && !files.contains_key("services.json"));
    assert!(!errors.contains("policy-log"), "{errors}");
}

#[test]
fn without_an_api_server_there_is_no_archive() {
    let (server, _asked) = api_server::start(|_| Answer::Refused(500, "it is down".into()), exec);
    let directory = tempfile::tempdir().unwrap();
    let config = kubeconfig(directory.path(), &server);
    let file = directory.path().join("dump.tar.gz");
    let command = format!("sysdump --kubeconfig {} --output {}", config.display(), file.display());
    assert_eq!(
        wardline(&command, ""),
        ("failed to reach the API server: it is down".to_owned(), 2)
    );
    let left: Vec<_> = directory
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["kubeconfig"]);
}
