// SPDX-License-Identifier: Apache-2.0
//! The one spelling of what the packet programs say, for metrics, records and documentation, and the way back from
//! the integers of map values. A value that is missing here does not compile, and a test compares each name with the
//! header's.

use std::fmt;

use thiserror::Error;

use crate::abi::{ConntrackState, Direction, Enforcement, LogMode, Reason, Verdict};

/// An integer in a map or an event that is none of the ABI's values: the other side has another version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("failed to read {what}: unknown value {value}")]
pub struct UnknownValue {
    pub what: &'static str,
    pub value: u8,
}

/// `$name`: the ABI's value as text, and each of its values once, in order.
macro_rules! named {
    ($type:ident, $what:literal, $count:literal, { $($variant:ident = $name:literal),* $(,)? }) => {
        impl $type {
            /// Every value, in the order of the header.
            pub const ALL: [Self; $count] = [$(Self::$variant),*];

            /// As metrics, records and documentation spell it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }

        impl TryFrom<u8> for $type {
            type Error = UnknownValue;

            fn try_from(value: u8) -> Result<Self, UnknownValue> {
                Self::ALL.get(usize::from(value)).copied().ok_or(UnknownValue { what: $what, value })
            }
        }

        /// The field's integer. Every value of the ABI fits.
        impl From<$type> for u8 {
            #[allow(clippy::cast_possible_truncation, reason = "the ABI keeps them in fields of one byte")]
            fn from(value: $type) -> Self {
                value as Self
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named!(Direction, "direction", 2, { Ingress = "ingress", Egress = "egress" });
named!(Verdict, "verdict", 2, { Allow = "allow", Deny = "deny" });
named!(ConntrackState, "conntrack state", 5, {
    Opening = "opening",
    Open = "open",
    Closing = "closing",
    Denied = "denied",
    Stream = "stream",
});
named!(LogMode, "log mode", 3, { Off = "off", All = "all", Delegated = "delegated" });
named!(Enforcement, "enforcement", 2, { Audit = "audit", Enforce = "enforce" });
named!(Reason, "reason", 26, {
    Established = "established",
    NotIsolated = "not-isolated",
    Policy = "policy",
    Node = "node",
    Self_ = "self",
    Related = "related",
    Neighbour = "neighbour",
    Revalidated = "revalidated",
    Midstream = "midstream",
    DefaultDeny = "default-deny",
    Spoofed = "spoofed",
    NotMine = "not-mine",
    Malformed = "malformed",
    Vlan = "vlan",
    Ethertype = "ethertype",
    MappedAddress = "mapped-address",
    Fragment = "fragment",
    ExtensionHeader = "extension-header",
    ConntrackFull = "conntrack-full",
    NoEndpoint = "no-endpoint",
    ForgedNeighbour = "forged-neighbour",
    ConnectionQuota = "connection-quota",
    HalfOpenQuota = "half-open-quota",
    Refused = "refused",
    NoBackend = "no-backend",
    PortTaken = "port-taken",
});

impl Direction {
    /// Index into the counters' and slots' pairs.
    pub const fn index(self) -> usize {
        self as usize
    }

    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Egress => Self::Ingress,
            Self::Ingress => Self::Egress,
        }
    }
}

impl Reason {
    /// What a packet that is counted under this reason is told to do where policy is enforced.
    pub const fn verdict(self) -> Verdict {
        if (self as u32) < Self::DefaultDeny as u32 {
            Verdict::Allow
        } else {
            Verdict::Deny
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `DefaultDeny`, as bindgen makes it of `REASON_DEFAULT_DENY`, to `default-deny`.
    fn header_name(variant: &str) -> String {
        let mut name = String::new();
        for letter in variant.trim_end_matches('_').chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    #[test]
    fn every_name_is_the_headers_and_every_value_is_found_again() {
        macro_rules! check {
            ($($type:ident),*) => {$(
                for (index, value) in $type::ALL.into_iter().enumerate() {
                    assert_eq!(value.as_str(), header_name(&format!("{value:?}")));
                    assert_eq!(usize::from(u8::from(value)), index, "{value}");
                    assert_eq!($type::try_from(u8::from(value)), Ok(value));
                }
                let beyond = u8::try_from($type::ALL.len()).unwrap();
                assert_eq!($type::try_from(beyond).unwrap_err().value, beyond);
            )*};
        }
        check!(Direction, Verdict, ConntrackState, LogMode, Enforcement, Reason);
    }

    #[test]
    fn reasons_before_default_deny_pass() {
        let passed: Vec<_> = Reason::ALL
            .into_iter()
            .filter(|reason| reason.verdict() == Verdict::Allow)
            .collect();
        assert_eq!(passed.last(), Some(&Reason::Midstream));
        assert_eq!(passed.len(), 9);
    }
}
