//! Keys, from the bytes that a terminal sends for them.

/// A key, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable ASCII character.
    Character(char),
    /// The line is done.
    Enter,
    /// Complete what was begun.
    Tab,
    /// One character to the left.
    Left,
    /// One to the right.
    Right,
    /// The line before.
    Up,
    /// The line after.
    Down,
    /// To the beginning of the line.
    Home,
    /// To its end.
    End,
    /// Erase the character before the cursor.
    Backspace,
    /// Erase the one under it.
    Delete,
    /// Erase the word before the cursor.
    EraseWord,
    /// Erase all before the cursor.
    EraseStart,
    /// Erase all from the cursor on.
    EraseEnd,
    /// Draw the line again.
    Redraw,
    /// Never mind the line.
    Cancel,
    /// No more lines, if that is meant; erase the character under the cursor if there is a line.
    EndOrDelete,
    /// Nothing that is known here.
    Unknown,
}

/// What of a sequence has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ground,
    /// A carriage return, of which a line feed may be the other half.
    Returned,
    /// ESC.
    Escaped,
    /// ESC [ or ESC O, and the number that stands first after it.
    Sequence(u8),
}

/// Makes keys of bytes, one after the other.
#[derive(Clone, Debug)]
pub struct Keys(State);

const ESCAPE: u8 = 0x1b;

/// Returns the byte of a letter typed with Ctrl.
const fn control(letter: u8) -> u8 {
    letter & 0x1f
}

impl Keys {
    /// Creates a decoder that has read nothing.
    pub const fn new() -> Self {
        Self(State::Ground)
    }

    /// Takes the next byte. `None`: the key has more of them, or it was the second half of one.
    pub fn take(&mut self, byte: u8) -> Option<Key> {
        let state = core::mem::replace(&mut self.0, State::Ground);
        match state {
            State::Returned if byte == b'\n' => None,
            State::Ground | State::Returned => self.begin(byte),
            State::Escaped if byte == b'[' || byte == b'O' => {
                self.0 = State::Sequence(0);
                None
            }
            // ESC by itself, and then another key.
            State::Escaped => self.begin(byte),
            State::Sequence(number) => self.go_on(number, byte),
        }
    }

    fn begin(&mut self, byte: u8) -> Option<Key> {
        const CTRL_A: u8 = control(b'a');
        const CTRL_B: u8 = control(b'b');
        const CTRL_C: u8 = control(b'c');
        const CTRL_D: u8 = control(b'd');
        const CTRL_E: u8 = control(b'e');
        const CTRL_F: u8 = control(b'f');
        const CTRL_H: u8 = control(b'h');
        const CTRL_K: u8 = control(b'k');
        const CTRL_L: u8 = control(b'l');
        const CTRL_N: u8 = control(b'n');
        const CTRL_P: u8 = control(b'p');
        const CTRL_U: u8 = control(b'u');
        const CTRL_W: u8 = control(b'w');
        const RUBOUT: u8 = 0x7f;

        Some(match byte {
            ESCAPE => {
                self.0 = State::Escaped;
                return None;
            }
            b'\r' => {
                self.0 = State::Returned;
                Key::Enter
            }
            b'\n' => Key::Enter,
            b'\t' => Key::Tab,
            CTRL_H | RUBOUT => Key::Backspace,
            CTRL_A => Key::Home,
            CTRL_B => Key::Left,
            CTRL_C => Key::Cancel,
            CTRL_D => Key::EndOrDelete,
            CTRL_E => Key::End,
            CTRL_F => Key::Right,
            CTRL_K => Key::EraseEnd,
            CTRL_L => Key::Redraw,
            CTRL_N => Key::Down,
            CTRL_P => Key::Up,
            CTRL_U => Key::EraseStart,
            CTRL_W => Key::EraseWord,
            b' '..=b'~' => Key::Character(char::from(byte)),
            _ => Key::Unknown,
        })
    }

    /// Reads on within a control sequence (ECMA-48, 5.4: parameters, and a final byte from @ to ~).
    fn go_on(&mut self, number: u8, byte: u8) -> Option<Key> {
        Some(match byte {
            b'A' => Key::Up,
            b'B' => Key::Down,
            b'C' => Key::Right,
            b'D' => Key::Left,
            b'H' => Key::Home,
            b'F' => Key::End,
            // The keypad of the VT220, and what came after it.
            b'~' => match number {
                1 | 7 => Key::Home,
                4 | 8 => Key::End,
                3 => Key::Delete,
                _ => Key::Unknown,
            },
            b'@'..=b'~' => Key::Unknown,
            b'0'..=b'9' => {
                let number = number.saturating_mul(10).saturating_add(byte - b'0');
                self.0 = State::Sequence(number);
                return None;
            }
            b' '..=b'?' => {
                self.0 = State::Sequence(number);
                return None;
            }
            // Not of a sequence: it was broken off.
            _ => return self.begin(byte),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::new();
        bytes.iter().filter_map(|&byte| keys.take(byte)).collect()
    }

    #[test]
    fn characters_are_themselves() {
        use Key::Character;
        assert_eq!(keys(b"a ~"), ['a', ' ', '~'].map(Character));
    }

    #[test]
    fn every_end_of_a_line_is_one() {
        assert_eq!(keys(b"\r\n\n\r\r\n"), [Key::Enter; 4]);
        assert_eq!(keys(b"\ra"), [Key::Enter, Key::Character('a')]);
    }

    #[test]
    fn sequences_are_keys() {
        for (bytes, key) in [
            (&b"\x1b[A"[..], Key::Up),
            (b"\x1bOB", Key::Down),
            (b"\x1b[C", Key::Right),
            (b"\x1b[1;5D", Key::Left),
            (b"\x1b[H", Key::Home),
            (b"\x1b[1~", Key::Home),
            (b"\x1bOF", Key::End),
            (b"\x1b[8~", Key::End),
            (b"\x1b[3~", Key::Delete),
            (b"\x1b[24~", Key::Unknown),
            (b"\x1b[?99999999Z", Key::Unknown),
            (b"\x03", Key::Cancel),
            (b"\x04", Key::EndOrDelete),
            (b"\x7f", Key::Backspace),
            (b"\xc3", Key::Unknown),
            (b"\0", Key::Unknown),
        ] {
            assert_eq!(keys(bytes), [key], "{bytes:?}");
        }
    }

    #[test]
    fn what_breaks_a_sequence_off_is_a_key_itself() {
        assert_eq!(keys(b"\x1bx"), [Key::Character('x')]);
        assert_eq!(keys(b"\x1b\x1b[A"), [Key::Up]);
        assert_eq!(keys(b"\x1b[1\r"), [Key::Enter]);
        assert_eq!(keys(b"\x1b[\x1b[A"), [Key::Up]);
    }
}
