//! A second root, for a CPU that is not yet asked to flush.

use crate::virt_addr::VirtAddr;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use crate::plan::PlanError;
use crate::virt_range::VirtRange;
use muster_frames::Frame;
use muster_frames::OwnedFrame;

use super::{
    ADDRESS, Entry, FrameSource, PhysicalMemory, TableError, Tables, empty_table, index, shift,
};

/// A root beside that of some [`Tables`], and the tables on the way from it that are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialRoot {
    /// The frame that CR3 points to.
    pub root: Frame,
    /// The number of frames that were taken for it, the root's included.
    pub tables: usize,
}

impl<M: PhysicalMemory> Tables<M> {
    /// Makes a second root, by which the CPU reaches what these tables map now, except `window`. The
    /// tables for addresses outside it are shared, those that reach across its borders are copied.
    ///
    /// It is for a CPU that runs already and is not yet asked to flush
    /// ([`Shootdown`](super::Shootdown)). A CPU may walk tables ahead of what it executes, and keep
    /// what it read of them, so it may not come by a table that is given back without its being asked.
    /// By this root it doesn't, as only what lies in `window` can be unmapped, or get other rights,
    /// from now on ([`ChangeError::Shared`](super::ChangeError::Shared)). It may lack mappings that are
    /// made later. It stays as it is, for good.
    ///
    /// With several second roots, only what lies in the windows of all of them can change: if two windows
    /// have nothing in common, nothing can.
    ///
    /// May allocate memory, to record the window: for when the kernel starts.
    ///
    /// # Errors
    ///
    /// [`TableError::Region`] with [`PlanError::NotCanonical`] if some of the window's addresses do not
    /// exist. [`TableError::OutOfFrames`], [`TableError::WrongOwner`], [`TableError::Unreachable`],
    /// [`TableError::OutOfMemory`], or [`TableError::AlreadyMapped`] if a large page reaches across a
    /// border of the window. Nothing was taken then.
    pub fn root_without(
        &mut self,
        window: VirtRange,
        frames: &impl FrameSource,
    ) -> Result<PartialRoot, TableError> {
        if !self.levels.have(window) {
            let error = PlanError::NotCanonical {
                name: "window",
                virt: window.start(),
                length: window.len(),
                bits: self.levels.bits(),
            };
            return Err(error.into());
        }
        let bytes = size_of::<VirtRange>();
        let reserved = self.lacking.try_reserve(1);
        reserved.map_err(|_| TableError::OutOfMemory { bytes })?;
        let mut made = Vec::new();
        let (root, level) = (self.root, self.levels.count());
        match self.copy_without(window, root, level, VirtAddr::new(0), frames, &mut made) {
            Ok(root) => {
                self.lacking.push(window);
                let tables = made.len();
                // The entries name them from here on, for good.
                made.into_iter().for_each(|owned| {
                    let _ = owned.into_raw();
                });
                Ok(PartialRoot { root, tables })
            }
            Err(error) => {
                // No CPU has seen them.
                made.into_iter().for_each(|owned| frames.give_back(owned));
                Err(error)
            }
        }
    }

    /// Copies a table that reaches across a border of the window, and those below it that do.
    fn copy_without<S: FrameSource>(
        &self,
        window: VirtRange,
        original: Frame,
        level: u8,
        virt: VirtAddr,
        frames: &S,
        made: &mut Vec<OwnedFrame<S::Owner>>,
    ) -> Result<Frame, TableError> {
        let bytes = size_of::<OwnedFrame<S::Owner>>();
        let reserved = made.try_reserve(1);
        reserved.map_err(|_| TableError::OutOfMemory { bytes })?;
        let owned = empty_table(&self.memory, frames)?;
        let copy = owned.frame();
        made.push(owned);
        let slots = (0..).zip(self.table(original)?);
        for (place, slot) in slots {
            let virt = self
                .levels
                .canonical(VirtAddr::new(virt.get() | place << shift(level)));
            let last = VirtAddr::new(virt.get() | ((1 << shift(level)) - 1));
            // Relaxed: whoever changes the tables has them to itself, as here.
            let entry = slot.load(Ordering::Relaxed);
            let is_outside = last < window.start() || window.last() < virt;
            let is_inside = window.contains(virt) && window.contains(last);
            let entry = match Entry::decode(entry, level, self.features) {
                // A withdrawn one too: its table may go back, and nobody would tell this root.
                Entry::Absent => continue,
                _ if is_outside => entry,
                _ if is_inside => continue,
                Entry::Table(Some(below)) => {
                    let below = self.copy_without(window, below, level - 1, virt, frames, made)?;
                    entry & !ADDRESS | below.start().get()
                }
                Entry::Leaf { .. } => return Err(TableError::AlreadyMapped { virt }),
                Entry::Table(None) | Entry::Malformed => continue,
            };
            let copied = self.table(copy)?;
            // Relaxed: the copy is published by whoever hands the new root on.
            copied[index(virt, level)].store(entry, Ordering::Relaxed);
        }
        Ok(copy)
    }
}
