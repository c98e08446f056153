/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */

/*
 * No program: its BTF tells where each field of what outlives a daemon lies, for daemons of other versions. Of a ring
 * the kernel keeps no types, and reading those of maps takes more rights than a daemon has.
 */

#include "abi.h"

struct address address;
struct endpoint endpoint;
struct conntrack_key conntrack_key;
struct conntrack_entry conntrack_entry;
struct usage usage;
struct service_key service_key;
struct service service;
struct backend_key backend_key;
struct backend backend;
struct affinity_key affinity_key;
struct affinity affinity;
struct settings settings;
struct counters counters;
struct deny_key deny_key;
struct deny_entry deny_entry;
struct deny_share deny_share;
struct event event;
struct id_counters id_counters;
struct ledger ledger;
