// SPDX-License-Identifier: Apache-2.0
//! The account that a daemon keeps of its records, of one verdict: denies are written seconds later than allows.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::cluster::LabNode;
use crate::progress::wait_until;

/// Counters of a daemon, or how far they moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    verdict: &'static str,
    /// Connections, or denied packets, that asked for a record.
    pub due: u64,
    /// Those that a record counts.
    pub written: u64,
    /// Those that were told as lost.
    pub lost: u64,
}

impl Account {
    /// Reads the node's metrics about allowed connections.
    pub async fn read(node: LabNode<'_>) -> Result<Self> {
        Self::of("allow", node).await
    }

    /// The same about `verdict`, allow or deny.
    pub async fn of(verdict: &'static str, node: LabNode<'_>) -> Result<Self> {
        let label = format!("verdict=\"{verdict}\"");
        let metrics = node.metrics().await?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole numbers below 2^52"
        )]
        let sum = |name: &str| metrics.sum(name, &[&label]).unwrap_or(0.0) as u64;
        Ok(Self {
            verdict,
            due: sum("wardline_log_due_total"),
            written: sum("wardline_log_written_total"),
            lost: sum("wardline_log_lost_total"),
        })
    }

    /// Waits until at least so many have been written or told as lost since this was read, and the account balances;
    /// returns how far the counters moved.
    pub async fn until_written(&self, node: LabNode<'_>, least: u64) -> Result<Self> {
        let what = format!("{least} verdicts to be in records of {}", node.spec.name);
        wait_until(&what, Duration::from_secs(30), async || {
            let now = Self::of(self.verdict, node).await?;
            let moved = Self {
                verdict: self.verdict,
                due: now.due - self.due,
                written: now.written - self.written,
                lost: now.lost - self.lost,
            };
            let told = moved.written + moved.lost;
            ensure!(told == moved.due && told >= least, "so far {moved:?}");
            Ok(Some(moved))
        })
        .await
    }
}
