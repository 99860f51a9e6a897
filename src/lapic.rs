//! The local APIC: interrupts from one CPU to another, and each CPU's timer.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::{ApicBase, Msr};

use crate::clock::Deadline;
use crate::interrupts::{ERROR_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR, WAKE_VECTOR};
use crate::shared;

/// IA32_APIC_BASE: this is the BSP, and x2APIC mode is on (Intel SDM vol. 3A, 11.12.1). The mode
/// stays what firmware and loader made it: both are served alike.
const IS_BSP: u64 = 1 << 8;
const ENABLED_X2APIC: u64 = 1 << 10;

/// Registers, as byte offsets in the xAPIC's page (Intel SDM vol. 3A, table 11-1).
/// In x2APIC mode they are MSRs: [`X2APIC_BASE`] and a sixteenth of the offset.
const TASK_PRIORITY: usize = 0x080;
const EOI: usize = 0x0b0;
const SPURIOUS: usize = 0x0f0;
const ERROR_STATUS: usize = 0x280;
const ICR_LOW: usize = 0x300;
const ICR_HIGH: usize = 0x310;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const LVT_ERROR: usize = 0x370;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// Local vector table: the interrupt is masked; it comes as an NMI; the timer fires at a stamp of
/// the TSC (Intel SDM vol. 3A, figure 11-8).
const LVT_MASKED: u32 = 1 << 16;
const LVT_NMI: u32 = 0b100 << 8;
const LVT_TSC_DEADLINE: u32 = 0b10 << 17;

/// Divide configuration: the counter runs at the full rate (Intel SDM vol. 3A, figure 11-10).
const DIVIDE_BY_1: u32 = 0b1011;

/// IA32_TSC_DEADLINE (Intel SDM vol. 4, table 2-2).
const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// MSR of the x2APIC's register at offset 0 (Intel SDM vol. 3A, table 11-6).
const X2APIC_BASE: u32 = 0x800;

/// Spurious-interrupt register: the APIC is on (Intel SDM vol. 3A, figure 11-23).
const SOFTWARE_ENABLE: u32 = 1 << 8;

/// ICR: fixed delivery or NMI, level assert (Intel SDM vol. 3A, 11.6.1).
const FIXED: u32 = 1 << 14;
const NMI: u32 = 0b100 << 8 | 1 << 14;

/// The xAPIC id that means every CPU (Intel SDM vol. 3A, 11.6.2.1).
const XAPIC_BROADCAST: u32 = 0xff;

/// ICR: delivery status, set while the last interrupt is still on its way.
const PENDING: u32 = 1 << 12;

/// Where the xAPIC's registers are mapped; 0 until they are.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Physical address of the xAPIC's page, or `None` in x2APIC mode, which needs none.
pub fn physical_base() -> Option<u64> {
    let (frame, flags) = ApicBase::read_raw();
    (flags & ENABLED_X2APIC == 0).then(|| frame.start_address().as_u64())
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
    registers.write(SPURIOUS, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    registers.write(TASK_PRIORITY, 0);
    registers.write(LVT_TIMER, LVT_MASKED | u32::from(TIMER_VECTOR));
    registers.write(LVT_LINT0, LVT_MASKED);
    let is_bsp = ApicBase::read_raw().1 & IS_BSP != 0;
    registers.write(
        LVT_LINT1,
        if is_bsp {
            LVT_NMI
        } else {
            LVT_MASKED | LVT_NMI
        },
    );
    // What happened in the loader's time is no error of this kernel's.
    take_errors();
    registers.write(LVT_ERROR, u32::from(ERROR_VECTOR));
}

/// What the APIC has met since it was last asked (Intel SDM vol. 3A, figure 11-9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errors(u32);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 8] = [
            "sent a message with a wrong checksum",
            "received a message with a wrong checksum",
            "sent a message that nobody accepted",
            "received a message that nobody accepts",
            "sent a lowest-priority interrupt, which it can't",
            "sent an illegal vector",
            "received an illegal vector",
            "was asked for a register that it does not have",
        ];
        let mut names = (0..)
            .zip(NAMES)
            .filter(|(bit, _)| self.0 >> bit & 1 != 0)
            .map(|(_, name)| name);
        match names.next() {
            Some(name) => f.write_str(name)?,
            None => f.write_str("an error that it says nothing of")?,
        }
        names.try_for_each(|name| write!(f, "; {name}"))
    }
}

/// Takes note of the errors of this CPU's APIC, which begins anew.
pub fn take_errors() -> Errors {
    Errors(Registers::get().map_or(0, |registers| {
        // The register shows what there was up to the last write (Intel SDM vol. 3A, 11.5.3).
        registers.write(ERROR_STATUS, 0);
        registers.read(ERROR_STATUS)
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
    registers.write(DIVIDE, DIVIDE_BY_1);
    registers.write(LVT_TIMER, masked | u32::from(TIMER_VECTOR));
    registers.write(INITIAL_COUNT, count);
    Some(())
}

/// Where this CPU's countdown is. `None`: there is no APIC.
pub fn counter() -> Option<u32> {
    Some(Registers::get()?.read(CURRENT_COUNT))
}

/// Lets this CPU's timer fire once the TSC has reached `stamp`. Call only where CPUID has it.
pub fn arm_deadline(stamp: u64) {
    let Some(registers) = Registers::get() else {
        return;
    };
    registers.write(LVT_TIMER, LVT_TSC_DEADLINE | u32::from(TIMER_VECTOR));
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
        registers.write(LVT_TIMER, LVT_MASKED | u32::from(TIMER_VECTOR));
        registers.write(INITIAL_COUNT, 0);
    }
}

/// Ends the interrupt in service on this CPU.
pub fn end_of_interrupt() {
    if let Some(registers) = Registers::get() {
        registers.write(EOI, 0);
    }
}

/// Sends an NMI to one CPU. Says whether it could be sent.
pub fn send_nmi(lapic_id: u32) -> bool {
    send(lapic_id, NMI)
}

/// Wakes one CPU if it is halted. Says whether it could be.
pub fn wake(lapic_id: u32) -> bool {
    send(lapic_id, FIXED | u32::from(WAKE_VECTOR))
}

fn send(lapic_id: u32, command: u32) -> bool {
    match Registers::get() {
        Some(Registers::X2Apic) => {
            let command = u64::from(lapic_id) << 32 | u64::from(command);
            // SAFETY: the MSR exists in x2APIC mode. The interrupt is an NMI or the wake
            // vector, and every CPU that is ever named here has handlers for both
            // (`stop` and `crew` see to it). The fences: this write, unlike one to the
            // xAPIC's page, does not wait for earlier stores (Intel SDM vol. 3A,
            // 11.12.3), and the other CPU is to see what it is woken for.
            unsafe {
                core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
                Msr::new(X2APIC_BASE + (ICR_LOW as u32 >> 4)).write(command)
            };
            true
        }
        Some(registers) if lapic_id < XAPIC_BROADCAST => {
            let sent = || {
                let deadline = Deadline::after_millis(1);
                while registers.read(ICR_LOW) & PENDING != 0 {
                    if deadline.passed() {
                        return false;
                    }
                }
                true
            };
            // So that no handler writes the high half in between.
            interrupts::without_interrupts(|| {
                sent() && {
                    registers.write(ICR_HIGH, lapic_id << 24);
                    registers.write(ICR_LOW, command);
                    sent()
                }
            })
        }
        _ => false,
    }
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
        if ApicBase::read_raw().1 & ENABLED_X2APIC != 0 {
            return Some(Self::X2Apic);
        }
        Some(REGISTERS.load(Ordering::Acquire))
            .filter(|&base| base != 0 && shared::is_loaded())
            .map(|base| Self::XApic(base as usize))
    }

    fn write(self, register: usize, value: u32) {
        match self {
            // SAFETY: the mode was read from this CPU, so the MSR exists; the registers
            // written here (those above) have no effect on memory of their own.
            Self::X2Apic => unsafe {
                Msr::new(X2APIC_BASE + (register as u32 >> 4)).write(u64::from(value));
            },
            // SAFETY: `mapped_at` was given the page's address in the kernel's tables,
            // mapped uncached and never unmapped; the register is 32-bit, aligned,
            // within the page, and this CPU's own.
            Self::XApic(base) => unsafe {
                core::ptr::with_exposed_provenance_mut::<u32>(base + register)
                    .write_volatile(value);
            },
        }
    }

    fn read(self, register: usize) -> u32 {
        match self {
            // SAFETY: as for `write`; reading has no side effect.
            Self::X2Apic => unsafe { Msr::new(X2APIC_BASE + (register as u32 >> 4)).read() as u32 },
            // SAFETY: as for `write`.
            Self::XApic(base) => unsafe {
                core::ptr::with_exposed_provenance::<u32>(base + register).read_volatile()
            },
        }
    }
}
