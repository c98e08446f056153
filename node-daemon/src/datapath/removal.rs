// SPDX-License-Identifier: Apache-2.0
//! Takes our programs and pins off a node on which no daemon runs, those of other layouts too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wardline_policy::model::Direction;

use super::attach;
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
    /// The directory of all pins, where it is there.
    pub pins: Option<PathBuf>,
}

impl InKernel {
    /// `bpffs` is the mount point of the node's bpf file system; filters are looked for in this network namespace.
    pub fn find(bpffs: &Path) -> Result<Self, RemovalError> {
        let pins = PinPaths::root(bpffs);
        let mut links = Vec::new();
        for layout in entries(&pins)? {
            links.extend(entries(&layout.join(PinPaths::LINKS))?);
        }
        Ok(Self {
            links,
            filters: attach::filters().map_err(RemovalError::Look)?,
            pins: pins.exists().then_some(pins),
        })
    }

    /// Takes the programs off: from then on packets pass as they would without us. Tables stay.
    pub fn detach(&self) -> Result<(), RemovalError> {
        for path in &self.links {
            attach::take_link(path).map_err(failed("remove", path))?;
        }
        for (ifindex, direction) in &self.filters {
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
