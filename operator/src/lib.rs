// SPDX-License-Identifier: Apache-2.0
//! The operator: from `Dataplane` and `NetworkLogging` to running node daemons, and back to statuses.
//!
//! ```text
//!            watch                 reconcile, in stages                       API server
//!  Dataplane ──────► dereference ► validate ► build ► apply ► update_status ─► ConfigMap, DaemonSet, status, Events
//!  NetworkLogging ─► dereference ► validate ─────────────────► update_status ─► status, Events
//!  DataplaneNode.status.invalidObjects ─► invalid_objects ─────────────────────► Events on what they name
//!  DaemonSet, its Pods and ConfigMaps, DataplaneNodes ──► caches, a change of any reconciles all
//! ```
//!
//! Only `dereference` (through `caches`), `apply` and `update_status` meet the API server; what lies between is pure.
//! One replica works at a time (`lease`). An object that cannot be used changes nothing that is in force.

// Kinds are written as Kubernetes writes them; and the comments on flags are what `--help` prints.
#![allow(clippy::doc_markdown)]

mod announce;
mod args;
mod backoff;
mod caches;
mod client;
mod context;
mod controller;
mod crds;
mod dataplane;
mod error;
mod http;
mod image;
mod invalid_objects;
mod lease;
mod metrics;
mod network_logging;
mod nodes;
mod probe;
mod remove;
mod run;
mod status;
#[cfg(test)]
mod testing;
mod undecodable;

pub use args::Args;
pub use run::run;

/// Field manager of all that the operator applies, and the controller that its Events name.
const MANAGER: &str = "wardline-operator";
