// SPDX-License-Identifier: Apache-2.0
//! The 64 bits that say which policy a slot follows: one store changes them all.

use thiserror::Error;

use crate::abi::{WORD_CIDRS_SHIFT, WORD_PEERS_BITS, WORD_PEERS_SHIFT, WORD_REVISION_SHIFT, WORD_TABLE_BITS};

/// A policy word, unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PolicyWord {
    /// Rule table; 0 means that no policy isolates the pod in this direction. 24 bits.
    pub table: u32,
    /// Generation of the peer maps. 7 bits.
    pub peers: u32,
    /// Some class depends on a CIDR, so that a miss among the exact addresses asks the longest-prefix match.
    pub cidrs: bool,
    /// Raised with every store, so that a slot never has the same word twice.
    pub revision: u32,
}

/// An id that the word has no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PolicyWordError {
    #[error("failed to pack a policy word: table {0} needs more than {WORD_TABLE_BITS} bits")]
    Table(u32),
    #[error("failed to pack a policy word: peers {0} needs more than {WORD_PEERS_BITS} bits")]
    Peers(u32),
}

impl PolicyWord {
    /// As the slot holds it.
    pub fn pack(self) -> Result<u64, PolicyWordError> {
        if self.table >> WORD_TABLE_BITS != 0 {
            return Err(PolicyWordError::Table(self.table));
        }
        if self.peers >> WORD_PEERS_BITS != 0 {
            return Err(PolicyWordError::Peers(self.peers));
        }
        Ok(u64::from(self.table)
            | u64::from(self.peers) << WORD_PEERS_SHIFT
            | u64::from(self.cidrs) << WORD_CIDRS_SHIFT
            | u64::from(self.revision) << WORD_REVISION_SHIFT)
    }

    /// Every 64-bit value is a word.
    #[allow(clippy::cast_possible_truncation, reason = "takes the lower and the upper half")]
    pub fn unpack(word: u64) -> Self {
        let low = word as u32;
        Self {
            table: low & ((1 << WORD_TABLE_BITS) - 1),
            peers: (low >> WORD_PEERS_SHIFT) & ((1 << WORD_PEERS_BITS) - 1),
            cidrs: low >> WORD_CIDRS_SHIFT == 1,
            revision: (word >> WORD_REVISION_SHIFT) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_their_parts() {
        for (word, packed) in [
            (PolicyWord::default(), 0),
            (
                PolicyWord {
                    table: 0xff_ffff,
                    ..PolicyWord::default()
                },
                0x00ff_ffff,
            ),
            (
                PolicyWord {
                    peers: 0x7f,
                    ..PolicyWord::default()
                },
                0x7f00_0000,
            ),
            (
                PolicyWord {
                    cidrs: true,
                    ..PolicyWord::default()
                },
                0x8000_0000,
            ),
            (
                PolicyWord {
                    revision: u32::MAX,
                    ..PolicyWord::default()
                },
                0xffff_ffff_0000_0000,
            ),
            (
                PolicyWord {
                    table: 5,
                    peers: 3,
                    cidrs: true,
                    revision: 9,
                },
                0x0000_0009_8300_0005,
            ),
        ] {
            assert_eq!(word.pack(), Ok(packed), "{word:?}");
            assert_eq!(PolicyWord::unpack(packed), word, "{packed:#x}");
        }
    }

    #[test]
    fn ids_that_do_not_fit_are_refused() {
        let table = PolicyWord {
            table: 1 << 24,
            ..PolicyWord::default()
        };
        assert_eq!(table.pack(), Err(PolicyWordError::Table(1 << 24)));
        let peers = PolicyWord {
            peers: 128,
            ..PolicyWord::default()
        };
        assert_eq!(peers.pack(), Err(PolicyWordError::Peers(128)));
    }
}
