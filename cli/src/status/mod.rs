// SPDX-License-Identifier: Apache-2.0
//! `wardline status`.
//!
//! ```text
//! API server --look--> Seen {objects, pods, nodes, lease} --report--> Report {rows, problems} --render--> tables | JSON
//!     \--proxy--> each daemon's metrics --figures--^            once | live: watched or waited for
//! ```

mod args;
mod figures;
mod live;
mod look;
mod nodes;
mod operator;
mod pods;
mod render;
mod report;
#[cfg(test)]
mod tests;

use k8s_openapi::jiff::Timestamp;
use kube::Client;

pub use self::args::StatusArgs;
pub(crate) use self::args::{Awaited, EXAMPLES};
pub(crate) use self::live::watch;
use self::render::Look;
use self::report::{Losses, Report, report};
use crate::args::{ClusterArgs, Format};
use crate::cluster::Cluster;
use crate::{Outcome, output};

/// Shows it once, after it has come to be as waited for where that is asked.
pub(crate) fn run(args: &StatusArgs, cluster: &ClusterArgs, out: &mut Vec<u8>) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(cluster)?;
    let client = cluster.client();
    let (found, outcome) = if let Some(awaited) = args.wait {
        cluster.block_on(live::wait(&client, args, awaited))?
    } else {
        let found = cluster.block_on(find(&client, args, None))?;
        let outcome = Outcome::well_if(found.report.well);
        (found, outcome)
    };
    match args.format.output {
        Format::Json => output::json(out, &found.report)?,
        Format::Table | Format::Wide | Format::Compact => found.write(args, out)?,
    }
    Ok(outcome)
}

/// All that is known, as a person reads it.
pub(crate) async fn text(client: &Client, namespace: &str) -> anyhow::Result<Vec<u8>> {
    let seen = Box::pin(look::look(client, namespace, true)).await?;
    let look = Look {
        is_wide: true,
        has_color: false,
        now: seen.now,
    };
    let mut text = Vec::new();
    render::tables(&mut text, &report(seen, None), look)?;
    Ok(text)
}

/// A report, and when it was made.
struct Found {
    report: Report,
    now: Timestamp,
}

impl Found {
    fn write(&self, args: &StatusArgs, out: &mut Vec<u8>) -> anyhow::Result<()> {
        let look = Look {
            is_wide: args.format.output == Format::Wide,
            has_color: args.color.is_on(),
            now: self.now,
        };
        render::tables(out, &self.report, look)
    }
}

async fn find(client: &Client, args: &StatusArgs, before: Option<&Losses>) -> anyhow::Result<Found> {
    let namespace = &args.system.wardline_namespace;
    let seen = Box::pin(look::look(client, namespace, !args.skip_daemons)).await?;
    let now = seen.now;
    Ok(Found {
        report: report(seen, before),
        now,
    })
}
