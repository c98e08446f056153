// SPDX-License-Identifier: Apache-2.0
//! Takes our programs and pins off a node on which no daemon runs, those of other layouts too.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wardline_policy::model::Direction;

use super::attach;
use super::hand_back::{HandBackError, HandedBack, Translations, hand_back};
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
    /// Whose tables are all there.
    layouts: Vec<PinPaths>,
    /// The directory of all pins, where it is there.
    pub pins: Option<PathBuf>,
}

/// What came of taking programs off.
#[derive(Debug, Default)]
pub struct Detached {
    pub handed_back: HandedBack,
    /// Why other connections to Services end: one for each pod.
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
        let mut tables = Vec::new();
        for layout in &self.layouts {
            match Translations::open(layout) {
                Ok(opened) => tables.push((layout, opened)),
                Err(error) => detached.lost.push(error),
            }
        }
        let mut pods: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (layout, tables) in &tables {
            for (ifindex, uid) in tables.pods() {
                pods.entry(ifindex).or_default().push((*layout, tables, uid));
            }
        }
        // With its interface a pod's connections are gone, and the programs.
        pods.retain(|ifindex, _| nix::net::if_::if_indextoname(*ifindex).is_ok());
        for (ifindex, pod) in pods {
            let links = |direction| {
                let links = pod
                    .iter()
                    .map(move |(layout, _, uid)| attach::link_of(&layout.links, *uid, direction));
                links.filter(|link| self.links.contains(link))
            };
            let known: Vec<_> = pod.iter().map(|(_, tables, uid)| (*tables, *uid)).collect();
            let handed = hand_back(&known, |program| {
                // What the pod sends first: of that, the node would make connections.
                for direction in [Direction::Egress, Direction::Ingress] {
                    links(direction).try_for_each(|link| attach::hold_link(&link, program))?;
                    if self.filters.contains(&(ifindex, direction)) {
                        attach::hold_filter(ifindex, direction, program)?;
                    }
                }
                Ok(())
            });
            match handed {
                Ok(HandedBack { connections, untracked }) => {
                    detached.handed_back.connections += connections;
                    detached.handed_back.untracked += untracked;
                }
                Err(error) => detached.lost.push(error),
            }
            let links: Vec<PathBuf> = Direction::ALL.into_iter().flat_map(links).collect();
            self.detach_where(
                |link| links.iter().any(|path| path == link),
                |filtered| filtered == ifindex,
            )?;
        }
        // What no table knows.
        self.detach_where(|_| true, |_| true)?;
        Ok(detached)
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
