//! The quarantine under [loom](https://docs.rs/loom), with a ring of two: whoever pushes or takes,
//! each block comes out once, and as it was left; and no CPU is refused because of one that another has
//! in its hands. `just models` runs them.

#![allow(
    clippy::unwrap_used,
    reason = "a model that finds nothing to unwrap must fail"
)]

use core::ops::ControlFlow;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use muster_sync::loom::cell::UnsafeCell;
use muster_sync::loom::thread;
use muster_sync::{AtomicUsize, model};

use super::releases::Releases;
use super::{MAX_QUARANTINED, Quarantine};

/// A block whose contents loom watches: its number.
type Contents = UnsafeCell<usize>;

/// A quarantine, and blocks that have come out of it.
struct Cpu {
    quarantine: Arc<Quarantine>,
    out: Vec<usize>,
}

impl Cpu {
    fn new(quarantine: &Arc<Quarantine>) -> Self {
        Self {
            quarantine: quarantine.clone(),
            out: Vec::new(),
        }
    }

    fn push(&mut self, number: usize, bytes: usize) {
        let block = Box::into_raw(Box::new(Contents::new(0)));
        // SAFETY: just made, and nobody else's yet.
        unsafe { &*block }.with_mut(|contents| unsafe { *contents = number });
        let block = NonNull::new(block).unwrap().cast();
        if let Some(out) = self.quarantine.push(block, bytes) {
            self.take(out, bytes);
        }
        while let Some(out) = self.quarantine.pop_surplus() {
            self.take(out, bytes);
        }
    }

    fn flush(&mut self, bytes: usize) {
        let quarantine = self.quarantine.clone();
        for out in quarantine.take_all() {
            self.take(out, bytes);
        }
    }

    fn take(&mut self, block: NonNull<u8>, bytes: usize) {
        self.quarantine.forget(bytes);
        let block = block.cast::<Contents>();
        // SAFETY: it came out of the quarantine, so it is this CPU's; a model finds out if not.
        let number = unsafe { block.as_ref() }.with(|contents| unsafe { *contents });
        self.out.push(number);
        // It is never freed: a second owner, by mistake, must find it.
    }
}

/// Checks that these are all blocks up to this number, and that none is left.
fn assert_all_out(cpus: impl IntoIterator<Item = Vec<usize>>, count: usize) {
    let mut out: Vec<usize> = cpus.into_iter().flatten().collect();
    out.sort_unstable();
    assert!(out.into_iter().eq(1..=count), "a block was lost or doubled");
}

#[test]
fn push_against_flush() {
    model("quarantine: push against flush", None, || {
        let quarantine = Arc::new(Quarantine::new());
        let mut flushing = Cpu::new(&quarantine);
        let other = thread::spawn(move || {
            flushing.flush(1);
            flushing.out
        });
        let mut cpu = Cpu::new(&quarantine);
        for number in 1..=3 {
            cpu.push(number, 1);
        }
        let others = other.join().unwrap();
        cpu.flush(1);
        assert_eq!(quarantine.bytes(), 0);
        assert_all_out([cpu.out, others], 3);
    });
}

#[test]
fn push_against_push() {
    model("quarantine: push against push", Some(4), || {
        // Two blocks are too many bytes for one.
        const BYTES: usize = MAX_QUARANTINED / 2 + 1;
        let quarantine = Arc::new(Quarantine::new());
        let mut handler = Cpu::new(&quarantine);
        let other = thread::spawn(move || {
            handler.push(1, BYTES);
            handler.out
        });
        let mut cpu = Cpu::new(&quarantine);
        cpu.push(2, BYTES);
        cpu.push(3, BYTES);
        let others = other.join().unwrap();
        cpu.flush(BYTES);
        assert_eq!(quarantine.bytes(), 0);
        assert_all_out([cpu.out, others], 3);
    });
}

/// A machine with memory for one block, which waits in a quarantine.
struct Machine {
    quarantine: Quarantine,
    releases: Releases,
    /// The number of blocks that the wrapped heap has. Relaxed, as that need not order anything.
    left: AtomicUsize,
}

impl Machine {
    fn flush(&self) -> usize {
        let mut releasing = self.releases.begin();
        for _ in self.quarantine.take_all() {
            self.left.store(1, Ordering::Relaxed);
            releasing.blocks += 1;
        }
        releasing.blocks
    }

    fn allocate(&self) -> bool {
        let attempt = || match self.left.load(Ordering::Relaxed) {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(Some(())),
        };
        let wait = || {
            thread::yield_now();
            true
        };
        (self.releases.obtain(
            attempt,
            || {
                self.flush();
            },
            wait,
        ))
        .is_some()
    }
}

/// A CPU that needs the memory of a block in quarantine, while another one takes it out and gives it back.
#[test]
fn obtain_against_flush() {
    model("obtaining against a flush", None, || {
        let machine = Arc::new(Machine {
            quarantine: Quarantine::new(),
            releases: Releases::new(),
            left: AtomicUsize::new(0),
        });
        machine.quarantine.push(NonNull::dangling(), 1);
        let flushing = machine.clone();
        let other = thread::spawn(move || flushing.flush());
        assert!(machine.allocate(), "memory was not out");
        other.join().unwrap();
    });
}
