//! The numbers, as tables.

use maud::{Markup, html};
use muster_events::{Account, AccountCommon, AccountCpu, Cost, Cpu, Measured, Start, Workload};

use crate::allocators::Bench;
use crate::boot;
use crate::canvas::variable;
use crate::latency;
use crate::memory::look_of;
use crate::numbers::{bytes, grouped, time};
use crate::run_events::RunEvents;
use crate::stress;

/// Makes folded numbers.
pub fn folded(of: &str, table: Markup) -> Markup {
    html! {
        details {
            summary { (of) }
            div.scroll { (table) }
        }
    }
}

/// Makes the table of the time at which each CPU reached each phase.
pub fn boot(cpus: &[Cpu]) -> Markup {
    html! {
        table {
            caption { "Microseconds since the kernel’s entry at which a CPU reached a phase" }
            thead {
                tr {
                    th scope="col" { "CPU" } th scope="col" { "LAPIC" }
                    @for (name, _) in boot::times(&Default::default()) { th scope="col" { (name) } }
                }
            }
            tbody {
                @for cpu in cpus {
                    tr {
                        th scope="row" { (cpu.cpu) } td { (cpu.lapic) }
                        @for (_, at) in boot::times(&cpu.reached_us) { td { (or_none(at.map(grouped))) } }
                    }
                }
            }
        }
    }
}

fn or_none(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".into())
}

/// Makes the table of the owners' bytes, at each moment, with the looks that the maps have.
pub fn owners(events: &RunEvents, moments: &[(&str, Vec<muster_events::Range>)]) -> Markup {
    let mut looks = Vec::new();
    for range in &events.ranges {
        let look = look_of(range.owner);
        if !looks.contains(&look) {
            looks.push(look);
        }
    }
    html! {
        table {
            thead { tr { th scope="col" { "owner" } @for (when, _) in moments { th scope="col" { (when) } } } }
            tbody {
                @for look in &looks {
                    tr {
                        th scope="row" {
                            span.swatch style=(format!("background:{};color:{}", variable(look.colour), variable(look.ink))) {
                                (look.letter)
                            }
                            (look.name)
                        }
                        @for (_, ranges) in moments {
                            @let alike = ranges.iter().filter(|range| look_of(range.owner) == *look);
                            td { (bytes(alike.map(|range| i128::from(range.bytes)).sum())) }
                        }
                    }
                }
            }
        }
    }
}

/// Makes the table of a benchmark's figures.
pub fn figures(events: &RunEvents, bench: &Bench<'_>) -> Markup {
    let median = |allocator: &str, cpus: u32| {
        let latency = events.latencies.iter().find(|latency| {
            latency.bench == bench.name && latency.allocator == allocator && latency.cpus == cpus
        })?;
        Some(time(latency::at(latency, 500) as f64))
    };
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "allocator" } th scope="col" { "CPUs" } th scope="col" { "pairs/s" }
                    th scope="col" { "CPU time, a pair" } th scope="col" { "a step, median" }
                    th scope="col" { "99.9 %" } th scope="col" { "to linked_list" } th scope="col" { "fairness" }
                    th scope="col" { "failures" }
                }
            }
            tbody {
                @for figure in bench.allocators.iter().flat_map(|allocator| {
                    bench.cpus.iter().filter_map(|&cpus| bench.figure(allocator, cpus))
                }) {
                    tr {
                        th scope="row" { (figure.allocator) }
                        td { (figure.cpus) }
                        td { (grouped(figure.pairs_per_s)) }
                        td { (or_none(figure.ns_per_pair.map(time))) }
                        td { (or_none(median(&figure.allocator, figure.cpus))) }
                        td { (or_none(figure.p999_ns.map(|ns| time(ns as f64)))) }
                        td { (or_none(figure.ratio_to_linked_list.map(|ratio| format!("{ratio:.2}")))) }
                        td { (or_none(figure.fairness.map(|share| format!("{share:.2}")))) }
                        td { (grouped(figure.failures)) }
                    }
                }
            }
        }
    }
}

/// Makes the table of the workloads of the stress.
pub fn workloads(workloads: &[Workload<'_>]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "workload" } th scope="col" { "heap" } th scope="col" { "CPUs" }
                    th scope="col" { "time" } th scope="col" { "operations" } th scope="col" { "a second" }
                    th scope="col" { "bytes" } th scope="col" { "refused" } th scope="col" { "corrupt" }
                }
            }
            tbody {
                @for workload in workloads {
                    tr {
                        th scope="row" { (workload.workload) }
                        td { (workload.heap) }
                        td { (workload.cpus) }
                        td { (time(workload.took_us as f64 * 1e3)) }
                        td { (grouped(workload.operations)) }
                        td { (grouped(workload.operations_per_s)) }
                        td { (bytes(workload.bytes.into())) }
                        td { (grouped(workload.refused)) }
                        td { (grouped(workload.corrupt)) }
                    }
                }
            }
        }
    }
}

/// Makes the table of the operations of each CPU in each workload.
pub fn works(events: &RunEvents) -> Markup {
    let cpus = events
        .works
        .iter()
        .map(|work| work.cpu + 1)
        .max()
        .unwrap_or(0);
    html! {
        table {
            caption { "Operations of each CPU" }
            thead {
                tr {
                    th scope="col" { "workload" }
                    @for cpu in 0..cpus { th scope="col" { "CPU " (cpu) } }
                }
            }
            tbody {
                @for workload in &events.workloads {
                    @let works = stress::works(events, workload);
                    tr {
                        th scope="row" { (stress::name(events, workload)) }
                        @for cpu in 0..cpus {
                            @let work = works.iter().find(|work| work.cpu == cpu);
                            td { (or_none(work.map(|work| grouped(work.operations)))) }
                        }
                    }
                }
            }
        }
    }
}

/// Makes the table of the costs of calls and shootdowns.
pub fn costs(costs: &[Cost]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "what" } th scope="col" { "other CPUs" } th scope="col" { "median" }
                    th scope="col" { "rounds" }
                }
            }
            tbody {
                @for cost in costs {
                    tr {
                        th scope="row" {
                            @match cost.of {
                                Measured::CallOne => "a call to one idle CPU and back",
                                Measured::CallAll => "a call to all others, idle, and back",
                                Measured::ShootdownIdle => "a shootdown while the others are idle",
                                Measured::ShootdownBusy => "a shootdown while the others are at work",
                            }
                        }
                        td { (cost.others) }
                        td { (time(cost.median_ns as f64)) }
                        td { (cost.rounds) }
                    }
                }
            }
        }
    }
}

/// Makes the table of each CPU's memory and activity at the end; of memory that no CPU has; and of
/// the sum of all rows.
pub fn account_cpus(cpus: &[AccountCpu], common: Option<AccountCommon>) -> Markup {
    let all = |of: fn(&AccountCpu) -> i128, of_common: fn(&AccountCommon) -> i128| {
        cpus.iter().map(of).sum::<i128>() + common.as_ref().map_or(0, of_common)
    };
    let done = |of: fn(&AccountCpu) -> u64| grouped(cpus.iter().map(of).sum::<u64>());
    let most = cpus.iter().map(|cpu| cpu.stack_bytes).max().unwrap_or(0);
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "CPU" } th scope="col" { "free frames" } th scope="col" { "cached" }
                    th scope="col" { "allocated" } th scope="col" { "freed" }
                    th scope="col" { "mapped" } th scope="col" { "stack" }
                    th scope="col" { "interrupts" } th scope="col" { "calls sent" } th scope="col" { "served" }
                    th scope="col" { "shootdowns" } th scope="col" { "spared" } th scope="col" { "flushes" }
                }
            }
            tbody {
                @for cpu in cpus {
                    tr {
                        th scope="row" { (cpu.cpu) }
                        td { (bytes(cpu.frame_cache_bytes.into())) }
                        td { (bytes(cpu.cached_bytes.into())) }
                        td { (bytes(cpu.allocated_bytes.into())) }
                        td { (bytes(cpu.freed_bytes.into())) }
                        td { (bytes(cpu.mapped_bytes.into())) }
                        td { (bytes(cpu.stack_bytes.into())) }
                        td { (grouped(cpu.interrupts)) }
                        td { (grouped(cpu.calls_sent)) }
                        td { (grouped(cpu.calls_served)) }
                        td { (grouped(cpu.shootdowns)) }
                        td { (grouped(cpu.spared)) }
                        td { (grouped(cpu.flushes)) }
                    }
                }
                @if let Some(common) = &common {
                    tr {
                        th scope="row" { "common" }
                        td { (bytes(common.free_bytes.into())) }
                        td { (bytes(common.cached_bytes.into())) }
                        td { (bytes(common.allocated_bytes.into())) }
                        td { (bytes(common.freed_bytes.into())) }
                        td { (bytes(common.mapped_bytes.into())) }
                        @for _ in 0..7 { td {} }
                    }
                }
                tr.all {
                    th scope="row" { "all" }
                    td { (bytes(all(|cpu| cpu.frame_cache_bytes.into(), |common| common.free_bytes.into()))) }
                    td { (bytes(all(|cpu| cpu.cached_bytes.into(), |common| common.cached_bytes.into()))) }
                    td { (bytes(all(|cpu| cpu.allocated_bytes.into(), |common| common.allocated_bytes.into()))) }
                    td { (bytes(all(|cpu| cpu.freed_bytes.into(), |common| common.freed_bytes.into()))) }
                    td { (bytes(all(|cpu| cpu.mapped_bytes.into(), |common| common.mapped_bytes.into()))) }
                    td { "max " (bytes(most.into())) }
                    td { (done(|cpu| cpu.interrupts)) }
                    td { (done(|cpu| cpu.calls_sent)) }
                    td { (done(|cpu| cpu.calls_served)) }
                    td { (done(|cpu| cpu.shootdowns)) }
                    td { (done(|cpu| cpu.spared)) }
                    td { (done(|cpu| cpu.flushes)) }
                }
            }
        }
    }
}

/// Makes the table of all of the machine's memory, in parts that add up to it.
pub fn account(account: &Account) -> Markup {
    let owners = account.owners;
    let rest = i128::from(owners.heap)
        - i128::from(account.heap_live_bytes)
        - i128::from(account.heap_cached_bytes);
    let all: [(&str, i128); 19] = [
        ("free", account.free_bytes.into()),
        ("free, in CPUs’ caches", account.frame_cache_bytes.into()),
        ("heap frames, live", account.heap_live_bytes.into()),
        ("heap frames, cached", account.heap_cached_bytes.into()),
        ("heap frames, rest", rest),
        ("loader", owners.loader.into()),
        ("kernel image", owners.kernel.into()),
        ("frame table", owners.frame_table.into()),
        ("page tables", owners.page_tables.into()),
        ("stacks", owners.stacks.into()),
        ("per-CPU blocks", owners.per_cpu.into()),
        ("mappings", owners.mappings.into()),
        ("ACPI tables", owners.acpi_reclaimable.into()),
        ("ACPI NVS", owners.acpi_nvs.into()),
        ("framebuffer", owners.framebuffer.into()),
        ("bad", owners.bad.into()),
        ("null frame", owners.null_frame.into()),
        ("first megabyte", owners.low_memory.into()),
        ("not write-back", owners.not_write_back.into()),
    ];
    let sum: i128 = all.iter().map(|(_, bytes)| bytes).sum();
    let adds_up = sum == i128::from(account.memory_bytes);
    html! {
        table {
            thead { tr { th scope="col" { "memory" } th scope="col" { "bytes" } th scope="col" {} } }
            tbody {
                @for (what, number) in all.iter().filter(|(_, number)| *number != 0) {
                    tr { th scope="row" { (what) } td { (grouped(*number)) } td { (bytes(*number)) } }
                }
                tr.all {
                    th scope="row" { @if adds_up { "in all, to the byte" } @else { "in all: it does not add up" } }
                    td { (grouped(account.memory_bytes)) }
                    td { (bytes(account.memory_bytes.into())) }
                }
            }
        }
    }
}

/// Makes the table of the machine's configuration.
pub fn configuration(events: &RunEvents, start: &Start<'_>) -> Markup {
    let features = start.features;
    let names = [
        ("NX", features.no_execute),
        ("1 GiB pages", features.gigabyte_pages),
        ("SMEP", features.smep),
        ("SMAP", features.smap),
        ("UMIP", features.umip),
    ];
    let (has, lacks): (Vec<_>, Vec<_>) = names.into_iter().partition(|(_, is_there)| *is_there);
    let list = |names: Vec<(&str, bool)>| {
        let names = names.into_iter().map(|(name, _)| name);
        names.collect::<Vec<_>>().join(", ")
    };
    html! {
        dt { "Kernel" } dd { "Muster " (start.version) ", by " (start.loader) }
        dt { "Its words" } dd { @if start.command_line.is_empty() { "none" } @else { code { (start.command_line) } } }
        dt { "CPUs" } dd {
            (start.cpus) ", TSC at " ((start.tsc_hz + 500_000) / 1_000_000) " MHz"
            @match start.tsc_invariant { Some(true) => " (invariant)", Some(false) => " (not invariant)", None => "" }
            ", physical addresses of "
            (features.physical_bits) " bits, " (features.levels) " levels of tables"
            @if !has.is_empty() { "; " (list(has)) }
            @if !lacks.is_empty() { "; without " (list(lacks)) }
        }
        dt { "Memory" } dd { (bytes(start.usable_bytes.into())) " usable" }
        @if let Some(mapped) = events.mapped {
            dt { "Mapped" } dd {
                (mapped.regions) " regions, " (bytes(mapped.bytes.into())) " in " (mapped.pages_1gib)
                " pages of 1 GiB, " (mapped.pages_2mib) " of 2 MiB, " (mapped.pages_4kib) " of 4 KiB; "
                (mapped.tables) " tables"
            }
        }
        @if let Some(reclaim) = &events.reclaim {
            dt { "Loader’s memory" } dd {
                (bytes(reclaim.taken_bytes.into())) " taken over, " (bytes(reclaim.kept_bytes.into())) " kept"
                @if let Some(why) = &reclaim.why { ": " (why) }
            }
        }
        @if !events.interrupts.is_empty() {
            @let sum = |of: fn(&muster_events::Interrupts) -> u64| events.interrupts.iter().map(of).sum::<u64>();
            dt { "Interrupts" } dd {
                (grouped(sum(|kinds| kinds.timer))) " by timers, "
                (grouped(sum(|kinds| kinds.wake_up))) " by other CPUs, "
                (grouped(sum(|kinds| kinds.device))) " by devices, "
                (grouped(sum(|kinds| kinds.error))) " errors, "
                (grouped(sum(|kinds| kinds.spurious))) " spurious, "
                (grouped(sum(|kinds| kinds.nmi))) " NMIs, "
                (grouped(sum(|kinds| kinds.unexpected))) " unexpected"
            }
        }
    }
}
