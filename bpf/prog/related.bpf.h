/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * ICMP errors carry the start of the packet that they are about (RFC 792, RFC 4443). They follow that packet's flow:
 * without them path MTU discovery and quick failures would not work for what policy allows.
 */

#include "judge.bpf.h"
#include "rewrite.bpf.h"

/* Where the quoted packet has its addresses and ports; checksum is that of the error, which covers both. */
static __always_inline struct places quoted_places(const struct flow *flow, __u32 ports)
{
	return (struct places){
		.ip = flow->payload + ICMP_BYTES,
		.ports = ports,
		.checksum = flow->payload + ICMP_CHECKSUM,
	};
}

/* The quoted packet went the other way: its source is the pod in an error that comes to the pod. */
static __always_inline void set_quoted_ports(struct conntrack_key *quoted, bool to_pod, __u16 source, __u16 destination)
{
	quoted->pod_port = to_pod ? source : destination;
	quoted->remote_port = to_pod ? destination : source;
}

/* Ports, or an echo's identifier, from the eight bytes that every error quotes. */
static __always_inline bool read_quoted_ports(struct __sk_buff *skb, __u32 offset, bool to_pod,
					      struct conntrack_key *quoted)
{
	struct icmp_header icmp;
	__u16 ports[2];

	if (has_ports(quoted->protocol)) {
		if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
			return false;
		set_quoted_ports(quoted, to_pod, ports[0], ports[1]);
		return true;
	}
	if (quoted->protocol != IP_ICMP && quoted->protocol != IP_ICMPV6)
		return true;
	if (bpf_skb_load_bytes(skb, offset, &icmp, sizeof(icmp)))
		return false;
	if (icmp.type == ICMP_ECHO_REQUEST || icmp.type == ICMPV6_ECHO_REQUEST)
		set_quoted_ports(quoted, to_pod, icmp.id, answerer_of(icmp.id));
	else if (icmp.type == ICMP_ECHO_REPLY || icmp.type == ICMPV6_ECHO_REPLY)
		set_quoted_ports(quoted, to_pod, answerer_of(icmp.id), icmp.id);
	return true;
}

static __always_inline __u32 read_quoted_ipv4(struct __sk_buff *skb, const struct flow *flow, bool to_pod,
					      struct conntrack_key *quoted, __u32 *ports)
{
	struct address *source = to_pod ? &quoted->pod : &quoted->remote;
	struct address *destination = to_pod ? &quoted->remote : &quoted->pod;
	__u32 offset = flow->payload + ICMP_BYTES;
	struct ipv4_header ip;
	__u32 header;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	header = (ip.version_length & 0x0f) * 4;
	if (ip.version_length >> 4 != 4 || header < IPV4_BYTES || offset + header + 8 > flow->end)
		return REASON_MALFORMED;
	source->word[2] = destination->word[2] = bpf_htonl(0xffff);
	source->word[3] = ip.source;
	destination->word[3] = ip.destination;
	quoted->protocol = ip.protocol;
	/* A later fragment has no ports to read, and no flow to find. */
	if (ip.fragment & bpf_htons(0x1fff))
		return UNDECIDED;
	*ports = offset + header;
	return read_quoted_ports(skb, *ports, to_pod, quoted) ? UNDECIDED : REASON_MALFORMED;
}

static __always_inline __u32 read_quoted_ipv6(struct __sk_buff *skb, const struct flow *flow, bool to_pod,
					      struct conntrack_key *quoted, __u32 *ports)
{
	__u32 offset = flow->payload + ICMP_BYTES;
	struct network inner = {};
	struct ipv6_header ip;
	__u32 reason;

	if (offset + IPV6_BYTES + 8 > flow->end || bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) ||
	    ip.version_class >> 4 != 6)
		return REASON_MALFORMED;
	__builtin_memcpy(to_pod ? &quoted->pod : &quoted->remote, ip.source, sizeof(ip.source));
	__builtin_memcpy(to_pod ? &quoted->remote : &quoted->pod, ip.destination, sizeof(ip.destination));
	if (is_ipv4(&quoted->pod) || is_ipv4(&quoted->remote))
		return REASON_MAPPED_ADDRESS;
	inner.protocol = ip.next_header;
	inner.payload = offset + IPV6_BYTES;
	inner.end = flow->end;
	reason = walk_extension_headers(skb, &inner);
	if (reason != UNDECIDED)
		return reason;
	quoted->protocol = inner.protocol;
	/* As in IPv4. */
	if (inner.fragment == FRAGMENT_LATER)
		return UNDECIDED;
	*ports = inner.payload;
	return read_quoted_ports(skb, *ports, to_pod, quoted) ? UNDECIDED : REASON_MALFORMED;
}

/* The entry of the quoted packet's flow and its slot's word; the key is then the entry's. False: there is none. */
static __always_inline bool find_quoted(const struct endpoint *endpoint, struct flow *flow)
{
	if (!read_entry(endpoint, flow))
		return false;
	if (flow->entry.flags & CONNTRACK_ALIAS) {
		if (flow->direction == DIRECTION_INGRESS)
			return false;
		follow_alias(flow);
		if (!read_entry(endpoint, flow) || !is_of_service(&flow->entry, flow))
			return false;
	} else if (flow->entry.flags & CONNTRACK_TRANSLATED) {
		if (is_against_translation(&flow->entry, flow))
			return false;
		come_from_service(flow);
	}
	return !is_expired(&flow->entry, flow->key.protocol, flow->tick);
}

/* Is there a flow of this key that is allowed now? UNDECIDED: there is no such flow. */
static __always_inline __u32 judge_quoted(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	const struct conntrack_entry *entry = &flow->entry;
	bool to_pod = flow->direction == DIRECTION_INGRESS;

	if (!find_quoted(endpoint, flow))
		return UNDECIDED;
	flow->judged = entry->initiator;
	/* Between the pod and its node there is no router. */
	if (to_pod && hangs_on_node(flow) && !is_made_here(skb, flow))
		return UNDECIDED;
	if (entry->word == flow->word)
		return entry->state == CONNTRACK_DENIED ? REASON_DEFAULT_DENY : REASON_RELATED;
	/* Its own next packet will write down what is found here. */
	flow->local_socket = entry->flags & CONNTRACK_LOCAL;
	if (flow->judged == DIRECTION_EGRESS && !flow->rewrite)
		find_front(flow);
	return decide_rare(skb) == REASON_DEFAULT_DENY ? REASON_DEFAULT_DENY : REASON_RELATED;
}

/* An address and port of the quoted packet. Its own checksum over what is cut off here nobody can verify. */
static __always_inline long rewrite_quoted(struct __sk_buff *skb, const struct places *at, bool source,
					   struct address *from, struct address *to)
{
	__u32 offset = at->ip + (source ? IPV6_SOURCE : IPV6_DESTINATION);
	const struct places header = { .ip = at->ip };

	/* The quoted header's checksum makes up for what changes in it. */
	if (is_ipv4(to))
		return rewrite_ipv4(skb, &header, source, from->word[3], to->word[3]);
	return bpf_l4_csum_replace(skb, at->checksum, 0, address_change(from, to), 0)
	       ?: bpf_skb_store_bytes(skb, offset, to, sizeof(*to), 0);
}

/*
 * The error is about a flow to a Service, and says so to its side of it: the quoted packet becomes what that side sent,
 * and an error of the backend's comes from the Service. The key is that of the flow's entry.
 */
static __noinline long rewrite_error(struct __sk_buff *skb, struct flow *flow, struct address *reporter, __u32 ports)
{
	const struct places quoted = quoted_places(flow, ports);
	bool request = flow->rewrite == REWRITE_REQUEST;
	struct places outer = { .ip = ETHERNET_BYTES };
	struct address *from = request ? &flow->service : &flow->key.remote;
	struct address *to = request ? &flow->key.remote : &flow->service;
	__u16 backend_port = flow->hairpin ? flow->key.pod_port : flow->key.remote_port;
	__u16 from_port = request ? flow->service_port : backend_port;
	__u16 to_port = request ? backend_port : flow->service_port;
	bool ipv4 = is_ipv4(&flow->service);

	if (flow->key.protocol != IP_SCTP && rewrite_port(skb, &quoted, request, from_port, to_port))
		return -1;
	if (flow->hairpin)
		return swap_addresses(skb, quoted.ip, ipv4) ?: swap_addresses(skb, outer.ip, ipv4) ?: turn_round(skb);
	if (!ipv4)
		outer.checksum = quoted.checksum;
	if (rewrite_quoted(skb, &quoted, request, from, to))
		return -1;
	return same_address(reporter, from) ? rewrite_address(skb, &outer, !request, from, to) : 0;
}

/* By words: a third key on the stack would be one too many. */
static __always_inline void swap_keys(struct conntrack_key *a, struct conntrack_key *b)
{
	__u32 *left = (__u32 *)a, *right = (__u32 *)b;

	for (int i = 0; i < (int)(sizeof(*a) / sizeof(__u32)); i++) {
		__u32 word = left[i];

		left[i] = right[i];
		right[i] = word;
	}
}

/* With its flow, which is allowed, or denied where that is only watched. */
static __always_inline bool passes(const struct flow *flow, __u32 reason)
{
	return reason == REASON_RELATED ||
	       (reason == REASON_DEFAULT_DENY && flow->settings.policy == ENFORCEMENT_AUDIT);
}

/*
 * An error about no flow that we know is judged as what it is, a packet of a protocol without ports; it opens
 * nothing, so it makes no entry and asks for no record of an allow.
 */
__global __u32 judge_error(struct __sk_buff *skb)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	struct conntrack_key quoted = {};
	__u32 reason, ports = 0;
	bool to_pod, to_sender;

	if (!flow || !endpoint)
		return REASON_NO_ENDPOINT;
	quoted.endpoint = flow->key.endpoint;
	to_pod = flow->direction == DIRECTION_INGRESS;
	set_time(flow);
	if (flow->key.protocol == IP_ICMP)
		reason = read_quoted_ipv4(skb, flow, to_pod, &quoted, &ports);
	else
		reason = read_quoted_ipv6(skb, flow, to_pod, &quoted, &ports);
	if (reason != UNDECIDED)
		return reason;

	/* Any router may tell the pod; the pod tells only who sent what it quotes, or could tell anybody anything. */
	to_sender = same_address(&quoted.pod, &flow->key.pod) &&
		    (to_pod || same_address(&quoted.remote, &flow->key.remote));
	swap_keys(&flow->key, &quoted);
	reason = to_sender ? judge_quoted(skb, endpoint, flow) : UNDECIDED;
	if (flow->rewrite && passes(flow, reason) && rewrite_error(skb, flow, &quoted.remote, ports))
		reason = REASON_MALFORMED;
	swap_keys(&flow->key, &quoted);
	/* What was to be rewritten is; a hairpin's error still has to go back. */
	flow->rewrite = REWRITE_NONE;
	flow->direction = to_pod ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	if (reason == REASON_RELATED)
		return reason;
	flow->hairpin = false;
	if (reason == REASON_MALFORMED)
		return reason;
	flow->local_socket = is_from_local_socket(skb, flow);
	judge_by(endpoint, flow, flow->direction);
	/* Denied with its flow, it is reported as what it is. */
	return reason == UNDECIDED ? decide_rare(skb) : reason;
}
