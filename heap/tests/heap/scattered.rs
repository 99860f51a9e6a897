//! Scattered frames: blocks of which no contiguous frames are left, on a machine that maps frames of a file wherever it likes.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};

use crate::layout;
use crate::shadow::{Random, Shadow};

/// Pages of addresses for scattered frames.
const WINDOW: usize = 1 << 16;

/// The frames of a machine: those that are free, and where others are mapped.
struct Frames {
    is_free: Vec<bool>,
    /// The first page of each mapping in the window, the frames that it maps there, and how many there were at first.
    mappings: BTreeMap<usize, (Vec<usize>, usize)>,
}

/// A machine whose frames are those of a file. All of them are mapped in a row, as in an HHDM, and scattered ones again in a
/// window of addresses.
struct Machine {
    cpus: HostedFrames,
    file: libc::c_int,
    row: NonNull<u8>,
    window: NonNull<u8>,
    frames: Mutex<Frames>,
    can_unmap: AtomicBool,
    waits: std::sync::atomic::AtomicUsize,
    one_by_one: AtomicBool,
    /// Called once where there is no single frame.
    without_frame: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

// SAFETY: the addresses are those of memory that threads share.
unsafe impl Send for Machine {}
// SAFETY: as above; what changes is under a lock.
unsafe impl Sync for Machine {}

fn map(at: *mut u8, pages: usize, file: libc::c_int, first: usize) -> NonNull<u8> {
    let (protection, kind) = match file {
        -1 => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        _ => (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED),
    };
    let fixed = if at.is_null() { 0 } else { libc::MAP_FIXED };
    let offset = libc::off_t::try_from(first * FRAME).unwrap();
    // SAFETY: new addresses, or some of a machine's window.
    let start = unsafe {
        libc::mmap(
            at.cast(),
            pages * FRAME,
            protection,
            kind | fixed,
            file,
            offset,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    NonNull::new(start.cast()).unwrap()
}

impl Machine {
    fn new(count: usize) -> Self {
        // SAFETY: the name is a C string.
        let file = unsafe { libc::memfd_create(c"frames".as_ptr(), 0) };
        let length = libc::off_t::try_from(count * FRAME).unwrap();
        // SAFETY: the file is this machine's.
        assert!(file >= 0 && unsafe { libc::ftruncate(file, length) } == 0);
        Self {
            cpus: HostedFrames::new(1),
            file,
            row: map(ptr::null_mut(), count, file, 0),
            window: map(ptr::null_mut(), WINDOW, -1, 0),
            frames: Mutex::new(Frames {
                is_free: vec![true; count],
                mappings: BTreeMap::new(),
            }),
            can_unmap: AtomicBool::new(true),
            waits: Default::default(),
            one_by_one: Default::default(),
            without_frame: Mutex::new(None),
        }
    }

    fn frames_left(&self) -> usize {
        let frames = self.frames.lock().unwrap();
        frames.is_free.iter().filter(|is_free| **is_free).count()
    }

    /// Somebody else takes the frames for which `is_taken` holds.
    fn take(&self, is_taken: impl Fn(usize) -> bool) {
        let mut frames = self.frames.lock().unwrap();
        for (number, is_free) in frames.is_free.iter_mut().enumerate() {
            *is_free &= !is_taken(number);
        }
    }

    fn take_some(&self, count: usize, taken: &mut Vec<usize>) {
        let mut frames = self.frames.lock().unwrap();
        for (number, is_free) in frames.is_free.iter_mut().enumerate() {
            if *is_free && taken.len() < count {
                *is_free = false;
                taken.push(number);
            }
        }
    }

    fn give(&self, taken: &[usize]) {
        let mut frames = self.frames.lock().unwrap();
        taken
            .iter()
            .for_each(|&number| frames.is_free[number] = true);
    }

    fn page(&self, start: NonNull<u8>, base: NonNull<u8>) -> usize {
        start.addr().get().wrapping_sub(base.addr().get()) / FRAME
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let count = self.frames.get_mut().unwrap().is_free.len();
        // SAFETY: mapped and opened by `new`, and the heap is gone.
        unsafe {
            libc::munmap(self.row.as_ptr().cast(), count * FRAME);
            libc::munmap(self.window.as_ptr().cast(), WINDOW * FRAME);
            libc::close(self.file);
        }
    }
}

// SAFETY: frames have one owner each, and are mapped where it is said; CPUs are threads, as in `HostedFrames`.
unsafe impl FramePlatform for Machine {
    nothing_interrupts!();

    hosted_cpus!(cpus);

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        let found = (|| {
            let mut frames = self.frames.lock().unwrap();
            let base = self.row.addr().get() / FRAME;
            let mut starts = 0..(frames.is_free.len() + 1).saturating_sub(count);
            let first = starts.find(|&first| {
                (base + first).is_multiple_of(align)
                    && frames.is_free[first..][..count]
                        .iter()
                        .all(|is_free| *is_free)
            })?;
            frames.is_free[first..][..count].fill(false);
            // SAFETY: within the row.
            Some(unsafe { self.row.add(first * FRAME) })
        })();
        if found.is_none() && count == 1 {
            let hook = self.without_frame.lock().unwrap().take();
            if let Some(hook) = hook {
                hook();
            }
        }
        found
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        assert!(!self.is_scattered(start));
        let first = self.page(start, self.row);
        let mut frames = self.frames.lock().unwrap();
        assert!(!frames.is_free[first..][..count].contains(&true));
        frames.is_free[first..][..count].fill(true);
    }

    fn allocate_scattered(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        assert!(count > 1);
        if self.one_by_one.load(Ordering::Relaxed) {
            // Where they don't suffice, those that it has are unmapped first.
            if self.frames_left() < count {
                return None;
            }
            let mut taken = Vec::new();
            while taken.len() < count {
                let before = taken.len();
                self.take_some(before + 1, &mut taken);
                thread::sleep(std::time::Duration::from_millis(1));
                if taken.len() == before {
                    thread::sleep(std::time::Duration::from_millis(5));
                    self.give(&taken);
                    return None;
                }
            }
            self.give(&taken);
        }
        let mut frames = self.frames.lock().unwrap();
        let free = frames
            .is_free
            .iter()
            .enumerate()
            .filter(|(_, is_free)| **is_free);
        let taken: Vec<_> = free.map(|(number, _)| number).take(count).collect();
        let after = |(&first, (_, pages)): (&usize, &(_, usize))| first + pages + 1;
        let base = self.window.addr().get() / FRAME;
        let mut first = frames.mappings.last_key_value().map_or(0, after);
        if first + count + align > WINDOW {
            first = 0;
        }
        first = (base + first).next_multiple_of(align) - base;
        let is_taken = frames.mappings.range(..first + count + 1).next_back();
        let is_taken = is_taken.is_some_and(|mapping| after(mapping) > first);
        if taken.len() < count || is_taken {
            return None;
        }
        for (page, &number) in taken.iter().enumerate() {
            frames.is_free[number] = false;
            // SAFETY: within the window.
            let at = unsafe { self.window.add((first + page) * FRAME) };
            map(at.as_ptr(), 1, self.file, number);
        }
        frames.mappings.insert(first, (taken, count));
        // SAFETY: within the window.
        Some(unsafe { self.window.add(first * FRAME) })
    }

    fn is_scattered(&self, start: NonNull<u8>) -> bool {
        self.page(start, self.window) < WINDOW
    }

    fn wait_for_memory(&self, state: &mut u64) -> bool {
        self.waits.fetch_add(1, Ordering::Relaxed);
        *state += 1;
        thread::yield_now();
        *state < 1 << 16
    }

    fn can_unmap(&self) -> bool {
        self.can_unmap.load(Ordering::Relaxed)
    }

    unsafe fn free_scattered(&self, start: NonNull<u8>, count: usize) {
        assert!(self.can_unmap());
        let page = self.page(start, self.window);
        let mut frames = self.frames.lock().unwrap();
        let (&first, _) = frames.mappings.range(..=page).next_back().unwrap();
        let (mapped, _) = frames.mappings.get_mut(&first).unwrap();
        let freed = mapped.split_off(page - first);
        assert_eq!(freed.len(), count, "neither all nor the last of them");
        map(start.as_ptr(), count, -1, 0);
        for number in freed {
            assert!(!frames.is_free[number]);
            frames.is_free[number] = true;
        }
        if page == first {
            frames.mappings.remove(&first);
        }
    }
}

/// Returns a heap on a machine of `count` frames, every other of which is somebody else's.
fn fragmented(count: usize) -> MagazineHeap<Machine> {
    let heap = MagazineHeap::new(Machine::new(count));
    heap.platform().take(|number| !number.is_multiple_of(2));
    heap
}

fn alloc(heap: &MagazineHeap<Machine>, layout: Layout) -> Option<NonNull<u8>> {
    // SAFETY: no test asks for zero bytes.
    NonNull::new(unsafe { heap.alloc(layout) })
}

fn free(heap: &MagazineHeap<Machine>, block: NonNull<u8>, layout: Layout) {
    // SAFETY: tests free what they allocated, once, with the layout that it has.
    unsafe { heap.dealloc(block.as_ptr(), layout) };
}

fn assert_empty(heap: &MagazineHeap<Machine>, left: usize) {
    assert!(heap.drain());
    heap.trim();
    let totals = heap.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
    assert_eq!((totals.frames(), heap.platform().frames_left()), (0, left));
}

#[test]
fn a_block_fails_only_when_memory_is_out() {
    for size in [4097, 5 * FRAME / 4, 6144, 8192, 8193, 3 * FRAME, 40 * FRAME] {
        let heap = fragmented(512);
        let mut shadow = Shadow::new(&heap);
        while shadow.alloc(layout(size, 8)) {}
        // What is left is too little for a block and its description.
        let left = heap.platform().frames_left();
        assert!(
            left < size.div_ceil(FRAME) + 3,
            "{left} frames are left of {size} bytes"
        );
        assert!(shadow.bytes() > 0);
        shadow.free_all();
        assert_empty(&heap, 256);
    }
}

#[test]
fn a_high_alignment_is_met() {
    let heap = fragmented(64);
    for align in [16 << 10, 64 << 10] {
        let layout = layout(3 * FRAME, align);
        let block = alloc(&heap, layout).unwrap();
        assert!(block.addr().get().is_multiple_of(align));
        free(&heap, block, layout);
    }
    assert_empty(&heap, 32);
}

#[test]
fn a_block_shrinks_where_it_is_and_grows_elsewhere() {
    let heap = fragmented(256);
    let mut shadow = Shadow::new(&heap);
    assert!(shadow.alloc(layout(40 * FRAME, 8)));
    let (start, _) = shadow.blocks().next().unwrap();
    let left = heap.platform().frames_left();
    assert!(shadow.realloc(start, 10 * FRAME));
    assert_eq!(shadow.blocks().next().unwrap().0, start);
    assert_eq!(heap.platform().frames_left(), left + 30);
    assert!(shadow.realloc(start, 20 * FRAME));
    let (start, _) = shadow.blocks().next().unwrap();
    // The old block is unmapped when the CPU drains its cache.
    assert_eq!(heap.platform().frames_left(), left + 10);
    assert!(heap.drain());
    assert_eq!(heap.platform().frames_left(), left + 20);
    // To a class: the frames could not be unmapped one by one.
    assert!(shadow.realloc(start, 100));
    shadow.free_all();
    assert_empty(&heap, 128);
}

/// As in an interrupt handler, or under a lock.
#[test]
fn what_cannot_be_unmapped_waits_and_is_found_by_who_needs_it() {
    let heap = fragmented(256);
    let (large, class) = (layout(100 * FRAME, 8), layout(8192, 8));
    let blocks = [large, class].map(|layout| (alloc(&heap, layout).unwrap(), layout));
    let held = heap.totals().frames();
    heap.platform().can_unmap.store(false, Ordering::Relaxed);
    // SAFETY: live with this layout; a shrink is refused, or elsewhere.
    let shrunk = unsafe { heap.realloc(blocks[0].0.as_ptr(), large, 99 * FRAME) };
    assert!(shrunk.is_null());
    for (block, layout) in blocks {
        free(&heap, block, layout);
    }
    assert!(heap.drain());
    heap.trim();
    let totals = heap.totals();
    assert_eq!((totals.live_bytes, totals.live_blocks), (0, 0));
    assert!(totals.large_frames == 102 && totals.frames() <= held);
    assert_eq!(alloc(&heap, large), None);
    heap.platform().can_unmap.store(true, Ordering::Relaxed);
    let block = alloc(&heap, large).unwrap();
    free(&heap, block, large);
    assert_empty(&heap, 128);
}

/// Blocks of all sizes on a machine of which two thirds are taken, in pieces, by two CPUs that hand some to each other.
#[test]
fn histories_of_two_cpus_leave_nothing_behind() {
    for seed in 0..4 {
        let heap = &MagazineHeap::new(Machine::new(3072));
        let mut random = Random::new(seed);
        let taken: Vec<_> = (0..3072).map(|_| random.below(3) > 0).collect();
        heap.platform().take(|number| taken[number]);
        let left = heap.platform().frames_left();
        thread::scope(|scope| {
            for cpu in 0..2 {
                scope.spawn(move || {
                    let mut random = Random::new(100 * seed + cpu);
                    let mut shadow = Shadow::new(heap);
                    for _ in 0..4000 {
                        let limit = 1 << (4 + random.below(15));
                        let size = 1 + random.below(limit) as usize;
                        match random.below(8) {
                            0..3 => drop(shadow.alloc(layout(size, 8))),
                            3 => drop(shadow.realloc_any(&mut random, size)),
                            _ => shadow.free_any(&mut random),
                        }
                        while shadow.bytes() > 1 << 20 {
                            shadow.free_any(&mut random);
                        }
                    }
                    shadow.free_all();
                    assert!(heap.drain());
                });
            }
        });
        assert_empty(heap, left);
    }
}

#[test]
fn a_drain_unmaps_what_it_frees() {
    let heap = fragmented(256);
    let layout = layout(10 * FRAME, 8);
    let blocks = [(); 2].map(|()| alloc(&heap, layout).unwrap());
    for block in blocks {
        free(&heap, block, layout);
    }
    assert_eq!(heap.totals().live_blocks, 0);
    assert!(heap.drain());
    assert_eq!(heap.platform().frames_left(), 128);
}

#[test]
fn a_cpu_waits_for_the_frames_of_another_ones_attempt_that_fails() {
    let heap: &'static MagazineHeap<Machine> = Box::leak(Box::new(fragmented(64)));
    // So that the row's frames have a description: a later slab needs one frame alone.
    let _live: Vec<_> = (0..3)
        .map(|_| alloc(heap, layout(3000, 8)).unwrap())
        .collect();
    // Somebody else takes all but two.
    let mut left = heap.platform().frames_left();
    heap.platform()
        .frames
        .lock()
        .unwrap()
        .is_free
        .iter_mut()
        .for_each(|free| {
            if *free && left > 2 {
                *free = false;
                left -= 1;
            }
        });
    assert_eq!(heap.platform().frames_left(), 2);
    let (send, receive) = std::sync::mpsc::channel();
    let hook = move || {
        let other = thread::spawn(move || alloc(heap, layout(1024, 8)).is_some());
        let before = heap.platform().waits.load(Ordering::Relaxed);
        while !other.is_finished() && heap.platform().waits.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
        send.send(other).unwrap();
    };
    *heap.platform().without_frame.lock().unwrap() = Some(Box::new(hook));
    assert_eq!(alloc(heap, layout(8192, 8)), None);
    let got = receive.recv().unwrap().join().unwrap();
    assert!(alloc(heap, layout(1024, 8)).is_some(), "a frame is there");
    assert!(
        got,
        "the other CPU was refused, though nobody else got these frames"
    );
}

/// Each wants more than half of those that are free, on a platform that takes them one by one.
#[test]
fn two_cpus_do_not_keep_the_last_scattered_frames_from_each_other() {
    let heap: &'static MagazineHeap<Machine> = Box::leak(Box::new(fragmented(64)));
    heap.platform().one_by_one.store(true, Ordering::Relaxed);
    let refused: usize = (0..5)
        .map(|_| {
            let start = std::sync::Barrier::new(2);
            let got = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        start.wait();
                        if let Some(block) = alloc(heap, layout(20 * FRAME, 8)) {
                            got.store(true, Ordering::Relaxed);
                            free(heap, block, layout(20 * FRAME, 8));
                        }
                        start.wait();
                        heap.drain();
                        heap.trim();
                    });
                }
            });
            usize::from(!got.into_inner())
        })
        .sum();
    assert_eq!(refused, 0);
}
