//! Models of the protocols between CPUs, under [loom](https://docs.rs/loom): every interleaving of
//! CPUs, up to a number of preemptions, and every value that they may then read. `just models` runs
//! them.
//!
//! What a call is about lies on the caller's stack, here a cell that loom watches: a CPU that
//! touches it too early or too late is found out as a race.

#![allow(
    clippy::unwrap_used,
    reason = "a model that finds nothing to unwrap must fail"
)]

use std::boxed::Box;
use std::sync::atomic::Ordering;

use muster_sync::loom::sync::Notify;
use muster_sync::loom::thread;
use muster_sync::{AtomicBool, UnsafeCell, model};

use crate::{Admission, Barrier, Broadcast, CallQueue, Idle, Outcome};

/// A frame of a caller's stack.
#[derive(Clone, Copy)]
struct Frame(*const UnsafeCell<usize>);

// SAFETY: that it is there, and nobody else's, while a CPU uses it is what the models are about.
unsafe impl Send for Frame {}

impl Frame {
    /// Has a frame for the time of `f`.
    fn with<T>(f: impl FnOnce(Self) -> T) -> T {
        let frame = UnsafeCell::new(0);
        let result = f(Self(&frame));
        // The next function uses the memory.
        // SAFETY: loom tells if it is in use.
        frame.with_mut(|place| unsafe { *place = usize::MAX });
        result
    }

    fn add(self) {
        // SAFETY: as above.
        unsafe { (*self.0).with_mut(|place| *place += 1) };
    }

    fn get(self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.0).with(|place| *place) }
    }
}

fn queue(cpus: usize) -> &'static CallQueue<Frame> {
    Box::leak(Box::new(CallQueue::new(cpus)))
}

fn serve(queue: &CallQueue<Frame>, cpu: usize) -> bool {
    queue.serve(cpu, Frame::add)
}

/// Calls `target`, serves while it waits, and returns how many calls it served.
fn call(queue: &CallQueue<Frame>, own: usize, target: usize) -> usize {
    let mut served = 0;
    Frame::with(|frame| {
        let call = queue.call(own, frame).unwrap();
        call.send(target).unwrap();
        while !call.is_done() {
            served += usize::from(serve(queue, own));
            thread::yield_now();
        }
        assert_eq!(frame.get(), 1);
    });
    served
}

#[test]
fn call_and_reuse() {
    model("cross-cpu: call and reuse", None, || {
        let queue = queue(2);
        let other = thread::spawn(|| {
            for _ in 0..2 {
                while !serve(queue, 1) {
                    thread::yield_now();
                }
            }
        });
        call(queue, 0, 1);
        call(queue, 0, 1);
        other.join().unwrap();
    });
}

#[test]
fn two_initiators() {
    model("cross-cpu: two CPUs call each other", Some(4), || {
        let queue = queue(2);
        let run = |own: usize| {
            let mut served = call(queue, own, 1 - own);
            while served == 0 {
                served += usize::from(serve(queue, own));
                thread::yield_now();
            }
            assert_eq!(served, 1);
        };
        let other = thread::spawn(move || run(1));
        run(0);
        other.join().unwrap();
    });
}

#[test]
fn two_callers() {
    model("cross-cpu: two CPUs call a third", Some(3), || {
        let queue: &CallQueue<usize> = Box::leak(Box::new(CallQueue::new(3)));
        let callers = [0, 1].map(|own| {
            thread::spawn(move || queue.call(own, 1 + 9 * own).unwrap().send(2).unwrap())
        });
        let mut sum = 0;
        for _ in 0..2 {
            while !queue.serve(2, |work| sum += work) {
                thread::yield_now();
            }
        }
        assert_eq!(sum, 11);
        for caller in callers {
            caller.join().unwrap();
        }
    });
}

#[test]
fn take_against_cancel() {
    model("cross-cpu: take against cancel", None, || {
        let queue = queue(2);
        let other = thread::spawn(|| serve(queue, 1));
        let cancelled = Frame::with(|frame| {
            let call = queue.call(0, frame).unwrap();
            call.send(1).unwrap();
            let cancelled = call.cancel(1);
            while !call.is_done() {
                thread::yield_now();
            }
            assert_eq!(frame.get(), usize::from(!cancelled));
            cancelled
        });
        assert_eq!(other.join().unwrap(), !cancelled);
    });
}

/// A caller that sends its call once more as soon as it may, and then makes the next one.
#[test]
fn sent_again() {
    model("cross-cpu: a call that is sent again", Some(3), || {
        let queue = queue(2);
        let done: &[UnsafeCell<usize>; 2] =
            Box::leak(Box::new([UnsafeCell::new(0), UnsafeCell::new(0)]));
        let other = thread::spawn(move || {
            for done in done {
                let run = |frame: Frame| {
                    frame.add();
                    // SAFETY: the caller looks only at what is done.
                    done.with_mut(|done| unsafe { *done = 1 });
                };
                while !queue.serve(1, run) {
                    thread::yield_now();
                }
            }
        });
        Frame::with(|frame| {
            let call = queue.call(0, frame).unwrap();
            call.send(1).unwrap();
            while call.send(1).is_err() {
                thread::yield_now();
            }
            // SAFETY: that it is done the first time is what the second sending says.
            assert_eq!(done[0].with(|done| unsafe { *done }), 1);
            while !call.is_done() {
                thread::yield_now();
            }
            assert_eq!(frame.get(), 2);
        });
        let next = queue.call(0, Frame(core::ptr::null())).unwrap();
        assert!(next.is_done() && !queue.is_called(1));
        other.join().unwrap();
    });
}

/// Two threads that say that they are CPU 0, one after the other by chance, and two that they are CPU 1:
/// no work is read or written by two at once, and each call is run once.
#[test]
fn two_threads_by_one_number() {
    model("cross-cpu: two threads by one number", Some(2), || {
        let queue: &CallQueue<usize> = Box::leak(Box::new(CallQueue::new(2)));
        let call = |work| {
            let call = queue.call(0, work).unwrap();
            call.send(1).unwrap();
            if !call.cancel(1) {
                return work;
            }
            0
        };
        let serve = || {
            let mut sum = 0;
            queue.serve(1, |work| sum += work);
            sum
        };
        let caller = thread::spawn(move || call(1));
        let target = thread::spawn(serve);
        let called = call(10) + caller.join().unwrap();
        let mut served = serve() + target.join().unwrap();
        while queue.is_called(1) {
            served += serve();
        }
        assert_eq!(called, served);
    });
}

#[test]
fn detached_against_next() {
    model(
        "cross-cpu: a detached call against the next",
        Some(3),
        || {
            let queue: &CallQueue<usize> = Box::leak(Box::new(CallQueue::new(2)));
            let other = thread::spawn(|| {
                let mut sum = 0;
                for _ in 0..2 {
                    while !queue.serve(1, |work| sum += work) {
                        thread::yield_now();
                    }
                }
                sum
            });
            for work in [1, 10] {
                queue.call(0, work).unwrap().send(1).unwrap();
            }
            assert_eq!(other.join().unwrap(), 11);
        },
    );
}

#[test]
fn idle_against_call() {
    model("cross-cpu: idle against call", None, || {
        let queue = queue(2);
        // The interrupt: it waits where the CPU has not halted yet.
        let interrupt: &Notify = Box::leak(Box::new(Notify::new()));
        let idle = thread::spawn(|| {
            while !serve(queue, 1) {
                interrupt.wait();
            }
        });
        Frame::with(|frame| {
            let call = queue.call(0, frame).unwrap();
            call.send(1).unwrap();
            interrupt.notify();
            while !call.is_done() {
                thread::yield_now();
            }
        });
        idle.join().unwrap();
    });
}

/// A frame that is unmapped on another CPU while this one is idle, or wakes, or is busy.
#[test]
fn idle_against_shootdown() {
    struct Machine {
        /// The table entry: whether the frame is mapped.
        is_mapped: AtomicBool,
        frame: UnsafeCell<usize>,
        idle: Idle,
        queue: CallQueue<usize>,
    }

    /// Uses the page as CPU 1 does, by its TLB or by the table.
    fn touch(machine: &Machine, tlb: &mut bool) {
        *tlb = *tlb || machine.is_mapped.load(Ordering::Acquire);
        if *tlb {
            // SAFETY: that it is still the page's frame is what the model is about.
            machine.frame.with(|frame| unsafe { *frame });
        }
    }

    model("cross-cpu: idle against shootdown", None, || {
        let machine: &Machine = Box::leak(Box::new(Machine {
            is_mapped: AtomicBool::new(true),
            frame: UnsafeCell::new(0),
            idle: Idle::new(),
            queue: CallQueue::new(2),
        }));
        let idler = thread::spawn(|| {
            let mut tlb = false;
            touch(machine, &mut tlb);
            machine.idle.enter();
            machine.idle.exit(|| tlb = false);
            touch(machine, &mut tlb);
            // Served in a handler: after this CPU's last use, before its next.
            machine.queue.serve(1, |_| tlb = false);
            touch(machine, &mut tlb);
            machine.idle.enter();
            // A call that is still on its way finds the CPU idle, or wakes it.
            machine.queue.serve(1, |_| ());
        });
        machine.is_mapped.store(false, Ordering::Release);
        if !machine.idle.defer() {
            let call = machine.queue.call(0, 0).unwrap();
            call.send(1).unwrap();
            let mut idler = Some(idler);
            while !call.is_done() {
                // An interrupt that came after its last look.
                if let Some(idler) = idler.take() {
                    idler.join().unwrap();
                    machine.queue.serve(1, |_| ());
                }
                thread::yield_now();
            }
        }
        // The frame is somebody else's.
        // SAFETY: loom tells if it is still in use.
        machine.frame.with_mut(|frame| unsafe { *frame = 1 });
    });
}

/// A CPU that becomes idle twice, while work is deferred at any time.
#[test]
fn idle_twice() {
    model("cross-cpu: a CPU that becomes idle twice", None, || {
        let idle: &Idle = Box::leak(Box::new(Idle::new()));
        let idler = thread::spawn(|| {
            idle.enter();
            idle.enter();
            idle.exit(|| ())
        });
        let deferred = idle.defer();
        assert_eq!(idler.join().unwrap(), deferred);
    });
}

/// An AP that comes just as the roll call's timeout ends.
#[test]
fn late_against_deadline() {
    model("cross-cpu: a late AP against the deadline", None, || {
        let admission: &Admission = Box::leak(Box::new(Admission::new()));
        // Memory that the AP has written before, such as the address of its stack.
        let home: &UnsafeCell<usize> = Box::leak(Box::new(UnsafeCell::new(0)));
        let late = thread::spawn(|| {
            // SAFETY: nobody reads it before the AP has joined.
            home.with_mut(|home| unsafe { *home = 1 });
            admission.join()
        });
        let given_up = admission.give_up();
        if !given_up {
            // SAFETY: the AP has joined, and changes it no more.
            assert_eq!(home.with(|home| unsafe { *home }), 1);
            assert_eq!(admission.outcome(), Outcome::Joined);
        }
        assert_eq!(late.join().unwrap(), !given_up);
        let outcome = match given_up {
            true => Outcome::GivenUp,
            false => Outcome::Joined,
        };
        assert_eq!(admission.outcome(), outcome);
    });
}

/// A page is unmapped, and all CPUs that have joined are asked to flush, as another one joins, which
/// has used the page by the same tables before.
#[allow(
    unused_assignments,
    reason = "it is read where a mistake moves the flush"
)]
#[test]
fn joining_against_shootdown() {
    model("cross-cpu: a joining AP against a shootdown", None, || {
        let is_mapped: &AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
        let frame: &UnsafeCell<usize> = Box::leak(Box::new(UnsafeCell::new(0)));
        let admission: &Admission = Box::leak(Box::new(Admission::new()));
        let queue: &CallQueue<usize> = Box::leak(Box::new(CallQueue::new(2)));
        let ap = thread::spawn(|| {
            // The TLB may hold what the CPU has walked ahead of what it executes; it does not use the
            // page itself yet.
            let mut tlb = is_mapped.load(Ordering::Acquire);
            assert!(admission.join());
            tlb = false;
            queue.serve(1, |_| tlb = false);
            if tlb || is_mapped.load(Ordering::Acquire) {
                // SAFETY: that it is still the page's frame is what the model is about.
                frame.with(|frame| unsafe { *frame });
            }
        });
        is_mapped.store(false, Ordering::Release);
        Admission::fence();
        let mut ap = Some(ap);
        if admission.outcome() == Outcome::Joined {
            let call = queue.call(0, 0).unwrap();
            call.send(1).unwrap();
            while !call.is_done() {
                // An interrupt that came after its last look.
                if let Some(ap) = ap.take() {
                    ap.join().unwrap();
                    queue.serve(1, |_| ());
                }
                thread::yield_now();
            }
        }
        // SAFETY: loom tells if it is still in use.
        frame.with_mut(|frame| unsafe { *frame = 1 });
    });
}

/// Two jobs, each with something on the submitter's stack.
#[test]
fn jobs() {
    model("cross-cpu: two jobs, one after the other", Some(3), || {
        let broadcast: &Broadcast<Frame> = Box::leak(Box::new(Broadcast::new(2)));
        let other = thread::spawn(|| {
            for _ in 0..2 {
                while !broadcast.run(1, Frame::add) {
                    thread::yield_now();
                }
            }
            assert!(!broadcast.has_job(1));
        });
        for _ in 0..2 {
            Frame::with(|frame| {
                assert!(broadcast.submit(frame));
                assert!(broadcast.run(0, |_| ()));
                while !broadcast.is_done() {
                    thread::yield_now();
                }
                assert_eq!(frame.get(), 1);
            });
        }
        other.join().unwrap();
    });
}

#[test]
fn two_at_one_slot() {
    model("cross-cpu: two CPUs at one slot", None, || {
        let broadcast: &Broadcast<Frame> = Box::leak(Box::new(Broadcast::new(1)));
        Frame::with(|frame| {
            assert!(broadcast.submit(frame));
            let other = thread::spawn(|| broadcast.run(0, Frame::add));
            let own = broadcast.run(0, Frame::add);
            assert!(own != other.join().unwrap());
            assert_eq!(frame.get(), 1);
        });
    });
}

#[test]
fn two_submitters() {
    model("cross-cpu: two CPUs submit jobs", None, || {
        let broadcast: &Broadcast<usize> = Box::leak(Box::new(Broadcast::new(1)));
        let other = thread::spawn(|| broadcast.submit(1));
        let own = broadcast.submit(2);
        let other = other.join().unwrap();
        // Of two at once one may find the other submitting, and neither gets in between.
        assert!(own != other);
        let mut job = 0;
        assert!(broadcast.run(0, |submitted| job = submitted));
        assert_eq!(job, if own { 2 } else { 1 });
        assert!(!broadcast.run(0, |_| ()));
    });
}

/// Two CPUs at a barrier, twice: what each wrote before the first time, the other reads after it and
/// writes after the second.
#[test]
fn barrier_twice() {
    model("cross-cpu: a barrier, twice", Some(3), || {
        let barrier: &Barrier = Box::leak(Box::new(Barrier::new(2)));
        let words: &[UnsafeCell<usize>; 2] =
            Box::leak(Box::new([UnsafeCell::new(0), UnsafeCell::new(0)]));
        let come = || {
            let arrival = barrier.arrive();
            while !arrival.is_released() {
                thread::yield_now();
            }
        };
        let cpu = move |own: usize| {
            // SAFETY: each writes its own before the barrier, and the other's after the second time.
            words[own].with_mut(|word| unsafe { *word = own + 1 });
            come();
            // SAFETY: nobody writes between the two.
            let other = words[1 - own].with(|word| unsafe { *word });
            assert_eq!(other, 2 - own);
            come();
            // SAFETY: as above.
            words[1 - own].with_mut(|word| unsafe { *word = 0 });
        };
        let other = thread::spawn(move || cpu(1));
        cpu(0);
        other.join().unwrap();
    });
}
