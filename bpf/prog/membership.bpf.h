/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Which groups a host listens to: MLD (RFC 2710, RFC 3810) and IGMP (RFC 2236, RFC 3376). Like neighbour discovery it
 * is a matter of the link and of no policy: without it a snooping bridge cuts the pod off from its groups, and IPv6
 * from its solicited-node ones. Hosts report, routers query; a query from a pod would make it the link's querier.
 */

#include "endpoint.bpf.h"
#include "extension.bpf.h"

enum membership_size {
	MLD_BYTES = 24,
	MLD_REPORT_V2_BYTES = 8,
};

/* An MLD message whose headers are walked. */
static __noinline __u32 judge_mld(struct __sk_buff *skb, const struct flow *flow, const struct network *network)
{
	bool egress = flow->direction == DIRECTION_EGRESS;
	const struct address *source = egress ? &flow->key.pod : &flow->key.remote;
	__u8 hop_limit, type;
	__u32 bytes;

	if (flow->fragment || bpf_skb_load_bytes(skb, flow->payload, &type, sizeof(type)) ||
	    bpf_skb_load_bytes(skb, ETHERNET_BYTES + 7, &hop_limit, sizeof(hop_limit)))
		return REASON_MALFORMED;
	bytes = type == ICMPV6_MEMBERSHIP_REPORT_V2 ? MLD_REPORT_V2_BYTES : MLD_BYTES;
	/* Of this link, and told to routers: RFC 3810, section 5. */
	if (flow->payload + bytes > flow->end || hop_limit != 1 || !network->router_alert)
		return REASON_MALFORMED;
	if (type == ICMPV6_MEMBERSHIP_QUERY && egress)
		return REASON_FORGED_NEIGHBOUR;
	/* A report before there is any address comes from none: section 5.2.13. */
	if (is_link_local(source) || (is_unspecified(source) && type != ICMPV6_MEMBERSHIP_QUERY))
		return REASON_NEIGHBOUR;
	return REASON_MALFORMED;
}

static __always_inline bool is_igmp_type(__u8 type)
{
	return type == IGMP_QUERY || type == IGMP_REPORT_V1 || type == IGMP_REPORT_V2 || type == IGMP_LEAVE ||
	       type == IGMP_REPORT_V3;
}

/* What is not the kind of IGMP that stays on the link is a protocol without ports, like any: UNDECIDED. */
static __noinline __u32 judge_igmp(struct __sk_buff *skb, const struct flow *flow)
{
	struct ipv4_header ip;
	__u8 type;

	if (flow->payload + IGMP_BYTES > flow->end || flow->fragment ||
	    bpf_skb_load_bytes(skb, flow->payload, &type, sizeof(type)) ||
	    bpf_skb_load_bytes(skb, ETHERNET_BYTES, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	if (ip.ttl != 1 || (ip.destination & bpf_htonl(0xf0000000)) != bpf_htonl(0xe0000000) || !is_igmp_type(type))
		return UNDECIDED;
	if (type == IGMP_QUERY && flow->direction == DIRECTION_EGRESS)
		return REASON_FORGED_NEIGHBOUR;
	return REASON_NEIGHBOUR;
}
