//! Signals standing for interrupts: the handler allocates and frees at whatever instruction of the
//! heap it comes.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{CheckedHeap, CpuCache, FramePlatform, MagazineHeap};

use crate::checked::Watch;
use crate::layout;
use crate::shadow::{Random, Shadow};

/// A machine on which SIGUSR1 is an interrupt and SIGUSR2 can't be masked.
struct Interrupted(HostedFrames);

/// The signal mask as it was.
struct Mask(libc::sigset_t);

impl Drop for Mask {
    fn drop(&mut self) {
        // SAFETY: sets this thread's mask to what it was.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }
}

// SAFETY: as `HostedFrames`, and the guard keeps the one signal out whose handler stands for an
// interrupt handler.
unsafe impl FramePlatform for Interrupted {
    type NoPreempt = ();
    type InterruptGuard = Mask;

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) -> Mask {
        let mut before = MaybeUninit::uninit();
        // SAFETY: a set of one signal, blocked for this thread; what was before is written.
        unsafe {
            let mut set = MaybeUninit::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            Mask(before.assume_init())
        }
    }

    hosted_frames!();
}

static HEAP: MagazineHeap<Interrupted> = MagazineHeap::new(Interrupted(HostedFrames::new(8192)));
static CHECKED: CheckedHeap<Plain, Watch> = CheckedHeap::new(Plain, Watch::new());

/// The one heap, as it is.
struct Plain;

// SAFETY: the heap's.
unsafe impl GlobalAlloc for Plain {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { HEAP.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { HEAP.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { HEAP.realloc(block, layout, new_size) }
    }
}

static SUBJECT: Subject = Subject {
    is_checked: AtomicBool::new(false),
};

/// The one heap, as it is or checked: which changes only while there is no block.
struct Subject {
    is_checked: AtomicBool,
}

impl Subject {
    fn heap(&self) -> &'static dyn GlobalAlloc {
        if self.is_checked.load(Ordering::Relaxed) {
            &CHECKED
        } else {
            &Plain
        }
    }
}

// SAFETY: either heap's.
unsafe impl GlobalAlloc for Subject {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.heap().alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { self.heap().dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.heap().realloc(block, layout, new_size) }
    }
}

static HANDLED: AtomicUsize = AtomicUsize::new(0);
static SERVED: AtomicUsize = AtomicUsize::new(0);

/// Handlers that run at least, and rounds of signals that are sent at most until one of them has
/// interrupted the heap.
const MIN_HANDLED: usize = 500;
const MAX_ROUNDS: usize = 20_000_000;

static HELD: [AtomicPtr<u8>; 64] = [const { AtomicPtr::new(ptr::null_mut()) }; 64];

thread_local! {
    static TURN: Cell<usize> = const { Cell::new(0) };
}

fn layout_of(slot: usize) -> Layout {
    let size = if slot.is_multiple_of(2) {
        64
    } else {
        1 + slot * 100
    };
    layout(size, 8)
}

/// Swaps one of a few blocks for a new one of the same size.
extern "C" fn on_signal(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    let turn = TURN.replace(TURN.get().wrapping_add(1));
    let slot = turn % HELD.len();
    let layout = layout_of(slot);
    // SAFETY: the size is not zero.
    let new = unsafe { SUBJECT.alloc(layout) };
    if !new.is_null() {
        SERVED.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the block has this many bytes.
        unsafe { new.write_bytes(turn as u8, layout.size()) };
    }
    let old = HELD[slot].swap(new, Ordering::AcqRel);
    if !old.is_null() {
        // SAFETY: live, of this layout as each slot has its own, and out of the slot only here.
        unsafe { SUBJECT.dealloc(old, layout) };
    }
}

#[test]
fn handlers_use_the_heap_at_any_instruction() {
    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
        let handler: extern "C" fn(libc::c_int) = on_signal;
        // SAFETY: the handler uses the heap under test and atomics, nothing else.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    for is_checked in [false, true] {
        SUBJECT.is_checked.store(is_checked, Ordering::Relaxed);
        be_interrupted();
    }
    assert!(CHECKED.totals().sound_blocks > 0);
}

fn be_interrupted() {
    let frames = HEAP.platform().0.frames_left();
    let reentries = HEAP.totals().reentries;
    HANDLED.store(0, Ordering::Relaxed);
    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            // The thread takes its CPU number before the first signal comes.
            assert!(HEAP.drain());
            // SAFETY: the calling thread's own name.
            let this = unsafe { libc::pthread_self() };
            let interrupter = thread::spawn(move || {
                for _ in 0..MAX_ROUNDS {
                    let handled = HANDLED.load(Ordering::Relaxed);
                    // Where CPUs are few, signals come together, and seldom amid the heap.
                    if handled >= MIN_HANDLED && HEAP.totals().reentries > reentries {
                        break;
                    }
                    for signal in [libc::SIGUSR1, libc::SIGUSR2] {
                        // SAFETY: the worker lives until it has joined this thread.
                        unsafe { libc::pthread_kill(this, signal) };
                    }
                    thread::yield_now();
                }
            });
            let mut random = Random::new(3);
            let mut shadow = Shadow::new(&SUBJECT);
            while !interrupter.is_finished() {
                match random.below(100) {
                    0 => shadow.free_all(),
                    1 => {
                        CHECKED.flush();
                        assert!(HEAP.drain());
                    }
                    2..45 => shadow.free_any(&mut random),
                    45..50 => {
                        shadow.realloc_any(&mut random, 64);
                    }
                    _ => {
                        shadow.alloc(random.layout());
                    }
                }
            }
            interrupter.join().unwrap();
            shadow.free_all();
            assert!(HEAP.drain());
            is_over.store(true, Ordering::Release);
        });
        // A second CPU, so that handlers meet locks that are held.
        let mut random = Random::new(4);
        let mut shadow = Shadow::new(&SUBJECT);
        while !is_over.load(Ordering::Acquire) && !worker.is_finished() {
            shadow.alloc(random.layout());
            shadow.free_any(&mut random);
        }
        shadow.free_all();
        assert!(HEAP.drain());
    });
    for (slot, held) in HELD.iter().enumerate() {
        let block = held.swap(ptr::null_mut(), Ordering::Acquire);
        let layout = layout_of(slot);
        if !block.is_null() {
            // SAFETY: as in the handler.
            unsafe { SUBJECT.dealloc(block, layout) };
        }
    }
    CHECKED.flush();
    let totals = HEAP.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
    assert!(totals.reentries > reentries && SERVED.load(Ordering::Relaxed) > 0);
    assert!(HEAP.drain());
    HEAP.trim();
    assert_eq!(HEAP.totals().frames(), 0, "{HEAP:?}");
    assert_eq!(HEAP.platform().0.frames_left(), frames);
}
