//! The view across CPUs: every block, but only the part that may be shared.

use core::fmt;

use conquer_once::spin::OnceCell;

use crate::Block;

/// All CPUs' blocks in order of their index, of which only the shared parts and the heads can be
/// reached.
///
/// Published once, by the CPU that made the blocks, before the others are released; from then on
/// only read, without locks and without waiting, from an NMI too. CPUs may register their blocks in
/// any order, before or after.
pub struct Directory<L: 'static, S: 'static, H: 'static = ()> {
    blocks: OnceCell<&'static [&'static Block<L, S, H>]>,
}

impl<L: Send, S: Sync, H: Sync> Directory<L, S, H> {
    /// A directory without blocks.
    pub const fn new() -> Self {
        Self {
            blocks: OnceCell::uninit(),
        }
    }

    /// Makes the blocks known to all CPUs: the one with index 0 first, and so on without gaps.
    ///
    /// # Errors
    ///
    /// [`PublishError`] if a block stands at a place that is not its index, or if the directory has
    /// been published before. Nothing has changed then.
    pub fn publish(&self, blocks: &'static [&'static Block<L, S, H>]) -> Result<(), PublishError> {
        for (place, block) in (0..).zip(blocks) {
            if block.index() != place {
                return Err(PublishError::OutOfPlace {
                    place,
                    index: block.index(),
                });
            }
        }
        self.blocks
            .try_init_once(|| blocks)
            .map_err(|_| PublishError::AlreadyPublished)
    }

    /// The shared part of the CPU with this index; `None` if there is no such CPU, or before
    /// [`publish`](Self::publish).
    pub fn get(&self, index: u32) -> Option<&'static S> {
        let block: &'static Block<L, S, H> = self.blocks().get(usize::try_from(index).ok()?)?;
        Some(block.shared())
    }

    /// Every CPU's index and shared part, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u32, &'static S)> + use<L, S, H> {
        // The place is the index, by `publish`; asking the block would touch a line that its own
        // CPU writes.
        self.blocks()
            .iter()
            .enumerate()
            .map(|(place, block)| (place as u32, block.shared()))
    }

    /// How many CPUs there are; 0 before [`publish`](Self::publish).
    pub fn len(&self) -> usize {
        self.blocks().len()
    }

    /// Whether there are none, as before [`publish`](Self::publish).
    pub fn is_empty(&self) -> bool {
        self.blocks().is_empty()
    }

    /// The blocks themselves, for a CPU to register the one that is its own, and for their heads; none
    /// before [`publish`](Self::publish).
    pub fn blocks(&self) -> &'static [&'static Block<L, S, H>] {
        // `try_get`, because `get` would wait for a publisher that an NMI has interrupted.
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

/// Why a directory could not be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// A directory is published once.
    AlreadyPublished,
    /// A block stands at a place that is not its index.
    OutOfPlace {
        /// Where the block stands.
        place: u32,
        /// The index the block was made with.
        index: u32,
    },
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyPublished => f.write_str("the per-CPU directory is already published"),
            Self::OutOfPlace { place, index } => write!(
                f,
                "the per-CPU block of CPU {index} stands at place {place}: \
                 sort the blocks by index, without gaps"
            ),
        }
    }
}

impl core::error::Error for PublishError {}
