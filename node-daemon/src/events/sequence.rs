// SPDX-License-Identifier: Apache-2.0
//! The field `seq`: says which verdict a line is about, so that after a crash nothing is written twice.
//!
//! ```text
//! <epoch>-r<position>             an event of the ring, by the position behind it
//! <epoch>-g<generation>.<index>   a line of a closed generation, in the order of its keys
//! ```
//!
//! The epoch is made with the maps: positions and generations of other maps mean nothing.

use std::fmt::Write as _;

use serde::Deserialize;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    Ring { position: u64 },
    Closing { generation: u32, index: usize },
}

impl Sequence {
    pub(super) fn write(self, epoch: u64, text: &mut String) {
        text.clear();
        // Writing to a string does not fail.
        let _ = match self {
            Self::Ring { position } => write!(text, "{epoch:x}-r{position}"),
            Self::Closing { generation, index } => write!(text, "{epoch:x}-g{generation}.{index}"),
        };
    }

    fn parse(text: &str, epoch: u64) -> Option<Self> {
        let (life, rest) = text.split_once('-')?;
        if u64::from_str_radix(life, 16).ok()? != epoch {
            return None;
        }
        if let Some(position) = rest.strip_prefix('r') {
            return Some(Self::Ring {
                position: position.parse().ok()?,
            });
        }
        let (generation, index) = rest.strip_prefix('g')?.split_once('.')?;
        Some(Self::Closing {
            generation: generation.parse().ok()?,
            index: index.parse().ok()?,
        })
    }
}

/// The last lines of both kinds that are in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) ring: Option<u64>,
    pub(super) closing: Option<(u32, usize)>,
}

#[derive(Deserialize)]
struct SeqOnly<'a> {
    #[serde(borrow)]
    seq: &'a str,
}

impl Written {
    /// Takes in a line, the newest first. Returns whether older ones can tell more.
    pub(super) fn learn(&mut self, line: &[u8], epoch: u64) -> bool {
        let parsed = serde_json::from_slice::<SeqOnly<'_>>(line)
            .ok()
            .and_then(|l| Sequence::parse(l.seq, epoch));
        match parsed {
            Some(Sequence::Ring { position }) => _ = self.ring.get_or_insert(position),
            Some(Sequence::Closing { generation, index }) => _ = self.closing.get_or_insert((generation, index)),
            // A line of another life: what came before it is older still.
            None => return false,
        }
        self.ring.is_none() || self.closing.is_none()
    }

    pub(super) fn has(&self, sequence: Sequence) -> bool {
        match sequence {
            Sequence::Ring { position } => self.ring.is_some_and(|written| position <= written),
            Sequence::Closing { generation, index } => self
                .closing
                .is_some_and(|(last, written)| last == generation && index <= written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_file_is_not_written_again() {
        let mut written = Written::default();
        let lines = [
            r#"{"seq":"ab-r720"}"#,
            r#"{"seq":"ab-r648"}"#,
            r#"{"seq":"ab-g6.3"}"#,
            r#"{"seq":"ab-g6.2"}"#,
        ];
        let more: Vec<bool> = lines.iter().map(|line| written.learn(line.as_bytes(), 0xab)).collect();
        assert_eq!(more, [true, true, false, false]);
        assert_eq!(
            written,
            Written {
                ring: Some(720),
                closing: Some((6, 3))
            }
        );
        for (sequence, has) in [
            (Sequence::Ring { position: 720 }, true),
            (Sequence::Ring { position: 792 }, false),
            (
                Sequence::Closing {
                    generation: 6,
                    index: 3,
                },
                true,
            ),
            (
                Sequence::Closing {
                    generation: 6,
                    index: 4,
                },
                false,
            ),
            (
                Sequence::Closing {
                    generation: 7,
                    index: 0,
                },
                false,
            ),
        ] {
            assert_eq!(written.has(sequence), has, "{sequence:?}");
        }
    }

    #[test]
    fn lines_of_another_life_of_the_maps_end_the_search() {
        let mut written = Written::default();
        assert!(!written.learn(br#"{"seq":"cd-r720"}"#, 0xab));
        assert_eq!(written, Written::default());
    }

    #[test]
    fn sequences_read_back() {
        let mut text = String::new();
        for sequence in [
            Sequence::Ring { position: 72 },
            Sequence::Closing {
                generation: 4,
                index: 0,
            },
        ] {
            sequence.write(7, &mut text);
            assert_eq!(Sequence::parse(&text, 7), Some(sequence), "{text}");
            assert_eq!(Sequence::parse(&text, 8), None);
        }
    }
}
