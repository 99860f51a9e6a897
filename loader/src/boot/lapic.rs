//! The CPU's own local APIC (Intel SDM volume 3A, chapter 11), in either mode.

use muster_machine::lapic::{
    BASE_ADDRESS, BASE_ENABLED, BASE_X2APIC, Command, DIVIDE_BY_1, IA32_APIC_BASE, LVT_MASKED,
    LVT_PERIODIC, Register, SOFTWARE_ENABLE, is_pending, is_xapic_id,
};
use x86_64::registers::model_specific::Msr;

const BASE: Msr = Msr::new(IA32_APIC_BASE);

/// The vector that the timer and the spurious interrupt use.
pub const TIMER_VECTOR: u8 = 0xff;
const VECTOR: u32 = TIMER_VECTOR as u32;

/// The most times that a command's delivery is waited for.
const MAX_POLLS: u32 = 100_000;

/// The local APIC of the CPU that this is used on.
#[derive(Clone, Copy, Debug)]
pub enum Lapic {
    /// xAPIC mode: registers in memory, at this physical address.
    XApic(u64),
    /// x2APIC mode: registers are MSRs.
    X2Apic,
}

impl Lapic {
    /// Returns the local APIC as it is, or in x2APIC mode if `x2apic` asks for it;
    /// `None` if it is switched off.
    ///
    /// # Safety
    /// 1. The CPU has x2APIC mode if `x2apic` is true.
    /// 2. The registers' address, if in xAPIC mode, is mapped to itself as long
    ///    as the value is used.
    /// 3. Only the loader uses the local APIC while this lives.
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

    /// Returns whether an interrupt can be sent to this APIC id.
    pub const fn reaches(self, id: u32) -> bool {
        matches!(self, Self::X2Apic) || is_xapic_id(id)
    }

    /// Sends INIT: the CPU drops what it does and waits for a start.
    pub fn send_init(self, id: u32) {
        self.command(id, Command::INIT);
    }

    /// Sends a startup interrupt: a CPU that waits for one begins, in real
    /// mode, at the first byte of `page`. Does nothing if that does not lie below 1 MiB.
    pub fn send_startup(self, id: u32, page: u64) {
        if let Some(startup) = Command::startup(page) {
            self.command(id, startup);
        }
    }

    /// Interrupts this CPU again and again, every `ticks` of the APIC's clock.
    /// Returns what [`stop_timer`](Self::stop_timer) has to restore.
    pub fn start_timer(self, ticks: u32) -> u32 {
        let spurious = self.read(Register::Spurious);
        self.write(Register::Spurious, SOFTWARE_ENABLE | VECTOR);
        self.write(Register::Divide, DIVIDE_BY_1);
        self.write(Register::LvtTimer, LVT_PERIODIC | VECTOR);
        self.write(Register::InitialCount, ticks);
        spurious
    }

    /// Stops the timer. One interrupt may still be pending.
    pub fn stop_timer(self) {
        self.write(Register::LvtTimer, LVT_MASKED);
        self.write(Register::InitialCount, 0);
    }

    /// Puts the spurious vector register back.
    pub fn restore(self, spurious: u32) {
        self.write(Register::Spurious, spurious);
    }

    /// Ends the interrupt in service, if there is one.
    pub fn end_of_interrupt(self) {
        self.write(Register::Eoi, 0);
    }

    fn command(self, id: u32, command: Command) {
        match self {
            Self::XApic(_) => {
                let Some((high, low)) = command.xapic(id) else {
                    return;
                };
                self.write(Register::IcrHigh, high);
                self.write(Register::IcrLow, low);
                for _ in 0..MAX_POLLS {
                    if !is_pending(self.read(Register::IcrLow)) {
                        break;
                    }
                }
            }
            Self::X2Apic => {
                let mut register = Msr::new(Register::IcrLow.msr());
                // SAFETY: x2APIC mode is on, and this is its command register.
                unsafe { register.write(command.x2apic(id)) };
            }
        }
    }

    fn read(self, register: Register) -> u32 {
        match self {
            // SAFETY: the register lies on the local APIC's page, mapped by
            // the promise made to `current`.
            Self::XApic(base) => unsafe { pointer(base, register).read_volatile() },
            // SAFETY: x2APIC mode is on, and the register exists in it.
            Self::X2Apic => unsafe { Msr::new(register.msr()).read() as u32 },
        }
    }

    fn write(self, register: Register, value: u32) {
        match self {
            // SAFETY: as in `read`; only the loader uses the local APIC.
            Self::XApic(base) => unsafe { pointer(base, register).write_volatile(value) },
            // SAFETY: as in `read`; only the loader uses the local APIC.
            Self::X2Apic => unsafe { Msr::new(register.msr()).write(value.into()) },
        }
    }
}

fn pointer(base: u64, register: Register) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut((base + u64::from(register.offset())) as usize)
}
