//! The reference that a heap is checked against: which bytes are live, and what was written there.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};

/// Every block gets another pattern, whichever thread it is of.
static NEXT_SEED: AtomicU64 = AtomicU64::new(0);

/// One live block, filled with a pattern that only its owner could have written.
pub struct Block {
    start: NonNull<u8>,
    layout: Layout,
    seed: u64,
}

// SAFETY: a block is memory that its holder alone may touch, whichever thread that is.
unsafe impl Send for Block {}

impl Block {
    fn new(start: NonNull<u8>, layout: Layout, seed: u64) -> Self {
        let mut random = Random::new(seed);
        for offset in (0..layout.size()).step_by(8) {
            let word = random.next().to_le_bytes();
            let count = word.len().min(layout.size() - offset);
            // SAFETY: `offset + count` is at most the block's size.
            unsafe {
                start
                    .add(offset)
                    .copy_from_nonoverlapping(NonNull::from(&word).cast(), count)
            };
        }
        Self {
            start,
            layout,
            seed,
        }
    }

    /// Checks the first `count` bytes, wherever they have been carried.
    fn check(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: `new` wrote every byte of the block, and `start` is the block or its copy.
        let bytes = unsafe { slice::from_raw_parts(start.as_ptr(), count) };
        let mut random = Random::new(self.seed);
        let intact = bytes
            .chunks(8)
            .all(|chunk| *chunk == random.next().to_le_bytes()[..chunk.len()]);
        assert!(
            intact,
            "block at {start:p} of {:?} overwritten",
            self.layout
        );
    }
}

/// The live blocks of one thread, by address.
pub struct Shadow<'a, H> {
    heap: &'a H,
    live: BTreeMap<usize, Block>,
    bytes: u64,
}

impl<'a, H: GlobalAlloc> Shadow<'a, H> {
    pub fn new(heap: &'a H) -> Self {
        Self {
            heap,
            live: BTreeMap::new(),
            bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.live.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `false`: out of memory.
    pub fn alloc(&mut self, layout: Layout) -> bool {
        // SAFETY: no test asks for zero bytes.
        let Some(start) = NonNull::new(unsafe { self.heap.alloc(layout) }) else {
            return false;
        };
        self.adopt(Block::new(
            start,
            layout,
            NEXT_SEED.fetch_add(1, Ordering::Relaxed),
        ));
        true
    }

    /// Does what [`alloc`](Self::alloc) does, and the block must come with zeroes.
    pub fn alloc_zeroed(&mut self, layout: Layout) -> bool {
        // SAFETY: no test asks for zero bytes.
        let Some(start) = NonNull::new(unsafe { self.heap.alloc_zeroed(layout) }) else {
            return false;
        };
        // SAFETY: the block has this many bytes, all of them written.
        let bytes = unsafe { slice::from_raw_parts(start.as_ptr(), layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == 0), "{layout:?} not zeroed");
        self.adopt(Block::new(
            start,
            layout,
            NEXT_SEED.fetch_add(1, Ordering::Relaxed),
        ));
        true
    }

    /// Takes over a block, which must be aligned and overlap none that is live.
    pub fn adopt(&mut self, block: Block) {
        let start = block.start.addr().get();
        let end = start + block.layout.size();
        assert_eq!(start % block.layout.align(), 0);
        if let Some((before, other)) = self.live.range(..end).next_back() {
            assert!(before + other.layout.size() <= start, "blocks overlap");
        }
        self.bytes += block.layout.size() as u64;
        self.live.insert(start, block);
    }

    /// Returns the live blocks, lowest address first.
    pub fn blocks(&self) -> impl Iterator<Item = (usize, Layout)> {
        let blocks = self.live.iter();
        blocks.map(|(start, block)| (*start, block.layout))
    }

    /// Returns one of the live blocks.
    pub fn any(&self, random: &mut Random) -> Option<(usize, Layout)> {
        let count = self.live.len() as u64;
        let place = random.below(count.max(1)) as usize;
        self.blocks().nth(place)
    }

    /// Returns a live block, checked, which is the caller's from now on.
    pub fn take_any(&mut self, random: &mut Random) -> Option<Block> {
        let (start, _) = self.any(random)?;
        Some(self.take(start))
    }

    fn take(&mut self, start: usize) -> Block {
        let block = self.live.remove(&start).expect("a live block");
        block.check(block.start, block.layout.size());
        self.bytes -= block.layout.size() as u64;
        block
    }

    /// Takes one step of a thread that allocates, frees, and hands blocks on to the next: it takes over
    /// the blocks that it is handed, and keeps those that the next has no room for.
    pub fn step(&mut self, random: &mut Random, next: &SyncSender<Block>, inbox: &Receiver<Block>) {
        match random.below(8) {
            0..4 => {
                self.alloc(random.layout());
            }
            4 => {
                if let Some(block) = self.take_any(random)
                    && let Err(error) = next.try_send(block)
                {
                    let (TrySendError::Full(block) | TrySendError::Disconnected(block)) = error;
                    self.adopt(block);
                }
            }
            _ => self.free_any(random),
        }
        while let Ok(block) = inbox.try_recv() {
            self.adopt(block);
        }
    }

    pub fn free_any(&mut self, random: &mut Random) {
        if let Some((start, _)) = self.any(random) {
            self.free(start);
        }
    }

    /// Resizes a live block; `false`: out of memory, and the block is as it was.
    pub fn realloc_any(&mut self, random: &mut Random, size: usize) -> bool {
        self.any(random)
            .is_none_or(|(start, _)| self.realloc(start, size))
    }

    /// Resizes this live block, as above.
    pub fn realloc(&mut self, start: usize, size: usize) -> bool {
        let block = self.take(start);
        let Ok(layout) = Layout::from_size_align(size, block.layout.align()) else {
            self.adopt(block);
            return true;
        };
        // SAFETY: live with this layout, and no test asks for zero bytes.
        let moved = unsafe { self.heap.realloc(block.start.as_ptr(), block.layout, size) };
        let Some(start) = NonNull::new(moved) else {
            self.adopt(block);
            return false;
        };
        block.check(start, size.min(block.layout.size()));
        self.adopt(Block::new(start, layout, block.seed));
        true
    }

    pub fn free_all(&mut self) {
        while let Some((&start, _)) = self.live.first_key_value() {
            self.free(start);
        }
    }

    pub fn free(&mut self, start: usize) {
        let block = self.take(start);
        // SAFETY: live until here, with this layout.
        unsafe { self.heap.dealloc(block.start.as_ptr(), block.layout) };
    }
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Mostly small and little aligned, as programs are, but now and then neither.
    pub fn layout(&mut self) -> Layout {
        let size_limit = 1 << self.below(16);
        let size = 1 + self.below(size_limit);
        let align = 1
            << if self.below(8) == 0 {
                self.below(17)
            } else {
                self.below(5)
            };
        Layout::from_size_align(size as usize, align).expect("small")
    }
}
