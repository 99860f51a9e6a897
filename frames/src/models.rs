//! The frame allocator itself under [loom](https://docs.rs/loom), but with rows of 4 frames and chunks
//! of 2 rows: every interleaving of CPUs, up to a number of preemptions, and every value that they may
//! then read. `just models` runs them.
//!
//! Each proves something only as far as it finds mistakes: those in `mistakes/frames/`.

#![allow(
    clippy::unwrap_used,
    reason = "a model that finds nothing to unwrap must fail"
)]

use std::boxed::Box;
use std::mem;
use std::vec::Vec;

use muster_sync::loom::thread::{self, JoinHandle};
use muster_sync::model;

use crate::zone::Among;
use crate::*;

crate::owners! {
    /// The owners of the models' frames.
    enum Owner {
        Free = "free",
        Kernel = "kernel",
        Heap = "heap",
        Stacks = "stacks",
        Later = "free later",
        Reserved = "reserved",
    }
    free: Free, later: Later, rest: Reserved, null_frame: Reserved
}

type FrameAllocator = crate::FrameAllocator<Owner>;
type OwnedRun = crate::OwnedRun<Owner>;

/// Creates an allocator of frames that are free, and of ones to adopt, by their numbers, with caches
/// for two CPUs.
fn allocator(free: core::ops::Range<u64>, later: core::ops::Range<u64>) -> &'static FrameAllocator {
    let range = |of: &core::ops::Range<u64>| {
        PhysRange::from_bounds(
            PhysAddr::new(of.start * FRAME_SIZE),
            PhysAddr::new(of.end * FRAME_SIZE),
        )
    };
    let (free, later) = (range(&free), range(&later));
    let storage = FrameInfo::needed(free.into_iter().chain(later));
    let storage = Box::leak(Box::new_uninit_slice(storage));
    // SAFETY: there is no memory of these frames that anything could use.
    let frames =
        unsafe { FrameAllocator::new(free.into_iter(), later.into_iter(), storage) }.unwrap();
    Box::leak(Box::new(frames.with_caches(2).unwrap()))
}

fn request(count: usize, align: u64) -> RunRequest {
    RunRequest::new(count).aligned(FrameAlign::from_frames(align).unwrap())
}

fn cpu<T: 'static>(work: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    thread::spawn(work)
}

fn run(numbers: core::ops::Range<u64>) -> FrameRun {
    let range = PhysRange::from_bounds(
        PhysAddr::new(numbers.start * FRAME_SIZE),
        PhysAddr::new(numbers.end * FRAME_SIZE),
    );
    FrameRun::from_range(range.unwrap()).unwrap()
}

/// Forges the right to frames by their name alone, against its conditions: what is to be seen.
fn forged(run: FrameRun, owner: Owner) -> OwnedRun {
    // SAFETY: there is no memory of these frames that anything could use.
    unsafe { OwnedRun::from_raw(run, owner) }
}

/// Checks, after the CPUs are done, that this many frames are handed out, and that the summary is
/// right.
#[track_caller]
fn assert_settled(frames: &FrameAllocator, used: usize) {
    assert_eq!(frames.free_frames(), frames.capacity() - used);
    for zone in (0..).map_while(|index| frames.zone(index)) {
        let any: Vec<usize> = zone.candidates(Among::Any).collect();
        let whole: Vec<usize> = zone.candidates(Among::Whole).collect();
        for (index, chunk) in (0..).map_while(|index| Some((index, zone.chunk(index)?))) {
            let fill = chunk.fill();
            assert_eq!(
                (any.contains(&index), whole.contains(&index)),
                (fill.any, fill.whole)
            );
        }
    }
    // And what isn't handed out can be had.
    let left = core::iter::from_fn(|| frames.allocate(Owner::Kernel)).count();
    assert_eq!(left, frames.capacity() - used);
}

#[test]
fn claim_against_claim() {
    model("claim against claim", None, || {
        let frames = allocator(8..10, 0..0);
        let claim = || {
            frames
                .allocate(Owner::Heap)
                .map(|owned| owned.frame().number())
        };
        let other = cpu(claim);
        let mut numbers = [claim(), other.join().unwrap()];
        numbers.sort();
        assert_eq!(numbers, [Some(8), Some(9)]);
        assert_settled(frames, 2);
    });
}

#[test]
fn claim_against_release() {
    model("claim against release", Some(4), || {
        let frames = allocator(8..9, 0..0);
        let held = frames.allocate(Owner::Heap).unwrap();
        let other = cpu(|| frames.allocate(Owner::Stacks));
        frames.free(held).unwrap();
        let claimed = other.join().unwrap();
        assert_settled(frames, claimed.iter().count());
    });
}

#[test]
fn long_claim_against_claims() {
    model("long claim against claims", Some(6), || {
        // One frame in each of two rows.
        let frames = allocator(11..13, 0..0);
        let other = cpu(|| frames.allocate_run(request(2, 1), Owner::Heap));
        let singles = [(); 2].map(|()| frames.allocate(Owner::Stacks));
        let count = match other.join().unwrap() {
            Some(_) => 0,
            None => 2,
        };
        assert_eq!(
            singles.iter().flatten().count(),
            count,
            "memory was not out"
        );
        assert_settled(frames, 2);
    });
}

#[test]
fn long_claim_against_long_claim() {
    model("long claim against long claim", None, || {
        let frames = allocator(11..13, 0..0);
        let claim = || frames.allocate_run(request(2, 1), Owner::Heap);
        let other = cpu(claim);
        let runs = [claim(), other.join().unwrap()];
        assert_eq!(runs.iter().flatten().count(), 1, "{runs:?}");
        assert_settled(frames, 2);
    });
}

#[test]
fn free_against_free() {
    model("free against free", None, || {
        let frames = allocator(11..13, 0..0);
        let run = frames
            .allocate_run(request(2, 1), Owner::Heap)
            .unwrap()
            .into_raw();
        let free = move || frames.free_run(forged(run, Owner::Heap));
        let other = cpu(free);
        let results = [free(), other.join().unwrap()];
        let freed = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(freed, 1, "{results:?}");
        assert_settled(frames, 0);
    });
}

/// Frames whose bits are in one word: what one CPU recorded is visible to the next that takes the same
/// frame back, though another CPU has changed the word in between.
#[test]
fn free_beside_free() {
    model("free beside free", Some(3), || {
        let frames = allocator(8..10, 0..0);
        let held = [(); 2].map(|()| frames.allocate(Owner::Heap).unwrap().into_raw());
        let free = move |index: usize| {
            let run = FrameRun::from(held[index]);
            frames.free_run(forged(run, Owner::Heap)).is_ok()
        };
        let others = [0, 1].map(|index| cpu(move || free(index)));
        let own = free(0);
        let [same, beside] = others.map(|other| other.join().unwrap());
        assert!(own != same && beside);
        assert_settled(frames, 0);
    });
}

#[test]
fn free_against_a_wrong_one() {
    model("free against a wrong one", None, || {
        let frames = allocator(11..13, 0..0);
        let owned = frames.allocate_run(request(2, 1), Owner::Heap).unwrap();
        let run = owned.run();
        let other = cpu(move || frames.free_run(forged(run, Owner::Stacks)));
        assert_eq!(frames.free_run(owned), Ok(()));
        assert!(other.join().unwrap().is_err());
        assert_settled(frames, 0);
    });
}

#[test]
fn adoption_against_claim() {
    model("adoption against claim", Some(4), || {
        let frames = allocator(8..9, 16..18);
        let later = run(16..18).range();
        let held = frames.allocate(Owner::Kernel);
        // SAFETY: as for all of these frames.
        let other = cpu(move || unsafe { frames.adopt(later) });
        if let Some(claimed) = frames.allocate(Owner::Heap) {
            assert_eq!(frames.totals()[Owner::Heap], FRAME_SIZE);
            assert_eq!(frames.owner_of(claimed.frame()), Some(Owner::Heap));
            frames.free(claimed).unwrap();
        }
        assert_eq!(other.join().unwrap(), Ok(2));
        assert_settled(frames, held.iter().count());
    });
}

#[test]
fn cache_against_cache() {
    model("cache against cache", Some(5), || {
        let frames = allocator(8..14, 0..0);
        let work = || {
            let mut cache = frames.cache().unwrap();
            let frame = cache.allocate(Owner::Heap)?;
            // The rest of the row goes back.
            drop(cache);
            Some(frame)
        };
        let other = cpu(work);
        let mine = work().unwrap();
        let others = other.join().unwrap().unwrap();
        assert_ne!(mine, others);
        let mut cache = frames.cache().unwrap();
        cache.free(others).unwrap();
        drop(cache);
        assert_settled(frames, 1);
    });
}

/// A CPU is short of frames, and asks nobody to drain, as no cache may have any, while another one takes a frame by its cache.
#[test]
fn shortage_against_fill() {
    model("shortage against fill", None, || {
        let frames = allocator(8..12, 0..0);
        let other = cpu(|| {
            let mut cache = frames.cache().unwrap();
            assert!(cache.allocate(Owner::Heap).is_some());
            // Nothing goes back.
            mem::forget(cache);
        });
        let shortage = frames.begin_shortage();
        if !frames.may_have_cached_frames() {
            let run = frames.allocate_run(request(2, 1), Owner::Stacks);
            assert!(
                run.is_some(),
                "the other CPU's cache has what it does not need"
            );
        }
        drop(shortage);
        other.join().unwrap();
    });
}

/// The same, while the other one drains a cache of frames for runs.
#[test]
fn shortage_against_drain() {
    model("shortage against drain", None, || {
        let frames = allocator(8..12, 0..0);
        let mut cache = frames.cache().unwrap();
        let run = cache.allocate_run(request(2, 2), Owner::Heap).unwrap();
        cache.free_run(run).unwrap();
        assert_eq!(frames.cached_frames(), 4);
        let other = cpu(move || {
            let shortage = frames.begin_shortage();
            if !frames.may_have_cached_frames() {
                let run = frames.allocate_run(request(2, 1), Owner::Stacks);
                assert!(run.is_some(), "all frames are free all the time");
            }
            drop(shortage);
        });
        cache.drain();
        mem::forget(cache);
        other.join().unwrap();
    });
}

/// Two CPUs that have the cache of one number, one after the other by chance, and count a frame there.
#[test]
fn cache_after_cache() {
    model("cache after cache", None, || {
        let frames = allocator(8..12, 0..0);
        let held = [(); 2].map(|()| frames.allocate(Owner::Heap).unwrap());
        let [mine, others] = held;
        let free = |frame| match frames.cache_of(0) {
            Some(mut cache) => cache.free(frame).unwrap(),
            None => frames.free(frame).unwrap(),
        };
        let other = cpu(move || free(others));
        free(mine);
        other.join().unwrap();
        assert_settled(frames, 0);
    });
}

/// Two CPUs take runs by their caches, each a row for itself, and give them back; one frees what it has by the allocator.
#[test]
fn runs_of_caches() {
    model("runs of caches", Some(3), || {
        let frames = allocator(8..14, 0..0);
        let run = |owner| frames.cache().unwrap().allocate_run(request(2, 2), owner);
        let other = cpu(move || {
            let mut cache = frames.cache().unwrap();
            let run = cache.allocate_run(request(2, 2), Owner::Stacks)?;
            let name = run.run();
            cache.free_run(run).unwrap();
            Some(name)
        });
        let own = run(Owner::Heap);
        let others = other.join().unwrap();
        assert!(
            own.is_some() && others.is_some(),
            "each has a row, or what the other left of one"
        );
        assert_settled(frames, 2);
    });
}

/// A CPU that looks for a run, and finds none, while another one makes one: what the look has found is not kept, so the
/// next one finds the run.
#[test]
fn look_against_release() {
    model("look against release", Some(3), || {
        let frames = allocator(8..12, 0..0);
        let mut held = [(); 4].map(|()| frames.allocate(Owner::Heap));
        let [first, second, ..] = held.each_mut().map(|frame| frame.take().unwrap());
        frames.free(first).unwrap();
        let other = cpu(|| frames.allocate_run(request(2, 2), Owner::Stacks));
        frames.free(second).unwrap();
        let found = other.join().unwrap();
        let found = found.or_else(|| frames.allocate_run(request(2, 2), Owner::Stacks));
        assert_eq!(found.unwrap().run().range(), run(8..10).range());
    });
}

/// A CPU that finds a run, where the bounds said that there may be one, while another frees more beside it: the next one
/// finds that.
#[test]
fn found_against_release() {
    model("found against release", Some(3), || {
        let frames = allocator(8..16, 0..0);
        // The chunk is the home of some CPU, so others search it by hints.
        let mut cache = frames.cache().unwrap();
        let _held = cache.allocate(Owner::Stacks).unwrap();
        let all = frames
            .allocate_run(request(4, 1), Owner::Heap)
            .unwrap()
            .into_raw();
        assert_eq!(all.range(), run(12..16).range());
        frames.free_run(forged(run(12..13), Owner::Heap)).unwrap();
        // The bounds are known: one frame.
        assert!(frames.allocate_run(request(2, 1), Owner::Heap).is_none());
        let other = cpu(|| frames.free_run(forged(run(13..16), Owner::Heap)).unwrap());
        let one = frames.allocate_run(request(1, 4), Owner::Heap).unwrap();
        assert_eq!(one.run().range(), run(12..13).range());
        other.join().unwrap();
        let more = frames.allocate_run(request(2, 1), Owner::Heap);
        assert!(more.is_some(), "13..16 are free");
        mem::forget(cache);
    });
}
