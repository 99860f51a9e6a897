//! The emulators that boot the cases.

use anyhow::Result;

use crate::arguments;
use crate::cases::Case;
use crate::emulators::emulator::Emulator;
use crate::limine::NotInstalled;

/// Splits the words of `test` into the arguments that name emulators, which every case gets, and the
/// filters.
pub fn emulators_and_filters(words: &[String]) -> (Vec<String>, Vec<String>) {
    words
        .iter()
        .cloned()
        .partition(|word| word.starts_with("qemu=") || word.starts_with("bochs="))
}

/// Selects of the arguments that name emulators those that a case gets.
pub fn emulators_of(case: &Case, emulators: &[String]) -> Vec<String> {
    let prefix = match case.arguments.contains(&ON) {
        true => "bochs=",
        false => "qemu=",
    };
    let all = emulators.iter();
    all.filter(|word| word.starts_with(prefix))
        .cloned()
        .collect()
}

/// Names the emulators that boot the cases, with their versions; one that is not installed is left out,
/// for its cases are skipped.
///
/// # Errors
/// If QEMU is to boot one and is not installed, or a program is another one.
pub fn emulators_named(cases: &[&Case], emulators: &[String]) -> Result<String> {
    let mut names = Vec::new();
    for on_bochs in [false, true] {
        let mut cases = cases.iter();
        let Some(case) = cases.find(|case| case.arguments.contains(&ON) == on_bochs) else {
            continue;
        };
        let machine = on_bochs.then_some(ON.to_owned());
        let words: Vec<_> = (emulators_of(case, emulators).into_iter())
            .chain(machine)
            .collect();
        match Emulator::of(&arguments::parse(&words)?) {
            Ok(emulator) => names.push(emulator.to_string()),
            Err(error) if error.is::<NotInstalled>() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names.join(" and "))
}

/// The argument of a case on Bochs.
const ON: &str = "machine=bochs";

/// Returns why the emulator that is to boot a case can't, if it can't.
///
/// # Errors
/// If QEMU is not installed, or the program is another one.
pub fn missing(case: &Case, emulators: &[String]) -> Result<Option<String>> {
    if case.since_qemu == 0 {
        return Ok(None);
    }
    let run = arguments::parse(&emulators_of(case, emulators))?;
    Ok(unsupported(case, &Emulator::qemu(&run.qemu)?))
}

/// Returns why this emulator can't boot the case, if it can't.
fn unsupported(case: &Case, emulator: &Emulator) -> Option<String> {
    let since = case.since_qemu;
    (emulator.major() < since)
        .then(|| format!("needs QEMU {since} or newer (qemu=PATH); this is {emulator}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;
    use crate::recipes::suite::example::CASE;

    #[test]
    fn emulators_are_no_filters() {
        let words = ["panic", "qemu=/opt/qemu", "bochs=/b", "cpus-8"].map(str::to_owned);
        let (emulators, filters) = emulators_and_filters(&words);
        assert_eq!(emulators, ["qemu=/opt/qemu", "bochs=/b"]);
        assert_eq!(filters, ["panic", "cpus-8"]);
        assert_eq!(emulators_of(&CASE, &emulators), ["qemu=/opt/qemu"]);
        for case in cases::bochs::CASES {
            assert_eq!(
                emulators_of(case, &emulators),
                ["bochs=/b"],
                "{}",
                case.name
            );
        }
    }

    #[test]
    fn what_an_emulator_is_too_old_for_is_skipped_with_the_reason() {
        let seven = Emulator::read("QEMU emulator version 7.2.22 (Debian)").unwrap();
        assert_eq!(unsupported(&CASE, &seven), None);
        let case = Case {
            since_qemu: 9,
            ..CASE
        };
        let why = unsupported(&case, &seven).unwrap();
        assert!(
            why.contains("QEMU 9") && why.contains("QEMU 7.2.22"),
            "{why}"
        );
        let ten = Emulator::read("QEMU emulator version 10.0.13").unwrap();
        assert_eq!(unsupported(&case, &ten), None);
    }
}
