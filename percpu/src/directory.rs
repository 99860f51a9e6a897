//! The directory of all CPUs' blocks, of which only what is shared can be reached.

use core::fmt;

use conquer_once::spin::OnceCell;

use crate::{Block, SharedKey};

/// All CPUs' blocks in order of their index, of which only the shared variables and the heads can be
/// reached.
///
/// The CPU that made the blocks publishes them once, before the others are released. From then on the
/// directory is only read, without locks and without waiting, from an NMI too. CPUs may register their
/// blocks in any order, before or after.
pub struct Directory<H: 'static = ()> {
    blocks: OnceCell<&'static [&'static Block<H>]>,
}

impl<H: Sync> Directory<H> {
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
    /// been published before, or another CPU is at it. Nothing has changed then.
    pub fn publish(&self, blocks: &'static [&'static Block<H>]) -> Result<(), PublishError> {
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

    /// Returns what the CPU with this index has of a shared variable; `None` if there is no such CPU, or
    /// before [`publish`](Self::publish).
    ///
    /// A local variable is no other CPU's business:
    ///
    /// ```compile_fail,E0308
    /// # use muster_percpu::LocalWord;
    /// # static CPUS: muster_percpu::Directory = muster_percpu::Directory::new();
    /// muster_percpu::cpu_local! { static TICKS: LocalWord<u64> = LocalWord::new(0); }
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
    ) -> impl ExactSizeIterator<Item = (u32, &'static V)> + use<H, V> {
        let variable = *variable;
        // The slot is the index, by `publish`.
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
    pub fn blocks(&self) -> &'static [&'static Block<H>] {
        // `try_get`, as `get` would wait for a publisher that an NMI has interrupted.
        self.blocks.try_get().copied().unwrap_or_default()
    }
}

impl<H: Sync> Default for Directory<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Sync> fmt::Debug for Directory<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.blocks()).finish()
    }
}

/// The reason why a directory could not be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The directory has been published before, or another CPU is publishing it just now.
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
