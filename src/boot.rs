//! What the loader told: Limine's answers, checked once and turned into one
//! plain value. Nothing else in the kernel touches a request or a response, all of
//! which lie in memory that is no longer the loader's in the end ([`crate::reclaim`]).

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use limine::BaseRevision;
use limine::memory_map::EntryType;
use limine::mp;
use limine::paging::Mode;
use limine::request::{
    BootloaderInfoRequest, ExecutableAddressRequest, ExecutableCmdlineRequest, HhdmRequest,
    MemoryMapRequest, MpRequest, PagingModeRequest, RequestsEndMarker, RequestsStartMarker,
    RsdpRequest,
};
use limine::response::{BootloaderInfoResponse, ExecutableCmdlineResponse};
use muster_memory::{FRAME_SIZE, Kind, MemoryEntry, PageSize, PhysRange};

use crate::audit::Bytes;
use crate::image;

/// The base revision this kernel is written for.
const REVISION: u64 = 3;

#[used]
#[unsafe(link_section = ".requests_start")]
static START: RequestsStartMarker = RequestsStartMarker::new();
#[used]
#[unsafe(link_section = ".requests_end")]
static END: RequestsEndMarker = RequestsEndMarker::new();

#[used]
#[unsafe(link_section = ".requests")]
static BASE_REVISION: BaseRevision = BaseRevision::with_revision(REVISION);
#[used]
#[unsafe(link_section = ".requests")]
static LOADER_INFO: BootloaderInfoRequest = BootloaderInfoRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static HHDM: HhdmRequest = HhdmRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static MEMORY_MAP: MemoryMapRequest = MemoryMapRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static MP: MpRequest = MpRequest::new().with_flags(mp::RequestFlags::X2APIC);
#[used]
#[unsafe(link_section = ".requests")]
static ADDRESS: ExecutableAddressRequest = ExecutableAddressRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static COMMAND_LINE: ExecutableCmdlineRequest = ExecutableCmdlineRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static RSDP: RsdpRequest = RsdpRequest::new();
#[used]
#[unsafe(link_section = ".requests")]
static PAGING: PagingModeRequest = PagingModeRequest::new().with_max_mode(Mode::FIVE_LEVEL);

/// Everything the kernel takes from its loader.
pub struct Boot {
    /// The loader's name and version, for the log.
    pub loader: String,
    /// Virtual address of physical address 0 in the higher-half direct map.
    pub hhdm: u64,
    /// Where the kernel image lies.
    pub image: Placement,
    /// The memory map, as the loader sorted it.
    pub memory: Vec<MemoryEntry>,
    /// Memory-map entries that no x86-64 address can reach, and so were left out.
    pub unreachable_entries: usize,
    /// The CPUs the loader found, the BSP first, each LAPIC id once.
    pub cpus: Vec<ListedCpu>,
    /// LAPIC ids that the loader listed a second time; those entries were left out.
    pub repeated_lapic_ids: Vec<u32>,
    /// Physical address of the ACPI root pointer, if the machine has one.
    pub rsdp: Option<u64>,
    /// The kernel's command line; empty if there is none.
    pub command_line: String,
}

/// Where the loader put the image: one offset for all of it.
#[derive(Debug, Clone, Copy)]
pub struct Placement {
    /// The physical memory the image takes, in whole frames.
    pub range: PhysRange,
    /// Virtual address of the image's first page.
    pub virtual_: u64,
}

impl Placement {
    /// The physical address behind an address inside the image.
    pub fn physical_of(&self, virtual_: u64) -> u64 {
        virtual_ - self.virtual_ + self.range.start()
    }
}

/// A CPU that the loader found and, if it is not the BSP, parked.
pub struct ListedCpu {
    /// Its local APIC id.
    pub lapic_id: u32,
    /// Its parking place in the loader's memory; null for the BSP, and once it is released:
    /// then the memory may go.
    slot: AtomicPtr<mp::Cpu>,
}

impl ListedCpu {
    /// Sends a parked AP to `entry`, with `argument` for it to pick up.
    /// Everything written before is visible to the AP. Does nothing on the BSP, nor a
    /// second time.
    ///
    /// # Safety
    ///
    /// `argument` is what `entry` asks for.
    pub unsafe fn release(&self, entry: unsafe extern "C" fn(&mp::Cpu) -> !, argument: u64) {
        let slot = self.slot.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: null or the loader's, which shared it with the AP by atomics alone. It
        // stays where it is until every AP is released and has come.
        if let Some(slot) = unsafe { slot.as_ref() } {
            slot.extra.store(argument, Ordering::Release);
            slot.goto_address.write(entry);
        }
    }
}

/// Why the kernel can't start from what the loader answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootError {
    /// The loader does not speak the base revision asked for; the one it chose
    /// instead, if it says.
    Revision(Option<u64>),
    /// A feature without which there is no kernel was not answered.
    Missing(&'static str),
    /// The HHDM does not start at a multiple of 2 MiB in the higher half: large pages
    /// would be of no use in it, and blocks of the heap not aligned.
    Hhdm(u64),
    /// The image is not where the loader says it is.
    Image {
        /// Its first virtual address, as the loader tells it.
        virtual_: u64,
        /// Its first physical address, as the loader tells it.
        physical: u64,
        /// Its first virtual address, as the linker set it.
        linked: u64,
    },
    /// A usable or reclaimable entry that is no physical range.
    MemoryEntry {
        /// Its base.
        base: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// There is no entry for the BSP among the CPUs.
    NoBsp(u32),
    /// The command line is not UTF-8.
    CommandLine,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Revision(got) => {
                write!(
                    f,
                    "the loader does not speak base revision {REVISION} of the protocol ("
                )?;
                match got {
                    Some(got) => write!(f, "it chose {got}")?,
                    None => write!(f, "it does not say which it speaks")?,
                }
                write!(f, "); use Limine 9 or later")
            }
            Self::Missing(feature) => {
                write!(
                    f,
                    "the loader did not answer the {feature} request, which Muster needs"
                )
            }
            Self::Hhdm(offset) => write!(
                f,
                "the loader's HHDM offset {offset:#x} is no multiple of 2 MiB in the higher half"
            ),
            Self::Image {
                virtual_,
                physical,
                linked,
            } => write!(
                f,
                "the loader says the image is at {virtual_:#x} (physical {physical:#x}), but it runs at {linked:#x}"
            ),
            Self::MemoryEntry { base, length } => write!(
                f,
                "the loader's memory map has a usable entry at {base:#x} of {length:#x} bytes, which is no range of memory"
            ),
            Self::NoBsp(lapic_id) => write!(
                f,
                "the loader says the BSP has LAPIC id {lapic_id}, but does not list that CPU"
            ),
            Self::CommandLine => write!(f, "the kernel's command line is not UTF-8"),
        }
    }
}

impl Boot {
    /// Checks the loader's answers.
    ///
    /// # Errors
    ///
    /// The first thing found without which, or with which, the kernel can't start.
    pub fn check() -> Result<Self, BootError> {
        if !BASE_REVISION.is_supported() {
            return Err(BootError::Revision(BASE_REVISION.loaded_revision()));
        }
        let hhdm = HHDM
            .get_response()
            .ok_or(BootError::Missing("HHDM"))?
            .offset();
        if hhdm >> 63 == 0 || !hhdm.is_multiple_of(PageSize::Size2MiB.bytes()) {
            return Err(BootError::Hhdm(hhdm));
        }
        let (memory, unreachable_entries) = memory_map()?;
        let (cpus, repeated_lapic_ids) = cpus()?;
        Ok(Self {
            loader: loader_name(),
            hhdm,
            image: placement()?,
            memory,
            unreachable_entries,
            cpus,
            repeated_lapic_ids,
            rsdp: RSDP
                .get_response()
                .map(|response| response.address() as u64)
                .filter(|&at| at != 0),
            command_line: command_line()?,
        })
    }
}

impl Boot {
    /// Logs what the loader told, and what of it is odd.
    pub fn tell(&self) {
        let usable: u64 = self
            .memory
            .iter()
            .filter(|entry| entry.kind == Kind::Usable)
            .map(|entry| entry.range.len())
            .sum();
        log::info!(
            "{} CPUs, {} usable of {} memory-map entries",
            self.cpus.len(),
            Bytes(usable),
            self.memory.len()
        );
        for entry in &self.memory {
            log::debug!("{} {:?}", entry.range, entry.kind);
        }
        if !self.command_line.is_empty() {
            log::info!("command line: {}", self.command_line);
        }
        if self.unreachable_entries > 0 {
            log::warn!(
                "left out {} memory-map entries beyond the reach of any x86-64 CPU",
                self.unreachable_entries
            );
        }
        if !self.repeated_lapic_ids.is_empty() {
            log::warn!(
                "the loader lists these LAPIC ids twice: {:?}",
                self.repeated_lapic_ids
            );
        }
    }
}

fn placement() -> Result<Placement, BootError> {
    let response = ADDRESS
        .get_response()
        .ok_or(BootError::Missing("executable address"))?;
    let [first, .., last] = image::sections();
    let virtual_ = response.virtual_base();
    let physical = response.physical_base();
    PhysRange::new(physical, last.end - first.start)
        .filter(|_| virtual_ == first.start && physical.is_multiple_of(FRAME_SIZE))
        .map(|range| Placement { range, virtual_ })
        .ok_or(BootError::Image {
            virtual_,
            physical,
            linked: first.start,
        })
}

fn memory_map() -> Result<(Vec<MemoryEntry>, usize), BootError> {
    let response = MEMORY_MAP
        .get_response()
        .ok_or(BootError::Missing("memory map"))?;
    let mut entries = Vec::new();
    let mut unreachable = 0;
    for entry in response.entries() {
        let kind = match entry.entry_type {
            EntryType::USABLE => Kind::Usable,
            EntryType::ACPI_RECLAIMABLE => Kind::AcpiReclaimable,
            EntryType::ACPI_NVS => Kind::AcpiNvs,
            EntryType::BAD_MEMORY => Kind::Bad,
            EntryType::BOOTLOADER_RECLAIMABLE => Kind::BootloaderReclaimable,
            EntryType::EXECUTABLE_AND_MODULES => Kind::ExecutableAndModules,
            EntryType::FRAMEBUFFER => Kind::Framebuffer,
            // Reserved, and any type a later protocol may add: hands off.
            _ => Kind::Reserved,
        };
        match PhysRange::new(entry.base, entry.length) {
            Some(range) => entries.push(MemoryEntry { range, kind }),
            None if entry.length == 0 => {}
            None if kind == Kind::Usable || kind == Kind::BootloaderReclaimable => {
                return Err(BootError::MemoryEntry {
                    base: entry.base,
                    length: entry.length,
                });
            }
            None => unreachable += 1,
        }
    }
    Ok((entries, unreachable))
}

fn cpus() -> Result<(Vec<ListedCpu>, Vec<u32>), BootError> {
    let response = MP.get_response().ok_or(BootError::Missing("MP"))?;
    let bsp = response.bsp_lapic_id();
    let listed = response.cpus();
    if !listed.iter().any(|cpu| cpu.lapic_id == bsp) {
        return Err(BootError::NoBsp(bsp));
    }
    let mut cpus = Vec::new();
    let mut repeated = Vec::new();
    cpus.push(ListedCpu {
        lapic_id: bsp,
        slot: AtomicPtr::new(ptr::null_mut()),
    });
    let mut bsp_seen = false;
    for &cpu in listed {
        if cpu.lapic_id == bsp && !bsp_seen {
            bsp_seen = true;
        } else if cpus.iter().any(|known| known.lapic_id == cpu.lapic_id) {
            repeated.push(cpu.lapic_id);
        } else {
            cpus.push(ListedCpu {
                lapic_id: cpu.lapic_id,
                slot: AtomicPtr::new(ptr::from_ref(cpu).cast_mut()),
            });
        }
    }
    Ok((cpus, repeated))
}

/// The layouts of two responses in the protocol. The crate's own accessors take the
/// pointers for sound, and panic on a name that is not UTF-8; a name is no reason
/// not to boot.
#[repr(C)]
struct LoaderInfo {
    revision: u64,
    name: *const c_char,
    version: *const c_char,
}

#[repr(C)]
struct CommandLine {
    revision: u64,
    line: *const c_char,
}

const _: () = assert!(size_of::<LoaderInfo>() == size_of::<BootloaderInfoResponse>());
const _: () = assert!(size_of::<CommandLine>() == size_of::<ExecutableCmdlineResponse>());

fn loader_name() -> String {
    let Some(response) = LOADER_INFO.get_response() else {
        return String::from("an unnamed loader");
    };
    // SAFETY: both structs are `repr(C)` with the fields the protocol lays down.
    let info = unsafe { &*(&raw const *response).cast::<LoaderInfo>() };
    let text = |pointer| text(pointer).map_or_else(Default::default, CStr::to_string_lossy);
    alloc::format!("{} {}", text(info.name), text(info.version))
}

fn command_line() -> Result<String, BootError> {
    let Some(response) = COMMAND_LINE.get_response() else {
        return Ok(String::new());
    };
    // SAFETY: as in `loader_name`.
    let response = unsafe { &*(&raw const *response).cast::<CommandLine>() };
    let line = text(response.line).unwrap_or_default();
    line.to_str()
        .map(String::from)
        .map_err(|_| BootError::CommandLine)
}

/// A string of the loader's, or `None` if it left the pointer null.
fn text(pointer: *const c_char) -> Option<&'static CStr> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: by the protocol a pointer in a response is null or leads to a string that
    // ends in NUL, in reclaimable memory, which is mapped, and nobody writes to it or
    // takes it back before every CPU has left it. Callers copy it at once.
    Some(unsafe { CStr::from_ptr(pointer) })
}
