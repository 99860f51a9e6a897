//! Models of blocks and cells, under [loom](https://docs.rs/loom): every interleaving of CPUs, up to a
//! number of preemptions, and every value that they may then read. `just models` runs them.

#![allow(
    clippy::unwrap_used,
    reason = "a model that finds nothing to unwrap must fail"
)]

use std::boxed::Box;
use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::vec::Vec;

use muster_sync::loom::{self, thread};
use muster_sync::{AtomicUsize, UnsafeCell, model};

use crate::{
    Block, Header, Register, RegisterError, Storage, UNREGISTERED, Unregistered, WriteOnce,
};

#[test]
fn two_writers() {
    model("percpu: two CPUs set a cell", None, || {
        let cell: &WriteOnce<usize> = Box::leak(Box::new(WriteOnce::new()));
        let other = thread::spawn(|| cell.set(|| 1));
        let first = cell.set(|| 2);
        let other = other.join().unwrap();
        assert!(first != other);
        assert_eq!(cell.get(), Some(if first { &2 } else { &1 }));
    });
}

#[test]
fn write_against_reader() {
    model("percpu: a cell set against its reader", None, || {
        let cell: &WriteOnce<usize> = Box::leak(Box::new(WriteOnce::new()));
        let writer = thread::spawn(|| assert!(cell.set(|| 7)));
        assert!(matches!(cell.get(), None | Some(7)));
        writer.join().unwrap();
        assert_eq!(cell.get(), Some(&7));
    });
}

/// Each thread of loom's is a CPU.
struct Threads;

type Cpu = Storage<Threads>;

loom::thread_local! {
    static BLOCK: Cell<*const Header> = Cell::new(UNREGISTERED.header());
}

// SAFETY: as for `thread_register`.
unsafe impl Register for Threads {
    type Head = ();
    type NoPreempt = ();

    fn disable_preemption() {}

    fn unregistered() -> &'static Unregistered {
        &UNREGISTERED
    }

    fn load() -> *const Header {
        // SAFETY: `store` admits only headers of 'static blocks and `UNREGISTERED`.
        BLOCK.with(|block| unsafe { &*block.get() }.this())
    }

    unsafe fn store(header: *const Header) {
        BLOCK.with(|block| block.set(header));
    }
}

/// Registers a block on this CPU.
fn register(block: &'static Block) -> Result<(), RegisterError> {
    // SAFETY: a CPU of a model has no handlers, and a guard does nothing.
    unsafe { Cpu::register(block) }
}

/// A block, and what only its CPU reaches: no linker gathers variables for loom.
fn block(index: u32) -> (&'static Block, &'static UnsafeCell<usize>) {
    let own = Box::leak(Box::new(UnsafeCell::new(0)));
    (Box::leak(Box::new(Block::new(index))), own)
}

/// Uses what only this CPU reaches, of these by its index; `false` if it has no block.
fn use_block(own: &[&UnsafeCell<usize>]) -> bool {
    // SAFETY: that no other CPU has the same is what the models are about.
    let add = |own: &UnsafeCell<usize>| own.with_mut(|place| unsafe { *place += 1 });
    Cpu::try_with(|here| add(own[here.index() as usize])).is_some()
}

#[test]
fn two_claims() {
    model("percpu: two CPUs register one block", None, || {
        let (block, own) = block(0);
        let claim = || {
            let registered = register(block);
            assert_eq!(use_block(&[own]), registered.is_ok());
            registered
        };
        let other = thread::spawn(claim);
        let own = claim();
        let other = other.join().unwrap();
        let refused = Err(RegisterError::AlreadyClaimed { block: 0 });
        assert!([(Ok(()), refused), (refused, Ok(()))].contains(&(own, other)));
        assert!(block.is_claimed());
    });
}

/// The BSP publishes the shared state, and releases an AP, which registers the block it is told and
/// uses both. The state is plain memory here: of what `OnceCell` does inside, which is
/// `conquer-once`'s, no reader may depend, as none reads before it is released. The AP's wait is the
/// loader's, whose every load is an Acquire on x86-64.
#[test]
fn publication_against_release() {
    struct Parked {
        goto_address: AtomicUsize,
        extra: AtomicUsize,
    }

    model("percpu: publication against release", None, || {
        let state: &UnsafeCell<usize> = Box::leak(Box::new(UnsafeCell::new(0)));
        let (blocks, own): (Vec<_>, Vec<_>) = [block(0), block(1)].into_iter().unzip();
        let (blocks, own) = (blocks.leak(), own.leak());
        let parked: &Parked = Box::leak(Box::new(Parked {
            goto_address: AtomicUsize::new(0),
            extra: AtomicUsize::new(0),
        }));
        let ap = thread::spawn(|| {
            while parked.goto_address.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            let index = parked.extra.load(Ordering::Acquire);
            register(blocks[index]).unwrap();
            assert!(use_block(own));
            // SAFETY: that nobody writes it any more is what the model is about.
            assert_eq!(state.with(|state| unsafe { *state }), 1);
        });
        // SAFETY: loom tells if the AP reads it already.
        state.with_mut(|state| unsafe { *state = 1 });
        register(blocks[0]).unwrap();
        parked.extra.store(1, Ordering::Release);
        parked.goto_address.store(1, Ordering::Release);
        assert!(use_block(own));
        ap.join().unwrap();
    });
}
