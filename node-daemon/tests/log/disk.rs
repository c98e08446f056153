// SPDX-License-Identifier: Apache-2.0
//! Disks that cannot be written, or not for now.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio_util::sync::CancellationToken;
use wardline_crds::config::DaemonConfig;
use wardline_node::events::{FileOptions, LogFile, LogHealth, Succession, follow_events};
use wardline_node::metrics::Metrics;

use crate::support::{Life, Node, on_a_node, output};
use crate::{Count, Traffic, desired, written};

const AGGREGATION: Duration = Duration::from_millis(100);
/// Longer than a closed generation waits to be written.
const LONG: Duration = Duration::from_mins(6);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a disk hangs, and connections meanwhile.
const HANG: Duration = Duration::from_secs(5);
const MANY: u64 = 100_000;

/// A small disk of its own for the log.
struct Disk {
    options: FileOptions,
    directory: PathBuf,
}

impl Disk {
    fn new(node: &Node, size: &str, min_free_percent: u32) -> Self {
        let directory = node.state.join("log");
        fs::create_dir_all(&directory).unwrap();
        mount(Some("tmpfs"), &directory, Some("tmpfs"), MsFlags::empty(), Some(size)).unwrap();
        let options = FileOptions {
            path: directory.join("policy_action.log"),
            min_free_percent,
            ..node.file_options()
        };
        Self { options, directory }
    }

    fn start(&self, node: &Node) -> Life {
        node.start_logging_to(&DaemonConfig::default(), self.options.clone(), AGGREGATION)
    }

    fn path(&self) -> &Path {
        &self.options.path
    }

    /// Somebody else uses all that is free.
    fn fill(&self) {
        let mut file = File::create(self.directory.join("other")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.directory.join("other")).unwrap();
    }

    fn remount(&self, flags: MsFlags) {
        let none = None::<&str>;
        mount(none, &self.directory, none, MsFlags::MS_REMOUNT | flags, none).unwrap();
    }
}

/// A disk for the log with a file system as nodes have it.
struct RealDisk {
    disk: Disk,
    image: PathBuf,
}

impl RealDisk {
    fn new(node: &Node) -> Self {
        let directory = node.state.join("log");
        fs::create_dir_all(&directory).unwrap();
        let image = node.state.join("image");
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        output("mkfs.ext4", &["-q", image.to_str().unwrap()]);
        let options = FileOptions {
            path: directory.join("policy_action.log"),
            ..node.file_options()
        };
        let disk = Disk { options, directory };
        let real = Self { disk, image };
        real.mount();
        real
    }

    fn mount(&self) {
        let (image, at) = (self.image.to_str().unwrap(), self.disk.directory.to_str().unwrap());
        // Some kernels take delayed writes after an error, and drop them.
        output("mount", &["-o", "loop,errors=remount-ro,nodelalloc", image, at]);
    }

    /// Lets it take writes, but not end them.
    fn freeze(&self) -> Frozen<'_> {
        output("fsfreeze", &["--freeze", self.disk.directory.to_str().unwrap()]);
        Frozen(&self.disk)
    }

    /// It finds an error, and takes no writes any more, also to files that are open.
    fn fail(&self) {
        // What is not on it would not be there after it is mounted again.
        File::open(self.disk.path()).unwrap().sync_all().unwrap();
        let device = output("findmnt", &["-no", "SOURCE", self.disk.directory.to_str().unwrap()]);
        let device = Path::new(device.trim()).file_name().unwrap();
        let error = Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error");
        fs::write(error, "1").unwrap();
    }

    /// Somebody mends it, for which no file on it may be open.
    fn mend(&self) {
        umount2(&self.disk.directory, MntFlags::empty()).unwrap();
        self.mount();
    }
}

/// Thaws its disk where it ends: else a thread that writes to it hangs for good.
struct Frozen<'a>(&'a Disk);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        output("fsfreeze", &["--unfreeze", self.0.directory.to_str().unwrap()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

/// Does once what the events thread does all the time.
fn step(life: &mut Life) {
    while life.log.drain().unwrap_or(false) {}
    let _ = life.log.close_if_due(Instant::now());
}

/// Lets the events thread work until a condition holds.
#[track_caller]
fn until(life: &mut Life, what: &str, mut holds: impl FnMut(&Life) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds(life) {
        assert!(
            Instant::now() < end,
            "{what}: {:?}, {:?}",
            life.log.stopped(),
            life.log.figures()
        );
        step(life);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All that was sent is written or told as lost, once.
#[track_caller]
fn check(life: &mut Life, disk: &Disk, sent: Count) -> crate::Written {
    for _ in 0..2 {
        while life.log.drain().unwrap() {}
        life.log.close().unwrap();
        assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
    }
    let written = written(disk.path());
    assert_eq!(written.all(), sent, "{written:?}");
    written
}

#[test]
fn a_full_disk_loses_nothing_that_the_kernel_can_keep() {
    for (percent, problem) in [
        (0, "No space left on device (os error 28)"),
        (30, "less than 30% of its file system is free"),
    ] {
        on_a_node(1, |node| {
            let disk = Disk::new(node, "size=2m", percent);
            let mut life = disk.start(node);
            life.apply(&desired(node));
            let mut traffic = Traffic::of(node, &life);
            traffic.send(50, 20);
            check(&mut life, &disk, traffic.sent);

            disk.fill();
            traffic.send(1000, 100);
            until(&mut life, "the disk is full", |life| life.log.stopped().is_some());
            let told = life.log.stopped().unwrap();
            assert!(
                told.starts_with("failed to write policy log ") && told.ends_with(problem),
                "{told}"
            );
            assert!(life.log.figures().is_stopped && life.log.figures().write_errors > 0);
            // Nothing of what failed stands in the file, and a kill meanwhile changes nothing.
            assert_eq!(written(disk.path()).all(), Count { allow: 50, deny: 20 });
            life = disk.start(node);
            traffic.send(100, 10);
            until(&mut life, "the disk is still full", |life| life.log.stopped().is_some());

            disk.make_room();
            until(&mut life, "there is room", |life| life.log.stopped().is_none());
            let written = check(&mut life, &disk, traffic.sent);
            assert_eq!(written.losses, Count::default(), "{written:?}");
        });
    }
}

/// The files that were kept are what fills the disk.
#[test]
fn old_files_that_are_too_many_go_while_nothing_can_be_written() {
    for waits in [false, true] {
        on_a_node(1, |node| {
            let mut disk = Disk::new(node, "size=4m", 30);
            let old = |i: usize| {
                let name = format!("policy_action-2026-01-01T00-00-{i:02}.000000.log");
                disk.directory.join(name)
            };
            for i in 0..40 {
                let line = r#"{"disposition":"allow"}"#.to_owned() + &" ".repeat(80_000);
                fs::write(old(i), line + "\n").unwrap();
            }
            disk.options.max_files = 4;
            let mut life = disk.start(node);
            assert!(life.log.stopped().is_some());
            life.apply(&desired(node));
            let mut traffic = Traffic::of(node, &life);
            if waits {
                traffic.send(50, 20);
                life.log.close().unwrap_err();
            }
            until(&mut life, "there is room", |life| life.log.stopped().is_none());
            until(&mut life, "all that is too much is deleted", |life| {
                life.log.ledger().deleted_records == [36, 0, 0]
            });
            let left: Vec<_> = (0..40).filter(|i| old(*i).exists()).collect();
            assert_eq!(left, [36, 37, 38, 39]);
            (36..40).for_each(|i| fs::remove_file(old(i)).unwrap());
            traffic.send(1, 1);
            check(&mut life, &disk, traffic.sent);
        });
    }
}

#[test]
fn what_a_disk_that_stays_full_costs_is_counted_and_told_through_restarts() {
    on_a_node(8, |node| {
        let disk = Disk::new(node, "size=96m", 0);
        let mut life = disk.start(node);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        disk.fill();
        // More connections than half of the ring holds.
        for _ in 0..7 {
            traffic.send(10_000, 100);
            until(&mut life, "room is made in the ring", |life| {
                life.log.figures().backlog <= 4 << 20
            });
        }
        let lost = |life: &Life, verdict: usize| -> u64 {
            life.log
                .ledger()
                .lost
                .iter()
                .map(|causes| causes[verdict].iter().sum::<u64>())
                .sum()
        };
        let (allows, denies) = (0, 1);
        let given_up = [lost(&life, allows), lost(&life, denies)];
        assert!(
            (10_000..70_000).contains(&given_up[allows]) && given_up[denies] == 0,
            "{given_up:?}"
        );

        // The rest waits, and is given up in the end: what is of a generation that is closed, and of the one after it.
        for _ in 0..2 {
            let closed = life.log.close().unwrap_err().to_string();
            assert!(closed.starts_with("failed to write policy log "), "{closed}");
            life.log.close_if_due(Instant::now() + LONG).unwrap();
        }
        assert_eq!([lost(&life, allows), lost(&life, denies)], [70_000, 700]);
        assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
        drop(life);

        let mut life = disk.start(node);
        traffic.send(500, 50);
        until(&mut life, "the disk is still full", |life| life.log.stopped().is_some());
        drop(life);
        let mut life = disk.start(node);
        disk.make_room();
        until(&mut life, "there is room", |life| life.log.stopped().is_none());
        let written = check(&mut life, &disk, traffic.sent);
        assert_eq!(
            written.losses,
            Count {
                allow: 70_000,
                deny: 700
            }
        );
        assert!(written.why.iter().eq(["disk-full"]), "{written:?}");
        assert_eq!(written.lines, 552, "a line each for what was given up");
        drop(life);
        // What is told once is told.
        check(&mut disk.start(node), &disk, traffic.sent);
    });
}

#[test]
fn a_read_only_disk_keeps_no_daemon_from_enforcing() {
    on_a_node(1, |node| {
        let disk = Disk::new(node, "size=2m", 12);
        let mut life = disk.start(node);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        traffic.send(50, 20);
        step(&mut life);
        drop(life);
        disk.remount(MsFlags::MS_RDONLY);
        let mut life = disk.start(node);
        let told = life.log.stopped().unwrap();
        assert!(told.ends_with("Read-only file system (os error 30)"), "{told}");
        life.apply(&desired(node));
        traffic.send(50, 20);
        step(&mut life);
        disk.remount(MsFlags::empty());
        until(&mut life, "the disk is writable", |life| life.log.stopped().is_none());
        let written = check(&mut life, &disk, traffic.sent);
        assert_eq!(written.losses, Count::default());
    });
}

/// As most file systems of nodes do it after an error: the file is open, and no write to it succeeds.
#[test]
fn what_a_disk_costs_that_fails_under_the_open_file_is_counted_and_told() {
    on_a_node(8, |node| {
        let real = RealDisk::new(node);
        let disk = &real.disk;
        let mut life = disk.start(node);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        traffic.send(50, 20);
        check(&mut life, disk, traffic.sent);
        real.fail();
        // More connections than half of the ring holds.
        for _ in 0..6 {
            traffic.send(10_000, 100);
            until(&mut life, "room is made in the ring", |life| {
                life.log.stopped().is_some() && life.log.figures().backlog <= 4 << 20
            });
        }
        let told = life.log.stopped().unwrap();
        assert!(told.starts_with("failed to ") && told.contains("(os error "), "{told}");
        for _ in 0..2 {
            let _ = life.log.close();
            let _ = life.log.close_if_due(Instant::now() + LONG);
        }
        assert_eq!(life.log.imbalance(), Some([[0; 2]; 2]));
        traffic.send(500, 50);
        step(&mut life);
        drop(life);
        real.mend();
        let mut life = disk.start(node);
        until(&mut life, "it is mended", |life| life.log.stopped().is_none());
        let written = check(&mut life, disk, traffic.sent);
        assert!(written.why.iter().eq(["write-error"]), "{written:?}");
        assert_eq!(
            written.losses,
            Count {
                allow: 60_000,
                deny: 600
            }
        );
    });
}

#[test]
fn something_else_in_the_files_place_is_told_until_it_is_gone() {
    on_a_node(1, |node| {
        let disk = Disk::new(node, "size=2m", 0);
        let mut life = disk.start(node);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        traffic.send(50, 20);
        check(&mut life, &disk, traffic.sent);
        // Named as a rotated file, so that its lines are found again.
        let moved = disk.directory.join("policy_action-2026-01-01T00-00-00.000000.log");
        fs::rename(disk.path(), &moved).unwrap();
        nix::unistd::mkfifo(disk.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        traffic.send(50, 20);
        until(&mut life, "a named pipe", |life| {
            life.log.stopped().is_some_and(|told| told.contains("a named pipe"))
        });
        // Long enough for denies to be given up: the cause is not the disk.
        let _ = life.log.close();
        life.log.close_if_due(Instant::now() + LONG).unwrap();
        fs::remove_file(disk.path()).unwrap();
        traffic.send(50, 20);
        until(&mut life, "the pipe is gone", |life| life.log.stopped().is_none());
        let written = check(&mut life, &disk, traffic.sent);
        assert!(written.why.iter().eq(["write-error"]), "{written:?}");
        assert_eq!(written.losses, Count { allow: 50, deny: 20 });
    });
}

/// A writer that hangs holds up no packet; what finds no room meanwhile is lost, told, and counted to the packet.
#[test]
fn what_a_disk_that_hangs_costs_is_counted_and_told() {
    on_a_node(8, |node| {
        let real = RealDisk::new(node);
        let disk = &real.disk;
        let mut life = disk.start(node);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        let (metrics, cancel) = (Metrics::new().unwrap(), CancellationToken::new());
        let told = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let tell = |health: &LogHealth| {
                told.lock().unwrap().push(health.stopped.clone());
                true
            };
            let (metrics, cancel) = (&metrics, &cancel);
            let follower =
                scope.spawn(move || follow_events(life.log, Succession::none(), metrics, cancel, || true, tell));
            let _ends = cancel.clone().drop_guard();
            let shown = |stopped: &str| {
                let end = Instant::now() + PATIENCE;
                while metric(metrics, "wardline_log_stopped") != stopped {
                    assert!(Instant::now() < end, "wardline_log_stopped is not {stopped}");
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            let written_at_last = |lines: u64| {
                let end = Instant::now() + PATIENCE;
                while written(disk.path()).lines < lines {
                    assert!(Instant::now() < end, "{:?}", written(disk.path()));
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            traffic.send(50, 20);
            written_at_last(70);
            let frozen = real.freeze();
            let began = Instant::now();
            // More connections than the ring holds, and for longer than denies are aggregated.
            while traffic.sent.allow < MANY || began.elapsed() < HANG {
                if traffic.sent.allow < MANY {
                    traffic.send(2000, 500);
                } else {
                    traffic.send(0, 10);
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            assert_eq!(
                written(disk.path()).lines,
                70,
                "nothing is written to a disk that hangs"
            );
            // While it hangs, though whoever writes can tell nothing.
            shown("1");
            let problem = format!(
                "failed to write policy log {}: its disk has not answered for more than 10 s",
                disk.path().display()
            );
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(*told.lock().unwrap(), [Some(problem.clone())], "once");
            drop(frozen);
            shown("0");
            assert_eq!(*told.lock().unwrap(), [Some(problem), None]);
            cancel.cancel();
            follower.join().unwrap().unwrap();
        });
        let written = check(&mut disk.start(node), disk, traffic.sent);
        println!("{:?} sent, {written:?}", traffic.sent);
        assert!(written.why.iter().eq(["ring-full"]), "{written:?}");
        assert!(
            written.losses.allow > MANY / 4 && written.records.allow > MANY / 4,
            "{written:?}"
        );
        assert_eq!(written.losses.deny, 0, "denies are aggregated meanwhile");
    });
}

/// A value of the daemon's metrics, without labels.
fn metric(metrics: &Metrics, name: &str) -> String {
    let text = String::from_utf8(metrics.encode().unwrap()).unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
}

#[test]
fn that_nothing_is_written_is_told_until_it_is_heard_and_so_is_the_end_of_it() {
    on_a_node(1, |node| {
        let disk = Disk::new(node, "size=2m", 12);
        let mut life = disk.start(node);
        life.apply(&desired(node));
        let mut traffic = Traffic::of(node, &life);
        disk.fill();
        traffic.send(50, 20);
        let (metrics, cancel) = (Metrics::new().unwrap(), CancellationToken::new());
        let told = Mutex::new(Vec::new());
        let heard = |count: usize| {
            let end = Instant::now() + PATIENCE;
            while told.lock().unwrap().len() < count {
                assert!(Instant::now() < end, "{:?}", told.lock().unwrap());
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let shown = |stopped: &str| {
            let end = Instant::now() + PATIENCE;
            while metric(&metrics, "wardline_log_stopped") != stopped {
                assert!(Instant::now() < end, "wardline_log_stopped is not {stopped}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        std::thread::scope(|scope| {
            let follower = scope.spawn(|| {
                follow_events(
                    life.log,
                    Succession::none(),
                    &metrics,
                    &cancel,
                    || true,
                    |health| {
                        let mut told = told.lock().unwrap();
                        told.push(health.stopped.clone());
                        // Whoever is told is busy at first.
                        told.len() > 1
                    },
                )
            });
            heard(2);
            shown("1");
            assert_ne!(metric(&metrics, "wardline_log_write_errors_total"), "0");
            disk.make_room();
            heard(3);
            shown("0");
            cancel.cancel();
            follower.join().unwrap().unwrap();
        });
        let problem = format!(
            "failed to write policy log {}: less than 12% of its file system is free",
            disk.path().display()
        );
        assert_eq!(*told.lock().unwrap(), [Some(problem.clone()), Some(problem), None]);
        check(&mut disk.start(node), &disk, traffic.sent);
    });
}

/// As a container keeps it: of the directory on the node only the mount is left.
#[test]
fn a_directory_that_is_deleted_outside_of_the_container_is_told() {
    on_a_node(0, |node| {
        let (outside, inside) = (node.state.join("outside"), node.state.join("inside"));
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir(&inside).unwrap();
        let none = None::<&str>;
        mount(Some(&outside), &inside, none, MsFlags::MS_BIND, none).unwrap();
        let mut file = LogFile::new(FileOptions {
            path: inside.join("policy_action.log"),
            ..node.file_options()
        });
        file.append(b"one\n").unwrap();
        fs::remove_dir_all(&outside).unwrap();
        let told = file.append(b"two\n").unwrap_err().to_string();
        assert!(
            told.ends_with("its directory was deleted on the node; restart the daemon"),
            "{told}"
        );
        umount2(&inside, MntFlags::MNT_DETACH).unwrap();
    });
}
