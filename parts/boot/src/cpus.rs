//! The CPUs as the loader lists them.

use alloc::vec::Vec;

use crate::error::BootError;

/// The CPUs, each LAPIC id once, with what the loader has for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus<Slot> {
    /// LAPIC ids, with where each CPU is parked: the BSP, which is nowhere parked, comes first, all
    /// others in the loader's order.
    pub listed: Vec<(u32, Option<Slot>)>,
    /// LAPIC ids that were listed a second time; those entries were left out.
    pub repeated: Vec<u32>,
}

impl<Slot> Cpus<Slot> {
    /// Takes the BSP's LAPIC id, and each entry's with its parking place.
    ///
    /// # Errors
    ///
    /// [`BootError::NoBsp`].
    pub fn check(
        bsp: u32,
        entries: impl IntoIterator<Item = (u32, Slot)>,
    ) -> Result<Self, BootError> {
        let mut cpus = Self {
            listed: Vec::from([(bsp, None)]),
            repeated: Vec::new(),
        };
        let mut is_bsp_listed = false;
        for (lapic_id, slot) in entries {
            if lapic_id == bsp && !is_bsp_listed {
                is_bsp_listed = true;
            } else if cpus.listed.iter().any(|(known, _)| *known == lapic_id) {
                cpus.repeated.push(lapic_id);
            } else {
                cpus.listed.push((lapic_id, Some(slot)));
            }
        }
        if is_bsp_listed {
            Ok(cpus)
        } else {
            Err(BootError::NoBsp(bsp))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bsp_comes_first_and_every_id_once() {
        let cpus = Cpus::check(2, [(0, 'a'), (2, 'b'), (7, 'c'), (0, 'd'), (2, 'e')]).unwrap();
        let listed = [(2, None), (0, Some('a')), (7, Some('c'))];
        assert_eq!(
            (&cpus.listed[..], &cpus.repeated[..]),
            (&listed[..], &[0, 2][..])
        );
    }

    #[test]
    fn a_list_without_the_bsp_is_refused() {
        assert_eq!(Cpus::check(2, [(0, ())]), Err(BootError::NoBsp(2)));
        assert_eq!(Cpus::<()>::check(0, []), Err(BootError::NoBsp(0)));
    }

    proptest! {
        #[test]
        fn every_entry_is_listed_or_repeated(
            bsp in 0_u32..8,
            ids in prop::collection::vec(0_u32..8, 0..20),
        ) {
            let entries = ids.iter().copied().zip(0..);
            let Ok(cpus) = Cpus::check(bsp, entries) else {
                prop_assert!(!ids.contains(&bsp));
                return Ok(());
            };
            let mut all: Vec<u32> = cpus.listed.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(all.first(), Some(&bsp));
            let mut once = all.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), all.len());
            for &(id, place) in &cpus.listed {
                let first = ids.iter().position(|&other| other == id);
                prop_assert_eq!(place, first.filter(|_| id != bsp));
            }
            all.extend(&cpus.repeated);
            all.sort_unstable();
            let mut expected = ids.clone();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }
}
