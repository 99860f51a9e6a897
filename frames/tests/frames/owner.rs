//! The owners of the tests' memory, those of a kernel, and the library's types for them.

#![allow(dead_code, reason = "not every test needs all")]

use muster_boot::{Kind, MemoryEntry};

muster_frames::owners! {
    /// The owner of a frame, or of a range of physical memory.
    pub enum Owner {
        /// Nobody's: free to be handed out.
        Free = "free",
        /// The boot loader's, until it is reclaimed.
        Loader = "loader",
        /// The kernel's image.
        Kernel = "kernel image",
        /// The frame allocator's record of every frame.
        FrameTable = "frame table",
        /// Page tables.
        PageTables = "page tables",
        /// The heap's.
        Heap = "heap",
        /// The CPUs' stacks.
        Stacks = "stacks",
        /// The CPUs' own blocks.
        PerCpu = "per-CPU blocks",
        /// Memory that is mapped at run time, for as long as it is.
        Mappings = "mappings",
        /// ACPI tables.
        AcpiReclaimable = "ACPI tables",
        /// The firmware's, kept across sleep states.
        AcpiNvs = "ACPI NVS",
        /// A framebuffer.
        Framebuffer = "framebuffer",
        /// Reserved by the firmware or the loader.
        Reserved = "reserved",
        /// Memory with defects.
        Bad = "bad",
        /// Frame 0, which is never handed out.
        NullFrame = "null frame",
        /// The first megabyte, where firmware and its SMM write, and where CPUs start: never handed out.
        LowMemory = "first megabyte",
        /// Memory that the machine's memory-type range registers do not make write-back: never handed out.
        NotWriteBack = "not write-back",
    }
    free: Free, later: Loader, rest: Reserved, null_frame: NullFrame
}

impl Owner {
    pub const ALL: &'static [Self] = <Self as muster_frames::Owner>::ALL;

    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied()
    }

    /// Returns the owner of memory of this kind when the kernel starts.
    pub const fn of_kind(kind: Kind) -> Self {
        match kind {
            Kind::Usable => Self::Free,
            Kind::BootloaderReclaimable => Self::Loader,
            Kind::ExecutableAndModules => Self::Kernel,
            Kind::AcpiReclaimable => Self::AcpiReclaimable,
            Kind::Framebuffer => Self::Framebuffer,
            Kind::AcpiNvs => Self::AcpiNvs,
            Kind::ReservedMapped | Kind::Reserved => Self::Reserved,
            Kind::Bad => Self::Bad,
        }
    }
}

pub type FrameAllocator = muster_frames::FrameAllocator<Owner>;
pub type FrameCache<'a> = muster_frames::FrameCache<'a, Owner>;
pub type Share<'a> = muster_frames::Share<'a, Owner>;
pub type OwnedFrame = muster_frames::OwnedFrame<Owner>;
pub type OwnedRun = muster_frames::OwnedRun<Owner>;
pub type NotFreed<T> = muster_frames::NotFreed<T, Owner>;
pub type FreeError = muster_frames::FreeError<Owner>;
pub type PhysicalMap = muster_frames::PhysicalMap<Owner>;
pub type Totals = muster_frames::Totals<Owner>;
pub type AssignError = muster_frames::AssignError<Owner>;
pub type MapError = muster_frames::MapError<Owner>;

pub fn physical_map(entries: &[MemoryEntry]) -> Result<PhysicalMap, MapError> {
    muster_boot::physical_map(entries, Owner::of_kind)
}
