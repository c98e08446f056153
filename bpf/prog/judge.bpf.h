/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * conntrack and policy put together:
 *
 *   entry? --no-----------------------------> judge as new --> insert
 *     | its word is the slot's word: ESTABLISHED
 *     | another word: judge again, in the direction in which it was opened --> refresh, or deny for good
 */

#include "conntrack.bpf.h"
#include "policy.bpf.h"

/*
 * Sent by a socket of this node? A socket alone is no proof, since a packet that a bridge forwards from another pod
 * still carries that pod's; but only what was made here came in through no interface.
 */
static __always_inline bool is_from_local_socket(const struct __sk_buff *skb, const struct flow *flow)
{
	return flow->direction == DIRECTION_INGRESS && skb->sk && !skb->ingress_ifindex;
}

static __always_inline bool is_logged(const struct flow *flow)
{
	if (flow->settings.log_allow == LOG_ALL)
		return true;
	return flow->settings.log_allow == LOG_DELEGATED && (flow->rule.flags & RULE_LOG);
}

/*
 * A TCP packet that opens nothing and belongs to nothing is part of a connection that is older than the entry that
 * it lacks, and its direction is unknown. Where the policy of its own direction denies it, the other's may let it pass.
 */
static __noinline __u32 judge_midstream(const struct endpoint *endpoint, struct flow *flow)
{
	__u64 word = flow->word;
	__u32 reason;

	judge_by(endpoint, flow, !flow->direction);
	reason = decide_rare(endpoint, flow);
	if (reason == REASON_DEFAULT_DENY) {
		flow->judged = flow->direction;
		flow->word = word;
	}
	return reason;
}

/* A flow without an entry that counts; where one is in its place, it is replaced only by a flow that is allowed. */
static __noinline __u32 judge_new(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow,
				  bool replace)
{
	bool midstream = flow->key.protocol == IP_TCP && !is_lone_syn(flow);
	struct conntrack_entry entry;
	__u32 reason;
	int error;

	flow->local_socket = is_from_local_socket(skb, flow);
	judge_by(endpoint, flow, flow->direction);
	reason = decide(endpoint, flow);
	if (midstream && reason == REASON_DEFAULT_DENY)
		reason = judge_midstream(endpoint, flow);
	if (reason == REASON_DEFAULT_DENY || reason == REASON_SELF)
		return reason;

	/* An answer to nothing is its sender's own flow: kept as an answer, it would admit the other side's requests. */
	if (flow->kind == FLOW_ECHO_REPLY) {
		__u16 id = flow->key.pod_port;

		flow->key.pod_port = flow->key.remote_port;
		flow->key.remote_port = id;
	}
	entry = new_entry(flow, midstream);
	/* An int: before 6.4 the upper half of what the helper returns is not the sign's. */
	error = bpf_map_update_elem(&conntrack, &flow->key, &entry, replace ? BPF_ANY : BPF_NOEXIST);
	/* Another CPU was first, with the same flow and the same policy. */
	if (error == -17 /* EEXIST */)
		return REASON_ESTABLISHED;
	if (error)
		return REASON_CONNTRACK_FULL;
	flow->due = reason == REASON_POLICY && is_logged(flow);
	return midstream ? REASON_MIDSTREAM : reason;
}

/*
 * The policy that allowed the flow is no longer the slot's, or denied it before: judge it again in the direction in
 * which it was opened. A flow that is denied keeps an entry that says so; were it deleted, an answer from the other
 * side would be taken for a new flow of the other direction, or for mid-stream, and bring the connection back.
 */
static __noinline __u32 judge_again(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow,
				    const struct conntrack_entry *seen)
{
	struct conntrack_entry entry = *seen;
	__u32 reason;

	flow->judged = entry.initiator;
	flow->local_socket = (entry.flags & CONNTRACK_LOCAL) || is_from_local_socket(skb, flow);
	if (entry.word == flow->word)
		return REASON_DEFAULT_DENY;

	reason = decide_rare(endpoint, flow);
	entry.word = flow->word;
	if (reason == REASON_DEFAULT_DENY) {
		entry.state = CONNTRACK_DENIED;
		entry.last_seen = flow->tick;
	} else {
		if (entry.state == CONNTRACK_DENIED)
			entry.state = CONNTRACK_OPEN;
		advance(&entry, flow);
		reason = REASON_REVALIDATED;
	}
	rewrite_entry(flow, &entry);
	return reason;
}

static __always_inline __u32 judge_flow(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	const struct conntrack_entry *found = bpf_map_lookup_elem(&conntrack, &flow->key);
	struct conntrack_entry entry, next;

	set_time(flow);
	if (!found)
		return judge_new(skb, endpoint, flow, false);
	entry = *found;
	if (is_expired(&entry, flow->key.protocol, flow->tick) || opens_anew(&entry, flow))
		return judge_new(skb, endpoint, flow, true);

	flow->word = slot_word(endpoint, entry.initiator);
	if (entry.word != flow->word || entry.state == CONNTRACK_DENIED)
		return judge_again(skb, endpoint, flow, &entry);

	next = entry;
	advance(&next, flow);
	if (next.last_seen != entry.last_seen || next.state != entry.state || next.flags != entry.flags)
		rewrite_entry(flow, &next);
	return REASON_ESTABLISHED;
}
