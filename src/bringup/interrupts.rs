//! Interrupts: which there are, who handles them, and how often they came.
//!
//! What may come on top of what is settled by three rules:
//!
//! 1. A handler runs with interrupts off from its first instruction to its last; no handler
//!    switches them on. So no interrupt comes on top of another one, and a CPU needs stack for one
//!    handler at a time.
//! 2. Only an NMI, a machine check and a debug exception come on top of a handler. The NMI means
//!    "stop now" or nothing ([`take_nmi`]), the machine check ends the run, and the debug exception belongs to a CPU that
//!    steps through its code, whose handler then runs in the handler's place. None of them takes a
//!    lock that code below it may hold.
//! 3. A handler may allocate and free. Whatever it interrupted goes on where
//!    [`heap::resume_at`](crate::mm::heap::resume_at) says. Handlers that never do are declared
//!    ([`Kind::leaves_the_heap_alone`]).
//!
//! Every interrupt that is in service is ended before it is handled, not after: with interrupts
//! off nothing comes of it, and a handler that never returns leaves nothing behind.
//!
//! Every vector has a handler. An interrupt that nobody asked for is counted, named once, and ended:
//! firmware leaves devices on, and a stray interrupt hurts nothing that is here.

use core::fmt;
use core::ops::AddAssign;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch::exceptions::{self, Heap};
use crate::arch::{machine_check, pic};
use crate::mm::tlb;
use crate::smp::{call, cpu, lapic, timer};

/// The interrupt of a CPU's own timer.
pub const TIMER_VECTOR: u8 = 0xe0;

/// The interrupt by which another CPU wakes this one. It says nothing more: the CPU looks for
/// itself what there is to do. Above the timer's, so that it goes first.
pub const WAKE_VECTOR: u8 = 0xf0;

/// The interrupt of a local APIC that has met an error.
pub const ERROR_VECTOR: u8 = 0xfe;

/// The interrupt a CPU gets when another one went away before it was taken. Its
/// low four bits are all set, as the first APICs have it (Intel SDM vol. 3A, 11.9).
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// The first vector of interrupts; those below are the CPU's own exceptions'. A local APIC delivers
/// interrupts from the second on as well (Intel SDM vol. 3A, 11.5.2).
const FIRST: u8 = 32;
const FIRST_DELIVERED: u8 = 16;

/// The kinds that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// The CPU's own timer.
    Timer,
    /// Another CPU's wake-up.
    Wake,
    /// An error of the local APIC.
    Error,
    /// One that went away before it was taken.
    Spurious,
    /// An NMI that does not mean that the run is over.
    Nmi,
    /// One that nobody asked for.
    Unexpected,
}

impl Kind {
    /// All of them, in the order of their discriminants.
    const ALL: [Self; 6] = [
        Self::Timer,
        Self::Wake,
        Self::Error,
        Self::Spurious,
        Self::Nmi,
        Self::Unexpected,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Wake => "wake-up",
            Self::Error => "error",
            Self::Spurious => "spurious",
            Self::Nmi => "nmi",
            Self::Unexpected => "unexpected",
        }
    }

    /// Returns the kind of what comes at a vector; `None` for an exception of the CPU's.
    fn of(vector: u8) -> Option<Self> {
        match vector {
            TIMER_VECTOR => Some(Self::Timer),
            WAKE_VECTOR => Some(Self::Wake),
            ERROR_VECTOR => Some(Self::Error),
            SPURIOUS_VECTOR => Some(Self::Spurious),
            FIRST.. => Some(Self::Unexpected),
            // The stub of an exception with an error code has taken another word for it.
            FIRST_DELIVERED.. if !exceptions::has_error_code(vector) => {
                lapic::is_in_service(vector).then_some(Self::Unexpected)
            }
            _ => None,
        }
    }

    /// Returns whether the handler neither allocates nor frees, so that what it interrupted goes on
    /// where it was. Where it does, or may, a restartable sequence of the heap's begins again, which is
    /// always right.
    fn leaves_the_heap_alone(self) -> bool {
        match self {
            Self::Timer | Self::Wake => false,
            Self::Error | Self::Spurious | Self::Nmi | Self::Unexpected => true,
        }
    }
}

/// How many interrupts of each kind one CPU has taken. That CPU counts, all may read.
pub struct Counters([AtomicU64; Kind::ALL.len()]);

impl Counters {
    /// None yet.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Kind::ALL.len()])
    }

    /// Reads how many of each kind there have been. Another CPU's are exact while it takes none.
    pub fn read(&self) -> Counts {
        // Statistics: no reader concludes anything about other memory from them.
        Counts(Kind::ALL.map(|kind| self.0[kind as usize].load(Ordering::Relaxed)))
    }

    /// One more. Called with interrupts off on the CPU whose counters these are, so no one else
    /// writes them meanwhile.
    fn count(&self, kind: Kind) {
        let counter = &self.0[kind as usize];
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// How many interrupts of each kind there were, as one reading found them. All that is printed of
/// one reading agrees, whether it is the sum or the kinds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; Kind::ALL.len()]);

impl Counts {
    /// Returns how many of this kind.
    pub fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// Returns how many of all kinds.
    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there_were = Kind::ALL.into_iter().zip(self.0);
        let mut before = "";
        for (kind, count) in there_were.filter(|&(_, count)| count > 0) {
            write!(f, "{before}{count} {}", kind.name())?;
            before = ", ";
        }
        f.write_str(if before.is_empty() { "none" } else { "" })
    }
}

/// Takes the interrupt of this vector. `None`: it is an exception.
pub fn take(vector: u64) -> Option<Heap> {
    let vector = u8::try_from(vector).ok()?;
    let kind = Kind::of(vector)?;
    tlb::wake_up();
    cpu::try_with(|here| here.shared().interrupts.count(kind));
    match kind {
        Kind::Timer => {
            lapic::end_of_interrupt();
            timer::fired();
        }
        Kind::Wake => {
            lapic::end_of_interrupt();
            call::answer();
        }
        Kind::Error => {
            lapic::end_of_interrupt();
            log::error!("local APIC: {}", lapic::take_errors());
        }
        Kind::Unexpected => end_unexpected(vector),
        // The first is not in service, so there is nothing to end; the second is not told by its vector.
        Kind::Spurious | Kind::Nmi => {}
    }
    Some(if kind.leaves_the_heap_alone() {
        Heap::Untouched
    } else {
        Heap::MayBeUsed
    })
}

/// Returns whether nobody uses this vector, be it for an interrupt or for an exception that has an error
/// code.
pub fn is_unused(vector: u8) -> bool {
    match vector {
        TIMER_VECTOR | WAKE_VECTOR | ERROR_VECTOR | SPURIOUS_VECTOR => false,
        _ => vector >= FIRST_DELIVERED && !exceptions::has_error_code(vector),
    }
}

/// Returns how many interrupts this CPU has taken that nobody asked for.
pub fn unexpected_here() -> u64 {
    cpu::with(|here| here.shared().interrupts.read().of(Kind::Unexpected))
}

/// Vectors at which an interrupt that nobody asked for has come, a bit for each.
static NAMED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Ends an interrupt that nobody asked for, where it is in service, and names it, the first time.
fn end_unexpected(vector: u8) {
    let line = vector
        .checked_sub(pic::FIRST_VECTOR)
        .filter(|&line| line < pic::LINES);
    let from = if lapic::is_in_service(vector) {
        lapic::end_of_interrupt();
        "a device or another CPU sent it"
    } else if let Some(line) = line {
        pic::end(line);
        "the legacy interrupt controller sent it"
    } else {
        "it is in service nowhere, as after an `int` instruction"
    };
    let bit = 1 << (vector % 64);
    let named = NAMED[usize::from(vector / 64)].fetch_or(bit, Ordering::Relaxed);
    if named & bit == 0 {
        log::warn!(
            target: "irq",
            "unexpected interrupt at vector {vector:#x}: {from}; it is ended, and counted from now on"
        );
    }
}

/// Takes an NMI that no other CPU stops this one by. `false`: the machine is broken, and the run ends.
///
/// Any other is counted and told, as other kernels do: management controllers, watchdogs and buttons
/// send NMIs, what they mean is known to nobody here, and nothing that is here is hurt by one. The
/// handler uses neither the heap nor locks, nor the local APIC, nor anything that is ever unmapped: so
/// it needs no [`tlb::wake_up`], and what it interrupted goes on where it was.
pub fn take_nmi() -> bool {
    if machine_check::nmi_status().is_error() {
        return false;
    }
    cpu::try_with(|here| here.shared().interrupts.count(Kind::Nmi));
    true
}
