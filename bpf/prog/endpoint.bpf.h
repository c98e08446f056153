/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/* Whose packet it is, and which addresses are the pod's own. */

#include "flow.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32); /* ifindex of the host-side interface */
	__type(value, struct endpoint);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_ENDPOINTS);
	__type(key, __u32); /* ifindex % NEAR_ENDPOINTS */
	__type(value, struct near_endpoint);
} near_endpoints SEC(".maps");

static __always_inline const struct endpoint *find_endpoint(__u32 ifindex)
{
	__u32 place = ifindex % NEAR_ENDPOINTS;
	const struct near_endpoint *near = bpf_map_lookup_elem(&near_endpoints, &place);

	if (near && near->ifindex == ifindex)
		return &near->endpoint;
	return bpf_map_lookup_elem(&endpoints, &ifindex);
}

/* An absent address is all zero, and so is the unspecified one, which is nobody's. */
static __always_inline bool is_assigned(const struct endpoint *endpoint, const struct address *address)
{
	if (same_address(&endpoint->v4, address))
		return !is_unspecified(address);
	return same_address(&endpoint->v6, address) && !is_unspecified(address);
}

/* May the pod send from this address? Link-local ones are its own making (RFC 4862) and never leave the link. */
static __always_inline bool is_own_source(const struct endpoint *endpoint, const struct address *source)
{
	return is_assigned(endpoint, source) || is_link_local(source);
}

/*
 * Is a packet to this address for the pod? Besides its own addresses these are link-local ones, whatever goes to
 * a group, and IPv4 in a frame to all stations: the subnet's broadcast address is not known here.
 */
static __always_inline bool is_own_destination(const struct endpoint *endpoint, const struct address *destination,
					       bool group_frame)
{
	if (is_assigned(endpoint, destination))
		return true;
	if (is_ipv4(destination))
		return group_frame || destination->word[3] == bpf_htonl(0xffffffff) ||
		       (destination->word[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
	return is_link_local(destination) || (destination->word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}
