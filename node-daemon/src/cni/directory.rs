// SPDX-License-Identifier: Apache-2.0
//! Changes of a directory, told at once where the kernel can be asked to. A node may have none of its inotify instances
//! left, which everything on it shares: then the directory is only looked at now and then.

use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio_util::sync::CancellationToken;

/// How often the directory is looked at though nothing was told.
const LOOK: Duration = Duration::from_secs(5);
/// How often the thread sees that it should stop, in milliseconds.
const TICK: u16 = 250;
/// Writers write more than once: they are left alone for a moment.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Changes<'a> {
    directory: &'a Path,
    inotify: Option<Inotify>,
    /// Why there is none, as it was told last.
    failure: Option<Errno>,
}

impl<'a> Changes<'a> {
    pub(super) fn of(directory: &'a Path) -> Self {
        let mut changes = Self {
            directory,
            inotify: None,
            failure: None,
        };
        changes.watch();
        changes
    }

    /// Waits until something in the directory changed, or it is time to look, or until cancelled.
    pub(super) fn wait(&mut self, cancel: &CancellationToken) {
        if self.inotify.is_none() {
            self.watch();
        }
        let began = Instant::now();
        while began.elapsed() < LOOK && !cancel.is_cancelled() {
            let Some(inotify) = &self.inotify else {
                pause(Duration::from_millis(TICK.into()), cancel);
                continue;
            };
            match has_changed(inotify, cancel) {
                Ok(true) => return,
                Ok(false) => {}
                Err(cause) => self.lose(cause),
            }
        }
    }

    fn watch(&mut self) {
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        let made = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).and_then(|inotify| {
            inotify.add_watch(self.directory, what)?;
            Ok(inotify)
        });
        match made {
            Ok(inotify) => (self.inotify, self.failure) = (Some(inotify), None),
            Err(cause) => self.lose(cause),
        }
    }

    fn lose(&mut self, cause: Errno) {
        self.inotify = None;
        if self.failure.replace(cause) != Some(cause) {
            let (directory, every) = (self.directory.display(), LOOK.as_secs());
            tracing::warn!(%directory, %cause, "failed to watch a directory; looking at it every {every} s");
        }
    }
}

/// Waits for a tick.
fn has_changed(inotify: &Inotify, cancel: &CancellationToken) -> Result<bool, Errno> {
    let mut watched = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    match poll(&mut watched, PollTimeout::from(TICK)) {
        Ok(0) | Err(Errno::EINTR) => return Ok(false),
        Ok(_) => {}
        Err(cause) => return Err(cause),
    }
    pause(SETTLE, cancel);
    match inotify.read_events() {
        Ok(_) | Err(Errno::EAGAIN) => Ok(true),
        Err(cause) => Err(cause),
    }
}

/// Sleeps, but not long after it was cancelled.
pub(super) fn pause(duration: Duration, cancel: &CancellationToken) {
    let began = Instant::now();
    while began.elapsed() < duration && !cancel.is_cancelled() {
        std::thread::sleep(Duration::from_millis(TICK.into()).min(duration));
    }
}
