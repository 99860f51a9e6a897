//! Muster: an SMP-first x86-64 kernel with per-CPU memory state, booted by the
//! Limine protocol.
//!
//! It brings all CPUs of a machine into one shared memory system, gives each its
//! own memory state, accounts for all of it, and shows every step. Then it calls its
//! client: a function of the crate that is linked with it ([`entry!`]). When that
//! returns, the account must add up and the audit find every frame's owner.
//!
//! This file is that story, in the order in which it happens; each step has a module
//! of its own, in one of the rooms that stand below.
//!
//! Invariants:
//!
//! - The shared state is written once, before the first AP is released, and
//!   published with Release; every reader Acquires ([`shared`]).
//! - No CPU touches per-CPU state before its block is registered; doing so panics
//!   ([`cpu`]).
//! - No CPU waits for another CPU or a device without a bound, except an AP that is out of work
//!   ([`jobs`](smp::jobs)). A CPU that waits for another one answers calls in the meantime
//!   ([`call`]).
//! - Locks have levels and are taken in their order, which is checked on every run
//!   ([`lock`](smp::lock)); no handler waits for the code below it
//!   ([`interrupts`](bringup::interrupts)).
//! - Nothing is both writable and executable, and no page maps more than its
//!   region: the tables are walked to see it ([`shared`]).
//! - Loader memory is taken over only when every CPU of the machine has left it
//!   ([`reclaim`]).
//! - An unmapped page's frame is free only when all CPUs have flushed the page ([`mapping`]).
//! - Every fault ends in a report and a non-zero exit status ([`panic`](mod@report::panic),
//!   [`exit`]).

#![no_std]
// Who works on the kernel reads its documentation with private items, as `just check` builds it.
#![allow(rustdoc::private_intra_doc_links)]
// With the feature all rooms are exported; they are no API for that.
#![cfg_attr(feature = "selftest", allow(clippy::new_without_default))]

extern crate alloc;

pub use crate::face::{account, arguments, cpus, interrupts, memory, panic, time};
/// The log's macros: a line on the serial port and the screen, and in the CPU's own journal.
pub use log;

mod arch;
mod boot;
mod bringup;
mod face;
mod mm;
mod report;
mod smp;

use alloc::vec::Vec;
use core::fmt;

use conquer_once::spin::OnceCell;
use muster_arguments::{Arguments, Output};
use muster_events::{Moment, Phase};

use crate::arch::clock::Rate;
use crate::arch::control::Features;
use crate::arch::{clock, control, descriptors, failpoint, machine_check, pic};
use crate::boot::limine::Boot;
use crate::boot::stack::Slot;
use crate::boot::{addresses, stack};
use crate::bringup::roll::RollCall;
use crate::bringup::{audit, cpu_state, reclaim, routes};
use crate::mm::shared::SharedMemory;
use crate::mm::{firmware, heap, heap_platform, mapping, peek, shared};
use crate::report::exit::Outcome;
use crate::report::{events, exit, journal, screen};
use crate::smp::cpu::{Block, Cpu};
use crate::smp::hooks::{self, Hooks};
use crate::smp::progress::PROGRESS;
use crate::smp::{call, cpu, identity, lapic, timer};

/// The state that the BSP carries over from the boot stack to its own.
struct Plan {
    boot: Boot,
    arguments: Arguments,
    blocks: &'static [&'static Block],
    rate: Rate,
}

static PLAN: OnceCell<Plan> = OnceCell::uninit();

/// The roll call, when it has been held.
static ROLL: OnceCell<RollCall> = OnceCell::uninit();

/// The functions that rooms need of higher ones.
const HOOKS: Hooks = Hooks {
    read_word: peek::read_word,
    name_of: peek::name_of,
    cache_use: heap_platform::cache_use,
    drain_caches: || {
        heap_platform::drain_here();
    },
};

/// Starts the BSP. The loader enters here: on the loader's stack, tables and GDT, with interrupts
/// disabled and no IDT.
#[unsafe(no_mangle)]
extern "C" fn entry() -> ! {
    clock::start();
    hooks::register(HOOKS);
    // SAFETY: this CPU has no block yet.
    unsafe { Cpu::reset() };
    bringup::interrupts::load_early();
    // SAFETY: nothing uses the boot stack yet, it is part of the image, and nothing on the loader's
    // stack is needed any more.
    unsafe { stack::run_on(stack::boot_top(), build) }
}

/// Builds everything that the others will share: the BSP, on the boot stack.
extern "C" fn build() -> ! {
    descriptors::load_boot(stack::boot_interrupt_tops());
    bringup::interrupts::load();
    journal::start();
    heap::start();
    let rate = clock::calibrate();

    let boot = Boot::check().unwrap_or_else(|error| refuse(&error));
    if let Some(Ok(framebuffer)) = &boot.framebuffer {
        screen::start(framebuffer);
    }
    log::info!("Muster {} on {}", env!("CARGO_PKG_VERSION"), boot.loader);
    log::info!(
        "entered {} ms after reset",
        clock::micros_before_entry() / 1000
    );
    rate.log();
    let arguments = Arguments::parse(&boot.command_line)
        .unwrap_or_else(|error| refuse(&format_args!("in the command line: {error}")));
    journal::set_serial_level(arguments.log.into());
    addresses::heed(&arguments);
    control::check_pat().unwrap_or_else(|error| refuse(&error));
    if let Some(found) = control::set_pat() {
        log::info!("the two upper bytes of the PAT were the loader's: {found:#x}");
    }
    if control::reveal_no_execute() {
        log::warn!("{}", control::NO_EXECUTE_REVEALED);
    }
    let features = Features::detect();
    if arguments.output == Output::Json {
        events::start(&boot, &features, rate.hz());
    }
    boot.log();
    identity::start();
    failpoint::set(&arguments);
    failpoint::overflow_boot_stack(&arguments);

    let (shared, blocks) =
        SharedMemory::build(&boot, features, arguments.cpus).unwrap_or_else(|error| refuse(&error));
    let blocks = register_bsp(blocks);
    let reach = |phase| Cpu::with_own(&PROGRESS, |progress| progress.reach(phase));
    reach(Phase::Block);
    control::set(&features);
    reach(Phase::Control);
    shared.load_tables();
    reach(Phase::Tables);
    match shared.verify() {
        Ok(census) => shared.log_census(&census),
        Err(error) => refuse(&error),
    }
    shared::publish(shared);
    heap::open(arguments.heap.kinds()[0]);
    call::start(blocks.len());

    PLAN.init_once(|| Plan {
        boot,
        arguments,
        blocks,
        rate,
    });
    // SAFETY: the slot is the BSP's own, mapped in the tables it has loaded, and not yet in use;
    // all that is still needed has moved to `PLAN` and `SHARED`.
    unsafe { stack::run_on(Slot::of(0).main().top, muster) }
}

/// Brings the other CPUs up and runs the work: the BSP, on its own stack.
extern "C" fn muster() -> ! {
    let Some(Plan {
        boot,
        arguments,
        blocks,
        rate,
    }) = PLAN.get()
    else {
        panic!("the BSP left the boot stack without a plan");
    };
    cpu::with(|here| {
        let report = here.get(&PROGRESS);
        report.reach(Phase::Stack);
        cpu::load_descriptors();
        bringup::interrupts::load();
        cpu_state::record(here.block());
        report.reach(Phase::Descriptors);
        report.join();
        report.reach(Phase::Online);
        cpu_state::log_own(here.index(), here.block());
    });
    machine_check::start();
    machine_check::enable_nmis();
    pic::silence();
    lapic::enable(&firmware::nmi_lines(boot));
    routes::start(boot);
    // Once more, with the local APIC as it is now.
    cpu_state::record_here();
    if let Some(difference) = cpu::with(|here| identity::differences_of(here.block()).next()) {
        refuse(&format_args!("the BSP {difference}"));
    }
    clock::make_sure(*rate, || firmware::pm_timer(boot));
    match timer::calibrate() {
        Some(source) => log::info!("timers {source}"),
        None => log::warn!("no timer: the local APIC's does not count"),
    }
    x86_64::instructions::interrupts::enable();

    let roll = ROLL.get_or_init(|| RollCall::hold(boot, arguments, blocks));
    roll.print();
    roll.emit();
    let reclaimed = reclaim::reclaim(roll, arguments.reclaim);
    shared::get().emit_ranges(Moment::Boot);

    if let Err(error) = mapping::start() {
        refuse(&error);
    }
    arguments::keep(&boot.command_line);
    let before = audit::Baseline::take();
    let client = client::run();
    let account = account::settle();
    let audit = before.compare();
    shared::get().emit_ranges(Moment::End);
    failpoint::log_outcome();

    if let Err(reason) = (roll.verdict())
        .and(reclaimed)
        .and(client)
        .and(account)
        .and(audit)
    {
        exit::conclude(Outcome::Failed, format_args!("{reason}"));
    }
    exit::conclude(Outcome::Passed, format_args!(""))
}

/// Registers the BSP's block, and publishes all blocks.
fn register_bsp(blocks: Vec<&'static Block>) -> &'static [&'static Block] {
    let blocks: &'static [&'static Block] = blocks.leak();
    let published = cpu::DIRECTORY.publish(blocks);
    // SAFETY: (1) this runs in no handler; interrupts are disabled, and the handlers of NMIs and faults register nothing.
    // (2) A guard does nothing.
    let registered = (blocks.first()).map(|block| unsafe { Cpu::register(block) });
    assert!(
        published.is_ok() && registered == Some(Ok(())),
        "the blocks are not in order: {published:?}, {registered:?}"
    );
    cpu::with(|here| {
        journal::adopt_early();
        here.get(&PROGRESS).reach(Phase::Entered);
    });
    blocks
}

/// Ends the run before it began, with one line that says what to change.
fn refuse(error: &dyn fmt::Display) -> ! {
    log::error!("can't start: {error}");
    exit::conclude(Outcome::Refused, format_args!("{error}"))
}

/// Makes a function the client: the kernel calls it when all CPUs are online and the loader's memory
/// is reclaimed. Used once, at the root of the crate that is linked with the kernel.
///
/// The function is of type `fn() -> Result<(), E>`, for an `E` that implements
/// [`Display`](core::fmt::Display). It runs on the BSP, on the BSP's stack of 64 KiB, with interrupts enabled and
/// the heap open, while the other CPUs are idle. The run passes if it returns `Ok`, all CPUs are
/// online, and account and audit agree with it that it has freed what it had; an `Err` is the reason
/// in the verdict.
///
/// ```ignore
/// #![no_std]
/// #![no_main]
///
/// muster::entry!(run);
///
/// fn run() -> Result<(), &'static str> {
///     muster::log::info!("all CPUs are online");
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! entry {
    ($client:path) => {
        const _: () = {
            // SAFETY: the one definition of what the kernel declares (`muster::client`), of the same type.
            #[unsafe(no_mangle)]
            fn muster_client() -> $crate::client::Outcome {
                $crate::client::report($client)
            }
        };
    };
}

/// What [`entry!`] expands to.
#[doc(hidden)]
pub mod client {
    use alloc::string::{String, ToString};
    use core::fmt::Display;

    /// How the client ended.
    pub type Outcome = Result<(), String>;

    // SAFETY: `entry!` defines it, with this type; without that the kernel does not link.
    unsafe extern "Rust" {
        safe fn muster_client() -> Outcome;
    }

    /// Runs the client.
    pub(crate) fn run() -> Outcome {
        muster_client()
    }

    /// Runs the function that `entry!` was given.
    ///
    /// # Errors
    ///
    /// Its error, in words.
    pub fn report<E: Display>(client: fn() -> Result<(), E>) -> Outcome {
        client().map_err(|reason| reason.to_string())
    }
}

/// What the self-test uses of the kernel besides its public face: all rooms, which change as the kernel does.
#[cfg(feature = "selftest")]
#[doc(hidden)]
pub mod internals {
    use muster_arguments::Arguments;

    use crate::bringup::roll::RollCall;

    /// The processor.
    pub mod arch {
        pub use crate::arch::*;
    }
    /// What is fixed before the kernel plans anything.
    pub mod boot {
        pub use crate::boot::*;
    }
    /// The parts that make many CPUs one machine.
    pub mod smp {
        pub use crate::smp::*;
    }
    /// All output.
    pub mod report {
        pub use crate::report::*;
    }
    /// Memory.
    pub mod mm {
        pub use crate::mm::*;
    }
    /// Bring-up, account and audit.
    pub mod bringup {
        pub use crate::bringup::*;
    }

    /// Returns what the command line asks for, and the roll call. Called by the client.
    ///
    /// # Panics
    ///
    /// If called before the client is.
    pub fn run() -> (&'static Arguments, &'static RollCall) {
        let plan = crate::PLAN.get().zip(crate::ROLL.get());
        let Some((plan, roll)) = plan else {
            panic!("the client was not called yet");
        };
        (&plan.arguments, roll)
    }
}
