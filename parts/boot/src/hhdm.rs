//! The regions of the higher-half direct map.

use alloc::vec::Vec;

use muster_frames::{PhysRange, RangeMap};
use muster_paging::{Access, Cache, PageSize, PlanError, Region, VirtAddr};

use crate::kind::{Kind, MemoryEntry};

/// The part of physical memory that the HHDM maps, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alias {
    Memory,
    Protected,
    Framebuffer,
}

/// Returns the regions of the higher-half direct map: physical memory mapped at `hhdm`, the
/// address of physical 0 there, plus its address.
///
/// It maps what the Limine boot protocol maps there in base revision 3, and nothing else: usable and
/// bootloader-reclaimable memory, executables and modules as write-back memory, framebuffers as
/// write-combining. Nothing is executable. `read_only` names physical memory that must not be writable
/// here because it is protected elsewhere: the kernel image's text and constants.
///
/// Entries that touch are one region, so that large pages can span their border. Executable and
/// framebuffer entries may begin and end inside a frame: they take the whole of it, the executable
/// before the framebuffer, and both before usable memory. Usable and reclaimable memory takes only
/// frames that lie wholly in it and in which no entry of another kind has a byte.
///
/// # Errors
///
/// [`PlanError::NotCanonical`] if `hhdm` plus a physical address overflows. The regions are
/// otherwise checked when they are added to a plan.
///
/// # Aborts
///
/// If the heap has no memory for the regions, or for the map that they are found by, this ends in
/// [`handle_alloc_error`](alloc::alloc::handle_alloc_error).
///
/// ```
/// use muster_boot::{Kind, MemoryEntry, hhdm_regions};
/// use muster_frames::{PhysAddr, PhysRange};
/// use muster_paging::{Access, PageSize, VirtAddr};
///
/// let entry = |start, end, kind| MemoryEntry {
///     range: PhysRange::from_bounds(PhysAddr::new(start), PhysAddr::new(end)).unwrap(),
///     kind,
/// };
/// let entries = [
///     entry(0x10_0000, 0x40_0000, Kind::Usable),
///     entry(0x40_0000, 0x50_0000, Kind::ExecutableAndModules),
///     entry(0x50_0000, 0x60_0000, Kind::Reserved),
/// ];
/// let text = PhysRange::from_bounds(PhysAddr::new(0x40_0000), PhysAddr::new(0x44_0000)).unwrap();
/// let hhdm = VirtAddr::new(0xffff_8000_0000_0000);
/// let regions = hhdm_regions(&entries, hhdm, PageSize::Size1GiB, &[text])?;
/// let parts: Vec<_> = regions.iter().map(|r| (r.phys.get(), r.length, r.access)).collect();
/// assert_eq!(parts, [
///     (0x10_0000, 0x30_0000, Access::ReadWrite),
///     (0x40_0000, 0x4_0000, Access::ReadOnly),
///     (0x44_0000, 0xc_0000, Access::ReadWrite),
/// ]);
/// # Ok::<(), muster_paging::PlanError>(())
/// ```
pub fn hhdm_regions(
    entries: &[MemoryEntry],
    hhdm: VirtAddr,
    largest: PageSize,
    read_only: &[PhysRange],
) -> Result<Vec<Region>, PlanError> {
    let of_kinds = |kinds: &'static [Kind]| {
        entries
            .iter()
            .filter(|entry| kinds.contains(&entry.kind))
            .map(|entry| entry.range)
    };

    let mut aliases = RangeMap::new();
    for range in of_kinds(&[Kind::Usable, Kind::BootloaderReclaimable]) {
        aliases.put(range, Alias::Memory);
    }
    for range in of_kinds(&[
        Kind::AcpiReclaimable,
        Kind::AcpiNvs,
        Kind::ReservedMapped,
        Kind::Reserved,
        Kind::Bad,
    ]) {
        aliases.remove(range.covering_frames());
    }
    for range in of_kinds(&[Kind::Framebuffer]) {
        aliases.put(range.covering_frames(), Alias::Framebuffer);
    }
    for range in of_kinds(&[Kind::ExecutableAndModules]) {
        aliases.put(range.covering_frames(), Alias::Memory);
    }
    for range in read_only {
        let shown: Vec<_> = aliases.overlapping(range.covering_frames()).collect();
        for (range, alias) in shown {
            if alias == Alias::Memory {
                aliases.put(range, Alias::Protected);
            }
        }
    }

    let mut regions = Vec::new();
    for (range, alias) in aliases.iter() {
        let Some(frames) = range.whole_frames() else {
            continue;
        };
        let (name, access, cache) = match alias {
            Alias::Memory => ("HHDM", Access::ReadWrite, Cache::WriteBack),
            Alias::Protected => (
                "HHDM of read-only image",
                Access::ReadOnly,
                Cache::WriteBack,
            ),
            Alias::Framebuffer => (
                "HHDM of framebuffer",
                Access::ReadWrite,
                Cache::WriteCombining,
            ),
        };
        let Some(virt) = hhdm.checked_add(frames.start().get()) else {
            // For any width: no address space reaches beyond 64 bits.
            return Err(PlanError::NotCanonical {
                name,
                virt: hhdm,
                length: frames.end().get(),
                bits: 64,
            });
        };
        regions.push(Region {
            name,
            virt,
            phys: frames.start(),
            length: frames.len(),
            access,
            cache,
            largest,
        });
    }
    Ok(regions)
}
