/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * conntrack and policy put together:
 *
 *   entry? --no-----------------------------> judge as new --> insert; to a Service: see translate.bpf.h
 *     | an alias: go on with the entry that it leads to
 *     | its word is the slot's word: ESTABLISHED
 *     | another word: judge again, in the direction in which it was opened --> refresh, or deny for good
 */

#include "translate.bpf.h"

/*
 * A TCP packet that opens nothing and belongs to nothing is part of a connection that is older than the entry that
 * it lacks, and its direction is unknown. Where the policy of its own direction denies it, the other's may let it pass.
 */
static __noinline __u32 judge_midstream(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	__u64 word = flow->word;
	__u32 reason;

	judge_by(endpoint, flow, !flow->direction);
	if (flow->judged == DIRECTION_EGRESS)
		find_front(flow);
	reason = decide_rare(skb);
	if (reason == REASON_DEFAULT_DENY) {
		flow->judged = flow->direction;
		flow->word = word;
	}
	return reason;
}

/*
 * Does what passes in mid-stream make an entry? Not where only the other direction's policy lets it pass: anybody can
 * send that, and a pod that has such a connection answers in a direction that may open it. Nor does what ends one.
 */
static __always_inline bool is_kept(const struct flow *flow)
{
	return flow->judged == flow->direction && !(flow->tcp_flags & TCP_RST);
}

/* The rest of a datagram opens nothing: the entry of its first is gone, or there never was one, as for the pod itself. */
static __always_inline __u32 judge_left_over(const struct __sk_buff *skb, const struct endpoint *endpoint,
					     const struct flow *flow)
{
	return is_itself(skb, endpoint, flow) ? REASON_SELF : REASON_FRAGMENT;
}

/* Makes the entry of a flow that is allowed, for this reason. */
__global __u32 open_flow(struct __sk_buff *skb, __u32 reason, bool replace)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	struct conntrack_entry entry;
	__u32 full;
	int error;

	if (!flow || !endpoint)
		return REASON_NO_ENDPOINT;
	/* An answer to nothing is its sender's own flow: kept as an answer, it would admit the other side's requests. */
	if (flow->kind == FLOW_ECHO_REPLY) {
		__u16 id = flow->key.pod_port;

		flow->key.pod_port = flow->key.remote_port;
		flow->key.remote_port = id;
	}
	if (flow->midstream && is_out_of_table(endpoint, flow))
		return REASON_MIDSTREAM;
	if (!replace) {
		full = check_quota(endpoint, flow);
		if (full != UNDECIDED)
			return full;
	}
	entry = new_entry(flow);
	/* An int: before 6.4 the upper half of what the helper returns is not the sign's. */
	error = bpf_map_update_elem(&conntrack, &flow->key, &entry, replace ? BPF_ANY : BPF_NOEXIST);
	/* Another CPU was first, with the same flow and the same policy. */
	if (error == -EEXIST)
		return REASON_ESTABLISHED;
	if (error)
		return REASON_CONNTRACK_FULL;
	count_entry(endpoint, replace ? &flow->entry : NULL, &entry);
	flow->due = reason == REASON_POLICY && is_logged(flow);
	return flow->midstream ? REASON_MIDSTREAM : reason;
}

/*
 * A flow without an entry that counts; where one is in its place, it is replaced only by a flow that is allowed.
 * UNDECIDED: it is to be given a backend.
 */
__global __u32 judge_unknown(struct __sk_buff *skb, bool replace)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	__u32 reason;

	if (!flow || !endpoint)
		return REASON_NO_ENDPOINT;
	if (flow->fragment == FRAGMENT_LATER) {
		flow->word = 0;
		return judge_left_over(skb, endpoint, flow);
	}
	flow->midstream = flow->key.protocol == IP_TCP && !is_lone_syn(flow);
	flow->rewrite = REWRITE_NONE;
	flow->hairpin = false;
	if (flow->direction == DIRECTION_EGRESS) {
		/* In mid-stream it has a backend already, and only who gave it knows which. */
		if (find_front(flow) && (flow->front.flags & SERVICE_TRANSLATE) && !flow->midstream) {
			flow->target = flow->front;
			flow->front = (struct service){};
			return UNDECIDED;
		}
	}
	flow->local_socket = is_from_local_socket(skb, flow);
	judge_by(endpoint, flow, flow->direction);
	flow->nobody_listens = false;
	reason = decide(skb, endpoint, flow);
	if (flow->midstream && reason == REASON_DEFAULT_DENY)
		reason = judge_midstream(skb, endpoint, flow);
	if (reason == REASON_DEFAULT_DENY)
		/* The pod is told what the node would tell it. */
		return flow->nobody_listens ? REASON_REFUSED : REASON_DEFAULT_DENY;
	if (reason == REASON_SELF)
		return reason;
	if (flow->midstream && !is_kept(flow))
		return REASON_MIDSTREAM;

	return open_flow(skb, reason, replace);
}

/* Is an entry all that lets the packet pass, since a socket of the node was at the other end? */
static __always_inline bool hangs_on_node(const struct flow *flow)
{
	return (flow->entry.flags & CONNTRACK_LOCAL) && word_table(flow->word) && flow->settings.policy != ENFORCEMENT_AUDIT;
}

/* With the addresses and ports of a flow between the pod and its node, but not of it. UDP and TCP of the pod get an answer. */
static __always_inline __u32 refuse_stranger(const struct flow *flow)
{
	return flow->direction == DIRECTION_EGRESS ? REASON_REFUSED : UNDECIDED;
}

/* What was opened when anybody was allowed is the node's, and only that is allowed now. */
static __always_inline void prove_local(const struct endpoint *endpoint, const struct flow *flow,
					struct conntrack_entry *entry)
{
	entry->flags |= CONNTRACK_LOCAL;
	if (!(entry->flags & CONNTRACK_MIDSTREAM) || entry->initiator == DIRECTION_INGRESS ||
	    flow->direction == DIRECTION_EGRESS)
		return;
	/* Whose direction was a guess: it is taken for the node's, whose socket need not know the pod. */
	entry->initiator = DIRECTION_INGRESS;
	entry->word = slot_word(endpoint, DIRECTION_INGRESS);
	if (!(entry->flags & CONNTRACK_FIN_INITIATOR) != !(entry->flags & CONNTRACK_FIN_RESPONDER))
		entry->flags ^= CONNTRACK_FIN_INITIATOR | CONNTRACK_FIN_RESPONDER;
}

/*
 * The policy that allowed the flow is no longer the slot's, or denied it before: judge it again in the direction in
 * which it was opened. A flow that is denied keeps an entry that says so; were it deleted, an answer from the other
 * side would be taken for a new flow of the other direction, or for mid-stream, and bring the connection back.
 */
__global __u32 judge_again(struct __sk_buff *skb)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	struct conntrack_entry entry;
	bool of_somebody_else;
	__u32 reason;

	if (!flow || !endpoint)
		return REASON_NO_ENDPOINT;
	entry = flow->entry;
	flow->judged = entry.initiator;
	if (entry.word == flow->word)
		return REASON_DEFAULT_DENY;
	of_somebody_else = hangs_on_node(flow) && !is_with_node(skb);
	flow->local_socket = !of_somebody_else && ((entry.flags & CONNTRACK_LOCAL) || is_from_local_socket(skb, flow));
	flow->nobody_listens = false;

	if (flow->judged == DIRECTION_EGRESS && !flow->rewrite)
		find_front(flow);
	reason = decide_rare(skb);
	/* Whose direction was a guess may still be proven to be the node's, by a packet of the node. */
	if (reason == REASON_DEFAULT_DENY && (entry.flags & CONNTRACK_MIDSTREAM))
		return reason;
	/* The flow with the node has nothing to do with that. */
	if (reason == REASON_DEFAULT_DENY && of_somebody_else && entry.state != CONNTRACK_DENIED)
		return refuse_stranger(flow);
	/* It goes on when the node's socket is back. */
	if (reason == REASON_DEFAULT_DENY && flow->nobody_listens && flow->key.protocol == IP_UDP)
		return REASON_REFUSED;
	entry.word = flow->word;
	if (reason == REASON_DEFAULT_DENY) {
		entry.state = CONNTRACK_DENIED;
		entry.last_seen = flow->tick;
	} else {
		if (entry.state == CONNTRACK_DENIED)
			entry.state = CONNTRACK_OPEN;
		/* By a front it is a backend that passes by its address; by a rule nothing hangs on who it is. */
		if (reason == REASON_NODE && !flow->front.count)
			prove_local(endpoint, flow, &entry);
		else if (entry.initiator == DIRECTION_EGRESS)
			entry.flags &= ~CONNTRACK_LOCAL;
		advance(&entry, flow);
		reason = REASON_REVALIDATED;
	}
	rewrite_entry(endpoint, flow, &entry);
	return reason;
}

/*
 * A flow whose entry counts: is it still under the policy that allowed it, and what does the packet do to it? flow->word
 * is the word of the slot that judges it.
 * UNDECIDED: it is not of this flow, but of another with the same addresses and ports.
 */
static __always_inline __u32 judge_known(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	const struct conntrack_entry *entry = &flow->entry;
	struct conntrack_entry next;

	if (entry->word != flow->word || entry->state == CONNTRACK_DENIED)
		return judge_again(skb);
	if (hangs_on_node(flow) && !is_with_node(skb))
		return refuse_stranger(flow);

	next = *entry;
	advance(&next, flow);
	if (next.last_seen != entry->last_seen || next.state != entry->state || next.flags != entry->flags)
		rewrite_entry(endpoint, flow, &next);
	return REASON_ESTABLISHED;
}

/*
 * Until both sides have finished its handshake, each packet of a connection counts for its entry; and what carries data to
 * the node has to find its socket.
 */
static __always_inline bool always_asks(const struct flow *flow)
{
	return (flow->entry.flags & CONNTRACK_LOCAL) ||
	       (flow->key.protocol == IP_TCP && flow->entry.state == CONNTRACK_OPENING);
}

/* Reads the flow's entry into flow->entry, and its slot's word into flow->word. False: there is none. */
static __always_inline bool read_entry(const struct endpoint *endpoint, struct flow *flow)
{
	const struct conntrack_entry *found = bpf_map_lookup_elem(&conntrack, &flow->key);

	if (!found)
		return false;
	flow->entry = *found;
	flow->word = slot_word(endpoint, flow->entry.initiator);
	return true;
}

/* By the entry that the alias leads to. UNDECIDED: that counts no more, and neither does the alias. */
__global __u32 judge_alias(struct __sk_buff *skb)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	__u32 reason;

	if (!flow || !endpoint)
		return REASON_NO_ENDPOINT;
	follow_alias(flow);
	if (!read_entry(endpoint, flow) || (!is_as_read(flow) && !read_entry(endpoint, flow)) ||
	    !is_of_service(&flow->entry, flow) || is_expired(&flow->entry, flow->key.protocol, flow->tick) ||
	    opens_anew(&flow->entry, flow)) {
		go_to_service(flow);
		return UNDECIDED;
	}
	reason = judge_known(skb, endpoint, flow);
	if (reason < REASON_DEFAULT_DENY)
		write_alias(flow, always_asks(flow) ? ALIAS_ALWAYS_ASKS : alias_word(endpoint, flow), BPF_EXIST);
	else if (reason == REASON_REFUSED)
		go_to_service(flow);
	return reason;
}

static __always_inline __u32 judge_new(struct __sk_buff *skb, bool replace)
{
	__u32 reason = judge_unknown(skb, replace);

	return reason == UNDECIDED ? judge_service(skb, replace) : reason;
}

/* What opens a connection through a Service goes by its alias: another SYN is none of its own, and must not end it. */
static __always_inline bool is_taken(const struct conntrack_entry *entry, const struct flow *flow)
{
	return (entry->flags & CONNTRACK_TRANSLATED) && is_alive(entry, flow);
}

/* What is translated comes from its backend; with HAIRPIN that is the pod. */
static __always_inline bool is_against_translation(const struct conntrack_entry *entry, const struct flow *flow)
{
	return (flow->direction == DIRECTION_EGRESS) != ((entry->flags & CONNTRACK_HAIRPIN) != 0);
}

/* Does the entry stop the packet, have it judged, or give way to it? */
static __always_inline bool is_in_the_way(const struct conntrack_entry *entry, const struct flow *flow)
{
	if (entry->flags & CONNTRACK_ALIAS)
		return flow->direction == DIRECTION_INGRESS || !is_fresh(entry, flow, flow->word);
	if ((entry->flags & CONNTRACK_TRANSLATED) && is_against_translation(entry, flow))
		return true;
	return entry->word != flow->word || entry->state == CONNTRACK_DENIED || hangs_on_node(flow) || is_lone_syn(flow) ||
	       is_expired(entry, flow->key.protocol, flow->tick);
}

static __always_inline __u32 judge_flow(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	const struct conntrack_entry *entry = &flow->entry;
	bool found = read_entry(endpoint, flow);
	__u32 reason;

	set_time(flow);
	/*
	 * What was read may be another flow's, which must not speak against this one. And an entry that is replaced goes to
	 * the front of its bucket: who is past that finds neither. Where a SYN finds none, none is lost.
	 */
	if (found ? is_in_the_way(entry, flow) && !is_as_read(flow) : !is_lone_syn(flow))
		found = read_entry(endpoint, flow);
	if (!found)
		return judge_new(skb, false);
	if (entry->flags & CONNTRACK_ALIAS) {
		if (flow->direction == DIRECTION_INGRESS)
			return REASON_PORT_TAKEN;
		if (is_fresh(entry, flow, flow->word)) {
			follow_alias(flow);
			return REASON_ESTABLISHED;
		}
		reason = judge_alias(skb);
		return reason == UNDECIDED ? judge_new(skb, true) : reason;
	}
	if (is_expired(entry, flow->key.protocol, flow->tick) || (opens_anew(entry, flow) && !is_taken(entry, flow)))
		return judge_new(skb, true);
	if (entry->flags & CONNTRACK_TRANSLATED) {
		/* From the pod straight to the backend, say, while a connection through a Service has the same ports. */
		if (is_lone_syn(flow) || is_against_translation(entry, flow))
			return REASON_PORT_TAKEN;
		come_from_service(flow);
	}
	reason = judge_known(skb, endpoint, flow);
	if (reason != UNDECIDED)
		return reason;
	/* It is not of this flow; where that is a connection through a Service, that one has its ports. */
	return flow->rewrite ? REASON_PORT_TAKEN : judge_new(skb, true);
}
