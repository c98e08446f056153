/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Flows to a Service. The pod sees the Service, policy and the network see the backend:
 *
 *   what the pod sends:  alias {pod, Service}  --nat-->  entry {pod, backend}  <-- what comes back
 *                          |                                |
 *                          repeats word and last_seen       nat: the Service
 *
 * An alias is never there without its entry for longer than a tick, and says nothing by itself: whenever its word or
 * its tick is not the current one the entry is asked, and where that is gone, dead or another flow's, so is the alias.
 * An entry without an alias is found and removed by the daemon's sweep.
 */

#include "conntrack.bpf.h"
#include "policy.bpf.h"

/* A backend whose flow under this very port is another's, a direct connection's say, is passed over that often. */
enum { BACKEND_ATTEMPTS = 4 };

/* Makes the key that of the flow's entry, from the one that the pod's packet shows. */
static __always_inline void go_to_backend(struct flow *flow, const struct address *address, __u16 port)
{
	flow->rewrite = REWRITE_REQUEST;
	flow->service = flow->key.remote;
	flow->service_port = flow->key.remote_port;
	if (!flow->hairpin) {
		flow->key.remote = *address;
		flow->key.remote_port = port;
		return;
	}
	/* The server sees the client at the Service's address: for it this is a packet that comes in. */
	flow->direction = DIRECTION_INGRESS;
	flow->key.remote_port = flow->key.pod_port;
	flow->key.pod_port = port;
}

/* The way back: the key is again what the pod's packet shows. */
static __always_inline void go_to_service(struct flow *flow)
{
	if (flow->hairpin)
		flow->key.pod_port = flow->key.remote_port;
	flow->key.remote = flow->service;
	flow->key.remote_port = flow->service_port;
	flow->direction = DIRECTION_EGRESS;
	flow->rewrite = REWRITE_NONE;
	flow->hairpin = false;
}

/* flow->entry is the alias. */
static __always_inline void follow_alias(struct flow *flow)
{
	flow->hairpin = (flow->entry.flags & CONNTRACK_HAIRPIN) != 0;
	go_to_backend(flow, &flow->entry.nat, flow->entry.nat_port);
}

/* A packet of the backend, whose entry was found under its own key. */
static __always_inline void come_from_service(struct flow *flow)
{
	flow->rewrite = REWRITE_REPLY;
	flow->hairpin = (flow->entry.flags & CONNTRACK_HAIRPIN) != 0;
	flow->service = flow->entry.nat;
	flow->service_port = flow->entry.nat_port;
}

/* Nothing but data, in the tick and under the policy in which the entry was asked last? */
static __always_inline bool is_fresh(const struct conntrack_entry *alias, const struct flow *flow, __u64 word)
{
	return alias->word == word && alias->last_seen == flow->tick &&
	       !(flow->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

/* Is this the entry of the flow whose alias was followed? */
static __always_inline bool is_of_service(const struct conntrack_entry *entry, const struct flow *flow)
{
	return (entry->flags & CONNTRACK_TRANSLATED) && same_address(&entry->nat, &flow->service) &&
	       entry->nat_port == flow->service_port && !(entry->flags & CONNTRACK_HAIRPIN) == !flow->hairpin;
}

/*
 * The word of an alias that says nothing by itself, and no slot's: of a connection whose handshake is not over, of one
 * to the node, and of a flow that is denied, and passes since policy is only watched. Not 0: a pod that was never isolated
 * has that.
 */
static const __u64 ALIAS_ALWAYS_ASKS = ~0ULL;

static __always_inline __u64 alias_word(const struct endpoint *endpoint, const struct flow *flow)
{
	/* The word that the entry was judged by; a pod that reaches itself is always allowed, whatever is in force. */
	return flow->hairpin ? slot_word(endpoint, DIRECTION_EGRESS) : flow->word;
}

static __noinline int write_alias(const struct flow *flow, __u64 word, __u64 flags)
{
	struct conntrack_key key = flow->key;
	struct conntrack_entry alias = {
		.word = word,
		.last_seen = flow->tick,
		.initiator = DIRECTION_EGRESS,
		.flags = CONNTRACK_ALIAS,
		.nat = flow->key.remote,
		.nat_port = flow->key.remote_port,
	};

	if (flow->hairpin) {
		alias.flags |= CONNTRACK_HAIRPIN;
		alias.nat = flow->key.pod;
		alias.nat_port = flow->key.pod_port;
		key.pod_port = flow->key.remote_port;
	}
	key.remote = flow->service;
	key.remote_port = flow->service_port;
	return bpf_map_update_elem(&conntrack, &key, &alias, flags);
}

static __always_inline bool is_logged(const struct flow *flow)
{
	if (flow->settings.log_allow == LOG_ALL)
		return true;
	return flow->settings.log_allow == LOG_DELEGATED && (flow->rule.flags & RULE_LOG);
}

enum opened {
	OPENED_NEW = 0,
	OPENED_THERE = 1, /* another CPU was first */
	OPENED_TAKEN = 2, /* the backend has another connection from this port */
	OPENED_FULL = 3,
};

/* A pod that reaches itself, where all three ports are one: alias and entry would have the same key. */
static __always_inline bool is_one_key(const struct flow *flow)
{
	return flow->hairpin && flow->key.pod_port == flow->key.remote_port &&
	       flow->key.remote_port == flow->service_port;
}

/* enum opened. */
__global __u32 open_entry(struct __sk_buff *skb, bool denied)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	const struct conntrack_entry *found = NULL;
	struct flow *flow = this_flow();
	struct conntrack_entry entry;
	int error;

	if (!flow || !endpoint)
		return OPENED_FULL;
	if (is_one_key(flow))
		return OPENED_TAKEN;
	entry = new_entry(flow);
	entry.flags |= CONNTRACK_TRANSLATED;
	if (flow->hairpin)
		entry.flags |= CONNTRACK_HAIRPIN;
	if (denied)
		entry.state = CONNTRACK_DENIED;
	entry.nat = flow->service;
	entry.nat_port = flow->service_port;
	error = bpf_map_update_elem(&conntrack, &flow->key, &entry, BPF_NOEXIST);
	if (error == -EEXIST) {
		found = bpf_map_lookup_elem(&conntrack, &flow->key);
		if (found) {
			flow->entry = *found;
			/* This Service's own, whose end nobody saw, gives way too. */
			if (is_alive(found, flow) && !(is_of_service(found, flow) && opens_anew(found, flow)))
				return is_of_service(found, flow) ? OPENED_THERE : OPENED_TAKEN;
		}
		error = bpf_map_update_elem(&conntrack, &flow->key, &entry, BPF_ANY);
	}
	if (!error)
		count_entry(endpoint, found ? &flow->entry : NULL, &entry);
	return error ? OPENED_FULL : OPENED_NEW;
}

/*
 * The alias comes after its entry, so that none leads nowhere. Where another CPU was first, its choice holds: two
 * backends must not both get the client's packets. UNDECIDED: the entry that counts is the one that was opened here,
 * whosever the alias is.
 */
static __noinline __u32 open_alias(const struct endpoint *endpoint, struct flow *flow, __u64 word, bool replace,
				   bool is_new)
{
	int error = write_alias(flow, word, replace ? BPF_ANY : BPF_NOEXIST);
	struct conntrack_key mine = flow->key;
	const struct conntrack_entry *found;

	if (!error) {
		if (!replace)
			count_made(find_usage(endpoint));
		return UNDECIDED;
	}
	go_to_service(flow);
	if (error == -EEXIST) {
		found = bpf_map_lookup_elem(&conntrack, &flow->key);
		if (found && (found->flags & CONNTRACK_ALIAS)) {
			flow->entry = *found;
			follow_alias(flow);
		}
	}
	if (is_new && same_key(&mine, &flow->key))
		return UNDECIDED;
	if (is_new)
		bpf_map_delete_elem(&conntrack, &mine);
	return flow->rewrite ? REASON_ESTABLISHED : REASON_CONNTRACK_FULL;
}

/* Gives the flow a backend and an entry under its key. OPENED_TAKEN: with none of those that were tried. */
static __always_inline __u32 open_backend(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow,
					  __u32 *opened, bool *favourite)
{
	__u32 reason = REASON_PORT_TAKEN, full;

	for (int attempt = 0; attempt < BACKEND_ATTEMPTS; attempt++) {
		*favourite = !attempt && flow->target.affinity && find_favourite(flow);
		if (!*favourite && !pick_backend(flow))
			return REASON_NO_BACKEND;
		flow->hairpin = same_address(&flow->backend.address, &flow->key.pod);
		go_to_backend(flow, &flow->backend.address, flow->backend.port);
		judge_by(endpoint, flow, flow->direction);
		flow->local_socket = false;
		flow->nobody_listens = false;
		reason = decide_rare(skb);
		/* Where policy is only watched the flow goes on, and its later packets to the same backend. */
		if (reason == REASON_DEFAULT_DENY && flow->settings.policy != ENFORCEMENT_AUDIT) {
			if (!flow->nobody_listens)
				return reason;
			go_to_service(flow);
			return REASON_REFUSED;
		}
		full = check_quota(endpoint, flow);
		if (full != UNDECIDED) {
			go_to_service(flow);
			return full;
		}
		*opened = open_entry(skb, reason == REASON_DEFAULT_DENY);
		if (*opened != OPENED_TAKEN)
			return reason;
		go_to_service(flow);
	}
	return REASON_PORT_TAKEN;
}

/* A flow that nothing is known of, to a Service of ours: flow->target. Its backend is judged, not the Service. */
__global __u32 judge_service(struct __sk_buff *skb, bool replace)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	__u32 reason, other, opened = OPENED_TAKEN;
	bool favourite;
	__u64 word;

	if (!flow || !endpoint)
		return REASON_NO_ENDPOINT;
	if (!flow->target.count)
		return flow->target.flags & SERVICE_DROP ? REASON_NO_BACKEND : REASON_REFUSED;
	reason = open_backend(skb, endpoint, flow, &opened, &favourite);
	if (opened == OPENED_TAKEN)
		return reason;
	if (opened == OPENED_FULL) {
		go_to_service(flow);
		return REASON_CONNTRACK_FULL;
	}
	if (reason == REASON_DEFAULT_DENY || flow->local_socket || flow->key.protocol == IP_TCP)
		word = ALIAS_ALWAYS_ASKS;
	else
		word = alias_word(endpoint, flow);
	other = open_alias(endpoint, flow, word, replace, opened == OPENED_NEW);
	if (other != UNDECIDED)
		return other;
	if (flow->target.affinity)
		set_favourite(flow, favourite);
	if (opened == OPENED_THERE)
		return REASON_ESTABLISHED;
	flow->due = reason == REASON_POLICY && is_logged(flow);
	return reason;
}
