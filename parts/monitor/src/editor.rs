//! The line that is being typed, and those that were typed before.
//!
//! Of the crates that do this without `std`, `noline` asks the terminal where its cursor is, and waits
//! for an answer that a pipe does not give; `embedded-cli` completes first words only; `editline` and
//! `ushell` allocate, or panic over a byte that is not ASCII. None leaves room for a log line of
//! another CPU. Here the line can be drawn again at any time.

use core::fmt;

use heapless::{Deque, String};

use crate::completion::Completion;
use crate::keys::{Key, Keys};

/// What stands before the line.
pub const PROMPT: &str = "muster> ";

/// What stands in the place of the prompt and the line, once Ctrl-D has been pressed where there is no
/// line.
pub const QUESTION: &str = "end the run? y or Ctrl-D ends it, any other key goes on: ";

/// The longest line, in characters.
pub const LINE: usize = 200;

/// How many of its characters are shown: with the prompt, and the cursor behind the last of them, on
/// a terminal of 80 columns.
const SHOWN: usize = 80 - PROMPT.len() - 1;

/// How many lines are remembered.
const REMEMBERED: usize = 32;

/// A line as it was typed: ASCII.
pub type InputLine = String<LINE>;

/// What came of a byte.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is matched on at once, and nothing here may allocate"
)]
pub enum Event {
    /// Nothing yet.
    None,
    /// The line has grown at its end, by this: it is enough to print it.
    Grown(char),
    /// The line looks otherwise, or its cursor is elsewhere: it is to be drawn.
    Changed,
    /// The key has no effect here.
    Refused,
    /// There is a choice of words to go on with, which are [`Editor::choices`].
    Undecided,
    /// The line is done, and a new one begins.
    Done(InputLine),
    /// The line is abandoned, and a new one begins.
    Abandoned,
    /// There will be no more lines: whoever types has been asked, and wants it so.
    Over,
}

/// A line under the cursor.
#[derive(Debug)]
pub struct Editor {
    keys: Keys,
    line: InputLine,
    /// How many characters stand before the cursor.
    cursor: usize,
    /// The last lines, the oldest first.
    history: Deque<InputLine, REMEMBERED>,
    /// How many lines back the one shown is; 0: it is new.
    back: usize,
    /// The new line, while an old one is shown.
    draft: InputLine,
    /// Whether the next key answers [`QUESTION`].
    is_asking: bool,
}

impl Default for Editor {
    fn default() -> Self {
        Self::new()
    }
}

impl Editor {
    /// Creates an editor with an empty line and no history.
    pub const fn new() -> Self {
        Self {
            keys: Keys::new(),
            line: InputLine::new(),
            cursor: 0,
            history: Deque::new(),
            back: 0,
            draft: InputLine::new(),
            is_asking: false,
        }
    }

    /// Takes the next byte from the terminal.
    pub fn take(&mut self, byte: u8) -> Event {
        match self.keys.take(byte) {
            Some(key) => self.press(key),
            None => Event::None,
        }
    }

    /// Returns the words with which the line up to the cursor may continue.
    pub fn choices(&self) -> impl Iterator<Item = &'static str> + Clone + use<'_> {
        Completion::of(self.before()).words()
    }

    fn before(&self) -> &str {
        self.line.get(..self.cursor).unwrap_or_default()
    }

    fn press(&mut self, key: Key) -> Event {
        if core::mem::take(&mut self.is_asking) {
            return match key {
                Key::EndOrDelete | Key::Character('y' | 'Y') => Event::Over,
                _ => Event::Changed,
            };
        }
        match key {
            Key::Character(character) => self.insert(character),
            Key::Enter => Event::Done(self.finish()),
            Key::Tab => self.complete(),
            Key::Left => self.go_to(self.cursor.checked_sub(1)),
            Key::Right => self.go_to(Some(self.cursor + 1)),
            Key::Home => self.go_to(Some(0)),
            Key::End => self.go_to(Some(self.line.len())),
            Key::Up => self.recall(self.back + 1),
            Key::Down => match self.back.checked_sub(1) {
                Some(back) => self.recall(back),
                None => Event::Refused,
            },
            Key::Backspace => self.erase(self.cursor.checked_sub(1), self.cursor),
            Key::Delete => self.erase(Some(self.cursor), self.cursor + 1),
            Key::EraseWord => {
                let before = self.before().trim_end();
                let word = before.rfind(' ').map_or(0, |space| space + 1);
                self.erase(Some(word), self.cursor)
            }
            Key::EraseStart => self.erase(Some(0), self.cursor),
            Key::EraseEnd => self.erase(Some(self.cursor), self.line.len()),
            Key::Redraw => Event::Changed,
            Key::Cancel => {
                self.start_anew();
                Event::Abandoned
            }
            Key::EndOrDelete if self.line.is_empty() => {
                self.is_asking = true;
                Event::Changed
            }
            Key::EndOrDelete => self.erase(Some(self.cursor), self.cursor + 1),
            Key::Unknown => Event::Refused,
        }
    }

    fn insert(&mut self, character: char) -> Event {
        if self.line.insert(self.cursor, character).is_err() {
            return Event::Refused;
        }
        self.cursor += 1;
        if self.cursor == self.line.len() && self.line.len() <= SHOWN {
            Event::Grown(character)
        } else {
            Event::Changed
        }
    }

    fn complete(&mut self) -> Event {
        let completion = Completion::of(self.before());
        let (addition, end) = completion.addition();
        if addition.is_empty() && end.is_empty() {
            return match completion.words().nth(1) {
                Some(_) => Event::Undecided,
                None => Event::Refused,
            };
        }
        for character in addition.chars().chain(end.chars()) {
            if self.insert(character) == Event::Refused {
                return Event::Refused;
            }
        }
        Event::Changed
    }

    fn go_to(&mut self, place: Option<usize>) -> Event {
        match place {
            Some(place) if place <= self.line.len() && place != self.cursor => {
                self.cursor = place;
                Event::Changed
            }
            _ => Event::Refused,
        }
    }

    /// Erases what stands from one place to the other, before which the cursor is then.
    fn erase(&mut self, from: Option<usize>, to: usize) -> Event {
        let Some(from) = from.filter(|&from| from < to && to <= self.line.len()) else {
            return Event::Refused;
        };
        // In whole characters: they are ASCII.
        self.line.drain(from..to);
        self.cursor = from;
        Event::Changed
    }

    /// Shows the line that was typed `back` lines before.
    fn recall(&mut self, back: usize) -> Event {
        let line = match back {
            0 => Some(&self.draft),
            _ => self.history.iter().nth_back(back - 1),
        };
        let Some(line) = line.cloned() else {
            return Event::Refused;
        };
        if self.back == 0 {
            self.draft = core::mem::take(&mut self.line);
        }
        self.line = line;
        self.cursor = self.line.len();
        self.back = back;
        Event::Changed
    }

    fn finish(&mut self) -> InputLine {
        let line = self.line.clone();
        let is_new = self.history.back() != Some(&line);
        if is_new && !line.trim().is_empty() {
            if self.history.is_full() {
                self.history.pop_front();
            }
            // There is room.
            let _ = self.history.push_back(line.clone());
        }
        self.start_anew();
        line
    }

    fn start_anew(&mut self) {
        self.line.clear();
        self.draft.clear();
        self.cursor = 0;
        self.back = 0;
    }
}

impl fmt::Display for Editor {
    /// Writes the line, with the prompt, over the terminal's line (ECMA-48: EL, and CUB to bring the
    /// cursor back).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_asking {
            return write!(f, "\r\x1b[K{QUESTION}");
        }
        let start = self.cursor.saturating_sub(SHOWN);
        let end = self.line.len().min(start + SHOWN);
        let shown = self.line.get(start..end).unwrap_or_default();
        write!(f, "\r\x1b[K{PROMPT}{shown}")?;
        match end - self.cursor {
            0 => Ok(()),
            left => write!(f, "\x1b[{left}D"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UP: &str = "\x1b[A";
    const DOWN: &str = "\x1b[B";
    const LEFT: &str = "\x1b[D";
    const HOME: &str = "\x1b[H";
    const DELETE: &str = "\x1b[3~";

    fn typed(editor: &mut Editor, text: &str) -> Event {
        let mut last = Event::None;
        for byte in text.bytes() {
            last = editor.take(byte);
        }
        last
    }

    /// Returns the line that these keys make.
    fn line(text: &str) -> String<LINE> {
        match typed(&mut Editor::new(), &format!("{text}\r")) {
            Event::Done(line) => line,
            event => panic!("{text:?} came to {event:?}"),
        }
    }

    #[test]
    fn keys_edit() {
        assert_eq!(line("cpus"), "cpus");
        assert_eq!(line(&format!("cus{LEFT}{LEFT}p")), "cpus");
        assert_eq!(line(&format!("pus{HOME}c")), "cpus");
        assert_eq!(line("cpux\x7fs"), "cpus");
        assert_eq!(line(&format!("xcpus{HOME}{DELETE}")), "cpus");
        assert_eq!(line("log 33\x17\x173"), "3");
        assert_eq!(line("log 3 \x17"), "log ");
        assert_eq!(line("nonsense\x15cpus"), "cpus");
        assert_eq!(line(&format!("cpusxx{LEFT}{LEFT}\x0b")), "cpus");
        assert_eq!(line("xcpus\x01\x04"), "cpus");
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let mut editor = Editor::new();
        for keys in [
            LEFT, "\x1b[C", UP, DOWN, DELETE, "\x7f", "\x17", "\x15", "é",
        ] {
            assert_eq!(typed(&mut editor, keys), Event::Refused, "{keys:?}");
        }
        assert_eq!(typed(&mut editor, &"x".repeat(LINE)), Event::Changed);
        assert_eq!(typed(&mut editor, "x"), Event::Refused);
    }

    #[test]
    fn ctrl_c_abandons() {
        let mut editor = Editor::new();
        typed(&mut editor, "cpus");
        assert_eq!(typed(&mut editor, "\x03"), Event::Abandoned);
        assert_eq!(typed(&mut editor, UP), Event::Refused);
    }

    #[test]
    fn ctrl_d_asks_and_ends_if_that_is_meant() {
        let asked = || {
            let mut editor = Editor::new();
            typed(&mut editor, "cpus\r");
            assert_eq!(typed(&mut editor, "\x04"), Event::Changed);
            assert_eq!(editor.to_string(), format!("\r\x1b[K{QUESTION}"));
            editor
        };
        for yes in ["y", "Y", "\x04"] {
            assert_eq!(typed(&mut asked(), yes), Event::Over);
        }
        for no in ["n", "\r", "\x03", "\t", "\x1a", "\x7f", UP, DELETE] {
            let mut editor = asked();
            assert_eq!(typed(&mut editor, no), Event::Changed, "{no:?}");
            assert_eq!(editor.to_string(), format!("\r\x1b[K{PROMPT}"));
            assert_eq!(typed(&mut editor, "\x04"), Event::Changed);
        }
    }

    #[test]
    fn ctrl_d_deletes_where_there_is_a_line() {
        let mut editor = Editor::new();
        typed(&mut editor, &format!("ab{HOME}"));
        assert_eq!(typed(&mut editor, "\x04"), Event::Changed);
        assert_eq!(editor.to_string(), format!("\r\x1b[K{PROMPT}b\x1b[1D"));
        typed(&mut editor, "\x1b[C");
        assert_eq!(typed(&mut editor, "\x04"), Event::Refused);
    }

    #[test]
    fn lines_are_recalled_and_the_new_one_is_not_lost() {
        let mut editor = Editor::new();
        typed(&mut editor, "one\rtwo\rtwo\r \rnew");
        let shown = |editor: &Editor| editor.to_string().replace("\r\x1b[K", "");
        assert_eq!(typed(&mut editor, UP), Event::Changed);
        assert_eq!(shown(&editor), "muster> two");
        typed(&mut editor, UP);
        assert_eq!(shown(&editor), "muster> one");
        assert_eq!(typed(&mut editor, UP), Event::Refused);
        typed(&mut editor, DOWN);
        typed(&mut editor, DOWN);
        assert_eq!(shown(&editor), "muster> new");
        assert_eq!(typed(&mut editor, DOWN), Event::Refused);
        typed(&mut editor, &format!("{UP}{UP}!"));
        assert_eq!(
            typed(&mut editor, "\r"),
            Event::Done("one!".try_into().unwrap())
        );
        for number in 0..=REMEMBERED {
            typed(&mut editor, &format!("{number}\r"));
        }
        typed(&mut editor, &UP.repeat(REMEMBERED + 5));
        assert_eq!(shown(&editor), "muster> 1");
    }

    #[test]
    fn tab_completes_or_offers_a_choice() {
        let mut editor = Editor::new();
        assert_eq!(typed(&mut editor, "st\t"), Event::Undecided);
        assert!(editor.choices().eq(["stress", "stop"]));
        assert_eq!(typed(&mut editor, "r\t"), Event::Changed);
        assert_eq!(typed(&mut editor, "mi\t,ch\t\t"), Event::Refused);
        let line = "stress mixed,churn".try_into().unwrap();
        assert_eq!(typed(&mut editor, "\r"), Event::Done(line));
        assert_eq!(typed(&mut editor, "x\t"), Event::Refused);
    }

    #[test]
    fn a_long_line_is_shown_in_part() {
        let mut editor = Editor::new();
        assert_eq!(typed(&mut editor, &"x".repeat(SHOWN)), Event::Grown('x'));
        assert_eq!(typed(&mut editor, "y"), Event::Changed);
        assert_eq!(
            editor.to_string(),
            format!("\r\x1b[K{PROMPT}{}y", "x".repeat(SHOWN - 1))
        );
        typed(&mut editor, HOME);
        let shown = "x".repeat(SHOWN);
        assert_eq!(
            editor.to_string(),
            format!("\r\x1b[K{PROMPT}{shown}\x1b[{SHOWN}D")
        );
    }

    /// Makes keys, as bytes, and noise.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let key = prop_oneof![
            4 => "[a-z ,]{1,6}".prop_map(|text| text.into_bytes()),
            3 => prop::sample::select(vec![UP, DOWN, LEFT, HOME, DELETE, "\x1b[C", "\t", "\r", "\x04"])
                .prop_map(|key| key.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 1..4),
        ];
        prop::collection::vec(key, 0..60).prop_map(|keys| keys.concat())
    }

    proptest! {
        #[test]
        fn whatever_is_typed_the_cursor_is_in_the_line_and_the_line_on_the_screen(bytes in keys()) {
            let mut editor = Editor::new();
            for byte in bytes {
                let before = editor.to_string();
                let event = editor.take(byte);
                prop_assert!(editor.cursor <= editor.line.len() && editor.line.is_ascii());
                let drawn = editor.to_string();
                match event {
                    Event::Grown(character) => prop_assert_eq!(drawn, format!("{before}{character}")),
                    Event::None | Event::Refused | Event::Undecided => prop_assert_eq!(drawn, before),
                    Event::Done(line) => prop_assert!(!line.contains(|c: char| c.is_control())),
                    Event::Changed | Event::Abandoned | Event::Over => {
                        let text = drawn.trim_start_matches("\r\x1b[K");
                        let text = text.split('\x1b').next().unwrap_or_default();
                        prop_assert!(text.len() < 80);
                        prop_assert!(text == QUESTION || text.starts_with(PROMPT));
                    }
                }
            }
        }
    }
}
