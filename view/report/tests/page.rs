//! The page of two recorded runs: complete, well-formed, on its own; and what it says where something is
//! missing.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::collections::BTreeSet;

use html5gum::{Token, Tokenizer};
use muster_report::{RunEvents, page};

/// Four CPUs under stress for a second, and eight CPUs' benchmarks.
const STRESS: &str = include_str!("../../../parts/events/tests/run.jsonl");
const BENCH: &str = include_str!("bench.jsonl");

/// Every chart that the two runs give, by its name in the page.
const CHARTS: [&str; 22] = [
    "boot-all",
    "boot-steps",
    "memory-boot",
    "memory-end",
    "throughput-mixed",
    "latency-mixed",
    "histogram-mixed",
    "fairness-mixed",
    "throughput-frame-pair",
    "latency-frame-pair",
    "histogram-frame-pair",
    "fairness-frame-pair",
    "stress-churn",
    "stress-mixed",
    "stress-handover",
    "stress-growth",
    "stress-interrupts",
    "stress-timer",
    "stress-calls",
    "stress-mappings",
    "stress-shootdown",
    "stress-exhaustion",
];

/// Elements that have no end (WHATWG HTML, 13.1.2, void elements).
const VOID: [&str; 3] = ["meta", "link", "br"];

/// What a page is made of.
#[derive(Default)]
struct Parts {
    ids: Vec<String>,
    /// What each chart's picture is named and described by.
    labels: Vec<String>,
    figures: Vec<String>,
    tables: usize,
    text: String,
}

/// Takes a page apart. Fails if it is not well-formed, asks for anything outside, or holds what is no number.
fn parts(html: &str) -> Parts {
    let mut parts = Parts::default();
    let mut open: Vec<String> = Vec::new();
    for Ok(token) in Tokenizer::new(html) {
        match token {
            Token::StartTag(tag) => {
                let name = String::from_utf8(tag.name.to_vec()).unwrap();
                assert_ne!(name, "script");
                for (key, value) in &tag.attributes {
                    let (key, value) =
                        (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
                    assert!(
                        !["NaN", "inf"].iter().any(|wrong| value.contains(wrong)),
                        "{name} {key}={value}"
                    );
                    match &*key {
                        "id" => parts.ids.push(value.to_string()),
                        "aria-labelledby" => {
                            parts.labels.extend(value.split(' ').map(String::from))
                        }
                        // Anything to load or to go to would have to be of the page itself.
                        "src" | "srcset" | "data" | "action" => panic!("{name} {key}={value}"),
                        "href" => assert_eq!(value, "data:,"),
                        _ => {}
                    }
                    if name == "figure" && key == "id" {
                        parts.figures.push(value.to_string());
                    }
                }
                parts.tables += usize::from(name == "table");
                if !tag.self_closing && !VOID.contains(&&*name) {
                    open.push(name);
                }
            }
            Token::EndTag(tag) => {
                let name = String::from_utf8(tag.name.to_vec()).unwrap();
                assert_eq!(open.pop(), Some(name));
            }
            Token::String(text) => parts.text += &String::from_utf8_lossy(&text),
            Token::Error(error) => panic!("{error:?}"),
            _ => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
    let all: BTreeSet<_> = parts.ids.iter().collect();
    assert_eq!(all.len(), parts.ids.len(), "{:?}", parts.ids);
    for label in &parts.labels {
        assert!(all.contains(label), "nothing is {label}");
    }
    for loads in ["url(", "@import"] {
        assert!(!html.contains(loads));
    }
    parts
}

fn events() -> [RunEvents; 2] {
    [STRESS, BENCH].map(RunEvents::read)
}

#[test]
fn every_chart_is_there_and_has_words() {
    let parts = parts(&page(&events(), &[]).unwrap());
    assert_eq!(parts.figures, CHARTS);
    let labels: BTreeSet<_> = parts.labels.iter().cloned().collect();
    let words = |chart: &&str| [format!("{chart}-title"), format!("{chart}-about")];
    assert_eq!(labels, CHARTS.iter().flat_map(words).collect());
    assert!(!parts.ids.contains(&"missing".into()));
}

#[test]
fn what_was_told_is_on_the_page() {
    let parts = parts(&page(&events(), &[]).unwrap());
    for words in [
        "4 of 4",
        "just run-smp 4 seconds=1 mem=64M output=json",
        "bench=churn,mixed,larson,xfree,frame-pair,frame-bulk rounds=5 time=100",
        "-accel tcg,thread=multi -cpu max -smp 4 -m 64M",
        "7.2.22",
        "2026-11-27 04:07:13 UTC",
        "0fc87760759b-dirty",
        "TSC at 2599 MHz (not invariant), physical",
        "tcg,thread=multi",
        "AMD EPYC",
        "passed",
        "in all, to the byte",
        "linked_list",
        "8 virtual CPUs on a host with 2",
    ] {
        assert!(parts.text.contains(words), "{words} is not there");
    }
    assert!(parts.tables >= 9, "{}", parts.tables);
}

#[test]
fn what_is_cut_short_is_named_and_breaks_nothing() {
    for text in [STRESS, BENCH] {
        // Behind each line, and in the middle of it.
        let ends: Vec<_> = text.match_indices('\n').map(|(end, _)| end).collect();
        for pair in ends.windows(2).step_by(13) {
            for end in [pair[0], (pair[0] + pair[1]) / 2] {
                let end = (0..=end)
                    .rev()
                    .find(|&end| text.is_char_boundary(end))
                    .unwrap();
                let events = RunEvents::read(&text[..end]);
                let parts = parts(&page(&[events], &[]).unwrap());
                assert!(
                    parts.text.contains("There is no verdict"),
                    "{}",
                    &text[..end]
                );
            }
        }
    }
    let half = STRESS.find("\"event\":\"roll\"").unwrap();
    let parts = parts(&page(&[RunEvents::read(&STRESS[..half])], &[]).unwrap());
    for words in [
        "can’t be read",
        "it ended before the roll call",
        "No run has a workload",
        "No run has a benchmark",
        "There is no account",
    ] {
        assert!(parts.text.contains(words), "{words} is not there");
    }
    assert_eq!(parts.figures, ["boot-all", "boot-steps"]);
}

#[test]
fn without_a_run_it_says_so() {
    let gap = "The events of a run are not there: a <file> & more.".to_owned();
    let parts = parts(&page(&[], &[gap]).unwrap());
    assert!(parts.text.contains("a <file> & more"), "{}", parts.text);
    assert!(parts.text.contains("No run has a benchmark"));
    assert!(parts.figures.is_empty());
}

#[test]
fn a_cpu_that_is_missing_is_named_with_how_far_it_came() {
    let online = "\"phase\":\"online\"";
    let lines = STRESS.lines().map(|line| {
        if line.contains("\"event\":\"roll\"") {
            let absent = "{\"us\":1,\"by\":0,\"event\":\"absent\",\"cpu\":3,\"lapic\":3,\"phase\":\"control\"}";
            format!("{}\n{absent}\n", line.replace("\"online\":4", "\"online\":3"))
        } else if line.contains("\"event\":\"cpu\",\"cpu\":3") {
            let cut = line.find("\"tables\":").unwrap();
            let rest = line.find("},\"tsc_ahead_ns\"").unwrap();
            let none = "\"tables\":null,\"stack\":null,\"descriptors\":null,\"online\":null";
            let line = format!("{}{none}{}\n", &line[..cut], &line[rest..]);
            line.replace(online, "\"phase\":\"control\"")
        } else {
            format!("{line}\n")
        }
    });
    let passed = "\"outcome\":\"passed\",\"status\":33,\"reason\":null";
    let failed = "\"outcome\":\"failed\",\"status\":35,\"reason\":\"3 of 4 CPUs online\"";
    let events = RunEvents::read(&lines.collect::<String>().replace(passed, failed));
    let parts = parts(&page(&[events], &[]).unwrap());
    assert!(parts.text.contains("It did not pass: 3 of 4 CPUs online."));
    assert!(parts.text.contains("3 of 4"));
    assert!(
        parts
            .text
            .contains("Not at work: CPU 3 (last seen control)."),
        "{}",
        parts.text
    );
    assert!(!parts.text.contains("can’t be read"), "{}", parts.text);
}

#[test]
fn the_account_adds_up_by_rows_and_is_the_last_one() {
    let text = |stress: &str| parts(&page(&[RunEvents::read(stress)], &[]).unwrap()).text;
    let once = text(STRESS);
    for words in ["heap frames, live", "common", "all", "in all, to the byte"] {
        assert!(once.contains(words), "{words} is not there");
    }
    // Drawn up at a prompt, too, before.
    let account = STRESS.lines().filter(|line| {
        let names = ["account_cpu", "account_common", "account", "interrupts"];
        names
            .iter()
            .any(|name| line.contains(&format!("\"event\":\"{name}\"")))
    });
    let account: String = account.map(|line| format!("{line}\n")).collect();
    let first = STRESS.find("\n{\"us\":").unwrap() + 1;
    assert_eq!(account.lines().count(), 4 + 1 + 1 + 4);
    let twice = [&STRESS[..first], &account, &STRESS[first..]].concat();
    assert_eq!(text(&twice), once);
}
