//! Whether the kernel's rooms, and the workspace's crates, import only what lies below them.
//!
//! The rooms, the crates and their order stand in one page of the book, which people read as well
//! ([`PAGE`]). What a file imports is read from the file ([`imports`]), what a crate does from Cargo.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::imports::{self, Import};
use super::source::read;
use super::table::{names, required_rows, unquote};
use super::types;
use crate::toolchain;
use crate::workspace;

/// The page with the tables of rooms and of crates, and the headings above them.
const PAGE: &str = "docs/src/architecture.md";
const ROOMS: &str = "## The rooms";
const CRATES: &str = "## The crates";

/// The heading in a room's `mod.rs` above the circles that are allowed in it.
const CIRCLES: &str = "# Circles";

/// How many circles there may be in all rooms together.
const MAX_CIRCLES: usize = 3;

/// How many lines a file may have: a file does not grow to avoid an import.
const MAX_LINES: usize = 500;

/// Prints every import that may not be. Returns whether there is none.
///
/// # Errors
///
/// If the page or a source can't be read, or says nothing of a room or a crate that is there.
pub fn are_in_order() -> Result<bool> {
    let page = read(&workspace::root().join(PAGE))?;
    let house = House::read(&workspace::root().join("src"))?;
    let mut wrong = house.check(&page)?;
    wrong.extend(check_crates(&page, &dependencies()?)?);
    for line in &wrong {
        writeln!(io::stderr(), "{line}")?;
    }
    Ok(wrong.is_empty())
}

/// What is wrong, in a line.
type Wrong = String;

/// One source file of the kernel.
struct Source {
    /// Its path from `src` on.
    path: String,
    /// Its module.
    module: Vec<String>,
    text: String,
}

impl Source {
    fn new(path: &str, text: String) -> Self {
        let bare = path.trim_end_matches(".rs");
        let bare = bare.strip_suffix("/mod").unwrap_or(bare);
        let module = match bare {
            "main" | "lib" => Vec::new(),
            _ => bare.split('/').map(Into::into).collect(),
        };
        Self {
            path: path.into(),
            module,
            text,
        }
    }

    /// Returns the room it lies in; the library's root stands among the rooms as if it were one. `None`: on
    /// top of all.
    fn room(&self) -> Option<&str> {
        match self.path.as_str() {
            "lib.rs" => Some("lib"),
            _ => self.module.first().map(String::as_str),
        }
    }
}

/// The kernel's sources.
struct House(Vec<Source>);

/// An import of one file by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: usize,
    to: usize,
    line: usize,
}

impl House {
    fn read(folder: &Path) -> Result<Self> {
        let mut sources = Vec::new();
        for path in workspace::files(folder, "rs")? {
            let shown = path.strip_prefix(folder)?.display().to_string();
            sources.push(Source::new(&shown, read(&path)?));
        }
        Ok(Self(sources))
    }

    /// Returns every import between files, each once, with its first line.
    fn edges(&self) -> Result<Vec<Edge>> {
        let mut edges = BTreeMap::new();
        for (from, source) in self.0.iter().enumerate() {
            let found = imports::of(&source.text, &source.module)
                .with_context(|| format!("src/{}", source.path))?;
            for Import { line, path } in found {
                let to = self.file_of(&path);
                if to != from {
                    edges.entry((from, to)).or_insert(line);
                }
            }
        }
        Ok((edges.into_iter())
            .map(|((from, to), line)| Edge { from, to, line })
            .collect())
    }

    /// Returns the file that a path leads to: that of its longest part that is a file's module.
    fn file_of(&self, path: &[String]) -> usize {
        let lengths = (0..=path.len()).rev();
        let mut files =
            lengths.filter_map(|length| self.0.iter().position(|to| to.module == path[..length]));
        files.next().unwrap_or(0)
    }

    fn check(&self, page: &str) -> Result<Vec<Wrong>> {
        let rooms = names(&required_rows(PAGE, page, ROOMS)?);
        let edges = self.edges()?;
        let mut wrong = Vec::new();
        for source in &self.0 {
            if let Some(room) = source.room()
                && !rooms.iter().any(|name| name == room)
            {
                bail!(
                    "src/{} lies in a room that {PAGE} does not have: `{room}`",
                    source.path
                );
            }
        }
        let floor = |file: usize| match self.0[file].room() {
            Some(room) => rooms.iter().position(|name| name == room).unwrap_or(0),
            None => rooms.len(),
        };
        for &Edge { from, to, line } in &edges {
            let (importer, imported) = (&self.0[from], &self.0[to]);
            if floor(to) > floor(from) {
                wrong.push(format!(
                    "src/{}:{line}: `{}` imports `{}`, which stands above it (src/{}): move what it \
                     needs down, or register it from above (src/smp/hooks.rs)",
                    importer.path,
                    importer.room().unwrap_or("main"),
                    imported.room().unwrap_or("main"),
                    imported.path,
                ));
            }
        }
        wrong.extend(self.check_circles(&edges)?);
        wrong.extend(self.check_lengths());
        wrong.extend(self.check_types(&rooms)?);
        Ok(wrong)
    }

    /// Finds the type names that a room defines twice.
    fn check_types(&self, rooms: &[String]) -> Result<Vec<Wrong>> {
        let mut wrong = Vec::new();
        for room in rooms {
            let sources = (self.0.iter()).filter(|source| source.room() == Some(room));
            let files: Vec<_> = sources
                .map(|source| (format!("src/{}", source.path), source.text.as_str()))
                .collect();
            wrong.extend(types::defined_twice(&files)?);
        }
        Ok(wrong)
    }

    /// Finds the files that are too long.
    fn check_lengths(&self) -> impl Iterator<Item = Wrong> {
        let lengths = (self.0.iter()).map(|source| (source, source.text.lines().count()));
        lengths
            .filter(|&(_, lines)| lines > MAX_LINES)
            .map(|(source, lines)| {
                format!(
                    "src/{} has {lines} lines, {MAX_LINES} may be: split it",
                    source.path
                )
            })
    }

    /// Compares the circles within rooms with those that the rooms list.
    fn check_circles(&self, edges: &[Edge]) -> Result<Vec<Wrong>> {
        let mut listed = BTreeMap::new();
        for source in &self.0 {
            if source.module.len() == 1 && source.path.ends_with("mod.rs") {
                for circle in circles_in(&source.text) {
                    let files: BTreeSet<_> = (circle.iter())
                        .map(|name| format!("{}/{name}.rs", source.module[0]))
                        .collect();
                    listed.insert(files, source.path.clone());
                }
            }
        }
        let mut wrong = Vec::new();
        if listed.len() > MAX_CIRCLES {
            wrong.push(format!(
                "{} circles are listed in rooms' mod.rs, {MAX_CIRCLES} may be",
                listed.len()
            ));
        }
        for circle in self.circles(edges) {
            let files: BTreeSet<_> = circle
                .iter()
                .map(|&file| self.0[file].path.clone())
                .collect();
            if listed.remove(&files).is_some() {
                continue;
            }
            let lines: Vec<_> = (edges.iter())
                .filter(|edge| circle.contains(&edge.from) && circle.contains(&edge.to))
                .map(|edge| {
                    let (from, to) = (&self.0[edge.from].path, &self.0[edge.to].path);
                    format!("\n    src/{from}:{}: imports src/{to}", edge.line)
                })
                .collect();
            wrong.push(format!(
                "files import each other in a circle:{}",
                lines.concat()
            ));
        }
        for (files, room) in listed {
            let files: Vec<_> = files.into_iter().collect();
            wrong.push(format!(
                "src/{room} lists a circle that is none any more: {}",
                files.join(", ")
            ));
        }
        Ok(wrong)
    }

    /// Returns the largest sets of files of one room each of which imports every other one, by way of
    /// others of its room.
    fn circles(&self, edges: &[Edge]) -> Vec<BTreeSet<usize>> {
        let within = |edge: &&Edge| self.0[edge.from].room() == self.0[edge.to].room();
        let reach = |from: usize| {
            let mut reached = BTreeSet::new();
            let mut left = vec![from];
            while let Some(file) = left.pop() {
                for edge in edges.iter().filter(within).filter(|edge| edge.from == file) {
                    if reached.insert(edge.to) {
                        left.push(edge.to);
                    }
                }
            }
            reached
        };
        let reached: Vec<_> = (0..self.0.len()).map(reach).collect();
        let circle_of = |file: usize| {
            let others = reached[file].iter().copied();
            others
                .filter(|&other| reached[other].contains(&file))
                .collect()
        };
        let circles: BTreeSet<BTreeSet<usize>> = (0..self.0.len()).map(circle_of).collect();
        circles
            .into_iter()
            .filter(|circle| circle.len() > 1)
            .collect()
    }
}

/// Returns the names of the circles that a room's `mod.rs` lists, each with a reason.
fn circles_in(text: &str) -> Vec<Vec<String>> {
    let lines = text
        .lines()
        .map(|line| line.trim_start_matches("//!").trim());
    let listed = lines.skip_while(|line| *line != CIRCLES).skip(1);
    listed
        .take_while(|line| !line.starts_with('#') && !line.starts_with("pub "))
        .filter_map(|line| line.strip_prefix("- ")?.split_once(": "))
        .filter(|(_, reason)| !reason.is_empty())
        .map(|(names, _)| names.split(", ").map(unquote).collect())
        .collect()
}

/// Returns the dependencies of each crate of the workspace on others of it, those for tests alone left out.
fn dependencies() -> Result<Vec<(String, Vec<String>)>> {
    let mut metadata = toolchain::host_cargo();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = metadata.output().context("cannot start cargo")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let packages = list(&metadata["packages"]);
    let own: BTreeSet<_> = packages.iter().map(name).collect();
    let of = |package: &Value| {
        let dependencies = list(&package["dependencies"]);
        let used = dependencies.iter().filter(|one| one["kind"].is_null());
        used.map(name).filter(|name| own.contains(name)).collect()
    };
    Ok((packages.iter())
        .map(|package| (name(package), of(package)))
        .collect())
}

/// Checks the crates' dependencies against their order.
fn check_crates(page: &str, dependencies: &[(String, Vec<String>)]) -> Result<Vec<Wrong>> {
    let crates = names(&required_rows(PAGE, page, CRATES)?);
    let floor = |name: &str| {
        let found = crates.iter().position(|other| other == name);
        found.with_context(|| format!("{PAGE} does not have the crate `{name}`"))
    };
    let mut wrong = Vec::new();
    for (from, all) in dependencies {
        for to in all {
            if floor(to)? >= floor(from)? {
                wrong.push(format!(
                    "crate `{from}` depends on crate `{to}`, which does not stand below it in {PAGE}"
                ));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_OF_TWO: &str = "## The rooms\n\n| Room | What |\n|---|---|\n| `low` | x |\n| `high` | y |\n\n\
                               ## The crates\n\n| `base` | x |\n| `top` | y |\n";

    fn house(files: &[(&str, &str)]) -> House {
        let main = ("main.rs", "mod low; mod high; use crate::high::a;");
        let rooms = [("high/mod.rs", "pub mod a;"), ("low/mod.rs", "pub mod a;")];
        let given = |path: &str| files.iter().any(|(other, _)| *other == path);
        let missing = [main].into_iter().chain(rooms);
        let all = (files.iter().copied()).chain(missing.filter(|(path, _)| !given(path)));
        House(
            all.map(|(path, text)| Source::new(path, text.into()))
                .collect(),
        )
    }

    fn wrong(page: &str, files: &[(&str, &str)]) -> Vec<String> {
        house(files).check(page).unwrap()
    }

    #[test]
    fn an_import_of_a_higher_room_is_named_with_both_sides_in_each_form() {
        for import in [
            "use crate::high::a;",
            "use crate::{low::b, high::{a::f, c}};",
            "fn f() { super::super::high::a::f(); }",
            "fn f() { log::info!(\"{}\", crate::high::a::f()); }",
            "use crate::high as h; static A: h::a::T = 0;",
        ] {
            let found = wrong(PAGE_OF_TWO, &[("low/a.rs", import), ("high/a.rs", "")]);
            assert!(!found.is_empty(), "{import}");
            assert!(
                found[0].starts_with("src/low/a.rs:1: `low` imports `high`"),
                "{import}: {found:?}"
            );
        }
    }

    #[test]
    fn an_import_of_the_story_is_wrong() {
        let found = wrong(PAGE_OF_TWO, &[("high/a.rs", "\nuse crate::Plan;")]);
        assert!(
            found[0].starts_with("src/high/a.rs:2: `high` imports `main`"),
            "{found:?}"
        );
    }

    #[test]
    fn imports_of_lower_rooms_and_of_the_same_are_right() {
        let files = [
            ("high/a.rs", "use super::b; use crate::low::a;"),
            ("high/b.rs", "use crate::low;"),
            ("low/a.rs", "use core::fmt;"),
        ];
        assert!(wrong(PAGE_OF_TWO, &files).is_empty());
    }

    #[test]
    fn a_room_that_the_page_does_not_have_is_an_error() {
        assert!(house(&[("cellar/a.rs", "")]).check(PAGE_OF_TWO).is_err());
    }

    #[test]
    fn a_circle_in_a_room_is_wrong_unless_it_is_listed_and_there() {
        let circle = [
            ("low/a.rs", "use super::b;"),
            ("low/b.rs", "fn f() { super::c::f(); }"),
            ("low/c.rs", "use crate::low::a::f;"),
        ];
        let found = wrong(PAGE_OF_TWO, &circle);
        assert_eq!(found.len(), 1);
        for line in ["src/low/a.rs:1", "src/low/b.rs:1", "src/low/c.rs:1"] {
            assert!(found[0].contains(line), "{found:?}");
        }
        let list = (
            "low/mod.rs",
            "//! Low.\n//!\n//! # Circles\n//!\n//! - `a`, `b`, `c`: a reason\n\npub mod a;",
        );
        assert!(wrong(PAGE_OF_TWO, &[&circle[..], &[list]].concat()).is_empty());
        let found = wrong(PAGE_OF_TWO, &[list, circle[0], circle[1], ("low/c.rs", "")]);
        assert!(
            found[0].contains("lists a circle that is none"),
            "{found:?}"
        );
        let unexplained = ("low/mod.rs", "//! # Circles\n//!\n//! - `a`, `b`, `c`: \n");
        assert_eq!(
            wrong(PAGE_OF_TWO, &[&circle[..], &[unexplained]].concat()).len(),
            1
        );
    }

    #[test]
    fn more_circles_than_three_are_wrong() {
        let names = ["b", "c", "d", "e"];
        let mut files = Vec::new();
        let mut list = String::from("//! # Circles\n");
        for name in names {
            files.push((
                format!("low/{name}.rs"),
                format!("use super::{name}{name};"),
            ));
            files.push((
                format!("low/{name}{name}.rs"),
                format!("use super::{name};"),
            ));
            list += &format!("//! - `{name}`, `{name}{name}`: a reason\n");
        }
        files.push(("low/mod.rs".into(), list));
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        let found = wrong(PAGE_OF_TWO, &files);
        assert_eq!(found, ["4 circles are listed in rooms' mod.rs, 3 may be"]);
    }

    #[test]
    fn a_file_of_more_than_500_lines_is_wrong() {
        let lines = |count: usize| "\n".repeat(count);
        assert!(wrong(PAGE_OF_TWO, &[("low/a.rs", &lines(500))]).is_empty());
        let found = wrong(PAGE_OF_TWO, &[("low/a.rs", &lines(501))]);
        assert!(
            found[0].starts_with("src/low/a.rs has 501 lines"),
            "{found:?}"
        );
    }

    #[test]
    fn a_type_name_means_one_thing_in_a_room_and_may_mean_another_in_the_next() {
        let low = ("low/a.rs", "struct Entry;");
        let found = wrong(PAGE_OF_TWO, &[low, ("low/b/c.rs", "\ntrait Entry {}")]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].starts_with("src/low/b/c.rs:2: `Entry` is defined in src/low/a.rs:1"),
            "{found:?}"
        );
        assert!(wrong(PAGE_OF_TWO, &[low, ("high/a.rs", "struct Entry;")]).is_empty());
    }

    #[test]
    fn a_crate_that_depends_on_a_higher_one_is_named_with_both_sides() {
        let depends = |from: &str, to: &str| (from.to_owned(), vec![to.to_owned()]);
        assert!(
            check_crates(PAGE_OF_TWO, &[depends("top", "base")])
                .unwrap()
                .is_empty()
        );
        let wrong = check_crates(PAGE_OF_TWO, &[depends("base", "top")]).unwrap();
        assert!(
            wrong[0].starts_with("crate `base` depends on crate `top`"),
            "{wrong:?}"
        );
        assert!(check_crates(PAGE_OF_TWO, &[depends("top", "unknown")]).is_err());
    }

    #[test]
    fn the_house_is_in_order() {
        assert!(are_in_order().unwrap());
    }
}
