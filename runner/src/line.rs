//! One line of the kernel's log, taken apart:
//!
//! ```text
//!   0.123456  3 INFO  roll    CPU 3 is online
//! ```
//!
//! Seconds since the kernel's entry, CPU, level, target and message, as
//! `{:>10.6} {:>2} {:<5} {:<7} {}` writes them.

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
pub struct Line<'a> {
    /// The CPU that wrote it.
    pub cpu: u32,
    /// Its level.
    pub level: Level,
    /// The part of the kernel that speaks.
    pub target: &'a str,
    /// What it says; leading spaces belong to it.
    pub message: &'a str,
}

impl<'a> Line<'a> {
    /// Takes a line apart, or gives `None` if it is not one of the kernel's:
    /// firmware and loaders write on the same serial line.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (seconds, rest) = text.trim_start().split_once(' ')?;
        seconds.parse::<f64>().ok()?;
        let (cpu, rest) = rest.trim_start().split_once(' ')?;
        let cpu = cpu.parse().ok()?;
        let (level, rest) = column(rest, 5)?;
        let level = match level {
            "ERROR" => Level::Error,
            "WARN" => Level::Warn,
            "INFO" => Level::Info,
            "DEBUG" => Level::Debug,
            "TRACE" => Level::Trace,
            _ => return None,
        };
        let (target, message) = column(rest, 7)?;
        Some(Self {
            cpu,
            level,
            target,
            message,
        })
    }
}

/// Splits off a left-aligned column of at least `width` characters and the one
/// space after it. The last column of an empty message may have been trimmed.
fn column(text: &str, width: usize) -> Option<(&str, &str)> {
    let word = text.split(' ').next().filter(|word| !word.is_empty())?;
    let rest = text.get(word.len().max(width)..).unwrap_or("");
    Some((word, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// The address of an instruction that belongs to what a line of a panic is about:
/// for a return address (`  #2 0xffffffff80012345`) somewhere in the call before
/// it, for a CPU's place (`CPU 1 stopped at 0xffffffff80012345`) that place.
pub fn code_address(message: &str) -> Option<u64> {
    let hexadecimal = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
    if let Some((_, address)) = message.split_once(" stopped at ") {
        return hexadecimal(address);
    }
    let (number, address) = message.trim_start().strip_prefix('#')?.split_once(' ')?;
    number.parse::<u32>().ok()?;
    // What follows a call may already be another line, or another function after one
    // that never returns.
    hexadecimal(address)?.checked_sub(1)
}

/// A line from the serial port without line ending, terminal control sequences
/// (which UEFI firmware writes) and other control characters.
pub fn plain(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            // A control sequence (ECMA-48, 5.4): ESC [, parameters, then one
            // final byte from @ to ~.
            if characters.next_if_eq(&'[').is_some() {
                while characters.next_if(|c| !('@'..='~').contains(c)).is_some() {}
                characters.next();
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
            "{:>10.6} {:>2} {:<5} {:<7} {}",
            0.1, 3, "INFO", "smp", "CPU 3 online"
        );
        let line = Line {
            cpu: 3,
            level: Level::Info,
            target: "smp",
            message: "CPU 3 online",
        };
        assert_eq!(Line::parse(&text), Some(line));
    }

    #[test]
    fn long_columns_and_leading_spaces_survive() {
        let text = "1234567.123456 255 ERROR allocator   #0 0xffffffff80000000";
        let line = Line::parse(text).unwrap();
        assert_eq!((line.cpu, line.target), (255, "allocator"));
        assert_eq!(line.message, "  #0 0xffffffff80000000");
    }

    #[test]
    fn an_empty_message_is_a_line() {
        assert_eq!(Line::parse("  0.000001  0 WARN  log").unwrap().message, "");
        assert_eq!(
            Line::parse("  0.000001  0 WARN  log      ")
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
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }

    #[test]
    fn multibyte_text_in_a_column_does_not_panic() {
        assert!(Line::parse("  0.000001  0 WARN  ééééé hi").is_some());
        assert_eq!(Line::parse("   0.000001   0 ééé hi"), None);
    }

    #[test]
    fn code_addresses_are_found() {
        assert_eq!(
            code_address("  #12 0xffffffff80012345"),
            Some(0xffff_ffff_8001_2344)
        );
        assert_eq!(code_address("#0 0x10"), Some(0xf));
        assert_eq!(
            code_address("CPU 12 stopped at 0xffffffff80012345"),
            Some(0xffff_ffff_8001_2345)
        );
        for message in [
            "rip 0xffffffff80012345",
            "#x 0x10",
            "#1 10",
            "#1 0xzz",
            "#1",
            "#1 0x0",
            "CPU 1 stopped at home",
        ] {
            assert_eq!(code_address(message), None, "{message}");
        }
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
}
