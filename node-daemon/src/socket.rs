// SPDX-License-Identifier: Apache-2.0
//! The daemon's unix sockets: only root of the node can reach them.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {path}: {cause}", path = path.display())]
pub struct SocketError {
    action: &'static str,
    path: PathBuf,
    cause: io::Error,
}

/// Makes the socket, in place of one that an earlier life left.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |cause| SocketError { action, path, cause }
    };
    if let Some(directory) = path.parent() {
        // Nobody can connect between making the socket and closing it to others.
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
        fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(failed("close", directory))?;
    }
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(cause)),
        _ => Ok(()),
    }?;
    let listener = UnixListener::bind(path).map_err(failed("listen at", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("close", path))?;
    Ok(listener)
}

/// Holds conversations with those who connect, so many `at_once`, until cancelled; those that go on are ended by
/// themselves. Others wait in the socket's queue. `whom` is for messages.
pub async fn serve<Talk: Future<Output = ()> + Send + 'static>(
    listener: UnixListener,
    whom: &'static str,
    at_once: usize,
    cancel: CancellationToken,
    converse: impl Fn(UnixStream) -> Talk,
) {
    let (tasks, places) = (TaskTracker::new(), Arc::new(Semaphore::new(at_once)));
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, mostly: what is being served closes some.
                tracing::warn!(%error, "failed to accept a connection of {whom}; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            break;
        };
        let talk = converse(stream);
        tasks.spawn(async move {
            talk.await;
            drop(place);
        });
    }
    tasks.close();
    tasks.wait().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_roots_alone_and_takes_the_place_of_an_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/cni.sock");
        for _ in 0..2 {
            drop(listen(&path).unwrap());
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    }
}
