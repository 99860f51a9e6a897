//! The state of a machine that is ended before its kernel has logged anything: QEMU is asked where each CPU
//! is, and what is on the screen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use muster_runner::boot_log;
use muster_runner::symbols::Symbols;
use muster_runner::workspace::shown;
use serde_json::{Value, json};

use crate::emulators::qmp::{Qmp, Socket};

/// How long QEMU may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The picture of the screen, in the folder of the run's log.
const PICTURE: &str = "screen.ppm";

/// How the pictures of VGA's text mode begin, of 80 by 25 characters of 9 by 16 pixels each.
const TEXT_MODE: &[u8] = b"P6\n720 400\n";

/// Where the characters lie then, each with its colours beside it.
const TEXT: u64 = 0xb8000;
const COLUMNS: usize = 80;
const ROWS: usize = 25;

/// A way to one QEMU, which is asked if the kernel stays silent.
#[derive(Debug)]
pub struct Postmortem {
    socket: Socket,
    picture: PathBuf,
}

impl Postmortem {
    /// Creates one that leaves its picture in `folder`.
    ///
    /// # Errors
    /// If there is no place for a socket.
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self {
            socket: Socket::new()?,
            picture: folder.join(PICTURE),
        })
    }

    /// Returns the arguments by which QEMU can be asked.
    pub fn arguments(&self) -> [String; 2] {
        self.socket.arguments()
    }

    /// Looks at the machine, and says what there is to see in some lines.
    pub fn look(&self, symbols: &Symbols) -> Vec<String> {
        let mut lines = Vec::new();
        if let Err(error) = self.ask(symbols, &mut lines) {
            lines.push(format!("where it is can't be seen: {error:#}"));
        }
        lines
    }

    fn ask(&self, symbols: &Symbols, lines: &mut Vec<String>) -> Result<()> {
        let mut qemu = self.socket.connect(TIMEOUT)?;
        let status = qemu.ask("query-status", json!({}))?;
        if let Some(status) = status["status"].as_str().filter(|&name| name != "running") {
            lines.push(format!("QEMU does not let the machine run: {status}"));
        }
        qemu.ask("stop", json!({}))?;
        lines.extend(stops(&monitor(&mut qemu, "info registers -a")?, symbols));
        let arguments = json!({ "filename": self.picture });
        if qemu.ask("screendump", arguments).is_err() {
            lines.push("it has no screen".into());
            return Ok(());
        }
        let context = || format!("no picture {}", self.picture.display());
        if !fs::read(&self.picture)
            .with_context(context)?
            .starts_with(TEXT_MODE)
        {
            lines.push(format!("its screen: {}", shown(&self.picture)));
            return Ok(());
        }
        let cells = COLUMNS * ROWS;
        let text = text(&monitor(&mut qemu, &format!("xp /{cells}xh {TEXT:#x}"))?);
        lines.push("its screen:".into());
        lines.extend(text.into_iter().map(|line| format!("  {line}")));
        Ok(())
    }
}

/// Gives a command to QEMU's monitor, and returns what it prints.
fn monitor(qemu: &mut Qmp, command: &str) -> Result<String> {
    let arguments = json!({ "command-line": command });
    match qemu.ask("human-monitor-command", arguments)? {
        Value::String(text) => Ok(text),
        other => Ok(other.to_string()),
    }
}

/// Says of `info registers -a` where the CPUs are, in one line for those that are at the same place.
fn stops(registers: &str, symbols: &Symbols) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for cpu in registers.split("CPU#").skip(1) {
        let Some((place, cpu)) = stop(cpu, symbols) else {
            continue;
        };
        places.entry(place).or_default().push(cpu);
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, cpus)| cpus.first().copied());
    let line =
        |(place, cpus): (String, Vec<u32>)| format!("CPU {} {place}", boot_log::ranges(&cpus));
    places.into_iter().map(line).collect()
}

/// Says where one CPU is, and which one it is.
fn stop(registers: &str, symbols: &Symbols) -> Option<(String, u32)> {
    let cpu = registers.lines().next()?.trim().parse().ok()?;
    let field = |name: &str| {
        let (_, value) = registers.split_once(&format!("{name}="))?;
        value.split_whitespace().next()
    };
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    let is_halted = field("HLT") == Some("1");
    let address = match field("RIP") {
        Some(rip) => hexadecimal(rip)?,
        // The second field of a segment register is its base.
        None => {
            let (_, cs) = registers.split_once("\nCS =")?;
            let base = cs.split_whitespace().nth(1).and_then(hexadecimal)?;
            base.wrapping_add(hexadecimal(field("EIP")?)?)
        }
    };
    let verb = if is_halted { "halted" } else { "is" };
    let function = symbols.function(address);
    let function = function.map_or(String::new(), |function| format!(" in {function}"));
    Some((format!("{verb} at {address:#x}{function}"), cpu))
}

/// Reads what `xp` prints of the memory of VGA's text mode, and returns its lines that are not empty.
fn text(memory: &str) -> Vec<String> {
    let cells = memory.lines().filter_map(|line| line.split_once(": "));
    let cells = cells.flat_map(|(_, cells)| cells.split_whitespace());
    let characters = cells.map(|cell| {
        let cell = cell.trim_start_matches("0x");
        let [_, character] = u16::from_str_radix(cell, 16).unwrap_or(0).to_be_bytes();
        match character {
            b' '..=b'~' => char::from(character),
            _ => ' ',
        }
    });
    let characters: Vec<char> = characters.collect();
    let rows = characters.chunks(COLUMNS);
    let rows = rows.map(|row| row.iter().collect::<String>().trim_end().to_owned());
    rows.filter(|row| !row.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_at_the_same_place_are_told_of_in_one_line() {
        let real_mode = |cpu: u32, hlt: u32| {
            format!(
                "CPU#{cpu}\r\nEAX=00000000 EBX=00000000\r\n\
                 EIP=0000b7b9 EFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT={hlt}\r\n\
                 ES =0000 00000000 0000ffff 00009300\r\nCS =f000 000f0000 0000ffff 00009b00\r\n"
            )
        };
        let long_mode = "CPU#2\r\nRAX=0000000000000000\r\n\
            RIP=ffffffff800372b1 RFL=00000203 [------C] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n\
            CS =0028 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n";
        let registers = [
            real_mode(0, 0),
            real_mode(1, 1),
            long_mode.into(),
            real_mode(3, 1),
        ]
        .concat();
        let symbols = Symbols::of(Path::new("/nonexistent"));
        assert_eq!(
            stops(&registers, &symbols),
            [
                "CPU 0 is at 0xfb7b9",
                "CPU 1, 3 halted at 0xfb7b9",
                "CPU 2 halted at 0xffffffff800372b1",
            ]
        );
        assert!(stops("", &symbols).is_empty());
    }

    #[test]
    fn the_text_of_a_screen_is_read() {
        let mut cells = vec![0x0720_u16; COLUMNS * ROWS];
        for (row, words) in [(0, "SeaBIOS (version 1)"), (3, "  \u{1}Boot failed")] {
            for (cell, character) in cells[row * COLUMNS..].iter_mut().zip(words.bytes()) {
                *cell = 0x0700 | u16::from(character);
            }
        }
        let mut memory = String::new();
        for (index, cells) in cells.chunks(8).enumerate() {
            let cells: Vec<_> = cells.iter().map(|cell| format!("{cell:#06x}")).collect();
            memory += &format!("{:016x}: {}\r\n", 0xb8000 + index * 16, cells.join(" "));
        }
        assert_eq!(text(&memory), ["SeaBIOS (version 1)", "   Boot failed"]);
    }
}
