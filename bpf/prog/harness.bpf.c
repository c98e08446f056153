/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */

/*
 * Programs of the benchmark and the tests; they ship nowhere. Each hands its packet over to the program under test,
 * which starts as it would on a hook.
 *
 * BPF_PROG_TEST_RUN repeats one packet: `rotate` makes each run another flow, by a new source, and `rotate_answers`
 * answers those by a new destination. What it costs itself is measured by letting it hand over to `empty`. A translated
 * packet stays translated in the next run: `aim` gives it back the destination that the pod wrote.
 * BPF_PROG_TEST_RUN refuses a frame without a whole IP header: `cut` shortens one that it takes. It knows VLAN tags
 * only inside the frame: `tag` puts one where the receiving side of an interface leaves it, beside the frame.
 */

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "wire.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

struct rotation {
	__u32 next;
	__u32 flows; /* then the first comes again */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rotation);
} rotations SEC(".maps");

struct destination {
	__u32 address; /* network byte order, as the port */
	__u16 port;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct destination);
} destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} frame_bytes SEC(".maps");

/* What a packet costs before any program does anything: the unit of all ratios. */
SEC("tc")
int empty(struct __sk_buff *skb)
{
	(void)skb;
	return -1;
}

/* For frames of TCP over IPv4 without options: the port first, then the address's last byte. */
static __always_inline int rotate_client(struct __sk_buff *skb, bool source)
{
	struct ipv4_header *ip = (void *)(long)skb->data + ETHERNET_BYTES;
	struct tcp_header *tcp = (void *)(ip + 1);
	__u32 zero = 0;
	struct rotation *rotation = bpf_map_lookup_elem(&rotations, &zero);
	__u32 flow, *address;
	__u16 *port;

	if (!rotation || (void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	flow = rotation->next;
	rotation->next = flow + 1 < rotation->flows ? flow + 1 : 0;
	port = source ? &tcp->source : &tcp->destination;
	address = source ? &ip->source : &ip->destination;
	*port = bpf_htons(flow & 0xffff);
	*address = (*address & bpf_htonl(0xffffff00)) | bpf_htonl((flow >> 16) & 0xff);
	bpf_tail_call(skb, &under_test, zero);
	return -1;
}

SEC("tc")
int rotate(struct __sk_buff *skb)
{
	return rotate_client(skb, true);
}

SEC("tc")
int rotate_answers(struct __sk_buff *skb)
{
	return rotate_client(skb, false);
}

/* For the same frames; checksums are not kept, and nobody here reads them. */
SEC("tc")
int aim(struct __sk_buff *skb)
{
	struct ipv4_header *ip = (void *)(long)skb->data + ETHERNET_BYTES;
	struct tcp_header *tcp = (void *)(ip + 1);
	__u32 zero = 0;
	const struct destination *destination = bpf_map_lookup_elem(&destinations, &zero);

	if (!destination || (void *)(tcp + 1) > (void *)(long)skb->data_end)
		return -1;
	ip->destination = destination->address;
	tcp->destination = destination->port;
	bpf_tail_call(skb, &under_test, zero);
	return -1;
}

/* Nothing but a frame of frame_bytes reaches the program under test. */
SEC("tc")
int cut(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u32 *bytes = bpf_map_lookup_elem(&frame_bytes, &zero);

	if (!bytes || bpf_skb_change_tail(skb, *bytes, 0))
		return 0;
	bpf_tail_call(skb, &under_test, zero);
	return 0;
}

SEC("tc")
int tag(struct __sk_buff *skb)
{
	if (bpf_skb_vlan_push(skb, bpf_htons(ETHERTYPE_VLAN), 5))
		return 0;
	bpf_tail_call(skb, &under_test, 0);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
