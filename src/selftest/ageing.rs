//! The ageing of idle CPUs' caches.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::hint::black_box;

use muster::cpus;
use muster::internals::arch::clock::{self, Deadline};
use muster::internals::boot::bytes::Bytes;
use muster::internals::mm::shared;
use muster::internals::smp::{cpu, jobs, online};
use muster::time;
use muster_frames::FRAME_SIZE;

/// How long the CPUs may take for the work before, and to give their caches back, in milliseconds.
const TIMEOUT: u64 = 60_000;

/// Blocks that each CPU allocates and frees.
const BLOCKS: usize = 256;

/// Has all CPUs fill their caches, and then idle until the others have given them back.
///
/// # Errors
///
/// What the others have kept for much longer than they should, in words.
pub fn check() -> Result<(), String> {
    if online::count() == 1 || !time::has_timers() {
        return Ok(());
    }
    jobs::all(TIMEOUT, &|_| {
        let blocks: Vec<Vec<u8>> = (0..BLOCKS)
            .map(|_| black_box(Vec::with_capacity(64)))
            .collect();
        drop(black_box(blocks));
    });
    let before = cached_elsewhere();
    let began = clock::micros();
    let deadline = Deadline::after_millis(TIMEOUT);
    // This CPU's timer wakes it for the look at the others; theirs wake them by themselves.
    let is_over = || cached_elsewhere() == 0 || deadline.passed();
    time::every(1_000, &|| {}, || cpus::idle_until(is_over));
    let after = cached_elsewhere();
    if after > 0 {
        return Err(format!(
            "idle CPUs keep {} of {}",
            Bytes(after),
            Bytes(before)
        ));
    }
    let millis = (clock::micros() - began) / 1_000;
    log::info!(target: "heap", "idle CPUs gave back the {} that they had cached, in {millis} ms", Bytes(before));
    Ok(())
}

/// Returns the bytes that other CPUs have in their caches.
fn cached_elsewhere() -> u64 {
    let own = cpu::with(|here| here.index());
    let others = online::cpus().filter(|&(index, _)| index != own);
    let cached = others.map(|(index, block)| {
        let frames = shared::get()
            .share_of(index)
            .map_or(0, |share| share.cached());
        block.head().cached_bytes() as u64 + frames as u64 * FRAME_SIZE
    });
    cached.sum()
}
