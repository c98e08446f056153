/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * From a frame to one struct flow: Ethernet -> IPv4 or IPv6 -> whose addresses -> extension headers -> fragments ->
 * TCP, UDP, SCTP, ICMP or nothing. Each step answers UNDECIDED, or the reason why the packet goes no further.
 *
 * Headers are read straight from the packet; where they lie outside the linear part they are pulled in once, before
 * anything is read, since every pull takes the pointers away.
 */

#include "endpoint.bpf.h"
#include "extension.bpf.h"
#include "fragment.bpf.h"
#include "membership.bpf.h"
#include "neighbour.bpf.h"

static __always_inline void pull_headers(struct __sk_buff *skb)
{
	__u32 want = skb->len < HEADER_BYTES ? skb->len : HEADER_BYTES;

	/* A pull that fails leaves the packet short, and what is short is malformed. */
	if (packet_start(skb) + want > packet_end(skb))
		bpf_skb_pull_data(skb, want);
}

static __always_inline void set_ports(struct flow *flow, __u16 source, __u16 destination)
{
	bool ingress = flow->direction == DIRECTION_INGRESS;

	flow->key.remote_port = ingress ? source : destination;
	flow->key.pod_port = ingress ? destination : source;
}

/*
 * Where the IP packet ends, from its length field, which must not reach beyond the frame. A length of 0 is that of
 * a segment of more than 64 KiB on its way to be cut ("BIG TCP"): it ends with the frame.
 */
static __always_inline bool set_end(struct flow *flow, __u32 length, bool unset, __u32 frame)
{
	if (unset && frame > ETHERNET_BYTES + 65535) {
		flow->end = frame;
		return true;
	}
	flow->end = ETHERNET_BYTES + length;
	return flow->end <= frame;
}

/* An option with a source route (RFC 791) names a destination that is not the one in front, which policy would judge. */
__global __u32 check_options(struct __sk_buff *skb, __u32 bytes)
{
	__u8 options[IPV4_OPTION_BYTES + 1] = {};
	__u32 next = 0;

	if (bytes < sizeof(__u32))
		return REASON_MALFORMED;
	/* Two comparisons, of which old verifiers learn both bounds. */
	barrier_var(bytes);
	if (bytes > IPV4_OPTION_BYTES || bpf_skb_load_bytes(skb, ETHERNET_BYTES + IPV4_BYTES, options, bytes))
		return REASON_MALFORMED;
	for (__u32 i = 0; i < IPV4_OPTION_BYTES; i++) {
		next = unknown(skb, next);
		if (i < next)
			continue;
		switch (options[i]) {
		case IPV4_OPTION_END:
			return UNDECIDED;
		case IPV4_OPTION_NOTHING:
			break;
		case IPV4_OPTION_LOOSE_ROUTE:
		case IPV4_OPTION_STRICT_ROUTE:
			return REASON_MALFORMED;
		default:
			if (options[i + 1] < 2)
				return REASON_MALFORMED;
			next = i + options[i + 1];
		}
	}
	return UNDECIDED;
}

static __always_inline __u32 parse_ipv4(struct __sk_buff *skb, struct flow *flow, struct network *network)
{
	const struct ipv4_header *ip = packet_start(skb) + ETHERNET_BYTES;
	struct address *source, *destination;
	__u32 length, header;

	if ((void *)(ip + 1) > packet_end(skb))
		return REASON_MALFORMED;
	header = (ip->version_length & 0x0f) * 4;
	length = bpf_ntohs(ip->total_length);
	if (ip->version_length >> 4 != 4 || header < IPV4_BYTES || !set_end(flow, length, !length, skb->len) ||
	    ETHERNET_BYTES + header > flow->end)
		return REASON_MALFORMED;

	source = flow->direction == DIRECTION_INGRESS ? &flow->key.remote : &flow->key.pod;
	destination = flow->direction == DIRECTION_INGRESS ? &flow->key.pod : &flow->key.remote;
	source->word[2] = bpf_htonl(0xffff);
	source->word[3] = ip->source;
	destination->word[2] = bpf_htonl(0xffff);
	destination->word[3] = ip->destination;
	network->protocol = ip->protocol;
	flow->payload = ETHERNET_BYTES + header;
	/* More fragments, or an offset in units of 8 bytes. */
	if (ip->fragment & bpf_htons(0x3fff)) {
		set_fragment(network, (bpf_ntohs(ip->fragment) & 0x1fff) * 8, ip->fragment & bpf_htons(0x2000), ip->id);
		network->fragment_start = flow->payload;
	}
	return header > IPV4_BYTES ? check_options(skb, header - IPV4_BYTES) : UNDECIDED;
}

static __always_inline __u32 parse_ipv6(struct __sk_buff *skb, struct flow *flow, struct network *network)
{
	const struct ipv6_header *ip = packet_start(skb) + ETHERNET_BYTES;
	struct address *source, *destination;
	__u32 length;

	if ((void *)(ip + 1) > packet_end(skb))
		return REASON_MALFORMED;
	length = bpf_ntohs(ip->payload_length);
	if (ip->version_class >> 4 != 6 || !set_end(flow, IPV6_BYTES + length, !length, skb->len))
		return REASON_MALFORMED;

	source = flow->direction == DIRECTION_INGRESS ? &flow->key.remote : &flow->key.pod;
	destination = flow->direction == DIRECTION_INGRESS ? &flow->key.pod : &flow->key.remote;
	__builtin_memcpy(source, ip->source, sizeof(*source));
	__builtin_memcpy(destination, ip->destination, sizeof(*destination));
	if (is_ipv4(source) || is_ipv4(destination))
		return REASON_MAPPED_ADDRESS;
	network->protocol = ip->next_header;
	flow->payload = ETHERNET_BYTES + IPV6_BYTES;
	return UNDECIDED;
}

static __always_inline __u32 parse_tcp(struct __sk_buff *skb, struct flow *flow)
{
	const struct tcp_header *tcp = packet_start(skb) + flow->payload;
	__u32 header;

	if ((void *)(tcp + 1) > packet_end(skb))
		return REASON_MALFORMED;
	header = (tcp->offset >> 4) * 4;
	if (header < TCP_BYTES || flow->payload + header > flow->end)
		return REASON_MALFORMED;
	/* A connection is not opened and closed at once. */
	if ((tcp->flags & TCP_SYN) && (tcp->flags & (TCP_FIN | TCP_RST)))
		return REASON_MALFORMED;

	flow->tcp_flags = tcp->flags;
	set_ports(flow, tcp->source, tcp->destination);
	return UNDECIDED;
}

static __always_inline __u32 parse_udp(struct __sk_buff *skb, struct flow *flow)
{
	const struct udp_header *udp = packet_start(skb) + flow->payload;
	__u32 length, here;

	if ((void *)(udp + 1) > packet_end(skb))
		return REASON_MALFORMED;
	length = bpf_ntohs(udp->length);
	/* It is the datagram's, of which a first fragment is only the beginning. */
	here = flow->fragment == FRAGMENT_NONE ? length : UDP_BYTES;
	if (length < UDP_BYTES || flow->payload + here > flow->end)
		return REASON_MALFORMED;
	set_ports(flow, udp->source, udp->destination);
	return UNDECIDED;
}

static __always_inline __u32 parse_sctp(struct __sk_buff *skb, struct flow *flow)
{
	const __u16 *ports = packet_start(skb) + flow->payload;

	if ((void *)ports + SCTP_BYTES > packet_end(skb) || flow->payload + SCTP_BYTES > flow->end)
		return REASON_MALFORMED;
	set_ports(flow, ports[0], ports[1]);
	return UNDECIDED;
}

/* The identifier is the port of the side that asked: see struct conntrack_key. */
static __always_inline void set_echo(struct flow *flow, bool request, __u16 id)
{
	if (request)
		set_ports(flow, id, answerer_of(id));
	else
		set_ports(flow, answerer_of(id), id);
}

static __always_inline __u32 parse_icmp(struct __sk_buff *skb, struct flow *flow)
{
	const struct icmp_header *icmp = packet_start(skb) + flow->payload;

	if ((void *)(icmp + 1) > packet_end(skb) || flow->payload + ICMP_BYTES > flow->end)
		return REASON_MALFORMED;
	switch (icmp->type) {
	case ICMP_ECHO_REQUEST:
		set_echo(flow, true, icmp->id);
		break;
	case ICMP_ECHO_REPLY:
		set_echo(flow, false, icmp->id);
		flow->kind = FLOW_ECHO_REPLY;
		break;
	case ICMP_REDIRECT:
		return judge_redirect(skb, flow);
	case ICMP_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		flow->kind = FLOW_ERROR;
		break;
	}
	return UNDECIDED;
}

static __always_inline __u32 parse_icmpv6(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow,
					  const struct network *network)
{
	const struct icmp_header *icmp = packet_start(skb) + flow->payload;

	if ((void *)(icmp + 1) > packet_end(skb) || flow->payload + ICMP_BYTES > flow->end)
		return REASON_MALFORMED;
	switch (icmp->type) {
	case ICMPV6_ROUTER_SOLICITATION ... ICMPV6_REDIRECT:
		return judge_neighbour(skb, endpoint, flow);
	case ICMPV6_MEMBERSHIP_QUERY ... ICMPV6_MEMBERSHIP_DONE:
	case ICMPV6_MEMBERSHIP_REPORT_V2:
		return judge_mld(skb, flow, network);
	case ICMPV6_ECHO_REQUEST:
		set_echo(flow, true, icmp->id);
		break;
	case ICMPV6_ECHO_REPLY:
		set_echo(flow, false, icmp->id);
		flow->kind = FLOW_ECHO_REPLY;
		break;
	case ICMPV6_UNREACHABLE ... ICMPV6_PARAMETER_PROBLEM:
		flow->kind = FLOW_ERROR;
		break;
	}
	return UNDECIDED;
}

/* Where forged sources are only watched for, policy goes on judging: to forge one must not be a way past it. */
static __always_inline __u32 forged_source(struct flow *flow)
{
	if (flow->settings.source_check != ENFORCEMENT_AUDIT)
		return REASON_SPOOFED;
	flow->forged = true;
	return UNDECIDED;
}

/*
 * A frame that is not for the pod is not its business, and one that the pod has no right to send is not judged:
 * both come before everything that only a closer look could say.
 */
static __always_inline __u32 check_addresses(const struct endpoint *endpoint, struct flow *flow,
					     const struct network *network, bool ipv6)
{
	if (flow->direction == DIRECTION_INGRESS)
		return is_own_destination(endpoint, &flow->key.pod, network->group_frame) ? UNDECIDED : REASON_NOT_MINE;
	if (is_own_source(endpoint, &flow->key.pod))
		return UNDECIDED;
	/*
	 * Duplicate address detection and multicast listeners speak from no address, these behind a hop-by-hop header:
	 * who judges them knows.
	 */
	if (ipv6 && (network->protocol == IP_ICMPV6 || network->protocol == IP_HOP_BY_HOP) &&
	    is_unspecified(&flow->key.pod))
		return UNDECIDED;
	return forged_source(flow);
}

static __always_inline __u32 parse_transport(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow,
					     const struct network *network, bool ipv6)
{
	/* The verifier wants to see that it lies within a packet. */
	if (flow->payload > MAX_PAYLOAD_OFFSET)
		return REASON_MALFORMED;
	switch (flow->key.protocol) {
	case IP_TCP:
		return parse_tcp(skb, flow);
	case IP_UDP:
		return parse_udp(skb, flow);
	case IP_SCTP:
		return parse_sctp(skb, flow);
	/* Each belongs to its own family; in the other it is a number like any. */
	case IP_ICMP:
		return ipv6 ? UNDECIDED : parse_icmp(skb, flow);
	case IP_IGMP:
		return ipv6 ? UNDECIDED : judge_igmp(skb, flow);
	case IP_ICMPV6:
		return ipv6 ? parse_icmpv6(skb, endpoint, flow, network) : UNDECIDED;
	default:
		return UNDECIDED;
	}
}

/* Where the transport header begins, and what it is, when IPv6 has others before it. */
static __always_inline __u32 parse_extension_headers(struct __sk_buff *skb, struct flow *flow, struct network *network)
{
	__u32 reason, want;

	network->payload = flow->payload;
	network->end = flow->end;
	reason = walk_extension_headers(skb, network);
	if (reason != UNDECIDED)
		return reason;
	flow->payload = network->payload;
	flow->key.protocol = network->protocol;
	flow->only_part = network->fragment_start && !network->fragment;
	/* As in pull_headers, of which this is the rest. */
	want = network->payload + TCP_BYTES;
	bpf_skb_pull_data(skb, want < skb->len ? want : skb->len);
	return UNDECIDED;
}

/* What stands in for the transport header: a later fragment's first. */
static __always_inline __u32 parse_fragment(const struct endpoint *endpoint, struct flow *flow, struct network *network)
{
	network->end = flow->end;
	if (!is_possible_fragment(network))
		return REASON_MALFORMED;
	flow->fragment = network->fragment;
	return flow->fragment == FRAGMENT_LATER ? recall_fragment(endpoint, flow, network) : UNDECIDED;
}

/* Everything behind the addresses. */
static __always_inline __u32 parse_payload(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow,
					   struct network *network, bool ipv6)
{
	__u32 reason;

	if (ipv6 && is_extension_header(network->protocol)) {
		reason = parse_extension_headers(skb, flow, network);
		if (reason != UNDECIDED)
			return reason;
	}
	if (network->fragment) {
		reason = parse_fragment(endpoint, flow, network);
		if (reason != UNDECIDED || flow->fragment == FRAGMENT_LATER)
			return reason;
	}
	reason = parse_transport(skb, endpoint, flow, network, ipv6);
	/* An error is never so long that it must be cut: what belongs to one is not known. */
	if (reason == UNDECIDED && flow->fragment && flow->kind != FLOW_ERROR)
		remember_fragment(endpoint, flow, network);
	return reason;
}

static __always_inline __u32 parse(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	const struct ethernet_header *ethernet;
	struct network network = {};
	bool ipv6 = false;
	__u32 reason;

	if (skb->vlan_present)
		return REASON_VLAN;
	pull_headers(skb);
	ethernet = packet_start(skb);
	if ((void *)(ethernet + 1) > packet_end(skb))
		return REASON_MALFORMED;
	network.group_frame = ethernet->destination[0] & 1;

	switch (ethernet->type) {
	case bpf_htons(ETHERTYPE_IPV4):
		reason = parse_ipv4(skb, flow, &network);
		break;
	case bpf_htons(ETHERTYPE_IPV6):
		ipv6 = true;
		reason = parse_ipv6(skb, flow, &network);
		break;
	case bpf_htons(ETHERTYPE_ARP):
		return judge_arp(skb, endpoint, flow);
	case bpf_htons(ETHERTYPE_VLAN):
	case bpf_htons(ETHERTYPE_QINQ):
		return REASON_VLAN;
	default:
		return REASON_ETHERTYPE;
	}
	if (reason != UNDECIDED)
		return reason;

	flow->key.protocol = network.protocol;
	reason = check_addresses(endpoint, flow, &network, ipv6);
	if (reason != UNDECIDED)
		return reason;
	reason = parse_payload(skb, endpoint, flow, &network, ipv6);
	/* Past its exception above, the unspecified address is no source. */
	if (reason == UNDECIDED && flow->direction == DIRECTION_EGRESS && is_unspecified(&flow->key.pod))
		return forged_source(flow);
	return reason;
}
