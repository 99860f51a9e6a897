//! Physical memory as the loader sees it: the first 4 GiB at their own
//! addresses.

/// First address that the loader can't reach. All that it allocates for its
/// own use lies below.
pub const LIMIT: u64 = 1 << 32;

/// Returns `count` values of type `T` at a physical address; `None` if that is null, not aligned
/// for `T`, or out of reach.
///
/// # Safety
/// 1. The memory holds valid values of type `T`.
/// 2. Nothing writes to it while the slice is used.
pub unsafe fn slice<T>(address: u64, count: u64) -> Option<&'static [T]> {
    let address = checked::<T>(address, count)?;
    // SAFETY: the range is not null, is aligned, and lies in the 4 GiB that
    // the boot tables map; valid and unchanging by the caller's promise.
    Some(unsafe { core::slice::from_raw_parts(address, count as usize) })
}

/// Returns `count` bytes at a physical address, to write to; `None` as for [`slice()`].
///
/// # Safety
/// The memory is memory, and the caller's alone.
pub unsafe fn bytes_mut(address: u64, count: u64) -> Option<&'static mut [u8]> {
    let address = checked::<u8>(address, count)?;
    // SAFETY: as in `slice`; any byte is valid, and the caller has it alone.
    Some(unsafe { core::slice::from_raw_parts_mut(address, count as usize) })
}

fn checked<T>(address: u64, count: u64) -> Option<*mut T> {
    let end = count
        .checked_mul(size_of::<T>() as u64)?
        .checked_add(address)?;
    let pointer = core::ptr::with_exposed_provenance_mut::<T>(address as usize);
    (end <= LIMIT && address != 0 && pointer.is_aligned()).then_some(pointer)
}
