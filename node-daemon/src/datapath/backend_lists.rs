// SPDX-License-Identifier: Apache-2.0
//! Lists of backends, which fronts of Services name. One is written whole under a fresh id before a front names it, and
//! deleted when none does and no program can still read its id.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use libbpf_rs::{MapCore, MapHandle};
use wardline_bpf::abi::{Backend, BackendKey};

use super::ids::Ids;
use super::map::{MapError, TypedMap};

#[derive(Debug)]
pub(super) struct BackendLists {
    map: TypedMap<BackendKey, Backend>,
    /// Entries that the map has room for.
    room: usize,
    /// By id. List 0 has no backends and is not here.
    lists: HashMap<u32, List>,
    ids: HashMap<Arc<[SocketAddr]>, u32>,
    /// Entries of `lists`, and of those that wait to be deleted.
    in_use: usize,
    /// Lists that no front names any more, and their lengths.
    garbage: Vec<(u32, u32)>,
}

#[derive(Debug)]
struct List {
    backends: Arc<[SocketAddr]>,
    /// Fronts that name it.
    users: usize,
}

/// A list that a front has let go of.
#[derive(Debug)]
pub(super) struct LetGo {
    pub(super) backends: Arc<[SocketAddr]>,
    /// It was the last one.
    pub(super) is_garbage: bool,
}

impl BackendLists {
    /// Takes over what an earlier life left: the lists that fronts name, once for each of them.
    pub(super) fn open(map: MapHandle, named: impl Iterator<Item = u32>) -> Result<Self, MapError> {
        let room = map.max_entries() as usize;
        let map = TypedMap::<BackendKey, Backend>::new(map)?;
        let mut found: HashMap<u32, Vec<(u32, SocketAddr)>> = HashMap::new();
        map.for_each(|key, backend| {
            found.entry(key.list).or_default().push((key.index, backend.into()));
        })?;
        let in_use = found.values().map(Vec::len).sum();
        let mut lists: HashMap<u32, List> = HashMap::new();
        for id in named.filter(|id| *id != 0) {
            let list = lists.entry(id).or_insert_with(|| {
                let mut backends = found.remove(&id).unwrap_or_default();
                backends.sort_unstable();
                let backends: Arc<[SocketAddr]> = backends.into_iter().map(|(_, address)| address).collect();
                List { backends, users: 0 }
            });
            list.users += 1;
        }
        let ids = lists.iter().map(|(id, list)| (Arc::clone(&list.backends), *id));
        let ids = ids.collect();
        // Written for a front that never named them, or that had let go of them.
        let left_over = found.iter().map(|(id, backends)| {
            let last = backends.iter().map(|(index, _)| *index).max().unwrap_or(0);
            (*id, last + 1)
        });
        let garbage = left_over.collect();
        Ok(Self {
            map,
            room,
            lists,
            ids,
            in_use,
            garbage,
        })
    }

    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Entries of all lists.
    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// The backends of a list; the empty one has none.
    pub(super) fn backends(&self, id: u32) -> &[SocketAddr] {
        self.lists.get(&id).map_or(&[], |list| &list.backends)
    }

    /// How many fronts name a list.
    pub(super) fn users(&self, id: u32) -> usize {
        self.lists.get(&id).map_or(0, |list| list.users)
    }

    /// Whether there is a list of these backends.
    pub(super) fn has(&self, backends: &[SocketAddr]) -> bool {
        self.ids.contains_key(backends)
    }

    pub(super) fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Deletes the lists that no front names; programs that may have read their ids must have ended.
    pub(super) fn delete_garbage(&mut self) -> Result<(), MapError> {
        while let Some((list, count)) = self.garbage.pop() {
            let deleted = (0..count).try_for_each(|index| self.map.delete(&BackendKey { list, index }));
            if let Err(error) = deleted {
                self.garbage.push((list, count));
                return Err(error);
            }
            self.in_use -= count as usize;
        }
        Ok(())
    }

    /// The id of the list of these backends, for one more front; it is written if there is none.
    pub(super) fn take(&mut self, backends: &Arc<[SocketAddr]>, ids: &mut Ids) -> Result<u32, MapError> {
        if backends.is_empty() {
            return Ok(0);
        }
        let id = match self.ids.get(backends) {
            Some(id) => *id,
            None => self.write(backends, ids)?,
        };
        let list = self.lists.entry(id).or_insert_with(|| List {
            backends: Arc::clone(backends),
            users: 0,
        });
        list.users += 1;
        Ok(id)
    }

    fn write(&mut self, backends: &Arc<[SocketAddr]>, ids: &mut Ids) -> Result<u32, MapError> {
        let id = ids.next_service();
        ids.store()?;
        for (index, backend) in (0..).zip(backends.iter()) {
            let key = BackendKey { list: id, index };
            if let Err(error) = self.map.set(&key, &Backend::from(*backend)) {
                self.in_use += index as usize;
                self.garbage.push((id, index));
                return Err(error);
            }
        }
        self.in_use += backends.len();
        self.ids.insert(Arc::clone(backends), id);
        Ok(id)
    }

    /// A list has one user less, and without any is garbage. None for the empty one.
    pub(super) fn let_go(&mut self, id: u32) -> Option<LetGo> {
        let list = self.lists.get_mut(&id)?;
        list.users -= 1;
        let (backends, is_garbage) = (Arc::clone(&list.backends), list.users == 0);
        if is_garbage {
            self.lists.remove(&id);
            // Of two lists of an earlier life with the same backends only one is known by them.
            if self.ids.get(&backends) == Some(&id) {
                self.ids.remove(&backends);
            }
            self.garbage.push((id, count(&backends)));
        }
        Some(LetGo { backends, is_garbage })
    }
}

pub(super) fn count(backends: &[SocketAddr]) -> u32 {
    u32::try_from(backends.len()).unwrap_or(u32::MAX)
}
