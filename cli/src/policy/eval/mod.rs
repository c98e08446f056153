// SPDX-License-Identifier: Apache-2.0
//! `wardline policy eval`: what the policies say about one connection, at both of its ends.
//!
//! ```text
//! API server | files --Inventory::add--> Inventory --judge--> Answer {paths {edges}, notes} --render--> text | JSON
//!                                                    \ wardline_policy::evaluate, once an edge and address family
//! API server -----------------------enforcement::notes--^ is it in force?
//! ```

mod answer;
mod enforcement;
mod inventory;
mod judge;
mod reasons;
mod render;
#[cfg(test)]
mod tests;

use std::io::BufRead;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use self::answer::Answer;
use self::inventory::Inventory;
use self::judge::Question;
use crate::args::{ClusterArgs, EvalArgs, Format};
use crate::cluster::Cluster;
use crate::manifests::{self, Kind};
use crate::{Outcome, output};

pub(crate) fn run(
    args: &EvalArgs,
    cluster: &ClusterArgs,
    input: &mut dyn BufRead,
    out: &mut Vec<u8>,
) -> anyhow::Result<Outcome> {
    let question = Question::from(args);
    let answer = if args.files.is_empty() {
        of_cluster(&question, &Cluster::connect(cluster)?)?
    } else {
        of_files(&question, manifests::read(&args.files, &args.file_args, input)?)?
    };
    match args.format.output {
        Format::Table | Format::Wide | Format::Compact => render::text(out, &answer)?,
        Format::Json => output::json(out, &answer)?,
    }
    Ok(Outcome::well_if(answer.allowed))
}

fn of_cluster(question: &Question, cluster: &Cluster) -> anyhow::Result<Answer> {
    let mut inventory = Inventory::default();
    for (kind, objects) in [
        (Kind::Namespace, cluster.list_known::<Namespace>()?),
        (Kind::Node, cluster.list_known::<Node>()?),
        (Kind::Pod, cluster.list_known::<Pod>()?),
        (Kind::NetworkPolicy, cluster.list_known::<NetworkPolicy>()?),
    ] {
        for object in objects {
            inventory.add_stored(kind, object)?;
        }
    }
    let mut answer = judge::answer(&inventory, question)?;
    answer.notes.extend(enforcement::notes(cluster, &answer));
    Ok(answer)
}

fn of_files(question: &Question, parsed: Vec<manifests::Parsed>) -> anyhow::Result<Answer> {
    let mut inventory = Inventory::default();
    for one in parsed {
        let manifest = one.map_err(|malformed| anyhow::anyhow!("{malformed}"))?;
        inventory.add_manifest(manifest)?;
    }
    inventory.assume_namespaces();
    judge::answer(&inventory, question)
}
