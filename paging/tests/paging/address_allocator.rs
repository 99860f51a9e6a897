//! Addresses, against a model that knows each page of the window.

use muster_frames::FRAME_SIZE;
use muster_paging::{
    Access, AddressAllocator, AddressError, AddressFreeError, Features, Levels, OwnedAddresses,
    Tables, VirtAddr, VirtRange, WindowError,
};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::changes::Alone;
use crate::oracle::oracle;
use crate::ram::Ram;
use crate::scarce;
use crate::tables::map_page;

const WINDOW: u64 = 0xffff_ff10_0000_0000;

fn tables(ram: &Ram) -> Tables<&Ram> {
    Tables::new(ram, Levels::Four, Features::default(), ram).unwrap()
}

/// Returns new tables, and an allocator of 256 pages of them.
fn allocator(ram: &Ram) -> (Tables<&Ram>, AddressAllocator) {
    let mut tables = tables(ram);
    let window = VirtRange::new(VirtAddr::new(WINDOW), 0x10_0000).unwrap();
    let addresses = AddressAllocator::new(&mut tables, window).unwrap();
    (tables, addresses)
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { pages: u64, align: u32 },
    Free(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..12u64, 0..4u32).prop_map(|(pages, align)| Step::Allocate { pages, align }),
        2 => any::<Index>().prop_map(Step::Free),
    ]
}

fn check(pages: u64, offset: u64, steps: Vec<Step>) -> Result<usize, TestCaseError> {
    let count = steps.len();
    let start = WINDOW + offset * FRAME_SIZE;
    let window = VirtRange::new(VirtAddr::new(start), pages * FRAME_SIZE).unwrap();
    let ram = Ram::new(1 << 36);
    let mut tables = tables(&ram);
    let mut addresses = AddressAllocator::new(&mut tables, window).unwrap();
    prop_assert_eq!(addresses.window(), window);
    let mut held: Vec<OwnedAddresses> = Vec::new();
    for step in steps {
        // Which pages are somebody's.
        let mut taken = vec![false; pages as usize];
        for page in held.iter().map(OwnedAddresses::range).flat_map(|range| {
            (range.start().get()..=range.last().get()).step_by(FRAME_SIZE as usize)
        }) {
            taken[((page - start) / FRAME_SIZE) as usize] = true;
        }
        match step {
            Step::Allocate {
                pages: wanted,
                align,
            } => {
                let align = FRAME_SIZE << align;
                // The first place where all pages, and one on each side, are nobody's.
                let place = (1..pages).find(|&first| {
                    first + wanted < pages
                        && (start + first * FRAME_SIZE).is_multiple_of(align)
                        && !taken[first as usize - 1..=(first + wanted) as usize].contains(&true)
                });
                let length = wanted * FRAME_SIZE;
                let allocated = addresses.allocate(length, align);
                let expected = place
                    .map(|first| {
                        VirtRange::new(VirtAddr::new(start + first * FRAME_SIZE), length).unwrap()
                    })
                    .ok_or(AddressError::Exhausted { length, align });
                let range = allocated.as_ref().map(OwnedAddresses::range);
                prop_assert_eq!(range.map_err(|error| *error), expected);
                held.extend(allocated);
            }
            Step::Free(which) if !held.is_empty() => {
                let owned = held.swap_remove(which.index(held.len()));
                prop_assert_eq!(addresses.free(owned, &tables), Ok(()));
            }
            Step::Free(_) => {}
        }
        let bytes: u64 = held.iter().map(|owned| owned.range().len()).sum();
        prop_assert_eq!(addresses.allocated_bytes(), bytes);
        prop_assert_eq!(addresses.allocated_ranges(), held.len());
    }
    Ok(count)
}

#[test]
fn addresses_are_as_in_the_model() {
    let values = (1..80u64, 0..8u64, prop::collection::vec(step(), 0..80));
    oracle("addresses", 256, values, |(pages, offset, steps)| {
        check(pages, offset, steps)
    });
}

/// Addresses are of one allocator, though another one for other tables has the same numbers; and other
/// tables prove nothing, though their root may be as this one's.
#[test]
fn addresses_come_back_only_from_where_they_are() {
    let (ram, other_ram) = (Ram::new(1 << 36), Ram::new(1 << 36));
    let (mut tables, mut other_tables) = (tables(&ram), tables(&other_ram));
    assert_eq!(tables.root(), other_tables.root());
    let window = VirtRange::new(VirtAddr::new(WINDOW), 0x10_0000).unwrap();
    let mut addresses = AddressAllocator::new(&mut tables, window).unwrap();
    let mut others = AddressAllocator::new(&mut other_tables, window).unwrap();
    let owned = addresses.allocate(0x1000, 1).unwrap();
    let range = owned.range();
    assert_eq!(others.allocate(0x1000, 1).unwrap().range(), range);
    map_page(&mut tables, range.start().get(), 9, Access::ReadWrite, &ram).unwrap();

    let refused = others.free(owned, &tables).unwrap_err();
    assert_eq!(refused.error, AddressFreeError::OtherAllocator);
    assert!(refused.to_string().contains("free it where it was"));
    let refused = addresses.free(refused.addresses, &other_tables);
    let refused = refused.unwrap_err();
    assert_eq!(refused.error, AddressFreeError::OtherTables);
    assert!(refused.to_string().contains("that its allocator is for"));
    let refused = addresses.free(refused.addresses, &tables).unwrap_err();
    assert_eq!(refused.error, AddressFreeError::InUse);
    assert!(refused.to_string().contains("unmap it"));
    assert_eq!(
        (addresses.allocated_ranges(), others.allocated_ranges()),
        (1, 1)
    );

    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { tables.unmap(range) }.unwrap();
    let refused = addresses.free(refused.addresses, &tables).unwrap_err();
    assert_eq!(refused.error, AddressFreeError::InUse);
    let unmapped = unmapping.flush(&Alone);
    let refused = addresses.free(refused.addresses, &tables).unwrap_err();
    assert_eq!(refused.error, AddressFreeError::InUse);
    tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
    assert_eq!(addresses.free(refused.addresses, &tables), Ok(()));
    assert_eq!(addresses.allocated_bytes(), 0);
}

/// A range may begin among the addresses that the CPU does not accept, with as many of them before
/// those that it does as bring it back into the root's entry in which it began.
#[test]
fn addresses_beyond_a_whole_root_are_no_window() {
    let ram = Ram::new(1 << 36);
    let mut tables = tables(&ram);
    // Both by the same entry of the root; the page lies below the place where the range begins in it.
    let (start, page) = (0xfffe_ff10_4000_0000, 0xffff_ff10_0000_0000);
    let length = page + FRAME_SIZE - start;
    let window =
        VirtRange::new(VirtAddr::new(start - FRAME_SIZE), length + 2 * FRAME_SIZE).unwrap();
    let refused = AddressAllocator::new(&mut tables, window).unwrap_err();
    assert_eq!(refused, WindowError::NotCanonical { window });
    assert!(tables.is_vacant(window));
    map_page(&mut tables, page, 9, Access::ReadWrite, &ram).unwrap();
    assert!(
        window.contains(VirtAddr::new(page)) && tables.translate(VirtAddr::new(page)).is_some()
    );
    assert!(!tables.is_vacant(window));
}

/// Addresses that do not exist are none to give out: what is mapped elsewhere, by the same entries, would keep them
/// from coming back.
#[test]
fn a_window_of_addresses_that_do_not_exist_is_refused() {
    let ram = Ram::new(1 << 36);
    let mut tables = tables(&ram);
    for start in [
        0x0000_8000_0000_0000,
        0x7fff_ffff_f000,
        0xffff_7fff_ffff_f000,
    ] {
        let window = VirtRange::new(VirtAddr::new(start), 0x10_0000).unwrap();
        let refused = AddressAllocator::new(&mut tables, window).unwrap_err();
        assert_eq!(refused, WindowError::NotCanonical { window });
        assert!(refused.to_string().contains("does not accept"));
    }
}

#[test]
fn no_memory_for_a_range_is_an_error() {
    let ram = Ram::new(1 << 36);
    let (tables, mut addresses) = allocator(&ram);
    let error = scarce::with_blocks_up_to(0, || addresses.allocate(0x1000, 0x1000).err());
    let error = error.unwrap();
    assert_eq!(error, AddressError::OutOfMemory { ranges: 0 });
    assert!(error.to_string().contains("has no memory to record"));
    assert_eq!(addresses.allocated_ranges(), 0);

    // There is room for what was reserved, and to free never needs any.
    addresses.reserve(2).unwrap();
    let capacity = scarce::with_blocks_up_to(0, || {
        let held = std::array::from_fn::<_, 2, _>(|_| addresses.allocate(0x1000, 1).unwrap());
        let freed = held.map(|owned| addresses.free(owned, &tables).is_ok());
        (freed, addresses.allocated_bytes())
    });
    assert_eq!(capacity, ([true; 2], 0));
}

#[test]
fn records_move_to_where_there_is_more_room() {
    let ram = Ram::new(1 << 36);
    let (tables, mut addresses) = allocator(&ram);
    let window = addresses.window();
    addresses.reserve(4).unwrap();
    let mut held: Vec<_> = (0..4)
        .map(|_| addresses.allocate(0x1000, 1).unwrap())
        .collect();
    assert_eq!(addresses.room(), 0);
    assert_eq!(addresses.move_records(Vec::with_capacity(4)).capacity(), 4);
    // What was in it is lost.
    let mut room = Vec::with_capacity(16);
    room.push(window);
    assert_eq!(addresses.move_records(room).capacity(), 4);
    assert_eq!((addresses.room(), addresses.allocated_ranges()), (12, 4));
    let more = scarce::with_blocks_up_to(0, || addresses.allocate(0x1000, 1));
    held.push(more.unwrap());
    for owned in held {
        assert_eq!(addresses.free(owned, &tables), Ok(()));
    }
}

#[test]
fn room_for_records_comes_back() {
    let ram = Ram::new(1 << 36);
    let (tables, mut addresses) = allocator(&ram);
    addresses.reserve(64).unwrap();
    let mut held: Vec<_> = (0..4)
        .map(|_| addresses.allocate(0x1000, 1).unwrap())
        .collect();
    assert!(!scarce::with_blocks_up_to(0, || addresses.shrink_to(8)));
    assert!(addresses.shrink_to(8));
    assert!(!addresses.shrink_to(8));
    held.extend((4..8).map(|_| addresses.allocate(0x1000, 1).unwrap()));
    let refused = scarce::with_blocks_up_to(0, || addresses.allocate(0x1000, 1).is_err());
    assert!(refused && !addresses.shrink_to(2));
    let starts: Vec<_> = held.iter().map(|owned| owned.range().start()).collect();
    assert!(starts.is_sorted_by(|one, next| one < next));
    for owned in held {
        assert_eq!(addresses.free(owned, &tables), Ok(()));
    }
}

/// Where only the address of what is mapped is kept.
#[test]
fn the_right_to_addresses_is_recovered_by_where_they_begin() {
    let ram = Ram::new(1 << 36);
    let (tables, mut addresses) = allocator(&ram);
    let ranges: Vec<_> = (1..4)
        .map(|pages| addresses.allocate(pages * 0x1000, 1).unwrap().range())
        .collect();
    for range in [ranges[1], ranges[0], ranges[2]] {
        // SAFETY: its right was dropped, and is recovered once.
        let owned = unsafe { addresses.recover(range.start()) }.unwrap();
        assert_eq!(owned.range(), range);
        assert_eq!(addresses.free(owned, &tables), Ok(()));
        // SAFETY: nothing is recovered.
        unsafe {
            assert_eq!(addresses.recover(range.start()), None);
            assert_eq!(addresses.recover(range.start() + 0x1000), None);
        }
    }
    assert_eq!(addresses.allocated_ranges(), 0);
}

#[test]
fn impossible_wishes_are_refused() {
    let ram = Ram::new(1 << 36);
    let (mut tables, mut addresses) = allocator(&ram);
    for (length, align) in [(0, 0x1000), (0x1800, 0x1000), (0x1000, 0), (0x1000, 0x3000)] {
        let error = addresses.allocate(length, align).unwrap_err();
        assert_eq!(error, AddressError::Malformed { length, align });
        assert!(error.to_string().contains("whole pages"));
    }
    for (length, align) in [(!0xfff, 0x1000), (0xff000, 0x1000), (0x1000, 1 << 63)] {
        let error = addresses.allocate(length, align).unwrap_err();
        assert_eq!(error, AddressError::Exhausted { length, align });
        assert!(error.to_string().contains("has no gap"));
    }
    assert!(addresses.allocate(0xfe000, 0x1000).is_ok());
    // A window of one page is all guard, also where there are no addresses beyond.
    let last = VirtRange::new(VirtAddr::new(!0xfff), 0x1000).unwrap();
    let mut last = AddressAllocator::new(&mut tables, last).unwrap();
    assert!(last.allocate(0x1000, 0x1000).is_err());
}

/// A window in which something is mapped, or was and is not flushed yet, would give out addresses in use.
#[test]
fn a_window_in_use_is_refused() {
    let ram = Ram::new(1 << 36);
    let mut tables = tables(&ram);
    let window = VirtRange::new(VirtAddr::new(WINDOW), 0x10_0000).unwrap();
    let page = VirtRange::new(VirtAddr::new(WINDOW + 0xf_f000), FRAME_SIZE).unwrap();
    map_page(&mut tables, page.start().get(), 77, Access::ReadOnly, &ram).unwrap();
    let refused = |tables: &mut _| {
        let error = AddressAllocator::new(tables, window).unwrap_err();
        assert_eq!(error, WindowError::InUse { window });
        error.to_string()
    };
    assert!(refused(&mut tables).contains(&format!("{window} is in use: unmap")));
    // SAFETY: nobody uses what these tables map.
    let unmapping = unsafe { tables.unmap(page) }.unwrap();
    refused(&mut tables);
    let unmapped = unmapping.flush(&Alone);
    refused(&mut tables);
    tables.complete(unmapped, &ram, &mut |_| ()).unwrap();
    assert!(AddressAllocator::new(&mut tables, window).is_ok());
}

/// Two allocators with a page in common would give it two owners, whatever is mapped.
#[test]
fn a_window_is_one_allocator_s_for_good() {
    let ram = Ram::new(1 << 36);
    let mut tables = tables(&ram);
    let window = |page: u64, pages: u64| {
        VirtRange::new(
            VirtAddr::new(WINDOW + page * FRAME_SIZE),
            pages * FRAME_SIZE,
        )
        .unwrap()
    };
    let first = window(16, 16);
    drop(AddressAllocator::new(&mut tables, first).unwrap());
    for window in [
        first,
        window(17, 1),
        window(0, 17),
        window(31, 9),
        window(0, 99),
    ] {
        let error = AddressAllocator::new(&mut tables, window).unwrap_err();
        let overlap = WindowError::Overlap {
            window,
            with: first,
        };
        assert_eq!(error, overlap);
        assert!(error.to_string().contains("choose another window"));
    }
    let mut beside = [window(0, 16), window(32, 1)]
        .into_iter()
        .chain((33..).map(|page| window(page, 1)));
    for window in beside.by_ref().take(15) {
        AddressAllocator::new(&mut tables, window).unwrap();
    }
    let window = beside.next().unwrap();
    let error = AddressAllocator::new(&mut tables, window).unwrap_err();
    assert_eq!(
        error,
        WindowError::TooMany {
            window,
            windows: 16
        }
    );
    assert!(error.to_string().contains("make one of them larger"));
}
