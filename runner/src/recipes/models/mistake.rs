//! A mistake that models must find: a patch in `mistakes/LIBRARY/`.
//!
//! Above the difference stands what the mistake is, and a line `Found by MODEL` for each model that must
//! find it, with the path of its module.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use diffy::patch_set::{FileOperation, ParseOptions, PatchSet};
use diffy::{Hunk, Line, Patch};

use crate::workspace;

/// The libraries that have models, by their folders.
pub const LIBRARIES: [&str; 5] = ["percpu", "cross-cpu", "frames", "paging", "heap"];

/// The folder of the patches.
const FOLDER: &str = "mistakes";

/// How a line begins that names a model.
const FOUND_BY: &str = "Found by ";

/// What to do with a patch that does not apply.
const ADVICE: &str =
    "make the mistake in the source again, put what `git diff` shows into the patch, and undo it";

/// A mistake.
#[derive(Debug)]
pub struct Mistake {
    /// The library and the patch, as in `heap/lock-does-not-release`.
    pub name: String,
    /// These models, with their modules.
    pub models: Vec<String>,
    /// Each file that it is made in, with the text that the file has then.
    pub changes: BTreeMap<PathBuf, String>,
}

impl Mistake {
    /// Reads the patch of this name, and applies it to the workspace's sources.
    ///
    /// # Errors
    ///
    /// If it does not apply, or names no model that is there.
    fn read(root: &Path, library: &str, name: &str) -> Result<Self> {
        let text = read(&root.join(FOLDER).join(name).with_extension("patch"))?;
        let (head, _) = text.split_once("--- ").unwrap_or((&text, ""));
        let models = head.lines().filter_map(|line| line.strip_prefix(FOUND_BY));
        let mistake = Self {
            name: name.into(),
            models: models.map(str::to_owned).collect(),
            changes: changes(root, &text)?,
        };
        let first = head.lines().next().unwrap_or_default();
        ensure!(
            first.ends_with('.') && !first.starts_with(FOUND_BY),
            "the first line must be a sentence that says what the mistake is, not `{first}`"
        );
        ensure!(
            !mistake.models.is_empty(),
            "no model is named: add a line `{FOUND_BY}models::NAME` above the difference"
        );
        for model in &mistake.models {
            ensure!(
                is_there(root, library, model),
                "`{library}` has no model `{model}`: name one that is there"
            );
        }
        Ok(mistake)
    }

    /// Returns the folder of the library whose models find it.
    pub fn folder(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// Returns the path of the patch.
    pub fn path(&self) -> String {
        path_of(&self.name)
    }
}

/// Reads all mistakes.
///
/// # Errors
///
/// With all problems, a line each, if there are any.
pub fn read_all(root: &Path) -> Result<Vec<Mistake>> {
    let (mistakes, problems) = read_each(root)?;
    if problems.is_empty() {
        Ok(mistakes)
    } else {
        bail!("{}", problems.join("\n"))
    }
}

/// Returns what is wrong with the patches, a line for each problem.
///
/// # Errors
///
/// If their folder can't be read.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    Ok(read_each(root)?.1)
}

fn read_each(root: &Path) -> Result<(Vec<Mistake>, Vec<String>)> {
    let (mut mistakes, mut problems) = (Vec::new(), Vec::new());
    let folder = root.join(FOLDER);
    let patches = workspace::files(&folder, "patch");
    for path in patches.with_context(|| format!("cannot read {}", folder.display()))? {
        let name = path.strip_prefix(&folder)?.with_extension("");
        let name = name.to_string_lossy();
        let read = match name.split_once('/') {
            Some((library, _)) if LIBRARIES.contains(&library) => {
                Mistake::read(root, library, &name)
            }
            _ => Err(anyhow!(
                "lies in no folder of a library that has models: {}",
                LIBRARIES.join(", ")
            )),
        };
        match read {
            Ok(mistake) => mistakes.push(mistake),
            Err(error) => problems.push(format!("{}: {error:#}", path_of(&name))),
        }
    }
    Ok((mistakes, problems))
}

fn path_of(name: &str) -> String {
    format!("{FOLDER}/{name}.patch")
}

/// Returns whether a library has this test, in the file of its module.
fn is_there(root: &Path, library: &str, model: &str) -> bool {
    let Some((module, name)) = model.rsplit_once("::") else {
        return false;
    };
    let file = root
        .join(library)
        .join("src")
        .join(module.replace("::", "/"));
    fs::read_to_string(file.with_extension("rs"))
        .is_ok_and(|text| text.contains(&format!("#[test]\nfn {name}()")))
}

/// Applies a patch to the workspace's sources, and returns the files that it changes.
fn changes(root: &Path, text: &str) -> Result<BTreeMap<PathBuf, String>> {
    let mut changes = BTreeMap::new();
    for file in PatchSet::parse(text, ParseOptions::unidiff()) {
        let file = file.map_err(|error| anyhow!("is no unified diff ({error}): {ADVICE}"))?;
        let (FileOperation::Modify { modified, .. }, Some(patch)) =
            (file.operation().strip_prefix(1), file.patch().as_text())
        else {
            bail!("must change files, and neither add nor remove one: {ADVICE}");
        };
        let source = read(&root.join(modified.as_ref()))?;
        let changed = apply(&source, patch)
            .map_err(|error| anyhow!("does not apply: in {modified} {error}: {ADVICE}"))?;
        changes.insert(modified.as_ref().into(), changed);
    }
    Ok(changes)
}

/// Applies the patch of one file. The lines that it replaces must stand there exactly once, wherever that
/// is: a number of a line is soon wrong.
fn apply(source: &str, patch: &Patch<'_, str>) -> Result<String> {
    let lines: Vec<_> = source.split_inclusive('\n').collect();
    for hunk in patch.hunks() {
        let replaced = replaced(hunk);
        let places = lines
            .windows(replaced.len())
            .filter(|lines| *lines == replaced);
        let count = places.count();
        ensure!(
            count == 1,
            "the lines from its line {} on stand {count} times",
            hunk.old_range().start()
        );
    }
    Ok(diffy::apply(source, patch)?)
}

/// Returns the lines that a hunk replaces, with those around them.
fn replaced<'a>(hunk: &Hunk<'a, str>) -> Vec<&'a str> {
    let lines = hunk.lines().iter().filter_map(|line| match line {
        Line::Context(line) | Line::Delete(line) => Some(*line),
        Line::Insert(_) => None,
    });
    lines.collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", workspace::shown(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "fn a() {\n    one();\n    two();\n}\n";
    const MODELS: &str = "#[test]\nfn one_against_two() {}\n\nfn helper() {}\n";
    const PATCH: &str = "One is not done.\nFound by models::one_against_two\n\
        --- a/heap/src/lib.rs\n+++ b/heap/src/lib.rs\n\
        @@ -1,3 +1,2 @@\n fn a() {\n-    one();\n     two();\n";

    /// Reads the mistakes of a workspace with this library and one patch.
    fn read(path: &str, source: &str, patch: &str) -> Result<Vec<Mistake>> {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("heap/src/lib.rs", source);
        write("heap/src/models.rs", MODELS);
        write(path, patch);
        read_all(folder.path())
    }

    fn problem(source: &str, patch: &str) -> String {
        let result = read("mistakes/heap/one.patch", source, patch);
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_patch_is_applied_wherever_its_lines_are() {
        for source in [SOURCE.to_owned(), format!("// More.\n\n{SOURCE}")] {
            let mistakes = read("mistakes/heap/one.patch", &source, PATCH).unwrap();
            let [mistake] = mistakes.as_slice() else {
                panic!("{mistakes:?}");
            };
            assert_eq!(mistake.name, "heap/one");
            assert_eq!(mistake.folder(), "heap");
            assert_eq!(mistake.models, ["models::one_against_two"]);
            let changed = source.replace("    one();\n", "");
            let expected = [("heap/src/lib.rs".into(), changed)];
            assert_eq!(mistake.changes, expected.into());
        }
    }

    #[test]
    fn a_patch_may_be_what_git_shows() {
        let head = "diff --git a/heap/src/lib.rs b/heap/src/lib.rs\nindex 123..456 100644\n";
        let patch = PATCH.replace("--- ", &format!("{head}--- "));
        assert!(read("mistakes/heap/one.patch", SOURCE, &patch).is_ok());
    }

    #[test]
    fn a_patch_whose_lines_have_changed_does_not_apply() {
        let does_not = |count: usize| {
            format!(
                "mistakes/heap/one.patch: does not apply: in heap/src/lib.rs the lines from its line 1 on \
                 stand {count} times: make the mistake in the source again"
            )
        };
        let found = problem(&SOURCE.replace("one()", "first()"), PATCH);
        assert!(found.starts_with(&does_not(0)), "{found}");
        let found = problem(&SOURCE.repeat(2), PATCH);
        assert!(found.starts_with(&does_not(2)), "{found}");
    }

    #[test]
    fn a_patch_says_what_it_is_and_names_models_that_are_there() {
        let without = |line: &str| problem(SOURCE, &PATCH.replace(line, ""));
        let found = without("One is not done.\n");
        assert!(found.contains("must be a sentence"), "{found}");
        let found = without("Found by models::one_against_two\n");
        assert!(found.contains("no model is named"), "{found}");
        for wrong in ["models::helper", "models::other", "one_against_two"] {
            let found = problem(SOURCE, &PATCH.replace("models::one_against_two", wrong));
            let expected = format!("`heap` has no model `{wrong}`");
            assert!(found.contains(&expected), "{found}");
        }
    }

    #[test]
    fn what_is_no_patch_of_a_library_is_refused() {
        let head = "Nothing.\nFound by models::one_against_two\n";
        let found = problem(SOURCE, head);
        assert!(found.contains("is no unified diff"), "{found}");
        let found = problem(
            SOURCE,
            &PATCH.replace("--- a/heap/src/lib.rs", "--- /dev/null"),
        );
        assert!(found.contains("neither add nor remove"), "{found}");
        let found = read("mistakes/one.patch", SOURCE, PATCH).unwrap_err();
        let expected = "mistakes/one.patch: lies in no folder of a library";
        assert!(found.to_string().starts_with(expected), "{found}");
    }
}
