/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Services: which backends stand behind an address and port, and which one of them a flow is given.
 *
 *   {address, port, protocol} -> front {list, count} -> {list, index} -> backend
 */

#include "endpoint.bpf.h"

/* Written by the daemon only, where the time that an allocation takes does not matter. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct service_key);
	__type(value, struct service);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct backend_key);
	__type(value, struct backend);
} backends SEC(".maps");

/* A cache of choices: losing the one that was used least costs a client its stickiness, no connection. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* By an exact key; false where there is none. */
static __always_inline bool take_front(struct flow *flow, const struct service_key *key)
{
	const struct service *front = bpf_map_lookup_elem(&services, key);

	if (!front)
		return false;
	flow->front = *front;
	return true;
}

/* The front that the packet goes to, if any: for a port that an address of ours does not list, one without backends. */
static __always_inline bool find_front(struct flow *flow)
{
	struct service_key key = {
		.address = flow->key.remote,
		.port = flow->key.remote_port,
		.protocol = flow->key.protocol,
	};

	if (!has_ports(key.protocol))
		return false;
	if (take_front(flow, &key))
		return true;
	key.port = 0;
	key.protocol = 0;
	return take_front(flow, &key);
}

/* The front that every node has at this port. */
static __always_inline bool find_node_port(struct flow *flow)
{
	struct service_key key = { .port = flow->key.remote_port, .protocol = flow->key.protocol };

	if (is_ipv4(&flow->key.remote))
		key.address.word[2] = bpf_htonl(0xffff);
	return has_ports(key.protocol) && take_front(flow, &key);
}

/* The backend that the client was given last, of flow->target. */
static __always_inline bool find_favourite(struct flow *flow)
{
	struct affinity_key key = { .service = flow->target.id, .client = flow->key.pod };
	const struct affinity *found = bpf_map_lookup_elem(&affinities, &key);

	if (!found || (__s32)(flow->tick - found->last_used) > (__s32)flow->target.affinity)
		return false;
	flow->backend = found->backend;
	return true;
}

/*
 * Remembers the client's backend. What was read is only refreshed: an entry that is gone meanwhile is gone because
 * its backend is.
 */
static __noinline void set_favourite(const struct flow *flow, bool refresh)
{
	struct affinity_key key = { .service = flow->target.id, .client = flow->key.pod };
	struct affinity affinity = { .backend = flow->backend, .last_used = flow->tick };

	bpf_map_update_elem(&affinities, &key, &affinity, refresh ? BPF_EXIST : BPF_ANY);
}

/* Any of flow->target's, each as likely. No helper brings SCTP's checksum up to date, so its port must stay. */
static __always_inline bool pick_backend(struct flow *flow)
{
	struct backend_key key = { .list = flow->target.list };
	__u32 count = flow->target.count;
	const struct backend *found;

	if (!count)
		return false;
	key.index = bpf_get_prandom_u32() % count;
	found = bpf_map_lookup_elem(&backends, &key);
	if (!found || (flow->key.protocol == IP_SCTP && found->port != flow->key.remote_port))
		return false;
	flow->backend = *found;
	return true;
}
