/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861). Both pass, or nothing would work; but a pod may speak for
 * its own addresses only, and never as a router.
 */

#include "endpoint.bpf.h"

static __noinline __u32 judge_arp(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	struct arp_message arp;
	struct address sender = {};

	if (bpf_skb_load_bytes(skb, ETHERNET_BYTES, &arp, sizeof(arp)))
		return REASON_MALFORMED;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETHERTYPE_IPV4) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return REASON_MALFORMED;
	if (flow->direction == DIRECTION_INGRESS)
		return REASON_NEIGHBOUR;

	__builtin_memcpy(&sender.word[3], arp.sender, sizeof(arp.sender));
	/* A probe for an address that it may take (RFC 5227) has no sender. */
	if (!sender.word[3])
		return REASON_NEIGHBOUR;
	sender.word[2] = bpf_htonl(0xffff);
	flow->key.pod = sender;
	return is_assigned(endpoint, &sender) ? REASON_NEIGHBOUR : REASON_SPOOFED;
}

struct neighbour_message {
	struct icmp_header icmp;
	struct address target; /* of solicitations, advertisements and redirects */
};

/* RFC 4861, sections 4.1 to 4.5: least length of types 133 to 137. */
static __always_inline __u32 neighbour_bytes(__u8 type)
{
	switch (type) {
	case ICMPV6_ROUTER_SOLICITATION:
		return 8;
	case ICMPV6_ROUTER_ADVERTISEMENT:
		return 16;
	case ICMPV6_REDIRECT:
		return 40;
	default:
		return 24;
	}
}

/* What a pod says of its neighbourhood must be about itself. An unspecified source is one that is taking an address. */
static __always_inline bool is_own_neighbour_message(const struct endpoint *endpoint, const struct flow *flow,
						     const struct neighbour_message *message)
{
	bool own = is_own_source(endpoint, &flow->key.pod);
	bool unspecified = is_unspecified(&flow->key.pod);

	switch (message->icmp.type) {
	case ICMPV6_ROUTER_SOLICITATION:
		return own || unspecified;
	case ICMPV6_NEIGHBOUR_SOLICITATION:
		return own || (unspecified && is_own_source(endpoint, &message->target));
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return own && is_own_source(endpoint, &message->target);
	default:
		/* Advertisements and redirects are a router's: from a pod they are forged. */
		return false;
	}
}

/* A neighbour discovery message, types 133 to 137, whose IPv6 header is parsed. */
static __noinline __u32 judge_neighbour(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	struct neighbour_message message = {};
	__u32 bytes;
	__u8 hop_limit;

	if (bpf_skb_load_bytes(skb, flow->payload, &message.icmp, sizeof(message.icmp)))
		return REASON_MALFORMED;
	bytes = neighbour_bytes(message.icmp.type);
	if (flow->payload + bytes > flow->end || message.icmp.code)
		return REASON_MALFORMED;
	if (bytes >= sizeof(message) && bpf_skb_load_bytes(skb, flow->payload, &message, sizeof(message)))
		return REASON_MALFORMED;
	/* A router would have lowered it: 255 proves that the sender is on this link. */
	if (bpf_skb_load_bytes(skb, ETHERNET_BYTES + 7, &hop_limit, sizeof(hop_limit)) || hop_limit != 255)
		return REASON_MALFORMED;

	if (flow->direction == DIRECTION_INGRESS || is_own_neighbour_message(endpoint, flow, &message))
		return REASON_NEIGHBOUR;
	return REASON_SPOOFED;
}
