// SPDX-License-Identifier: Apache-2.0
//! The chart without a cluster: values that it refuses and what it says, plain manifests, and what Argo CD makes of our
//! objects.

mod health;
mod manifests;
mod schemas;
mod values;

use std::sync::LazyLock;

use anyhow::{Result, anyhow};
use wardline_e2e::gobuild;
use wardline_e2e::layout::Layout;

/// With Helm and the other programs built, once for all tests.
fn layout() -> Result<&'static Layout> {
    static BUILT: LazyLock<Result<Layout>> = LazyLock::new(|| {
        let layout = Layout::of_workspace();
        gobuild::helm(&layout)?;
        Ok(layout)
    });
    BUILT.as_ref().map_err(|error| anyhow!("{error:#}"))
}
