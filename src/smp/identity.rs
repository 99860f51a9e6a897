//! Whether each CPU is what it says: its local APIC id the one that the loader promised, and the registers
//! that must be the same on all CPUs the BSP's. An AP that differs is kept out: with its APIC in another
//! mode interrupts miss it, with other MTRRs it caches memory in another way than the others, which
//! corrupts it, and with another TSC_ADJUST its clock is not theirs.

use alloc::vec::Vec;

use conquer_once::spin::OnceCell;
use muster_machine::identity::{Difference, IA32_TSC_ADJUST, LAPIC_ID, common};
use muster_machine::lapic::IA32_APIC_BASE;
use muster_machine::mtrr::{self, IA32_MTRRCAP, Mtrrs, SYSCFG, TOP_MEM2};
use raw_cpuid::CpuId;
use x86_64::registers::model_specific::Msr;

use super::lapic;
use crate::arch::control::{self, Features};
use crate::report::serial;

/// The BSP's registers, which all others are compared with. Written before the shared state is published,
/// which is before any AP is released.
static BSP: OnceCell<Vec<(u32, u64)>> = OnceCell::uninit();

/// Takes down what the BSP has. Called once, on the BSP.
pub fn start() {
    BSP.init_once(|| registers().collect());
}

fn bsp() -> &'static [(u32, u64)] {
    BSP.try_get().map_or(&[], Vec::as_slice)
}

/// Returns what the BSP's MTRRs say, and so those of every CPU that is admitted; `None` if there are none,
/// or they are off.
pub fn mtrrs(features: &Features) -> Option<Mtrrs<'static>> {
    Some(Mtrrs::new(bsp(), features.physical_bits)).filter(Mtrrs::are_enabled)
}

/// Returns the first register in which this CPU is not what it should be, the one that the loader lists
/// under this LAPIC id.
pub fn find_difference(lapic_id: u32) -> Option<Difference> {
    Difference::first(registers(), bsp().iter().copied()).or_else(|| {
        // Only now is it known that its APIC is where the others' are.
        let found = lapic::registered_id()?;
        (found != lapic_id).then(|| Difference {
            register: LAPIC_ID,
            found: Some(found.into()),
            wanted: Some(lapic_id.into()),
        })
    })
}

/// Reads the registers of this CPU that must be the same on all, by what its own CPUID has: those first by
/// which it is known that it has the later ones.
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
    let is_virtual = control::has_hypervisor() || serial::has_debug_console();
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
    // SAFETY: `registers` names only what this CPU's CPUID and IA32_MTRRCAP say that it has: a CPU in long
    // mode has IA32_APIC_BASE, and AMD's have both of their own. Reading them has no side effect.
    unsafe { Msr::new(register).read() }
}

/// Changes an MTRR of this CPU that is not in use, for the audit to find. Does nothing without one.
pub fn disturb_mtrrs() {
    let variable = |&(register, _): &(u32, u64)| mtrr::is_variable(register);
    let mut from_last = bsp().iter().copied().filter(variable).rev();
    if let (Some((_, 0)), Some((base, value))) = (from_last.next(), from_last.next()) {
        // SAFETY: the register is there, as the BSP has it and this CPU was admitted, and the pair's mask
        // says that it is not in use. The lower three bits are a type either way.
        unsafe { Msr::new(base).write(value ^ 6) };
    }
}
