//! Machine checks: what a CPU reports of errors of the hardware (Intel SDM vol. 3B, chapter 16; AMD APM
//! vol. 2, chapter 9), and what a PC's chipset says about an NMI.

use core::fmt;

/// What there is: the MSR IA32_MCG_CAP (16.3.1.1).
pub const IA32_MCG_CAP: u32 = 0x179;
/// See [`GlobalStatus`].
pub const IA32_MCG_STATUS: u32 = 0x17a;
/// Which errors are reported at all, where [`Capabilities::has_control`] says that it is there.
pub const IA32_MCG_CTL: u32 = 0x17b;

/// What to write to IA32_MCG_CTL and to a bank's control, to have every error reported (16.3.2.1).
pub const ALL: u64 = u64::MAX;

/// The first bank's control register; each bank has four in a row (16.3.2).
const FIRST_BANK: u32 = 0x400;

/// Returns a bank's control register: which of its errors are reported.
pub const fn control(bank: u32) -> u32 {
    FIRST_BANK + 4 * bank
}

/// Returns a bank's status register: see [`BankStatus`].
pub const fn status(bank: u32) -> u32 {
    control(bank) + 1
}

/// Returns a bank's address register, to be read only if [`BankStatus::has_address`].
pub const fn address(bank: u32) -> u32 {
    control(bank) + 2
}

/// Returns a bank's register of other details, to be read only if [`BankStatus::has_misc`].
pub const fn misc(bank: u32) -> u32 {
    control(bank) + 3
}

/// Returns the first bank whose control an operating system writes: of Intel's before Nehalem (family 6,
/// models below 0x1a), the first bank is the firmware's (16.3.2.1).
pub const fn first_controlled(is_intel: bool, family: u8, model: u8) -> u32 {
    if is_intel && family == 6 && model < 0x1a {
        1
    } else {
        0
    }
}

/// What IA32_MCG_CAP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Returns how many banks there are.
    pub const fn banks(self) -> u32 {
        (self.0 & 0xff) as u32
    }

    /// Returns whether there is an IA32_MCG_CTL.
    pub const fn has_control(self) -> bool {
        self.0 >> 8 & 1 != 0
    }
}

/// What IA32_MCG_STATUS says of the machine check under way (16.3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalStatus(pub u64);

impl fmt::Display for GlobalStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |bit: u32| self.0 >> bit & 1 != 0;
        let restart = match bit(0) {
            true => "what was interrupted could go on",
            false => "what was interrupted can't go on",
        };
        let place = match bit(1) {
            true => "the error is of the instruction at rip",
            false => "the error is of no instruction in particular",
        };
        write!(f, "{restart}; {place}")
    }
}

/// What a bank's status says (16.3.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BankStatus(pub u64);

impl BankStatus {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// Returns whether the bank reports an error.
    pub const fn is_valid(self) -> bool {
        self.bit(63)
    }

    /// Returns whether the bank's address register says where.
    pub const fn has_address(self) -> bool {
        self.bit(58)
    }

    /// Returns whether the bank's register of other details says something.
    pub const fn has_misc(self) -> bool {
        self.bit(59)
    }

    /// Returns the kind of the error (16.9, tables 16-8 to 16-10).
    const fn kind(self) -> &'static str {
        // Bit 12 says that such errors are counted rather than reported one by one.
        let code = self.0 & 0xefff;
        match code {
            0x0000 => "no error",
            0x0001 => "an unclassified error",
            0x0002 => "a parity error in the microcode",
            0x0003 => "an error reported by another part of the machine",
            0x0004 => "a mismatch of redundant CPUs",
            0x0005 => "a parity error within the CPU",
            0x0400 => "a time-out within the CPU",
            0x0e0b => "an I/O error",
            _ if code & 0xfc00 == 0x0400 => "an unclassified error within the CPU",
            _ if code & 0xfffc == 0x000c => "a cache error",
            _ if code & 0xfff0 == 0x0010 => "a TLB error",
            _ if code & 0xff80 == 0x0080 => "an error of the memory controller",
            _ if code & 0xff00 == 0x0100 => "a cache error",
            _ if code & 0xf800 == 0x0800 => "an error of a bus or an interconnect",
            _ => "an error that only the CPU's maker knows",
        }
    }
}

impl fmt::Display for BankStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        f.write_str(match self.bit(61) {
            true => ", not corrected",
            false => ", corrected",
        })?;
        if self.bit(57) {
            f.write_str(", the CPU's state is corrupt")?;
        }
        if self.bit(62) {
            f.write_str(", and others before it")?;
        }
        Ok(())
    }
}

/// What the NMI status and control register, port 0x61, says of an NMI (Intel ICH9 datasheet, 13.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmiStatus(pub u8);

impl NmiStatus {
    /// The port.
    pub const PORT: u16 = 0x61;

    /// What an absent port reads as.
    const ABSENT: u8 = 0xff;

    /// The bits that are written back as they are: the speaker's and the timer's, and those that keep
    /// an error's NMI out and, once set, forget the error.
    const WRITABLE: u8 = 0x0f;
    const FORGET: u8 = 0b11 << 2;

    /// Returns whether there is such a port.
    pub const fn is_there(self) -> bool {
        self.0 != Self::ABSENT
    }

    /// Returns whether memory or a bus has an error.
    pub const fn is_error(self) -> bool {
        self.is_there() && self.0 >> 6 != 0
    }

    /// Returns what to write to the port, one after the other, to clear errors and have later ones reported.
    pub const fn forgetting(self) -> [u8; 2] {
        let kept = self.0 & Self::WRITABLE & !Self::FORGET;
        [kept | Self::FORGET, kept]
    }
}

impl fmt::Display for NmiStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 >> 6 {
            _ if !self.is_there() => "the chipset has no word for it",
            0b00 => "the chipset knows of no error",
            0b01 => "a device on an old bus reports an error (IOCHK#)",
            0b10 => "memory or a PCI bus has an error (SERR#)",
            _ => "memory or a PCI bus (SERR#) and a device on an old bus (IOCHK#) report errors",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banks_registers_are_where_the_manual_has_them() {
        // IA32_MC0_CTL, IA32_MC0_STATUS, IA32_MC9_ADDR, IA32_MC28_MISC (SDM vol. 4, table 2-2).
        let registers = [control(0), status(0), address(9), misc(28)];
        assert_eq!(registers, [0x400, 0x401, 0x426, 0x473]);
        let capabilities = Capabilities(0x0100_010a);
        assert_eq!(
            (capabilities.banks(), capabilities.has_control()),
            (10, true)
        );
        assert!(!Capabilities(6).has_control());
    }

    #[test]
    fn the_first_bank_of_old_cpus_is_the_firmware_s() {
        assert_eq!(first_controlled(true, 6, 0x17), 1);
        assert_eq!(first_controlled(true, 6, 0x1a), 0);
        assert_eq!(first_controlled(true, 15, 4), 0);
        assert_eq!(first_controlled(false, 6, 0x17), 0);
    }

    #[test]
    fn the_global_status_says_whether_it_could_go_on_and_where() {
        let said = [0b00, 0b11].map(|status| GlobalStatus(status).to_string());
        assert_eq!(
            said,
            [
                "what was interrupted can't go on; the error is of no instruction in particular",
                "what was interrupted could go on; the error is of the instruction at rip",
            ]
        );
    }

    #[test]
    fn errors_have_words() {
        for (status, words) in [
            (
                0xbd80_0000_0010_0134,
                "a cache error, not corrected, has address, has misc",
            ),
            (
                0xfe00_0000_0000_0e0b,
                "an I/O error, not corrected, the CPU's state is corrupt, and others before it, has address, has misc",
            ),
            (
                0x8800_0000_0000_109f,
                "an error of the memory controller, corrected, has misc",
            ),
            (0x8000_0000_0000_0017, "a TLB error, corrected"),
            (0x8000_0000_0000_0000, "no error, corrected"),
            (0x8000_0000_0000_0001, "an unclassified error, corrected"),
            (
                0x8000_0000_0000_0002,
                "a parity error in the microcode, corrected",
            ),
            (
                0x8000_0000_0000_0003,
                "an error reported by another part of the machine, corrected",
            ),
            (
                0x8000_0000_0000_0004,
                "a mismatch of redundant CPUs, corrected",
            ),
            (
                0x8000_0000_0000_0005,
                "a parity error within the CPU, corrected",
            ),
            (
                0x8000_0000_0000_0c0f,
                "an error of a bus or an interconnect, corrected",
            ),
            (0x8000_0000_0000_000e, "a cache error, corrected"),
            (
                0x8000_0000_0000_0400,
                "a time-out within the CPU, corrected",
            ),
            (
                0x8000_0000_0000_0401,
                "an unclassified error within the CPU, corrected",
            ),
            (
                0x8000_0000_0000_0006,
                "an error that only the CPU's maker knows, corrected",
            ),
        ] {
            let status = BankStatus(status);
            assert!(status.is_valid());
            let mut said = status.to_string();
            if status.has_address() {
                said += ", has address";
            }
            if status.has_misc() {
                said += ", has misc";
            }
            assert_eq!(said, words);
        }
        assert!(!BankStatus(0x7fff_ffff_ffff_ffff).is_valid());
        let words = GlobalStatus(0b101).to_string();
        assert!(words.starts_with("what was interrupted could go on; the error is of no"));
    }

    #[test]
    fn nmi_reasons_are_named_and_forgotten() {
        for (status, is_error, word) in [
            (0x00, false, "no error"),
            (0x30, false, "no error"),
            (0x70, true, "IOCHK"),
            (0xb3, true, "SERR"),
            (0xc0, true, "(SERR#) and"),
            (0xff, false, "no word"),
        ] {
            let status = NmiStatus(status);
            assert_eq!(status.is_error(), is_error);
            assert!(status.to_string().contains(word), "{status}");
        }
        // The speaker's bits stay; those that only report are not written.
        assert_eq!(NmiStatus(0xb3).forgetting(), [0x0f, 0x03]);
        assert_eq!(NmiStatus(0x4c).forgetting(), [0x0c, 0x00]);
    }
}
