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
    /// The address after the last byte.
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

    /// The entries, sorted by base.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
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

    /// Loader memory is taken in many small pieces; the kernel sees whole ones.
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

/// `address` rounded down to a multiple of `align`, a power of two.
const fn round_down(address: u64, align: u64) -> u64 {
    address & !(align - 1)
}

/// `address` rounded up to a multiple of `align`, a power of two. Addresses
/// here end below 2^63, so this can't overflow unless a caller's length did;
/// then it saturates, and the range is found unusable.
const fn round_up(address: u64, align: u64) -> u64 {
    round_down(address.saturating_add(align - 1), align)
}
