// SPDX-License-Identifier: Apache-2.0
//! The list of all tables: each is a test of its own, and together they produce every reason.

use std::collections::BTreeSet;

use wardline_bpf::abi::{Direction, Reason};

use crate::row::Table;
use crate::{
    accounting, addresses, again, connections, extensions, fragments, fronts, handshakes, icmp, link, malformed,
    own_node, policies, quotas, rewrites, service_errors, service_fragments, service_reuse, service_watched, services,
};

macro_rules! tables {
    ($($module:ident::$table:ident),* $(,)?) => {
        $(#[test]
        fn $table() {
            Table::from($module::$table()).run();
        })*

        fn all() -> Vec<Table> {
            vec![$(Table::from($module::$table())),*]
        }
    };
}

tables! {
    accounting::logging_is_off,
    accounting::logging_is_delegated,
    accounting::a_link_takes_over_from_a_filter,
    accounting::generations_alternate,
    accounting::ring_is_full,
    accounting::each_deny_is_told,
    accounting::deny_share_is_used_up,
    accounting::deny_table_is_full,
    accounting::audit,
    addresses::whose_packets,
    addresses::sources_of_the_pod,
    addresses::forged_sources_are_watched,
    addresses::pods_without_an_address,
    again::policy_no_longer_allows,
    again::policy_still_allows,
    again::isolation_begins_and_ends,
    again::denied_datagrams,
    again::node_keeps_its_connections,
    connections::handshake_and_close,
    connections::resets_and_port_reuse,
    connections::both_sides_open,
    connections::entries_expire,
    connections::questions_expire,
    connections::mid_stream,
    connections::mid_stream_in_a_takeover,
    connections::mid_stream_denied,
    connections::conntrack_is_full,
    extensions::headers_are_walked,
    extensions::headers_that_are_not_walked,
    extensions::headers_that_contradict,
    fragments::later_follow_the_first,
    fragments::segments_in_parts,
    fragments::the_first_is_denied,
    fragments::parts_that_cannot_be,
    fragments::ipv6_parts,
    fragments::the_oldest_gives_way,
    fragments::a_first_is_too_long_ago,
    fronts::nothing_to_choose_from,
    fronts::a_pod_that_reaches_itself,
    fronts::clients_stay_with_their_backend,
    fronts::services_that_another_proxy_translates,
    fronts::addresses_that_anybody_may_name,
    handshakes::handshakes_that_end_in_the_middle,
    handshakes::the_ports_of_an_open_connection_again,
    handshakes::forged_resets,
    icmp::echoes,
    icmp::echoes_without_an_identifier,
    icmp::stray_replies,
    icmp::errors_follow_their_flow,
    icmp::errors_to_somebody_else,
    icmp::errors_without_a_flow,
    icmp::packets_that_are_too_big,
    link::neighbours,
    link::forged_neighbours,
    link::forged_link_locals,
    link::redirects,
    link::groups,
    link::bad_group_messages,
    malformed::ethernet_and_arp,
    malformed::ipv4,
    malformed::ipv6,
    malformed::tcp_headers,
    malformed::udp_and_sctp,
    malformed::icmp_messages,
    malformed::neighbour_messages,
    malformed::quoted_packets,
    quotas::connections_of_one_pod,
    quotas::connections_through_a_service,
    quotas::half_open_connections_of_one_pod,
    quotas::half_open_connections_that_a_pod_opens,
    quotas::connections_that_a_pod_opens,
    quotas::strays_of_a_stranger,
    own_node::proven_by_a_socket,
    own_node::addresses_of_the_link,
    own_node::where_no_socket_is,
    own_node::connections_to_its_sockets,
    own_node::cookies_of_its_sockets,
    own_node::datagrams_to_its_sockets,
    own_node::flows_that_are_judged_again,
    own_node::datagrams_to_a_socket_that_goes,
    own_node::guesses_that_the_node_confirms,
    own_node::parts_that_are_whole,
    own_node::echoes_and_errors_of_the_node,
    own_node::services_of_its_sockets,
    policies::precedence,
    policies::egress,
    policies::families_and_protocols,
    policies::cidrs_only_where_some_policy_has_them,
    policies::not_isolated,
    rewrites::field_by_field,
    rewrites::datagrams_whose_checksum_would_be_zero,
    service_errors::errors_about_a_service,
    service_errors::errors_about_a_service_over_ipv6,
    service_errors::errors_of_a_pod_that_reaches_itself,
    service_fragments::datagrams_in_parts,
    service_fragments::datagrams_in_parts_over_ipv6,
    service_fragments::datagrams_in_parts_to_itself,
    service_reuse::a_new_connection_after_a_dead_backend,
    service_reuse::a_new_connection_to_the_same_backend,
    service_reuse::a_new_connection_after_mid_stream,
    service_reuse::a_forged_reset_ends_nothing,
    service_reuse::a_forged_syn_ends_nothing,
    service_watched::policy_is_only_watched,
    service_watched::parts_where_policy_is_only_watched,
    service_watched::errors_where_policy_is_only_watched,
    services::a_connection_through_a_service,
    services::policy_judges_the_backend,
    services::other_families_and_protocols,
    services::mid_stream_gets_no_backend,
    services::entries_end_together,
    services::ports_that_are_taken,
}

/// The frames of all rows, and where they go.
pub fn frames() -> Vec<(Direction, Vec<u8>)> {
    let rows = all().into_iter().flat_map(|table| table.rows);
    rows.map(|row| (row.direction, row.frame)).collect()
}

/// A reason that no row produces is one that nobody has seen happen.
#[test]
fn every_reason_is_produced() {
    let produced: BTreeSet<Reason> = all()
        .iter()
        .flat_map(|table| table.rows.iter().map(|row| row.reason))
        .collect();
    let missing: Vec<_> = Reason::ALL
        .into_iter()
        .filter(|reason| !produced.contains(reason))
        .collect();
    assert!(missing.is_empty(), "no row produces {missing:?}");
}

/// Every row is told apart when it fails.
#[test]
fn every_row_of_a_table_has_its_own_name() {
    for table in all() {
        let names: BTreeSet<_> = table.rows.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), table.rows.len(), "{names:?}");
    }
}
