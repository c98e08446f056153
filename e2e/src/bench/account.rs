// SPDX-License-Identifier: Apache-2.0
//! The account that a daemon keeps of its records: of those of allowed connections, as denies are written seconds later.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::LabNode;
use crate::progress::wait_until;

/// Counters of a daemon, or how far they moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Connections that asked for a record.
    pub due: u64,
    /// Connections whose record was written.
    pub written: u64,
    /// Connections whose record was told as lost.
    pub lost: u64,
}

impl Account {
    /// Reads the node's metrics.
    pub async fn read(node: LabNode<'_>) -> Result<Self> {
        let metrics = node.metrics().await?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole numbers below 2^52"
        )]
        let sum = |name: &str| metrics.sum(name, &["verdict=\"allow\""]).unwrap_or(0.0) as u64;
        Ok(Self {
            due: sum("wardline_log_due_total"),
            written: sum("wardline_log_written_total"),
            lost: sum("wardline_log_lost_total"),
        })
    }

    /// Waits until at least `connections` have been written or told as lost since this was read, and the account balances;
    /// returns how far the counters moved.
    pub async fn until_written(&self, node: LabNode<'_>, connections: u64) -> Result<Self> {
        let what = format!("{connections} records of {}", node.spec.name);
        wait_until(&what, Duration::from_secs(30), async || {
            let now = Self::read(node).await?;
            let moved = Self {
                due: now.due - self.due,
                written: now.written - self.written,
                lost: now.lost - self.lost,
            };
            let told = moved.written + moved.lost;
            ensure!(told == moved.due && told >= connections, "so far {moved:?}");
            Ok(Some(moved))
        })
        .await
    }
}
