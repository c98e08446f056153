// SPDX-License-Identifier: Apache-2.0
//! A BPF map with types: keys and values are the ABI's, so that a size can never be wrong.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::os::fd::AsFd;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::batch;
use super::layout::Conversion;

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
    /// Of key and value, where another version made the map.
    conversions: Option<[Conversion; 2]>,
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
        Self::with(handle, None)
    }

    /// A map of another version.
    ///
    /// # Errors
    /// When the map's key or value size is not that of the conversions.
    pub(super) fn of_other_layout(handle: MapHandle, key: Conversion, value: Conversion) -> Result<Self, MapError> {
        Self::with(handle, Some([key, value]))
    }

    fn with(handle: MapHandle, conversions: Option<[Conversion; 2]>) -> Result<Self, MapError> {
        let map = Self {
            handle,
            conversions,
            types: PhantomData,
        };
        if map.handle.key_size() as usize != map.key_size() || map.handle.value_size() as usize != map.value_size() {
            let source = libbpf_rs::Error::from_raw_os_error(libc::EINVAL);
            return Err(map.error("open", source));
        }
        Ok(map)
    }

    fn key_size(&self) -> usize {
        let other = self.conversions.as_ref();
        other.map_or(size_of::<K>(), |[key, _]| key.their_size())
    }

    fn value_size(&self) -> usize {
        let other = self.conversions.as_ref();
        other.map_or(size_of::<V>(), |[_, value]| value.their_size())
    }

    /// As they stand in the map.
    pub(super) fn key_bytes<'a>(&self, key: &'a K) -> Cow<'a, [u8]> {
        match &self.conversions {
            None => Cow::Borrowed(key.as_bytes()),
            Some([conversion, _]) => Cow::Owned(conversion.to_theirs(key.as_bytes())),
        }
    }

    fn value_bytes<'a>(&self, value: &'a V) -> Cow<'a, [u8]> {
        match &self.conversions {
            None => Cow::Borrowed(value.as_bytes()),
            Some([_, conversion]) => Cow::Owned(conversion.to_theirs(value.as_bytes())),
        }
    }

    fn key(&self, bytes: &[u8]) -> Option<K> {
        match &self.conversions {
            None => K::read_from_bytes(bytes).ok(),
            Some([conversion, _]) => K::read_from_bytes(&conversion.to_ours(bytes)).ok(),
        }
    }

    fn value(&self, bytes: &[u8]) -> Option<V> {
        match &self.conversions {
            None => V::read_from_bytes(bytes).ok(),
            Some([_, conversion]) => V::read_from_bytes(&conversion.to_ours(bytes)).ok(),
        }
    }

    pub(super) fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut bytes = vec![0; self.value_size()];
        let found = self.handle.lookup_into(&self.key_bytes(key), &mut bytes, MapFlags::ANY);
        let found = match found {
            Ok(found) => found,
            Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => false,
            Err(error) => return Err(self.error("read", error)),
        };
        Ok(found.then(|| self.value(&bytes)).flatten())
    }

    pub(super) fn set(&self, key: &K, value: &V) -> Result<(), MapError> {
        self.handle
            .update(&self.key_bytes(key), &self.value_bytes(value), MapFlags::ANY)
            .map_err(|e| self.error("write", e))
    }

    /// Deletes a key; that it is not there is no error.
    pub(super) fn delete(&self, key: &K) -> Result<(), MapError> {
        match self.handle.delete(&self.key_bytes(key)) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(self.error("delete from", error)),
            _ => Ok(()),
        }
    }

    /// Takes a value out of a hash. In one step since Linux 5.14; before it, what is written between the two steps that
    /// it takes is lost.
    pub(super) fn take(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut bytes = vec![0; self.value_size()];
        match self.handle.lookup_into_and_delete(&self.key_bytes(key), &mut bytes) {
            Ok(found) => Ok(found.then(|| self.value(&bytes)).flatten()),
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
        let (key, value) = (self.key_bytes(key), self.value_bytes(value));
        match self.handle.update(&key, &value, MapFlags::NO_EXIST) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::AlreadyExists => Err(self.error("write", error)),
            _ => Ok(()),
        }
    }

    /// All keys. Those that come or go meanwhile may be missing or stale.
    pub(super) fn keys(&self) -> Vec<K> {
        self.handle.keys().filter_map(|key| self.key(&key)).collect()
    }

    /// Calls `each` with every entry of a hash or an array.
    pub(super) fn for_each(&self, mut each: impl FnMut(K, V)) -> Result<(), MapError> {
        batch::read(self.handle.as_fd(), self.key_size(), self.value_size(), |key, value| {
            if let (Some(key), Some(value)) = (self.key(key), self.value(value)) {
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
    value: Conversion,
    types: PhantomData<fn() -> V>,
}

impl<V: FromBytes + IntoBytes + Immutable + FromZeros> PerCpuArray<V> {
    /// `value` tells how a value lies in the map.
    pub(super) fn new(handle: MapHandle, value: Conversion) -> Self {
        Self {
            handle,
            value,
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
            .filter_map(|bytes| V::read_from_bytes(&self.value.to_ours(bytes)).ok())
            .collect())
    }

    /// Sets every CPU's value to zero.
    pub(super) fn clear(&self, index: u32) -> Result<(), MapError> {
        let cpus = libbpf_rs::num_possible_cpus().map_err(|error| self.error("count the CPUs of", error))?;
        let zeros = vec![vec![0; self.value.their_size()]; cpus];
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
