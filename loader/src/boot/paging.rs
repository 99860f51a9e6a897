//! Page tables: a small builder that works on physical memory.

use core::ops::Range;

use muster_loader::memory_map::PAGE;

use super::physical;

/// Entries in a table.
const ENTRIES: u64 = 512;

// Bits of a table's entry (Intel SDM volume 3A, section 4.5.5).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const NOT_CACHED: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    /// Write to it.
    pub writable: bool,
    /// Run it.
    pub executable: bool,
    /// It holds device registers.
    pub device: bool,
}

impl Access {
    /// Everything: what the protocol asks for in the direct map.
    pub const ALL: Self = Self {
        writable: true,
        executable: true,
        device: false,
    };

    const fn bits(self) -> u64 {
        PRESENT
            | if self.writable { WRITABLE } else { 0 }
            | if self.executable { 0 } else { NO_EXECUTE }
            | if self.device { NOT_CACHED } else { 0 }
    }
}

/// How far the paging structures reach.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// 4 or 5 levels.
    pub levels: u32,
    /// The CPU has 1 GiB pages.
    pub gigabyte_pages: bool,
}

impl Shape {
    /// Returns CR4 for it: PAE, and LA57 for five levels (Intel SDM volume 3A, section 2.5).
    pub const fn cr4(self) -> u32 {
        1 << 5 | if self.levels == 5 { 1 << 12 } else { 0 }
    }

    /// Returns the maximum number of tables that mapping `ranges` with their lengths in bytes can
    /// take: at each end of each a table per level, and for what lies between the tables that the
    /// page size asks for.
    pub fn tables_for(self, lengths: impl Iterator<Item = u64>) -> u64 {
        lengths.fold(0, |sum, length| {
            let between = if self.gigabyte_pages { 0 } else { length >> 30 };
            sum + 2 * u64::from(self.levels) + between
        })
    }
}

/// There is no memory left for tables.
#[derive(Clone, Copy, Debug)]
pub struct OutOfTables;

/// Page tables in the making.
#[derive(Debug)]
pub struct Tables {
    root: u64,
    shape: Shape,
    pool: Range<u64>,
}

impl Tables {
    /// Creates an empty root table, with more tables from `pool`, a page-aligned range of physical
    /// memory.
    ///
    /// # Errors
    /// [`OutOfTables`].
    ///
    /// # Safety
    /// `pool` is memory below [`physical::LIMIT`], and the tables' alone for
    /// good; the boot tables are loaded as long as this value is used.
    pub unsafe fn new(shape: Shape, pool: Range<u64>) -> Result<Self, OutOfTables> {
        let mut tables = Self {
            root: 0,
            shape,
            pool,
        };
        tables.root = tables.table()?;
        Ok(tables)
    }

    /// Returns the physical address of the root table.
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Goes on with a second root that shares all tables of the first, so that
    /// what is mapped from here on in parts of the address space that were
    /// empty is not seen by the first.
    ///
    /// # Errors
    /// [`OutOfTables`].
    pub fn fork(&mut self) -> Result<(), OutOfTables> {
        let root = self.table()?;
        for index in 0..ENTRIES {
            write(root, index, read(self.root, index));
        }
        self.root = root;
        Ok(())
    }

    /// Maps `length` bytes at `address` to the physical memory at `physical`,
    /// all multiples of a page, in the largest pages that fit inside.
    ///
    /// # Errors
    /// [`OutOfTables`].
    pub fn map(
        &mut self,
        address: u64,
        physical: u64,
        length: u64,
        access: Access,
    ) -> Result<(), OutOfTables> {
        let mut done = 0;
        while done < length {
            let (address, physical) = (address + done, physical + done);
            let fits = |level: u32| {
                let size = PAGE << (9 * level);
                (address | physical) % size == 0 && length - done >= size
            };
            let level = match self.shape.gigabyte_pages {
                true if fits(2) => 2,
                _ if fits(1) => 1,
                _ => 0,
            };
            let large = if level > 0 { LARGE } else { 0 };
            let table = self.walk(address, level)?;
            write(
                table,
                index(address, level),
                physical | access.bits() | large,
            );
            done += PAGE << (9 * level);
        }
        Ok(())
    }

    /// Walks to the table whose entries for `address` are pages of `level`.
    fn walk(&mut self, address: u64, level: u32) -> Result<u64, OutOfTables> {
        let mut table = self.root;
        for level in (level + 1..self.shape.levels).rev() {
            let index = index(address, level);
            let entry = read(table, index);
            table = if entry & PRESENT != 0 {
                entry & ADDRESS
            } else {
                let new = self.table()?;
                write(table, index, new | PRESENT | WRITABLE);
                new
            };
        }
        Ok(table)
    }

    /// Takes a fresh, empty table.
    fn table(&mut self) -> Result<u64, OutOfTables> {
        let table = self.pool.start;
        if table + PAGE > self.pool.end {
            return Err(OutOfTables);
        }
        self.pool.start += PAGE;
        // SAFETY: the page lies in the pool, which is this value's alone.
        unsafe { physical::bytes_mut(table, PAGE) }
            .ok_or(OutOfTables)?
            .fill(0);
        Ok(table)
    }
}

/// Returns the index into a table of `level` (0 is the one that maps 4 KiB pages).
const fn index(address: u64, level: u32) -> u64 {
    (address >> (12 + 9 * level)) % ENTRIES
}

fn entry(table: u64, index: u64) -> *mut u64 {
    core::ptr::with_exposed_provenance_mut((table + 8 * (index % ENTRIES)) as usize)
}

fn read(table: u64, index: u64) -> u64 {
    // SAFETY: `table` is a table from the pool, which `Tables` has alone; the
    // index lies within it.
    unsafe { entry(table, index).read() }
}

fn write(table: u64, index: u64, value: u64) {
    // SAFETY: as in `read`.
    unsafe { entry(table, index).write(value) }
}
