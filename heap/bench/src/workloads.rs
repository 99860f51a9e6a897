//! What the allocators are asked to do.

use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::hint;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::contenders::{self, Allocator};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One block of 64 bytes, allocated and freed.
    Churn,
    /// 16 bytes to 8 KiB, 1000 live per thread, random lifetimes.
    Mixed,
    /// 16 to 1024 bytes, 1000 live per thread, which the next thread takes over now and then.
    Larson,
    /// One thread allocates 64 bytes, another frees.
    Xfree,
}

impl Workload {
    pub const ALL: [Self; 4] = [Self::Churn, Self::Mixed, Self::Larson, Self::Xfree];

    pub fn name(self) -> &'static str {
        match self {
            Self::Churn => "churn 64 B",
            Self::Mixed => "mixed",
            Self::Larson => "larson",
            Self::Xfree => "xfree",
        }
    }

    /// M pairs of allocation and free a second.
    pub fn run(self, allocator: Allocator, threads: usize, time: Duration) -> f64 {
        let job = Job {
            allocator,
            is_over: AtomicBool::new(false),
            start: Barrier::new(threads + 1),
            pairs: AtomicUsize::new(0),
        };
        let slots: Vec<_> = (0..threads).map(|_| Mutex::new(Vec::new())).collect();
        let rings: Vec<_> = (0..threads / 2).map(|_| Ring::new()).collect();
        let elapsed = thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|number| {
                    let (job, slots, rings) = (&job, &slots, &rings);
                    scope.spawn(move || {
                        pin_to_cpu(number);
                        contenders::enter_cpu(number);
                        job.start.wait();
                        let pairs = match self {
                            Self::Churn => job.churn(),
                            Self::Mixed => job.mixed(number),
                            Self::Larson => job.larson(number, slots),
                            Self::Xfree => match rings.get(number / 2) {
                                Some(ring) if number % 2 == 0 => job.produce(ring),
                                Some(ring) => job.consume(ring),
                                None => 0,
                            },
                        };
                        job.pairs.fetch_add(pairs, Ordering::Relaxed);
                        contenders::leave_cpu();
                    })
                })
                .collect();
            job.start.wait();
            let start = Instant::now();
            thread::sleep(time);
            job.is_over.store(true, Ordering::Relaxed);
            let elapsed = start.elapsed();
            for worker in workers {
                worker.join().expect("a worker panicked");
            }
            elapsed
        });
        contenders::enter_cpu(0);
        for block in slots.into_iter().flat_map(|slots| {
            let slots: Vec<Block> = slots.into_inner().expect("no worker panicked");
            slots
        }) {
            job.free(block);
        }
        contenders::leave_cpu();
        job.pairs.into_inner() as f64 / elapsed.as_secs_f64() / 1e6
    }
}

/// The churn that instructions are counted of.
#[inline(never)]
pub fn churn(allocator: Allocator, pairs: usize) {
    let layout = hint::black_box(Layout::new::<[u64; 8]>());
    for _ in 0..pairs {
        // SAFETY: the size isn't zero; freed with the same layout.
        unsafe {
            let block = allocator.alloc(layout);
            allocator.dealloc(block, layout);
        }
    }
}

/// A live block.
#[derive(Clone, Copy)]
struct Block {
    start: *mut u8,
    layout: Layout,
}

// SAFETY: memory that its holder alone uses.
unsafe impl Send for Block {}

struct Job {
    allocator: Allocator,
    is_over: AtomicBool,
    start: Barrier,
    pairs: AtomicUsize,
}

impl Job {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    #[inline]
    fn allocate(&self, size: usize) -> Block {
        // SAFETY: 8 is a power of two, and sizes are small.
        let layout = unsafe { Layout::from_size_align_unchecked(size, 8) };
        // SAFETY: no workload asks for zero bytes.
        let start = unsafe { self.allocator.alloc(layout) };
        assert!(!start.is_null(), "out of memory");
        // SAFETY: the block has a byte.
        unsafe { start.write_volatile(1) };
        Block { start, layout }
    }

    #[inline]
    fn free(&self, block: Block) {
        // SAFETY: blocks are live, and freed with their layout.
        unsafe { self.allocator.dealloc(block.start, block.layout) };
    }

    fn churn(&self) -> usize {
        let mut pairs = 0;
        while !self.is_over() {
            for _ in 0..64 {
                self.free(self.allocate(64));
            }
            pairs += 64;
        }
        pairs
    }

    fn mixed(&self, seed: usize) -> usize {
        let mut random = Random::new(seed);
        let mut live: Vec<_> = (0..1000).map(|_| self.allocate(random.mixed())).collect();
        let mut pairs = 0;
        while !self.is_over() {
            for _ in 0..64 {
                self.replace(&mut live, &mut random, Random::mixed);
            }
            pairs += 64;
        }
        live.into_iter().for_each(|block| self.free(block));
        pairs
    }

    fn larson(&self, number: usize, slots: &[Mutex<Vec<Block>>]) -> usize {
        let mut random = Random::new(number);
        let mut live: Vec<_> = (0..1000).map(|_| self.allocate(random.larson())).collect();
        let mut pairs = 0;
        while !self.is_over() {
            for _ in 0..1000 {
                self.replace(&mut live, &mut random, Random::larson);
            }
            pairs += 1000;
            // Leaves its blocks for the next thread, and takes what it finds.
            let mut next = slots[(number + 1) % slots.len()].lock().expect("no panic");
            std::mem::swap(&mut *next, &mut live);
            drop(next);
            let mut own = slots[number].lock().expect("no panic");
            if live.is_empty() {
                std::mem::swap(&mut *own, &mut live);
            }
            drop(own);
            while live.len() < 1000 {
                live.push(self.allocate(random.larson()));
            }
        }
        live.into_iter().for_each(|block| self.free(block));
        pairs
    }

    #[inline]
    fn replace(&self, live: &mut [Block], random: &mut Random, size: fn(&mut Random) -> usize) {
        let place = random.next() as usize % 1000;
        self.free(live[place]);
        live[place] = self.allocate(size(random));
    }

    fn produce(&self, ring: &Ring) -> usize {
        while !self.is_over() {
            while ring.is_full() && !self.is_over() {
                hint::spin_loop();
            }
            for _ in 0..Ring::BATCH {
                ring.push(self.allocate(64).start);
            }
            ring.publish();
        }
        ring.is_done.store(true, Ordering::Release);
        0
    }

    fn consume(&self, ring: &Ring) -> usize {
        let mut pairs = 0;
        let layout = Layout::from_size_align(64, 8).expect("a valid layout");
        loop {
            let is_done = ring.is_done.load(Ordering::Acquire);
            let count = ring.pop(|start| self.free(Block { start, layout }));
            pairs += count;
            if count == 0 {
                if is_done {
                    return pairs;
                }
                hint::spin_loop();
            }
        }
    }
}

/// Addresses on their way from one thread to another.
struct Ring {
    slots: Box<[UnsafeCell<*mut u8>]>,
    tail: UnsafeCell<usize>,
    published: Padded<AtomicUsize>,
    taken: Padded<AtomicUsize>,
    is_done: AtomicBool,
}

#[repr(align(128))]
struct Padded<T>(T);

// SAFETY: slots from `taken` to `published` are the consumer's, all others and `tail` the producer's.
unsafe impl Sync for Ring {}

impl Ring {
    const SIZE: usize = 4096;
    const BATCH: usize = 64;

    fn new() -> Self {
        Self {
            slots: (0..Self::SIZE)
                .map(|_| UnsafeCell::new(ptr::null_mut()))
                .collect(),
            tail: UnsafeCell::new(0),
            published: Padded(AtomicUsize::new(0)),
            taken: Padded(AtomicUsize::new(0)),
            is_done: AtomicBool::new(false),
        }
    }

    fn is_full(&self) -> bool {
        let taken = self.taken.0.load(Ordering::Acquire);
        self.published.0.load(Ordering::Relaxed) - taken + 2 * Self::BATCH > Self::SIZE
    }

    fn push(&self, block: *mut u8) {
        // SAFETY: only the producer gets here, and only where the ring isn't full.
        unsafe {
            *self.slots[*self.tail.get() % Self::SIZE].get() = block;
            *self.tail.get() += 1;
        }
    }

    fn publish(&self) {
        // SAFETY: only the producer gets here.
        let tail = unsafe { *self.tail.get() };
        self.published.0.store(tail, Ordering::Release);
    }

    fn pop(&self, mut free: impl FnMut(*mut u8)) -> usize {
        let taken = self.taken.0.load(Ordering::Relaxed);
        let published = self.published.0.load(Ordering::Acquire);
        for slot in taken..published {
            // SAFETY: published, and not taken yet.
            free(unsafe { *self.slots[slot % Self::SIZE].get() });
        }
        self.taken.0.store(published, Ordering::Release);
        published - taken
    }
}

/// Xorshift (Marsaglia, 2003): cheap beside an allocation.
pub struct Random(u64);

impl Random {
    pub fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    /// Each doubling from 16 bytes to 8 KiB is as likely as any other.
    pub fn mixed(&mut self) -> usize {
        let any = self.next();
        let low = 16 << (any % 9);
        low + (any >> 8) as usize % low
    }

    fn larson(&mut self) -> usize {
        16 + self.next() as usize % 1009
    }
}

fn pin_to_cpu(number: usize) {
    // SAFETY: a set of one CPU for this thread; if there is no such CPU, nothing happens.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(number, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
