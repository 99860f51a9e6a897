//! The physical memory map: what the firmware reports, what the loader takes
//! out of it, and what the kernel gets to see.
//!
//! A map keeps, at every moment, what the Limine protocol promises of the
//! final one: entries are sorted by base; those of kind
//! [`Usable`](Kind::Usable) and [`Loader`](Kind::Loader) are page-aligned and
//! overlap nothing. All other kinds are passed on as the firmware gave them.

use core::fmt;
use core::ops::Range;

use heapless::Vec;

/// Bytes in a page: the granule of every allocation.
pub const PAGE: u64 = 4096;

/// The most entries a map can hold. Firmware reports a dozen or two.
pub const CAPACITY: usize = 512;

/// What a range of physical memory is, with the numbers of the Limine
/// protocol's memory map entry types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Kind {
    /// Free for the kernel.
    Usable = 0,
    /// Never to be touched.
    Reserved = 1,
    /// ACPI tables, free once they have been read.
    AcpiReclaimable = 2,
    /// Owned by the firmware's ACPI for good.
    AcpiNvs = 3,
    /// Defective.
    Bad = 4,
    /// Loader code, tables, stacks and responses: "bootloader reclaimable".
    Loader = 5,
    /// The kernel as loaded, and the file it came from.
    Executable = 6,
}

/// One range of physical memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Physical address of the first byte.
    pub base: u64,
    /// Length in bytes, never 0.
    pub length: u64,
    /// What it is.
    pub kind: Kind,
}

impl Entry {
    /// Returns the address after the last byte.
    pub const fn end(&self) -> u64 {
        self.base + self.length
    }

    const fn overlaps(&self, range: &Range<u64>) -> bool {
        self.base < range.end && range.start < self.end()
    }
}

/// Why a range could not be taken out of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// More than [`CAPACITY`] entries.
    Full,
    /// No usable range holds this many bytes in one piece below the address.
    OutOfMemory {
        /// Bytes asked for.
        bytes: u64,
        /// First address that is too high.
        below: u64,
    },
    /// The firmware does not report this range as usable memory.
    NotUsable {
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => write!(f, "the memory map has more than {CAPACITY} entries"),
            Self::OutOfMemory { bytes, below } => write!(
                f,
                "out of memory: no {} KiB in one piece below {below:#x}; give the machine more memory",
                bytes.div_ceil(1024)
            ),
            Self::NotUsable { start, end } => write!(
                f,
                "{start:#x}..{end:#x} is in use, but the firmware does not report it as memory"
            ),
        }
    }
}

/// The physical memory map. See the module's documentation for its invariants.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    entries: Vec<Entry, CAPACITY>,
}

impl MemoryMap {
    /// Builds a map from what the firmware reports, in any order.
    ///
    /// Usable ranges shrink to whole pages, and wherever anything else (or a
    /// second usable range) claims a byte of a page, the page is not usable.
    ///
    /// # Errors
    /// [`MapError::Full`].
    pub fn from_firmware(reported: impl Iterator<Item = Entry> + Clone) -> Result<Self, MapError> {
        let mut map = Self::default();
        // A range that runs past the end of the address space ends there.
        let reported = reported
            .map(|entry| Entry {
                length: entry.length.min(u64::MAX - entry.base),
                ..entry
            })
            .filter(|entry| entry.length > 0);
        for entry in reported.clone().filter(|entry| entry.kind != Kind::Usable) {
            map.insert(entry)?;
        }
        for entry in reported.filter(|entry| entry.kind == Kind::Usable) {
            map.insert_usable(entry)?;
        }
        Ok(map)
    }

    /// Returns the entries, sorted by base.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Returns whether any byte of `range` was taken out of usable memory.
    pub fn is_taken(&self, range: &Range<u64>) -> bool {
        self.entries.iter().any(|entry| {
            matches!(entry.kind, Kind::Loader | Kind::Executable) && entry.overlaps(range)
        })
    }

    /// Takes `range`, rounded out to whole pages, out of usable memory.
    ///
    /// # Errors
    /// [`MapError::NotUsable`] if any byte of it lies outside usable memory
    /// (the map is unchanged), [`MapError::Full`].
    pub fn claim(&mut self, range: Range<u64>, kind: Kind) -> Result<(), MapError> {
        let start = round_down(range.start, PAGE);
        let end = round_up(range.end, PAGE);
        let not_usable = MapError::NotUsable { start, end };
        let index = self
            .entries
            .iter()
            .position(|e| e.kind == Kind::Usable && e.base <= start && end <= e.end())
            .ok_or(not_usable)?;
        // Room for both remainders, checked first so that nothing is half done.
        if self.entries.len() + 2 > CAPACITY {
            return Err(MapError::Full);
        }
        let whole = self.entries.remove(index);
        for (base, end, kind) in [
            (whole.base, start, Kind::Usable),
            (start, end, kind),
            (end, whole.end(), Kind::Usable),
        ] {
            if base < end {
                self.insert(Entry {
                    base,
                    length: end - base,
                    kind,
                })?;
            }
        }
        self.merge_loader_entries();
        Ok(())
    }

    /// Takes `bytes` (rounded up to whole pages) in one piece from the highest
    /// usable memory below `below`, aligned to `align` (a power of two), and
    /// returns the physical address. Never page 0.
    ///
    /// # Errors
    /// [`MapError::OutOfMemory`], [`MapError::Full`].
    pub fn allocate(
        &mut self,
        bytes: u64,
        align: u64,
        below: u64,
        kind: Kind,
    ) -> Result<u64, MapError> {
        let bytes = round_up(bytes.max(1), PAGE);
        let base = self
            .entries
            .iter()
            .rev()
            .filter(|entry| entry.kind == Kind::Usable)
            .find_map(|entry| {
                let top = entry.end().min(below).checked_sub(bytes)?;
                let base = round_down(top, align.max(PAGE));
                (base >= entry.base.max(PAGE)).then_some(base)
            })
            .ok_or(MapError::OutOfMemory { bytes, below })?;
        self.claim(base..base + bytes, kind)?;
        Ok(base)
    }

    /// Makes the map as awkward as the protocol allows, to try the kernel:
    /// page 0 as an entry of its own, usable memory cut into pieces of odd
    /// sizes, some of them touching and some with a lost page between, and
    /// unaligned, overlapping reserved entries in the lost pages.
    ///
    /// # Errors
    /// [`MapError::Full`].
    pub fn make_awkward(&mut self) -> Result<(), MapError> {
        /// Sizes of the pieces in pages; the rest of a range stays whole.
        const PIECES: [u64; 7] = [1, 3, 17, 129, 257, 1021, 2049];
        let mut usable = Vec::<Entry, CAPACITY>::new();
        for entry in self
            .entries
            .iter()
            .filter(|entry| entry.kind == Kind::Usable)
        {
            usable.push(*entry).map_err(|_| MapError::Full)?;
        }
        self.entries.retain(|entry| entry.kind != Kind::Usable);
        for entry in usable {
            let mut base = entry.base;
            for (index, pages) in PIECES.into_iter().enumerate() {
                let length = pages * PAGE;
                // Each cut needs a page to lose and a page to go on with.
                if entry.end() - base < length + 2 * PAGE {
                    break;
                }
                self.insert(Entry {
                    base,
                    length,
                    kind: Kind::Usable,
                })?;
                base += length;
                if index % 2 == 1 {
                    let reserved = |offset, length| Entry {
                        base: base + offset,
                        length,
                        kind: Kind::Reserved,
                    };
                    self.insert(reserved(0x123, 0x801))?;
                    self.insert(reserved(0x456, 0xa00))?;
                    self.insert(reserved(0x456, 0x7))?;
                    base += PAGE;
                }
            }
            self.insert(Entry {
                base,
                length: entry.end() - base,
                kind: Kind::Usable,
            })?;
        }
        Ok(())
    }

    fn insert_usable(&mut self, entry: Entry) -> Result<(), MapError> {
        let Some(mut start) = entry.base.checked_next_multiple_of(PAGE) else {
            return Ok(());
        };
        let end = round_down(entry.end(), PAGE);
        while start < end {
            let blocker = self
                .entries
                .iter()
                .find(|other| other.overlaps(&(start..end)))
                .copied();
            let piece_end = blocker.map_or(end, |other| round_down(other.base, PAGE).max(start));
            if start < piece_end {
                self.insert(Entry {
                    base: start,
                    length: piece_end - start,
                    kind: entry.kind,
                })?;
            }
            start = match blocker.map(|other| other.end().checked_next_multiple_of(PAGE)) {
                Some(Some(next)) => next,
                Some(None) | None => end,
            };
        }
        Ok(())
    }

    fn insert(&mut self, entry: Entry) -> Result<(), MapError> {
        let index = self
            .entries
            .partition_point(|other| other.base <= entry.base);
        self.entries
            .insert(index, entry)
            .map_err(|_| MapError::Full)
    }

    /// Merges the loader's entries: its memory is taken in many small pieces, and the kernel gets
    /// whole ones.
    fn merge_loader_entries(&mut self) {
        let mut merged = Vec::<Entry, CAPACITY>::new();
        for entry in &self.entries {
            match merged.last_mut() {
                Some(last)
                    if (last.kind, entry.kind) == (Kind::Loader, Kind::Loader)
                        && last.end() == entry.base =>
                {
                    last.length += entry.length;
                }
                // Never full: there are no more entries than before.
                _ => drop(merged.push(*entry)),
            }
        }
        self.entries = merged;
    }
}

/// Rounds `address` down to a multiple of `align`, a power of two.
const fn round_down(address: u64, align: u64) -> u64 {
    address & !(align - 1)
}

/// Rounds `address` up to a multiple of `align`, a power of two. Addresses here end below 2^63, so
/// this can't overflow unless a caller's length did; then it saturates, and the range is found
/// unusable.
const fn round_up(address: u64, align: u64) -> u64 {
    round_down(address.saturating_add(align - 1), align)
}

#[cfg(test)]
mod tests {
    use super::{Entry, Kind, MapError, MemoryMap, PAGE};
    use proptest::prelude::*;

    /// Physical memory in the tests ends here.
    const PAGES: u64 = 64;

    fn entry(base: u64, end: u64, kind: Kind) -> Entry {
        Entry {
            base,
            length: end - base,
            kind,
        }
    }

    /// Returns a PC's map: unaligned ends, a hole, reserved memory on top.
    fn pc() -> MemoryMap {
        let reported = [
            entry(0, 0x9_fc00, Kind::Usable),
            entry(0x9_fc00, 0xa_0000, Kind::Reserved),
            entry(0xf_0000, 0x10_0000, Kind::Reserved),
            entry(0x10_0000, 0x7fe_0000, Kind::Usable),
            entry(0x7fe_0000, 0x800_0000, Kind::AcpiReclaimable),
        ];
        MemoryMap::from_firmware(reported.into_iter()).unwrap()
    }

    /// Checks what the protocol promises, and that a page is never in two
    /// entries if it is usable or the loader's.
    fn check(map: &MemoryMap) {
        for pair in map.entries().windows(2) {
            assert!(pair[0].base <= pair[1].base, "unsorted: {pair:x?}");
        }
        for (index, entry) in map.entries().iter().enumerate() {
            assert!(entry.length > 0);
            if !matches!(entry.kind, Kind::Usable | Kind::Loader) {
                continue;
            }
            assert!(
                entry.base % PAGE == 0 && entry.length % PAGE == 0,
                "unaligned: {entry:x?}"
            );
            for (other_index, other) in map.entries().iter().enumerate() {
                let apart = other.end() <= entry.base || entry.end() <= other.base;
                assert!(
                    index == other_index || apart,
                    "{entry:x?} overlaps {other:x?}"
                );
            }
        }
    }

    fn pages_of(map: &MemoryMap, kind: Kind) -> u64 {
        map.entries()
            .iter()
            .filter(|e| e.kind == kind)
            .map(|e| e.length / PAGE)
            .sum()
    }

    /// Returns whether a page of memory is in an entry of the kind.
    fn holds(map: &MemoryMap, page: u64, kind: Kind) -> bool {
        let range = page * PAGE..(page + 1) * PAGE;
        map.entries()
            .iter()
            .any(|entry| entry.kind == kind && entry.overlaps(&range))
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            4 => Just(Kind::Usable),
            1 => Just(Kind::Reserved),
            1 => Just(Kind::AcpiReclaimable),
            1 => Just(Kind::AcpiNvs),
            1 => Just(Kind::Bad),
        ]
    }

    fn firmware() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (0..PAGES * PAGE, 0..PAGES * PAGE / 4, kinds(), any::<bool>());
        let entry = entry.prop_map(|(base, length, kind, aligned)| match aligned {
            true => Entry {
                base: base & !(PAGE - 1),
                length: length & !(PAGE - 1),
                kind,
            },
            false => Entry { base, length, kind },
        });
        prop::collection::vec(entry, 0..12)
    }

    proptest! {
        #[test]
        fn usable_pages_are_those_that_one_range_holds_and_nothing_else_touches(
            reported in firmware(),
        ) {
            let map = MemoryMap::from_firmware(reported.iter().copied()).unwrap();
            check(&map);
            for page in 0..2 * PAGES {
                let (start, end) = (page * PAGE, (page + 1) * PAGE);
                let held = reported.iter().any(|entry| {
                    entry.kind == Kind::Usable && entry.base <= start && end <= entry.end()
                });
                let touched = reported.iter().any(|entry| {
                    entry.kind != Kind::Usable
                        && entry.length > 0
                        && entry.overlaps(&(start..end))
                });
                prop_assert_eq!(holds(&map, page, Kind::Usable), held && !touched, "{}", page);
            }
            for entry in reported.iter().filter(|e| e.kind != Kind::Usable && e.length > 0) {
                prop_assert!(map.entries().contains(entry), "lost {:x?}", entry);
            }
        }

        #[test]
        fn memory_changes_hands_page_by_page(
            reported in firmware(),
            requests in prop::collection::vec((1..9 * PAGE, 0_u32..4, 1..PAGES), 0..20),
        ) {
            let mut map = MemoryMap::from_firmware(reported.into_iter()).unwrap();
            let mut taken = 0;
            for (bytes, align, below) in requests {
                let before = map.clone();
                let (align, below) = (PAGE << align, below * PAGE);
                match map.allocate(bytes, align, below, Kind::Loader) {
                    Ok(base) => {
                        prop_assert!(base % align == 0 && base > 0);
                        prop_assert!(base + bytes.next_multiple_of(PAGE) <= below);
                        for page in base / PAGE..(base + bytes).div_ceil(PAGE) {
                            prop_assert!(holds(&before, page, Kind::Usable));
                            prop_assert!(holds(&map, page, Kind::Loader));
                        }
                        taken += bytes.div_ceil(PAGE);
                    }
                    Err(error) => {
                        let expected = MapError::OutOfMemory { bytes: bytes.next_multiple_of(PAGE), below };
                        prop_assert_eq!(error, expected);
                        prop_assert_eq!(map.entries(), before.entries());
                    }
                }
                check(&map);
                prop_assert_eq!(pages_of(&map, Kind::Loader), taken);
                let usable = pages_of(&before, Kind::Usable) + pages_of(&before, Kind::Loader);
                prop_assert_eq!(pages_of(&map, Kind::Usable) + taken, usable);
            }
        }
    }

    #[test]
    fn pages_that_are_only_half_usable_are_not() {
        let map = pc();
        check(&map);
        assert_eq!(map.entries()[0], entry(0, 0x9_f000, Kind::Usable));
        assert_eq!(map.entries()[1], entry(0x9_fc00, 0xa_0000, Kind::Reserved));
    }

    #[test]
    fn claims_outside_usable_memory_change_nothing() {
        let mut map = pc();
        let before = map.clone();
        for range in [
            0x9_e000..0xa_0000,
            0xf_0000..0xf_0001,
            0x7fd_f000..0x7fe_0001,
        ] {
            let error = map.claim(range, Kind::Loader).unwrap_err();
            assert!(matches!(error, MapError::NotUsable { .. }), "{error}");
        }
        assert_eq!(map.entries(), before.entries());
        assert!(!map.is_taken(&(0..u64::MAX)));
        map.claim(0x7fd_f001..0x7fe_0000, Kind::Executable).unwrap();
        assert!(map.is_taken(&(0x7fd_efff..0x7fd_f001)) && map.is_taken(&(0x7fd_ffff..0x7fe_0001)));
        assert!(!map.is_taken(&(0x7fd_e000..0x7fd_f000)) && !map.is_taken(&(0x7fe_0000..u64::MAX)));
        assert!(
            map.entries()
                .contains(&entry(0x7fd_f000, 0x7fe_0000, Kind::Executable))
        );
    }

    #[test]
    fn page_0_is_never_allocated() {
        let mut map =
            MemoryMap::from_firmware([entry(0, 2 * PAGE, Kind::Usable)].into_iter()).unwrap();
        assert_eq!(map.allocate(1, PAGE, u64::MAX, Kind::Loader), Ok(PAGE));
        assert!(map.allocate(1, PAGE, u64::MAX, Kind::Loader).is_err());
    }

    #[test]
    fn ranges_that_wrap_or_reach_the_end_do_no_harm() {
        let reported = [
            Entry {
                base: u64::MAX - 5000,
                length: u64::MAX,
                kind: Kind::Usable,
            },
            Entry {
                base: u64::MAX - 3,
                length: 3,
                kind: Kind::Reserved,
            },
            Entry {
                base: PAGE,
                length: PAGE,
                kind: Kind::Usable,
            },
        ];
        let mut map = MemoryMap::from_firmware(reported.into_iter()).unwrap();
        check(&map);
        assert!(
            map.allocate(u64::MAX, PAGE, u64::MAX, Kind::Loader)
                .is_err()
        );
        assert!(map.claim(PAGE..u64::MAX, Kind::Loader).is_err());
        assert_eq!(
            map.allocate(1, 1 << 40, u64::MAX, Kind::Loader),
            Err(MapError::OutOfMemory {
                bytes: PAGE,
                below: u64::MAX,
            })
        );
    }

    #[test]
    fn too_many_ranges_are_an_error() {
        let reported =
            (0..600).map(|index| entry(index * 2 * PAGE, index * 2 * PAGE + 1, Kind::Bad));
        assert_eq!(
            MemoryMap::from_firmware(reported).unwrap_err(),
            MapError::Full
        );
    }

    #[test]
    fn the_awkward_map_is_awkward_and_still_lawful() {
        let mut map = pc();
        let before = pages_of(&map, Kind::Usable);
        map.make_awkward().unwrap();
        check(&map);
        assert_eq!(map.entries()[0], entry(0, PAGE, Kind::Usable));
        let count = |test: &dyn Fn(&Entry, &Entry) -> bool| {
            map.entries()
                .windows(2)
                .filter(|pair| test(&pair[0], &pair[1]))
                .count()
        };
        let usable = |entry: &Entry| entry.kind == Kind::Usable;
        assert!(
            count(&|a, b| usable(a) && usable(b) && a.end() == b.base) >= 4,
            "touching"
        );
        assert!(
            count(&|a, b| !usable(a) && !usable(b) && a.end() > b.base) >= 4,
            "overlapping"
        );
        assert!(
            count(&|a, _| !usable(a) && a.base % PAGE != 0) >= 4,
            "unaligned"
        );
        let lost = before - pages_of(&map, Kind::Usable);
        assert!((1..16).contains(&lost), "{lost} pages lost");
    }
}
