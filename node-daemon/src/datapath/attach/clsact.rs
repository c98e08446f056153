// SPDX-License-Identifier: Apache-2.0
//! clsact: a filter for each program, which the interface holds by itself. Its priority and handle are fixed, so that the
//! kernel replaces its program in one step, and another life of the daemon finds it. All there is before kernel 6.6; from
//! then on the quick way for pods that are about to start (docs/decisions/0009-filters-first.md).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::Program;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};
use wardline_policy::model::Direction;

use super::Place;
use crate::netlink::Netlink;

/// The lowest comes first.
const PRIORITY: u16 = 1;
/// "wldn": no other tool gives its filters this one, and among those of one priority the newest comes first.
const HANDLE: u32 = u32::from_be_bytes(*b"wldn");
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;
const QDISC: &str = "clsact";

/// A program at its hook. Dropping it detaches nothing.
#[derive(Debug)]
pub(super) struct Filter {
    ifindex: u32,
    direction: Direction,
    /// The program's id.
    program: u32,
}

impl Filter {
    /// Attaches the program, or puts it in the place of that of an earlier life of the daemon: in between there is no
    /// moment without one (`list_replace_rcu` in the kernel's `net/sched/cls_bpf.c`).
    pub(super) fn attach(program: &Program<'_>, ifindex: u32, direction: Direction) -> io::Result<Self> {
        let id = Program::id_from_fd(program.as_fd()).map_err(io::Error::other)?;
        let fd = u32::try_from(program.as_fd().as_raw_fd()).map_err(io::Error::other)?;
        let options = [
            TcFilterBpfOption::ProgFd(fd),
            TcFilterBpfOption::ProgName(program.name().to_string_lossy().into_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        let mut message = named(ifindex, direction)?;
        let options = options.into_iter().map(TcOption::Bpf).collect();
        message.attributes.push(TcAttribute::Options(options));
        let mut netlink = Netlink::open()?;
        if !add_qdisc(&mut netlink, ifindex)? {
            check_qdisc(&mut netlink, ifindex)?;
        }
        netlink.change(
            RouteNetlinkMessage::NewTrafficFilter(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )?;
        Ok(Self {
            ifindex,
            direction,
            program: id,
        })
    }

    /// Where the program is among those of its hook: one ahead of it could pass packets by it.
    pub(super) fn place(&self) -> io::Result<Place> {
        let mut request = TcMessage::with_index(index(self.ifindex)?);
        request.header.parent = parent(self.direction);
        let answers = Netlink::open()?.dump(RouteNetlinkMessage::GetTrafficFilter(request))?;
        let filters = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(filter),
            _ => None,
        });
        // In the order in which they see packets. Each priority is announced by a message without a handle; other
        // chains are reached only through filters of this one.
        let mut filters = filters.filter(|filter| u32::from(filter.header.handle) != 0 && chain(filter) == 0);
        Ok(match filters.position(|filter| self.is(&filter)) {
            Some(0) => Place::First,
            Some(_) => Place::Behind,
            None => Place::Gone,
        })
    }

    fn is(&self, filter: &TcMessage) -> bool {
        let is_program = |option: &TcOption| *option == TcOption::Bpf(TcFilterBpfOption::ProgId(self.program));
        u32::from(filter.header.handle) == HANDLE
            && filter.attributes.iter().any(|attribute| match attribute {
                TcAttribute::Options(options) => options.iter().any(is_program),
                _ => false,
            })
    }
}

/// Makes the qdisc where there is none, nor an `ingress` in its place. Returns whether it did.
///
/// While it does, the kernel drops what is sent to the interface (`dev_deactivate` in `net/sched/sch_generic.c`).
pub(super) fn claim(ifindex: u32) -> io::Result<bool> {
    add_qdisc(&mut Netlink::open()?, ifindex)
}

/// Takes our filter off an interface; the qdisc stays, since others may be about to use it. That there is none is no
/// error.
pub(super) fn detach(ifindex: u32, direction: Direction) -> io::Result<()> {
    let message = named(ifindex, direction)?;
    match Netlink::open()?.change(RouteNetlinkMessage::DelTrafficFilter(message), 0) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Whether a filter of ours is at an interface, of whatever life of the daemon.
pub(super) fn is_at(netlink: &mut Netlink, ifindex: u32, direction: Direction) -> io::Result<bool> {
    let mut request = TcMessage::with_index(index(ifindex)?);
    request.header.parent = parent(direction);
    let answers = netlink.dump(RouteNetlinkMessage::GetTrafficFilter(request))?;
    Ok(answers.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(filter) => u32::from(filter.header.handle) == HANDLE,
        _ => false,
    }))
}

/// No filter, no qdisc, or no interface.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV))
}

/// Returns whether there was none.
fn add_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    match netlink.change(qdisc(ifindex)?, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// An `ingress` has the same handle, and takes filters for both hooks: into the one that it has, where the second program
/// would take the place of the first. Asked to change into another kind, the kernel refuses (`tc_modify_qdisc` in
/// `net/sched/sch_api.c`); where it is clsact already, nothing changes.
fn check_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    netlink.change(qdisc(ifindex)?, 0).map_err(|error| {
        if error.raw_os_error() == Some(libc::EINVAL) {
            return io::Error::new(
                error.kind(),
                "the interface has a qdisc other than clsact, `ingress` probably",
            );
        }
        error
    })
}

fn qdisc(ifindex: u32) -> io::Result<RouteNetlinkMessage> {
    let mut message = TcMessage::with_index(index(ifindex)?);
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind(QDISC.to_owned()));
    Ok(RouteNetlinkMessage::NewQueueDiscipline(message))
}

/// What names our filter at a hook.
fn named(ifindex: u32, direction: Direction) -> io::Result<TcMessage> {
    let header = TcHeader {
        index: index(ifindex)?,
        handle: HANDLE.into(),
        parent: parent(direction),
        // Priority, and the protocol in network byte order.
        info: u32::from(PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be()),
        ..TcHeader::default()
    };
    let kind = TcAttribute::Kind(TcFilterBpf::KIND.to_owned());
    Ok(TcMessage::from_parts(header, vec![kind]))
}

/// On the host side of a veth its ingress is what the pod sends.
fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_EGRESS,
        Direction::Egress => TcHandle::MIN_INGRESS,
    };
    TcHandle {
        major: TcHandle::CLSACT.major,
        minor,
    }
}

fn chain(filter: &TcMessage) -> u32 {
    let chain = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Chain(chain) => Some(*chain),
        _ => None,
    });
    chain.unwrap_or(0)
}

fn index(ifindex: u32) -> io::Result<i32> {
    i32::try_from(ifindex).map_err(io::Error::other)
}
