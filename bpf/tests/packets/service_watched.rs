// SPDX-License-Identifier: Apache-2.0
//! Flows to a Service where policy is only watched: what would be denied goes to one backend, all of it.

use wardline_bpf::abi::Direction::{Egress, Ingress};
use wardline_bpf::abi::Reason::DefaultDeny;
use wardline_bpf::abi::{Enforcement, SERVICE_TRANSLATE};
use wardline_bpf::frame::flag::{ACK, SYN};
use wardline_bpf::frame::protocol::{ICMP, TCP, UDP};
use wardline_bpf::frame::{fragment, udp, unreachable, with_checksums};

use crate::fragments::long;
use crate::row::{Row, pass, stop};
use crate::service_errors::as_quoted;
use crate::services::{SERVICE, answer, forwarded, one_backend, request, returned};
use crate::world::{CLIENT, POD, STRANGER, World, port};

fn watch(world: &mut World) {
    world.change_settings(|settings| settings.policy = Enforcement::Audit.into());
}

/// To its backend.
fn denied_and_goes_on() -> Row {
    pass("denied, and goes on to its backend", Egress, request(SYN), DefaultDeny)
        .before(|world| {
            one_backend(world);
            world.change_rule_of_443(false);
            watch(world);
        })
        .becomes(forwarded(SYN))
        .deny(Egress, CLIENT, TCP, 443)
}

pub fn policy_is_only_watched() -> Vec<Row> {
    vec![
        denied_and_goes_on(),
        pass("its answer", Ingress, answer(SYN | ACK), DefaultDeny)
            .becomes(returned(SYN | ACK))
            .deny(Egress, CLIENT, TCP, 443),
        pass("what follows", Egress, request(ACK), DefaultDeny)
            .becomes(forwarded(ACK))
            .deny(Egress, CLIENT, TCP, 443),
        stop("until it is enforced", Egress, request(ACK), DefaultDeny)
            .before(|world| world.change_settings(|settings| settings.policy = Enforcement::Enforce.into()))
            .deny(Egress, CLIENT, TCP, 443),
    ]
}

/// The rest of a datagram goes where its first part went.
pub fn parts_where_policy_is_only_watched() -> Vec<Row> {
    let whole = |destination| with_checksums(long(udp(port(POD, 1), port(destination, 54))));
    let first = |destination| fragment(&whole(destination), 7, 0..16);
    let rest = |destination| fragment(&whole(destination), 7, 16..76);
    vec![
        pass("the first", Egress, first(SERVICE), DefaultDeny)
            .before(|world| {
                world.set_service(UDP, port(SERVICE, 54), SERVICE_TRANSLATE, &[port(CLIENT, 54)]);
                watch(world);
            })
            .becomes(first(CLIENT))
            .deny(Egress, CLIENT, UDP, 54),
        pass("the rest", Egress, rest(SERVICE), DefaultDeny)
            .becomes(rest(CLIENT))
            .deny(Egress, CLIENT, UDP, 54),
    ]
}

/// They are told in the pod's words, as those about an allowed flow.
pub fn errors_where_policy_is_only_watched() -> Vec<Row> {
    let error = |about: &[u8]| with_checksums(unreachable(STRANGER, POD, about));
    vec![
        denied_and_goes_on(),
        pass("a router on the way", Ingress, error(&forwarded(SYN)), DefaultDeny)
            .becomes(error(&as_quoted(request(SYN), &forwarded(SYN))))
            .deny(Ingress, STRANGER, ICMP, 0),
    ]
}
