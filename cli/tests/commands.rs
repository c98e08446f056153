// SPDX-License-Identifier: Apache-2.0
//! `policy check` and `completion` as they are typed, and the binary's exit codes.

mod shell;

use std::process::{Command, Stdio};

use shell::wardline;

#[test]
fn files_are_checked() {
    let clean = "1 NetworkPolicy checked, 0 refused, 0 other objects ignored\n";
    let good = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}";
    for (files, input, ends, code) in [
        ("-f -", good, clean, 0),
        (
            "-f tests/data/shop.yaml",
            "",
            "3 NetworkPolicies checked, 0 refused, 12 other objects ignored\n",
            0,
        ),
        (
            "-f tests/data/bad.yaml -",
            good,
            "-: NetworkPolicy default/p: ok\n3 NetworkPolicies checked, 2 refused, 0 other objects ignored\n",
            1,
        ),
        (
            "-f tests/data/bad.yaml -f tests/data/none.yaml",
            "",
            "No such file or directory (os error 2)",
            2,
        ),
        (
            "-f -",
            "",
            "0 NetworkPolicies checked, 0 refused, 0 other objects ignored\n",
            0,
        ),
    ] {
        let (text, got) = wardline(&format!("policy check {files}"), input);
        assert!(text.ends_with(ends), "{files}\n{text}");
        assert_eq!(got, code, "{files}\n{text}");
    }
}

#[test]
fn shells_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let (text, code) = wardline(&format!("completion {shell}"), "");
        assert!(text.contains("eval") && text.contains("kubeconfig"), "{shell}");
        assert_eq!(code, 0, "{shell}");
    }
}

#[test]
fn exit_codes_of_the_binary() {
    for (arguments, code, error) in [
        ("policy check -f tests/data/shop.yaml", 0, ""),
        ("policy check -f tests/data/bad.yaml", 1, ""),
        (
            "policy check -f tests/data/none.yaml",
            2,
            "wardline: failed to read tests/data/none.yaml: No such file or directory (os error 2)\n",
        ),
        (
            "status --kubeconfig tests/data/none.yaml",
            2,
            "wardline: failed to read the kubeconfig: failed to read kubeconfig from",
        ),
        (
            "policy eval --from web --to shop/db --port 80",
            2,
            "error: invalid value 'web' for '--from",
        ),
        ("--help", 0, ""),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_wardline"))
            .args(arguments.split(' '))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {told}");
        assert!(
            told.starts_with(error) && told.is_empty() == error.is_empty(),
            "{arguments}: {told}"
        );
    }
}
