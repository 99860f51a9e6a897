//! Errors that the machine reports of itself: by machine checks and by the NMIs of its chipset. Both are
//! enabled and begin with nothing on record, so that later reports are of this run.

use muster_machine::mca::{
    self, ALL, BankStatus, Capabilities, GlobalStatus, IA32_MCG_CAP, IA32_MCG_CTL, IA32_MCG_STATUS,
    NmiStatus,
};
use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

/// Enables all banks of this CPU and clears them. Logs what they have on record, which is of an earlier
/// run.
pub fn start() {
    let Some(capabilities) = capabilities() else {
        return;
    };
    let first = first_controlled();
    // SAFETY: the registers are there: CPUID has machine checks, and IA32_MCG_CAP the banks. To enable
    // reports has no other effect than a machine check where there is an error, which has a handler.
    unsafe {
        if capabilities.has_control() {
            Msr::new(IA32_MCG_CTL).write(ALL);
        }
        for bank in 0..capabilities.banks() {
            log_bank(bank, "before this run", &mut |line| log::warn!("{line}"));
            if bank >= first {
                Msr::new(mca::control(bank)).write(ALL);
            }
            Msr::new(mca::status(bank)).write(0);
        }
    }
}

/// Logs this CPU's report of the machine check that it has taken.
pub fn log_errors() {
    let Some(capabilities) = capabilities() else {
        return;
    };
    // SAFETY: the register is there: CPUID has machine checks. Reading has no side effect.
    let status = GlobalStatus(unsafe { Msr::new(IA32_MCG_STATUS).read() });
    log::error!(target: "panic", "{status} (status {:#x})", status.0);
    let mut has_reason = false;
    for bank in 0..capabilities.banks() {
        has_reason |= log_bank(
            bank,
            "now",
            &mut |line| log::error!(target: "panic", "{line}"),
        );
    }
    if !has_reason {
        log::error!(target: "panic", "no bank of this CPU has an error on record");
    }
}

/// Logs what a bank has on record. Returns whether there is anything.
fn log_bank(bank: u32, when: &str, say: &mut dyn FnMut(core::fmt::Arguments<'_>)) -> bool {
    // SAFETY: the callers go by IA32_MCG_CAP. The address and the other details are there if the status
    // says so. Reading has no side effect.
    let read = |register| unsafe { Msr::new(register).read() };
    let status = BankStatus(read(mca::status(bank)));
    if !status.is_valid() {
        return false;
    }
    say(format_args!("machine-check bank {bank}, {when}: {status}"));
    let (address, misc) = (mca::address(bank), mca::misc(bank));
    let address = status.has_address().then(|| read(address));
    let misc = status.has_misc().then(|| read(misc));
    say(format_args!(
        "  status {:#018x}, address {}, misc {}",
        status.0,
        OrUnknown(address),
        OrUnknown(misc)
    ));
    true
}

/// A register's value, if it is valid.
struct OrUnknown(Option<u64>);

impl core::fmt::Display for OrUnknown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(value) => write!(f, "{value:#x}"),
            None => f.write_str("unknown"),
        }
    }
}

/// Returns this CPU's machine-check capabilities; `None` if it has none.
fn capabilities() -> Option<Capabilities> {
    let features = CpuId::new().get_feature_info()?;
    // SAFETY: the register is there where CPUID has both. Reading has no side effect.
    (features.has_mce() && features.has_mca())
        .then(|| Capabilities(unsafe { Msr::new(IA32_MCG_CAP).read() }))
}

/// Returns the first bank whose control is not the firmware's.
fn first_controlled() -> u32 {
    let cpuid = CpuId::new();
    let is_intel = cpuid
        .get_vendor_info()
        .is_some_and(|vendor| vendor.as_str() == "GenuineIntel");
    cpuid.get_feature_info().map_or(0, |features| {
        mca::first_controlled(is_intel, features.family_id(), features.model_id())
    })
}

/// Clears the chipset's record of earlier errors, and enables its NMIs for later ones. Called once.
pub fn enable_nmis() {
    let status = nmi_status();
    if !status.is_there() {
        return;
    }
    if status.is_error() {
        log::warn!("before this run: {status} (port 0x61: {:#04x})", status.0);
    }
    for value in status.forgetting() {
        // SAFETY: the port is the chipset's, as it answered, and the bits of the speaker and its timer
        // stay as they are.
        unsafe { Port::new(NmiStatus::PORT).write(value) };
    }
}

/// Reads the chipset's NMI status.
pub fn nmi_status() -> NmiStatus {
    // SAFETY: reading has no side effect on any PC, and an absent port answers with all ones.
    NmiStatus(unsafe { Port::new(NmiStatus::PORT).read() })
}
