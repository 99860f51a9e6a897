//! Time, for the pauses and the deadline of starting CPUs.

use core::arch::x86_64::_rdtsc;

use x86_64::instructions::port::Port;

/// Input clock of the programmable interval timer, in Hz (Intel 8254).
const PIT_HZ: u32 = 1_193_182;

/// The pause after INIT, in which the timestamp counter is measured
/// (MultiProcessor Specification 1.4, appendix B.4).
const INIT_MILLISECONDS: u32 = 10;

/// The most times that the timer is asked whether it is done. Each takes about
/// a microsecond, so this is for a machine whose timer never is.
const MAX_POLLS: u32 = 1_000_000;

/// No CPU that the loader runs on counts slower: a machine without a timer
/// waits too long rather than not at all.
const SLOWEST_PER_MILLISECOND: u64 = 1_000_000;

/// A clock that counts from its making.
#[derive(Clone, Copy)]
pub struct Clock {
    start: u64,
    per_millisecond: u64,
}

impl Clock {
    /// Waits 10 ms by the interval timer and learns from it how fast the
    /// timestamp counter runs.
    pub fn calibrate() -> Self {
        let mut command = Port::<u8>::new(0x43);
        let mut counter = Port::<u8>::new(0x40);
        let [low, high, ..] = (PIT_HZ * INIT_MILLISECONDS / 1000).to_le_bytes();
        let start = now();
        // SAFETY: the timer's counter 0 interrupts nobody (the interrupt
        // controller is masked), and the loader is the only one to use it.
        // Mode 0 (one shot), then the count, low byte first.
        unsafe {
            command.write(0b0011_0000);
            counter.write(low);
            counter.write(high);
        }
        for _ in 0..MAX_POLLS {
            // SAFETY: as above. Read back the status of counter 0; bit 7 is
            // its output, which rises when the count is over.
            let status = unsafe {
                command.write(0b1110_0010);
                counter.read()
            };
            if status & 0x80 != 0 {
                break;
            }
        }
        let per_millisecond = (now() - start) / u64::from(INIT_MILLISECONDS);
        Self {
            start: now(),
            per_millisecond: per_millisecond.max(SLOWEST_PER_MILLISECOND),
        }
    }

    /// Returns the whole milliseconds since the clock was made.
    pub fn milliseconds(&self) -> u64 {
        (now() - self.start) / self.per_millisecond
    }
}

fn now() -> u64 {
    // SAFETY: every 64-bit CPU has the timestamp counter, and the loader runs
    // at the privilege that may always read it.
    unsafe { _rdtsc() }
}
