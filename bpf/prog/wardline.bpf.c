/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */

/*
 * The packet programs, one at each side of a pod's edge, named by the pod: pod_ingress sees what goes to the pod
 * (egress of the host-side interface), pod_egress what comes from it.
 *
 *   settings, endpoint -> parse -> conntrack -> policy -> rewrite -> account -> one return
 */

#include "parse.bpf.h"
#include "related.bpf.h"
#include "refuse.bpf.h"
#include "account.bpf.h"

/* Where they act, they say so here and nowhere else. Passing lets other programs on the hook run. */
enum action {
	ACTION_PASS = -1, /* TCX_NEXT, and TC_ACT_UNSPEC on a clsact hook */
	ACTION_END = 0,   /* TCX_PASS, TC_ACT_OK: passes, and nothing behind us on the hook runs */
	ACTION_DROP = 2,  /* TCX_DROP, TC_ACT_SHOT */
};

static __always_inline bool is_enforced(const struct flow *flow, __u32 reason)
{
	__u8 mode = reason == REASON_SPOOFED ? flow->settings.source_check : flow->settings.policy;

	return mode != ENFORCEMENT_AUDIT || reason == REASON_FORGED_NEIGHBOUR;
}

/*
 * Denied packets of a managed pod go to the deny table, except those that are not the pod's business, and those
 * whose forged source is only being watched for: these pass, and the counter is their report.
 */
static __always_inline bool is_recorded(const struct endpoint *endpoint, __u32 reason, bool drop)
{
	return endpoint && reason >= REASON_DEFAULT_DENY && reason < REASON_REFUSED && reason != REASON_NOT_MINE &&
	       (drop || reason != REASON_SPOOFED);
}

static __always_inline __u32 judge(struct __sk_buff *skb, const struct endpoint *endpoint, struct flow *flow)
{
	__u32 reason;

	if (!endpoint)
		return REASON_NO_ENDPOINT;
	flow->key.endpoint = endpoint->uid;
	reason = parse(skb, endpoint, flow);
	if (reason != UNDECIDED)
		return reason;
	if (flow->kind == FLOW_ERROR)
		return judge_error(skb);
	reason = judge_flow(skb, endpoint, flow);
	if (flow->fragment == FRAGMENT_FIRST && reason >= REASON_DEFAULT_DENY && is_enforced(flow, reason))
		forget_fragment(endpoint, flow);
	return reason;
}

/* Where a packet goes that is neither dropped nor passed on: to the pod that sent it, past its pod_ingress. */
static __always_inline int send_back(struct __sk_buff *skb)
{
	return bpf_redirect_peer(skb->ifindex, 0);
}

/* While a link takes over from a filter, what the link has judged must not meet the filter too. */
static __always_inline int pass_on(const struct endpoint *endpoint)
{
	return endpoint && (endpoint->flags & ENDPOINT_HANDOVER) ? ACTION_END : ACTION_PASS;
}

static __always_inline int handle(struct __sk_buff *skb, const __u32 direction)
{
	struct flow *flow = new_flow(direction);
	const struct endpoint *endpoint;
	bool drop = true;
	__u32 reason;

	if (!flow || !read_settings(&flow->settings))
		return ACTION_DROP;
	endpoint = find_endpoint(skb->ifindex);
	reason = judge(skb, endpoint, flow);
	drop = reason >= REASON_DEFAULT_DENY && is_enforced(flow, reason);
	/* It could not be made writable, and is neither what it was nor what it should be. */
	if (!drop && flow->rewrite && rewrite(skb, flow, direction == DIRECTION_EGRESS)) {
		reason = REASON_MALFORMED;
		drop = true;
	}
	account(skb, flow, direction, reason, is_recorded(endpoint, reason, drop));
	if (direction == DIRECTION_EGRESS && reason == REASON_REFUSED)
		return refuse(skb) ? ACTION_DROP : send_back(skb);
	if (direction == DIRECTION_EGRESS && !drop && flow->hairpin)
		return send_back(skb);
	return drop ? ACTION_DROP : pass_on(endpoint);
}

SEC("tc")
int pod_ingress(struct __sk_buff *skb)
{
	return handle(skb, DIRECTION_INGRESS);
}

SEC("tc")
int pod_egress(struct __sk_buff *skb)
{
	return handle(skb, DIRECTION_EGRESS);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
