/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */

/* What stands in a packet program's place while a pod's connections are handed over to the node: nothing passes. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int hold(struct __sk_buff *skb)
{
	(void)skb;
	return 2; /* TCX_DROP, TC_ACT_SHOT */
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
