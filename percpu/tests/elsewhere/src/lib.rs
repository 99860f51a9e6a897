//! A crate with variables of its own, which the tests of `muster-percpu` link.

// Where `cpu_local!` does not compile there is nothing to link.
#![cfg(not(any(
    windows,
    target_vendor = "apple",
    target_os = "uefi",
    target_family = "wasm",
    miri
)))]
#![no_std]
#![forbid(unsafe_code)]

use core::sync::atomic::AtomicU64;

use muster_percpu::LocalWord;

muster_percpu::cpu_local! {
    /// For whoever links this crate.
    pub static TICKS: LocalWord<u64> = LocalWord::new(40);
    /// The same, and for other CPUs.
    pub shared static HITS: AtomicU64 = AtomicU64::new(400);
}

/// A module of the crate, with a variable that only it names.
pub mod depth {

    use muster_percpu::{LocalWord, Register, Storage};

    muster_percpu::cpu_local! { static DEPTH: LocalWord<u8> = LocalWord::new(4); }

    /// Counts this CPU's depth up, and returns it.
    pub fn count<R: Register>() -> u8 {
        Storage::<R>::with_own(&DEPTH, |depth| {
            depth.set(depth.get() + 1);
            depth.get()
        })
    }
}
