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

/// Returns the differences between the registers that a CPU has and those that it should have, each list
/// without a register twice: first of what it should have, in that order, then what it has beyond.
pub fn differences(
    found: impl Iterator<Item = (u32, u64)> + Clone,
    wanted: impl Iterator<Item = (u32, u64)> + Clone,
) -> impl Iterator<Item = Difference> {
    let have = found.clone();
    let wrong = wanted.clone().map(move |(register, wanted)| Difference {
        register,
        found: value_of(register, have.clone()),
        wanted: Some(wanted),
    });
    let beyond = found.map(move |(register, found)| Difference {
        register,
        found: Some(found),
        wanted: value_of(register, wanted.clone()),
    });
    wrong
        .filter(|difference| difference.found != difference.wanted)
        .chain(beyond.filter(|difference| difference.wanted.is_none()))
}

fn value_of(register: u32, mut registers: impl Iterator<Item = (u32, u64)>) -> Option<u64> {
    let (_, value) = registers.find(|&(other, _)| other == register)?;
    Some(value)
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = RegisterName(self.register);
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

/// The name of a register, by its number as an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterName(pub u32);

impl fmt::Display for RegisterName {
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

    fn said(found: &[(u32, u64)], wanted: &[(u32, u64)]) -> Vec<String> {
        differences(found.iter().copied(), wanted.iter().copied())
            .map(|difference| difference.to_string())
            .collect()
    }

    #[test]
    fn each_difference_is_named_with_both_values() {
        assert_eq!(said(&WANTED, &WANTED), [""; 0]);
        let mut found = WANTED;
        found[2].1 = 0x10;
        let tsc_adjust = "has 0x10 in IA32_TSC_ADJUST instead of 0x0";
        assert_eq!(said(&found, &WANTED), [tsc_adjust]);
        found[1].1 = 0;
        let default = "has 0x0 in IA32_MTRR_DEF_TYPE instead of 0xc06";
        assert_eq!(said(&found, &WANTED), [default, tsc_adjust]);
    }

    #[test]
    fn a_register_that_only_one_of_them_has_is_a_difference() {
        let lacks = "has no IA32_TSC_ADJUST, which should be 0x0";
        assert_eq!(said(&WANTED[..2], &WANTED), [lacks]);
        let beyond = "has 0x0 in IA32_TSC_ADJUST, which the BSP lacks";
        assert_eq!(said(&WANTED, &WANTED[..2]), [beyond]);
        let lacks = "has no IA32_MTRR_DEF_TYPE, which should be 0xc06";
        assert_eq!(said(&[WANTED[0], WANTED[2]], &WANTED), [lacks]);
        assert_eq!(said(&WANTED[1..], &[WANTED[0], WANTED[2]]).len(), 2);
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
