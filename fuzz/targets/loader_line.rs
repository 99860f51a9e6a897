//! The loader's command line: its own words, and those it hands on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_loader::arguments::{ArgumentError, Arguments, kernel_words};

fuzz_target!(|line: &str| {
    let words: Vec<&str> = kernel_words(line).collect();
    let handed_on = words.join(" ");
    // What is handed on holds none of the loader's words any more.
    assert!(kernel_words(&handed_on).eq(words));
    assert!(Arguments::parse(&handed_on).is_ok());
    match Arguments::parse(line) {
        Ok(arguments) => {
            // Each word counts alone, whatever stands between them; after `--` none does.
            let own = line
                .split_ascii_whitespace()
                .take_while(|&word| word != "--")
                .filter(|word| word.starts_with("loader."));
            let own = own.collect::<Vec<_>>().join("\t");
            let again = Arguments::parse(&own);
            assert_eq!(
                format!("{again:?}"),
                format!("{:?}", Ok::<_, ()>(arguments))
            );
        }
        Err(error) => {
            let (ArgumentError::Unknown(word)
            | ArgumentError::BadValue { word, .. }
            | ArgumentError::TooManyIds(word)
            | ArgumentError::TooManyRegisters(word)) = error;
            assert!(line.contains(word) && error.to_string().contains(word));
        }
    }
});
