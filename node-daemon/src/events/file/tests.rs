// SPDX-License-Identifier: Apache-2.0

use std::fs::{self, FileTimes};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::excess::Contents;
use super::*;

fn options(directory: &Path) -> FileOptions {
    FileOptions {
        path: directory.join("policy_action.log"),
        max_size: 100,
        max_files: 2,
        max_age: None,
        min_free_percent: 0,
    }
}

/// A log in a directory of its own.
struct Log {
    file: LogFile,
    path: PathBuf,
    directory: tempfile::TempDir,
}

impl Log {
    fn new(change: impl FnOnce(&mut FileOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        change(&mut options);
        Self {
            path: options.path.clone(),
            file: LogFile::new(options),
            directory,
        }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }

    fn old(&self) -> Vec<PathBuf> {
        let old = self.file.rotated.list().unwrap();
        old.into_iter().map(|old| old.path).collect()
    }

    /// Deletes what is too much, and returns what stood in it.
    fn delete_excess(&mut self) -> Vec<Contents> {
        let mut deleted = Vec::new();
        loop {
            match self.file.count_excess(1, 0).unwrap() {
                Some(excess) => {
                    deleted.push(excess.contents.unwrap());
                    self.file.delete(&excess).unwrap();
                }
                None if matches!(self.file.counting, Counting::Done) => return deleted,
                None => {}
            }
        }
    }
}

/// A record of so many bytes, line feed included.
fn record(disposition: &str, length: usize) -> String {
    let line = format!(r#"{{"disposition":"{disposition}","pad":""#);
    let pad = "x".repeat(length - line.len() - 3);
    format!("{line}{pad}\"}}\n")
}

#[test]
fn cuts_a_torn_line_and_keeps_whole_ones() {
    for (before, after) in [
        ("one\ntwo\nhal", "one\ntwo\n"),
        ("hal", ""),
        ("one\n", "one\n"),
        ("", ""),
    ] {
        let mut log = Log::new(|_| {});
        fs::write(&log.path, before).unwrap();
        log.file.append(b"three\n").unwrap();
        assert_eq!(log.text(), format!("{after}three\n"));
    }
}

#[test]
fn rotates_by_size_and_keeps_so_many() {
    let mut log = Log::new(|_| {});
    for i in 0..10 {
        log.file.append(format!("{i}{}\n", "x".repeat(58)).as_bytes()).unwrap();
        log.delete_excess();
    }
    assert_eq!(log.file.rotations(), 9);
    assert_eq!(log.old().len(), 2);
    let mut newest = Vec::new();
    log.file
        .last_lines(|line| {
            newest.push(line[0]);
            true
        })
        .unwrap();
    assert_eq!(newest, b"987", "the file in use, then those before");
}

#[test]
fn rotates_by_age_also_where_nothing_is_written() {
    let mut log = Log::new(|options| {
        options.max_size = 1 << 20;
        options.max_age = Some(Duration::from_millis(50));
    });
    log.file.prepare().unwrap();
    std::thread::sleep(Duration::from_millis(60));
    log.file.rotate_if_old().unwrap();
    assert_eq!(log.old().len(), 0, "an empty file does not age");
    log.file.append(b"one\n").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    log.file.append(b"two\n").unwrap();
    assert_eq!(log.text(), "two\n");
    std::thread::sleep(Duration::from_millis(60));
    log.file.rotate_if_old().unwrap();
    assert_eq!((log.text().as_str(), log.file.rotations()), ("", 2));
    let old: Vec<_> = log.old().iter().map(|old| fs::read_to_string(old).unwrap()).collect();
    assert_eq!(old, ["one\n", "two\n"]);
}

#[test]
fn the_last_lines_stay_until_there_are_newer_ones() {
    for max_files in [0, 1] {
        let mut log = Log::new(|options| {
            options.max_files = max_files;
            options.max_age = Some(Duration::from_millis(50));
        });
        log.file.append(b"one\n").unwrap();
        std::thread::sleep(Duration::from_millis(60));
        log.file.rotate_if_old().unwrap();
        assert_eq!(log.text(), "");
        assert_eq!(log.delete_excess(), []);
        assert_eq!(log.old().len(), 1, "{max_files}");
        log.file.append(b"two\n").unwrap();
        log.delete_excess();
        assert_eq!(log.old().len(), max_files as usize);
    }
}

#[test]
fn age_goes_on_over_a_restart() {
    let mut log = Log::new(|options| options.max_age = Some(Duration::from_millis(50)));
    log.file.append(b"one\n").unwrap();
    std::thread::sleep(Duration::from_millis(60));
    log.file = LogFile::new(log.file.options.clone());
    log.file.append(b"two\n").unwrap();
    assert_eq!((log.text().as_str(), log.old().len()), ("two\n", 1));
}

#[test]
fn names_of_old_files_go_up_whatever_the_clock_does() {
    let mut log = Log::new(|options| options.max_files = 10);
    let future = log
        .directory
        .path()
        .join("policy_action-2999-12-31T23-59-59.999999.log");
    fs::write(&future, "from the future\n").unwrap();
    let foreign = log.directory.path().join("policy_action-yesterday.log");
    fs::write(&foreign, "not ours\n").unwrap();
    for i in 0..3 {
        log.file.append(format!("{i}{}\n", "x".repeat(58)).as_bytes()).unwrap();
    }
    let old = log.old();
    let names: Vec<_> = old
        .iter()
        .map(|old| old.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "policy_action-2999-12-31T23-59-59.999999.log",
            "policy_action-3000-01-01T00-00-00.000000.log",
            "policy_action-3000-01-01T00-00-00.000001.log",
        ]
    );
    assert_eq!(fs::read_to_string(&future).unwrap(), "from the future\n");
    assert!(fs::read_to_string(&old[2]).unwrap().starts_with('1'));
}

#[test]
fn what_is_deleted_is_counted_line_by_line() {
    let mut log = Log::new(|options| {
        options.max_size = 1 << 20;
        options.max_files = 1;
    });
    let lines: String = [
        ("allow", 60_000),
        ("deny", 70_001),
        ("lost", 300),
        ("deny", 65_536),
        ("allow", 131_072),
    ]
    .iter()
    .map(|(disposition, length)| record(disposition, *length))
    .collect();
    // A text that looks like a disposition is escaped; a line that is none, and one that is torn, are no records.
    let trap = "{\"name\":\"\\\"disposition\\\":\\\"lost\\\"\",\"disposition\":\"allow\"}\nnot a record\n{\"disposition\":\"deny\"";
    let all = format!("{lines}{trap}");
    let oldest = log
        .directory
        .path()
        .join("policy_action-2026-01-01T00-00-00.000000.log");
    fs::write(&oldest, &all).unwrap();
    log.file.append(record("deny", 1 << 19).as_bytes()).unwrap();
    assert_eq!(log.delete_excess(), []);
    log.file.append(record("deny", 1 << 20).as_bytes()).unwrap();
    let counted = Contents {
        bytes: all.len() as u64,
        records: [3, 2, 1],
    };
    assert_eq!(log.delete_excess(), [counted]);
    assert!(!oldest.exists() && log.old().len() == 1);
}

#[test]
fn a_file_that_is_counted_is_not_counted_again() {
    let mut log = Log::new(|options| options.max_files = 0);
    log.file.append(record("deny", 90).as_bytes()).unwrap();
    log.file.append(record("deny", 90).as_bytes()).unwrap();
    let excess = loop {
        if let Some(excess) = log.file.count_excess(1 << 20, 0).unwrap() {
            break excess;
        }
    };
    // The daemon is killed between counting and deleting.
    log.file = LogFile::new(log.file.options.clone());
    log.file.prepare().unwrap();
    let again = log.file.count_excess(1 << 20, excess.id).unwrap().unwrap();
    assert_eq!((again.id, again.contents), (excess.id, None));
    log.file.delete(&again).unwrap();
    log.file.delete(&again).unwrap();
    assert_eq!(log.old().len(), 0);
}

#[test]
fn a_moved_deleted_or_emptied_file_is_begun_anew() {
    let mut log = Log::new(|_| {});
    let moved = log.directory.path().join("moved");
    let after = |log: &mut Log, what: &str, change: &dyn Fn(&Path)| {
        change(&log.path);
        log.file.append(what.as_bytes()).unwrap();
        assert_eq!(log.text(), what);
    };
    log.file.append(b"one\n").unwrap();
    after(&mut log, "two\n", &|path| fs::rename(path, &moved).unwrap());
    assert_eq!(fs::read_to_string(&moved).unwrap(), "one\n");
    after(&mut log, "three\n", &|path| fs::remove_file(path).unwrap());
    after(&mut log, "four\n", &|path| fs::write(path, "").unwrap());
    after(&mut log, "five\n", &|path| {
        fs::rename(&moved, path).and_then(|()| fs::write(path, "torn")).unwrap();
    });
    after(&mut log, "six\n", &|path| {
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    });
    assert_eq!(fs::metadata(&log.path).unwrap().permissions().mode() & 0o7777, 0o640);
}

/// As logrotate does it with `create 0644` before the daemon notices, and as an umask of the daemon would have it.
#[test]
fn a_file_that_somebody_made_anew_is_not_for_everybody() {
    for mode in [0o644, 0o666, 0o600, 0o4755] {
        let mut log = Log::new(|_| {});
        log.file.append(b"one\n").unwrap();
        fs::remove_file(&log.path).unwrap();
        fs::write(&log.path, "").unwrap();
        fs::set_permissions(&log.path, fs::Permissions::from_mode(mode)).unwrap();
        log.file.append(b"two\n").unwrap();
        let found = fs::metadata(&log.path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, 0o640, "{mode:o}");
    }
}

#[test]
fn a_line_that_is_cut_in_place_is_taken_out() {
    for (length, left) in [(0, ""), (2, ""), (4, "one\n"), (6, "one\n"), (8, "one\ntwo\n")] {
        let mut log = Log::new(|_| {});
        log.file.append(b"one\ntwo\n").unwrap();
        let file = fs::File::options().write(true).open(&log.path).unwrap();
        file.set_len(length).unwrap();
        log.file.append(b"three\n").unwrap();
        assert_eq!(log.text(), format!("{left}three\n"));
        assert_eq!(log.file.position().size, log.text().len() as u64);
    }
}

#[test]
fn a_file_ages_from_its_first_line_on_also_over_a_restart() {
    let second = 1_000_000_000;
    let now = crate::clock::wall();
    let line = |time: u64| {
        let time = serde_json::to_string(&wardline_record::Timestamp(time)).unwrap();
        format!("{{\"timestamp\":{time},\"seq\":\"1-r8\"}}\n")
    };
    for (time, is_old) in [(now, false), (now - 3600 * second, true), (now + 3600 * second, false)] {
        let mut log = Log::new(|options| options.max_age = Some(Duration::from_millis(50)));
        // It was begun, or emptied, long before.
        log.file.prepare().unwrap();
        std::thread::sleep(Duration::from_millis(60));
        log.file = LogFile::new(log.file.options.clone());
        let first = line(if time == now { crate::clock::wall() } else { time });
        fs::write(&log.path, &first).unwrap();
        log.file.append(b"two\n").unwrap();
        assert_eq!(log.old().len(), usize::from(is_old), "{first}");
    }
}

type Make<'a> = &'a dyn Fn(&Path);

#[test]
fn what_is_not_a_file_is_refused_and_neither_followed_nor_waited_for() {
    let aside = tempfile::tempdir().unwrap();
    let secret = aside.path().join("secret");
    fs::write(&secret, "secret\n").unwrap();
    let kinds: [(&str, Make<'_>); 5] = [
        ("a symbolic link", &|path| symlink(&secret, path).unwrap()),
        ("a symbolic link", &|path| {
            symlink(aside.path().join("nowhere"), path).unwrap();
        }),
        ("a named pipe", &|path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("a directory", &|path| fs::create_dir(path).unwrap()),
        ("a socket", &|path| drop(UnixListener::bind(path).unwrap())),
    ];
    for (what, make) in kinds {
        let mut log = Log::new(|_| {});
        log.file.append(b"one\n").unwrap();
        fs::rename(&log.path, aside.path().join("moved")).unwrap();
        make(&log.path);
        let error = log.file.append(b"two\n").unwrap_err();
        let expected = format!(
            "failed to open policy log {}: it is {what}, not a regular file; move it away",
            log.path.display()
        );
        assert_eq!(error.to_string(), expected);
        assert!(!error.is_disk_full());
        assert!(log.file.append(b"two\n").is_err(), "{what}: still");
        fs::rename(&log.path, log.directory.path().join("away")).unwrap();
        log.file.append(b"two\n").unwrap();
        assert_eq!(log.text(), "two\n");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    assert!(!aside.path().join("nowhere").exists());
}

#[test]
fn a_directory_that_is_a_file_is_told() {
    let mut log = Log::new(|_| {});
    fs::remove_dir(log.directory.path()).unwrap();
    fs::write(log.directory.path(), "").unwrap();
    let error = log.file.append(b"one\n").unwrap_err().to_string();
    assert!(error.starts_with("failed to open policy log "), "{error}");
    fs::remove_file(log.directory.path()).unwrap();
    log.file.append(b"one\n").unwrap();
}

#[test]
fn nothing_is_written_below_the_floor() {
    let mut log = Log::new(|options| options.min_free_percent = 100);
    let error = log.file.append(b"one\n").unwrap_err();
    assert!(error.is_disk_full());
    assert!(
        error.to_string().ends_with("less than 100% of its file system is free"),
        "{error}"
    );
    assert_eq!(log.text(), "");
}

#[test]
fn a_file_older_than_its_time_of_birth_can_tell_is_not_rotated_for_it() {
    let mut log = Log::new(|options| options.max_age = Some(Duration::from_hours(1)));
    log.file.append(b"one\n").unwrap();
    let touched = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
    let file = fs::File::options().write(true).open(&log.path).unwrap();
    file.set_times(touched).unwrap();
    log.file = LogFile::new(log.file.options.clone());
    log.file.append(b"two\n").unwrap();
    assert_eq!(
        log.old().len(),
        0,
        "what somebody says about the time of its last write is not its age"
    );
}
