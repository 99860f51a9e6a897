//! The heap and per-CPU storage composed as their documentation has it, on threads whose GS base is the
//! CPU's: before the CPU has a block, the fast paths find the sentinel's head and nothing else.

use core::arch::asm;
use core::ptr::{self, NonNull};
use std::alloc::{GlobalAlloc, Layout};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::thread;

use muster_heap::hosted::HostedFrames;
use muster_heap::{Class, CpuCache, FastPath, FramePlatform, MagazineHeap, NO_CACHE};
use muster_percpu::{Block, Directory, Header, Register, Storage, Unregistered, head_offset};

use crate::layout;

type Sentinel = Unregistered<CpuCache>;

struct Gs;

type Cpu = Storage<Gs>;

static CPUS: Directory<CpuCache> = Directory::new();

// SAFETY: (1) each thread calls `Storage::reset` first, and from then on GS base points to the sentinel
// or to a block. (2) No Rust program on Linux uses GS base for anything else. (3) Code doesn't move
// between threads.
unsafe impl Register for Gs {
    type Head = CpuCache;
    type NoPreempt = ();

    fn disable_preemption() {}

    fn unregistered() -> &'static Sentinel {
        static SENTINEL: OnceLock<&'static Sentinel> = OnceLock::new();
        SENTINEL.get_or_init(guarded)
    }

    fn load() -> *const Header {
        let header;
        // SAFETY: reads the first word of what GS base points to, which is a header.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) header, options(nostack, readonly, preserves_flags));
        }
        header
    }

    unsafe fn store(header: *const Header) {
        /// `ARCH_SET_GS` (Linux, `asm/prctl.h`).
        const SET_GS: i32 = 0x1001;
        // SAFETY: sets GS base, which only this uses.
        let result = unsafe { libc::syscall(libc::SYS_arch_prctl, SET_GS, header) };
        assert_eq!(result, 0);
    }
}

/// Returns a sentinel after which no memory is: whoever goes beyond it dies.
fn guarded() -> &'static Sentinel {
    const PAGE: usize = 4096;
    let size = size_of::<Sentinel>();
    let pages = size.next_multiple_of(PAGE);
    // SAFETY: new memory of which nobody knows, but for its last page writable.
    let start = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(ptr::null_mut(), pages + PAGE, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        assert_eq!(libc::mprotect(start, pages, rights), 0);
        start.cast::<u8>()
    };
    // SAFETY: the last bytes before the guard, aligned as a page less a multiple of the alignment is.
    unsafe {
        let place = start.add(pages - size).cast::<Sentinel>();
        place.write(Unregistered::new(CpuCache::new()));
        &*place
    }
}

/// Returns the bytes of the sentinel, by a pointer of which the compiler knows nothing.
fn bytes() -> Vec<u8> {
    let mut bytes = vec![0; size_of::<Sentinel>()];
    let address = ptr::from_ref(Gs::unregistered()).addr() as u64;
    let memory = File::open("/proc/self/mem").unwrap();
    memory.read_exact_at(&mut bytes, address).unwrap();
    bytes
}

struct Machine(HostedFrames);

// SAFETY: (1), (4), (6) nothing interrupts a thread; (2) a block is one thread's, which keeps it; (3) so
// is its index; (5) as `HostedFrames`; (7) so far from GS base lies the cache of the block or, where
// there is none, the sentinel's.
unsafe impl FramePlatform for Machine {
    const FAST_PATH: FastPath = FastPath::Restarted {
        cache_from_gs: head_offset::<CpuCache>(),
    };

    nothing_interrupts!();

    fn cpu(&self) -> Option<usize> {
        Cpu::try_with(|here| here.index() as usize)
    }

    fn cache(&self) -> &CpuCache {
        Cpu::try_with(|here| here.head()).unwrap_or(&NO_CACHE)
    }

    fn each_cache(&self, visit: &mut dyn FnMut(&CpuCache)) {
        CPUS.blocks().iter().for_each(|block| visit(block.head()));
    }

    fn allocate_frames(&self, count: usize, align: usize) -> Option<NonNull<u8>> {
        self.0.allocate_frames(count, align)
    }

    unsafe fn free_frames(&self, start: NonNull<u8>, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free_frames(start, count) };
    }
}

static HEAP: MagazineHeap<Machine> = MagazineHeap::new(Machine(HostedFrames::new(4096)));

/// Blocks of each class, several, and large ones.
fn allocate() -> Vec<(NonNull<u8>, Layout)> {
    let sizes = Class::all().map(|class| class.size()).chain([20_000]);
    let layouts = sizes.flat_map(|size| [layout(size, 8); 3]);
    layouts
        .map(|layout| {
            // SAFETY: no class has size 0, and the block is as long as its layout.
            unsafe {
                let block = NonNull::new(HEAP.alloc(layout)).unwrap();
                block.write_bytes(0xa5, layout.size());
                (block, layout)
            }
        })
        .collect()
}

fn free(blocks: Vec<(NonNull<u8>, Layout)>) {
    for (block, layout) in blocks {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { HEAP.dealloc(block.as_ptr(), layout) };
    }
}

#[test]
fn a_cpu_without_a_block_finds_the_sentinel_empty_and_full_and_leaves_it_so() {
    let blocks: Vec<_> = (0..2)
        .map(|index| {
            let place = Box::leak(Box::new_uninit());
            let block: &Block<CpuCache> = Block::init(place, index, CpuCache::new());
            block
        })
        .collect();
    CPUS.publish(blocks.leak()).unwrap();
    // SAFETY: this thread has no block.
    unsafe { Cpu::reset() };
    let frames = HEAP.platform().0.frames_left();
    let before = bytes();
    let unregistered = || {
        // SAFETY: this thread has no block yet.
        unsafe { Cpu::reset() };
        assert!(HEAP.platform().cpu().is_none());
        let blocks = allocate();
        assert!(bytes() == before, "an allocation changed the sentinel");
        free(blocks);
        assert!(bytes() == before, "a free changed the sentinel");
    };
    let registered = |index: usize| {
        unregistered();
        // Of these, which come from no cache, some go into one.
        let early = allocate();
        // SAFETY: nothing is interrupted, there are no handlers, and no guard is alive.
        unsafe { Cpu::register(CPUS.blocks()[index]) }.unwrap();
        free(early);
        for _ in 0..2 {
            free(allocate());
        }
        let cache = CPUS.blocks()[index].head();
        assert!(ptr::eq(HEAP.platform().cache(), cache));
        for class in Class::all() {
            assert_eq!(cache.statistics(class).allocations, 6);
        }
        assert!(HEAP.drain());
        assert!(
            bytes() == before,
            "another one's cache is not the sentinel's"
        );
    };
    // Two at a time on one sentinel.
    thread::scope(|scope| {
        scope.spawn(|| (0..20).for_each(|_| unregistered()));
        scope.spawn(|| registered(0));
        scope.spawn(|| registered(1));
    });
    HEAP.trim();
    assert_eq!(HEAP.totals().live_blocks, 0);
    assert_eq!(HEAP.platform().0.frames_left(), frames);
}
