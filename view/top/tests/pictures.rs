//! Pictures of runs out of the kernel's events, checked against those that are stored:
//! `UPDATE_EXPECT=1 cargo test` draws these again, and a person should look at them then.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::fmt::Write;
use std::path::Path;

use expect_test::expect_file;
use muster_top::{Machine, Order, Palette, Stage, View, draw};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

/// Eight CPUs in three workloads, to the verdict.
const EIGHT: &str = include_str!("runs/eight.jsonl");

/// 64 CPUs, in the midst of it, without the log.
const MANY: &str = include_str!("runs/many.jsonl");

/// Three CPUs of which one overflows its stack; and what the runner wrote of it.
const FAULT: &str = include_str!("runs/fault.jsonl");
const FAULT_WORDS: &str = include_str!("runs/fault.log");

fn told<'a>(lines: impl IntoIterator<Item = &'a str>) -> Machine {
    let mut machine = Machine::default();
    for line in lines {
        machine.take(line);
    }
    machine
}

/// Returns the lines of the run in the midst of its last workload: until the last `memory` event but one.
fn eight_lines() -> impl Iterator<Item = &'static str> {
    let is_memory = |line: &&str| line.contains(r#""event":"memory""#);
    let moments = EIGHT.lines().filter(is_memory).count();
    let mut seen = 0;
    EIGHT.lines().take_while(move |line| {
        let is_over = seen == moments - 1;
        seen += usize::from(is_memory(line));
        !is_over
    })
}

fn eight_at_work() -> Machine {
    told(eight_lines())
}

fn asked(words: &str) -> View {
    View {
        asked: words.into(),
        ..View::default()
    }
}

fn buffer((columns, rows): (u16, u16), machine: &Machine, view: &mut View, colour: bool) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    let palette = Palette { has_colour: colour };
    terminal
        .draw(|frame| draw(frame, machine, view, palette))
        .unwrap();
    terminal.backend().buffer().clone()
}

fn picture(size: (u16, u16), machine: &Machine, view: &mut View) -> String {
    let buffer = buffer(size, machine, view, false);
    let mut text = String::new();
    for row in buffer.area.rows() {
        let mut line = String::new();
        for place in row.positions() {
            write!(line, "{}", buffer[place].symbol()).unwrap();
        }
        writeln!(text, "{}", line.trim_end()).unwrap();
    }
    text
}

/// Holds a picture against the stored one.
fn hold(name: &str, text: &str) {
    // Whole, for the crate takes the outermost Cargo.toml for the workspace's.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pictures");
    expect_file![folder.join(name).with_extension("txt")].assert_eq(text);
}

#[test]
fn eight_cpus_fit_a_small_terminal() {
    let machine = eight_at_work();
    let text = picture((80, 24), &machine, &mut asked("churn,mixed,soak"));
    hold("eight-80x24", &text);
    // Nothing is cut: each CPU, the sum, each part of memory, the keys.
    for words in ["   7 ", " all ", "kernel, others", " ?  help"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(!text.contains('…'), "{text}");
}

#[test]
fn a_large_terminal_shows_more() {
    let text = picture((120, 40), &eight_at_work(), &mut asked("churn,mixed,soak"));
    hold("eight-120x40", &text);
    assert!(text.contains("blocks frames"), "{text}");
}

#[test]
fn more_cpus_than_rows_scroll() {
    let machine = told(MANY.lines());
    let mut view = asked("mixed");
    let text = picture((80, 24), &machine, &mut view);
    hold("many-80x24", &text);
    assert!(text.contains("1-13 of 64"), "{text}");
    // However far it is scrolled, the last row is a CPU's.
    view.offset = 1000;
    let text = picture((80, 24), &machine, &mut view);
    assert!(
        text.contains("52-64 of 64") && text.contains("\n  63 "),
        "{text}"
    );
    assert_eq!(view.offset, 51);
    let text = picture((120, 40), &machine, &mut asked("mixed"));
    hold("many-120x40", &text);
}

#[test]
fn cpus_are_sorted_by_what_is_asked_for() {
    let machine = told(MANY.lines());
    let mut view = asked("mixed");
    let mut seen = Vec::new();
    loop {
        let text = picture((80, 100), &machine, &mut view);
        let cpus: Vec<u32> = (text.lines())
            .filter_map(|line| line.get(..4)?.trim().parse().ok())
            .collect();
        let mut all = cpus.clone();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..64), "{text}");
        let keys: Vec<u64> = cpus
            .iter()
            .map(|cpu| {
                let cpu = &machine.cpus[cpu];
                let rates = cpu.rates().unwrap();
                match view.order {
                    Order::Cpu => 0,
                    Order::Operations => rates.operations,
                    Order::Interrupts => rates.interrupts,
                    Order::Calls => rates.sent + rates.served,
                    Order::Caches => cpu.blocks + cpu.frames,
                    Order::Stack => cpu.stack.0,
                }
            })
            .collect();
        assert!(
            keys.is_sorted_by(|a, b| a >= b),
            "{:?} {keys:?}",
            view.order
        );
        seen.push(cpus);
        view.order = view.order.next();
        if view.order == Order::Cpu {
            break;
        }
    }
    assert_eq!(seen.len(), 6);
    assert!(seen[0].is_sorted() && seen[1] != seen[0] && seen[2] != seen[1]);
}

#[test]
fn a_run_goes_from_its_start_to_its_verdict() {
    let mut machine = Machine::default();
    let mut stages = vec![machine.stage.clone()];
    for line in EIGHT.lines() {
        machine.take(line);
        if stages.last() != Some(&machine.stage) {
            stages.push(machine.stage.clone());
        }
    }
    machine.end();
    use Stage::{AtWork, Done, Over, Rising, Starting, Up};
    let passed = Over(muster_events::Outcome::Passed, String::new());
    assert_eq!(stages, [Starting, Rising, Up, AtWork, Done(None), passed]);
    assert!(machine.is_over() && !machine.ended_badly());
    let text = picture((80, 24), &machine, &mut asked("churn,mixed,soak"));
    assert!(text.contains("passed: all was as it should be"), "{text}");
}

#[test]
fn a_bad_end_is_told_with_its_last_words() {
    let mut machine = told(FAULT.lines());
    for line in FAULT_WORDS.lines() {
        machine.hear(line.into());
    }
    machine.end();
    assert!(machine.ended_badly());
    let text = picture((80, 24), &machine, &mut asked("mixed"));
    hold("fault-80x24", &text);
    assert!(text.contains("FAULT: CPU 2: double fault"), "{text}");
    assert!(text.contains("muster: PANICKED"), "{text}");
}

#[test]
fn work_that_is_refused_is_told_in_words() {
    let mut machine = told([
        r#"{"us":1,"by":0,"event":"command","line":"stress chrun","is_done":false}"#,
        r#"{"us":2,"by":0,"event":"log","level":"error","target":"monitor","text":"not `chrun`"}"#,
        r#"{"us":3,"by":0,"event":"command","line":"stress chrun","is_done":true}"#,
    ]);
    assert!(machine.is_done());
    let text = picture((80, 24), &machine, &mut asked("chrun"));
    assert!(
        text.contains("no CPU was put to work: not `chrun`"),
        "{text}"
    );
    // An error while it worked is another matter.
    machine = eight_at_work();
    machine.take(r#"{"us":2,"by":0,"event":"log","level":"error","target":"x","text":"y"}"#);
    machine.take(r#"{"us":3,"by":0,"event":"command","line":"stress x","is_done":true}"#);
    assert_eq!(machine.refusal, None);
}

#[test]
fn a_kernel_that_is_gone_is_told_in_words() {
    let mut machine = eight_at_work();
    machine.end();
    let text = picture((80, 24), &machine, &mut asked("churn,mixed,soak"));
    assert!(text.contains("gone, without a verdict"), "{text}");
    assert!(machine.ended_badly());
}

#[test]
fn what_is_no_event_is_told_in_words() {
    let mut machine = eight_at_work();
    assert_eq!(machine.malformed, None);
    let number = eight_lines().count() + 1;
    machine.take(r#"{"us":1,"by":0,"event":"sample""#);
    machine.take("");
    let told = format!("line {number} of the events is none");
    assert!(machine.malformed.as_deref().unwrap().starts_with(&told));
    let text = picture((80, 24), &machine, &mut asked("churn,mixed,soak"));
    assert!(text.contains(&told), "{text}");
}

#[test]
fn what_is_wrong_shows_while_the_kernel_works() {
    let absent = r#"{"us":9,"by":0,"event":"absent","cpu":3,"lapic":3,"phase":"stack"}"#;
    let warning = r#"{"us":9,"by":0,"event":"log","level":"warn","target":"x","text":"hm"}"#;
    let corrupt = r#"{"us":9,"by":0,"event":"workload","workload":"soak","heap":"magazines","cpus":7,"took_us":1,"operations":1,"operations_per_s":1,"bytes":1,"refused":0,"corrupt":2}"#;
    let mut machine = eight_at_work();
    for (line, words) in [
        (warning, ": 1 warning in the log"),
        (absent, "1 of 8 CPUs did not come: 3"),
        (corrupt, "corrupt: 2 blocks"),
    ] {
        machine.take(line);
        let text = picture((80, 24), &machine, &mut asked("churn,mixed,soak"));
        assert!(text.contains(words), "{text}");
    }
    assert!(picture((80, 24), &machine, &mut asked("churn,mixed,soak")).contains("absent"));
    let mut view = asked("churn,mixed,soak");
    view.silence = Some(7);
    let text = picture((80, 24), &eight_at_work(), &mut view);
    assert!(text.contains("said nothing for 7 s"), "{text}");
}

#[test]
fn a_long_list_of_workloads_leaves_room_for_the_time() {
    let list = ["mixed"; 20].join(",");
    let text = picture((80, 24), &eight_at_work(), &mut asked(&list));
    let first = text.lines().next().unwrap();
    assert!(first.contains("soak, of mixed,mixed"), "{text}");
    assert!(first.ends_with("… up 0:11"), "{text}");
}

#[test]
fn the_keys_are_explained() {
    let mut view = asked("churn,mixed,soak");
    view.is_help = true;
    let text = picture((80, 24), &eight_at_work(), &mut view);
    hold("help-80x24", &text);
}

#[test]
fn colours_are_only_where_they_are_wanted() {
    for colour in [false, true] {
        let buffer = buffer(
            (80, 24),
            &eight_at_work(),
            &mut asked("churn,mixed,soak"),
            colour,
        );
        let is_plain = |place| {
            let cell: &ratatui::buffer::Cell = place;
            cell.fg == Color::Reset && cell.bg == Color::Reset
        };
        assert_eq!(buffer.content.iter().all(is_plain), !colour);
    }
}

#[test]
fn any_size_can_be_drawn() {
    for machine in [Machine::default(), eight_at_work(), told(MANY.lines())] {
        for columns in [1, 20, 73, 74, 99, 100, 300] {
            for rows in [1, 15, 16, 30, 200] {
                let mut view = asked("all");
                view.is_help = rows % 2 == 0;
                let text = picture((columns, rows), &machine, &mut view);
                let is_small = columns < 74 || rows < 16;
                assert!(is_small || text.contains("muster top"), "{text}");
            }
        }
    }
}
