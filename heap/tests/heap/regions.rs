//! Memory at both ends of the address space, and as far apart as kernels have it.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use muster_heap::{CpuCache, FRAME, FramePlatform, MagazineHeap};

use crate::layout;

/// Frames at each place.
const FRAMES: usize = 64;

/// A machine whose memory lies in several places. Each is used before the next, which the test says.
struct Places {
    places: Vec<NonNull<u8>>,
    /// Which place frames come from, and which frames of each are given.
    given: Mutex<(usize, Vec<[bool; FRAMES]>)>,
    cache: CpuCache,
}

// SAFETY: addresses, used under the lock.
unsafe impl Sync for Places {}

impl Places {
    /// Maps memory at each of these addresses; `None` if the host has something else at one of them.
    fn new(addresses: &[usize]) -> Option<Self> {
        let places = (addresses.iter())
            .map(|&address| {
                // SAFETY: new memory, where nothing is mapped.
                let start = unsafe {
                    libc::mmap(
                        ptr::without_provenance_mut(address),
                        FRAMES * FRAME,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                        -1,
                        0,
                    )
                };
                NonNull::new(start.cast()).filter(|start| start.addr().get() == address)
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            given: Mutex::new((0, vec![[false; FRAMES]; places.len()])),
            places,
            cache: CpuCache::new(),
        })
    }

    fn use_place(&self, place: usize) {
        self.given.lock().unwrap().0 = place;
    }

    fn place_of(&self, address: NonNull<u8>) -> Option<usize> {
        let offset = |place: &NonNull<u8>| address.addr().get().wrapping_sub(place.addr().get());
        let is_in = |place: &NonNull<u8>| offset(place) < FRAMES * FRAME;
        self.places.iter().position(is_in)
    }

    fn is_all_back(&self) -> bool {
        let given = self.given.lock().unwrap();
        given.1.iter().flatten().all(|is_given| !is_given)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for start in &self.places {
            // SAFETY: mapped in `new`, and no block is left.
            unsafe { libc::munmap(start.as_ptr().cast(), FRAMES * FRAME) };
        }
    }
}

// SAFETY: one thread, which nothing interrupts; each frame is given once at a time.
unsafe impl FramePlatform for Places {
    one_cpu!();

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        let mut given = self.given.lock().unwrap();
        let place = given.0;
        let frames = &mut given.1[place];
        let first = (0..FRAMES).step_by(align).find(|&first| {
            frames
                .get(first..first + count)
                .is_some_and(|run| !run.contains(&true))
        })?;
        frames[first..first + count].fill(true);
        // SAFETY: within the memory.
        Some(unsafe { self.places[place].add(first * FRAME) })
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        let place = self.place_of(start).unwrap();
        let first = (start.addr().get() - self.places[place].addr().get()) / FRAME;
        for is_given in &mut self.given.lock().unwrap().1[place][first..first + count] {
            assert!(core::mem::replace(is_given, false));
        }
    }
}

const SIZES: [usize; 4] = [64, 3000, 8192, 20_000];

fn layouts() -> impl Iterator<Item = Layout> {
    SIZES.into_iter().map(|size| layout(size, 8))
}

#[test]
fn memory_may_lie_anywhere_in_the_address_space() {
    const LOW: usize = 0x10_0000_0000;
    /// A distance at which the map of slabs was once wrong.
    const APART: usize = 64 << 40;

    // The distances at which something of the map could coincide.
    for apart in [
        1 << 18,
        1 << 27,
        1 << 36,
        1 << 37,
        APART / 2,
        APART,
        APART + (1 << 36),
    ] {
        let Some(machine) = Places::new(&[LOW, LOW + apart]) else {
            continue;
        };
        let heap = MagazineHeap::new(machine);
        let mut blocks = Vec::new();
        for place in [0, 1, 0, 1] {
            heap.platform().use_place(place);
            for layout in layouts() {
                // Until a slab, too, lies there, and not only in the place before.
                loop {
                    // SAFETY: the size isn't zero.
                    let block = NonNull::new(unsafe { heap.alloc(layout) }).unwrap();
                    // SAFETY: the block is so long.
                    unsafe { block.write_bytes(place as u8 + 1, layout.size()) };
                    blocks.push((block, layout, place as u8 + 1));
                    if heap.platform().place_of(block) == Some(place) {
                        break;
                    }
                }
            }
            assert!(heap.drain());
        }
        for (block, layout, byte) in blocks {
            // SAFETY: the block is so long, and live.
            let bytes = unsafe { core::slice::from_raw_parts(block.as_ptr(), layout.size()) };
            assert!(bytes.iter().all(|&found| found == byte));
            // SAFETY: as above.
            unsafe { heap.dealloc(block.as_ptr(), layout) };
            assert!(heap.drain());
        }
        heap.trim();
        assert_eq!(heap.totals().frames(), 0, "{apart:#x}");
        assert!(heap.platform().is_all_back());
    }
}

/// A machine that has a frame in another region each time, but none for a description, until it has
/// memory.
struct Scattered {
    /// How many regions it has had a frame in.
    regions: AtomicUsize,
    /// Whether that is in use.
    is_given: AtomicBool,
    memory: Places,
    cache: CpuCache,
}

// SAFETY: one thread, which nothing interrupts. A frame that is not memory is not used before it is
// described, which needs another one.
unsafe impl FramePlatform for Scattered {
    one_cpu!();

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        const REGION: usize = 64 << 30;
        /// More than there can be slabs in.
        const REGIONS: usize = 1100;

        if self.regions.load(Ordering::Relaxed) == REGIONS {
            return self.memory.allocate_frames(count, align);
        }
        if self.is_given.swap(true, Ordering::Relaxed) {
            return None;
        }
        // Beyond the region of the memory.
        let region = self.regions.fetch_add(1, Ordering::Relaxed) + 2;
        NonNull::new(ptr::without_provenance_mut(region * REGION))
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        if !self.is_given.swap(false, Ordering::Relaxed) {
            // SAFETY: the caller's promise.
            unsafe { self.memory.free_frames(start, count) };
        }
    }
}

#[test]
fn a_slab_that_could_not_be_described_keeps_no_region() {
    let Some(memory) = Places::new(&[0x10_0000_0000]) else {
        return;
    };
    let heap = MagazineHeap::new(Scattered {
        regions: AtomicUsize::new(0),
        is_given: AtomicBool::new(false),
        memory,
        cache: CpuCache::new(),
    });
    let layout = layout(64, 8);
    // SAFETY: the size isn't zero.
    let alloc = || NonNull::new(unsafe { heap.alloc(layout) });
    let block = (0..2000).find_map(|_| alloc());
    // SAFETY: allocated above.
    unsafe { heap.dealloc(block.unwrap().as_ptr(), layout) };
}
