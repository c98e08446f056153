/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * A packet to a Service that nothing stands behind, or to a port of the pod's node where no socket is, becomes its own
 * answer, so that the client learns it at once: a RST for TCP (RFC 9293, 3.10.7.1), else "port unreachable" with the
 * start of the packet (RFC 792, RFC 4443). The answer comes from the address that the client wrote to, where it looks for
 * it.
 */

#include "rewrite.bpf.h"

enum { ANSWER_HOPS = 64, QUOTED_BYTES = 8 };

/* Of both families: the words that map an IPv4 address add up to 0xffff, which is 0 in this arithmetic. */
struct pseudo_header {
	struct address source;
	struct address destination;
	__u32 length;
	__u32 protocol;
};

union answer {
	struct tcp_header tcp;
	struct {
		struct icmp_header icmp;
		__u8 quoted[IPV6_BYTES + QUOTED_BYTES];
	};
};

static __always_inline __u16 checksum_of(__s64 sum)
{
	return ~fold((__u32)sum);
}

static __always_inline __s64 pseudo_sum(const struct flow *flow, __u8 protocol, __u32 bytes)
{
	struct pseudo_header header = {
		.source = flow->key.remote,
		.destination = flow->key.pod,
		.length = bpf_htonl(bytes),
		.protocol = bpf_htonl(protocol),
	};

	return bpf_csum_diff(NULL, 0, (__be32 *)&header, sizeof(header), 0);
}

static __noinline long write_answer_ipv4(struct __sk_buff *skb, const struct flow *flow, __u8 protocol, __u32 bytes)
{
	struct ipv4_header ip = {
		.version_length = 0x45,
		.total_length = bpf_htons(IPV4_BYTES + bytes),
		.fragment = bpf_htons(0x4000), /* not to be cut */
		.ttl = ANSWER_HOPS,
		.protocol = protocol,
		.source = flow->key.remote.word[3],
		.destination = flow->key.pod.word[3],
	};

	ip.checksum = checksum_of(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));
	return bpf_skb_store_bytes(skb, ETHERNET_BYTES, &ip, sizeof(ip), 0);
}

static __noinline long write_answer_ipv6(struct __sk_buff *skb, const struct flow *flow, __u8 protocol, __u32 bytes)
{
	struct ipv6_header ip = {
		.version_class = 0x60,
		.payload_length = bpf_htons(bytes),
		.next_header = protocol,
		.hop_limit = ANSWER_HOPS,
	};

	__builtin_memcpy(ip.source, &flow->key.remote, sizeof(ip.source));
	__builtin_memcpy(ip.destination, &flow->key.pod, sizeof(ip.destination));
	return bpf_skb_store_bytes(skb, ETHERNET_BYTES, &ip, sizeof(ip), 0);
}

static __always_inline long write_answer_header(struct __sk_buff *skb, const struct flow *flow, __u8 protocol,
						__u32 bytes)
{
	long error = bpf_skb_change_tail(skb, flow->payload + bytes, 0);

	if (error)
		return error;
	return is_ipv4(&flow->key.pod) ? write_answer_ipv4(skb, flow, protocol, bytes)
				       : write_answer_ipv6(skb, flow, protocol, bytes);
}

/* What has an acknowledgement is answered where that says; of anything else all is acknowledged, its data too. */
static __noinline long refuse_tcp(struct __sk_buff *skb, const struct flow *flow)
{
	union answer answer = {};
	struct tcp_header segment;
	__u32 bytes;

	if ((flow->tcp_flags & TCP_RST) || bpf_skb_load_bytes(skb, flow->payload, &segment, sizeof(segment)))
		return -1;
	answer.tcp.source = flow->key.remote_port;
	answer.tcp.destination = flow->key.pod_port;
	answer.tcp.offset = (TCP_BYTES / 4) << 4;
	answer.tcp.flags = TCP_RST;
	if (flow->tcp_flags & TCP_ACK) {
		answer.tcp.sequence = segment.acknowledgement;
	} else {
		bytes = tcp_data_bytes(flow, &segment);
		bytes += !!(flow->tcp_flags & TCP_SYN) + !!(flow->tcp_flags & TCP_FIN);
		answer.tcp.flags |= TCP_ACK;
		answer.tcp.acknowledgement = bpf_htonl(bpf_ntohl(segment.sequence) + bytes);
	}
	answer.tcp.checksum = checksum_of(bpf_csum_diff(NULL, 0, (__be32 *)&answer.tcp, TCP_BYTES,
							pseudo_sum(flow, IP_TCP, TCP_BYTES)));
	return write_answer_header(skb, flow, IP_TCP, TCP_BYTES)
	       ?: bpf_skb_store_bytes(skb, flow->payload, &answer.tcp, TCP_BYTES, 0);
}

static __always_inline long refuse_other(struct __sk_buff *skb, const struct flow *flow, const __u32 header,
					 const struct icmp_header icmp, __u8 protocol)
{
	const __u32 bytes = ICMP_BYTES + header + QUOTED_BYTES;
	union answer answer = { .icmp = icmp };
	__s64 sum = protocol == IP_ICMPV6 ? pseudo_sum(flow, protocol, bytes) : 0;

	if (bpf_skb_load_bytes(skb, ETHERNET_BYTES, answer.quoted, header + QUOTED_BYTES))
		return -1;
	answer.icmp.checksum = checksum_of(bpf_csum_diff(NULL, 0, (__be32 *)&answer, bytes, sum));
	return write_answer_header(skb, flow, protocol, bytes)
	       ?: bpf_skb_store_bytes(skb, flow->payload, &answer, bytes, 0);
}

static __noinline long refuse_ipv4(struct __sk_buff *skb, const struct flow *flow)
{
	const struct icmp_header icmp = { .type = ICMP_UNREACHABLE, .code = ICMP_PORT_UNREACHABLE };

	return refuse_other(skb, flow, IPV4_BYTES, icmp, IP_ICMP);
}

static __noinline long refuse_ipv6(struct __sk_buff *skb, const struct flow *flow)
{
	const struct icmp_header icmp = { .type = ICMPV6_UNREACHABLE, .code = ICMPV6_PORT_UNREACHABLE };

	return refuse_other(skb, flow, IPV6_BYTES, icmp, IP_ICMPV6);
}

/* 0 where the packet is its answer now. One with options or extension headers gets none. */
__global int refuse(struct __sk_buff *skb)
{
	const struct flow *flow = this_flow();
	long error;
	bool ipv4;

	if (!flow)
		return -1;
	ipv4 = is_ipv4(&flow->key.pod);
	if (flow->fragment == FRAGMENT_LATER || flow->payload != ETHERNET_BYTES + (ipv4 ? IPV4_BYTES : IPV6_BYTES))
		return -1;
	if (flow->key.protocol == IP_TCP)
		error = refuse_tcp(skb, flow);
	else
		error = ipv4 ? refuse_ipv4(skb, flow) : refuse_ipv6(skb, flow);
	return error ?: turn_round(skb);
}
