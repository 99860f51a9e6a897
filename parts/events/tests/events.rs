//! Every event: written without an allocation, read back as it was, refused if it is not of the schema,
//! and documented to the last field.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use muster_events::*;
use serde_json::Value;

/// Counts what each thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all of it is the system's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns one of each, with as much in them as there may be.
fn examples() -> Vec<Event<'static>> {
    vec![
        Event::Run(Run {
            schema: SCHEMA,
            command: "just run-smp 8".into(),
            qemu: "qemu-system-x86_64 -smp 8".into(),
            qemu_version: "7.2.22".into(),
            host_cpu: "a CPU".into(),
            host_cpus: 2,
            started: "2026-11-25T19:30:00Z".into(),
            revision: "8b52e60-dirty".into(),
        }),
        Event::Start(Start {
            schema: SCHEMA,
            version: "0.1.0".into(),
            loader: "a \"loader\"\\".into(),
            command_line: "seconds=2 é".into(),
            cpus: 288,
            usable_bytes: u64::MAX,
            before_entry_us: 1,
            tsc_hz: 2_400_000_000,
            tsc_invariant: Some(true),
            features: Features {
                no_execute: true,
                gigabyte_pages: false,
                smep: true,
                smap: true,
                umip: false,
                physical_bits: 52,
                levels: 5,
            },
        }),
        Event::Log(Log {
            level: Level::Warn,
            target: "roll".into(),
            text: "a line\u{1}\n".into(),
        }),
        Event::Mapped(Mapped {
            hhdm: Some(Address(0xffff_8000_0000_0000)),
            regions: 40,
            bytes: 1 << 40,
            pages_4kib: 1,
            pages_2mib: 2,
            pages_1gib: 3,
            tables: 4,
        }),
        Event::Cpu(Cpu {
            cpu: 3,
            lapic: u32::MAX,
            online: true,
            phase: Phase::Online,
            reached_us: Reached {
                released: Some(u64::MAX),
                ..Reached::default()
            },
            tsc_ahead_ns: Some(i64::MIN),
            tsc_error_ns: Some(u64::MAX),
            stack_top: Some(Address(u64::MAX)),
            block: Some(Address(0)),
            tables: None,
        }),
        Event::Roll(Roll {
            online: 7,
            expected: 8,
            left_out: 0,
            released_us: 1,
            took_us: 2,
            deadline_ms: 2000,
        }),
        Event::Absent(Absent {
            cpu: None,
            lapic: 7,
            phase: Some(Phase::Released),
        }),
        Event::Reclaim(Reclaim {
            taken_bytes: 0,
            kept_bytes: 4096,
            why: Some("reclaim=no asks for it".into()),
        }),
        Event::Range(Range {
            moment: Moment::Boot,
            start: 0x1000,
            bytes: 0x1000,
            owner: Owner::AcpiReclaimable,
        }),
        Event::Cost(Cost {
            of: Measured::ShootdownIdle,
            others: 7,
            median_ns: 1,
            rounds: 301,
        }),
        Event::Command(muster_events::Command {
            line: "stress soak".into(),
            is_done: true,
        }),
        Event::Sample(Sample {
            cpu: 0,
            phase: Phase::Online,
            doing: "at work, in churn".into(),
            workload: "churn".into(),
            operations: u64::MAX,
            interrupts: 1,
            calls_sent: 2,
            calls_served: 3,
            cached_bytes: 4,
            frame_cache_bytes: 5,
            stack_bytes: 6,
            stack_limit_bytes: 65536,
        }),
        Event::Memory(Memory {
            workload: "churn".into(),
            memory_bytes: 1,
            free_bytes: 2,
            heap_bytes: 3,
            heap_live_bytes: i64::MIN,
            heap_cached_bytes: 4,
            mapped_bytes: 5,
            page_table_bytes: 6,
        }),
        Event::Work(Work {
            workload: "churn".into(),
            heap: "magazines".into(),
            cpu: 1,
            operations: 2,
            bytes: 3,
            refused: 4,
            corrupt: 5,
            slowest_ns: 6,
            interrupts: 7,
        }),
        Event::Workload(Workload {
            workload: "churn".into(),
            heap: "magazines".into(),
            cpus: 8,
            took_us: 1,
            operations: 2,
            operations_per_s: 3,
            bytes: 4,
            refused: 5,
            corrupt: 6,
        }),
        Event::Figure(Figure {
            bench: "mixed".into(),
            allocator: "linked_list".into(),
            cpus: 8,
            pairs_per_s: u64::MAX,
            ns_per_pair: Some(76738.6),
            p999_ns: Some(1),
            ratio_to_linked_list: Some(1067.125),
            fairness: None,
            failures: 0,
        }),
        Event::Latency(Latency {
            bench: "frame-fragmentation".into(),
            allocator: "buddy_system_allocator".into(),
            cpus: 288,
            steps: [(6_442_450_944, u64::from(u32::MAX)); 64].to_vec().into(),
        }),
        Event::Instructions(Instructions {
            bench: "mixed".into(),
            allocator: "muster".into(),
            cpus: 1,
            instructions_per_pair: 31.86,
            failures: 0,
        }),
        Event::AccountCpu(AccountCpu {
            cpu: 1,
            frame_cache_bytes: 2,
            cached_bytes: 3,
            allocated_bytes: u64::MAX,
            freed_bytes: 4,
            mapped_bytes: i64::MIN,
            stack_bytes: 5,
            interrupts: 6,
            calls_sent: 7,
            calls_served: 8,
            shootdowns: 9,
            spared: 10,
            flushes: 11,
        }),
        Event::AccountCommon(AccountCommon {
            free_bytes: u64::MAX,
            cached_bytes: 1,
            allocated_bytes: 2,
            freed_bytes: 3,
            mapped_bytes: i64::MIN,
        }),
        Event::Account(Account {
            memory_bytes: u64::MAX,
            free_bytes: u64::MAX,
            frame_cache_bytes: u64::MAX,
            heap_live_bytes: i64::MIN,
            boot_live_bytes: 1,
            heap_cached_bytes: u64::MAX,
            owners: Owners {
                free: u64::MAX,
                loader: u64::MAX,
                kernel: u64::MAX,
                frame_table: u64::MAX,
                page_tables: u64::MAX,
                heap: u64::MAX,
                stacks: u64::MAX,
                per_cpu: u64::MAX,
                mappings: u64::MAX,
                acpi_reclaimable: u64::MAX,
                acpi_nvs: u64::MAX,
                framebuffer: u64::MAX,
                reserved: u64::MAX,
                bad: u64::MAX,
                null_frame: u64::MAX,
                low_memory: u64::MAX,
                not_write_back: u64::MAX,
            },
        }),
        Event::Audit(Audit {
            memory_bytes: 1,
            live_before_bytes: 2,
            live_after_bytes: 2,
            heap_bytes: 3,
            heap_peak_bytes: 4,
            whole_free_bytes: 5,
        }),
        Event::Interrupts(Interrupts {
            cpu: 1,
            timer: 2,
            wake_up: 3,
            device: 8,
            error: 4,
            spurious: 5,
            nmi: 6,
            unexpected: 7,
        }),
        Event::Fault(Fault {
            cpu: 3,
            kind: Kind::Exception,
            text: "\"".repeat(256).into(),
            location: Some("\\".repeat(256).into()),
            instruction: Some(Address(0xffff_ffff_8000_1234)),
            error_code: Some(Address(2)),
            address: None,
        }),
        Event::ReturnAddress(ReturnAddress {
            depth: 1,
            address: Address(0xffff_ffff_8000_1234),
            repeated: 30,
        }),
        Event::Stopped(Stopped {
            cpu: 1,
            address: None,
            fault: Some("panic: oh".into()),
            doing: "idle".into(),
            phase: Phase::Tables,
        }),
        Event::Verdict(Verdict {
            outcome: Outcome::Fault,
            status: Outcome::Fault.status(),
            reason: Some("CPU 3: page fault".into()),
        }),
        Event::Omitted(Omitted {
            name: "start".into(),
        }),
    ]
}

fn record(event: Event<'_>) -> Record<'_> {
    Record {
        us: 123_456,
        by: Some(7),
        event,
    }
}

fn parse(line: &str) -> Result<Record<'static>, serde_json::Error> {
    serde_json::from_str(line)
}

#[test]
fn there_is_an_example_of_each() {
    let names: Vec<_> = examples().iter().map(Event::name).collect();
    assert_eq!(names, Event::NAMES);
}

#[test]
fn each_is_written_without_an_allocation_and_read_back_as_it_was() {
    for event in examples() {
        let record = record(event);
        let before = ALLOCATIONS.get();
        let line = EventLine::of(&record);
        assert_eq!(ALLOCATIONS.get(), before, "{}", record.event.name());

        // None of them is too long, and it is what anybody else would write.
        let text = line.as_str();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(parse(text).unwrap(), record);
        assert_eq!(line.as_bytes(), format!("{text}\n").as_bytes());
        assert_eq!(text.lines().count(), 1);
        let object: Value = serde_json::from_str(text).unwrap();
        assert_eq!(object["event"], record.event.name());
        assert_eq!((&object["us"], &object["by"]), (&123_456.into(), &7.into()));
    }
}

#[test]
fn a_field_too_many_or_too_few_is_refused() {
    for event in examples() {
        let record = record(event);
        let object = serde_json::to_value(&record).unwrap();
        let object = object.as_object().unwrap();
        let mut more = object.clone();
        more.insert("more".into(), 1.into());
        let text = Value::from(more).to_string();
        assert!(parse(&text).is_err(), "{text}");
        for (key, value) in object {
            // What may be null may be left out, as serde has it.
            if value.is_null() {
                continue;
            }
            let mut less = object.clone();
            less.remove(key);
            let text = Value::from(less.clone()).to_string();
            less.insert(key.clone(), Value::Null);
            let is_optional = parse(&Value::from(less).to_string()).is_ok();
            let has_default = matches!(
                (record.event.name(), key.as_str()),
                ("instructions", "failures") | ("interrupts", "device")
            );
            assert_eq!(parse(&text).is_ok(), is_optional || has_default, "{text}");
        }
    }
    for wrong in [
        r#"{"us":1,"by":0,"event":"gol","text":"x"}"#,
        r#"{"us":1,"by":0,"text":"x"}"#,
        r#"{"us":1,"by":0,"event":"omitted","name":"x"} x"#,
        r#"{"us":-1,"by":0,"event":"omitted","name":"x"}"#,
        "",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn addresses_are_hexadecimal() {
    let with = |address: &str| {
        let head = r#"{"us":1,"by":0,"event":"return_address","depth":0,"repeated":0,"address":"#;
        parse(&format!("{head}{address}}}"))
    };
    assert!(with(r#""0xffffffffffffffff""#).is_ok());
    for wrong in [
        r#""ff""#,
        r#""0x""#,
        r#""0x1ffffffffffffffff""#,
        r#""0x-1""#,
        "16",
    ] {
        assert!(with(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_is_too_long_is_named() {
    let event = Event::Start(Start {
        command_line: "x".repeat(MAX_LENGTH).into(),
        ..match examples().swap_remove(1) {
            Event::Start(start) => start,
            _ => unreachable!(),
        }
    });
    let line = EventLine::of(&record(event));
    assert_eq!(
        line.as_str(),
        r#"{"us":123456,"by":7,"event":"omitted","name":"start"}"#
    );
    assert!(EventLine::of_value(&"x".repeat(MAX_LENGTH - 1)).is_none());
    let longest = "x".repeat(MAX_LENGTH - 2);
    assert_eq!(
        EventLine::of_value(&longest).unwrap().as_str().len(),
        MAX_LENGTH
    );
}

#[test]
fn statuses_are_those_of_the_outcomes() {
    for outcome in Outcome::ALL {
        assert_eq!(Outcome::of_status(outcome.status()), Some(outcome));
        // As `isa-debug-exit` makes them.
        assert_eq!(outcome.status() & 1, 1);
    }
    assert_eq!(Outcome::of_status(0), None);
    assert_eq!(Outcome::of_status(1), None);
}

#[test]
fn phases_are_in_order_and_their_names_those_of_the_schema() {
    assert!(Phase::ALL.is_sorted());
    for (place, phase) in Phase::ALL.into_iter().enumerate() {
        assert_eq!(phase as usize, place);
        assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
    }
}

/// Returns the documentation.
fn documentation() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/events.md");
    std::fs::read_to_string(path).unwrap()
}

/// Returns the names of an object's fields; of those within a field, behind its own.
fn fields(object: &Value, within: &str) -> BTreeSet<String> {
    let fields = object.as_object().into_iter().flatten();
    fields
        .flat_map(|(key, value)| match value.is_object() {
            true => self::fields(value, &format!("{within}{key}.")),
            false => [format!("{within}{key}")].into(),
        })
        .collect()
}

#[test]
fn every_field_of_every_event_is_documented_and_no_other() {
    let text = documentation();
    let mut sections = text.split("\n### ").skip(1);
    for event in examples() {
        let section = sections.next().unwrap_or_default();
        assert!(
            section.starts_with(&format!("`{}`\n", event.name())),
            "{section}"
        );
        let rows = section.lines().filter_map(|line| {
            let (name, what) = line.strip_prefix("| `")?.split_once("` | ")?;
            assert!(what.trim_end_matches('|').trim().len() > 2, "{line}");
            Some(name.to_owned())
        });
        let mut object = serde_json::to_value(record(event)).unwrap();
        for common in ["us", "by", "event"] {
            object.as_object_mut().unwrap().remove(common);
        }
        assert_eq!(
            rows.collect::<BTreeSet<_>>(),
            fields(&object, ""),
            "{section}"
        );
    }
    assert_eq!(sections.next(), None);
    assert!(text.contains(&format!("Version **{SCHEMA}**")));
    assert!(text.contains(&format!("{MAX_LENGTH} bytes")));
}

/// A run of two CPUs and a short benchmark, as the kernel wrote their events.
const RUN: &str = include_str!("run.jsonl");

#[test]
fn a_stored_run_is_of_the_schema() {
    for line in RUN.lines() {
        let record = parse(line).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
    }
}

#[test]
fn the_documented_jq_works_on_a_run() {
    let is_installed = Command::new("jq").arg("--version").output().is_ok();
    if !is_installed {
        println!("skipped: there is no jq here");
        return;
    }
    let folder = std::env::temp_dir().join(format!("muster-events-{}", std::process::id()));
    let file = folder.join("target/boot-log/events.jsonl");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, RUN).unwrap();
    let text = documentation();
    let blocks = text.split("\n```jq\n").skip(1);
    let lines = blocks.flat_map(|block| block.split("\n```").next().unwrap().lines());
    let mut count = 0;
    for line in lines {
        let output = Command::new("sh")
            .args(["-c", line])
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let answer = String::from_utf8(output.stdout).unwrap();
        let objects = answer
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let cpus: BTreeSet<u64> = objects
            .map(|object: Value| object["cpu"].as_u64().unwrap())
            .collect();
        // The first is of APs only.
        assert_eq!(
            cpus.into_iter().next(),
            Some(u64::from(count == 0)),
            "{answer}"
        );
        count += 1;
    }
    assert_eq!(count, 2);
    std::fs::remove_dir_all(folder).unwrap();
}
