//! Tests that reach into the heap.

#![allow(
    clippy::unwrap_used,
    reason = "a test that finds nothing to unwrap must fail"
)]

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::vec::Vec;

use super::*;
use crate::hosted::HostedFrames;
use crate::magazines::deferred::BATCH;
use crate::magazines::transit::{InTransit, Refused};
use crate::{FRAME, FrameSearch, SearchFn};

type Heap = MagazineHeap<HostedFrames>;

const LAYOUT: Layout = Layout::new::<[u64; 8]>();

fn alloc(heap: &Heap, layout: Layout) -> *mut u8 {
    // SAFETY: the size isn't zero.
    unsafe { heap.alloc(layout) }
}

fn free(heap: &Heap, block: *mut u8, layout: Layout) {
    // SAFETY: the tests free what they allocated, once.
    unsafe { heap.dealloc(block, layout) };
}

fn assert_all_back(heap: &Heap) {
    assert!(heap.drain());
    heap.trim();
    assert_eq!(heap.totals().frames(), 0, "{heap:?}");
    assert_eq!(heap.totals().live_bytes, 0);
}

#[test]
#[should_panic(expected = "was written to after it was freed")]
fn what_waits_to_be_freed_is_not_believed_if_it_was_written_to() {
    let heap = Heap::new(HostedFrames::new(256));
    // Larger than any class: no fast path takes it.
    let layout = Layout::new::<[u64; 4096]>();
    let [first, second] = [(); 2].map(|()| alloc(&heap, layout));
    {
        let entry = heap.platform().cache().enter();
        assert!(matches!(entry, Entry::Owner(_)));
        free(&heap, first, layout);
        free(&heap, second, layout);
    }
    // SAFETY: the memory is the heap's, whose answer is to be seen.
    unsafe { *second ^= 0x10 };
    heap.drain();
}

#[test]
fn a_byte_past_the_last_block_of_a_frame_leads_nowhere() {
    const FRAMES: usize = 512;
    const SIZES: [usize; 4] = [16, 64, 1024, 4096];
    let heap = Heap::new(HostedFrames::new(FRAMES));
    let layouts = SIZES.map(|size| Layout::from_size_align(size, 16).unwrap());
    let mut live = Vec::new();
    let mut fill = |count: usize| {
        for number in 0..count {
            let layout = layouts[number % layouts.len()];
            let block = alloc(&heap, layout);
            assert!(!block.is_null());
            // SAFETY: the block's own bytes.
            unsafe { block.write_bytes(number as u8, layout.size()) };
            live.push((block, layout, number as u8));
        }
        for (number, &(block, layout, _)) in live.iter().enumerate() {
            if number % 3 == 0 {
                free(&heap, block, layout);
            }
        }
        let mut number = 0;
        live.retain(|_| {
            number += 1;
            (number - 1) % 3 != 0
        });
    };
    fill(1200);
    // Depots and the map have frames of their own by now. A write past the end of the frame before,
    // that is, to the first byte of theirs, changes nothing.
    for change in [0x01, 0x08, 0x10, 0x80, 0xff_u8] {
        let mut written = 0;
        let mut write = |frame: NonNull<u8>| {
            // SAFETY: the heap's, which this is about.
            unsafe { *frame.as_ptr() ^= change };
            written += 1;
        };
        heap.depots
            .iter()
            .filter_map(Depot::memory)
            .for_each(&mut write);
        heap.map.each_table(&mut write);
        assert!(written > 5, "{written}");
        fill(300);
        assert!(heap.drain());
    }
    for (block, layout, number) in live {
        // SAFETY: the block's own bytes.
        let bytes = unsafe { core::slice::from_raw_parts(block, layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == number));
        free(&heap, block, layout);
    }
    assert_all_back(&heap);
}

#[test]
fn a_cpu_on_a_slow_path_may_have_blocks() {
    let heap = Heap::new(HostedFrames::new(256));
    let cache = heap.platform().cache();
    assert!(!cache.may_have_blocks());
    {
        let _entry = cache.enter();
        assert!(cache.may_have_blocks() && cache.cached_bytes() == 0);
    }
    assert!(!cache.may_have_blocks());
    free(&heap, alloc(&heap, LAYOUT), LAYOUT);
    assert!(cache.may_have_blocks());
    assert_all_back(&heap);
}

#[test]
fn nmi_on_top_of_a_slow_path_gets_what_is_there_and_frees_later() {
    let heap = Heap::new(HostedFrames::new(256));
    let large = Layout::new::<[u64; 4096]>();
    let blocks = [LAYOUT, large].map(|layout| (alloc(&heap, layout), layout));
    {
        let entry = heap.platform().cache().enter();
        assert!(matches!(entry, Entry::Owner(_)));
        let frames = heap.platform().frames_left();
        for (block, layout) in blocks {
            free(&heap, block, layout);
        }
        assert_eq!(heap.totals().live_bytes, 0);
        assert!(alloc(&heap, large).is_null());
        let block = alloc(&heap, LAYOUT);
        assert!(!block.is_null());
        free(&heap, block, LAYOUT);
        assert_eq!(heap.platform().frames_left(), frames);
    }
    // One refusal; two blocks of 64 bytes and a large one wait for the next slow path.
    assert_eq!(heap.totals().refusals, 1);
    assert_eq!(heap.totals().large_frames, 8);
    assert_all_back(&heap);
}

/// A machine on which a test sees what the heap asks for, and does what another CPU, or an NMI, does at that moment.
struct Observed {
    machine: HostedFrames,
    /// Returns the answer to what has one.
    observe: fn(&'static MagazineHeap<Self>, Event) -> bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Cache,
    DisableInterrupts,
    DisablePreemption,
    Extend,
    /// A search is about to find frames, unless they are used.
    Found,
    WaitForMemory,
}

std::thread_local! {
    static HEAP: Cell<Option<&'static MagazineHeap<Observed>>> = const { Cell::new(None) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// The steps of a search for frames, without which none are found, if the platform searches.
    static STEPS: Cell<Option<usize>> = const { Cell::new(None) };
    /// What another CPU has in transit.
    static IN_TRANSIT: RefCell<Option<InTransit<'static>>> = const { RefCell::new(None) };
    /// Blocks that an NMI will free.
    static BLOCKS: RefCell<Vec<(*mut u8, Layout)>> = const { RefCell::new(Vec::new()) };
}

impl Observed {
    /// Returns a heap on such a machine.
    fn heap(
        frames: usize,
        observe: fn(&'static MagazineHeap<Self>, Event) -> bool,
    ) -> &'static MagazineHeap<Self> {
        let machine = HostedFrames::new(frames);
        Box::leak(Box::new(MagazineHeap::new(Self { machine, observe })))
    }

    /// Says what the heap asks for, once the test is ready.
    fn observe(&self, event: Event) -> bool {
        // Not what a test's answer asks for.
        HEAP.take().is_none_or(|heap| {
            let answer = (self.observe)(heap, event);
            HEAP.set(Some(heap));
            answer
        })
    }
}

// SAFETY: everything is `HostedFrames`', and a machine may refuse to extend.
unsafe impl FramePlatform for Observed {
    type NoPreempt = ();
    type InterruptGuard = ();

    fn disable_preemption(&self) {
        self.observe(Event::DisablePreemption);
    }

    fn disable_interrupts(&self) {
        self.observe(Event::DisableInterrupts);
    }

    fn cpu(&self) -> Option<usize> {
        self.machine.cpu()
    }

    fn cache(&self) -> &crate::CpuCache {
        self.observe(Event::Cache);
        self.machine.cache()
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&crate::CpuCache)) {
        self.machine.each_cache(visit);
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        // What the description of a slab takes is found at once.
        let is_found = STEPS.get().is_none() || count == 1;
        is_found.then(|| self.machine.allocate_frames(count, align))?
    }

    fn search_frames(&self, count: usize, align: usize, search: &mut SearchFn<'_>) {
        if let Some(steps) = STEPS.get() {
            let mut left = steps;
            search(&mut || {
                left -= 1;
                if left > 0 {
                    return FrameSearch::Unfinished;
                }
                let found = self.observe(Event::Found);
                let start = found
                    .then(|| self.machine.allocate_frames(count, align))
                    .flatten();
                start.map_or(FrameSearch::NotFree, FrameSearch::Found)
            });
        }
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.machine.free_frames(start, count) };
    }

    unsafe fn extend_frames(&self, start: NonNull<u8>, count: usize, more: usize) -> bool {
        // SAFETY: the caller's promise.
        self.observe(Event::Extend) && unsafe { self.machine.extend_frames(start, count, more) }
    }

    fn wait_for_memory(&self, _: &mut u64) -> bool {
        self.observe(Event::WaitForMemory)
    }
}

/// Does what another CPU does that has the frames, for an instant, the first `times` times that the heap asks for them.
fn has_what_is_asked_for(
    heap: &'static MagazineHeap<Observed>,
    event: Event,
    asked: Event,
    times: usize,
) -> bool {
    if event == asked {
        let is_theirs = CALLS.replace(CALLS.get() + 1) < times;
        if is_theirs {
            IN_TRANSIT.set(Some(heap.transit.begin()));
        }
        return !is_theirs;
    }
    if event == Event::WaitForMemory {
        IN_TRANSIT.take();
    }
    true
}

#[test]
fn a_block_waits_for_the_frames_behind_it() {
    // Another CPU has them, for an instant, as the block is to grow by them a second time.
    let heap = Observed::heap(100, |heap, event| {
        has_what_is_asked_for(heap, event, Event::Extend, 3)
    });
    HEAP.set(Some(heap));
    let old = Layout::from_size_align(60 * FRAME, 8).unwrap();
    // SAFETY: the size isn't zero; then live, with this layout.
    let (block, grown) = unsafe {
        let block = heap.alloc(old);
        (block, heap.realloc(block, old, 90 * FRAME))
    };
    assert_eq!(block, grown);
    assert_eq!(heap.totals().refusals, 0);
}

#[test]
fn all_that_an_nmi_freed_is_found_and_not_a_batch_of_it() {
    /// More than of a block that goes into a magazine.
    const FRAMES: usize = 65;
    // The NMI frees between the tries, of which there are two as another CPU has something in transit.
    let heap = Observed::heap(3 * BATCH * FRAMES, |heap, event| {
        match event {
            Event::DisableInterrupts if CALLS.replace(1) == 0 => {
                IN_TRANSIT.set(Some(heap.transit.begin()));
            }
            Event::WaitForMemory => {
                IN_TRANSIT.take();
                let _slow_path = heap.platform().cache().enter();
                for (block, layout) in BLOCKS.take() {
                    // SAFETY: the test allocated it, and nobody else frees it.
                    unsafe { heap.dealloc(block, layout) };
                }
            }
            _ => {}
        }
        true
    });
    let layout = |frames| layout(frames * FRAME, 8);
    // SAFETY: the size isn't zero.
    let blocks = std::iter::repeat_with(|| unsafe { heap.alloc(layout(FRAMES)) })
        .take_while(|block| !block.is_null())
        .map(|block| (block, layout(FRAMES)));
    BLOCKS.set(blocks.collect());
    let count = BLOCKS.with_borrow(Vec::len);
    assert!(count > 2 * BATCH);
    HEAP.set(Some(heap));
    // SAFETY: as above.
    assert!(!unsafe { heap.alloc(layout(count * FRAMES)) }.is_null());
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// Makes a block good for `new` alone by shrinking one of the layout `old`, and returns it, free again.
fn free_misfit(heap: &MagazineHeap<Observed>, old: Layout, new: Layout, align: usize) -> *mut u8 {
    // SAFETY: the size isn't zero.
    let misfit = std::iter::repeat_with(|| unsafe { heap.alloc(old) })
        .find(|block| !block.addr().is_multiple_of(align))
        .unwrap();
    // SAFETY: live, with these layouts one after the other.
    unsafe {
        assert!(heap.shrink_in_place(NonNull::new(misfit).unwrap(), old, new));
        heap.dealloc(misfit, new);
    }
    misfit
}

/// Layouts of blocks, to which they shrink where they are, and an alignment that these may not have.
fn misfits() -> [(Layout, Layout, usize); 2] {
    [
        (layout(192, 64), layout(128, 64), 128),
        // A large block that becomes its slab's only one.
        (layout(5 * FRAME, 16), layout(2 * FRAME, 16), 2 * FRAME),
    ]
}

#[test]
fn a_block_on_its_way_home_is_waited_for() {
    for (old, new, align) in misfits() {
        let heap = Observed::heap(256, |heap, event| {
            if event == Event::DisablePreemption {
                // Another CPU finds nothing, and asks whether something is in transit.
                let other = || (Some(99), ());
                let wait = |_: &mut u64| {
                    CALLS.set(CALLS.get() + 1);
                    false
                };
                let found =
                    (heap.transit).seek(other, wait, || Err::<(), _>(Refused::Short), |_| None);
                assert_eq!(found, None);
            }
            true
        });
        let misfit = free_misfit(heap, old, new, align);
        HEAP.set(Some(heap));
        // SAFETY: the size isn't zero.
        let block = unsafe { heap.alloc(layout(new.size(), align)) };
        HEAP.set(None);
        assert!(block != misfit && block.addr().is_multiple_of(align));
        assert!(CALLS.replace(0) > 0, "nobody knew of it");
    }
}

#[test]
fn a_handler_does_not_wait_for_what_it_has_interrupted() {
    for (old, new, align) in misfits() {
        let heap = Observed::heap(256, |heap, event| {
            match event {
                // It asks for more than there is.
                Event::DisablePreemption => {
                    // SAFETY: the size isn't zero.
                    let block = unsafe { heap.alloc(layout(256 * FRAME, 8)) };
                    assert!(block.is_null());
                }
                Event::WaitForMemory => panic!("the handler waits"),
                _ => {}
            }
            true
        });
        free_misfit(heap, old, new, align);
        HEAP.set(Some(heap));
        // SAFETY: the size isn't zero.
        let block = unsafe { heap.alloc(layout(new.size(), align)) };
        HEAP.set(None);
        assert!(block.addr().is_multiple_of(align));
    }
}

#[test]
fn a_cpu_that_is_not_seen_on_its_slow_path_yet_does_not_fill_its_cache() {
    // Another CPU is short, and finds nothing here, just before this one enters its cache.
    let heap = Observed::heap(16, |heap, event| {
        match event {
            Event::DisableInterrupts => CALLS.set(1),
            Event::Cache if CALLS.take() == 1 => {
                assert!(!heap.platform().machine.cache().may_have_blocks());
                core::mem::forget(heap.begin_shortage());
            }
            _ => {}
        }
        true
    });
    HEAP.set(Some(heap));
    // SAFETY: of more than zero bytes.
    assert!(!unsafe { heap.alloc(layout(64, 8)) }.is_null());
    HEAP.set(None);
    assert_eq!(heap.totals().cached_bytes, 0);
}

#[test]
fn a_refill_counts_before_its_blocks_are_out_of_reach() {
    let heap = Heap::new(HostedFrames::new(256));
    let cache = heap.platform().cache();
    let Entry::Owner(mut owner) = cache.enter() else {
        panic!("nobody uses it");
    };
    let class = Class::of(LAYOUT).unwrap();
    let before = cache.gains();
    owner.close(class).refill(|_| {
        assert_ne!(cache.gains(), before);
        0
    });
    // It brought nothing.
    assert_eq!(
        (cache.gains(), cache.statistics(class).refills),
        (before, 0)
    );
}

#[test]
fn frames_are_searched_for_with_interrupts_enabled_between_steps() {
    const COUNT: usize = 20;
    let heap = Observed::heap(256, |_, event| {
        if event == Event::DisableInterrupts {
            CALLS.set(CALLS.get() + 1);
        }
        true
    });
    HEAP.set(Some(heap));
    STEPS.set(Some(COUNT));
    let layouts = [layout(6000, 8), layout(100 * FRAME, 4 * FRAME)];
    for layout in layouts {
        // SAFETY: the size isn't zero.
        let block = unsafe { heap.alloc(layout) };
        assert!(!block.is_null() && block.addr().is_multiple_of(layout.align()));
        let totals = heap.totals();
        assert_eq!(
            (totals.live_bytes, totals.live_blocks),
            (layout.size() as i64, 1)
        );
        assert!(CALLS.replace(0) >= COUNT);
        // SAFETY: live, with this layout.
        unsafe { heap.dealloc(block, layout) };
        assert_eq!(heap.totals().live_bytes, 0);
        assert!(heap.drain());
        heap.trim();
        assert_eq!(heap.totals().frames(), 0, "{heap:?}");
    }
    // More than there is.
    // SAFETY: the size isn't zero.
    assert!(unsafe { heap.alloc(layout(300 * FRAME, 8)) }.is_null());
    assert_eq!(heap.totals().refusals, 1);
    STEPS.set(None);
}

#[test]
fn a_search_is_repeated_while_another_cpu_has_frames_in_transit() {
    // As the search comes to the frames, another CPU has them, for an instant, until the third pass.
    let heap = Observed::heap(256, |heap, event| {
        has_what_is_asked_for(heap, event, Event::Found, 2)
    });
    HEAP.set(Some(heap));
    STEPS.set(Some(3));
    // SAFETY: the size isn't zero.
    assert!(!unsafe { heap.alloc(layout(100 * FRAME, 8)) }.is_null());
    assert_eq!((CALLS.get(), heap.totals().refusals), (3, 0));
    STEPS.set(None);
}

#[test]
fn much_memory_is_given_back_in_steps() {
    const STEP: usize = 16 << 20;
    let heap = Observed::heap(3 * STEP / FRAME, |_, event| {
        if event == Event::DisableInterrupts {
            CALLS.set(CALLS.get() + 1);
        }
        true
    });
    let layouts = [(STEP, 1), (STEP + 1, 2), (2 * STEP + FRAME, 3)];
    for (layout, steps) in layouts.map(|(size, steps)| (layout(size, 16), steps)) {
        // SAFETY: the size isn't zero.
        let block = unsafe { heap.alloc(layout) };
        assert!(!block.is_null());
        HEAP.set(Some(heap));
        // SAFETY: live, with this layout.
        unsafe { heap.dealloc(block, layout) };
        HEAP.set(None);
        assert_eq!(CALLS.replace(0), steps);
        assert_eq!(heap.totals().frames(), 0);
        assert_eq!(
            (heap.totals().live_bytes, heap.totals().live_blocks),
            (0, 0)
        );
    }
}

#[test]
fn an_empty_slab_that_came_back_late_is_found() {
    // Another CPU frees the only block of a slab after this one has trimmed.
    let heap = Observed::heap(64, |heap, event| {
        match event {
            Event::DisableInterrupts if CALLS.replace(1) == 0 => {
                IN_TRANSIT.set(Some(heap.transit.begin()));
            }
            Event::WaitForMemory => {
                IN_TRANSIT.take();
                for (block, layout) in BLOCKS.take() {
                    // SAFETY: the test allocated it, and nobody else frees it.
                    unsafe { heap.dealloc(block, layout) };
                }
            }
            _ => {}
        }
        true
    });
    let small = layout(6000, 8);
    let frames = Class::of(small).unwrap().slab_frames();
    // SAFETY: the size isn't zero.
    BLOCKS.set(std::vec![(unsafe { heap.alloc(small) }, small)]);
    assert!(heap.drain());
    // SAFETY: as above.
    while !unsafe { heap.alloc(layout(3 * FRAME, 8)) }.is_null() {}
    HEAP.set(Some(heap));
    // SAFETY: as above.
    assert!(!unsafe { heap.alloc(layout(frames * FRAME, 8)) }.is_null());
}
