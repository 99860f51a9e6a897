//! Runs of Muster as one page: how each CPU came up, whose memory is, how allocators scale, what CPUs
//! cost one another, and the exact command of each run.
//!
//! The page is one HTML file that asks for nothing else: charts are SVG within it, drawn by `plotters`.
//! Its colours are the page's own variables, so that it follows a dark mode and paper; they are Okabe
//! and Ito's, which colour-blind people tell apart, and no chart counts on them alone.

mod allocators;
mod boot;
mod canvas;
mod latency;
mod memory;
mod numbers;
mod page;
mod run_events;
mod stress;
mod tables;

pub use page::page;
pub use run_events::RunEvents;
