// SPDX-License-Identifier: Apache-2.0
//! Whether the programs judge right in this kernel: a few packets through programs and tables of their own, by test run.
//! No packet of a pod meets them, and nothing of it is counted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use libbpf_rs::ErrorKind;
use wardline_bpf::abi::{Direction, Endpoint, Enforcement, LogMode, Peer, RULE_ALLOW, Rule, RuleKey, Settings};
use wardline_bpf::frame::{self, flag};
use wardline_bpf::sandbox::{Sandbox, Sizes};
use wardline_bpf::test_run::Frame;
use wardline_bpf::{PolicyWord, PolicyWordError};

/// Loopback: it exists everywhere, and the programs are not attached to it.
const IFINDEX: u32 = 1;
const PORT: u16 = 8080;
const TCP: u8 = 6;
/// Ids in the tables.
const TABLE: u32 = 1;
const PEERS: u32 = 1;
const FRIENDS: u32 = 1;
const STRANGERS: u32 = 2;

const ATTEMPTS: usize = 3;
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    #[error("failed to load programs for a test: {0:#}")]
    Load(#[from] libbpf_rs::Error),
    #[error(transparent)]
    Word(#[from] PolicyWordError),
    #[error("a packet {what} was {}", if *passed { "let through" } else { "dropped" })]
    Verdict { what: String, passed: bool },
}

#[derive(Clone, Copy, Debug)]
struct Family {
    name: &'static str,
    pod: IpAddr,
    friend: IpAddr,
    stranger: IpAddr,
}

/// Of the ranges for documentation.
const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        pod: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        friend: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
        stranger: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    },
    Family {
        name: "IPv6",
        pod: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        friend: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
        stranger: IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2)),
    },
];

/// Runs it: packets that a policy allows pass, those of a stranger and those to another port are dropped. Returns how many
/// there were.
///
/// Before 5.16 a test run cannot say that a packet came in through an interface, and what a node sends to its own pods
/// always passes: there only what pods send is tried.
///
/// # Errors
/// The first packet that is not judged as it should be.
pub fn self_test() -> Result<usize, SelfTestError> {
    let sandbox = load()?;
    fill(&sandbox)?;
    let mut count = 0;
    for family in FAMILIES {
        for direction in [Direction::Egress, Direction::Ingress] {
            for (what, remote, port, passes) in [
                ("that its policy allows", family.friend, PORT, true),
                ("of a stranger", family.stranger, PORT, false),
                ("to a port that no rule names", family.friend, PORT + 1, false),
            ] {
                let (pod, remote) = (SocketAddr::new(family.pod, port), SocketAddr::new(remote, port));
                let (from, to) = match direction {
                    Direction::Ingress => (SocketAddr::new(remote.ip(), 40_000), pod),
                    Direction::Egress => (SocketAddr::new(pod.ip(), 40_000), remote),
                };
                let frame = frame::tcp(from, to, flag::SYN);
                let frame = Frame {
                    ingress_ifindex: if direction == Direction::Ingress { IFINDEX } else { 0 },
                    ..Frame::forwarded(&frame, IFINDEX)
                };
                let outcome = match sandbox.run(direction, frame) {
                    Err(error) if direction == Direction::Ingress && error.kind() == ErrorKind::InvalidInput => {
                        continue;
                    }
                    outcome => outcome?,
                };
                if outcome.passed() != passes || outcome.dropped() == passes {
                    return Err(SelfTestError::Verdict {
                        what: format!("{what}, {} {direction:?}", family.name),
                        passed: outcome.passed(),
                    });
                }
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The kernel may be short of memory, or of the verifier's time, for a moment.
fn load() -> Result<Sandbox, SelfTestError> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match Sandbox::load(Sizes::default()) {
            Err(error) if left > 0 => {
                tracing::warn!(%error, "failed to load programs for a test; trying again");
                std::thread::sleep(RETRY);
            }
            loaded => return Ok(loaded?),
        }
    }
}

/// One policy for both directions: friends may use one port.
fn fill(sandbox: &Sandbox) -> Result<(), SelfTestError> {
    let word = PolicyWord {
        table: TABLE,
        peers: PEERS,
        cidrs: false,
        revision: 1,
    };
    for slot in [0, 1] {
        sandbox.set_word(slot, word.pack()?)?;
    }
    for family in FAMILIES {
        for (address, class) in [(family.friend, FRIENDS), (family.stranger, STRANGERS)] {
            sandbox.set_peer(PEERS, address, Peer { class, flags: 0 })?;
        }
    }
    let rule = RuleKey {
        table: TABLE,
        class: FRIENDS,
        port: PORT.to_be(),
        protocol: TCP,
        pad: 0,
    };
    let allow = Rule {
        attribution: 1,
        flags: RULE_ALLOW,
    };
    sandbox.set_rule(&rule, allow)?;
    sandbox.set_settings(Settings {
        generation: 1,
        log_allow: LogMode::Off.into(),
        log_deny: LogMode::Off.into(),
        policy: Enforcement::Enforce.into(),
        source_check: Enforcement::Enforce.into(),
    })?;
    let [v4, v6] = FAMILIES;
    let endpoint = Endpoint {
        uid: 1,
        slot: 0,
        v4: v4.pod.into(),
        v6: v6.pod.into(),
        ..Endpoint::default()
    };
    sandbox.set_endpoint(IFINDEX, &endpoint)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_that_is_wrong_is_told_in_words() {
        let error = SelfTestError::Verdict {
            what: "of a stranger, IPv6 Egress".into(),
            passed: true,
        };
        assert_eq!(error.to_string(), "a packet of a stranger, IPv6 Egress was let through");
    }
}
