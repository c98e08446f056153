/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * The pod's own node: a socket at the other end, never an address alone. Masqueraded traffic wears the node's address,
 * and what the pod sends to an address and port that were given to such a connection goes on to whoever opened it.
 *
 *   from it  made by a socket of the node, in through no interface; of a flow that is known already, the latter is enough
 *   to it    the node has a socket for it: of this very connection, but for what opens one and for datagrams
 */

#include "endpoint.bpf.h"

/*
 * Only what was made on this node came in through no interface. Not all of it has a socket: a RST has none, nor a SYN with a
 * cookie, nor the copies that a bridge floods. Parts of IPv6 must have one: the kernel puts together what it forwards, and what
 * it cuts again came in through no interface either. Where it fits into one part it looks like a whole packet, as no socket
 * sends it.
 */
static __always_inline bool is_made_here(const struct __sk_buff *skb, const struct flow *flow)
{
	if (skb->ingress_ifindex || flow->only_part)
		return false;
	return flow->fragment == FRAGMENT_NONE || is_ipv4(&flow->key.pod) || skb->sk;
}

/* Sent by a socket of this node? A socket alone is no proof: a packet that a bridge forwards still carries its pod's. */
static __always_inline bool is_from_local_socket(const struct __sk_buff *skb, const struct flow *flow)
{
	return flow->direction == DIRECTION_INGRESS && is_made_here(skb, flow) && skb->sk;
}

/* What the pod sends to the other side, as the node's sockets see it; its size. */
static __always_inline __u32 fill_tuple(struct bpf_sock_tuple *tuple, const struct conntrack_key *key)
{
	if (is_ipv4(&key->remote)) {
		tuple->ipv4.saddr = key->pod.word[3];
		tuple->ipv4.daddr = key->remote.word[3];
		tuple->ipv4.sport = key->pod_port;
		tuple->ipv4.dport = key->remote_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, &key->pod, sizeof(key->pod));
	__builtin_memcpy(tuple->ipv6.daddr, &key->remote, sizeof(key->remote));
	tuple->ipv6.sport = key->pod_port;
	tuple->ipv6.dport = key->remote_port;
	return sizeof(tuple->ipv6);
}

enum found_socket {
	SOCKET_NONE = 0,
	SOCKET_OF_ANYBODY = 1, /* listens, or takes datagrams from anywhere */
	SOCKET_OF_FLOW = 2,
};

static __always_inline __u32 let_go(struct bpf_sock *socket)
{
	bool of_anybody;

	if (!socket)
		return SOCKET_NONE;
	of_anybody = socket->state == BPF_TCP_LISTEN || socket->state == BPF_TCP_CLOSE;
	bpf_sk_release(socket);
	return of_anybody ? SOCKET_OF_ANYBODY : SOCKET_OF_FLOW;
}

/* enum found_socket: what the node has for a flow of TCP or UDP, whichever way the packet goes. */
__global __u32 find_local_socket(struct __sk_buff *skb)
{
	const struct flow *flow = this_flow();
	struct bpf_sock_tuple tuple = {};
	__u32 bytes;

	if (!flow)
		return SOCKET_NONE;
	bytes = fill_tuple(&tuple, &flow->key);
	if (flow->key.protocol == IP_TCP)
		return let_go(bpf_skc_lookup_tcp(skb, &tuple, bytes, BPF_F_CURRENT_NETNS, 0));
	if (flow->key.protocol == IP_UDP)
		return let_go(bpf_sk_lookup_udp(skb, &tuple, bytes, BPF_F_CURRENT_NETNS, 0));
	return SOCKET_NONE;
}

/* Of a connection only its own socket gets more than what opens it. */
static __always_inline bool is_for_local_socket(struct __sk_buff *skb, const struct flow *flow)
{
	__u32 found = find_local_socket(skb);

	return found == SOCKET_OF_FLOW ||
	       (found == SOCKET_OF_ANYBODY && (flow->key.protocol == IP_UDP || is_lone_syn(flow)));
}

/* Does the pod ask for the echo? See struct conntrack_key. The node answers that itself, and masquerades nobody by it. */
static __always_inline bool is_echo_of_pod(const struct flow *flow)
{
	__u8 protocol = is_ipv4(&flow->key.remote) ? IP_ICMP : IP_ICMPV6;

	return flow->key.protocol == protocol && flow->key.remote_port == answerer_of(flow->key.pod_port);
}

static __always_inline bool carries_data(struct __sk_buff *skb, const struct flow *flow)
{
	struct tcp_header tcp;

	if (flow->fragment == FRAGMENT_LATER || bpf_skb_load_bytes(skb, flow->payload, &tcp, sizeof(tcp)))
		return true;
	return tcp_data_bytes(flow, &tcp) > 0;
}

/*
 * A packet of a flow of the pod with a socket of the node: is it between the two? The node may forget the flow, and give its
 * ports to a connection that it masquerades. No connection of a socket ever comes of what the pod sends there; and where
 * there is none for its data, it is told so as the node would do it. But for an answer to a cookie: its connection is made
 * by it. Segments without data are believed, since one that has ended has no socket, and so is all of what the node opened: the
 * socket does not know the pod where it was opened to a Service.
 */
__global __u32 is_with_node(struct __sk_buff *skb)
{
	const struct flow *flow = this_flow();
	__u32 found;

	if (!flow)
		return false;
	if (flow->direction == DIRECTION_INGRESS)
		return is_made_here(skb, flow);
	if (flow->entry.initiator != DIRECTION_EGRESS)
		return true;
	if (flow->key.protocol == IP_UDP)
		return find_local_socket(skb) != SOCKET_NONE;
	if (flow->key.protocol != IP_TCP || is_lone_syn(flow) || !carries_data(skb, flow))
		return true;
	found = find_local_socket(skb);
	return found == SOCKET_OF_FLOW || (found == SOCKET_OF_ANYBODY && flow->entry.state == CONNTRACK_OPENING &&
					   (flow->entry.flags & CONNTRACK_ANSWERED));
}

/*
 * With an address of the pod's own node: is it the node? In mid-stream a packet may come in either direction's name.
 * One of the link's addresses is nobody's: anybody on the link may claim it.
 */
__global __u32 is_own_node(struct __sk_buff *skb)
{
	struct flow *flow = this_flow();
	bool comes_in, echo;

	if (!flow)
		return false;
	if (flow->local_socket)
		return true;
	comes_in = flow->direction == DIRECTION_INGRESS;
	if (flow->judged == DIRECTION_INGRESS || (flow->midstream && comes_in) || is_link_local(&flow->key.remote))
		return false;
	echo = is_echo_of_pod(flow);
	if (!echo && flow->key.protocol != IP_TCP && flow->key.protocol != IP_UDP)
		return false;
	if (comes_in)
		flow->local_socket = is_made_here(skb, flow);
	else
		flow->local_socket = echo || is_for_local_socket(skb, flow);
	/* Where policy is only watched nothing is refused in the node's name. */
	flow->nobody_listens = !flow->local_socket && !comes_in && !flow->midstream &&
			       flow->settings.policy != ENFORCEMENT_AUDIT;
	return flow->local_socket;
}
