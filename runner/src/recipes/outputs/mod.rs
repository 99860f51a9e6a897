//! What the book shows of the kernel's output: parts of the logs of boot tests, in blocks of code that begin
//! with ```` ```text,output=NAME ````. `book-outputs` rewrites them, and the README's picture; the boot tests
//! see that the kernel still says so, up to the figures.

mod listing;
mod picture;

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use regex_lite::Regex;

use crate::arguments::{self, Build};
use crate::cases;
use crate::cases::script::Script;
use crate::commands::{Listed, WrongWord};
use crate::images;
use crate::recipes::debugger;
use crate::recipes::examples;
use crate::recipes::run;
use crate::screen::Screen;
use crate::session::{Interrupt, Typist};
use crate::workspace::{self, shown};

/// A part of a log.
#[derive(Clone, Copy, Debug)]
struct Excerpt {
    /// Its name in the book.
    name: &'static str,
    /// The case whose log it is of.
    case: &'static str,
    /// The log's file.
    log: &'static str,
    /// Regular expressions of its first line, and of its last: the last such line there is.
    from: &'static str,
    to: &'static str,
}

const fn excerpt(
    case: &'static str,
    name: &'static str,
    from: &'static str,
    to: &'static str,
) -> Excerpt {
    Excerpt {
        name,
        case,
        log: "all.log",
        from,
        to,
    }
}

const EXCERPTS: &[Excerpt] = &[
    excerpt("cpus-8", "entry", "muster  Muster ", "usable of"),
    excerpt("cpus-8", "tables", "-level tables", "page tables: "),
    excerpt("cpus-8", "roll", "roll    roll: ", "INFO  roll "),
    excerpt("cpus-8", "reclaim", "reclaimed ", "reclaimed "),
    excerpt("cpus-8", "calls", "to one CPU", "others and back"),
    excerpt("cpus-8", "shootdown", "a shootdown, ", "a shootdown, "),
    excerpt("cpus-8", "stress", "INFO  stress ", "INFO  stress "),
    excerpt("cpus-8", "heap", "heap    heap's frames", "INFO  heap "),
    excerpt("cpus-8", "account", "INFO  account ", "INFO  account "),
    excerpt("cpus-8", "audit", "audit   live, arena", "verdict: "),
    Excerpt {
        log: "cpu-3.log",
        ..excerpt("cpus-8", "journal", "=== cpu 3", "online at")
    },
    excerpt(
        "loader-silent",
        "roll-silent",
        "roll    roll: ",
        "INFO  roll ",
    ),
    excerpt(
        "loader-silent",
        "silent",
        "did not answer",
        "the loader keeps",
    ),
    excerpt(
        "reclaim-left-out",
        "left-out",
        "stay with",
        "the loader keeps",
    ),
    excerpt("deny-hhdm", "refused", "can't start", "verdict: "),
    excerpt(
        "unresponsive-ap",
        "unresponsive",
        "CPUs have answered",
        "it has interrupts disabled",
    ),
    excerpt("lock-order", "lock-order", "panicked", "may not be taken"),
    excerpt("stack-overflow", "overflow", "double fault", " stopped at "),
    excerpt(
        "protected-write",
        "protected",
        "every CPU used",
        "does not allow",
    ),
    excerpt("panic-two", "panic-two", "panicked", "verdict: "),
    excerpt("monitor", "monitor-help", "^muster> help$", "^off "),
    excerpt("monitor", "monitor-cpus", "^muster> cpus", " idle$"),
    excerpt("monitor", "monitor-map", "^muster> map ", "^physical 0x"),
    Excerpt {
        log: debugger::WORDS,
        ..excerpt(
            "debugger",
            "debugger",
            r"^\(gdb\) hbreak muster::report::exit",
            "^physical 0x",
        )
    },
    excerpt(
        "heap-overflow",
        "misuse",
        "found a misuse",
        "return addresses",
    ),
];

/// How an output is made again.
type Make = fn(&Interrupt) -> Result<String>;

/// What is not of a case's log.
const OTHERS: &[(&str, Make)] = &[
    ("arguments", |_| Ok(arguments::help())),
    ("fast-path", |_| {
        listing::of(&images::build(Build::Plain)?.kernel)
    }),
    // Of a recorded run, which the program's own tests hold it to.
    ("top", |_| {
        let picture = "view/top/tests/pictures/eight-80x24.txt";
        Ok(fs::read_to_string(workspace::root().join(picture))?)
    }),
    ("floor", |interrupt| {
        let mut text = String::new();
        let passed = examples::boot_floor(&["8"], interrupt, &mut |line| {
            text += &format!("{line}\n");
            Ok(())
        })?;
        match passed {
            true => Ok(text),
            false => bail!("the example fails: just floor"),
        }
    }),
];

/// A block of a page that shows an output.
struct Block {
    name: String,
    page: PathBuf,
    /// Where in the page's text the output stands.
    range: Range<usize>,
}

/// Finds the blocks of all pages of the book.
fn blocks() -> Result<Vec<Block>> {
    let block = Regex::new(r"(?ms)^```text,output=([a-z-]+)\n(.*?)^```$")?;
    let folder = workspace::root().join("docs/src");
    let pages = workspace::files(&folder, "md").with_context(|| shown(&folder).to_string())?;
    let mut blocks = Vec::new();
    for page in pages {
        let text = read(&page)?;
        blocks.extend(block.captures_iter(&text).filter_map(|found| {
            Some(Block {
                name: found.get(1)?.as_str().into(),
                page: page.clone(),
                range: found.get(2)?.range(),
            })
        }));
    }
    Ok(blocks)
}

/// Returns what the book shows under a name: once or several times.
fn shown_as(name: &str) -> Result<Vec<String>> {
    let blocks = blocks()?.into_iter().filter(|block| block.name == name);
    let texts = blocks.map(|block| Ok(read(&block.page)?[block.range].to_owned()));
    let texts: Vec<_> = texts.collect::<Result<_>>()?;
    ensure!(
        !texts.is_empty(),
        "no page has a block of code with output={name}"
    );
    Ok(texts)
}

/// Puts a text into each block of this name.
fn show(name: &str, text: &str, screen: Screen) -> Result<()> {
    // From the last one, as those before it stay where they are.
    for block in blocks()?.iter().rev().filter(|block| block.name == name) {
        let mut page = read(&block.page)?;
        page.replace_range(block.range.clone(), text);
        write(&block.page, &page, screen)?;
    }
    Ok(())
}

/// The name of the README's picture among the outputs.
const PICTURE: &str = "picture";

fn picture_path() -> PathBuf {
    workspace::root().join("docs/run-smp.svg")
}

/// Makes the book's outputs again, all or those of this name.
///
/// # Errors
/// If a run does not show what it should, or a file can't be written.
pub fn command(asked: &Listed, interrupt: &Interrupt) -> Result<ExitCode> {
    let names = &asked.words;
    let all = EXCERPTS.iter().map(|excerpt| excerpt.name);
    let all = all.chain(OTHERS.iter().map(|(name, _)| *name));
    let all: Vec<_> = all.chain([PICTURE]).collect();
    let screen = Screen::new();
    if let Some(wrong) = names.iter().find(|name| !all.contains(&name.as_str())) {
        let lists = "`just book-outputs --list` lists them";
        bail!(WrongWord::unknown("output", wrong, all, lists));
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    if asked.list {
        let wanted: Vec<_> = all.into_iter().filter(|name| is_wanted(name)).collect();
        screen.note(&wanted.join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut booted = HashSet::new();
    let mut boot_once = |case: &'static str| {
        let folder = workspace::target().join("book-log").join(case);
        if booted.insert(case) {
            boot(case, &folder, interrupt)?;
        }
        Ok::<_, anyhow::Error>(folder)
    };
    for excerpt in EXCERPTS.iter().filter(|excerpt| is_wanted(excerpt.name)) {
        let part = excerpt.of(&boot_once(excerpt.case)?)?;
        show(excerpt.name, &part, screen)?;
    }
    for (name, make) in OTHERS.iter().filter(|(name, _)| is_wanted(name)) {
        show(name, &make(interrupt)?, screen)?;
    }
    if is_wanted(PICTURE) {
        let log = read(&boot_once(picture::CASE)?.join("all.log"))?;
        let drawing = picture::draw(&picture::lines(&log)?);
        write(&picture_path(), &drawing, screen)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file's text.
fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("no {}", shown(path)))
}

fn boot(name: &str, folder: &Path, interrupt: &Interrupt) -> Result<()> {
    let case = cases::all().find(|case| case.name == name);
    let case = case.with_context(|| format!("no case {name}"))?;
    let mut run = arguments::parse(case.arguments)?;
    let images = images::build(run.build)?;
    let mut script = Script::new(case.types, None)?;
    let typist = (!case.types.is_empty()).then_some(&mut script as &mut dyn Typist);
    let show = &mut |_: &str| Ok(());
    let boot = |run: &_| run::boot(run, &images, folder, interrupt, show, typist, None);
    let booted = debugger::alongside(case.asks(), &mut run, &images.kernel, folder, boot);
    let (outcome, _) = booted?;
    let (verdict, reason) = outcome.verdict();
    ensure!(
        case.ends.contains(&verdict),
        "{name} does not end as it should: {verdict}: {reason}"
    );
    Ok(())
}

fn write(path: &Path, text: &str, screen: Screen) -> Result<()> {
    images::write_if_changed(path, text.as_bytes())?;
    screen.note(&shown(path).to_string())?;
    Ok(())
}

/// Returns why the book is out of date with a case that has just run, with its logs in `folder`.
///
/// # Errors
/// If a file can't be read.
pub fn stale(case: &str, folder: &Path) -> Result<Option<String>> {
    for excerpt in EXCERPTS.iter().filter(|excerpt| excerpt.case == case) {
        let log = excerpt.of(folder)?;
        for shows in shown_as(excerpt.name)? {
            if let Some(line) = missing(&shows, &log) {
                return Ok(Some(format!(
                    "the book shows `{line}`: just book-outputs {}",
                    excerpt.name
                )));
            }
        }
    }
    if case == picture::CASE {
        let svg = read(&picture_path())?;
        let log = read(&folder.join("all.log"))?;
        let log = picture::lines(&log)?.join("\n");
        if let Some(line) = missing(&picture::text(&svg), &log) {
            return Ok(Some(format!(
                "the README's picture shows `{line}`: just book-outputs {PICTURE}"
            )));
        }
    }
    Ok(None)
}

/// Returns the first line of what is shown that is not in the log, up to its figures.
fn missing<'a>(shows: &'a str, log: &str) -> Option<&'a str> {
    let said: HashSet<_> = log.lines().map(shape).collect();
    shows.lines().find(|line| !said.contains(&shape(line)))
}

impl Excerpt {
    /// Returns this part of the log in a folder.
    fn of(&self, folder: &Path) -> Result<String> {
        let path = folder.join(self.log);
        let log = read(&path)?;
        let (from, to) = (Regex::new(self.from)?, Regex::new(self.to)?);
        let lines: Vec<_> = log.lines().filter_map(readable).collect();
        let first = lines.iter().position(|line| from.is_match(line));
        let last = lines.iter().rposition(|line| to.is_match(line));
        match (first, last) {
            (Some(first), Some(last)) if first <= last => Ok(lines[first..=last].join("\n") + "\n"),
            _ => bail!(
                "{}: no lines from `{}` to `{}`",
                shown(&path),
                self.from,
                self.to
            ),
        }
    }
}

/// Returns a line as the book shows it: without inlined functions, without a compiler's paths of
/// libraries, and without progress lines, of which a fast machine has none.
fn readable(line: &str) -> Option<String> {
    let is_sign_of_life = line.contains(" s, ") && line.ends_with(" free");
    if line.trim_start().starts_with("inlined in ") || is_sign_of_life {
        return None;
    }
    let cut = line
        .split_once(" (/rustc/")
        .map_or(line, |(before, _)| before);
    Some(cut.into())
}

/// Returns a line without its figures, which differ each time; and, where a CPU was stopped or
/// called from, without its activity and address, which depend on the compiler and on chance.
fn shape(line: &str) -> String {
    let stopped = line.contains(" stopped at 0x").then(|| line.find("CPU "));
    let end = stopped.flatten().or_else(|| line.find(" #"));
    let words = line[..end.unwrap_or(line.len())]
        .split_whitespace()
        .map(|word| {
            let is_unit =
                ["B", "KiB", "MiB", "GiB", "us", "ms"].contains(&word.trim_end_matches(','));
            let is_hex = word.len() > 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            let has_digit = word.bytes().any(|byte| byte.is_ascii_digit());
            match is_unit || is_hex || has_digit || word == "-" {
                true => "#",
                false => word,
            }
        });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn figures_may_change_and_words_may_not() {
        let shows = "  0.076521  0 INFO  roll    roll: 8 of 8 CPUs online, 3529 us after the release\n\
                     \x20 2.184122  0 INFO  roll      3     3     -     -     -     -\n\
                     \x20 0.241742  3 ERROR panic   CPU 1, idle, stopped at 0xffffffff8002c995 in muster::a (a.rs:1)\n";
        let log = "  0.1  0 INFO  roll    roll: 8 of 8 CPUs online, 12 ms after the release\n\
                   \x20 0.1  0 INFO  roll      3     3     1    22     - 3333m\n\
                   \x20 0.1  3 ERROR panic   CPU 2, at work, stopped at 0xffffffff80000000\n";
        assert_eq!(missing(shows, log), None);
        let other = shows.replace("online", "here");
        assert_eq!(missing(shows, &other), shows.lines().next());
    }

    #[test]
    fn what_is_shown_reads_well() {
        for line in [
            "        inlined in muster::smp::jobs::idle (src/smp/jobs.rs:104)",
            " 11.124944  0 INFO  stress  exhaustion: 5 s, 507.5 MiB free",
        ] {
            assert_eq!(readable(line), None);
        }
        assert_eq!(
            readable("#0 0x1 in core::x (/rustc/5980/library/core/x.rs:1)").as_deref(),
            Some("#0 0x1 in core::x")
        );
    }

    #[test]
    fn every_output_is_of_a_case_and_in_a_page_and_no_other_is_there() {
        for excerpt in EXCERPTS {
            let case = cases::all().find(|case| case.name == excerpt.case).unwrap();
            assert_eq!(case.boots().count(), 1, "one boot, one log");
            Regex::new(excerpt.from).unwrap();
            Regex::new(excerpt.to).unwrap();
        }
        let names = EXCERPTS.iter().map(|excerpt| excerpt.name);
        let expected: BTreeSet<_> = names.chain(OTHERS.iter().map(|(name, _)| *name)).collect();
        let blocks = blocks().unwrap();
        let found: BTreeSet<_> = blocks.iter().map(|block| block.name.as_str()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_live_view_is_as_its_own_tests_have_it() {
        let (_, make) = OTHERS.iter().find(|(name, _)| *name == "top").unwrap();
        let expected = make(&Interrupt::default()).unwrap();
        assert_eq!(shown_as("top").unwrap(), [expected]);
    }

    #[test]
    fn the_list_of_options_is_as_it_is() {
        assert_eq!(shown_as("arguments").unwrap(), [arguments::help()]);
    }
}
