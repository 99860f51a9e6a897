//! The per-CPU block. What is in it is declared where it is used, by `cpu_local!`.

use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicU32, Ordering};

use muster_frames::FRAME_SIZE;
use muster_heap::CpuCache;
use muster_percpu::{
    Directory, Header, Here, Key, PlaceError, Register, Storage, Template, TemplateError,
    Unregistered, WriteOnce, cpu_local,
};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

use crate::arch::descriptors::Descriptors;
use crate::boot::image;
use crate::boot::stack::Slot;

/// How far from GS base the CPU's part of the heap lies, in bytes, with a block and without.
pub const CACHE_FROM_GS: usize = muster_percpu::head_offset::<CpuCache>();

/// The target of GS base while the CPU has no block: a cache that is empty, full and never used.
static UNREGISTERED: Unregistered<CpuCache> = Unregistered::new(CpuCache::new());

cpu_local! {
    /// The CPU's local APIC id: the BSP stores it before it publishes the block. Relaxed: it comes with the
    /// reference to the block, and never changes.
    shared static LAPIC_ID: AtomicU32 = AtomicU32::new(0);
    /// The CPU's GDT and TSS, which the BSP makes behind the block.
    shared static DESCRIPTORS: WriteOnce<&'static Descriptors> = WriteOnce::new();
}

/// Returns the local APIC id of the CPU with this block.
pub fn lapic_id(block: &Block) -> u32 {
    block.get(&LAPIC_ID).load(Ordering::Relaxed)
}

/// Loads this CPU's GDT and TSS.
///
/// # Panics
///
/// If this CPU has not registered its block.
pub fn load_descriptors() {
    Cpu::with_own(&DESCRIPTORS, |descriptors| match descriptors.get() {
        Some(descriptors) => descriptors.load(),
        None => panic!("the per-CPU block has no GDT and TSS: make it by BlockLayout::create"),
    });
}

/// The memory of one CPU's state: its block, and its descriptors behind that. GS base is its address.
#[derive(Debug, Clone, Copy)]
pub struct BlockLayout {
    template: Template,
}

impl BlockLayout {
    /// Finds the CPU-local variables in the image.
    ///
    /// # Errors
    ///
    /// [`TemplateError`], which names the line that the linker script lacks.
    pub fn find() -> Result<Self, TemplateError> {
        let template = Template::find(image::has_loaded)?;
        Ok(Self { template })
    }

    fn descriptors_offset(&self) -> usize {
        Block::size(&self.template).next_multiple_of(align_of::<Descriptors>())
    }

    /// Returns the bytes of memory per CPU, a multiple of a frame.
    pub fn bytes(&self) -> u64 {
        let used = self.descriptors_offset() + size_of::<Descriptors>();
        (used as u64).next_multiple_of(FRAME_SIZE)
    }

    /// Makes the per-CPU block of CPU `index` in `memory`.
    ///
    /// # Errors
    ///
    /// [`PlaceError`]: there is no place for a block.
    ///
    /// # Safety
    ///
    /// `memory` is as many bytes as [`bytes`](Self::bytes) says of frame-aligned, writable memory, mapped for
    /// good in the tables of the loader and of the kernel, and used by nothing else.
    pub unsafe fn create(
        &self,
        index: u32,
        lapic_id: u32,
        memory: NonNull<u8>,
    ) -> Result<&'static Block, PlaceError> {
        let tops = Slot::of(index).interrupt_tops();
        let place = memory.cast::<MaybeUninit<u8>>();
        // SAFETY: (1) the memory is large enough and no one else's, as the caller promises; (2) the block ends
        // before the descriptors, which are aligned, as the offset is in memory that is frame-aligned.
        let (descriptors, place) = unsafe {
            (
                Descriptors::create(memory.add(self.descriptors_offset()).cast().as_ptr(), tops),
                slice::from_raw_parts_mut(place.as_ptr(), Block::size(&self.template)),
            )
        };
        let block = Block::place(place, &self.template, index, CpuCache::new())?;
        block.get(&LAPIC_ID).store(lapic_id, Ordering::Relaxed);
        block.get(&DESCRIPTORS).set(|| descriptors);
        Ok(block)
    }
}

/// One CPU's block, which begins with its cache of the heap.
pub type Block = muster_percpu::Block<CpuCache>;

/// The register that holds the address of a CPU's own block: GS base.
pub struct Gs;

// SAFETY: (1) `store` is always given a header whose first word is its own address, or that of `UNREGISTERED`,
// whose first word is null, so the word at gs:0 is the block that runs here or null. (2) GS base is a register of
// each CPU's own; nothing but `store` writes it after `reset`, and no one loads the GS selector. (3) Muster has no
// tasks: nothing preempts code or moves it to another CPU, so there is nothing to disable.
unsafe impl Register for Gs {
    type Head = CpuCache;
    type NoPreempt = ();

    fn disable_preemption() -> Self::NoPreempt {}

    fn unregistered() -> &'static Unregistered<CpuCache> {
        &UNREGISTERED
    }

    #[inline]
    fn load() -> *const Header {
        let header: *const Header;
        // SAFETY: GS base points to a `Header` since the first instruction of this
        // CPU in the kernel (`reset`); the read touches nothing else.
        unsafe {
            core::arch::asm!(
                "mov {}, gs:[0]",
                out(reg) header,
                // Not `pure`: with that, a value from before a switch of tasks could be used after
                // it. There are none here, but it costs nothing to leave it out.
                options(nostack, preserves_flags, readonly)
            );
        }
        header
    }

    #[inline]
    fn load_base<K: Key>() -> *const u8 {
        let base;
        // SAFETY: as above, but a word further on in the header.
        unsafe {
            core::arch::asm!(
                "mov {}, gs:[{}]", out(reg) base, const K::BASE,
                options(nostack, preserves_flags, readonly)
            );
        }
        base
    }

    unsafe fn store(header: *const Header) {
        // SAFETY: the address of a live object is canonical for the number of levels
        // in use; `VirtAddr::new` knows only four.
        GsBase::write(unsafe { VirtAddr::new_unsafe(header.expose_provenance() as u64) });
    }
}

/// Access to the block of the CPU this runs on.
pub type Cpu = Storage<Gs>;

/// Every CPU's block, by CPU index.
pub static DIRECTORY: Directory<CpuCache> = Directory::new();

/// Runs `f` with this CPU's block, or returns `None` if it has none yet: for code that also runs
/// before registration, in faults and in NMIs.
#[inline]
pub fn try_with<T>(f: impl for<'here> FnOnce(&Here<'here, CpuCache>) -> T) -> Option<T> {
    Cpu::try_with(f)
}

/// Runs `f` with this CPU's block.
///
/// # Panics
///
/// If this CPU has not registered its block.
#[track_caller]
#[inline]
pub fn with<T>(f: impl for<'here> FnOnce(&Here<'here, CpuCache>) -> T) -> T {
    Cpu::with(f)
}

/// Returns every CPU's block, with its index. Empty until the blocks exist.
pub fn all() -> impl ExactSizeIterator<Item = (u32, &'static Block)> {
    let blocks = DIRECTORY.blocks().iter().enumerate();
    blocks.map(|(index, &block)| (index as u32, block))
}

/// Returns the block of the CPU with this index, if there is such a CPU.
pub fn get(index: u32) -> Option<&'static Block> {
    DIRECTORY.blocks().get(index as usize).copied()
}
