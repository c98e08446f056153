/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#pragma once

/*
 * The contract between the packet programs and the daemon, and the only definition of it: Rust gets these types
 * from bindgen. Fixed-width integers, no holes, enums rather than defines.
 *
 *   ifindex -> endpoint -> slot -> policy word {table, peers, revision}
 *                                     |      \
 *        remote address -> {peers, address} -> class
 *                                     |         |
 *                          {table, class, protocol, port} -> rule {verdict, attribution}
 *
 * Addresses are 16 bytes in network byte order, IPv4 mapped into ::ffff:0:0/96. Ports are in network byte order.
 * Times are nanoseconds of CLOCK_MONOTONIC, or ticks of 2^TICK_SHIFT ns of it.
 * Names are the pod's: ingress goes to the pod, egress comes from it.
 */

#include <linux/types.h>

enum abi_version {
	/*
	 * Names the pin directory: raised with every change of a pinned map's layout. A daemon takes over what one of
	 * another version left, field by field, by the fields' names; so a name never gets another meaning, and the
	 * values of enums are only ever added to.
	 */
	ABI_VERSION = 1,
};

enum abi_limit {
	/* Endpoints of a node: kubelet's default is 110 pods, its tested maximum 500. */
	MAX_ENDPOINTS = 2048,
	/* Two directions an endpoint. */
	MAX_SLOTS = 4096,
	/* Places in front of the endpoints' hash: a power of two, and enough that few interfaces share one. */
	NEAR_ENDPOINTS = 4096,
	/* One event and its ring header. */
	EVENT_BYTES = 88,
	/* 8 MiB hold 95,325 of them. */
	RING_BYTES = 8388608,
	/* Ticks of conntrack_entry.last_seen: 2^30 ns, 1.07 s. */
	TICK_SHIFT = 30,
};

enum direction {
	DIRECTION_INGRESS = 0,
	DIRECTION_EGRESS = 1,
	DIRECTION_COUNT = 2,
};

enum verdict {
	VERDICT_ALLOW = 0,
	VERDICT_DENY = 1,
	VERDICT_COUNT = 2,
};

/*
 * Why a packet passed or not: the one list, all the way to metrics, log and docs/events.md, where the names are
 * these in lower case with dashes and without the prefix. Every packet is counted under exactly one.
 */
enum reason {
	/* Passed. */
	REASON_ESTABLISHED = 0,    /* belongs to a flow that was judged before, and whose policy has not changed since */
	REASON_NOT_ISOLATED = 1,   /* new flow, no policy isolates the pod in this direction */
	REASON_POLICY = 2,         /* new flow, a policy's rule allows it */
	REASON_NODE = 3,           /* new flow between the pod and its own node */
	REASON_SELF = 4,           /* the pod talks to itself */
	REASON_RELATED = 5,        /* ICMP error about a flow that is allowed */
	REASON_NEIGHBOUR = 6,      /* control of the link: ARP, IPv6 neighbour discovery, MLD, IGMP */
	REASON_REVALIDATED = 7,    /* an open flow, judged again after a policy change and still allowed */
	REASON_MIDSTREAM = 8,      /* TCP in mid-stream without an entry; the policy of one direction allows it */
	/* Dropped. */
	REASON_DEFAULT_DENY = 9,   /* policies isolate the pod and none of their rules allows it */
	REASON_SPOOFED = 10,       /* the source is not the pod's own address */
	REASON_NOT_MINE = 11,      /* a unicast frame that is not for this pod: flooded by a bridge */
	REASON_MALFORMED = 12,     /* a header is cut short or contradicts itself */
	REASON_VLAN = 13,          /* VLAN-tagged */
	REASON_ETHERTYPE = 14,     /* neither IPv4, IPv6 nor ARP */
	REASON_MAPPED_ADDRESS = 15, /* an IPv4-mapped address inside an IPv6 header */
	REASON_FRAGMENT = 16,      /* a later IP fragment, whose first one did not pass or was not seen */
	REASON_EXTENSION_HEADER = 17, /* IPv6 extension headers: too many, or of a kind that is not read */
	REASON_CONNTRACK_FULL = 18, /* no room for a new connection */
	REASON_NO_ENDPOINT = 19,   /* the interface is not known: fails closed */
	REASON_FORGED_NEIGHBOUR = 20, /* control of the link for somebody else, or in a router's name */
	REASON_CONNECTION_QUOTA = 21, /* a new connection, and the pod has its share of them */
	REASON_HALF_OPEN_QUOTA = 22, /* a new connection, and the pod has its share of those that nobody answered yet */
	/* About Services: no policy's business, and in no record. */
	REASON_REFUSED = 23,       /* nothing is behind the Service's port: answered with a RST or an ICMP error */
	REASON_NO_BACKEND = 24,    /* no backend of the Service may be used from here */
	REASON_PORT_TAKEN = 25,    /* each backend that was tried has another connection from the pod's port */
	REASON_COUNT = 26,
};

enum protocol_key {
	/* What rules call every protocol that has no ports. */
	PROTOCOL_OTHER = 0,
};

/* --- policy word: one aligned 64-bit store changes a slot's policy ------------------------------------------- */

enum policy_word_layout {
	WORD_TABLE_BITS = 24,   /* bits 0..23: rule table, 0 = not isolated */
	WORD_PEERS_SHIFT = 24,
	WORD_PEERS_BITS = 7,    /* bits 24..30: generation of the peer maps */
	WORD_CIDRS_SHIFT = 31,  /* bit 31: some class depends on a CIDR, so the LPM is asked */
	WORD_REVISION_SHIFT = 32, /* bits 32..63: raised with every store, so no word is ever used twice by a slot */
};

/* --- endpoints ------------------------------------------------------------------------------------------------ */

enum endpoint_flag {
	ENDPOINT_LOG_DENY = 1, /* its Namespace asks for deny records where logging is delegated */
	ENDPOINT_ASSIGNED = 2, /* the CNI plugin told its addresses; for the daemon's next life */
	ENDPOINT_HANDOVER = 4, /* our program may be at a hook twice, by a link and by a filter behind it */
	ENDPOINT_TAKEOVER = 8, /* another version's programs are being replaced, and their newest connections are not here yet */
};

/* 16 bytes in network byte order. */
struct address {
	__u32 word[4];
};

struct endpoint {
	__u32 uid;   /* never used twice on a node */
	__u32 slot;  /* of ingress; egress is the next one */
	__u32 flags; /* enum endpoint_flag */
	__u32 pad;
	struct address v4; /* all zero: none */
	struct address v6; /* all zero: none */
};

/*
 * The hash `endpoints` knows them all, by ifindex. In front of it is the array `near_endpoints`, where each has one
 * possible place, ifindex % NEAR_ENDPOINTS, for whoever comes first: the hash alone costs more than half of an empty
 * program. Written in two steps, first with ifindex 0, then with its own, so that no packet sees half of it; taken
 * away by writing ifindex 0, before the hash's entry goes. An empty place is never wrong, only slower.
 */
struct near_endpoint {
	__u32 ifindex;
	struct endpoint endpoint;
};

/* --- conntrack ------------------------------------------------------------------------------------------------ */

enum conntrack_state {
	CONNTRACK_OPENING = 0, /* only the initiator was seen; TCP: it has not gone on after an answer */
	CONNTRACK_OPEN = 1,    /* both sides were seen */
	CONNTRACK_CLOSING = 2, /* TCP: both FINs, or a RST */
	CONNTRACK_DENIED = 3,  /* was open, and a policy change denies it now */
	CONNTRACK_STREAM = 4,  /* UDP: open, and still going on a tick later: no mere question and answer */
	CONNTRACK_STATE_COUNT = 5,
};

enum conntrack_flag {
	CONNTRACK_FIN_INITIATOR = 1, /* or a RST, in its name */
	CONNTRACK_FIN_RESPONDER = 2,
	CONNTRACK_MIDSTREAM = 4, /* the direction is a guess */
	CONNTRACK_ANSWERED = 16, /* the responder was seen */
	CONNTRACK_LOCAL = 8,     /* with a socket of this node, which was proven */
	CONNTRACK_TRANSLATED = 32, /* goes to a Service, which the pod sees in place of the backend */
	CONNTRACK_ALIAS = 64,    /* no flow of its own: leads from the Service to the backend, under which the flow is */
	CONNTRACK_HAIRPIN = 128, /* the backend is the pod itself */
};

/*
 * ICMP echo: the identifier is the initiator's port, the next number the responder's. Other protocols: ports are 0.
 *
 * A flow to a Service has two entries, so that a packet of either direction needs one lookup:
 *
 *   what the pod sends    {pod, Service}  ALIAS       nat: the backend
 *   what comes back       {pod, backend}  TRANSLATED  nat: the Service; this one is judged, times out and holds the state
 *
 * A pod that reaches itself through a Service talks to the Service on both sides: it sees its client's port there.
 *
 *   what its client sends {pod, client's port, Service, its port}            ALIAS      | HAIRPIN  nat: the pod as backend
 *   what its server sends {pod, server's port, Service, client's port}       TRANSLATED | HAIRPIN  nat: the Service
 *
 * An alias repeats word and last_seen of its entry: while both are the current ones the entry is not asked.
 */
struct conntrack_key {
	__u32 endpoint; /* uid */
	struct address pod;
	struct address remote;
	__u16 pod_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

struct conntrack_entry {
	__u64 word;      /* the policy word that allowed it */
	__u32 last_seen; /* ticks, written at most once a tick */
	__u8 initiator;  /* enum direction of the first packet: whose slot judges the flow */
	__u8 state;      /* enum conntrack_state */
	__u8 flags;      /* enum conntrack_flag */
	__u8 pad;
	struct address nat; /* of a translated flow */
	__u16 nat_port;
	__u8 nat_pad[6];
};

/*
 * What an endpoint holds in the connection table and in the ring (index: slot / 2). Of the table programs only add; the
 * daemon, each time that it has read it, writes by how much they are ahead of what is there. So whatever is missed, by
 * a race or a kill, counts until the next sweep and no longer.
 */
struct usage {
	__u64 made;         /* entries that programs made */
	__u64 half_opened;  /* entries that became CONNTRACK_OPENING */
	__u64 half_closed;  /* entries that ceased to be */
	__u64 gone;         /* of made, those that are there no more */
	__u64 half_gone;    /* of half_opened less half_closed */
	struct conntrack_key swept;
	__u32 is_swept; /* swept is the key of an entry that the daemon takes out, and puts back if it turns out to be new */
	__u64 events_since; /* where in the ring the count of events began; anew, beyond half of it, when the reader has come there */
	__u32 events;       /* allows that left one since */
	__u32 pad;
};

/* --- peers and rules ------------------------------------------------------------------------------------------ */

enum peer_flag {
	PEER_LOCAL = 1, /* an address of this node */
	PEER_NODE = 2,  /* an address of any node, this one too: Services' node ports are behind it */
};

struct peer_key {
	__u32 peers;
	struct address address;
};

struct cidr_key {
	__u32 prefixlen; /* 32 + prefix of the 16-byte address */
	__u32 peers;
	struct address address;
};

struct peer {
	__u32 class; /* 0: matches no selector */
	__u32 flags; /* enum peer_flag */
};

/* protocol is TCP, UDP, SCTP or PROTOCOL_OTHER; port 0 is any port. */
struct rule_key {
	__u32 table;
	__u32 class;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

struct range_key {
	__u32 prefixlen; /* 80 + prefix of the port */
	__u32 table;
	__u32 class;
	__u8 protocol;
	__u8 pad;
	__u16 port;
};

enum rule_flag {
	RULE_ALLOW = 1,
	RULE_LOG = 2,    /* one of its policies asks for records where logging is delegated */
	RULE_RANGES = 4, /* any-port entries: ask the ranges of this {table, class, protocol} first */
};

struct rule {
	__u32 attribution; /* the policies and rules that allow it; 0 without RULE_ALLOW */
	__u32 flags;       /* enum rule_flag */
};

/* --- Services ------------------------------------------------------------------------------------------------- */

enum service_flag {
	SERVICE_TRANSLATE = 1, /* ours to translate; else kube-proxy's, and policy judges all its backends */
	SERVICE_DROP = 2,      /* without a backend it is silent (none is local, and only local ones count), not refused */
	SERVICE_JUDGE_ADDRESS = 4, /* anybody may have named the address: policy judges it as well as the backends */
};

/*
 * A Service's front: one address, port and protocol. Port 0 with protocol 0 is the address itself, there for every
 * address that we translate: what asks for a port that is not listed is refused. The unspecified address stands for
 * every node's of its family: NodePorts.
 */
struct service_key {
	struct address address;
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

/*
 * A list of backends never changes: another list is written under a fresh id, then the service names it by one update
 * of its entry, and the old one goes when no packet can still hold its id.
 */
struct service {
	__u32 id;    /* of this front; never used twice on a node */
	__u32 list;
	__u32 count; /* backends in the list: index 0 .. count - 1 */
	__u32 flags; /* enum service_flag */
	__u32 affinity; /* ticks for which a client stays with its backend; 0: no affinity */
};

struct backend_key {
	__u32 list;
	__u32 index;
};

struct backend {
	struct address address;
	__u16 port;
	__u16 pad;
};

/* ClientIP affinity: which backend a client was given last. */
struct affinity_key {
	__u32 service; /* id */
	struct address client;
};

struct affinity {
	struct backend backend;
	__u32 last_used; /* ticks */
};

/* --- settings that change while the programs run -------------------------------------------------------------- */

enum log_mode {
	LOG_OFF = 0,
	LOG_ALL = 1,
	LOG_DELEGATED = 2,
};

enum enforcement {
	ENFORCEMENT_AUDIT = 0, /* count and report, drop nothing */
	ENFORCEMENT_ENFORCE = 1,
};

/* Each field is stored on its own through a mapping of the array; a packet reads the generation once. */
struct settings {
	__u32 generation;
	__u8 log_allow;    /* enum log_mode */
	__u8 log_deny;     /* enum log_mode */
	__u8 policy;       /* enum enforcement, of NetworkPolicy */
	__u8 source_check; /* enum enforcement, of REASON_SPOOFED */
};

/* --- accounting ----------------------------------------------------------------------------------------------- */

/* Per CPU and generation (index: generation & 1); cleared when the closed generation has been written. */
struct counters {
	__u64 packets[DIRECTION_COUNT][REASON_COUNT];
	__u64 due[DIRECTION_COUNT][VERDICT_COUNT]; /* verdicts that ask for a record */
	__u64 ring_full[DIRECTION_COUNT];          /* allows whose event found no room, or not for this endpoint */
};

/* One denied pair in a generation. */
struct deny_key {
	__u32 generation;
	__u32 endpoint; /* uid */
	__u32 table;    /* the table that denied it: names the isolating policies */
	struct address remote;
	__u16 port;     /* the destination port; 0 where there are none */
	__u8 protocol;
	__u8 direction;
	__u8 reason;
	__u8 pad[3];
};

struct deny_entry {
	__u64 count;
	__u64 first;
	__u64 last;
	struct address pod;
	__u16 source_port; /* of the first */
	__u16 service_port;
	__u32 pad;
	struct address service; /* that the first was sent to; zero: to none that is translated here */
};

/* An endpoint's share of the deny table (index: slot * 2 + (generation & 1)); behind them, what all use (MAX_SLOTS). */
struct deny_share {
	__u64 overflow; /* denies that found no room: told as lost */
	__u32 used;
	__u32 told;     /* denies that left an event, where each is told */
};

/* One allowed connection, or one denied packet where each is told, in the ring. */
struct event {
	__u64 time;
	__u32 endpoint; /* uid */
	__u32 decided_by; /* an allow: the attribution; a deny: the table, which names the isolating policies */
	__u32 generation;
	__u16 service_port;
	__u8 log_mode; /* enum log_mode of its verdict, when it was decided */
	__u8 pad;
	struct address pod;
	struct address remote;
	__u16 pod_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 direction;
	__u8 reason;
	__u8 verdict; /* enum verdict */
	struct address service; /* that it was sent to; zero: to none that is translated here */
};

/* --- what only the daemon writes, one value each -------------------------------------------------------------- */

/* The ids that were given out last. */
struct id_counters {
	__u64 epoch; /* made with the maps, and stands in every `seq`: numbers of other maps mean nothing here */
	__u32 endpoint;
	__u32 table;
	__u32 class;
	__u32 attribution;
	__u32 peers;
	__u32 service;
};

enum loss_cause {
	LOSS_TABLE_FULL = 0,
	LOSS_DISK_FULL = 1,
	LOSS_WRITE_ERROR = 2,
	LOSS_COUNT = 3,
};

enum told {
	TOLD_EVENT = 1,
	TOLD_GENERATION = 2,
};

/* What was counted and written since the maps were made, or those before them that they took over from. */
struct ledger {
	__u64 ring_position;     /* up to which events are in `written` */
	__u32 closed_generation; /* the last whose counters are in here; means nothing while closings is 0 */
	__u32 is_writing;        /* 1 from the first line of a life until it ended in order, with all entered that it wrote */
	__u64 closings;          /* generations closed */
	__u64 told;              /* the last line that is entered: an event's position, or a closed generation */
	__u64 file;              /* inode of the file that was written to last; 0: none yet */
	__u32 told_kind;         /* enum told; 0: no line is entered yet */
	__u32 is_begun;          /* 1 when a line stands in the log, and with it what it has to say of an account before */
	__u64 packets[DIRECTION_COUNT][REASON_COUNT];
	__u64 due[DIRECTION_COUNT][VERDICT_COUNT];
	__u64 written[DIRECTION_COUNT][VERDICT_COUNT];
	__u64 lost[DIRECTION_COUNT][VERDICT_COUNT][LOSS_COUNT];    /* told by a line or not yet */
	__u64 untold[DIRECTION_COUNT][VERDICT_COUNT][LOSS_COUNT];  /* of these, those that no line tells of: it could not be written */
	__u64 carried[DIRECTION_COUNT][VERDICT_COUNT][LOSS_COUNT]; /* of these, those that the next generation to be closed tells
								    * of; set before any line of it is written, so that its
								    * lines are the same after a crash */
	__u64 untold_since;  /* wall time of the oldest, nanoseconds since the epoch */
	__u64 carried_since;
	__u64 deleted_file;  /* the old file that was deleted last, and what stood in all that were: */
	__u64 deleted_bytes;
	__u64 deleted_records[3]; /* by disposition */
	__u64 former; /* epoch of the maps whose ledger is in here too; 0: of none */
};

_Static_assert(sizeof(struct address) == 16, "address");
_Static_assert(sizeof(struct endpoint) == 48, "endpoint");
_Static_assert(sizeof(struct near_endpoint) == 52, "near_endpoint");
_Static_assert(sizeof(struct conntrack_key) == 44, "a hole in the key would make equal flows differ");
_Static_assert(sizeof(struct conntrack_entry) == 40, "conntrack_entry");
_Static_assert(sizeof(struct usage) == 104, "usage");
_Static_assert(sizeof(struct peer_key) == 20, "peer_key");
_Static_assert(sizeof(struct cidr_key) == 24, "cidr_key");
_Static_assert(sizeof(struct rule_key) == 12, "rule_key");
_Static_assert(sizeof(struct range_key) == 16, "range_key");
_Static_assert(sizeof(struct service_key) == 20, "service_key");
_Static_assert(sizeof(struct service) == 20, "service");
_Static_assert(sizeof(struct backend_key) == 8, "backend_key");
_Static_assert(sizeof(struct backend) == 20, "backend");
_Static_assert(sizeof(struct affinity_key) == 20, "affinity_key");
_Static_assert(sizeof(struct affinity) == 24, "affinity");
_Static_assert(sizeof(struct settings) == 8, "settings");
_Static_assert(sizeof(struct deny_key) == 36, "deny_key");
_Static_assert(sizeof(struct deny_entry) == 64, "deny_entry");
_Static_assert(sizeof(struct deny_share) == 16, "deny_share");
_Static_assert(sizeof(struct event) + 8 == EVENT_BYTES, "event, and the header that a ring puts before each");
