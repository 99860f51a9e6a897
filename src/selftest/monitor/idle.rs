//! The idle loop of the monitor.

use muster::internals::smp::{call, jobs, timer};

/// How often the BSP looks for a key, in microseconds: as long as a UART's FIFO of 16 bytes takes to
/// fill at 115200 baud, so that a line may be pasted.
const LOOK: u64 = 1_000;

/// Idles until a condition holds, which it checks periodically. Serves calls in the meantime.
pub fn idle_until(is_so: &mut dyn FnMut() -> bool) {
    timer::every(LOOK, &|| {}, || {
        while !is_so() {
            call::serve();
            if timer::is_there() {
                jobs::idle();
            } else {
                core::hint::spin_loop();
            }
        }
    });
}
