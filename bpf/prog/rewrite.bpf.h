/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Addresses and ports of a packet to or from a Service are exchanged by the kernel's own helpers: they know whether
 * a checksum is whole or left to the device, and keep it true either way. A UDP checksum of 0 means none and stays so.
 * SCTP's covers the ports, which never change, and not the addresses.
 *
 *   request   pod -> Service   becomes   pod -> backend
 *   reply     backend -> pod   becomes   Service -> pod
 *   hairpin   pod -> Service   becomes   Service -> pod, and goes back to where it came from
 *
 * Each helper costs nearly as much as an empty program, and field by field it takes five. Where TCP or UDP follows the
 * IP header at once, as in all but a few packets, two do: see rewrite_plain_ipv4.
 */

#include "checksum.bpf.h"
#include "translate.bpf.h"

/* Where a packet has what is rewritten, as offsets from the frame's start. 0: there is none. */
struct places {
	__u32 ip;
	__u32 checksum; /* of TCP, UDP or ICMP */
	__u32 ports;
	__u64 flags;    /* of bpf_l4_csum_replace */
};

static __always_inline struct places find_places(const struct flow *flow)
{
	struct places at = { .ip = ETHERNET_BYTES };

	if (flow->fragment == FRAGMENT_LATER)
		return at;
	if (flow->key.protocol == IP_TCP) {
		at.ports = flow->payload;
		at.checksum = flow->payload + TCP_CHECKSUM;
	} else if (flow->key.protocol == IP_UDP) {
		at.ports = flow->payload;
		at.checksum = flow->payload + UDP_CHECKSUM;
		at.flags = BPF_F_MARK_MANGLED_0;
	}
	return at;
}

/* Of source or destination. */
static __always_inline long rewrite_ipv4(struct __sk_buff *skb, const struct places *at, bool source, __u32 from,
					 __u32 to)
{
	__u32 offset = at->ip + (source ? IPV4_SOURCE : IPV4_DESTINATION);
	long error = 0;

	if (at->checksum)
		error = bpf_l4_csum_replace(skb, at->checksum, from, to, at->flags | BPF_F_PSEUDO_HDR | sizeof(to));
	return error ?: bpf_l3_csum_replace(skb, at->ip + IPV4_CHECKSUM, from, to, sizeof(to))
		     ?: bpf_skb_store_bytes(skb, offset, &to, sizeof(to), 0);
}

static __always_inline long rewrite_ipv6(struct __sk_buff *skb, const struct places *at, bool source,
					 struct address *from, struct address *to)
{
	__u32 offset = at->ip + (source ? IPV6_SOURCE : IPV6_DESTINATION);
	__u16 change = address_change(from, to);
	long error = 0;

	if (at->checksum)
		error = bpf_l4_csum_replace(skb, at->checksum, 0, change, at->flags | BPF_F_PSEUDO_HDR);
	/* Where the device summed the whole packet: no checksum of a header makes up for the address. */
	return error ?: bpf_skb_store_bytes(skb, offset, to, sizeof(*to), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long rewrite_address(struct __sk_buff *skb, const struct places *at, bool source,
					    struct address *from, struct address *to)
{
	if (is_ipv4(to))
		return rewrite_ipv4(skb, at, source, from->word[3], to->word[3]);
	return rewrite_ipv6(skb, at, source, from, to);
}

static __always_inline long rewrite_port(struct __sk_buff *skb, const struct places *at, bool source, __u16 from,
					 __u16 to)
{
	if (from == to || !at->ports)
		return 0;
	return bpf_l4_csum_replace(skb, at->checksum, from, to, at->flags | sizeof(to))
	       ?: bpf_skb_store_bytes(skb, at->ports + (source ? 0 : sizeof(to)), &to, sizeof(to), 0);
}

/* Source and destination change places: their sum, all that a checksum knows of them, stays. */
static __noinline long swap_addresses(struct __sk_buff *skb, __u32 ip, bool ipv4)
{
	struct address pair[2];
	__u32 offset = ip + (ipv4 ? IPV4_SOURCE : IPV6_SOURCE);

	if (ipv4)
		return bpf_skb_load_bytes(skb, offset, pair, 2 * sizeof(__u32))
		       ?: bpf_skb_store_bytes(skb, offset, &pair[0].word[1], sizeof(__u32), 0)
		       ?: bpf_skb_store_bytes(skb, offset + sizeof(__u32), &pair[0].word[0], sizeof(__u32), 0);
	return bpf_skb_load_bytes(skb, offset, pair, sizeof(pair))
	       ?: bpf_skb_store_bytes(skb, offset, &pair[1], sizeof(pair[1]), 0)
	       ?: bpf_skb_store_bytes(skb, offset + sizeof(pair[0]), &pair[0], sizeof(pair[0]), 0);
}

/* The frame goes back to the pod that sent it, which must take it for its own. */
static __noinline long turn_round(struct __sk_buff *skb)
{
	struct ethernet_header ethernet, back;

	if (bpf_skb_load_bytes(skb, 0, &ethernet, sizeof(ethernet)))
		return -1;
	__builtin_memcpy(back.destination, ethernet.source, sizeof(back.destination));
	__builtin_memcpy(back.source, ethernet.destination, sizeof(back.source));
	back.type = ethernet.type;
	/* On a bridge it was addressed to another station, and was marked as that. */
	return bpf_skb_store_bytes(skb, 0, &back, sizeof(back), 0) ?: bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
}

static __noinline long rewrite_hairpin(struct __sk_buff *skb, struct flow *flow)
{
	struct places at = find_places(flow);
	bool request = flow->rewrite == REWRITE_REQUEST;
	__u16 from = request ? flow->service_port : flow->key.pod_port;
	__u16 to = request ? flow->key.pod_port : flow->service_port;

	return rewrite_port(skb, &at, !request, from, to) ?: swap_addresses(skb, ETHERNET_BYTES, is_ipv4(&flow->service))
	       ?: turn_round(skb);
}

/* Field by field: what has options or extension headers, SCTP, the rest of a datagram. */
static __noinline long rewrite_fields(struct __sk_buff *skb, struct flow *flow)
{
	struct places at = find_places(flow);

	if (flow->rewrite == REWRITE_REQUEST)
		return rewrite_address(skb, &at, false, &flow->service, &flow->key.remote)
		       ?: rewrite_port(skb, &at, false, flow->service_port, flow->key.remote_port);
	return rewrite_address(skb, &at, true, &flow->key.remote, &flow->service)
	       ?: rewrite_port(skb, &at, true, flow->key.remote_port, flow->service_port);
}

/* Known where the program is compiled, so that each kind of packet has code of its own. */
struct plain {
	__u32 transport; /* offset of its header */
	bool tcp;        /* else UDP */
	bool request;    /* else a reply */
};

union transport_header {
	struct tcp_header tcp;
	struct udp_header udp;
};

static __always_inline __u32 checksum_offset(const struct plain plain)
{
	return plain.tcp ? TCP_CHECKSUM : UDP_CHECKSUM;
}

/* As far as a rewrite goes: to the end of the checksum. */
static __always_inline __u32 transport_bytes(const struct plain plain)
{
	return checksum_offset(plain) + sizeof(__u16);
}

static __always_inline void copy_transport(const struct plain plain, union transport_header *to,
					   const union transport_header *from)
{
	if (plain.tcp)
		to->tcp = from->tcp;
	else
		to->udp = from->udp;
}

/*
 * The checksum in the packet is brought up to date with the addresses, and read again into the header that is being
 * made. The helper subtracts their change from one that is whole and adds it to one that is left to the device, which
 * nobody else is told, and which holds nothing of the ports: what it did says whether theirs is still to be taken off.
 */
static __always_inline long exchange_checksum(struct __sk_buff *skb, const struct plain plain, __u16 addresses,
					      __u16 ports, __u16 *checksum)
{
	const __u32 offset = plain.transport + checksum_offset(plain);
	const __u16 before = *checksum;
	const __u16 *after;

	if (!plain.tcp && !before)
		return 0;
	if (bpf_l4_csum_replace(skb, offset, 0, addresses, BPF_F_PSEUDO_HDR | (plain.tcp ? 0 : BPF_F_MARK_MANGLED_0)))
		return -1;
	after = packet_start(skb) + offset;
	if ((void *)(after + 1) > packet_end(skb))
		return -1;
	*checksum = *after;
	if (*after == add_folded(before, addresses))
		return 0;
	*checksum = changed_checksum(*after, ports);
	if (!plain.tcp && !*checksum)
		*checksum = 0xffff;
	return 0;
}

/* The header is the packet's, and becomes what it should be; the packet has its checksum for the addresses already. */
static __always_inline long exchange_ports(struct __sk_buff *skb, const struct plain plain, const struct flow *flow,
					   __u16 addresses, union transport_header *header)
{
	__u16 backend = flow->key.remote_port, service = flow->service_port;
	__u16 ports = plain.request ? port_change(service, backend) : port_change(backend, service);

	/* Both headers begin with them. */
	if (plain.request)
		header->udp.destination = backend;
	else
		header->udp.source = service;
	return exchange_checksum(skb, plain, addresses, ports, plain.tcp ? &header->tcp.checksum : &header->udp.checksum);
}

/*
 * All that changes lies between the checksum of IP and that of TCP or UDP: one call brings the latter up to date, as only
 * the kernel can, and one writes the whole span. Where the device summed the packet, both keep that sum true.
 */
static __always_inline long rewrite_plain_ipv4(struct __sk_buff *skb, const struct flow *flow, __u16 addresses,
					       const struct plain plain)
{
	struct {
		struct ipv4_header ip;
		union transport_header transport;
	} made;
	const typeof(made) *now = packet_start(skb) + ETHERNET_BYTES;

	if ((void *)&now->transport + (plain.tcp ? TCP_BYTES : UDP_BYTES) > packet_end(skb))
		return -1;
	made.ip.checksum = changed_checksum(now->ip.checksum, addresses);
	made.ip.source = plain.request ? now->ip.source : flow->service.word[3];
	made.ip.destination = plain.request ? flow->key.remote.word[3] : now->ip.destination;
	copy_transport(plain, &made.transport, &now->transport);
	return exchange_ports(skb, plain, flow, addresses, &made.transport)
	       ?: bpf_skb_store_bytes(skb, ETHERNET_BYTES + IPV4_CHECKSUM, &made.ip.checksum,
				      IPV4_BYTES - IPV4_CHECKSUM + transport_bytes(plain), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long rewrite_plain_ipv6(struct __sk_buff *skb, const struct flow *flow, __u16 addresses,
					       const struct plain plain)
{
	struct {
		struct address source;
		struct address destination;
		union transport_header transport;
	} made;
	const union transport_header *now = packet_start(skb) + plain.transport;

	if ((void *)now + (plain.tcp ? TCP_BYTES : UDP_BYTES) > packet_end(skb))
		return -1;
	made.source = plain.request ? flow->key.pod : flow->service;
	made.destination = plain.request ? flow->key.remote : flow->key.pod;
	copy_transport(plain, &made.transport, now);
	return exchange_ports(skb, plain, flow, addresses, &made.transport)
	       ?: bpf_skb_store_bytes(skb, ETHERNET_BYTES + IPV6_SOURCE, &made,
				      IPV6_BYTES - IPV6_SOURCE + transport_bytes(plain), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline bool is_plain(const struct flow *flow, bool ipv4)
{
	return flow->payload == ETHERNET_BYTES + (ipv4 ? IPV4_BYTES : IPV6_BYTES) && flow->fragment != FRAGMENT_LATER &&
	       (flow->key.protocol == IP_TCP || flow->key.protocol == IP_UDP);
}

/* 0, or an error where the packet could not be made writable. What the pod sends is a request, and what it gets a reply. */
static __always_inline long rewrite(struct __sk_buff *skb, struct flow *flow, const bool request)
{
	const struct address *service = &flow->service, *backend = &flow->key.remote;
	bool ipv4 = is_ipv4(service), tcp = flow->key.protocol == IP_TCP;
	__u16 addresses;

	if (flow->hairpin)
		return rewrite_hairpin(skb, flow);
	addresses = request ? address_change(service, backend) : address_change(backend, service);
	/* Of a change that no checksum shows, that of a packet says nothing either. */
	if (!is_plain(flow, ipv4) || is_zero_change(addresses))
		return rewrite_fields(skb, flow);
	if (ipv4) {
		const __u32 transport = ETHERNET_BYTES + IPV4_BYTES;

		return tcp ? rewrite_plain_ipv4(skb, flow, addresses, (struct plain){ transport, true, request })
			   : rewrite_plain_ipv4(skb, flow, addresses, (struct plain){ transport, false, request });
	} else {
		const __u32 transport = ETHERNET_BYTES + IPV6_BYTES;

		return tcp ? rewrite_plain_ipv6(skb, flow, addresses, (struct plain){ transport, true, request })
			   : rewrite_plain_ipv6(skb, flow, addresses, (struct plain){ transport, false, request });
	}
}
