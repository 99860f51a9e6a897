//! Threads standing for CPUs.
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::{Cell, RefCell};
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use muster_percpu::{
    Block, Directory, Header, PublishError, Register, RegisterError, Storage, UNREGISTERED,
    Unregistered, head_offset,
};

struct Local {
    count: Cell<u64>,
    names: RefCell<Vec<String>>,
}

type Shared = AtomicU64;

muster_percpu::thread_register!(
    /// Each test thread is a CPU.
    struct Threads {
        local: Local,
        shared: Shared,
    }
);

type Cpu = Storage<Threads>;

fn block(index: u32) -> &'static Block<Local, Shared> {
    let local = Local {
        count: Cell::new(0),
        names: RefCell::new(Vec::new()),
    };
    Box::leak(Box::new(Block::new(index, local, AtomicU64::new(0))))
}

fn directory(cpus: u32) -> Directory<Local, Shared> {
    let directory = Directory::new();
    let blocks: Vec<_> = (0..cpus).map(block).collect();
    directory.publish(blocks.leak()).unwrap();
    directory
}

/// Names that the macro uses mean what they mean everywhere: with these, it would not even compile.
mod names_of_its_own {
    mod core {}
    mod std {}

    muster_percpu::thread_register!(
        pub struct Elsewhere {
            local: u32,
            shared: u32,
        }
    );
}

#[test]
fn the_register_of_threads_goes_by_no_name_of_the_module_it_is_in() {
    assert!(Storage::<names_of_its_own::Elsewhere>::try_with(|here| here.index()).is_none());
}

#[test]
fn each_cpu_sees_its_own_and_what_the_others_share() {
    const CPUS: u32 = 8;
    let directory = &directory(CPUS);
    let all_done = &Barrier::new(CPUS as usize);
    thread::scope(|scope| {
        // Backwards: the order of registration means nothing.
        for &block in directory.blocks().iter().rev() {
            scope.spawn(move || {
                Cpu::register(block).unwrap();
                let index = Cpu::with(|here| here.index());
                assert_eq!(index, block.index());
                for step in 0..1000 {
                    Cpu::with(|here| {
                        here.local().count.set(here.local().count.get() + 1);
                        here.shared().fetch_add(u64::from(index), Ordering::Relaxed);
                        if step % 100 == 0 {
                            here.local()
                                .names
                                .borrow_mut()
                                .push(format!("{index}.{step}"));
                        }
                    });
                }
                all_done.wait();
                Cpu::with(|here| {
                    assert_eq!(here.local().count.get(), 1000);
                    assert!(here.local().names.borrow()[9].starts_with(&index.to_string()));
                });
                for (other, shared) in directory.iter() {
                    assert_eq!(shared.load(Ordering::Relaxed), 1000 * u64::from(other));
                }
            });
        }
    });
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
                        let outcome = Cpu::register(block);
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
    Cpu::register(first).unwrap();
    let again = Err(RegisterError::AlreadyRegistered { here: 4 });
    assert_eq!(Cpu::register(second), again);
    assert_eq!(Cpu::register(first), again);
    // The refusal has not cost the second block its freedom.
    assert!(!second.is_claimed());
    assert_eq!(Cpu::with(|here| here.index()), 4);
}

#[test]
#[should_panic(expected = "has not registered its block")]
fn use_before_registration_is_loud() {
    Cpu::with(|here| here.local().count.get());
}

#[test]
fn use_before_registration_can_be_asked_about() {
    assert!(Cpu::try_with(|_| ()).is_none());
    assert!(Threads::load().is_null());
    // SAFETY: the sentinel begins with a header, and lives for good.
    assert!(unsafe { &*UNREGISTERED.header() }.this().is_null());
    let block = block(0);
    Cpu::register(block).unwrap();
    assert!(Cpu::try_with(|_| ()).is_some());
    assert!(ptr::addr_eq(Threads::load(), block));
}

#[test]
fn reset_leaves_the_cpu_without_a_block_and_the_block_claimed() {
    let (old, new) = (block(1), block(2));
    Cpu::register(old).unwrap();
    // SAFETY: nothing is in the midst of using the block, or relies on it.
    unsafe { Cpu::reset() };
    assert!(Cpu::try_with(|_| ()).is_none());
    assert_eq!(
        Cpu::register(old),
        Err(RegisterError::AlreadyClaimed { block: 1 })
    );
    Cpu::register(new).unwrap();
    assert_eq!(Cpu::with(|here| here.index()), 2);
}

#[test]
fn guards_nest() {
    Cpu::register(block(3)).unwrap();
    let sum = Cpu::with(|outer| {
        outer.local().count.set(1);
        Cpu::with(|inner| {
            inner.local().count.set(inner.local().count.get() + 1);
            inner.index() + outer.index()
        })
    });
    assert_eq!(sum, 6);
    assert_eq!(Cpu::with(|here| here.local().count.get()), 2);
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
        struct Inner {
            local: u32,
            shared: u32,
        }
    );
    // SAFETY: all but the guard, which does no less than `Inner`'s, is `Inner`'s; and nothing else
    // uses `Inner`.
    unsafe impl Register for Preempting {
        type Local = u32;
        type Shared = u32;
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
            assert!(DISABLED.load(Ordering::Relaxed));
            // SAFETY: the caller's promise is the one that `Inner` asks for.
            unsafe { Inner::store(header) }
        }
    }

    static BLOCK: Block<u32, u32> = Block::new(0, 1, 2);
    Storage::<Preempting>::register(&BLOCK).unwrap();
    assert!(!DISABLED.load(Ordering::Relaxed));
    let sum = Storage::<Preempting>::with(|here| {
        assert!(DISABLED.load(Ordering::Relaxed));
        here.local() + here.shared()
    });
    assert_eq!(sum, 3);
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
        type Local = ();
        type Shared = ();
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

    static BLOCKS: [Block<(), (), Head>; 2] = {
        const fn head(left: u64) -> Head {
            Head {
                left: AtomicU64::new(left),
            }
        }
        [
            Block::with_head(0, head(2), (), ()),
            Block::with_head(1, head(1), (), ()),
        ]
    };

    assert!(!take());
    Storage::<Base>::register(&BLOCKS[0]).unwrap();
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
fn a_block_may_refer_to_its_own_head() {
    type Own = Block<String, &'static AtomicU64, AtomicU64>;

    let place = Box::leak(Box::<Own>::new_uninit());
    let block = Block::init(place, 5, AtomicU64::new(1), |head| {
        head.store(2, Ordering::Relaxed);
        (String::from("local"), head)
    });
    assert_eq!((block.index(), block.is_claimed()), (5, false));
    assert_eq!(block.head().load(Ordering::Relaxed), 2);
    assert!(ptr::eq(*block.shared(), block.head()));
}

#[test]
fn two_registers_do_not_know_of_one_another() {
    muster_percpu::thread_register!(
        struct Other {
            local: String,
            shared: (),
        }
    );
    Cpu::register(block(0)).unwrap();
    assert!(Storage::<Other>::try_with(|_| ()).is_none());
    let other = Box::leak(Box::new(Block::new(9, String::from("other"), ())));
    Storage::<Other>::register(other).unwrap();
    assert_eq!(Storage::<Other>::with(|here| here.local().len()), 5);
    assert_eq!(Cpu::with(|here| here.index()), 0);
}

#[test]
fn nothing_of_two_blocks_or_two_parts_shares_a_pair_of_lines() {
    fn pairs<T>(value: &T) -> std::ops::RangeInclusive<usize> {
        let start = ptr::from_ref(value).addr();
        start / 128..=(start + size_of::<T>() - 1) / 128
    }

    // Side by side, as close as the compiler packs them.
    static BLOCKS: [Block<u8, u8>; 3] = [
        Block::new(0, 0, 0),
        Block::new(1, 0, 0),
        Block::new(2, 0, 0),
    ];
    let mut parts = Vec::new();
    for block in &BLOCKS {
        let local = thread::spawn(move || {
            muster_percpu::thread_register!(
                struct Bytes {
                    local: u8,
                    shared: u8,
                }
            );
            Storage::<Bytes>::register(block).unwrap();
            Storage::<Bytes>::with(|here| pairs(here.local()))
        });
        parts.push(local.join().unwrap());
        parts.push(pairs(block.shared()));
    }
    for (place, part) in parts.iter().enumerate() {
        for other in &parts[place + 1..] {
            assert!(part.end() < other.start() || other.end() < part.start());
        }
    }
}

#[test]
fn directory_is_empty_until_published_and_published_once() {
    let directory = Directory::new();
    assert!(directory.is_empty());
    assert_eq!(directory.len(), 0);
    assert!(directory.get(0).is_none());
    assert_eq!(directory.iter().len(), 0);

    let blocks: &'static [_] = vec![block(0), block(1), block(2)].leak();
    directory.publish(blocks).unwrap();
    assert_eq!(directory.len(), 3);
    assert!(ptr::eq(directory.get(2).unwrap(), blocks[2].shared()));
    assert!(directory.get(3).is_none());
    assert!(directory.get(u32::MAX).is_none());
    assert_eq!(
        directory.iter().map(|(index, _)| index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
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
    drop(Block::new(0, Flag(&drops), Flag(&drops)));
    assert_eq!(drops.get(), 2);
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
fn only_what_is_shared_is_shown_to_others() {
    let directory = Directory::default();
    assert_eq!(format!("{directory:?}"), "{}");
    let blocks: &'static [_] = vec![block(0), block(1)].leak();
    directory.publish(blocks).unwrap();
    blocks[1].shared().store(7, Ordering::Relaxed);
    assert_eq!(format!("{directory:?}"), "{0: 0, 1: 7}");

    Cpu::register(blocks[1]).unwrap();
    assert_eq!(
        format!("{:?}", blocks[1]),
        "Block { index: 1, claimed: true, shared: 7, .. }"
    );
    assert!(format!("{:?}", blocks[0]).contains("claimed: false"));
}
