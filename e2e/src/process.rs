// SPDX-License-Identifier: Apache-2.0
//! Processes that outlive the program that started them: recorded by pid and start time, so that only they are ended.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::command::tail;
use crate::layout::Layout;

/// A process of the lab, as `target/lab/run/NAME.json` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The component, such as `etcd` or `node1`.
    pub name: String,
    /// Its pid in this machine's pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with the pid, it names one process for ever.
    pub start_ticks: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

/// Starts a program in a session of its own, its output going to its log, and records it.
pub fn start(layout: &Layout, name: &str, program: &Command) -> Result<Recorded> {
    let log = layout.log(name);
    let output = fs::File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
    let errors = output
        .try_clone()
        .with_context(|| format!("failed to duplicate {}", log.display()))?;
    let mut command = Command::new("setsid");
    command.arg(program.get_program()).args(program.get_args());
    command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    let child = command.spawn().with_context(|| format!("failed to start {name}"))?;
    let pid = i32::try_from(child.id()).context("failed to read a pid: it does not fit")?;
    record(layout, name, pid)
}

/// Records a process that runs already.
pub fn record(layout: &Layout, name: &str, pid: i32) -> Result<Recorded> {
    let Some((start_ticks, _)) = stat(pid) else {
        bail!(
            "failed to record {name}: it has ended already, its log says:\n{}",
            tail(&layout.log(name), 15)
        );
    };
    let recorded = Recorded {
        name: name.to_owned(),
        pid,
        start_ticks,
        log: layout.log(name),
    };
    let path = record_file(layout, name);
    let text = serde_json::to_vec_pretty(&recorded).context("failed to encode a process record")?;
    fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(recorded)
}

/// Forgets a process that was ended while the lab goes on.
pub fn forget(layout: &Layout, name: &str) -> Result<()> {
    let path = record_file(layout, name);
    fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))
}

fn record_file(layout: &Layout, name: &str) -> PathBuf {
    layout.run().join(format!("{name}.json"))
}

/// Every recorded process, in the order of their names; none where there is no lab.
pub fn recorded(layout: &Layout) -> Result<Vec<Recorded>> {
    let Ok(entries) = fs::read_dir(layout.run()) else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.context("failed to read target/lab/run")?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
            all.push(
                serde_json::from_slice::<Recorded>(&text)
                    .with_context(|| format!("failed to decode {}", path.display()))?,
            );
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

impl Recorded {
    /// Whether exactly this process still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(start_ticks, state)| start_ticks == self.start_ticks && state != 'Z')
    }

    /// Fails with the end of its log if it no longer runs.
    pub fn check(&self) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        bail!(
            "{} has ended; {} says at its end:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log, 15)
        )
    }

    /// Asks it to end, waits up to `grace`, then kills it and waits until it is gone.
    pub fn end(&self, grace: Duration) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(());
        };
        // The pidfd is opened before the start time is compared: from then on the pid cannot come to mean another.
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        if !self.is_alive() {
            return Ok(());
        }
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(20))] {
            if signal == Signal::TERM && grace.is_zero() {
                continue;
            }
            // It may end between the check and the signal, and that is as good.
            let _ = pidfd_send_signal(&fd, signal);
            let asked = Instant::now();
            while asked.elapsed() < patience {
                if !self.is_alive() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        bail!(
            "failed to end {} (pid {}): it survived SIGKILL for 20 s",
            self.name,
            self.pid
        )
    }
}

/// Start time (clock ticks since boot) and state letter of a pid.
fn stat(pid: i32) -> Option<(u64, char)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may itself hold anything, so count from its end.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some((start_ticks, state))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::{Recorded, stat};

    fn sleeper() -> (std::process::Child, Recorded) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let recorded = Recorded {
            name: "sleeper".into(),
            pid,
            start_ticks: stat(pid).unwrap().0,
            log: "/".into(),
        };
        (child, recorded)
    }

    #[test]
    fn a_process_is_ended_and_known_to_be() {
        let (mut child, recorded) = sleeper();
        assert!(recorded.is_alive());
        recorded.end(Duration::from_secs(5)).unwrap();
        assert!(!recorded.is_alive());
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn another_process_with_its_pid_is_left_alone() {
        let (mut child, mut recorded) = sleeper();
        recorded.start_ticks += 1;
        assert!(!recorded.is_alive());
        recorded.end(Duration::ZERO).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the other process was ended");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
