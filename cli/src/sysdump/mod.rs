// SPDX-License-Identifier: Apache-2.0
//! `wardline sysdump`.
//!
//! ```text
//! lists of the API server --reduce, by what is allowed-------\
//! messages, metrics, exec in each pod of Wardline ------------> Archive: files, errors.txt, manifest.json
//! what cannot be had, and why --------------------------------/
//! ```

mod allowed;
mod archive;
mod args;
mod node;
mod objects;
mod reduce;

use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams};

use self::archive::{About, Archive, Fit};
pub(crate) use self::args::EXAMPLES;
pub use self::args::SysdumpArgs;
use crate::args::ClusterArgs;
use crate::cluster::{self, Cluster};
use crate::daemons::{DAEMONS, OPERATORS, within};
use crate::{Outcome, output, status};

/// How long a short question may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pods that are asked at a time.
const AT_A_TIME: usize = 8;

pub(crate) fn run(args: &SysdumpArgs, cluster: &ClusterArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let context = cluster::context_name(cluster);
    let now = Timestamp::now();
    let name = name(&context, now);
    let cluster = Cluster::connect(cluster)?;
    let dump = Dump {
        client: cluster.client(),
        args,
        context,
        now,
    };
    if args.output.as_deref() == Some(Path::new("-")) {
        anyhow::ensure!(
            !io::stdout().is_terminal(),
            "an archive is nothing for a terminal: name a file, or use a pipe"
        );
        let errors = cluster.block_on(dump.write(&name, &mut *out))?;
        return Ok(Outcome::well_if(errors == 0));
    }
    let path = args
        .output
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    anyhow::ensure!(
        !path.exists(),
        "failed to write {}: it is there already",
        path.display()
    );
    let failed = || format!("failed to write {}", path.display());
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // Nobody else may read it, and nobody takes half of one for the whole.
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    let errors = cluster.block_on(async {
        tokio::select! {
            errors = dump.write(&name, &mut file) => errors,
            // Half an archive goes away with its file.
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.context("failed to wait for Ctrl-C")?;
                anyhow::bail!("interrupted: nothing was written")
            }
        }
    })?;
    file.persist_noclobber(&path).with_context(failed)?;
    let size = path.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let missing = match errors {
        0 => String::new(),
        errors => format!(
            "; errors.txt in it tells of {}",
            output::count(errors, "part that is missing", "parts that are missing")
        ),
    };
    writeln!(out, "{} ({} KiB){missing}", path.display(), size.div_ceil(1024)).context("failed to write the output")?;
    Ok(Outcome::well_if(errors == 0))
}

/// Of the archive, and the folder in it.
fn name(context: &str, now: Timestamp) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let context: String = context.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    format!("wardline-sysdump-{context}-{}", now.strftime("%Y%m%dT%H%M%SZ"))
}

struct Dump<'a> {
    client: Client,
    args: &'a SysdumpArgs,
    context: String,
    now: Timestamp,
}

impl Dump<'_> {
    /// Returns how many parts could not be had.
    ///
    /// # Errors
    /// When the API server does not answer at all, or the archive cannot be written.
    async fn write(&self, name: &str, out: impl Write) -> anyhow::Result<usize> {
        let namespace = &self.args.system.wardline_namespace;
        step("asking the API server");
        let version = within(PATIENCE, self.client.apiserver_version()).await;
        let version = version.context("failed to reach the API server")?;
        let now = u64::try_from(self.now.as_second()).unwrap_or_default();
        let mut archive = Archive::new(out, name, self.args.size_limit.0, now);

        match status::text(&self.client, namespace).await {
            Ok(text) => archive.add("status.txt", "wardline status -o wide", &text, Fit::Whole)?,
            Err(error) => archive.error("status.txt", format!("{error:#}")),
        }
        for listed in objects::all(namespace) {
            step(listed.what);
            match listed.read(&self.client).await {
                Ok(text) => archive.add(listed.file, listed.what, &text, Fit::Whole)?,
                Err(error) => archive.error(listed.file, format!("{error:#}")),
            }
        }
        let (file, what) = (
            "wardline/configurations.json",
            "configurations of the daemons, by revision",
        );
        step(what);
        match objects::configurations(&self.client, namespace).await {
            Ok(text) => archive.add(file, what, &text, Fit::Whole)?,
            Err(error) => archive.error(file, format!("{error:#}")),
        }
        self.pods(&mut archive).await?;

        let errors = archive.errors();
        let about = About {
            wardline_cli: env!("CARGO_PKG_VERSION"),
            kubernetes: Some(version.git_version),
            context: self.context.clone(),
            namespace: namespace.clone(),
            created: self.now.to_string(),
            messages_since_seconds: self.args.since.0.as_secs(),
        };
        archive.finish(&about)?;
        Ok(errors)
    }

    async fn pods<W: Write>(&self, archive: &mut Archive<W>) -> anyhow::Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &self.args.system.wardline_namespace);
        let mut pods = Vec::new();
        for (who, labels) in [("operators", OPERATORS), ("daemons", DAEMONS)] {
            let parameters = ListParams::default().labels(labels);
            match within(PATIENCE, cluster::pages(&api, &parameters)).await {
                Ok(found) => pods.extend(found),
                Err(error) => archive.error("nodes", format!("failed to find the {who}: {error:#}")),
            }
        }
        let asked = pods.iter().map(|pod| node::of_pod(&self.client, pod, self.args));
        let mut told = futures::stream::iter(asked).buffered(AT_A_TIME);
        let mut names = pods.iter().filter_map(|pod| pod.metadata.name.as_deref());
        while let Some(parts) = told.next().await {
            step(&format!("Pod {}", names.next().unwrap_or_default()));
            for part in parts {
                match part.content {
                    Ok(content) => archive.add(&part.path, &part.what, &content, part.fit)?,
                    Err(error) => archive.error(&part.path, format!("{error:#}")),
                }
            }
        }
        Ok(())
    }
}

fn step(what: &str) {
    eprintln!("wardline: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_named_after_cluster_and_time() {
        let now = "2026-06-13T21:29:31Z".parse().unwrap();
        assert_eq!(
            name("arn:aws:eks/prod", now),
            "wardline-sysdump-arn-aws-eks-prod-20260613T212931Z"
        );
    }
}
