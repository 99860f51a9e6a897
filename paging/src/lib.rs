//! The page tables of an x86-64 kernel, as far as they are logic and not hardware: built to a plan, checked
//! against it, and changed while CPUs use them. Frames are the crate `muster-frames`'s.
//!
//! Nothing here touches a register or an address that it was not given, so all of it runs, and is
//! tested, on the host. It needs `alloc`; what runs after start-up allocates nothing (see
//! [`Tables::map_page`]), so a heap may grow by it.
//!
//! Where the heap has no memory, an error is returned.
//!
//! # What is here
//!
//! In the order in which a kernel needs it:
//!
//! | type | what it is | what it proves |
//! |---|---|---|
//! | [`Plan`] | what is to be mapped, and how | no address twice; nothing writable and executable, not even by two addresses; no memory cached in two ways |
//! | [`Tables`], [`TableView`] | page tables, and such as only are read | no page reaches beyond its region; no memory both writable and executable, nor cached in two ways, whatever comes and goes; after [`Tables::verify`]: the tables hold the plan and nothing else |
//! | [`Unmapping`], [`Flush`] | what the CPUs have to forget, all of them | nothing that a CPU may still reach by its caches is used again |
//! | [`AddressAllocator`] | addresses for what comes and goes | no address twice, by all allocators for some tables together; none comes back while the tables that it is for have anything there; a page that is given to nobody on both sides |
//!
//! That a view of tables finds no garbage while they change is model-checked under loom.
//!
//! It does not prove that the loader's memory map is true, that callers of `unsafe` functions keep to
//! the conditions, and that CR3, CR4, EFER and the PAT of every CPU are set as the tables assume:
//! EFER.NXE, CR0.WP, CR4.LA57 as [`Levels`] says, and [`PAT`].
//!
//! # In a kernel of your own
//!
//! It takes any way to reach physical memory ([`PhysicalMemory`]). Here it is a list of boxes; in a kernel, the
//! tables' memory is reached through the loader's direct map.
//!
//! ```
//! use core::ptr::NonNull;
//! use muster_frames::*;
//! use muster_paging::*;
//!
//! struct DirectMap {
//!     base: VirtAddr,
//! }
//!
//! // SAFETY: the loader maps all usable memory at `base`, and it stays so.
//! unsafe impl PhysicalMemory for DirectMap {
//!     fn pointer(&self, phys: PhysAddr) -> Option<NonNull<u8>> {
//!         NonNull::new(self.base.checked_add(phys.get())?.as_mut_ptr())
//!     }
//! }
//!
//! # // Stands for the usable memory, so that the example can run.
//! # #[repr(align(4096))]
//! # #[derive(Clone)]
//! # struct Page(#[expect(dead_code)] [u8; 4096]);
//! # let pages = vec![Page([0; 4096]); 64].leak();
//! # let base = VirtAddr::new(VirtAddr::from_ptr(pages.as_ptr()).get() - 0x10_0000);
//! # let direct_map = DirectMap { base };
//! let memory = PhysRange::new(PhysAddr::new(0x10_0000), 0x4_0000).unwrap();
//!
//! // The records of the frames; a kernel places them in free memory, by `PhysicalMap::assign`.
//! let records = FrameInfo::needed([memory].into_iter());
//! let records = Box::leak(Box::new_uninit_slice(records));
//! // SAFETY: nothing uses the memory, and the records lie elsewhere.
//! let frames = unsafe { FrameAllocator::new([memory].into_iter(), [].into_iter(), records)? };
//!
//! // The plan of what is to be mapped.
//! let mut plan = Plan::new(Levels::Four, 40);
//! plan.add(Region {
//!     name: "direct map",
//!     virt: VirtAddr::new(0xffff_8000_0000_0000) + memory.start().get(),
//!     phys: memory.start(),
//!     length: memory.len(),
//!     access: Access::ReadWrite,
//!     cache: Cache::WriteBack,
//!     largest: PageSize::Size1GiB,
//! })?;
//!
//! // The tables, and the proof that they are right.
//! let features = Features { gigabyte_pages: false };
//! let mut tables = Tables::new(direct_map, Levels::Four, features, &frames)?;
//! for region in plan.regions() {
//!     // SAFETY: nothing uses these addresses yet, the memory is such as the map says, and there are no other
//!     // tables.
//!     unsafe { tables.map_permanently(region, &frames)? };
//! }
//! let census = tables.verify(&plan)?;
//! assert_eq!((census.pages_4kib, census.bytes), (64, 0x4_0000));
//! assert_eq!(frames.totals()[SoleOwner::Used], 4 * FRAME_SIZE);
//!
//! // A page that comes and goes, at addresses of its own.
//! struct AllCpus;
//!
//! // SAFETY: in a kernel, each CPU that has the tables loaded executes INVLPG for these pages, or
//! // flushes everything, and has said so when this returns.
//! unsafe impl Shootdown for AllCpus {
//!     fn flush_on_all_cpus(&self, pages: &FlushSet) {
//! #       let _ = pages;
//!         // …
//!     }
//! }
//!
//! let window = VirtRange::new(VirtAddr::new(0xffff_ff10_0000_0000), 0x10_0000).unwrap();
//! let mut addresses = AddressAllocator::new(&mut tables, window)?;
//! let owned = addresses.allocate(FRAME_SIZE, FRAME_SIZE)?;
//! let range = owned.range();
//! // The right to the frame is the mapping's from here on; what is left is its name.
//! let frame = frames.allocate(SoleOwner::Used).unwrap().into_raw();
//! let (access, cache) = (Access::ReadWrite, Cache::WriteBack);
//! // SAFETY: the addresses are this code's, and the frame is memory.
//! unsafe { tables.map_page(range.start(), frame, access, cache, &frames)? };
//!
//! // SAFETY: nobody uses the page any more.
//! let unmapping = unsafe { tables.unmap(range)? };
//! let unmapped = unmapping.flush(&AllCpus);
//! tables.complete(unmapped, &frames, &mut |page| {
//!     assert_eq!(page.phys, frame.start());
//!     // SAFETY: the right to it was given up for the mapping, which is gone; nobody else made it again.
//!     let owned = unsafe { OwnedFrame::from_raw(frame, SoleOwner::Used) };
//!     assert_eq!(frames.free(owned), Ok(()));
//! })
//! .unwrap();
//! addresses.free(owned, &tables)?;
//! assert_eq!(frames.totals()[SoleOwner::Used], 4 * FRAME_SIZE);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Sources
//!
//! Section numbers of the Intel SDM are those of the editions in which paging is chapter 5 of volume
//! 3 and memory cache control chapter 13; in editions before 2024 these were chapters 4 and 12.
#![no_std]

extern crate alloc;
#[cfg(loom)]
extern crate std;

mod address_allocator;
#[cfg(all(test, loom))]
mod models;
mod plan;
mod tables;
mod unique;
mod virt_addr;
mod virt_range;

pub use address_allocator::{
    AddressAllocator, AddressError, AddressFreeError, AddressesNotFreed, OwnedAddresses,
    WindowError,
};
pub use plan::{Access, Cache, Levels, PAT, PageSize, Plan, PlanError, Region};
pub use tables::{
    Alias, Census, ChangeError, Exclusion, FLUSH_LIMIT, Features, Flush, FlushSet, FrameSource,
    FreedPage, Leaf, Mismatch, PartialRoot, PartlyMapped, PhysicalMemory, Rights, Shootdown, Step,
    TableError, TableView, Tables, TablesOf, Target, Translation, Unmapped, Unmapping,
};
pub use virt_addr::VirtAddr;
pub use virt_range::VirtRange;
