//! Wrong command lines, as a user types them after `just`: each is answered in a few lines, the last of which
//! names the word that is wrong and says what to do, before anything is built or started.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const RUNNER: &str = env!("CARGO_BIN_EXE_muster-runner");

/// The most lines of an answer, with `just`'s own.
const MAX_LINES: usize = 5;

/// The exit status for a command line that makes no sense.
const USAGE: i32 = 2;

/// Programs that would build, boot or debug. Those that a test puts in their place leave a mark.
const PROGRAMS: [&str; 6] = [
    "cargo",
    "qemu-system-x86_64",
    "bochs",
    "gdb",
    "xorriso",
    "mdbook",
];

/// Wrong command lines, and parts of the last line of their answer: the wrong word, and what to do.
const WRONG: &[(&str, &[&str])] = &[
    (
        "run-smp stres=mixed",
        &["unknown option `stres`", "did you mean `stress`?"],
    ),
    (
        "run-smp STRESS=mixed",
        &["`STRESS`", "did you mean `stress`?"],
    ),
    ("run-smp nonsense=1", &["unknown option `nonsense`"]),
    ("run-smp fast", &["`fast`"]),
    ("run-smp stress", &["`stress`", "needs a value"]),
    (
        "run-smp bench",
        &["`bench` needs a value", "`just arguments` lists"],
    ),
    (
        "run-smp stress=mixde",
        &["`mixde`", "did you mean `mixed`?"],
    ),
    ("run-smp stress=", &["`stress`", "`just arguments` lists"]),
    ("run-smp pause=1:0", &["`1:0` for `pause`", "must be"]),
    ("run-smp pause=+1:1", &["`+1:1` for `pause`", "must be"]),
    ("run-smp 0", &["0 CPUs", "must be 1 to 288"]),
    ("run-smp 289", &["289 CPUs", "must be 1 to 288"]),
    ("run-smp 8x", &["`8x`"]),
    ("run-smp -8", &["`-8`"]),
    ("run-smp --verbose", &["`--verbose`"]),
    ("run-smp 8 4", &["CPUS is given twice"]),
    ("run-smp mem=1G mem=2G", &["mem is given twice"]),
    (
        "run-smp mem=much",
        &["`much` for `mem`", "must be 3M or more"],
    ),
    ("run-smp mem=1K", &["`1K` for `mem`", "must be 3M or more"]),
    ("run-smp machine=q36", &["`q36` for `machine`"]),
    (
        "run-smp accel=hvf",
        &["`hvf` for `accel`", "must be auto|tcg|kvm"],
    ),
    (
        "run-smp seconds=0",
        &["`0` for `seconds`", "must be seconds above 0"],
    ),
    (
        "run-smp timeout=soon",
        &["`soon` for `timeout`", "must be seconds above 0"],
    ),
    (
        "run-smp log=verbose",
        &["`verbose` for `log`", "must be error|warn"],
    ),
    (
        "run-smp seed=0x2a",
        &["`0x2a` for `seed`", "must be a whole number"],
    ),
    (
        "run-smp cpus=0",
        &["`0` for `cpus`", "must be a whole number from 1"],
    ),
    (
        "run-smp loader.silnt=3",
        &["`loader.silnt`", "did you mean `loader.silent`?"],
    ),
    (
        "run-smp loader.silent=x",
        &["`x` for `loader.silent`", "must be"],
    ),
    (
        "run-smp loader.silent=2,0",
        &["loader.silent=0", "0 is the BSP's"],
    ),
    (
        "run-smp loader.unstarted=0",
        &["loader.unstarted=0", "0 is the BSP's"],
    ),
    (
        "run-smp loader.verbose=1",
        &["`1` for `loader.verbose`", "without a value"],
    ),
    (
        "run-smp firmware=uefi",
        &["firmware=uefi needs boot=limine"],
    ),
    ("run-smp 8 smp=8", &["CPUS and smp= exclude each other"]),
    ("run-smp events=-", &["events= needs output=json"]),
    ("run-smp bochs=/bin/bochs", &["bochs= needs machine=bochs"]),
    ("run-smp machine=bochs accel=tcg", &["accel= is for QEMU"]),
    (
        "run-smp 4 loader.silent=4",
        &["APIC id 4", "the last CPU has 3"],
    ),
    (
        "run-smp 1 ap-halt=stack",
        &["ap-halt=stack", "ask for 2 CPUs or more"],
    ),
    (
        "run-smp ap-halt=stack ap-fault=stack",
        &["ap-halt=, ap-fault= and ap-delay= exclude each other"],
    ),
    ("run-smp 4 pause=9:1", &["CPU 9", "there are 0 to 3"]),
    (
        "run-smp bench=mixed stress=mixed",
        &["stress=mixed does nothing", "leave it out"],
    ),
    (
        "monitor stress=mixed",
        &[
            "stress=mixed does nothing",
            "type `stress WORKLOADS SECONDS`",
        ],
    ),
    (
        "monitor monitor=no",
        &["monitor= by itself", "leave it out"],
    ),
    ("soak stress=mixed", &["stress=", "say minutes="]),
    ("soak minutes=1 minutes=2", &["minutes is given twice"]),
    ("soak seed=1 seed=2", &["seed is given twice"]),
    (
        "soak minutes=525601",
        &["`525601` for `minutes`", "from 1 to 525600"],
    ),
    ("iso boot=embedded", &["`boot=embedded`", "boot=limine"]),
    (
        "report nosuch.jsonl",
        &["`nosuch.jsonl`", "output=json leaves one"],
    ),
    ("monitor log=debg", &["`debg`", "did you mean `debug`?"]),
    ("report quic", &["`quic`"]),
    ("report output=text", &["output= by itself", "leave it out"]),
    (
        "report monitor=yes",
        &["monitor= by itself", "leave it out"],
    ),
    ("report time=much", &["`much` for `time`", "must be"]),
    ("top --onse", &["`--onse`", "did you mean `--once`?"]),
    ("top stress=mixd", &["`mixd`", "did you mean `mixed`?"]),
    ("top events=file", &["events= by itself", "leave it out"]),
    ("top --once stress=none", &["stress=none", "leave it out"]),
    (
        "top --once fault=panic-ap",
        &["fault= that ends the run", "leave one out"],
    ),
    ("top 4", &["no terminal", "`just top --once`"]),
    (
        "boot-log x",
        &["`x`", "must be the number of a CPU, or all"],
    ),
    ("boot-log 1 2", &["unexpected argument `2`"]),
    ("debug mme=1G", &["`mme`", "did you mean `mem`?"]),
    ("debug-server fast", &["`fast`"]),
    ("arguments stress", &["unexpected argument `stress`"]),
    ("build nosuch", &["unexpected argument `nosuch`"]),
    ("iso nosuch", &["`nosuch`", "neither an option nor a path"]),
    ("iso a.iso b.iso", &["`b.iso`", "leave one out"]),
    ("iso /", &["`/` is a folder", "name a file"]),
    ("iso nosuch/a.iso", &["no folder `nosuch`", "name one"]),
    (
        "iso mem=4G",
        &["mem= does nothing on a disc", "leave it out"],
    ),
    ("iso log=loud", &["`loud` for `log`", "must be"]),
    ("floor nonsense", &["`nonsense`"]),
    (
        "floor stress=mixed",
        &["stress=mixed does nothing", "leave it out"],
    ),
    ("book-outputs entri", &["`entri`", "did you mean `entry`?"]),
    (
        "book-outputs nosuch",
        &["`nosuch`", "`just book-outputs --list`"],
    ),
    ("oracles x", &["`x`", "must be a whole number from 1"]),
    ("oracles +1", &["`+1`", "must be a whole number from 1"]),
    ("oracles 0", &["`0`", "must be a whole number from 1"]),
    ("coverage heap", &["unexpected argument `heap`"]),
    (
        "fuzz memory-mao",
        &["`memory-mao`", "did you mean `memory-map`?"],
    ),
    ("fuzz seconds=1 seconds=2", &["seconds is given twice"]),
    ("fuzz nosuch", &["`nosuch`", "memory-map, limine-answers"]),
    (
        "fuzz seconds=x",
        &["`x` for `seconds`", "must be a whole number from 1"],
    ),
    (
        "test-kernel nosuch",
        &["`nosuch`", "`just test-kernel --list`"],
    ),
    ("test-kernel --list nosuch", &["`nosuch`"]),
    ("test-kernel panik", &["`panik`", "did you mean `panic`?"]),
    (
        "test-kernel cpus-8 nosuch",
        &["`nosuch`", "`just test-kernel --list`"],
    ),
    ("test-kernel --lst", &["`--lst`", "did you mean `--list`?"]),
    ("matrix nosuch", &["`nosuch`", "`just matrix --list`"]),
    (
        "soak minutes=x",
        &["`x` for `minutes`", "must be a whole number from 1"],
    ),
    ("soak minuets=5", &["`minuets`"]),
    ("bench hots", &["`hots`", "did you mean `host`?"]),
    ("bench foo", &["`foo`", "must be one of host"]),
    ("bench rounds=0", &["`0` for `rounds`", "must be"]),
    (
        "bench host mem=1G",
        &["`mem=1G`", "the benchmarks' options alone"],
    ),
    (
        "bench latency 4",
        &["`4`", "`just bench latency` takes the benchmarks' options"],
    ),
    (
        "bench host measure=instructions",
        &["in the kernel", "`just bench instructions`"],
    ),
    ("bench latency time=x", &["`x` for `time`", "must be"]),
    (
        "bench linux linux=nosuch",
        &["`nosuch` for `linux`", "must be bare|default"],
    ),
];

/// What this emulator or host can't do: the command line makes sense, so that its usage is no help.
const UNMET: &[(&str, &[&str])] = &[
    ("run-smp 256 machine=pc", &["256 CPUs", "ask for fewer"]),
    (
        "run-smp smp=8,sockets=3",
        &["smp=8,sockets=3", "change one of them"],
    ),
    (
        "run-smp smp=65536",
        &["`65536` must be a number of CPUs, 1 to 65535"],
    ),
    ("run-smp smp=+8", &["`+8` must be a number of CPUs"]),
    (
        "run-smp qemu=/nonexistent",
        &["/nonexistent", "./bootstrap installs"],
    ),
    (
        "run-smp qemu=/bin/true",
        &["/bin/true is not QEMU", "qemu=PATH"],
    ),
    ("run-smp qemu=/bin", &["/bin does not start", "qemu=PATH"]),
    (
        "run-smp machine=bochs bochs=/bin",
        &["/bin does not start", "bochs=PATH"],
    ),
    (
        "run-smp machine=bochs bochs=/bin/true",
        &["/bin/true is not Bochs", "bochs=PATH"],
    ),
    (
        "run-smp machine=bochs bochs=/nonexistent",
        &["/nonexistent", "bochs=PATH"],
    ),
    (
        "test-kernel qemu=/nonexistent cpus-8",
        &["/nonexistent", "./bootstrap installs"],
    ),
    ("boot-log 4096", &["no log"]),
];

/// What `just` answers by itself.
const WRONG_RECIPES: &[(&str, &[&str])] = &[
    ("run-smpp", &["run-smp"]),
    ("clean everything", &["everything"]),
    (
        "seed=x oracles",
        &["`x` for `seed`", "must be a whole number"],
    ),
];

/// A folder with programs that leave a mark when they are started.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for program in PROGRAMS {
            let path = folder.path().join(program);
            // Asking for a version starts nothing.
            let script = "#!/bin/sh\n\
                case $1 in --version) echo QEMU emulator version 7.2.22; exit;; esac\n\
                echo \"$0 $*\" >>\"$(dirname \"$0\")/started\"\nexit 1\n";
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    /// Runs a command line as `just` does, or by it where it is installed.
    fn run(&self, line: &str) -> Output {
        let mut command = match just() {
            Some(just) => {
                let mut command = Command::new(just);
                command.arg("--justfile").arg(root().join("Justfile"));
                command.args([&format!("runner={RUNNER}"), "seed=1"]);
                command
            }
            None => Command::new(RUNNER),
        };
        command.args(line.split_whitespace());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()));
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn started(&self) -> String {
        fs::read_to_string(self.0.path().join("started")).unwrap_or_default()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Returns where `just` is. CI has it.
fn just() -> Option<std::path::PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let just = env::split_paths(&path)
        .map(|folder| folder.join("just"))
        .find(|path| path.is_file());
    assert!(
        just.is_some() || env::var_os("CI").is_none(),
        "CI has no just"
    );
    just
}

#[test]
fn each_is_answered_in_a_few_lines_before_anything_starts() {
    assert!(WRONG.len() >= 40);
    let programs = Programs::new();
    for (line, parts) in WRONG {
        let output = programs.run(line);
        let answer = String::from_utf8(output.stderr).unwrap();
        let context = format!("just {line}\n{answer}");
        assert_eq!(output.status.code(), Some(USAGE), "{context}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{context}");
        let lines: Vec<_> = answer.lines().collect();
        assert!(lines.len() <= MAX_LINES, "{context}");
        let recipe = line.split(' ').next().unwrap();
        assert!(
            lines[0].starts_with(&format!("usage: just {recipe}")),
            "{context}"
        );
        let message = lines
            .iter()
            .find(|line| line.starts_with("muster: "))
            .unwrap();
        for part in *parts {
            assert!(message.contains(part), "no {part}\n{context}");
        }
        assert_eq!(programs.started(), "", "{context}");
    }
}

#[test]
fn what_can_t_be_done_is_one_line() {
    let programs = Programs::new();
    for (line, parts) in UNMET {
        let output = programs.run(line);
        let answer = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && answer.starts_with("muster: "),
            "{answer}"
        );
        assert_eq!(answer.lines().count(), 1, "{answer}");
        for part in *parts {
            assert!(answer.contains(part), "no {part}\n{answer}");
        }
        assert_eq!(programs.started(), "", "{answer}");
    }
}

#[test]
fn what_just_answers_is_as_short() {
    if just().is_none() {
        return;
    }
    let programs = Programs::new();
    for (line, parts) in WRONG_RECIPES {
        let output = programs.run(line);
        let answer = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && answer.lines().count() <= MAX_LINES,
            "{answer}"
        );
        for part in *parts {
            assert!(answer.contains(part), "{answer}");
        }
        assert_eq!(programs.started(), "", "{answer}");
    }
}

#[test]
fn bootstrap_looks_at_the_recipe_before_it_installs_anything() {
    let help = Command::new(root().join("bootstrap")).arg("help").output();
    let help = help.unwrap();
    assert!(help.status.success() && help.stdout.starts_with(b"Installs what"));
    let bare = tempfile::tempdir().unwrap();
    for program in ["dirname", "sed", "tr"] {
        let path = Path::new("/usr/bin").join(program);
        std::os::unix::fs::symlink(path, bare.path().join(program)).unwrap();
    }
    for (recipe, expected) in [
        ("run-smpp", "unknown recipe `run-smpp`: must be one of"),
        ("default:", "unknown recipe `default:`"),
        ("runner", "unknown recipe `runner`"),
        // Nobody is there to be asked.
        ("run-smp", "this will install:"),
        ("test-kernel", "this will install:"),
        ("seed=1", "this will install:"),
    ] {
        let mut command = Command::new("/bin/sh");
        command.arg(root().join("bootstrap")).arg(recipe);
        command.env_clear().env("PATH", bare.path());
        let output = command.env("HOME", bare.path()).output().unwrap();
        let answer = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{answer}");
        assert!(answer.contains(expected), "{recipe}: {answer}");
    }
}

/// Returns the recipes that are commands of the runner's, by the Justfile, each with the command.
fn recipes() -> Vec<(String, String)> {
    let justfile = fs::read_to_string(root().join("Justfile")).unwrap();
    let mut recipes = Vec::new();
    let mut recipe = "";
    for line in justfile.lines() {
        if !line.starts_with([' ', '#', '[']) {
            recipe = line.split([' ', ':']).next().unwrap();
        }
        if let Some(command) = line.trim().strip_prefix("@{{ runner }} ") {
            recipes.push((recipe.into(), command.into()));
        }
    }
    recipes
}

#[test]
fn a_recipe_is_the_command_of_its_name() {
    let recipes = recipes();
    assert!(recipes.len() > 15);
    for (recipe, command) in recipes {
        let own = [recipe.clone(), format!("{recipe} \"$@\"")];
        assert!(own.contains(&command), "{recipe}: {command}");
    }
}

#[test]
fn each_recipe_explains_itself() {
    let programs = Programs::new();
    for (recipe, command) in recipes() {
        for words in ["--help", "-h", "help", "nonsense --help", "-- 4 help"] {
            if !command.ends_with("\"$@\"") {
                continue;
            }
            let output = programs.run(&format!("{recipe} {words}"));
            let help = String::from_utf8(output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(0), "{recipe} {words}: {help}");
            assert!(help.contains(&format!("\nusage: just {recipe}")), "{help}");
            assert_eq!(
                help.contains("stress="),
                help.contains("key=value"),
                "{help}"
            );
        }
    }
    assert_eq!(programs.started(), "");
}

#[test]
fn an_empty_word_is_no_filter() {
    let programs = Programs::new();
    for recipe in ["test-kernel", "matrix"] {
        let mut command = Command::new(RUNNER);
        command.env("PATH", programs.0.path());
        let output = command.args([recipe, ""]).output().unwrap();
        let answer = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(USAGE), "{answer}");
        assert!(answer.contains("unknown boot test ``: `just"), "{answer}");
    }
}

#[test]
fn what_a_filter_chooses_is_listed() {
    let programs = Programs::new();
    for (line, expected) in [
        ("test-kernel --list cpus-8", "cpus-8\n"),
        ("book-outputs --list entry", "entry\n"),
    ] {
        let listed = String::from_utf8(programs.run(line).stdout).unwrap();
        assert!(listed.contains(expected), "{listed}");
        assert!(listed.lines().count() < 10, "{listed}");
    }
}

#[test]
fn it_ends_quietly_where_nobody_reads() {
    for line in ["arguments", "test-kernel --list", "run-smp --help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(RUNNER);
        command.args(line.split(' ')).stdout(writer);
        let output = command
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        assert_eq!(output.status.code(), Some(128 + 13), "{line}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{line}");
    }
}

#[test]
fn what_was_typed_breaks_no_line() {
    for word in ["a\nb", "a\u{1b}[31mb", "seed=\r\u{9b}1"] {
        let output = Command::new(RUNNER).args(["run-smp", word]).output();
        let answer = String::from_utf8(output.unwrap().stderr).unwrap();
        assert_eq!(answer.lines().count(), 3, "{answer}");
        let is_plain = |line: &str| !line.contains(char::is_control);
        assert!(answer.lines().all(is_plain), "{answer:?}");
    }
}

#[test]
fn an_unread_message_leaves_the_status_as_it_is() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(RUNNER);
    let status = command.args(["run-smp", "stres"]).stderr(writer).status();
    assert_eq!(status.unwrap().code(), Some(USAGE));
}
