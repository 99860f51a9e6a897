//! One line of the kernel's log, taken apart:
//!
//! ```text
//!   0.123456  3 INFO  smp     CPU 3 is online
//! ```
//!
//! Seconds since the kernel's entry, CPU, level, target and message, in columns
//! that grow where they must.

/// How much a line matters; the kernel's `log` levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The run fails.
    Error,
    /// Something is not as it should be, but the kernel carries on.
    Warn,
    /// The story of the boot.
    Info,
    /// The story in detail.
    Debug,
    /// Every step.
    Trace,
}

/// A line of the kernel's log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogLine<'a> {
    /// The CPU that wrote it.
    pub cpu: u32,
    /// Its level.
    pub level: Level,
    /// The part of the kernel that speaks.
    pub target: &'a str,
    /// What it says, without the spaces that indent it.
    pub message: &'a str,
}

impl<'a> LogLine<'a> {
    /// Takes a line apart, or gives `None` if it is not one of the kernel's:
    /// firmware and loaders write on the same serial line.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (seconds, rest) = word(text)?;
        seconds.parse::<f64>().ok()?;
        let (cpu, rest) = word(rest)?;
        let cpu = cpu.parse().ok()?;
        let (level, rest) = word(rest)?;
        let level = match level {
            "ERROR" => Level::Error,
            "WARN" => Level::Warn,
            "INFO" => Level::Info,
            "DEBUG" => Level::Debug,
            "TRACE" => Level::Trace,
            _ => return None,
        };
        let (target, rest) = word(rest)?;
        let message = rest.trim();
        Some(Self {
            cpu,
            level,
            target,
            message,
        })
    }
}

/// Splits off the first word.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(' ').unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end)?;
    (!word.is_empty()).then_some((word, rest))
}

/// An address in the kernel's code that a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeAddress {
    /// Where a call returns to: an entry of a backtrace, `#2 0xffffffff80012345`.
    Return(u64),
    /// The instruction itself: `CPU 1 stopped at 0xffffffff80012345`.
    Instruction(u64),
}

/// Returns the code address at the end of a message.
pub fn code_address(message: &str) -> Option<CodeAddress> {
    let (before, address) = message.rsplit_once(" 0x")?;
    let address = u64::from_str_radix(address, 16).ok()?;
    if before.ends_with("stopped at") {
        return Some(CodeAddress::Instruction(address));
    }
    before.strip_prefix('#')?.parse::<u32>().ok()?;
    Some(CodeAddress::Return(address))
}

/// Returns the instruction pointer in an exception's registers, `rip ffffffff80012345`.
pub fn instruction_pointer(message: &str) -> Option<u64> {
    let value = message.strip_prefix("rip ")?.split(' ').next()?;
    u64::from_str_radix(value, 16).ok()
}

/// Returns a line from the serial port without line ending, terminal control sequences (which UEFI
/// firmware writes) and other control characters; and without erased text, such as a line that was
/// being typed when another one came.
pub fn plain(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    let mut last = ' ';
    while let Some(character) = characters.next() {
        let before = std::mem::replace(&mut last, character);
        if character == '\x1b' {
            // A control sequence (ECMA-48, 5.4): ESC [, parameters, then one
            // final byte from @ to ~.
            if characters.next_if_eq(&'[').is_some() {
                let mut has_parameters = false;
                while characters.next_if(|c| !('@'..='~').contains(c)).is_some() {
                    has_parameters = true;
                }
                // Erase to the end of the line, from its beginning.
                if characters.next() == Some('K') && before == '\r' && !has_parameters {
                    plain.clear();
                }
            }
        } else if !character.is_control() {
            plain.push(character);
        } else if character == '\t' {
            plain.push(' ');
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let text = format!(
            "{:>11.6} {:>3} {:<5} {:<8} {}",
            0.1, 3, "INFO", "smp", "CPU 3 online"
        );
        let line = LogLine {
            cpu: 3,
            level: Level::Info,
            target: "smp",
            message: "CPU 3 online",
        };
        assert_eq!(LogLine::parse(&text), Some(line));
    }

    #[test]
    fn columns_may_grow_and_messages_may_be_indented() {
        let text = "1234567.123456 255 ERROR allocator   #0 0xffffffff80000000";
        let line = LogLine::parse(text).unwrap();
        assert_eq!((line.cpu, line.target), (255, "allocator"));
        assert_eq!(line.message, "#0 0xffffffff80000000");
    }

    #[test]
    fn an_empty_message_is_a_line() {
        assert_eq!(
            LogLine::parse("   0.000001   0 WARN  log").unwrap().message,
            ""
        );
        assert_eq!(
            LogLine::parse("   0.000001   0 WARN  log      ")
                .unwrap()
                .message,
            ""
        );
    }

    #[test]
    fn other_text_is_no_line() {
        for text in [
            "",
            "SeaBIOS (version 1.16)",
            "0.1 x INFO  smp      hi",
            "0.1 3 LOUD  smp hi",
        ] {
            assert_eq!(LogLine::parse(text), None, "{text}");
        }
        assert_eq!(LogLine::parse("0.1 3 éééé"), None);
    }

    #[test]
    fn code_addresses_are_found() {
        let address = 0xffff_ffff_8001_2345;
        let found = |message| code_address(message);
        assert_eq!(
            found("#12 0xffffffff80012345"),
            Some(CodeAddress::Return(address))
        );
        assert_eq!(found("#0 0x10"), Some(CodeAddress::Return(0x10)));
        let stopped = "CPU 1 stopped at 0xffffffff80012345";
        assert_eq!(found(stopped), Some(CodeAddress::Instruction(address)));
        for message in [
            "HHDM at 0xffff800000000000",
            "#x 0x10",
            "#1 10",
            "#1 0xzz",
            "#1",
            "#1 0x",
        ] {
            assert_eq!(found(message), None, "{message}");
        }
        let registers = "rip ffffffff80012345  flags 0000000000000082";
        assert_eq!(instruction_pointer(registers), Some(address));
        assert_eq!(instruction_pointer("rsp ffffffff80012345"), None);
    }

    #[test]
    fn control_sequences_are_removed() {
        assert_eq!(
            plain(b"\x1b[2J\x1b[01;01HBdsDxe: \x1b[0mloading\r\n"),
            "BdsDxe: loading"
        );
        assert_eq!(plain(b"a\tb\x1b"), "a b");
        assert_eq!(plain(b"\xff\x1b[1"), "\u{fffd}");
    }

    #[test]
    fn what_was_erased_is_removed() {
        assert_eq!(
            plain(b"> cp\r\x1b[K  0.1 3 INFO  a  b\r\n"),
            "  0.1 3 INFO  a  b"
        );
        assert_eq!(plain(b"a\r\x1b[K> b\x1b[K\r"), "> b");
        assert_eq!(plain(b"a\r\x1b[1Kb"), "ab");
    }
}
