//! The CPU's own local APIC (Intel SDM volume 3A, chapter 11), in either mode.

use x86_64::registers::model_specific::Msr;

/// IA32_APIC_BASE and its bits.
const BASE: Msr = Msr::new(0x1b);
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// MSR of register 0 in x2APIC mode; the others follow, 16 bytes each.
const X2APIC: u32 = 0x800;

// Registers, by their byte offset.
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS_VECTOR: u32 = 0xf0;
const COMMAND_LOW: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const TIMER_INITIAL_COUNT: u32 = 0x380;
const TIMER_DIVIDE: u32 = 0x3e0;

// Commands: delivery mode and "level: assert".
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;
const PENDING: u32 = 1 << 12;

const SOFTWARE_ENABLED: u32 = 1 << 8;
const TIMER_MASKED: u32 = 1 << 16;
const TIMER_PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

/// The vector that the timer and the spurious interrupt use.
pub const TIMER_VECTOR: u8 = 0xff;
const VECTOR: u32 = TIMER_VECTOR as u32;

/// Highest id that xAPIC mode can address; one more is the broadcast.
const HIGHEST_XAPIC_ID: u32 = 0xfe;

/// The most times that a command's delivery is waited for.
const MOST_POLLS: u32 = 100_000;

/// The local APIC of the CPU that this is used on.
#[derive(Clone, Copy, Debug)]
pub enum Lapic {
    /// xAPIC mode: registers in memory, at this physical address.
    XApic(u64),
    /// x2APIC mode: registers are MSRs.
    X2Apic,
}

impl Lapic {
    /// The local APIC as it is, or in x2APIC mode if `x2apic` asks for it;
    /// `None` if it is switched off.
    ///
    /// # Safety
    /// 1. The CPU has x2APIC mode if `x2apic` is true.
    /// 2. The registers' address, if in xAPIC mode, is mapped to itself as long
    ///    as the value is used.
    /// 3. Only the loader uses the local APIC meanwhile.
    pub unsafe fn current(x2apic: bool) -> Option<Self> {
        // SAFETY: every 64-bit CPU has this MSR.
        let mut base = unsafe { BASE.read() };
        if base & BASE_ENABLED == 0 {
            return None;
        }
        if x2apic && base & BASE_X2APIC == 0 {
            base |= BASE_X2APIC;
            let mut register = BASE;
            // SAFETY: the CPU has the mode (1); the way from xAPIC to x2APIC
            // is a legal one.
            unsafe { register.write(base) };
        }
        Some(match base & BASE_X2APIC {
            0 => Self::XApic(base & BASE_ADDRESS),
            _ => Self::X2Apic,
        })
    }

    /// Whether an interrupt can be sent to this APIC id.
    pub const fn reaches(self, id: u32) -> bool {
        matches!(self, Self::X2Apic) || id <= HIGHEST_XAPIC_ID
    }

    /// Sends INIT: the CPU drops what it does and waits for a start.
    pub fn send_init(self, id: u32) {
        self.command(id, INIT);
    }

    /// Sends a startup interrupt: a CPU that waits for one begins, in real
    /// mode, at the first byte of `page`, which lies below 1 MiB.
    pub fn send_startup(self, id: u32, page: u64) {
        self.command(id, STARTUP | (page >> 12) as u32 & 0xff);
    }

    /// Interrupts this CPU again and again, every `ticks` of the APIC's clock.
    /// Returns what [`stop_timer`](Self::stop_timer) has to restore.
    pub fn start_timer(self, ticks: u32) -> u32 {
        let spurious = self.read(SPURIOUS_VECTOR);
        self.write(SPURIOUS_VECTOR, SOFTWARE_ENABLED | VECTOR);
        self.write(TIMER_DIVIDE, DIVIDE_BY_1);
        self.write(TIMER, TIMER_PERIODIC | VECTOR);
        self.write(TIMER_INITIAL_COUNT, ticks);
        spurious
    }

    /// Stops the timer. One interrupt may still be pending.
    pub fn stop_timer(self) {
        self.write(TIMER, TIMER_MASKED);
        self.write(TIMER_INITIAL_COUNT, 0);
    }

    /// Puts the spurious vector register back.
    pub fn restore(self, spurious: u32) {
        self.write(SPURIOUS_VECTOR, spurious);
    }

    /// Ends the interrupt in service, if there is one.
    pub fn end_of_interrupt(self) {
        self.write(END_OF_INTERRUPT, 0);
    }

    fn command(self, id: u32, command: u32) {
        match self {
            Self::XApic(_) => {
                self.write(COMMAND_HIGH, id << 24);
                self.write(COMMAND_LOW, command);
                for _ in 0..MOST_POLLS {
                    if self.read(COMMAND_LOW) & PENDING == 0 {
                        break;
                    }
                }
            }
            Self::X2Apic => {
                let mut register = Msr::new(X2APIC + (COMMAND_LOW >> 4));
                // SAFETY: x2APIC mode is on, and this is its command register.
                unsafe { register.write(u64::from(id) << 32 | u64::from(command)) };
            }
        }
    }

    fn read(self, register: u32) -> u32 {
        match self {
            // SAFETY: the register lies on the local APIC's page, mapped by
            // the promise made to `current`.
            Self::XApic(base) => unsafe { pointer(base, register).read_volatile() },
            // SAFETY: x2APIC mode is on, and the register exists in it.
            Self::X2Apic => unsafe { Msr::new(X2APIC + (register >> 4)).read() as u32 },
        }
    }

    fn write(self, register: u32, value: u32) {
        match self {
            // SAFETY: as in `read`; only the loader uses the local APIC.
            Self::XApic(base) => unsafe { pointer(base, register).write_volatile(value) },
            // SAFETY: as in `read`; only the loader uses the local APIC.
            Self::X2Apic => unsafe { Msr::new(X2APIC + (register >> 4)).write(value.into()) },
        }
    }
}

fn pointer(base: u64, register: u32) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut((base + u64::from(register)) as usize)
}
