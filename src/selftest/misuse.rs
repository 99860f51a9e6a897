//! Injection of heap misuses: each on three CPUs, so that a test sees the right ones named.

use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::hint::black_box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use muster::internals::mm::heap;
use muster::internals::smp::{jobs, online};
use muster_arguments::Fault;

/// How long a CPU may take for its part, in milliseconds.
const TIMEOUT: u64 = 10_000;

/// The block's layout: no class has its size, so that its end is not its memory's.
const LAYOUT: Layout = Layout::new::<[u32; 25]>();

/// Another layout.
const WRONG_LAYOUT: Layout = Layout::new::<[u32; 250]>();

/// A misuse of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misuse {
    /// It is freed again.
    Free,
    /// It is freed with another layout.
    FreeAs,
    /// The byte past its end is written.
    Overflow,
    /// The byte before its start is written.
    Underflow,
    /// Its ninth byte is written after its free.
    WriteAfterFree,
}

impl Misuse {
    /// Returns the misuse that a fault is, if it is one.
    pub fn of(fault: Fault) -> Option<Self> {
        match fault {
            Fault::HeapDoubleFree => Some(Self::Free),
            Fault::HeapOverflow => Some(Self::Overflow),
            Fault::HeapUnderflow => Some(Self::Underflow),
            Fault::HeapUseAfterFree => Some(Self::WriteAfterFree),
            Fault::HeapWrongLayout => Some(Self::FreeAs),
            _ => None,
        }
    }

    /// Injects it: of the last three CPUs, if there are as many, the first allocates and the last
    /// misuses; the second frees, before or after that. At the end all freed blocks are drained.
    pub fn inject(self) {
        let last = online::count() - 1;
        let (first, second) = (last.saturating_sub(2), last.saturating_sub(1));
        // Release and Acquire: with the address comes the block's content.
        let block = AtomicPtr::new(ptr::null_mut());
        let on = |cpu: usize, work: &(dyn Fn(*mut u8) + Sync)| {
            jobs::all(TIMEOUT, &|slot| {
                if slot == cpu {
                    work(block.load(Ordering::Acquire));
                }
            });
        };
        on(first, &|_| block.store(allocate(), Ordering::Release));
        match self {
            Self::Free => {
                on(second, &|block| free(block));
                on(last, &|block| free_again(block));
            }
            Self::FreeAs => on(last, &|block| free_otherwise(block)),
            Self::Overflow => {
                on(last, &|block| write(block, LAYOUT.size() as isize));
                on(second, &|block| free(block));
            }
            Self::Underflow => {
                on(last, &|block| write(block, -1));
                on(second, &|block| free(block));
            }
            Self::WriteAfterFree => {
                on(second, &|block| free(block));
                on(last, &|block| write(block, 8));
            }
        }
        heap::drain();
    }
}

// Each is a function that a report can name: not inlined, with something left to do after the call,
// lest that be a jump, and something else in each, lest they be one.

#[inline(never)]
fn allocate() -> *mut u8 {
    // SAFETY: the size is not 0.
    let block = unsafe { alloc(LAYOUT) };
    assert!(!block.is_null(), "no memory to misuse");
    block
}

#[inline(never)]
fn free(block: *mut u8) {
    // SAFETY: allocated with this layout, and freed only here; but for the misuse, which ends the
    // run.
    unsafe { dealloc(block, LAYOUT) };
    black_box("freed");
}

#[inline(never)]
fn free_again(block: *mut u8) {
    // SAFETY: not safe at all: the heap has to find it.
    unsafe { dealloc(block, LAYOUT) };
    black_box("freed again");
}

#[inline(never)]
fn free_otherwise(block: *mut u8) {
    // SAFETY: as above.
    unsafe { dealloc(block, WRONG_LAYOUT) };
    black_box("freed otherwise");
}

#[inline(never)]
fn write(block: *mut u8, offset: isize) {
    // SAFETY: as above.
    unsafe { block.offset(offset).write_volatile(0x21) };
}
