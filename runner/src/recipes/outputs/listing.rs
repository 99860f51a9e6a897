//! What the compiler made of the heap's fast paths, as the book shows it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection, ObjectSymbol, Symbol};

/// The functions, by what their mangled names have in them.
const FUNCTIONS: [(&str, &str); 2] = [("alloc", "5alloc17h"), ("dealloc", "7dealloc17h")];

/// The type whose they are, as it is mangled.
const TYPE: &str = "$LT$muster..heap..Global$u20$as$u20$core..alloc..global..GlobalAlloc$GT$";

/// The section that lists the restartable sequences.
const TABLE: &str = "muster_heap_restart";

/// Lists both fast paths of a kernel, with a bar at the instructions of the restartable sequences.
///
/// # Errors
/// If the kernel has no such functions, or there is no objdump.
pub fn of(kernel: &Path) -> Result<String> {
    let elf = fs::read(kernel).with_context(|| format!("cannot read {}", kernel.display()))?;
    let elf = object::File::parse(&*elf)?;
    let sequences = sequences(&elf).context("the kernel has no restartable sequences")?;
    let mut text = String::new();
    for (name, mangled) in FUNCTIONS {
        let symbol = elf
            .symbols()
            .find(|symbol| {
                symbol
                    .name()
                    .is_ok_and(|name| name.contains(TYPE) && name.contains(mangled))
            })
            .with_context(|| format!("the kernel has no function {name} of its heap"))?;
        text += &format!("{name}:\n{}\n", function(kernel, &symbol, &sequences)?);
    }
    Ok(text.trim_end().to_owned() + "\n")
}

/// Returns where each restartable sequence starts and ends: two distances in each line of the table, each
/// from itself and the line's start (`heap/src/magazines/restart.rs`).
fn sequences(elf: &object::File<'_>) -> Option<Vec<(u64, u64)>> {
    let section = elf.section_by_name(TABLE)?;
    let (lines, _) = section.data().ok()?.as_chunks::<8>();
    let line = |(place, line): (u64, &[u8; 8])| {
        let [a, b, c, d, e, f, g, h] = *line;
        let start = i64::from(i32::from_le_bytes([a, b, c, d]));
        let end = i64::from(i32::from_le_bytes([e, f, g, h]));
        let at = section.address() + 8 * place;
        (
            at.wrapping_add_signed(start),
            (at + 4).wrapping_add_signed(end),
        )
    };
    Some((0..).zip(lines).map(line).collect())
}

fn function(kernel: &Path, symbol: &Symbol<'_, '_>, sequences: &[(u64, u64)]) -> Result<String> {
    let (start, end) = (symbol.address(), symbol.address() + symbol.size());
    let output = Command::new("objdump")
        .args([
            "--disassemble",
            "--demangle",
            "--no-show-raw-insn",
            "-Mintel",
        ])
        .arg(format!("--start-address={start:#x}"))
        .arg(format!("--stop-address={end:#x}"))
        .arg(kernel)
        .output()
        .context("cannot start objdump: it is in the package binutils")?;
    ensure!(output.status.success(), "objdump failed");
    let mut text = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((address, instruction)) = line.split_once(":\t") else {
            continue;
        };
        let address = u64::from_str_radix(address.trim(), 16)?;
        let is_in_sequence = sequences
            .iter()
            .any(|(start, end)| (*start..*end).contains(&address));
        let bar = if is_in_sequence { '|' } else { ' ' };
        let instruction = short(instruction, start);
        text += &format!(
            "{bar} {:>3x}  {}\n",
            address - start,
            instruction.trim_end()
        );
    }
    if text.is_empty() {
        bail!("objdump lists no instructions at {start:#x}");
    }
    Ok(text)
}

/// Returns an instruction with what its addresses stand for: places in the same function by their offset,
/// others by their name.
fn short(instruction: &str, start: u64) -> String {
    let (code, comment) = match instruction.split_once('#') {
        Some((code, comment)) => (code.trim_end(), Some(comment)),
        None => (instruction, None),
    };
    let name = |text: &str| {
        let (_, name) = text.split_once('<')?;
        let path = name.trim_end_matches('>').split('+').next()?;
        let path = path.split(" [").next()?.trim_end_matches(".0");
        path.rsplit("::").next().map(str::to_owned)
    };
    if let Some(name) = comment.and_then(name) {
        return format!("{code}  # {name}");
    }
    let Some((before, target)) = code.split_once('<') else {
        return code.into();
    };
    let (mnemonic, address) = before.trim_end().rsplit_once(' ').unwrap_or((before, ""));
    match (target.rsplit_once("+0x"), u64::from_str_radix(address, 16)) {
        (Some((_, offset)), Ok(address)) if offset == format!("{:x}>", address - start) => {
            format!("{mnemonic} {:x}", address - start)
        }
        _ => format!("{mnemonic} {}", name(code).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_places_and_names() {
        let start = 0xffff_ffff_8000_a7b0;
        for (line, expected) in [
            ("push   rbp", "push   rbp"),
            (
                "je     ffffffff8000a817 <<muster::mm::heap::Global as core::X>::alloc+0x67>",
                "je     67",
            ),
            (
                "jmp    ffffffff8001ebd0 <muster_heap::magazines::heap::MagazineHeap<P>::allocate_slowly>",
                "jmp    allocate_slowly",
            ),
            (
                "movzx  eax,BYTE PTR [rip+0x7083f]        # ffffffff8007b000 <muster::mm::heap::USE_MAGAZINES.0>",
                "movzx  eax,BYTE PTR [rip+0x7083f]  # USE_MAGAZINES",
            ),
        ] {
            assert_eq!(short(line, start), expected);
        }
    }
}
