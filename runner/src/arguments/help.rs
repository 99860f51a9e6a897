//! The list of all options, as `just arguments` shows it.

use muster_arguments::{BENCH, Form, KERNEL, LOADER, OptionInfo, RUNNER, SELFTEST};

use super::run::{DEFAULT_CPUS, MAX_CPUS};

/// Where an option's meaning and form begin in the help.
const FORM_COLUMN: usize = 21;

/// Adds an option's name and meaning to the help, and below them its form.
fn explain(option: &OptionInfo, text: &mut String) {
    let name = match option.form {
        Form::Flag => option.name.into(),
        _ => format!("{}=", option.name),
    };
    *text += &format!("  {name:<18} {}\n", option.meaning);
    let mut line = String::new();
    for word in option.form.to_string().split_inclusive([' ', '|']) {
        if FORM_COLUMN + line.len() + word.trim_end().len() > 80 {
            *text += &format!("{:FORM_COLUMN$}{}\n", "", line.trim_end());
            line.clear();
        }
        line += word;
    }
    *text += &format!("{:FORM_COLUMN$}{}\n", "", line.trim_end());
}

/// Lists every option, with its form and meaning, in lines of at most 80 columns.
pub fn help() -> String {
    let mut text =
        format!("arguments: [CPUS] [key=value…]\n  CPUS: 1 to {MAX_CPUS} ({DEFAULT_CPUS})\n");
    for (title, options) in [
        ("of the machine and its run:", RUNNER),
        ("of the kernel:", KERNEL),
        ("of the self-test:", SELFTEST),
        ("of the benchmarks:", BENCH),
        ("of the loader, to play a bad one:", LOADER),
    ] {
        text += title;
        text.push('\n');
        options.iter().for_each(|option| explain(option, &mut text));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_key_in_80_columns() {
        let help = help();
        for option in [RUNNER, KERNEL, SELFTEST, BENCH, LOADER].concat() {
            let name = option.name;
            let begins = |line: &str| line.starts_with(&format!("  {name}"));
            assert!(help.lines().any(begins), "{name}");
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
