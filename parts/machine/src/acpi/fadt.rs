//! The FADT: where the machine's timer is.

use super::{Firmware, find, number};

/// The FADT (5.2.9, table 5.9): its signature, and what stands where in it: the I/O port of the
/// power-management timer, how many bytes there are of it, flags, and the same port as a generic address,
/// which counts where there is one. Flag bits: the timer has 32 bits rather than 24.
const FADT_SIGNATURE: &[u8] = b"FACP";
const FADT_PM_TIMER: usize = 76;
const FADT_PM_TIMER_LENGTH: usize = 91;
const FADT_FLAGS: usize = 112;
const FADT_PM_TIMER_ADDRESS: usize = 208;
const TIMER_IS_32_BIT: u64 = 1 << 8;
const PM_TIMER_LENGTH: u64 = 4;

/// A generic address (5.2.3.2): in which space it is, and the address; and the number of I/O ports' space.
const ADDRESS_SPACE: usize = 0;
const ADDRESS: usize = 4;
const SYSTEM_IO: u64 = 1;

/// The ACPI power-management timer (4.8.3.3): a counter that goes up at
/// [`PM_TIMER_HZ`](crate::time::PM_TIMER_HZ), and wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmTimer {
    /// The I/O port from which its 32 bits are read.
    pub port: u16,
    /// How many of them count.
    pub bits: u32,
}

impl PmTimer {
    /// Finds the timer that the FADT names to which the root pointer at physical address `rsdp` leads.
    /// `None` if there is none, as where all hardware is reduced to what ACPI needs, if it lies in memory,
    /// or if anything on the way there is broken.
    pub fn find(firmware: &impl Firmware, rsdp: u64) -> Option<Self> {
        let fadt = find(firmware, rsdp, FADT_SIGNATURE).ok()?;
        let fadt = fadt.as_ref();
        if number(fadt, FADT_PM_TIMER_LENGTH, 1)? != PM_TIMER_LENGTH {
            return None;
        }
        let generic = fadt.get(FADT_PM_TIMER_ADDRESS..).and_then(|generic| {
            let (space, address) = (
                number(generic, ADDRESS_SPACE, 1)?,
                number(generic, ADDRESS, 8)?,
            );
            Some((space, address)).filter(|&(_, address)| address != 0)
        });
        let port = match generic {
            Some((SYSTEM_IO, port)) => port,
            Some(_) => return None,
            None => number(fadt, FADT_PM_TIMER, 4)?,
        };
        let bits = match number(fadt, FADT_FLAGS, 4)? & TIMER_IS_32_BIT {
            0 => 24,
            _ => 32,
        };
        let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
        Some(Self { port, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::super::HEADER_LENGTH;
    use super::super::fixture::{Memory, START};
    use super::*;

    /// What a FADT says after its header.
    struct Fadt {
        port: u32,
        length: u8,
        flags: u32,
        generic: Option<(u8, u64)>,
    }

    impl Fadt {
        fn timer(&self) -> Option<PmTimer> {
            let length = if self.generic.is_some() { 244 } else { 116 };
            let mut body = vec![0; length - HEADER_LENGTH];
            let mut put = |at: usize, bytes: &[u8]| {
                body[at - HEADER_LENGTH..][..bytes.len()].copy_from_slice(bytes);
            };
            put(76, &self.port.to_le_bytes());
            put(91, &[self.length]);
            put(112, &self.flags.to_le_bytes());
            if let Some((space, address)) = self.generic {
                put(208, &[space, 32, 0, 3]);
                put(212, &address.to_le_bytes());
            }
            let mut memory = Memory::new();
            let madt = memory.add_madt(&[]);
            let fadt = memory.add_table(b"FACP", &body);
            let rsdp = memory.add_root(2, &[madt, fadt]);
            let found = PmTimer::find(&&memory, rsdp);
            *memory.at(fadt + 76) ^= 1;
            assert_eq!(PmTimer::find(&&memory, rsdp), None, "the checksum is wrong");
            found
        }
    }

    const FADT: Fadt = Fadt {
        port: 0x608,
        length: 4,
        flags: 0xa5,
        generic: None,
    };

    #[test]
    fn the_timer_is_where_the_fadt_says() {
        let timer = |port, bits| Some(PmTimer { port, bits });
        assert_eq!(FADT.timer(), timer(0x608, 24));
        let long = Fadt {
            flags: 0x1a5,
            ..FADT
        };
        assert_eq!(long.timer(), timer(0x608, 32));
        let generic = |space, address| Fadt {
            generic: Some((space, address)),
            ..FADT
        };
        assert_eq!(generic(1, 0xb008).timer(), timer(0xb008, 24));
        assert_eq!(generic(1, 0).timer(), timer(0x608, 24));
        // In memory; no port; none at all.
        assert_eq!(generic(0, 0xfed0_8000).timer(), None);
        assert_eq!(generic(1, 0x1_0608).timer(), None);
        assert_eq!(Fadt { port: 0, ..FADT }.timer(), None);
        assert_eq!(Fadt { length: 0, ..FADT }.timer(), None);
        assert_eq!(PmTimer::find(&&Memory::new(), START), None);
    }

    #[test]
    fn a_short_fadt_has_no_timer() {
        for length in [HEADER_LENGTH, 76, 80, 92, 115] {
            let mut body = vec![0; length - HEADER_LENGTH];
            if let Some(timer_length) = body.get_mut(91 - HEADER_LENGTH) {
                *timer_length = 4;
            }
            let mut memory = Memory::new();
            let fadt = memory.add_table(b"FACP", &body);
            let rsdp = memory.add_root(0, &[fadt]);
            assert_eq!(PmTimer::find(&&memory, rsdp), None);
        }
    }
}
