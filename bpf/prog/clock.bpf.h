/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * The time of a packet, as exact as a scheduler tick: enough for timeouts of seconds.
 *
 * Asking the kernel is a call, even for its coarse clock, and costs as much as half of an empty program; jiffies are
 * one load, but in a unit and from a start that only the kernel knows. So each CPU keeps the time that it read last,
 * and reads it again when the jiffies have moved.
 */

#include "flow.bpf.h"

struct clock_reading {
	__u64 jiffies;
	__u64 now;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock_reading);
} clock SEC(".maps");

/* ns of CLOCK_MONOTONIC. */
static __always_inline __u64 coarse_now(void)
{
	__u64 jiffies = bpf_jiffies64();
	__u32 zero = 0;
	struct clock_reading *reading = bpf_map_lookup_elem(&clock, &zero);

	if (!reading)
		return bpf_ktime_get_ns();
	if (reading->jiffies != jiffies) {
		reading->now = bpf_ktime_get_ns();
		reading->jiffies = jiffies;
	}
	return reading->now;
}

static __always_inline void set_time(struct flow *flow)
{
	flow->now = coarse_now();
	flow->tick = flow->now >> TICK_SHIFT;
}
