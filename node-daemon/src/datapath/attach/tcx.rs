// SPDX-License-Identifier: Apache-2.0
//! tcx, from kernel 6.6 on: a link for each program, at the head of its chain and pinned.

#![allow(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use libbpf_rs::{AsRawLibbpf, Link, Program};
use wardline_policy::model::Direction;

use super::{AttachError, Place, Step};

/// On the host side of a veth its ingress is what the pod sends.
fn hook(direction: Direction) -> libbpf_sys::bpf_attach_type {
    match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_EGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_INGRESS,
    }
}

/// Whether the kernel has tcx: before it, the hook is unknown.
pub(super) fn is_there() -> bool {
    /// Loopback, which every network namespace has.
    const LOOPBACK: u32 = 1;
    first_program(LOOPBACK, Direction::Egress).is_ok()
}

/// Where the links are pinned.
#[derive(Debug)]
pub(super) struct Pins {
    pub(super) links: PathBuf,
    /// By other versions.
    pub(super) former: Vec<PathBuf>,
}

impl Pins {
    /// Attaches the program, or replaces that of an earlier life of the daemon in place.
    pub(super) fn attach(
        &self,
        program: &Program<'_>,
        ifindex: u32,
        direction: Direction,
        uid: u32,
    ) -> Result<Link, AttachError> {
        let fail = |step, cause| AttachError {
            step,
            direction,
            ifindex,
            cause,
        };
        let path = self.path(uid, direction);
        if let Some(pin) = self.pin(uid, direction)
            && let Ok(mut link) = Link::open(&pin)
        {
            if ifindex_of(&link) == Some(ifindex) {
                link.update_prog(program)
                    .map_err(|error| fail(Step::Replace, io::Error::other(error)))?;
                if pin != path {
                    fs::rename(&pin, &path).map_err(|error| fail(Step::Pin, error))?;
                    link = Link::open(&path).map_err(|error| fail(Step::Pin, io::Error::other(error)))?;
                }
                return Ok(link);
            }
            detach(link);
        }
        // One that cannot be opened would be in the way of the new one.
        let _ = fs::remove_file(&path);
        let mut link = attach(program, ifindex).map_err(|error| fail(Step::Attach, error))?;
        link.pin(&path)
            .map_err(|error| fail(Step::Pin, io::Error::other(error)))?;
        Ok(link)
    }

    /// Whether there is one for an endpoint's program.
    pub(super) fn holds(&self, uid: u32, direction: Direction) -> bool {
        self.pin(uid, direction).is_some()
    }

    /// Where it is pinned.
    fn pin(&self, uid: u32, direction: Direction) -> Option<PathBuf> {
        let folders = std::iter::once(&self.links).chain(&self.former);
        let mut pins = folders.map(|folder| folder.join(name(uid, direction)));
        pins.find(|pin| pin.exists())
    }

    /// Detaches what an earlier life pinned for an endpoint.
    pub(super) fn detach(&self, uid: u32) {
        for direction in Direction::ALL {
            if let Some(pin) = self.pin(uid, direction)
                && let Ok(link) = Link::open(pin)
            {
                detach(link);
            }
        }
    }

    /// Removes the pins of endpoints that are not in `live`.
    pub(super) fn sweep(&self, live: &HashSet<u32>) -> io::Result<()> {
        for entry in fs::read_dir(&self.links)? {
            if let Some(uid) = uid_of(Path::new(&entry?.file_name()))
                && !live.contains(&uid)
            {
                self.detach(uid);
            }
        }
        Ok(())
    }

    fn path(&self, uid: u32, direction: Direction) -> PathBuf {
        self.links.join(name(uid, direction))
    }
}

/// Of a pin.
pub(super) fn name(uid: u32, direction: Direction) -> String {
    let direction = match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    };
    format!("{uid}-{direction}")
}

/// Whether no program is at either hook of the interface.
pub(super) fn is_free(ifindex: u32) -> io::Result<bool> {
    for direction in Direction::ALL {
        if first_program(ifindex, direction)? != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn uid_of(pin: &Path) -> Option<u32> {
    pin.to_str()?.split('-').next()?.parse().ok()
}

/// Where the link's program is among those of its hook: one ahead of it could pass packets by it.
pub(super) fn place(link: &Link, ifindex: u32, direction: Direction) -> io::Result<Place> {
    let info = link.info().map_err(io::Error::other)?;
    if ifindex_of(link) != Some(ifindex) {
        return Ok(Place::Gone);
    }
    match first_program(ifindex, direction)? {
        id if id == info.prog_id => Ok(Place::First),
        _ => Ok(Place::Behind),
    }
}

/// The id of the program at the head of the chain; 0 where there is none.
fn first_program(ifindex: u32, direction: Direction) -> io::Result<u32> {
    let mut ids = [0_u32; 64];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        ..Default::default()
    };
    options.__bindgen_anon_1.count = 64;
    options.prog_ids = ids.as_mut_ptr();
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: the options are valid for the call and point to an array of as many ids as they say.
    let result = unsafe { libbpf_sys::bpf_prog_query_opts(index, hook(direction), &raw mut options) };
    if result == 0 {
        Ok(ids[0])
    } else {
        Err(io::Error::from_raw_os_error(-result))
    }
}

/// The hook is the program's attach type.
fn attach(program: &Program<'_>, ifindex: u32) -> io::Result<Link> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    // BPF_F_BEFORE without a program to be before means the head of the chain.
    let options = libbpf_sys::bpf_tcx_opts {
        sz: size_of::<libbpf_sys::bpf_tcx_opts>() as _,
        flags: libbpf_sys::BPF_F_BEFORE,
        ..Default::default()
    };
    // SAFETY: the program is loaded and outlives the call; the options are valid for the call.
    let link =
        unsafe { libbpf_sys::bpf_program__attach_tcx(program.as_libbpf_object().as_ptr(), index, &raw const options) };
    let Some(link) = NonNull::new(link) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the pointer is a link that libbpf just made and nobody else owns.
    Ok(unsafe { Link::from_ptr(link) })
}

/// Detaches the link that is pinned there.
pub(super) fn detach_pinned(path: &Path) -> io::Result<()> {
    // One that cannot be opened, or is none, is gone without its pin.
    if let Ok(link) = Link::open(path) {
        detach(link);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Detaches at once, whatever else holds the link, and removes its pin.
pub(super) fn detach(mut link: Link) {
    // The interface may be gone, and the link with it: nothing is left to detach then.
    let _ = link.detach();
    let _ = link.unpin();
}

/// The interface that the link is at; None when the interface is gone, or somebody detached the link.
fn ifindex_of(link: &Link) -> Option<u32> {
    match link.info().ok()?.info {
        libbpf_rs::query::LinkTypeInfo::Tcx(tcx) => (tcx.ifindex != 0).then_some(tcx.ifindex),
        _ => None,
    }
}
