//! Whether addresses of the kernel are shown: a reader of the log learns from them where to write.
//!
//! Fault reports have them in any case. All else has them if `show-addresses=yes` or `log=debug`
//! asks for it.

use core::sync::atomic::{AtomicBool, Ordering};

use muster_arguments::{Arguments, LogLevel};
use muster_events::Address;

/// Whether they are shown. Relaxed: the BSP sets it before any AP is released, and nothing else is
/// read by it.
static ARE_SHOWN: AtomicBool = AtomicBool::new(false);

/// Sets it as the command line asks for.
pub fn heed(arguments: &Arguments) {
    let is_detailed = matches!(arguments.log, LogLevel::Debug | LogLevel::Trace);
    ARE_SHOWN.store(arguments.show_addresses || is_detailed, Ordering::Relaxed);
}

/// Returns this address, if there is one and addresses are shown.
pub fn shown(address: u64) -> Option<Address> {
    Some(Address(address)).filter(|_| are_shown() && address != 0)
}

/// Returns whether they are shown.
pub fn are_shown() -> bool {
    ARE_SHOWN.load(Ordering::Relaxed)
}
