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

/* What becomes of a packet to or from a Service, once it may pass. */
enum rewrite {
	REWRITE_NONE = 0,
	REWRITE_REQUEST = 1, /* goes to the Service: its destination becomes the backend */
	REWRITE_REPLY = 2,   /* comes from the backend: its source becomes the Service */
};

/* Whether the packet is a part of a datagram. */
enum fragment_kind {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1, /* has the transport header, and is judged like any packet */
	FRAGMENT_LATER = 2, /* has none: the ports in the key are those of its first, tcp_flags is 0, and payload is data */
};

/*
 * One packet, as all steps see it. Filled by parse, then by whoever judges.
 * The key is conntrack's, so that nothing is copied between parse and lookup.
 */
struct flow {
	struct conntrack_key key;
	__u32 tick;
	__u64 now;  /* coarse ns of CLOCK_MONOTONIC, behind by a scheduler tick at most */
	__u64 word; /* the policy word that judged it; 0 until one did */
	struct settings settings;
	struct rule rule; /* the rule that allowed it */
	struct service front; /* where the packet goes to one that another proxy translates; id 0: none */
	struct address service; /* of a translated flow, whose key names the backend */
	__u16 service_port;
	__u8 rewrite; /* enum rewrite */
	__u8 hairpin; /* the backend is the pod: the packet goes back to it */
	__u32 payload;     /* offset of the transport header */
	__u32 end;         /* offset behind the IP packet: frames may be padded */
	__u8 direction;    /* enum direction, the packet's */
	__u8 judged;       /* enum direction, whose policy judged it */
	__u8 kind;         /* enum flow_kind */
	__u8 tcp_flags;    /* enum tcp_flag */
	__u8 fragment;     /* enum fragment_kind */
	__u8 fragment_place; /* of a first one: where it is remembered */
	__u8 local_socket; /* proven: at the other end is a socket of this node */
	__u8 nobody_listens; /* goes to this node, which has no socket for it */
	__u8 forged;       /* from an address that is not the pod's, where that is only watched for */
	__u8 due;          /* an allow that asks for a record */
	__u8 only_part;    /* whole, with an IPv6 fragment header all the same: fragment is FRAGMENT_NONE */
	__u8 midstream;    /* TCP that belongs to no entry, and opens nothing */
	/* What follows is not cleared for each packet: who reads it has written it. */
	struct conntrack_entry entry; /* as it was found */
	struct service target;        /* the front of ours that a new flow goes to */
	struct backend backend;       /* the one it is given */
};

/*
 * Not on the stack, which is too small for it together with what the rare paths need. No packet comes in the way of
 * another on its CPU: the hooks run with bottom halves disabled.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

static __always_inline struct flow *this_flow(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&flows, &zero);
}

static __always_inline struct flow *new_flow(__u32 direction)
{
	struct flow *flow = this_flow();

	if (flow) {
		__builtin_memset(flow, 0, __builtin_offsetof(struct flow, entry));
		flow->direction = direction;
		flow->judged = direction;
	}
	return flow;
}

/*
 * The rare paths are global functions, so that the verifier walks each of them once and not from every state that
 * leads there: it would not finish. Before Linux 5.12 such a function takes nothing but the packet and numbers; it
 * finds the flow where it lies, and the endpoint again.
 */
#define __global __attribute__((noinline))

static __always_inline void *packet_start(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IP_TCP || protocol == IP_UDP || protocol == IP_SCTP;
}

/*
 * What stands for the port of an echo's answerer, whose asker has the identifier: the next one. No two identifiers are
 * each the other's next, so flows that both sides ask in are never the same.
 */
static __always_inline __u16 answerer_of(__u16 id)
{
	return bpf_htons(bpf_ntohs(id) + 1);
}

/* The port that the flow's initiator asked for, where it came in the judged direction. */
static __always_inline __u16 destination_port(const struct flow *flow, __u32 direction)
{
	if (!has_ports(flow->key.protocol))
		return 0;
	return direction == DIRECTION_INGRESS ? flow->key.pod_port : flow->key.remote_port;
}

/*
 * Two values that are made of as many words. Were it not told otherwise, the compiler would compare word by word, and
 * the verifier walk all that the comparisons may say together.
 */
static __always_inline bool same_words(const __u32 *a, const __u32 *b, const int words)
{
	__u32 differs = 0;

	for (int i = 0; i < words; i++) {
		differs |= a[i] ^ b[i];
		barrier_var(differs);
	}
	return !differs;
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return same_words(a->word, b->word, 4);
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

/* How much data a segment says it has, in bytes; less than none where it contradicts itself. */
static __always_inline __s32 tcp_data_bytes(const struct flow *flow, const struct tcp_header *tcp)
{
	return (__s32)(flow->end - flow->payload) - (tcp->offset >> 4) * 4;
}

/*
 * The value itself, of which the verifier knows nothing any more. It follows each way through a program to the end as
 * long as it sees a difference between them; where there is none that matters, this says so.
 */
static __always_inline __u32 unknown(const struct __sk_buff *skb, __u32 value)
{
	__u32 mask = skb->mark;

	value ^= mask;
	asm volatile("" : "+r"(value));
	return value ^ mask;
}
