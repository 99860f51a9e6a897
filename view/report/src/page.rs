//! The page.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use muster_events::{Moment, Outcome, Run, Verdict};

use crate::allocators::{self, Bench};
use crate::canvas::Chart;
use crate::memory;
use crate::numbers::{bytes, grouped, of_cpus, short, time};
use crate::run_events::RunEvents;
use crate::tables::{self, folded};
use crate::{boot, latency, stress};

/// The page's style.
const STYLE: &str = include_str!("style.css");

/// Makes the page of these runs: the boot and the stress of the first that has a stress, the benchmarks of
/// the first that has some, and of each how it ended and its exact command. `gaps` is what else is
/// missing, in sentences.
///
/// # Errors
/// If a chart can't be drawn.
pub fn page(runs: &[RunEvents], gaps: &[String]) -> Result<String> {
    let stressed = runs.iter().find(|events| !events.workloads.is_empty());
    let booted = stressed.or(runs.first());
    let measured = runs.iter().find(|events| !events.figures.is_empty());
    let mut gaps = gaps.to_vec();
    if stressed.is_none() {
        gaps.push("No run has a workload of the stress.".into());
    }
    if measured.is_none() {
        gaps.push("No run has a benchmark.".into());
    }
    for events in runs {
        let of_it = events.gaps().into_iter();
        gaps.extend(of_it.map(|gap| format!("{}: {gap}", events.name())));
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Muster: report" }
                // A browser would ask for one otherwise.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Muster" span { "report" } }
                    (of_machine(runs))
                }
                main {
                    (tiles(booted, measured))
                    (caution(runs))
                    (missing(&gaps))
                    @if let Some(events) = booted { (of_boot(events)?) (of_memory(events)?) }
                    @if let Some(events) = measured { (of_allocators(events)?) }
                    @if let Some(events) = stressed { (of_stress(events)?) }
                    @if let Some(events) = booted { (of_costs(events)) (of_account(events)) }
                    section id="runs" {
                        h2 { "The runs" }
                        p { "What was typed, and what it ran on." }
                        @for events in runs { (of_run(events)) }
                    }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// Makes a chart with its words.
fn figure(chart: &Chart) -> Markup {
    html! {
        figure id=(chart.id) {
            figcaption { strong { (chart.title) } " " span { (chart.about) } }
            (PreEscaped(&chart.svg))
        }
    }
}

/// Describes the date, the kernel and the machine, in a line.
fn of_machine(runs: &[RunEvents]) -> Markup {
    let Some(run) = runs.iter().find_map(|events| events.run.as_ref()) else {
        return html! {};
    };
    html! {
        p.soft {
            @if !run.started.is_empty() { time datetime=(run.started) { (run.started.replace('T', " ").replace('Z', " UTC")) } " · " }
            @if !run.revision.is_empty() { "revision " code { (run.revision) } " · " }
            "QEMU " (run.qemu_version) " · host: " (run.host_cpu) ", " (of_cpus(run.host_cpus))
        }
    }
}

/// Makes a number that stands for a part of the page.
fn tile(number: &str, words: &str, is_good: Option<bool>) -> Markup {
    let class = match is_good {
        Some(true) => "good",
        Some(false) => "bad",
        None => "",
    };
    html! { li { b class=(class) { (number) } " " span { (words) } } }
}

/// Makes the summary, in a few numbers.
fn tiles(booted: Option<&RunEvents>, measured: Option<&RunEvents>) -> Markup {
    let roll = booted.and_then(|events| events.roll);
    let workloads = booted.map_or(&[][..], |events| &events.workloads);
    let account = booted.and_then(|events| events.account);
    let lead = measured.and_then(lead);
    html! {
        ul.tiles {
            @if let Some(roll) = roll {
                @let words = format!("CPUs online, {} after their release", time(roll.took_us as f64 * 1e3));
                (tile(&format!("{} of {}", roll.online, roll.expected), &words, Some(roll.online == roll.expected)))
            }
            @if !workloads.is_empty() {
                @let operations: u64 = workloads.iter().map(|workload| workload.operations).sum();
                @let corrupt: u64 = workloads.iter().map(|workload| workload.corrupt).sum();
                @let words = format!("blocks corrupt in {} operations of {} workloads", short(operations as f64), workloads.len());
                (tile(&grouped(corrupt), &words, Some(corrupt == 0)))
            }
            @if let Some(account) = account {
                (tile(&bytes(account.memory_bytes.into()), "of memory accounted for, to the byte", None))
            }
            @if let Some((bench, cpus, times)) = lead {
                @let words = format!("the pairs a second of the best other allocator, {bench} on {}", of_cpus(cpus));
                (tile(&format!("{times:.1}×"), &words, None))
            }
        }
    }
}

/// Returns how many times as much as the best other allocator Muster's heap does on the most CPUs: with sizes that
/// are mixed, if that was measured.
fn lead(events: &RunEvents) -> Option<(&str, u32, f64)> {
    let benches = events.benches();
    let name = benches
        .iter()
        .find(|name| **name == "mixed")
        .or(benches.first())?;
    let bench = Bench::of(&events.figures, name);
    let pairs = |allocator: &&str| {
        let figure = bench.figure(allocator, bench.most());
        figure.map_or(0, |figure| figure.pairs_per_s)
    };
    let (own, others): (Vec<_>, Vec<_>) =
        (bench.allocators.iter()).partition(|name| **name == allocators::OWN);
    let best = others
        .into_iter()
        .map(pairs)
        .max()
        .filter(|&best| best > 0)?;
    Some((name, bench.most(), pairs(own.first()?) as f64 / best as f64))
}

/// Warns of the limits of the times.
fn caution(runs: &[RunEvents]) -> Markup {
    let all = runs
        .iter()
        .filter_map(|events| Some((events.run.as_ref()?, events.start.as_ref()?)));
    let most = all.max_by_key(|(_, start)| start.cpus);
    let Some((run, start)) = most else {
        return html! {};
    };
    html! {
        aside {
            p {
                strong { "How to read the times. " }
                "All of this ran in QEMU, "
                @if is_emulated(run) { "which translated each instruction" }
                @else { "on the host’s own CPUs" }
                ": " (start.cpus) " virtual CPUs on a host with " (run.host_cpus) ". "
                @if start.cpus > run.host_cpus {
                    "They took turns, so none of the lines below can follow the ideal one beyond "
                    (of_cpus(run.host_cpus)) ", and a virtual CPU that had to wait for its turn shows as a slow step "
                    "or a late one. "
                }
                "Times are good beside one another, not as a machine’s."
            }
        }
    }
}

/// Returns whether QEMU emulated the guest's instructions.
fn is_emulated(run: &Run<'_>) -> bool {
    run.qemu.contains("-accel tcg")
}

fn missing(gaps: &[String]) -> Markup {
    html! {
        @if !gaps.is_empty() {
            aside.missing id="missing" {
                p { strong { "What is missing or went wrong" } }
                ul { @for gap in gaps { li { (gap) } } }
            }
        }
    }
}

fn verdict(verdict: Option<&Verdict<'_>>) -> Markup {
    let Some(verdict) = verdict else {
        return html! { span.bad { "did not end by itself" } };
    };
    let words = match verdict.outcome {
        Outcome::Passed => return html! { span.good { "passed" } },
        Outcome::Failed => "failed",
        Outcome::Refused => "refused to start",
        Outcome::Fault => "ended in a fault",
    };
    html! { span.bad { (words) ": " (verdict.reason.as_deref().unwrap_or_default()) } }
}

fn of_boot(events: &RunEvents) -> Result<Markup> {
    let charts = [boot::all(events)?, boot::steps(events)?];
    Ok(html! {
        @if charts.iter().any(Option::is_some) {
            section id="boot" {
                h2 { "The boot" }
                p {
                    "CPU 0 plans the memory, builds the tables that all share and opens the heap. Then it releases "
                    "the others all at once, and each takes over its block, its control registers, the shared tables, "
                    "a stack of its own and its descriptors, and is online."
                }
                @for chart in charts.iter().flatten() { (figure(chart)) }
                (folded("Each CPU’s times", tables::boot(&events.cpus)))
            }
        }
    })
}

fn of_memory(events: &RunEvents) -> Result<Markup> {
    let moments = [
        (Moment::Boot, "memory-boot", "when all CPUs were at work"),
        (Moment::End, "memory-end", "in the end"),
    ];
    let mut maps = Vec::new();
    let mut columns = Vec::new();
    for (moment, id, when) in moments {
        let ranges = events.ranges_at(moment);
        if !ranges.is_empty() {
            maps.push(memory::chart(id, &ranges, when)?);
            columns.push((when, ranges));
        }
    }
    Ok(html! {
        @if !maps.is_empty() {
            section id="memory" {
                h2 { "The physical memory" }
                p { "Each frame has one owner. What these are, and how much each has:" }
                div.scroll { (tables::owners(events, &columns)) }
                @if let [first, rest @ ..] = maps.as_slice() {
                    (figure(first))
                    @for map in rest { details { summary { "The same in the end" } (figure(map)) } }
                }
            }
        }
    })
}

fn of_allocators(events: &RunEvents) -> Result<Markup> {
    let mut sections = Vec::new();
    for name in events.benches() {
        let bench = Bench::of(&events.figures, name);
        let charts = [
            Some(allocators::throughput(&bench)?),
            Some(allocators::latency(&bench)?),
            latency::chart(&events.latencies, &bench)?,
            allocators::fairness(&bench)?,
        ];
        sections.push((bench, charts));
    }
    Ok(html! {
        section id="allocators" {
            h2 { "The allocators" }
            p {
                "Each workload with each allocator in the same boot, in turns; figures are medians of the rounds. "
                "The axes are logarithmic where they are not of shares."
            }
            @for (bench, charts) in &sections {
                section.bench id=(format!("bench-{}", bench.name)) {
                    h3 { (bench.name) }
                    @if let Some(about) = allocators::about(bench.name) { p.soft { (about) } }
                    div.pair { @for chart in charts.iter().flatten() { (figure(chart)) } }
                    (folded(&format!("All figures of {}", bench.name), tables::figures(events, bench)))
                }
            }
        }
    })
}

fn of_stress(events: &RunEvents) -> Result<Markup> {
    let charts = stress::charts(events)?;
    Ok(html! {
        section id="stress" {
            h2 { "The stress" }
            @if !charts.is_empty() {
                p { "What each CPU did of each workload, to the mean of all CPUs: level with the line is fair." }
                div.many { @for chart in &charts { (figure(chart)) } }
            }
            div.scroll { (tables::workloads(&events.workloads)) }
            (folded("Each CPU’s operations", tables::works(events)))
        }
    })
}

fn of_costs(events: &RunEvents) -> Markup {
    html! {
        @if !events.costs.is_empty() {
            section id="costs" {
                h2 { "What CPUs cost one another" }
                div.scroll { (tables::costs(&events.costs)) }
            }
        }
    }
}

fn of_account(events: &RunEvents) -> Markup {
    html! {
        @if let Some(account) = &events.account {
            section id="account" {
                h2 { "The account" }
                p {
                    "Whose all memory is in the end"
                    @if let Some(audit) = events.audit {
                        "; each frame of " (bytes(audit.memory_bytes.into())) " has one owner, and "
                        (grouped(audit.live_after_bytes)) " bytes are live, boot arena included, "
                        (grouped(audit.live_before_bytes)) " were before the work"
                    }
                    "."
                }
                div.scroll { (tables::account(account)) }
                p {
                    "Live is what is allocated and not freed, as asked for; in the boot arena, which is part "
                    "of the kernel image, " (bytes(account.boot_live_bytes.into())) " more. Cached are free "
                    "blocks that CPUs and depots keep, and the rest is what else is in the heap’s frames."
                }
                p { "What each CPU has of it, and has done, and in common what no CPU has:" }
                div.scroll { (tables::account_cpus(&events.account_cpus, events.account_common)) }
            }
        }
    }
}

/// Makes the part with the exact command and configuration.
fn of_run(events: &RunEvents) -> Markup {
    html! {
        h3 { code { (events.name()) } }
        dl {
            dt { "Verdict" } dd { (verdict(events.verdict.as_ref())) }
            @if let Some(run) = &events.run {
                @if !run.started.is_empty() { dt { "Started" } dd { (run.started) } }
                @if !run.revision.is_empty() { dt { "Git revision" } dd { code { (run.revision) } } }
                dt { "QEMU" } dd { (run.qemu_version) }
                @if let Some(model) = after(&run.qemu, "-cpu") { dt { "CPU model" } dd { code { (model) } } }
                @if let Some(how) = after(&run.qemu, "-accel") { dt { "Acceleration" } dd { code { (how) } } }
                dt { "Its command" } dd { code { (run.qemu) } }
                dt { "Host" } dd { (of_cpus(run.host_cpus)) ", " (run.host_cpu) }
            }
            @if let Some(start) = &events.start { (tables::configuration(events, start)) }
        }
    }
}

/// Returns the word after another of a command.
fn after<'a>(command: &'a str, word: &str) -> Option<&'a str> {
    command.split(' ').skip_while(|other| *other != word).nth(1)
}
