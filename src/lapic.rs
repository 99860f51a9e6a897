//! The local APIC: interrupts from one CPU to another, and each CPU's timer. It stays in the mode that
//! firmware and loader brought it to: both are served alike.

use core::sync::atomic::{AtomicU64, Ordering};

use muster_machine::lapic::{
    BASE_IS_BSP, BASE_X2APIC, Command, DIVIDE_BY_1, Errors, IA32_TSC_DEADLINE, LVT_MASKED, LVT_NMI,
    LVT_TSC_DEADLINE, Register, SOFTWARE_ENABLE, is_pending,
};
use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::{ApicBase, Msr};

use crate::clock::Deadline;
use crate::interrupts::{ERROR_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR, WAKE_VECTOR};
use crate::shared;

/// Where the xAPIC's registers are mapped; 0 until they are.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Physical address of the xAPIC's page, or `None` in x2APIC mode, which needs none.
pub fn physical_base() -> Option<u64> {
    let (frame, flags) = ApicBase::read_raw();
    (flags & BASE_X2APIC == 0).then(|| frame.start_address().as_u64())
}

/// Tells where the xAPIC's page is mapped, once it is.
///
/// # Safety
///
/// The page is mapped there, uncached, in the tables of every CPU that uses this
/// module from now on.
pub unsafe fn mapped_at(virtual_: u64) {
    REGISTERS.store(virtual_, Ordering::Release);
}

/// The LAPIC id of the CPU this runs on, from CPUID: it needs no mapping and
/// so works at any time.
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

/// Switches this CPU's APIC on, with all that it may interrupt for: other CPUs, its own timer and
/// errors, and the machine's NMI line, which is the BSP's, so that one NMI is one report. The line
/// of the legacy PIC stays shut.
pub fn enable() {
    let Some(registers) = Registers::get() else {
        return;
    };
    // First: while the APIC is off it keeps every entry masked (Intel SDM vol. 3A, 11.4.7.2).
    registers.write(
        Register::Spurious,
        SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR),
    );
    registers.write(Register::TaskPriority, 0);
    registers.write(Register::LvtTimer, LVT_MASKED | u32::from(TIMER_VECTOR));
    registers.write(Register::LvtLint0, LVT_MASKED);
    let is_bsp = ApicBase::read_raw().1 & BASE_IS_BSP != 0;
    registers.write(
        Register::LvtLint1,
        if is_bsp {
            LVT_NMI
        } else {
            LVT_MASKED | LVT_NMI
        },
    );
    // What happened in the loader's time is no error of this kernel's.
    take_errors();
    registers.write(Register::LvtError, u32::from(ERROR_VECTOR));
}

/// Takes note of the errors of this CPU's APIC, which begins anew.
pub fn take_errors() -> Errors {
    Errors(Registers::get().map_or(0, |registers| {
        // The register shows what there was up to the last write (Intel SDM vol. 3A, 11.5.3).
        registers.write(Register::ErrorStatus, 0);
        registers.read(Register::ErrorStatus)
    }))
}

/// What the end of a countdown leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fires {
    /// One interrupt.
    Once,
    /// Nothing: the counter is only read.
    Never,
}

/// Starts this CPU's countdown from `count`. `None`: there is no APIC.
pub fn arm_counter(count: u32, fires: Fires) -> Option<()> {
    let registers = Registers::get()?;
    let masked = match fires {
        Fires::Once => 0,
        Fires::Never => LVT_MASKED,
    };
    registers.write(Register::Divide, DIVIDE_BY_1);
    registers.write(Register::LvtTimer, masked | u32::from(TIMER_VECTOR));
    registers.write(Register::InitialCount, count);
    Some(())
}

/// Where this CPU's countdown is. `None`: there is no APIC.
pub fn counter() -> Option<u32> {
    Some(Registers::get()?.read(Register::CurrentCount))
}

/// What this CPU's APIC says of its version. `None`: there is none.
pub fn version() -> Option<u32> {
    Some(Registers::get()?.read(Register::Version))
}

/// Lets this CPU's timer fire once the TSC has reached `stamp`. Call only where CPUID has it.
pub fn arm_deadline(stamp: u64) {
    let Some(registers) = Registers::get() else {
        return;
    };
    registers.write(
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

/// Switches this CPU's timer off. An interrupt that is on its way still comes.
pub fn disarm() {
    if let Some(registers) = Registers::get() {
        registers.write(Register::LvtTimer, LVT_MASKED | u32::from(TIMER_VECTOR));
        registers.write(Register::InitialCount, 0);
    }
}

/// Ends the interrupt in service on this CPU.
pub fn end_of_interrupt() {
    if let Some(registers) = Registers::get() {
        registers.write(Register::Eoi, 0);
    }
}

/// Sends an NMI to one CPU. Says whether it could be sent.
pub fn send_nmi(lapic_id: u32) -> bool {
    send(lapic_id, Command::NMI)
}

/// Wakes one CPU if it is halted. Says whether it could be.
pub fn wake(lapic_id: u32) -> bool {
    send(lapic_id, Command::fixed(WAKE_VECTOR))
}

/// Has one CPU take its timer's interrupt, as if its time had come. Says whether it could be sent.
pub fn ring(lapic_id: u32) -> bool {
    send(lapic_id, Command::fixed(TIMER_VECTOR))
}

fn send(lapic_id: u32, command: Command) -> bool {
    let Some(registers) = Registers::get() else {
        return false;
    };
    if let Registers::X2Apic = registers {
        // SAFETY: the MSR exists in x2APIC mode. The interrupt is an NMI, the timer's or the
        // wake vector, and every CPU that is ever named here has handlers for all of them
        // (`stop` and `crew` see to it). The fences: this write, unlike one to the
        // xAPIC's page, does not wait for earlier stores (Intel SDM vol. 3A,
        // 11.12.3), and the other CPU is to see what it is woken for.
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
            registers.write(Register::IcrHigh, high);
            registers.write(Register::IcrLow, low);
            sent()
        }
    })
}

/// Where this CPU's APIC registers are.
#[derive(Debug, Clone, Copy)]
enum Registers {
    /// In MSRs.
    X2Apic,
    /// In a page, mapped at this address.
    XApic(usize),
}

impl Registers {
    /// `None` where the page is not mapped: before it is at all, and on an AP that
    /// still runs on the loader's tables.
    fn get() -> Option<Self> {
        if ApicBase::read_raw().1 & BASE_X2APIC != 0 {
            return Some(Self::X2Apic);
        }
        Some(REGISTERS.load(Ordering::Acquire))
            .filter(|&base| base != 0 && shared::is_loaded())
            .map(|base| Self::XApic(base as usize))
    }

    fn write(self, register: Register, value: u32) {
        match self {
            // SAFETY: the mode was read from this CPU, so the MSR exists; the registers
            // written here have no effect on memory of their own.
            Self::X2Apic => unsafe {
                Msr::new(register.msr()).write(u64::from(value));
            },
            // SAFETY: `mapped_at` was given the page's address in the kernel's tables,
            // mapped uncached and never unmapped; the register is 32-bit, aligned,
            // within the page, and this CPU's own.
            Self::XApic(base) => unsafe {
                core::ptr::with_exposed_provenance_mut::<u32>(base + register.offset() as usize)
                    .write_volatile(value);
            },
        }
    }

    fn read(self, register: Register) -> u32 {
        match self {
            // SAFETY: as for `write`; reading has no side effect.
            Self::X2Apic => unsafe { Msr::new(register.msr()).read() as u32 },
            // SAFETY: as for `write`.
            Self::XApic(base) => unsafe {
                core::ptr::with_exposed_provenance::<u32>(base + register.offset() as usize)
                    .read_volatile()
            },
        }
    }
}
