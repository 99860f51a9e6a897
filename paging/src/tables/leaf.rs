//! A page that tables map, and its rights.

use crate::virt_addr::VirtAddr;
use core::fmt;

use muster_frames::PhysAddr;
use x86_64::structures::paging::PageTableFlags as Flags;

use crate::plan::{Access, Cache, PageSize};

/// The rights that the CPU grants to a page: its leaf entry's, as far as all entries above it agree
/// (Intel SDM vol. 3, 5.6 "Access Rights").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Writes are allowed.
    pub writable: bool,
    /// Instruction fetches are allowed.
    pub executable: bool,
    /// All of it is allowed to user mode, too.
    pub user: bool,
}

impl Rights {
    pub(super) const ALL: Self = Self {
        writable: true,
        executable: true,
        user: true,
    };

    /// Returns the rights that are left below an entry.
    pub(super) const fn below(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & Flags::WRITABLE.bits() != 0,
            executable: self.executable && entry & Flags::NO_EXECUTE.bits() == 0,
            user: self.user && entry & Flags::USER_ACCESSIBLE.bits() != 0,
        }
    }

    /// Returns the same as an [`Access`], or `None` if none says it: because it is the user's, or
    /// writable and executable.
    pub const fn access(self) -> Option<Access> {
        match self {
            Self {
                writable: false,
                executable: false,
                user: false,
            } => Some(Access::ReadOnly),
            Self {
                writable: true,
                executable: false,
                user: false,
            } => Some(Access::ReadWrite),
            Self {
                writable: false,
                executable: true,
                user: false,
            } => Some(Access::ReadExecute),
            _ => None,
        }
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |granted, letter| if granted { letter } else { '-' };
        write!(
            f,
            "r{}{}",
            letter(self.writable, 'w'),
            letter(self.executable, 'x')
        )?;
        if self.user {
            f.write_str(" user")
        } else {
            Ok(())
        }
    }
}

/// A page that tables map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its first virtual address.
    pub virt: VirtAddr,
    /// Its first physical address.
    pub phys: PhysAddr,
    /// Its size.
    pub size: PageSize,
    /// Its rights.
    pub rights: Rights,
    /// The entry of the PAT that says how it is cached.
    pub pat_index: u8,
}

impl Leaf {
    /// Returns the page's last virtual address.
    pub const fn last(&self) -> VirtAddr {
        VirtAddr::new(self.virt.get() | (self.size.bytes() - 1))
    }

    /// Returns the page's rights; see [`Rights::access`].
    pub const fn access(&self) -> Option<Access> {
        self.rights.access()
    }

    /// Returns the page's cache type; see [`Cache::from_pat_index`].
    pub const fn cache(&self) -> Option<Cache> {
        Cache::from_pat_index(self.pat_index)
    }

    pub(super) fn fmt_cache(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cache() {
            Some(cache) => fmt::Display::fmt(&cache, f),
            None => write!(f, "PAT {}", self.pat_index),
        }
    }
}

impl fmt::Display for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            virt,
            phys,
            size,
            rights,
            ..
        } = self;
        write!(f, "{size} page {virt} -> {phys}, {rights} ")?;
        self.fmt_cache(f)
    }
}

/// The translation of a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub phys: PhysAddr,
    /// The page it lies in.
    pub leaf: Leaf,
}
