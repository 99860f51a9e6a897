//! What is typed at the monitor: any bytes become keys, lines, and commands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_monitor::{Command, CommandError, Completion, Editor, Event, PROMPT, QUESTION};

fn check_line(line: &str) {
    match Command::parse(line) {
        Ok(None) => assert!(line.trim_ascii().is_empty()),
        Ok(Some(command)) => {
            // More space between the words changes nothing, but in what is handed on.
            let spaced = format!(" {} ", line.replace(' ', "  "));
            let again = Command::parse(&spaced);
            assert!(matches!(command, Command::Bench(_)) || again == Ok(Some(command)));
        }
        Err(error) => {
            let (CommandError::Unknown { word, .. }
            | CommandError::Value { value: word, .. }
            | CommandError::Surplus { word, .. }) = error
            else {
                return;
            };
            assert!(line.contains(word) && error.to_string().contains(word));
        }
    }
    let completion = Completion::of(line);
    let (addition, _) = completion.addition();
    // Whatever is added, the same words can follow.
    let completed = format!("{line}{addition}");
    assert!(Completion::of(&completed).words().eq(completion.words()));
}

fuzz_target!(|bytes: &[u8]| {
    let mut editor = Editor::new();
    for &byte in bytes {
        let before = editor.to_string();
        let event = editor.take(byte);
        let drawn = editor.to_string();
        match event {
            Event::Grown(character) => assert_eq!(drawn, format!("{before}{character}")),
            Event::Changed => {}
            Event::None | Event::Refused => assert_eq!(drawn, before),
            Event::Undecided => {
                assert_eq!(drawn, before);
                assert!(editor.choices().count() > 1);
            }
            Event::Done(line) => {
                assert!(line.is_ascii() && !line.contains(|c: char| c.is_ascii_control()));
                check_line(&line);
            }
            Event::Abandoned => assert!(drawn.ends_with(PROMPT)),
            // Only after it has asked.
            Event::Over => {
                assert!(before.ends_with(QUESTION));
                break;
            }
        }
    }
    if let Ok(line) = str::from_utf8(bytes) {
        check_line(line);
    }
});
