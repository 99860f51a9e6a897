//! What the contenders are asked to do, and the contenders as all of it sees them.

mod frames;
mod heaps;

pub use frames::{BuddyFrames, FrameSource, FrameUser, MusterFrames};

use core::alloc::GlobalAlloc;

use crate::course::{Course, Score};

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One block of 64 bytes, in and out.
    Churn,
    /// 16 bytes to 8 KiB, each octave as likely as the others, random lifetimes, 1000 live per CPU.
    Mixed,
    /// 16 to 1024 bytes, random lifetimes, 500 at a time: then the CPU leaves them to another and
    /// takes over what one has left. 1000 live per CPU. (After Larson and Krishnan, 1998.)
    Larson,
    /// CPUs in pairs: one allocates 64 bytes, the other frees, by way of a ring of 4096.
    Xfree,
    /// Many small blocks and few large ones, up to 1000 bytes; a third is freed in the order of
    /// allocation, a third in reverse, and a third stays for a while. (After SmartHeap's sh8bench.)
    Sh8bench,
    /// 16 bytes to 2 KiB, rarely up to 64 KiB; one in four goes to a shelf from which any CPU takes
    /// and frees it. (After mimalloc's mstress.)
    Mstress,
    /// A small block is written to again and again, after each CPU freed one that lay beside the
    /// other CPUs': does an allocator make CPUs share a cache line? (After Hoard's cache-scratch.)
    CacheScratch,
    /// The same without that start. (After Hoard's cache-thrash.)
    CacheThrash,
    /// A block that grows by half of its size, from 16 bytes to 32 KiB, by `realloc`.
    Realloc,
    /// 8 KiB to 2 MiB, each octave as likely as the others, random lifetimes, 8 live per CPU.
    Large,
    /// One frame out and in.
    FramePair,
    /// Single frames, random lifetimes, 1024 held per CPU.
    FrameRandom,
    /// 512 frames out, then in.
    FrameBulk,
    /// One frame in and out while the CPU holds 1024.
    FrameRepeat,
    /// Runs of 1, 2, 4 or 8 frames, random lifetimes, 512 held per CPU.
    FrameFragmentation,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Churn,
        Self::Mixed,
        Self::Larson,
        Self::Xfree,
        Self::Sh8bench,
        Self::Mstress,
        Self::CacheScratch,
        Self::CacheThrash,
        Self::Realloc,
        Self::Large,
        Self::FramePair,
        Self::FrameRandom,
        Self::FrameBulk,
        Self::FrameRepeat,
        Self::FrameFragmentation,
    ];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Churn => "churn",
            Self::Mixed => "mixed",
            Self::Larson => "larson",
            Self::Xfree => "xfree",
            Self::Sh8bench => "sh8bench",
            Self::Mstress => "mstress",
            Self::CacheScratch => "cache-scratch",
            Self::CacheThrash => "cache-thrash",
            Self::Realloc => "realloc",
            Self::Large => "large",
            Self::FramePair => "frame-pair",
            Self::FrameRandom => "frame-random",
            Self::FrameBulk => "frame-bulk",
            Self::FrameRepeat => "frame-repeat",
            Self::FrameFragmentation => "frame-fragmentation",
        }
    }

    /// Returns the workload of that name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|workload| workload.name() == name)
    }

    /// Returns whether it takes frames, not blocks.
    pub const fn is_of_frames(self) -> bool {
        matches!(
            self,
            Self::FramePair
                | Self::FrameRandom
                | Self::FrameBulk
                | Self::FrameRepeat
                | Self::FrameFragmentation
        )
    }

    /// Returns whether it runs on this number of CPUs.
    pub const fn runs_on(self, cpus: usize) -> bool {
        !matches!(self, Self::Xfree) || cpus.is_multiple_of(2)
    }

    /// Returns how many steps, in [`Score`]'s sense, make a pair of an allocation and a free. Where
    /// the two come one right after the other they are a step together.
    pub const fn steps_per_pair(self) -> u64 {
        match self {
            Self::Sh8bench | Self::FrameBulk => 2,
            _ => 1,
        }
    }
}

/// Where a contender comes from, for comparisons with the best of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Muster's.
    Muster,
    /// One that a kernel can use.
    Kernel,
    /// One that needs an operating system.
    Hosted,
}

/// An allocator in the comparison.
pub trait Contender: Sync {
    /// Returns its name, at most 12 characters.
    fn name(&self) -> &'static str;

    /// Returns its origin.
    fn kind(&self) -> Kind;

    /// Returns whether it takes part in this workload.
    fn takes_part(&self, workload: Workload) -> bool;

    /// Runs the workload. A workload in which it does not take part has an empty score.
    fn run(&self, workload: Workload, course: &Course<'_>) -> Score;
}

/// A heap in the comparison. The compiler may make its functions part of the workloads' loops, as
/// it makes those of a `#[global_allocator]` part of what uses them.
pub struct OnHeap<A> {
    name: &'static str,
    kind: Kind,
    heap: A,
}

impl<A: GlobalAlloc + Sync> OnHeap<A> {
    /// Names this heap.
    pub const fn new(name: &'static str, kind: Kind, heap: A) -> Self {
        Self { name, kind, heap }
    }

    /// Returns the heap.
    pub const fn heap(&self) -> &A {
        &self.heap
    }
}

impl<A: GlobalAlloc + Sync> Contender for OnHeap<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn takes_part(&self, workload: Workload) -> bool {
        !workload.is_of_frames()
    }

    fn run(&self, workload: Workload, course: &Course<'_>) -> Score {
        heaps::run(&self.heap, workload, course)
    }
}

/// A frame allocator in the comparison.
pub struct OnFrames<F> {
    name: &'static str,
    kind: Kind,
    frames: F,
}

impl<F: FrameSource> OnFrames<F> {
    /// Names this frame allocator.
    pub const fn new(name: &'static str, kind: Kind, frames: F) -> Self {
        Self { name, kind, frames }
    }
}

impl<F: FrameSource> Contender for OnFrames<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn takes_part(&self, workload: Workload) -> bool {
        workload.is_of_frames()
    }

    fn run(&self, workload: Workload, course: &Course<'_>) -> Score {
        frames::run(&self.frames, workload, course)
    }
}

/// The loops of the workloads around nothing, for what they cost themselves. On one CPU only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Empty;

impl Contender for Empty {
    fn name(&self) -> &'static str {
        "nothing"
    }

    fn kind(&self) -> Kind {
        Kind::Kernel
    }

    fn takes_part(&self, _: Workload) -> bool {
        true
    }

    fn run(&self, workload: Workload, course: &Course<'_>) -> Score {
        let course = Course { cpus: 1, ..*course };
        if workload.is_of_frames() {
            frames::run(&frames::NoFrames, workload, &course)
        } else {
            heaps::run(&heaps::NoHeap, workload, &course)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for workload in Workload::ALL {
            assert_eq!(Workload::parse(workload.name()), Some(workload));
            assert_eq!(
                workload.is_of_frames(),
                workload.name().starts_with("frame-")
            );
        }
        assert_eq!(Workload::parse("chrun"), None);
    }
}
