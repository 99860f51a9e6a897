//! Control registers: every bit is set on purpose, on every CPU.
//!
//! At base revision 3 the protocol leaves most bits of CR0, CR4 and EFER open,
//! and a firmware may hand its APs over in another state than its BSP.

use core::fmt;

use muster_frames::Frame;
use muster_paging::{Levels, PAT};
use raw_cpuid::CpuId;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{Efer, EferFlags, Msr};
use x86_64::structures::paging::PhysFrame;
use x86_64::{PhysAddr, instructions::tlb};

/// IA32_PAT (Intel SDM vol. 4, table 2-2), and the six of its eight entries that the Limine protocol fixes.
const IA32_PAT: u32 = 0x277;
const PROTOCOL_ENTRIES: u64 = 0x0000_ffff_ffff_ffff;

/// IA32_MISC_ENABLE, and its bit by which the firmware has CPUID deny NX and EFER refuse it (Intel SDM
/// vol. 4, table 2-2).
const IA32_MISC_ENABLE: u32 = 0x1a0;
const XD_DISABLE: u64 = 1 << 34;

/// The CPU features that this kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Pages can be marked as not executable. Muster does not run without it.
    pub no_execute: bool,
    /// 1 GiB pages.
    pub gigabyte_pages: bool,
    /// Ring 0 can be kept from executing user pages.
    pub smep: bool,
    /// Ring 0 can be kept from touching user pages.
    pub smap: bool,
    /// User code can be kept from reading descriptor-table addresses.
    pub umip: bool,
    /// Width of a physical address, in bits.
    pub physical_bits: u8,
}

impl Features {
    /// Detects the features of the CPU this runs on.
    pub fn detect() -> Self {
        let cpuid = CpuId::new();
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        let structured = cpuid.get_extended_feature_info();
        Self {
            no_execute: extended
                .as_ref()
                .is_some_and(|leaf| leaf.has_execute_disable()),
            gigabyte_pages: extended.as_ref().is_some_and(|leaf| leaf.has_1gib_pages()),
            smep: structured.as_ref().is_some_and(|leaf| leaf.has_smep()),
            smap: structured.as_ref().is_some_and(|leaf| leaf.has_smap()),
            umip: structured.as_ref().is_some_and(|leaf| leaf.has_umip()),
            // 36 bits where CPUID does not say (Intel SDM vol. 3A, 4.1.4).
            physical_bits: cpuid
                .get_processor_capacity_feature_info()
                .map_or(36, |leaf| leaf.physical_address_bits()),
        }
    }

    /// Returns the features that matter to page tables.
    pub fn of_tables(&self) -> muster_paging::Features {
        muster_paging::Features {
            gigabyte_pages: self.gigabyte_pages,
        }
    }
}

/// The warning where NX was disabled.
pub const NO_EXECUTE_REVEALED: &str = "the firmware had disabled NX (IA32_MISC_ENABLE, bit 34): enabled again; its setup may call it XD";

/// Enables NX on this CPU if its firmware has disabled it. Returns whether it had.
pub fn reveal_no_execute() -> bool {
    let cpuid = CpuId::new();
    let is_intel = cpuid
        .get_vendor_info()
        .is_some_and(|vendor| vendor.as_str() == "GenuineIntel");
    // The register is there from the Pentium M on (family 6, model 0xd).
    let has_register = is_intel
        && cpuid.get_feature_info().is_some_and(|features| {
            let (family, model) = (features.family_id(), features.model_id());
            family > 6 || family == 6 && model >= 0xd
        });
    if !has_register || Features::detect().no_execute {
        return false;
    }
    let mut register = Msr::new(IA32_MISC_ENABLE);
    // SAFETY: the register is there, and reading it has no side effect; the bit denies a feature that
    // nothing here uses before it is asked for again.
    unsafe {
        let value = register.read();
        let is_disabled = value & XD_DISABLE != 0;
        if is_disabled {
            register.write(value & !XD_DISABLE);
        }
        is_disabled
    }
}

/// Returns whether this CPU says that it is a virtual one (CPUID 1, ECX bit 31).
pub fn has_hypervisor() -> bool {
    CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_hypervisor())
}

/// Returns the number of page-table levels in use, which can't change in long mode.
pub fn levels() -> Levels {
    if Cr4::read().contains(Cr4Flags::L5_PAGING) {
        Levels::Five
    } else {
        Levels::Four
    }
}

/// The control registers, all of whose bits this kernel sets or clears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    cr0: u64,
    cr4: u64,
    efer: u64,
    pat: u64,
}

/// Bits that protect memory, of each register that has some.
const CR0_PROTECTION: [(u64, &str); 1] = [(Cr0Flags::WRITE_PROTECT.bits(), "wp")];
const EFER_PROTECTION: [(u64, &str); 1] = [(EferFlags::NO_EXECUTE_ENABLE.bits(), "nx")];
const CR4_PROTECTION: [(u64, &str); 3] = [
    (
        Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits(),
        "smep",
    ),
    (Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION.bits(), "smap"),
    (Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION.bits(), "umip"),
];

impl Registers {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Reads this CPU's registers.
    pub fn read() -> Self {
        Self {
            cr0: Cr0::read_raw(),
            cr4: Cr4::read_raw(),
            efer: Efer::read_raw(),
            pat: read_pat(),
        }
    }

    /// Returns the values that this kernel sets on a CPU with these features, at the number of
    /// levels in use.
    pub fn wanted(features: &Features) -> Self {
        let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION | Cr4Flags::MACHINE_CHECK_EXCEPTION;
        cr4.set(
            Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION,
            features.smep,
        );
        cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.smap);
        cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.umip);
        cr4.set(Cr4Flags::L5_PAGING, levels() == Levels::Five);
        let cr0 = Cr0Flags::PROTECTED_MODE_ENABLE
            | Cr0Flags::MONITOR_COPROCESSOR
            | Cr0Flags::EXTENSION_TYPE
            | Cr0Flags::NUMERIC_ERROR
            | Cr0Flags::WRITE_PROTECT
            | Cr0Flags::PAGING;
        let mut efer = EferFlags::LONG_MODE_ENABLE | EferFlags::LONG_MODE_ACTIVE;
        efer.set(EferFlags::NO_EXECUTE_ENABLE, features.no_execute);
        Self {
            cr0: cr0.bits(),
            cr4: cr4.bits(),
            efer: efer.bits(),
            pat: PAT,
        }
    }

    /// Returns all four, in their order.
    pub fn values(&self) -> [u64; Self::COUNT] {
        [self.cr0, self.cr4, self.efer, self.pat]
    }

    /// Makes registers of four values, in that order.
    pub fn from_values([cr0, cr4, efer, pat]: [u64; Self::COUNT]) -> Self {
        Self {
            cr0,
            cr4,
            efer,
            pat,
        }
    }

    /// Returns the names of the memory protections that are enabled.
    pub fn protection(&self) -> impl fmt::Display {
        Protection(*self)
    }

    /// Writes in which register these differ from what was wanted.
    pub fn fmt_difference(&self, wanted: &Self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["CR0", "CR4", "EFER", "the PAT"];
        let pairs = self.values().into_iter().zip(wanted.values());
        match names
            .iter()
            .zip(pairs)
            .find(|(_, (found, wanted))| found != wanted)
        {
            Some((name, (found, wanted))) => {
                write!(f, "has {found:#x} in {name} instead of {wanted:#x}")
            }
            None => f.write_str("has its control registers as set"),
        }
    }
}

struct Protection(Registers);

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registers { cr0, cr4, efer, .. } = self.0;
        let bits = (CR0_PROTECTION.into_iter().map(|bit| (cr0, bit)))
            .chain(EFER_PROTECTION.into_iter().map(|bit| (efer, bit)))
            .chain(CR4_PROTECTION.into_iter().map(|bit| (cr4, bit)));
        let mut space = "";
        for (_, (_, name)) in bits.filter(|(register, (bit, _))| register & bit != 0) {
            write!(f, "{space}{name}")?;
            space = " ";
        }
        Ok(())
    }
}

/// The loader has left the BSP's PAT as the protocol does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongPat(u64);

impl fmt::Display for WrongPat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the loader left {:#x} in the PAT instead of {PAT:#x}, of which the protocol fixes the lower \
             six bytes: take a loader that keeps to the Limine protocol",
            self.0
        )
    }
}

/// Checks that the BSP's PAT is as the protocol has it. If it is not, it is unknown with which types the
/// loader's tables have had memory cached until now, and no change of one CPU's PAT would repair that.
///
/// # Errors
///
/// [`WrongPat`], with what it is.
pub fn check_pat() -> Result<(), WrongPat> {
    let found = read_pat();
    if (found ^ PAT) & PROTOCOL_ENTRIES == 0 {
        Ok(())
    } else {
        Err(WrongPat(found))
    }
}

/// Sets this CPU's PAT to the kernel's value, if it is another. Returns what it was then.
///
/// To be called as early as can be, on the loader's tables and before the kernel's: an AP may come with the
/// value of reset, or its firmware's, and what it cached under another type than the others would linger.
/// Only that CPU differs, so it alone goes through the steps of Intel SDM vol. 3A, 12.11.8, which 12.12.4
/// asks for, with none of its cache in use while the types change. The manual has all CPUs wait for each
/// other when memory types change that they already use together, and none do: on the BSP only the two
/// entries can change that the protocol leaves open and that no table uses ([`check_pat`]).
pub fn set_pat() -> Option<u64> {
    let found = read_pat();
    if found == PAT {
        return None;
    }
    let (cr0, cr4) = (Cr0::read_raw(), Cr4::read_raw());
    let without_cache =
        (cr0 | Cr0Flags::CACHE_DISABLE.bits()) & !Cr0Flags::NOT_WRITE_THROUGH.bits();
    // SAFETY: (1) this is ring 0, where interrupts are off and every CPU has a PAT; (2) with CD set and NW
    // clear the CPU fills its caches no more, but stays coherent, and both come back as they were;
    // (3) `wbinvd` writes back whatever it holds, so nothing is lost; (4) clearing PGE, or writing CR3 back
    // as it is, only flushes the TLB, and that of what was translated under the old types, before and after
    // the change; (5) the new value gives each entry that the loader's tables may use the type that the
    // protocol has for it. MTRRs don't change, so they stay on.
    unsafe {
        Cr0::write_raw(without_cache);
        write_back_and_invalidate();
        Cr4::write_raw(cr4 & !Cr4Flags::PAGE_GLOBAL.bits());
        tlb::flush_all();
        Msr::new(IA32_PAT).write(PAT);
        write_back_and_invalidate();
        tlb::flush_all();
        Cr0::write_raw(cr0);
        Cr4::write_raw(cr4);
    }
    Some(found)
}

fn read_pat() -> u64 {
    // SAFETY: every CPU in long mode has a PAT; reading it has no side effect.
    unsafe { Msr::new(IA32_PAT).read() }
}

/// Writes this CPU's caches back and empties them.
fn write_back_and_invalidate() {
    // SAFETY: this is ring 0, and no data is lost: memory has it all afterwards.
    unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) };
}

/// Sets CR0, CR4 and EFER of this CPU to the kernel's values; its PAT has its own already ([`set_pat`]).
///
/// The loader's tables stay in use.
pub fn set(features: &Features) {
    // Each CPU has a bit of its own, by which EFER.NXE would be a general protection fault.
    if reveal_no_execute() {
        log::warn!("{NO_EXECUTE_REVEALED}");
    }
    let wanted = Registers::wanted(features);
    // SAFETY: (1) this is ring 0 in long mode, so PE, PG, PAE, LME and LMA are set
    // already and stay set, and the number of levels stays as it is; (2) the
    // optional CR4 bits are set only where CPUID has them; (3) there are no user
    // pages, so SMEP and SMAP forbid nothing that is done; (4) no code here uses
    // the FPU or an alignment check; (5) clearing PGE flushes the loader's global
    // entries, which is wanted.
    unsafe {
        Efer::write_raw(wanted.efer);
        Cr0::write_raw(wanted.cr0);
        Cr4::write_raw(wanted.cr4);
    }
}

/// Loads the tables with this root, which flushes the TLB.
///
/// # Safety
///
/// `root` is the root of tables with as many levels as are in use,
/// and they map what runs and is touched from here on (code, stack, data, GDT,
/// IDT) where the tables in use now map it.
pub unsafe fn load_tables(root: Frame) {
    let frame = PhysFrame::containing_address(PhysAddr::new_truncate(root.start().get()));
    // SAFETY: as the caller promises. Flags 0: PCID is off, the tables themselves
    // are write-back memory.
    unsafe { Cr3::write_raw(frame, 0) };
}

/// Returns the root of the tables this CPU has loaded.
pub fn loaded_tables() -> muster_frames::PhysAddr {
    muster_frames::PhysAddr::new(Cr3::read_raw().0.start_address().as_u64())
}
