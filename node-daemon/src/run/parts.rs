// SPDX-License-Identifier: Apache-2.0
//! The daemon's threads and tasks: when one of them ends, all do.

use std::fmt::Display;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Everything that is being run, and how it is stopped.
pub(super) struct Parts {
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
    pub(super) failed: mpsc::Sender<anyhow::Error>,
    pub(super) failures: mpsc::Receiver<anyhow::Error>,
}

impl Parts {
    pub(super) fn new() -> Self {
        let (failed, failures) = mpsc::channel(1);
        Self {
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            failed,
            failures,
        }
    }

    /// A thread that must not end before the daemon is cancelled.
    pub(super) fn thread(&self, name: &'static str, work: impl FnOnce() -> Result<()> + Send + 'static) {
        let thread = tokio::task::spawn_blocking(work);
        self.watch(name, async move { thread.await.context("the thread panicked")? });
    }

    /// A task that must not end before the daemon is cancelled.
    pub(super) fn task(
        &self,
        name: impl Display + Send + 'static,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let task = tokio::spawn(work);
        self.watch(name, async move { task.await.context("the task panicked")? });
    }

    fn watch(&self, name: impl Display + Send + 'static, work: impl Future<Output = Result<()>> + Send + 'static) {
        let (failed, cancel) = (self.failed.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            let result = work.await;
            if let Err(error) = result {
                let _ = failed.try_send(error.context(format!("{name} failed")));
            } else if !cancel.is_cancelled() {
                let _ = failed.try_send(anyhow::anyhow!("{name} ended"));
            }
            cancel.cancel();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_ends_is_told_and_stops_the_others() {
        type Work = std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send>>;
        let works: [(&str, Work); 3] = [
            ("part ended", Box::pin(async { Ok(()) })),
            (
                "part failed: for a cause",
                Box::pin(async { Err(anyhow::anyhow!("for a cause")) }),
            ),
            (
                "part failed: the task panicked",
                Box::pin(async { panic!("it is tested") }),
            ),
        ];
        for (expected, work) in works {
            let mut parts = Parts::new();
            parts.task("part", work);
            let failure = parts.failures.recv().await.unwrap();
            assert!(format!("{failure:#}").starts_with(expected), "{failure:#}");
            parts.cancel.cancelled().await;
        }
    }
}
