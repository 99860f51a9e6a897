//! The check, by a walk of the tables, that no memory is both writable and executable: at one address, or at
//! two that map the same.

use alloc::vec::Vec;

use muster_frames::PhysAddr;

use super::{Leaf, Mismatch, PhysicalMemory, TableView};

/// The rights that tables allow to memory, each byte counted once for each address at which they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exclusion {
    /// Bytes that can be executed.
    pub executable: u64,
    /// Bytes that can be written, none of which map memory of those.
    pub writable: u64,
}

/// Some physical memory, from its first byte to its last.
type Bytes = (PhysAddr, PhysAddr);

impl<M: PhysicalMemory> TableView<M> {
    /// Checks, by walking them, that what can be executed can be written nowhere, whatever the plan
    /// said. If tables change concurrently, it is true of each page at the moment it was visited.
    ///
    /// It takes 16 bytes of memory for each run of pages that can be executed: those whose memory follows each
    /// other upwards in the order of their addresses, as a region's does. They are one block, which doubles as
    /// it grows.
    ///
    /// # Errors
    ///
    /// [`Mismatch::WritableCode`], [`Mismatch::OutOfMemory`], or what keeps the walk from its end.
    pub fn verify_exclusion(&self) -> Result<Exclusion, Mismatch> {
        let mut exclusion = Exclusion::default();
        let mut code = Vec::new();
        let mut recorded = Ok(());
        self.walk(&mut |leaf| {
            if leaf.rights.executable {
                exclusion.executable += leaf.size.bytes();
                recorded = recorded.and_then(|()| record(&mut code, memory(&leaf)));
            }
        })?;
        recorded?;
        code.sort_unstable();
        code.dedup_by(|next, before| {
            let is_same = next.0 <= before.1;
            if is_same {
                before.1 = before.1.max(next.1);
            }
            is_same
        });
        let mut wrong = None;
        self.walk(&mut |leaf| {
            if leaf.rights.writable {
                exclusion.writable += leaf.size.bytes();
                let (first, last) = memory(&leaf);
                // Sorted, and apart from one another.
                let index = code.partition_point(|&(_, end)| end < first);
                if code.get(index).is_some_and(|&(start, _)| start <= last) {
                    wrong.get_or_insert(leaf);
                }
            }
        })?;
        match wrong {
            Some(leaf) => Err(Mismatch::WritableCode { leaf }),
            None => Ok(exclusion),
        }
    }
}

fn memory(leaf: &Leaf) -> Bytes {
    (leaf.phys, leaf.phys + (leaf.size.bytes() - 1))
}

/// Adds memory to a list, to its last entry if it follows that.
fn record(code: &mut Vec<Bytes>, memory: Bytes) -> Result<(), Mismatch> {
    if let Some((_, end)) = code.last_mut().filter(|(_, end)| *end + 1 == memory.0) {
        *end = memory.1;
        return Ok(());
    }
    let bytes = (code.len() + 1) * size_of::<Bytes>();
    let reserved = code.try_reserve(1);
    reserved.map_err(|_| Mismatch::OutOfMemory { bytes })?;
    code.push(memory);
    Ok(())
}
