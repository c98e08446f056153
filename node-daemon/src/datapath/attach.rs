// SPDX-License-Identifier: Apache-2.0
//! The programs at the host side of a pod's veth: tcx links, first in their chain and pinned, so that they stay when
//! the daemon goes.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;

use libbpf_rs::{AsRawLibbpf, Link, Program};
use wardline_policy::model::Direction;

#[derive(Debug, thiserror::Error)]
#[error("failed to {action} program of {direction:?} at interface {ifindex}: {cause}")]
pub(super) struct AttachError {
    action: &'static str,
    direction: Direction,
    ifindex: u32,
    cause: String,
}

/// Both links of an endpoint. They are pinned: dropping them detaches nothing.
#[derive(Debug)]
pub(super) struct Attached {
    links: [Link; 2],
}

impl Attached {
    /// The directions in which another program is ahead of ours.
    pub(super) fn bypassed(&self, ifindex: u32) -> Vec<Direction> {
        let links = Direction::ALL.into_iter().zip(&self.links);
        links
            .filter(|(direction, link)| !is_first(link, ifindex, *direction).unwrap_or(true))
            .map(|(d, _)| d)
            .collect()
    }

    pub(super) fn detach(self) {
        self.links.into_iter().for_each(detach);
    }
}

/// The loaded programs, ready to be attached.
pub(super) struct Attacher {
    pub(super) ingress: &'static Program<'static>,
    pub(super) egress: &'static Program<'static>,
    pub(super) links: PathBuf,
}

// SAFETY: the programs are loaded, live as long as the process and are bound to no thread; libbpf-rs says the same of
// the object that holds them. One thread owns the attacher.
unsafe impl Send for Attacher {}

impl std::fmt::Debug for Attacher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attacher")
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

impl Attacher {
    /// Attaches both programs, or replaces those of an earlier life of the daemon in place.
    pub(super) fn attach(&self, ifindex: u32, uid: u32) -> Result<Attached, AttachError> {
        let egress = self.attach_one(ifindex, uid, Direction::Egress)?;
        let ingress = match self.attach_one(ifindex, uid, Direction::Ingress) {
            Ok(ingress) => ingress,
            Err(error) => {
                detach(egress);
                return Err(error);
            }
        };
        Ok(Attached {
            links: [ingress, egress],
        })
    }

    /// Links that an earlier life pinned for an endpoint that is no more.
    pub(super) fn detach_left_over(&self, uid: u32) {
        for direction in Direction::ALL {
            let path = self.pin_path(uid, direction);
            if path.exists()
                && let Ok(link) = Link::open(path)
            {
                detach(link);
            }
        }
    }

    /// Removes the pins of endpoints that are not in `live`.
    pub(super) fn sweep(&self, live: &std::collections::HashSet<u32>) -> io::Result<()> {
        for entry in fs::read_dir(&self.links)? {
            let name = entry?.file_name();
            let uid = name
                .to_string_lossy()
                .split('-')
                .next()
                .and_then(|uid| uid.parse().ok());
            if let Some(uid) = uid
                && !live.contains(&uid)
            {
                self.detach_left_over(uid);
            }
        }
        Ok(())
    }

    fn attach_one(&self, ifindex: u32, uid: u32, direction: Direction) -> Result<Link, AttachError> {
        let fail = |action: &'static str, cause: &dyn std::fmt::Display| AttachError {
            action,
            direction,
            ifindex,
            cause: cause.to_string(),
        };
        let program = match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        };
        let path = self.pin_path(uid, direction);
        if path.exists()
            && let Ok(mut link) = Link::open(&path)
        {
            if link_ifindex(&link) == Some(ifindex) {
                link.update_prog(program).map_err(|error| fail("replace", &error))?;
                return Ok(link);
            }
            detach(link);
        }
        // One that cannot be opened would be in the way of the new one.
        let _ = fs::remove_file(&path);
        let mut link = attach_tcx(program, ifindex).map_err(|error| fail("attach", &error))?;
        link.pin(&path).map_err(|error| fail("pin", &error))?;
        Ok(link)
    }

    fn pin_path(&self, uid: u32, direction: Direction) -> PathBuf {
        let direction = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        self.links.join(format!("{uid}-{direction}"))
    }
}

/// Whether the link's program is the first at its hook: one ahead of it could pass packets by it.
fn is_first(link: &Link, ifindex: u32, direction: Direction) -> io::Result<bool> {
    let hook = match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_EGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_INGRESS,
    };
    let mut ids = [0_u32; 64];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        ..Default::default()
    };
    options.__bindgen_anon_1.count = 64;
    options.prog_ids = ids.as_mut_ptr();
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: the options are valid for the call and point to an array of as many ids as they say.
    let result = unsafe { libbpf_sys::bpf_prog_query_opts(index, hook, &raw mut options) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(link.info().is_ok_and(|info| info.prog_id == ids[0]))
}

fn attach_tcx(program: &Program<'_>, ifindex: u32) -> io::Result<Link> {
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

/// Detaches at once, whatever else holds the link, and removes its pin.
fn detach(mut link: Link) {
    // The interface may be gone, and the link with it: nothing is left to detach then.
    let _ = link.detach();
    let _ = link.unpin();
}

/// The interface that the link is at; None when the interface is gone.
fn link_ifindex(link: &Link) -> Option<u32> {
    match link.info().ok()?.info {
        libbpf_rs::query::LinkTypeInfo::Tcx(tcx) => (tcx.ifindex != 0).then_some(tcx.ifindex),
        _ => None,
    }
}
