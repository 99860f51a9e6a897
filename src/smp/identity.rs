//! The identity of each CPU: its local APIC id must be the loader's, and the registers that must be the
//! same on all CPUs must be the BSP's. An AP that differs is excluded: with its APIC in another mode
//! interrupts miss it, with other MTRRs it caches memory in another way than the others, which corrupts
//! it, and with another TSC_ADJUST its clock is not theirs.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use conquer_once::spin::OnceCell;
use muster_machine::identity::{Difference, IA32_TSC_ADJUST, LAPIC_ID, common, differences};
use muster_machine::lapic::IA32_APIC_BASE;
use muster_machine::mtrr::{self, IA32_MTRRCAP, Mtrrs, SYSCFG, TOP_MEM2};
use muster_percpu::cpu_local;
use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

use super::cpu;
use crate::arch::control::{self, Features};
use crate::arch::debug_console;

/// The BSP's registers, which all others are compared with. Written before the shared state is published,
/// which is before any AP is released.
static BSP: OnceCell<Vec<(u32, u64)>> = OnceCell::uninit();

/// The maximum number of registers recorded of a CPU, its local APIC's id among them: enough for 23 pairs
/// of variable-range MTRRs, and CPUs have ten.
const MAX_REGISTERS: usize = 64;

/// Records the BSP's registers. Called once, on the BSP.
pub fn start() {
    let registers: Vec<_> = registers().collect();
    let beyond = registers.len().saturating_sub(MAX_REGISTERS - 1);
    if beyond > 0 {
        log::warn!(
            "{beyond} registers of the BSP's are not compared with the APs': it has too many"
        );
    }
    BSP.init_once(|| registers);
}

/// Returns the registers of the BSP that must be the same on all CPUs, each with its value.
pub fn bsp() -> &'static [(u32, u64)] {
    BSP.try_get().map_or(&[], Vec::as_slice)
}

/// Returns the BSP's MTRRs, which are those of every CPU that is admitted; `None` if there are none, or
/// they are disabled.
pub fn mtrrs(features: &Features) -> Option<Mtrrs<'static>> {
    Some(Mtrrs::new(bsp(), features.physical_bits)).filter(Mtrrs::are_enabled)
}

cpu_local! {
    /// Which CPU it is, by its registers.
    pub shared static IDENTITY: Identity = Identity::new();
}

/// Returns the registers in which the CPU with this block differs from the BSP, or from what the loader says of
/// it.
pub fn differences_of(block: &cpu::Block) -> impl Iterator<Item = Difference> {
    block.get(&IDENTITY).differences(cpu::lapic_id(block))
}

/// The registers of one CPU that must be as the BSP's, or as the loader says.
pub struct Identity {
    count: AtomicUsize,
    numbers: [AtomicU32; MAX_REGISTERS],
    values: [AtomicU64; MAX_REGISTERS],
}

impl Identity {
    /// Creates one without any registers recorded.
    pub const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            numbers: [const { AtomicU32::new(0) }; MAX_REGISTERS],
            values: [const { AtomicU64::new(0) }; MAX_REGISTERS],
        }
    }

    /// Reads this CPU's registers, and the id of its local APIC by `read_id`. Called by the CPU itself, before
    /// it reports that it is online, or excludes itself, which publishes this; and again in a job.
    pub fn record(&self, read_id: impl FnOnce() -> Option<u32>) {
        let mut registers = registers().take(MAX_REGISTERS - 1).peekable();
        // IA32_APIC_BASE. Only if it is the BSP's, the APIC is where its id is read.
        let has_apic = registers.peek() == bsp().first();
        let id = has_apic.then(read_id).flatten();
        let id = id.map(|id| (LAPIC_ID, u64::from(id)));
        let mut count = 0;
        for ((number, value), (number_cell, value_cell)) in registers
            .chain(id)
            .zip(self.numbers.iter().zip(&self.values))
        {
            // Relaxed, as all of it: the report or the end of the job publishes it.
            number_cell.store(number, Ordering::Relaxed);
            value_cell.store(value, Ordering::Relaxed);
            count += 1;
        }
        self.count.store(count, Ordering::Relaxed);
    }

    /// Returns each recorded register's number and value.
    pub fn registers(&self) -> impl Iterator<Item = (u32, u64)> + Clone {
        // Relaxed, as all of it: the report or the end of the job publishes it.
        let count = self.count.load(Ordering::Relaxed);
        let load = |(number, value): (&AtomicU32, &AtomicU64)| {
            (
                number.load(Ordering::Relaxed),
                value.load(Ordering::Relaxed),
            )
        };
        self.numbers.iter().zip(&self.values).take(count).map(load)
    }

    /// Returns the registers in which the CPU differs from the BSP, or from the loader's list, which has
    /// it under this LAPIC id. Returns nothing if no register was recorded.
    pub fn differences(&self, lapic_id: u32) -> impl Iterator<Item = Difference> {
        let found = self.registers();
        // A CPU without a record differs in nothing.
        let is_recorded = found.clone().next().is_some();
        let has_id = found.clone().any(|(register, _)| register == LAPIC_ID);
        let id = has_id.then_some((LAPIC_ID, u64::from(lapic_id)));
        let wanted = bsp().iter().copied().take(MAX_REGISTERS - 1).chain(id);
        differences(found, wanted.filter(move |_| is_recorded))
    }
}

/// Reads the registers of this CPU that must be the same on all, by its own CPUID: first those by which it
/// is known that it has the later ones.
fn registers() -> impl Iterator<Item = (u32, u64)> {
    let cpuid = CpuId::new();
    let has_mtrrs = cpuid
        .get_feature_info()
        .is_some_and(|features| features.has_mtrr());
    let has_tsc_adjust = cpuid
        .get_extended_feature_info()
        .is_some_and(|features| features.has_tsc_adjust_msr());
    // Not in a virtual machine, which may have none of AMD's own registers: there is no memory controller
    // behind them. An emulator that does not say that it is one has a debug console.
    let is_virtual = control::has_hypervisor() || debug_console::is_there();
    let is_amd = !is_virtual
        && cpuid
            .get_vendor_info()
            .is_some_and(|vendor| ["AuthenticAMD", "HygonGenuine"].contains(&vendor.as_str()));
    let capabilities = if has_mtrrs { read(IA32_MTRRCAP) } else { 0 };
    let mtrrs = mtrr::registers(capabilities).filter(move |_| has_mtrrs);
    let amd = [SYSCFG, TOP_MEM2].into_iter();
    [IA32_APIC_BASE]
        .into_iter()
        .chain(mtrrs)
        .chain(amd.filter(move |_| has_mtrrs && is_amd))
        .chain(
            [IA32_TSC_ADJUST]
                .into_iter()
                .filter(move |_| has_tsc_adjust),
        )
        .map(|register| (register, common(register, read(register))))
}

fn read(register: u32) -> u64 {
    // SAFETY: `registers` names only registers that this CPU has by its CPUID and IA32_MTRRCAP: a CPU in
    // long mode has IA32_APIC_BASE, and AMD's have both of their own. Reading them has no side effect.
    unsafe { Msr::new(register).read() }
}
