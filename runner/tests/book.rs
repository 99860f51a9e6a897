//! The book holds: its links lead somewhere, its code is the project's own, its commands are there,
//! the tests it names exist, and the messages it explains are still said.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use muster_runner::workspace;
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use regex_lite::Regex;

/// The folders of the sources, each with all below it.
const SOURCES: [&str; 12] = [
    "src",
    "percpu",
    "cross-cpu",
    "frames",
    "paging",
    "heap",
    "parts",
    "bench",
    "loader",
    "runner/src",
    "view",
    "examples",
];

fn book() -> PathBuf {
    workspace::root().join("docs/src")
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    workspace::files(folder, extension).unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text of each source.
static EACH_SOURCE: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folders = SOURCES.iter().map(|folder| workspace::root().join(folder));
    let files = folders.flat_map(|folder| files(&folder, "rs"));
    files.map(|path| read(&path)).collect()
});

/// The text of all sources, one after the other.
static ALL_SOURCES: LazyLock<String> = LazyLock::new(|| EACH_SOURCE.concat());

/// The recipes that `just` knows.
static RECIPES: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
    let recipe = Regex::new(r"(?m)^([a-z][a-z-]*)( [^:\n]+)?:( |$)").unwrap();
    let justfile = read(&workspace::root().join("Justfile"));
    let recipes = recipe.captures_iter(&justfile);
    recipes.map(|found| found[1].to_owned()).collect()
});

/// A block of code.
#[derive(Default)]
struct Block {
    /// What stands after its fence.
    info: String,
    code: String,
    /// The paragraph above it, if that is code and nothing else.
    caption: String,
}

/// What stands in a page, as far as the tests ask for it.
#[derive(Default)]
struct Page {
    path: PathBuf,
    blocks: Vec<Block>,
    /// Code in the middle of the text.
    spans: Vec<String>,
    /// Where links lead to.
    links: Vec<String>,
    /// Images, each with its text for those who can't see it.
    images: Vec<(String, String)>,
    /// What headings are called in links to them.
    anchors: BTreeSet<String>,
    /// Code in paragraphs that say what a thing is shown by.
    shown_by: Vec<String>,
    /// Code that entries of a list begin with.
    entries: Vec<String>,
}

impl Page {
    fn read(path: &Path) -> Self {
        let mut page = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        let text = read(path);
        let mut block = None::<Block>;
        let mut caption = String::new();
        let mut heading = None::<String>;
        let mut image = None::<(String, String)>;
        // Of the paragraph so far; and whether a list's entry has just begun.
        let (mut words, mut begins) = (String::new(), false);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match kind {
                        CodeBlockKind::Fenced(info) => info.to_string(),
                        CodeBlockKind::Indented => "indented".into(),
                    };
                    block = Some(Block {
                        info,
                        code: String::new(),
                        caption: std::mem::take(&mut caption),
                    });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let heading = heading.take().unwrap_or_default();
                    page.anchors.insert(anchor(&heading));
                }
                Event::Start(Tag::Link { dest_url, .. }) => page.links.push(dest_url.to_string()),
                Event::Start(Tag::Image { dest_url, .. }) => {
                    image = Some((dest_url.to_string(), String::new()));
                }
                Event::End(TagEnd::Image) => page.images.extend(image.take()),
                Event::Start(Tag::Item) => begins = true,
                Event::Start(Tag::Paragraph) => {
                    words.clear();
                    caption.clear();
                }
                Event::End(TagEnd::Paragraph) if !words.is_empty() => caption.clear(),
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        *heading += &code;
                    }
                    if begins {
                        page.entries.push(code.to_string());
                    }
                    if words.starts_with("Shown by") {
                        page.shown_by.push(code.to_string());
                    }
                    begins = false;
                    caption = code.to_string();
                    page.spans.push(code.to_string());
                }
                Event::Text(text) => {
                    begins = false;
                    let image = image.as_mut().map(|(_, words)| words);
                    let block = block.as_mut().map(|block| &mut block.code);
                    let place = block.or(image).or(heading.as_mut()).unwrap_or(&mut words);
                    *place += &text;
                }
                _ => {}
            }
        }
        page
    }

    /// Returns the page's name in messages.
    fn name(&self) -> std::path::Display<'_> {
        workspace::shown(&self.path)
    }
}

/// Returns the anchor that mdBook, and GitHub, give a heading.
fn anchor(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || ['_', '-', ' '].contains(letter);
    let letters = heading.chars().filter(kept).flat_map(char::to_lowercase);
    letters.collect::<String>().replace(' ', "-")
}

/// Returns the pages of the book, its table of contents included.
fn pages() -> Vec<Page> {
    let paths = files(&book(), "md");
    paths.iter().map(|path| Page::read(path)).collect()
}

/// Returns the pages, and those that stand at the top of the project.
fn everything() -> Vec<Page> {
    let top = ["README.md", "CONTRIBUTING.md"].map(|page| workspace::root().join(page));
    let top = top.map(|path| Page::read(&path));
    pages().into_iter().chain(top).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut anchors: HashMap<PathBuf, BTreeSet<String>> = HashMap::new();
    let inside = fs::canonicalize(book()).unwrap();
    for page in everything() {
        let images = page.images.iter().map(|(path, _)| path);
        for link in page.links.iter().chain(images) {
            if link.contains("://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.path.clone(),
                path => page.path.parent().unwrap().join(path),
            };
            let target = fs::canonicalize(&target)
                .unwrap_or_else(|error| panic!("{}: {link}: {error}", page.name()));
            assert!(
                !page.path.starts_with(book()) || target.starts_with(&inside),
                "{}: {link} leads out of the book, where there are no files",
                page.name()
            );
            if !fragment.is_empty() {
                let anchors = anchors
                    .entry(target.clone())
                    .or_insert_with(|| Page::read(&target).anchors);
                assert!(anchors.contains(fragment), "{}: {link}", page.name());
            }
        }
    }
}

#[test]
fn every_page_and_picture_is_used() {
    let (contents, pages): (Vec<_>, Vec<_>) = pages()
        .into_iter()
        .partition(|page| page.path.ends_with("SUMMARY.md"));
    let links = contents.iter().flat_map(|page| &page.links);
    let listed: BTreeSet<_> = links.map(|link| book().join(link)).collect();
    let there: BTreeSet<_> = pages.iter().map(|page| page.path.clone()).collect();
    assert_eq!(listed, there);

    let all: String = pages.iter().map(|page| read(&page.path)).collect();
    for extension in ["svg", "png"] {
        for path in files(&book(), extension) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert!(all.contains(&format!("/{name}")), "nobody shows {name}");
        }
    }
    for page in &pages {
        for (image, words) in &page.images {
            let says_something = words.contains(' ');
            assert!(says_something, "{}: {image} says nothing", page.name());
        }
    }
}

#[test]
fn code_is_the_project_s_own() {
    for page in everything() {
        for Block {
            info,
            code,
            caption,
        } in &page.blocks
        {
            let what = format!("{}: ```{info}\n{code}", page.name());
            if let Some((_, from)) = info.split_once(",from=") {
                assert_eq!(caption, from, "{what}\nis not said to be of its source");
                let source = read(&workspace::root().join(from));
                if let Err(piece) = is_quoted(code, &source) {
                    panic!("{what}\nis not in {from}:\n{piece}");
                }
            } else if info.starts_with("text,output=") {
                // Compared with what is said by the runner's own tests, and by the boot tests.
            } else if info == "jq" {
                // All of this page's are run in parts/events/tests/events.rs.
                assert!(page.path.ends_with("events.md"), "{what}");
            } else if info == "sh" {
                for line in code.lines() {
                    assert!(is_command(line), "{what}\nhas no command in `{line}`");
                }
            } else if info == "toml" {
                // What another kernel writes to have the libraries, from a folder beside this one.
                for line in code.lines().filter(|line| line.contains("path")) {
                    assert!(is_dependency(line), "{what}\nhas no crate in `{line}`");
                }
            } else {
                panic!("{what}\nis of a kind that nobody tests");
            }
        }
    }
}

#[test]
fn the_client_is_shown_whole() {
    let everything = everything();
    let page = everything
        .iter()
        .find(|page| page.path.ends_with("own/client.md"));
    for file in ["Cargo.toml", ".cargo/config.toml", "src/main.rs"] {
        let file = format!("examples/client/{file}");
        let mut blocks = page.unwrap().blocks.iter();
        let block = blocks.find(|block| block.info.ends_with(&format!(",from={file}")));
        assert_eq!(
            block.unwrap().code,
            read(&workspace::root().join(&file)),
            "{file}"
        );
    }
}

/// Returns whether code stands in a source, line by line, apart from how far it is indented. A line with
/// nothing but an ellipsis stands for what was left out.
fn is_quoted(code: &str, source: &str) -> Result<(), String> {
    let source: Vec<_> = source.lines().map(str::trim).collect();
    let code: Vec<_> = code.lines().map(str::trim).collect();
    let mut rest = &source[..];
    for piece in code.split(|line| ["// …", "# …", "…"].contains(line)) {
        let is_said = |line: &&str| !line.is_empty();
        let (Some(first), Some(last)) = (
            piece.iter().position(&is_said),
            piece.iter().rposition(is_said),
        ) else {
            continue;
        };
        let piece = &piece[first..=last];
        let place = rest
            .windows(piece.len())
            .position(|window| window == piece)
            .ok_or_else(|| piece.join("\n"))?;
        rest = &rest[place + piece.len()..];
    }
    Ok(())
}

/// Returns whether a line of another kernel's manifest names a crate of this project and the folder that it is in.
fn is_dependency(line: &str) -> bool {
    let Some((name, rest)) = line.split_once(" = { path = \"../muster/") else {
        return false;
    };
    let folder = rest.split('"').next().unwrap_or_default();
    let manifest = workspace::root().join(folder).join("Cargo.toml");
    fs::read_to_string(manifest)
        .is_ok_and(|manifest| manifest.contains(&format!("name = \"{name}\"")))
}

/// Returns whether a line calls a recipe, with words that are understood, or the bootstrap.
fn is_command(line: &str) -> bool {
    let command = line.split('#').next().unwrap_or_default();
    let mut words = command
        .split_whitespace()
        .skip_while(|word| word.starts_with("LIMINE_DIR="));
    let arguments = read(&book().join("arguments.md"));
    let is_known = |word: &str| match word.split_once('=') {
        Some((key, _)) => {
            let is_of_a_run = arguments.contains(&format!("\n  {key}="));
            is_of_a_run || ["minutes", "linux", "boots"].contains(&key)
        }
        None => true,
    };
    match words.next() {
        None | Some("./bootstrap") => true,
        // What a client's author types.
        Some("rustup") => words.eq(["target", "add", "x86_64-unknown-none"]),
        Some("muster-runner") => {
            words.next() == Some("cargo")
                && is_command(&command.trim_start()["muster-runner ".len()..])
        }
        Some("cargo") => match words.next() {
            Some("install") => {
                let folder = words.clone().skip_while(|&word| word != "--path").nth(1);
                folder.is_some_and(|folder| {
                    workspace::root().join(folder).join("Cargo.toml").is_file()
                })
            }
            Some("run") => words.filter(|word| !word.starts_with("--")).all(is_known),
            _ => false,
        },
        Some("just") => {
            let recipe = words.next().unwrap_or_default();
            RECIPES.contains(recipe) && words.all(is_known)
        }
        Some(_) => false,
    }
}

#[test]
fn quotations_are_found_and_forgeries_are_not() {
    let source = "fn a() {\n    one();\n    two();\n    three();\n}\n";
    for code in ["one();\ntwo();", "fn a() {\n// …\nthree();\n}", "  two();"] {
        assert_eq!(is_quoted(code, source), Ok(()));
    }
    for code in ["one();\nthree();", "two();\n// …\none();", "four();"] {
        assert!(is_quoted(code, source).is_err(), "{code}");
    }
    for line in [
        "",
        "# words",
        "just run-smp 16 mem=2G",
        "./bootstrap test",
        "cargo run --release -- 4 mem=64M",
        "muster-runner cargo install --path runner",
    ] {
        assert!(is_command(line), "{line}");
    }
    assert!(is_dependency("muster-heap = { path = \"../muster/heap\" }"));
    for line in [
        "muster-heap = { path = \"../muster/frames\" }",
        "muster-heap = { path = \"../muster/nowhere\" }",
        "muster-heap = \"0.1\"",
    ] {
        assert!(!is_dependency(line), "{line}");
    }
    for line in [
        "just nonsense",
        "just run-smp mme=2G",
        "make",
        "cargo test",
        "cargo run -- mme=2G",
        "muster-runner run-smp",
        "cargo install --path nowhere",
    ] {
        assert!(!is_command(line), "{line}");
    }
}

#[test]
fn recipes_and_files_that_are_named_are_there() {
    let path = Regex::new(r"^[a-z_]+(/[a-z_.-]+)+\.(rs|s|ld|md|toml|conf|svg)$").unwrap();
    for page in everything() {
        for span in &page.spans {
            if let Some(rest) = span.strip_prefix("just ") {
                let recipe = rest.split(' ').next().unwrap_or_default();
                let is_there = recipe.starts_with('-') || RECIPES.contains(recipe);
                assert!(is_there, "{}: `{span}`", page.name());
            }
            let is_there = !path.is_match(span) || workspace::root().join(span).exists();
            assert!(is_there, "{}: there is no `{span}`", page.name());
        }
    }
}

#[test]
fn what_a_thing_is_shown_by_is_there() {
    let cases = files(&workspace::root().join("runner/src/cases"), "rs");
    let cases: String = cases.iter().map(|path| read(path)).collect();
    let values = read(&workspace::root().join("parts/arguments/src/values.rs"));
    let names: Vec<_> = pages().into_iter().flat_map(|page| page.shown_by).collect();
    assert!(names.len() > 100, "only {} are named", names.len());
    let is_there = |name: &String| {
        name.starts_with("just ")
            || cases.contains(&format!("\"{name}\","))
            || values.contains(&format!(" = \"{name}\","))
            || ALL_SOURCES.contains(&format!("fn {name}("))
            || ALL_SOURCES.contains(&format!("fn {name}<M: Machine>("))
    };
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "nothing is called {missing:?}");
}

/// Returns every text in the sources that could be a message, with an ellipsis for each argument.
fn sayings() -> Vec<String> {
    let text = Regex::new(r#""((?:[^"\\]|\\[\s\S])*)""#).unwrap();
    let continuation = Regex::new(r"\\\n\s*").unwrap();
    let filled = Regex::new(r"\{[^{}]*\}").unwrap();
    let comment = Regex::new(r"(?m)^\s*//.*$").unwrap();
    let mut sayings = Vec::new();
    // One by one: where a text looks like a comment, what follows in that file is taken for no text.
    for source in EACH_SOURCE.iter() {
        let source = comment.replace_all(source, "").replace("'\"'", "");
        sayings.extend(text.captures_iter(&source).map(|found| {
            let text = continuation
                .replace_all(&found[1], "")
                .replace("\\\"", "\"");
            filled.replace_all(&text, "…").into_owned()
        }));
    }
    sayings
}

#[test]
fn messages_that_are_explained_are_said() {
    let page = Page::read(&book().join("troubleshooting.md"));
    let sayings = sayings();
    let entries = &page.entries;
    assert!(entries.len() > 50, "only {} messages", entries.len());
    let is_said = |message: &&String| sayings.iter().any(|saying| saying.contains(*message));
    let unsaid: Vec<_> = entries.iter().filter(|message| !is_said(message)).collect();
    assert!(unsaid.is_empty(), "nobody says any more: {unsaid:#?}");
}

#[test]
fn models_and_their_mistakes_are_counted() {
    let evidence = read(&book().join("evidence.md")).replace('\n', " ");
    let readme = read(&workspace::root().join("README.md"));
    let (mut models, mut mistakes, mut findings) = (0, 0, 0);
    for library in ["percpu", "cross-cpu", "frames", "paging", "heap"] {
        let sources = files(&workspace::root().join(library).join("src"), "rs");
        let sources = sources.iter().filter(|path| path.ends_with("models.rs"));
        models += (sources.map(|path| read(path).matches("    model(").count())).sum::<usize>();
        let patches = files(&workspace::root().join("mistakes").join(library), "patch");
        let count = patches.len();
        let said = format!("{count} in `{library}`");
        assert!(evidence.contains(&said), "evidence.md does not say: {said}");
        mistakes += count;
        let found_by = |path: &PathBuf| read(path).matches("\nFound by ").count();
        findings += patches.iter().map(found_by).sum::<usize>();
    }
    let said = format!("{findings} times");
    assert!(evidence.contains(&said), "evidence.md does not say: {said}");
    for said in [format!("{models} models"), format!("{mistakes} mistakes")] {
        assert!(readme.contains(&said), "README.md does not say: {said}");
    }
}
