//! Page tables as a CPU reads them: by the formats of entries in Intel SDM vol. 3, 5.5.4, and by
//! nothing of the library's but its value for the PAT.

use muster_paging::{Access, Cache, PAT};

use crate::ram::Ram;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// In a 4 KiB page's entry the PAT bit.
const LARGE: u64 = 1 << 7;
const LARGE_PAT: u64 = 1 << 12;
const EXECUTE_DISABLE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page as the CPU sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub virt: u64,
    pub phys: u64,
    pub bytes: u64,
    pub access: Access,
    pub cache: Cache,
}

/// Returns all pages, lowest address first. Panics at what the kernel must never map: user pages, such
/// as are writable and executable, and such as the CPU would mark in the tables as used; or that it
/// would take for a shadow stack, as they are dirty without being writable.
pub fn walk(ram: &Ram, root: u64, levels: u8) -> Vec<Seen> {
    let mut pages = Vec::new();
    descend(ram, root, levels, levels, 0, (true, true), &mut pages);
    pages
}

fn descend(
    ram: &Ram,
    table: u64,
    level: u8,
    levels: u8,
    from: u64,
    (writable, executable): (bool, bool),
    pages: &mut Vec<Seen>,
) {
    let bytes = 4096 << (9 * (level - 1));
    for index in 0..512 {
        let entry = ram.entry(table, index);
        if entry & PRESENT == 0 {
            continue;
        }
        assert_eq!(entry & USER, 0, "the user's: {entry:#x}");
        assert_ne!(entry & ACCESSED, 0, "would be written to: {entry:#x}");
        let virt = from + index as u64 * bytes;
        let rights = (
            writable && entry & WRITABLE != 0,
            executable && entry & EXECUTE_DISABLE == 0,
        );
        if level > 1 && entry & LARGE == 0 {
            assert_eq!(entry & (WRITE_THROUGH | CACHE_DISABLE), 0, "{entry:#x}");
            descend(ram, entry & ADDRESS, level - 1, levels, virt, rights, pages);
            continue;
        }
        assert!(level <= 3, "no page is so large: {entry:#x}");
        let is_dirty = entry & DIRTY != 0;
        assert_eq!(is_dirty, entry & WRITABLE != 0, "{entry:#x}");
        let pat_bit = if level == 1 { LARGE } else { LARGE_PAT };
        let pat = u32::from(entry & WRITE_THROUGH != 0)
            + 2 * u32::from(entry & CACHE_DISABLE != 0)
            + 4 * u32::from(entry & pat_bit != 0);
        let phys = if level == 1 {
            entry & ADDRESS
        } else {
            entry & ADDRESS & !LARGE_PAT
        };
        assert!(
            phys.is_multiple_of(bytes),
            "reserved bits are set: {entry:#x}"
        );
        pages.push(Seen {
            virt: sign_extended(virt, 12 + 9 * u32::from(levels)),
            phys,
            bytes,
            access: match rights {
                (false, false) => Access::ReadOnly,
                (true, false) => Access::ReadWrite,
                (false, true) => Access::ReadExecute,
                (true, true) => panic!("writable and executable: {entry:#x}"),
            },
            cache: match PAT >> (8 * pat) & 0xff {
                6 => Cache::WriteBack,
                1 => Cache::WriteCombining,
                0 => Cache::Uncached,
                other => panic!("memory type {other}: {entry:#x}"),
            },
        });
    }
}

fn sign_extended(virt: u64, bits: u32) -> u64 {
    ((virt << (64 - bits)) as i64 >> (64 - bits)) as u64
}

/// Returns the same mapping in as few pieces as possible, of whatever size.
pub fn joined(pages: impl IntoIterator<Item = Seen>) -> Vec<Seen> {
    let mut joined: Vec<Seen> = Vec::new();
    for page in pages {
        match joined.last_mut() {
            Some(last)
                if last.virt.wrapping_add(last.bytes) == page.virt
                    && last.phys + last.bytes == page.phys
                    && (last.access, last.cache) == (page.access, page.cache) =>
            {
                last.bytes += page.bytes;
            }
            _ => joined.push(page),
        }
    }
    joined
}
