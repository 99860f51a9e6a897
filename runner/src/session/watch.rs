//! The watch over a run, from the emulator's start to its end.

use std::io::{self, BufRead, BufReader, Read};
use std::iter;
use std::mem;
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::interrupt::Interrupt;
use super::launch::{Guest, Launch, Serial};
use super::outcome::{Ending, Outcome, Record};
use super::typist::Typist;
use crate::boot_log::BootLog;
use crate::line::{self, LogLine};
use crate::pause::{Pause, Pausing};
use crate::symbols::Symbols;

/// How often the watch looks up from an empty serial line, to see an interrupt.
const TICK: Duration = Duration::from_millis(50);

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

/// Returns whether a line says that the stress begins.
fn begins_stress(text: &str) -> bool {
    LogLine::parse(text)
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
    use crate::session::outcome::{PASSED, TAIL, Verdict};
    use std::net::TcpListener;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;
    use std::process::{Command, ExitStatus};

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
        interrupt.raise();
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
}
