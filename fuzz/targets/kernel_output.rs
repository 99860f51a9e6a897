//! What the runner makes of a run: any bytes on the serial line and the debug console, any status.
#![no_main]

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use libfuzzer_sys::fuzz_target;
use muster_runner::boot_log::{by_cpu, by_section, ranges};
use muster_runner::figures::{self, Comparison, Measure, Sitting};
use muster_runner::line::{LogLine, code_address, instruction_pointer, plain};
use muster_runner::session::{Outcome, Verdict};
use muster_runner::symbols::Symbols;

/// The statuses that the kernel can leave, that of a reset, and another.
const STATUSES: [i32; 6] = [33, 35, 37, 39, 0, 1];

fn check_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert_eq!(plain(text.as_bytes()), text);
    let Some(line) = LogLine::parse(text) else {
        return;
    };
    assert!(text.contains(line.message) && text.contains(line.target));
    let LogLine {
        cpu,
        level,
        target,
        message,
    } = line;
    let level = format!("{level:?}").to_uppercase();
    let written = format!("{:>11.6} {cpu:>3} {level:<5} {target:<8} {message}", 0.5);
    assert_eq!(LogLine::parse(&written), Some(line));
    code_address(message);
    instruction_pointer(message);
}

fn check_figures(text: &str) {
    for measure in [Measure::Pairs, Measure::Instructions] {
        let (Ok(reference), Ok(own)) = (
            figures::read(text, "a", measure),
            figures::read(text, "b", measure),
        ) else {
            continue;
        };
        let comparison = Comparison {
            measure,
            reference: "a",
            own: "b",
            sittings: vec![Sitting { reference, own }],
        };
        comparison.table();
        comparison.failures();
        for line in comparison.json().lines() {
            assert!(figures::read(line, "a", measure).is_ok(), "{line}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, serial)) = bytes.split_first() else {
        return;
    };
    let status = STATUSES[usize::from(choice) % STATUSES.len()];
    let symbols = Symbols::of(Path::new("/nonexistent"));
    let lines: Vec<String> = serial.split(|&byte| byte == b'\n').map(plain).collect();
    lines.iter().for_each(|line| check_line(line));
    let text = lines.join("\n");
    check_figures(&text);

    let (verdict, reason) =
        Outcome::of(serial, ExitStatus::from_raw(status << 8), &symbols).verdict();
    let said = lines
        .iter()
        .filter_map(|line| LogLine::parse(line)?.message.strip_prefix("verdict: "));
    let is_passed = status == 33 && said.last() == Some("passed");
    assert_eq!(verdict == Verdict::Passed, is_passed, "{reason}");
    assert_eq!(reason.is_empty(), is_passed);

    let mut cpus: Vec<u32> = by_section(serial, &symbols).into_keys().collect();
    cpus.extend(by_cpu(&text).into_keys());
    cpus.sort_unstable();
    cpus.dedup();
    ranges(&cpus);
});
