//! Whether names and texts use the field's terms.
//!
//! The words that are not to be used, with what to use instead, stand in one page of the book, which
//! people read as well ([`PAGE`]).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use proc_macro2::TokenTree;

use super::source::{read, tokens};
use super::table::{names, required_rows, rows, unquote};
use crate::workspace;

/// The page with the tables.
const PAGE: &str = "docs/src/words.md";

/// The headings above the tables.
const FOLDERS: &str = "## Where they hold";
const IDENTIFIERS: &str = "## Identifiers";
const PHRASES: &str = "## Phrases";
const EXCEPTIONS: &str = "## Exceptions";

/// The extension of pages, which have phrases and no identifiers.
const PROSE: &str = "md";

/// The number of words from which an identifier is a sentence, as tests' names are.
const SENTENCE: usize = 5;

/// Prints every word that is not to be used, and every exception that is not needed. Returns whether
/// there is none.
///
/// # Errors
///
/// If the page or a source can't be read.
pub fn are_right() -> Result<bool> {
    let page = Page::read(&read(&workspace::root().join(PAGE))?)?;
    let mut sources = Vec::new();
    for folder in &page.folders {
        for extension in ["rs", PROSE] {
            let paths = workspace::files(&workspace::root().join(folder), extension);
            for path in paths.with_context(|| format!("{PAGE} names the folder `{folder}`"))? {
                let shown = path.strip_prefix(workspace::root())?.display().to_string();
                if shown != PAGE {
                    sources.push((shown, read(&path)?));
                }
            }
        }
    }
    let wrong = page.check(&sources)?;
    for line in &wrong {
        writeln!(io::stderr(), "{line}")?;
    }
    Ok(wrong.is_empty())
}

/// A word or phrase that is not to be used.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    /// As it stands on the page.
    text: String,
    /// What to use instead.
    instead: String,
}

/// An exception, by file and word.
type Exception = (String, String);

/// What the page says.
#[derive(Debug)]
struct Page {
    folders: Vec<String>,
    identifiers: Vec<Word>,
    phrases: Vec<Word>,
    exceptions: Vec<Exception>,
}

/// A word that was found where it is not to be used.
struct Hit<'a> {
    line: usize,
    found: String,
    word: &'a Word,
}

impl Page {
    fn read(text: &str) -> Result<Self> {
        let words = |heading| -> Result<Vec<Word>> {
            let row = |cells: Vec<String>| match cells.as_slice() {
                [word, instead] if !instead.is_empty() => Ok(Word {
                    text: unquote(word),
                    instead: instead.clone(),
                }),
                _ => bail!("{PAGE}: a row under `{heading}` needs a word and another: {cells:?}"),
            };
            let rows = required_rows(PAGE, text, heading)?;
            rows.into_iter().map(row).collect()
        };
        let exception = |cells: Vec<String>| match cells.as_slice() {
            [file, word, why] if !why.is_empty() => Ok((unquote(file), unquote(word))),
            _ => bail!("{PAGE}: an exception needs a file, a word and a reason: {cells:?}"),
        };
        Ok(Self {
            folders: names(&required_rows(PAGE, text, FOLDERS)?),
            identifiers: words(IDENTIFIERS)?,
            phrases: words(PHRASES)?,
            exceptions: (rows(text, EXCEPTIONS).into_iter())
                .map(exception)
                .collect::<Result<_>>()?,
        })
    }

    /// Returns what is wrong with the sources, each of which is a path and a text.
    fn check(&self, sources: &[(String, String)]) -> Result<Vec<String>> {
        let mut unused: BTreeSet<&Exception> = self.exceptions.iter().collect();
        let mut wrong = Vec::new();
        for (path, text) in sources {
            let mut hits = match Path::new(path).extension() {
                Some(extension) if extension == PROSE => Vec::new(),
                _ => identifiers(text, &self.identifiers).with_context(|| path.clone())?,
            };
            hits.extend(phrases(text, &self.phrases));
            hits.sort_by_key(|hit| hit.line);
            for Hit { line, found, word } in hits {
                let exception = (path.clone(), word.text.clone());
                if self.exceptions.contains(&exception) {
                    unused.remove(&exception);
                } else {
                    wrong.push(format!(
                        "{path}:{line}: `{found}` is not to be used: write {} ({PAGE})",
                        word.instead
                    ));
                }
            }
        }
        wrong.extend(unused.into_iter().map(|(path, word)| {
            format!("{PAGE}: the exception of `{word}` in {path} is not needed: remove the row")
        }));
        Ok(wrong)
    }
}

/// Finds words in the identifiers of a source. Comments, and texts, are no identifiers.
fn identifiers<'a>(source: &str, words: &'a [Word]) -> Result<Vec<Hit<'a>>> {
    let mut hits = Vec::new();
    let mut left = vec![tokens(source)?];
    while let Some(tokens) = left.pop() {
        for token in tokens {
            match token {
                TokenTree::Group(group) => left.push(group.stream()),
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    let line = ident.span().start().line;
                    hits.extend((words.iter().filter(|word| is_in(&word.text, &name))).map(
                        |word| Hit {
                            line,
                            found: name.clone(),
                            word,
                        },
                    ));
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
    Ok(hits)
}

/// Returns whether an identifier has a word: see the page.
fn is_in(word: &str, identifier: &str) -> bool {
    if word.starts_with(|first: char| first.is_uppercase()) {
        return word == identifier;
    }
    let parts = parts(identifier);
    if parts.len() >= SENTENCE {
        return false;
    }
    match word.strip_suffix('_') {
        Some(start) => parts.len() > 1 && parts[0] == start,
        None => parts.iter().any(|part| part == word),
    }
}

/// Splits an identifier into its words, all in small letters: at low lines, and before capitals that
/// follow small letters.
fn parts(identifier: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut was_small = false;
    for letter in identifier.chars() {
        if letter == '_' || letter.is_uppercase() && was_small {
            parts.push(String::new());
        }
        was_small = letter.is_lowercase() || letter.is_ascii_digit();
        if let Some(part) = parts.last_mut().filter(|_| letter != '_') {
            part.extend(letter.to_lowercase());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Finds phrases in a source, in any case, and also where a line ends in between.
fn phrases<'a>(source: &str, phrases: &'a [Word]) -> Vec<Hit<'a>> {
    let words: Vec<(usize, String)> = (1..)
        .zip(source.lines())
        .flat_map(|(line, text)| split(text).map(move |word| (line, word)))
        .collect();
    let mut hits = Vec::new();
    for phrase in phrases {
        let wanted: Vec<_> = split(&phrase.text).collect();
        let found = words.windows(wanted.len().max(1)).filter(|window| {
            let window = window.iter().map(|(_, word)| word);
            window.eq(&wanted)
        });
        hits.extend(found.filter_map(|window| {
            Some(Hit {
                line: window.first()?.0,
                found: phrase.text.clone(),
                word: phrase,
            })
        }));
    }
    hits
}

/// Splits a text into words, in small letters. An identifier is one.
fn split(text: &str) -> impl Iterator<Item = String> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '-';
    (text.split(move |letter| !is_part(letter)))
        .filter(|word| word.contains(|letter: char| letter.is_alphanumeric()))
        .map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "## Where they hold\n\n| Folder | Since |\n|---|---|\n| `low` | x |\n\n\
                          ## Identifiers\n\n| Not | But |\n|---|---|\n| `most_` | `max_` |\n\
                          | `patience` | `timeout` |\n| `Board` | `Broadcast` |\n\n\
                          ## Phrases\n\n| Not | But |\n|---|---|\n| `at hand` | cached |\n";

    fn check(source: &str, exceptions: &str) -> Vec<String> {
        let page = format!("{TABLES}\n{EXCEPTIONS}\n\n{exceptions}");
        let page = Page::read(&page).unwrap();
        page.check(&[("low/a.rs".into(), source.into())]).unwrap()
    }

    #[test]
    fn identifiers_are_found_as_a_whole_by_their_beginning_or_by_a_word() {
        let source = "fn f() { Board::new(MOST_CPUS); }\n\nstruct S { call_patience: u64 }";
        assert_eq!(
            check(source, ""),
            [
                "low/a.rs:1: `Board` is not to be used: write `Broadcast` (docs/src/words.md)",
                "low/a.rs:1: `MOST_CPUS` is not to be used: write `max_` (docs/src/words.md)",
                "low/a.rs:3: `call_patience` is not to be used: write `timeout` (docs/src/words.md)",
            ]
        );
        let wrong = check("fn f(x: CallPatience, y: PATIENCE) {}", "");
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }

    #[test]
    fn other_identifiers_are_not_found() {
        let source = "// Board\nfn at_most(board: Boards, almost: u8) -> &str { \"Board, patience\" }\n\
                      fn nobody_has_the_patience_for_this() {}\nstruct Most;";
        assert_eq!(check(source, ""), Vec::<String>::new());
    }

    #[test]
    fn phrases_are_found_in_comments_and_texts_over_the_end_of_a_line() {
        let source = "/// Frames at\n/// hand.\nfn f() -> &str { \"At hand, all\" }\nfn at_hand(at: u8) {}\n\
                      // Look at handlers.";
        assert_eq!(
            check(source, ""),
            [
                "low/a.rs:1: `at hand` is not to be used: write cached (docs/src/words.md)",
                "low/a.rs:3: `at hand` is not to be used: write cached (docs/src/words.md)",
            ]
        );
    }

    #[test]
    fn a_page_has_phrases_and_no_identifiers() {
        let page = Page::read(&format!("{TABLES}\n{EXCEPTIONS}\n")).unwrap();
        let text = "What's at\nhand: `Board`, \"…\n".to_owned();
        assert_eq!(
            page.check(&[("low/a.md".into(), text)]).unwrap(),
            ["low/a.md:1: `at hand` is not to be used: write cached (docs/src/words.md)"]
        );
    }

    #[test]
    fn an_exception_is_for_one_file_and_word_and_must_be_needed() {
        let source = "struct Board; // at hand";
        let board = "| `low/a.rs` | `Board` | a board |\n";
        assert_eq!(
            check(source, board),
            ["low/a.rs:1: `at hand` is not to be used: write cached (docs/src/words.md)"]
        );
        assert_eq!(
            check("struct Broadcast;", board),
            [
                "docs/src/words.md: the exception of `Board` in low/a.rs is not needed: remove the row"
            ]
        );
        let elsewhere = "| `low/b.rs` | `Board` | a board |\n";
        assert_eq!(check("struct Board;", elsewhere).len(), 2);
    }

    #[test]
    fn the_words_of_this_repository_are_right() {
        assert!(are_right().unwrap());
    }

    #[test]
    fn a_page_without_a_reason_or_a_table_is_refused() {
        let page = |rest: &str| Page::read(&format!("{TABLES}\n{EXCEPTIONS}\n\n{rest}"));
        let error = page("| `low/a.rs` | `Board` | |\n").unwrap_err();
        assert!(error.to_string().contains("a reason"), "{error}");
        let error = Page::read(&TABLES.replace(PHRASES, "## Others")).unwrap_err();
        assert!(error.to_string().contains(PHRASES), "{error}");
        let error = Page::read(&TABLES.replace("| `max_` |", "| |")).unwrap_err();
        assert!(error.to_string().contains("most_"), "{error}");
    }
}
