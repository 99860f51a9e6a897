//! Allocators side by side: in each round every allocator does every workload, one after the other,
//! so that what else the machine does meets all of them. A figure is the median of its rounds, and a
//! ratio the median of the rounds' ratios.
//!
//! `muster-heap-bench [rounds=N] [time=MS] [threads=N,…] [only=NAME,…]`, or, to count instructions
//! from outside (`valgrind --tool=callgrind --toggle-collect='*workloads::churn*'`),
//! `muster-heap-bench instructions NAME PAIRS`. `muster-heap-bench memory` tells how much memory it
//! takes to hold a set of blocks, and `muster-heap-bench latency` how long the slowest operations
//! take.

use std::io::Write;
use std::time::Duration;

mod contenders;
mod latency;
mod memory;
mod workloads;

use contenders::Contender;
use workloads::Workload;

struct Options {
    rounds: usize,
    time: Duration,
    threads: Vec<usize>,
    only: Vec<String>,
}

fn main() -> Result<(), String> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if let [first, name, pairs] = &words[..]
        && first == "instructions"
    {
        return count_instructions(name, pairs);
    }
    match words.first().map(String::as_str) {
        Some("memory") => {
            memory::compare();
            return Ok(());
        }
        Some("latency") => {
            latency::compare();
            return Ok(());
        }
        _ => {}
    }
    let options = Options::from_words(&words)?;
    let contenders: Vec<_> = contenders::all()
        .into_iter()
        .filter(|contender| {
            options.only.is_empty() || options.only.iter().any(|name| name == contender.name)
        })
        .collect();
    for workload in Workload::ALL {
        for &threads in &options.threads {
            if workload != Workload::Xfree || threads.is_multiple_of(2) {
                compare(workload, threads, &contenders, &options);
            }
        }
    }
    Ok(())
}

impl Options {
    fn from_words(words: &[String]) -> Result<Self, String> {
        let mut options = Self {
            rounds: 7,
            time: Duration::from_millis(60),
            threads: vec![1, 2],
            only: Vec::new(),
        };
        for word in words {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word}: expected rounds=, time=, threads= or only="))?;
            let number = || value.parse().map_err(|_| format!("{word}: not a number"));
            match key {
                "rounds" => options.rounds = number()?,
                "time" => options.time = Duration::from_millis(number()? as u64),
                "threads" => {
                    let numbers: Result<_, _> = value.split(',').map(str::parse).collect();
                    options.threads = numbers.map_err(|_| format!("{word}: not numbers"))?;
                }
                "only" => options.only = value.split(',').map(String::from).collect(),
                _ => return Err(format!("{key}: expected rounds, time, threads or only")),
            }
        }
        Ok(options)
    }
}

fn compare(workload: Workload, threads: usize, contenders: &[Contender], options: &Options) {
    let mut rounds = vec![Vec::new(); contenders.len()];
    for round in 0..options.rounds {
        eprint!("\r{}, round {} ", workload.name(), round + 1);
        std::io::stderr().flush().ok();
        for (contender, figures) in contenders.iter().zip(&mut rounds) {
            figures.push(workload.run(contender.allocator, threads, options.time));
        }
    }
    eprint!("\r{:30}\r", "");
    let reference = rounds[0].clone();
    println!("{}, {threads} threads", workload.name());
    println!("  allocator        M pairs/s  ratio  muster is");
    let muster = rounds.last().cloned().unwrap_or_default();
    for (contender, figures) in contenders.iter().zip(&rounds) {
        println!(
            "  {:<13}{} {:>11.2} {:>7.2} {:>7.2}",
            contender.name,
            if contender.is_no_std { " " } else { "*" },
            median(figures.iter().copied()),
            median(
                figures
                    .iter()
                    .zip(&reference)
                    .map(|(this, first)| this / first)
            ),
            median(
                muster
                    .iter()
                    .zip(figures)
                    .map(|(muster, this)| muster / this)
            ),
        );
    }
}

/// The middle one of some figures.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn count_instructions(name: &str, pairs: &str) -> Result<(), String> {
    let pairs = pairs
        .parse()
        .map_err(|_| format!("{pairs}: not a number"))?;
    let contender = contenders::all()
        .into_iter()
        .find(|contender| contender.name == name)
        .ok_or_else(|| format!("{name}: no such allocator"))?;
    contenders::enter_cpu(0);
    workloads::churn(contender.allocator, pairs);
    Ok(())
}
