//! The program in a terminal, as a person uses it: `just top` in tmux, keys, its picture, its exit status.
//! It waits for what must be seen as long as it takes.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// From one look at the terminal to the next.
const LOOK: Duration = Duration::from_millis(200);

/// Looks until a test gives up, which only ends one that hangs.
const LOOKS: usize = 3000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn has(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok()
}

/// Runs leave their events in one place: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Takes the turn to run, if all that it needs is there; prints what is missing.
fn turn() -> Option<MutexGuard<'static, ()>> {
    let needs = [
        ("tmux", "-V"),
        ("just", "--version"),
        ("qemu-system-x86_64", "--version"),
    ];
    let missing = needs
        .iter()
        .find(|(program, argument)| !has(program, argument));
    if let Some((program, _)) = missing {
        println!("skipped: there is no {program} here");
    }
    let turn = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    missing.is_none().then_some(turn)
}

/// A terminal of 80 columns and 24 rows, in a tmux server of its own.
struct Terminal {
    server: String,
}

impl Terminal {
    fn start(name: &str, command: &str) -> Self {
        let terminal = Self {
            server: format!("muster-{name}-{}", std::process::id()),
        };
        let command = format!("{command}; echo \"status $?\"; exec sleep 3600");
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            &command,
        ]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        Command::new("tmux")
            .args(["-L", &self.server])
            .args(arguments)
            .current_dir(root())
            .env("TERM", "xterm-256color")
            .output()
            .unwrap()
    }

    /// Returns the text on it.
    fn picture(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]);
        String::from_utf8(output.stdout).unwrap()
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Waits until this is on it, and gives all that is.
    fn wait_for(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        for _ in 0..LOOKS {
            let picture = self.picture();
            if is_so(&picture) {
                return picture;
            }
            thread::sleep(LOOK);
        }
        panic!("never seen: {what}\n{}", self.picture());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// Returns whether a row shows operations.
fn is_at_work(picture: &str) -> bool {
    picture.contains("\n at work: ")
        && (picture.lines())
            .filter_map(|line| line.strip_prefix(" all  "))
            .filter_map(|line| line.split_ascii_whitespace().next())
            .any(|rate| !["0", "-"].contains(&rate))
}

#[test]
fn it_runs_in_a_terminal_and_q_ends_it_with_the_verdict() {
    let Some(_turn) = turn() else { return };
    let terminal = Terminal::start("q", "just top 4 stress=mixed");
    let picture = terminal.wait_for("CPUs at work", is_at_work);
    for words in ["muster top", "4 CPUs", "at its prompt", "memory", "q  quit"] {
        assert!(picture.contains(words), "{words}\n{picture}");
    }
    for cpu in 0..4 {
        let row = format!("   {cpu} ");
        assert!(
            picture.lines().any(|line| line.starts_with(&row)),
            "{picture}"
        );
    }
    terminal.press("s");
    terminal.wait_for("another order", |picture| picture.contains("by operations"));
    terminal.press("?");
    terminal.wait_for("the keys", |picture| picture.contains("┌ just top"));
    terminal.press("?");
    terminal.press("p");
    terminal.wait_for("held", |picture| picture.contains("held"));
    terminal.press("q");
    let picture = terminal.wait_for("its exit status", |picture| picture.contains("status "));
    // The terminal is as it was, with the verdict.
    assert!(
        picture.contains("status 0") && picture.contains("muster: passed"),
        "{picture}"
    );
    assert!(!picture.contains("muster top"), "{picture}");
}

#[test]
fn a_bad_end_stays_on_the_terminal_with_its_status() {
    let Some(_turn) = turn() else { return };
    // A CPU that does not come fails the run.
    let terminal = Terminal::start("bad", "just top 3 stress=churn loader.silent=2");
    terminal.wait_for("who is absent", |picture| picture.contains("absent: "));
    terminal.press("q");
    let picture = terminal.wait_for("its exit status", |picture| picture.contains("status "));
    assert!(
        picture.contains("status 1") && picture.contains("FAILED"),
        "{picture}"
    );
}

#[test]
fn ctrl_c_ends_it_and_puts_the_terminal_back() {
    let Some(_turn) = turn() else { return };
    let terminal = Terminal::start("c", "just top 2 stress=churn");
    terminal.wait_for("CPUs at work", is_at_work);
    terminal.press("C-c");
    let picture = terminal.wait_for("its exit status", |picture| picture.contains("status "));
    assert!(picture.contains("status 130"), "{picture}");
    assert!(!picture.contains("muster top"), "{picture}");
}

#[test]
fn without_a_terminal_it_prints_one_picture_or_says_why_not() {
    let Some(_turn) = turn() else { return };
    let top = |arguments: &[&str]| {
        let mut just = Command::new("just");
        just.arg("top")
            .args(arguments)
            .current_dir(root())
            .output()
            .unwrap()
    };
    let output = top(&["2"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("no") && words.contains("terminal"),
        "{words}"
    );

    let output = top(&["3", "stress=mixed", "--once"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let picture = String::from_utf8(output.stdout).unwrap();
    assert!(is_at_work(&picture), "{picture}");
    assert!(
        !picture.contains('\x1b') && !picture.contains("quit"),
        "{picture}"
    );

    let output = top(&["1", "--once"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    let refusal = "no CPU was put to work: there is no other CPU";
    assert!(words.contains(refusal), "{words}");

    let output = top(&["2", "mme=1G", "--once"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        words.contains("unknown option `mme`, did you mean `mem`?"),
        "{words}"
    );
}
