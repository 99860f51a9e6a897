//! The kernel's command line: what any bytes ask for.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use muster_arguments::Arguments;
use muster_boot::command_line;

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(line) = command_line(bytes) else {
        return Corpus::Reject;
    };
    match Arguments::parse(&line) {
        Ok(arguments) => {
            assert!(arguments.cpus > 0);
            // Of a word given twice the last one counts.
            assert_eq!(Arguments::parse(&format!("{line} {line}")), Ok(arguments));
        }
        Err(error) => {
            let words = error.to_string();
            let named = words.split('`').nth(1).unwrap_or_default();
            assert!(line.contains(named), "{words}");
        }
    }
    Corpus::Keep
});
