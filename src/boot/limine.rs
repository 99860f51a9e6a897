//! Limine's responses, checked once and turned into one plain value. Nothing else in the kernel
//! touches a request or a response, all of which lie in memory that is no longer the loader's in
//! the end ([`crate::bringup::reclaim`]).

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use limine::BaseRevision;
use limine::framebuffer::MemoryModel;
use limine::memory_map::EntryType;
use limine::mp;
use limine::paging::Mode;
use limine::request::{
    BootloaderInfoRequest, ExecutableAddressRequest, ExecutableCmdlineRequest, FramebufferRequest,
    HhdmRequest, MemoryMapRequest, MpRequest, PagingModeRequest, RequestsEndMarker,
    RequestsStartMarker, RsdpRequest,
};
use limine::response::{BootloaderInfoResponse, ExecutableCmdlineResponse, FramebufferResponse};
use muster_boot::{
    Answer, BootError, Cpus, Framebuffer, Kind, MemoryMap, Placement, REVISION, Unusable,
};
use muster_frames::PhysAddr;
use muster_paging::VirtAddr;
use muster_screen::Channel;

use super::bytes::Bytes;
use super::{addresses, image};

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

#[used]
#[unsafe(link_section = ".requests")]
static FRAMEBUFFER: FramebufferRequest = FramebufferRequest::new();

/// Everything the kernel takes from its loader.
pub struct Boot {
    /// The loader's name and version, for the log.
    pub loader: String,
    /// Virtual address of physical address 0 in the higher-half direct map.
    pub hhdm: VirtAddr,
    /// Where the kernel image lies.
    pub image: Placement,
    /// The memory map, as the loader sorted it.
    pub memory: MemoryMap,
    /// The CPUs the loader found, the BSP first, each LAPIC id once.
    pub cpus: Vec<ListedCpu>,
    /// LAPIC ids that the loader listed a second time; those entries were left out.
    pub repeated_lapic_ids: Vec<u32>,
    /// Physical address of the ACPI root pointer, if the machine has one.
    pub rsdp: Option<u64>,
    /// The kernel's command line; empty if there is none.
    pub command_line: String,
    /// The screen, if there is one, or why it can't be used.
    pub framebuffer: Option<Result<Framebuffer, Unusable>>,
}

/// A CPU that the loader found and, if it is not the BSP, parked.
pub struct ListedCpu {
    /// Its local APIC id.
    pub lapic_id: u32,
    /// Its entry in the loader's memory, at which it is parked; null for the BSP, and once it is
    /// released: then the memory may go.
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
        // Relaxed: only the BSP comes here, and the swap alone makes a second call do nothing.
        let slot = self.slot.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: null or the loader's, which shared it with the AP by atomics alone. It stays
        // where it is until every AP is released and has left.
        if let Some(slot) = unsafe { slot.as_ref() } {
            // Release: with the argument, which it Acquires, the AP sees all that was written before.
            slot.extra.store(argument, Ordering::Release);
            slot.goto_address.write(entry);
        }
    }
}

impl Boot {
    /// Checks the loader's answers.
    ///
    /// # Errors
    ///
    /// The first thing missing or wrong with which the kernel can't start.
    pub fn check() -> Result<Self, BootError> {
        if !BASE_REVISION.is_supported() {
            return Err(BootError::Revision(BASE_REVISION.loaded_revision()));
        }
        let hhdm = HHDM.get_response().ok_or(BootError::Missing("HHDM"))?;
        let hhdm = muster_boot::hhdm(hhdm.offset())?;
        let memory = memory_map()?;
        let (cpus, repeated_lapic_ids) = cpus()?;
        Ok(Self {
            loader: loader_name(),
            hhdm,
            image: placement()?,
            framebuffer: framebuffer().map(|answer| Framebuffer::check(&answer, hhdm, &memory)),
            memory,
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
    /// Logs what the loader reports, with a warning for what is unusual.
    pub fn log(&self) {
        log::info!(
            target: "boot",
            "{} CPUs, {} usable of {} memory-map entries",
            self.cpus.len(),
            Bytes(self.memory.usable_bytes()),
            self.memory.entries.len()
        );
        match &self.framebuffer {
            Some(Ok(screen)) => log::info!(
                target: "boot",
                "screen of {} by {} pixels of {} bits",
                screen.width,
                screen.height,
                screen.format.bytes() * 8
            ),
            Some(Err(unusable)) => {
                log::warn!(target: "boot", "the screen stays as it is: {unusable}")
            }
            None => {}
        }
        if addresses::are_shown() {
            for entry in &self.memory.entries {
                log::debug!(target: "boot", "{} {:?}", entry.range, entry.kind);
            }
        }
        if !self.command_line.is_empty() {
            log::info!(target: "boot", "command line: {}", self.command_line);
        }
        if self.memory.unreachable > 0 {
            log::warn!(
                target: "boot",
                "left out {} memory-map entries beyond the reach of any x86-64 CPU",
                self.memory.unreachable
            );
        }
        if !self.repeated_lapic_ids.is_empty() {
            log::warn!(
                target: "boot",
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
    Placement::check(
        VirtAddr::new(response.virtual_base()),
        PhysAddr::new(response.physical_base()),
        first.start..last.end,
    )
}

fn memory_map() -> Result<MemoryMap, BootError> {
    let response = MEMORY_MAP
        .get_response()
        .ok_or(BootError::Missing("memory map"))?;
    let entries = response.entries().iter();
    MemoryMap::check(entries.map(|entry| (entry.base, entry.length, kind(entry.entry_type))))
}

fn kind(entry_type: EntryType) -> Kind {
    match entry_type {
        EntryType::USABLE => Kind::Usable,
        EntryType::ACPI_RECLAIMABLE => Kind::AcpiReclaimable,
        EntryType::ACPI_NVS => Kind::AcpiNvs,
        EntryType::BAD_MEMORY => Kind::Bad,
        EntryType::BOOTLOADER_RECLAIMABLE => Kind::BootloaderReclaimable,
        EntryType::EXECUTABLE_AND_MODULES => Kind::ExecutableAndModules,
        EntryType::FRAMEBUFFER => Kind::Framebuffer,
        // Reserved, and any type a later protocol may add: hands off.
        _ => Kind::Reserved,
    }
}

fn cpus() -> Result<(Vec<ListedCpu>, Vec<u32>), BootError> {
    let response = MP.get_response().ok_or(BootError::Missing("MP"))?;
    let entries = response.cpus().iter();
    let entries = entries.map(|&cpu| (cpu.lapic_id, ptr::from_ref(cpu).cast_mut()));
    let cpus = Cpus::check(response.bsp_lapic_id(), entries)?;
    let listed = cpus.listed.into_iter();
    let listed = listed.map(|(lapic_id, slot)| ListedCpu {
        lapic_id,
        slot: AtomicPtr::new(slot.unwrap_or(ptr::null_mut())),
    });
    Ok((listed.collect(), cpus.repeated))
}

/// Returns the first of the framebuffers.
fn framebuffer() -> Option<Answer> {
    let response = FRAMEBUFFER.get_response()?;
    // SAFETY: as in `loader_name`.
    let list = unsafe { &*(&raw const *response).cast::<Framebuffers>() };
    // The crate makes a slice of it, which no null may be.
    if list.count == 0 || list.list.is_null() {
        return None;
    }
    let framebuffer = response.framebuffers().next()?;
    Some(Answer {
        address: VirtAddr::from_ptr(framebuffer.addr()),
        width: framebuffer.width(),
        height: framebuffer.height(),
        pitch: framebuffer.pitch(),
        bits: framebuffer.bpp(),
        is_rgb: framebuffer.memory_model() == MemoryModel::RGB,
        channels: [
            (framebuffer.red_mask_size(), framebuffer.red_mask_shift()),
            (
                framebuffer.green_mask_size(),
                framebuffer.green_mask_shift(),
            ),
            (framebuffer.blue_mask_size(), framebuffer.blue_mask_shift()),
        ]
        .map(|(bits, shift)| Channel { bits, shift }),
    })
}

/// The layouts of three responses in the protocol. The crate's own accessors take the
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

#[repr(C)]
struct Framebuffers {
    revision: u64,
    count: u64,
    list: *const *const c_void,
}

const _: () = assert!(size_of::<Framebuffers>() == size_of::<FramebufferResponse>());
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
    muster_boot::command_line(line.to_bytes())
}

/// Reads a string of the loader's: `None` if it left the pointer null.
fn text(pointer: *const c_char) -> Option<&'static CStr> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: by the protocol a pointer in a response is null or leads to a string that ends in
    // NUL, in reclaimable memory, which is mapped, and nothing writes to it or frees it before
    // every CPU has left it. Callers copy it at once.
    Some(unsafe { CStr::from_ptr(pointer) })
}
