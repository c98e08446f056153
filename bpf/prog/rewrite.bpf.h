/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Addresses and ports of a packet to or from a Service are exchanged by the kernel's own helpers: they know whether
 * a checksum is whole or left to the device, and keep it true either way. A UDP checksum of 0 means none and stays so.
 * SCTP's covers the ports, which never change, and not the addresses.
 *
 *   request   pod -> Service   becomes   pod -> backend
 *   reply     backend -> pod   becomes   Service -> pod
 *   hairpin   pod -> Service   becomes   Service -> pod, and goes back to where it came from
 */

#include "translate.bpf.h"

/* Where a packet has what is rewritten, as offsets from the frame's start. 0: there is none. */
struct places {
	__u32 ip;
	__u32 checksum; /* of TCP, UDP or ICMP */
	__u32 ports;
	__u64 flags;    /* of bpf_l4_csum_replace */
};

static __always_inline struct places find_places(const struct flow *flow)
{
	struct places at = { .ip = ETHERNET_BYTES };

	if (flow->fragment == FRAGMENT_LATER)
		return at;
	if (flow->key.protocol == IP_TCP) {
		at.ports = flow->payload;
		at.checksum = flow->payload + TCP_CHECKSUM;
	} else if (flow->key.protocol == IP_UDP) {
		at.ports = flow->payload;
		at.checksum = flow->payload + UDP_CHECKSUM;
		at.flags = BPF_F_MARK_MANGLED_0;
	}
	return at;
}

/* Of source or destination. */
static __always_inline long rewrite_ipv4(struct __sk_buff *skb, const struct places *at, bool source, __u32 from,
					 __u32 to)
{
	__u32 offset = at->ip + (source ? IPV4_SOURCE : IPV4_DESTINATION);
	long error = 0;

	if (at->checksum)
		error = bpf_l4_csum_replace(skb, at->checksum, from, to, at->flags | BPF_F_PSEUDO_HDR | sizeof(to));
	return error ?: bpf_l3_csum_replace(skb, at->ip + IPV4_CHECKSUM, from, to, sizeof(to))
		     ?: bpf_skb_store_bytes(skb, offset, &to, sizeof(to), 0);
}

static __always_inline long rewrite_ipv6(struct __sk_buff *skb, const struct places *at, bool source,
					 struct address *from, struct address *to)
{
	__u32 offset = at->ip + (source ? IPV6_SOURCE : IPV6_DESTINATION);
	long error = 0;
	__s64 change;

	if (at->checksum) {
		change = bpf_csum_diff(from->word, sizeof(*from), to->word, sizeof(*to), 0);
		error = bpf_l4_csum_replace(skb, at->checksum, 0, change, at->flags | BPF_F_PSEUDO_HDR);
	}
	return error ?: bpf_skb_store_bytes(skb, offset, to, sizeof(*to), 0);
}

static __always_inline long rewrite_address(struct __sk_buff *skb, const struct places *at, bool source,
					    struct address *from, struct address *to)
{
	if (is_ipv4(to))
		return rewrite_ipv4(skb, at, source, from->word[3], to->word[3]);
	return rewrite_ipv6(skb, at, source, from, to);
}

static __always_inline long rewrite_port(struct __sk_buff *skb, const struct places *at, bool source, __u16 from,
					 __u16 to)
{
	if (from == to || !at->ports)
		return 0;
	return bpf_l4_csum_replace(skb, at->checksum, from, to, at->flags | sizeof(to))
	       ?: bpf_skb_store_bytes(skb, at->ports + (source ? 0 : sizeof(to)), &to, sizeof(to), 0);
}

/* Source and destination change places: their sum, all that a checksum knows of them, stays. */
static __noinline long swap_addresses(struct __sk_buff *skb, __u32 ip, bool ipv4)
{
	struct address pair[2];
	__u32 offset = ip + (ipv4 ? IPV4_SOURCE : IPV6_SOURCE);

	if (ipv4)
		return bpf_skb_load_bytes(skb, offset, pair, 2 * sizeof(__u32))
		       ?: bpf_skb_store_bytes(skb, offset, &pair[0].word[1], sizeof(__u32), 0)
		       ?: bpf_skb_store_bytes(skb, offset + sizeof(__u32), &pair[0].word[0], sizeof(__u32), 0);
	return bpf_skb_load_bytes(skb, offset, pair, sizeof(pair))
	       ?: bpf_skb_store_bytes(skb, offset, &pair[1], sizeof(pair[1]), 0)
	       ?: bpf_skb_store_bytes(skb, offset + sizeof(pair[0]), &pair[0], sizeof(pair[0]), 0);
}

/* The frame goes back to the pod that sent it, which must take it for its own. */
static __noinline long turn_round(struct __sk_buff *skb)
{
	struct ethernet_header ethernet, back;

	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return -1;
	__builtin_memcpy(back.destination, ethernet.source, sizeof(back.destination));
	__builtin_memcpy(back.source, ethernet.destination, sizeof(back.source));
	back.type = ethernet.type;
	/* On a bridge it was addressed to another station, and was marked as that. */
	return bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0) ?: bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
}

static __noinline long rewrite_hairpin(struct __sk_buff *skb, struct flow *flow)
{
	struct places at = find_places(flow);
	bool request = flow->rewrite == REWRITE_REQUEST;
	__u16 from = request ? flow->service_port : flow->key.pod_port;
	__u16 to = request ? flow->key.pod_port : flow->service_port;

	return rewrite_port(skb, &at, !request, from, to) ?: swap_addresses(skb, ETHERNET_BYTES, is_ipv4(&flow->service))
	       ?: turn_round(skb);
}

/* 0, or an error where the packet could not be made writable. */
static __always_inline long rewrite(struct __sk_buff *skb, struct flow *flow)
{
	struct places at;

	if (flow->hairpin)
		return rewrite_hairpin(skb, flow);
	at = find_places(flow);
	if (flow->rewrite == REWRITE_REQUEST)
		return rewrite_address(skb, &at, false, &flow->service, &flow->key.remote)
		       ?: rewrite_port(skb, &at, false, flow->service_port, flow->key.remote_port);
	return rewrite_address(skb, &at, true, &flow->key.remote, &flow->service)
	       ?: rewrite_port(skb, &at, true, flow->key.remote_port, flow->service_port);
}
