/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Flows that were judged before.
 *
 *   OPENING --reply; TCP: and the initiator goes on--> OPEN --FIN both ways, or RST--> CLOSING
 *      \                                                 |
 *       \----- policy changes, denied now ----------------'--> DENIED (until another change allows it, or it expires)
 *
 * Entries are written by key, never through the pointer of a lookup: a preallocated hash hands a deleted element to
 * another flow at once, and a late write would land there. For the same reason what was read may be another flow's. It is
 * read once more before it stops a packet, or is written back; a single packet may still be translated by another's, or
 * pass by it, and an ICMP error be dropped. Two CPUs that write one entry at the same moment may lose one of the two
 * changes; what can be lost is a FIN, and the entry then waits for its timeout.
 */

#include "clock.bpf.h"
#include "endpoint.bpf.h"

/* What map helpers answer: linux/errno.h has no home among the vendored headers. */
enum { EEXIST = 17 };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__type(key, struct conntrack_key);
	__type(value, struct conntrack_entry);
} conntrack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* slot / 2 */
	__type(value, struct usage);
} usages SEC(".maps");

/* Shares of the table that one endpoint may hold: in all, and of entries that nobody answered; set before loading. */
const volatile __u32 connection_quota = 65536;
const volatile __u32 half_open_quota = 16384;

/* Idle times after which an entry counts no more, in ticks; set before loading. */
const volatile __u32 tcp_opening_ticks = 56;  /* 60 s */
const volatile __u32 tcp_open_ticks = 20250;  /* 6 h 2 min: beyond the 2 h of a default keepalive */
const volatile __u32 tcp_closing_ticks = 10;  /* 10 s */
const volatile __u32 udp_ticks = 28;          /* 30 s */
const volatile __u32 udp_stream_ticks = 168;  /* 180 s */
const volatile __u32 icmp_ticks = 28;         /* 30 s */
const volatile __u32 other_ticks = 559;       /* 600 s */

/* A denied entry stands in for the open one: it lives as long, from the change that denied it. */
static __always_inline __u32 timeout_ticks(__u8 protocol, __u8 state)
{
	switch (protocol) {
	case IP_TCP:
		if (state == CONNTRACK_OPENING)
			return tcp_opening_ticks;
		return state == CONNTRACK_CLOSING ? tcp_closing_ticks : tcp_open_ticks;
	case IP_UDP:
		return state == CONNTRACK_OPENING || state == CONNTRACK_OPEN ? udp_ticks : udp_stream_ticks;
	case IP_ICMP:
	case IP_ICMPV6:
		return icmp_ticks;
	default:
		return other_ticks;
	}
}

/* Signed, since another CPU may have written a tick that this one has not reached yet. */
static __always_inline bool is_expired(const struct conntrack_entry *entry, __u8 protocol, __u32 tick)
{
	return (__s32)(tick - entry->last_seen) > (__s32)timeout_ticks(protocol, entry->state);
}

/* Is its place still needed? What is closed, denied or forgotten gives way to a flow that is allowed. */
static __always_inline bool is_alive(const struct conntrack_entry *entry, const struct flow *flow)
{
	return !is_expired(entry, flow->key.protocol, flow->tick) && entry->state != CONNTRACK_CLOSING &&
	       entry->state != CONNTRACK_DENIED;
}

/* A key has no loose ends between its words. */
static __always_inline bool same_key(const struct conntrack_key *a, const struct conntrack_key *b)
{
	return same_words((const __u32 *)a, (const __u32 *)b, sizeof(*a) / sizeof(__u32));
}

/*
 * Does this packet open a connection in place of the one that the entry is about? A SYN does, unless it is the one that
 * the entry was made for, repeated: who uses its port again has nothing to do with the old connection any more, whether
 * its end was seen or not.
 */
static __always_inline bool opens_anew(const struct conntrack_entry *entry, const struct flow *flow)
{
	if (!is_lone_syn(flow))
		return false;
	return entry->state != CONNTRACK_OPENING || (entry->flags & CONNTRACK_MIDSTREAM) ||
	       entry->initiator != flow->direction;
}

/*
 * A server answers every SYN, and the one that says it sent it may never hear of that: only when the initiator goes on
 * have both sides opened the connection. Else a flood of SYNs would hold entries for hours.
 */
static __always_inline bool is_handshake_over(const struct conntrack_entry *entry, const struct flow *flow)
{
	return flow->key.protocol == IP_TCP && (entry->flags & CONNTRACK_ANSWERED) && !is_lone_syn(flow);
}

/* What the packet says of the end of its TCP connection; `side` is the flag of whoever sent it. */
static __always_inline void advance_end(struct conntrack_entry *entry, const struct flow *flow, __u8 side)
{
	const __u8 both = CONNTRACK_FIN_INITIATOR | CONNTRACK_FIN_RESPONDER;

	if (flow->tcp_flags & (TCP_FIN | TCP_RST)) {
		entry->flags |= side;
	} else if (entry->state == CONNTRACK_CLOSING && (entry->flags & both) == side &&
		   (entry->flags & CONNTRACK_ANSWERED)) {
		/* Who goes on sending has not reset it: somebody else did in its name. */
		entry->flags &= ~side;
		entry->state = CONNTRACK_OPEN;
	}
	if ((flow->tcp_flags & TCP_RST) || (entry->flags & both) == both)
		entry->state = CONNTRACK_CLOSING;
}

/* What the packet does to its entry. */
static __always_inline void advance(struct conntrack_entry *entry, const struct flow *flow)
{
	bool initiator = entry->initiator == flow->direction;
	bool opens = initiator ? is_handshake_over(entry, flow) : flow->key.protocol != IP_TCP;

	if (entry->state == CONNTRACK_OPENING && opens)
		entry->state = CONNTRACK_OPEN;
	/* A server of many short questions, as DNS is, must not hold an entry for minutes for each of them. */
	else if (entry->state == CONNTRACK_OPEN && flow->key.protocol == IP_UDP && entry->last_seen != flow->tick)
		entry->state = CONNTRACK_STREAM;
	if (!initiator)
		entry->flags |= CONNTRACK_ANSWERED;
	if (flow->key.protocol == IP_TCP)
		advance_end(entry, flow, initiator ? CONNTRACK_FIN_INITIATOR : CONNTRACK_FIN_RESPONDER);
	entry->last_seen = flow->tick;
}

static __always_inline struct usage *find_usage(const struct endpoint *endpoint)
{
	__u32 index = endpoint->slot / 2;

	return bpf_map_lookup_elem(&usages, &index);
}

/*
 * May the endpoint have one more entry? UNDECIDED, or why not. What it opens itself has three quarters of the room, and
 * half of the room of what nobody answers: the pod that it goes to counts it too, and would else have none for others.
 */
static __noinline __u32 check_quota(const struct endpoint *endpoint, const struct flow *flow)
{
	const struct usage *usage = find_usage(endpoint);
	bool opens = flow->judged == DIRECTION_EGRESS;
	__u32 opening = opens ? half_open_quota / 2 : half_open_quota;
	__u32 all = opens ? connection_quota - connection_quota / 4 : connection_quota;

	if (!usage)
		return REASON_CONNTRACK_FULL;
	if ((__s64)(usage->made - usage->gone) >= all)
		return REASON_CONNECTION_QUOTA;
	if ((__s64)(usage->half_opened - usage->half_closed - usage->half_gone) >= opening)
		return REASON_HALF_OPEN_QUOTA;
	return UNDECIDED;
}

/* May the flow's entry be out of the table for a moment only, and its connection told already? */
static __noinline bool is_out_of_table(const struct endpoint *endpoint, const struct flow *flow)
{
	const struct usage *usage = find_usage(endpoint);

	if (endpoint->flags & ENDPOINT_TAKEOVER)
		return true;
	return usage && usage->is_swept && same_key(&usage->swept, &flow->key);
}

static __always_inline void count_made(struct usage *usage)
{
	if (usage)
		__sync_fetch_and_add(&usage->made, 1);
}

/* An entry was made; `former` is the one whose place it took, if any. */
static __noinline void count_entry(const struct endpoint *endpoint, const struct conntrack_entry *former,
				   const struct conntrack_entry *entry)
{
	bool was_half_open = former && former->state == CONNTRACK_OPENING && !(former->flags & CONNTRACK_ALIAS);
	bool half_open = entry->state == CONNTRACK_OPENING;
	struct usage *usage = find_usage(endpoint);

	if (!usage)
		return;
	if (!former)
		count_made(usage);
	if (half_open && !was_half_open)
		__sync_fetch_and_add(&usage->half_opened, 1);
	if (was_half_open && !half_open)
		__sync_fetch_and_add(&usage->half_closed, 1);
}

/*
 * Is the flow's entry what was read of it? If not it has changed; or the element was handed to another flow while it was
 * read, and what was read is that one's.
 */
static __noinline bool is_as_read(const struct flow *flow)
{
	const struct conntrack_entry *entry = bpf_map_lookup_elem(&conntrack, &flow->key);

	return entry && same_words((const __u32 *)entry, (const __u32 *)&flow->entry, sizeof(*entry) / sizeof(__u32));
}

/* An entry that is gone meanwhile stays gone: its next packet is judged as new. flow->entry is what it was. */
static __always_inline void rewrite_entry(const struct endpoint *endpoint, const struct flow *flow,
					  const struct conntrack_entry *entry)
{
	struct usage *usage;
	long error;

	if (!is_as_read(flow))
		return;
	error = bpf_map_update_elem(&conntrack, &flow->key, entry, BPF_EXIST);
	if (error || flow->entry.state != CONNTRACK_OPENING || entry->state == CONNTRACK_OPENING)
		return;
	usage = find_usage(endpoint);
	if (usage)
		__sync_fetch_and_add(&usage->half_closed, 1);
}

static __always_inline struct conntrack_entry new_entry(const struct flow *flow)
{
	struct conntrack_entry entry = {
		.word = flow->word,
		.last_seen = flow->tick,
		.initiator = flow->judged,
		.state = CONNTRACK_OPENING,
	};

	if (flow->midstream)
		entry.flags |= CONNTRACK_MIDSTREAM;
	if (flow->local_socket)
		entry.flags |= CONNTRACK_LOCAL;
	advance(&entry, flow);
	return entry;
}
