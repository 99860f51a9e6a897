//! The I/O APIC's registers, and the entries by which it sends devices' interrupts to CPUs (Intel 82093AA
//! I/O Advanced Programmable Interrupt Controller, order number 290566). Section numbers are those of
//! that data sheet.

use core::fmt;

/// The two registers that lie in memory, by their offsets (3.1.1, 3.1.2): the number of another register,
/// and that register.
const IOREGSEL: u32 = 0x00;
const IOWIN: u32 = 0x10;

/// The numbers of the others: which version it is and how many inputs it has (3.2.2), and the lower half of
/// the first entry (3.2.4). The upper half comes next, and then the next entry.
const IOAPICVER: u32 = 0x01;
const IOREDTBL: u32 = 0x10;

/// IOREGSEL has eight bits for a register's number (3.1.1), which is room for this many entries.
const MAX_PINS: u32 = (0x100 - IOREDTBL) / 2;

/// Bits of an entry (3.2.4): how it is delivered, and two of the values; an interrupt is on its way to a CPU;
/// active low; a CPU has a level-triggered interrupt in service; level-triggered; masked. Those that are not
/// here are 0: a destination is an id (physical).
const DELIVERY: u64 = 0b111 << 8;
const SMI: u64 = 0b010 << 8;
const NMI: u64 = 0b100 << 8;
const DELIVERY_STATUS: u64 = 1 << 12;
const ACTIVE_LOW: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// Where an entry has the lower eight bits of a destination, and the seven above them where a hypervisor has
/// those: see [`DestinationWidth::Bits15`].
const DESTINATION: u32 = 56;
const DESTINATION_HIGH: u32 = 49;

/// Bit of EAX of the CPUID leaf 0x4000_0001 of KVM: see [`DestinationWidth::of_kvm`] (Linux,
/// Documentation/virt/kvm/x86/cpuid.rst).
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;

/// The LAPIC id that means all CPUs, in a destination of eight bits.
const BROADCAST: u32 = 0xff;

/// The first vector that is not an exception's (Intel SDM vol. 3A, 6.2), and the last that an entry may have
/// (3.2.4).
const MIN_VECTOR: u8 = 0x20;
const MAX_VECTOR: u8 = 0xfe;

/// The level of an input at which it signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// The high one.
    ActiveHigh,
    /// The low one.
    ActiveLow,
}

/// What of an input is an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The change to the active level. One that comes while the entry is masked is lost.
    Edge,
    /// The active level, again and again until the device is content.
    Level,
}

/// How an input signals an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// At which level.
    pub polarity: Polarity,
    /// By the level, or by the change to it.
    pub trigger: Trigger,
}

impl Signal {
    /// As ISA's devices do.
    pub const ISA: Self = Self {
        polarity: Polarity::ActiveHigh,
        trigger: Trigger::Edge,
    };

    /// As PCI's INTx lines do.
    pub const PCI: Self = Self {
        polarity: Polarity::ActiveLow,
        trigger: Trigger::Level,
    };
}

/// Why an entry can't be made, or an I/O APIC can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoApicError {
    /// An entry can't have this vector.
    Vector(u8),
    /// A destination of this width can't say this LAPIC id.
    Destination(u32, DestinationWidth),
    /// The register of the version has a value that no I/O APIC has.
    Version(u32),
    /// There is no input of this number.
    Pin {
        /// Its number, from 0.
        pin: u8,
        /// How many there are.
        pins: u8,
    },
}

impl fmt::Display for IoApicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Vector(vector) => write!(
                f,
                "an I/O APIC cannot send vector {vector}: use one from {MIN_VECTOR} to {MAX_VECTOR}"
            ),
            Self::Destination(lapic_id, width) => write!(
                f,
                "an I/O APIC's {}-bit destination cannot name LAPIC id {lapic_id}: use a CPU with an id up to {}{}",
                width.bits(),
                width.max_id(),
                match width {
                    DestinationWidth::Bits8 => "",
                    DestinationWidth::Bits15 => ", but not 255",
                }
            ),
            Self::Version(value) => write!(
                f,
                "no I/O APIC has the version register {value:#x}: check the address in the MADT, and that it is \
                 mapped uncacheable"
            ),
            Self::Pin { pin, pins } => write!(
                f,
                "the I/O APIC has no input {pin}: its {pins} have the numbers from 0 on"
            ),
        }
    }
}

impl core::error::Error for IoApicError {}

/// How many bits of an entry say for which CPU it is, where no interrupts are remapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationWidth {
    /// Eight: what every I/O APIC has that came after the data sheet's, which has four.
    Bits8,
    /// Fifteen: the upper seven of them in bits that are otherwise reserved (49 to 55), where a hypervisor
    /// says that it understands them. All others ignore them, and interrupt another CPU.
    Bits15,
}

impl DestinationWidth {
    /// Returns the width by EAX of KVM's CPUID leaf 0x4000_0001, its features.
    pub const fn of_kvm(features: u32) -> Self {
        if features & KVM_FEATURE_MSI_EXT_DEST_ID != 0 {
            Self::Bits15
        } else {
            Self::Bits8
        }
    }

    /// Returns the largest LAPIC id that can be said. Of eight bits, the last value means all CPUs.
    const fn max_id(self) -> u32 {
        match self {
            Self::Bits8 => BROADCAST - 1,
            Self::Bits15 => 0x7fff,
        }
    }

    const fn bits(self) -> u32 {
        match self {
            Self::Bits8 => 8,
            Self::Bits15 => 15,
        }
    }
}

/// The CPU that gets an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination(u16);

impl Destination {
    /// Names a CPU by its LAPIC id.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Destination`] if the width can't say it. The id 255 means all CPUs in eight bits; in
    /// fifteen, it does so where the local APICs are in xAPIC mode, so that it is refused in both.
    pub const fn new(lapic_id: u32, width: DestinationWidth) -> Result<Self, IoApicError> {
        if lapic_id > width.max_id() || lapic_id == BROADCAST {
            return Err(IoApicError::Destination(lapic_id, width));
        }
        Ok(Self(lapic_id as u16))
    }

    /// Returns the CPU's LAPIC id.
    pub const fn lapic_id(self) -> u32 {
        self.0 as u32
    }
}

/// What an I/O APIC does with the interrupts of one input (3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Nothing: what reset leaves, but for the vector.
    pub const MASKED: Self = Self(MASKED);

    /// Sends an interrupt of this vector to one CPU.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Vector`] for a vector below 32, an exception's, and for 255.
    pub const fn fixed(vector: u8, signal: Signal, to: Destination) -> Result<Self, IoApicError> {
        if !is_vector(vector) {
            return Err(IoApicError::Vector(vector));
        }
        Ok(Self(
            vector as u64 | signal_bits(signal) | destination_bits(to),
        ))
    }

    /// Sends an NMI to one CPU. An entry for NMIs must be edge-triggered (3.2.4), so that only the polarity is
    /// asked for.
    pub const fn nmi(polarity: Polarity, to: Destination) -> Self {
        let signal = Signal {
            polarity,
            trigger: Trigger::Edge,
        };
        Self(NMI | signal_bits(signal) | destination_bits(to))
    }

    /// Returns the same, masked.
    pub const fn masked(self) -> Self {
        Self(self.0 | MASKED)
    }

    /// Returns whether it is masked.
    pub const fn is_masked(self) -> bool {
        self.0 & MASKED != 0
    }

    /// Returns the vector, unless it is delivered in a way that has none.
    pub const fn vector(self) -> Option<u8> {
        match self.0 & DELIVERY {
            // Fixed, and to the CPU with the lowest priority.
            0 | 0x100 => Some(self.0 as u8),
            _ => None,
        }
    }

    /// Returns whether it is an NMI.
    pub const fn is_nmi(self) -> bool {
        self.0 & DELIVERY == NMI
    }

    /// Returns whether it is a system-management interrupt, which is the firmware's.
    pub const fn is_smi(self) -> bool {
        self.0 & DELIVERY == SMI
    }

    /// Returns how the input signals.
    pub const fn signal(self) -> Signal {
        Signal {
            polarity: match self.0 & ACTIVE_LOW {
                0 => Polarity::ActiveHigh,
                _ => Polarity::ActiveLow,
            },
            trigger: match self.0 & LEVEL {
                0 => Trigger::Edge,
                _ => Trigger::Level,
            },
        }
    }

    /// Returns the LAPIC id of the CPU that it is for.
    pub const fn lapic_id(self) -> u32 {
        let high = self.0 >> DESTINATION_HIGH & 0x7f;
        (high << 8 | self.0 >> DESTINATION) as u32
    }

    /// Returns whether an interrupt is on its way to a CPU.
    pub const fn is_pending(self) -> bool {
        self.0 & DELIVERY_STATUS != 0
    }

    /// Returns whether a CPU has a level-triggered interrupt of it in service (its remote IRR).
    pub const fn is_in_service(self) -> bool {
        self.0 & REMOTE_IRR != 0
    }

    const fn from_words(low: u32, high: u32) -> Self {
        Self((high as u64) << 32 | low as u64)
    }

    const fn low(self) -> u32 {
        self.0 as u32
    }

    const fn high(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Returns whether an entry may have this vector.
const fn is_vector(vector: u8) -> bool {
    MIN_VECTOR <= vector && vector <= MAX_VECTOR
}

const fn signal_bits(signal: Signal) -> u64 {
    let polarity = match signal.polarity {
        Polarity::ActiveHigh => 0,
        Polarity::ActiveLow => ACTIVE_LOW,
    };
    let trigger = match signal.trigger {
        Trigger::Edge => 0,
        Trigger::Level => LEVEL,
    };
    polarity | trigger
}

const fn destination_bits(to: Destination) -> u64 {
    let id = to.0 as u64;
    (id & 0xff) << DESTINATION | (id >> 8) << DESTINATION_HIGH
}

/// The registers of an I/O APIC, where they are mapped: 32 bits at each offset.
///
/// Which register is read or written depends on what was selected before, so nobody else may use the same
/// ones while there is one of these.
pub trait Mmio {
    /// Reads the register at a byte offset, 0 or 0x10, by one access of 32 bits.
    fn read(&mut self, offset: u32) -> u32;

    /// Writes the register at a byte offset, 0 or 0x10, by one access of 32 bits.
    fn write(&mut self, offset: u32, value: u32);
}

/// An I/O APIC.
///
/// CPUs that share it share it by a lock, which is taken with interrupts disabled if a handler masks
/// entries, too.
#[derive(Debug)]
pub struct Controller<M> {
    mmio: M,
    pins: u8,
}

impl<M: Mmio> Controller<M> {
    /// Reads how many inputs there are. Writes no entry: [`Controller::mask_all`] comes next.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Version`] if what answers is no I/O APIC, or none does.
    pub fn new(mmio: M) -> Result<Self, IoApicError> {
        let mut controller = Self { mmio, pins: 0 };
        let version = controller.read(IOAPICVER);
        // The number of the last entry (3.2.2). What is not there reads as all ones, or all zeros.
        let pins = (version >> 16 & 0xff) + 1;
        if version == 0 || pins > MAX_PINS {
            return Err(IoApicError::Version(version));
        }
        controller.pins = pins as u8;
        Ok(controller)
    }

    /// Returns how many inputs it has.
    pub const fn pins(&self) -> u8 {
        self.pins
    }

    /// Returns the entry of an input.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Pin`] if there is no such input.
    pub fn entry(&mut self, pin: u8) -> Result<Entry, IoApicError> {
        let register = self.register(pin)?;
        Ok(self.read_entry(register))
    }

    /// Sets the entry of an input. None that is half the old one and half the new one is ever unmasked.
    ///
    /// A level-triggered interrupt that is in service comes once more if its line is still active, since the
    /// I/O APIC forgets that it is.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Pin`] if there is no such input.
    pub fn set(&mut self, pin: u8, entry: Entry) -> Result<(), IoApicError> {
        let register = self.register(pin)?;
        // Masked and edge-triggered, which also clears the remote IRR: a kernel before this one may have
        // left it set, and no end of interrupt would ever come for it.
        self.write(register, Entry::MASKED.low());
        self.write(register + 1, entry.high());
        self.write(register, entry.low());
        Ok(())
    }

    /// Masks an input. When it returns, the I/O APIC sends no more of its interrupts; one that it has sent
    /// may still be on its way. Edges that come until [`Controller::unmask`] are lost.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Pin`] if there is no such input.
    pub fn mask(&mut self, pin: u8) -> Result<(), IoApicError> {
        let register = self.register(pin)?;
        let entry = self.read_entry(register).masked();
        self.write(register, entry.low());
        // A write may be posted on its way to the I/O APIC, and a read comes after it.
        self.read(register);
        Ok(())
    }

    /// Lets an input's interrupts through again.
    ///
    /// # Errors
    ///
    /// [`IoApicError::Pin`] if there is no such input, [`IoApicError::Vector`] if its entry was not set, or has
    /// a vector from the time before this kernel that none of its interrupts has.
    pub fn unmask(&mut self, pin: u8) -> Result<(), IoApicError> {
        let register = self.register(pin)?;
        let entry = self.read_entry(register);
        match entry.vector() {
            Some(vector) if !is_vector(vector) => return Err(IoApicError::Vector(vector)),
            _ => self.write(register, Entry(entry.0 & !MASKED).low()),
        }
        Ok(())
    }

    /// Clears all entries that firmware or another kernel has left, but for system-management interrupts,
    /// which are the firmware's.
    pub fn mask_all(&mut self) {
        let registers = (IOREDTBL..).step_by(2).take(self.pins.into());
        for register in registers {
            if !self.read_entry(register).is_smi() {
                self.write(register, Entry::MASKED.low());
                self.write(register + 1, Entry::MASKED.high());
            }
        }
        self.read(IOREDTBL);
    }

    /// Returns the number of the register with the lower half of an input's entry.
    const fn register(&self, pin: u8) -> Result<u32, IoApicError> {
        let pins = self.pins;
        if pin < pins {
            Ok(IOREDTBL + 2 * pin as u32)
        } else {
            Err(IoApicError::Pin { pin, pins })
        }
    }

    fn read_entry(&mut self, register: u32) -> Entry {
        Entry::from_words(self.read(register), self.read(register + 1))
    }

    fn read(&mut self, register: u32) -> u32 {
        self.mmio.write(IOREGSEL, register);
        self.mmio.read(IOWIN)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.mmio.write(IOREGSEL, register);
        self.mmio.write(IOWIN, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An I/O APIC, as the data sheet has it.
    #[derive(Debug)]
    struct Device {
        selected: u32,
        version: u32,
        entries: Vec<u64>,
        /// All values that each entry has had while it was unmasked.
        unmasked: Vec<Vec<u64>>,
        /// Each write of an entry's half: its register, and the value.
        writes: Vec<(u32, u32)>,
        is_read_since: bool,
    }

    const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;

    impl Device {
        fn new(entries: &[u64]) -> Self {
            Self {
                selected: 0,
                version: (entries.len() as u32 - 1) << 16 | 0x11,
                entries: entries.into(),
                unmasked: vec![Vec::new(); entries.len()],
                writes: Vec::new(),
                is_read_since: false,
            }
        }

        fn place(&self) -> (usize, u32) {
            let index = self.selected - 0x10;
            (index as usize / 2, index % 2 * 32)
        }
    }

    impl Mmio for &mut Device {
        fn read(&mut self, offset: u32) -> u32 {
            assert_eq!(offset, 0x10, "only the window is read");
            self.is_read_since = true;
            if self.selected == 1 {
                return self.version;
            }
            let (pin, shift) = self.place();
            (self.entries[pin] >> shift) as u32
        }

        fn write(&mut self, offset: u32, value: u32) {
            if offset == 0 {
                assert!(value <= 0xff, "eight bits select");
                self.selected = value;
                return;
            }
            assert_eq!(offset, 0x10);
            self.is_read_since = false;
            self.writes.push((self.selected, value));
            let (pin, shift) = self.place();
            let entry = &mut self.entries[pin];
            let kept = *entry & (!(0xffff_ffff << shift) | READ_ONLY);
            *entry = kept | u64::from(value) << shift & !READ_ONLY;
            // The remote IRR is of level-triggered interrupts alone.
            if *entry & LEVEL == 0 {
                *entry &= !REMOTE_IRR;
            }
            if *entry & MASKED == 0 {
                self.unmasked[pin].push(*entry & !READ_ONLY);
            }
        }
    }

    fn to(lapic_id: u32) -> Destination {
        Destination::new(lapic_id, DestinationWidth::Bits8).unwrap()
    }

    #[test]
    fn entries_are_those_of_the_data_sheet() {
        let entry = Entry::fixed(0x31, Signal::ISA, to(0)).unwrap();
        assert_eq!((entry.low(), entry.high()), (0x31, 0));
        let entry = Entry::fixed(0x42, Signal::PCI, to(0xfe)).unwrap();
        assert_eq!((entry.low(), entry.high()), (0xa042, 0xfe00_0000));
        assert_eq!(entry.masked().low(), 0x1_a042);
        let nmi = Entry::nmi(Polarity::ActiveLow, to(3));
        assert_eq!((nmi.low(), nmi.high()), (0x2400, 0x0300_0000));
        assert!(nmi.is_nmi() && !nmi.is_smi() && nmi.vector().is_none());
        // With bits 8 to 14 of the id in bits 49 to 55.
        let far = Destination::new(0x7f03, DestinationWidth::Bits15).unwrap();
        assert_eq!(far.lapic_id(), 0x7f03);
        let entry = Entry::fixed(0xfe, Signal::ISA, far).unwrap();
        assert_eq!((entry.low(), entry.high()), (0xfe, 0x03fe_0000));
        assert_eq!(entry.lapic_id(), 0x7f03);
    }

    #[test]
    fn what_an_entry_can_not_say_is_refused_in_words() {
        for vector in [0, 31, 255] {
            let error = Entry::fixed(vector, Signal::ISA, to(0)).unwrap_err();
            let words = format!("an I/O APIC cannot send vector {vector}: use one from 32 to 254");
            assert_eq!(error.to_string(), words);
        }
        for vector in [32, 254] {
            let entry = Entry::fixed(vector, Signal::ISA, to(0)).unwrap();
            assert_eq!(entry.vector(), Some(vector));
        }
        let (narrow, wide) = (DestinationWidth::Bits8, DestinationWidth::Bits15);
        for (id, width) in [
            (255, narrow),
            (256, narrow),
            (u32::MAX, narrow),
            (255, wide),
            (0x8000, wide),
        ] {
            let error = Destination::new(id, width).unwrap_err();
            assert_eq!(error, IoApicError::Destination(id, width));
        }
        for (id, width) in [(254, narrow), (254, wide), (256, wide), (0x7fff, wide)] {
            assert_eq!(Destination::new(id, width).unwrap().lapic_id(), id);
        }
        let words = [
            (
                IoApicError::Destination(300, narrow),
                "an I/O APIC's 8-bit destination cannot name LAPIC id 300: use a CPU with an id up to 254",
            ),
            (
                IoApicError::Destination(255, wide),
                "an I/O APIC's 15-bit destination cannot name LAPIC id 255: use a CPU with an id up to 32767, \
                 but not 255",
            ),
            (
                IoApicError::Version(u32::MAX),
                "no I/O APIC has the version register 0xffffffff: check the address in the MADT, and that it is \
                 mapped uncacheable",
            ),
            (
                IoApicError::Pin { pin: 24, pins: 24 },
                "the I/O APIC has no input 24: its 24 have the numbers from 0 on",
            ),
        ];
        for (error, words) in words {
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn a_hypervisor_says_how_wide_destinations_are() {
        assert_eq!(
            DestinationWidth::of_kvm(!(1 << 15)),
            DestinationWidth::Bits8
        );
        assert_eq!(DestinationWidth::of_kvm(1 << 15), DestinationWidth::Bits15);
    }

    #[test]
    fn what_is_no_io_apic_is_refused() {
        // Nothing; a register of memory that is 0; more entries than can be selected.
        for version in [u32::MAX, 0, 0x0078_0011] {
            let mut device = Device::new(&[MASKED]);
            device.version = version;
            let error = Controller::new(&mut device).unwrap_err();
            assert_eq!(error, IoApicError::Version(version));
        }
        // Of an 82489DX, of QEMU's, and the most that there can be.
        for (version, pins) in [(0x000f_0001, 16), (0x0017_0020, 24), (0x0077_0020, 120)] {
            let mut device = Device::new(&[MASKED; 120]);
            device.version = version;
            let mut controller = Controller::new(&mut device).unwrap();
            assert_eq!(controller.pins(), pins);
            let entry = Entry::fixed(0x99, Signal::PCI, to(9)).unwrap();
            controller.set(pins - 1, entry).unwrap();
            assert_eq!(controller.entry(pins - 1), Ok(entry));
            let error = Err(IoApicError::Pin { pin: pins, pins });
            assert_eq!(controller.entry(pins).map(drop), error);
            assert_eq!(controller.set(pins, entry), error);
            assert_eq!(controller.mask(pins), error);
            assert_eq!(controller.unmask(pins), error);
        }
    }

    #[test]
    fn an_entry_is_written_in_three_steps() {
        let mut device = Device::new(&[MASKED, 0x31]);
        let entry = Entry::fixed(0x42, Signal::PCI, to(7)).unwrap();
        let mut controller = Controller::new(&mut device).unwrap();
        controller.set(1, entry).unwrap();
        let steps = [(0x12, 0x1_0000), (0x13, 0x0700_0000), (0x12, 0xa042)];
        assert_eq!(device.writes, steps);
    }

    #[test]
    fn a_masked_input_has_been_masked_when_the_call_returns() {
        let mut device = Device::new(&[0x31]);
        Controller::new(&mut device).unwrap().mask(0).unwrap();
        assert!(device.is_read_since);
        let mut device = Device::new(&[0x31]);
        Controller::new(&mut device).unwrap().mask_all();
        assert!(device.is_read_since);
    }

    #[test]
    fn what_an_earlier_kernel_left_in_service_is_cleared_and_the_firmware_s_is_not() {
        let left = Entry::fixed(0x50, Signal::PCI, to(1)).unwrap().0 | REMOTE_IRR;
        let firmware_s = SMI | 0xff << DESTINATION;
        let mut device = Device::new(&[left, firmware_s, left]);
        let mut controller = Controller::new(&mut device).unwrap();
        assert!(controller.entry(0).unwrap().is_in_service());
        let entry = Entry::fixed(0x51, Signal::PCI, to(2)).unwrap();
        controller.set(0, entry).unwrap();
        assert_eq!(controller.entry(0), Ok(entry));
        controller.mask_all();
        assert_eq!(controller.entry(0), Ok(Entry::MASKED));
        assert!(controller.entry(1).unwrap().is_smi());
        assert_eq!(controller.entry(2), Ok(Entry::MASKED));
        let pending = Entry(DELIVERY_STATUS);
        assert!(pending.is_pending() && !Entry::MASKED.is_pending());
    }

    fn any_signal() -> impl Strategy<Value = Signal> {
        (any::<bool>(), any::<bool>()).prop_map(|(is_low, is_level)| Signal {
            polarity: [Polarity::ActiveHigh, Polarity::ActiveLow][usize::from(is_low)],
            trigger: [Trigger::Edge, Trigger::Level][usize::from(is_level)],
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u8, Signal, u32, bool),
        Mask(u8),
        Unmask(u8),
        MaskAll,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let id = prop_oneof![0_u32..255, 256_u32..0x8000];
        let set = (0_u8..4, 32_u8..255, any_signal(), id, any::<bool>());
        prop_oneof![
            4 => set.prop_map(|(pin, vector, signal, id, is_masked)| {
                Step::Set(pin, vector, signal, id, is_masked)
            }),
            1 => (0_u8..4).prop_map(Step::Mask),
            1 => (0_u8..4).prop_map(Step::Unmask),
            1 => Just(Step::MaskAll),
        ]
    }

    /// An entry, as the model has it.
    #[derive(Clone, Copy)]
    struct EntryModel {
        vector: u8,
        signal: Signal,
        lapic_id: u32,
        is_masked: bool,
    }

    impl EntryModel {
        const NONE: Self = Self {
            vector: 0,
            signal: Signal::ISA,
            lapic_id: 0,
            is_masked: true,
        };

        fn is(&self, entry: Entry) -> bool {
            entry.vector() == Some(self.vector)
                && entry.signal() == self.signal
                && entry.lapic_id() == self.lapic_id
                && entry.is_masked() == self.is_masked
        }
    }

    proptest! {
        #[test]
        fn entries_are_as_they_were_set_and_never_half(steps in prop::collection::vec(any_step(), 0..40)) {
            let mut device = Device::new(&[MASKED; 4]);
            let mut lines = [EntryModel::NONE; 4];
            for step in steps {
                let before = lines;
                device.unmasked = vec![Vec::new(); 4];
                let mut controller = Controller::new(&mut device).unwrap();
                match step {
                    Step::Set(pin, vector, signal, lapic_id, is_masked) => {
                        let to = Destination::new(lapic_id, DestinationWidth::Bits15).unwrap();
                        let entry = Entry::fixed(vector, signal, to).unwrap();
                        controller.set(pin, if is_masked { entry.masked() } else { entry }).unwrap();
                        lines[usize::from(pin)] = EntryModel { vector, signal, lapic_id, is_masked };
                    }
                    Step::Mask(pin) => {
                        controller.mask(pin).unwrap();
                        lines[usize::from(pin)].is_masked = true;
                    }
                    Step::Unmask(pin) => {
                        let line = &mut lines[usize::from(pin)];
                        let was_set = line.vector != 0;
                        line.is_masked &= !was_set;
                        let expected = if was_set { Ok(()) } else { Err(IoApicError::Vector(0)) };
                        prop_assert_eq!(controller.unmask(pin), expected);
                    }
                    Step::MaskAll => {
                        controller.mask_all();
                        lines = [EntryModel::NONE; 4];
                    }
                }
                for (pin, line) in (0..).zip(lines) {
                    let entry = controller.entry(pin).unwrap();
                    prop_assert!(line.is(entry), "{pin}: {entry:x?}");
                }
                for (pin, seen) in device.unmasked.iter().enumerate() {
                    for &entry in seen {
                        let entry = Entry(entry);
                        prop_assert!(before[pin].is(entry) || lines[pin].is(entry), "{pin}: {entry:x?}");
                    }
                }
            }
        }
    }
}
