//! What the words can ask for.

use log::LevelFilter;

use crate::named::named;

named! {
    /// The kinds of stress.
    pub enum Workload {
        /// Blocks of one size, first in, first out.
        Churn = "churn",
        /// Blocks of 16 B to 64 KiB with random lifetimes.
        Mixed = "mixed",
        /// Blocks that one CPU allocates and the next one frees.
        Handover = "handover",
        /// Vectors and strings that grow, and blocks that are resized.
        Growth = "growth",
        /// Allocations and frees, interrupted at each instruction by a handler that does the same.
        Interrupts = "interrupts",
        /// Allocations and frees on top of which the CPU's timer does the same.
        Timer = "timer",
        /// Calls from every CPU to every other.
        Calls = "calls",
        /// Memory that is mapped, protected and unmapped, while others write to it.
        Mappings = "mappings",
        /// Memory that loses its rights, and is unmapped, while the others are in every state in
        /// which a CPU can be asked to flush.
        Shootdown = "shootdown",
        /// All CPUs allocate until the machine is out, then free everything.
        Exhaustion = "exhaustion",
        /// All of these at once, in turns on each CPU.
        Soak = "soak",
    }
}

/// A set of workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workloads(u16);

const _: () = assert!(Workload::ALL.len() <= u16::BITS as usize);

impl Workloads {
    /// Returns every one by itself: all but [`Workload::Soak`].
    pub fn all() -> Self {
        let all = Workload::ALL.iter().copied();
        all.filter(|&workload| workload != Workload::Soak)
            .fold(Self::none(), Self::with)
    }

    /// Returns the empty set.
    pub const fn none() -> Self {
        Self(0)
    }

    /// Returns this set and `workload`.
    pub const fn with(self, workload: Workload) -> Self {
        Self(self.0 | 1 << workload as u16)
    }

    /// Returns those in the set, in the order of [`Workload::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Workload> {
        let all = Workload::ALL.iter().copied();
        all.filter(move |&workload| self.0 & 1 << workload as u16 != 0)
    }

    /// Parses `all`, `none`, or names by commas.
    pub fn parse(list: &str) -> Option<Self> {
        match list {
            "all" => Some(Self::all()),
            "none" => Some(Self::none()),
            _ => list.split(',').try_fold(Self::none(), |workloads, name| {
                Some(workloads.with(Workload::parse(name)?))
            }),
        }
    }
}

named! {
    /// A heap that can serve the kernel once its memory is set up.
    pub enum HeapKind {
        /// Per-CPU magazines over slabs over frames.
        Magazines = "magazines",
        /// One list of free blocks behind one lock: the baseline.
        LinkedList = "linked-list",
        /// The magazines, with a look at each block: who misuses one is named.
        Checked = "checked",
    }
}

named! {
    /// What serves the kernel.
    pub enum Heap {
        /// The magazines.
        Magazines = HeapKind::Magazines.name(),
        /// The list.
        LinkedList = HeapKind::LinkedList.name(),
        /// The magazines, checked.
        Checked = HeapKind::Checked.name(),
        /// The magazines and the list, one after the other, to compare them.
        Compare = "compare",
    }
}

impl Heap {
    /// Returns the heaps to use, one after the other. The list comes last: it keeps every
    /// frame that it once had.
    pub const fn kinds(self) -> &'static [HeapKind] {
        match self {
            Self::Magazines => &[HeapKind::Magazines],
            Self::LinkedList => &[HeapKind::LinkedList],
            Self::Checked => &[HeapKind::Checked],
            Self::Compare => &[HeapKind::Magazines, HeapKind::LinkedList],
        }
    }
}

named! {
    /// What becomes of the loader's memory.
    pub enum Reclaim {
        /// It is cleared, and used like any other.
        Yes = "yes",
        /// It stays the loader's.
        No = "no",
        /// It is overwritten, and then used: whoever still reads it will show.
        Poison = "poison",
    }
}

named! {
    /// What the serial port shows: messages of this level and of those before it.
    pub enum LogLevel {
        /// What ends a run.
        Error = "error",
        /// What is not as it should be.
        Warn = "warn",
        /// What happens.
        Info = "info",
        /// What each CPU did.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}

named! {
    /// What the kernel writes.
    pub enum Output {
        /// The log for people alone.
        Text = "text",
        /// And events for programs, one JSON object a line, on the second serial port.
        Json = "json",
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warn => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

named! {
    /// A fault to inject once all CPUs are online.
    pub enum Fault {
        /// The BSP panics.
        PanicBsp = "panic-bsp",
        /// The last AP panics.
        PanicAp = "panic-ap",
        /// The last two CPUs panic, the second while the first is reporting.
        PanicTwo = "panic-two",
        /// All CPUs panic at once: one reports, any of them.
        PanicAll = "panic-all",
        /// The last CPU overflows its stack into the guard page.
        StackOverflow = "stack-overflow",
        /// The last CPU does so on a stack that was mapped for some work.
        MappedStackOverflow = "mapped-stack-overflow",
        /// The last CPU reads through a null pointer.
        NullRead = "null-read",
        /// The last CPU writes to the kernel's code.
        WriteText = "write-text",
        /// The last CPU jumps into the heap.
        ExecuteHeap = "execute-heap",
        /// The last CPU reads an unmapped page, after all CPUs had used it.
        UnmappedRead = "unmapped-read",
        /// The last CPU writes to a page that was made read-only, after all CPUs had written there.
        ProtectedWrite = "protected-write",
        /// The last CPU runs off the end of a mapping.
        MappingOverflow = "mapping-overflow",
        /// The last AP disables interrupts for good, and the BSP calls it.
        UnresponsiveAp = "unresponsive-ap",
        /// The last AP halts for good while it holds a lock of the heap, and the BSP waits for that lock.
        /// With `heap=linked-list`, whose growth takes one.
        HaltInHeap = "halt-in-heap",
        /// The last CPU halts for good while it holds a lock of the kernel's, and the BSP waits for that
        /// lock.
        HaltInLock = "halt-in-lock",
        /// The last CPU takes two locks in the wrong order.
        LockOrder = "lock-order",
        /// The last CPU calls the others while it holds a lock.
        CallLocked = "call-locked",
        /// The last AP panics with a message that panics as it is formatted.
        PanicInPanic = "panic-in-panic",
        /// The last AP panics while it serves a call of the BSP's.
        PanicInCall = "panic-in-call",
        /// The last AP panics while all others map and unmap, and shoot each other's TLBs down.
        PanicInShootdown = "panic-in-shootdown",
        /// The last CPU disables write protection for itself, and goes on.
        WriteProtectionOff = "write-protection-off",
        /// The last CPU changes one of its MTRRs that is not in use, and goes on.
        MemoryTypesChanged = "memory-types-changed",
        /// The BSP overflows the boot stack, before there is another CPU or a table of the
        /// kernel's.
        BootStackOverflow = "boot-stack-overflow",
        /// The BSP forgets a mapping, and goes on.
        MappingLeak = "mapping-leak",
        /// Every CPU gets an interrupt at each unused vector, and goes on.
        StrayInterrupts = "stray-interrupts",
        /// Each CPU in turn takes interrupts of the PC's timer (IRQ 0), and the run goes on.
        TimerInterrupts = "timer-interrupts",
        /// Each CPU in turn takes those of the real-time clock (IRQ 8).
        ClockInterrupts = "clock-interrupts",
        /// Each CPU in turn takes those of the high-precision timer (HPET), which are level-triggered: one
        /// request comes again and again until it is attended to.
        LevelInterrupts = "level-interrupts",
        /// One CPU allocates, another one frees, and the last one frees again.
        HeapDoubleFree = "heap-double-free",
        /// The last CPU writes the byte past the end of another's block, which a third one frees.
        HeapOverflow = "heap-overflow",
        /// And the byte before its start.
        HeapUnderflow = "heap-underflow",
        /// The last CPU writes to a block that one CPU allocated and another one freed.
        HeapUseAfterFree = "heap-use-after-free",
        /// The last CPU frees another's block as if it were larger.
        HeapWrongLayout = "heap-wrong-layout",
    }
}

impl Fault {
    /// Returns whether it ends the run. The others are seen in the audit, or nowhere.
    pub const fn ends_run(self) -> bool {
        !matches!(
            self,
            Self::WriteProtectionOff
                | Self::MemoryTypesChanged
                | Self::MappingLeak
                | Self::StrayInterrupts
                | Self::TimerInterrupts
                | Self::ClockInterrupts
                | Self::LevelInterrupts
        )
    }

    /// Returns the least number of CPUs that it takes: one misbehaves, and another one meets that.
    pub const fn min_cpus(self) -> u32 {
        match self {
            Self::PanicTwo
            | Self::UnresponsiveAp
            | Self::HaltInHeap
            | Self::HaltInLock
            | Self::PanicInCall
            | Self::PanicInShootdown => 2,
            _ => 1,
        }
    }

    /// Returns the heap that it takes, if it is about no other.
    pub const fn heap(self) -> Option<Heap> {
        match self {
            Self::HaltInHeap => Some(Heap::LinkedList),
            // Only the checks see them.
            Self::HeapOverflow | Self::HeapUnderflow | Self::HeapUseAfterFree => {
                Some(Heap::Checked)
            }
            _ => None,
        }
    }
}

named! {
    /// A fault of the last AP during bring-up.
    pub enum ApFault {
        /// It halts for good.
        Halt = "ap-halt",
        /// It takes an exception.
        Fault = "ap-fault",
        /// It waits until it has been given up, and then continues.
        Delay = "ap-delay",
    }
}

named! {
    /// The phase of bring-up: the fault happens when the AP has reported it.
    pub enum Step {
        /// It is in the kernel's entry, on the loader's stack and tables.
        Entered = "entered",
        /// Its block is registered.
        Block = "block",
        /// Its control registers are the kernel's.
        Control = "control",
        /// The kernel's tables are loaded.
        Tables = "tables",
        /// It is on its own stack.
        Stack = "stack",
        /// GDT, TSS and IDT are its own.
        Descriptors = "descriptors",
        /// It is online.
        Online = "online",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each enumeration, what it makes of its own names and of others.
    macro_rules! names_round_trip {
        ($($Type:ident)+) => {$(
            assert!($Type::ALL.len() == $Type::NAMES.len());
            for (&value, &name) in $Type::ALL.iter().zip($Type::NAMES) {
                assert_eq!((value.name(), $Type::parse(name)), (name, Some(value)));
                for other in [format!("{name}s"), name.to_uppercase(), name[1..].into()] {
                    assert_eq!($Type::parse(&other), None);
                }
            }
        )+};
    }

    #[test]
    fn every_name_is_its_values_alone() {
        names_round_trip!(Workload HeapKind Heap Reclaim LogLevel Output Fault ApFault Step);
    }

    #[test]
    fn sets_hold_what_was_put_in_in_the_order_of_all() {
        assert_eq!(Workloads::parse("none"), Some(Workloads::none()));
        let (soak, others) = Workload::ALL.split_last().unwrap();
        assert_eq!(*soak, Workload::Soak);
        assert!(Workloads::all().iter().eq(others.iter().copied()));
        let some = Workloads::parse("exhaustion,churn,exhaustion").unwrap();
        assert!(some.iter().eq([Workload::Churn, Workload::Exhaustion]));
        for wrong in [
            "",
            "churn,",
            "all,churn",
            "none,churn",
            "chrun",
            "churn mixed",
        ] {
            assert_eq!(Workloads::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_heap_is_a_kind_of_its_name_and_a_comparison_ends_with_the_list() {
        for &kind in HeapKind::ALL {
            assert_eq!(Heap::parse(kind.name()).unwrap().kinds(), [kind]);
        }
        assert_eq!(Heap::Compare.kinds().last(), Some(&HeapKind::LinkedList));
    }

    #[test]
    fn faults_say_what_they_take() {
        let of = |fault: Fault| (fault.ends_run(), fault.min_cpus(), fault.heap());
        assert_eq!(of(Fault::PanicBsp), (true, 1, None));
        assert_eq!(of(Fault::StrayInterrupts), (false, 1, None));
        assert_eq!(of(Fault::UnresponsiveAp), (true, 2, None));
        assert_eq!(of(Fault::HaltInHeap), (true, 2, Some(Heap::LinkedList)));
        assert_eq!(of(Fault::HeapOverflow), (true, 1, Some(Heap::Checked)));
        // Without the checks the magazines find it, too.
        assert_eq!(of(Fault::HeapDoubleFree), (true, 1, None));
    }

    #[test]
    fn log_levels_are_those_of_the_log_of_the_same_name() {
        for &level in LogLevel::ALL {
            assert_eq!(level.name().parse(), Ok(LevelFilter::from(level)));
        }
    }
}
