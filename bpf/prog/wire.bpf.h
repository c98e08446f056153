/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Headers as they are on the wire, every field in network byte order. Bytes rather than bit-fields, whose order
 * depends on the compiler's target.
 */

#include <linux/types.h>
#include <bpf/bpf_endian.h>

enum ethertype {
	ETHERTYPE_IPV4 = 0x0800,
	ETHERTYPE_ARP = 0x0806,
	ETHERTYPE_VLAN = 0x8100,
	ETHERTYPE_IPV6 = 0x86dd,
	ETHERTYPE_QINQ = 0x88a8,
};

/* IANA protocol numbers: those that are read here. */
enum ip_protocol {
	IP_HOP_BY_HOP = 0,
	IP_ICMP = 1,
	IP_IGMP = 2,
	IP_TCP = 6,
	IP_UDP = 17,
	IP_ROUTING = 43,
	IP_FRAGMENT = 44,
	IP_AUTHENTICATION = 51,
	IP_ICMPV6 = 58,
	IP_DESTINATION_OPTIONS = 60,
	IP_SCTP = 132,
	IP_MOBILITY = 135,
	IP_HIP = 139,
	IP_SHIM6 = 140,
};

enum ipv4_option {
	IPV4_OPTION_END = 0,
	IPV4_OPTION_NOTHING = 1, /* these two are one byte long */
	IPV4_OPTION_LOOSE_ROUTE = 131,
	IPV4_OPTION_STRICT_ROUTE = 137,
};

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_REDIRECT = 5,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
};

enum icmpv6_type {
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_PARAMETER_PROBLEM = 4, /* errors are 1 to 4 */
	ICMPV6_ECHO_REQUEST = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_MEMBERSHIP_QUERY = 130,
	ICMPV6_MEMBERSHIP_REPORT = 131,
	ICMPV6_MEMBERSHIP_DONE = 132,
	ICMPV6_ROUTER_SOLICITATION = 133,
	ICMPV6_ROUTER_ADVERTISEMENT = 134,
	ICMPV6_NEIGHBOUR_SOLICITATION = 135,
	ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136,
	ICMPV6_REDIRECT = 137,
	ICMPV6_MEMBERSHIP_REPORT_V2 = 143,
};

enum igmp_type {
	IGMP_QUERY = 0x11,
	IGMP_REPORT_V1 = 0x12,
	IGMP_REPORT_V2 = 0x16,
	IGMP_LEAVE = 0x17,
	IGMP_REPORT_V3 = 0x22,
};

enum ipv6_option_type {
	OPTION_ROUTER_ALERT = 5,
};

enum neighbour_option_type {
	OPTION_SOURCE_HARDWARE = 1,
	OPTION_TARGET_HARDWARE = 2,
};

/* Codes of "unreachable". */
enum icmp_code {
	ICMP_PORT_UNREACHABLE = 3,
	ICMPV6_PORT_UNREACHABLE = 4,
};

struct ethernet_header {
	__u8 destination[6];
	__u8 source[6];
	__u16 type;
};

struct ipv4_header {
	__u8 version_length; /* length in words of 4 bytes */
	__u8 service;
	__u16 total_length;
	__u16 id;
	__u16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
};

struct ipv6_header {
	__u8 version_class;
	__u8 flow[3];
	__u16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	__u32 source[4];
	__u32 destination[4];
};

/* RFC 8200: the start of every extension header. Lengths are in units of 8 bytes beyond the first 8, AH's of 4. */
struct extension_header {
	__u8 next_header;
	__u8 length;
	__u8 data[6];
};

struct fragment_header {
	__u8 next_header;
	__u8 reserved;
	__u16 offset; /* in bytes, a multiple of 8; bit 0: more fragments */
	__u32 id;
};

struct tcp_header {
	__u16 source;
	__u16 destination;
	__u32 sequence;
	__u32 acknowledgement;
	__u8 offset; /* high half: the header's length in words of 4 bytes */
	__u8 flags;
	__u16 window;
	__u16 checksum;
	__u16 urgent;
};

struct udp_header {
	__u16 source;
	__u16 destination;
	__u16 length;
	__u16 checksum;
};

/* The eight bytes that every ICMP and ICMPv6 message has; id is an echo's. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u16 id;
	__u16 sequence;
};

/* RFC 826, for IPv4 over Ethernet. */
struct arp_message {
	__u16 hardware;
	__u16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__u16 operation;
	__u8 sender_hardware[6];
	__u8 sender[4];
	__u8 target_hardware[6];
	__u8 target[4];
};

enum wire_size {
	ETHERNET_BYTES = 14,
	IPV4_BYTES = 20,
	IPV4_OPTION_BYTES = 40, /* at most */
	IPV6_BYTES = 40,
	TCP_BYTES = 20,
	UDP_BYTES = 8,
	SCTP_BYTES = 12,
	ICMP_BYTES = 8,
	IGMP_BYTES = 8,
	/* Ethernet, the longest IPv4 header and TCP: what parse reads straight from the packet. */
	HEADER_BYTES = 94,
	/* Ethernet, IPv6 and as many bytes of extension headers as are walked. */
	MAX_PAYLOAD_OFFSET = 310,
};

/* Of the fields that are rewritten, in their headers. */
enum wire_offset {
	IPV4_CHECKSUM = 10,
	IPV4_SOURCE = 12,
	IPV4_DESTINATION = 16,
	IPV6_SOURCE = 8,
	IPV6_DESTINATION = 24,
	TCP_CHECKSUM = 16,
	UDP_CHECKSUM = 6,
	ICMP_CHECKSUM = 2,
};

_Static_assert(sizeof(struct ethernet_header) == ETHERNET_BYTES, "ethernet_header");
_Static_assert(sizeof(struct ipv4_header) == IPV4_BYTES, "ipv4_header");
_Static_assert(sizeof(struct ipv6_header) == IPV6_BYTES, "ipv6_header");
_Static_assert(sizeof(struct extension_header) == 8, "extension_header");
_Static_assert(sizeof(struct fragment_header) == 8, "fragment_header");
_Static_assert(sizeof(struct tcp_header) == TCP_BYTES, "tcp_header");
_Static_assert(sizeof(struct arp_message) == 28, "arp_message");
