/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Only the first fragment of a datagram has the transport header. It is judged like any packet; if it passes, its
 * ports are remembered, and the later ones become packets of the same flow. One whose first is not known is dropped:
 * whatever comes before its first, after it was denied, or too long after it.
 *
 * Each direction of an endpoint has places of its own, so that nobody can crowd out the fragments of others; the
 * oldest gives way. A first one is written before it is judged, since whoever judges may change the key, and taken
 * back where it is denied: so what is denied costs one place in all.
 */

#include "clock.bpf.h"
#include "endpoint.bpf.h"
#include "extension.bpf.h"

enum fragment_limit {
	FRAGMENT_PLACES = 16, /* a power of two */
};

/* How long after its first a later one is let through, in ticks; set before loading. */
const volatile __s32 fragment_ticks = 28; /* 30 s, as long as the kernel waits (net.ipv4.ipfrag_time) */

/* A datagram whose first fragment passed. */
struct first_fragment {
	struct conntrack_key key; /* as the packet shows it; endpoint 0: a place that is free */
	__u32 id;
	__u32 tick;
	__u16 bytes;   /* of its data: later ones begin behind it */
	__u8 protocol; /* of the IPv4 header, where it is part of what tells datagrams apart; 0 in IPv6, where it is not */
	__u8 pad;
};

struct fragment_places {
	struct bpf_spin_lock lock;
	__u32 next;
	struct first_fragment places[FRAGMENT_PLACES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__type(key, __u32); /* slot */
	__type(value, struct fragment_places);
} fragments SEC(".maps");

static __always_inline struct fragment_places *find_fragments(const struct endpoint *endpoint, const struct flow *flow)
{
	__u32 slot = endpoint->slot + flow->direction;

	return bpf_map_lookup_elem(&fragments, &slot);
}

static __always_inline __u8 datagram_protocol(const struct flow *flow, const struct network *network)
{
	return is_ipv4(&flow->key.pod) || is_ipv4(&flow->key.remote) ? network->protocol : 0;
}

/* A first fragment, ports and all. */
static __noinline void remember_fragment(const struct endpoint *endpoint, struct flow *flow,
					 const struct network *network)
{
	struct fragment_places *of = find_fragments(endpoint, flow);
	struct first_fragment made = {
		.key = flow->key,
		.id = network->fragment_id,
		.bytes = network->end - network->fragment_start,
		.protocol = datagram_protocol(flow, network),
	};
	__u32 place;

	if (!of)
		return;
	set_time(flow);
	made.tick = flow->tick;
	bpf_spin_lock(&of->lock);
	place = of->next % FRAGMENT_PLACES;
	of->next = place + 1;
	of->places[place] = made;
	bpf_spin_unlock(&of->lock);
	flow->fragment_place = place;
}

/* It was denied. Another one may have its place by now; whom that costs is a fragment of the same moment. */
static __noinline void forget_fragment(const struct endpoint *endpoint, const struct flow *flow)
{
	struct fragment_places *of = find_fragments(endpoint, flow);
	__u32 place = flow->fragment_place % FRAGMENT_PLACES;

	if (!of)
		return;
	bpf_spin_lock(&of->lock);
	of->places[place].key.endpoint = 0;
	if (of->next == place + 1)
		of->next = place;
	bpf_spin_unlock(&of->lock);
}

static __always_inline bool is_same_datagram(const struct first_fragment *first, const struct flow *flow,
					     const struct network *network, __u8 protocol, __s32 ticks)
{
	return first->id == network->fragment_id && first->protocol == protocol &&
	       first->key.endpoint == flow->key.endpoint && same_address(&first->key.pod, &flow->key.pod) &&
	       same_address(&first->key.remote, &flow->key.remote) && (__s32)(flow->tick - first->tick) <= ticks;
}

/* A later fragment becomes a packet of its first one's flow. */
static __noinline __u32 recall_fragment(const struct endpoint *endpoint, struct flow *flow,
					const struct network *network)
{
	struct fragment_places *of = find_fragments(endpoint, flow);
	__u8 protocol = datagram_protocol(flow, network);
	const struct first_fragment *first;
	__u32 place = FRAGMENT_PLACES;
	__s32 ticks = fragment_ticks;
	__u32 bytes = 0;

	if (!of)
		return REASON_FRAGMENT;
	set_time(flow);
	bpf_spin_lock(&of->lock);
	for (__u32 i = 0; i < FRAGMENT_PLACES; i++)
		if (is_same_datagram(&of->places[i], flow, network, protocol, ticks))
			place = i;
	if (place < FRAGMENT_PLACES) {
		first = &of->places[place];
		bytes = first->bytes;
		flow->key.pod_port = first->key.pod_port;
		flow->key.remote_port = first->key.remote_port;
		flow->key.protocol = first->key.protocol;
	}
	bpf_spin_unlock(&of->lock);
	if (place == FRAGMENT_PLACES)
		return REASON_FRAGMENT;
	/* What overlaps the first one could rewrite its header (RFC 1858, RFC 3128, RFC 5722). */
	return network->fragment_offset < bytes ? REASON_MALFORMED : UNDECIDED;
}

/* All but the last are of 8 bytes times something, and together they fit into a packet. */
static __always_inline bool is_possible_fragment(const struct network *network)
{
	__u32 bytes = network->end - network->fragment_start;

	return bytes && !(network->more_fragments && (bytes & 7)) && network->fragment_offset + bytes <= 65535;
}
