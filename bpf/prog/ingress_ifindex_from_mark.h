/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * Included ahead of everything where the feature of this name is on: before 5.16 BPF_PROG_TEST_RUN takes no
 * ingress_ifindex, and all packets look as if this host had made them. It takes a mark, which the programs never read.
 */

#include <linux/bpf.h>

#define ingress_ifindex mark
