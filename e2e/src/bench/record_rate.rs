// SPDX-License-Identifier: Apache-2.0
//! How many records a second the daemon writes without losing one.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat;

use super::Effort;
use super::account::Account;
use super::connections::Setting;
use super::figure::{Figure, Target};
use super::load::count;
use super::wires::Place;
use crate::cluster::LabNode;
use crate::command::run_line;
use crate::progress::step;

/// Connections go to where nobody is (RFC 5737), and the node drops them behind the pod's edge.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const BLACKHOLE: &str = "198.51.100.0/24";

/// Lets the pod out to [`NOWHERE`]: each connection is one record.
pub const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: flood}
spec:
  podSelector: {matchLabels: {app: flood}}
  policyTypes: [Egress]
  egress:
    - to: [{ipBlock: {cidr: 198.51.100.0/24}}]
";

/// A route that drops; gone when this is dropped.
struct Blackhole<'a>(LabNode<'a>);

impl<'a> Blackhole<'a> {
    fn create(node: LabNode<'a>) -> Result<Self> {
        run_line(&format!(
            "ip -n {} route replace blackhole {BLACKHOLE}",
            node.spec.netns
        ))?;
        Ok(Self(node))
    }
}

impl Drop for Blackhole<'_> {
    fn drop(&mut self) {
        let _ = run_line(&format!(
            "ip -n {} route delete blackhole {BLACKHOLE}",
            self.0.spec.netns
        ));
    }
}

/// One rate that was tried.
#[derive(Debug, Clone, Copy)]
struct Tried {
    asked: u32,
    reached: f64,
    cpu_per_record: f64,
    moved: Account,
    /// Bytes a second: what the daemon appended, and what the disk wrote meanwhile, where the log is on one.
    appended: f64,
    to_disk: Option<f64>,
}

/// What the disk of a file has written so far, in bytes; nothing where the file is on no disk of its own, such as a
/// memory or network file system. Format: Documentation/block/stat.rst.
fn disk_bytes(path: &Path) -> Result<Option<u64>> {
    const SECTOR: u64 = 512;
    let of = || format!("failed to find the disk of {}", path.display());
    let device = fs::metadata(path).with_context(of)?.dev();
    let (major, minor) = (stat::major(device), stat::minor(device));
    let Ok(text) = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")) else {
        return Ok(None);
    };
    let sectors = text.split_whitespace().nth(6).with_context(of)?;
    Ok(Some(SECTOR * sectors.parse::<u64>().with_context(of)?))
}

/// `record_rate`, what was lost at it, and what a record costs then; the rate is raised until records are lost.
pub async fn measure(setting: &Setting<'_>, flooder: &Place, effort: &Effort) -> Result<Vec<Figure>> {
    let _blackhole = Blackhole::create(setting.node)?;
    let mut tried: Vec<Tried> = Vec::new();
    for rate in effort.rates {
        let one = try_rate(setting, flooder, *rate, effort.flood).await?;
        step(&format!(
            "  {:.0} connections/s: {} records, {} lost, {:.2} us of the daemon each",
            one.reached, one.moved.written, one.moved.lost, one.cpu_per_record
        ));
        tried.push(one);
        // Where the sender cannot keep up either, a higher rate tells nothing new.
        if one.moved.lost > 0 || one.reached < f64::from(one.asked) * 0.9 {
            break;
        }
    }
    let best = tried.iter().rev().find(|one| one.moved.lost == 0).or(tried.first());
    Ok(best.map(|best| figures(best, &tried, effort)).unwrap_or_default())
}

async fn try_rate(setting: &Setting<'_>, flooder: &Place, rate: u32, duration: Duration) -> Result<Tried> {
    let before = Account::read(setting.node).await?;
    let cpu = setting.daemon.cpu_seconds()?;
    let log = setting.node.policy_log();
    let (began, written, disk) = (Instant::now(), setting.daemon.written_bytes()?, disk_bytes(&log)?);
    let (from, server) = (flooder.address.to_string(), format!("{NOWHERE}:80"));
    let (milliseconds, asked) = (duration.as_millis().to_string(), rate.to_string());
    let args = [
        "flood",
        &server,
        "--from",
        &from,
        "--rate",
        &asked,
        "--duration",
        &milliseconds,
    ];
    let done = setting.traffic.run(flooder, &args).await?;
    let moved = before.until_written(setting.node, done.transactions).await?;
    ensure!(
        moved.due == done.transactions,
        "{} connections were opened, but the account says {moved:?}",
        done.transactions
    );
    let a_second = |bytes: u64| count(bytes) / began.elapsed().as_secs_f64();
    Ok(Tried {
        asked: rate,
        reached: done.rate(),
        cpu_per_record: (setting.daemon.cpu_seconds()? - cpu) * 1e6 / count(moved.written),
        moved,
        appended: a_second(setting.daemon.written_bytes()? - written),
        to_disk: disk.zip(disk_bytes(&log)?).map(|(before, now)| a_second(now - before)),
    })
}

fn figures(best: &Tried, tried: &[Tried], effort: &Effort) -> Vec<Figure> {
    let figure = |name: &str, value: f64, unit: &str, target: Option<Target>, measured: String| Figure {
        name: name.into(),
        value,
        unit: unit.into(),
        baseline: None,
        target,
        measured,
    };
    let ladder = tried
        .iter()
        .map(|one| format!("{:.0}/s lost {}", one.reached, one.moved.lost));
    let ladder: Vec<String> = ladder.collect();
    let rate = format!(
        "connections of one pod, opened (SYN) and reset (RST) at a steady pace for {} s, one record each; the highest \
         rate tried at which none was lost: {}",
        effort.flood.as_secs_f64(),
        ladder.join(", ")
    );
    let disk = match best.to_disk {
        Some(bytes) => format!("its disk wrote {:.1} MB/s meanwhile, whoever asked for it", bytes / 1e6),
        None => "it is on no disk of its own".to_owned(),
    };
    let appended =
        format!("appended to the log at that rate, which nobody syncs: the kernel writes it to disk; {disk}");
    let cpu = "CPU time of node1's daemon over the records written, at that rate".to_owned();
    let lost = "records lost at that rate, of those that were due".to_owned();
    vec![
        figure(
            "record_rate",
            best.reached,
            "1/s",
            Some(Target::AtLeast(50_000.0)),
            rate,
        ),
        figure(
            "record_rate-lost",
            count(best.moved.lost),
            "records",
            Some(Target::AtMost(0.0)),
            lost,
        ),
        figure("record_rate-log_bytes", best.appended / 1e6, "MB/s", None, appended),
        figure(
            "record_rate-daemon_cpu_per_record",
            best.cpu_per_record,
            "us",
            Some(Target::AtMost(4.0)),
            cpu,
        ),
    ]
}
