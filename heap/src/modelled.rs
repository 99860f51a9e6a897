//! How models run, and how it is shown that they find mistakes.

#![allow(clippy::unwrap_used, reason = "a model that cannot run must fail")]

use std::env;
use std::format;
use std::process::Command;
use std::string::String;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{eprintln, println};

use loom::model::Builder;

/// Runs a model, with a bound on preemptions where all would take too long, and returns how many
/// interleavings it has.
pub(crate) fn model(
    name: &str,
    preemptions: Option<usize>,
    run: impl Fn() + Send + Sync + 'static,
) {
    let mut builder = Builder::new();
    // From the environment: `LOOM_MAX_PREEMPTIONS`.
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 20_000;
    let bound = match builder.preemption_bound {
        Some(max) => format!("up to {max} preemptions"),
        None => String::from("any number of preemptions"),
    };
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        run();
    });
    println!("{name}: {count:?} interleavings, {bound}");
}

/// Makes each mistake in turn, where [`mutated`](crate::sync::mutated) says so, and runs the model
/// of this module that must find it.
pub(crate) fn assert_found(module: &str, mistakes: &[(&str, &str)]) {
    if env::var("MISTAKE").is_ok() {
        return;
    }
    for (mistake, model) in mistakes {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("{module}::{model}")])
            .env("MISTAKE", mistake)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && told.contains("running 1 test"),
            "{model} does not find that {mistake}: {told}"
        );
        eprintln!("{model} finds it if {mistake}");
    }
}
