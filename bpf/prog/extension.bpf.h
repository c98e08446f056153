/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * The headers between IPv6's own and the transport's (RFC 8200, section 4): walked to a depth and a length that no
 * sender with a purpose exceeds, so that ports are found behind them and nothing is hidden by them.
 */

#include "flow.bpf.h"

enum extension_limit {
	MAX_EXTENSION_HEADERS = 6,
	MAX_EXTENSION_BYTES = MAX_PAYLOAD_OFFSET - ETHERNET_BYTES - IPV6_BYTES,
};

/* What the network header, and those behind it, say about the rest. */
struct network {
	__u32 payload;     /* offset of what `protocol` is the number of */
	__u32 end;         /* offset behind the IP packet */
	__u32 fragment_id;
	__u32 fragment_start;  /* offset of the fragment's data */
	__u16 fragment_offset; /* in bytes, of the data in its datagram */
	__u8 more_fragments;
	__u8 fragment;     /* enum fragment_kind */
	__u8 protocol;
	__u8 group_frame;
	__u8 router_alert; /* a hop-by-hop option that says so */
	__u8 pad;
};

/* Those that may stand before another header. What is not among them, ESP for one, is a protocol without ports. */
static __always_inline bool is_extension_header(__u8 protocol)
{
	switch (protocol) {
	case IP_HOP_BY_HOP:
	case IP_ROUTING:
	case IP_FRAGMENT:
	case IP_AUTHENTICATION:
	case IP_DESTINATION_OPTIONS:
	case IP_MOBILITY:
	case IP_HIP:
	case IP_SHIM6:
		return true;
	default:
		return false;
	}
}

static __always_inline void set_fragment(struct network *network, __u32 offset, bool more, __u32 id)
{
	network->fragment_offset = offset;
	network->more_fragments = more;
	network->fragment_id = id;
	network->fragment = offset ? FRAGMENT_LATER : FRAGMENT_FIRST;
}

/* The whole of the hop-by-hop header that RFC 2710 and RFC 3810 ask for; padding may stand on either side. */
static __always_inline bool is_router_alert(const struct extension_header *header)
{
	return !header->length && ((header->data[0] == OPTION_ROUTER_ALERT && header->data[1] == 2) ||
				   (header->data[2] == OPTION_ROUTER_ALERT && header->data[3] == 2));
}

/*
 * A routing header with segments left names a destination that is not the one in front, which is what policy would
 * judge; type 0 is forbidden altogether (RFC 5095). Both are data[0] and data[1].
 */
static __always_inline bool is_routed_further(const struct extension_header *header)
{
	return !header->data[0] || header->data[1];
}

/* One header: what it says, and how long it is. UNDECIDED, or why the packet goes no further. */
static __always_inline __u32 read_extension_header(const struct extension_header *header, struct network *network,
						   bool is_first, __u32 *bytes)
{
	const struct fragment_header *fragment = (const void *)header;

	*bytes = (header->length + 1) * 8;
	switch (network->protocol) {
	case IP_HOP_BY_HOP:
		if (!is_first)
			return REASON_MALFORMED;
		network->router_alert = is_router_alert(header);
		return UNDECIDED;
	case IP_ROUTING:
		return is_routed_further(header) ? REASON_EXTENSION_HEADER : UNDECIDED;
	case IP_AUTHENTICATION:
		*bytes = (header->length + 2) * 4;
		return UNDECIDED;
	case IP_DESTINATION_OPTIONS:
		return UNDECIDED;
	case IP_FRAGMENT:
		*bytes = sizeof(*fragment);
		/* One is enough: a fragment of a fragment is nobody's work (RFC 8200, section 4.5). */
		if (network->fragment_start)
			return REASON_MALFORMED;
		network->fragment_start = network->payload + *bytes;
		/* Neither offset nor more: a whole packet all the same (RFC 6946). */
		if (fragment->offset & bpf_htons(0xfff9))
			set_fragment(network, bpf_ntohs(fragment->offset) & 0xfff8, fragment->offset & bpf_htons(1),
				     fragment->id);
		return UNDECIDED;
	default:
		return REASON_EXTENSION_HEADER;
	}
}

static __always_inline void forget_what_is_known(const struct __sk_buff *skb, struct network *network)
{
	network->payload = unknown(skb, network->payload);
	network->fragment_id = unknown(skb, network->fragment_id);
	network->fragment_start = unknown(skb, network->fragment_start);
	network->fragment_offset = unknown(skb, network->fragment_offset);
	network->more_fragments = unknown(skb, network->more_fragments);
	network->fragment = unknown(skb, network->fragment);
	network->protocol = unknown(skb, network->protocol);
	network->router_alert = unknown(skb, network->router_alert);
}

/*
 * From network->payload and network->protocol to the first header that is no extension, or to the data of a later
 * fragment.
 */
static __noinline __u32 walk_extension_headers(struct __sk_buff *skb, struct network *network)
{
	__u32 start = network->payload;
	struct extension_header header;
	__u32 bytes, reason;

	forget_what_is_known(skb, network);
	for (int i = 0; i < MAX_EXTENSION_HEADERS; i++) {
		if (network->fragment == FRAGMENT_LATER || !is_extension_header(network->protocol))
			return UNDECIDED;
		if (network->payload + sizeof(header) > network->end ||
		    bpf_skb_load_bytes(skb, network->payload, &header, sizeof(header)))
			return REASON_MALFORMED;
		reason = read_extension_header(&header, network, !i, &bytes);
		if (reason != UNDECIDED)
			return reason;
		network->payload += bytes;
		network->protocol = header.next_header;
		if (network->payload > network->end)
			return REASON_MALFORMED;
		if (network->payload - start > MAX_EXTENSION_BYTES)
			return REASON_EXTENSION_HEADER;
	}
	if (network->fragment != FRAGMENT_LATER && is_extension_header(network->protocol))
		return REASON_EXTENSION_HEADER;
	return UNDECIDED;
}
