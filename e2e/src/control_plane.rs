// SPDX-License-Identifier: Apache-2.0
//! etcd, the API server, the controller manager and the scheduler, as processes of this machine.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::header::{HeaderValue, USER_AGENT};
use kube::Client;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};

use crate::audit;
use crate::layout::{API_SERVER, CONTROL_PLANE, ETCD, ETCD_PEER, Layout, POD_CIDR, POD_CIDR6, SERVICE_CIDRS};
use crate::process::{self, Recorded};
use crate::progress::{step, wait_until};

/// Starts all four and waits until the API server is ready.
pub async fn start(layout: &Layout) -> Result<Client> {
    step("starting etcd and the control plane");
    let etcd = process::start(layout, "etcd", &etcd(layout))?;
    wait_for(&etcd, "etcd", Duration::from_secs(30), async || {
        let address = ETCD.trim_start_matches("http://");
        tokio::net::TcpStream::connect(address)
            .await
            .with_context(|| format!("failed to connect to {address}"))?;
        Ok(Some(()))
    })
    .await?;
    let policy = layout.audit_policy();
    fs::write(&policy, audit::POLICY).with_context(|| format!("failed to write {}", policy.display()))?;
    let server = process::start(layout, "kube-apiserver", &api_server(layout))?;
    let client = admin_client(layout).await?;
    wait_for(&server, "the API server", Duration::from_secs(90), async || {
        let request = http::Request::get("/readyz")
            .body(Vec::new())
            .context("failed to build a request")?;
        Ok((client.request_text(request).await? == "ok").then_some(()))
    })
    .await?;
    etcd.check()?;
    process::start(layout, "kube-controller-manager", &controller_manager(layout))?;
    process::start(layout, "kube-scheduler", &scheduler(layout))?;
    Ok(client)
}

/// A client with the administrator's rights.
pub async fn admin_client(layout: &Layout) -> Result<Client> {
    Client::try_from(admin_config(layout).await?).context("failed to build a client for the lab")
}

/// A client with the rights of a token, which calls itself `agent`.
pub async fn token_client(layout: &Layout, token: &str, agent: &'static str) -> Result<Client> {
    let mut config = admin_config(layout).await?;
    config.auth_info = AuthInfo {
        token: Some(token.to_owned().into()),
        ..AuthInfo::default()
    };
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    Client::try_from(config).context("failed to build a client with a token")
}

/// What a client with the administrator's rights is made of.
pub async fn admin_config(layout: &Layout) -> Result<kube::Config> {
    let path = layout.kubeconfig();
    let config = Kubeconfig::read_from(&path)
        .with_context(|| format!("failed to read {}: is the lab up? `make lab` starts it", path.display()))?;
    kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .context("failed to use the lab's kubeconfig")
}

/// Waits for a component, and fails at once with its log if it ends meanwhile.
pub async fn wait_for(
    process: &Recorded,
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<()>>,
) -> Result<()> {
    // The outer result ends the wait, the inner one is what the wait found.
    wait_until(what, timeout, async || match process.check() {
        Err(ended) => Ok(Some(Err(ended))),
        Ok(()) => Ok(condition().await?.map(Ok)),
    })
    .await
    .with_context(|| {
        format!(
            "{} says at its end:\n{}",
            process.name,
            crate::command::tail(&process.log, 15)
        )
    })?
}

fn etcd(layout: &Layout) -> Command {
    let mut command = Command::new(layout.bin("etcd"));
    command.arg(format!("--data-dir={}", layout.etcd().display()));
    command
        .arg(format!("--listen-client-urls={ETCD}"))
        .arg(format!("--advertise-client-urls={ETCD}"));
    command
        .arg(format!("--listen-peer-urls={ETCD_PEER}"))
        .arg(format!("--initial-advertise-peer-urls={ETCD_PEER}"));
    command.arg(format!("--initial-cluster=default={ETCD_PEER}"));
    // The cluster lives as long as its processes, so nothing needs to survive a power cut.
    command.arg("--unsafe-no-fsync");
    command
}

fn api_server(layout: &Layout) -> Command {
    let pki = |name: &str| layout.pki(name).display().to_string();
    let mut command = Command::new(layout.bin("kube-apiserver"));
    let mut flag = |name: &str, value: String| {
        command.arg(format!("--{name}={value}"));
    };
    flag("etcd-servers", ETCD.to_owned());
    flag("bind-address", CONTROL_PLANE.to_owned());
    flag("advertise-address", CONTROL_PLANE.to_owned());
    flag(
        "secure-port",
        API_SERVER.rsplit(':').next().unwrap_or("6443").to_owned(),
    );
    flag("tls-cert-file", pki("apiserver.crt"));
    flag("tls-private-key-file", pki("apiserver.key"));
    flag("client-ca-file", pki("ca.crt"));
    flag("service-account-issuer", "https://kubernetes.default.svc".to_owned());
    flag("service-account-key-file", pki("service-account.pub"));
    flag("service-account-signing-key-file", pki("service-account.key"));
    flag("service-cluster-ip-range", SERVICE_CIDRS.to_owned());
    flag("authorization-mode", "Node,RBAC".to_owned());
    flag("allow-privileged", "true".to_owned());
    flag("kubelet-client-certificate", pki("kubelet-client.crt"));
    flag("kubelet-client-key", pki("kubelet-client.key"));
    flag("kubelet-certificate-authority", pki("ca.crt"));
    flag("kubelet-preferred-address-types", "InternalIP".to_owned());
    flag("audit-policy-file", layout.audit_policy().display().to_string());
    flag("audit-log-path", layout.audit_log().display().to_string());
    // No request waits for the file, which is never rotated: all of a run is compared at its end.
    flag("audit-log-mode", "batch".to_owned());
    flag("audit-log-maxsize", "100000".to_owned());
    command
}

fn controller_manager(layout: &Layout) -> Command {
    let pki = |name: &str| layout.pki(name).display().to_string();
    let mut command = Command::new(layout.bin("kube-controller-manager"));
    let mut flag = |name: &str, value: String| {
        command.arg(format!("--{name}={value}"));
    };
    flag("kubeconfig", pki("controller-manager.kubeconfig"));
    flag("root-ca-file", pki("ca.crt"));
    flag("service-account-private-key-file", pki("service-account.key"));
    flag("use-service-account-credentials", "true".to_owned());
    // The nodes are created with their pod ranges, so that CNI configuration and Node objects agree.
    flag("allocate-node-cidrs", "false".to_owned());
    // Tests wait for a node that is down.
    flag("node-monitor-grace-period", "20s".to_owned());
    flag("cluster-cidr", format!("{POD_CIDR},{POD_CIDR6}"));
    flag("service-cluster-ip-range", SERVICE_CIDRS.to_owned());
    flag("cluster-signing-cert-file", pki("ca.crt"));
    flag("cluster-signing-key-file", pki("ca.key"));
    flag("leader-elect", "false".to_owned());
    // It serves metrics only, and its usual port may be another cluster's.
    flag("secure-port", "0".to_owned());
    command
}

fn scheduler(layout: &Layout) -> Command {
    let mut command = Command::new(layout.bin("kube-scheduler"));
    command.arg(format!("--kubeconfig={}", layout.pki("scheduler.kubeconfig").display()));
    command.args(["--leader-elect=false", "--secure-port=0"]);
    command
}
