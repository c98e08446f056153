// SPDX-License-Identifier: Apache-2.0
//! Changes of filters and qdiscs at the node's interfaces, whoever makes them.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::TcMessage;

use crate::netlink::Netlink;

/// Calls `changed` with the interface after each notification, until it returns false; with None where some were
/// missed, as those before the first call were.
pub fn follow(mut changed: impl FnMut(Option<u32>) -> bool) -> io::Result<()> {
    let netlink = Netlink::subscribe(&[libc::RTNLGRP_TC])?;
    let mut goes_on = changed(None);
    while goes_on {
        goes_on = match netlink.wait()? {
            None => changed(None),
            Some(messages) => messages
                .iter()
                .filter_map(subject)
                .all(|ifindex| changed(Some(ifindex))),
        };
    }
    Ok(())
}

/// The interface that it is about. One that comes tells as much as one that goes: it may be ahead of ours.
fn subject(message: &RouteNetlinkMessage) -> Option<u32> {
    let (RouteNetlinkMessage::NewTrafficFilter(TcMessage { header, .. })
    | RouteNetlinkMessage::DelTrafficFilter(TcMessage { header, .. })
    | RouteNetlinkMessage::DelQueueDiscipline(TcMessage { header, .. })) = message
    else {
        return None;
    };
    u32::try_from(header.index).ok()
}
