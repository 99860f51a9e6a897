//! What must be the same on every CPU, or is promised of each: registers by their numbers, what a CPU was
//! found to have in them, and what it should have.

use core::fmt;

use crate::lapic::{BASE_IS_BSP, IA32_APIC_BASE, Register};
use crate::mtrr;

/// What is added to the time-stamp counter (Intel SDM vol. 3B, 18.17.3).
pub const IA32_TSC_ADJUST: u32 = 0x3b;

/// The number under which a CPU's local APIC id is compared: the MSR of x2APIC mode, though in xAPIC mode
/// it is read elsewhere.
pub const LAPIC_ID: u32 = Register::Id.msr();

/// Returns what of a register's value is the same on all CPUs: of IA32_APIC_BASE all but the bit that
/// marks the BSP.
pub const fn common(register: u32, value: u64) -> u64 {
    if register == IA32_APIC_BASE {
        value & !BASE_IS_BSP
    } else {
        value
    }
}

/// A register in which a CPU is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its number, as an MSR.
    pub register: u32,
    /// What the CPU has; `None` if it has no such register.
    pub found: Option<u64>,
    /// What it should have; `None` if it should have no such register.
    pub wanted: Option<u64>,
}

impl Difference {
    /// Returns the first difference between the registers of a CPU and those that it should have. A
    /// register that only one of the two lists has is a difference: both have the same order.
    pub fn first(
        found: impl IntoIterator<Item = (u32, u64)>,
        wanted: impl IntoIterator<Item = (u32, u64)>,
    ) -> Option<Self> {
        let (mut found, mut wanted) = (found.into_iter(), wanted.into_iter());
        loop {
            return Some(match (found.next(), wanted.next()) {
                (None, None) => return None,
                (Some(found), Some(wanted)) if found == wanted => continue,
                (Some((register, found)), Some((other, wanted))) if register == other => Self {
                    register,
                    found: Some(found),
                    wanted: Some(wanted),
                },
                (_, Some((register, wanted))) => Self {
                    register,
                    found: None,
                    wanted: Some(wanted),
                },
                (Some((register, found)), None) => Self {
                    register,
                    found: Some(found),
                    wanted: None,
                },
            });
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Name(self.register);
        match (self.found, self.wanted) {
            (Some(found), Some(wanted)) => {
                write!(f, "has {found:#x} in {name} instead of {wanted:#x}")
            }
            (None, Some(wanted)) => write!(f, "has no {name}, which should be {wanted:#x}"),
            (Some(found), None) => write!(f, "has {found:#x} in {name}, which the BSP lacks"),
            (None, None) => write!(f, "has no {name}"),
        }
    }
}

/// A register's name.
struct Name(u32);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IA32_APIC_BASE => f.write_str("IA32_APIC_BASE"),
            IA32_TSC_ADJUST => f.write_str("IA32_TSC_ADJUST"),
            LAPIC_ID => f.write_str("its local APIC's id register"),
            register if mtrr::write_name(register, f)? => Ok(()),
            register => write!(f, "MSR {register:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: [(u32, u64); 3] = [(IA32_APIC_BASE, 0xfee0_0800), (0x2ff, 0xc06), (0x3b, 0)];

    fn said(found: &[(u32, u64)], wanted: &[(u32, u64)]) -> Option<String> {
        let difference = Difference::first(found.iter().copied(), wanted.iter().copied());
        difference.map(|difference| difference.to_string())
    }

    #[test]
    fn the_first_difference_is_named_with_both_values() {
        assert_eq!(said(&WANTED, &WANTED), None);
        let mut found = WANTED;
        found[2].1 = 0x10;
        let expected = "has 0x10 in IA32_TSC_ADJUST instead of 0x0";
        assert_eq!(said(&found, &WANTED).unwrap(), expected);
        found[1].1 = 0;
        let expected = "has 0x0 in IA32_MTRR_DEF_TYPE instead of 0xc06";
        assert_eq!(said(&found, &WANTED).unwrap(), expected);
    }

    #[test]
    fn a_register_that_only_one_of_them_has_is_a_difference() {
        let expected = "has no IA32_TSC_ADJUST, which should be 0x0";
        assert_eq!(said(&WANTED[..2], &WANTED).unwrap(), expected);
        let expected = "has 0x0 in IA32_TSC_ADJUST, which the BSP lacks";
        assert_eq!(said(&WANTED, &WANTED[..2]).unwrap(), expected);
        let expected = "has no IA32_MTRR_DEF_TYPE, which should be 0xc06";
        assert_eq!(said(&[WANTED[0], WANTED[2]], &WANTED).unwrap(), expected);
    }

    #[test]
    fn only_the_bsp_s_mark_differs_between_cpus() {
        assert_eq!(common(IA32_APIC_BASE, 0xfee0_0900), 0xfee0_0800);
        assert_eq!(common(0x2ff, 0x100), 0x100);
        let odd = [(LAPIC_ID, 2), (0x17, 0)].map(|(register, found)| Difference {
            register,
            found: Some(found),
            wanted: Some(1),
        });
        assert_eq!(
            odd[0].to_string(),
            "has 0x2 in its local APIC's id register instead of 0x1"
        );
        assert_eq!(odd[1].to_string(), "has 0x0 in MSR 0x17 instead of 0x1");
    }
}
