// SPDX-License-Identifier: Apache-2.0
//! The programs at the host side of a pod's veth: first at their hook, and there to stay when the daemon goes.
//!
//! ```text
//! tcx     (from 6.6)    link, pinned by the endpoint's uid            gone with its pin, or the interface
//! clsact  (before)      filter of a fixed priority and handle         gone when deleted, or with the interface
//! ```
//!
//! A link costs a grace period, 8 to 16 ms during which the kernel changes no other interface. Where a pod waits to be
//! started it gets filters first, and links in their place when the node has a moment: one direction after the other,
//! each packet being judged by exactly one of the two (docs/decisions/0009-filters-first.md).

mod clsact;
mod tcx;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use libbpf_rs::{Link, Program};
use wardline_crds::AttachKind;
use wardline_policy::model::Direction;

use crate::netlink::Netlink;

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
    Detach,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Attach => "attach",
            Self::Replace => "replace",
            Self::Pin => "pin",
            Self::Detach => "detach",
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

/// How an endpoint comes to its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Its pod waits for it, and neither sends nor receives yet.
    Starting,
    /// Its pod runs.
    Running,
    /// An earlier life of the daemon knew an endpoint there, perhaps in the middle of a handover.
    Known { uid: u32, handing_over: bool },
}

/// Both programs of an endpoint. Dropping it detaches nothing.
#[derive(Debug)]
pub(super) struct Attached {
    ifindex: u32,
    /// In the order of [`Direction::ALL`].
    programs: [At; 2],
    /// The directions in which a filter stands, or may stand, that a link is to take over from.
    filters: Vec<Direction>,
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
        self.programs[direction.index()] = attacher.attach_one(self.ifindex, uid, direction)?;
        Ok(())
    }

    /// The next direction in which a link is to take over from a filter.
    pub(super) fn to_hand_over(&self) -> Option<Direction> {
        self.filters.last().copied()
    }

    /// Puts a link in the place of a filter. Until it returns, and if it fails, both may be there.
    pub(super) fn hand_over(&mut self, attacher: &Attacher, uid: u32, direction: Direction) -> Result<(), AttachError> {
        if matches!(self.programs[direction.index()], At::Clsact(_)) {
            self.restore(attacher, uid, direction)?;
        }
        // Every packet that saw no link yet is through: the kernel has waited for them.
        clsact::detach(self.ifindex, direction).map_err(|cause| AttachError {
            step: Step::Detach,
            direction,
            ifindex: self.ifindex,
            cause,
        })?;
        self.filters.retain(|other| *other != direction);
        Ok(())
    }

    pub(super) fn detach(self) {
        let ifindex = self.ifindex;
        for (direction, program) in Direction::ALL.into_iter().zip(self.programs) {
            detach(program, ifindex, direction);
        }
        for direction in self.filters {
            detach_filter(ifindex, direction);
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
    // It went with its interface; to ask for it would wait for whoever changes another one.
    if nix::net::if_::if_indextoname(ifindex).is_err() {
        return;
    }
    if let Err(error) = clsact::detach(ifindex, direction) {
        tracing::warn!(ifindex, ?direction, %error, "failed to detach a program");
    }
}

/// The interfaces of this network namespace at which filters of ours are, of whatever life of the daemon.
pub(super) fn filters() -> io::Result<Vec<(u32, Direction)>> {
    let mut netlink = Netlink::open()?;
    let mut found = Vec::new();
    for interface in &nix::net::if_::if_nameindex()? {
        for direction in Direction::ALL {
            match clsact::is_at(&mut netlink, interface.index(), direction) {
                Ok(true) => found.push((interface.index(), direction)),
                Ok(false) => {}
                // It has just gone, and what was at it.
                Err(error) if clsact::is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// Takes a filter of ours off an interface. That there is none is no error.
pub(super) fn take_filter(ifindex: u32, direction: Direction) -> io::Result<()> {
    clsact::detach(ifindex, direction)
}

/// Where an endpoint's link is pinned, if it has one.
pub(super) fn link_of(links: &Path, uid: u32, direction: Direction) -> PathBuf {
    links.join(tcx::name(uid, direction))
}

/// Puts another program in the place of the one of the link that is pinned there.
pub(super) fn hold_link(pin: &Path, program: &Program<'_>) -> io::Result<()> {
    let mut link = Link::open(pin).map_err(io::Error::other)?;
    link.update_prog(program).map_err(io::Error::other)
}

/// Puts another program in the place of our filter's.
pub(super) fn hold_filter(ifindex: u32, direction: Direction, program: &Program<'_>) -> io::Result<()> {
    clsact::Filter::attach(program, ifindex, direction).map(|_| ())
}

/// Detaches the link that is pinned there.
pub(super) fn take_link(pin: &Path) -> io::Result<()> {
    tcx::detach_pinned(pin)
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
    /// `links` is where links are pinned, `former` where other versions have pinned theirs.
    pub(super) fn new(
        programs: [&'static Program<'static>; 2],
        kind: AttachKind,
        links: PathBuf,
        former: Vec<PathBuf>,
    ) -> Self {
        let [ingress, egress] = programs;
        let way = match kind {
            AttachKind::Tcx => Way::Tcx(tcx::Pins { links, former }),
            AttachKind::Clsact => Way::Clsact,
        };
        Self { ingress, egress, way }
    }

    /// Attaches both programs, or replaces those of an earlier life of the daemon in place.
    pub(super) fn attach(&self, ifindex: u32, uid: u32, arrival: Arrival) -> Result<Attached, AttachError> {
        let by_filter = match arrival {
            Arrival::Starting => [self.claim(ifindex); 2],
            Arrival::Running => [false; 2],
            Arrival::Known { uid: former, .. } => {
                Direction::ALL.map(|direction| self.has_no_link([uid, former], direction))
            }
        };
        let attach = |direction: Direction| self.attach_by(by_filter[direction.index()], ifindex, uid, direction);
        let egress = attach(Direction::Egress)?;
        let ingress = match attach(Direction::Ingress) {
            Ok(ingress) => ingress,
            Err(error) => {
                // Of a pod that is guarded already the program only took another's place, and stays.
                if !matches!(arrival, Arrival::Known { .. }) {
                    detach(egress, ifindex, Direction::Egress);
                }
                return Err(error);
            }
        };
        let programs = [ingress, egress];
        let is_interrupted = matches!(arrival, Arrival::Known { handing_over: true, .. });
        let is_left = |direction: &Direction| is_interrupted || matches!(programs[direction.index()], At::Clsact(_));
        let filters = match self.way {
            Way::Tcx(_) => Direction::ALL.into_iter().filter(is_left).collect(),
            Way::Clsact => Vec::new(),
        };
        Ok(Attached {
            ifindex,
            programs,
            filters,
        })
    }

    /// Whether filters may come before links: nobody else has a program or a qdisc at the interface. Makes the qdisc.
    fn claim(&self, ifindex: u32) -> bool {
        matches!(self.way, Way::Tcx(_))
            && tcx::is_free(ifindex)
                .and_then(|is_free| Ok(is_free && clsact::claim(ifindex)?))
                .unwrap_or(false)
    }

    /// Whether none of the endpoints has a link, so that the interface has filters, or nothing.
    fn has_no_link(&self, uids: [u32; 2], direction: Direction) -> bool {
        match &self.way {
            Way::Tcx(pins) => !uids.iter().any(|uid| pins.holds(*uid, direction)),
            Way::Clsact => false,
        }
    }

    fn attach_by(&self, filter: bool, ifindex: u32, uid: u32, direction: Direction) -> Result<At, AttachError> {
        if filter {
            match self.attach_filter(ifindex, direction) {
                Ok(filter) => return Ok(filter),
                Err(error) => tracing::debug!(%error, "no filter first; attaching a link"),
            }
        }
        self.attach_one(ifindex, uid, direction)
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
            Way::Clsact => {}
        }
        for direction in Direction::ALL {
            detach_filter(ifindex, direction);
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
        match &self.way {
            Way::Tcx(pins) => pins
                .attach(self.program(direction), ifindex, direction, uid)
                .map(At::Tcx),
            Way::Clsact => self.attach_filter(ifindex, direction),
        }
    }

    fn attach_filter(&self, ifindex: u32, direction: Direction) -> Result<At, AttachError> {
        clsact::Filter::attach(self.program(direction), ifindex, direction)
            .map(At::Clsact)
            .map_err(|cause| AttachError {
                step: Step::Attach,
                direction,
                ifindex,
                cause,
            })
    }

    fn program(&self, direction: Direction) -> &'static Program<'static> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}
