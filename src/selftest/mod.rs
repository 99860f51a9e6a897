//! The self-test: stress, the monitor, fault injection and benchmarks.
//!
//! A client of the kernel, as any other, but that it uses [`muster::internals`] as well. Not a part of the
//! library: nothing there can import it.

use alloc::string::String;

use muster::internals;
use muster::internals::bringup::roll::RollCall;
use muster_arguments::Arguments;

pub mod ageing;
#[cfg(feature = "bench")]
pub mod bench;
pub mod devices;
pub mod fault;
pub mod fragmentation;
pub mod measure;
pub mod median;
pub mod misuse;
pub mod monitor;
pub mod step;
pub mod stress;

/// Injects the fault that is asked for, if one is. Measures calls and shootdowns, and runs what is asked
/// for: the monitor, or the benchmarks, else the stress.
///
/// # Errors
///
/// The first failure, in words.
pub fn run() -> Result<(), String> {
    let (arguments, roll) = internals::run();
    if let Some(word) = muster::arguments::words().next() {
        log::warn!(
            "`{word}` does nothing: the self-test is a client without options, whose own stand before `--`"
        );
    }
    if let Some(fault) = arguments.selftest.fault {
        fault::inject(fault);
    }
    let measured = measure::calls().and_then(|()| measure::shootdowns());
    measured.and(work(arguments, roll))
}

fn work(arguments: &Arguments, roll: &RollCall) -> Result<(), String> {
    if arguments.selftest.monitor {
        return monitor::run(arguments, roll);
    }
    #[cfg(feature = "bench")]
    if let Some(options) = &arguments.bench {
        return bench::run(options);
    }
    stress::run(arguments)?;
    fragmentation::check()?;
    ageing::check()
}
