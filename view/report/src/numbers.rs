//! Numbers for people.

/// Formats a number in three digits or so, with its thousands as a letter.
pub fn short(number: f64) -> String {
    let mut rest = number;
    let mut unit = "";
    for next in ["k", "M", "G", "T"] {
        if rest.abs() < 1000.0 {
            break;
        }
        rest /= 1000.0;
        unit = next;
    }
    match rest.abs() {
        // What needs no decimals has none.
        _ if rest.fract() == 0.0 => format!("{rest:.0}{unit}"),
        100.0.. => format!("{rest:.0}{unit}"),
        10.0.. => format!("{rest:.1}{unit}"),
        _ => format!("{rest:.2}{unit}"),
    }
}

/// Formats a number as it is, as far as an axis goes.
pub fn plain(number: &f64) -> String {
    let rounded = (number * 1000.0).round() / 1000.0;
    format!("{rounded}")
}

/// Formats nanoseconds, in the unit that fits.
pub fn time(ns: f64) -> String {
    let (number, unit) = match ns {
        1e9.. => (ns / 1e9, "s"),
        1e6.. => (ns / 1e6, "ms"),
        1e3.. => (ns / 1e3, "µs"),
        _ => (ns, "ns"),
    };
    format!("{} {unit}", short(number))
}

/// Formats bytes, in the unit that fits.
pub fn bytes(number: i128) -> String {
    let mut rest = number.unsigned_abs() as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if rest < 1024.0 {
            break;
        }
        rest /= 1024.0;
        unit = next;
    }
    let sign = if number < 0 { "−" } else { "" };
    match rest.fract() == 0.0 {
        true => format!("{sign}{rest:.0} {unit}"),
        false => format!("{sign}{rest:.1} {unit}"),
    }
}

/// Formats a whole number with its thousands apart.
pub fn grouped(number: impl Into<i128>) -> String {
    let number: i128 = number.into();
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            // A narrow space that does not break.
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    match number < 0 {
        true => format!("−{text}"),
        false => text,
    }
}

/// Formats a number of CPUs, in words.
pub fn of_cpus(cpus: u32) -> String {
    format!("{cpus} {}", if cpus == 1 { "CPU" } else { "CPUs" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let expected = ["0", "0.50", "7", "12.5", "999", "1.23k", "104k", "3M"];
        let numbers = [0.0, 0.5, 7.0, 12.5, 999.0, 1234.0, 104_250.0, 3e6];
        assert_eq!(numbers.map(short), expected);
        assert_eq!(
            [0.2 + 0.1, 25.0].map(|number| plain(&number)),
            ["0.3", "25"]
        );
        assert_eq!(time(950.0), "950 ns");
        assert_eq!(time(1500.0), "1.50 µs");
        assert_eq!(time(2e9), "2 s");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(-1 << 20), "−1 MiB");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(-12), "−12");
    }
}
