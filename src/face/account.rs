//! The account: what each CPU has of the machine's memory, and has done.
//!
//! The kernel settles it when the client returns, and has the audit count everything again.

use alloc::string::String;

use crate::bringup::account;
use crate::mm::heap;

/// Logs the account, and checks that it adds up. Called on the BSP, while no job runs.
///
/// # Errors
///
/// The first figures that do not add up, in words.
pub fn settle() -> Result<(), String> {
    account::settle()
}

/// Logs the figures of the heap.
pub fn log_heap() {
    heap::log_usage();
}
