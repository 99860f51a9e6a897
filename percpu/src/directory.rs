//! The directory of all CPUs' blocks, of which only the shared parts can be reached.

use core::fmt;

use conquer_once::spin::OnceCell;

use crate::{Block, SharedKey};

/// All CPUs' blocks in order of their index, of which only the shared parts and the heads can be
/// reached.
///
/// The CPU that made the blocks publishes them once, before the others are released. From then on the
/// directory is only read, without locks and without waiting, from an NMI too. CPUs may register their
/// blocks in any order, before or after.
pub struct Directory<L: 'static, S: 'static, H: 'static = ()> {
    blocks: OnceCell<&'static [&'static Block<L, S, H>]>,
}

impl<L: Send, S: Sync, H: Sync> Directory<L, S, H> {
    /// Creates a directory without blocks.
    pub const fn new() -> Self {
        Self {
            blocks: OnceCell::uninit(),
        }
    }

    /// Publishes the blocks to all CPUs: the one with index 0 first, and so on without gaps.
    ///
    /// # Errors
    ///
    /// [`PublishError`] if a block is in a slot that is not its index, or if the directory has
    /// been published before. Nothing has changed then.
    pub fn publish(&self, blocks: &'static [&'static Block<L, S, H>]) -> Result<(), PublishError> {
        for (slot, block) in (0..).zip(blocks) {
            if block.index() != slot {
                return Err(PublishError::WrongSlot {
                    slot,
                    index: block.index(),
                });
            }
        }
        self.blocks
            .try_init_once(|| blocks)
            .map_err(|_| PublishError::AlreadyPublished)
    }

    /// Returns the shared part of the CPU with this index; `None` if there is no such CPU, or before
    /// [`publish`](Self::publish).
    pub fn get(&self, index: u32) -> Option<&'static S> {
        let block: &'static Block<L, S, H> = self.blocks().get(usize::try_from(index).ok()?)?;
        Some(block.shared())
    }

    /// Iterates over every CPU's index and shared part, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &'static S)> + use<L, S, H> {
        // The slot is the index, by `publish`; reading it from the block would touch a cache line that
        // the block's own CPU writes.
        self.blocks()
            .iter()
            .enumerate()
            .map(|(slot, block)| (slot as u32, block.shared()))
    }

    /// Returns what the CPU with this index has of a shared variable; `None` if there is no such CPU, or
    /// before [`publish`](Self::publish).
    ///
    /// A local variable is no other CPU's business:
    ///
    /// ```compile_fail,E0308
    /// # use core::cell::Cell;
    /// # static CPUS: muster_percpu::Directory<(), ()> = muster_percpu::Directory::new();
    /// muster_percpu::cpu_local! { static TICKS: Cell<u64> = Cell::new(0); }
    /// CPUS.on(1, &TICKS);
    /// ```
    ///
    /// # Panics
    ///
    /// If the CPU's block was made without variables.
    #[track_caller]
    pub fn on<V>(&self, index: u32, variable: &SharedKey<V>) -> Option<&'static V> {
        let block = self.blocks().get(usize::try_from(index).ok()?)?;
        Some(block.get(variable))
    }

    /// Iterates over every CPU's index and what it has of a shared variable, in order.
    ///
    /// # Panics
    ///
    /// At a block that was made without variables.
    pub fn each<V>(
        &self,
        variable: &SharedKey<V>,
    ) -> impl ExactSizeIterator<Item = (u32, &'static V)> + use<L, S, H, V> {
        let variable = *variable;
        // As in `iter`, but the base is read from the block's first line, which its CPU does not write
        // any more.
        self.blocks()
            .iter()
            .enumerate()
            .map(move |(slot, block)| (slot as u32, block.get(&variable)))
    }

    /// Returns the number of CPUs; 0 before [`publish`](Self::publish).
    pub fn len(&self) -> usize {
        self.blocks().len()
    }

    /// Returns whether there are no CPUs, as before [`publish`](Self::publish).
    pub fn is_empty(&self) -> bool {
        self.blocks().is_empty()
    }

    /// Returns the blocks themselves, for a CPU to register its own, for their heads and for several shared
    /// variables of one CPU ([`Block::get`]); none
    /// before [`publish`](Self::publish).
    pub fn blocks(&self) -> &'static [&'static Block<L, S, H>] {
        // `try_get`, as `get` would wait for a publisher that an NMI has interrupted.
        self.blocks.try_get().copied().unwrap_or_default()
    }
}

impl<L: Send, S: Sync, H: Sync> Default for Directory<L, S, H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: Send, S: Sync + fmt::Debug, H: Sync> fmt::Debug for Directory<L, S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The reason why a directory could not be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The directory has been published before.
    AlreadyPublished,
    /// A block is in a slot that is not its index.
    WrongSlot {
        /// The index of the slot.
        slot: u32,
        /// The index of the block.
        index: u32,
    },
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyPublished => f.write_str("the per-CPU directory is already published"),
            Self::WrongSlot { slot, index } => write!(
                f,
                "the per-CPU block of CPU {index} is in slot {slot}: \
                 sort the blocks by index, without gaps"
            ),
        }
    }
}

impl core::error::Error for PublishError {}
