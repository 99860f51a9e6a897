//! Why the kernel can't start with the memory that there is.

use core::fmt;

use muster_frames::{FramesError, PhysRange};
use muster_machine::mtrr::MemoryType;
use muster_paging::{Mismatch, PlanError, TableError};
use muster_percpu::{PlaceError, TemplateError};

use crate::boot::owner::{AssignError, MapError};

/// Why the shared memory state can't be built.
#[derive(Debug)]
pub enum BuildError {
    /// The CPU can't mark pages as not executable.
    NoExecuteMissing,
    /// The loader's memory map contradicts itself.
    Map(MapError),
    /// The image lies in memory that the memory map calls something else.
    Image(AssignError),
    /// The MTRRs give a part of the image this type.
    ImageNotWriteBack(PhysRange, MemoryType),
    /// The loader's HHDM, at this address, does not lie below the kernel's windows.
    HhdmInTheWay(u64),
    /// The mapping plan contradicts itself.
    Plan(PlanError),
    /// The frame allocator can't be set up.
    Frames(FramesError),
    /// The tables can't be built.
    Tables(TableError),
    /// The finished tables are not as planned.
    Mismatch(Mismatch),
    /// The CPU-local variables are not in the image.
    Template(TemplateError),
    /// A per-CPU block has no place in its memory.
    Place(PlaceError),
    /// There is not enough memory for this.
    OutOfMemory(&'static str),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoExecuteMissing => {
                write!(
                    f,
                    "this CPU has no NX bit, without which Muster does not map memory"
                )
            }
            Self::Map(error) => write!(f, "the loader's memory map is wrong: {error}"),
            Self::Image(error) => {
                write!(
                    f,
                    "the loader's memory map does not show the kernel image: {error}"
                )
            }
            Self::ImageNotWriteBack(range, kind) => {
                write!(
                    f,
                    "the kernel image lies in memory that the MTRRs make {kind} rather than WB, {range}: \
                     update the machine's firmware, or use another loader"
                )
            }
            Self::HhdmInTheWay(offset) => {
                write!(
                    f,
                    "the loader's HHDM at {offset:#x} does not lie below the kernel's own windows"
                )
            }
            Self::Plan(error) => write!(f, "memory can't be mapped as planned: {error}"),
            Self::Frames(error) => write!(f, "the frame allocator can't start: {error}"),
            Self::Tables(error) => write!(f, "the page tables can't be built: {error}"),
            Self::Mismatch(error) => error.fmt(f),
            Self::Template(error) => error.fmt(f),
            Self::Place(error) => error.fmt(f),
            Self::OutOfMemory(what) => {
                write!(
                    f,
                    "the machine has too little memory for {what}; give it more"
                )
            }
        }
    }
}

impl From<PlanError> for BuildError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}

impl From<TableError> for BuildError {
    fn from(error: TableError) -> Self {
        Self::Tables(error)
    }
}
