// SPDX-License-Identifier: Apache-2.0
//! The cluster's certificate authority, certificates and kubeconfigs, made with openssl.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::command::run;
use crate::layout::{API_SERVER, API_SERVICE, CONTROL_PLANE, Layout, NODES};

/// Those who have a kubeconfig in `pki/`: file name, and the certificate's subject, which is the Kubernetes identity.
const CLIENTS: [(&str, &str); 5] = [
    ("admin", "/O=system:masters/CN=admin"),
    ("controller-manager", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
    ("kube-proxy", "/CN=system:kube-proxy"),
    ("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
];

/// Makes everything anew, in `target/lab/pki` and `target/lab/kubeconfig`.
pub fn create(layout: &Layout) -> Result<()> {
    let folder = layout.lab().join("pki");
    fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    let path = |name: &str| layout.pki(name).display().to_string();
    run("openssl", ["genrsa", "-out", &path("service-account.key"), "2048"])?;
    run(
        "openssl",
        [
            "rsa",
            "-in",
            &path("service-account.key"),
            "-pubout",
            "-out",
            &path("service-account.pub"),
        ],
    )?;
    authority(layout)?;
    let server_names =
        format!("IP:{CONTROL_PLANE},IP:127.0.0.1,IP:{API_SERVICE},DNS:kubernetes,DNS:kubernetes.default");
    certificate(layout, "apiserver", "/CN=kube-apiserver", Some(&server_names))?;
    for (name, subject) in CLIENTS {
        certificate(layout, name, subject, None)?;
        kubeconfig(layout, name)?;
    }
    for node in &NODES {
        let names = format!("IP:{},IP:{},DNS:{}", node.address, node.address6, node.name);
        certificate(
            layout,
            node.name,
            &format!("/O=system:nodes/CN=system:node:{}", node.name),
            Some(&names),
        )?;
        kubeconfig(layout, node.name)?;
    }
    fs::copy(layout.pki("admin.kubeconfig"), layout.kubeconfig()).context("failed to write target/lab/kubeconfig")?;
    Ok(())
}

fn authority(layout: &Layout) -> Result<()> {
    let (key, certificate) = (layout.pki("ca.key"), layout.pki("ca.crt"));
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"];
    let identity = [
        "-x509",
        "-subj",
        "/CN=wardline-lab",
        "-days",
        "365",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ];
    let files = ["-keyout", &key, "-out", &certificate];
    run("openssl", ["req"].iter().chain(&new_key).chain(&identity).chain(&files))?;
    Ok(())
}

/// A key and a certificate for client and server use, signed by the lab's authority.
fn certificate(layout: &Layout, name: &str, subject: &str, alternative_names: Option<&str>) -> Result<()> {
    let path = |file: String| layout.pki(&file).display().to_string();
    let mut args: Vec<String> = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-noenc",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("-subj", subject.to_owned());
    option("-days", "365".to_owned());
    option("-CA", path("ca.crt".to_owned()));
    option("-CAkey", path("ca.key".to_owned()));
    option("-addext", "basicConstraints=critical,CA:FALSE".to_owned());
    option("-addext", "extendedKeyUsage=serverAuth,clientAuth".to_owned());
    if let Some(names) = alternative_names {
        option("-addext", format!("subjectAltName={names}"));
    }
    option("-keyout", path(format!("{name}.key")));
    option("-out", path(format!("{name}.crt")));
    run("openssl", args)?;
    Ok(())
}

/// A kubeconfig with everything in it, so that it can be copied elsewhere. It is JSON, and so also YAML.
fn kubeconfig(layout: &Layout, name: &str) -> Result<()> {
    let data = |file: String| -> Result<String> {
        let path = layout.pki(&file);
        Ok(STANDARD.encode(fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {
            "server": API_SERVER, "certificate-authority-data": data("ca.crt".to_owned())?}}],
        "users": [{"name": name, "user": {
            "client-certificate-data": data(format!("{name}.crt"))?,
            "client-key-data": data(format!("{name}.key"))?}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": name}}],
        "current-context": "lab",
    });
    let path = layout.pki(&format!("{name}.kubeconfig"));
    fs::write(&path, format!("{config:#}\n")).with_context(|| format!("failed to write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("failed to restrict {}", path.display()))
}
