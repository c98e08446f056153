// SPDX-License-Identifier: Apache-2.0
//! Looking again and again: for a person who watches, or until something has come to be.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kube::Client;
use tokio::time::Instant;

use super::nodes::NodeRow;
use super::report::{Counts, DATAPLANE, LOGGING, Losses, Report, Row};
use super::{Awaited, Found, StatusArgs, find};
use crate::Outcome;
use crate::args::{ClusterArgs, Format};
use crate::cluster::Cluster;
use crate::daemons::is_forbidden;

/// An API server is not asked more often, whatever is typed.
const SHORTEST: Duration = Duration::from_millis(100);
/// To the top left; from there to the end of the screen; to the end of the line.
const HOME: &str = "\u{1b}[H";
const CLEAR_BELOW: &str = "\u{1b}[J";
const CLEAR_LINE: &str = "\u{1b}[K";
const CLEAR_ALL: &str = "\u{1b}[2J";

/// Shows it until nobody looks any more.
///
/// # Errors
/// When it cannot be seen at first; later, that is shown and looked at again.
pub(crate) fn watch(args: &StatusArgs, cluster: &ClusterArgs, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let cluster = Cluster::connect(cluster)?;
    let client = cluster.client();
    let is_screen = io::stdout().is_terminal() && args.format.output != Format::Json;
    cluster.block_on(async {
        let mut shown: Option<Found> = None;
        let mut losses = Losses::new();
        let mut trouble: Option<String> = None;
        loop {
            match find(&client, args, Some(&losses)).await {
                Ok(found) => {
                    for (node, lost) in found.report.losses() {
                        losses.entry(node).or_insert(lost);
                    }
                    let has_changed = shown.as_ref().is_none_or(|shown| shown.report != found.report);
                    if is_screen {
                        redraw(args, &found, None, shown.is_none(), out)?;
                    } else if has_changed || trouble.is_some() {
                        append(args, &found, out)?;
                    }
                    trouble = None;
                    shown = Some(found);
                }
                Err(error) => {
                    let Some(last) = &shown else { return Err(error) };
                    let told = format!("{error:#}");
                    if is_screen {
                        redraw(args, last, Some(&told), false, out)?;
                    } else if trouble.as_ref() != Some(&told) {
                        eprintln!("wardline: {told}; looking again");
                    }
                    trouble = Some(told);
                }
            }
            tokio::time::sleep(args.interval.0.max(SHORTEST)).await;
        }
    })
}

/// Draws over what stands there, so that nothing flickers.
fn redraw(
    args: &StatusArgs,
    found: &Found,
    trouble: Option<&str>,
    is_first: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut text = Vec::new();
    found.write(args, &mut text)?;
    let mut screen = if is_first { CLEAR_ALL.to_owned() } else { String::new() };
    screen += HOME;
    let head = format!("{}, every {} s", found.now, args.interval.0.as_secs());
    let trouble = trouble.map(|trouble| format!("as it was then: {trouble}"));
    let text = String::from_utf8_lossy(&text);
    for line in [head.as_str()]
        .into_iter()
        .chain(trouble.as_deref())
        .chain([""])
        .chain(text.lines())
    {
        screen += line;
        screen += CLEAR_LINE;
        screen.push('\n');
    }
    screen += CLEAR_BELOW;
    out.write_all(screen.as_bytes())?;
    Ok(out.flush()?)
}

/// One JSON object a line, or a block under its time.
fn append(args: &StatusArgs, found: &Found, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut text = Vec::new();
    if args.format.output == Format::Json {
        serde_json::to_writer(&mut text, &found.report).context("failed to write JSON")?;
        text.push(b'\n');
    } else {
        writeln!(text, "--- {}", found.now)?;
        found.write(args, &mut text)?;
    }
    out.write_all(&text)?;
    Ok(out.flush()?)
}

/// Looks until it is as waited for, or the time is over: what was seen last, and whether it was so.
///
/// # Errors
/// When whoever asks has no right to, or nothing could be seen all the time.
pub(super) async fn wait(client: &Client, args: &StatusArgs, awaited: Awaited) -> anyhow::Result<(Found, Outcome)> {
    let deadline = Instant::now() + args.timeout.0;
    let mut last = None;
    let mut trouble = None;
    loop {
        let look = find(client, args, None);
        // One look is finished, however short the time: a daemon that does not answer takes its own.
        let seen = if last.is_none() && trouble.is_none() {
            Ok(look.await)
        } else {
            tokio::time::timeout_at(deadline, look).await
        };
        match seen {
            Ok(Ok(found)) if is_so(&found.report, awaited) => return Ok((found, Outcome::Well)),
            Ok(Err(error)) if is_forbidden(&error) => return Err(error),
            Ok(Ok(found)) => {
                last = Some(found);
                trouble = None;
            }
            Ok(Err(error)) => trouble = Some(error),
            Err(_) => break,
        }
        let next = Instant::now() + args.interval.0.max(SHORTEST);
        if next >= deadline {
            break;
        }
        tokio::time::sleep_until(next).await;
    }
    let late = format!("not within {} s", args.timeout.0.as_secs());
    let Some(found) = last else {
        return Err(match trouble {
            Some(error) => error.context(late),
            None => anyhow!("{late}: the API server does not answer"),
        });
    };
    match trouble {
        Some(error) => eprintln!("wardline: {late}; as it was then: {error:#}"),
        None => eprintln!("wardline: {late}"),
    }
    Ok((found, Outcome::Problems))
}

fn is_so(report: &Report, awaited: Awaited) -> bool {
    let of = |kind: &'static str| report.objects.iter().filter(move |row| row.kind == kind);
    let is_observed = |row: &Row| row.observed == Some(true);
    let mut dataplanes = of(DATAPLANE).peekable();
    if dataplanes.peek().is_none() {
        return false;
    }
    let all_nodes = |is: fn(&NodeRow) -> bool| !report.nodes.is_empty() && report.nodes.iter().all(is);
    match awaited {
        Awaited::Well => report.well,
        Awaited::Ready => {
            let is_ready = |row: &Row| row.ready.as_deref() == Some("True") && is_observed(row);
            dataplanes.all(is_ready) && of(LOGGING).all(is_ready)
        }
        Awaited::Synced => all_nodes(|row| row.current && row.synced == Some(true)),
        Awaited::Updated => {
            let is_done = |counts: Option<Counts>| counts.is_some_and(|counts| counts.done == counts.desired);
            let is_over = report
                .rollout
                .as_ref()
                .is_some_and(|rollout| rollout.replacing.is_empty());
            let mut dataplanes = dataplanes;
            dataplanes.all(|row| is_observed(row) && is_done(row.updated))
                && is_over
                && all_nodes(|row| row.current && row.updated == Some(true))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::status::report::Rollout;

    type Change = fn(&mut Report);

    fn report() -> Report {
        let counts = Some(Counts { desired: 1, done: 1 });
        let row = |kind| Row {
            kind,
            name: "default".into(),
            ready: Some("True".into()),
            observed: Some(true),
            nodes: counts,
            updated: counts,
            ..Row::default()
        };
        Report {
            well: true,
            objects: vec![row(DATAPLANE), row(LOGGING)],
            rollout: Some(Rollout {
                desired: 1,
                updated: 1,
                revision: "a".into(),
                good_revision: "a".into(),
                replacing: vec![],
                excused: vec![],
                failed: None,
            }),
            nodes: vec![NodeRow {
                name: "node1".into(),
                current: true,
                synced: Some(true),
                updated: Some(true),
                ..NodeRow::default()
            }],
            problems: vec![],
            notes: vec![],
        }
    }

    #[test]
    fn a_screen_is_cleared_once_and_then_drawn_over() {
        let cli = crate::Cli::parse_from(["wardline", "status", "--watch", "--color", "always"]);
        let crate::Command::Status(args) = cli.command else {
            unreachable!("it is asked for a status")
        };
        let found = Found {
            report: report(),
            now: "2026-01-01T00:03:00Z".parse().unwrap(),
        };
        let drawn = |trouble, is_first| {
            let mut out = Vec::new();
            redraw(&args, &found, trouble, is_first, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let head = "2026-01-01T00:03:00Z, every 2 s\u{1b}[K\n";
        assert!(drawn(None, true).starts_with(&format!("\u{1b}[2J\u{1b}[H{head}")));
        let again = drawn(Some("it is down"), false);
        let trouble = "as it was then: it is down\u{1b}[K\n\u{1b}[K\nKIND";
        assert!(again.starts_with(&format!("\u{1b}[H{head}{trouble}")), "{again:?}");
        assert!(
            again.ends_with("\u{1b}[32mall is well\u{1b}[0m\u{1b}[K\n\u{1b}[J"),
            "{again:?}"
        );
    }

    /// What each condition needs, and no other.
    #[test]
    fn what_is_waited_for() {
        use Awaited::{Ready, Synced, Updated, Well};
        let all = [Well, Ready, Synced, Updated];
        let changes: [(&str, Change, &[Awaited]); 9] = [
            ("nothing", |_| {}, &[]),
            ("a problem", |report| report.well = false, &[Well]),
            (
                "not ready",
                |report| report.objects[1].ready = Some("False".into()),
                &[Ready],
            ),
            (
                "not seen",
                |report| report.objects[0].observed = Some(false),
                &[Ready, Updated],
            ),
            ("not synced", |report| report.nodes[0].synced = Some(false), &[Synced]),
            (
                "nobody behind it",
                |report| report.nodes[0].current = false,
                &[Synced, Updated],
            ),
            (
                "an old revision",
                |report| report.nodes[0].updated = Some(false),
                &[Updated],
            ),
            (
                "being replaced",
                |report| report.rollout.as_mut().unwrap().replacing.push("node1".into()),
                &[Updated],
            ),
            ("no Dataplane", |report| _ = report.objects.remove(0), &all),
        ];
        for (what, change, waiting) in changes {
            let mut report = report();
            change(&mut report);
            for awaited in all {
                assert_eq!(
                    is_so(&report, awaited),
                    !waiting.contains(&awaited),
                    "{what}: {awaited:?}"
                );
            }
        }
    }
}
