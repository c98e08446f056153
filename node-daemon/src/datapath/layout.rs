// SPDX-License-Identifier: Apache-2.0
//! Where the fields of what outlives a daemon lie, in this version's maps and in another's: values go over field by
//! field, by the names (docs/decisions/0016-taking-over-another-layout.md).

use std::collections::BTreeMap;
use std::path::PathBuf;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use serde::Deserialize;

use super::LoadError;
use super::load::{PinPaths, user_map};

/// The map that tells the layout of those that are pinned beside it.
const MAP: &str = "layout";

/// By a struct's name.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub(super) struct Layout(BTreeMap<String, Struct>);

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Struct {
    /// Bytes.
    size: usize,
    /// Offset and size of each integer, in bytes, by its path, as in `pod.word[3]`.
    fields: BTreeMap<String, (usize, usize)>,
}

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("failed to read the layout of the maps in {path}: {cause}", path = maps.display())]
    Unknown { maps: PathBuf, cause: String },
    #[error(
        "failed to use the maps in {path}: they have another layout than this build's, and the same version; \
         `wardline-node cleanup` removes them",
        path = maps.display()
    )]
    Changed { maps: PathBuf },
    #[error("failed to take over from the maps in {path}: their layout has no {what}", path = maps.display())]
    Missing { maps: PathBuf, what: String },
}

impl Layout {
    /// This build's.
    pub(super) fn ours() -> Result<Self, LoadError> {
        Self::parse(wardline_bpf::LAYOUT).map_err(|cause| {
            let maps = PathBuf::new();
            LayoutError::Unknown { maps, cause }.into()
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// What the maps say of themselves, which another version may have made.
    pub(super) fn of(paths: &PinPaths) -> Result<Self, LoadError> {
        let unknown = |cause: String| LayoutError::Unknown {
            maps: paths.maps.clone(),
            cause,
        };
        let text = MapHandle::from_pinned_path(paths.maps.join(MAP))
            .and_then(|map| map.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY))
            .map_err(|error| unknown(error.to_string()))?;
        let text = String::from_utf8(text.unwrap_or_default()).map_err(|error| unknown(error.to_string()))?;
        Ok(Self::parse(&text).map_err(unknown)?)
    }

    /// Leaves this build's with the maps, for daemons of other versions.
    pub(super) fn leave(paths: &PinPaths) -> Result<(), LoadError> {
        let text = wardline_bpf::LAYOUT.as_bytes();
        let changed = || LayoutError::Changed {
            maps: paths.maps.clone(),
        };
        let map = user_map(paths, MAP, text.len())?;
        if map.value_size() as usize != text.len() {
            return Err(changed().into());
        }
        let key = 0_u32.to_ne_bytes();
        let there = map
            .lookup(&key, MapFlags::ANY)
            .map_err(LoadError::load)?
            .unwrap_or_default();
        if there.iter().all(|byte| *byte == 0) {
            return map.update(&key, text, MapFlags::ANY).map_err(LoadError::load);
        }
        if there == text { Ok(()) } else { Err(changed().into()) }
    }

    /// Offset of a field.
    pub(super) fn offset(&self, of: &str, field: &str) -> Option<usize> {
        Some(self.0.get(of)?.fields.get(field)?.0)
    }

    /// How a struct of `theirs` becomes ours.
    pub(super) fn conversion(&self, theirs: &Self, name: &str) -> Option<Conversion> {
        let (ours, theirs) = (self.0.get(name)?, theirs.0.get(name)?);
        let moves = ours.fields.iter().filter_map(|(path, (offset, size))| {
            let (from, length) = theirs.fields.get(path)?;
            Some(Move {
                ours: *offset,
                theirs: *from,
                length: (*size).min(*length),
            })
        });
        Some(Conversion {
            moves: moves.collect(),
            ours: ours.size,
            theirs: theirs.size,
        })
    }
}

/// Between our bytes of a struct and those of another layout. A field that one side lacks is zero there; of one that is
/// narrower there the low bytes go over (fields are little-endian where they differ in size).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conversion {
    moves: Vec<Move>,
    ours: usize,
    theirs: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    ours: usize,
    theirs: usize,
    length: usize,
}

impl Conversion {
    /// Of what is no struct.
    pub(super) fn same(size: usize) -> Self {
        let moves = vec![Move {
            ours: 0,
            theirs: 0,
            length: size,
        }];
        Self {
            moves,
            ours: size,
            theirs: size,
        }
    }

    /// Bytes of one of theirs.
    pub(super) fn their_size(&self) -> usize {
        self.theirs
    }

    pub(super) fn to_ours(&self, theirs: &[u8]) -> Vec<u8> {
        let mut ours = vec![0; self.ours];
        for one in &self.moves {
            if let Some(bytes) = theirs.get(one.theirs..one.theirs + one.length) {
                ours[one.ours..one.ours + one.length].copy_from_slice(bytes);
            }
        }
        ours
    }

    pub(super) fn to_theirs(&self, ours: &[u8]) -> Vec<u8> {
        let mut theirs = vec![0; self.theirs];
        for one in &self.moves {
            if let Some(bytes) = ours.get(one.ours..one.ours + one.length) {
                theirs[one.theirs..one.theirs + one.length].copy_from_slice(bytes);
            }
        }
        theirs
    }
}

/// The conversions from one layout to ours.
#[derive(Clone, Debug)]
pub(super) struct Conversions {
    ours: Layout,
    theirs: Layout,
    maps: PathBuf,
}

impl Conversions {
    pub(super) fn of(paths: &PinPaths) -> Result<Self, LoadError> {
        Ok(Self {
            ours: Layout::ours()?,
            theirs: Layout::of(paths)?,
            maps: paths.maps.clone(),
        })
    }

    pub(super) fn of_struct(&self, name: &str) -> Result<Conversion, LoadError> {
        let conversion = self.ours.conversion(&self.theirs, name);
        conversion.ok_or_else(|| self.missing(name.to_owned()))
    }

    /// Where a field lies in theirs.
    pub(super) fn their_offset(&self, of: &str, field: &str) -> Result<usize, LoadError> {
        let offset = self.theirs.offset(of, field);
        offset.ok_or_else(|| self.missing(format!("{of}.{field}")))
    }

    fn missing(&self, what: String) -> LoadError {
        let maps = self.maps.clone();
        LayoutError::Missing { maps, what }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardline_bpf::abi::{Address, ConntrackKey, Event};
    use zerocopy::{FromBytes as _, IntoBytes as _};

    fn layout(text: &str) -> Layout {
        Layout::parse(text).unwrap()
    }

    #[test]
    fn fields_go_over_by_their_names_and_back() {
        let ours = layout(r#"{"a": {"size": 8, "fields": {"x": [0, 4], "y": [4, 2], "new": [6, 2]}}}"#);
        let theirs = layout(r#"{"a": {"size": 16, "fields": {"y": [0, 4], "old": [4, 4], "x": [8, 4]}}}"#);
        let conversion = ours.conversion(&theirs, "a").unwrap();
        let bytes = [7, 0, 0, 0, 9, 9, 9, 9, 1, 2, 3, 4, 0, 0, 0, 0];
        assert_eq!(conversion.to_ours(&bytes), [1, 2, 3, 4, 7, 0, 0, 0]);
        let back = [7, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0];
        assert_eq!(conversion.to_theirs(&[1, 2, 3, 4, 7, 0, 5, 5]), back);
        assert_eq!(conversion.their_size(), 16);
        assert_eq!(ours.conversion(&theirs, "b"), None);
    }

    #[test]
    fn this_build_describes_its_structs_as_they_are() {
        let ours = Layout::ours().unwrap();
        for (name, size) in [
            ("conntrack_key", size_of::<ConntrackKey>()),
            ("event", size_of::<Event>()),
        ] {
            assert_eq!(ours.0[name].size, size, "{name}");
            let same = ours.conversion(&ours, name).unwrap();
            let bytes: Vec<u8> = (0..size).map(|byte| u8::try_from(byte % 256).unwrap()).collect();
            assert_eq!(same.to_ours(&bytes), bytes, "{name} has bytes that no field names");
        }
        assert_eq!(
            ours.offset("event", "pod_port"),
            Some(std::mem::offset_of!(Event, pod_port))
        );
        let offset = std::mem::offset_of!(ConntrackKey, remote) + 3 * size_of::<u32>();
        assert_eq!(ours.offset("conntrack_key", "remote.word[3]"), Some(offset));
        let key = ConntrackKey {
            remote: Address { word: [1, 2, 3, 4] },
            ..ConntrackKey::default()
        };
        assert_eq!(key.as_bytes()[offset], 4);
        assert!(ConntrackKey::read_from_bytes(key.as_bytes()).is_ok());
    }
}
