//! Tables in the book's pages, of which `just check` reads its rules: the rooms and crates, and the words.

use anyhow::{Result, ensure};

/// Returns the rows of the table under a heading of a page, in their order, each by its cells. The table's own
/// heading is no row.
pub fn rows(text: &str, heading: &str) -> Vec<Vec<String>> {
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    lines
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

/// Returns the rows of a table that must be there, in the page of this path.
///
/// # Errors
///
/// If it is not.
pub fn required_rows(page: &str, text: &str, heading: &str) -> Result<Vec<Vec<String>>> {
    let rows = rows(text, heading);
    ensure!(!rows.is_empty(), "{page} has no table under `{heading}`");
    Ok(rows)
}

/// Returns the names in the first cells of rows.
pub fn names(rows: &[Vec<String>]) -> Vec<String> {
    let cells = rows.iter().filter_map(|row| row.first());
    cells.map(|cell| unquote(cell)).collect()
}

/// Returns a cell without the marks of code.
pub fn unquote(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}
