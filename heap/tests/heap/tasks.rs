//! Tasks that a timer preempts at any instruction, and that go on on another CPU: each thread is a
//! task, and there are fewer CPUs than tasks. A task runs while it has a CPU. When the timer's signal
//! comes, it gives the CPU up and takes one that another has given up; unless preemption or interrupts
//! are disabled, in which case it does so when they are enabled.
//!
//! This is what a kernel with a scheduler has to do for the heap, and no more: count in
//! `disable_preemption`, and go back through `resume` to a task whose fast path is a restartable
//! sequence.

use core::ptr::{self, NonNull};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, Once};
use std::thread;
use std::time::Duration;

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FastPath, FramePlatform, MagazineHeap, resume};

use crate::magazines::Machine;

/// CPUs that the tasks share.
const CPUS: usize = 3;

/// How a machine's fast paths are kept whole, or what it does wrong.
pub const FLAGGED: u8 = 0;
pub const RESTARTED: u8 = 1;
/// Wrong: a task that was interrupted amid a sequence goes on there.
pub const NOT_RESTARTED: u8 = 2;
/// Wrong: nothing disables preemption.
pub const NOT_DISABLED: u8 = 3;

/// A machine whose tasks are preempted and migrated.
pub struct Tasks<const KIND: u8> {
    machine: HostedFrames,
    caches: [CpuCache; CPUS],
    /// The CPUs that no task has: those below [`CPUS`] at first.
    idle: AtomicU64,
    /// How many switches there were when this was made.
    switches_before: usize,
    /// The heap that stands on this, once it has a task.
    heap: AtomicPtr<MagazineHeap<Self>>,
}

/// The scheduler's treatment of the task.
trait Scheduler: Sync {
    /// Waits for a CPU.
    fn take_cpu(&self);
    /// Gives the task's CPU to another.
    fn give_cpu(&self);
    /// Returns whether sequences are restarted.
    fn restarts(&self) -> bool;
}

thread_local! {
    /// The machine whose task this thread is, and on which CPU it is.
    static MACHINE: Cell<Option<&'static dyn Scheduler>> = const { Cell::new(None) };
    static CPU: Cell<usize> = const { Cell::new(usize::MAX) };
    /// Whether the task has that CPU, and does not wait for one.
    static HAS_CPU: Cell<bool> = const { Cell::new(false) };
    static PREEMPTION_DISABLED: Cell<usize> = const { Cell::new(0) };
    static INTERRUPTS_DISABLED: Cell<usize> = const { Cell::new(0) };
    static IS_DUE: Cell<bool> = const { Cell::new(false) };
}

/// How often a task was switched, and went on on another CPU.
static SWITCHES: AtomicUsize = AtomicUsize::new(0);
static MIGRATIONS: AtomicUsize = AtomicUsize::new(0);

/// The threads that are tasks, for the timer.
static RUNNING: Mutex<BTreeMap<u64, libc::pthread_t>> = Mutex::new(BTreeMap::new());

/// Returns the timer's signal, which nothing else here uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

/// Waits a moment, in a signal's handler, too, and lets the threads that have CPUs run.
fn wait() {
    let time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 20_000,
    };
    // SAFETY: reads the time given, and keeps no pointer.
    unsafe { libc::nanosleep(&time, ptr::null_mut()) };
}

fn may_switch() -> bool {
    PREEMPTION_DISABLED.get() == 0 && INTERRUPTS_DISABLED.get() == 0
}

/// Lets another task have the CPU, and goes on on one that is idle, rather another. No tick switches in
/// between.
fn switch() {
    let Some(machine) = MACHINE.get() else { return };
    let before = CPU.get();
    machine.give_cpu();
    machine.take_cpu();
    // The ticks while it waited were no time that it had: or it would never get on.
    IS_DUE.set(false);
    forget_ticks();
    SWITCHES.fetch_add(1, Ordering::Relaxed);
    MIGRATIONS.fetch_add(usize::from(CPU.get() != before), Ordering::Relaxed);
}

/// Takes the timer's signals that wait for this thread, if they are blocked, as in their handler.
fn forget_ticks() {
    let no_time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a set of one signal; nothing is kept, and nothing else written.
    unsafe {
        let mut set = core::mem::MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal());
        while libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &no_time) > 0 {}
    }
}

extern "C" fn on_tick(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(machine) = MACHINE.get() else { return };
    if !may_switch() {
        IS_DUE.set(true);
        return;
    }
    // SAFETY: the thread's own error number, which the code that was interrupted may be about to read.
    let error = unsafe { *libc::__errno_location() };
    switch();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = error };
    if machine.restarts() {
        // SAFETY: the kernel's, for this signal, and nobody else looks at it.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
        *rip = resume(*rip as usize) as i64;
    }
}

/// Starts the timer, once: a signal to each task every now and then.
fn start_timer() {
    static START: Once = Once::new();
    START.call_once(|| {
        let action = libc::sigaction {
            sa_sigaction: on_tick as extern "C" fn(_, _, _) as usize,
            // SAFETY: an integer array, for which all zeroes is the empty set.
            sa_mask: unsafe { core::mem::zeroed() },
            sa_flags: libc::SA_SIGINFO | libc::SA_RESTART,
            sa_restorer: None,
        };
        // SAFETY: the handler uses thread-locals that need no start, atomics and system calls.
        let result = unsafe { libc::sigaction(signal(), &action, ptr::null_mut()) };
        assert_eq!(result, 0);
        thread::spawn(|| {
            loop {
                for thread in RUNNING.lock().unwrap().values() {
                    // SAFETY: the thread leaves the list before it ends, under the lock.
                    unsafe { libc::pthread_kill(*thread, signal()) };
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
    });
}

/// A task, until dropped.
pub struct Task(u64);

impl Drop for Task {
    fn drop(&mut self) {
        // Not to be switched while the timer's list is locked.
        let _preemption = NoPreempt::new();
        RUNNING.lock().unwrap().remove(&self.0);
        if let Some(machine) = MACHINE.take() {
            machine.give_cpu();
        }
    }
}

/// Preemption is disabled while this lives.
pub struct NoPreempt(());

impl NoPreempt {
    fn new() -> Self {
        PREEMPTION_DISABLED.set(PREEMPTION_DISABLED.get() + 1);
        Self(())
    }
}

impl Drop for NoPreempt {
    fn drop(&mut self) {
        let is_last = PREEMPTION_DISABLED.get() == 1 && INTERRUPTS_DISABLED.get() == 0;
        if is_last && IS_DUE.get() {
            // Still disabled: a tick on top of this must not switch once more.
            switch();
        }
        PREEMPTION_DISABLED.set(PREEMPTION_DISABLED.get() - 1);
    }
}

/// Interrupts are disabled while this lives.
pub struct NoInterrupts(());

impl Drop for NoInterrupts {
    fn drop(&mut self) {
        INTERRUPTS_DISABLED.set(INTERRUPTS_DISABLED.get() - 1);
    }
}

impl<const KIND: u8> Tasks<KIND> {
    fn set_gs_base(cache: &CpuCache) {
        /// `ARCH_SET_GS` (Linux, `asm/prctl.h`).
        const SET_GS: i32 = 0x1001;
        // SAFETY: no Rust program on Linux uses GS base for anything else.
        let result = unsafe { libc::syscall(libc::SYS_arch_prctl, SET_GS, ptr::from_ref(cache)) };
        assert_eq!(result, 0);
    }

    fn go_to(&self, cpu: usize) {
        CPU.set(cpu);
        HAS_CPU.set(true);
        if matches!(KIND, RESTARTED | NOT_RESTARTED) {
            Self::set_gs_base(&self.caches[cpu]);
        }
    }
}

impl<const KIND: u8> Scheduler for Tasks<KIND> {
    fn take_cpu(&self) {
        /// Looks for which a task leaves the CPU where it was to others.
        const POLITE: usize = 4;

        let before = CPU.get();
        for look in 0.. {
            // Relaxed: only to choose.
            let mut idle = self.idle.load(Ordering::Relaxed);
            if look < POLITE {
                idle &= !1_u64.checked_shl(before as u32).unwrap_or(0);
            }
            let cpu = idle.trailing_zeros() as usize;
            if cpu < CPUS
                // Acquire: what the task before did on the CPU.
                && self.idle.fetch_and(!(1 << cpu), Ordering::Acquire) & 1 << cpu != 0
            {
                self.go_to(cpu);
                return;
            }
            wait();
        }
    }

    fn give_cpu(&self) {
        assert!(HAS_CPU.replace(false), "it is another task's by now");
        // Release: for `take_cpu`.
        self.idle.fetch_or(1 << CPU.get(), Ordering::Release);
    }

    fn restarts(&self) -> bool {
        KIND == RESTARTED
    }
}

// SAFETY: (1), (4) Nothing is switched while a guard lives. (2), (3) A CPU has one task at a time, and
// its own cache. (5) As `HostedFrames`. (7) GS base is the address of the CPU's cache, and a task goes
// back through `resume`. Two kinds break this, to be found out.
unsafe impl<const KIND: u8> FramePlatform for Tasks<KIND> {
    const FAST_PATH: FastPath = match KIND {
        RESTARTED | NOT_RESTARTED => FastPath::Restarted { cache_from_gs: 0 },
        NOT_DISABLED => FastPath::Uninterrupted,
        _ => FastPath::Flagged,
    };

    type NoPreempt = Option<NoPreempt>;
    type InterruptGuard = NoInterrupts;

    fn disable_preemption(&self) -> Option<NoPreempt> {
        (KIND != NOT_DISABLED).then(NoPreempt::new)
    }

    fn disable_interrupts(&self) -> NoInterrupts {
        assert!(KIND == NOT_DISABLED || PREEMPTION_DISABLED.get() > 0);
        INTERRUPTS_DISABLED.set(INTERRUPTS_DISABLED.get() + 1);
        NoInterrupts(())
    }

    fn cpu(&self) -> Option<usize> {
        assert!(!may_switch(), "the answer may be wrong when it comes");
        Some(CPU.get())
    }

    fn cache(&self) -> &CpuCache {
        assert!(KIND == NOT_DISABLED || !may_switch());
        &self.caches[CPU.get()]
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        self.caches.iter().for_each(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        // The host's lock must not be held by a task that is switched.
        let _preemption = NoPreempt::new();
        self.machine.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let _preemption = NoPreempt::new();
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    fn capacity(&self) -> usize {
        self.machine.capacity()
    }

    /// Drains each CPU that is idle, as if an interrupt came there: where tasks run, nothing is available.
    fn drain_others(&self) -> bool {
        // SAFETY: the heap that calls this.
        let Some(heap) = (unsafe { self.heap.load(Ordering::Relaxed).as_ref() }) else {
            return true;
        };
        assert!(KIND == NOT_DISABLED || !may_switch());
        let _preemption = NoPreempt::new();
        let own = CPU.get();
        for cpu in 0..CPUS {
            // Acquire, and Release below: as for `take_cpu` and `give_cpu`.
            if self.idle.fetch_and(!(1 << cpu), Ordering::Acquire) & 1 << cpu != 0 {
                self.go_to(cpu);
                assert!(heap.drain());
                self.go_to(own);
                self.idle.fetch_or(1 << cpu, Ordering::Release);
            }
        }
        true
    }
}

impl<const KIND: u8> Machine for Tasks<KIND> {
    type Task = Task;

    const PART: usize = match KIND {
        FLAGGED | RESTARTED => 16,
        _ => 1,
    };

    fn new(frames: usize) -> Self {
        Self {
            machine: HostedFrames::new(frames),
            caches: [const { CpuCache::new() }; CPUS],
            idle: AtomicU64::new((1 << CPUS) - 1),
            switches_before: SWITCHES.load(Ordering::Relaxed),
            heap: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn frames_left(&self) -> usize {
        let _preemption = NoPreempt::new();
        self.machine.frames_left()
    }

    fn enter(heap: &MagazineHeap<Self>) -> Task {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        start_timer();
        // Not to be switched while the timer's list is locked.
        let _preemption = NoPreempt::new();
        (heap.platform().heap).store(ptr::from_ref(heap).cast_mut(), Ordering::Relaxed);
        let machine: &dyn Scheduler = heap.platform();
        // SAFETY: only the lifetime changes. The task is gone before the machine, as tests have it.
        let machine =
            unsafe { core::mem::transmute::<&dyn Scheduler, &'static dyn Scheduler>(machine) };
        machine.take_cpu();
        MACHINE.set(Some(machine));
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the calling thread's own name.
        let this = unsafe { libc::pthread_self() };
        RUNNING.lock().unwrap().insert(number, this);
        Task(number)
    }

    fn block<T>(wait: impl FnOnce() -> T) -> T {
        let machine = MACHINE.take();
        if let Some(machine) = machine {
            machine.give_cpu();
        }
        let result = wait();
        if let Some(machine) = machine {
            machine.take_cpu();
            MACHINE.set(Some(machine));
        }
        result
    }

    fn is_shown(&self, pairs: u64) -> bool {
        // On a busy host switches are rare: then this many pairs must do.
        let (switches, most) = match KIND {
            FLAGGED | RESTARTED => (500, 5_000_000),
            _ => (20_000, 50_000_000),
        };
        SWITCHES.load(Ordering::Relaxed) > self.switches_before + switches || pairs == most
    }

    fn drain_all(heap: &MagazineHeap<Self>) {
        let machine = heap.platform();
        // Not to be moved on the way; and all other tasks are at their end.
        let _preemption = NoPreempt::new();
        let before = CPU.get();
        for cpu in 0..CPUS {
            machine.go_to(cpu);
            assert!(heap.drain());
        }
        machine.go_to(before);
    }
}

#[test]
fn tasks_are_switched_and_migrated() {
    let heap = &MagazineHeap::new(Tasks::<FLAGGED>::new(1024));
    let is_over = &AtomicBool::new(false);
    let before = (
        SWITCHES.load(Ordering::Relaxed),
        MIGRATIONS.load(Ordering::Relaxed),
    );
    thread::scope(|scope| {
        for _ in 0..2 * CPUS {
            scope.spawn(move || {
                let _task = Tasks::enter(heap);
                while !is_over.load(Ordering::Relaxed) {
                    let switches = SWITCHES.load(Ordering::Relaxed) - before.0;
                    let migrations = MIGRATIONS.load(Ordering::Relaxed) - before.1;
                    if switches > 1000 && migrations > 300 {
                        is_over.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Returns whether a test of a machine that does it wrong fails.
fn fails(test: &str) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A heap that is broken may have no end, which proves nothing: the next try may fail.
    for _ in 0..300 {
        if let Some(status) = child.try_wait().unwrap() {
            return !status.success();
        }
        thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

#[test]
fn mistakes_are_found() {
    for mistake in ["not_restarted", "not_disabled"] {
        let test = format!("magazines::wrong::{mistake}::a_block_has_one_owner");
        assert!(
            (0..20).any(|_| fails(&test)),
            "{mistake} is not found by {test}"
        );
    }
}
