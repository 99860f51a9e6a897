//! That no memory is both written and executed: at one address, or at two that show the same.

use nodit::interval::ii;
use nodit::{Interval, NoditSet};

use super::{Leaf, Mismatch, PhysicalMemory, TableView};

/// What tables allow of memory, each byte counted once for each address at which they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exclusion {
    /// Bytes that can be executed.
    pub executable: u64,
    /// Bytes that can be written, none of which show memory of those.
    pub writable: u64,
}

impl<M: PhysicalMemory> TableView<M> {
    /// Checks, by walking them, that what can be executed can be written nowhere, whatever the plan
    /// said. Of tables that change meanwhile it is true of each page at the moment it was met.
    ///
    /// # Errors
    ///
    /// [`Mismatch::WritableCode`], or what keeps the walk from its end.
    pub fn verify_exclusion(&self) -> Result<Exclusion, Mismatch> {
        let memory = |leaf: &Leaf| ii(leaf.phys, leaf.phys + (leaf.size.bytes() - 1));
        let mut exclusion = Exclusion::default();
        let mut code = NoditSet::<u64, Interval<u64>>::new();
        self.walk(&mut |leaf| {
            if leaf.rights.executable {
                code.insert_merge_touching_or_overlapping(memory(&leaf));
                exclusion.executable += leaf.size.bytes();
            }
        })?;
        let mut wrong = None;
        self.walk(&mut |leaf| {
            if leaf.rights.writable {
                exclusion.writable += leaf.size.bytes();
                if code.overlaps(&memory(&leaf)) {
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
