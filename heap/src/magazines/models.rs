//! Models of what CPUs share in the heap, under [loom](https://docs.rs/loom): the lock, the depots, the
//! slabs and their map, and the deferred frees themselves, only that the map's tables are shorter.
//! Every interleaving of CPUs, up to a number of preemptions, and every value that they may then read.
//! `just models` runs them.
//!
//! Each proves something only as far as it finds mistakes: those in `mistakes/heap/`.

#![allow(
    clippy::unwrap_used,
    reason = "a model that finds nothing to unwrap must fail"
)]

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use muster_sync::loom::thread::{self, JoinHandle};
use muster_sync::{AtomicUsize, model, spin_loop};

use super::cache::Block;
use super::class::Class;
use super::context::Context;
use super::deferred::{BATCH, DeferredList, Kind};
use super::depot::Depot;
use super::frames::{Frames, Use};
use super::slab_map::{REGION_FRAMES, REGIONS, SlabMap, Spares, TABLES};
use super::slabs::Slabs;
use super::transit::{Refused, Transit};
use super::{CpuCache, FRAME, FramePlatform, NO_CACHE};
use crate::lock::Lock;

/// Frames that are memory, and all that they are in, but for the CPUs' caches.
struct Machine {
    frames: Frames<Ram>,
    depot: Depot,
    slabs: Slabs,
    map: SlabMap,
    transit: Transit,
}

/// As much as the map has room for.
struct Ram {
    start: NonNull<u8>,
    free: Mutex<[bool; FRAMES]>,
}

const FRAMES: usize = REGIONS * REGION_FRAMES;
/// Bytes of it, which are so aligned.
const SPAN: usize = FRAMES * FRAME;
const LAYOUT: Layout = Layout::new::<[u64; 64]>();

// SAFETY: each frame's memory is used by whoever it was given to.
unsafe impl Send for Ram {}
// SAFETY: as for `Send`.
unsafe impl Sync for Ram {}

impl Ram {
    fn new() -> Self {
        // SAFETY: the size isn't zero.
        let start = unsafe { System.alloc(Layout::from_size_align(SPAN, SPAN).unwrap()) };
        Self {
            start: NonNull::new(start).unwrap(),
            free: Mutex::new([true; FRAMES]),
        }
    }

    /// Has some of the frames used by somebody else.
    fn take_all_but(&self, left: usize) {
        self.free.lock().unwrap()[left..].fill(false);
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: allocated so, and no model keeps a block longer than its machine.
        unsafe {
            System.dealloc(
                self.start.as_ptr(),
                Layout::from_size_align_unchecked(SPAN, SPAN),
            );
        }
    }
}

// SAFETY: nothing is preempted or interrupted, no CPU has a cache, and no frame is given twice.
unsafe impl FramePlatform for Ram {
    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {}

    fn disable_interrupts(&self) {}

    fn cpu(&self) -> Option<usize> {
        None
    }

    fn cache(&self) -> &CpuCache {
        &NO_CACHE
    }

    fn each_cache(&self, _visit: &mut dyn FnMut(&CpuCache)) {}

    fn allocate_frames(&self, count: usize, _align: usize) -> Option<NonNull<u8>> {
        assert_eq!(count, 1);
        let mut free = self.free.lock().unwrap();
        let first = free.iter().position(|is_free| *is_free)?;
        free[first] = false;
        // SAFETY: within the memory.
        Some(unsafe { self.start.add(first * FRAME) })
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: nobody uses the frame, so whoever does after all finds nonsense.
        unsafe { start.write_bytes(0xa5, count * FRAME) };
        let frame = (start.addr().get() - self.start.addr().get()) / FRAME;
        let was_free = core::mem::replace(&mut self.free.lock().unwrap()[frame], true);
        assert!(!was_free, "a frame was freed twice");
    }
}

impl Machine {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            frames: Frames::new(Ram::new()),
            depot: Depot::new(),
            slabs: Slabs::new(),
            map: SlabMap::new(),
            transit: Transit::new(),
        })
    }

    fn context(&self, cpu: usize) -> Context<'_, Ram> {
        Context {
            map: &self.map,
            frames: &self.frames,
            transit: &self.transit,
            cpu: Some(cpu),
            is_announced: false,
        }
    }

    fn allocate(&self, cpu: usize, count: usize) -> Vec<Block> {
        let context = self.context(cpu);
        filled(count, |room| self.slabs.allocate(&context, class(), room))
    }

    fn free(&self, cpu: usize, blocks: &[Block]) {
        let freed = self.slabs.free(&self.context(cpu), class(), blocks);
        assert_eq!(freed, Ok(()));
    }

    fn trim(&self, cpu: usize) {
        self.slabs.trim(&self.context(cpu));
    }

    fn take(&self, cpu: usize, count: usize) -> Vec<Block> {
        filled(count, |room| self.depot.take(&Some(cpu), room))
    }

    fn put(&self, cpu: usize, blocks: &[Block]) -> bool {
        self.depot.put(&self.context(cpu), class(), blocks)
    }

    /// Takes what is in the depot, and its memory unless a block came in between.
    fn empty(&self, cpu: usize) -> Vec<Block> {
        let blocks = self.take(cpu, 8);
        self.depot.release(&self.context(cpu), class());
        blocks
    }

    /// Makes a frame a slab.
    fn insert(&self, cpu: usize, start: NonNull<u8>) {
        let mut spares = Spares::none(&self.frames);
        let slab = (self.map).insert(&self.context(cpu), start, 1, class(), &mut spares);
        assert!(slab.is_ok());
    }

    fn remove(&self, cpu: usize, start: NonNull<u8>) {
        let slab = self.map.find(start.addr().get()).unwrap();
        self.map.remove(&self.context(cpu), slab);
    }

    /// Checks that these are all blocks up to this number, and the depot has given its memory back.
    #[track_caller]
    fn assert_complete(&self, mut blocks: Vec<Block>, count: usize) {
        blocks.sort();
        let expected: Vec<Block> = (1..=count).map(block).collect();
        assert_eq!(blocks, expected, "a block was lost or doubled");
        assert_eq!(self.frames.held(Use::Own), 0);
    }

    /// Checks, after the CPUs are done, that these blocks are used, and that all memory comes back
    /// without them.
    #[track_caller]
    fn assert_settled(&self, mut used: Vec<Block>) {
        assert_eq!(self.slabs.used(), used.len());
        let room = self.slabs.frames() * FRAME / class().size();
        used.extend(self.allocate(0, room - used.len()));
        assert_eq!(used.len(), room);
        assert_distinct(used.clone());
        self.free(0, &used);
        self.trim(0);
        assert_eq!(self.frames.held(Use::Slab), 0);
        assert_eq!(self.frames.held(Use::Own), 0);
    }
}

fn class() -> Class {
    Class::of(LAYOUT).unwrap()
}

fn filled(count: usize, fill: impl FnOnce(&mut [MaybeUninit<Block>]) -> usize) -> Vec<Block> {
    let mut room = std::vec![MaybeUninit::uninit(); count];
    let filled = fill(&mut room);
    // SAFETY: this many were written.
    room[..filled]
        .iter()
        .map(|block| unsafe { block.assume_init() })
        .collect()
}

#[track_caller]
fn assert_distinct(mut blocks: Vec<Block>) {
    let count = blocks.len();
    blocks.sort();
    blocks.dedup();
    assert_eq!(blocks.len(), count, "a block has two owners");
}

/// Addresses for which nobody looks what is there.
fn block(number: usize) -> Block {
    NonNull::new(ptr::without_provenance_mut(number * 512)).unwrap()
}

/// Blocks on their way to another CPU.
#[derive(Clone)]
struct Blocks(Vec<Block>);

// SAFETY: a block is memory that whoever has it may use.
unsafe impl Send for Blocks {}

fn on_other_cpu<T: 'static>(
    machine: &Arc<Machine>,
    work: impl FnOnce(&Machine) -> T + 'static,
) -> JoinHandle<T> {
    let machine = machine.clone();
    thread::spawn(move || work(&machine))
}

#[test]
fn lock_against_lock() {
    model("lock against lock", Some(7), || {
        let lock = Arc::new(Lock::new(0));
        let add = |lock: &Lock<usize>, cpu| {
            let mut guard = lock.lock(&Some(cpu)).unwrap();
            *guard += 1;
            // Code that interrupts its own CPU here is refused; it would wait forever.
            assert!(lock.lock(&Some(cpu)).is_none());
        };
        let others = lock.clone();
        let other = thread::spawn(move || add(&others, 1));
        add(&lock, 0);
        if let Some(mut guard) = lock.try_lock(None) {
            *guard += 1;
        }
        other.join().unwrap();
        assert!((2..=3).contains(&*lock.lock(&None).unwrap()));
    });
}

#[test]
fn take_against_put() {
    model("depot: take against put", Some(6), || {
        let machine = Machine::new();
        assert!(machine.put(0, &[block(1), block(2)]));
        let other = on_other_cpu(&machine, |machine| Blocks(machine.take(1, 1)));
        assert!(machine.put(0, &[block(3)]));
        let Blocks(mut blocks) = other.join().unwrap();
        assert_eq!(blocks.len(), 1);
        blocks.extend(machine.empty(0));
        machine.assert_complete(blocks, 3);
    });
}

#[test]
fn put_against_release() {
    model("depot: put against release", Some(5), || {
        let machine = Machine::new();
        assert!(machine.put(0, &[block(1), block(2)]));
        let other = on_other_cpu(&machine, |machine| Blocks(machine.empty(1)));
        assert!(machine.put(0, &[block(3)]));
        let Blocks(mut blocks) = other.join().unwrap();
        blocks.extend(machine.empty(0));
        machine.assert_complete(blocks, 3);
    });
}

#[test]
fn take_against_put_against_release() {
    model("depot: take against put against release", Some(1), || {
        let machine = Machine::new();
        assert!(machine.put(0, &[block(1), block(2)]));
        let second = on_other_cpu(&machine, |machine| Blocks(machine.take(1, 1)));
        let third = on_other_cpu(&machine, |machine| Blocks(machine.empty(2)));
        assert!(machine.put(0, &[block(3)]));
        let mut blocks = [second, third].map(|cpu| cpu.join().unwrap().0).concat();
        blocks.extend(machine.empty(0));
        machine.assert_complete(blocks, 3);
    });
}

#[test]
fn furnish_against_furnish() {
    model("depot: furnish against furnish", Some(3), || {
        let machine = Machine::new();
        let other = on_other_cpu(&machine, |machine| machine.put(1, &[block(1)]));
        assert!(machine.put(0, &[block(2)]));
        assert!(other.join().unwrap());
        machine.assert_complete(machine.empty(0), 2);
    });
}

#[test]
fn drain_against_free() {
    model("slabs: drain against free", Some(6), || {
        let machine = Machine::new();
        let blocks = machine.allocate(0, 4);
        let others = Blocks(blocks[..2].to_vec());
        let other = on_other_cpu(&machine, move |machine| {
            let Blocks(blocks) = others;
            machine.free(1, &blocks);
            machine.trim(1);
        });
        machine.free(0, &blocks[2..3]);
        other.join().unwrap();
        machine.assert_settled(blocks[3..].to_vec());
    });
}

#[test]
fn allocation_against_trim() {
    model("slabs: allocation against trim", Some(4), || {
        let machine = Machine::new();
        let blocks = machine.allocate(0, 1);
        machine.free(0, &blocks);
        let other = on_other_cpu(&machine, |machine| Blocks(machine.allocate(1, 1)));
        machine.trim(0);
        let Blocks(blocks) = other.join().unwrap();
        assert_eq!(blocks.len(), 1);
        machine.assert_settled(blocks);
    });
}

#[test]
fn insert_against_insert() {
    model("slab map: insert against insert", Some(3), || {
        let machine = Machine::new();
        let insert = |machine: &Machine, cpu| {
            let start = machine.frames.allocate(1, 1, Use::Slab).unwrap();
            machine.insert(cpu, start);
            Blocks(std::vec![start])
        };
        let other = on_other_cpu(&machine, move |machine| insert(machine, 1));
        let starts = [insert(&machine, 0), other.join().unwrap()];
        for Blocks(start) in starts {
            let slab = machine.map.find(start[0].addr().get()).unwrap();
            assert_eq!((slab.start(), slab.frames()), (Some(start[0]), 1));
            machine.remove(0, start[0]);
        }
        machine.assert_settled(Vec::new());
    });
}

#[test]
fn insert_against_remove() {
    model("slab map: insert against remove", Some(3), || {
        let machine = Machine::new();
        let starts = [(); 2].map(|()| machine.frames.allocate(1, 1, Use::Slab).unwrap());
        machine.insert(0, starts[0]);
        let fresh = Blocks(std::vec![starts[1]]);
        let other = on_other_cpu(&machine, move |machine| {
            let Blocks(fresh) = fresh;
            machine.insert(1, fresh[0]);
        });
        machine.remove(0, starts[0]);
        other.join().unwrap();
        machine.remove(0, starts[1]);
        machine.assert_settled(Vec::new());
    });
}

#[test]
fn find_against_insert() {
    model("slab map: find against insert", None, || {
        let machine = Machine::new();
        let start = machine.frames.allocate(1, 1, Use::Slab).unwrap();
        let address = start.addr().get();
        // Somebody frees what isn't the heap's, or isn't yet.
        let other = on_other_cpu(&machine, move |machine| machine.map.find(address).is_some());
        machine.insert(0, start);
        let _whatever = other.join().unwrap();
        machine.remove(0, start);
        machine.assert_settled(Vec::new());
    });
}

#[test]
fn find_against_remove() {
    model("slab map: find against remove", None, || {
        let machine = Machine::new();
        let starts = [(); 2].map(|()| machine.frames.allocate(1, 1, Use::Slab).unwrap());
        for start in starts {
            machine.insert(0, start);
        }
        let held = starts[0].addr().get();
        let other = on_other_cpu(&machine, move |machine| {
            let slab = machine.map.find(held + FRAME - 1).unwrap();
            assert_eq!(slab.start().unwrap().addr().get(), held);
        });
        machine.remove(0, starts[1]);
        other.join().unwrap();
        machine.remove(0, starts[0]);
        machine.assert_settled(Vec::new());
    });
}

/// Large blocks, whose kind says which one each is.
type Memory = [u128; 4];

/// Takes some deferred blocks out, and says which.
fn take_deferred(list: &DeferredList, cpu: usize) -> Vec<(Block, u32)> {
    let number = |kind| match kind {
        Kind::Large { frames } => frames,
        Kind::Small(_) => 0,
    };
    (list.take(Some(cpu)).into_iter())
        .map(|taken| taken.unwrap())
        .map(|(block, kind)| (block, number(kind)))
        .collect()
}

fn defer(list: &DeferredList, block: Block, number: u32) {
    // SAFETY: memory of the model's, of which whoever has the block has no other use.
    unsafe { list.push(block, Kind::Large { frames: number }) };
}

#[test]
fn deferred_frees_against_one_another() {
    model(
        "deferred frees: put against take against take",
        Some(3),
        || {
            let memory = std::boxed::Box::new([0_u128; 4] as Memory);
            let start = NonNull::from(std::boxed::Box::leak(memory)).cast::<u128>();
            // SAFETY: within the memory.
            let block = |index: usize| unsafe { start.add(index) }.cast::<u8>();
            let list = Arc::new(DeferredList::new());
            for number in 0..3 {
                defer(&list, block(number), number as u32 + 1);
            }
            let others = list.clone();
            let other = thread::spawn(move || {
                // The first block that it took is allocated, and freed in an NMI: it is in front again.
                let mut taken = take_deferred(&others, 1);
                if !taken.is_empty() {
                    let (block, number) = taken.remove(0);
                    defer(&others, block, number);
                }
                taken
                    .into_iter()
                    .map(|(_, number)| number)
                    .collect::<Vec<_>>()
            });
            let mut numbers: Vec<u32> = (take_deferred(&list, 0).into_iter())
                .map(|(_, number)| number)
                .collect();
            numbers.extend(other.join().unwrap());
            while let taken = take_deferred(&list, 0)
                && !taken.is_empty()
            {
                assert!(taken.len() <= BATCH);
                numbers.extend(taken.into_iter().map(|(_, number)| number));
            }
            numbers.sort_unstable();
            assert_eq!(numbers, [1, 2, 3], "a block was lost or doubled");
            // SAFETY: leaked above, and in no list any more.
            drop(unsafe { std::boxed::Box::from_raw(start.cast::<Memory>().as_ptr()) });
        },
    );
}

fn wait(_state: &mut u64) -> bool {
    spin_loop();
    true
}

#[test]
fn slab_against_slab() {
    /// For one slab and its tables.
    const LEFT: usize = 1 + TABLES;

    model("slabs: the last one against the last one", Some(3), || {
        let machine = Machine::new();
        machine.frames.platform().take_all_but(LEFT);
        let allocate = |machine: &Machine, cpu| {
            let attempt = |is_announced| {
                let context = Context {
                    is_announced,
                    ..machine.context(cpu)
                };
                let blocks = filled(1, |room| machine.slabs.allocate(&context, class(), room));
                blocks.first().copied()
            };
            let block = attempt(false).or_else(|| {
                machine.transit.seek(
                    || (Some(cpu), ()),
                    wait,
                    || attempt(true).ok_or(Refused::Short),
                    |_| None,
                )
            });
            Blocks(std::vec![block.unwrap()])
        };
        let other = on_other_cpu(&machine, move |machine| allocate(machine, 1));
        let mut blocks = allocate(&machine, 0).0;
        blocks.extend(other.join().unwrap().0);
        machine.assert_settled(blocks);
    });
}

/// Two frames, of which a CPU takes one after the other, and gives them back unless it gets both.
struct LastFrames([AtomicUsize; 2]);

impl LastFrames {
    fn new() -> Self {
        Self([(); 2].map(|()| AtomicUsize::new(1)))
    }

    /// Takes a frame. Relaxed, as the platform need not order anything.
    fn take(&self) -> Option<&AtomicUsize> {
        let take = |frame: &AtomicUsize| {
            let (free, taken) = (1, 0);
            frame.load(Ordering::Relaxed) == free
                && (frame.compare_exchange(free, taken, Ordering::Relaxed, Ordering::Relaxed))
                    .is_ok()
        };
        self.0.iter().find(|frame| take(frame))
    }

    fn take_both(&self) -> Option<()> {
        let first = self.take()?;
        let second = self.take();
        if second.is_none() {
            first.store(1, Ordering::Relaxed);
        }
        second.map(|_| ())
    }
}

#[test]
fn last_frames_against_last_frames() {
    model(
        "transit: the last frames against the last frames",
        None,
        || {
            let shared = Arc::new((Transit::new(), LastFrames::new()));
            let seek = |(transit, frames): &(Transit, LastFrames), cpu| {
                transit.seek(
                    || (Some(cpu), ()),
                    wait,
                    || frames.take_both().ok_or(Refused::Short),
                    |_| None,
                )
            };
            let others = shared.clone();
            let other = thread::spawn(move || seek(&others, 1));
            let own = seek(&shared, 0);
            let found = [own, other.join().unwrap()];
            assert_eq!(
                found.iter().flatten().count(),
                1,
                "refused because of each other"
            );
        },
    );
}

/// Seeks the last frames, of which another CPU takes one, and gives it back.
fn seek_against_failing_attempt(seek: impl Fn(&Transit, &LastFrames) -> Option<()>) {
    let shared = Arc::new((Transit::new(), LastFrames::new()));
    let others = shared.clone();
    let other = thread::spawn(move || {
        let (transit, frames) = &*others;
        let _transit = transit.begin();
        if let Some(frame) = frames.take() {
            frame.store(1, Ordering::Relaxed);
        }
    });
    let found = seek(&shared.0, &shared.1);
    assert!(found.is_some(), "refused because of what was given back");
    other.join().unwrap();
}

#[test]
fn last_frames_against_failing_attempt() {
    model(
        "transit: the last frames against a failing attempt",
        None,
        || {
            seek_against_failing_attempt(|transit, frames| {
                let attempt = || frames.take_both().ok_or(Refused::Short);
                transit.seek(|| (Some(0), ()), wait, attempt, |_| None)
            });
        },
    );
}

#[test]
fn search_against_failing_attempt() {
    model("transit: a search against a failing attempt", None, || {
        seek_against_failing_attempt(|transit, frames| {
            // An attempt does not look everywhere.
            let attempt = || Err(Refused::Short);
            let search = |own: &Cell<u64>| {
                let _step = transit.begin();
                own.set(own.get() + 1);
                frames.take_both()
            };
            transit.seek(|| (Some(0), ()), wait, attempt, search)
        });
    });
}
