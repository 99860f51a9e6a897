//! Threads standing for CPUs and the host's memory for the machine's frames.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use core::{fmt, slice};
use std::alloc::System;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread_local;

use super::Memory;
use crate::{CpuCache, FRAME, FastPath, FramePlatform, NO_CACHE};

/// The number of threads that can have a cache at a time.
const CPUS: usize = 64;
const BITS: usize = u64::BITS as usize;

/// A machine with a fixed number of frames, on which each thread is a CPU.
///
/// The first 64 threads have caches. A thread that starts when another has ended may get the other's
/// number, and with it what it left in its cache.
///
/// The memory comes from the host's own allocator in one piece, when the first frame is asked for,
/// and goes back when this is dropped; no block of the heap may be used after that.
pub struct HostedFrames {
    count: usize,
    /// The identity of this machine among all; 0 before it is first used.
    number: AtomicU64,
    memory: OnceLock<Option<Memory>>,
    free: Mutex<Option<FreeFrames>>,
    /// A CPU's cache, or null before it has first used the heap.
    caches: [AtomicPtr<CpuCache>; CPUS],
}

/// Which frames are free: a bit for each, in the first frames of the memory.
struct FreeFrames {
    bits: &'static mut [u64],
    /// No bit is set in the words before this.
    lowest: usize,
    free: usize,
}

impl HostedFrames {
    /// Creates a machine with this many frames, less what it takes to keep account of them.
    pub const fn new(count: usize) -> Self {
        Self {
            count,
            number: AtomicU64::new(0),
            memory: OnceLock::new(),
            free: Mutex::new(None),
            caches: [const { AtomicPtr::new(ptr::null_mut()) }; CPUS],
        }
    }

    /// Returns how many frames are free.
    pub fn frames_left(&self) -> usize {
        self.with_free(|_, frames| frames.free).unwrap_or(0)
    }

    #[cold]
    fn find_cache(&self) -> &CpuCache {
        static MACHINES: AtomicU64 = AtomicU64::new(0);

        let Some(place) = thread_number().and_then(|number| self.caches.get(number)) else {
            return &NO_CACHE;
        };
        // Relaxed: this thread stored it, or the last one of its number, which was taken with Acquire.
        // SAFETY: made by `new_cache`, and kept until `self` is dropped.
        let cache = unsafe { place.load(Ordering::Relaxed).as_ref() }
            .unwrap_or_else(|| self.new_cache(place));
        // Relaxed, here and in `cache`: the number is all that goes from one thread to another, and it
        // changes once.
        if self.number.load(Ordering::Relaxed) == 0 {
            let new = MACHINES.fetch_add(1, Ordering::Relaxed) + 1;
            // The second CPU leaves the first one's number.
            let _ = (self.number).compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed);
        }
        HERE.set(Here {
            machine: self.number.load(Ordering::Relaxed),
            cache,
        });
        cache
    }

    #[cold]
    fn new_cache(&self, place: &AtomicPtr<CpuCache>) -> &CpuCache {
        // SAFETY: a cache is larger than nothing, and all zeroes when it is new.
        let cache = unsafe { System.alloc_zeroed(Layout::new::<CpuCache>()) }.cast::<CpuCache>();
        // Release, with the Acquire of `each_cache`: another thread sees it all zeroes.
        place.store(cache, Ordering::Release);
        // SAFETY: just made, unless the host has no memory; kept until `self` is dropped.
        unsafe { cache.as_ref() }.unwrap_or(&NO_CACHE)
    }

    fn with_free<T>(&self, f: impl FnOnce(&Memory, &mut FreeFrames) -> T) -> Option<T> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = (self.memory)
            .get_or_init(|| Memory::new(self.count.checked_mul(FRAME)?, HUGE))
            .as_ref()?;
        let free = free.get_or_insert_with(|| FreeFrames::new(memory, self.count));
        Some(f(memory, free))
    }
}

/// The alignment of the memory: the largest that frames can have.
const HUGE: usize = 2 << 20;

// SAFETY: (1), (6) Nothing interrupts a thread but a signal handler, which must not allocate in any
// Rust program. (2), (3) No two threads that run at the same time have one number. (4) There are no
// interrupts. (5) A frame has one owner, `FreeFrames` or whoever it gave it to, and the memory lives
// as long as this does.
unsafe impl FramePlatform for HostedFrames {
    const FAST_PATH: FastPath = FastPath::Uninterrupted;

    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        thread_number()
    }

    #[inline]
    fn cache(&self) -> &CpuCache {
        let here = HERE.get();
        if here.machine == self.number.load(Ordering::Relaxed) && here.machine != 0 {
            // SAFETY: `find_cache` left it for the machine of this number, which is this one and no
            // other; it is kept until `self` is dropped.
            return unsafe { &*here.cache };
        }
        self.find_cache()
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        // Acquire, with the Release of `new_cache`.
        let caches = self
            .caches
            .iter()
            .map(|place| place.load(Ordering::Acquire));
        // SAFETY: as in `cache`.
        (caches.filter_map(|cache| unsafe { cache.as_ref() })).for_each(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        self.with_free(|memory, free| {
            let first = free.allocate(count, align)?;
            // SAFETY: the frame's number is less than the memory has frames.
            Some(unsafe { memory.start.add(first * FRAME) })
        })?
    }

    unsafe fn extend_frames(&self, start: NonNull<u8>, count: usize, more: usize) -> bool {
        let extended = self.with_free(|memory, free| {
            let offset = start.addr().get() - memory.start.addr().get();
            free.take(offset / FRAME + count, more)
        });
        extended == Some(true)
    }

    fn capacity(&self) -> usize {
        self.count
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        self.with_free(|memory, free| {
            let offset = start.addr().get() - memory.start.addr().get();
            free.free(offset / FRAME, count);
        });
    }
}

impl Drop for HostedFrames {
    fn drop(&mut self) {
        for place in &mut self.caches {
            let cache = *place.get_mut();
            if !cache.is_null() {
                // SAFETY: `new_cache` allocated it so, and nobody has this machine any more.
                unsafe { System.dealloc(cache.cast(), Layout::new::<CpuCache>()) };
            }
        }
    }
}

impl fmt::Debug for HostedFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostedFrames")
            .field("count", &self.count)
            .field("free", &self.frames_left())
            .finish_non_exhaustive()
    }
}

impl FreeFrames {
    fn new(memory: &Memory, count: usize) -> Self {
        let words = count.div_ceil(BITS);
        let own = (words * size_of::<u64>()).div_ceil(FRAME).min(count);
        // SAFETY: the memory's first frames, which are never handed out; the machine that owns the
        // memory owns this, too.
        let bits = unsafe {
            memory.start.write_bytes(0, own * FRAME);
            slice::from_raw_parts_mut(memory.start.cast().as_ptr(), words)
        };
        let mut frames = Self {
            bits,
            lowest: 0,
            free: 0,
        };
        frames.free(own, count - own);
        frames
    }

    /// Takes the first fit. Linear in the memory's size: a test's frames aren't asked for often.
    fn allocate(&mut self, count: usize, align: usize) -> Option<usize> {
        // None, and at a multiple of nothing, is nowhere.
        if count == 0 || align == 0 || count > self.free || align > HUGE / FRAME {
            return None;
        }
        while self.bits.get(self.lowest) == Some(&0) {
            self.lowest += 1;
        }
        let end = self.bits.len() * BITS;
        let mut first = (self.lowest * BITS).next_multiple_of(align);
        while first + count <= end {
            match (first..first + count).rev().find(|&bit| !self.is_free(bit)) {
                None => return self.take(first, count).then_some(first),
                Some(taken) if self.bits[taken / BITS] == 0 => {
                    first = ((taken / BITS + 1) * BITS).next_multiple_of(align);
                }
                Some(taken) => first = (taken + 1).next_multiple_of(align),
            }
        }
        None
    }

    /// Takes exactly these frames, if all are free.
    fn take(&mut self, first: usize, count: usize) -> bool {
        let left = (self.bits.len() * BITS).checked_sub(first);
        let are_free = left.is_some_and(|left| count <= left)
            && (first..first + count).all(|bit| self.is_free(bit));
        if are_free {
            for bit in first..first + count {
                self.bits[bit / BITS] &= !(1 << (bit % BITS));
            }
            self.free -= count;
        }
        are_free
    }

    fn free(&mut self, first: usize, count: usize) {
        for bit in first..first + count {
            assert!(!self.is_free(bit), "frame {bit} freed twice");
            self.bits[bit / BITS] |= 1 << (bit % BITS);
        }
        self.free += count;
        self.lowest = self.lowest.min(first / BITS);
    }

    fn is_free(&self, bit: usize) -> bool {
        self.bits[bit / BITS] & (1 << (bit % BITS)) != 0
    }
}

/// The threads' numbers that are taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// A number that a thread has until it ends.
struct Number(usize);

impl Drop for Number {
    fn drop(&mut self) {
        CURRENT.set(None);
        HERE.set(Here::NOWHERE);
        ASKED.set(true);
        // Release, with the Acquire of `take_number`: the next thread of this number finds what this one
        // left in its caches.
        TAKEN.fetch_and(!(1 << self.0), Ordering::Release);
    }
}

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Whether the thread has had its chance of a number.
    static ASKED: Cell<bool> = const { Cell::new(false) };
    static NUMBER: Cell<Option<Number>> = const { Cell::new(None) };
    static HERE: Cell<Here> = const { Cell::new(Here::NOWHERE) };
}

/// The cache that the thread used last, and of which machine it is.
#[derive(Clone, Copy)]
struct Here {
    machine: u64,
    cache: *const CpuCache,
}

impl Here {
    const NOWHERE: Self = Self {
        machine: 0,
        cache: ptr::null(),
    };
}

#[inline]
fn thread_number() -> Option<usize> {
    let number = CURRENT.get();
    if number.is_none() && !ASKED.get() {
        return take_number();
    }
    number
}

#[cold]
fn take_number() -> Option<usize> {
    ASKED.set(true);
    // Relaxed: the exchange decides.
    let mut taken = TAKEN.load(Ordering::Relaxed);
    while let number @ 0..CPUS = taken.trailing_ones() as usize {
        let with = taken | 1 << number;
        // Acquire, with the Release of a number's drop; Relaxed where it fails and is tried again.
        match TAKEN.compare_exchange_weak(taken, with, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                let number = Number(number);
                let current = number.0;
                // Where the thread is ending already, it does without, and drops the number.
                let kept = NUMBER.try_with(move |kept| kept.set(Some(number)));
                CURRENT.set(kept.ok().map(|()| current));
                return CURRENT.get();
            }
            Err(now) => taken = now,
        }
    }
    None
}
