// SPDX-License-Identifier: Apache-2.0
//! The events thread: polls the ring, since waking it from the packet path would cost more than the packet.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio_util::sync::CancellationToken;

use super::log::{LogError, PolicyLog};
use crate::metrics::{LogFigures, Metrics};

/// Milliseconds that an event waits at most; a ring that passes its half wakes us before.
const POLL: u8 = 10;
/// How often the counters of the generation in use are looked at.
const LOOK: Duration = Duration::from_millis(100);
const SHOW: Duration = Duration::from_secs(1);
/// After a failed write; meanwhile the kernel keeps what it can and counts what it cannot.
const RETRY: Duration = Duration::from_millis(500);

/// Writes until cancelled, then what is left.
pub fn follow(mut log: PolicyLog, metrics: &Metrics, cancel: &CancellationToken) -> Result<()> {
    // Edge-triggered: events that nobody was woken for do not end the wait, so that they are read in batches.
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(
        log.ring_fd(),
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0),
    )?;
    let (mut looked, mut shown) = (Instant::now(), None::<Instant>);
    while !cancel.is_cancelled() {
        log.admit_observers();
        let now = Instant::now();
        let look = now.duration_since(looked) >= LOOK;
        if look {
            looked = now;
        }
        match step(&mut log, look.then_some(now)) {
            Ok(true) => {}
            Ok(false) => wait(&epoll)?,
            Err(error) => {
                metrics.write_failed();
                tracing::error!(%error, "failed to write the policy log; trying again");
                std::thread::sleep(RETRY);
            }
        }
        if shown.is_none_or(|at| now.duration_since(at) >= SHOW) {
            shown = Some(now);
            show(&log, metrics)?;
        }
    }
    while log.drain()? {}
    Ok(())
}

fn step(log: &mut PolicyLog, look: Option<Instant>) -> Result<bool, LogError> {
    let more = log.drain()?;
    if let Some(now) = look {
        log.close_if_due(now)?;
    }
    Ok(more)
}

fn wait(epoll: &Epoll) -> Result<()> {
    match epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(POLL)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn show(log: &PolicyLog, metrics: &Metrics) -> Result<()> {
    let figures = LogFigures {
        imbalance: log.imbalance(),
        rotations: log.rotations(),
        backlog: log.backlog(),
    };
    metrics.set_account(log.ledger(), &log.packets()?, &figures);
    Ok(())
}
