// SPDX-License-Identifier: Apache-2.0
//! Switching the policy log of the whole cluster.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::cluster::Lab;
use crate::layout::NODES;
use crate::namespace::write_last;
use crate::progress::wait_until;

/// Held for reading by tests that need the log, for writing by those that switch it.
static LOG: RwLock<()> = RwLock::const_new(());

/// Switches the log on, and lets no test of this process switch it as long as the guard is kept.
pub async fn on(lab: &Lab) -> Result<RwLockReadGuard<'static, ()>> {
    let on = LOG.read().await;
    set(lab, true).await?;
    Ok(on)
}

/// Waits until no other test of this process needs the log; it may be [`set`] as long as the guard is kept.
pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    write_last(&LOG).await
}

/// Logs every allow and every deny, or nothing; waits until every node does as it is told.
pub async fn set(lab: &Lab, log: bool) -> Result<()> {
    apply(lab, log, false).await
}

/// Logs all, and tells first denies as Events.
pub async fn set_with_events(lab: &Lab) -> Result<()> {
    apply(lab, true, true).await
}

async fn apply(lab: &Lab, log: bool, events: bool) -> Result<()> {
    let object = format!(
        "
apiVersion: wardline.io/v1alpha1
kind: NetworkLogging
metadata: {{name: default}}
spec: {{cluster: {{allow: {{log: {log}, delegate: false}}, deny: {{log: {log}, delegate: false, events: {events}}}}}}}
"
    );
    lab.apply("", &object).await?;
    let logging = lab.get("wardline.io/v1alpha1", "NetworkLogging", "", "default").await?;
    let generation = logging
        .metadata
        .generation
        .context("failed to read the generation of NetworkLogging default")?;
    for node in &NODES {
        let what = format!("{} to apply NetworkLogging generation {generation}", node.name);
        wait_until(&what, Duration::from_mins(1), async || {
            let object = lab.get("wardline.io/v1alpha1", "DataplaneNode", "", node.name).await?;
            let applied = object.data["status"]["logging"]["appliedGeneration"].as_i64();
            Ok((applied == Some(generation)).then_some(()))
        })
        .await?;
    }
    Ok(())
}
