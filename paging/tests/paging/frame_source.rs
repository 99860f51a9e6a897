//! A frame allocator as the source of tables' frames.

use muster_frames::{FrameAllocator, FrameInfo, PhysAddr, PhysRange, SoleOwner};
use muster_paging::FrameSource;

fn allocator(free: PhysRange) -> FrameAllocator {
    let records = FrameInfo::needed([free].into_iter());
    let records = Box::leak(Box::new_uninit_slice(records));
    // SAFETY: there is no memory of these frames that anything could use.
    unsafe { FrameAllocator::new([free].into_iter(), [].into_iter(), records) }.unwrap()
}

/// It gets back what another source may have handed out.
#[test]
fn another_allocator_s_page_table_is_kept_out_of_use() {
    let mine =
        allocator(PhysRange::from_bounds(PhysAddr::new(0x1000), PhysAddr::new(0x4000)).unwrap());
    let others =
        allocator(PhysRange::from_bounds(PhysAddr::new(0x4000), PhysAddr::new(0x9000)).unwrap());
    let table = FrameSource::take(&mine).unwrap();
    let frame = table.frame();
    others.give_back(table);
    assert_eq!((mine.free_frames(), others.free_frames()), (2, 5));
    assert_eq!(mine.owner_of(frame), Some(SoleOwner::Used));
    assert_eq!(others.owner_of(frame), None);

    let table = FrameSource::take(&mine).unwrap();
    mine.give_back(table);
    assert_eq!(mine.free_frames(), 2);
}
