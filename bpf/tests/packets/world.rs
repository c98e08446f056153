// SPDX-License-Identifier: Apache-2.0
//! One pod with an address of each family, isolated both ways, its peers, and the tables that say who may do what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wardline_bpf::PolicyWord;
use wardline_bpf::abi::{
    Affinity, Backend, ConntrackEntry, ConntrackKey, ConntrackState, Direction, Endpoint, Enforcement, LogMode,
    PEER_LOCAL, Peer, RULE_ALLOW, RULE_LOG, RULE_RANGES, RangeKey, Rule, RuleKey, Service, ServiceKey, Settings,
};
use wardline_bpf::frame::protocol::{SCTP, TCP, UDP};
use wardline_bpf::sandbox::{Sandbox, Sizes};

/// Loopback, which every network namespace has.
pub const IFINDEX: u32 = 1;
pub const UID: u32 = 7;
pub const SLOT: u32 = 10;

pub const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 10));
pub const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10));
/// Class 1.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 20));
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x20));
/// In no map: class 0.
pub const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));
pub const STRANGER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9));
/// In 198.51.100.0/24, class 2 by CIDR.
pub const OUTSIDER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 4));
/// Addresses of the node.
pub const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
pub const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));

/// What isolates the pod, a table for each direction.
pub const INGRESS_TABLE: u32 = 100;
pub const EGRESS_TABLE: u32 = 200;
pub const PEERS: u32 = 3;

/// Attributions of the rules below.
pub const CLIENT_TO_80: u32 = 11;
pub const CLIENT_TO_RANGE: u32 = 12;
pub const ANY_UDP: u32 = 13;
pub const CLIENT_OTHER: u32 = 14;
pub const OUTSIDER_TO_80: u32 = 15;
pub const ANYONE_TO_9000: u32 = 16;
pub const POD_TO_443: u32 = 21;

/// A pod and its programs.
#[derive(Debug)]
pub struct World {
    pub sandbox: Sandbox,
    pub settings: Settings,
    revision: u32,
    lists: u32,
}

fn backend(address: &SocketAddr) -> Backend {
    Backend {
        address: address.ip().into(),
        port: address.port().to_be(),
        pad: 0,
    }
}

pub fn port(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

pub fn table_of(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => INGRESS_TABLE,
        Direction::Egress => EGRESS_TABLE,
    }
}

impl World {
    pub fn new(sizes: Sizes) -> Self {
        let sandbox = Sandbox::load(sizes).expect("the programs load: this test needs root");
        let settings = Settings {
            generation: 4,
            log_allow: LogMode::All.into(),
            log_deny: LogMode::All.into(),
            policy: Enforcement::Enforce.into(),
            source_check: Enforcement::Enforce.into(),
        };
        let mut world = Self {
            sandbox,
            settings,
            revision: 0,
            lists: 0,
        };
        world.set_endpoint(0);
        world.change_settings(|_| ());
        world.set_table(Direction::Ingress, INGRESS_TABLE);
        world.set_table(Direction::Egress, EGRESS_TABLE);
        world.fill_peers();
        world.fill_rules();
        world
    }

    fn fill_peers(&self) {
        let set = |address, class, flags| self.sandbox.set_peer(PEERS, address, Peer { class, flags }).unwrap();
        for client in [CLIENT, CLIENT6] {
            set(client, 1, 0);
        }
        for node in [NODE, NODE6] {
            set(node, 0, PEER_LOCAL);
        }
        let outside = Ipv4Addr::new(198, 51, 100, 0).into();
        self.sandbox
            .set_cidr(PEERS, outside, 24, Peer { class: 2, flags: 0 })
            .unwrap();
    }

    fn fill_rules(&self) {
        let allow = |attribution| Rule {
            attribution,
            flags: RULE_ALLOW,
        };
        let marker = Rule {
            attribution: 0,
            flags: RULE_RANGES,
        };
        self.rule(
            INGRESS_TABLE,
            1,
            TCP,
            80,
            Rule {
                flags: RULE_ALLOW | RULE_LOG,
                ..allow(CLIENT_TO_80)
            },
        );
        self.rule(INGRESS_TABLE, 1, TCP, 0, marker);
        // 8000 to 8015: a prefix of 12 bits.
        self.range(INGRESS_TABLE, 1, TCP, (8000, 12), allow(CLIENT_TO_RANGE));
        for class in [0, 1, 2] {
            self.rule(INGRESS_TABLE, class, UDP, 0, allow(ANY_UDP));
            self.rule(INGRESS_TABLE, class, TCP, 9000, allow(ANYONE_TO_9000));
        }
        self.rule(INGRESS_TABLE, 1, 0, 0, allow(CLIENT_OTHER));
        self.rule(INGRESS_TABLE, 1, SCTP, 0, allow(CLIENT_OTHER));
        self.rule(INGRESS_TABLE, 2, TCP, 80, allow(OUTSIDER_TO_80));
        self.rule(EGRESS_TABLE, 1, TCP, 443, allow(POD_TO_443));
        self.rule(EGRESS_TABLE, 1, UDP, 53, allow(POD_TO_443));
        self.rule(EGRESS_TABLE, 1, 0, 0, allow(POD_TO_443));
    }

    pub fn rule(&self, table: u32, class: u32, protocol: u8, port: u16, rule: Rule) {
        self.sandbox
            .set_rule(
                &RuleKey {
                    table,
                    class,
                    port: port.to_be(),
                    protocol,
                    pad: 0,
                },
                rule,
            )
            .unwrap();
    }

    fn range(&self, table: u32, class: u32, protocol: u8, (port, prefix): (u16, u32), rule: Rule) {
        let key = RangeKey {
            prefixlen: 80 + prefix,
            table,
            class,
            protocol,
            pad: 0,
            port: port.to_be(),
        };
        self.sandbox.set_range(&key, rule).unwrap();
    }

    /// A front and what stands behind it. Each change writes another list, as the daemon does.
    pub fn set_service(&mut self, protocol: u8, front: SocketAddr, flags: u32, behind: &[SocketAddr]) {
        self.set_sticky_service(protocol, front, flags, behind, 0);
    }

    /// With affinity, for that many ticks.
    pub fn set_sticky_service(
        &mut self,
        protocol: u8,
        front: SocketAddr,
        flags: u32,
        behind: &[SocketAddr],
        affinity: u32,
    ) {
        self.lists += 1;
        let backends: Vec<Backend> = behind.iter().map(backend).collect();
        let service = Service {
            id: u32::from(front.port()),
            list: self.lists,
            count: u32::try_from(backends.len()).unwrap(),
            flags,
            affinity,
        };
        let key = ServiceKey {
            address: front.ip().into(),
            port: front.port().to_be(),
            protocol,
            pad: 0,
        };
        self.sandbox.set_service(&key, service, &backends).unwrap();
    }

    pub fn set_endpoint(&self, flags: u32) {
        let endpoint = Endpoint {
            uid: UID,
            slot: SLOT,
            flags,
            pad: 0,
            v4: POD.into(),
            v6: POD6.into(),
        };
        self.sandbox.set_endpoint(IFINDEX, &endpoint).unwrap();
    }

    /// Another pod at the same interface, with the same policies and addresses; 0 is the pod itself.
    pub fn pod(&mut self, number: u32) -> Endpoint {
        let pod = Endpoint {
            uid: UID + number,
            slot: SLOT + 2 * number,
            v4: POD.into(),
            v6: POD6.into(),
            ..Endpoint::default()
        };
        for direction in Direction::ALL {
            let word = PolicyWord {
                table: table_of(direction),
                peers: PEERS,
                cidrs: true,
                revision: 1,
            };
            let slot = pod.slot + u32::from(u8::from(direction));
            self.sandbox.set_word(slot, word.pack().unwrap()).unwrap();
        }
        pod
    }

    /// A pod without an address of IPv6.
    pub fn forget_ipv6(&self) {
        let endpoint = Endpoint {
            uid: UID,
            slot: SLOT,
            v4: POD.into(),
            ..Endpoint::default()
        };
        self.sandbox.set_endpoint(IFINDEX, &endpoint).unwrap();
    }

    /// Whether the pod may open connections to its clients' port 443.
    pub fn change_rule_of_443(&mut self, allow: bool) {
        let flags = if allow { RULE_ALLOW } else { 0 };
        self.rule(
            EGRESS_TABLE,
            1,
            TCP,
            443,
            Rule {
                attribution: POD_TO_443,
                flags,
            },
        );
        self.set_table(Direction::Egress, EGRESS_TABLE);
    }

    /// Whether clients may open connections to the pod's port 80.
    pub fn change_rule_of_80(&mut self, allow: bool) {
        let flags = if allow { RULE_ALLOW | RULE_LOG } else { 0 };
        self.rule(
            INGRESS_TABLE,
            1,
            TCP,
            80,
            Rule {
                attribution: CLIENT_TO_80,
                flags,
            },
        );
        self.set_table(Direction::Ingress, INGRESS_TABLE);
    }

    /// Whether anyone may send datagrams to the pod.
    pub fn change_rule_of_udp(&mut self, allow: bool) {
        let flags = if allow { RULE_ALLOW } else { 0 };
        self.rule(
            INGRESS_TABLE,
            1,
            UDP,
            0,
            Rule {
                attribution: ANY_UDP,
                flags,
            },
        );
        self.set_table(Direction::Ingress, INGRESS_TABLE);
    }

    /// Another policy for the pod; 0 isolates it no more. Every change has a revision of its own.
    pub fn set_table(&mut self, direction: Direction, table: u32) {
        self.set_word(
            direction,
            PolicyWord {
                table,
                peers: PEERS,
                cidrs: true,
                revision: 0,
            },
        );
    }

    pub fn set_word(&mut self, direction: Direction, word: PolicyWord) {
        self.revision += 1;
        let slot = SLOT + u32::from(u8::from(direction));
        let packed = PolicyWord {
            revision: self.revision,
            ..word
        }
        .pack()
        .unwrap();
        self.sandbox.set_word(slot, packed).unwrap();
    }

    pub fn change_settings(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.sandbox.set_settings(self.settings).unwrap();
    }

    /// Lets time pass for all entries.
    pub fn age(&self, ticks: u32) {
        for (key, entry) in self.sandbox.conntrack().unwrap() {
            let aged = ConntrackEntry {
                last_seen: entry.last_seen.wrapping_sub(ticks),
                ..entry
            };
            self.sandbox.set_conntrack(&key, &aged).unwrap();
        }
    }

    /// Lets time pass for what clients were given.
    pub fn age_affinities(&self, ticks: u32) {
        for (key, affinity) in self.sandbox.affinities().unwrap() {
            let aged = Affinity {
                last_used: affinity.last_used.wrapping_sub(ticks),
                ..affinity
            };
            self.sandbox.set_affinity(&key, aged).unwrap();
        }
    }

    /// Takes entries away, as the daemon does.
    pub fn forget(&self, is_gone: fn(&ConntrackKey) -> bool) {
        for (key, _) in self.sandbox.conntrack().unwrap() {
            if is_gone(&key) {
                self.sandbox.remove_conntrack(&key).unwrap();
            }
        }
    }

    /// Is a flow between these tracked?
    pub fn has_entry(&self, remote: IpAddr, pod_port: u16, remote_port: u16) -> bool {
        self.sandbox.conntrack().unwrap().iter().any(|(key, _)| {
            (
                IpAddr::from(key.remote),
                u16::from_be(key.pod_port),
                u16::from_be(key.remote_port),
            ) == (remote, pod_port, remote_port)
        })
    }

    /// The one entry that there is.
    #[track_caller]
    pub fn entry(&self) -> ConntrackEntry {
        let entries = self.sandbox.conntrack().unwrap();
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0].1
    }

    #[track_caller]
    /// The state of the flow with that remote port.
    pub fn state_of(&self, remote_port: u16) -> Option<ConntrackState> {
        let entries = self.sandbox.conntrack().unwrap();
        let mut of_port = entries
            .iter()
            .filter(|(key, _)| u16::from_be(key.remote_port) == remote_port);
        of_port
            .next()
            .and_then(|(_, entry)| ConntrackState::try_from(entry.state).ok())
    }

    pub fn assert_entries(&self, count: usize) {
        let entries = self.sandbox.conntrack().unwrap();
        assert_eq!(entries.len(), count, "{entries:?}");
    }
}
