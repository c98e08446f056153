/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Which policy is in force, and what it says: policy word -> peer class -> rule.
 *
 * Everything that could be decided when the policy was compiled was. All tables are flat hashes, asked by exact key;
 * a longest-prefix match costs ten times as much in a large table, so it is asked only where some policy needs it.
 */

#include "own_node.bpf.h"
#include "service.bpf.h"

/* Backends that one verdict asks about: a front with more of them is denied where policy has anything to say. */
enum { JUDGED_BACKENDS = 64 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* slot */
	__type(value, __u64);
} policy_words SEC(".maps");

/* Written by the daemon only, where the time that an allocation takes does not matter. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct peer_key);
	__type(value, struct peer);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr_key);
	__type(value, struct peer);
} cidrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rule_key);
	__type(value, struct rule);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 262144);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, struct rule);
} ranges SEC(".maps");

/* One load: the word is replaced by one store, so a packet sees all of a change or nothing of it. */
static __always_inline __u64 slot_word(const struct endpoint *endpoint, __u32 direction)
{
	__u32 slot = endpoint->slot + direction;
	const volatile __u64 *word = bpf_map_lookup_elem(&policy_words, &slot);

	return word ? *word : 0;
}

static __always_inline __u32 word_table(__u64 word)
{
	return word & ((1 << WORD_TABLE_BITS) - 1);
}

static __always_inline __u32 word_peers(__u64 word)
{
	return (word >> WORD_PEERS_SHIFT) & ((1 << WORD_PEERS_BITS) - 1);
}

static __always_inline bool word_has_cidrs(__u64 word)
{
	return (word >> WORD_CIDRS_SHIFT) & 1;
}

/* An address that no map knows is of class 0, which rules for any peer match. */
static __always_inline struct peer find_peer(const struct address *address, __u64 word)
{
	struct peer_key key = { .peers = word_peers(word), .address = *address };
	const struct peer *found = bpf_map_lookup_elem(&peers, &key);
	struct peer peer = {};

	if (!found && word_has_cidrs(word)) {
		struct cidr_key cidr = { .prefixlen = 32 + 128, .peers = key.peers, .address = *address };

		found = bpf_map_lookup_elem(&cidrs, &cidr);
	}
	if (found)
		peer = *found;
	return peer;
}

static __always_inline const struct rule *find_range(const struct rule_key *key)
{
	struct range_key range = {
		.prefixlen = 80 + 16,
		.table = key->table,
		.class = key->class,
		.protocol = key->protocol,
		.port = key->port,
	};

	return bpf_map_lookup_elem(&ranges, &range);
}

/* The most specific entry decides: steps 5 to 7 of decide. */
static __always_inline const struct rule *find_rule(const struct rule_key *wanted)
{
	struct rule_key key = *wanted;
	const struct rule *rule, *range;

	if (key.port) {
		rule = bpf_map_lookup_elem(&rules, &key);
		if (rule)
			return rule;
		key.port = 0;
	}
	rule = bpf_map_lookup_elem(&rules, &key);
	if (rule && (rule->flags & RULE_RANGES)) {
		range = find_range(wanted);
		if (range)
			return range;
	}
	return rule;
}

/* Steps 5 to 7 of decide, for a peer and the port that is asked for. */
static __always_inline __u32 decide_peer(__u64 word, __u8 protocol, __u32 class, __u16 port, struct rule *allowed)
{
	struct rule_key key = {
		.table = word_table(word),
		.class = class,
		.port = port,
		.protocol = has_ports(protocol) ? protocol : PROTOCOL_OTHER,
	};
	const struct rule *rule = find_rule(&key);

	if (rule && (rule->flags & RULE_ALLOW)) {
		*allowed = *rule;
		return REASON_POLICY;
	}
	return REASON_DEFAULT_DENY;
}

enum { REASON_MASK = 0xffff };

/* A reason, and the rule that gave it, as one number. */
static __always_inline __u64 pack_reason(__u32 reason, const struct rule *rule)
{
	return (__u64)rule->attribution << 32 | rule->flags << 16 | reason;
}

/*
 * Step 3 of decide for one backend of a list; one that cannot be read is denied. The node is known by its address alone: which
 * socket of it is asked for is known to the proxy behind the front only.
 */
__global __u64 judge_backend(__u32 list, __u32 index, __u64 word, __u32 protocol)
{
	struct backend_key key = { .list = list, .index = index };
	const struct backend *backend = bpf_map_lookup_elem(&backends, &key);
	struct rule rule = {};
	struct peer peer;

	if (!backend)
		return REASON_DEFAULT_DENY;
	peer = find_peer(&backend->address, word);
	if (peer.flags & PEER_LOCAL)
		return REASON_NODE;
	return pack_reason(decide_peer(word, protocol, peer.class, backend->port, &rule), &rule);
}

/*
 * A front that another proxy translates, after this program: which backend it will pick is not known here, so the
 * flow is allowed only if it is with each of them. The first is asked last: its rule is the one that is named.
 */
__global __u64 judge_backends(__u32 list, __u32 count, __u64 word, __u32 protocol)
{
	__u64 packed = REASON_DEFAULT_DENY;

	if (count > JUDGED_BACKENDS)
		return packed;
	/* Else the compiler leaves out the bound that it knows of, and the verifier does not. */
	barrier_var(count);
	for (__u32 i = 0; i < JUDGED_BACKENDS && i < count; i++) {
		packed = judge_backend(list, count - 1 - i, word, protocol);
		if ((packed & REASON_MASK) == REASON_DEFAULT_DENY)
			break;
	}
	return packed;
}

static __always_inline __u32 decide_backends(struct flow *flow)
{
	__u64 packed = judge_backends(flow->front.list, flow->front.count, flow->word, flow->key.protocol);

	flow->rule.attribution = packed >> 32;
	flow->rule.flags = (packed >> 16) & REASON_MASK;
	return packed & REASON_MASK;
}

/*
 * Through a Service it is sent back to itself without coming here again. What comes in with the pod's own address came
 * out of its own interface; of anything else somebody made that up.
 */
static __always_inline bool is_itself(const struct __sk_buff *skb, const struct endpoint *endpoint,
				      const struct flow *flow)
{
	if (flow->hairpin)
		return true;
	return same_address(&flow->key.pod, &flow->key.remote) && is_assigned(endpoint, &flow->key.pod) &&
	       (flow->direction == DIRECTION_EGRESS || skb->ingress_ifindex == skb->ifindex);
}

/*
 * What the policy word flow->word of direction flow->judged says about a new flow. The first that applies:
 *
 *   1. The pod talks to itself, also through a Service              SELF
 *   2. No policy isolates it in this direction                      NOT_ISOLATED
 *   3. To a front that another proxy translates: its backends on the pod's node pass, steps 5 to 7 judge each other one, and
 *      the first that is denied denies it. One without backends is judged as the address that it is, and so is one whose
 *      address anybody may have named, after its backends: nobody may translate it, and then the packet goes to the
 *      address itself
 *   4. From its node, proven by a socket                            NODE
 *   5. A rule for the peer's class and exactly this port            POLICY
 *   6. A rule for a range that holds this port, the narrowest       POLICY
 *   7. A rule for any port, or for protocols without ports          POLICY
 *   8. To its node, proven by a socket, at an address that is not
 *      the link's: asked last, for it costs most, and tells least   NODE
 *   9. Otherwise                                                    DEFAULT_DENY
 */
static __always_inline __u32 decide(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	struct peer peer;
	bool is_node;
	__u32 reason;

	/* 1 */
	if (is_itself(skb, endpoint, flow))
		return REASON_SELF;
	/* 2 */
	if (!word_table(flow->word))
		return REASON_NOT_ISOLATED;
	/* 3: a node's address may be one, which step 8 would let pass. */
	peer = find_peer(&flow->key.remote, flow->word);
	if (flow->judged == DIRECTION_EGRESS) {
		if (flow->front.flags & SERVICE_JUDGE_ADDRESS) {
			if (flow->front.count && decide_backends(flow) == REASON_DEFAULT_DENY)
				return REASON_DEFAULT_DENY;
			flow->front = (struct service){};
		}
		if ((peer.flags & PEER_NODE) && !flow->front.count)
			find_node_port(flow);
		if (flow->front.count)
			return decide_backends(flow);
	}
	/* 4 */
	is_node = peer.flags & PEER_LOCAL;
	if (is_node && flow->judged == DIRECTION_INGRESS && is_own_node(skb))
		return REASON_NODE;
	/* 5, 6, 7 */
	reason = decide_peer(flow->word, flow->key.protocol, peer.class, destination_port(flow, flow->judged), &flow->rule);
	/* 8 */
	if (reason == REASON_DEFAULT_DENY && is_node && flow->judged == DIRECTION_EGRESS && is_own_node(skb))
		return REASON_NODE;
	return reason;
}

/* Each return costs as much as a lookup of an array where the CPU needs "safe returns": inline for what is common. */
__global __u32 decide_rare(struct __sk_buff *skb)
{
	const struct endpoint *endpoint = find_endpoint(skb->ifindex);
	struct flow *flow = this_flow();

	return flow && endpoint ? decide(skb, endpoint, flow) : REASON_DEFAULT_DENY;
}

/* Reads the word once: what judges after this goes by it alone. */
static __always_inline void judge_by(const struct endpoint *endpoint, struct flow *flow, __u32 direction)
{
	flow->judged = direction;
	flow->word = slot_word(endpoint, direction);
}
