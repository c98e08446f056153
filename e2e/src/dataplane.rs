// SPDX-License-Identifier: Apache-2.0
//! Another Dataplane for the length of a test.

use anyhow::Result;
use serde_json::Value;

use crate::cluster::Lab;
use crate::wardline;

/// Runs `test` while the Dataplane's spec is patched (a merge patch), and then patches it back with `restore` whatever
/// came of it. The test begins when the patch is made, not when it is rolled out; afterwards every node is ready.
pub async fn while_patched<T>(
    lab: &Lab,
    spec: &Value,
    restore: &Value,
    test: impl AsyncFnOnce() -> Result<T>,
) -> Result<T> {
    patch(lab, spec).await?;
    let tested = test().await;
    patch(lab, restore).await?;
    let ready = wardline::wait_ready(lab).await;
    let tested = tested?;
    ready.and(Ok(tested))
}

async fn patch(lab: &Lab, spec: &Value) -> Result<()> {
    let patch = serde_json::json!({"spec": spec});
    lab.patch("wardline.io/v1alpha1", "Dataplane", "", "default", &patch)
        .await
}
