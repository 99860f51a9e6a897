//! Physical memory, as a map coloured by owner.

use anyhow::Result;
use muster_events::{Owner, Range};
use plotters::style::RGBColor;
use plotters::style::text_anchor::{HPos, VPos};

use crate::canvas::{
    self, BLACK, COLOUR, Chart, FAINT, GREY, INK, Margins, ON_BLUE, PAPER, SOFT, WIDE, axes, cells,
    fill, rows, text, write,
};
use crate::numbers;

/// Cells in a row of the map.
const COLUMNS: u64 = 64;

/// Rows of the map, at most.
const ROWS: usize = 32;

/// How a group of owners looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// What they are, in words.
    pub name: &'static str,
    /// The letter in their cells.
    pub letter: &'static str,
    /// Their colour, and that of the letter on it.
    pub colour: RGBColor,
    pub ink: RGBColor,
}

const fn look(name: &'static str, letter: &'static str, colour: RGBColor, ink: RGBColor) -> Look {
    Look {
        name,
        letter,
        colour,
        ink,
    }
}

/// Returns how an owner's memory looks.
pub const fn look_of(owner: Owner) -> Look {
    match owner {
        Owner::Free => look("free", "", FAINT, INK),
        Owner::Kernel => look("kernel image", "K", COLOUR[0], ON_BLUE),
        Owner::Heap => look("heap", "H", COLOUR[1], BLACK),
        Owner::PageTables => look("page tables", "T", COLOUR[2], BLACK),
        Owner::Stacks => look("stacks", "S", COLOUR[3], BLACK),
        Owner::FrameTable => look("frame table", "F", COLOUR[4], BLACK),
        Owner::PerCpu => look("per-CPU blocks", "C", COLOUR[5], BLACK),
        Owner::Loader => look("loader", "L", COLOUR[6], BLACK),
        Owner::Mappings => look("mappings", "M", INK, PAPER),
        Owner::AcpiReclaimable
        | Owner::AcpiNvs
        | Owner::Framebuffer
        | Owner::Reserved
        | Owner::Bad
        | Owner::NullFrame
        | Owner::LowMemory
        | Owner::NotWriteBack => look("firmware, reserved", "R", GREY, BLACK),
    }
}

/// A row of the map.
#[derive(Clone, Debug, PartialEq)]
enum Row {
    /// From an address on, what each cell looks like; `None` where there is no memory.
    Cells(u64, Cells),
    /// This number of bytes from an address on, all free.
    Free(u64, u64),
}

type Cells = Vec<Option<Look>>;

/// A map: how much memory a cell is, and the rows. Rows without any memory are left out, and free ones
/// that follow one another are one.
struct Map {
    cell: u64,
    rows: Vec<Row>,
}

impl Map {
    /// Makes the map with the smallest cells that has no more rows than there may be.
    fn of(ranges: &[Range]) -> Self {
        // What is reserved beyond all memory is no memory: room for devices.
        let is_memory = |range: &&Range| range.owner != Owner::Reserved;
        let last = ranges.iter().rfind(is_memory);
        let end = last.map_or(0, end_of);
        let inside = ranges.iter().filter(|range| range.start < end);
        let inside: Vec<_> = inside.copied().collect();
        let mut cell = 4096;
        loop {
            let rows = rows_of(&inside, cell, end);
            if rows.len() <= ROWS || cell >= end {
                return Self { cell, rows };
            }
            cell *= 2;
        }
    }
}

/// Returns the rows of a map with such cells; more than there may be only by one.
fn rows_of(ranges: &[Range], cell: u64, end: u64) -> Vec<Row> {
    let size = cell * COLUMNS;
    let free = Some(look_of(Owner::Free));
    let mut rows = Vec::new();
    let mut start = 0;
    while start < end && rows.len() <= ROWS {
        // A stretch that is free, or without memory, is passed at once.
        let after = ranges.partition_point(|range| end_of(range) <= start);
        let next = ranges.get(after);
        let to = next.map_or(end, |range| match range.owner {
            _ if range.start > start => range.start,
            Owner::Free => end_of(range),
            _ => start,
        });
        let whole = (to - start) / size * size;
        let is_free = next.is_some_and(|range| range.start <= start);
        if whole > 0 {
            match rows.last_mut() {
                Some(Row::Free(_, bytes)) if is_free => *bytes += whole,
                _ if is_free => rows.push(Row::Free(start, whole)),
                _ => {}
            }
            start += whole;
            continue;
        }
        let cells = (0..COLUMNS).map(|column| {
            let from = start + column * cell;
            of_cell(ranges, from, (from + cell).min(end))
        });
        let cells: Cells = cells.collect();
        match rows.last_mut() {
            Some(Row::Free(_, bytes)) if cells.iter().all(|look| *look == free) => *bytes += size,
            _ if cells.iter().any(Option::is_some) => rows.push(Row::Cells(start, cells)),
            _ => {}
        }
        start += size;
    }
    rows
}

/// Beyond all physical addresses (Intel SDM volume 3, 4.1.4: 52 bits at most).
const END: u64 = 1 << 52;

/// Returns where a range ends, whatever its file says.
fn end_of(range: &Range) -> u64 {
    range.start.saturating_add(range.bytes).min(END)
}

/// Returns the look of the memory between two addresses: that of the owner of most of it, but free only
/// if all is free.
fn of_cell(ranges: &[Range], from: u64, to: u64) -> Option<Look> {
    let after = ranges.partition_point(|range| end_of(range) <= from);
    let inside = ranges.iter().skip(after);
    let inside = inside.take_while(|range| range.start < to);
    let mut shares: Vec<(Look, u64)> = Vec::new();
    for range in inside {
        let bytes = end_of(range).min(to).saturating_sub(range.start.max(from));
        let look = look_of(range.owner);
        match shares.iter_mut().find(|(other, _)| *other == look) {
            Some((_, sum)) => *sum += bytes,
            None => shares.push((look, bytes)),
        }
    }
    let free = look_of(Owner::Free);
    let most = shares
        .iter()
        .max_by_key(|(look, bytes)| (*look != free, *bytes));
    most.map(|(look, _)| *look)
}

/// Draws the map of these ranges.
///
/// # Errors
/// If it can't be drawn.
pub fn chart(id: &str, ranges: &[Range], when: &str) -> Result<Chart> {
    let map = Map::of(ranges);
    let count = map.rows.len();
    let about = format!(
        "Lowest address first; a cell is {} and looks like who has most of it, but free only if nobody has \
         any of it. Rows that are wholly free are one, with their size; those without memory, and what is reserved for devices above it, are left out.",
        numbers::bytes(map.cell.into())
    );
    let title = format!("Whose it is {when}");
    let size = (WIDE, 44 + 18 * count as u32);
    canvas::draw(id, (&title, &about), size, |area| {
        let margins = Margins {
            top: 0,
            left: 96,
            right: 28,
        };
        let start = |row: &f64| match map.rows.get(*row as usize) {
            Some(Row::Cells(start, _) | Row::Free(start, _)) => format!("{start:#x}"),
            None => String::new(),
        };
        let along = |column: &f64| numbers::bytes((*column * map.cell as f64) as i128);
        let x = (
            cells(COLUMNS as u32),
            ("offset from the address at the left", &along as _),
        );
        let y = (rows(count), ("", &start as _));
        let plot = axes(area, &margins, x, y, (false, false))?;
        let centre = |colour| text(colour, HPos::Center, VPos::Center);
        for (row, what) in map.rows.iter().enumerate() {
            let (top, middle, bottom) = (row as f64 + 0.08, row as f64 + 0.5, row as f64 + 0.92);
            match what {
                Row::Free(_, bytes) => {
                    let words = format!("{} free", numbers::bytes((*bytes).into()));
                    let place = (COLUMNS as f64 / 2.0, middle);
                    fill(
                        &plot,
                        (0.0, middle - 0.03),
                        (COLUMNS as f64, middle + 0.03),
                        FAINT,
                    )?;
                    fill(&plot, (25.0, top), (39.0, bottom), PAPER)?;
                    write(&plot, place, (0, 0), &words, &centre(SOFT))?;
                }
                Row::Cells(_, cells) => {
                    let mut column = 0;
                    for alike in cells.chunk_by(|a, b| a == b) {
                        let (from, to) = (column as f64, (column + alike.len()) as f64);
                        column += alike.len();
                        let Some(Some(look)) = alike.first() else {
                            continue;
                        };
                        fill(&plot, (from + 0.04, top), (to - 0.04, bottom), look.colour)?;
                        let place = ((from + to) / 2.0, middle);
                        write(&plot, place, (0, 0), look.letter, &centre(look.ink))?;
                    }
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use muster_events::Moment;

    use super::*;

    fn range(start: u64, bytes: u64, owner: Owner) -> Range {
        Range {
            moment: Moment::Boot,
            start,
            bytes,
            owner,
        }
    }

    #[test]
    fn cells_are_whose_most_of_them_is() {
        let ranges = [
            range(0, 0x1000, Owner::NullFrame),
            range(0x1000, 0x7000, Owner::Free),
            range(0x8000, 0x1000, Owner::Heap),
            range(0x9000, 0x2000, Owner::Stacks),
            range(0x10_0000, 0x1000, Owner::Free),
            range(0xff00_0000, 0x1000, Owner::Reserved),
        ];
        let map = Map::of(&ranges);
        assert_eq!((map.cell, map.rows.len()), (0x1000, 2));
        let Row::Cells(0, first) = &map.rows[0] else {
            panic!("{:?}", map.rows);
        };
        assert_eq!(first[0], Some(look_of(Owner::Reserved)));
        assert_eq!(first[1], Some(look_of(Owner::Free)));
        assert_eq!(first[8], Some(look_of(Owner::Heap)));
        assert_eq!(first[0xb], None);
        // The hole between them is left out.
        assert!(
            matches!(map.rows[1], Row::Cells(0x10_0000, _)),
            "{:?}",
            map.rows
        );
        let whose = |from, to| of_cell(&ranges, from, to).map(|look| look.name);
        assert_eq!(whose(0x8000, 0xb000), Some("stacks"));
        assert_eq!(whose(0x2000, 0x9000), Some("heap"));
        assert_eq!(whose(0x20_0000, 0x30_0000), None);
    }

    #[test]
    fn what_is_free_is_one_row_and_cells_grow_until_the_map_has_room() {
        let mut ranges = vec![
            range(0, 0x4_0000, Owner::Heap),
            range(0x4_0000, 0x10_0000, Owner::Free),
            range(0x14_0000, 0x1_0000, Owner::Free),
            range(0x15_0000, 0x1_0000, Owner::Heap),
        ];
        let map = Map::of(&ranges);
        assert_eq!(map.rows.len(), 3, "{:?}", map.rows);
        assert_eq!(map.rows[1], Row::Free(0x4_0000, 0x10_0000));
        ranges.push(range(0x10_0000_0000, 0x10_0000_0000, Owner::Stacks));
        let map = Map::of(&ranges);
        assert!(map.rows.len() <= ROWS, "{:?}", map.rows);
        assert!(Map::of(&[]).rows.is_empty());
    }

    #[test]
    fn ranges_that_make_no_sense_are_drawn_somehow() {
        let ranges = [
            range(0x3000, 0x2000, Owner::Heap),
            range(0x1000, 0x3000, Owner::Stacks),
            range(u64::MAX - 0x1000, u64::MAX, Owner::Kernel),
        ];
        let map = Map::of(&ranges);
        assert!(map.rows.len() <= ROWS, "{:?}", map.rows);
    }

    #[test]
    fn owners_that_look_alike_are_one_group() {
        assert_eq!(look_of(Owner::Bad), look_of(Owner::Reserved));
        assert_ne!(look_of(Owner::Heap), look_of(Owner::Stacks));
    }
}
