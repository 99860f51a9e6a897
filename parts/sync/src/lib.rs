//! Atomics and cells for code that CPUs share: the processor's, or a model's.
//!
//! A build has [`core::sync::atomic`]'s types under their own names, and cells that cost what
//! [`core::cell::UnsafeCell`] does; this crate depends on nothing else then. With `--cfg loom` they are
//! [loom](https://docs.rs/loom)'s, which runs a model in every interleaving of its CPUs, and with every
//! value that a load may return. So the code that a model runs is the code that a kernel runs.
//!
//! # Models
//!
//! With `--cfg loom` there is also `model`, which runs one and prints how many interleavings it has had.
//! `just models` runs all of the libraries' models, and then applies each patch in `mistakes/` to a copy
//! of the sources: a model that does not fail there proves nothing.
//!
//! # Sequential consistency
//!
//! Loom treats a sequentially consistent access as one that acquires and releases, and so shows what no
//! processor does. It does model sequentially consistent fences. So with `--cfg loom` each such access
//! stands between two fences here, which is at least as strong.
//!
//! # What loom does not try
//!
//! Of each atomic, loom 0.7 remembers the last access and the last store. It tries a load before an
//! earlier store of another CPU. But it tries a store before an earlier load of another CPU only if that
//! load was the last access: not if the CPU that stores has itself loaded the word in between. So the CPU
//! that only loads must be the one that loom runs last: the model spawns it as a thread, and does the
//! rest itself. `view_against_mapping` of `muster-paging` is such a model.

#![no_std]

#[cfg(loom)]
extern crate std;

#[cfg(loom)]
mod model;
#[cfg(loom)]
mod modelled;
#[cfg(not(loom))]
mod real;

#[cfg(loom)]
pub use loom;
#[cfg(loom)]
pub use model::model;
#[cfg(loom)]
pub use modelled::*;
#[cfg(not(loom))]
pub use real::*;
