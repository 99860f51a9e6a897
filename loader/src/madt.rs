//! The CPUs in the ACPI MADT (ACPI 6.5, section 5.2.12).

/// One CPU that the firmware says can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// ACPI processor id.
    pub id: u32,
    /// Local APIC id.
    pub apic_id: u32,
}

/// Byte offset of the first entry: the table's header, the local APIC address
/// and the flags.
const ENTRIES: usize = 44;

/// Flag bits of both entry types (ACPI 6.5, table 5.22).
const ENABLED: u32 = 1 << 0;
const ONLINE_CAPABLE: u32 = 1 << 1;

/// The CPUs in a MADT, in its order. Stops at the first entry that is cut off
/// or has an impossible length.
pub fn processors(madt: &[u8]) -> impl Iterator<Item = Processor> + Clone + '_ {
    let mut rest = madt.get(ENTRIES..).unwrap_or_default();
    core::iter::from_fn(move || {
        let length = usize::from(*rest.get(1)?);
        // An entry shorter than its own header would never end.
        let entry = rest.get(..length).filter(|entry| entry.len() >= 2)?;
        rest = rest.get(length..)?;
        Some(entry)
    })
    .filter_map(processor)
}

fn processor(entry: &[u8]) -> Option<Processor> {
    let byte = |offset: usize| entry.get(offset).map(|&byte| u32::from(byte));
    let word = |offset: usize| {
        let bytes = entry.get(offset..offset + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let (processor, flags) = match entry.first()? {
        0 => (
            Processor {
                id: byte(2)?,
                apic_id: byte(3)?,
            },
            word(4)?,
        ),
        9 => (
            Processor {
                id: word(12)?,
                apic_id: word(4)?,
            },
            word(8)?,
        ),
        _ => return None,
    };
    // Exactly one of the two: with "enabled", "online capable" is reserved.
    let startable = (flags & ENABLED != 0) != (flags & ONLINE_CAPABLE != 0);
    startable.then_some(processor)
}

#[cfg(test)]
mod tests {
    use super::{Processor, processors};

    fn madt(entries: &[&[u8]]) -> Vec<u8> {
        let mut table = vec![0; super::ENTRIES];
        table.extend(entries.concat());
        table
    }

    #[test]
    fn finds_both_kinds_of_entry_and_skips_disabled_ones() {
        let table = madt(&[
            &[0, 8, 1, 5, 1, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            &[0, 8, 2, 6, 0, 0, 0, 0],
            &[0, 8, 3, 7, 2, 0, 0, 0],
            &[0, 8, 4, 8, 3, 0, 0, 0],
            &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0],
        ]);
        assert_eq!(
            processors(&table).collect::<Vec<_>>(),
            [
                Processor { id: 1, apic_id: 5 },
                Processor { id: 3, apic_id: 7 },
                Processor {
                    id: 9,
                    apic_id: 0x100
                },
            ]
        );
    }

    #[test]
    fn survives_entries_of_impossible_length() {
        let cpu: &[u8] = &[0, 8, 1, 5, 1, 0, 0, 0];
        for bad in [&[0, 0][..], &[0, 1], &[0, 200, 1], &[0], &[0, 4, 1, 1], &[]] {
            assert_eq!(processors(&madt(&[cpu, bad])).count(), 1, "{bad:?}");
        }
        assert_eq!(processors(&[]).count(), 0);
    }
}
