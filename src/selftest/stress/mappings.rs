//! Mappings: every CPU maps, touches, protects and unmaps memory, some for itself and some that the
//! others write to concurrently: they must be able to until it is protected, and not after.

use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use muster::internals::arch::apic;
use muster::internals::arch::probe::{self, Fault};
use muster::internals::mm::mapping::Mapping;
use muster::internals::mm::shared;
use muster::internals::mm::stack::Stack;
use muster::internals::smp::{call, lapic};
use muster_frames::{FRAME_SIZE, FrameAlign, PhysAddr, PhysRange, RunRequest};
use muster_machine::lapic::Register;
use muster_paging::{Access, Cache, Step, Target, VirtAddr};

use super::worker::Worker;

/// The maximum number of pages of a mapping: more than are flushed one by one.
const MAX_PAGES: usize = 40;

/// One in this many mappings has a large page and some small ones.
const LARGE: usize = 16;

/// Bytes of a large one.
const LARGE_BYTES: u64 = 2 * 1024 * 1024 + 3 * FRAME_SIZE;

/// One in this many rounds maps contiguous frames, of which there are at most this many.
const CONTIGUOUS: usize = 8;
const MAX_CONTIGUOUS: usize = 16;
/// The lowest limit below which such frames are asked for, 8 MiB, and how many there are: each twice the one before.
const FIRST_LIMIT: u64 = 8 << 20;
const LIMITS: usize = 10;

/// The minimum size of a stack for some work, in bytes: an interrupt on top of the work takes some
/// of it.
const MIN_STACK: u64 = 16 * 1024;

/// The maximum depth of recursion on such a stack, and the bytes that each level takes.
const MAX_DEPTH: u64 = 32;
const DIVE_BYTES: u64 = 128;

/// The number of other CPUs' visits that a mapping should have in each of its phases, if they come.
const VISITS: usize = 4;

/// The maximum number of visits that a CPU makes to others while it waits for theirs.
const MAX_ATTEMPTS: usize = 64;

/// The error code of a store to a page that is present and read-only (Intel SDM vol. 3A, 4.7: the
/// bits P and W/R).
const READ_ONLY: u64 = 0b11;

/// No CPU may visit.
const CLOSED: u64 = 0;
/// Visitors may write.
const WRITABLE: u64 = 1;
/// Visitors must fault.
const PROTECTED: u64 = 2;

/// A mapping of one CPU that the others visit.
///
/// `phase` and `visitors` are SeqCst: a visitor counts itself and then loads the phase, the owner stores the
/// phase and then loads the count, so one of the two sees the other. The store of the phase publishes
/// `start` and `pages`, and `visits` is a count by which nothing is read: these are Relaxed.
pub struct SharedMapping {
    phase: AtomicU64,
    start: AtomicU64,
    pages: AtomicU64,
    visitors: AtomicUsize,
    /// Visits since the phase began.
    visits: AtomicUsize,
}

/// Creates one for each CPU.
pub fn shared_mappings(cpus: usize) -> Vec<CachePadded<SharedMapping>> {
    (0..cpus)
        .map(|_| {
            CachePadded::new(SharedMapping {
                phase: AtomicU64::new(CLOSED),
                start: AtomicU64::new(0),
                pages: AtomicU64::new(0),
                visitors: AtomicUsize::new(0),
                visits: AtomicUsize::new(0),
            })
        })
        .collect()
}

impl SharedMapping {
    /// Opens it to visitors.
    fn open(&self, phase: u64) {
        self.visits.store(0, Ordering::Relaxed);
        self.phase.store(phase, Ordering::SeqCst);
    }

    /// Closes it to new visitors, and waits until all have left.
    fn close(&self) {
        // SeqCst, as in `visit`: of a visitor that comes just now, either it sees this store, or
        // this CPU sees its count.
        self.phase.store(CLOSED, Ordering::SeqCst);
        while self.visitors.load(Ordering::SeqCst) > 0 {
            call::relax();
        }
    }

    /// Writes to one of the pages, if it is open. Returns whether the result is right.
    fn visit(&self, worker: &mut Worker<'_>) -> bool {
        self.visitors.fetch_add(1, Ordering::SeqCst);
        let phase = self.phase.load(Ordering::SeqCst);
        let is_right = phase == CLOSED || self.write(worker, phase);
        self.visitors.fetch_sub(1, Ordering::SeqCst);
        is_right
    }

    fn write(&self, worker: &mut Worker<'_>, phase: u64) -> bool {
        let pages = self.pages.load(Ordering::Relaxed);
        let page = worker.random.below(pages as usize) as u64;
        let address =
            self.start.load(Ordering::Relaxed) + page * FRAME_SIZE + worker.slot as u64 * 8;
        let pointer = core::ptr::with_exposed_provenance_mut::<u64>(address as usize);
        // SAFETY: the mapping stays while this visitor is counted, and the word is this CPU's own
        // in the page.
        let result = unsafe { probe::store(pointer, address) };
        let expected = match phase {
            WRITABLE => Ok(()),
            _ => Err(Fault {
                address,
                error: READ_ONLY,
            }),
        };
        self.visits.fetch_add(1, Ordering::Relaxed);
        worker.tally.operations += 1;
        if result != expected {
            log::error!("a store to {address:#x} came to {result:?}, not {expected:?}");
        }
        result == expected
    }
}

/// Runs the workload on this CPU.
pub fn run(worker: &mut Worker<'_>, shared_mappings: &[CachePadded<SharedMapping>]) {
    work(worker, shared_mappings);
    // No CPU leaves while another's mapping may be visited.
    worker.wait_for_all();
}

/// Maps and unmaps until the time is up.
pub fn work(worker: &mut Worker<'_>, shared_mappings: &[CachePadded<SharedMapping>]) {
    // More CPUs than a page has words would share words.
    let Some(own) = shared_mappings
        .get(worker.slot)
        .filter(|_| worker.slot < 512)
    else {
        return;
    };
    loop {
        if !(private_mapping(worker)
            && shared_mapping(worker, own, shared_mappings)
            && contiguous_mapping(worker)
            && mapped_stack(worker)
            && device_mapping(worker))
        {
            worker.tally.corrupt += 1;
        }
        if worker.is_over() {
            break;
        }
    }
}

/// Tests a mapping that no other CPU uses.
fn private_mapping(worker: &mut Worker<'_>) -> bool {
    let Some(mapping) = map(worker) else {
        return true;
    };
    fill(&mapping);
    is_filled(&mapping)
}

/// Tests a mapping that others write to.
fn shared_mapping(
    worker: &mut Worker<'_>,
    own: &SharedMapping,
    shared_mappings: &[CachePadded<SharedMapping>],
) -> bool {
    let Some(mut mapping) = map(worker) else {
        return true;
    };
    fill(&mapping);
    own.start.store(
        mapping.start().expose_provenance() as u64,
        Ordering::Relaxed,
    );
    own.pages
        .store(mapping.length() / FRAME_SIZE, Ordering::Relaxed);
    own.open(WRITABLE);
    let were_right = visit_others(worker, own, shared_mappings);
    own.close();
    // SAFETY: no reference to the memory is left, and all later writes are probes.
    if let Err(error) = unsafe { mapping.protect(Access::ReadOnly) } {
        log::error!("a mapping can't be protected: {error}");
        return false;
    }
    worker.tally.operations += 1;
    own.open(PROTECTED);
    let were_right = visit_others(worker, own, shared_mappings) && were_right;
    own.close();
    is_filled(&mapping) && were_right
}

/// Tests, now and then, a mapping of frames that must be contiguous and aligned.
fn contiguous_mapping(worker: &mut Worker<'_>) -> bool {
    if worker.random.below(CONTIGUOUS) > 0 {
        return true;
    }
    let bytes = (worker.random.below(MAX_CONTIGUOUS) as u64 + 1) * FRAME_SIZE;
    let align = FRAME_SIZE << worker.random.below(3);
    let Some(frame_align) = FrameAlign::from_bytes(align) else {
        return false;
    };
    let mut request = RunRequest::new((bytes / FRAME_SIZE) as usize).aligned(frame_align);
    let mut limit = u64::MAX;
    if worker.random.below(2) == 0 {
        // As for a device that has no more address lines.
        limit = FIRST_LIMIT << worker.random.below(LIMITS);
        request = request
            .below(PhysAddr::new(limit))
            .within(FrameAlign::MIB_2);
    }
    let Ok(mapping) = worker.timed(|| Mapping::contiguous(request)) else {
        worker.tally.refused += 1;
        return true;
    };
    worker.tally.bytes += bytes;
    fill(&mapping);
    let Some(frames) = mapping.contiguous_frames() else {
        log::error!("a mapping of contiguous frames does not know them");
        return false;
    };
    let start = VirtAddr::from_ptr(mapping.start());
    let is_mapped_to = |offset: u64| match shared::get().path(start + offset).last() {
        Some(Step {
            target: Target::Page(leaf),
            ..
        }) => leaf.phys + (start + offset - leaf.virt) == frames.start() + offset,
        _ => false,
    };
    let boundary = FrameAlign::MIB_2.bytes();
    let is_placed = limit == u64::MAX
        || frames.end() <= PhysAddr::new(limit)
            && frames.start().get() / boundary == (frames.end().get() - 1) / boundary;
    let is_right = frames.start().is_multiple_of(align)
        && frames.len() == bytes
        && is_placed
        && (0..bytes).step_by(FRAME_SIZE as usize).all(is_mapped_to);
    if !is_right {
        log::error!("{bytes} bytes at {start} are not those of the frames {frames:?}");
    }
    is_filled(&mapping) && is_right
}

/// Tests a stack that is mapped for some work.
fn mapped_stack(worker: &mut Worker<'_>) -> bool {
    let bytes = MIN_STACK * (worker.random.below(4) as u64 + 1);
    let Ok(mut stack) = worker.timed(|| Stack::new(bytes)) else {
        worker.tally.refused += 1;
        return true;
    };
    worker.tally.bytes += bytes;
    let depth = worker.random.next() % MAX_DEPTH;
    let mut sum = 0;
    stack.run(|| sum = dive(depth));
    // Interrupts may have used more of it.
    let min_used = depth * DIVE_BYTES;
    let is_right = sum == depth * (depth + 1) / 2 && stack.peak_used() >= min_used;
    if !is_right {
        log::error!(
            "{depth} calls on a stack of their own came to {sum}, in {} bytes",
            stack.peak_used()
        );
    }
    is_right
}

/// Tests a mapping of a device's registers, uncached: those of this CPU's own APIC, where they are
/// in memory.
fn device_mapping(worker: &mut Worker<'_>) -> bool {
    let Some(range) = apic::physical_base().and_then(|start| PhysRange::new(start, FRAME_SIZE))
    else {
        return true;
    };
    // SAFETY: they are there (`apic::physical_base`), and uncached memory is read only when asked for.
    let registers = unsafe { Mapping::physical(range, Access::ReadOnly, Cache::Uncached) };
    let Ok(registers) = registers else {
        worker.tally.refused += 1;
        return true;
    };
    let register = registers
        .start()
        .wrapping_add(Register::Version.offset() as usize);
    // SAFETY: mapped as long as `registers` lives, aligned, and readable at any time.
    let version = unsafe { register.cast::<u32>().read_volatile() };
    if Some(version) != lapic::version() {
        log::error!(
            "an APIC has version {version:#x} by one page, {:#x?} by another",
            lapic::version()
        );
    }
    worker.tally.operations += 1;
    Some(version) == lapic::version()
}

/// Adds up the numbers to `depth`, each in a frame of its own on the stack.
fn dive(depth: u64) -> u64 {
    if depth == 0 {
        return 0;
    }
    let here = black_box([depth; DIVE_BYTES as usize / 8]);
    dive(depth - 1) + black_box(&here)[0]
}

/// Maps some memory. Returns `None` if there is none just now.
fn map(worker: &mut Worker<'_>) -> Option<Mapping> {
    let bytes = if worker.random.below(LARGE) == 0 && worker.budget as u64 > 2 * LARGE_BYTES {
        LARGE_BYTES
    } else {
        (worker.random.below(MAX_PAGES) as u64 + 1) * FRAME_SIZE
    };
    let mapping = worker.timed(|| Mapping::memory(bytes)).ok();
    match mapping {
        Some(_) => worker.tally.bytes += bytes,
        None => worker.tally.refused += 1,
    }
    mapping
}

/// Returns the last word of each page, which no visitor writes to.
fn marks(mapping: &Mapping) -> impl Iterator<Item = *mut u64> {
    let start = mapping.start();
    (0..mapping.length() / FRAME_SIZE).map(move |page| {
        let offset = (page + 1) * FRAME_SIZE - 8;
        start.wrapping_add(offset as usize).cast()
    })
}

/// Marks each page with its address.
fn fill(mapping: &Mapping) {
    for mark in marks(mapping) {
        // SAFETY: the mapping is writable memory, and this CPU alone writes to the last word of its
        // pages.
        unsafe { mark.write_volatile(mark.addr() as u64) };
    }
}

/// Returns whether each page has its mark.
fn is_filled(mapping: &Mapping) -> bool {
    marks(mapping).all(|mark| {
        // SAFETY: the mapping is there, and may be read.
        let found = unsafe { mark.read_volatile() };
        if found != mark.addr() as u64 {
            log::error!("the page at {mark:p} holds {found:#x}: it is somebody else's");
        }
        found == mark.addr() as u64
    })
}

/// Visits other CPUs' mappings until this one's has had its visits, or [`MAX_ATTEMPTS`] times.
fn visit_others(
    worker: &mut Worker<'_>,
    own: &SharedMapping,
    shared_mappings: &[CachePadded<SharedMapping>],
) -> bool {
    let mut were_right = true;
    for _ in 0..MAX_ATTEMPTS {
        let other = worker.random.below(shared_mappings.len());
        if other != worker.slot {
            were_right &= shared_mappings[other].visit(worker);
        }
        if own.visits.load(Ordering::Relaxed) >= VISITS {
            break;
        }
    }
    were_right
}
