//! What the value of an option looks like.

use core::fmt;

/// The form of an option's value: what it admits, and how that is said to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One of these names.
    OneOf(&'static [&'static str]),
    /// One of the first names, or one or several of the others, by commas.
    OneOrSome(&'static [&'static str], &'static [&'static str]),
    /// No value at all: the option stands alone.
    Flag,
    /// A whole number from the first to the last.
    Number(u64, u64),
    /// One or several whole numbers from this one on, by commas.
    Numbers(u64),
    /// Seconds above 0, with at most three decimals.
    Seconds,
    /// Bytes from this many on, as a number and a unit.
    Size(u64),
    /// Any text, described.
    Text(&'static str),
}

/// The longest time, in seconds: a year.
const MAX_SECONDS: u64 = 365 * 24 * 60 * 60;

impl Form {
    /// Returns whether a value is of this form.
    pub fn admits(self, value: &str) -> bool {
        let number = |text: &str, least: u64, most: u64| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits
                && text
                    .parse()
                    .is_ok_and(|number| (least..=most).contains(&number))
        };
        match self {
            Self::OneOf(names) => names.contains(&value),
            Self::OneOrSome(alone, names) => {
                alone.contains(&value) || value.split(',').all(|name| names.contains(&name))
            }
            Self::Flag => value.is_empty(),
            Self::Number(least, most) => number(value, least, most),
            Self::Numbers(least) => value.split(',').all(|text| number(text, least, u64::MAX)),
            Self::Seconds => millis(value).is_some_and(|millis| millis > 0),
            Self::Size(least) => bytes(value).is_some_and(|bytes| bytes >= least),
            Self::Text(_) => !value.is_empty(),
        }
    }

    /// Returns the names that a value may consist of.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let (alone, names): (&[&str], &[&str]) = match self {
            Self::OneOf(names) => (names, &[]),
            Self::OneOrSome(alone, names) => (alone, names),
            _ => (&[], &[]),
        };
        alone.iter().chain(names).copied()
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OneOf(names) => alternatives(names, f),
            Self::OneOrSome(alone, names) => {
                if !alone.is_empty() {
                    alternatives(alone, f)?;
                    f.write_str(", or ")?;
                }
                f.write_str("one or more, by commas, of ")?;
                alternatives(names, f)
            }
            Self::Flag => f.write_str("without a value"),
            Self::Number(0, u64::MAX) => f.write_str("a whole number"),
            Self::Number(least, u64::MAX) => write!(f, "a whole number from {least}"),
            Self::Number(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Numbers(0) => f.write_str("N[,N…]"),
            Self::Numbers(least) => write!(f, "N[,N…], each {least} or more"),
            Self::Seconds => f.write_str("seconds above 0, such as 30 or 0.125"),
            Self::Size(least) => {
                let mebibytes = least.div_ceil(1 << 20);
                write!(f, "{mebibytes}M or more, with its unit, such as 64M or 6G")
            }
            Self::Text(what) => f.write_str(what),
        }
    }
}

/// Writes `a|b|c`.
fn alternatives(names: &[&str], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (index, name) in names.iter().enumerate() {
        let bar = if index > 0 { "|" } else { "" };
        write!(f, "{bar}{name}")?;
    }
    Ok(())
}

/// Returns the milliseconds of a number of seconds with up to three decimals: the kernel has no floating
/// point. `None`: it is no such number, or more than a year.
pub fn millis(seconds: &str) -> Option<u64> {
    let (whole, decimals) = match seconds.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (seconds, ""),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if decimals.len() > 3 || !are_digits(decimals) || !are_digits(whole) {
        return None;
    }
    let whole = whole
        .parse()
        .ok()
        .filter(|&whole: &u64| whole <= MAX_SECONDS)?;
    let thousandths = decimals
        .bytes()
        .chain(*b"000")
        .take(3)
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(whole * 1000 + thousandths)
}

/// Returns the bytes of a size, a whole number and its unit: K, M, G or T, powers of 1024. `None`: it is no
/// such size, or more than 2⁶⁴ bytes.
pub fn bytes(size: &str) -> Option<u64> {
    let (number, unit) = size.split_at_checked(size.len().checked_sub(1)?)?;
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    let number = number.parse::<u64>().ok().filter(|_| digits)?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_up_to_three_decimals() {
        for (seconds, expected) in [
            ("0", Some(0)),
            ("2", Some(2_000)),
            ("2.", None),
            ("0.5", Some(500)),
            ("1.25", Some(1_250)),
            ("1.005", Some(1_005)),
            ("31536000", Some(31_536_000_000)),
            ("31536001", None),
            ("18446744073709551616", None),
            ("0.0001", None),
            (".5", None),
            ("1.-5", None),
            ("1e3", None),
            ("-1", None),
            ("+1", None),
            ("", None),
        ] {
            assert_eq!(millis(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn sizes_have_a_unit() {
        for (size, expected) in [
            ("64M", Some(64 << 20)),
            ("5428K", Some(5428 << 10)),
            ("6G", Some(6 << 30)),
            ("4T", Some(4 << 40)),
            ("512", None),
            ("M", None),
            ("+1M", None),
            ("2MM", None),
            ("64MB", None),
            ("64m", None),
            ("99999999999T", None),
            ("6…", None),
            ("", None),
        ] {
            assert_eq!(bytes(size), expected, "{size}");
        }
    }

    #[test]
    fn each_form_admits_its_values_alone() {
        const NAMES: &[&str] = &["ab", "cd"];
        for (form, admitted, refused) in [
            (
                Form::OneOf(NAMES),
                &["ab", "cd"][..],
                &["", "ab,cd", "AB"][..],
            ),
            (
                Form::OneOrSome(&[], NAMES),
                &["ab", "cd,ab"],
                &["", "ab,", "all", "ab cd"],
            ),
            (
                Form::OneOrSome(&["all"], NAMES),
                &["all", "ab,cd"],
                &["", "all,ab"],
            ),
            (Form::Flag, &[""], &["1"]),
            (
                Form::Number(1, 9),
                &["1", "9", "07"],
                &["0", "10", "", "+1", "-1", "0x1"],
            ),
            (Form::Numbers(1), &["1", "3,5"], &["", "1,", "0", "1,-1"]),
            (Form::Seconds, &["1", "0.001"], &["0", "0.000", "inf", "-1"]),
            (
                Form::Size(2 << 20),
                &["2M", "2048K"],
                &["2047K", "1M", "2", "0"],
            ),
            (Form::Text("a path"), &["x"], &[""]),
        ] {
            for value in admitted {
                assert!(form.admits(value), "{form}: {value}");
            }
            for value in refused {
                assert!(!form.admits(value), "{form}: {value}");
            }
        }
    }

    #[test]
    fn forms_are_described() {
        assert_eq!(Form::OneOf(&["a"]).to_string(), "a");
        assert_eq!(
            Form::OneOrSome(&["all", "none"], &["a", "b"]).to_string(),
            "all|none, or one or more, by commas, of a|b"
        );
        assert_eq!(
            Form::OneOrSome(&[], &["a", "b"]).to_string(),
            "one or more, by commas, of a|b"
        );
        for (form, described) in [
            (Form::Flag, "without a value"),
            (Form::Number(0, u64::MAX), "a whole number"),
            (Form::Number(1, u64::MAX), "a whole number from 1"),
            (Form::Number(1, 9), "a whole number from 1 to 9"),
            (Form::Numbers(0), "N[,N…]"),
            (Form::Numbers(1), "N[,N…], each 1 or more"),
            (Form::Seconds, "seconds above 0, such as 30 or 0.125"),
            (
                Form::Size((2 << 20) + 1),
                "3M or more, with its unit, such as 64M or 6G",
            ),
            (Form::Text("a path"), "a path"),
        ] {
            assert_eq!(form.to_string(), described);
        }
    }
}
