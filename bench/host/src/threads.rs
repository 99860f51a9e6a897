//! Threads as CPUs.

use std::arch::x86_64::_rdtsc;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use muster_bench::{Machine, Place};

use crate::contenders;

/// How long the time-stamp counter is measured.
const CALIBRATION: Duration = Duration::from_millis(50);

/// This host, with a number of threads, each of which is pinned to one of its CPUs if there are as
/// many.
pub struct Threads {
    cpus: usize,
    hz: u64,
}

impl Threads {
    pub fn new(cpus: usize) -> Self {
        let (start, began) = (Instant::now(), ticks());
        thread::sleep(CALIBRATION);
        let (elapsed, ticks) = (start.elapsed().as_nanos(), ticks() - began);
        let hz = u128::from(ticks) * 1_000_000_000 / elapsed.max(1);
        Self {
            cpus,
            hz: u64::try_from(hz).unwrap_or(u64::MAX).max(1),
        }
    }
}

/// Reads the time-stamp counter, which processors of the last fifteen years keep alike on all CPUs.
fn ticks() -> u64 {
    // SAFETY: it reads a counter that every x86-64 processor has.
    unsafe { _rdtsc() }
}

impl Machine for Threads {
    fn cpus(&self) -> usize {
        self.cpus
    }

    fn ticks(&self) -> u64 {
        ticks()
    }

    fn ticks_per_second(&self) -> u64 {
        self.hz
    }

    fn run(&self, cpus: usize, work: &(dyn Fn(Place<'_>) + Sync)) {
        let barrier = Barrier::new(cpus);
        thread::scope(|scope| {
            for cpu in 0..cpus {
                let barrier = &barrier;
                scope.spawn(move || {
                    pin_to_cpu(cpu);
                    contenders::enter_cpu(cpu);
                    work(Place {
                        cpu,
                        line: &|| {
                            barrier.wait();
                        },
                    });
                    contenders::leave_cpu();
                });
            }
        });
    }
}

fn pin_to_cpu(number: usize) {
    // SAFETY: a set of one CPU for this thread; if there is no such CPU, nothing happens.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(number, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
