//! The kernel's command line: what any bytes ask for, checked against a naive reader of words, and
//! against what the same arguments are when they are written down and read again.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{Corpus, fuzz_target};
use muster_arguments::{
    ApFault, Arguments, Fault, Heap, LogLevel, OptionError, Output, Reclaim, Step, Workload,
};
use muster_bench::{Format, Measure};
use muster_boot::command_line;

/// A value by its key, in the one form of which all others are variants.
type Words = BTreeMap<&'static str, String>;

/// The keys that stand for the same thing, of which the last one counts.
const AP_FAULTS: [&str; 3] = ["ap-halt", "ap-fault", "ap-delay"];

/// A year, in seconds.
const YEAR: &str = "31536000";

/// The number that a text is, without what stands before its first digit that counts; the texts of
/// the least and the most are such numbers.
fn number(digits: &str, least: &str, most: &str) -> Option<String> {
    if digits.is_empty() || digits.contains(|c: char| !c.is_ascii_digit()) {
        return None;
    }
    let digits = match digits.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let order = |text: &str| (text.len(), text.to_owned());
    let is_inside = order(least) <= order(digits) && order(digits) <= order(most);
    is_inside.then(|| digits.to_owned())
}

fn seconds(text: &str) -> Option<String> {
    let (whole, decimals) = match text.find('.') {
        Some(point) if point + 1 == text.len() => return None,
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, ""),
    };
    let is_fine = decimals.len() <= 3 && decimals.chars().all(|c| c.is_ascii_digit());
    let whole = number(whole, "0", YEAR).filter(|_| is_fine)?;
    Some(format!("{whole}.{decimals:0<3}")).filter(|seconds| seconds != "0.000")
}

fn one_of(text: &str, names: &[&str]) -> Option<String> {
    names.contains(&text).then(|| text.to_owned())
}

/// A set of workloads, each once and in their order.
fn set(text: &str) -> Option<String> {
    let all = Workload::NAMES.iter().copied();
    let chosen: Vec<&str> = match text {
        "all" => all.filter(|&name| name != "soak").collect(),
        "none" => Vec::new(),
        _ => {
            let given: Vec<&str> = text.split(',').collect();
            let is_known = given.iter().all(|name| Workload::NAMES.contains(name));
            let chosen = all.filter(|name| given.contains(name));
            is_known.then(|| chosen.collect())?
        }
    };
    Some(joined(&chosen))
}

/// By commas; a list of nothing has a name.
fn joined(names: &[&str]) -> String {
    match names {
        [] => String::from("none"),
        _ => names.join(","),
    }
}

fn list(text: &str, one: impl Fn(&str) -> Option<String>) -> Option<String> {
    let all: Option<Vec<String>> = text.split(',').map(one).collect();
    Some(all?.join(","))
}

fn benches(text: &str) -> Option<String> {
    let all = muster_bench::Workload::ALL;
    let names = |those: fn(&str) -> bool| {
        let names = all.iter().map(|workload| workload.name());
        let names: Vec<&str> = names.filter(|name| those(name)).collect();
        Some(names.join(","))
    };
    match text {
        "all" => names(|_| true),
        "frames" => names(|name| name.starts_with("frame-")),
        "heaps" => names(|name| !name.starts_with("frame-")),
        _ => list(text, |name| {
            let is_known = all.iter().any(|workload| workload.name() == name);
            is_known.then(|| name.to_owned())
        }),
    }
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq)]
enum Wrong<'a> {
    Unknown(&'a str),
    NoValue(&'a str),
    Value(&'a str, &'a str),
}

impl<'a> Wrong<'a> {
    fn of(error: OptionError<'a>) -> Self {
        match error {
            OptionError::Unknown { name, .. } => Self::Unknown(name),
            OptionError::NoValue(option) => Self::NoValue(option.name),
            OptionError::Value { option, value } => Self::Value(option.name, value),
            OptionError::NoSelfTest(name) | OptionError::NoBench(name) => {
                panic!("{name} is built in")
            }
        }
    }
}

/// What one word asks for, by its key.
enum Naive {
    Word(&'static str, String),
    NoValue,
    NoKey,
}

fn naive(key: &str, value: &str) -> Naive {
    let (most, max_u32) = (u64::MAX.to_string(), u32::MAX.to_string());
    let yes_or_no = || one_of(value, &["yes", "no"]);
    let (key, value) = match key {
        "stress" => ("stress", set(value)),
        "seconds" => ("seconds", seconds(value)),
        "seed" => ("seed", number(value, "0", &most)),
        "cpus" => ("cpus", number(value, "1", &most)),
        "deadline" => ("deadline", number(value, "0", YEAR)),
        "heap" => ("heap", one_of(value, Heap::NAMES)),
        "reclaim" => ("reclaim", one_of(value, Reclaim::NAMES)),
        "log" => ("log", one_of(value, LogLevel::NAMES)),
        "output" => ("output", one_of(value, Output::NAMES)),
        "fault" => ("fault", one_of(value, Fault::NAMES)),
        "monitor" => ("monitor", yes_or_no()),
        "ap-halt" => ("ap-halt", one_of(value, Step::NAMES)),
        "ap-fault" => ("ap-fault", one_of(value, Step::NAMES)),
        "ap-delay" => ("ap-delay", one_of(value, Step::NAMES)),
        "frames-fail" => ("frames-fail", number(value, "1", &most)),
        "nmis" => ("nmis", yes_or_no()),
        "show-addresses" => ("show-addresses", yes_or_no()),
        "bench" => ("bench", benches(value)),
        "allocators" => {
            let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
            ("allocators", list(value, name))
        }
        "on" => ("on", list(value, |text| number(text, "1", &most))),
        "rounds" => ("rounds", number(value, "1", &max_u32)),
        "time" => ("time", number(value, "1", &max_u32)),
        "measure" => ("measure", one_of(value, &["time", "instructions"])),
        "format" => ("format", one_of(value, &["table", "json"])),
        _ => return Naive::NoKey,
    };
    match value {
        Some(value) => Naive::Word(key, value),
        None => Naive::NoValue,
    }
}

/// Arguments as words.
fn words(arguments: &Arguments) -> Words {
    let yes_or_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    let millis = arguments.selftest.stress_millis;
    let stress: Vec<&str> = arguments
        .selftest
        .stress
        .iter()
        .map(Workload::name)
        .collect();
    let mut words = Words::from([
        ("stress", joined(&stress)),
        ("seconds", format!("{}.{:03}", millis / 1000, millis % 1000)),
        ("seed", arguments.selftest.seed.to_string()),
        ("cpus", arguments.cpus.to_string()),
        ("deadline", arguments.deadline_millis.to_string()),
        ("heap", arguments.heap.name().into()),
        ("reclaim", arguments.reclaim.name().into()),
        ("log", arguments.log.name().into()),
        ("output", arguments.output.name().into()),
        ("monitor", yes_or_no(arguments.selftest.monitor)),
        ("nmis", yes_or_no(arguments.selftest.nmis)),
        ("show-addresses", yes_or_no(arguments.show_addresses)),
    ]);
    if let Some(fault) = arguments.selftest.fault {
        words.insert("fault", fault.name().into());
    }
    if let Some((ap_fault, step)) = arguments.selftest.ap_fault {
        let key = match ap_fault {
            ApFault::Halt => "ap-halt",
            ApFault::Fault => "ap-fault",
            ApFault::Delay => "ap-delay",
        };
        words.insert(key, step.name().into());
    }
    if let Some(request) = arguments.selftest.frames_fail {
        words.insert("frames-fail", request.to_string());
    }
    if let Some(options) = &arguments.bench {
        words.extend(bench_words(options));
    }
    words
}

fn bench_words(options: &muster_bench::Options) -> Words {
    let workloads = options.workloads.iter().map(|workload| workload.name());
    let cpus = options.cpus.iter().map(usize::to_string);
    let measure = match options.measure {
        Measure::Time => "time",
        Measure::Instructions => "instructions",
    };
    let format = match options.format {
        Format::Table => "table",
        Format::Json => "json",
    };
    let mut words = Words::from([
        ("bench", workloads.collect::<Vec<_>>().join(",")),
        ("on", cpus.collect::<Vec<_>>().join(",")),
        ("rounds", options.rounds.to_string()),
        ("time", options.millis.to_string()),
        ("measure", measure.into()),
        ("format", format.into()),
    ]);
    // No word stands for all of them.
    if !options.allocators.is_empty() {
        words.insert("allocators", options.allocators.join(","));
    }
    words
}

/// What a line asks for, word by word; the first one that is wrong is the error.
fn expected(line: &str) -> Result<Words, Wrong<'_>> {
    let mut words = words(&Arguments::default());
    let given = line.split([' ', '\t', '\n', '\r', '\x0c']);
    for word in given.filter(|word| !word.is_empty()) {
        let equals = word.find('=').unwrap_or(word.len());
        let (key, value) = (&word[..equals], word.get(equals + 1..));
        match naive(key, value.unwrap_or_default()) {
            Naive::NoKey => return Err(Wrong::Unknown(key)),
            _ if value.is_none() => return Err(Wrong::NoValue(key)),
            Naive::Word(key, value) => {
                if AP_FAULTS.contains(&key) {
                    words.retain(|key, _| !AP_FAULTS.contains(key));
                }
                let own = [
                    "bench",
                    "allocators",
                    "on",
                    "rounds",
                    "time",
                    "measure",
                    "format",
                ];
                if own.contains(&key) && !words.contains_key("bench") {
                    words.extend(bench_words(&muster_bench::Options::default()));
                }
                words.insert(key, value);
            }
            Naive::NoValue => return Err(Wrong::Value(key, value.unwrap_or_default())),
        }
    }
    Ok(words)
}

fn check(line: &str) {
    let parsed = Arguments::parse(line);
    assert_eq!(
        parsed
            .as_ref()
            .map(words)
            .map_err(|&error| Wrong::of(error)),
        expected(line)
    );
    match parsed {
        Ok(arguments) => {
            let written = words(&arguments).into_iter();
            let written = written.map(|(key, value)| format!("{key}={value} "));
            assert_eq!(
                Arguments::parse(&written.collect::<String>()),
                Ok(arguments)
            );
        }
        Err(error) => {
            let words = error.to_string();
            let named = words.split('`').nth(1).unwrap_or_default();
            assert!(line.contains(named), "{words}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(line) = command_line(bytes) else {
        return Corpus::Reject;
    };
    check(&line);
    // By itself no word is undone by a later one.
    line.split_ascii_whitespace().for_each(check);
    Corpus::Keep
});
