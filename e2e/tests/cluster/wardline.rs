// SPDX-License-Identifier: Apache-2.0
//! `wardline`, as a person types it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use serde_json::json;
use wardline_cli::{Cli, Outcome};
use wardline_e2e::cluster::{Lab, SYSTEM_NAMESPACE};
use wardline_e2e::namespace::TestNamespace;

/// A command line for the lab; without the program's name.
pub(crate) fn command(lab: &Lab, arguments: &str) -> Result<Cli> {
    let kubeconfig = lab.layout().kubeconfig();
    let arguments = format!("wardline {arguments} --kubeconfig {}", kubeconfig.display());
    Cli::try_parse_from(arguments.split_whitespace()).context("failed to parse the command line")
}

/// Runs it to its end, and returns what it shows.
pub(crate) async fn run(lab: &Lab, arguments: &str) -> Result<(String, Outcome)> {
    let cli = command(lab, arguments)?;
    let run = move || {
        let mut out = Vec::new();
        let outcome = wardline_cli::run(&cli, &mut io::empty(), &mut out)?;
        anyhow::Ok((String::from_utf8_lossy(&out).into_owned(), outcome))
    };
    tokio::task::spawn_blocking(run).await.context("it panicked")?
}

/// What somebody sees who watches, until they have seen enough.
#[derive(Clone, Default)]
pub(crate) struct Screen {
    pub(crate) shown: Arc<Mutex<Vec<u8>>>,
    pub(crate) is_closed: Arc<AtomicBool>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A ServiceAccount of the test's namespace that has the rights of a file of docs/rbac, and no others: what `--as` takes.
pub(crate) async fn account_with(namespace: &TestNamespace, role: &str) -> Result<String> {
    let lab = &namespace.lab;
    let account = json!({"metadata": {"name": role}});
    let account: ServiceAccount = serde_json::from_value(account).context("failed to build a ServiceAccount")?;
    let accounts = Api::<ServiceAccount>::namespaced(lab.client().clone(), &namespace.name);
    let created = accounts.create(&PostParams::default(), &account).await;
    created.context("failed to create a ServiceAccount")?;
    let file = lab.layout().workspace().join(format!("docs/rbac/{role}.yaml"));
    let roles = std::fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
    lab.apply(SYSTEM_NAMESPACE, &roles).await?;
    let name = &namespace.name;
    let bindings = ["ClusterRole", "Role"].map(|kind| {
        format!(
            "
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {kind}Binding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: {kind}, name: wardline-{role}}}
subjects: [{{kind: ServiceAccount, name: {role}, namespace: {name}}}]
"
        )
    });
    lab.apply(SYSTEM_NAMESPACE, &bindings.concat()).await?;
    Ok(format!("system:serviceaccount:{name}:{role}"))
}

/// Takes the rights away again.
pub(crate) async fn without_account(namespace: &TestNamespace, role: &str) -> Result<()> {
    for (kind, name) in [
        ("ClusterRoleBinding", namespace.name.clone()),
        ("RoleBinding", namespace.name.clone()),
        ("ClusterRole", format!("wardline-{role}")),
        ("Role", format!("wardline-{role}")),
    ] {
        let api_version = "rbac.authorization.k8s.io/v1";
        namespace.lab.delete(api_version, kind, SYSTEM_NAMESPACE, &name).await?;
    }
    Ok(())
}

/// Fails where the text does not say so.
pub(crate) fn says(text: &str, words: &str) -> Result<()> {
    ensure!(text.contains(words), "it does not say {words:?}:\n{text}");
    Ok(())
}
