// SPDX-License-Identifier: Apache-2.0
//! The plugin on the node: its binary among the node's plugins, and its entry in the configuration list that the
//! runtime uses. Kept there, since whoever owns that list writes it anew when it likes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use wardline_cni::config::{Entry, FailurePolicy, LogLevel, TYPE};
use wardline_crds::config::DaemonConfig;

use super::conflist;
use super::directory::{Changes, pause};

/// Where libcni keeps, for each pod that runs, the list that it was started with (`CacheDir` in libcni/api.go).
const CACHE: &str = "/var/lib/cni/results";
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
}

/// What [`Installer::uninstall`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Changed or removed.
    pub files: Vec<PathBuf>,
    /// The binary, where pods that run were started with it.
    pub kept: Option<PathBuf>,
}

/// What libcni keeps of a pod, as far as it matters here.
#[derive(Deserialize)]
struct Cached {
    config: ByteString,
}

/// Knows where the plugin goes.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The binary in the daemon's own image.
    binary: PathBuf,
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    cache: PathBuf,
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
            cache: below(Path::new(CACHE)),
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
    /// that changes, and it is tried again; None: nothing.
    pub fn keep(&self, cancel: &CancellationToken, mut told: impl FnMut(Option<String>)) {
        let mut changes = Changes::of(&self.conf_dir);
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
                pause(PAUSE, cancel);
            }
            changes.wait(cancel);
        }
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

    /// Takes entries and binary away, for a node that Wardline leaves. The binary stays while a runtime may still call
    /// it: CRI-O ends a pod by the list that it was started with, and where a plugin of that is not there, the pod never
    /// ends (`loadNetworkFromCache` in ocicni).
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
        if self.is_in_use()? {
            removed.kept = Some(binary).filter(|binary| binary.exists());
            return Ok(removed);
        }
        match fs::remove_file(&binary) {
            Ok(()) => removed.files.push(binary),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(failed("remove", &binary)(cause)),
        }
        Ok(removed)
    }

    /// Whether a pod that runs was started with our entry in its list.
    fn is_in_use(&self) -> Result<bool, InstallError> {
        let pods = match fs::read_dir(&self.cache) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            pods => pods.map_err(failed("read", &self.cache))?,
        };
        for pod in pods {
            let path = pod.map_err(failed("read", &self.cache))?.path();
            let text = match fs::read(&path) {
                // It has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(failed("read", &path))?,
            };
            let cached = serde_json::from_slice::<Cached>(&text);
            if cached.is_ok_and(|cached| matches!(conflist::without_entry(&cached.config.0), Ok(Some(_)))) {
                return Ok(true);
            }
        }
        Ok(false)
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
    use std::time::Instant;

    use serde_json::json;

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
                cache: path("results"),
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
    fn the_binary_stays_while_pods_run_that_were_started_with_it() {
        let node = Node::new();
        let (list, results) = (node.conf("10-ptp.conflist"), node.directory.path().join("results"));
        fs::create_dir(&results).unwrap();
        let start = |pod: &str| {
            let config = ByteString(fs::read(&list).unwrap());
            let cached = json!({"kind": "cniCacheV1", "containerId": pod, "config": config});
            fs::write(results.join(format!("net-{pod}-eth0")), cached.to_string()).unwrap();
        };
        fs::write(&list, LIST).unwrap();
        start("before");
        node.installer.install().unwrap();
        start("with");
        fs::write(results.join("strange"), "{").unwrap();
        let binary = node.directory.path().join("bin").join(TYPE);
        let removed = node.installer.uninstall().unwrap();
        assert_eq!(
            (removed.files, removed.kept),
            (vec![list.clone()], Some(binary.clone()))
        );
        assert!(!node.has_entry("10-ptp.conflist"), "no pod starts with it any more");
        fs::remove_file(results.join("net-with-eth0")).unwrap();
        let removed = node.installer.uninstall().unwrap();
        assert_eq!((removed.files, removed.kept), (vec![binary], None));
    }

    #[test]
    fn a_directory_that_cannot_be_watched_is_looked_at() {
        let node = Node::new();
        // No more can be watched of it than where the kernel has no inotify instance left.
        fs::remove_dir(node.directory.path().join("net.d")).unwrap();
        let (told, problems) = mpsc::channel();
        let cancel = CancellationToken::new();
        std::thread::scope(|scope| {
            let stop = cancel.clone().drop_guard();
            scope.spawn(|| node.installer.keep(&cancel, |problem| told.send(problem).unwrap()));
            let next = || problems.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(next().unwrap().starts_with("failed to read"));
            fs::create_dir(node.directory.path().join("net.d")).unwrap();
            fs::write(node.conf("10-ptp.conflist"), LIST).unwrap();
            let mut problem = next();
            while problem.is_some() {
                problem = next();
            }
            assert!(node.has_entry("10-ptp.conflist"));
            drop(stop);
        });
    }

    #[test]
    fn an_entry_that_is_taken_out_comes_back() {
        let node = Node::new();
        let (told, problems) = mpsc::channel();
        let cancel = CancellationToken::new();
        std::thread::scope(|scope| {
            let stop = cancel.clone().drop_guard();
            scope.spawn(|| node.installer.keep(&cancel, |problem| told.send(problem).unwrap()));
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
