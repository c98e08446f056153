/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Every packet is counted once, and each verdict that asks for a record leaves one or is told as lost:
 *
 *   due[direction][ALLOW] = events in the ring + ring_full[direction]
 *   due[direction][DENY]  = events in the ring + counts in the table + overflow of the shares
 *
 * A packet reads the generation once; counters, deny table and shares of a closed generation no longer change.
 */

#include "conntrack.bpf.h"
#include "policy.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32); /* generation & 1 */
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct deny_key);
	__type(value, struct deny_entry);
} denies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS * 2 + 2);
	__type(key, __u32); /* slot * 2 + (generation & 1); of all endpoints: MAX_SLOTS * 2 + (generation & 1) */
	__type(value, struct deny_share);
} deny_shares SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_BYTES);
} events SEC(".maps");

/* One endpoint may have an eighth of what is left: so there is always something left for the next. */
enum { SHARES = 8 };

/* Entries of the deny table; set before loading. */
const volatile __u32 deny_entries = 65536;

/* Denies that one direction of an endpoint may tell by an event each in a generation, before aggregates; set before loading. */
const volatile __u32 deny_event_share = 0;

/* All settings in one load, so that they belong together. */
static __always_inline bool read_settings(struct settings *into)
{
	__u32 zero = 0;
	const volatile __u64 *now = bpf_map_lookup_elem(&settings, &zero);
	__u64 word;

	if (!now)
		return false;
	word = *now;
	__builtin_memcpy(into, &word, sizeof(*into));
	return true;
}

static __always_inline struct counters *find_counters(const struct flow *flow)
{
	__u32 parity = flow->settings.generation & 1;

	return bpf_map_lookup_elem(&counters, &parity);
}

static __always_inline void add_to_entry(struct deny_entry *entry, __u64 now)
{
	__sync_fetch_and_add(&entry->count, 1);
	entry->last = now;
}

static __always_inline struct deny_share *find_deny_share(__u32 slot, __u32 generation)
{
	__u32 index = slot * 2 + (generation & 1);

	return bpf_map_lookup_elem(&deny_shares, &index);
}

/* May one direction of an endpoint open an aggregate more? Both generations lie in the table. */
static __always_inline bool has_deny_share(const struct deny_share *share, const struct deny_share *all,
					   const struct deny_share *others)
{
	__u32 used = all->used + others->used;
	__u32 left = used < deny_entries ? deny_entries - used : 0;

	return share->used < left / SHARES || (!share->used && left);
}

/*
 * Adds to the aggregate, or makes it: with count 0 and only where there is none, then looked up again, so that two
 * CPUs that make it at once both add to the same one. False where there is no room.
 */
static __always_inline bool add_to_aggregate(const struct flow *flow, const struct deny_key *key,
					     struct deny_share *share)
{
	struct deny_entry *found = bpf_map_lookup_elem(&denies, key);
	struct deny_share *all, *others;
	struct deny_entry entry = {};

	if (found) {
		add_to_entry(found, flow->now);
		return true;
	}
	all = find_deny_share(MAX_SLOTS, key->generation);
	others = find_deny_share(MAX_SLOTS, key->generation + 1);
	if (!all || !others || !has_deny_share(share, all, others))
		return false;
	entry.first = entry.last = bpf_ktime_get_ns();
	entry.pod = flow->key.pod;
	if (flow->rewrite) {
		entry.service = flow->service;
		entry.service_port = flow->service_port;
	}
	if (has_ports(flow->key.protocol))
		entry.source_port = key->direction == DIRECTION_INGRESS ? flow->key.remote_port : flow->key.pod_port;
	if (!bpf_map_update_elem(&denies, key, &entry, BPF_NOEXIST)) {
		__sync_fetch_and_add(&share->used, 1);
		__sync_fetch_and_add(&all->used, 1);
	}
	found = bpf_map_lookup_elem(&denies, key);
	if (!found)
		return false;
	add_to_entry(found, entry.last);
	return true;
}

/* Isolated pods only: a drop that no policy asked for is a matter of the counters. */
static __always_inline bool is_deny_logged(const struct endpoint *endpoint, const struct flow *flow)
{
	if (!word_table(flow->word))
		return false;
	if (flow->settings.log_deny == LOG_ALL)
		return true;
	return flow->settings.log_deny == LOG_DELEGATED && (endpoint->flags & ENDPOINT_LOG_DENY);
}

static __always_inline __u64 unread_bytes(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
}

static __always_inline __u64 ring_bytes(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_RING_SIZE);
}

/*
 * The reader polls. It is woken only by the one event that takes the ring past its half: waking it for each would
 * cost more than all the rest of the packet.
 */
static __always_inline __u64 wakeup_flag(void)
{
	__u64 used = unread_bytes();
	__u64 half = ring_bytes() / 2;

	if (used >= half && used - half < EVENT_BYTES)
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

/* False where the ring has no room. */
static __noinline bool leave_event(const struct flow *flow, __u32 decided_by, __u32 reason, __u32 verdict)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return false;
	event->time = bpf_ktime_get_ns();
	event->endpoint = flow->key.endpoint;
	event->decided_by = decided_by;
	event->generation = flow->settings.generation;
	event->service_port = flow->rewrite ? flow->service_port : 0;
	event->log_mode = verdict == VERDICT_ALLOW ? flow->settings.log_allow : flow->settings.log_deny;
	event->pad = 0;
	event->pod = flow->key.pod;
	event->remote = flow->key.remote;
	event->pod_port = flow->key.pod_port;
	event->remote_port = flow->key.remote_port;
	event->protocol = flow->key.protocol;
	event->direction = flow->judged;
	event->reason = reason;
	event->verdict = verdict;
	event->service = flow->rewrite ? flow->service : (struct address){};
	bpf_ringbuf_submit(event, wakeup_flag());
	return true;
}

/*
 * May the endpoint leave an event? In a ring that is half full only so many that their share of what is left is left too,
 * so that who opens connections without end leaves others room for theirs:
 *
 *   reader ...... events_since ............ writer ........ end
 *                 |------- events --------|  |--- left ---|      no more until the reader has come to events_since
 *
 * Counts begin anew when all that was counted before is read, so that nobody has to count back. CPUs that race here may
 * let an event more through, or one less. docs/decisions/0013-shares-of-the-ring.md
 */
static __always_inline bool has_event_share(struct usage *usage)
{
	__u64 size = ring_bytes();
	__u64 unread = unread_bytes();

	if (unread < size / 2)
		return true;
	if (bpf_ringbuf_query(&events, BPF_RB_CONS_POS) >= usage->events_since) {
		usage->events_since = bpf_ringbuf_query(&events, BPF_RB_PROD_POS);
		usage->events = 0;
	}
	return unread < size && (__u64)usage->events * EVENT_BYTES < (size - unread) / SHARES;
}

/* False where its event found no room. */
static __always_inline bool record_allow(const struct endpoint *endpoint, const struct flow *flow, __u32 reason)
{
	struct usage *usage = find_usage(endpoint);

	if (!usage || !has_event_share(usage) || !leave_event(flow, flow->rule.attribution, reason, VERDICT_ALLOW))
		return false;
	__sync_fetch_and_add(&usage->events, 1);
	return true;
}

/*
 * May this deny be told by an event of its own? Not beyond the pod's share, nor where a quarter of the ring is unread:
 * it has an aggregate too, and an allow has no other place.
 */
static __always_inline bool has_deny_event_share(struct deny_share *share)
{
	if (share->told >= deny_event_share || unread_bytes() >= ring_bytes() / 4)
		return false;
	__sync_fetch_and_add(&share->told, 1);
	return true;
}

/* Does this deny ask for a record? If so it is now an event, in an aggregate, or in what its share tells as lost. */
static __always_inline bool record_deny(const struct endpoint *endpoint, struct flow *flow, __u32 reason)
{
	struct deny_key key = {};
	struct deny_share *share;

	/* Dropped before any policy was asked: the one of its own direction says whether it is logged. */
	if (!flow->word)
		flow->word = slot_word(endpoint, flow->judged);
	if (!is_deny_logged(endpoint, flow))
		return false;
	if (!flow->now)
		set_time(flow);
	key.generation = flow->settings.generation;
	key.endpoint = endpoint->uid;
	key.table = word_table(flow->word);
	key.remote = flow->key.remote;
	key.port = destination_port(flow, flow->judged);
	key.protocol = flow->key.protocol;
	key.direction = flow->judged;
	key.reason = reason;
	share = find_deny_share(endpoint->slot + flow->judged, flow->settings.generation);
	if (share && has_deny_event_share(share) && leave_event(flow, key.table, reason, VERDICT_DENY))
		return true;
	if (share && !add_to_aggregate(flow, &key, share))
		__sync_fetch_and_add(&share->overflow, 1);
	return true;
}

/* Leaves what the record of a verdict is made of, and counts it as due. */
__global int record_verdict(struct __sk_buff *skb, __u32 reason)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();
	struct counters *counted;
	bool egress;

	if (!endpoint || !flow)
		return 0;
	counted = find_counters(flow);
	if (!counted)
		return 0;
	/* The verifier wants to see the bound. */
	egress = flow->judged == DIRECTION_EGRESS;
	if (flow->due) {
		counted->due[egress][VERDICT_ALLOW]++;
		if (!record_allow(endpoint, flow, reason))
			counted->ring_full[egress]++;
	} else if (record_deny(endpoint, flow, reason)) {
		counted->due[egress][VERDICT_DENY]++;
	}
	return 0;
}

/* Counts the packet, and leaves what its record is made of. */
static __always_inline void account(struct __sk_buff *skb, struct flow *flow,
				    const __u32 direction, __u32 reason, bool denied)
{
	struct counters *counted = find_counters(flow);

	if (!counted || reason >= REASON_COUNT)
		return;
	/* What passes from a forged source is told as that, whatever allowed it. */
	if (flow->forged && reason < REASON_DEFAULT_DENY)
		reason = REASON_SPOOFED;
	counted->packets[direction][reason]++;
	if (flow->due || denied)
		record_verdict(skb, reason);
}
