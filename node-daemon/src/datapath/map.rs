// SPDX-License-Identifier: Apache-2.0
//! A BPF map with types: keys and values are the ABI's, so that a size can never be wrong.

use std::marker::PhantomData;
use std::os::fd::AsFd;

use super::batch;
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// `failed to <action> <map>: <cause>`
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} map {map}: {source}")]
pub struct MapError {
    action: &'static str,
    map: String,
    source: libbpf_rs::Error,
}

impl MapError {
    /// Whether the map, or memory, had no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            libbpf_rs::ErrorKind::TooBig | libbpf_rs::ErrorKind::OutOfMemory
        )
    }
}

/// A hash, LPM trie or array.
#[derive(Debug)]
pub(super) struct TypedMap<K, V> {
    handle: MapHandle,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> TypedMap<K, V>
where
    K: FromBytes + IntoBytes + Immutable,
    V: FromBytes + IntoBytes + Immutable,
{
    /// # Errors
    /// When the map's key or value size is not that of the types.
    pub(super) fn new(handle: MapHandle) -> Result<Self, MapError> {
        let map = Self {
            handle,
            types: PhantomData,
        };
        if map.handle.key_size() as usize != size_of::<K>() || map.handle.value_size() as usize != size_of::<V>() {
            let source = libbpf_rs::Error::from_raw_os_error(libc::EINVAL);
            return Err(map.error("open", source));
        }
        Ok(map)
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut bytes = vec![0; size_of::<V>()];
        let found = self.handle.lookup_into(key.as_bytes(), &mut bytes, MapFlags::ANY);
        let found = match found {
            Ok(found) => found,
            Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => false,
            Err(error) => return Err(self.error("read", error)),
        };
        Ok(found.then(|| V::read_from_bytes(&bytes).ok()).flatten())
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        self.handle
            .update(key.as_bytes(), value.as_bytes(), MapFlags::ANY)
            .map_err(|e| self.error("write", e))
    }

    /// Deletes a key; that it is not there is no error.
    pub(super) fn delete(&self, key: &K) -> Result<(), MapError> {
        match self.handle.delete(key.as_bytes()) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(self.error("delete from", error)),
            _ => Ok(()),
        }
    }

    /// Takes a value out of a hash. In one step since Linux 5.14; before it, what is written between the two steps that
    /// it takes is lost.
    pub(super) fn take(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut bytes = vec![0; size_of::<V>()];
        match self.handle.lookup_into_and_delete(key.as_bytes(), &mut bytes) {
            Ok(found) => Ok(found.then(|| V::read_from_bytes(&bytes).ok()).flatten()),
            // ENOTSUPP, which has no name outside of Linux.
            Err(error) if error.kind() == libbpf_rs::ErrorKind::Other => {
                let found = self.get(key)?;
                self.delete(key)?;
                Ok(found)
            }
            Err(error) => Err(self.error("take from", error)),
        }
    }

    /// Puts a value where there is none; that there is one is no error.
    pub(super) fn put_back(&self, key: &K, value: &V) -> Result<(), MapError> {
        match self.handle.update(key.as_bytes(), value.as_bytes(), MapFlags::NO_EXIST) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::AlreadyExists => Err(self.error("write", error)),
            _ => Ok(()),
        }
    }

    /// All keys. Those that come or go meanwhile may be missing or stale.
    pub(super) fn keys(&self) -> Vec<K> {
        self.handle
            .keys()
            .filter_map(|key| K::read_from_bytes(&key).ok())
            .collect()
    }

    /// Calls `each` with every entry of a hash or an array.
    pub(super) fn for_each(&self, mut each: impl FnMut(K, V)) -> Result<(), MapError> {
        batch::read(self.handle.as_fd(), size_of::<K>(), size_of::<V>(), |key, value| {
            if let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value)) {
                each(key, value);
            }
        })
        .map_err(|error| self.error("read", error.into()))
    }

    fn error(&self, action: &'static str, source: libbpf_rs::Error) -> MapError {
        MapError {
            action,
            map: self.handle.name().to_string_lossy().into_owned(),
            source,
        }
    }
}

/// A per-CPU array.
#[derive(Debug)]
pub(super) struct PerCpuArray<V> {
    handle: MapHandle,
    types: PhantomData<fn() -> V>,
}

impl<V: FromBytes + IntoBytes + Immutable + FromZeros> PerCpuArray<V> {
    pub(super) fn new(handle: MapHandle) -> Self {
        Self {
            handle,
            types: PhantomData,
        }
    }

    /// The value of every CPU.
    pub(super) fn get(&self, index: u32) -> Result<Vec<V>, MapError> {
        let values = self
            .handle
            .lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| self.error("read", error))?
            .unwrap_or_default();
        Ok(values
            .iter()
            .filter_map(|bytes| V::read_from_prefix(bytes).ok())
            .map(|(value, _)| value)
            .collect())
    }

    /// Sets every CPU's value to zero.
    pub(super) fn clear(&self, index: u32) -> Result<(), MapError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(|error| self.error("count the CPUs of", error))?;
        let zeros = vec![vec![0; size_of::<V>()]; cpus];
        self.handle
            .update_percpu(&index.to_ne_bytes(), &zeros, MapFlags::ANY)
            .map_err(|error| self.error("clear", error))
    }

    fn error(&self, action: &'static str, source: libbpf_rs::Error) -> MapError {
        MapError {
            action,
            map: self.handle.name().to_string_lossy().into_owned(),
            source,
        }
    }
}
