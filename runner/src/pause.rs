//! One of QEMU's virtual CPUs stopped from outside, in the middle of whatever it does: what a busy
//! host does to a guest, for longer.

use std::fs;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use muster_arguments::Form;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How long the stress has run when the CPU is stopped.
const AFTER: Duration = Duration::from_millis(100);

/// How often a thread is stopped again that was not in the guest's code, and how long it runs in
/// between.
const TRIES: usize = 1000;
const BETWEEN: Duration = Duration::from_millis(2);

/// How often a stopped CPU is looked after.
const TICK: Duration = Duration::from_millis(20);

/// Which CPU is stopped, once the stress runs, and for how long: `CPU:SECONDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// QEMU's number of the CPU.
    pub cpu: u32,
    /// How long, unless the run ends before that.
    pub time: Duration,
}

impl FromStr for Pause {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (cpu, seconds) = text.split_once(':').ok_or(())?;
        let number = |text: &str, min| {
            let form = Form::Number(min, u32::MAX.into());
            text.parse().ok().filter(|_| form.admits(text)).ok_or(())
        };
        Ok(Self {
            cpu: number(cpu, 0)?,
            time: Duration::from_secs(number(seconds, 1)?.into()),
        })
    }
}

impl Pause {
    /// Stops the CPU of QEMU, which runs as this process, by a thread of the runner's.
    pub fn begin(self, qemu: u32) -> Pausing {
        let is_over = Arc::new(AtomicBool::new(false));
        let is_over_too = Arc::clone(&is_over);
        // Only the thread that has stopped another may let it go (ptrace(2)).
        let thread = thread::spawn(move || self.carry_out(qemu, &is_over_too));
        Pausing {
            is_over,
            thread: Some(thread),
        }
    }

    fn carry_out(self, qemu: u32, is_over: &AtomicBool) -> Result<Duration> {
        thread::sleep(AFTER);
        let (thread, is_translated) = thread_of(qemu, self.cpu)?;
        let id = Pid::from_raw(i32::try_from(thread).context("no such thread id")?);
        ptrace::seize(id, ptrace::Options::empty())
            .with_context(|| format!("the system does not let CPU {} be stopped", self.cpu))?;
        let mut tries = TRIES;
        loop {
            ptrace::interrupt(id).context("a virtual CPU can't be interrupted")?;
            waitpid(id, Some(WaitPidFlag::__WALL)).context("a virtual CPU did not stop")?;
            // In QEMU's own code it may hold QEMU's locks, and then all of QEMU would stop.
            if !is_translated || is_in_the_guest(qemu, thread)? {
                break;
            }
            tries -= 1;
            if tries == 0 {
                return Err(anyhow!("CPU {} never was in the guest's code", self.cpu));
            }
            ptrace::cont(id, None).context("a virtual CPU can't go on")?;
            thread::sleep(BETWEEN);
        }
        let stopped = Instant::now();
        while stopped.elapsed() < self.time && !is_over.load(Ordering::Relaxed) {
            thread::sleep(TICK);
        }
        let time = stopped.elapsed();
        // QEMU may have been killed, and all its threads with it.
        if let Err(error) = ptrace::detach(id, None)
            && error != nix::errno::Errno::ESRCH
        {
            return Err(error).context("a virtual CPU can't go on");
        }
        Ok(time)
    }
}

/// A CPU that is stopped, or is about to be, or was. It goes on when this is dropped.
#[derive(Debug)]
pub struct Pausing {
    /// Relaxed: nothing else is read by it.
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Duration>>>,
}

impl Pausing {
    /// Lets the CPU go on at once: the run is over, and QEMU waits for all CPUs before it ends.
    pub fn let_go(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Returns how long the CPU was stopped, once it goes on.
    ///
    /// # Errors
    /// If it could not be stopped, or not be let go.
    pub fn finish(mut self) -> Result<Duration> {
        self.let_go();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(anyhow!("the thread that stops a virtual CPU has panicked")),
        }
    }
}

impl Drop for Pausing {
    fn drop(&mut self) {
        self.let_go();
        if let Some(thread) = self.thread.take() {
            // There is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// Returns the thread that is this CPU, by its name (`-name debug-threads=on`), and whether it translates.
fn thread_of(qemu: u32, cpu: u32) -> Result<(u32, bool)> {
    let folder = format!("/proc/{qemu}/task");
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        let path = entry.context("cannot read a folder of /proc")?.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let thread = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let (Some((number, kind)), Some(thread)) = (cpu_of(&name), thread)
            && number == cpu
        {
            return Ok((thread, kind == "TCG"));
        }
    }
    Err(anyhow!(
        "QEMU has no thread for CPU {cpu}: pause= needs a CPU that is there, and accel=tcg or kvm"
    ))
}

/// Parses a thread's name: `CPU 3/TCG` has the CPU and the accelerator. CPUs that share a thread
/// have no number.
fn cpu_of(name: &str) -> Option<(u32, &str)> {
    let (number, kind) = name.trim().strip_prefix("CPU ")?.split_once('/')?;
    Some((number.parse().ok()?, kind))
}

/// Returns whether a stopped thread is in code that QEMU has translated.
fn is_in_the_guest(qemu: u32, thread: u32) -> Result<bool> {
    let state = fs::read_to_string(format!("/proc/{qemu}/task/{thread}/syscall"))
        .context("cannot see where a virtual CPU is")?;
    let maps = fs::read_to_string(format!("/proc/{qemu}/maps"))
        .context("cannot see where QEMU keeps what it translates")?;
    Ok(instruction_of(&state).is_some_and(|instruction| is_translated(&maps, instruction)))
}

/// Returns the instruction pointer, which comes last (proc(5), `/proc/pid/syscall`).
fn instruction_of(state: &str) -> Option<u64> {
    let last = state.split_whitespace().last()?.strip_prefix("0x")?;
    u64::from_str_radix(last, 16).ok()
}

/// Returns whether an address lies in memory that may be executed and is no file's.
fn is_translated(maps: &str, address: u64) -> bool {
    maps.lines().any(|line| {
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        let bound = |text| u64::from_str_radix(text, 16).ok();
        let holds = range.is_some_and(|(start, end)| {
            bound(start).is_some_and(|start| start <= address)
                && bound(end).is_some_and(|end| address < end)
        });
        let is_executable = words.next().is_some_and(|rights| rights.contains('x'));
        // Offset, device and inode; then a name, if it has one.
        holds && is_executable && words.nth(3).is_none()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_pause_is_read() {
        let pause = "3:5".parse();
        let time = Duration::from_secs(5);
        assert_eq!(pause, Ok(Pause { cpu: 3, time }));
        for wrong in [
            "", "3", ":5", "3:", "-1:5", "+1:5", "3:x", "3:0", "3:+5", "3:5:7",
        ] {
            assert_eq!(wrong.parse::<Pause>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn threads_are_known_by_name() {
        assert_eq!(cpu_of("CPU 12/TCG\n"), Some((12, "TCG")));
        assert_eq!(cpu_of("CPU 0/KVM"), Some((0, "KVM")));
        for other in ["ALL CPUs/TCG", "qemu-system-x86", "CPU 1", "CPU x/TCG"] {
            assert_eq!(cpu_of(other), None, "{other}");
        }
    }

    #[test]
    fn translated_code_is_no_files() {
        let maps = "55d0-55f0 r-xp 00001000 08:01 77  /usr/bin/qemu-system-x86_64\n\
                    7000-7100 rwxp 00000000 00:00 0 \n\
                    7100-7200 rw-p 00000000 00:00 0 \n";
        let at = |address| is_translated(maps, address);
        assert_eq!(
            [at(0x55e0), at(0x7000), at(0x7100), at(0x9000)],
            [false, true, false, false]
        );
        assert_eq!(instruction_of("-1 0x7ffc10 0x7010\n"), Some(0x7010));
        assert_eq!(instruction_of("running\n"), None);
    }

    #[test]
    fn who_has_no_such_cpu_is_told_so() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pause: Pause = "0:1".parse().unwrap();
        let error = pause.begin(child.id()).finish().unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(error.to_string().contains("no thread for CPU 0"), "{error}");
    }
}
