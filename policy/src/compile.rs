// SPDX-License-Identifier: Apache-2.0
//! From objects to one node's tables.
//!
//! ```text
//! endpoints: the node's pods, the policies that isolate each --> table keys
//! selectors: the peers of those policies, each once    --+--> pods:  which pods each selects
//!                                                         `--> cidrs: which blocks hold where
//! classes:   what an address matches, each set once  <-- pods, cidrs
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

use std::sync::Arc;

use self::cidrs::Cidrs;
use self::classes::Classes;
use self::endpoints::Endpoints;
use self::pods::PodIndex;
use self::selectors::Selectors;
use crate::model::Objects;
use crate::tables::{EndpointTables, Table, TableKey, Tables};

/// Compiles the policy of the pods that run on `node`.
pub fn compile(objects: &Objects, node: &str) -> Tables {
    let pods = PodIndex::new(objects);
    let endpoints = Endpoints::of(objects, &pods, node);
    let selectors = Selectors::of(&endpoints);
    let cidrs = Cidrs::new(&selectors);
    let classes = Classes::new(&pods, &selectors, &cidrs);

    let keys: Vec<TableKey> = endpoints.tables.iter().map(endpoints::Isolation::key).collect();
    let tables: Vec<Table> = endpoints
        .tables
        .iter()
        .map(|isolation| rules::expand(isolation, &selectors, &classes))
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
