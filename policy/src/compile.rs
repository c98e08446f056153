// SPDX-License-Identifier: Apache-2.0
//! From objects to one node's tables.
//!
//! ```text
//! endpoints: the node's pods, the policies that isolate each --> table keys
//! selectors: the peers of those policies, each once    --+--> pods:  which pods each selects
//!                                                         `--> cidrs: which blocks hold where
//! classes:   what an address matches, each set once  <-- pods, cidrs
//! shares:    whether all of it fits, and whose policies give way if not
//! rules:     for each table, for each class: which rules allow which ports (ports)
//! ```
//!
//! Everything inside goes by index; names and labels are compared while the sets are made and not again. What is
//! handed out is built in the order of its keys, so equal objects give equal tables.

mod cidrs;
mod classes;
mod endpoints;
mod pods;
mod ports;
mod rules;
mod selectors;
mod shares;

use std::sync::Arc;

use self::cidrs::Cidrs;
use self::classes::Classes;
use self::endpoints::Endpoints;
use self::pods::PodIndex;
use self::selectors::Selectors;
pub use self::shares::{Over, Room, SHARES};
use crate::model::Objects;
use crate::tables::{EndpointTables, Table, TableKey, Tables};

/// Compiles the policy of the pods that run on `node`.
pub fn compile(objects: &Objects, node: &str) -> Tables {
    let pods = PodIndex::new(objects);
    let endpoints = Endpoints::of(objects, &pods, node);
    let selectors = Selectors::of(&endpoints);
    let classes = Classes::new(&pods, &selectors, &Cidrs::new(&selectors));
    write(&endpoints, &selectors, &classes)
}

/// As [`compile`], for tables that have so much room.
///
/// # Errors
/// They are too small for what is asked; nothing was written out. Names the namespace whose policies are to give way.
pub fn compile_within(objects: &Objects, node: &str, room: Room) -> Result<Tables, Over> {
    let pods = PodIndex::new(objects);
    let endpoints = Endpoints::of(objects, &pods, node);
    let selectors = Selectors::of(&endpoints);
    shares::check_blocks(&endpoints, &selectors, room.peers)?;
    shares::check_matches(&pods, &endpoints, &selectors, room.peers)?;
    let classes = Classes::new(&pods, &selectors, &Cidrs::new(&selectors));
    shares::check_peers(&endpoints, &classes, room)?;
    shares::check_rules(&pods, &endpoints, &selectors, &classes, room.rules)?;
    Ok(write(&endpoints, &selectors, &classes))
}

fn write(endpoints: &Endpoints<'_>, selectors: &Selectors<'_>, classes: &Classes) -> Tables {
    let keys: Vec<TableKey> = endpoints.tables.iter().map(endpoints::Isolation::key).collect();
    let tables: Vec<Table> = endpoints
        .tables
        .iter()
        .map(|isolation| rules::expand(isolation, selectors, classes))
        .collect();
    let key_of = |table: Option<usize>| table.and_then(|index| keys.get(index).cloned());
    let by_endpoint = endpoints
        .pods
        .iter()
        .map(|(name, pod)| {
            let tables = EndpointTables {
                ingress: key_of(pod.ingress),
                egress: key_of(pod.egress),
            };
            ((*name).clone(), tables)
        })
        .collect();
    Tables {
        peers: classes
            .peers
            .iter()
            .map(|&(address, class)| (address, Arc::clone(&classes.all[class])))
            .collect(),
        cidrs: classes
            .cidrs
            .iter()
            .map(|&(net, class)| (net, Arc::clone(&classes.all[class])))
            .collect(),
        tables: keys.iter().cloned().zip(tables).collect(),
        endpoints: by_endpoint,
    }
}

#[cfg(test)]
mod tests;
