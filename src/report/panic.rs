//! Fault reports: one CPU reports a panic or an exception, all others stop.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use conquer_once::spin::OnceCell;
use muster_events::{Address, Fault, Kind, ReturnAddress, Stopped};
use muster_frames::FRAME_SIZE;
use muster_heap::{Misuse, Violation};
use muster_paging::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::registers::control::Cr2;

use super::exit::{self, Outcome};
use super::{events, journal, serial};
use crate::arch::trap::{self, DOUBLE_FAULT, Frame, MACHINE_CHECK, NMI, PAGE_FAULT};
use crate::arch::{control, machine_check};
use crate::boot::image;
use crate::boot::stack::StackLocation;
use crate::boot::window::MAPPINGS;
use crate::smp::cpu::{self, Cpu};
use crate::smp::doing::Doing;
use crate::smp::progress::PROGRESS;
use crate::smp::stop::END;
use crate::smp::{hooks, lapic, stop};

/// Bits of a page fault's error code (Intel SDM vol. 3A, 4.7).
const PROTECTION: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const RESERVED_BIT: u64 = 1 << 3;
const FETCH: u64 = 1 << 4;

/// The maximum number of return addresses printed.
const DEPTH: usize = 32;

/// LAPIC ids have 32 bits, so no CPU has this one.
const NOBODY: u64 = u64::MAX;

/// The number of faults within the fault report. Relaxed: only the CPU that reports counts them.
static FAULTS_WITHIN: AtomicU32 = AtomicU32::new(0);

/// The LAPIC id of the CPU that reports. LAPIC ids distinguish CPUs at any time, before
/// registration too.
static REPORTER: AtomicU64 = AtomicU64::new(NOBODY);

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    interrupts::disable();
    let frame_pointer = trap::frame_pointer();
    report(format_args!("{}", Panicked(info)), |cpu| {
        // The parts that can't fail come first: the message may panic itself.
        log::error!(target: "panic", "CPU {cpu} panicked");
        if let Some(location) = info.location() {
            log::error!(target: "panic", "at {location}");
        }
        let text = journal::clip(format_args!("{}", info.message()));
        let location = (info.location()).map(|location| journal::clip(format_args!("{location}")));
        events::emit(Fault {
            cpu,
            kind: Kind::Panic,
            text: text.as_str().into(),
            location: location.as_deref().map(Into::into),
            instruction: None,
            error_code: None,
            address: None,
        });
        log::error!(target: "panic", "{}", info.message());
        backtrace(None, frame_pointer);
    })
}

/// Ends the run because of a CPU exception.
pub fn exception(frame: &Frame) -> ! {
    let address = VirtAddr::new(Cr2::read_raw());
    let name = trap::name(frame.vector);
    report(format_args!("{name} at {:#x}", frame.rip), |cpu| {
        let has_address = [PAGE_FAULT, DOUBLE_FAULT].contains(&frame.vector);
        events::emit(Fault {
            cpu,
            kind: Kind::Exception,
            text: name.into(),
            location: None,
            instruction: Some(Address(frame.rip)),
            error_code: Some(Address(frame.error)),
            address: has_address.then_some(Address(address.get())),
        });
        log::error!(target: "panic", "CPU {cpu}: {name}, error code {:#x}", frame.error);
        if frame.vector == PAGE_FAULT {
            let fault = PageFault {
                address,
                error: frame.error,
            };
            log::error!(target: "panic", "tried to {} {address}:", fault.access());
            log::error!(target: "panic", "{fault}");
        }
        // A stack that ran into its guard can't take the page fault's frame either.
        if frame.vector == DOUBLE_FAULT {
            if let Some(place) = StackLocation::of(address) {
                log::error!(target: "panic", "touched {address}:");
                log::error!(target: "panic", "{place}");
            } else if MAPPINGS.contains(address) && address.get().abs_diff(frame.rsp) <= FRAME_SIZE
            {
                log::error!(target: "panic", "touched {address}:");
                log::error!(target: "panic", "the guard page of a stack that was mapped for some work: stack overflow");
            }
        }
        if frame.vector == MACHINE_CHECK {
            machine_check::log_errors();
        }
        if frame.vector == NMI {
            let status = machine_check::nmi_status();
            log::error!(target: "panic", "{status} (port 0x61: {:#04x})", status.0);
        }
        registers(frame, address);
        backtrace(Some(VirtAddr::new(frame.rip)), VirtAddr::new(frame.rbp));
    })
}

/// Ends the run because of a misuse of the heap.
pub fn misuse(misuse: &Misuse) -> ! {
    interrupts::disable();
    let Misuse {
        violation,
        allocated,
        freed,
        found,
        ..
    } = misuse;
    let how_found = match violation {
        Violation::FreedTwice => "freed again",
        Violation::FreedAs(_) | Violation::NoBlock(_) => "freed",
        _ => "found",
    };
    report(format_args!("{} {violation}", misuse.block()), |cpu| {
        let text = journal::clip(format_args!("{} {violation}", misuse.block()));
        events::emit(Fault {
            cpu,
            kind: Kind::Misuse,
            text: text.as_str().into(),
            location: None,
            instruction: None,
            error_code: None,
            address: None,
        });
        log::error!(target: "panic", "CPU {cpu} found a misuse of the heap:");
        log::error!(target: "panic", "{}", misuse.block());
        log::error!(target: "panic", "{violation}");
        let origins = [
            ("allocated", allocated.as_ref()),
            ("freed", freed.as_ref()),
            (how_found, Some(found)),
        ];
        for (what, origin) in origins {
            let Some(origin) = origin else { continue };
            let is_known = origin.callers.iter().next().is_some();
            let colon = if is_known { ":" } else { "" };
            log::error!(target: "panic", "{what} on {origin}{colon}");
            for (number, address) in origin.callers.iter().enumerate() {
                log::error!(target: "panic", "  #{number} {address:#018x}");
            }
        }
        backtrace(None, trap::frame_pointer());
    })
}

/// The client's part of each report.
static HOOK: OnceCell<fn(u32)> = OnceCell::uninit();

/// Has `hook` run at the end of every report, with the index of the CPU that reports. Returns whether it is
/// the first hook: only that one is kept.
pub fn set_hook(hook: fn(u32)) -> bool {
    let mut is_first = false;
    HOOK.init_once(|| {
        is_first = true;
        hook
    });
    is_first
}

/// Lets exactly one CPU report. The others leave a line on their own fault and stop; a CPU that
/// faults within its own report stops reporting.
fn report(what: fmt::Arguments<'_>, say: impl FnOnce(u32)) -> ! {
    // From here on an NMI from the reporter lets this CPU finish its own line.
    Cpu::try_with_own(&END, |end| end.begin());
    let own = u64::from(lapic::own_id());
    // AcqRel: no access of the report moves before this.
    match REPORTER.compare_exchange(NOBODY, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {}
        Err(first) if first == own => {
            // The text itself may be the cause of the fault, so it is tried only once.
            match FAULTS_WITHIN.fetch_add(1, Ordering::Relaxed) {
                0 => log::error!(target: "panic", "a fault within the fault report: {what}"),
                _ => log::error!(target: "panic", "a fault within the report of that fault"),
            }
            let index = own_index();
            exit::conclude(
                Outcome::Fault,
                format_args!("CPU {index}: a fault within the fault report"),
            );
        }
        Err(_) => give_way(what),
    }
    let broken_off = serial::seize();
    journal::stop_answering();
    stop::others();
    broken_off.end();
    let index = own_index();
    say(index);
    for (other, block) in cpu::all().filter(|(other, _)| *other != index) {
        let words = block.get(&END).words();
        let doing = journal::clip(format_args!("{}", Doing(block)));
        events::emit(Stopped {
            cpu: other,
            address: block.get(&END).stopped_at().map(Address),
            fault: words.as_ref().map(|words| words.as_str().into()),
            phase: block.get(&PROGRESS).phase(),
            doing: doing.as_str().into(),
        });
        if let Some(words) = words {
            log::error!(target: "panic", "CPU {other} too: {words}");
        } else if let Some(address) = block.get(&END).stopped_at() {
            let doing = Doing(block);
            log::error!(target: "panic", "CPU {other}, {doing}, stopped at {address:#018x}");
        } else {
            let phase = block.get(&PROGRESS).phase().name();
            log::error!(target: "panic", "CPU {other} did not stop; last phase: {phase}");
        }
    }
    if let Ok(hook) = HOOK.try_get() {
        hook(index);
    }
    exit::conclude(Outcome::Fault, format_args!("CPU {index}: {what}"))
}

/// Returns the index of this CPU, which it has as soon as there is a block for it, registered or not:
/// 0 before, when only the BSP runs.
fn own_index() -> u32 {
    let own = lapic::own_id();
    let mut all = cpu::all();
    let by_id = all.find_map(|(index, block)| (cpu::lapic_id(block) == own).then_some(index));
    by_id.unwrap_or(0)
}

/// Stops a second CPU with a fault of its own, whose line is left for the reporter.
fn give_way(what: fmt::Arguments<'_>) -> ! {
    Cpu::try_with_own(&END, |end| end.leave_words(what));
    stop::stop_here(give_way as *const () as u64)
}

fn registers(frame: &Frame, cr2: VirtAddr) {
    let pairs = [
        [("rip", frame.rip), ("flags", frame.rflags)],
        [("rsp", frame.rsp), ("rbp", frame.rbp)],
        [("rax", frame.rax), ("rbx", frame.rbx)],
        [("rcx", frame.rcx), ("rdx", frame.rdx)],
        [("rsi", frame.rsi), ("rdi", frame.rdi)],
        [("r8", frame.r8), ("r9", frame.r9)],
        [("r10", frame.r10), ("r11", frame.r11)],
        [("r12", frame.r12), ("r13", frame.r13)],
        [("r14", frame.r14), ("r15", frame.r15)],
        [("cs", frame.cs), ("ss", frame.ss)],
        [("cr2", cr2.get()), ("cr3", control::loaded_tables().get())],
    ];
    for [(a, x), (b, y)] in pairs {
        log::error!(target: "panic", "{a:<3} {x:016x}  {b:<5} {y:016x}");
    }
}

/// Prints the return addresses up the chain of frame pointers.
///
/// Every word is read through a walk of the tables in use, and the chain must
/// climb: a broken one ends the trace, not the report.
fn backtrace(first: Option<VirtAddr>, frame_pointer: VirtAddr) {
    log::error!(target: "panic", "return addresses:");
    let mut frames = first
        .into_iter()
        .chain(callers(frame_pointer))
        .take(DEPTH)
        .peekable();
    let mut number = 0;
    while let Some(address) = frames.next() {
        log::error!(target: "panic", "  #{number} {address:#018x}");
        number += 1;
        let mut repeated = 0;
        while frames.next_if_eq(&address).is_some() {
            repeated += 1;
        }
        events::emit(ReturnAddress {
            depth: (number - 1) as u32,
            address: Address(address.get()),
            repeated: repeated as u32,
        });
        if repeated > 0 {
            log::error!(target: "panic", "  the same {repeated} times more");
            number += repeated;
        }
    }
    if number == DEPTH {
        log::error!(target: "panic", "  and so on");
    }
}

/// Returns the return addresses in the frames from `frame_pointer` up.
fn callers(mut frame_pointer: VirtAddr) -> impl Iterator<Item = VirtAddr> {
    core::iter::from_fn(move || {
        let return_address =
            VirtAddr::new((hooks::get().read_word)(frame_pointer.checked_add(8)?)?);
        let next = (hooks::get().read_word)(frame_pointer).map(VirtAddr::new);
        let next = next.filter(|&next| next > frame_pointer);
        // Nothing is mapped at the last address, so the chain ends after this.
        frame_pointer = next.unwrap_or(VirtAddr::new(u64::MAX - 7));
        image::is_text(return_address).then_some(return_address)
    })
}

/// A panic in one line.
struct Panicked<'a>(&'a PanicInfo<'a>);

impl fmt::Display for Panicked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panic: {}", self.0.message())?;
        self.0
            .location()
            .map_or(Ok(()), |location| write!(f, " ({location})"))
    }
}

/// A page fault, in words.
struct PageFault {
    address: VirtAddr,
    error: u64,
}

impl PageFault {
    fn access(&self) -> &'static str {
        match self.error {
            error if error & FETCH != 0 => "execute",
            error if error & WRITE != 0 => "write",
            _ => "read",
        }
    }
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            error if error & RESERVED_BIT != 0 => {
                write!(f, "a table entry has a reserved bit set")?
            }
            error if error & PROTECTION != 0 => write!(f, "its page does not allow that")?,
            _ => write!(f, "nothing is mapped there")?,
        }
        if self.address.get() < FRAME_SIZE {
            write!(f, " (null pointer)")
        } else if let Some(place) = StackLocation::of(self.address) {
            write!(f, " ({place})")
        } else if let Some(name) = (hooks::get().name_of)(self.address) {
            write!(f, " ({name})")
        } else {
            Ok(())
        }
    }
}
