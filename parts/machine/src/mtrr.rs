//! Memory-type range registers: how the CPUs cache each part of physical memory, whatever the page tables
//! say (Intel SDM vol. 3A, 12.11; AMD APM vol. 2, 7.7 and 7.9).

use core::fmt;
use core::ops::Range;

/// What there is: the number of pairs of variable-range registers, and whether there are the fixed-range
/// ones (12.11.1).
pub const IA32_MTRRCAP: u32 = 0xfe;
/// Whether the MTRRs are in use, and the type of memory that none of them covers (12.11.2.1).
pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// AMD's system configuration (APM vol. 2, 7.9.4).
pub const SYSCFG: u32 = 0xc001_0010;
/// The end of AMD's memory above 4 GiB (APM vol. 2, 7.9.4).
pub const TOP_MEM2: u32 = 0xc001_001d;

/// The first pair of variable-range registers: base, mask (12.11.2.3).
const FIRST_VARIABLE: u32 = 0x200;

/// Bits of IA32_MTRRCAP.
const CAP_COUNT: u64 = 0xff;
const CAP_FIXED: u64 = 1 << 8;

/// Bits of IA32_MTRR_DEF_TYPE: the fixed-range registers are in use, and all of them are.
const FIXED_ENABLED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

/// Bit of a mask register: the pair is in use.
const VALID: u64 = 1 << 11;

/// Bits of SYSCFG: TOP_MEM2 is in use, and memory between 4 GiB and there is write-back by default.
const TOM2_WRITE_BACK: u64 = 1 << 21 | 1 << 22;
/// The bits of TOP_MEM2 that are an address.
const TOM2_ADDRESS: u64 = 0x000f_ffff_ff80_0000;
const FOUR_GIB: u64 = 1 << 32;

/// Bits of an address within the smallest range, a page.
const PAGE_BITS: u64 = 0xfff;

/// The fixed-range registers: number, name, address of the first of eight ranges, bytes in each (12.11.2.2,
/// table 12-9).
const FIXED: [(u32, &str, u64, u64); 11] = [
    (0x250, "FIX64K_00000", 0x0_0000, 0x1_0000),
    (0x258, "FIX16K_80000", 0x8_0000, 0x4000),
    (0x259, "FIX16K_A0000", 0xa_0000, 0x4000),
    (0x268, "FIX4K_C0000", 0xc_0000, 0x1000),
    (0x269, "FIX4K_C8000", 0xc_8000, 0x1000),
    (0x26a, "FIX4K_D0000", 0xd_0000, 0x1000),
    (0x26b, "FIX4K_D8000", 0xd_8000, 0x1000),
    (0x26c, "FIX4K_E0000", 0xe_0000, 0x1000),
    (0x26d, "FIX4K_E8000", 0xe_8000, 0x1000),
    (0x26e, "FIX4K_F0000", 0xf_0000, 0x1000),
    (0x26f, "FIX4K_F8000", 0xf_8000, 0x1000),
];

/// Ranges in a fixed-range register.
const PER_FIXED: u64 = 8;

/// Returns the MTRRs of a CPU whose IA32_MTRRCAP has this value, that one first.
pub fn registers(capabilities: u64) -> impl Iterator<Item = u32> {
    let has_fixed = capabilities & CAP_FIXED != 0;
    let fixed = FIXED.into_iter().filter(move |_| has_fixed);
    let count = (capabilities & CAP_COUNT) as u32;
    [IA32_MTRRCAP, IA32_MTRR_DEF_TYPE]
        .into_iter()
        .chain(fixed.map(|(register, ..)| register))
        .chain(FIRST_VARIABLE..FIRST_VARIABLE + 2 * count)
}

/// Returns whether a register is a variable-range one: a base, or the mask that follows it.
pub const fn is_variable(register: u32) -> bool {
    FIRST_VARIABLE <= register && register < FIXED[0].0
}

/// Writes the manual's name of an MTRR. `false`: it is none.
pub(crate) fn write_name(register: u32, f: &mut fmt::Formatter<'_>) -> Result<bool, fmt::Error> {
    match register {
        IA32_MTRRCAP => f.write_str("IA32_MTRRCAP")?,
        IA32_MTRR_DEF_TYPE => f.write_str("IA32_MTRR_DEF_TYPE")?,
        SYSCFG => f.write_str("SYSCFG")?,
        TOP_MEM2 => f.write_str("TOP_MEM2")?,
        // As many as fit before the fixed-range registers, which is more than any CPU has.
        _ if is_variable(register) => {
            let kind = if register.is_multiple_of(2) {
                "BASE"
            } else {
                "MASK"
            };
            let number = (register - FIRST_VARIABLE) / 2;
            write!(f, "IA32_MTRR_PHYS{kind}{number}")?;
        }
        _ => match FIXED.iter().find(|&&(number, ..)| number == register) {
            Some((_, name, ..)) => write!(f, "IA32_MTRR_{name}")?,
            None => return Ok(false),
        },
    }
    Ok(true)
}

/// How memory is cached (12.3, table 12-2; the encodings are those of table 12-8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// Not at all.
    Uncacheable,
    /// Not at all, but writes are gathered.
    WriteCombining,
    /// Reads are; writes go to memory, too.
    WriteThrough,
    /// Reads are; writes go to memory alone.
    WriteProtected,
    /// Wholly, as ordinary memory is.
    WriteBack,
}

impl MemoryType {
    /// Returns the type of an encoding. Those that are reserved, which a CPU does not let anybody write,
    /// count as uncacheable.
    const fn from_bits(bits: u64) -> Self {
        match bits & 0xff {
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => Self::Uncacheable,
        }
    }

    /// Returns the type where ranges of two types overlap (12.11.4.1). Where the manual leaves it
    /// undefined it counts as uncacheable, so that nobody relies on it.
    const fn overlapping(self, other: Self) -> Self {
        match (self, other) {
            _ if self as u8 == other as u8 => self,
            (Self::WriteThrough, Self::WriteBack) | (Self::WriteBack, Self::WriteThrough) => {
                Self::WriteThrough
            }
            _ => Self::Uncacheable,
        }
    }
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Uncacheable => "UC",
            Self::WriteCombining => "WC",
            Self::WriteThrough => "WT",
            Self::WriteProtected => "WP",
            Self::WriteBack => "WB",
        })
    }
}

/// What a CPU's MTRRs say, by the values that were read from them.
#[derive(Clone, Copy, Debug)]
pub struct Mtrrs<'a> {
    values: &'a [(u32, u64)],
    /// One past the highest physical address.
    limit: u64,
}

impl<'a> Mtrrs<'a> {
    /// Takes the values of [`registers`], each with its register's number, on a CPU whose physical
    /// addresses have this number of bits (more than 52, the most there can be, count as 52). Other
    /// registers among them do no harm; a register that is missing counts as 0. AMD's [`SYSCFG`] and
    /// [`TOP_MEM2`] belong to them where the CPU has those.
    pub const fn new(values: &'a [(u32, u64)], physical_bits: u8) -> Self {
        let bits = if physical_bits > 52 {
            52
        } else {
            physical_bits
        };
        Self {
            values,
            limit: 1 << bits,
        }
    }

    fn value(&self, register: u32) -> u64 {
        let mut values = self.values.iter();
        values
            .find(|(number, _)| *number == register)
            .map_or(0, |&(_, value)| value)
    }

    /// Returns whether the MTRRs are in use. Where they are not, or there are none, they say nothing.
    pub fn are_enabled(&self) -> bool {
        self.value(IA32_MTRR_DEF_TYPE) & ENABLED != 0
    }

    /// Returns the type of the page that has this physical address: uncacheable where the MTRRs are off, as
    /// the manual has it (12.11.2.1).
    pub fn kind_at(&self, address: u64) -> MemoryType {
        if !self.are_enabled() {
            return MemoryType::Uncacheable;
        }
        if let Some(kind) = self.fixed_at(address) {
            return kind;
        }
        let covering = self.variable().filter(|pair| pair.covers(address));
        covering
            .map(|pair| pair.kind)
            .reduce(MemoryType::overlapping)
            .unwrap_or_else(|| {
                if self.amd_write_back().contains(&address) {
                    MemoryType::WriteBack
                } else {
                    MemoryType::from_bits(self.value(IA32_MTRR_DEF_TYPE))
                }
            })
    }

    /// Returns the parts of `within`, from its start to its end, each with its type, which is not that of
    /// the next: where one ends, the type changes.
    pub fn ranges(&self, within: Range<u64>) -> impl Iterator<Item = (Range<u64>, MemoryType)> {
        let mut start = within.start;
        core::iter::from_fn(move || {
            if start >= within.end {
                return None;
            }
            let kind = self.kind_at(start);
            let mut end = start;
            while end < within.end && self.kind_at(end) == kind {
                end = self.next_border(end).min(within.end);
            }
            let range = start..end;
            start = end;
            Some((range, kind))
        })
    }

    /// Returns the type that a fixed-range register gives an address (12.11.2.2).
    fn fixed_at(&self, address: u64) -> Option<MemoryType> {
        let is_used = self.value(IA32_MTRRCAP) & CAP_FIXED != 0
            && self.value(IA32_MTRR_DEF_TYPE) & FIXED_ENABLED != 0;
        if !is_used {
            return None;
        }
        let (register, _, start, bytes) = FIXED
            .into_iter()
            .find(|&(_, _, start, bytes)| (start..start + PER_FIXED * bytes).contains(&address))?;
        let number = (address - start) / bytes;
        Some(MemoryType::from_bits(self.value(register) >> (8 * number)))
    }

    /// Returns the pairs of variable-range registers that are in use.
    fn variable(&self) -> impl Iterator<Item = Variable> {
        let count = (self.value(IA32_MTRRCAP) & CAP_COUNT) as u32;
        (0..count).filter_map(move |pair| {
            let register = FIRST_VARIABLE + 2 * pair;
            let (base, mask) = (self.value(register), self.value(register + 1));
            (mask & VALID != 0).then(|| Variable::new(base, mask, self.limit))
        })
    }

    /// Returns the memory whose default type is write-back, whatever IA32_MTRR_DEF_TYPE says: AMD's above
    /// 4 GiB.
    fn amd_write_back(&self) -> Range<u64> {
        if self.value(SYSCFG) & TOM2_WRITE_BACK == TOM2_WRITE_BACK {
            FOUR_GIB..self.value(TOP_MEM2) & TOM2_ADDRESS
        } else {
            0..0
        }
    }

    /// Returns the first address above this one at which the type may change.
    fn next_border(&self, address: u64) -> u64 {
        let fixed = FIXED.into_iter().filter_map(|(_, _, start, bytes)| {
            let inside = (start..start + PER_FIXED * bytes).contains(&address);
            inside.then(|| (address / bytes + 1) * bytes)
        });
        let variable = self.variable().map(|pair| pair.next_border(address));
        let amd = self.amd_write_back();
        fixed
            .chain(variable)
            .chain([amd.start, amd.end])
            .filter(|&border| border > address)
            .min()
            .unwrap_or(u64::MAX)
    }
}

/// One pair of variable-range registers (12.11.2.3): what it covers in each period of this number of
/// bytes, both powers of two.
///
/// A mask that has no ones above some bit covers the same in every 2^bit bytes, as firmware has it that
/// took the CPU's addresses for narrower. One with zeros between its ones covers many pieces, which the
/// manual allows and advises against: it counts as one that covers all from its first piece to its last,
/// uncacheable.
#[derive(Clone, Copy, Debug)]
struct Variable {
    start: u64,
    length: u64,
    period: u64,
    kind: MemoryType,
}

impl Variable {
    fn new(base: u64, mask: u64, limit: u64) -> Self {
        let kind = MemoryType::from_bits(base);
        let mask = mask & (limit - 1) & !PAGE_BITS;
        let Some(highest) = mask.checked_ilog2() else {
            // Every address agrees with it in no bit at all.
            return Self {
                start: 0,
                length: limit,
                period: limit,
                kind,
            };
        };
        let period = 1 << highest << 1;
        let free = (period - 1) & !mask;
        let is_contiguous = (free + 1).is_power_of_two();
        Self {
            start: base & mask,
            length: free + 1,
            period,
            kind: if is_contiguous {
                kind
            } else {
                MemoryType::Uncacheable
            },
        }
    }

    const fn covers(&self, address: u64) -> bool {
        let offset = address % self.period;
        self.start <= offset && offset - self.start < self.length
    }

    const fn next_border(&self, address: u64) -> u64 {
        let offset = address % self.period;
        let first = address - offset;
        let end = self.start + self.length;
        if offset < self.start {
            first + self.start
        } else if offset < end {
            first + end
        } else {
            first + self.period + self.start
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryType::{Uncacheable, WriteBack, WriteCombining, WriteProtected, WriteThrough};
    use proptest::prelude::*;
    use std::string::String;
    use std::vec::Vec;

    const PAGE: u64 = 0x1000;
    /// Addresses in the model are so wide: memory ends at 16 MiB.
    const BITS: u8 = 24;
    const END: u64 = 1 << BITS;

    /// A firmware's MTRRs for 3 GiB of memory below 4 GiB and 1 GiB above, as SeaBIOS has them.
    const SEABIOS: [(u32, u64); 6] = [
        (IA32_MTRRCAP, 0x508),
        (IA32_MTRR_DEF_TYPE, 0xc06),
        (0x250, 0x0606_0606_0606_0606),
        (0x258, 0x0606_0606_0606_0606),
        (0x200, 0xc000_0000),
        (0x201, 0xff_c000_0800),
    ];

    fn ranges(values: &[(u32, u64)], bits: u8, within: Range<u64>) -> Vec<(u64, u64, MemoryType)> {
        let mtrrs = Mtrrs::new(values, bits);
        mtrrs
            .ranges(within)
            .map(|(range, kind)| (range.start, range.end, kind))
            .collect()
    }

    #[test]
    fn a_pc_s_memory_is_write_back_and_its_hole_is_not() {
        assert_eq!(
            ranges(&SEABIOS, 40, 0..5 << 30),
            [
                (0, 0xa_0000, WriteBack),
                (0xa_0000, 0x10_0000, Uncacheable),
                (0x10_0000, 0xc000_0000, WriteBack),
                (0xc000_0000, 1 << 32, Uncacheable),
                (1 << 32, 5 << 30, WriteBack),
            ]
        );
        // Without the switch of the fixed ranges, the others and the default reach down to 0.
        let mut values = SEABIOS;
        values[1].1 = 0x806;
        assert_eq!(ranges(&values, 40, 0..PAGE), [(0, PAGE, WriteBack)]);
        // All off.
        values[1].1 = 0x406;
        assert!(!Mtrrs::new(&values, 40).are_enabled());
        assert_eq!(ranges(&values, 40, 0..PAGE), [(0, PAGE, Uncacheable)]);
        assert!(!Mtrrs::new(&[], 40).are_enabled());
    }

    #[test]
    fn amd_s_memory_above_4_gib_is_write_back_by_default() {
        let mut values = [
            (IA32_MTRRCAP, 0x508),
            (IA32_MTRR_DEF_TYPE, 0x800),
            (0x200, 0x6),
            (0x201, 0xffff_8000_0800),
            (0x202, 0x1_8000_0000),
            (0x203, 0xffff_f000_0800),
            (SYSCFG, 0x70_0000),
            (TOP_MEM2, 0x2_4000_0000),
        ];
        assert_eq!(
            ranges(&values, 48, 0..16 << 30),
            [
                (0, 0x8000_0000, WriteBack),
                (0x8000_0000, 1 << 32, Uncacheable),
                (1 << 32, 0x1_8000_0000, WriteBack),
                (0x1_8000_0000, 0x1_9000_0000, Uncacheable),
                (0x1_9000_0000, 0x2_4000_0000, WriteBack),
                (0x2_4000_0000, 16 << 30, Uncacheable),
            ]
        );
        values[6].1 = 0x30_0000;
        assert_eq!(
            ranges(&values, 48, 1 << 32..16 << 30),
            [(1 << 32, 16 << 30, Uncacheable)]
        );
    }

    #[test]
    fn a_mask_that_is_too_short_repeats() {
        // One GiB, with a mask for addresses of 36 bits on a CPU that has 40.
        let values = [
            (IA32_MTRRCAP, 1),
            (IA32_MTRR_DEF_TYPE, 0x806),
            (0x200, 0x4000_0000),
            (0x201, 0xf_c000_0800),
        ];
        let uncached: Vec<_> = (ranges(&values, 40, 0..1 << 38).into_iter())
            .filter(|&(.., kind)| kind == Uncacheable)
            .map(|(start, end, _)| (start >> 30, end >> 30))
            .collect();
        assert_eq!(uncached, [(1, 2), (65, 66), (129, 130), (193, 194)]);
    }

    #[test]
    fn a_mask_with_holes_counts_as_uncacheable_throughout() {
        // Every second page of four, four MiB up.
        let values = [
            (IA32_MTRRCAP, 1),
            (IA32_MTRR_DEF_TYPE, 0x806),
            (0x200, 0x40_1006),
            (0x201, 0xff_d800),
        ];
        assert_eq!(
            ranges(&values, BITS, 0..END),
            [
                (0, 0x40_1000, WriteBack),
                (0x40_1000, 0x40_4000, Uncacheable),
                (0x40_4000, END, WriteBack),
            ]
        );
    }

    #[test]
    fn the_registers_are_those_that_the_cpu_has() {
        let all: Vec<_> = registers(0x508).collect();
        assert_eq!(all.len(), 2 + 11 + 16);
        assert_eq!(all[..3], [IA32_MTRRCAP, IA32_MTRR_DEF_TYPE, 0x250]);
        assert_eq!(all.last(), Some(&0x20f));
        assert_eq!(
            registers(2).collect::<Vec<_>>(),
            [0xfe, 0x2ff, 0x200, 0x201, 0x202, 0x203]
        );
        for register in all {
            assert!(name(register).starts_with("IA32_MTRR"), "{register:#x}");
            assert_eq!(is_variable(register), name(register).contains("PHYS"));
        }
        assert_eq!(name(0x203), "IA32_MTRR_PHYSMASK1");
        assert_eq!(name(0x26f), "IA32_MTRR_FIX4K_F8000");
        assert_eq!(name(0x277), "");
    }

    fn name(register: u32) -> String {
        struct RegisterName(u32);
        impl fmt::Display for RegisterName {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_name(self.0, f).map(drop)
            }
        }
        RegisterName(register).to_string()
    }

    const KINDS: [(u64, MemoryType); 5] = [
        (0, Uncacheable),
        (1, WriteCombining),
        (4, WriteThrough),
        (5, WriteProtected),
        (6, WriteBack),
    ];

    /// Returns the type by section 12.11.4.1, of the types of all ranges that cover an address.
    fn precedence(kinds: &[MemoryType]) -> MemoryType {
        let all_are = |allowed: &[MemoryType]| kinds.iter().all(|kind| allowed.contains(kind));
        match kinds {
            [first, ..] if all_are(&[*first]) => *first,
            _ if kinds.contains(&Uncacheable) => Uncacheable,
            _ if all_are(&[WriteThrough, WriteBack]) => WriteThrough,
            _ => Uncacheable,
        }
    }

    /// Makes one pair: base and mask, most of them in use, of 4 KiB to all of memory, some with a mask
    /// that is too short.
    fn pair() -> impl Strategy<Value = (u64, u64)> {
        let numbers = (0..END / PAGE, 0..5usize, 12..=25u32, 0..4u32, 0..8u8);
        numbers.prop_map(|(page, kind, low, short, valid)| {
            let ones = |low: u32, high: u32| (1u64 << high) - (1u64 << low.min(high));
            let mask = ones(low, if low < 20 { 24 - short } else { 24 });
            let valid = if valid > 0 { VALID } else { 0 };
            ((page * PAGE) | KINDS[kind].0, mask | valid)
        })
    }

    proptest! {
        #[test]
        fn every_page_has_the_type_that_the_manual_gives_it(
            pairs in prop::collection::vec(pair(), 0..8),
            default in 0..5usize,
            switches in 0..4u64,
            fixed in prop::collection::vec(prop::collection::vec(0..5usize, 8), 11),
            (start, end) in (0..END / PAGE, 0..=END / PAGE),
        ) {
            let enabled = switches != 0;
            let switches = if enabled { ENABLED | (switches & 1) << 10 } else { FIXED_ENABLED };
            let mut values = Vec::from([
                (IA32_MTRRCAP, 0x500 | pairs.len() as u64),
                (IA32_MTRR_DEF_TYPE, KINDS[default].0 | switches),
            ]);
            for (&(register, ..), kinds) in FIXED.iter().zip(&fixed) {
                let bytes = kinds.iter().rev().fold(0, |bytes, &kind| bytes << 8 | KINDS[kind].0);
                values.push((register, bytes));
            }
            for (number, &(base, mask)) in (0..).zip(&pairs) {
                values.push((0x200 + 2 * number, base));
                values.push((0x201 + 2 * number, mask));
            }

            // Page by page, by the manual's words.
            let model = |address: u64| {
                if !enabled {
                    return Uncacheable;
                }
                if switches & FIXED_ENABLED != 0 && address < 0x10_0000 {
                    let (register, byte) = match address {
                        0..0x8_0000 => (0, address >> 16),
                        0x8_0000..0xc_0000 => ((address >> 17) as usize - 3, address >> 14 & 7),
                        _ => ((address >> 15) as usize - 21, address >> 12 & 7),
                    };
                    return KINDS[fixed[register][byte as usize]].1;
                }
                let covering: Vec<_> = (pairs.iter())
                    .filter(|(_, mask)| mask & VALID != 0)
                    .filter(|(base, mask)| (address ^ base) & mask & !PAGE_BITS & (END - 1) == 0)
                    .map(|(base, _)| KINDS.iter().find(|(bits, _)| base & 0xff == *bits).unwrap().1)
                    .collect();
                if covering.is_empty() { KINDS[default].1 } else { precedence(&covering) }
            };
            let within = start * PAGE..end * PAGE;
            let found = ranges(&values, BITS, within.clone());
            let mut at = within.start;
            let mut before = None;
            for (start, end, kind) in found {
                prop_assert_eq!(start, at);
                prop_assert!(start < end && Some(kind) != before, "{:#x}..{:#x} {}", start, end, kind);
                for page in (start..end).step_by(PAGE as usize) {
                    prop_assert_eq!(model(page), kind, "{:#x}", page);
                }
                (at, before) = (end, Some(kind));
            }
            prop_assert_eq!(at, within.end.max(within.start));
        }
    }
}
