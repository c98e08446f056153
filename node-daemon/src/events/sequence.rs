// SPDX-License-Identifier: Apache-2.0
//! The field `seq`: says which verdict a line is about, so that after a crash nothing is written twice.
//!
//! ```text
//! <epoch>-r<position>             an event of the ring, by the position behind it
//! <epoch>-g<generation>.<index>   a line of a closed generation, in the order of its keys
//! <epoch>-d<time>.<index>         a line about what is not known
//! ```
//!
//! The epoch is made with the maps: positions and generations of other maps mean nothing.

use std::fmt::Write as _;

use serde::Deserialize;
use wardline_record::Timestamp;

/// Where a line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sequence {
    Ring { position: u64 },
    Closing { generation: u32, index: usize },
    Doubt { time: u64, index: usize },
}

impl Sequence {
    pub(super) fn write(self, epoch: u64, text: &mut String) {
        text.clear();
        // Writing to a string does not fail.
        let _ = match self {
            Self::Ring { position } => write!(text, "{epoch:x}-r{position}"),
            Self::Closing { generation, index } => write!(text, "{epoch:x}-g{generation}.{index}"),
            Self::Doubt { time, index } => write!(text, "{epoch:x}-d{time}.{index}"),
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
        let (kind, (number, index)) = (rest.get(..1)?, rest.get(1..)?.split_once('.')?);
        let index = index.parse().ok()?;
        match kind {
            "g" => Some(Self::Closing {
                generation: number.parse().ok()?,
                index,
            }),
            "d" => Some(Self::Doubt {
                time: number.parse().ok()?,
                index,
            }),
            _ => None,
        }
    }
}

/// The last lines of both kinds that are in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) ring: Option<u64>,
    pub(super) closing: Option<(u32, usize)>,
    /// Some line is of this life of the maps.
    pub(super) is_own: bool,
    /// None is, and the newest of another has this time, nanoseconds since the epoch.
    pub(super) former: Option<u64>,
}

/// What is read of a line.
#[derive(Deserialize)]
struct Place<'a> {
    #[serde(borrow)]
    seq: &'a str,
    timestamp: Timestamp,
    last_timestamp: Option<Timestamp>,
}

impl Written {
    /// Takes in a line, the newest first. Returns whether older ones can tell more.
    pub(super) fn learn(&mut self, line: &[u8], epoch: u64) -> bool {
        let Ok(place) = serde_json::from_slice::<Place<'_>>(line) else {
            // Nobody's: a crash of the node can leave that in the middle of a file.
            return true;
        };
        match Sequence::parse(place.seq, epoch) {
            Some(Sequence::Ring { position }) => _ = self.ring.get_or_insert(position),
            Some(Sequence::Closing { generation, index }) => _ = self.closing.get_or_insert((generation, index)),
            Some(Sequence::Doubt { .. }) => {}
            // A line of another life: what came before it is older still.
            None => {
                let time = place.last_timestamp.unwrap_or(place.timestamp).0;
                self.former = (!self.is_own).then_some(time);
                return false;
            }
        }
        self.is_own = true;
        self.ring.is_none() || self.closing.is_none()
    }

    pub(super) fn has(&self, sequence: Sequence) -> bool {
        match sequence {
            Sequence::Ring { position } => self.ring.is_some_and(|written| position <= written),
            Sequence::Closing { generation, index } => self
                .closing
                .is_some_and(|(last, written)| last == generation && index <= written),
            Sequence::Doubt { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(seq: &str) -> Vec<u8> {
        let line = serde_json::json!({
            "seq": seq, "timestamp": "1970-01-01T00:00:01Z", "last_timestamp": "1970-01-01T00:00:02Z",
        });
        line.to_string().into_bytes()
    }

    #[test]
    fn what_is_in_the_file_is_not_written_again() {
        let mut written = Written::default();
        assert!(written.learn(b"\0\0\0", 0xab), "nobody's");
        let lines = ["ab-d5.0", "ab-r720", "ab-r648", "ab-g6.3", "ab-g6.2"];
        let more: Vec<bool> = lines.iter().map(|seq| written.learn(&line(seq), 0xab)).collect();
        assert_eq!(more, [true, true, true, false, false]);
        assert_eq!(
            written,
            Written {
                ring: Some(720),
                closing: Some((6, 3)),
                is_own: true,
                former: None,
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
        assert!(!written.learn(&line("cd-r720"), 0xab));
        let former = Written {
            former: Some(2_000_000_000),
            ..Written::default()
        };
        assert_eq!(written, former);
        let mut written = Written::default();
        assert!(written.learn(&line("ab-r720"), 0xab));
        assert!(!written.learn(&line("cd-g7.0"), 0xab));
        assert_eq!(written.former, None, "a newer one is of this life");
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
            Sequence::Doubt { time: 5, index: 3 },
        ] {
            sequence.write(7, &mut text);
            assert_eq!(Sequence::parse(&text, 7), Some(sequence), "{text}");
            assert_eq!(Sequence::parse(&text, 8), None);
        }
    }
}
