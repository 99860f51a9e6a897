//! The CPUs: how they are started side by side, where they wait for the
//! kernel, and how they go to it.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use heapless::Vec;
use muster_loader::arguments::OddRegister;
use muster_machine::mtrr::{self, IA32_MTRR_DEF_TYPE, IA32_MTRRCAP};
use raw_cpuid::CpuId;
use x86_64::VirtAddr;
use x86_64::instructions::{hlt, interrupts, nop, tables};
use x86_64::registers::model_specific::{FsBase, GsBase, KernelGsBase, Msr};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::idt::InterruptDescriptorTable;

use super::clock::Clock;
use super::entry;
use super::lapic::{Lapic, TIMER_VECTOR};

/// The most registers that a CPU is given before it goes to the kernel.
pub const MAX_REGISTERS: usize = 64;

/// IA32_PAT, and the value that the protocol fixes: WB, WT, UC-, UC, WP, WC.
const PAT: Msr = Msr::new(0x277);
const PAT_VALUE: u64 = 0x0000_0105_0007_0406;

/// A CPU that has not answered for so long is left out, in milliseconds.
const TIMEOUT: u64 = 1000;

/// How often a parked CPU looks, in ticks of the APIC's clock for each CPU
/// that there is: QEMU's clock runs at 1 GHz, so together they look 4000 times
/// a second, however many they are. Spinning would be simpler, but where the
/// CPUs are threads that share a few real ones, it takes the time away from
/// the one that has work to do: with 64 CPUs on 2, the kernel then comes three
/// times later and is four times slower.
const TICKS_PER_CPU: u32 = 250_000;

/// The data that every CPU needs when it enters. Written once, before the first CPU is started,
/// which sees all of it: so all loads are Relaxed, and the last store is Release.
#[repr(C)]
pub struct Door {
    /// Root of the door tables: the kernel's, plus the loader's image and the
    /// local APIC at their physical addresses.
    pub root: AtomicU32,
    /// CR4 to enter 64-bit mode with.
    pub cr4: AtomicU32,
    /// Address of the slots in the direct map.
    pub slots: AtomicU64,
    /// Number of slots.
    pub count: AtomicU64,
    /// Root of the kernel's tables.
    pub kernel_root: AtomicU64,
    /// Base of the direct map.
    pub hhdm: AtomicU64,
    /// Address of the parked CPUs' IDT in the direct map.
    pub idt: AtomicU64,
    /// Whether the kernel wants x2APIC mode.
    pub x2apic: AtomicBool,
    /// Address in the direct map of the [`OddRegister`]s that CPUs are given before they go to the kernel.
    pub registers: AtomicU64,
    /// Number of those.
    pub register_count: AtomicU64,
}

/// The one door.
pub static DOOR: Door = Door {
    root: AtomicU32::new(0),
    cr4: AtomicU32::new(0),
    slots: AtomicU64::new(0),
    count: AtomicU64::new(0),
    kernel_root: AtomicU64::new(0),
    hhdm: AtomicU64::new(0),
    idt: AtomicU64::new(0),
    x2apic: AtomicBool::new(false),
    registers: AtomicU64::new(0),
    register_count: AtomicU64::new(0),
};

/// One CPU's slot, found by its APIC id.
#[repr(C)]
pub struct Slot {
    /// Local APIC id.
    pub apic_id: u32,
    state: AtomicU32,
    /// Top of its stack, in the direct map.
    pub stack: u64,
    /// What the kernel gets in RDI.
    pub info: u64,
    goto_address: u64,
}

/// Not heard of yet.
const WAITING: u32 = 0;
/// In the loader, on its own stack.
const ANSWERED: u32 = 1;
/// Given up.
const DROPPED: u32 = 2;

impl Slot {
    /// Creates a slot for a CPU that jumps to `goto_address`, as soon as that is not 0.
    ///
    /// # Safety
    /// 1. `stack` is the top of memory that is this CPU's alone, in the direct
    ///    map and 16-byte aligned.
    /// 2. The door tables map an [`AtomicU64`] at `goto_address`, and it stays.
    /// 3. What is stored there is 0 or an address where the kernel can be
    ///    entered with `info` in RDI.
    pub const unsafe fn new(apic_id: u32, stack: u64, info: u64, goto_address: u64) -> Self {
        Self {
            apic_id,
            state: AtomicU32::new(WAITING),
            stack,
            info,
            goto_address,
        }
    }

    /// Returns whether the CPU has come to the loader.
    pub fn has_answered(&self) -> bool {
        self.state.load(Ordering::Acquire) == ANSWERED
    }

    /// Changes the state from waiting, once. AcqRel: with the answer comes all that the other side wrote before.
    fn change(&self, to: u32) -> bool {
        self.state
            .compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// Returns the APIC id of the CPU that this runs on. `entry.s` does the same.
pub fn own_apic_id() -> u32 {
    let cpuid = CpuId::new();
    let extended = cpuid
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next());
    extended.map(|level| level.x2apic_id()).unwrap_or_else(|| {
        cpuid
            .get_feature_info()
            .map_or(0, |info| info.initial_local_apic_id().into())
    })
}

/// Starts the CPUs of all `slots` at once, but for the bootstrap CPU. Those
/// that don't answer within a second are dropped: they are put back to wait for
/// a start that never comes.
pub fn start(slots: &[Slot], bsp: u32, lapic: Lapic, trampoline: u64) {
    let others = || slots.iter().filter(|slot| slot.apic_id != bsp);
    let silent = || others().filter(|slot| !slot.has_answered());
    if others().next().is_none() {
        return;
    }
    for slot in others() {
        lapic.send_init(slot.apic_id);
    }
    let clock = Clock::calibrate();
    // A startup interrupt that comes before the INIT is dealt with is lost, on
    // a busy host long after it was sent. One that comes too often does no
    // harm, as a CPU that has started ignores it.
    let mut next = 0;
    while clock.milliseconds() < TIMEOUT && silent().next().is_some() {
        if clock.milliseconds() >= next {
            silent().for_each(|slot| lapic.send_startup(slot.apic_id, trampoline));
            next = next * 2 + 1;
        }
        core::hint::spin_loop();
    }
    for slot in others() {
        if slot.change(DROPPED) {
            lapic.send_init(slot.apic_id);
        }
    }
}

/// Parks a CPU: all come here, each on its own stack, on the door tables.
pub extern "C" fn arrive(slot: &'static Slot) -> ! {
    set_protocol_state();
    let entry = if slot.change(ANSWERED) {
        park(slot)
    } else {
        stop()
    };
    set_registers(slot.apic_id);
    let hhdm = DOOR.hhdm.load(Ordering::Relaxed);
    let root = DOOR.kernel_root.load(Ordering::Relaxed);
    // SAFETY: the door tables are the kernel's and more, and both have the
    // whole direct map, in which the loader's image and the stack lie; the
    // entry is the kernel's word (see `Slot::new`); interrupts are off.
    unsafe { entry::leave(hhdm, root, slot.stack, entry, slot.info) }
}

fn set_protocol_state() {
    let mut pat = PAT;
    // SAFETY: every 64-bit CPU has the PAT. The types of the entries that the
    // door tables use, 0 and 3, are the same as before.
    unsafe { pat.write(PAT_VALUE) };
    FsBase::write(VirtAddr::zero());
    GsBase::write(VirtAddr::zero());
    KernelGsBase::write(VirtAddr::zero());
}

/// Returns the MTRRs of this CPU, the bootstrap CPU, to be given to the others, as Limine does: INIT leaves
/// a CPU's MTRRs as they are (Intel SDM vol. 3A, table 10-1), but QEMU clears them. `None` if there are more
/// than can be kept.
pub fn own_mtrrs() -> Option<Vec<OddRegister, MAX_REGISTERS>> {
    let mut mtrrs = Vec::new();
    let has_mtrrs = CpuId::new()
        .get_feature_info()
        .is_some_and(|info| info.has_mtrr());
    if !has_mtrrs {
        return Some(mtrrs);
    }
    // SAFETY: the CPU has MTRRs, and IA32_MTRRCAP says which; reading has no side effect.
    let read = |register| unsafe { Msr::new(register).read() };
    let settable = mtrr::registers(read(IA32_MTRRCAP))
        .filter(|register| ![IA32_MTRRCAP, IA32_MTRR_DEF_TYPE].contains(register));
    // The last one switches the others on.
    for register in settable.chain([IA32_MTRR_DEF_TYPE]) {
        let value = read(register);
        let odd = OddRegister {
            apic_id: None,
            register,
            value,
        };
        mtrrs.push(odd).ok()?;
    }
    Some(mtrrs)
}

/// Gives this CPU the registers that it is to have. On a machine with caches it would take the steps of
/// Intel SDM vol. 3A, 12.11.8; this loader runs where there are none that follow the MTRRs, or where the
/// values are there already.
fn set_registers(apic_id: u32) {
    let first = DOOR.registers.load(Ordering::Relaxed) as usize;
    let count = DOOR.register_count.load(Ordering::Relaxed) as usize;
    // SAFETY: `count` of them are placed there, in the arena for good, and never written again; the door tables
    // have the direct map.
    let registers: &[OddRegister] =
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(first), count) };
    for odd in registers {
        if odd.apic_id.is_some_and(|id| id != apic_id) {
            continue;
        }
        let mut register = Msr::new(odd.register);
        // SAFETY: an MTRR that all CPUs have, with the bootstrap CPU's value; or what `loader.msr` asks
        // for, and then whoever does has to expect what comes of it.
        unsafe {
            if register.read() != odd.value {
                register.write(odd.value);
            }
        }
    }
}

/// Returns the IDT of a parked CPU: its timer wakes it; a non-maskable one or an exception stops
/// it.
pub fn parked_idt() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    // SAFETY: the handlers return, or don't, as their vectors need, and lie in
    // the loader's image, which the door tables map at its own address.
    unsafe {
        idt.non_maskable_interrupt
            .set_handler_addr(entry::stop_handler());
        idt.machine_check.set_handler_addr(entry::stop_handler());
        idt.general_protection_fault
            .set_handler_addr(entry::stop_handler());
        idt.page_fault.set_handler_addr(entry::stop_handler());
        idt[TIMER_VECTOR].set_handler_addr(entry::wake_handler());
    }
    idt
}

fn load_idt() {
    let address = DOOR.idt.load(Ordering::Relaxed);
    let limit = size_of::<InterruptDescriptorTable>() as u16 - 1;
    // SAFETY: the address is that of a table made by `parked_idt`, which is
    // never written again and which the door tables map; it is canonical for
    // them (`VirtAddr::new` knows 4 levels only).
    unsafe {
        let base = VirtAddr::new_unsafe(address);
        tables::lidt(&DescriptorTablePointer { limit, base });
    }
}

/// Waits until the kernel stores an address to jump to.
fn park(slot: &Slot) -> u64 {
    let goto_address = core::ptr::with_exposed_provenance::<AtomicU64>(slot.goto_address as usize);
    // Acquire: with the address comes all that the kernel wrote before.
    // SAFETY: the door tables, which are loaded, map it (see `Slot::new`).
    let target = || unsafe { &*goto_address }.load(Ordering::Acquire);
    // SAFETY: whether the CPU has x2APIC mode was checked before the door was
    // set; the door tables map the registers; the kernel leaves the local APIC
    // of a CPU that it does not run on alone.
    let lapic = unsafe { Lapic::current(DOOR.x2apic.load(Ordering::Relaxed)) };
    let released = target();
    if released != 0 {
        return released;
    }
    let Some(lapic) = lapic else { stop() };
    load_idt();
    let count = DOOR.count.load(Ordering::Relaxed) as u32;
    let spurious = lapic.start_timer(count.saturating_mul(TICKS_PER_CPU));
    let released = loop {
        match target() {
            0 => {
                interrupts::enable_and_hlt();
                interrupts::disable();
                lapic.end_of_interrupt();
            }
            released => break released,
        }
    };
    lapic.stop_timer();
    // One interrupt may have come since; the kernel must not find it.
    interrupts::enable();
    nop();
    interrupts::disable();
    lapic.end_of_interrupt();
    lapic.restore(spurious);
    released
}

fn stop() -> ! {
    loop {
        hlt();
    }
}
