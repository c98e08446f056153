// SPDX-License-Identifier: Apache-2.0
//! `wardline status`.
//!
//! ```text
//! lists of the three kinds --report--> Report {rows, problems} --render--> table | JSON
//! ```

mod render;
mod report;
#[cfg(test)]
mod tests;

use wardline_crds::{Dataplane, DataplaneNode, NetworkLogging};

use self::report::{Listed, report};
use crate::args::{ClusterArgs, Format};
use crate::cluster::Cluster;
use crate::{Outcome, output};

pub(crate) fn run(args: &ClusterArgs, format: Format, out: &mut Vec<u8>) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(args)?;
    let report = report(Listed {
        dataplanes: cluster.list::<Dataplane>()?,
        loggings: cluster.list::<NetworkLogging>()?,
        nodes: cluster.list::<DataplaneNode>()?,
    });
    match format {
        Format::Table | Format::Wide | Format::Compact => render::table(out, &report)?,
        Format::Json => output::json(out, &report)?,
    }
    Ok(Outcome::well_if(report.well))
}
