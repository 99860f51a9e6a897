//! The story of a boot.
//!
//! QEMU enters by PVH in 32-bit mode (`entry.s`), which leads to [`load`]. That
//! prepares everything on the boot tables, which map the first 4 GiB at their
//! own addresses; then all CPUs, this one included, go through the same door to
//! the kernel's tables (`cpus.rs`). Whatever is wrong ends in one line that
//! begins with `loader: `, and QEMU's exit status 37.
//!
//! Words that begin with `loader.` make it a worse loader than it is
//! (`arguments.rs`), so that a kernel can be tried against such.

mod clock;
mod cpus;
mod entry;
mod exit;
mod firmware;
mod lapic;
mod paging;
mod physical;
mod requests;
mod responses;
mod start_info;

use core::arch::x86_64::_rdtsc;
use core::convert::Infallible;
use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use heapless::{String, Vec};
use muster_loader::arguments::{ArgumentError, Arguments, OddRegister, kernel_words};
use muster_loader::image::{Image, ImageError, Segment};
use muster_loader::memory_map::{CAPACITY, Kind, MapError, MemoryMap, PAGE};
use muster_machine::acpi::{Cpu, Madt};
use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;
use x86_64::structures::idt::InterruptDescriptorTable;

use cpus::{DOOR, MAX_REGISTERS, Slot};
use firmware::{FirmwareError, FirmwareMemory};
use lapic::Lapic;
use paging::{Access, OutOfTables, Shape, Tables};
use requests::{DuplicateRequest, Request, Requests};
use responses::{
    Arena, BootloaderInfo, CommandLine, Done, ExecutableAddress, ExecutableFile, File, Hhdm,
    MemoryMapEntry, Mp, MpInfo, OutOfArena, PagingMode, Rsdp,
};
use start_info::{StartInfo, StartInfoError};

/// The base revision that the loader speaks, and all that it speaks.
const REVISION: u64 = 3;

/// Stacks are no smaller, in bytes; the protocol says so.
const SMALLEST_STACK: u64 = 64 * 1024;

/// Trampolines start on a page below 1 MiB, in real mode's reach.
const REAL_MODE_LIMIT: u64 = 1 << 20;

/// Bases of the direct map.
const HHDM_4_LEVELS: u64 = 0xffff_8000_0000_0000;
const HHDM_5_LEVELS: u64 = 0xff00_0000_0000_0000;

/// The maximum distance of the random base above the fixed one, in GiB: a quarter of what four
/// levels can map, so that kernels keep the rest to themselves.
const HHDM_RANDOM_GIB: u64 = 32 * 1024;

/// The most CPUs that are started.
const MAX_CPUS: usize = 1024;

/// Bytes of command line that are kept; longer ones are refused.
const LINE: usize = 4096;

/// A CPU that the loader lists to the kernel.
#[derive(Clone, Copy, Debug)]
struct Processor {
    /// ACPI processor id.
    id: u32,
    /// Local APIC id.
    apic_id: u32,
}

/// Why the kernel does not start.
enum Failure<'line> {
    Argument(ArgumentError<'line>),
    CommandLine,
    StartInfo(StartInfoError),
    NoKernel,
    Image(ImageError),
    Map(MapError),
    Duplicate(DuplicateRequest),
    Firmware(FirmwareError),
    NoLapic,
    NoFiveLevels,
    TooManyCpus,
    NoSuchCpu(u32),
    BadEntry(u64),
    Sizing(&'static str),
}

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument(error) => error.fmt(f),
            Self::CommandLine => {
                write!(
                    f,
                    "the command line is not UTF-8, or longer than {LINE} bytes"
                )
            }
            Self::StartInfo(error) => error.fmt(f),
            Self::NoKernel => f.write_str("there is no kernel; give it to QEMU with -initrd"),
            Self::Image(error) => error.fmt(f),
            Self::Map(error) => error.fmt(f),
            Self::Duplicate(error) => error.fmt(f),
            Self::Firmware(error) => error.fmt(f),
            Self::NoLapic => f.write_str("the local APIC is switched off or missing"),
            Self::NoFiveLevels => f.write_str(
                "the kernel insists on 5-level paging, but this CPU has none; use -cpu max",
            ),
            Self::TooManyCpus => write!(f, "the MADT lists more than {MAX_CPUS} CPUs"),
            Self::NoSuchCpu(id) => write!(
                f,
                "loader.unstarted or loader.silent names APIC id {id}, which the MADT does not \
                 list as a CPU other than the bootstrap CPU"
            ),
            Self::BadEntry(entry) => {
                write!(
                    f,
                    "the kernel's entry point request names {entry:#x}, which is no code"
                )
            }
            Self::Sizing(what) => write!(f, "the memory set aside for {what} is too small"),
        }
    }
}

macro_rules! failure_from {
    ($($error:ty => $variant:expr),* $(,)?) => {
        $(impl<'line> From<$error> for Failure<'line> {
            fn from(error: $error) -> Self {
                $variant(error)
            }
        })*
    };
}

failure_from! {
    ArgumentError<'line> => Self::Argument,
    StartInfoError => Self::StartInfo,
    ImageError => Self::Image,
    MapError => Self::Map,
    DuplicateRequest => Self::Duplicate,
    FirmwareError => Self::Firmware,
    OutOfTables => |_| Self::Sizing("page tables"),
    OutOfArena => |_| Self::Sizing("responses"),
}

/// Loads and starts the kernel: the bootstrap CPU comes here from `entry.s`, with the physical
/// address of the start info.
pub extern "C" fn load(start_info: u64) -> ! {
    // SAFETY: the address came in EBX, and nothing but the loader's own image
    // was written to since; `boot` is done with all but the kernel's file
    // before it allocates memory.
    let start_info = match unsafe { StartInfo::read(start_info) } {
        Ok(start_info) => start_info,
        Err(error) => exit::refuse(format_args!("{error}")),
    };
    // What the loader allocates may lie where QEMU put the line.
    let line = str::from_utf8(start_info.command_line).ok();
    let Some(line) = line.and_then(|line| String::<LINE>::try_from(line).ok()) else {
        exit::refuse(format_args!("{}", Failure::CommandLine))
    };
    match boot(start_info, &line) {
        Ok(never) => match never {},
        Err(failure) => exit::refuse(format_args!("{failure}")),
    }
}

fn boot(start_info: StartInfo, line: &str) -> Result<Infallible, Failure<'_>> {
    let arguments = Arguments::parse(line)?;
    mask_interrupt_controllers();

    // What is in use already.
    let mut map = MemoryMap::from_firmware(start_info.memory())?;
    map.claim(entry::image(), Kind::Loader)?;
    let file = start_info.kernel.ok_or(Failure::NoKernel)?;
    let file_address = file.as_ptr().addr() as u64;
    map.claim(
        file_address..file_address + file.len() as u64,
        Kind::Executable,
    )?;
    if arguments.awkward_memory_map {
        map.make_awkward()?;
    }

    // The kernel, and what it asks for.
    let image = Image::parse(file)?;
    let base = map.allocate(image.size(), image.align, physical::LIMIT, Kind::Executable)?;
    load_image(&image, base);
    // SAFETY: the range was just allocated, and only `requests` uses it now.
    let mut requests = unsafe { Requests::find(base..base + image.size()) }?;
    requests.deny(|feature| arguments.denies(feature));
    requests.answer_base_revision(REVISION.min(arguments.revision.unwrap_or(REVISION)));
    let kernel_entry = match requests.field(Request::EntryPoint, 0) {
        Some(entry) if !image.is_executable(entry) => return Err(Failure::BadEntry(entry)),
        Some(entry) => entry,
        None => image.entry,
    };

    // The machine.
    let shape = shape(&requests, arguments.levels)?;
    let hhdm = hhdm(shape, arguments.random_hhdm);
    // SAFETY: apart from its own image, which is taken, the loader writes only to what it allocates.
    let firmware = unsafe { FirmwareMemory::new(&map) };
    let rsdp = firmware.rsdp(start_info.rsdp);
    let x2apic = requests
        .field(Request::Mp, 0)
        .is_some_and(|flags| flags & MP_X2APIC != 0)
        && CpuId::new()
            .get_feature_info()
            .is_some_and(|info| info.has_x2apic());
    // SAFETY: CPUID was asked; the boot tables map the registers; the loader
    // is alone with the local APIC.
    let lapic = unsafe { Lapic::current(x2apic) }.ok_or(Failure::NoLapic)?;
    let bsp = cpus::own_apic_id();
    let processors = match requests.has(Request::Mp) {
        true => listed_processors(&firmware.madt(rsdp)?, bsp, lapic, &arguments)?,
        false => Vec::from([Processor {
            id: 0,
            apic_id: bsp,
        }]),
    };

    // All the memory that it takes, the tables last: they map the rest.
    let trampoline = map.allocate(PAGE, PAGE, REAL_MODE_LIMIT, Kind::Loader)?;
    let arena_size = ARENA + ARENA_PER_CPU * processors.len() as u64;
    let arena = map.allocate(arena_size, PAGE, physical::LIMIT, Kind::Loader)?;
    // SAFETY: the range was just allocated for it.
    let mut arena = unsafe { Arena::new(arena..arena + arena_size, hhdm) };
    let stack_size = requests
        .field(Request::StackSize, 0)
        .unwrap_or(0)
        .max(SMALLEST_STACK)
        .checked_next_multiple_of(PAGE)
        .unwrap_or(u64::MAX);
    let mut slots = Vec::<Slot, MAX_CPUS>::new();
    for Processor { id, apic_id } in processors {
        let stack = map.allocate(stack_size, PAGE, physical::LIMIT, Kind::Loader)?;
        let listed_id = match arguments.swapped {
            Some((first, second)) if apic_id == first => second,
            Some((first, second)) if apic_id == second => first,
            _ => apic_id,
        };
        let info = arena.place(MpInfo::new(id, listed_id))?.address;
        let goto_address = match apic_id {
            id if id == bsp => address_of(&KERNEL_ENTRY),
            id if arguments.silent.contains(&id) => address_of(&NEVER),
            _ => info + MpInfo::GOTO_ADDRESS,
        };
        // SAFETY: the stack was allocated for this CPU, and its size is in whole
        // pages; the goto address lies in the arena or in the
        // loader's image, both of which the door tables map; what comes to
        // stand there is the kernel's entry, or by the kernel's promise
        // another.
        let slot = unsafe { Slot::new(apic_id, hhdm + stack + stack_size, info, goto_address) };
        slots.push(slot).map_err(|_| Failure::TooManyCpus)?;
    }
    let slots = arena.place_all(slots)?;
    let mtrrs = cpus::own_mtrrs().ok_or(Failure::Sizing("registers"))?;
    let registers = arena.place_all(mtrrs.into_iter().chain(arguments.odd_registers.clone()))?;
    let idt = arena.place(cpus::parked_idt())?.address;
    let pool_size = PAGE * tables_needed(shape, &map, &image);
    let pool = map.allocate(pool_size, PAGE, physical::LIMIT, Kind::Loader)?;
    // SAFETY: the range was just allocated for it; the boot tables are loaded.
    let mut tables = unsafe { Tables::new(shape, pool..pool + pool_size) }?;
    let map = map;

    // The kernel's tables, and then the door's.
    map_kernel(&mut tables, &map, hhdm, &image, base)?;
    let kernel_root = tables.root();
    map_door(&mut tables, lapic)?;
    // Relaxed, as the other CPUs are started after this; the last one Release, see `Door`.
    KERNEL_ENTRY.store(kernel_entry, Ordering::Relaxed);
    DOOR.root.store(tables.root() as u32, Ordering::Relaxed);
    DOOR.cr4.store(shape.cr4(), Ordering::Relaxed);
    DOOR.slots.store(slots.address, Ordering::Relaxed);
    DOOR.count
        .store(slots.value.len() as u64, Ordering::Relaxed);
    DOOR.kernel_root.store(kernel_root, Ordering::Relaxed);
    DOOR.hhdm.store(hhdm, Ordering::Relaxed);
    DOOR.idt.store(idt, Ordering::Relaxed);
    DOOR.registers.store(registers.address, Ordering::Relaxed);
    DOOR.register_count
        .store(registers.value.len() as u64, Ordering::Relaxed);
    DOOR.x2apic.store(x2apic, Ordering::Release);

    // The other CPUs.
    load_trampoline(trampoline);
    cpus::start(slots.value, bsp, lapic, trampoline);
    let here = slots
        .value
        .iter()
        .filter(|slot| slot.apic_id == bsp || slot.has_answered());

    // The answers.
    let flags = if matches!(lapic, Lapic::X2Apic) {
        MP_X2APIC as u32
    } else {
        0
    };
    let cpus = arena.place_all(here.map(|slot| slot.info))?;
    let count = cpus.value.len() as u64;
    let mp = Mp {
        revision: 0,
        flags,
        bsp_apic_id: bsp,
        count,
        cpus: cpus.address,
    };
    respond(&mut requests, &mut arena, Request::Mp, mp)?;
    let offset = hhdm;
    respond(
        &mut requests,
        &mut arena,
        Request::Hhdm,
        Hhdm {
            revision: 0,
            offset,
        },
    )?;
    respond_words(&mut requests, &mut arena, &map, line)?;
    if let Some(address) = rsdp {
        respond(
            &mut requests,
            &mut arena,
            Request::Rsdp,
            Rsdp {
                revision: 0,
                address,
            },
        )?;
    }
    let place = ExecutableAddress {
        revision: 0,
        physical_base: base,
        virtual_base: image.start(),
    };
    respond(&mut requests, &mut arena, Request::ExecutableAddress, place)?;
    let mode = u64::from(shape.levels == 5);
    respond(
        &mut requests,
        &mut arena,
        Request::PagingMode,
        PagingMode { revision: 0, mode },
    )?;
    respond(
        &mut requests,
        &mut arena,
        Request::StackSize,
        Done { revision: 0 },
    )?;
    respond(
        &mut requests,
        &mut arena,
        Request::EntryPoint,
        Done { revision: 0 },
    )?;
    let file = (hhdm + file_address, file.len() as u64);
    respond_file(&mut requests, &mut arena, file, line)?;

    if arguments.verbose {
        exit::say(format_args!(
            "kernel at {base:#x}, direct map at {hhdm:#x}, {} levels, {count} of {} CPUs, \
             {} memory map entries",
            shape.levels,
            slots.value.len(),
            map.entries().len()
        ));
    }
    // SAFETY: the boot tables are loaded, and the door was just set.
    unsafe { entry::enter_door() }
}

/// Bit of the MP request's and response's flags.
const MP_X2APIC: u64 = 1;

/// Bytes for responses: the memory map's entries and their pointers at worst,
/// and as much again for the strings, the IDT, the CPUs' registers and all the rest.
const ARENA: u64 = 2 * CAPACITY as u64 * 32;
const REGISTERS: usize = 2 * MAX_REGISTERS * size_of::<OddRegister>();
const _: () =
    assert!(CAPACITY * 32 >= 2 * LINE + size_of::<InterruptDescriptorTable>() + REGISTERS + 1024);

/// Bytes for each CPU: slot, info, pointer.
const ARENA_PER_CPU: u64 = 128;

/// The bootstrap CPU's goto address.
static KERNEL_ENTRY: AtomicU64 = AtomicU64::new(0);

/// The goto address of a silent CPU: it is never written.
static NEVER: AtomicU64 = AtomicU64::new(0);

fn address_of(word: &'static AtomicU64) -> u64 {
    word.as_ptr().expose_provenance() as u64
}

/// Masks the interrupt controllers, both 8259s, for the kernel. The I/O APICs are still as reset
/// leaves them, all entries masked.
fn mask_interrupt_controllers() {
    for port in [0x21, 0xa1] {
        // SAFETY: these are the mask registers of the two 8259s, or ports that
        // nothing listens to.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// Copies the segments to `base`, and clears what the file does not give.
fn load_image(image: &Image, base: u64) {
    // SAFETY: the caller allocated the range for this, and nothing uses it yet.
    let memory = unsafe { physical::bytes_mut(base, image.size()) }.unwrap_or_default();
    memory.fill(0);
    for segment in image.segments() {
        let start = (segment.address - image.start()) as usize;
        let place = memory.get_mut(start..start + segment.data.len());
        place.unwrap_or_default().copy_from_slice(segment.data);
    }
}

/// Copies the trampoline to its page below 1 MiB.
fn load_trampoline(page: u64) {
    let code = entry::trampoline();
    // SAFETY: the caller allocated the page for this.
    let place = unsafe { physical::bytes_mut(page, code.len() as u64) };
    place.unwrap_or_default().copy_from_slice(code);
}

/// Returns the paging mode that suits the kernel's limits and the CPU: the one chosen for this
/// boot, as Limine's `paging_mode` option does, or else the kernel's wish.
fn shape(requests: &Requests, chosen: Option<u64>) -> Result<Shape, Failure<'static>> {
    let cpuid = CpuId::new();
    let has_la57 = cpuid
        .get_extended_feature_info()
        .is_some_and(|info| info.has_la57());
    let gigabyte_pages = cpuid
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|info| info.has_1gib_pages());
    // Mode 0 is four levels, 1 is five. The limits come with revision 1.
    let wish = requests.field(Request::PagingMode, 0).unwrap_or(0);
    let (max, min) = match requests.revision(Request::PagingMode) {
        Some(1..) => (
            requests.field(Request::PagingMode, 1).unwrap_or(wish),
            requests.field(Request::PagingMode, 2).unwrap_or(0),
        ),
        _ => (wish, 0),
    };
    if min > u64::from(has_la57) {
        return Err(Failure::NoFiveLevels);
    }
    let wish = chosen.map_or(wish, |levels| levels - 4);
    let five = has_la57 && wish.clamp(min, max.max(min)) >= 1;
    Ok(Shape {
        levels: if five { 5 } else { 4 },
        gigabyte_pages,
    })
}

/// Returns the base of the direct map.
fn hhdm(shape: Shape, random: bool) -> u64 {
    let base = if shape.levels == 5 {
        HHDM_5_LEVELS
    } else {
        HHDM_4_LEVELS
    };
    if !random {
        return base;
    }
    // SAFETY: every 64-bit CPU has the timestamp counter.
    let seed = unsafe { _rdtsc() };
    // The high bits of a product with a large odd number (2^64 divided by the
    // golden ratio) depend on all bits of the seed.
    let gib = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % HHDM_RANDOM_GIB + 1;
    base + (gib << 30)
}

/// Returns the bootstrap CPU, and those in the MADT that the loader is to start.
fn listed_processors<'line>(
    madt: &Madt<&[u8]>,
    bsp: u32,
    lapic: Lapic,
    arguments: &Arguments,
) -> Result<Vec<Processor, MAX_CPUS>, Failure<'line>> {
    let startable = || madt.cpus().filter(Cpu::may_be_started);
    let is_other = |id| id != bsp && startable().any(|cpu| cpu.lapic_id == id);
    for &id in arguments.unstarted.iter().chain(&arguments.silent) {
        if !is_other(id) {
            return Err(Failure::NoSuchCpu(id));
        }
    }
    let mut listed = Vec::<Processor, MAX_CPUS>::new();
    for cpu in startable() {
        let id = cpu.lapic_id;
        let is_wanted = id == bsp || lapic.reaches(id) && !arguments.unstarted.contains(&id);
        // One that stands there twice is started once.
        if is_wanted && !listed.iter().any(|other| other.apic_id == id) {
            let processor = Processor {
                id: cpu.acpi_id,
                apic_id: id,
            };
            listed.push(processor).map_err(|_| Failure::TooManyCpus)?;
        }
    }
    if !listed.iter().any(|processor| processor.apic_id == bsp) {
        let own = Processor {
            id: 0,
            apic_id: bsp,
        };
        listed.insert(0, own).map_err(|_| Failure::TooManyCpus)?;
    }
    Ok(listed)
}

/// Returns whether the direct map holds memory of this kind: at base revision 3, only
/// what a kernel may use, now or later, and itself.
const fn in_direct_map(kind: Kind) -> bool {
    matches!(kind, Kind::Usable | Kind::Loader | Kind::Executable)
}

/// Returns the maximum number of tables that [`map_kernel`] and [`map_door`] can take.
fn tables_needed(shape: Shape, map: &MemoryMap, image: &Image) -> u64 {
    let direct = map
        .entries()
        .iter()
        .filter(|entry| in_direct_map(entry.kind));
    // The pool itself is not yet in the map, and cuts an entry in three.
    let pool = [0, 0];
    let segments = image.segments().iter().map(|segment| segment.size);
    let door = [0, 0];
    let roots = 2;
    let ranges = direct
        .map(|entry| entry.length)
        .chain(pool)
        .chain(segments)
        .chain(door);
    // The image may lie such that no large page fits.
    shape.tables_for(ranges) + image.size().div_ceil(2 << 20) + roots
}

/// Maps what the protocol says: the direct map, and the kernel at its address.
fn map_kernel(
    tables: &mut Tables,
    map: &MemoryMap,
    hhdm: u64,
    image: &Image,
    base: u64,
) -> Result<(), OutOfTables> {
    for entry in map
        .entries()
        .iter()
        .filter(|entry| in_direct_map(entry.kind))
    {
        tables.map(hhdm + entry.base, entry.base, entry.length, Access::ALL)?;
    }
    for segment in image.segments() {
        let Segment {
            writable,
            executable,
            ..
        } = *segment;
        let access = Access {
            writable,
            executable,
            device: false,
        };
        let (start, length) = (segment.start(), segment.end() - segment.start());
        tables.map(start, base + (start - image.start()), length, access)?;
    }
    Ok(())
}

/// Maps, on a root of its own, what the CPUs need to come in.
fn map_door(tables: &mut Tables, lapic: Lapic) -> Result<(), OutOfTables> {
    tables.fork()?;
    let loader = entry::image();
    tables.map(
        loader.start,
        loader.start,
        loader.end - loader.start,
        Access::ALL,
    )?;
    if let Lapic::XApic(registers) = lapic {
        let access = Access {
            writable: true,
            executable: false,
            device: true,
        };
        tables.map(registers, registers, PAGE, access)?;
    }
    Ok(())
}

/// Places a response and answers the request with it, if there is one.
fn respond<T: 'static>(
    requests: &mut Requests,
    arena: &mut Arena,
    request: Request,
    response: T,
) -> Result<(), OutOfArena> {
    if requests.has(request) {
        requests.answer(request, arena.place(response)?.address);
    }
    Ok(())
}

/// Answers with what is made of strings and lists: the loader's name, the
/// kernel's command line, the memory map.
fn respond_words(
    requests: &mut Requests,
    arena: &mut Arena,
    map: &MemoryMap,
    line: &str,
) -> Result<(), OutOfArena> {
    let name = arena.place_words(["Muster loader"])?;
    let version = arena.place_words([env!("CARGO_PKG_VERSION")])?;
    let info = BootloaderInfo {
        revision: 0,
        name,
        version,
    };
    respond(requests, arena, Request::BootloaderInfo, info)?;

    let line = arena.place_words(kernel_words(line))?;
    respond(
        requests,
        arena,
        Request::CommandLine,
        CommandLine { revision: 0, line },
    )?;

    let entries = map.entries().iter().map(|entry| MemoryMapEntry {
        base: entry.base,
        length: entry.length,
        kind: entry.kind as u64,
    });
    let first = arena.place_all(entries)?.address;
    let count = map.entries().len() as u64;
    let size = size_of::<MemoryMapEntry>() as u64;
    let entries = arena
        .place_all((0..count).map(|index| first + index * size))?
        .address;
    let response = responses::MemoryMapResponse {
        revision: 0,
        count,
        entries,
    };
    respond(requests, arena, Request::MemoryMap, response)
}

/// Answers with the kernel's file, given by address and size.
fn respond_file(
    requests: &mut Requests,
    arena: &mut Arena,
    (address, size): (u64, u64),
    line: &str,
) -> Result<(), OutOfArena> {
    let path = arena.place_words(["/kernel"])?;
    let string = arena.place_words(kernel_words(line))?;
    let file = arena.place(File::new(address, size, path, string))?.address;
    let response = ExecutableFile { revision: 0, file };
    respond(requests, arena, Request::ExecutableFile, response)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let message = info.message();
    match info.location() {
        Some(location) => exit::refuse(format_args!("internal error: {message} ({location})")),
        None => exit::refuse(format_args!("internal error: {message}")),
    }
}
