/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "wire.bpf.h"

/* What no step has decided yet goes on to the next one. */
enum { UNDECIDED = REASON_COUNT };

/* How a packet relates to the flow that it names. */
enum flow_kind {
	FLOW_ORDINARY = 0,
	FLOW_ECHO_REPLY = 1, /* ICMP: answers the other side's request */
	FLOW_ERROR = 2,      /* ICMP: is about another flow, named in its payload */
};

/*
 * One packet, as all steps see it. Lives on the stack; filled by parse, then by whoever judges.
 * The key is conntrack's, so that nothing is copied between parse and lookup.
 */
struct flow {
	struct conntrack_key key;
	__u32 tick;
	__u64 now;  /* coarse ns of CLOCK_MONOTONIC, behind by a scheduler tick at most */
	__u64 word; /* the policy word that judged it; 0 until one did */
	struct settings settings;
	struct rule rule; /* the rule that allowed it */
	__u32 payload;     /* offset of the transport header */
	__u32 end;         /* offset behind the IP packet: frames may be padded */
	__u8 direction;    /* enum direction, the packet's */
	__u8 judged;       /* enum direction, whose policy judged it */
	__u8 kind;         /* enum flow_kind */
	__u8 tcp_flags;    /* enum tcp_flag */
	__u8 local_socket; /* proven: a socket of this node sent the flow's first packet */
	__u8 forged;       /* from an address that is not the pod's, where that is only watched for */
	__u8 due;          /* an allow that asks for a record */
};

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IP_TCP || protocol == IP_UDP || protocol == IP_SCTP;
}

/* The port that the flow's initiator asked for, where it came in the judged direction. */
static __always_inline __u16 destination_port(const struct flow *flow, __u32 direction)
{
	if (!has_ports(flow->key.protocol))
		return 0;
	return direction == DIRECTION_INGRESS ? flow->key.pod_port : flow->key.remote_port;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return !((a->word[0] ^ b->word[0]) | (a->word[1] ^ b->word[1]) | (a->word[2] ^ b->word[2]) |
		 (a->word[3] ^ b->word[3]));
}

static __always_inline bool is_unspecified(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

static __always_inline bool is_ipv4(const struct address *a)
{
	return !(a->word[0] | a->word[1]) && a->word[2] == bpf_htonl(0xffff);
}

/* fe80::/10 */
static __always_inline bool is_link_local(const struct address *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* A SYN that opens a connection, not one that answers. */
static __always_inline bool is_lone_syn(const struct flow *flow)
{
	return (flow->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}
