//! Numbers as people read them, in few columns.

/// Formats a number in at most five columns: `999`, `12.3k`, `123k`, `1.23M`.
pub fn count(number: u64) -> String {
    short(number, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// Formats bytes in at most five columns, in units of 1024: `999`, `12.3K`, `1023K`, `1.23M`.
pub fn bytes(number: u64) -> String {
    short(number, 1024, &["", "K", "M", "G", "T", "P", "E"])
}

fn short(number: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 1;
    let mut units = units.iter();
    let mut name = units.next().copied().unwrap_or_default();
    while number / unit >= base
        && let Some(next) = units.next()
    {
        unit *= base;
        name = next;
    }
    let whole = number / unit;
    let hundredths = u128::from(number % unit) * 100 / u128::from(unit);
    match whole {
        _ if unit == 1 => format!("{whole}"),
        0..10 => format!("{whole}.{hundredths:02}{name}"),
        10..100 => format!("{whole}.{}{name}", hundredths / 10),
        _ => format!("{whole}{name}"),
    }
}

/// Microseconds as minutes and seconds, and hours if there are any: `1:02`, `1:00:02`.
pub fn clock(micros: u64) -> String {
    let seconds = micros / 1_000_000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// Returns a part of a whole, in percent, rounded down.
pub fn percent(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

/// Draws a bar of `columns` columns that is filled to a part of the whole, to half a column; any part
/// above 0 shows. Returns the filled part and the rest.
pub fn bar(part: u64, whole: u64, columns: usize) -> (String, String) {
    let all = columns * 2;
    let filled = u128::from(part) * all as u128 / u128::from(whole.max(1));
    let filled = usize::try_from(filled).unwrap_or(all).min(all);
    let filled = filled.max(usize::from(part > 0 && all > 0));
    let mut bar = "━".repeat(filled / 2);
    bar += ["", "╸"].get(filled % 2).unwrap_or(&"");
    let rest = "─".repeat(columns - filled.div_ceil(2));
    (bar, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_five_columns_at_most() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.00k"),
            (12_345, "12.3k"),
            (999_999, "999k"),
            (1_234_567, "1.23M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text);
        }
        for (number, text) in [
            (1023, "1023"),
            (1024, "1.00K"),
            (1_048_575, "1023K"),
            (536_604_672, "511M"),
            (u64::MAX, "15.9E"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn times_have_hours_if_need_be() {
        assert_eq!(clock(0), "0:00");
        assert_eq!(clock(62_900_000), "1:02");
        assert_eq!(clock(3_602_000_000), "1:00:02");
    }

    #[test]
    fn bars_have_their_length_and_show_what_there_is() {
        for part in [0, 1, 50, 99, 100, 1000] {
            let (bar, rest) = bar(part, 100, 6);
            assert_eq!(bar.chars().count() + rest.chars().count(), 6, "{part}");
            assert_eq!(bar.is_empty(), part == 0, "{part}");
            assert_eq!(rest.is_empty(), part >= 99, "{part}");
        }
        assert_eq!(bar(1, 0, 0), (String::new(), String::new()));
        assert_eq!(percent(1, 0), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
