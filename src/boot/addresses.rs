//! Whether addresses of the kernel are shown: to whoever reads the log, they tell where to write.
//!
//! Reports of what went wrong have them in any case. All else has them if `show-addresses=yes` or
//! `log=debug` asks for it.

use core::sync::atomic::{AtomicBool, Ordering};

use muster_arguments::{Arguments, LogLevel};
use muster_events::Address;

static ARE_SHOWN: AtomicBool = AtomicBool::new(false);

/// Takes note of what the command line asks for.
pub fn heed(arguments: &Arguments) {
    let is_detailed = matches!(arguments.log, LogLevel::Debug | LogLevel::Trace);
    ARE_SHOWN.store(arguments.show_addresses || is_detailed, Ordering::Relaxed);
}

/// This address, if there is one and it is shown.
pub fn shown(address: u64) -> Option<Address> {
    Some(Address(address)).filter(|_| are_shown() && address != 0)
}

/// Whether they are shown.
pub fn are_shown() -> bool {
    ARE_SHOWN.load(Ordering::Relaxed)
}
