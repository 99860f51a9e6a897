//! The types that a source file defines: a type name means one thing in a room.

use std::collections::BTreeMap;

use anyhow::Result;
use proc_macro2::{TokenStream, TokenTree};

use super::source;

/// The keywords before the name of a type.
const KEYWORDS: [&str; 5] = ["struct", "enum", "union", "trait", "type"];

/// A type that a file defines, and the line of its name, from 1 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    pub line: usize,
}

/// Returns the types that a file defines for others: not those within functions, nor the types that
/// a trait or its implementation associates, which have the trait's names.
///
/// # Errors
///
/// If the source is no Rust.
pub fn of(source: &str) -> Result<Vec<Definition>> {
    let mut definitions = Vec::new();
    scan(source::tokens(source)?, &mut definitions);
    Ok(definitions)
}

/// Reads the items of a module, and of the modules in it. All other items' braces are left out.
fn scan(tokens: TokenStream, definitions: &mut Vec<Definition>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Ident(keyword) = token else {
            continue;
        };
        let next = tokens.get(at + 1);
        if keyword == "mod"
            && let Some(TokenTree::Group(group)) = tokens.get(at + 2)
        {
            scan(group.stream(), definitions);
        } else if KEYWORDS.iter().any(|known| keyword == known)
            && let Some(TokenTree::Ident(name)) = next
        {
            definitions.push(Definition {
                name: name.to_string(),
                line: name.span().start().line,
            });
        }
    }
}

/// Finds the names that more than one of these files defines, or one of them twice. Returns a line for
/// each but the first. A file is its path, as it is shown, and its text.
///
/// # Errors
///
/// If a source is no Rust.
pub fn defined_twice(files: &[(String, &str)]) -> Result<Vec<String>> {
    let mut known = BTreeMap::<String, String>::new();
    let mut wrong = Vec::new();
    for (path, text) in files {
        for Definition { name, line } in of(text).map_err(|error| error.context(path.clone()))? {
            let here = format!("{path}:{line}");
            match known.get(&name) {
                Some(first) => wrong.push(format!(
                    "{here}: `{name}` is defined in {first} as well: a type name means one thing in a \
                     room, so rename one of the two"
                )),
                None => {
                    known.insert(name, here);
                }
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(source: &str) -> Vec<String> {
        (of(source).unwrap().into_iter())
            .map(|definition| definition.name)
            .collect()
    }

    #[test]
    fn types_are_found_in_each_form_and_in_modules_of_a_file() {
        let source = "pub struct A(u8); pub(crate) enum B { X } union C { x: u8 }\nunsafe trait D {}\n\
                      pub type E<'a> = &'a u8; mod inner { struct F; }";
        assert_eq!(names(source), ["A", "B", "C", "D", "E", "F"]);
    }

    #[test]
    fn helpers_of_a_function_and_associated_types_are_not_found() {
        let source = "fn f() { struct A; } impl T for U { type A = u8; fn g() { enum B {} } }\n\
                      trait V { type A; }";
        assert_eq!(names(source), ["V"]);
    }

    #[test]
    fn a_name_that_two_files_define_is_named_with_both() {
        let low = "struct Entry;\nstruct Other;";
        let files = [
            ("src/low/a.rs".into(), low),
            ("src/low/b.rs".into(), "\nenum Entry {}"),
        ];
        let wrong = defined_twice(&files).unwrap();
        assert_eq!(wrong.len(), 1);
        assert!(
            wrong[0].starts_with("src/low/b.rs:2: `Entry` is defined in src/low/a.rs:1 as well"),
            "{wrong:?}"
        );
    }
}
