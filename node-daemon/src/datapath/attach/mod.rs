// SPDX-License-Identifier: Apache-2.0
//! The programs at the host side of a pod's veth: first at their hook, and there to stay when the daemon goes.
//!
//! ```text
//! tcx     (from 6.6)    link, pinned by the endpoint's uid            gone with its pin, or the interface
//! clsact  (before)      filter of a fixed priority and handle         gone when deleted, or with the interface
//! ```

mod clsact;
mod tcx;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use libbpf_rs::{Link, Program};
use wardline_crds::AttachKind;
use wardline_policy::model::Direction;

/// The better way that this kernel has. By trying: versions tell little about kernels that vendors patch.
pub fn attach_kind() -> AttachKind {
    if tcx::is_there() {
        AttachKind::Tcx
    } else {
        AttachKind::Clsact
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to {step} program of {direction:?} at interface {ifindex}: {cause}")]
pub(super) struct AttachError {
    step: Step,
    direction: Direction,
    ifindex: u32,
    cause: io::Error,
}

impl AttachError {
    /// Whether it failed because the interface is gone, and all that was at it.
    pub(super) fn is_interface_gone(&self) -> bool {
        self.cause.raw_os_error() == Some(libc::ENODEV)
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Attach,
    Replace,
    Pin,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Attach => "attach",
            Self::Replace => "replace",
            Self::Pin => "pin",
        })
    }
}

/// Where our program is among those of its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    First,
    /// Another is ahead of it, and could pass packets by it.
    Behind,
    /// Somebody took it off, or the interface is gone.
    Gone,
}

/// Both programs of an endpoint. Dropping it detaches nothing.
#[derive(Debug)]
pub(super) struct Attached {
    ifindex: u32,
    /// In the order of [`Direction::ALL`].
    programs: [At; 2],
}

#[derive(Debug)]
enum At {
    Tcx(Link),
    Clsact(clsact::Filter),
}

impl Attached {
    /// The directions in which our program is at `place`. Where that cannot be told, it is taken for the first.
    pub(super) fn at(&self, place: Place) -> Vec<Direction> {
        let programs = Direction::ALL.into_iter().zip(&self.programs);
        programs
            .filter(|(direction, program)| {
                let found = match program {
                    At::Tcx(link) => tcx::place(link, self.ifindex, *direction),
                    At::Clsact(filter) => filter.place(),
                };
                match found {
                    Ok(found) => found == place,
                    Err(error) => {
                        tracing::debug!(ifindex = self.ifindex, ?direction, %error, "failed to look at programs");
                        place == Place::First
                    }
                }
            })
            .map(|(direction, _)| direction)
            .collect()
    }

    /// Attaches one direction's program again.
    pub(super) fn restore(&mut self, attacher: &Attacher, uid: u32, direction: Direction) -> Result<(), AttachError> {
        let again = attacher.attach_one(self.ifindex, uid, direction)?;
        for (place, program) in Direction::ALL.into_iter().zip(&mut self.programs) {
            if place == direction {
                *program = again;
                break;
            }
        }
        Ok(())
    }

    pub(super) fn detach(self) {
        let ifindex = self.ifindex;
        for (direction, program) in Direction::ALL.into_iter().zip(self.programs) {
            detach(program, ifindex, direction);
        }
    }
}

fn detach(program: At, ifindex: u32, direction: Direction) {
    match program {
        At::Tcx(link) => tcx::detach(link),
        At::Clsact(_) => detach_filter(ifindex, direction),
    }
}

fn detach_filter(ifindex: u32, direction: Direction) {
    if let Err(error) = clsact::detach(ifindex, direction) {
        tracing::warn!(ifindex, ?direction, %error, "failed to detach a program");
    }
}

/// The loaded programs, ready to be attached.
pub(super) struct Attacher {
    ingress: &'static Program<'static>,
    egress: &'static Program<'static>,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Tcx(tcx::Pins),
    Clsact,
}

// SAFETY: the programs are loaded, live as long as the process and are bound to no thread; libbpf-rs says the same of
// the object that holds them. One thread owns the attacher.
#[allow(unsafe_code)]
unsafe impl Send for Attacher {}

impl std::fmt::Debug for Attacher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attacher")
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

impl Attacher {
    /// `links` is where links are pinned.
    pub(super) fn new(programs: [&'static Program<'static>; 2], kind: AttachKind, links: PathBuf) -> Self {
        let [ingress, egress] = programs;
        let way = match kind {
            AttachKind::Tcx => Way::Tcx(tcx::Pins(links)),
            AttachKind::Clsact => Way::Clsact,
        };
        Self { ingress, egress, way }
    }

    /// Attaches both programs, or replaces those of an earlier life of the daemon in place.
    pub(super) fn attach(&self, ifindex: u32, uid: u32) -> Result<Attached, AttachError> {
        let egress = self.attach_one(ifindex, uid, Direction::Egress)?;
        let ingress = match self.attach_one(ifindex, uid, Direction::Ingress) {
            Ok(ingress) => ingress,
            Err(error) => {
                detach(egress, ifindex, Direction::Egress);
                return Err(error);
            }
        };
        Ok(Attached {
            ifindex,
            programs: [ingress, egress],
        })
    }

    /// What is left of an endpoint whose interface another endpoint's programs are at now.
    pub(super) fn forget(&self, uid: u32) {
        match &self.way {
            Way::Tcx(pins) => pins.detach(uid),
            // The new program took the place of the old one.
            Way::Clsact => {}
        }
    }

    /// Takes off what an earlier life of the daemon left of an endpoint.
    pub(super) fn detach_left_over(&self, ifindex: u32, uid: u32) {
        match &self.way {
            Way::Tcx(pins) => pins.detach(uid),
            Way::Clsact => Direction::ALL
                .into_iter()
                .for_each(|direction| detach_filter(ifindex, direction)),
        }
    }

    /// Forgets endpoints that are not in `live`.
    pub(super) fn sweep(&self, live: &HashSet<u32>) -> io::Result<()> {
        match &self.way {
            Way::Tcx(pins) => pins.sweep(live),
            // A filter is never without its endpoint's entry, with which it goes, or the interface.
            Way::Clsact => Ok(()),
        }
    }

    fn attach_one(&self, ifindex: u32, uid: u32, direction: Direction) -> Result<At, AttachError> {
        let program = match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        };
        match &self.way {
            Way::Tcx(pins) => pins.attach(program, ifindex, direction, uid).map(At::Tcx),
            Way::Clsact => clsact::Filter::attach(program, ifindex, direction)
                .map(At::Clsact)
                .map_err(|cause| AttachError {
                    step: Step::Attach,
                    direction,
                    ifindex,
                    cause,
                }),
        }
    }
}
