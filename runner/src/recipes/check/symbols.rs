//! Checks that a kernel without the self-test has none of it, by the symbols of one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSymbol};

use crate::arguments::Build;
use crate::images;
use crate::workspace;

/// Parts of the names of what only the self-test uses: its modules, and the crate of its monitor.
const SELFTEST: [&str; 7] = [
    "selftest::",
    "failpoint::",
    "arch::step::",
    "arch::probe::",
    "muster_probe_",
    "muster_monitor::",
    "serial::draw",
];

/// Prints every symbol of the self-test in the least client of the kernel. Returns whether there is none.
///
/// # Errors
///
/// If a kernel does not build.
pub fn are_in_order() -> Result<bool> {
    let client = of(&images::build_client()?.kernel)?;
    let selftest = of(&images::build(Build::Plain)?.kernel)?;
    let mut wrong: Vec<_> = (client.iter())
        .filter(|name| SELFTEST.iter().any(|part| name.contains(part)))
        .map(|name| {
            format!(
                "a kernel without the feature `selftest` has `{name}`: cut it, or have it \
                 `#[cfg(feature = \"selftest\")]`"
            )
        })
        .collect();
    // If one of them has another name by now, nothing was looked for.
    let unknown =
        (SELFTEST.iter()).filter(|part| !selftest.iter().any(|name| name.contains(**part)));
    wrong.extend(unknown.map(|part| {
        format!(
            "the self-test has no symbol with `{part}` in it: correct the list in {}",
            file!()
        )
    }));
    for line in &wrong {
        writeln!(io::stderr(), "{line}")?;
    }
    Ok(wrong.is_empty())
}

/// Returns the names of an image's symbols, as Rust has them.
fn of(image: &Path) -> Result<BTreeSet<String>> {
    let shown = workspace::shown(image);
    let bytes = fs::read(image).with_context(|| format!("cannot read {shown}"))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{shown} is no ELF file"))?;
    let names = file.symbols().filter_map(|symbol| symbol.name().ok());
    Ok(names
        .map(|name| addr2line::demangle_auto(name.into(), None).into_owned())
        .collect())
}
