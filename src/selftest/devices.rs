//! Devices' interrupts: each CPU in turn takes those of a PC's timer, its clock or its high-precision timer, while
//! all CPUs use the heap.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use muster::cpus;
use muster::internals::arch::clock::Deadline;
use muster::internals::smp::device_vectors::COUNT;
use muster::interrupts::{self, Handler, Interrupt, RouteError, RoutingError, Signal};
use muster::time;
use muster_arguments::Fault;

/// The number of interrupts that each CPU takes at least.
const EACH: u64 = 16;

/// How long they may take, in milliseconds, and the CPUs' part in it.
const TIMEOUT: u64 = 10_000;
const JOB_TIMEOUT: u64 = 2 * TIMEOUT;

/// How long no interrupt may come once a route is removed, in milliseconds: many periods of the device.
const SILENCE: u64 = 20;

/// The CPU that is to take the interrupts; those that it has taken, and those that another one has. Relaxed:
/// counts, and the end of the call that sets or removes a handler orders the rest.
static TARGET: AtomicU32 = AtomicU32::new(u32::MAX);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static ELSEWHERE: AtomicU64 = AtomicU64::new(0);

/// A device whose interrupts are checked.
struct Device {
    name: &'static str,
    source: Source,
    start: fn(),
    /// Has it ask for interrupts once the route stands. Nothing where it does so from its start on.
    request: fn(),
    /// Ends a request that nobody has attended to, of a device that could not ask again otherwise.
    attend: fn(),
    /// Ends such a request of one that goes on asking.
    release: fn(),
    stop: fn(),
    handler: Handler,
}

/// Which interrupt a device has.
#[derive(Clone, Copy)]
enum Source {
    /// This one of ISA's.
    Isa(u8),
    /// The one at this GSI, level-triggered.
    Gsi(u32),
}

impl Source {
    fn signal(self) -> Signal {
        match self {
            Self::Isa(_) => Signal::ISA,
            Self::Gsi(_) => Signal::PCI,
        }
    }

    fn route(self, cpu: u32, handler: Handler) -> Result<Interrupt, RouteError> {
        match self {
            Self::Isa(irq) => interrupts::route_isa(irq, cpu, handler),
            Self::Gsi(gsi) => interrupts::route_gsi(gsi, self.signal(), cpu, handler),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isa(irq) => write!(f, "IRQ {irq}"),
            Self::Gsi(_) => write!(f, "level-triggered interrupt"),
        }
    }
}

impl Device {
    fn of(fault: Fault) -> Option<Self> {
        match fault {
            Fault::TimerInterrupts => Some(Self {
                name: "timer",
                source: Source::Isa(0),
                start: pit::start,
                request: || {},
                attend: || {},
                release: || {},
                stop: pit::stop,
                handler: &count,
            }),
            Fault::ClockInterrupts => Some(Self {
                name: "clock",
                source: Source::Isa(8),
                start: rtc::start,
                request: || {},
                attend: rtc::attend,
                release: || {},
                stop: rtc::stop,
                handler: &|| {
                    rtc::attend();
                    count();
                },
            }),
            Fault::LevelInterrupts => Some(Self {
                name: "high-precision timer",
                source: Source::Gsi(hpet::gsi()),
                start: || {},
                request: hpet::request,
                attend: || {},
                release: hpet::attend,
                stop: hpet::stop,
                handler: &|| {
                    // One request lasts for all interrupts: that it is not attended to brings the next.
                    if TAKEN.load(Ordering::Relaxed) + 1 == EACH {
                        hpet::attend();
                    }
                    count();
                },
            }),
            _ => None,
        }
    }

    fn route(&self, cpu: u32) -> Interrupt {
        TARGET.store(cpu, Ordering::Relaxed);
        TAKEN.store(0, Ordering::Relaxed);
        let route = self.source.route(cpu, self.handler);
        let route = route.unwrap_or_else(|error| panic!("the {} has no route: {error}", self.name));
        // It may hold its line since before the route.
        (self.attend)();
        (self.request)();
        route
    }

    /// Has one CPU take interrupts, while all use the heap. Returns the GSI.
    fn interrupt(&self, cpu: u32) -> u32 {
        let route = self.route(cpu);
        let (gsi, vector) = (route.gsi(), route.vector());
        let second = self.source.route(cpu, self.handler).map(drop);
        assert!(
            second == Err(RouteError::Routed(gsi)),
            "a second route of GSI {gsi} ends in {second:?}"
        );
        cpus::run_on_all(JOB_TIMEOUT, &|index| {
            let deadline = Deadline::after_millis(TIMEOUT);
            // CPUs with odd indices idle, so that the interrupts have to wake them. Their timers do in the end.
            if index == cpu && cpu % 2 == 1 && time::has_timers() {
                let is_over = || TAKEN.load(Ordering::Relaxed) >= EACH || deadline.passed();
                time::every(TIMEOUT * 1_000, &|| {}, || cpus::idle_until(is_over));
            }
            while TAKEN.load(Ordering::Relaxed) < EACH && !deadline.passed() {
                use_heap();
                cpus::relax();
            }
        });
        if let Err(error) = route.unroute() {
            panic!("the route of GSI {gsi} is not removed: {error}");
        }
        let taken = TAKEN.load(Ordering::Relaxed);
        assert!(
            taken >= EACH,
            "of the {}'s interrupts only {taken} came to CPU {cpu} within {TIMEOUT} ms, by GSI {gsi} at vector \
             {vector:#x}",
            self.name
        );
        // It asks once more, for nobody.
        (self.request)();
        let silence = Deadline::after_millis(SILENCE);
        while !silence.passed() {
            (self.attend)();
            cpus::relax();
        }
        (self.release)();
        let after = TAKEN.load(Ordering::Relaxed) - taken;
        assert!(
            after == 0,
            "CPU {cpu} took {after} interrupts of GSI {gsi} after its route was removed"
        );
        gsi
    }
}

/// Checks the interrupts of the device that this is about: each CPU takes them in turn. Returns `false` if it is
/// about none.
pub fn check(fault: Fault) -> bool {
    let Some(device) = Device::of(fault) else {
        return false;
    };
    (device.start)();
    let mut gsi = 0;
    for cpu in cpus::online() {
        gsi = device.interrupt(cpu);
    }
    (device.stop)();
    let elsewhere = ELSEWHERE.load(Ordering::Relaxed);
    assert!(
        elsewhere == 0,
        "{elsewhere} interrupts of GSI {gsi} came to CPUs that it is not routed to"
    );
    log::info!(
        "the {}'s {} arrives at GSI {gsi}: {} CPUs in turn took {EACH} interrupts or more each, and none \
         after the route was removed",
        device.name,
        device.source,
        cpus::count()
    );
    check_others(&device, gsi);
    true
}

/// Checks that what can't be routed is refused, and that a route by a GSI frees all that it takes: more are made
/// than there are vectors.
fn check_others(device: &Device, gsi: u32) {
    let to_gsi = |gsi, cpu| interrupts::route_gsi(gsi, device.source.signal(), cpu, device.handler);
    let refused = [
        (
            interrupts::route_isa(16, 0, device.handler),
            RouteError::Routing(RoutingError::NotIsa(16)),
        ),
        (
            to_gsi(u32::MAX, 0),
            RouteError::Routing(RoutingError::NoIoApic(u32::MAX)),
        ),
        (to_gsi(gsi, u32::MAX), RouteError::NotOnline(u32::MAX)),
    ];
    for (result, expected) in refused {
        assert!(
            result.as_ref().err() == Some(&expected),
            "a route that there can't be ends in {result:?}"
        );
    }
    for _ in 0..2 * COUNT {
        if let Err(error) = to_gsi(gsi, 0).map(drop) {
            panic!("GSI {gsi} has no route: {error}");
        }
    }
}

/// Counts an interrupt on this CPU, and uses the heap on top of what it interrupts.
fn count() {
    use_heap();
    if cpus::current() == TARGET.load(Ordering::Relaxed) {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    } else {
        ELSEWHERE.fetch_add(1, Ordering::Relaxed);
    }
}

fn use_heap() {
    drop(black_box(Box::new(1_u64)));
    drop(black_box(Vec::<u8>::with_capacity(1000)));
}

/// Counter 0 of the 8254 (Intel 8254 data sheet; the ports of the PC/AT).
mod pit {
    use super::write;

    const COUNTER: u16 = 0x40;
    const CONTROL: u16 = 0x43;
    /// Both bytes of the count follow; mode 2, a pulse at each period, and mode 0, which waits for a count.
    const PERIODIC: u8 = 0x34;
    const ONE_SHOT: u8 = 0x30;
    /// About a millisecond, in its clock of 1.193 MHz.
    const PERIOD: u16 = 1193;

    pub fn start() {
        let [low, high] = PERIOD.to_le_bytes();
        write(CONTROL, PERIODIC);
        write(COUNTER, low);
        write(COUNTER, high);
    }

    pub fn stop() {
        write(CONTROL, ONE_SHOT);
    }
}

/// The real-time clock (Motorola MC146818A data sheet; the ports of the PC/AT).
mod rtc {
    use x86_64::instructions::port::Port;

    use super::write;

    /// The port that selects a register, bit 7 of which would keep NMIs out, and the register.
    const INDEX: u16 = 0x70;
    const DATA: u16 = 0x71;
    /// Register A: the divider that runs at 32.768 kHz, and the rate of 1024 Hz.
    const REGISTER_A: u8 = 0x0a;
    const RATE: u8 = 0x26;
    /// Register B: 24 hours in BCD, with and without the periodic interrupt.
    const REGISTER_B: u8 = 0x0b;
    const PERIODIC: u8 = 0x42;
    const QUIET: u8 = 0x02;
    /// Register C: which interrupts there are, which reading it ends.
    const REGISTER_C: u8 = 0x0c;

    pub fn start() {
        write(INDEX, REGISTER_A);
        write(DATA, RATE);
        write(INDEX, REGISTER_B);
        write(DATA, PERIODIC);
    }

    /// Ends its request. While there is a route, two CPUs may do so at the same time: they select one register.
    pub fn attend() {
        write(INDEX, REGISTER_C);
        // SAFETY: as for `write`; reading the register only ends the clock's requests.
        let _: u8 = unsafe { Port::new(DATA).read() };
    }

    pub fn stop() {
        write(INDEX, REGISTER_B);
        write(DATA, QUIET);
        attend();
    }
}

/// Timer 0 of the high-precision event timer (Intel, IA-PC HPET specification 1.0a, 2.3).
mod hpet {
    use conquer_once::spin::OnceCell;

    use muster::memory::{Access, Cache, Mapping, PhysAddr, PhysRange};

    /// Where a PC has it, unless its firmware says otherwise, and the bytes of its registers.
    const ADDRESS: PhysAddr = PhysAddr::new(0xfed0_0000);
    const LENGTH: u64 = 0x400;

    /// The general registers: the second half of the capabilities is the period in femtoseconds; bit 0 of the
    /// configuration has the counter run; a bit of the status is set while a timer holds its line.
    const PERIOD: usize = 0x04;
    const CONFIGURATION: usize = 0x10;
    const STATUS: usize = 0x20;
    const COUNTER: usize = 0xf0;
    /// The timer's: configuration, the inputs that it may be routed to, and the comparator.
    const TIMER: usize = 0x100;
    const INPUTS: usize = 0x104;
    const COMPARATOR: usize = 0x108;
    /// In the timer's configuration: level-triggered, enabled, and where the input's number lies.
    const LEVEL: u32 = 1 << 1;
    const ENABLED: u32 = 1 << 2;
    const INPUT_SHIFT: u32 = 9;

    /// The first input that is none of ISA's.
    const FIRST_PCI: u32 = 16;

    const FEMTOSECONDS_PER_MILLISECOND: u64 = 1_000_000_000_000;

    struct Registers(Mapping);

    impl Registers {
        fn get() -> &'static Self {
            static REGISTERS: OnceCell<Registers> = OnceCell::uninit();
            REGISTERS.get_or_init(|| {
                let range = PhysRange::new(ADDRESS, LENGTH)
                    .unwrap_or_else(|| panic!("{ADDRESS} is no address"));
                // SAFETY: a PC has no memory there but the timer's registers, which are mapped uncached.
                let mapping =
                    unsafe { Mapping::physical(range, Access::ReadWrite, Cache::Uncached) };
                Self(mapping.unwrap_or_else(|error| panic!("the HPET is not mapped: {error}")))
            })
        }

        fn register(&self, offset: usize) -> *mut u32 {
            self.0.start().wrapping_add(offset).cast()
        }

        fn read(&self, offset: usize) -> u32 {
            // SAFETY: a register of 32 bits, aligned, in the mapping, which lives for good; reading has no effect.
            unsafe { self.register(offset).read_volatile() }
        }

        fn write(&self, offset: usize, value: u32) {
            // SAFETY: as for `read`; the timer causes interrupts, which have handlers, and writes no memory.
            unsafe { self.register(offset).write_volatile(value) };
        }
    }

    /// Returns the GSI at which it asks for interrupts.
    pub fn gsi() -> u32 {
        let inputs = Registers::get().read(INPUTS) >> FIRST_PCI;
        assert!(
            inputs != 0 && Registers::get().read(PERIOD) != u32::MAX,
            "the machine has no HPET at {ADDRESS} with an input beyond ISA's: take machine=q35"
        );
        FIRST_PCI + inputs.trailing_zeros()
    }

    /// Has it hold its line from a millisecond on.
    pub fn request() {
        let registers = Registers::get();
        let period = u64::from(registers.read(PERIOD)).max(1);
        registers.write(CONFIGURATION, 0);
        registers.write(STATUS, 1);
        registers.write(COUNTER, 0);
        registers.write(COUNTER + 4, 0);
        registers.write(TIMER, gsi() << INPUT_SHIFT | LEVEL | ENABLED);
        registers.write(COMPARATOR, (FEMTOSECONDS_PER_MILLISECOND / period) as u32);
        registers.write(COMPARATOR + 4, 0);
        registers.write(CONFIGURATION, 1);
    }

    /// Has it release its line.
    pub fn attend() {
        Registers::get().write(STATUS, 1);
    }

    /// Has it ask for nothing any more.
    pub fn stop() {
        Registers::get().write(CONFIGURATION, 0);
        Registers::get().write(TIMER, 0);
        attend();
    }
}

fn write(port: u16, value: u8) {
    // SAFETY: the port is the timer's or the clock's in a PC, which nothing uses after bring-up, and unclaimed in
    // any other; the interrupts that it causes have handlers, and it has no effect on memory.
    unsafe { Port::new(port).write(value) };
}
