// SPDX-License-Identifier: Apache-2.0
//! Takes our programs and pins off a node on which no daemon runs, those of other layouts too.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wardline_policy::model::Direction;

use super::attach;
use super::hand_back::{HandBackError, Translations};
use super::load::PinPaths;

#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    #[error("failed to {action} {path}: {cause}", path = path.display())]
    Pins {
        action: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("failed to look for filters at the node's interfaces: {0}")]
    Look(io::Error),
    #[error("failed to take the filter of {direction:?} off interface {ifindex}: {cause}")]
    Filter {
        ifindex: u32,
        direction: Direction,
        cause: io::Error,
    },
}

/// What of us is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InKernel {
    /// Pins of links, of every layout.
    pub links: Vec<PathBuf>,
    pub filters: Vec<(u32, Direction)>,
    /// Whose tables are all there, ours first.
    layouts: Vec<PinPaths>,
    /// The directory of all pins, where it is there.
    pub pins: Option<PathBuf>,
}

/// What came of taking programs off.
#[derive(Debug, Default)]
pub struct Detached {
    /// Connections to Services that go on under the node's own connection tracking.
    pub connections: usize,
    /// Why others do not: one for each pod.
    pub lost: Vec<HandBackError>,
}

impl InKernel {
    /// `bpffs` is the mount point of the node's bpf file system; filters are looked for in this network namespace.
    pub fn find(bpffs: &Path) -> Result<Self, RemovalError> {
        let pins = PinPaths::root(bpffs);
        let ours = PinPaths::new(bpffs);
        let mut layouts: Vec<_> = ours.are_there().then(|| ours.clone()).into_iter().collect();
        layouts.extend(ours.others().map_err(failed("read", &pins))?);
        let mut links = Vec::new();
        for layout in entries(&pins)? {
            links.extend(entries(&layout.join(PinPaths::LINKS))?);
        }
        Ok(Self {
            links,
            filters: attach::filters().map_err(RemovalError::Look)?,
            layouts,
            pins: pins.exists().then_some(pins),
        })
    }

    /// Takes the programs off, pod by pod: from then on packets pass as they would without us. Tables stay.
    pub fn detach(&self) -> Result<Detached, RemovalError> {
        let mut detached = Detached::default();
        let mut done = BTreeSet::new();
        for layout in &self.layouts {
            match Translations::open(layout) {
                Ok(translations) => self.detach_pods(layout, &translations, &mut done, &mut detached)?,
                Err(error) => detached.lost.push(error),
            }
        }
        // What no table knows.
        self.detach_where(|_| true, |_| true)?;
        Ok(detached)
    }

    /// The pods of a layout whose interfaces are not `done`.
    fn detach_pods(
        &self,
        layout: &PinPaths,
        translations: &Translations,
        done: &mut BTreeSet<u32>,
        detached: &mut Detached,
    ) -> Result<(), RemovalError> {
        for (ifindex, uid) in translations.pods() {
            let links = Direction::ALL.map(|direction| attach::link_of(&layout.links, uid, direction));
            let is_judged = links.iter().any(|link| self.links.contains(link))
                || self.filters.iter().any(|(filtered, _)| *filtered == ifindex);
            // Another layout may know the same pod, whose programs it took over or gave away.
            if !is_judged || !done.insert(ifindex) {
                continue;
            }
            match translations.hand_back(ifindex, uid) {
                Ok(connections) => detached.connections += connections,
                Err(error) => detached.lost.push(error),
            }
            self.detach_where(
                |link| links.iter().any(|path| path == link),
                |filtered| filtered == ifindex,
            )?;
        }
        Ok(())
    }

    /// That one is gone already is no error.
    fn detach_where(
        &self,
        has_link: impl Fn(&Path) -> bool,
        has_filter: impl Fn(u32) -> bool,
    ) -> Result<(), RemovalError> {
        for path in self.links.iter().filter(|path| has_link(path)) {
            attach::take_link(path).map_err(failed("remove", path))?;
        }
        for (ifindex, direction) in self.filters.iter().filter(|(ifindex, _)| has_filter(*ifindex)) {
            attach::take_filter(*ifindex, *direction).map_err(|cause| RemovalError::Filter {
                ifindex: *ifindex,
                direction: *direction,
                cause,
            })?;
        }
        Ok(())
    }

    /// Removes the pins, and with them the tables.
    pub fn unpin(&self) -> Result<(), RemovalError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        match fs::remove_dir_all(pins) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", pins)(error)),
            _ => Ok(()),
        }
    }
}

/// None of a directory that is not there.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, RemovalError> {
    let found = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(failed("read", directory))?,
    };
    let paths = found.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>();
    paths.map_err(failed("read", directory))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RemovalError + use<> {
    let path = path.to_owned();
    move |cause| RemovalError::Pins { action, path, cause }
}
