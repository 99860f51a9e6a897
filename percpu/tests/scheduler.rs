//! The count of a scheduler in the head of a block, as the documentation has it, by GS base: each thread is a CPU, whose
//! GS base is 0 at first, as a loader leaves it.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

use std::arch::asm;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;

use muster_percpu::{
    Block, Header, Key, LocalWord, Register, Storage, Template, Unregistered, cpu_local,
    head_offset,
};

cpu_local! { static DEPTH: LocalWord<u64> = LocalWord::new(0); }

#[repr(C)]
struct Head {
    count: AtomicU32,
    is_due: AtomicU32,
}

impl Head {
    const fn new() -> Self {
        Self {
            count: AtomicU32::new(0),
            is_due: AtomicU32::new(0),
        }
    }
}

const COUNT: usize = head_offset::<Head>() + offset_of!(Head, count);
const IS_DUE: usize = head_offset::<Head>() + offset_of!(Head, is_due);

static NOBODY: Unregistered<Head> = Unregistered::new(Head::new());

/// Switches to another task, and those of them in the handler of an NMI.
static SWITCHES: AtomicU32 = AtomicU32::new(0);
static IN_NMI: AtomicBool = AtomicBool::new(false);
static SWITCHES_IN_NMI: AtomicU32 = AtomicU32::new(0);

fn switch_to_another_task() {
    SWITCHES.fetch_add(1, Relaxed);
    SWITCHES_IN_NMI.fetch_add(IN_NMI.load(Relaxed).into(), Relaxed);
    // SAFETY: GS base points to a header, behind which is a head.
    unsafe { asm!("mov dword ptr gs:[{}], 0", const IS_DUE, options(nostack)) };
}

fn count() -> bool {
    let block: u64;
    // SAFETY: GS base points to a header since `reset`, behind which is a head.
    unsafe {
        asm!(
            "mov {block}, gs:[0]", "test {block}, {block}", "jz 2f", "inc dword ptr gs:[{count}]", "2:",
            block = out(reg) block, count = const COUNT, options(nostack),
        );
    }
    block != 0
}

fn uncount() -> bool {
    let (count, is_due): (u8, u32);
    // SAFETY: as above.
    unsafe {
        asm!(
            "dec dword ptr gs:[{}]", "setnz {}", "mov {:e}, gs:[{}]",
            const COUNT, out(reg_byte) count, out(reg) is_due, const IS_DUE,
            options(nostack),
        );
    }
    count == 0 && is_due != 0
}

struct NoPreempt {
    counts: bool,
    _stays: PhantomData<*const ()>,
}

impl Drop for NoPreempt {
    fn drop(&mut self) {
        if self.counts && uncount() {
            switch_to_another_task();
        }
    }
}

struct Gs;

// SAFETY: (1) each test calls `reset` first, and then GS base points to `NOBODY` or to a block; (2) nothing else uses
// it; (3) by the count, which a timer would look at; (4) a thread stays itself.
unsafe impl Register for Gs {
    type Head = Head;
    type NoPreempt = NoPreempt;

    fn disable_preemption() -> NoPreempt {
        NoPreempt {
            counts: count(),
            _stays: PhantomData,
        }
    }

    fn unregistered() -> &'static Unregistered<Head> {
        &NOBODY
    }

    fn load() -> *const Header {
        let header;
        // SAFETY: GS base points to a header.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) header, options(nostack, readonly, preserves_flags));
        }
        header
    }

    fn load_base<K: Key>() -> *const u8 {
        let base;
        // SAFETY: as above.
        unsafe {
            asm!(
                "mov {}, gs:[{}]", out(reg) base, const K::BASE,
                options(nostack, readonly, preserves_flags),
            );
        }
        base
    }

    unsafe fn store(header: *const Header) {
        /// Linux: arch_prctl(2).
        const ARCH_PRCTL: usize = 158;
        const ARCH_SET_GS: usize = 0x1001;
        // SAFETY: nothing else on a host uses GS base.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => _, in("rdi") ARCH_SET_GS, in("rsi") header.expose_provenance(),
                out("rcx") _, out("r11") _, options(nostack),
            );
        }
    }
}

type Cpu = Storage<Gs>;

/// Runs a test on a CPU of its own, which has a block.
fn on_a_cpu(test: impl FnOnce(&Head) + Send) {
    thread::scope(|scope| {
        let cpu = scope.spawn(|| {
            // SAFETY: this CPU has no block yet.
            unsafe { Cpu::reset() };
            let template = Template::find(|_| true).unwrap();
            let block = Block::allocate(&template, 0, Head::new()).unwrap();
            // SAFETY: nothing is interrupted, no handler registers, and no guard is alive.
            unsafe { Cpu::register(block) }.unwrap();
            test(block.head());
        });
        cpu.join().unwrap();
    });
}

#[test]
fn the_count_is_that_of_the_closures_that_the_cpu_is_in() {
    on_a_cpu(|head| {
        assert_eq!(head.count.load(Relaxed), 0);
        Cpu::with_own(&DEPTH, |_| assert_eq!(head.count.load(Relaxed), 1));
        Cpu::with(|_| Cpu::with(|_| assert_eq!(head.count.load(Relaxed), 2)));
        assert_eq!(head.count.load(Relaxed), 0);
        // It has a block already: no count goes astray.
        let other = Box::leak(Box::new(Block::with_head(1, Head::new())));
        // SAFETY: so nothing is asked.
        assert!(unsafe { Cpu::register(other) }.is_err());
        assert_eq!(head.count.load(Relaxed), 0);
    });
}

/// All CPUs without a block share the sentinel.
#[test]
fn a_guard_on_a_cpu_without_a_block_counts_nowhere() {
    thread::spawn(|| {
        // SAFETY: this CPU has no block yet.
        unsafe { Cpu::reset() };
        // SAFETY: the head lies so far from the header, for good.
        let nobody = unsafe {
            &*NOBODY
                .header()
                .byte_add(head_offset::<Head>())
                .cast::<Head>()
        };
        nobody.is_due.store(1, Relaxed);
        let switches = SWITCHES.load(Relaxed);
        let guard = Gs::disable_preemption();
        assert_eq!(nobody.count.load(Relaxed), 0);
        drop(guard);
        assert_eq!(nobody.count.load(Relaxed), 0);
        assert_eq!(SWITCHES.load(Relaxed), switches);
        nobody.is_due.store(0, Relaxed);
    })
    .join()
    .unwrap();
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

/// An NMI, which uses variables.
extern "C" fn nmi(_: i32) {
    IN_NMI.store(true, Relaxed);
    let counts = count();
    Cpu::with_own(&DEPTH, |depth| depth.set(depth.get() + 1));
    // An NMI's handler switches no task.
    assert!(counts);
    let _ = uncount();
    IN_NMI.store(false, Relaxed);
}

/// An NMI at each instruction of the end of a closure, in which a switch became due: the task switches, once.
#[test]
fn an_nmi_switches_no_task() {
    /// A trap after each instruction (signal(7)).
    const SIGTRAP: i32 = 5;

    on_a_cpu(|head| {
        // SAFETY: the handler may run at any instruction: it uses atomics and variables of this CPU's.
        unsafe { signal(SIGTRAP, nmi) };
        Cpu::with_own(&DEPTH, |_| {
            head.is_due.store(1, Relaxed);
            // SAFETY: sets the trap flag by way of the stack.
            unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
        });
        // SAFETY: as above, the other way round.
        unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
        assert!(
            Cpu::with_own(&DEPTH, LocalWord::get) > 5,
            "there were no NMIs"
        );
        assert_eq!(SWITCHES_IN_NMI.load(Relaxed), 0);
        assert_eq!(SWITCHES.load(Relaxed), 1);
        assert_eq!(head.count.load(Relaxed), 0);
    });
}
