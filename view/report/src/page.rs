//! The page.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use muster_events::{Moment, Outcome, Run, Verdict};

use crate::allocators::{self, Bench};
use crate::canvas::Chart;
use crate::memory;
use crate::numbers::{bytes, grouped, of_cpus, short, time};
use crate::tables::{self, folded};
use crate::told::Told;
use crate::{boot, latency, stress};

/// The page's style.
const STYLE: &str = include_str!("style.css");

/// The page of these runs: the boot and the stress of the first that has a stress, the benchmarks of the
/// first that has some, and of each how it ended and its exact command. `gaps` is what else is missing, in
/// sentences.
///
/// # Errors
/// If a chart can't be drawn.
pub fn page(runs: &[Told], gaps: &[String]) -> Result<String> {
    let stressed = runs.iter().find(|told| !told.workloads.is_empty());
    let booted = stressed.or(runs.first());
    let measured = runs.iter().find(|told| !told.figures.is_empty());
    let mut gaps = gaps.to_vec();
    if stressed.is_none() {
        gaps.push("No run told of a workload of the stress.".into());
    }
    if measured.is_none() {
        gaps.push("No run told of a benchmark.".into());
    }
    for told in runs {
        let of_it = told.gaps().into_iter();
        gaps.extend(of_it.map(|gap| format!("{}: {gap}", told.name())));
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
                    @if let Some(told) = booted { (of_boot(told)?) (of_memory(told)?) }
                    @if let Some(told) = measured { (of_allocators(told)?) }
                    @if let Some(told) = stressed { (of_stress(told)?) }
                    @if let Some(told) = booted { (of_costs(told)) (of_account(told)) }
                    section id="runs" {
                        h2 { "The runs" }
                        p { "What was typed, and what it ran on." }
                        @for told in runs { (of_run(told)) }
                    }
                }
            }
        }
    };
    Ok(page.into_string())
}

/// A chart with its words.
fn figure(chart: &Chart) -> Markup {
    html! {
        figure id=(chart.id) {
            figcaption { strong { (chart.title) } " " span { (chart.about) } }
            (PreEscaped(&chart.svg))
        }
    }
}

/// When, of what and on what, in a line.
fn of_machine(runs: &[Told]) -> Markup {
    let Some(run) = runs.iter().find_map(|told| told.run.as_ref()) else {
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

/// A number that stands for a part of the page.
fn tile(number: &str, words: &str, is_good: Option<bool>) -> Markup {
    let class = match is_good {
        Some(true) => "good",
        Some(false) => "bad",
        None => "",
    };
    html! { li { b class=(class) { (number) } " " span { (words) } } }
}

/// What matters, in a few numbers.
fn tiles(booted: Option<&Told>, measured: Option<&Told>) -> Markup {
    let roll = booted.and_then(|told| told.roll);
    let workloads = booted.map_or(&[][..], |told| &told.workloads);
    let account = booted.and_then(|told| told.account);
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

/// How many times as much as the best other allocator Muster's heap does on the most CPUs: with sizes that
/// are mixed, if that was measured.
fn lead(told: &Told) -> Option<(&str, u32, f64)> {
    let benches = told.benches();
    let name = benches
        .iter()
        .find(|name| **name == "mixed")
        .or(benches.first())?;
    let bench = Bench::of(&told.figures, name);
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

/// What the times are not.
fn caution(runs: &[Told]) -> Markup {
    let all = runs
        .iter()
        .filter_map(|told| Some((told.run.as_ref()?, told.start.as_ref()?)));
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

/// Whether QEMU carried out the guest's instructions itself.
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

fn of_boot(told: &Told) -> Result<Markup> {
    let charts = [boot::all(told)?, boot::steps(told)?];
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
                (folded("Each CPU’s times", tables::boot(&told.cpus)))
            }
        }
    })
}

fn of_memory(told: &Told) -> Result<Markup> {
    let moments = [
        (Moment::Boot, "memory-boot", "when all CPUs were at work"),
        (Moment::End, "memory-end", "in the end"),
    ];
    let mut maps = Vec::new();
    let mut columns = Vec::new();
    for (moment, id, when) in moments {
        let ranges = told.ranges_at(moment);
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
                div.scroll { (tables::owners(told, &columns)) }
                @if let [first, rest @ ..] = maps.as_slice() {
                    (figure(first))
                    @for map in rest { details { summary { "The same in the end" } (figure(map)) } }
                }
            }
        }
    })
}

fn of_allocators(told: &Told) -> Result<Markup> {
    let mut sections = Vec::new();
    for name in told.benches() {
        let bench = Bench::of(&told.figures, name);
        let charts = [
            Some(allocators::throughput(&bench)?),
            Some(allocators::latency(&bench)?),
            latency::chart(&told.latencies, &bench)?,
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
                    (folded(&format!("All figures of {}", bench.name), tables::figures(told, bench)))
                }
            }
        }
    })
}

fn of_stress(told: &Told) -> Result<Markup> {
    let charts = stress::charts(told)?;
    Ok(html! {
        section id="stress" {
            h2 { "The stress" }
            @if !charts.is_empty() {
                p { "What each CPU did of each workload, to the mean of all CPUs: level with the line is fair." }
                div.many { @for chart in &charts { (figure(chart)) } }
            }
            div.scroll { (tables::workloads(&told.workloads)) }
            (folded("Each CPU’s operations", tables::works(told)))
        }
    })
}

fn of_costs(told: &Told) -> Markup {
    html! {
        @if !told.costs.is_empty() {
            section id="costs" {
                h2 { "What CPUs cost one another" }
                div.scroll { (tables::costs(&told.costs)) }
            }
        }
    }
}

fn of_account(told: &Told) -> Markup {
    html! {
        @if let Some(account) = &told.account {
            section id="account" {
                h2 { "The account" }
                p {
                    "Whose all memory is in the end"
                    @if let Some(audit) = told.audit {
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
                div.scroll { (tables::account_cpus(&told.account_cpus, told.account_common)) }
            }
        }
    }
}

/// The exact command and configuration.
fn of_run(told: &Told) -> Markup {
    html! {
        h3 { code { (told.name()) } }
        dl {
            dt { "Verdict" } dd { (verdict(told.verdict.as_ref())) }
            @if let Some(run) = &told.run {
                @if !run.started.is_empty() { dt { "Started" } dd { (run.started) } }
                @if !run.revision.is_empty() { dt { "Git revision" } dd { code { (run.revision) } } }
                dt { "QEMU" } dd { (run.qemu_version) }
                @if let Some(model) = after(&run.qemu, "-cpu") { dt { "CPU model" } dd { code { (model) } } }
                @if let Some(how) = after(&run.qemu, "-accel") { dt { "Acceleration" } dd { code { (how) } } }
                dt { "Its command" } dd { code { (run.qemu) } }
                dt { "Host" } dd { (of_cpus(run.host_cpus)) ", " (run.host_cpu) }
            }
            @if let Some(start) = &told.start { (tables::configuration(told, start)) }
        }
    }
}

/// The word after another of a command.
fn after<'a>(command: &'a str, word: &str) -> Option<&'a str> {
    command.split(' ').skip_while(|other| *other != word).nth(1)
}
