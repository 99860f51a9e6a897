//! The imports of a source file, read from its tokens: so it does not matter whether a path stands in a
//! `use`, in an expression, in a type or in a macro's arguments.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use proc_macro2::{Delimiter, TokenTree};

use super::source;

/// The kernel's library, and the module by which its self-test reaches the rooms.
const LIBRARY: &str = "muster";
const INTERNALS: &str = "internals";

/// A path to something in the kernel, from its root: the names after `crate`, or, in the self-test, which
/// is a client, after `muster` and `muster::internals`.
pub type CratePath = Vec<String>;

/// A path, and the line on which it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// From 1 on.
    pub line: usize,
    /// What is imported.
    pub path: CratePath,
}

/// Returns all paths into the kernel that a file of its has whose module is `module`: those that begin with
/// `crate`, `super`, `self` or `muster`, and those that begin with a name that such a path has imported, or with
/// a module that the file declares. Declaring a module is no import.
///
/// # Errors
///
/// If the source is no Rust.
pub fn of(source: &str, module: &[String]) -> Result<BTreeSet<Import>> {
    let tokens: Vec<_> = source::tokens(source)?.into_iter().collect();
    let mut file = File::default();
    // First the names, which may be used before the line that imports them.
    file.scan(&tokens, module, Pass::Names);
    file.scan(&tokens, module, Pass::Paths);
    Ok(file.imports)
}

/// What a scan looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Names that stand for a path into the kernel.
    Names,
    /// All paths.
    Paths,
}

#[derive(Default)]
struct File {
    /// By name, what was imported under it.
    names: BTreeMap<String, CratePath>,
    imports: BTreeSet<Import>,
}

impl File {
    fn scan(&mut self, tokens: &[TokenTree], module: &[String], pass: Pass) {
        let mut at = 0;
        while at < tokens.len() {
            let TokenTree::Ident(ident) = &tokens[at] else {
                if let TokenTree::Group(group) = &tokens[at] {
                    self.scan(
                        &group.stream().into_iter().collect::<Vec<_>>(),
                        module,
                        pass,
                    );
                }
                at += 1;
                continue;
            };
            let name = ident.to_string();
            if name == "mod"
                && let Some(TokenTree::Ident(child)) = tokens.get(at + 1)
            {
                let mut inner = module.to_vec();
                inner.push(child.to_string());
                if let Some(TokenTree::Group(body)) = tokens.get(at + 2) {
                    self.scan(&body.stream().into_iter().collect::<Vec<_>>(), &inner, pass);
                    at += 1;
                } else if pass == Pass::Names {
                    self.names.insert(child.to_string(), inner);
                }
                at += 2;
                continue;
            }
            let is_use = name == "use";
            let start = if is_use { at + 1 } else { at };
            // What follows on a dot is a field or a method; on a colon pair, an external crate's name, or
            // the rest of a path that began with something else.
            let follows = at > 0 && (is_punct(&tokens[at - 1], '.') || is_separator(tokens, at));
            let starts_path = is_use || is_separator(tokens, start + 3);
            if follows || !starts_path {
                at += 1;
                continue;
            }
            at = self
                .tree(tokens, start, &Prefix::Start(module), is_use, pass)
                .max(at + 1);
            while is_use && tokens.get(at).is_some_and(|token| !is_punct(token, ';')) {
                at += 1;
            }
        }
    }

    /// Reads one path, or tree of paths, from `at` on, and returns where it ends.
    fn tree(
        &mut self,
        tokens: &[TokenTree],
        mut at: usize,
        prefix: &Prefix<'_>,
        is_use: bool,
        pass: Pass,
    ) -> usize {
        let mut path = match prefix {
            Prefix::Start(_) => None,
            Prefix::Path(path) => Some(path.clone()),
        };
        let mut line = 0;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(ident)) => {
                    let name = ident.to_string();
                    if line == 0 {
                        line = ident.span().start().line;
                    }
                    path = Some(match (path, prefix) {
                        (Some(mut path), _) => {
                            match name.as_str() {
                                "super" => {
                                    path.pop();
                                }
                                "self" => {}
                                _ => path.push(name),
                            }
                            path
                        }
                        (None, Prefix::Start(module)) => match self.start(&name, module) {
                            Some(path) => path,
                            None => return at + 1,
                        },
                        (None, Prefix::Path(_)) => return at + 1,
                    });
                    at += 1;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    let inner_prefix = match (&path, prefix) {
                        (Some(path), _) => Prefix::Path(path.clone()),
                        (None, Prefix::Start(module)) => Prefix::Start(module),
                        (None, Prefix::Path(path)) => Prefix::Path(path.clone()),
                    };
                    for part in inner.split(|token| is_punct(token, ',')) {
                        if !part.is_empty() {
                            self.tree(part, 0, &inner_prefix, is_use, pass);
                        }
                    }
                    return at + 1;
                }
                // `*` of a use, `<` of a turbofish: the path is over.
                _ => break,
            }
            if !is_separator(tokens, at + 2) {
                break;
            }
            at += 2;
        }
        let Some(mut path) = path else { return at };
        let name = path.last().cloned();
        if path.first().is_some_and(|name| name == INTERNALS) {
            path.remove(0);
        }
        match pass {
            Pass::Names if is_use => {
                let renamed = match (tokens.get(at), tokens.get(at + 1)) {
                    (Some(TokenTree::Ident(word)), Some(TokenTree::Ident(name)))
                        if word == "as" =>
                    {
                        Some(name.to_string())
                    }
                    _ => None,
                };
                if let Some(name) = renamed.or(name) {
                    self.names.entry(name).or_insert(path);
                }
            }
            Pass::Names => {}
            Pass::Paths => {
                self.imports.insert(Import { line, path });
            }
        }
        at
    }

    /// Returns what the first name of a path stands for, if it leads into the kernel.
    fn start(&self, name: &str, module: &[String]) -> Option<CratePath> {
        match name {
            "crate" | LIBRARY => Some(Vec::new()),
            "self" => Some(module.to_vec()),
            "super" => Some(module.split_last()?.1.to_vec()),
            _ => self.names.get(name).cloned(),
        }
    }
}

/// What the names of a tree follow on.
enum Prefix<'a> {
    /// Nothing: the first name decides, seen from this module.
    Start(&'a [String]),
    /// A path so far.
    Path(CratePath),
}

fn is_punct(token: &TokenTree, character: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// Returns whether the two tokens before `at` are a `::`.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    at.checked_sub(2)
        .and_then(|start| tokens.get(start..at))
        .is_some_and(|pair| pair.iter().all(|token| is_punct(token, ':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the paths of a source in the module `mm::heap`, each with its line.
    fn paths(source: &str) -> Vec<(usize, String)> {
        let imports = of(source, &["mm".into(), "heap".into()]).unwrap();
        let shown = imports.into_iter();
        shown
            .map(|import| (import.line, import.path.join("::")))
            .collect()
    }

    #[test]
    fn paths_of_use_are_found_in_each_form() {
        let found = |source: &str| {
            let paths = paths(source);
            paths.into_iter().map(|(_, path)| path).collect::<Vec<_>>()
        };
        assert_eq!(found("use crate::smp::cpu;"), ["smp::cpu"]);
        assert_eq!(found("pub use crate::smp::cpu as c;"), ["smp::cpu"]);
        assert_eq!(found("pub(crate) use crate::smp::*;"), ["smp"]);
        assert_eq!(found("use super::shared::get;"), ["mm::shared::get"]);
        assert_eq!(found("use self::list::List;"), ["mm::heap::list::List"]);
        assert_eq!(found("use super::super::smp::cpu;"), ["smp::cpu"]);
        assert_eq!(
            found("use crate::{smp::{cpu::{self, Block}, call}, arch};"),
            ["arch", "smp::call", "smp::cpu", "smp::cpu::Block"]
        );
        assert_eq!(found("use {crate::smp::cpu, core::fmt};"), ["smp::cpu"]);
        assert_eq!(found("fn f() { use crate::smp::cpu; }"), ["smp::cpu"]);
        assert!(found("use core::fmt; use ::smp::cpu; use smp::cpu;").is_empty());
        assert_eq!(
            found("use super::tlb; use x86_64::{tlb::flush_all, fmt};"),
            ["mm::tlb"]
        );
    }

    #[test]
    fn paths_outside_of_use_are_found_with_their_lines() {
        assert_eq!(
            paths("fn f() {\n    crate::smp::call::serve();\n}"),
            [(2, "smp::call::serve".into())]
        );
        assert_eq!(
            paths("static A: Option<crate::smp::cpu::Block> = None;"),
            [(1, "smp::cpu::Block".into())]
        );
        assert_eq!(
            paths("impl crate::smp::lock::Level for <u8 as super::tlb::T>::U {}"),
            [(1, "mm::tlb::T".into()), (1, "smp::lock::Level".into())]
        );
    }

    #[test]
    fn paths_in_the_arguments_of_macros_are_found() {
        assert_eq!(
            paths("fn f() {\n    log::info!(\"{}\",\n        crate::smp::jobs::size());\n}"),
            [(3, "smp::jobs::size".into())]
        );
        assert_eq!(
            paths("macro_rules! m { () => { $crate::smp::cpu::all() } }"),
            [(1, "smp::cpu::all".into())]
        );
    }

    #[test]
    fn names_that_were_imported_are_followed() {
        assert_eq!(
            paths("fn f() { smp::cpu::all(); }\nuse crate::smp;"),
            [(1, "smp::cpu::all".into()), (2, "smp".into())]
        );
        assert_eq!(
            paths("use crate::smp as s;\nfn f() { assert!(s::cpu::is()); }"),
            [(1, "smp".into()), (2, "smp::cpu::is".into())]
        );
        assert_eq!(
            paths("mod list;\nfn f() { list::take(); }"),
            [(2, "mm::heap::list::take".into())]
        );
    }

    #[test]
    fn paths_of_a_client_lead_into_the_rooms() {
        assert_eq!(
            paths("use muster::internals::smp::cpu;\nfn f() { cpu::all(); muster::log::info!(); }"),
            [
                (1, "smp::cpu".into()),
                (2, "log::info".into()),
                (2, "smp::cpu::all".into())
            ]
        );
        assert_eq!(
            paths("use muster::{internals::{mm, smp as s}, memory};\nfn f() { s::cpu::all(); }"),
            [
                (1, "memory".into()),
                (1, "mm".into()),
                (1, "smp".into()),
                (2, "smp::cpu::all".into())
            ]
        );
        assert_eq!(
            paths("use muster::internals;\nfn f() { internals::run(); }"),
            [(1, "".into()), (2, "run".into())]
        );
    }

    #[test]
    fn modules_in_a_file_have_its_module_as_super() {
        assert_eq!(
            paths("mod tests {\n    use super::super::tlb;\n    use super::*;\n}"),
            [(2, "mm::tlb".into()), (3, "mm::heap".into())]
        );
    }

    #[test]
    fn what_only_looks_like_an_import_is_none() {
        assert!(paths("/// See [`x`](crate::smp::cpu).\npub(crate) fn f() {}").is_empty());
        assert!(paths("fn f() { let a = \"crate::smp::cpu\"; other::crate_(); }").is_empty());
        assert!(paths("pub(super) struct S; impl S { fn f(&self) { self.smp(); } }").is_empty());
    }
}
