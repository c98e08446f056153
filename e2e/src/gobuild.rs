// SPDX-License-Identifier: Apache-2.0
//! Kubernetes, etcd, Helm and what checks its charts, and the OpenTelemetry Collector, built from the Go modules that this
//! crate pins, into `target/lab/bin`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::command;
use crate::layout::Layout;
use crate::progress::step;

/// A Go module that says what is built.
struct Module {
    /// Its folder in e2e/.
    folder: &'static str,
    /// What building makes; asked for to see whether the build was complete.
    binaries: &'static [&'static str],
    /// What is built in it.
    kind: Kind,
    /// How long the first build takes on two cores.
    cold: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What its `tool` lines name.
    Tools,
    /// Kubernetes: the tools, and the upstream network suite compiled to `e2e.test`.
    Kubernetes,
    /// Its own program.
    Program,
}

/// What the lab is made of.
const CLUSTER: Module = Module {
    folder: "cluster",
    binaries: &[
        "agnhost",
        "e2e.test",
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubectl",
        "kubelet",
    ],
    kind: Kind::Kubernetes,
    cold: "about 9 minutes",
};

/// What charts and manifests are rendered and checked with, and the Lua that Argo CD runs health checks by.
const HELM: Module = Module {
    folder: "helm",
    binaries: &["glua", "helm", "kubeconform", "kustomize"],
    kind: Kind::Tools,
    cold: "about 2 minutes",
};

/// The OpenTelemetry Collector, which the lab does without.
const COLLECTOR: Module = Module {
    folder: "collector",
    binaries: &["otelcol"],
    kind: Kind::Program,
    cold: "about 4 minutes",
};

/// Builds the collector if need be, and returns where it is.
pub fn collector(layout: &Layout) -> Result<PathBuf> {
    build_module(layout, &COLLECTOR)?;
    Ok(layout.bin("otelcol"))
}

/// Builds what is not there or no longer fits its module files.
pub fn build(layout: &Layout) -> Result<()> {
    build_module(layout, &CLUSTER)?;
    helm(layout)
}

/// Builds Helm, and what else charts are checked with, if need be.
pub fn helm(layout: &Layout) -> Result<()> {
    build_module(layout, &HELM)
}

/// The folders of modules that hold definitions and no program of ours, as e2e/schemas pins them: path and folder.
pub fn schema_modules(layout: &Layout) -> Result<Vec<(String, PathBuf)>> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Downloaded {
        path: String,
        dir: PathBuf,
    }
    let source = layout.workspace().join("e2e/schemas");
    let listed = command::output_of(go(&source).args(["mod", "download", "-json"]))?;
    let modules = serde_json::Deserializer::from_str(&listed).into_iter::<Downloaded>();
    modules
        .map(|module| module.map(|module| (module.path, module.dir)))
        .collect::<Result<_, _>>()
        .context("failed to read what `go mod download` answered")
}

fn build_module(layout: &Layout, module: &Module) -> Result<()> {
    let source = layout.workspace().join("e2e").join(module.folder);
    let wanted = fingerprint(&source)?;
    let stamp = layout.bin(&format!(".{}.stamp", module.folder));
    let complete = module.binaries.iter().all(|binary| layout.bin(binary).is_file());
    if complete && fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
        return Ok(());
    }
    step(&format!(
        "building {} ({} the first time)",
        module.binaries.join(", "),
        module.cold
    ));
    let out = layout.lab().join("bin");
    fs::create_dir_all(&out).with_context(|| format!("failed to create {}", out.display()))?;
    let flags = linker_flags(&source, module)?;
    let mut build = go(&source);
    build.args(["build", "-trimpath", "-ldflags", &flags, "-o"]);
    match module.kind {
        Kind::Program => build.arg(out.join(module.binaries[0])),
        Kind::Tools | Kind::Kubernetes => build.arg(format!("{}/", out.display())).arg("tool"),
    };
    command::stream(&mut build)?;
    if module.kind == Kind::Kubernetes {
        let mut suite = go(&source);
        suite
            .args(["test", "-c", "-trimpath", "-ldflags", &flags, "-o"])
            .arg(layout.bin("e2e.test"))
            .arg("./netpol");
        command::stream(&mut suite)?;
        // Go names a tool by the last element of its import path that is no version: etcd's is `server`.
        fs::rename(layout.bin("server"), layout.bin("etcd")).context("failed to rename server to etcd")?;
    }
    fs::write(&stamp, wanted).with_context(|| format!("failed to write {}", stamp.display()))
}

fn go(source: &Path) -> Command {
    let mut command = Command::new("go");
    // Static, as agnhost goes into an image that holds nothing else.
    command
        .current_dir(source)
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-buildvcs=false");
    command
}

/// Kubernetes reads its version from linker flags; without them kubelet and API server call themselves v0.0.0.
fn linker_flags(source: &Path, module: &Module) -> Result<String> {
    let mut flags = "-s -w".to_owned();
    if module.kind == Kind::Kubernetes {
        let version = command::output_of(go(source).args(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"]))?;
        let version = version.trim();
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
        let package = "k8s.io/component-base/version";
        flags = format!(
            "{flags} -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        );
    }
    Ok(flags)
}

/// A digest of everything that the module's binaries are made from, the toolchain included.
fn fingerprint(source: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    digest.update(command::output_of(go(source).arg("version"))?);
    for file in ["go.mod", "go.sum", "main.go", "netpol/netpol_test.go"] {
        let path = source.join(file);
        if path.exists() {
            digest.update(file);
            digest.update(fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?);
        }
    }
    Ok(format!("{:x}", digest.finalize()))
}
