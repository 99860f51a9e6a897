//! One run of an emulator, watched from its start to its end, and how it ended.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::iter;
use std::mem;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use muster_events::Outcome as Status;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::boot_log::BootLog;
use crate::line::{self, Level, Line};
use crate::pause::{Pause, Pausing};
use crate::symbols::Symbols;

/// How often the watch looks up from an empty serial line, to see an interrupt.
const TICK: Duration = Duration::from_millis(50);

/// How many of the last lines a failure shows.
const TAIL: usize = 30;

/// The kernel's exit statuses.
pub const PASSED: i32 = Status::Passed.status();
const FAILED: i32 = Status::Failed.status();
const REFUSED: i32 = Status::Refused.status();
const PANICKED: i32 = Status::Fault.status();

/// Whether the user, or the system, wants the run to end now.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes note of Ctrl-C, a closed terminal and a polite kill from here on,
    /// instead of dying and leaving the emulator behind.
    ///
    /// # Errors
    /// If the system refuses to deliver signals.
    pub fn watch() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, interrupt.0.clone())
                .context("cannot watch for Ctrl-C")?;
        }
        Ok(interrupt)
    }

    /// Has it come, for a person who asks for it in another way.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it has come.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What became of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All it did was right, and it said so in words and by its status.
    Passed,
    /// It found a discrepancy.
    Failed,
    /// It did not start: a loader's answer or a word of the command line is
    /// not what it needs.
    Refused,
    /// A panic or a CPU exception.
    Panicked,
    /// The machine reset: a triple fault.
    Reset,
    /// It did not end in time.
    Hung,
    /// The user ended the run.
    Interrupted,
    /// The emulator itself failed, or ended in a way that the kernel did not ask for.
    Broken,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Refused => "REFUSED to start",
            Self::Panicked => "PANICKED",
            Self::Reset => "RESET",
            Self::Hung => "HUNG",
            Self::Interrupted => "interrupted",
            Self::Broken => "EMULATOR FAILED",
        })
    }
}

/// How the emulator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Exited(ExitStatus),
    TimedOut(Duration),
    Interrupted,
}

/// What the serial line said, as far as the end of the run needs it.
#[derive(Debug, Default)]
struct Record {
    last_of_cpu: BTreeMap<u32, String>,
    first_error: Option<String>,
    verdict: Option<String>,
    roll: Option<(String, Duration)>,
    complaints: Vec<String>,
    tail: VecDeque<String>,
}

impl Record {
    /// Whether no CPU has said anything.
    fn is_silent(&self) -> bool {
        self.last_of_cpu.is_empty()
    }

    fn take(&mut self, text: &str, since_start: Duration) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text.into());
        // The symbols of what was inlined stand on lines of their own.
        let first = text.lines().next().unwrap_or_default();
        let Some(line) = Line::parse(first) else {
            // Our loader says nothing but, in one line, why it does not start the kernel.
            if text.starts_with("loader: ") {
                self.first_error.get_or_insert_with(|| text.into());
            }
            return;
        };
        self.last_of_cpu.insert(line.cpu, text.into());
        if let Some(verdict) = line.message.strip_prefix("verdict: ") {
            self.verdict = Some(verdict.into());
        } else if line.level == Level::Error && !line.message.is_empty() {
            self.first_error.get_or_insert_with(|| line.message.into());
        }
        if let Some(roll) = line.message.strip_prefix("roll: ")
            && self.roll.is_none()
        {
            // What follows a comma is the kernel's own measure.
            let roll = roll.split(',').next().unwrap_or(roll);
            self.roll = Some((roll.into(), since_start));
        }
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Outcome {
    ending: Ending,
    record: Record,
    /// From the emulator's start to its end.
    pub elapsed: Duration,
}

impl Outcome {
    /// What a run was whose serial line said this and which ended with this status.
    pub fn of(serial: &[u8], status: ExitStatus, symbols: &Symbols) -> Self {
        let mut record = Record::default();
        for raw in serial.split_inclusive(|&byte| byte == b'\n') {
            record.take(&symbols.annotate(&line::plain(raw)), Duration::ZERO);
        }
        Self {
            ending: Ending::Exited(status),
            record,
            elapsed: Duration::ZERO,
        }
    }

    /// What became of the kernel, and why, in words.
    pub fn verdict(&self) -> (Verdict, String) {
        let said = self.record.verdict.as_deref();
        let why = || said.map(|said| said.strip_prefix("failed: ").unwrap_or(said).to_owned());
        let error = || self.record.first_error.clone();
        match self.ending {
            Ending::Interrupted => (Verdict::Interrupted, "by a signal".into()),
            Ending::TimedOut(limit) => (
                Verdict::Hung,
                format!("no end within {} s", limit.as_secs_f64()),
            ),
            Ending::Exited(status) => match (status.code(), said) {
                (Some(PASSED), Some("passed")) => (Verdict::Passed, String::new()),
                (Some(PASSED), Some(said)) => (
                    Verdict::Failed,
                    format!("the status says passed, the log says {said}"),
                ),
                (Some(PASSED), None) => (
                    Verdict::Failed,
                    "the status says passed, but the log has no verdict".into(),
                ),
                (Some(code @ (FAILED | REFUSED | PANICKED)), _) => {
                    let verdict = match code {
                        FAILED => Verdict::Failed,
                        REFUSED => Verdict::Refused,
                        _ => Verdict::Panicked,
                    };
                    let reason = why().or_else(error);
                    (
                        verdict,
                        reason.unwrap_or_else(|| "the log does not say why".into()),
                    )
                }
                (Some(0), _) => (
                    Verdict::Reset,
                    "the machine reset or switched itself off (a triple fault?)".into(),
                ),
                (Some(status), _) => {
                    let complaint = self.record.complaints.last();
                    let why = complaint.map_or(String::new(), |why| format!(": {why}"));
                    (Verdict::Broken, format!("status {status}{why}"))
                }
                (None, _) => {
                    let signal = status.signal().unwrap_or_default();
                    (Verdict::Broken, format!("ended by signal {signal}"))
                }
            },
        }
    }

    /// Returns the kernel's exit status, or the emulator's own, unless it was killed.
    pub fn status(&self) -> Option<i32> {
        match self.ending {
            Ending::Exited(status) => status.code(),
            _ => None,
        }
    }

    /// The roll call's answer, and when it came after the emulator's start.
    pub fn roll(&self) -> Option<(&str, Duration)> {
        self.record
            .roll
            .as_ref()
            .map(|(text, time)| (text.as_str(), *time))
    }

    /// The last line of each CPU.
    pub fn last_lines(&self) -> impl Iterator<Item = &str> {
        self.record.last_of_cpu.values().map(String::as_str)
    }

    /// The last lines of the log.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.record.tail.iter().map(String::as_str)
    }
}

/// The emulator, killed when the runner lets go of it for whatever reason.
pub struct Guest(Child);

impl Guest {
    /// Starts the emulator in a process group of its own: Ctrl-C is for the runner
    /// (or for a debugger), which ends the emulator when it is done with it.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.process_group(0);
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start {}: ./bootstrap installs what is missing",
                command.get_program().display()
            )
        })?;
        Ok(Self(child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if it has ended already, and then all is well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An emulator that is about to start, and how its machine reaches the runner.
pub struct Launch {
    /// What it is called before each line of its complaints.
    name: &'static str,
    command: Command,
    serial: Serial,
    /// Whether a line of its standard error is a complaint.
    is_complaint: fn(&str) -> bool,
    status: FindStatus,
    /// Looks at the machine if it is ended before the kernel has said anything, and says what it sees.
    postmortem: Option<Postmortem>,
}

/// Says in some lines where a machine stands.
type Postmortem = Box<dyn FnOnce(&Symbols) -> Vec<String>>;

/// Finds the kernel's exit status by the emulator's own and its complaints.
type FindStatus = Box<dyn Fn(ExitStatus, &[String]) -> ExitStatus>;

/// Where the machine's serial line is.
enum Serial {
    /// The emulator's standard input and output.
    Standard,
    /// The emulator connects to this.
    Socket(TcpListener),
}

impl Launch {
    /// QEMU, with the serial line at its standard input and output, and ended by the kernel with the
    /// kernel's own status.
    pub fn qemu(command: Command) -> Self {
        Self {
            name: "qemu",
            command,
            serial: Serial::Standard,
            is_complaint: |_| true,
            status: Box::new(|own, _| own),
            postmortem: None,
        }
    }

    /// Has `look` say where the machine stands, if it is ended before the kernel has said anything.
    pub fn with_postmortem(self, look: impl FnOnce(&Symbols) -> Vec<String> + 'static) -> Self {
        Self {
            postmortem: Some(Box::new(look)),
            ..self
        }
    }

    /// An emulator whose serial line is the first connection to a socket, which complains among other
    /// lines, and which leaves it to `status` to find the kernel's.
    pub fn apart(
        name: &'static str,
        command: Command,
        serial: TcpListener,
        is_complaint: fn(&str) -> bool,
        status: impl Fn(ExitStatus, &[String]) -> ExitStatus + 'static,
    ) -> Self {
        Self {
            name,
            command,
            serial: Serial::Socket(serial),
            is_complaint,
            status: Box::new(status),
            postmortem: None,
        }
    }
}

/// The way to the serial line: what is written to it is typed.
pub type Keyboard = Box<dyn Write + Send>;

/// Somebody at the serial line, who reads and types.
pub trait Typist {
    /// Takes the keyboard: what is written to it is typed.
    ///
    /// # Errors
    /// If there is no keeping it.
    fn take_keyboard(&mut self, keyboard: Keyboard) -> Result<()>;

    /// Sees more of a line, without its end, as it comes.
    ///
    /// # Errors
    /// If it can't be shown.
    fn see(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Sees the line's end, and so all of it, with its symbols.
    ///
    /// # Errors
    /// If it can't be shown, or nothing be typed for it.
    fn read(&mut self, text: &str) -> io::Result<()>;
}

/// What reaches the watch from the emulator.
enum Event {
    /// A part of a line, or all of it, with its end.
    Serial(Vec<u8>),
    Complaint(String),
}

/// What the emulator is subject to while it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// How long it may run.
    pub limit: Option<Duration>,
    /// A CPU that is stopped for a while.
    pub pause: Option<Pause>,
}

/// Runs the emulator to its end, by these rules. Each line of the log goes, with its
/// symbols, to `log` and to `show`; or rather to the `typist`, if there is one.
///
/// # Errors
/// If the emulator does not start, a CPU cannot be stopped, or the log cannot be
/// written or shown; the emulator does not outlive that either.
pub fn run(
    launch: Launch,
    Rules { limit, pause }: Rules,
    interrupt: &Interrupt,
    symbols: &Symbols,
    log: &mut BootLog,
    show: &mut dyn FnMut(&str) -> io::Result<()>,
    mut typist: Option<&mut dyn Typist>,
) -> Result<Outcome> {
    let Launch {
        name,
        mut command,
        serial,
        is_complaint,
        status,
        mut postmortem,
    } = launch;
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    if let Serial::Standard = serial {
        command.stdout(Stdio::piped());
        if typist.is_some() {
            command.stdin(Stdio::piped());
        }
    }
    let start = Instant::now();
    let mut guest = Guest::start(&mut command)?;
    let (sender, events) = mpsc::channel();
    if let Some(complaints) = guest.0.stderr.take() {
        read_lines(complaints, sender.clone());
    }
    let mut unconnected = None;
    match serial {
        Serial::Standard => {
            if let (Some(typist), Some(keyboard)) = (&mut typist, guest.0.stdin.take()) {
                typist.take_keyboard(Box::new(keyboard))?;
            }
            if let Some(serial) = guest.0.stdout.take() {
                read_parts(serial, sender);
            }
        }
        Serial::Socket(listener) => {
            // So that an emulator that ends before it connects is not waited for.
            listener.set_nonblocking(true)?;
            unconnected = Some((listener, sender));
        }
    }

    let mut record = Record::default();
    let mut killed = None;
    let mut begun = Vec::new();
    let mut pausing: Option<Pausing> = None;
    loop {
        let mut is_over = false;
        let mut line = None;
        if let Some((listener, sender)) = unconnected.take() {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    if let Some(typist) = &mut typist {
                        typist.take_keyboard(Box::new(stream.try_clone()?))?;
                    }
                    read_parts(stream, sender);
                }
                // Without the sender the wait for its events ends.
                Err(_) if guest.0.try_wait()?.is_some() => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    unconnected = Some((listener, sender));
                }
                Err(error) => return Err(error).context("no serial line from the emulator"),
            }
        }
        match events.recv_timeout(TICK) {
            Ok(Event::Serial(part)) => {
                let is_whole = part.ends_with(b"\n");
                if let Some(typist) = &mut typist {
                    typist.see(part.strip_suffix(b"\n").unwrap_or(&part))?;
                }
                begun.extend(part);
                line = is_whole.then(|| mem::take(&mut begun));
            }
            Ok(Event::Complaint(text)) if is_complaint(&text) => {
                let line = format!("{name}: {text}");
                show(&line)?;
                record.take(&line, start.elapsed());
                record.complaints.push(text);
            }
            Ok(Event::Complaint(_)) => {}
            Err(RecvTimeoutError::Timeout) => is_over = killed.is_some(),
            Err(RecvTimeoutError::Disconnected) => is_over = true,
        }
        if is_over && !begun.is_empty() {
            line = Some(mem::take(&mut begun));
        }
        if let Some(raw) = line {
            let text = symbols.annotate(&line::plain(&raw));
            record.take(&text, start.elapsed());
            for text in text.lines() {
                log.write(text)?;
            }
            match &mut typist {
                Some(typist) => typist.read(&text)?,
                None => text.lines().try_for_each(&mut *show)?,
            }
            if pausing.is_none() && begins_stress(&text) {
                pausing = pause.map(|pause| pause.begin(guest.0.id()));
            }
        }
        if is_over {
            break;
        }
        if killed.is_none() {
            killed = match limit {
                _ if interrupt.came() => Some(Ending::Interrupted),
                Some(limit) if start.elapsed() >= limit => Some(Ending::TimedOut(limit)),
                _ => None,
            };
            if killed.is_some() {
                if let Some(look) = postmortem.take().filter(|_| record.is_silent()) {
                    let heading = "muster: no CPU has logged a line; where the machine is:";
                    let sights = look(symbols);
                    let sights = sights.into_iter().map(|sight| format!("        {sight}"));
                    for text in iter::once(heading.to_owned()).chain(sights) {
                        log.write(&text)?;
                        show(&text)?;
                    }
                }
                // The loop goes on for the last words on their way.
                guest.0.kill().context("cannot end the emulator")?;
            }
        }
        if let Some(pausing) = &pausing
            && (killed.is_some() || record.verdict.is_some())
        {
            pausing.let_go();
        }
    }
    let ending = match killed {
        Some(ending) => ending,
        None => {
            let own = guest.0.wait().context("cannot wait for the emulator")?;
            Ending::Exited(status(own, &record.complaints))
        }
    };
    if let Some(pause) = pause {
        let told = match pausing {
            Some(pausing) => {
                let seconds = pausing.finish()?.as_secs_f64();
                format!("muster: CPU {} was stopped for {seconds:.1} s", pause.cpu)
            }
            None => "muster: no CPU was stopped, for there was no stress".into(),
        };
        log.write(&told)?;
        show(&told)?;
    }
    Ok(Outcome {
        ending,
        record,
        elapsed: start.elapsed(),
    })
}

/// Whether a line says that the stress begins.
fn begins_stress(text: &str) -> bool {
    Line::parse(text)
        .is_some_and(|line| line.target == "stress" && line.message.contains(" workloads on "))
}

/// Sends what comes from the serial line, in parts of lines as it comes, until it closes.
fn read_parts(mut pipe: impl Read + Send + 'static, to: Sender<Event>) {
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut bytes) {
            let mut parts = bytes[..length].split_inclusive(|&byte| byte == b'\n');
            if parts.any(|part| to.send(Event::Serial(part.into())).is_err()) {
                break;
            }
        }
    });
}

/// Sends each line of the emulator's standard error, until it closes.
fn read_lines(pipe: impl Read + Send + 'static, to: Sender<Event>) {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut raw = Vec::new();
        while pipe
            .read_until(b'\n', &mut raw)
            .is_ok_and(|length| length > 0)
        {
            if to.send(Event::Complaint(line::plain(&raw))).is_err() {
                break;
            }
            raw.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Runs a shell script in QEMU's place.
    fn fake(script: &str, limit: Duration, interrupt: &Interrupt) -> (Outcome, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        watched(Launch::qemu(command), limit, interrupt)
    }

    /// Runs what stands in the place of an emulator, and returns what was shown, too.
    fn watched(launch: Launch, limit: Duration, interrupt: &Interrupt) -> (Outcome, String) {
        let folder = tempfile::tempdir().unwrap();
        let mut log = BootLog::create(folder.path()).unwrap();
        let symbols = Symbols::of(Path::new("/nonexistent"));
        let mut shown = String::new();
        let mut show = |text: &str| {
            shown += &format!("{text}\n");
            Ok(())
        };
        let rules = Rules {
            limit: Some(limit),
            pause: None,
        };
        let outcome = run(
            launch, rules, interrupt, &symbols, &mut log, &mut show, None,
        );
        (outcome.unwrap(), shown)
    }

    fn verdict(script: &str) -> (Verdict, String) {
        fake(script, Duration::from_secs(20), &Interrupt::default())
            .0
            .verdict()
    }

    const ROLL: &str =
        "echo '   0.100000   0 INFO  roll     roll: 8 of 8 CPUs online, 9 us after the release';";
    const PASS: &str = "echo '   1.000000   0 INFO  verdict  verdict: passed';";
    const FAIL: &str = "echo '   1.000000   0 ERROR verdict  verdict: failed: 3 live bytes';";
    const PANIC: &str = "echo '   1.000000   3 ERROR panic    CPU 3 panicked: oh';";

    #[test]
    fn words_and_status_together_pass() {
        let script = format!("{ROLL}{PASS} exit 33");
        let (outcome, shown) = fake(&script, Duration::from_secs(20), &Interrupt::default());
        assert_eq!(outcome.verdict(), (Verdict::Passed, String::new()));
        assert_eq!(outcome.status(), Some(33));
        let (roll, time) = outcome.roll().unwrap();
        assert_eq!(roll, "8 of 8 CPUs online");
        assert!(time <= outcome.elapsed);
        assert_eq!(shown.lines().count(), 2);
    }

    #[test]
    fn a_status_without_the_words_fails() {
        assert_eq!(verdict("exit 33").0, Verdict::Failed);
        assert_eq!(verdict(&format!("{FAIL} exit 33")).0, Verdict::Failed);
        assert_eq!(verdict(&format!("{PASS} exit 35")).0, Verdict::Failed);
    }

    #[test]
    fn each_status_has_its_meaning_and_reason() {
        let reason = |script: &str| verdict(script);
        assert_eq!(
            reason(&format!("{FAIL} exit 35")),
            (Verdict::Failed, "3 live bytes".into())
        );
        let refused = "echo '  0.000001  0 ERROR boot    no HHDM'; exit 37";
        assert_eq!(reason(refused), (Verdict::Refused, "no HHDM".into()));
        let panicked = format!("{PANIC} exit 39");
        assert_eq!(
            reason(&panicked),
            (Verdict::Panicked, "CPU 3 panicked: oh".into())
        );
        assert_eq!(reason(&format!("{PASS} exit 0")).0, Verdict::Reset);
        assert_eq!(
            reason("echo 'no such machine' >&2; exit 1"),
            (Verdict::Broken, "status 1: no such machine".into())
        );
        assert_eq!(
            reason("kill -9 $$"),
            (Verdict::Broken, "ended by signal 9".into())
        );
    }

    #[test]
    fn what_was_shown_is_not_all_repeated_in_the_reason() {
        let script = "echo 'no such machine' >&2; echo 'see -machine help' >&2; exit 1";
        let (outcome, shown) = fake(script, Duration::from_secs(20), &Interrupt::default());
        let (_, why) = outcome.verdict();
        assert_eq!(why, "status 1: see -machine help");
        assert_eq!(shown, "qemu: no such machine\nqemu: see -machine help\n");
        assert!(outcome.tail().eq(shown.lines()));

        let mut record = Record::default();
        let inlined = "  0.1 3 ERROR panic CPU 3 stopped in a (a.rs:1)\n  inlined in b (b.rs:2)";
        record.take(inlined, Duration::ZERO);
        assert_eq!(
            record.first_error.as_deref(),
            Some("CPU 3 stopped in a (a.rs:1)")
        );
    }

    #[test]
    fn an_error_without_words_is_no_reason() {
        let serial = b"   0.1 0 ERROR panic\n   0.2 0 ERROR panic    no memory\r\n";
        let symbols = Symbols::of(Path::new("/nonexistent"));
        let verdict = |serial| {
            let status = ExitStatus::from_raw(PANICKED << 8);
            Outcome::of(serial, status, &symbols).verdict()
        };
        let panicked = |why: &str| (Verdict::Panicked, why.into());
        assert_eq!(verdict(&serial[..]), panicked("no memory"));
        assert_eq!(verdict(&serial[..21]), panicked("the log does not say why"));
    }

    #[test]
    fn a_hang_is_ended_with_the_last_line_of_each_cpu() {
        let script = "echo '   0.1 0 INFO  a        one'; echo '   0.2 1 INFO  a        two';
            echo '   0.3 0 INFO  a        three'; exec sleep 1000";
        let (outcome, _) = fake(script, Duration::from_millis(300), &Interrupt::default());
        assert_eq!(
            outcome.verdict(),
            (Verdict::Hung, "no end within 0.3 s".into())
        );
        assert_eq!(outcome.status(), None);
        assert!(outcome.elapsed < Duration::from_secs(10));
        let last: Vec<_> = outcome.last_lines().collect();
        assert!(
            last[0].ends_with("three") && last[1].ends_with("two"),
            "{last:?}"
        );
    }

    #[test]
    fn a_guest_that_hangs_in_silence_is_looked_at() {
        let look_at = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let launch = Launch::qemu(command).with_postmortem(|_| vec!["CPU 0 is lost".into()]);
            let (outcome, shown) =
                watched(launch, Duration::from_millis(300), &Interrupt::default());
            assert_eq!(outcome.verdict().0, Verdict::Hung);
            shown
        };
        let expected =
            "muster: no CPU has logged a line; where the machine is:\n        CPU 0 is lost\n";
        assert_eq!(look_at("exec sleep 1000"), expected);
        // A firmware's words are not the kernel's.
        let shown = look_at("echo 'BdsDxe: starting'; exec sleep 1000");
        assert_eq!(shown, format!("BdsDxe: starting\n{expected}"));
        let kernel = "echo '   0.1 0 INFO  a        one'; exec sleep 1000";
        assert_eq!(look_at(kernel).lines().count(), 1);
    }

    #[test]
    fn a_chatty_guest_that_never_ends_is_ended_too() {
        let script = "exec yes '   0.1 0 INFO  a        again'";
        let (outcome, _) = fake(script, Duration::from_millis(300), &Interrupt::default());
        assert_eq!(outcome.verdict().0, Verdict::Hung);
        assert_eq!(outcome.tail().count(), TAIL);
    }

    #[test]
    fn an_interrupt_ends_the_guest() {
        let interrupt = Interrupt::default();
        interrupt.0.store(true, Ordering::Relaxed);
        let (outcome, _) = fake("exec sleep 1000", Duration::from_secs(100), &interrupt);
        assert_eq!(outcome.verdict().0, Verdict::Interrupted);
    }

    /// Runs a shell script in the place of an emulator whose serial line is a socket.
    fn apart(script: &str, limit: Duration) -> (Outcome, String) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut command = Command::new("bash");
        command.args(["-c", script]).env("PORT", port.to_string());
        let is_complaint = |line: &str| line.starts_with("no ");
        let status = |own: ExitStatus, complaints: &[String]| match complaints.is_empty() {
            true => ExitStatus::from_raw(PASSED << 8),
            false => own,
        };
        let launch = Launch::apart("other", command, listener, is_complaint, status);
        watched(launch, limit, &Interrupt::default())
    }

    #[test]
    fn a_serial_line_may_be_a_socket_and_the_status_elsewhere() {
        let script = format!("exec >/dev/tcp/127.0.0.1/$PORT; echo hello >&2; {ROLL}{PASS} exit 1");
        let (outcome, shown) = apart(&script, Duration::from_secs(20));
        assert_eq!(outcome.verdict(), (Verdict::Passed, String::new()));
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }

    #[test]
    fn an_emulator_that_never_connects_is_not_waited_for() {
        let (outcome, shown) = apart("echo 'no BIOS' >&2; exit 7", Duration::from_secs(1000));
        let (verdict, why) = outcome.verdict();
        assert_eq!(verdict, Verdict::Broken);
        assert!(why.contains("status 7") && why.contains("no BIOS"), "{why}");
        assert_eq!(shown, "other: no BIOS\n");
    }

    #[test]
    fn a_line_without_its_end_is_kept() {
        let (outcome, shown) = fake(
            "printf 'half a line'; exit 39",
            Duration::from_secs(20),
            &Interrupt::default(),
        );
        assert_eq!(shown, "half a line\n");
        assert_eq!(outcome.verdict().0, Verdict::Panicked);
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let error = Guest::start(&mut Command::new("/nonexistent/qemu"))
            .err()
            .unwrap();
        assert!(error.to_string().contains("./bootstrap"));
    }
}
