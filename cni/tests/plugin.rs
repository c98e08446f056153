// SPDX-License-Identifier: Apache-2.0
//! The plugin as the runtime runs it: a process, against a daemon that is a socket with one answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use wardline_cni::protocol::{self, Request, Response};
use wardline_cni::{Code, Version};

const ARGS: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1";
const NETNS: &str = "/run/netns/p";

/// How the plugin ended, and what it said.
#[derive(Debug)]
struct Ended {
    success: bool,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn variables(command: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", "c1".to_owned()),
        ("CNI_IFNAME", "eth0".to_owned()),
        ("CNI_NETNS", NETNS.to_owned()),
        ("CNI_ARGS", ARGS.to_owned()),
        ("CNI_PATH", "/opt/cni/bin".to_owned()),
    ])
}

fn run(variables: &BTreeMap<&'static str, String>, input: &Value) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_wardline-cni"))
        .env_clear()
        .envs(variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Ended {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn previous(version: Version) -> Value {
    let mut result = json!({
        "cniVersion": version.as_str(),
        "interfaces": [{"name": "veth1", "mac": "a"}, {"name": "eth0", "mac": "b", "sandbox": NETNS}],
        "ips": [{"address": "10.0.0.2/32", "gateway": "10.0.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    });
    if version < Version::V1_0_0 {
        result["ips"][0]["version"] = "4".into();
    }
    result
}

fn config(version: Version, socket: &Path) -> Value {
    json!({
        "cniVersion": version.as_str(),
        "name": "lab",
        "type": "wardline-cni",
        "socket": socket,
        "runtimeConfig": {},
        "prevResult": previous(version),
        "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    })
}

/// Answers one request, and returns it.
fn daemon(socket: &Path, response: Response) -> JoinHandle<Request> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let request = protocol::read(&stream).unwrap();
        protocol::write(&stream, &response).unwrap();
        request
    })
}

#[test]
fn add_answers_what_the_plugins_before_have_answered() {
    for version in Version::ALL {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cni.sock");
        let asked = daemon(&socket, Response::Done);
        let ended = run(&variables("ADD"), &config(version, &socket));
        assert!(ended.success && ended.stderr.is_empty(), "{version}: {ended:?}");
        assert_eq!(ended.json(), previous(version), "{version}");
        let request = serde_json::to_value(asked.join().unwrap()).unwrap();
        let expected = json!({
            "protocol": 1, "command": "add",
            "attachment": {"containerId": "c1", "ifname": "eth0"},
            "pod": {"namespace": "shop", "name": "web", "uid": "u1"},
            "hostInterfaces": ["veth1"], "addresses": ["10.0.0.2"],
        });
        assert_eq!(request, expected, "{version}");
    }
}

#[test]
fn the_answer_is_of_the_version_that_is_configured() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let _asked = daemon(&socket, Response::Done);
    let mut input = config(Version::V0_4_0, &socket);
    input["prevResult"] = previous(Version::V1_1_0);
    let ended = run(&variables("ADD"), &input);
    assert_eq!(ended.json(), previous(Version::V0_4_0));
}

#[test]
fn commands_without_a_result_succeed_in_silence() {
    for (command, asked) in [("DEL", "del"), ("CHECK", "check"), ("STATUS", "status"), ("GC", "gc")] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("cni.sock");
        let request = daemon(&socket, Response::Done);
        let ended = run(&variables(command), &config(Version::V1_1_0, &socket));
        assert!(
            ended.success && ended.stdout.is_empty() && ended.stderr.is_empty(),
            "{command}: {ended:?}"
        );
        assert_eq!(serde_json::to_value(request.join().unwrap()).unwrap()["command"], asked);
    }
}

#[test]
fn version_tells_what_is_spoken() {
    let mut only = variables("VERSION");
    only.retain(|name, _| *name == "CNI_COMMAND");
    for asked in ["0.2.0", "1.0.0", "9.9.9"] {
        let ended = run(&only, &json!({"cniVersion": asked}));
        let expected = json!({
            "cniVersion": asked, "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        });
        assert!(ended.success, "{ended:?}");
        assert_eq!(ended.json(), expected);
    }
}

/// What is changed of a good call, and the code and words of the answer.
type BadCall = (
    &'static str,
    fn(&mut BTreeMap<&'static str, String>, &mut Value),
    u64,
    &'static str,
);

#[test]
fn errors_have_the_codes_of_the_specification() {
    let table: [BadCall; 15] = [
        ("NONE", |_, _| (), 4, "CNI_COMMAND NONE is not known"),
        ("", |_, _| (), 4, "CNI_COMMAND is not set"),
        (
            "ADD",
            |variables, _| _ = variables.remove("CNI_CONTAINERID"),
            4,
            "CNI_CONTAINERID is not set",
        ),
        (
            "ADD",
            |variables, _| _ = variables.remove("CNI_NETNS"),
            4,
            "CNI_NETNS is not set",
        ),
        (
            "ADD",
            |variables, _| _ = variables.insert("CNI_ARGS", "K8S_POD_NAME=web".into()),
            4,
            "K8S_POD_NAMESPACE",
        ),
        (
            "ADD",
            |_, input| *input = Value::Null,
            6,
            "failed to decode the configuration",
        ),
        (
            "ADD",
            |_, input| input["cniVersion"] = "0.2.0".into(),
            1,
            "cniVersion 0.2.0 is not supported",
        ),
        (
            "ADD",
            |_, input| input["prevResult"] = Value::Null,
            7,
            "prevResult: missing",
        ),
        (
            "ADD",
            |_, input| input["prevResult"]["ips"] = json!([]),
            7,
            "prevResult.ips: no address of eth0",
        ),
        (
            "ADD",
            |_, input| input["failurePolicy"] = "Maybe".into(),
            7,
            "failurePolicy: \"Maybe\"",
        ),
        (
            "CHECK",
            |_, input| input["cniVersion"] = "0.3.1".into(),
            1,
            "has no CHECK",
        ),
        (
            "CHECK",
            |_, input| input["prevResult"] = Value::Null,
            7,
            "prevResult: missing",
        ),
        (
            "STATUS",
            |_, input| input["cniVersion"] = "1.0.0".into(),
            1,
            "has no STATUS",
        ),
        ("GC", |_, input| input["cniVersion"] = "1.0.0".into(), 1, "has no GC"),
        (
            "GC",
            |_, input| input["cni.dev/valid-attachments"] = Value::Null,
            11,
            "failed to reach wardline-node",
        ),
    ];
    for (command, spoil, code, words) in table {
        let (mut variables, mut input) = (
            variables(command),
            config(Version::V1_1_0, Path::new("/nowhere/cni.sock")),
        );
        spoil(&mut variables, &mut input);
        let ended = run(&variables, &input);
        let answer = ended.json();
        assert!(!ended.success, "{command}: {ended:?}");
        assert_eq!(answer["code"], code, "{command}: {answer}");
        assert!(answer["msg"].as_str().unwrap().contains(words), "{command}: {answer}");
        assert!(ended.stderr.contains(words), "{command}: {ended:?}");
    }
}

#[test]
fn without_the_daemon_add_fails_and_del_does_not() {
    let nowhere = Path::new("/nowhere/cni.sock");
    for (command, code) in [("ADD", 11), ("CHECK", 11), ("STATUS", 50), ("GC", 11)] {
        let ended = run(&variables(command), &config(Version::V1_1_0, nowhere));
        let answer = ended.json();
        assert_eq!(
            (ended.success, &answer["code"]),
            (false, &code.into()),
            "{command}: {answer}"
        );
        assert_eq!(answer["cniVersion"], "1.1.0");
        assert!(
            answer["msg"]
                .as_str()
                .unwrap()
                .contains("wardline-node at /nowhere/cni.sock"),
            "{answer}"
        );
        assert!(
            answer["details"]
                .as_str()
                .unwrap()
                .contains("kubectl -n wardline-system get pods"),
            "{answer}"
        );
    }
    let ended = run(&variables("DEL"), &config(Version::V1_1_0, nowhere));
    assert!(ended.success && ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains("DEL goes on without the daemon"), "{ended:?}");
}

#[test]
fn del_succeeds_with_a_configuration_that_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let asked = daemon(&socket, Response::Done);
    let mut input = config(Version::V1_0_0, &socket);
    input["cniVersion"] = "0.2.0".into();
    let ended = run(&variables("DEL"), &input);
    assert!(ended.success && ended.stdout.is_empty(), "{ended:?}");
    let asked = serde_json::to_value(asked.join().unwrap()).unwrap();
    assert_eq!(asked["command"], "del", "no version keeps the daemon from being told");
    input["socket"] = "nowhere".into();
    let ended = run(&variables("DEL"), &input);
    assert!(ended.success && ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains("DEL goes on without the daemon"), "{ended:?}");
}

#[test]
fn status_succeeds_while_a_daemon_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let mut input = config(Version::V1_1_0, &socket);
    let status = |input: &Value| run(&variables("STATUS"), input);
    assert_eq!(
        status(&input).json()["code"],
        50,
        "there was none since the node started"
    );
    drop(UnixListener::bind(&socket).unwrap());
    let ended = status(&input);
    assert!(ended.success && ended.stdout.is_empty(), "{ended:?}");
    assert!(ended.stderr.contains("STATUS goes on without the daemon"), "{ended:?}");
    // Where pods start without the daemon, it is not missed.
    input["socket"] = "/nowhere/cni.sock".into();
    input["failurePolicy"] = "Ignore".into();
    assert!(status(&input).success);
}

#[test]
fn a_daemon_that_ends_without_an_answer_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let ends = std::thread::spawn(move || protocol::read::<Request>(listener.accept().unwrap().0).unwrap());
    let ended = run(&variables("ADD"), &config(Version::V1_0_0, &socket));
    ends.join().unwrap();
    assert_eq!(ended.json()["code"], 11, "{ended:?}");
}

#[test]
fn ignore_lets_pods_start_without_the_daemon_and_says_so() {
    let mut input = config(Version::V1_0_0, Path::new("/nowhere/cni.sock"));
    input["failurePolicy"] = "Ignore".into();
    let ended = run(&variables("ADD"), &input);
    assert!(ended.success, "{ended:?}");
    assert_eq!(ended.json(), previous(Version::V1_0_0));
    assert!(ended.stderr.contains("Pod shop/web starts UNGUARDED"), "{ended:?}");
}

#[test]
fn what_the_daemon_refuses_fails_also_under_ignore() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cni.sock");
    let message = "limits.rules is 5, and 6 entries are needed";
    let refused = Response::Refused {
        code: Code::TryAgainLater,
        message: message.into(),
    };
    let _asked = daemon(&socket, refused);
    let mut input = config(Version::V1_0_0, &socket);
    input["failurePolicy"] = "Ignore".into();
    let ended = run(&variables("ADD"), &input);
    assert_eq!((ended.success, &ended.json()["code"]), (false, &11.into()));
    assert_eq!(ended.json()["msg"], message);
}
