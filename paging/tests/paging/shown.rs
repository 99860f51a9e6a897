//! The memory that the HHDM must map, by a naive model. The fuzzer uses it as well.

use muster_boot::{Kind, MemoryEntry};
use muster_frames::{FRAME_SIZE, PhysAddr, PhysRange};

/// Returns how the HHDM must map the frame that starts at `phys`, worked out from the entries alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    Not,
    Memory,
    Protected,
    Framebuffer,
}

pub fn shown(entries: &[MemoryEntry], read_only: &[PhysRange], phys: u64) -> Shown {
    let frame = PhysRange::new(PhysAddr::new(phys), FRAME_SIZE).unwrap();
    let touched = |kinds: &[Kind]| {
        entries
            .iter()
            .any(|entry| kinds.contains(&entry.kind) && entry.range.overlaps(frame))
    };
    let memory = if read_only.iter().any(|range| range.overlaps(frame)) {
        Shown::Protected
    } else {
        Shown::Memory
    };
    if touched(&[Kind::ExecutableAndModules]) {
        return memory;
    }
    if touched(&[Kind::Framebuffer]) {
        return Shown::Framebuffer;
    }
    let others = [
        Kind::AcpiReclaimable,
        Kind::AcpiNvs,
        Kind::ReservedMapped,
        Kind::Reserved,
        Kind::Bad,
    ];
    if touched(&others) {
        return Shown::Not;
    }
    // The remainder of the frame once everything allocatable is cut out of it.
    let mut left = vec![frame];
    for entry in entries {
        if matches!(entry.kind, Kind::Usable | Kind::BootloaderReclaimable) {
            left = left
                .iter()
                .flat_map(|part| {
                    let cut = part.cut(entry.range);
                    cut.before.into_iter().chain(cut.after)
                })
                .collect();
        }
    }
    if left.is_empty() { memory } else { Shown::Not }
}
