//! What a Limine loader is asked, and how it hands the other CPUs over.

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use conquer_once::spin::OnceCell;
use limine::BaseRevision;
use limine::memory_map::EntryType;
use limine::mp;
use limine::request::{HhdmRequest, MemoryMapRequest, MpRequest};
use muster_frames::{PhysAddr, PhysRange, SoleOwner};

#[used]
#[unsafe(link_section = ".requests")]
static BASE_REVISION: BaseRevision = BaseRevision::with_revision(3);
#[used]
#[unsafe(link_section = ".requests")]
static HHDM: HhdmRequest = HhdmRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static MEMORY_MAP: MemoryMapRequest = MemoryMapRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static MP: MpRequest = MpRequest::new();

/// What the loader answered.
pub struct Loader {
    /// Where physical address 0 is shown.
    pub hhdm: u64,
    /// What memory there is: first what is free, over which all else has precedence.
    pub ranges: Vec<(PhysRange, SoleOwner)>,
    /// How many CPUs there are.
    pub cpus: usize,
}

/// Takes the loader's answers.
///
/// # Errors
///
/// In words, if one is missing.
pub fn ask() -> Result<Loader, &'static str> {
    if !BASE_REVISION.is_supported() {
        return Err("the loader does not speak base revision 3");
    }
    let hhdm = HHDM.get_response().ok_or("the loader shows no memory")?;
    let map = MEMORY_MAP
        .get_response()
        .ok_or("the loader tells of no memory")?;
    let mp = MP.get_response().ok_or("the loader starts no CPUs")?;
    let ranges = map.entries().iter().filter_map(|entry| {
        let range = PhysRange::new(PhysAddr::new(entry.base), entry.length)?;
        Some(match entry.entry_type {
            EntryType::USABLE => (range, SoleOwner::Free),
            _ => (range, SoleOwner::Rest),
        })
    });
    let mut ranges: Vec<_> = ranges.collect();
    ranges.sort_by_key(|&(_, owner)| owner != SoleOwner::Free);
    Ok(Loader {
        hhdm: hhdm.offset(),
        ranges,
        cpus: mp.cpus().len(),
    })
}

// Of the linker script.
unsafe extern "C" {
    static text_start: u8;
    static data_end: u8;
}

/// Whether the loader has loaded these addresses, as a part of the image.
pub fn has_loaded(addresses: Range<usize>) -> bool {
    let (start, end) = (&raw const text_start, &raw const data_end);
    start.addr() <= addresses.start && addresses.end <= end.addr()
}

/// Where the CPUs go.
static ENTER: OnceCell<fn(u32) -> !> = OnceCell::uninit();

/// Lets `count` CPUs enter beside this one, with their numbers from 1 on.
pub fn release(count: usize, enter: fn(u32) -> !) {
    ENTER.init_once(|| enter);
    let Some(mp) = MP.get_response() else { return };
    let others = mp.cpus().iter();
    let others = others.filter(|cpu| cpu.lapic_id != mp.bsp_lapic_id());
    for (number, cpu) in (1..).zip(others.take(count)) {
        // Release: with the number, which it Acquires, the CPU sees all that was written before.
        cpu.extra.store(number, Ordering::Release);
        cpu.goto_address.write(entry);
    }
}

unsafe extern "C" fn entry(parked: &mp::Cpu) -> ! {
    let number = parked.extra.load(Ordering::Acquire) as u32;
    match ENTER.get() {
        Some(enter) => enter(number),
        None => crate::console::halt(),
    }
}
