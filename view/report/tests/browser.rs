//! The page in a browser, where there is one: in wide and narrow windows, by day and by night, no chart
//! is missing or empty, no words lie on others or are cut off, and the browser has nothing to complain of.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use html5gum::{Token, Tokenizer};
use muster_report::{Told, page};

const STRESS: &str = include_str!("../../../events/tests/run.jsonl");
const BENCH: &str = include_str!("bench.jsonl");

/// Looks at the page, and leaves on its body what is wrong.
const LOOK: &str = include_str!("look.js");

/// All of them are Chromium, and take the same arguments.
const BROWSERS: [&str; 4] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
];

/// What asks for nothing but the page.
const ALONE: [&str; 8] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
];

fn main() {
    let Some(browser) = find() else {
        println!(
            "browser: skipped, as there is none of {}",
            BROWSERS.join(", ")
        );
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join("report.html");
    let html = page(&[STRESS, BENCH].map(Told::read), &[]).unwrap();
    let charts = html.matches("<figure").count();
    let looked = html.replace("</body>", &format!("<script>{LOOK}</script></body>"));
    fs::write(&file, looked).unwrap();

    let mut papers = Vec::new();
    for mode in [&[][..], &["--force-dark-mode"]] {
        for width in [1200, 500] {
            let found = look(&browser, &file, width, mode);
            let of = |key: &str| found.get(key).map_or("", String::as_str);
            assert_eq!(of("data-wrong"), "", "{width} wide, {mode:?}");
            assert_eq!(
                of("data-charts"),
                charts.to_string(),
                "{width} wide, {mode:?}"
            );
            assert_eq!(of("data-window"), width.to_string());
            papers.push(of("data-paper").to_owned());
        }
    }
    assert_eq!(papers[..2], ["rgb(255, 255, 255)"; 2]);
    assert_eq!(papers[2..], ["rgb(21, 23, 26)"; 2]);
    println!("browser: {charts} charts, wide and narrow, by day and by night: nothing wrong");
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let folders: Vec<_> = env::split_paths(&path).collect();
    let all = BROWSERS
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.into_iter().find(|file| file.is_file())
}

/// Has the page shown, and gives what was found on its body.
fn look(browser: &Path, file: &Path, width: u32, mode: &[&str]) -> BTreeMap<String, String> {
    let own = file.with_file_name("browser");
    let _ = fs::remove_dir_all(&own);
    let output = Command::new(browser)
        .args(ALONE)
        .args(mode)
        .arg(format!("--window-size={width},900"))
        .arg(format!("--user-data-dir={}", own.display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let console: Vec<_> = told
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .collect();
    assert!(console.is_empty(), "{console:#?}");
    let html = String::from_utf8(output.stdout).unwrap();
    let body = Tokenizer::new(&html).find_map(|token| match token {
        Ok(Token::StartTag(tag)) if **tag.name == *b"body" => Some(tag.attributes),
        _ => None,
    });
    let attributes = body.unwrap().into_iter();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    attributes
        .map(|(key, value)| (text(&key), text(&value)))
        .collect()
}
