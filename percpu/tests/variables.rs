//! CPU-local variables, gathered by the linker from this crate, its modules, and another crate. Threads stand
//! for CPUs.
// Where `cpu_local!` does not compile there is nothing to test.
#![cfg(not(any(
    windows,
    target_vendor = "apple",
    target_os = "uefi",
    target_family = "wasm",
    miri
)))]
#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::panic;
use std::ptr::{self, NonNull};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread;

use crossbeam_utils::CachePadded;
use muster_percpu::{
    Block, Directory, LocalCell, LocalWord, PlaceError, Storage, Template, cpu_local,
};
use muster_percpu_elsewhere as elsewhere;

muster_percpu::thread_register!(
    struct Threads;
);

type Cpu = Storage<Threads>;
type CpuBlock = Block;

cpu_local! {
    static TICKS: LocalWord<u64> = LocalWord::new(7);
    static NAMES: LocalCell<Vec<String>> = LocalCell::new(Vec::new());
    static FLAGS: [LocalWord<bool>; 3] = [const { LocalWord::new(true) }; 3];
    shared static HITS: AtomicU64 = AtomicU64::new(10);
}

/// A module with a variable of the same name, of another type.
mod inner {
    use std::sync::atomic::AtomicU32;

    // Without a semicolon.
    muster_percpu::cpu_local! { pub(super) shared static TICKS: AtomicU32 = AtomicU32::new(70) }
}

fn template() -> Template {
    Template::find(|_| true).unwrap()
}

fn block(index: u32) -> &'static CpuBlock {
    Block::allocate(&template(), index, ()).unwrap()
}

fn directory(cpus: u32) -> Directory {
    let directory = Directory::new();
    let blocks: Vec<_> = (0..cpus).map(block).collect();
    directory.publish(blocks.leak()).unwrap();
    directory
}

/// The message of a panic.
fn message_of(f: impl FnOnce() + panic::UnwindSafe) -> String {
    let payload = panic::catch_unwind(f).unwrap_err();
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).into(),
    }
}

#[test]
fn each_cpu_has_its_own_of_every_module_and_crate_and_sees_what_the_others_share() {
    const CPUS: u32 = 8;
    let directory = &directory(CPUS);
    let all_done = &Barrier::new(CPUS as usize);
    thread::scope(|scope| {
        for &block in directory.blocks().iter().rev() {
            scope.spawn(move || {
                Threads::register(block).unwrap();
                let index = u64::from(block.index());
                for step in 0..1000 {
                    Cpu::with_own(&TICKS, |ticks| ticks.set(ticks.get() + 1));
                    Cpu::with_own(&HITS, |hits| hits.fetch_add(1, Ordering::Relaxed));
                    Cpu::with(|here| {
                        let ticks = here.get(&elsewhere::TICKS);
                        ticks.set(ticks.get() + index);
                        here.get(&inner::TICKS).fetch_add(2, Ordering::Relaxed);
                        if step % 100 == 0 {
                            let name = format!("{index}.{step}");
                            here.get(&NAMES).with(|names| names.push(name));
                        }
                    });
                }
                assert_eq!(elsewhere::depth::count::<Threads>(), 5);
                assert_eq!(elsewhere::depth::count::<Threads>(), 6);
                all_done.wait();
                Cpu::with(|here| {
                    assert_eq!(here.get(&TICKS).get(), 1007);
                    assert_eq!(here.get(&HITS).load(Ordering::Relaxed), 1010);
                    assert_eq!(here.get(&elsewhere::TICKS).get(), 40 + 1000 * index);
                    let ninth = here.get(&NAMES).with(|names| names[9].clone());
                    assert_eq!(ninth, format!("{index}.900"));
                });
                for (cpu, hits) in directory.each(&HITS) {
                    assert_eq!(hits.load(Ordering::Relaxed), 1010);
                    let ticks = directory.on(cpu, &inner::TICKS).unwrap();
                    assert_eq!(ticks.load(Ordering::Relaxed), 2070);
                }
            });
        }
    });
    assert_eq!(directory.each(&HITS).len(), 8);
    assert!(directory.on(CPUS, &HITS).is_none());
}

#[test]
fn a_block_starts_with_the_initial_values_whatever_other_cpus_did_before() {
    for _ in 0..2 {
        thread::spawn(|| {
            Threads::register(block(0)).unwrap();
            Cpu::with(|here| {
                assert_eq!(here.get(&TICKS).get(), 7);
                here.get(&TICKS).set(1);
                assert!(here.get(&FLAGS).iter().all(LocalWord::get));
                here.get(&FLAGS).iter().for_each(|flag| flag.set(false));
                assert_eq!(here.get(&HITS).swap(2, Ordering::Relaxed), 10);
                assert!(here.get(&NAMES).with(|names| {
                    names.push(String::from("left behind"));
                    names.len() == 1
                }));
            });
        })
        .join()
        .unwrap();
    }
}

#[test]
fn the_first_cpu_gives_shared_variables_values_before_the_others_are_there() {
    cpu_local! { shared static LAPIC_ID: AtomicU64 = AtomicU64::new(0); }
    let directory = directory(4);
    for (cpu, lapic_id) in directory.each(&LAPIC_ID) {
        lapic_id.store(2 * u64::from(cpu), Ordering::Relaxed);
    }
    Threads::register(directory.blocks()[3]).unwrap();
    let own: &'static AtomicU64 = directory.blocks()[3].get(&LAPIC_ID);
    Cpu::with(|here| assert!(ptr::eq(here.get(&LAPIC_ID), own)));
    assert_eq!(own.load(Ordering::Relaxed), 6);
}

#[test]
fn use_before_registration_is_loud() {
    assert!(Cpu::try_with_own(&TICKS, LocalWord::get).is_none());
    for panicked in [
        message_of(|| Cpu::with_own(&TICKS, |ticks| ticks.set(1))),
        message_of(|| Cpu::with(|here| here.get(&TICKS).set(1))),
    ] {
        assert!(
            panicked.contains("has not registered its block"),
            "{panicked}"
        );
    }
    Threads::register(block(0)).unwrap();
    assert_eq!(Cpu::try_with_own(&TICKS, LocalWord::get), Some(7));
    // SAFETY: nothing is in the midst of using the block, or relies on it.
    unsafe { Cpu::reset() };
    assert!(Cpu::try_with_own(&TICKS, LocalWord::get).is_none());
}

#[test]
fn a_block_that_was_made_without_variables_has_none() {
    static WITHOUT: CpuBlock = Block::new(3);
    Threads::register(&WITHOUT).unwrap();
    assert!(Cpu::try_with_own(&TICKS, LocalWord::get).is_none());
    static CPUS: Directory = Directory::new();
    CPUS.publish(vec![block(0), block(1), block(2), &WITHOUT].leak())
        .unwrap();
    for panicked in [
        message_of(|| Cpu::with_own(&TICKS, |ticks| ticks.set(1))),
        message_of(|| Cpu::with(|here| here.get(&TICKS).set(1))),
        message_of(|| Cpu::with(|here| here.get(&HITS).store(1, Ordering::Relaxed))),
        message_of(|| {
            CPUS.on(3, &HITS);
        }),
    ] {
        assert!(
            panicked.contains("block 3 has no CPU-local variables")
                && panicked.contains("Block::place"),
            "{panicked}"
        );
    }
    assert!(CPUS.on(2, &HITS).is_some());
}

/// Memory of this size, `off` bytes behind a multiple of 4096.
fn memory(size: usize, off: usize) -> &'static mut [MaybeUninit<u8>] {
    let all = vec![MaybeUninit::uninit(); size + off + 4096].leak();
    let start = all.as_ptr().addr();
    let first = start.next_multiple_of(4096) - start + off;
    &mut all[first..first + size]
}

#[test]
fn a_block_fits_the_memory_that_it_asks_for_and_no_less() {
    let template = template();
    let place = |size, off| Block::place(memory(size, off), &template, 9, ());
    let size = CpuBlock::size(&template);
    assert!(size >= size_of::<CpuBlock>() + template.local_bytes() + template.shared_bytes());
    assert_eq!((CpuBlock::ALIGNMENT, size % 128), (128, 0));
    for off in [0, 128, 4096 - 128] {
        let block: &CpuBlock = place(size, off).unwrap();
        assert_eq!((block.index(), block.is_claimed()), (9, false));
    }
    assert_eq!(
        place(size - 1, 0).unwrap_err(),
        PlaceError::TooSmall {
            needed: size,
            given: size - 1
        }
    );
    assert!(matches!(
        place(size, 64).unwrap_err(),
        PlaceError::Misaligned { needed: 128, address } if address % 128 == 64
    ));
}

#[test]
fn a_block_stays_within_its_memory_and_each_variable_within_its_block() {
    let template = template();
    let size = CpuBlock::size(&template);
    let memory = memory(2 * size, 0);
    memory.fill(MaybeUninit::new(0xA5));
    let all = memory.as_ptr().addr();
    let (first, second) = memory.split_at_mut(size);
    let block: &CpuBlock = Block::place(first, &template, 0, ()).unwrap();
    Threads::register(block).unwrap();
    Cpu::with(|here| {
        here.get(&TICKS).set(u64::MAX);
        here.get(&HITS).store(u64::MAX, Ordering::Relaxed);
        for address in [
            ptr::from_ref(here.get(&TICKS)).addr(),
            ptr::from_ref(here.get(&elsewhere::TICKS)).addr(),
            ptr::from_ref(here.get(&HITS)).addr(),
            ptr::from_ref(here.get(&inner::TICKS)).addr(),
        ] {
            assert!(address >= all + size_of::<CpuBlock>() && address + 8 <= all + size);
        }
    });
    let is_untouched = |byte: &MaybeUninit<u8>| {
        // SAFETY: written above.
        unsafe { byte.assume_init() == 0xA5 }
    };
    assert!(second.iter().all(is_untouched));
}

#[test]
fn variables_are_aligned_and_local_ones_share_no_pair_of_lines_with_another_cpu() {
    #[repr(align(128))]
    struct Wide(#[expect(dead_code, reason = "its address counts")] AtomicU8);

    cpu_local! {
        static SMALL: AtomicU8 = AtomicU8::new(1);
        static LINES: CachePadded<AtomicU8> = CachePadded::new(AtomicU8::new(2));
        static LAST: AtomicU64 = AtomicU64::new(3);
        shared static WIDE: Wide = Wide(AtomicU8::new(4));
        shared static NARROW: AtomicU8 = AtomicU8::new(5);
    }
    fn pair<T>(value: &T) -> usize {
        assert!(ptr::from_ref(value).is_aligned());
        ptr::from_ref(value).addr() / 128
    }
    let mut seen = Vec::new();
    for index in 0..4 {
        // One behind the other, as close as they may lie.
        let pairs = thread::spawn(move || {
            Threads::register(block(index)).unwrap();
            Cpu::with(|here| {
                assert_eq!(here.get(&LAST).load(Ordering::Relaxed), 3);
                let local = vec![
                    pair(here.get(&SMALL)),
                    pair(here.get(&LINES)),
                    pair(here.get(&LAST)),
                ];
                (local, vec![pair(here.get(&WIDE)), pair(here.get(&NARROW))])
            })
        });
        seen.extend(<[_; 2]>::from(pairs.join().unwrap()));
    }
    for (number, parts) in seen.iter().enumerate() {
        for other in &seen[number + 1..] {
            assert!(parts.iter().all(|pair| !other.contains(pair)));
        }
    }
}

#[test]
fn initial_values_may_refer_to_what_never_changes_and_to_statics() {
    static COMMON: AtomicU64 = AtomicU64::new(0);

    struct Text(&'static str, fn(u64) -> u64);

    cpu_local! {
        shared static TEXT: Text = Text("muster", |value| value + 1);
        static SUM: LocalWord<&'static AtomicU64> = LocalWord::new(&COMMON);
    }
    thread::scope(|scope| {
        for index in 0..2 {
            scope.spawn(move || {
                Threads::register(block(index)).unwrap();
                Cpu::with(|here| {
                    let Text(text, next) = here.get(&TEXT);
                    assert_eq!((*text, next(4)), ("muster", 5));
                    here.get(&SUM).get().fetch_add(1, Ordering::Relaxed);
                });
            });
        }
    });
    assert_eq!(COMMON.load(Ordering::Relaxed), 2);
}

#[test]
fn a_pointer_is_a_word_of_each_cpu() {
    cpu_local! {
        static NEXT: LocalWord<*mut u8> = LocalWord::new(ptr::null_mut());
        static LAST: LocalWord<Option<NonNull<u8>>> = LocalWord::new(None);
    }
    thread::scope(|scope| {
        for index in 0..2 {
            scope.spawn(move || {
                Threads::register(block(index)).unwrap();
                let mut byte = 0;
                let place = NonNull::from(&mut byte);
                Cpu::with(|here| {
                    let (next, last) = (here.get(&NEXT), here.get(&LAST));
                    assert_eq!((next.get(), last.get()), (ptr::null_mut(), None));
                    next.set(place.as_ptr());
                    last.set(Some(place));
                    assert_eq!((next.get(), last.get()), (place.as_ptr(), Some(place)));
                });
            });
        }
    });
}

#[test]
fn a_local_variable_that_is_sync_may_be_lent_in_the_closure() {
    cpu_local! { static COUNT: AtomicU64 = AtomicU64::new(0); }
    thread::spawn(|| {
        Threads::register(block(0)).unwrap();
        Cpu::with_own(&COUNT, |count| {
            thread::scope(|scope| {
                scope.spawn(|| count.fetch_add(1, Ordering::Relaxed));
            });
            assert_eq!(count.load(Ordering::Relaxed), 1);
        });
    })
    .join()
    .unwrap();
}

#[test]
fn no_variable_is_dropped() {
    struct Loud;
    impl Drop for Loud {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    cpu_local! { static LOUD: LocalCell<Loud> = LocalCell::new(Loud); }
    thread::spawn(|| {
        Threads::register(block(0)).unwrap();
        Cpu::with_own(&LOUD, |loud| loud.with(|_| ()));
    })
    .join()
    .unwrap();
}

#[test]
fn a_cell_of_a_default_lends_that() {
    assert_eq!(LocalCell::<u32>::default().with(|value| *value), 0);
}

#[test]
fn a_value_that_is_lent_is_refused_to_a_handler_and_given_back_also_by_a_panic() {
    Threads::register(block(0)).unwrap();
    let interrupted = || Cpu::with(|here| here.get(&NAMES).try_with(|names| names.len()));
    let inside = Cpu::with_own(&NAMES, |names| {
        names.with(|names| {
            names.push(String::from("half done"));
            interrupted()
        })
    });
    assert_eq!((inside, interrupted()), (None, Some(1)));
    let panicked = message_of(|| Cpu::with_own(&NAMES, |names| names.with(|_| names.with(|_| ()))));
    assert!(panicked.contains("in use on the same CPU"), "{panicked}");
    assert_eq!(interrupted(), Some(1));
}

#[test]
fn a_section_outside_the_image_is_refused_with_the_line_that_the_linker_script_lacks() {
    // The shared section is outside, as where a script has a line for the local one alone.
    let template = template();
    let asked = Cell::new(0);
    let error = Template::find(|range| {
        asked.set(asked.get() + 1);
        assert!(range.len() == template.local_bytes() || range.len() == template.shared_bytes());
        asked.get() == 1
    });
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with("section muster_percpu_shared, 0x")
            && text.contains("outside the loaded image")
            && text.contains("`muster_percpu_shared : { KEEP(*(muster_percpu_shared)) }`")
            && text.contains("linker script"),
        "{text}"
    );
}

#[test]
fn errors_say_what_to_do() {
    let text = PlaceError::TooSmall {
        needed: 512,
        given: 5,
    }
    .to_string();
    assert!(text.contains("5 bytes") && text.contains("512") && text.contains("Block::size"));
    let text = PlaceError::Misaligned {
        needed: 128,
        address: 0x40,
    }
    .to_string();
    assert!(text.contains("0x40") && text.contains("multiple of 128"));
    let text = PlaceError::OutOfMemory { needed: 512 }.to_string();
    assert!(text.contains("512 bytes"));
}

#[test]
fn keys_can_be_shown_copied_and_sent() {
    /// As generic code copies what it knows no more of.
    fn copy<T: Clone>(key: &T) -> T {
        key.clone()
    }
    let (local, shared) = (copy(&TICKS), copy(&HITS));
    let text = thread::spawn(move || format!("{local:?} {shared:?} {:?}", LocalCell::new(1)));
    assert_eq!(
        text.join().unwrap(),
        "LocalKey { .. } SharedKey { .. } LocalCell { .. }"
    );
}

#[test]
fn a_word_keeps_what_it_is_set_to_whatever_its_type() {
    fn check<T: muster_percpu::Word + PartialEq + std::fmt::Debug>(values: [T; 2]) {
        let [first, second] = values;
        let word = LocalWord::new(first);
        assert_eq!(word.get(), first);
        word.set(second);
        assert_eq!(word.get(), second);
        assert_eq!(format!("{word:?}"), format!("LocalWord({second:?})"));
    }

    check([false, true]);
    check(['\0', '\u{10ffff}']);
    check([0, u8::MAX]);
    check([i8::MIN, i8::MAX]);
    check([0, u16::MAX]);
    check([i16::MIN, i16::MAX]);
    check([0, u32::MAX]);
    check([i32::MIN, i32::MAX]);
    check([0, usize::MAX]);
    check([isize::MIN, isize::MAX]);
    #[cfg(target_pointer_width = "64")]
    {
        check([0, u64::MAX]);
        check([i64::MIN, i64::MAX]);
    }
    static PAIR: [u64; 2] = [1, 2];
    let places: [&'static u64; 2] = [&PAIR[0], &PAIR[1]];
    check(places);
    check([None, Some(places[1])]);
    check(places.map(ptr::from_ref));
    check(places.map(|place| ptr::from_ref(place).cast_mut()));
    let pointers = places.map(NonNull::from);
    check(pointers);
    check([Some(pointers[0]), None]);
}

/// More than a macro may recurse.
#[test]
fn a_block_has_any_number_of_variables() {
    macro_rules! many {
        ($($name:ident)*) => {
            cpu_local! { $(static $name: LocalWord<u8> = LocalWord::new(1);)* }
            const ALL: &[muster_percpu::LocalKey<LocalWord<u8>>] = &[$($name),*];
        };
    }
    many! {
        V0 V1 V2 V3 V4 V5 V6 V7 V8 V9 V10 V11 V12 V13 V14 V15 V16 V17 V18 V19 V20 V21 V22 V23 V24 V25 V26
        V27 V28 V29 V30 V31 V32 V33 V34 V35 V36 V37 V38 V39 V40 V41 V42 V43 V44 V45 V46 V47 V48 V49 V50 V51
        V52 V53 V54 V55 V56 V57 V58 V59 V60 V61 V62 V63 V64 V65 V66 V67 V68 V69 V70 V71 V72 V73 V74 V75 V76
        V77 V78 V79 V80 V81 V82 V83 V84 V85 V86 V87 V88 V89 V90 V91 V92 V93 V94 V95 V96 V97 V98 V99 V100
        V101 V102 V103 V104 V105 V106 V107 V108 V109 V110 V111 V112 V113 V114 V115 V116 V117 V118 V119 V120
        V121 V122 V123 V124 V125 V126 V127 V128 V129 V130 V131 V132 V133 V134 V135 V136 V137 V138 V139 V140
        V141 V142 V143 V144 V145 V146 V147 V148 V149
    }
    assert_eq!(ALL.len(), 150);
}
