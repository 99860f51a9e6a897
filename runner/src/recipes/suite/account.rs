//! The account of a run, as its log and its events have it: whether what is printed twice agrees, and
//! whether rows add up. The kernel says so itself; this is somebody else who adds up.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use muster_events::{Account, AccountCommon, AccountCpu, Event, Interrupts, Record};

use crate::line::LogLine;

/// How wide a terminal is that shows the account whole.
const COLUMNS: usize = 80;

/// The rows of a table, by their names: a CPU's index, `common` or `all`.
type Table = BTreeMap<String, Vec<String>>;

/// The last account in a log.
#[derive(Debug, Default)]
struct LoggedAccount {
    memory: Table,
    traffic: Table,
    activity: Table,
    /// Interrupts of all kinds by CPU, and `all`.
    interrupts: BTreeMap<String, u64>,
    /// All that is live, and what of it is in the boot arena.
    live: Option<(i128, i128)>,
    /// Bytes by their owners.
    owners: BTreeMap<String, i128>,
}

/// Checks the last account in a log. One without an account is right.
///
/// # Errors
/// The first figures that do not add up, or differ in two places.
pub fn check_log(log: &str) -> Result<()> {
    let Some(account) = LoggedAccount::read(log)? else {
        return Ok(());
    };
    account.check_traffic()?;
    account.check_memory()?;
    account.check_activity()
}

impl LoggedAccount {
    /// Reads the last account. Returns `None` if there is none.
    fn read(log: &str) -> Result<Option<Self>> {
        let mut account = None::<Self>;
        let mut table = "";
        for text in log.lines() {
            let Some(line) = LogLine::parse(text) else {
                continue;
            };
            let words: Vec<_> = line.message.split_whitespace().collect();
            match (line.target, &words[..]) {
                ("account", ["cpu", "frames", "cached", "mapped", "stack"]) => {
                    account = Some(Self::default());
                    table = "memory";
                }
                ("account", ["cpu", "allocated", "freed"]) => table = "traffic",
                ("account", ["cpu", "irqs", ..]) => table = "activity",
                _ => {}
            }
            let Some(account) = &mut account else {
                continue;
            };
            if line.target == "account" {
                let columns = text.chars().count();
                ensure!(columns <= COLUMNS, "{columns} columns: {text}");
            }
            match (line.target, &words[..]) {
                ("account", ["live:", bytes, "bytes,", boot, ..]) => {
                    account.live = Some((bytes.parse()?, boot.parse()?));
                }
                ("account", [_, _, bytes, "bytes", what @ ..]) => {
                    account.owners.insert(what.join(" "), bytes.parse()?);
                }
                ("account", [row, cells @ ..])
                    if row.parse::<u32>().is_ok() || ["common", "all"].contains(row) =>
                {
                    let cells = cells.iter().map(|&cell| cell.to_owned()).collect();
                    let rows = match table {
                        "memory" => &mut account.memory,
                        "traffic" => &mut account.traffic,
                        _ => &mut account.activity,
                    };
                    rows.insert((*row).to_owned(), cells);
                }
                ("irq", ["interrupts", "taken", "by", "CPU", cpu, kinds @ ..]) => {
                    let cpu = cpu.trim_end_matches(':');
                    account.interrupts.insert(cpu.into(), sum_of_kinds(kinds)?);
                }
                ("irq", ["taken:", kinds @ ..]) => {
                    account
                        .interrupts
                        .insert("all".into(), sum_of_kinds(kinds)?);
                }
                _ => {}
            }
        }
        Ok(account)
    }

    fn owned(&self, what: &str) -> Result<i128> {
        let bytes = self.owners.get(what).copied();
        bytes.with_context(|| format!("the account has no {what}"))
    }

    fn check_traffic(&self) -> Result<()> {
        let [allocated, freed] = [0, 1].map(|column| sum(&self.traffic, column));
        let (allocated, freed) = (allocated?, freed?);
        let (live, boot) = self.live.context("the account does not say what is live")?;
        ensure!(
            allocated - freed == live,
            "{allocated} bytes were allocated and {freed} freed, and {live} are live"
        );
        let in_frames = self.owned("heap frames, live")?;
        ensure!(
            live - boot == in_frames,
            "{live} bytes are live, {boot} in the boot arena, and {in_frames} in frames"
        );
        Ok(())
    }

    fn check_memory(&self) -> Result<()> {
        let all = row(&self.memory, "all")?;
        let common = row(&self.memory, "common")?;
        for (column, what) in ["frames", "cached", "mapped"].into_iter().enumerate() {
            let mut parts = Rounded::default();
            for (_, cells) in self.memory.iter().filter(|(row, _)| *row != "all") {
                parts = parts.plus(Rounded::parse(cells, column)?);
            }
            let whole = Rounded::parse(all, column)?;
            ensure!(
                parts.may_be(whole),
                "{what}: {parts:?} in rows, {whole:?} in all"
            );
        }
        for (cells, column, what) in [(common, 0, "free"), (all, 1, "heap frames, cached")] {
            let (logged, bytes) = (Rounded::parse(cells, column)?, self.owned(what)?);
            let exact = Rounded(bytes, bytes + 1);
            ensure!(
                logged.may_be(exact),
                "{what}: {logged:?}, and {bytes} bytes"
            );
        }
        let of_cpus = self
            .memory
            .iter()
            .filter(|(row, _)| row.parse::<u32>().is_ok());
        let stacks = of_cpus.map(|(_, cells)| Rounded::parse(cells, 3));
        let highest = stacks.collect::<Result<Vec<_>>>()?.into_iter().max();
        let [.., label, _, _] = all else {
            anyhow::bail!("the row all has no stack");
        };
        ensure!(label == "max", "the row all has {label} for a stack");
        // Behind its label.
        let logged = Rounded::parse(&all[1..], 3)?;
        ensure!(
            highest == Some(logged),
            "the highest stack is {highest:?}, and all have {logged:?}"
        );
        Ok(())
    }

    fn check_activity(&self) -> Result<()> {
        for column in 0..row(&self.activity, "all")?.len() {
            sum(&self.activity, column)?;
        }
        ensure!(
            self.interrupts.contains_key("all"),
            "the log does not say which interrupts were taken"
        );
        for (name, kinds) in &self.interrupts {
            let logged = number(row(&self.activity, name)?, 0)?;
            ensure!(
                logged == i128::from(*kinds),
                "{name}: {logged} interrupts, and {kinds} of all kinds"
            );
        }
        Ok(())
    }
}

fn row<'a>(table: &'a Table, name: &str) -> Result<&'a [String]> {
    let row = table.get(name);
    row.map(Vec::as_slice)
        .with_context(|| format!("a table of the account has no row {name}"))
}

fn number(cells: &[String], column: usize) -> Result<i128> {
    let cell = cells.get(column).context("a row of the account is short")?;
    Ok(cell.parse()?)
}

/// Returns the sum of a column's rows, which `all` says too.
fn sum(table: &Table, column: usize) -> Result<i128> {
    let mut sum = 0;
    for (_, cells) in table.iter().filter(|(row, _)| *row != "all") {
        sum += number(cells, column)?;
    }
    let all = number(row(table, "all")?, column)?;
    ensure!(sum == all, "rows have {sum}, and all have {all}");
    Ok(all)
}

/// Adds up the kinds: `14 timer, 3 wake-up`, or `none`.
fn sum_of_kinds(words: &[&str]) -> Result<u64> {
    match words {
        ["none"] => Ok(0),
        _ => (words.chunks(2))
            .map(|kind| Ok(kind[0].parse::<u64>()?))
            .sum(),
    }
}

/// What a number may have been that is printed cut to tenths of a unit: from the first, and less than
/// the second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rounded(i128, i128);

impl Rounded {
    /// Parses the amount in this column: two words each, `-1.5 MiB`.
    fn parse(cells: &[String], column: usize) -> Result<Self> {
        let [number, unit] = cells
            .get(2 * column..2 * column + 2)
            .context("a row of the account is short")?
        else {
            anyhow::bail!("a row of the account is short");
        };
        let unit = match unit.as_str() {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1_i128 << 40,
            _ => anyhow::bail!("{unit} is no unit"),
        };
        let (is_negative, number) = match number.strip_prefix('-') {
            Some(number) => (true, number),
            None => (false, number.as_str()),
        };
        let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
        let tenths = whole.parse::<i128>()? * 10 + tenth.parse::<i128>()?;
        let cut = if unit == 1 { 10 } else { 1 };
        // The least is rounded up, and what it is less than, too.
        let [least, end] = [tenths, tenths + cut].map(|tenths| (tenths * unit + 9) / 10);
        Ok(match is_negative {
            true => Self(1 - end, 1 - least),
            false => Self(least, end),
        })
    }

    const fn plus(self, other: Self) -> Self {
        // Of two ranges without their ends, the highest sum is one less than that of the ends.
        match (self.0, self.1) {
            (0, 0) => other,
            _ => Self(self.0 + other.0, self.1 + other.1 - 1),
        }
    }

    /// Returns whether both may be the same number.
    const fn may_be(self, other: Self) -> bool {
        self.0 < other.1 && other.0 < self.1
    }
}

/// Checks the last account among a run's events. Events without an account are right.
///
/// # Errors
/// A sum that does not add up, or figures of one thing that differ.
pub fn check_events(records: &[Record<'_>]) -> Result<()> {
    let mut cpus: Vec<AccountCpu> = Vec::new();
    let mut common = None::<AccountCommon>;
    let mut account = None::<Account>;
    let mut interrupts: Vec<Interrupts> = Vec::new();
    for record in records {
        match record.event {
            Event::AccountCpu(cpu) => {
                if account.take().is_some() {
                    (common, cpus, interrupts) = Default::default();
                }
                cpus.push(cpu);
            }
            Event::AccountCommon(of_no_cpu) => common = Some(of_no_cpu),
            Event::Account(all) => account = Some(all),
            Event::Interrupts(kinds) => interrupts.push(kinds),
            _ => {}
        }
    }
    let (account, common) = match (account, common) {
        (Some(account), Some(common)) => (account, common),
        (None, None) => return Ok(()),
        _ => anyhow::bail!("an account without account_common, or the other way round"),
    };
    let of_cpus = |bytes: fn(&AccountCpu) -> i128| cpus.iter().map(bytes).sum::<i128>();
    let live = of_cpus(|cpu| i128::from(cpu.allocated_bytes) - i128::from(cpu.freed_bytes))
        + i128::from(common.allocated_bytes)
        - i128::from(common.freed_bytes);
    let sums = [
        (
            "live",
            live,
            i128::from(account.heap_live_bytes) + i128::from(account.boot_live_bytes),
        ),
        (
            "cached",
            of_cpus(|cpu| cpu.cached_bytes.into()) + i128::from(common.cached_bytes),
            account.heap_cached_bytes.into(),
        ),
        (
            "cached",
            of_cpus(|cpu| cpu.frame_cache_bytes.into()),
            account.frame_cache_bytes.into(),
        ),
        ("free", common.free_bytes.into(), account.free_bytes.into()),
        (
            "mapped",
            of_cpus(|cpu| cpu.mapped_bytes.into()) + i128::from(common.mapped_bytes),
            account.owners.mappings.into(),
        ),
    ];
    for (what, parts, whole) in sums {
        ensure!(
            parts == whole,
            "events: {what}: {parts} in rows, {whole} in all"
        );
    }
    let logged: Vec<_> = (cpus.iter()).map(|cpu| (cpu.cpu, cpu.interrupts)).collect();
    let kinds: Vec<_> = (interrupts.iter())
        .map(|of| {
            let kinds = [
                of.timer,
                of.wake_up,
                of.device,
                of.error,
                of.spurious,
                of.nmi,
                of.unexpected,
            ];
            (of.cpu, kinds.iter().sum::<u64>())
        })
        .collect();
    ensure!(
        logged == kinds,
        "events: interrupts are {logged:?}, and {kinds:?} of all kinds"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
  2.001253  0 INFO  account    cpu     frames     cached     mapped        stack
  2.001383  0 INFO  account      0  432.0 KiB  586.3 KiB   -4.0 KiB      9.4 KiB
  2.001536  0 INFO  account      1  220.0 KiB  389.0 KiB    8.0 KiB      8.2 KiB
  2.001704  0 INFO  account common  504.9 MiB   82.2 KiB        0 B            -
  2.001803  0 INFO  account    all  505.5 MiB    1.0 MiB    4.0 KiB max  9.4 KiB
  2.001887  0 INFO  account    cpu            allocated                freed
  2.001974  0 INFO  account      0                 1000                 2500
  2.002059  0 INFO  account      1                 5000                  500
  2.014439  0 INFO  account common                  300                  100
  2.014585  0 INFO  account    all                 6300                 3100
  2.014687  0 INFO  account live: 3200 bytes, 200 in the boot arena
  2.014879  0 INFO  account cpu     irqs    sent  served  shoots  spared flushes
  2.015117  0 INFO  account   0       14    1270      30     324     906     354
  2.015231  0 INFO  account   1      630      30     644      10       0      54
  2.015548  0 INFO  account all      644    1300     674     334     906     408
  2.015674  0 DEBUG irq     interrupts taken by CPU 0: 14 wake-up
  2.015674  0 DEBUG irq     interrupts taken by CPU 1: 30 timer, 600 wake-up
  2.016020  0 INFO  irq     taken: 30 timer, 614 wake-up
  2.016136  0 INFO  account  504.9 MiB      529457152 bytes  free
  2.016246  0 INFO  account  652.0 KiB         667648 bytes  free, kept by CPUs
  2.016638  0 INFO  account    2.9 KiB           3000 bytes  heap frames, live
  2.016730  0 INFO  account    1.0 MiB        1083000 bytes  heap frames, cached
";

    #[test]
    fn an_account_adds_up_or_what_does_not_is_told() {
        check_log(LOG).unwrap();
        check_log("nothing of the kind").unwrap();
        for (from, to, why) in [
            // What the defect was: a column that is not what is live.
            (
                "                5000 ",
                "                4111 ",
                "rows have",
            ),
            (" 6300 ", " 5411 ", "rows have"),
            ("live: 3200", "live: 3000", "are live"),
            ("3000 bytes  heap", "3200 bytes  heap", "in frames"),
            ("1.0 MiB    4.0", "1.1 MiB    4.0", "cached"),
            ("505.5 MiB", "505.7 MiB", "frames: "),
            ("   -4.0 KiB", "    4.0 KiB", "mapped"),
            ("1083000", "2083000", "heap frames, cached"),
            ("529457152", "528457152", "free: "),
            ("max  9.4", "max  8.2", "stack"),
            ("max  9.4", "max 17.6", "stack"),
            ("max  9.4", "     9.4", "stack"),
            ("30 timer, 614", "30 timer, 628", "all: 644 interrupts"),
            ("0: 14 wake-up", "0: none", "0: 14 interrupts"),
            ("all      644", "all      645", "rows have"),
            ("INFO  irq ", "INFO  qri ", "which interrupts"),
            (
                "account common  504.9",
                "account nobody 504.9",
                "no row common",
            ),
            (
                "INFO  account    all  ",
                "INFO  account     all    ",
                "columns",
            ),
        ] {
            assert!(LOG.contains(from), "{from}");
            let said = check_log(&LOG.replace(from, to)).unwrap_err().to_string();
            assert!(said.contains(why), "{from} -> {to}: {said}");
        }
    }

    fn logged(live: i64, nmi: u64) -> String {
        let cpu = AccountCpu {
            cpu: 0,
            frame_cache_bytes: 1,
            cached_bytes: 2,
            allocated_bytes: 10,
            freed_bytes: 20,
            mapped_bytes: -4096,
            stack_bytes: 0,
            interrupts: 3,
            calls_sent: 0,
            calls_served: 0,
            shootdowns: 0,
            spared: 0,
            flushes: 0,
        };
        let common = AccountCommon {
            free_bytes: 5,
            cached_bytes: 6,
            allocated_bytes: 100,
            freed_bytes: 1,
            mapped_bytes: 4096,
        };
        let account = Account {
            memory_bytes: 0,
            free_bytes: 5,
            frame_cache_bytes: 1,
            heap_live_bytes: live,
            boot_live_bytes: 9,
            heap_cached_bytes: 8,
            owners: muster_events::Owners::default(),
        };
        let interrupts = Interrupts {
            cpu: 0,
            timer: 1,
            wake_up: 1,
            device: 0,
            error: 0,
            spurious: 0,
            nmi,
            unexpected: 0,
        };
        let events = [
            Event::from(cpu),
            common.into(),
            account.into(),
            interrupts.into(),
        ];
        let records = events.map(|event| Record {
            us: 0,
            by: None,
            event,
        });
        match check_events(&[&records[..], &records[..]].concat()) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn events_add_up_or_what_does_not_is_told() {
        assert_eq!(logged(80, 1), "");
        assert!(logged(89, 1).contains("live: 89 in rows, 98 in all"));
        assert!(logged(80, 0).contains("interrupts"));
        assert!(check_events(&[]).is_ok());
    }
}
