//! Devices' interrupts: each CPU in turn takes those of a PC's timer or clock, while all CPUs use the heap.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86_64::instructions::port::Port;

use muster::cpus;
use muster::internals::arch::clock::Deadline;
use muster::internals::smp::device_vectors::COUNT;
use muster::interrupts::{self, Handler, Interrupt, RouteError, RoutingError, Signal};
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
    /// ISA's number of its interrupt.
    irq: u8,
    start: fn(),
    /// Ends its request.
    attend: fn(),
    stop: fn(),
    handler: Handler,
}

impl Device {
    fn of(fault: Fault) -> Option<Self> {
        match fault {
            Fault::TimerInterrupts => Some(Self {
                name: "timer",
                irq: 0,
                start: pit::start,
                attend: || {},
                stop: pit::stop,
                handler: &count,
            }),
            Fault::ClockInterrupts => Some(Self {
                name: "clock",
                irq: 8,
                start: rtc::start,
                attend: rtc::attend,
                stop: rtc::stop,
                handler: &|| {
                    rtc::attend();
                    count();
                },
            }),
            _ => None,
        }
    }

    fn route(&self, cpu: u32) -> Interrupt {
        TARGET.store(cpu, Ordering::Relaxed);
        TAKEN.store(0, Ordering::Relaxed);
        let route = interrupts::route_isa(self.irq, cpu, self.handler);
        let route = route.unwrap_or_else(|error| panic!("the {} has no route: {error}", self.name));
        // It may hold its line since before the route.
        (self.attend)();
        route
    }

    /// Has one CPU take interrupts, while all use the heap. Returns the GSI.
    fn interrupt(&self, cpu: u32) -> u32 {
        let route = self.route(cpu);
        let (gsi, vector) = (route.gsi(), route.vector());
        let second = interrupts::route_isa(self.irq, cpu, self.handler).map(drop);
        assert!(
            second == Err(RouteError::Routed(gsi)),
            "a second route of GSI {gsi} ends in {second:?}"
        );
        cpus::run_on_all(JOB_TIMEOUT, &|_| {
            let deadline = Deadline::after_millis(TIMEOUT);
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
        let silence = Deadline::after_millis(SILENCE);
        while !silence.passed() {
            (self.attend)();
            cpus::relax();
        }
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
        "the {}'s IRQ {} arrives at GSI {gsi}: {} CPUs in turn took {EACH} interrupts or more each, and none \
         after the route was removed",
        device.name,
        device.irq,
        cpus::count()
    );
    check_others(&device, gsi);
    true
}

/// Checks that what can't be routed is refused, and that a route by a GSI frees all that it takes: more are made
/// than there are vectors.
fn check_others(device: &Device, gsi: u32) {
    let to_gsi = |gsi, cpu| interrupts::route_gsi(gsi, Signal::ISA, cpu, device.handler);
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

fn write(port: u16, value: u8) {
    // SAFETY: the port is the timer's or the clock's in a PC, which nothing uses after bring-up, and unclaimed in
    // any other; the interrupts that it causes have handlers, and it has no effect on memory.
    unsafe { Port::new(port).write(value) };
}
