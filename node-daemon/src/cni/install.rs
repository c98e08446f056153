// SPDX-License-Identifier: Apache-2.0
//! The plugin on the node: its binary among the node's plugins, and its entry in the configuration list that the
//! runtime uses. Kept there, since whoever owns that list writes it anew when it likes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio_util::sync::CancellationToken;
use wardline_cni::config::{Entry, FailurePolicy, LogLevel, TYPE};
use wardline_crds::config::DaemonConfig;

use super::conflist;

/// How often the files are looked at though nothing was told, and the thread sees that it should stop.
const LOOK: Duration = Duration::from_secs(5);
const TICK: u16 = 250;
/// Writers write more than once: they are left alone for a moment.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two changes of ours: another installer that takes our entry out each time is not fought without a pause.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("failed to {action} {path}: {cause}", path = path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("there is no network configuration in {}: the cluster's own CNI plugin comes first", .0.display())]
    NoConfiguration(PathBuf),
    #[error(
        "{} configures a single plugin, to which none can be chained: make it a list (a .conflist with `plugins`)",
        .0.display()
    )]
    NotAList(PathBuf),
    #[error("{path} cannot be used: {cause}", path = path.display())]
    Unusable { path: PathBuf, cause: String },
    #[error("failed to watch {path}: {cause}", path = path.display())]
    Watch { path: PathBuf, cause: Errno },
}

/// What [`Installer::uninstall`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub files: Vec<PathBuf>,
}

/// Knows where the plugin goes.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The binary in the daemon's own image.
    binary: PathBuf,
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    entry: Entry,
}

impl Installer {
    /// `root` is where the node's file system is found.
    pub fn new(config: &DaemonConfig, socket: &Path, root: &Path) -> io::Result<Self> {
        let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        Ok(Self {
            binary: std::env::current_exe()?.with_file_name(TYPE),
            bin_dir: below(&config.cni.bin_dir),
            conf_dir: below(&config.cni.conf_dir),
            entry: Entry {
                socket: socket.display().to_string(),
                failure_policy: match config.cni.failure_policy {
                    wardline_crds::FailurePolicy::Fail => FailurePolicy::Fail,
                    wardline_crds::FailurePolicy::Ignore => FailurePolicy::Ignore,
                },
                log_level: match config.log_level {
                    wardline_crds::LogLevel::Error => LogLevel::Error,
                    wardline_crds::LogLevel::Warn => LogLevel::Warn,
                    wardline_crds::LogLevel::Info => LogLevel::Info,
                    wardline_crds::LogLevel::Debug | wardline_crds::LogLevel::Trace => LogLevel::Debug,
                },
                ..Entry::default()
            },
        })
    }

    /// Installs the plugin and keeps it installed until cancelled. `told` is given what stands in the way each time
    /// that changes; None: nothing.
    ///
    /// # Errors
    /// Only where the directory cannot be watched. Whatever else fails is told and tried again.
    pub fn keep(&self, cancel: &CancellationToken, mut told: impl FnMut(Option<String>)) -> Result<(), InstallError> {
        let changes = self.watch()?;
        let mut last: Option<Option<String>> = None;
        while !cancel.is_cancelled() {
            let result = self.install();
            let changed = matches!(result, Ok(true));
            let problem = result.err().map(|error| error.to_string());
            if last.as_ref() != Some(&problem) {
                match &problem {
                    None => tracing::info!(directory = %self.conf_dir.display(), "the CNI plugin is installed"),
                    Some(cause) => tracing::warn!(cause, "the CNI plugin is not installed; trying again"),
                }
                told(problem.clone());
                last = Some(problem);
            } else if changed {
                tracing::warn!("the CNI plugin's entry was taken out of the node's configuration; it is back");
            }
            if changed {
                wait(PAUSE, cancel);
            }
            self.until_changed(&changes, cancel)?;
        }
        Ok(())
    }

    /// Returns whether anything had to be changed.
    pub fn install(&self) -> Result<bool, InstallError> {
        // The binary first: an entry without one keeps every pod from starting.
        let binary = self.install_binary()?;
        let list = self.list()?;
        let text = fs::read(&list).map_err(failed("read", &list))?;
        let edited = conflist::with_entry(&text, &self.entry).map_err(|error| InstallError::Unusable {
            path: list.clone(),
            cause: error.to_string(),
        })?;
        if let Some(edited) = &edited {
            replace(&list, edited.as_bytes(), None)?;
        }
        Ok(binary || edited.is_some())
    }

    /// Takes entries and binary away, for a node that Wardline leaves.
    pub fn uninstall(&self) -> Result<Removed, InstallError> {
        let mut removed = Removed::default();
        // The entries first, as the binary is put there first.
        for list in self.configurations()? {
            let text = fs::read(&list).map_err(failed("read", &list))?;
            // What is no list cannot have an entry of ours.
            if let Ok(Some(edited)) = conflist::without_entry(&text) {
                replace(&list, edited.as_bytes(), None)?;
                removed.files.push(list);
            }
        }
        let binary = self.bin_dir.join(TYPE);
        match fs::remove_file(&binary) {
            Ok(()) => removed.files.push(binary),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(failed("remove", &binary)(cause)),
        }
        Ok(removed)
    }

    fn install_binary(&self) -> Result<bool, InstallError> {
        let target = self.bin_dir.join(TYPE);
        let wanted = fs::read(&self.binary).map_err(failed("read", &self.binary))?;
        if fs::read(&target).is_ok_and(|found| found == wanted) {
            return Ok(false);
        }
        replace(&target, &wanted, Some(0o755))?;
        Ok(true)
    }

    /// The list that the runtime uses: that of the first file, as libcni sorts them.
    fn list(&self) -> Result<PathBuf, InstallError> {
        let mut all = self.configurations()?.into_iter();
        let first = all
            .next()
            .ok_or_else(|| InstallError::NoConfiguration(self.conf_dir.clone()))?;
        if first.extension().is_some_and(|extension| extension == "conflist") {
            Ok(first)
        } else {
            Err(InstallError::NotAList(first))
        }
    }

    /// The files that a runtime reads, in its order.
    fn configurations(&self) -> Result<Vec<PathBuf>, InstallError> {
        let fail = |cause| failed("read", &self.conf_dir)(cause);
        let is_configuration = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file()
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.conf_dir).map_err(fail)? {
            found.push(entry.map_err(fail)?.path());
        }
        found.retain(is_configuration);
        found.sort();
        Ok(found)
    }

    fn watch(&self) -> Result<Inotify, InstallError> {
        let failed = |cause| InstallError::Watch {
            path: self.conf_dir.clone(),
            cause,
        };
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        changes.add_watch(&self.conf_dir, what).map_err(failed)?;
        Ok(changes)
    }

    /// Waits until something in the directory changed, or it is time to look.
    fn until_changed(&self, changes: &Inotify, cancel: &CancellationToken) -> Result<(), InstallError> {
        let failed = |cause| InstallError::Watch {
            path: self.conf_dir.clone(),
            cause,
        };
        let began = Instant::now();
        while began.elapsed() < LOOK && !cancel.is_cancelled() {
            let mut watched = [PollFd::new(changes.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, PollTimeout::from(TICK)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(cause) => return Err(failed(cause)),
            }
            wait(SETTLE, cancel);
            return match changes.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => Ok(()),
                Err(cause) => Err(failed(cause)),
            };
        }
        Ok(())
    }
}

fn wait(duration: Duration, cancel: &CancellationToken) {
    let began = Instant::now();
    while began.elapsed() < duration && !cancel.is_cancelled() {
        std::thread::sleep(Duration::from_millis(u64::from(TICK)).min(duration));
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |cause| InstallError::File {
        action,
        path: path.clone(),
        cause,
    }
}

/// Whoever reads the file meanwhile reads the old or the new one, and a node that crashes has one of them. `mode` None
/// keeps that of the old one.
fn replace(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<(), InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No name that a runtime would take for a configuration.
    let unfinished = path.with_file_name(format!(".{name}.wardline"));
    let old = || fs::metadata(path).map_or(0o600, |old| old.permissions().mode() & 0o777);
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode.unwrap_or_else(old)))?;
        file.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&unfinished, path));
    renamed.map_err(|cause| {
        let _ = fs::remove_file(&unfinished);
        failed("write", path)(cause)
    })?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("write", directory))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"}]}"#;

    struct Node {
        directory: tempfile::TempDir,
        installer: Installer,
    }

    impl Node {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            for folder in ["bin", "net.d"] {
                fs::create_dir(path(folder)).unwrap();
            }
            fs::write(path("source"), "the plugin").unwrap();
            let installer = Installer {
                binary: path("source"),
                bin_dir: path("bin"),
                conf_dir: path("net.d"),
                entry: Entry::default(),
            };
            Self { directory, installer }
        }

        fn conf(&self, name: &str) -> PathBuf {
            self.directory.path().join("net.d").join(name)
        }

        fn has_entry(&self, name: &str) -> bool {
            fs::read_to_string(self.conf(name)).is_ok_and(|text| text.contains(TYPE))
        }
    }

    #[test]
    fn the_first_list_gets_the_entry_and_nothing_is_written_twice() {
        let node = Node::new();
        for name in ["10-ptp.conflist", "20-other.conflist"] {
            fs::write(node.conf(name), LIST).unwrap();
        }
        fs::write(node.conf("05-notes.txt"), "no configuration").unwrap();
        fs::set_permissions(node.conf("10-ptp.conflist"), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(node.installer.install().unwrap());
        assert!(node.has_entry("10-ptp.conflist") && !node.has_entry("20-other.conflist"));
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(node.conf("10-ptp.conflist")), 0o640);
        assert_eq!(mode(node.directory.path().join("bin").join(TYPE)), 0o755);
        assert!(!node.installer.install().unwrap(), "nothing is left to do");
        let names = fs::read_dir(node.directory.path().join("net.d")).unwrap();
        assert_eq!(names.count(), 3, "nothing else is left there");
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let node = Node::new();
        let refused = |words: &str| {
            let error = node.installer.install().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused("there is no network configuration in");
        fs::write(node.conf("20-ptp.conflist"), "{").unwrap();
        refused("20-ptp.conflist cannot be used");
        fs::write(node.conf("10-bridge.conf"), r#"{"type":"bridge"}"#).unwrap();
        refused("10-bridge.conf configures a single plugin");
        fs::remove_file(&node.installer.binary).unwrap();
        refused("failed to read");
    }

    #[test]
    fn uninstalling_leaves_nothing() {
        let node = Node::new();
        fs::write(node.conf("10-ptp.conflist"), LIST).unwrap();
        node.installer.install().unwrap();
        // One that came first later, as when a cluster changes its plugin.
        fs::write(node.conf("05-new.conflist"), LIST).unwrap();
        node.installer.install().unwrap();
        let removed = node.installer.uninstall().unwrap();
        assert_eq!(removed.files.len(), 3);
        assert!(!node.has_entry("05-new.conflist") && !node.has_entry("10-ptp.conflist"));
        assert_eq!(node.installer.uninstall().unwrap(), Removed::default());
    }

    #[test]
    fn an_entry_that_is_taken_out_comes_back() {
        let node = Node::new();
        let (told, problems) = mpsc::channel();
        let cancel = CancellationToken::new();
        std::thread::scope(|scope| {
            let stop = cancel.clone().drop_guard();
            scope.spawn(|| {
                node.installer
                    .keep(&cancel, |problem| told.send(problem).unwrap())
                    .unwrap();
            });
            let next = || problems.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(next().unwrap().contains("no network configuration"));
            fs::write(node.conf("10-ptp.conflist"), LIST).unwrap();
            assert_eq!(next(), None);
            // As the owner of the list writes it, again and again.
            for _ in 0..2 {
                fs::write(node.conf("10-ptp.conflist"), LIST).unwrap();
                let began = Instant::now();
                while !node.has_entry("10-ptp.conflist") {
                    assert!(began.elapsed() < Duration::from_secs(20), "it did not come back");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            fs::remove_file(node.conf("10-ptp.conflist")).unwrap();
            assert!(next().unwrap().contains("no network configuration"));
            drop(stop);
        });
    }
}
