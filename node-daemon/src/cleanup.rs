// SPDX-License-Identifier: Apache-2.0
//! Takes Wardline out of a node; the policy log stays.
//!
//! ```text
//! entry of the CNI plugin     new pods start without it
//! programs                    packets pass as they would without us, connections to Services by kube-proxy's way
//! records that are left       written, before the tables that hold them go
//! pins                        and the tables with them
//! binary of the CNI plugin    nobody calls it any more
//! state                       the daemon's lock is in it
//! ```
//!
//! Each step is done, or found done: a node can be cleaned twice, and after a crash half way.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};
use wardline_crds::config::DaemonConfig;

use crate::args::CleanupArgs;
use crate::cni::{Installed, Installer, PLUGIN_SOCKET};
use crate::datapath::{Accounts, HandedBack, InKernel, PinPaths};
use crate::events::{FileOptions, LogFile, Origin, PolicyLog};
use crate::lock;
use crate::names::Names;

/// How often one that stays looks again: a runtime that was about to write something down may have done so after us.
const LOOK: Duration = Duration::from_secs(2);

/// How long the last records may take to be written.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node that is to be left.
#[derive(Clone, Debug)]
pub struct Cleanup {
    config: DaemonConfig,
    installer: Installer,
    bpffs: PathBuf,
    state: PathBuf,
    log: FileOptions,
    node: String,
}

/// Cleans the node, or looks whether it is clean, and prints what was done or found.
///
/// # Errors
/// When a daemon runs on the node, or something cannot be removed; with `--check`, when something is there.
pub async fn run(args: &CleanupArgs) -> Result<()> {
    let cleanup = Cleanup::new(args)?;
    if args.check {
        let found = cleanup.find()?.to_string();
        ensure!(found.is_empty(), "Wardline is on this node:\n{found}");
        println!("nothing of Wardline is on this node");
        return Ok(());
    }
    cleanup.clean()?;
    println!("nothing of Wardline is left on this node but its log");
    if args.stay {
        let mut stop = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        while tokio::time::timeout(LOOK, stop.recv()).await.is_err() {
            cleanup.clean()?;
        }
    }
    Ok(())
}

/// What of Wardline is on a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    plugin: Installed,
    kernel: InKernel,
    /// What the daemon keeps while the node runs.
    state: Vec<PathBuf>,
}

impl std::fmt::Display for Found {
    /// A line for each thing.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Installed { lists, cached, binary } = &self.plugin;
        let files = lists.iter().chain(cached).chain(binary).chain(&self.state);
        for path in files.chain(&self.kernel.links).chain(&self.kernel.pins) {
            writeln!(f, "{}", path.display())?;
        }
        for (ifindex, direction) in &self.kernel.filters {
            writeln!(f, "filter of {direction:?} at interface {ifindex}")?;
        }
        Ok(())
    }
}

impl Cleanup {
    pub fn new(args: &CleanupArgs) -> Result<Self> {
        let config = match &args.config {
            Some(path) => DaemonConfig::from_file(path)?,
            None => DaemonConfig::default(),
        };
        let below = |path: &Path| args.root.join(path.strip_prefix("/").unwrap_or(path));
        let socket = args.state_dir.join(PLUGIN_SOCKET);
        let mut log = FileOptions::from(&config.logging.file);
        log.path = below(&log.path);
        Ok(Self {
            installer: Installer::new(&config, &socket, &args.root).context("failed to find this program's file")?,
            bpffs: below(&args.bpffs),
            state: below(&args.state_dir),
            log,
            node: args.node_name.clone(),
            config,
        })
    }

    /// What is there.
    pub fn find(&self) -> Result<Found> {
        Ok(Found {
            plugin: self.installer.find()?,
            kernel: InKernel::find(&self.bpffs)?,
            state: self.state_files()?,
        })
    }

    /// Takes all of it away, and prints what it took.
    pub fn clean(&self) -> Result<()> {
        // Held to the end: until then no daemon starts.
        let _lock = lock::take_if_there(&self.state)?;
        for list in self.installer.take_entries()? {
            println!("took the CNI plugin out of {}", list.display());
        }
        let kernel = InKernel::find(&self.bpffs)?;
        let detached = kernel.detach()?;
        let programs = kernel.links.len() + kernel.filters.len();
        if programs > 0 {
            println!("detached {programs} programs");
        }
        let HandedBack { connections, untracked } = detached.handed_back;
        if connections > 0 {
            println!("{connections} connections to Services go on under the node's own connection tracking");
        }
        if untracked > 0 {
            println!("{untracked} more are unknown to the node's own connection tracking");
        }
        for error in detached.lost {
            eprintln!("a pod's connections to Services are lost: {error}");
        }
        self.write_what_is_left();
        kernel.unpin()?;
        if let Some(pins) = &kernel.pins {
            println!("removed {}", pins.display());
        }
        for path in self.installer.take_binary()? {
            println!("took the CNI plugin away: {}", path.display());
        }
        // The lock is in it, so it goes last.
        if self.remove_state()? {
            println!("removed {}", self.state.display());
        }
        Ok(())
    }

    /// What the programs judged is to be told; a log that cannot be written, or hangs, keeps no node from being cleaned.
    fn write_what_is_left(&self) {
        let (told, written) = mpsc::channel();
        let cleanup = self.clone();
        std::thread::spawn(move || told.send(cleanup.write_records()));
        match written.recv_timeout(PATIENCE) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("the last records are lost: {error:#}"),
            Err(_) => eprintln!("the last records are lost: the log's disk does not answer"),
        }
    }

    fn write_records(&self) -> Result<()> {
        let pins = PinPaths::new(&self.bpffs);
        for others in pins.others().context("failed to look for maps of other versions")? {
            let account = Accounts::of_other_version(&others).map_err(anyhow::Error::from);
            if let Err(error) = account.and_then(|account| self.write_account(account)) {
                eprintln!("the last records in {} are lost: {error:#}", others.maps.display());
            }
        }
        if pins.are_there() {
            self.write_account(Accounts::open(&pins)?)?;
        }
        Ok(())
    }

    fn write_account(&self, accounts: Accounts) -> Result<()> {
        let logging = &self.config.logging;
        let origin = Origin::new(&self.node, &logging.cluster_name);
        let names = Arc::new(Names::open(&self.state)?);
        let file = LogFile::new(self.log.clone());
        let mut log = PolicyLog::open(accounts, file, names, origin, Duration::ZERO)?;
        while log.drain()? {}
        log.close()?;
        Ok(log.finish()?)
    }

    fn state_files(&self) -> Result<Vec<PathBuf>> {
        let failed = || format!("failed to read {}", self.state.display());
        let entries = match fs::read_dir(&self.state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(failed)?,
        };
        entries.map(|entry| Ok(entry.with_context(failed)?.path())).collect()
    }

    /// Returns whether there was anything.
    fn remove_state(&self) -> Result<bool> {
        let files = self.state_files()?;
        for path in &files {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("failed to remove {}", path.display()));
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.state) {
            Ok(()) => Ok(true),
            // Where it is a mount point, it was somebody else who made it.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => {
                Ok(!files.is_empty())
            }
            Err(error) => Err(error).with_context(|| format!("failed to remove {}", self.state.display())),
        }
    }
}
