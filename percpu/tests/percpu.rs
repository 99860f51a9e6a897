//! Threads standing for CPUs.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::Cell;
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use muster_percpu::{
    Block, Directory, Header, PublishError, Register, RegisterError, Storage, UNREGISTERED,
    Unregistered, head_offset,
};

muster_percpu::thread_register!(
    /// Each test thread is a CPU.
    struct Threads;
);

type Cpu = Storage<Threads>;

fn block(index: u32) -> &'static Block {
    Box::leak(Box::new(Block::new(index)))
}

/// Names that the macro uses mean what they mean everywhere: with these, it would not even compile.
mod names_of_its_own {
    mod core {}
    mod std {}

    muster_percpu::thread_register!(
        pub struct Elsewhere;
    );
}

#[test]
fn the_register_of_threads_goes_by_no_name_of_the_module_it_is_in() {
    assert!(Storage::<names_of_its_own::Elsewhere>::try_with(|here| here.index()).is_none());
}

#[test]
fn one_block_goes_to_one_of_many_cpus() {
    const CPUS: usize = 8;
    for _ in 0..50 {
        let block = block(0);
        let start = &Barrier::new(CPUS);
        let outcomes: Vec<_> = thread::scope(|scope| {
            let cpus: Vec<_> = (0..CPUS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let outcome = Threads::register(block);
                        assert_eq!(outcome.is_ok(), Cpu::try_with(|_| ()).is_some());
                        outcome
                    })
                })
                .collect();
            cpus.into_iter().map(|cpu| cpu.join().unwrap()).collect()
        });
        assert!(block.is_claimed());
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        for outcome in outcomes {
            if let Err(error) = outcome {
                assert_eq!(error, RegisterError::AlreadyClaimed { block: 0 });
            }
        }
    }
}

#[test]
fn one_cpu_takes_one_block() {
    let (first, second) = (block(4), block(5));
    Threads::register(first).unwrap();
    let again = Err(RegisterError::AlreadyRegistered { here: 4 });
    assert_eq!(Threads::register(second), again);
    assert_eq!(Threads::register(first), again);
    // The refusal has not cost the second block its freedom.
    assert!(!second.is_claimed());
    assert_eq!(Cpu::with(|here| here.index()), 4);
}

#[test]
#[should_panic(expected = "has not registered its block")]
fn use_before_registration_is_loud() {
    Cpu::with(|here| here.index());
}

#[test]
fn use_before_registration_can_be_asked_about() {
    assert!(Cpu::try_with(|_| ()).is_none());
    assert!(Threads::load().is_null());
    // SAFETY: the sentinel begins with a header, and lives for good.
    assert!(unsafe { &*UNREGISTERED.header() }.this().is_null());
    let block = block(0);
    Threads::register(block).unwrap();
    assert!(Cpu::try_with(|_| ()).is_some());
    assert!(ptr::addr_eq(Threads::load(), block));
}

#[test]
fn reset_leaves_the_cpu_without_a_block_and_the_block_claimed() {
    let (old, new) = (block(1), block(2));
    Threads::register(old).unwrap();
    // SAFETY: nothing is in the midst of using the block, or relies on it.
    unsafe { Cpu::reset() };
    assert!(Cpu::try_with(|_| ()).is_none());
    assert_eq!(
        Threads::register(old),
        Err(RegisterError::AlreadyClaimed { block: 1 })
    );
    Threads::register(new).unwrap();
    assert_eq!(Cpu::with(|here| here.index()), 2);
}

#[test]
fn guards_nest() {
    Threads::register(block(3)).unwrap();
    let sum = Cpu::with(|outer| Cpu::with(|inner| inner.index() + outer.index()));
    assert_eq!(sum, 6);
}

#[test]
fn preemption_is_disabled_exactly_as_long_as_the_closure_runs() {
    static DISABLED: AtomicBool = AtomicBool::new(false);

    struct NoPreempt;
    impl Drop for NoPreempt {
        fn drop(&mut self) {
            assert!(DISABLED.swap(false, Ordering::Relaxed));
        }
    }

    struct Preempting;
    muster_percpu::thread_register!(
        struct Inner;
    );
    // SAFETY: all but the guard, which does no less than `Inner`'s, is `Inner`'s; and nothing else
    // uses `Inner`.
    unsafe impl Register for Preempting {
        type Head = ();
        type NoPreempt = NoPreempt;

        fn disable_preemption() -> NoPreempt {
            assert!(!DISABLED.swap(true, Ordering::Relaxed));
            NoPreempt
        }

        fn unregistered() -> &'static Unregistered {
            Inner::unregistered()
        }

        fn load() -> *const Header {
            assert!(DISABLED.load(Ordering::Relaxed));
            Inner::load()
        }

        unsafe fn store(header: *const Header) {
            // The count may lie in the head.
            assert!(!DISABLED.load(Ordering::Relaxed));
            // SAFETY: the caller's promise is the one that `Inner` asks for.
            unsafe { Inner::store(header) }
        }
    }

    static BLOCK: Block = Block::new(3);
    // SAFETY: nothing is interrupted, there are no handlers, and no guard is alive.
    unsafe { Storage::<Preempting>::register(&BLOCK) }.unwrap();
    assert!(!DISABLED.load(Ordering::Relaxed));
    let index = Storage::<Preempting>::with(|here| {
        assert!(DISABLED.load(Ordering::Relaxed));
        here.index()
    });
    assert_eq!(index, 3);
    assert!(!DISABLED.load(Ordering::Relaxed));
}

#[test]
fn a_head_is_as_far_from_the_register_with_a_block_as_without() {
    /// Code that uses the register alone finds it, and takes from it if it has something.
    #[repr(C, align(64))]
    struct Head {
        left: AtomicU64,
    }

    static NOBODY: Unregistered<Head> = Unregistered::new(Head {
        left: AtomicU64::new(0),
    });

    thread_local! {
        static BASE: Cell<*const Header> = const { Cell::new(NOBODY.header()) };
    }

    struct Base;

    // SAFETY: as `thread_register`, with a sentinel of its own.
    unsafe impl Register for Base {
        type Head = Head;
        type NoPreempt = ();

        fn disable_preemption() {}

        fn unregistered() -> &'static Unregistered<Head> {
            &NOBODY
        }

        fn load() -> *const Header {
            // SAFETY: `store` admits only headers of 'static blocks and of `NOBODY`.
            unsafe { &*BASE.get() }.this()
        }

        unsafe fn store(header: *const Header) {
            BASE.set(header);
        }
    }

    /// Stands for code relative to GS base.
    fn take() -> bool {
        // SAFETY: a head lies so far from what the base holds, and lives for good.
        let head = unsafe { &*BASE.get().byte_add(head_offset::<Head>()).cast::<Head>() };
        head.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .is_ok()
    }

    static BLOCKS: [Block<Head>; 2] = {
        const fn head(left: u64) -> Head {
            Head {
                left: AtomicU64::new(left),
            }
        }
        [Block::with_head(0, head(2)), Block::with_head(1, head(1))]
    };

    assert!(!take());
    // SAFETY: as above.
    unsafe { Storage::<Base>::register(&BLOCKS[0]) }.unwrap();
    assert!(take());
    Storage::<Base>::with(|here| {
        assert_eq!(here.head().left.load(Ordering::Relaxed), 1);
        assert!(take());
        assert_eq!(BLOCKS[0].head().left.load(Ordering::Relaxed), 0);
    });
    assert!(!take());
    assert_eq!(BLOCKS[1].head().left.load(Ordering::Relaxed), 1);
    // SAFETY: nothing is in the midst of using the block, or relies on it.
    unsafe { Storage::<Base>::reset() };
    assert!(!take());

    // Behind the header, where its own alignment allows.
    assert_eq!(
        [
            head_offset::<()>(),
            head_offset::<u64>(),
            head_offset::<Head>()
        ],
        [32, 32, 64]
    );
}

#[test]
fn a_block_can_be_made_where_it_is_to_stay() {
    let place = Box::leak(Box::<Block<AtomicU64>>::new_uninit());
    let start = ptr::from_ref(place).addr();
    let block = Block::init(place, 5, AtomicU64::new(2));
    assert_eq!((block.index(), block.is_claimed()), (5, false));
    assert_eq!(block.head().load(Ordering::Relaxed), 2);
    assert_eq!(ptr::from_ref(block).addr(), start);
}

#[test]
fn two_registers_do_not_know_of_one_another() {
    muster_percpu::thread_register!(
        struct Other;
    );
    Threads::register(block(0)).unwrap();
    assert!(Storage::<Other>::try_with(|_| ()).is_none());
    Other::register(block(9)).unwrap();
    assert_eq!(Storage::<Other>::with(|here| here.index()), 9);
    assert_eq!(Cpu::with(|here| here.index()), 0);
}

#[test]
fn two_blocks_share_no_pair_of_lines() {
    // Side by side, as close as the compiler packs them.
    static BLOCKS: [Block<u8>; 3] = [
        Block::with_head(0, 0),
        Block::with_head(1, 0),
        Block::with_head(2, 0),
    ];
    for blocks in BLOCKS.windows(2) {
        let [first, second] = [0, 1].map(|place| ptr::from_ref(&blocks[place]).addr());
        let end = ptr::from_ref(blocks[0].head()).addr();
        assert!(end / 128 < second / 128 && first.is_multiple_of(128));
    }
}

#[test]
fn directory_is_empty_until_published_and_published_once() {
    let directory = Directory::<()>::new();
    assert!(directory.is_empty());
    assert_eq!(directory.len(), 0);
    assert!(directory.blocks().is_empty());

    let blocks: &'static [_] = vec![block(0), block(1), block(2)].leak();
    directory.publish(blocks).unwrap();
    assert_eq!(directory.len(), 3);
    assert!(ptr::eq(directory.blocks()[2], blocks[2]));
    assert_eq!(directory.publish(&[]), Err(PublishError::AlreadyPublished));
    assert_eq!(directory.len(), 3);
}

#[test]
fn directory_rejects_blocks_in_wrong_slots() {
    let directory = Directory::new();
    let swapped = vec![block(0), block(2), block(1)].leak();
    assert_eq!(
        directory.publish(swapped),
        Err(PublishError::WrongSlot { slot: 1, index: 2 })
    );
    assert!(directory.is_empty());
}

#[test]
fn what_a_block_holds_is_dropped_with_a_block_no_cpu_took() {
    struct Flag<'a>(&'a Cell<u32>);
    impl Drop for Flag<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let drops = Cell::new(0);
    drop(Block::with_head(0, Flag(&drops)));
    assert_eq!(drops.get(), 1);
}

#[test]
fn errors_say_what_to_do() {
    let text = RegisterError::AlreadyClaimed { block: 3 }.to_string();
    assert!(text.contains("block 3") && text.contains("of its own"));
    let text = RegisterError::AlreadyRegistered { here: 3 }.to_string();
    assert!(text.contains("block 3") && text.contains("once"));
    let text = PublishError::WrongSlot { slot: 1, index: 2 }.to_string();
    assert!(text.contains("CPU 2") && text.contains("slot 1"));
    let text = PublishError::AlreadyPublished.to_string();
    assert!(text.contains("already published"));
}

#[test]
fn a_block_and_a_directory_show_who_has_claimed_what() {
    let directory = Directory::<()>::default();
    assert_eq!(format!("{directory:?}"), "[]");
    let blocks: &'static [_] = vec![block(0), block(1)].leak();
    directory.publish(blocks).unwrap();
    Threads::register(blocks[1]).unwrap();
    let shown = "[Block { index: 0, claimed: false, .. }, Block { index: 1, claimed: true, .. }]";
    assert_eq!(format!("{directory:?}"), shown);
}
