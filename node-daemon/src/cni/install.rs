// SPDX-License-Identifier: Apache-2.0
//! The plugin on the node: its binary among the node's plugins, and its entry in the configuration list that the
//! runtime uses. Kept there, since whoever owns that list writes it anew when it likes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::ByteString;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
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

/// What of the plugin is on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Configurations that have our entry.
    pub lists: Vec<PathBuf>,
    /// What libcni keeps of pods that run and were started with such a list.
    pub cached: Vec<PathBuf>,
    pub binary: Option<PathBuf>,
}

/// What libcni keeps of a pod, as far as it matters here.
#[derive(Serialize, Deserialize)]
struct Cached {
    config: ByteString,
    #[serde(flatten)]
    others: serde_yaml::Mapping,
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

    /// What is there of the plugin.
    pub fn find(&self) -> Result<Installed, InstallError> {
        let binary = self.bin_dir.join(TYPE);
        Ok(Installed {
            lists: self.edits_of_lists()?.into_iter().map(|(path, _)| path).collect(),
            cached: self.edits_of_cached()?.into_iter().map(|(path, _)| path).collect(),
            binary: binary.exists().then_some(binary),
        })
    }

    /// Takes our entry out of the node's configurations: pods that start from now on do without it. Returns those that
    /// had it.
    pub fn take_entries(&self) -> Result<Vec<PathBuf>, InstallError> {
        let edits = self.edits_of_lists()?;
        for (list, edited) in &edits {
            replace(list, edited, None)?;
        }
        Ok(edits.into_iter().map(|(list, _)| list).collect())
    }

    /// Takes the binary away, and our entry out of what runtimes keep of pods that run: CRI-O ends a pod by the list that
    /// it was started with, and where a plugin of that is not there, the pod never ends (`loadNetworkFromCache` in
    /// ocicni). Returns what was changed or removed.
    pub fn take_binary(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut taken = Vec::new();
        for (cached, edited) in self.edits_of_cached()? {
            if exchange(&cached, &edited)? {
                taken.push(cached);
            }
        }
        let binary = self.bin_dir.join(TYPE);
        match fs::remove_file(&binary) {
            Ok(()) => taken.push(binary),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(failed("remove", &binary)(cause)),
        }
        Ok(taken)
    }

    /// Configurations that have our entry, and their text without it.
    fn edits_of_lists(&self) -> Result<Vec<(PathBuf, Vec<u8>)>, InstallError> {
        let mut edits = Vec::new();
        for list in self.configurations()? {
            let text = fs::read(&list).map_err(failed("read", &list))?;
            // What is no list cannot have an entry of ours.
            if let Ok(Some(edited)) = conflist::without_entry(&text) {
                edits.push((list, edited.into_bytes()));
            }
        }
        Ok(edits)
    }

    /// The same of what libcni keeps of pods that run.
    fn edits_of_cached(&self) -> Result<Vec<(PathBuf, Vec<u8>)>, InstallError> {
        let pods = match fs::read_dir(&self.cache) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            pods => pods.map_err(failed("read", &self.cache))?,
        };
        let mut edits = Vec::new();
        for pod in pods {
            let path = pod.map_err(failed("read", &self.cache))?.path();
            let text = match fs::read(&path) {
                // It has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(failed("read", &path))?,
            };
            let Ok(mut cached) = serde_json::from_slice::<Cached>(&text) else {
                continue;
            };
            if let Ok(Some(edited)) = conflist::without_entry(&cached.config.0) {
                cached.config = ByteString(edited.into_bytes());
                let text = serde_json::to_vec(&cached).map_err(|error| InstallError::Unusable {
                    path: path.clone(),
                    cause: error.to_string(),
                })?;
                edits.push((path, text));
            }
        }
        Ok(edits)
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
    let unfinished = write_beside(path, bytes, mode)?;
    fs::rename(&unfinished, path).map_err(|cause| {
        let _ = fs::remove_file(&unfinished);
        failed("write", path)(cause)
    })?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("write", directory))
}

/// As [`replace`], but makes no file where there is none any more. Returns whether there was one.
fn exchange(path: &Path, bytes: &[u8]) -> Result<bool, InstallError> {
    let unfinished = write_beside(path, bytes, None)?;
    let exchanged = renameat2(AT_FDCWD, &unfinished, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE);
    // The old one by now, or the new one that has no place.
    let _ = fs::remove_file(&unfinished);
    match exchanged {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(failed("write", path)(error.into())),
    }
}

/// Under a name that a runtime would not take for a configuration.
fn write_beside(path: &Path, bytes: &[u8], mode: Option<u32>) -> Result<PathBuf, InstallError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = path.with_file_name(format!(".{name}.wardline"));
    let old = || fs::metadata(path).map_or(0o600, |old| old.permissions().mode() & 0o777);
    let written = File::create(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode.unwrap_or_else(old)))?;
        file.sync_all()
    });
    written.map_err(|cause| {
        let _ = fs::remove_file(&unfinished);
        failed("write", path)(cause)
    })?;
    Ok(unfinished)
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
        let lists = ["05-new.conflist", "10-ptp.conflist"]
            .map(|name| node.conf(name))
            .to_vec();
        let binary = node.directory.path().join("bin").join(TYPE);
        let found = node.installer.find().unwrap();
        assert_eq!((&found.lists, found.binary.as_ref()), (&lists, Some(&binary)));
        assert_eq!(node.installer.take_entries().unwrap(), lists);
        assert_eq!(node.installer.take_binary().unwrap(), [binary]);
        assert!(!node.has_entry("05-new.conflist") && !node.has_entry("10-ptp.conflist"));
        assert_eq!(node.installer.find().unwrap(), Installed::default());
        assert_eq!(node.installer.take_entries().unwrap(), Vec::<PathBuf>::new());
        assert_eq!(node.installer.take_binary().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_runtimes_keep_of_pods_that_run_loses_the_entry_and_nothing_else() {
        let node = Node::new();
        let (list, results) = (node.conf("10-ptp.conflist"), node.directory.path().join("results"));
        fs::create_dir(&results).unwrap();
        let kept = |pod: &str| results.join(format!("net-{pod}-eth0"));
        let start = |pod: &str| {
            let config = ByteString(fs::read(&list).unwrap());
            let cached = json!({"kind": "cniCacheV1", "containerId": pod, "config": config,
                "ifName": "eth0", "networkName": "net", "cniArgs": [["K8S_POD_NAME", pod]], "result": {"ips": []}});
            fs::write(kept(pod), cached.to_string()).unwrap();
        };
        let read = |path: PathBuf| serde_json::from_slice::<serde_json::Value>(&fs::read(path).unwrap()).unwrap();
        fs::write(&list, LIST).unwrap();
        start("before");
        node.installer.install().unwrap();
        start("with");
        fs::write(results.join("strange"), "{").unwrap();
        let (before, mut with) = (fs::read(kept("before")).unwrap(), read(kept("with")));
        assert_eq!(node.installer.find().unwrap().cached, [kept("with")]);
        node.installer.take_entries().unwrap();
        let binary = node.directory.path().join("bin").join(TYPE);
        assert_eq!(node.installer.take_binary().unwrap(), [kept("with"), binary]);
        assert_eq!(fs::read(kept("before")).unwrap(), before);
        let without = ByteString(fs::read(&list).unwrap());
        assert!(!String::from_utf8_lossy(&without.0).contains(TYPE));
        with["config"] = json!(without);
        assert_eq!(read(kept("with")), with);
        let files = fs::read_dir(&results).unwrap().count();
        assert_eq!(files, 3, "nothing is left beside them");
    }

    #[test]
    fn of_a_pod_that_has_just_ended_nothing_is_made_again() {
        let node = Node::new();
        let path = node.directory.path().join("net-pod-eth0");
        assert!(!exchange(&path, b"{}").unwrap());
        assert_eq!(
            fs::read_dir(node.directory.path())
                .unwrap()
                .filter(|e| e.as_ref().unwrap().path() == path)
                .count(),
            0
        );
        assert!(!node.directory.path().join(".net-pod-eth0.wardline").exists());
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
