/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861). Both pass, or nothing would work; but a pod may speak for
 * its own addresses only, name no other hardware address than the one it sends from, and never play the router.
 * What breaks this is forged, and dropped whatever is only watched for: nobody needs it, and it turns the traffic of
 * others to where they did not send it.
 */

#include "own_node.bpf.h"

/* Without branches, since it is asked in a loop. */
static __always_inline bool same_hardware(const __u8 *a, const __u8 *b)
{
	__u8 difference = 0;

	for (int i = 0; i < 6; i++)
		difference |= a[i] ^ b[i];
	return !difference;
}

static __noinline __u32 judge_arp(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	struct ethernet_header ethernet;
	struct address sender = {};
	struct arp_message arp;

	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)) ||
	    bpf_skb_load_bytes(skb, ETHERNET_BYTES, &arp, sizeof(arp)))
		return REASON_MALFORMED;
	if (arp.hardware != bpf_htons(1) || arp.protocol != bpf_htons(ETHERTYPE_IPV4) || arp.hardware_length != 6 ||
	    arp.protocol_length != 4)
		return REASON_MALFORMED;
	if (flow->direction == DIRECTION_INGRESS)
		return REASON_NEIGHBOUR;

	if (!same_hardware(arp.sender_hardware, ethernet.source))
		return REASON_FORGED_NEIGHBOUR;
	__builtin_memcpy(&sender.word[3], arp.sender, sizeof(arp.sender));
	/* A probe for an address that it may take (RFC 5227) has no sender. */
	if (!sender.word[3])
		return REASON_NEIGHBOUR;
	sender.word[2] = bpf_htonl(0xffff);
	flow->key.pod = sender;
	return is_assigned(endpoint, &sender) ? REASON_NEIGHBOUR : REASON_FORGED_NEIGHBOUR;
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

/* Of the pod's own, or the link-local address that its hardware address makes (RFC 4291, appendix A). */
static __always_inline bool is_own_neighbour(const struct endpoint *endpoint, const struct address *address,
					     const __u8 *hardware)
{
	__u32 high = (hardware[0] ^ 2) << 24 | hardware[1] << 16 | hardware[2] << 8 | 0xff;
	__u32 low = 0xfeU << 24 | hardware[3] << 16 | hardware[4] << 8 | hardware[5];
	const struct address made = { .word = { bpf_htonl(0xfe800000), 0, bpf_htonl(high), bpf_htonl(low) } };

	return is_assigned(endpoint, address) || same_address(address, &made);
}

/* What a pod says of its neighbourhood must be about itself. An unspecified source is one that is taking an address. */
static __always_inline bool is_own_neighbour_message(const struct endpoint *endpoint, const struct flow *flow,
						     const struct neighbour_message *message, const __u8 *hardware)
{
	bool own = is_own_neighbour(endpoint, &flow->key.pod, hardware);
	bool unspecified = is_unspecified(&flow->key.pod);

	switch (message->icmp.type) {
	case ICMPV6_ROUTER_SOLICITATION:
		return own || unspecified;
	case ICMPV6_NEIGHBOUR_SOLICITATION:
		return own || (unspecified && is_own_neighbour(endpoint, &message->target, hardware));
	case ICMPV6_NEIGHBOUR_ADVERTISEMENT:
		return own && is_own_neighbour(endpoint, &message->target, hardware);
	default:
		/* A router's advertisement. */
		return false;
	}
}

/*
 * A redirect turns a route of its receiver, so only a router's is believed; the only one that a pod has is its node.
 */
static __always_inline __u32 judge_redirect(const struct __sk_buff *skb, const struct flow *flow)
{
	return is_from_local_socket(skb, flow) ? REASON_NEIGHBOUR : REASON_FORGED_NEIGHBOUR;
}

struct neighbour_option {
	__u8 type;
	__u8 length; /* in units of 8 bytes */
	__u8 hardware[6];
};

enum {
	/* A hardware address and a nonce are what there is; more is nobody's. */
	MAX_NEIGHBOUR_OPTIONS = 4,
};

/* The options from `offset` on: each hardware address must be the frame's source. */
static __always_inline __u32 judge_neighbour_options(struct __sk_buff *skb, const struct flow *flow, __u32 offset,
						     const __u8 *hardware)
{
	struct neighbour_option option;
	bool forged;

	for (int i = 0; i < MAX_NEIGHBOUR_OPTIONS; i++) {
		if (offset == flow->end)
			return REASON_NEIGHBOUR;
		if (offset + sizeof(option) > flow->end || bpf_skb_load_bytes(skb, offset, &option, sizeof(option)) ||
		    !option.length)
			return REASON_MALFORMED;
		forged = !same_hardware(option.hardware, hardware);
		if (forged && (option.type == OPTION_SOURCE_HARDWARE || option.type == OPTION_TARGET_HARDWARE))
			return REASON_FORGED_NEIGHBOUR;
		offset += option.length * 8;
	}
	return REASON_MALFORMED;
}

/* A neighbour discovery message, types 133 to 137, whose IPv6 header is parsed. */
static __noinline __u32 judge_neighbour(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	struct neighbour_message message = {};
	struct ethernet_header ethernet;
	__u32 bytes;
	__u8 hop_limit;

	/* Nothing may be hidden in a later part (RFC 6980). */
	if (flow->fragment || bpf_skb_load_bytes(skb, flow->payload, &message.icmp, sizeof(message.icmp)))
		return REASON_MALFORMED;
	bytes = neighbour_bytes(message.icmp.type);
	if (flow->payload + bytes > flow->end || message.icmp.code)
		return REASON_MALFORMED;
	if (bytes >= sizeof(message) && bpf_skb_load_bytes(skb, flow->payload, &message, sizeof(message)))
		return REASON_MALFORMED;
	/* A router would have lowered it: 255 proves that the sender is on this link. */
	if (bpf_skb_load_bytes(skb, ETHERNET_BYTES + 7, &hop_limit, sizeof(hop_limit)) || hop_limit != 255)
		return REASON_MALFORMED;

	if (message.icmp.type == ICMPV6_REDIRECT)
		return judge_redirect(skb, flow);
	if (flow->direction == DIRECTION_INGRESS)
		return REASON_NEIGHBOUR;
	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return REASON_MALFORMED;
	if (!is_own_neighbour_message(endpoint, flow, &message, ethernet.source))
		return REASON_FORGED_NEIGHBOUR;
	return judge_neighbour_options(skb, flow, flow->payload + bytes, ethernet.source);
}
