//! How models run.

use std::format;
use std::println;
use std::string::String;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loom::model::Builder;

/// Runs a model in every interleaving of its CPUs, up to this number of preemptions where all would take
/// too long, and prints how many interleavings that were. The environment variable
/// `LOOM_MAX_PREEMPTIONS` replaces the number.
///
/// # Panics
///
/// As the model does, and if it does not come to an end.
pub fn model(name: &str, preemptions: Option<usize>, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 20_000;
    let bound = match builder.preemption_bound {
        Some(max) => format!("up to {max} preemptions"),
        None => String::from("any number of preemptions"),
    };
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    builder.check(move || {
        // Relaxed: loom runs one interleaving after the other, on this thread.
        counted.fetch_add(1, Ordering::Relaxed);
        run();
    });
    println!("{name}: {count:?} interleavings, {bound}");
}
