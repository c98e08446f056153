/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * The arithmetic of the Internet checksum (RFC 1071): sums modulo 0xffff of 16-bit words in network byte order, which
 * may be added as 32-bit words or in any other order. 0 has two forms there, 0 and 0xffff; what is made of anything but
 * zeros is never 0.
 */

#include "flow.bpf.h"

/* Of a few 32-bit words. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Of two that are folded. */
static __always_inline __u16 add_folded(__u16 a, __u16 b)
{
	__u32 sum = a + b;

	return sum + (sum >> 16);
}

/* What becomes of a sum over `from` where `to` stands in its place. */
static __always_inline __u16 port_change(__u16 from, __u16 to)
{
	return add_folded(to, ~from);
}

static __always_inline __u16 address_change(const struct address *from, const struct address *to)
{
	__u64 sum = (__u64)to->word[3] + (__u32)~from->word[3];

	/* What maps an IPv4 address is the same in both. */
	if (!is_ipv4(to))
		for (int i = 0; i < 3; i++)
			sum += (__u64)to->word[i] + (__u32)~from->word[i];
	return fold(sum);
}

/* No sum tells it from no change. */
static __always_inline bool is_zero_change(__u16 change)
{
	return !change || change == 0xffff;
}

/* A checksum over what has changed that much (RFC 1624, equation 3). */
static __always_inline __u16 changed_checksum(__u16 checksum, __u16 change)
{
	return ~add_folded(~checksum, change);
}
