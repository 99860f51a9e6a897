//! The local APIC's registers and commands (Intel SDM vol. 3A, chapter 11).

use core::fmt;

/// The MSR IA32_APIC_BASE (11.4.4, 11.12.1), and its bits: this is the BSP; x2APIC mode is on; the
/// APIC is on at all; the address of the xAPIC's page.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// See [`IA32_APIC_BASE`].
pub const BASE_IS_BSP: u64 = 1 << 8;
/// See [`IA32_APIC_BASE`].
pub const BASE_X2APIC: u64 = 1 << 10;
/// See [`IA32_APIC_BASE`].
pub const BASE_ENABLED: u64 = 1 << 11;
/// See [`IA32_APIC_BASE`].
pub const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The MSR IA32_TSC_DEADLINE (Intel SDM vol. 4, table 2-2).
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;

/// Bit of [`Register::Spurious`]: the APIC is on (figure 11-23).
pub const SOFTWARE_ENABLE: u32 = 1 << 8;

/// Bits of the local vector table (figure 11-8): the interrupt is masked.
pub const LVT_MASKED: u32 = 1 << 16;
/// It comes as an NMI.
pub const LVT_NMI: u32 = 0b100 << 8;
/// It comes as a system-management interrupt, which is the firmware's.
pub const LVT_SMI: u32 = 0b010 << 8;
/// How it comes: the bits of [`LVT_NMI`] and [`LVT_SMI`].
pub const LVT_DELIVERY: u32 = 0b111 << 8;
/// A line's low level means an interrupt.
pub const LVT_ACTIVE_LOW: u32 = 1 << 13;
/// The bits of an entry that are set by whoever writes it: all but those that report.
pub const LVT_SETTINGS: u32 = !(1 << 12 | 1 << 14);
/// The timer starts again whenever it has fired.
pub const LVT_PERIODIC: u32 = 0b01 << 17;
/// The timer fires at a stamp of the TSC.
pub const LVT_TSC_DEADLINE: u32 = 0b10 << 17;

/// Value of [`Register::Divide`]: the counter runs at the full rate (figure 11-10).
pub const DIVIDE_BY_1: u32 = 0b1011;

/// Bit of [`Register::IcrLow`]: the last interrupt is still on its way (figure 11-12).
const DELIVERY_PENDING: u32 = 1 << 12;

/// MSR of the x2APIC's register at offset 0 (table 11-6).
const X2APIC_BASE: u32 = 0x800;

/// The xAPIC id that means every CPU (11.6.2.1).
const XAPIC_BROADCAST: u32 = 0xff;

/// A register, by its byte offset in the xAPIC's page (table 11-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Register {
    /// The APIC's id: see [`xapic_id`].
    Id = 0x020,
    /// Which APIC it is, and how many entries its local vector table has.
    Version = 0x030,
    /// What is urgent enough to interrupt this CPU.
    TaskPriority = 0x080,
    /// Written at the end of an interrupt.
    Eoi = 0x0b0,
    /// The spurious interrupt's vector, and the switch of it all.
    Spurious = 0x0f0,
    /// The first of eight registers with a bit for each vector whose interrupt is in service: see
    /// [`in_service`].
    InService = 0x100,
    /// The first of eight registers with a bit for each vector whose interrupt has come and is not taken yet:
    /// see [`in_service`].
    Requested = 0x200,
    /// What went wrong: see [`Errors`].
    ErrorStatus = 0x280,
    /// The entry of the local vector table for machine checks that were corrected.
    LvtCorrected = 0x2f0,
    /// Interrupt command, the lower half: writing it sends.
    IcrLow = 0x300,
    /// Interrupt command, the upper half. There is none in x2APIC mode: see [`Command::x2apic`].
    IcrHigh = 0x310,
    /// The timer's entry of the local vector table.
    LvtTimer = 0x320,
    /// That of the CPU's temperature.
    LvtThermal = 0x330,
    /// That of the CPU's performance counters.
    LvtPerformance = 0x340,
    /// That of the first line, the legacy PIC's on a PC.
    LvtLint0 = 0x350,
    /// That of the second line, the NMI's on a PC.
    LvtLint1 = 0x360,
    /// That of the APIC's errors.
    LvtError = 0x370,
    /// Where the timer starts from.
    InitialCount = 0x380,
    /// Where the timer is.
    CurrentCount = 0x390,
    /// By how much the timer's clock is divided.
    Divide = 0x3e0,
}

impl Register {
    /// Returns its byte offset in the xAPIC's page, where it has 32 bits.
    pub const fn offset(self) -> u32 {
        self as u32
    }

    /// Returns its MSR in x2APIC mode (11.12.1.2).
    pub const fn msr(self) -> u32 {
        X2APIC_BASE + (self.offset() >> 4)
    }
}

/// Returns the id of a local APIC in xAPIC mode, whose [`Register::Id`] has this value (10.4.6). In x2APIC
/// mode it is the value itself.
pub const fn xapic_id(register: u32) -> u32 {
    register >> 24
}

/// Returns which of the eight registers from [`Register::InService`] on has the bit of a vector, and the
/// bit (10.8.4, figure 10-20). Those from [`Register::Requested`] on are the same.
pub const fn in_service(vector: u8) -> (u32, u32) {
    (vector as u32 / 32, 1 << (vector % 32))
}

/// Returns whether a local APIC with this [`Register::Version`] has an entry of the local vector table:
/// it tells the number of the last one (10.4.8), and they came in this order (10.5.1).
pub const fn has_entry(version: u32, entry: Register) -> bool {
    let last = version >> 16 & 0xff;
    match entry {
        Register::LvtPerformance => last >= 4,
        Register::LvtThermal => last >= 5,
        Register::LvtCorrected => last >= 6,
        _ => true,
    }
}

/// Returns whether a CPU can have this id in xAPIC mode.
pub const fn is_xapic_id(lapic_id: u32) -> bool {
    lapic_id < XAPIC_BROADCAST
}

/// Returns whether [`Register::IcrLow`], as read in xAPIC mode, says that the last interrupt is still
/// pending.
pub const fn is_pending(icr_low: u32) -> bool {
    icr_low & DELIVERY_PENDING != 0
}

/// An interrupt for another CPU: the lower half of the ICR (11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(u32);

impl Command {
    /// Bit of the ICR: assert, which all but a de-assert of INIT, from before the Pentium 4, are.
    const ASSERT: u32 = 1 << 14;

    /// A non-maskable interrupt.
    pub const NMI: Self = Self(0b100 << 8 | Self::ASSERT);

    /// The CPU drops what it does and waits for a start.
    pub const INIT: Self = Self(0b101 << 8 | Self::ASSERT);

    /// Returns the command by which a CPU that waits for a start begins, in real mode, at the first
    /// byte of the page at this physical address; `None` if it is not a page's first byte below 1
    /// MiB (11.6.1, 10.4.4.2).
    pub const fn startup(page: u64) -> Option<Self> {
        if page & 0xfff != 0 || page >> 20 != 0 {
            return None;
        }
        Some(Self(0b110 << 8 | Self::ASSERT | (page >> 12) as u32))
    }

    /// Returns the interrupt of this vector.
    pub const fn fixed(vector: u8) -> Self {
        Self(Self::ASSERT | vector as u32)
    }

    /// Returns the values for [`Register::IcrHigh`] and then for [`Register::IcrLow`] in xAPIC mode;
    /// `None` if the CPU has no id in it.
    pub const fn xapic(self, lapic_id: u32) -> Option<(u32, u32)> {
        if is_xapic_id(lapic_id) {
            Some((lapic_id << 24, self.0))
        } else {
            None
        }
    }

    /// Returns the value for the MSR of [`Register::IcrLow`] in x2APIC mode (11.12.9).
    pub const fn x2apic(self, lapic_id: u32) -> u64 {
        (lapic_id as u64) << 32 | self.0 as u64
    }
}

/// What [`Register::ErrorStatus`] says (figure 11-9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errors(pub u32);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_msrs_as_table_11_6_has_them() {
        for (register, msr) in [
            (Register::Id, 0x802),
            (Register::TaskPriority, 0x808),
            (Register::Eoi, 0x80b),
            (Register::Spurious, 0x80f),
            (Register::ErrorStatus, 0x828),
            (Register::IcrLow, 0x830),
            (Register::LvtTimer, 0x832),
            (Register::LvtLint0, 0x835),
            (Register::LvtLint1, 0x836),
            (Register::LvtError, 0x837),
            (Register::InitialCount, 0x838),
            (Register::CurrentCount, 0x839),
            (Register::Divide, 0x83e),
        ] {
            assert_eq!(register.msr(), msr, "{register:?}");
        }
    }

    #[test]
    fn older_apics_have_fewer_entries() {
        // Of a P6, of QEMU's, and of what came with Nehalem.
        for (version, entries) in [(0x3_0011, 0), (0x4_0014, 1), (0x5_0014, 2), (0x6_0015, 3)] {
            let later = [
                Register::LvtPerformance,
                Register::LvtThermal,
                Register::LvtCorrected,
            ];
            let there = later.into_iter().filter(|&entry| has_entry(version, entry));
            assert_eq!(there.count(), entries, "{version:#x}");
            assert!(has_entry(version, Register::LvtLint1));
        }
    }

    #[test]
    fn a_vector_s_bit_is_where_the_manual_has_it() {
        assert_eq!(in_service(0x20), (1, 1));
        assert_eq!(in_service(0xff), (7, 1 << 31));
    }

    #[test]
    fn commands_are_those_that_the_manual_spells_out() {
        // The INIT-SIPI-SIPI sequence (10.4.4.2).
        assert_eq!(Command::INIT.xapic(1), Some((1 << 24, 0x4500)));
        let startup = Command::startup(0x9_8000).unwrap();
        assert_eq!(startup.xapic(0xfe), Some((0xfe << 24, 0x4698)));
        assert_eq!(Command::NMI.x2apic(0x1_0000), 0x1_0000_0000_4400);
        assert_eq!(Command::fixed(0xf0).x2apic(2), 0x2_0000_40f0);
    }

    #[test]
    fn what_a_mode_can_not_say_is_refused() {
        assert_eq!(Command::NMI.xapic(0xff), None);
        assert_eq!(Command::NMI.xapic(0x100), None);
        assert!(is_xapic_id(0xfe) && !is_xapic_id(0xff));
        for page in [0x800, 0x10_0000, 0x1_0000_0000] {
            assert_eq!(Command::startup(page), None, "{page:#x}");
        }
    }

    #[test]
    fn a_command_is_pending_until_it_is_delivered() {
        let (_, sent) = Command::NMI.xapic(0).unwrap();
        assert!(!is_pending(sent) && is_pending(sent | 1 << 12));
    }

    #[test]
    fn every_error_has_words() {
        assert_eq!(Errors(0).to_string(), "an error that it says nothing of");
        let two = Errors(1 << 5 | 1 << 7).to_string();
        let expected = "sent an illegal vector; was asked for a register that it does not have";
        assert_eq!(two, expected);
        assert_eq!(Errors(!0).to_string().matches("; ").count(), 7);
    }
}
