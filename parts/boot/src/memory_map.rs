//! The memory map as the loader reports it.

use alloc::vec::Vec;

use muster_frames::{PhysAddr, PhysRange};

use crate::error::BootError;
use crate::kind::{Kind, MemoryEntry};

/// The entries that are ranges of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    /// In the loader's order.
    pub entries: Vec<MemoryEntry>,
    /// How many were left out because no x86-64 address reaches all of them.
    pub unreachable: usize,
}

impl MemoryMap {
    /// Takes each entry's base, length in bytes, and kind. Empty ones are passed over.
    ///
    /// # Errors
    ///
    /// [`BootError::MemoryEntry`].
    pub fn check(entries: impl IntoIterator<Item = (u64, u64, Kind)>) -> Result<Self, BootError> {
        let mut map = Self {
            entries: Vec::new(),
            unreachable: 0,
        };
        for (base, length, kind) in entries {
            match PhysRange::new(PhysAddr::new(base), length) {
                Some(range) => map.entries.push(MemoryEntry { range, kind }),
                None if length == 0 => {}
                None if matches!(kind, Kind::Usable | Kind::BootloaderReclaimable) => {
                    return Err(BootError::MemoryEntry { base, length });
                }
                None => map.unreachable += 1,
            }
        }
        Ok(map)
    }

    /// Returns the bytes of all usable entries.
    pub fn usable_bytes(&self) -> u64 {
        let usable = self.entries.iter();
        usable
            .filter(|entry| entry.kind == Kind::Usable)
            .fold(0, |sum: u64, entry| sum.saturating_add(entry.range.len()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_stay_as_they_are_and_in_their_order() {
        let raw = [
            (0x10_0000, 0x10_0000, Kind::Usable),
            (0x1234, 0x1, Kind::Reserved),
            (0, 0, Kind::Usable),
            (0x20_0000, 0x1000, Kind::BootloaderReclaimable),
        ];
        let map = MemoryMap::check(raw).unwrap();
        let told = map.entries.iter();
        let told = told.map(|entry| (entry.range.start().get(), entry.range.len(), entry.kind));
        assert!(told.eq([raw[0], raw[1], raw[3]]));
        assert_eq!((map.unreachable, map.usable_bytes()), (0, 0x10_0000));
    }

    #[test]
    fn what_no_address_reaches_is_left_out_unless_it_would_be_used() {
        let (base, length) = (1 << 52, 0x1000);
        let map = MemoryMap::check([(base, length, Kind::Reserved), (!0, !0, Kind::Bad)]);
        assert_eq!(map.unwrap().unreachable, 2);
        for kind in [Kind::Usable, Kind::BootloaderReclaimable] {
            let error = BootError::MemoryEntry { base, length };
            assert_eq!(MemoryMap::check([(base, length, kind)]), Err(error));
        }
    }

    proptest! {
        #[test]
        fn every_entry_is_kept_left_out_or_the_error(
            raw in prop::collection::vec((any::<u64>(), any::<u64>(), 0..Kind::ALL.len()), 0..20),
        ) {
            let raw = raw.into_iter().map(|(base, length, kind)| (base >> 8, length >> 8, Kind::ALL[kind]));
            match MemoryMap::check(raw.clone()) {
                Ok(map) => {
                    let empty = raw.clone().filter(|(_, length, _)| *length == 0).count();
                    prop_assert_eq!(map.entries.len() + map.unreachable + empty, raw.len());
                }
                Err(BootError::MemoryEntry { base, length }) => {
                    prop_assert!(PhysRange::new(PhysAddr::new(base), length).is_none());
                    prop_assert!(raw.clone().any(|entry| (entry.0, entry.1) == (base, length)));
                }
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }
}
