//! The physical map: the owner of each byte of the machine's memory, and the memory that is
//! withheld.

use alloc::vec::Vec;
use core::fmt;

use muster_frames::{PhysAddr, PhysRange};
use muster_machine::mtrr::{MemoryType, Mtrrs};

use super::build_error::BuildError;
use crate::arch::control::Features;
use crate::boot::bytes::Bytes;
use crate::boot::limine::Boot;
use crate::boot::owner::{AssignError, Owner, PhysicalMap};
use crate::smp::identity;

/// The first megabyte, where BIOS leaves its tables, and firmware and SMM write whatever the memory
/// map says.
pub const LEGACY_END: PhysAddr = PhysAddr::new(1024 * 1024);

/// Makes the map out of the loader's, with unusable memory withheld. Also returns the MTRRs, by which
/// that is decided.
///
/// # Errors
///
/// [`BuildError`], if the loader contradicts itself, or the image lies in memory that can't be
/// used.
pub fn map(
    boot: &Boot,
    features: &Features,
) -> Result<(PhysicalMap, Option<Mtrrs<'static>>), BuildError> {
    let mut map =
        muster_boot::physical_map(&boot.memory.entries, Owner::of_kind).map_err(BuildError::Map)?;
    // Changes nothing, and fails unless every byte of the image is the kernel's.
    map.assign(boot.image.range, Owner::Kernel, Owner::Kernel)
        .map_err(BuildError::Image)?;
    withhold_low_memory(&mut map).map_err(BuildError::Image)?;
    let mtrrs = identity::mtrrs(features);
    match &mtrrs {
        Some(mtrrs) => withhold_uncached(&mut map, mtrrs, boot.image.range)?,
        None => log::warn!(target: "shared", "no MTRRs in use: memory is taken as write-back"),
    }
    Ok((map, mtrrs))
}

/// Keeps all of the first megabyte from being handed out, now or with the loader's memory: firmware
/// writes there, and a CPU can start nowhere else.
fn withhold_low_memory(map: &mut PhysicalMap) -> Result<(), AssignError> {
    for owner in [Owner::Free, Owner::Loader] {
        let low: Vec<_> = map
            .ranges(owner)
            .take_while(|range| range.start() < LEGACY_END)
            .filter_map(|range| PhysRange::from_bounds(range.start(), range.end().min(LEGACY_END)))
            .collect();
        for range in low {
            map.assign(range, owner, Owner::LowMemory)?;
        }
    }
    Ok(())
}

/// Keeps memory that the MTRRs do not make write-back from being handed out, now or with the loader's: it is
/// many times as slow, and stores to it are combined or not cached at all.
///
/// # Errors
///
/// [`BuildError::ImageNotWriteBack`]: the kernel itself can't go elsewhere.
fn withhold_uncached(
    map: &mut PhysicalMap,
    mtrrs: &Mtrrs<'_>,
    image: PhysRange,
) -> Result<(), BuildError> {
    let uncached = |range: PhysRange| {
        let parts = mtrrs.ranges(range.start().get()..range.end().get());
        parts.filter_map(|(part, kind)| {
            Some((
                PhysRange::from_bounds(PhysAddr::new(part.start), PhysAddr::new(part.end))?,
                kind,
            ))
            .filter(|_| kind != MemoryType::WriteBack)
        })
    };
    if let Some((range, kind)) = uncached(image).next() {
        return Err(BuildError::ImageNotWriteBack(range, kind));
    }
    for owner in [Owner::Free, Owner::Loader] {
        let parts: Vec<_> = map.ranges(owner).flat_map(uncached).collect();
        for (range, _) in parts {
            map.assign(range, owner, Owner::NotWriteBack)
                .map_err(BuildError::Image)?;
        }
    }
    let bytes = map.totals()[Owner::NotWriteBack];
    if bytes > 0 {
        log::warn!(
            target: "shared",
            "{} of memory is not write-back by the MTRRs, and not used:{}",
            Bytes(bytes),
            Ranges(map)
        );
    }
    Ok(())
}

/// The ranges of the memory that is not write-back; of many the first ones.
struct Ranges<'a>(&'a PhysicalMap);

impl fmt::Display for Ranges<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let mut ranges = self.0.ranges(Owner::NotWriteBack);
        for range in ranges.by_ref().take(SHOWN) {
            write!(f, " {range}")?;
        }
        match ranges.count() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
