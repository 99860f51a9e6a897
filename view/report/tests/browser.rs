//! The page in a browser, where there is one: in wide and narrow windows, by day and by night, no chart
//! is missing or empty, no words lie on others or are cut off, and the browser has nothing to complain of.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use html5gum::{Token, Tokenizer};
use muster_report::{RunEvents, page};

const STRESS: &str = include_str!("../../../parts/events/tests/run.jsonl");
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

/// What has a browser show the page as it is by day, and by night, and the paper that it then has.
const DAY: (&[&str], &str) = (&[], "rgb(255, 255, 255)");
const NIGHT: (&[&str], &str) = (&["--force-dark-mode"], "rgb(21, 23, 26)");

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
    let all = [(1200, DAY), (500, DAY), (1200, NIGHT), (500, NIGHT)];
    for (words, stress, bench, windows) in [
        ("two runs", STRESS.to_owned(), BENCH.to_owned(), &all[..]),
        ("1 CPU", with_cpus(STRESS, 1), of_one_cpu(BENCH), &all[..1]),
        (
            "200 CPUs",
            with_cpus(STRESS, 200),
            BENCH.to_owned(),
            &all[..1],
        ),
    ] {
        let html = page(&[stress, bench].map(|text| RunEvents::read(&text)), &[]).unwrap();
        let charts = html.matches("<figure").count();
        let looked = html.replace("</body>", &format!("<script>{LOOK}</script></body>"));
        fs::write(&file, looked).unwrap();
        for &(width, (mode, paper)) in windows {
            let found = look(&browser, &file, width, mode);
            let of = |key: &str| found.get(key).map_or("", String::as_str);
            assert_eq!(of("data-wrong"), "", "{words}, {width} wide, {mode:?}");
            assert_eq!(of("data-charts"), charts.to_string(), "{words}");
            assert_eq!(of("data-window"), width.to_string());
            assert_eq!(of("data-paper"), paper);
        }
        let windows = windows.len();
        println!("browser: {words}, {charts} charts, {windows} times: nothing wrong");
    }
}

/// Makes a run as if its machine had `count` CPUs, all like the first or the last of its four.
fn with_cpus(text: &str, count: u32) -> String {
    let of_a_cpu = ["\"cpu\"", "\"work\"", "\"account_cpu\"", "\"interrupts\""];
    let of_a_cpu = of_a_cpu.map(|name| format!("\"event\":{name},"));
    let lines = text.lines().flat_map(|line| {
        let cpus = match of_a_cpu.iter().any(|event| line.contains(event)) {
            false => 0..1,
            true if line.contains("\"cpu\":0,") => 0..1,
            true if line.contains("\"cpu\":3,") => 1..count,
            true => 0..0,
        };
        cpus.map(move |cpu| line.replace("\"cpu\":3,", &format!("\"cpu\":{cpu},")) + "\n")
    });
    let text: String = lines.collect();
    text.replace(
        "\"online\":4,\"expected\":4",
        &format!("\"online\":{count},\"expected\":{count}"),
    )
}

/// Returns the benchmarks, as far as they were done on one CPU.
fn of_one_cpu(text: &str) -> String {
    let is_one = |line: &&str| {
        let of_cpus = ["\"event\":\"figure\"", "\"event\":\"latency\""];
        !of_cpus.iter().any(|event| line.contains(event)) || line.contains("\"cpus\":1,")
    };
    text.lines()
        .filter(is_one)
        .map(|line| format!("{line}\n"))
        .collect()
}

fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let folders: Vec<_> = env::split_paths(&path).collect();
    let all = BROWSERS
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.into_iter().find(|file| file.is_file())
}

/// Has the page shown, and returns what was found on its body.
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
    let events = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{events}");
    let console: Vec<_> = events
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
