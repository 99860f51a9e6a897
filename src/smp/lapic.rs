//! The local APIC: interrupts from one CPU to another, and each CPU's timer. It stays in the mode that
//! firmware and loader left it in: both are supported alike.

use core::sync::atomic::{AtomicU32, Ordering};

use muster_machine::acpi::NmiLine;
use muster_machine::lapic::{
    BASE_IS_BSP, Command, DIVIDE_BY_1, Errors, IA32_TSC_DEADLINE, LVT_ACTIVE_LOW, LVT_DELIVERY,
    LVT_MASKED, LVT_NMI, LVT_SETTINGS, LVT_SMI, LVT_TSC_DEADLINE, Register, SOFTWARE_ENABLE,
    has_entry, in_service, is_pending, xapic_id,
};
use muster_percpu::cpu_local;
use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::{ApicBase, Msr};

use super::cpu::Cpu;
use crate::arch::apic::{self, ApicRegisters, ENTRY_COUNT};
use crate::arch::clock::Deadline;
use crate::arch::vectors::{ERROR_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR, WAKE_VECTOR};

/// Returns the LAPIC id of the CPU this runs on, from CPUID: that needs no mapping and so works at
/// any time.
pub fn own_id() -> u32 {
    let cpuid = CpuId::new();
    let topology = cpuid
        .get_extended_topology_info()
        .and_then(|mut levels| levels.next())
        .map(|level| level.x2apic_id());
    let initial = || {
        cpuid
            .get_feature_info()
            .map(|leaf| u32::from(leaf.initial_local_apic_id()))
    };
    topology.or_else(initial).unwrap_or(0)
}

/// Returns the id in this CPU's local APIC, by which interrupts reach it. `None`: there is none, or it
/// can't be reached yet.
pub fn registered_id() -> Option<u32> {
    let registers = registers()?;
    let id = registers.read(Register::Id);
    Some(match registers.are_msrs() {
        true => id,
        false => xapic_id(id),
    })
}

/// The switch of the APIC, and the entries of the local vector table but the timer's, each of which is set
/// on every CPU: the switch first, as the others stay masked while it is off (Intel SDM vol. 3A, 11.4.7.2).
const ENTRIES: [(Register, &str); ENTRY_COUNT] = [
    (Register::Spurious, "its switch"),
    (Register::LvtLint0, "LINT0"),
    (Register::LvtLint1, "LINT1"),
    (Register::LvtError, "errors"),
    (Register::LvtPerformance, "performance counters"),
    (Register::LvtThermal, "temperature"),
    (Register::LvtCorrected, "corrected machine checks"),
];

/// The settings of the BSP's two lines: the MADT says at which NMIs arrive. Relaxed: only the BSP
/// stores and loads them.
static LINES: [AtomicU32; 2] = [const { AtomicU32::new(LVT_MASKED) }; 2];

/// An entry of this CPU's local vector table, as it is and as it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LvtEntry {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub found: u32,
    /// The value that was set.
    pub wanted: u32,
}

impl LvtEntry {
    /// Returns the name of each, in the order of [`LvtEntry::all`].
    pub fn names() -> impl Iterator<Item = &'static str> {
        ENTRIES.into_iter().map(|(_, name)| name)
    }

    /// Reads the entries of this CPU, but for the timer's; an older local APIC does not have the last
    /// ones. Returns none where there is no local APIC.
    pub fn all() -> impl Iterator<Item = Self> {
        let registers = registers();
        let there = registers.into_iter().flat_map(|registers| {
            let version = registers.read(Register::Version);
            ENTRIES
                .into_iter()
                .filter(move |&(register, _)| has_entry(version, register))
                .map(move |(register, name)| (registers, register, name))
        });
        there.map(|(registers, register, name)| {
            let found = registers.read(register) & LVT_SETTINGS;
            Self {
                name,
                found,
                wanted: wanted(register, found),
            }
        })
    }
}

/// Returns the value that an entry of this CPU must have, which is `found` now: masked, but for the
/// APIC's errors, the BSP's NMI lines, and interrupts of the CPU's condition that the firmware handles
/// itself.
fn wanted(register: Register, found: u32) -> u32 {
    let is_bsp = || ApicBase::read_raw().1 & BASE_IS_BSP != 0;
    let line = |number: usize| match is_bsp() {
        true => LINES[number].load(Ordering::Relaxed),
        false => LVT_MASKED,
    };
    match register {
        Register::Spurious => SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR),
        Register::LvtLint0 => line(0),
        Register::LvtLint1 => line(1),
        Register::LvtError => u32::from(ERROR_VECTOR),
        _ if found & LVT_DELIVERY == LVT_SMI => found,
        _ => LVT_MASKED,
    }
}

/// Logs the mode of this CPU's APIC.
pub fn log_mode() {
    if let Some(registers) = registers() {
        log::debug!(
            "local APIC in {} mode",
            match registers.are_msrs() {
                true => "x2APIC",
                false => "xAPIC",
            }
        );
    }
}

cpu_local! {
    /// How the CPU reaches the registers of its local APIC.
    static MODE: apic::Mode = apic::Mode::new();
}

/// Enables this CPU's APIC, with all its interrupts: from other CPUs, its own timer and errors, and
/// the machine's NMI lines. Only the BSP passes `nmi_lines`, so that one NMI is one report. All other
/// entries of the local vector table are masked: the legacy PIC's line, and those of the CPU's
/// condition, unless the firmware gets those as SMIs.
pub fn enable(nmi_lines: &[NmiLine]) {
    let Some(registers) = ApicRegisters::find() else {
        return;
    };
    Cpu::with_own(&MODE, |mode| mode.note(registers));
    for line in nmi_lines {
        if let Some(entry) = LINES.get(usize::from(line.lint)) {
            let polarity = if line.is_active_low {
                LVT_ACTIVE_LOW
            } else {
                0
            };
            entry.store(LVT_NMI | polarity, Ordering::Relaxed);
        }
    }
    // First: while the APIC is off it keeps every entry masked (Intel SDM vol. 3A, 11.4.7.2).
    write(
        registers,
        Register::Spurious,
        SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR),
    );
    write(registers, Register::TaskPriority, 0);
    write(
        registers,
        Register::LvtTimer,
        LVT_MASKED | u32::from(TIMER_VECTOR),
    );
    // Errors from before the kernel's entry are not this kernel's.
    take_errors();
    let version = registers.read(Register::Version);
    for (register, _) in ENTRIES {
        if has_entry(version, register) {
            write(
                registers,
                register,
                wanted(register, registers.read(register)),
            );
        }
    }
}

/// Reads and clears the errors of this CPU's APIC.
pub fn take_errors() -> Errors {
    Errors(registers().map_or(0, |registers| {
        // The register shows what there was up to the last write (Intel SDM vol. 3A, 11.5.3).
        write(registers, Register::ErrorStatus, 0);
        registers.read(Register::ErrorStatus)
    }))
}

/// The effect of a countdown's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fires {
    /// One interrupt.
    Once,
    /// Nothing: the counter is only read.
    Never,
}

/// Starts this CPU's countdown from `count`. Returns `None` if there is no APIC.
pub fn arm_counter(count: u32, fires: Fires) -> Option<()> {
    let registers = registers()?;
    let masked = match fires {
        Fires::Once => 0,
        Fires::Never => LVT_MASKED,
    };
    write(registers, Register::Divide, DIVIDE_BY_1);
    write(
        registers,
        Register::LvtTimer,
        masked | u32::from(TIMER_VECTOR),
    );
    write(registers, Register::InitialCount, count);
    Some(())
}

/// Reads this CPU's countdown. Returns `None` if there is no APIC.
pub fn counter() -> Option<u32> {
    Some(registers()?.read(Register::CurrentCount))
}

/// Reads the version register of this CPU's APIC. Returns `None` if there is none.
#[cfg(feature = "selftest")]
pub fn version() -> Option<u32> {
    Some(registers()?.read(Register::Version))
}

/// Arms this CPU's timer to fire once the TSC has reached `stamp`. Call only where CPUID has it.
pub fn arm_deadline(stamp: u64) {
    let Some(registers) = registers() else {
        return;
    };
    write(
        registers,
        Register::LvtTimer,
        LVT_TSC_DEADLINE | u32::from(TIMER_VECTOR),
    );
    // SAFETY: the MSR exists, as the caller knows, and its one effect is the timer's interrupt,
    // which has a handler. The fence: a write to the xAPIC's page is not ordered with one to an
    // MSR, and before the mode is set this one is lost (Intel SDM vol. 3A, 11.5.4.1).
    unsafe {
        core::arch::asm!("mfence", options(nostack, preserves_flags));
        Msr::new(IA32_TSC_DEADLINE).write(stamp.max(1));
    }
}

/// Disarms this CPU's timer. An interrupt that is pending still comes.
pub fn disarm() {
    if let Some(registers) = registers() {
        write(
            registers,
            Register::LvtTimer,
            LVT_MASKED | u32::from(TIMER_VECTOR),
        );
        write(registers, Register::InitialCount, 0);
    }
}

/// Returns whether this CPU's APIC has an interrupt of this vector in service.
pub fn is_in_service(vector: u8) -> bool {
    let (register, bit) = in_service(vector);
    registers()
        .is_some_and(|registers| registers.read_nth(Register::InService, register) & bit != 0)
}

/// Returns whether an interrupt of this vector has come to this CPU's APIC and waits to be taken.
pub fn is_requested(vector: u8) -> bool {
    let (register, bit) = in_service(vector);
    registers()
        .is_some_and(|registers| registers.read_nth(Register::Requested, register) & bit != 0)
}

/// Ends the interrupt in service on this CPU.
pub fn end_of_interrupt() {
    if let Some(registers) = registers() {
        write(registers, Register::Eoi, 0);
    }
}

/// Sends an NMI to one CPU. Returns whether it could be sent.
pub fn send_nmi(lapic_id: u32) -> bool {
    send(lapic_id, Command::NMI)
}

/// Sends one CPU the wake-up interrupt. Returns whether it could be sent.
pub fn wake(lapic_id: u32) -> bool {
    send(lapic_id, Command::fixed(WAKE_VECTOR))
}

/// Sends an unexpected interrupt. Returns whether it could be sent.
#[cfg(feature = "selftest")]
pub fn send_stray(lapic_id: u32, vector: u8) -> bool {
    send(lapic_id, Command::fixed(vector))
}

/// Sends one CPU its timer's interrupt, before its time. Returns whether it could be sent.
#[cfg(feature = "selftest")]
pub fn ring(lapic_id: u32) -> bool {
    send(lapic_id, Command::fixed(TIMER_VECTOR))
}

fn send(lapic_id: u32, command: Command) -> bool {
    let Some(registers) = registers() else {
        return false;
    };
    if registers.are_msrs() {
        // SAFETY: the MSR exists in x2APIC mode. The interrupt is an NMI or of some vector, and every
        // CPU that is ever named here has handlers for all of them (`stop` and `jobs` see to it). The
        // fences: this write, unlike one to the xAPIC's page, does not wait for earlier stores (Intel
        // SDM vol. 3A, 11.12.3), and the other CPU must see the work that it is woken for.
        unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            Msr::new(Register::IcrLow.msr()).write(command.x2apic(lapic_id));
        }
        return true;
    }
    let Some((high, low)) = command.xapic(lapic_id) else {
        return false;
    };
    let sent = || {
        let deadline = Deadline::after_millis(1);
        while is_pending(registers.read(Register::IcrLow)) {
            if deadline.passed() {
                return false;
            }
        }
        true
    };
    // So that no handler writes the high half in between.
    interrupts::without_interrupts(|| {
        sent() && {
            write(registers, Register::IcrHigh, high);
            write(registers, Register::IcrLow, low);
            sent()
        }
    })
}

/// Returns how this CPU reaches the registers of its local APIC. `None` where the page is not
/// mapped: before it is at all, and on an AP that still runs on the loader's tables.
fn registers() -> Option<ApicRegisters> {
    Cpu::try_with_own(&MODE, |mode| mode.registers())
        .flatten()
        .or_else(ApicRegisters::find)
}

/// Writes a register of this CPU's local APIC.
fn write(registers: ApicRegisters, register: Register, value: u32) {
    // SAFETY: this module sends and enables nothing but NMIs and interrupts of vectors, each of which has
    // a handler on every CPU that is ever named here (`stop` and `jobs` see to it).
    unsafe { registers.write(register, value) };
}
