// SPDX-License-Identifier: Apache-2.0
//! Knowing when all records have been written, without sleeping.
//!
//! "Exactly these records" needs a moment after which no other can come. A node writes its records in order, so a test
//! makes one last denied packet on each node, a marker, and waits for its record: what has not come by then never will.
//! The pods that take the markers are fences: isolated, with no rule that admits anybody.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Result;
use futures::future::try_join_all;

use crate::layout::NODES;
use crate::namespace::TestNamespace;
use crate::records::Record;
use crate::traffic::{Attempt, Protocol};

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: fence}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [fence-node1, fence-node2]}]}
  policyTypes: [Ingress]
";

/// Each marker goes to a port of its own, so that it is not counted into the aggregate of an earlier one.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// The fences of a namespace, one on each node.
#[derive(Debug)]
pub struct Fences<'a> {
    namespace: &'a TestNamespace,
}

impl<'a> Fences<'a> {
    /// Creates the pods and their policy. Other pods of the namespace may be created before it is awaited.
    pub async fn create(namespace: &'a TestNamespace) -> Result<Self> {
        for node in &NODES {
            namespace.server(&name(node.name), node.name).await?;
        }
        namespace.lab.apply(&namespace.name, POLICY).await?;
        Ok(Self { namespace })
    }

    /// Waits until all pods of the namespace run and the fences are closed.
    pub async fn ready(&self) -> Result<()> {
        self.namespace.ready().await?;
        for (from, to) in Self::pairs() {
            self.namespace.until_reach(&from, &to, false).await?;
        }
        Ok(())
    }

    fn pairs() -> [(String, String); 2] {
        let [first, second] = NODES.each_ref().map(|node| name(node.name));
        [(first.clone(), second.clone()), (second, first)]
    }

    /// All records of the namespace's pods other than the fences, once no more can come. Denies must be logged.
    pub async fn settled_records(&self) -> Result<Vec<Record>> {
        try_join_all(Self::pairs().map(|(from, to)| self.mark(from, to))).await?;
        let mut records = self.namespace.records()?;
        records.retain(|record| ![&record.src, &record.dest].into_iter().flatten().any(is_fence));
        Ok(records)
    }

    /// Sends a packet that is denied, and waits for its record.
    async fn mark(&self, from: String, to: String) -> Result<()> {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        let server = SocketAddr::new(self.namespace.ip(&to).await?, port);
        let attempt = Attempt::make(&self.namespace.pods(), &from, server, Protocol::Udp).await?;
        anyhow::ensure!(attempt.timed_out(), "the fence {to} answered {from}: {attempt:?}");
        let what = format!("the record of the marker {from} -> {to}:{port}");
        let written = |records: &[Record]| {
            records.iter().any(|record| {
                let source = record.src.as_ref().and_then(|side| side.pod_name.as_deref());
                record.connection.dest_port == Some(port) && source == Some(&from)
            })
        };
        self.namespace.records_until(&what, written).await?;
        Ok(())
    }
}

fn name(node: &str) -> String {
    format!("fence-{node}")
}

fn is_fence(side: &crate::records::Side) -> bool {
    side.pod_name.as_deref().is_some_and(|name| name.starts_with("fence-"))
}
