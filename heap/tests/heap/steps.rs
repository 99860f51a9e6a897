//! The exhaustive interrupt test: an operation is single-stepped again and again, and each time
//! another one of its instructions is interrupted by a handler that uses the heap.
//!
//! The trap flag does it (Intel SDM, volume 1, section 3.4.3.3): while it is set, the processor traps
//! after every instruction, which Linux hands on as SIGTRAP.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::ptr::{self, NonNull};
use std::cell::Cell;

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FastPath, FramePlatform, MagazineHeap, resume};

use crate::layout;

/// A machine whose fast paths are flagged.
struct Flagged(HostedFrames);

/// A machine whose fast paths are restarted: GS base is the address of the thread's cache.
struct Restarted(HostedFrames);

/// The machine of the thread that runs a test.
trait Machine: FramePlatform + 'static {
    const NEW: Self;

    fn start_cpu(&self);
    fn frames_left(&self) -> usize;
}

macro_rules! machine {
    ($name:ident, $fast_path:expr) => {
        // SAFETY: as `HostedFrames`; what interrupts a thread here is `on_trap`, which keeps to (7),
        // as `start_cpu` does. (4) A trap can't be masked, so this stands for an NMI.
        unsafe impl FramePlatform for $name {
            const FAST_PATH: FastPath = $fast_path;

            type NoPreempt = ();
            type InterruptGuard = ();

            fn disable_preemption(&self) {}

            fn disable_interrupts(&self) {}

            hosted_frames!();
        }
    };
}

machine!(Flagged, FastPath::Flagged);
machine!(Restarted, FastPath::Restarted { cache_from_gs: 0 });

impl Machine for Flagged {
    const NEW: Self = Self(HostedFrames::new(4096));

    fn start_cpu(&self) {}

    fn frames_left(&self) -> usize {
        self.0.frames_left()
    }
}

impl Machine for Restarted {
    const NEW: Self = Self(HostedFrames::new(4096));

    fn start_cpu(&self) {
        /// `ARCH_SET_GS` (Linux, `asm/prctl.h`).
        const SET_GS: i32 = 0x1001;
        let cache = ptr::from_ref(self.cache());
        // SAFETY: no Rust program on Linux uses GS base for anything else.
        let result = unsafe { libc::syscall(libc::SYS_arch_prctl, SET_GS, cache) };
        assert_eq!(result, 0);
    }

    fn frames_left(&self) -> usize {
        self.0.frames_left()
    }
}

/// Bit 8 of RFLAGS (Intel SDM, volume 1, section 3.4.3.3).
const TRAP_FLAG: i64 = 1 << 8;

type Handler<'a> = &'a dyn Fn();

thread_local! {
    /// Instructions until the handler's turn, and the handler.
    static COUNTDOWN: Cell<usize> = const { Cell::new(0) };
    static HANDLER: Cell<Option<Handler<'static>>> = const { Cell::new(None) };
}

extern "C" fn on_trap(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(countdown) = COUNTDOWN.get().checked_sub(1) else {
        return;
    };
    COUNTDOWN.set(countdown);
    if countdown == 0
        && let Some(handler) = HANDLER.get()
    {
        handler();
        // SAFETY: the kernel's, for this signal, and nobody else looks at it.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        *rip = resume(*rip as usize) as i64;
        // The rest is of no interest.
        context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP_FLAG;
    }
}

/// Runs `work` step by step up to an instruction, counted from 1, and `handler` before that one.
/// Returns whether there was one of that number.
fn step(at: usize, handler: Handler<'_>, work: &dyn Fn()) -> bool {
    COUNTDOWN.set(at);
    // SAFETY: only the lifetime changes, and the handler is forgotten before this returns.
    HANDLER.set(Some(unsafe {
        core::mem::transmute::<Handler<'_>, Handler<'static>>(handler)
    }));
    // SAFETY: sets and clears the trap flag, bit 8, by way of the stack, below the red zone.
    unsafe {
        asm!(
            "sub rsp, 128",
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "add rsp, 128"
        );
        work();
        asm!(
            "sub rsp, 128",
            "pushfq",
            "and qword ptr [rsp], ~0x100",
            "popfq",
            "add rsp, 128"
        );
    }
    HANDLER.set(None);
    COUNTDOWN.get() == 0
}

const SIZE: usize = 64;
const LAYOUT: Layout = Layout::new::<[u8; SIZE]>();

/// A heap, and the layout of the blocks that are allocated from it.
struct Test<M: 'static>(&'static MagazineHeap<M>, Layout);

impl<M: Machine> Test<M> {
    fn alloc(&self) -> Option<NonNull<u8>> {
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { self.0.alloc(self.1) });
        if let Some(block) = block {
            self.mark(block);
        }
        block
    }

    fn mark(&self, block: NonNull<u8>) {
        // SAFETY: the block has this many bytes.
        unsafe { block.write_bytes(pattern(block), SIZE) };
    }

    fn free(&self, block: NonNull<u8>) {
        for byte in 0..SIZE {
            // SAFETY: live, and so long.
            assert_eq!(unsafe { block.add(byte).read() }, pattern(block));
        }
        // SAFETY: the tests free what they allocated, once.
        unsafe { self.0.dealloc(block.as_ptr(), self.1) };
    }

    /// Puts a new block in the place of one.
    fn swap(&self, place: &[Cell<Option<NonNull<u8>>>]) {
        let block = self.alloc();
        self.free_many(place);
        place[0].set(block);
    }

    fn pair(&self) {
        if let Some(block) = self.alloc() {
            self.free(block);
        }
    }

    /// Returns several blocks, or fewer where memory is out of reach.
    fn alloc_many(&self, blocks: &[Cell<Option<NonNull<u8>>>]) {
        for block in blocks {
            block.set(self.alloc());
        }
    }

    fn free_many(&self, blocks: &[Cell<Option<NonNull<u8>>>]) {
        for block in blocks {
            if let Some(block) = block.take() {
                self.free(block);
            }
        }
    }

    /// Interrupts `work` at each of its instructions in turn by `handler`, from the state that
    /// `prepare` makes; and where there are more than `EACH`, which only slow paths have, at ever
    /// fewer of the rest. Returns how many times.
    fn exhaust(&self, prepare: &dyn Fn(), handler: Handler<'_>, work: &dyn Fn()) -> usize {
        const EACH: usize = 64;
        let mut at = 0_usize;
        for times in 0.. {
            at += 1 + at.saturating_sub(EACH) / 3;
            prepare();
            if !step(at, handler, work) {
                return times;
            }
        }
        0
    }
}

/// What a block's first bytes are while it is live: other bytes than in most others, of any size.
fn pattern(block: NonNull<u8>) -> u8 {
    let address = block.addr().get();
    (address ^ address >> 12) as u8 | 1
}

/// Makes this thread a CPU that can be interrupted at each instruction.
fn start<M: Machine>() -> &'static MagazineHeap<M> {
    let heap: &'static MagazineHeap<M> = Box::leak(Box::new(MagazineHeap::new(M::NEW)));
    heap.platform().start_cpu();
    let action = libc::sigaction {
        sa_sigaction: on_trap as extern "C" fn(_, _, _) as usize,
        // SAFETY: an integer array, for which all zeroes is the empty set.
        sa_mask: unsafe { core::mem::zeroed() },
        sa_flags: libc::SA_SIGINFO,
        sa_restorer: None,
    };
    // SAFETY: the handler uses what it may at any instruction: the heap under test and thread-locals
    // that need no start.
    let result = unsafe { libc::sigaction(libc::SIGTRAP, &action, ptr::null_mut()) };
    assert_eq!(result, 0);
    heap
}

/// Interrupts all that may be interrupted, by all that may interrupt it, with a magazine that is new,
/// empty, full or in between.
fn run<M: Machine>() {
    /// More than the magazine of a class holds at most, so that it is refilled and flushed.
    const MANY: usize = 300;

    let heap = start::<M>();
    let test = Test(heap, LAYOUT);

    let mine = [const { Cell::new(None) }; MANY];
    let theirs = [const { Cell::new(None) }; MANY];
    let block = Cell::new(None);
    let frames = heap.platform().frames_left();
    let give_all_back = || {
        test.free_many(&mine);
        test.free_many(&theirs);
        test.free_many(core::slice::from_ref(&block));
        assert!(heap.drain());
        heap.trim();
        let totals = heap.totals();
        assert_eq!(
            (totals.live_bytes, totals.live_blocks, totals.frames()),
            (0, 0, 0)
        );
        assert_eq!(heap.platform().frames_left(), frames);
    };

    let new = || give_all_back();
    let some = || {
        give_all_back();
        test.alloc_many(&mine[..10]);
        test.free_many(&mine[..5]);
        block.set(test.alloc());
    };
    let empty = || {
        give_all_back();
        block.set(test.alloc());
        let class = muster_heap::Class::of(LAYOUT).unwrap();
        let left = heap.platform().cache().statistics(class).cached_blocks - 1;
        test.alloc_many(&mine[..left]);
    };
    let full = || {
        give_all_back();
        test.alloc_many(&mine[..100]);
        block.set(test.alloc());
        let class = muster_heap::Class::of(LAYOUT).unwrap();
        let cache = heap.platform().cache();
        for block in &mine {
            let statistics = cache.statistics(class);
            // One of them is the reserve.
            if statistics.cached_blocks > statistics.limit {
                break;
            }
            test.free_many(core::slice::from_ref(block));
        }
    };
    let states: [&dyn Fn(); 4] = [&new, &some, &empty, &full];

    let swap = || test.swap(&theirs[..1]);
    let pair = || test.pair();
    let take = || test.alloc_many(&theirs[..1]);
    let flood = || {
        test.alloc_many(&theirs);
        test.free_many(&theirs);
    };
    let drain = || {
        heap.drain();
    };
    let handlers: [Handler<'_>; 5] = [&swap, &pair, &take, &flood, &drain];

    let alloc = || {
        mine[MANY - 1].set(test.alloc());
    };
    let free = || {
        if let Some(block) = block.take() {
            // SAFETY: live, and of this layout.
            unsafe { heap.dealloc(block.as_ptr(), LAYOUT) };
        }
    };
    let large = || {
        let layout = layout(20_000, 4096);
        // SAFETY: the size is not zero, and the block is freed as it was allocated.
        unsafe {
            let block = heap.alloc(layout);
            if !block.is_null() {
                heap.dealloc(block, layout);
            }
        }
    };

    let mut times = 0;
    for prepare in states {
        for handler in handlers {
            for work in [&alloc as &dyn Fn(), &free] {
                times += test.exhaust(prepare, handler, work);
            }
        }
    }
    for work in [&large as &dyn Fn(), &drain] {
        times += test.exhaust(&some, &swap, work);
    }
    give_all_back();
    println!("interrupted {times} times");
    assert!(times > 1000);
}

/// The same for large blocks that a CPU keeps: when it has none, some, or as many as it may.
fn run_large<M: Machine>() {
    const FRAMES: usize = 5;
    /// More than the CPU keeps.
    const MANY: usize = 16;

    let heap = start::<M>();
    let test = Test(heap, layout(FRAMES * FRAME, 8));
    let other = Test(heap, layout(40 * FRAME, 8));
    let mine = [const { Cell::new(None) }; MANY];
    let theirs = [const { Cell::new(None) }; MANY];
    let others = [const { Cell::new(None) }; 2];
    let block = Cell::new(None);
    let frames = heap.platform().frames_left();
    let give_all_back = || {
        if let Some(block) = mine[MANY - 1].get() {
            test.mark(block);
        }
        test.free_many(&mine);
        test.free_many(&theirs);
        other.free_many(&others);
        test.free_many(core::slice::from_ref(&block));
        assert!(heap.drain());
        let totals = heap.totals();
        assert_eq!(
            (totals.live_bytes, totals.live_blocks, totals.large_frames),
            (0, 0, 0)
        );
        heap.trim();
        assert_eq!(heap.platform().frames_left(), frames);
    };
    let none = || {
        give_all_back();
        block.set(test.alloc());
    };
    let some = || {
        give_all_back();
        test.alloc_many(&mine[..3]);
        block.set(test.alloc());
        other.alloc_many(&others);
        other.free_many(&others[..1]);
        test.free_many(&mine[..2]);
    };
    let full = || {
        give_all_back();
        test.alloc_many(&mine);
        block.set(test.alloc());
        test.free_many(&mine);
    };
    let swap = || test.swap(&theirs[..1]);
    let pair = || test.pair();
    let flood = || {
        test.alloc_many(&theirs);
        test.free_many(&theirs);
    };
    let drain = || {
        heap.drain();
    };
    let free = || {
        if let Some(block) = block.take() {
            // SAFETY: live, and of this layout.
            unsafe { heap.dealloc(block.as_ptr(), test.1) };
        }
    };
    let make_room = || {
        if let Some(block) = others[1].take() {
            // SAFETY: as above.
            unsafe { heap.dealloc(block.as_ptr(), other.1) };
        }
    };
    let alloc = || {
        // SAFETY: the size is not zero.
        let block = unsafe { heap.alloc(test.1) };
        mine[MANY - 1].set(NonNull::new(block));
    };
    let handlers: [Handler<'_>; 4] = [&swap, &pair, &flood, &drain];
    let mut times = 0;
    for prepare in [&none as &dyn Fn(), &some, &full] {
        for handler in handlers {
            for work in [&alloc as &dyn Fn(), &free] {
                times += test.exhaust(prepare, handler, work);
            }
        }
    }
    times += test.exhaust(&some, &swap, &make_room);
    times += test.exhaust(&some, &flood, &make_room);
    times += test.exhaust(&full, &swap, &drain);
    give_all_back();
    assert!(times > 500, "{times}");
}

#[test]
fn flagged_paths_of_large_blocks_are_interrupted_at_each_instruction() {
    run_large::<Flagged>();
}

#[test]
fn restarted_paths_of_large_blocks_are_interrupted_at_each_instruction() {
    run_large::<Restarted>();
}

#[test]
fn flagged_paths_are_interrupted_at_each_instruction() {
    run::<Flagged>();
}

#[test]
fn restarted_paths_are_interrupted_at_each_instruction() {
    run::<Restarted>();
}
