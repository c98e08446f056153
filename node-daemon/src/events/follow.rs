// SPDX-License-Identifier: Apache-2.0
//! The events thread: polls the ring, since waking it from the packet path would cost more than the packet. And another
//! that watches it: a disk that hangs holds a thread up in the kernel, where it can tell nothing itself.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio_util::sync::CancellationToken;

use super::log::{LogError, PolicyLog, Succession};
use crate::metrics::Metrics;

/// Milliseconds that an event waits at most; a ring that passes its half wakes us before.
const POLL: u8 = 10;
/// How often the counters of the generation in use are looked at.
const LOOK: Duration = Duration::from_millis(100);
const SHOW: Duration = Duration::from_secs(1);
/// How long nothing may come forward before it is told: a busy disk answers sooner.
const HANGS: Duration = Duration::from_secs(10);
/// After the kernel's tables could not be read.
const RETRY: Duration = Duration::from_millis(500);

/// How long a daemon that starts lets verdicts wait in the kernel for the names of those whom they are about.
const NAMES: Duration = Duration::from_secs(10);

/// How the policy log is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogHealth {
    /// Why it is not written.
    pub stopped: Option<String>,
    /// By how much records and losses differ from what was due.
    pub imbalance: Option<String>,
}

impl LogHealth {
    fn of(log: &PolicyLog) -> Self {
        let imbalance = log.imbalance().filter(|by| by.as_flattened().iter().any(|by| *by != 0));
        Self {
            stopped: log.stopped().map(str::to_owned),
            imbalance: imbalance.map(|by| format!("records and losses differ from what was due by {by:?}")),
        }
    }
}

/// Writes until cancelled, then what is left. `tell` is told how the log is when that changes, and once more where it
/// returns false. `knows_names` says whether the cluster's objects have been read. The log goes on with the accounts of
/// `succession` as their turn comes.
pub fn follow(
    log: PolicyLog,
    succession: Succession,
    metrics: &Metrics,
    cancel: &CancellationToken,
    knows_names: impl Fn() -> bool,
    tell: impl Fn(&LogHealth) -> bool + Sync,
) -> Result<()> {
    let pulse = Pulse::new(log.hanging(HANGS));
    std::thread::scope(|scope| {
        // Its end is the watcher's.
        let (_alive, ended) = mpsc::channel();
        let watch = || pulse.watch(ended, metrics, &tell);
        std::thread::Builder::new()
            .name("events-watch".into())
            .spawn_scoped(scope, watch)?;
        write(log, succession, metrics, cancel, knows_names, |health| {
            pulse.beat(health, &tell);
        })
    })
}

/// Says how the log is after each step.
fn write(
    mut log: PolicyLog,
    mut succession: Succession,
    metrics: &Metrics,
    cancel: &CancellationToken,
    knows_names: impl Fn() -> bool,
    says: impl Fn(LogHealth),
) -> Result<()> {
    let mut epoll = wakeups(&log)?;
    let (mut looked, mut shown) = (Instant::now(), None::<Instant>);
    let (began, mut waits_for_names) = (Instant::now(), true);
    while !cancel.is_cancelled() {
        log.admit_observers();
        let now = Instant::now();
        let look = now.duration_since(looked) >= LOOK;
        if look {
            looked = now;
        }
        if succession.is_due() {
            match succession.advance(&mut log) {
                Ok(()) => epoll = wakeups(&log)?,
                Err(error) => {
                    tracing::warn!(%error, "failed to end the account of another version; trying again");
                    std::thread::sleep(RETRY);
                }
            }
        }
        waits_for_names = waits_for_names && !knows_names() && began.elapsed() < NAMES && !log.is_filling();
        let stepped = if waits_for_names {
            Ok(false)
        } else {
            step(&mut log, look.then_some(now))
        };
        match stepped {
            Ok(true) => {}
            // The log itself knows that it cannot be written, and when to try again.
            Ok(false) | Err(LogError::File(_)) => wait(&epoll)?,
            Err(error) => {
                tracing::error!(%error, "failed to account for verdicts; trying again");
                std::thread::sleep(RETRY);
            }
        }
        says(LogHealth::of(&log));
        if shown.is_none_or(|at| now.duration_since(at) >= SHOW) {
            shown = Some(now);
            show(&log, metrics)?;
        }
    }
    if let Err(error) = log.finish() {
        tracing::warn!(%error, "what is left stays in the kernel for the next life");
    }
    Ok(())
}

/// Whether the events thread comes forward, and what was told.
struct Pulse {
    /// What is told where it does not.
    hanging: String,
    last: Mutex<Beat>,
}

struct Beat {
    /// How often it was looked for since: time alone also passes for a machine that stands still.
    looks: u32,
    news: News,
}

impl Pulse {
    fn new(hanging: String) -> Self {
        let beat = Beat {
            looks: 0,
            news: News::default(),
        };
        Self {
            hanging,
            last: Mutex::new(beat),
        }
    }

    fn last(&self) -> MutexGuard<'_, Beat> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beat(&self, health: LogHealth, tell: &impl Fn(&LogHealth) -> bool) {
        let mut last = self.last();
        last.looks = 0;
        last.news.pass_on(health, tell);
    }

    fn watch(&self, ended: Receiver<()>, metrics: &Metrics, tell: &impl Fn(&LogHealth) -> bool) {
        while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            // Held until it is told, so that nothing that is over is told after its end.
            let mut last = self.last();
            last.looks = last.looks.saturating_add(1);
            if LOOK * last.looks >= HANGS {
                let health = LogHealth {
                    stopped: Some(self.hanging.clone()),
                    imbalance: last.news.logged.imbalance.clone(),
                };
                metrics.log_hangs();
                last.news.pass_on(health, tell);
            }
        }
    }
}

/// How the log is, as it was told last.
#[derive(Default)]
struct News {
    logged: LogHealth,
    told: LogHealth,
}

impl News {
    fn pass_on(&mut self, health: LogHealth, tell: &impl Fn(&LogHealth) -> bool) {
        if self.logged.stopped != health.stopped {
            if let Some(problem) = &health.stopped {
                tracing::error!(
                    problem,
                    "the policy log is not written; the kernel keeps what it has room for, the rest is counted as lost"
                );
            } else {
                tracing::info!("the policy log is written again");
            }
        }
        if let Some(imbalance) = health
            .imbalance
            .as_ref()
            .filter(|_| self.logged.imbalance != health.imbalance)
        {
            tracing::error!(imbalance, "the account does not balance; this is a bug of Wardline");
        }
        if self.told != health && tell(&health) {
            self.told.clone_from(&health);
        }
        self.logged = health;
    }
}

fn step(log: &mut PolicyLog, look: Option<Instant>) -> Result<bool, LogError> {
    let drained = log.drain();
    if let Some(now) = look {
        log.close_if_due(now)?;
    }
    drained
}

/// Edge-triggered: events that nobody was woken for do not end the wait, so that they are read in batches.
fn wakeups(log: &PolicyLog) -> Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(
        log.ring_fd(),
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0),
    )?;
    Ok(epoll)
}

fn wait(epoll: &Epoll) -> Result<()> {
    match epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::from(POLL)) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Shows the account in the metrics.
pub fn show(log: &PolicyLog, metrics: &Metrics) -> Result<()> {
    metrics.set_account(log.ledger(), &log.packets()?, &log.figures());
    Ok(())
}
