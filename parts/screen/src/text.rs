//! The text: characters in rows, beside what of them is on the screen.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use crate::pixels::Colour;

/// A character and its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// ASCII, printable.
    pub character: u8,
    /// What it is shown in.
    pub colour: Colour,
}

impl Cell {
    /// What an empty place holds.
    const BLANK: Self = Self {
        character: b' ',
        colour: Colour::Plain,
    };

    fn pack(self) -> u16 {
        u16::from_be_bytes([self.colour as u8, self.character])
    }

    fn unpack(packed: u16) -> Self {
        let [colour, character] = packed.to_be_bytes();
        let colour = Colour::ALL.get(usize::from(colour)).copied();
        Self {
            character,
            colour: colour.unwrap_or(Colour::Plain),
        }
    }
}

/// The fraction of the rows that is scrolled away at a time, in one drawing: one of this number.
const SCROLLED: usize = 4;

/// Rows of characters, filled from the top, and moved up by a few when they are full.
///
/// All of it is atomic, so that a fault's reporter can write without the lock, whose holder may have
/// been stopped: then a line may be mixed up, no more. Relaxed throughout: otherwise the lock orders
/// the accesses.
#[derive(Debug)]
pub struct Text {
    columns: usize,
    rows: usize,
    cells: Box<[AtomicU16]>,
    /// What is on the screen.
    drawn: Box<[AtomicU16]>,
    /// The first empty row.
    next: AtomicUsize,
}

impl Text {
    /// Creates empty rows, as on a cleared screen. Returns `None` if there are none, or no memory
    /// for them.
    pub fn new(columns: usize, rows: usize) -> Option<Self> {
        let count = columns.checked_mul(rows).filter(|&count| count > 0)?;
        let blank = || {
            let mut cells = Vec::new();
            cells.try_reserve_exact(count).ok()?;
            cells.resize_with(count, || AtomicU16::new(Cell::BLANK.pack()));
            Some(cells.into_boxed_slice())
        };
        Some(Self {
            columns,
            rows,
            cells: blank()?,
            drawn: blank()?,
            next: AtomicUsize::new(0),
        })
    }

    /// Adds a line, in as many rows as it takes, and has what is new on the screen drawn, by its
    /// column and its row.
    pub fn write(&self, line: &str, colour: Colour, draw: &mut dyn FnMut(usize, usize, Cell)) {
        let mut characters = line.chars().peekable();
        loop {
            self.write_row(&mut characters, colour);
            if characters.peek().is_none() {
                break;
            }
        }
        for (place, (cell, drawn)) in self.cells.iter().zip(&self.drawn).enumerate() {
            let packed = cell.load(Ordering::Relaxed);
            if drawn.load(Ordering::Relaxed) != packed {
                drawn.store(packed, Ordering::Relaxed);
                draw(
                    place % self.columns,
                    place / self.columns,
                    Cell::unpack(packed),
                );
            }
        }
    }

    fn write_row(&self, characters: &mut impl Iterator<Item = char>, colour: Colour) {
        let mut row = self.next.load(Ordering::Relaxed);
        if row >= self.rows {
            row = self.scroll();
        }
        self.next.store(row + 1, Ordering::Relaxed);
        let cells = self.cells.iter().skip(row * self.columns);
        for (cell, character) in cells.take(self.columns).zip(characters) {
            let character = match character {
                ' '..='~' => character as u8,
                _ => b'?',
            };
            cell.store(Cell { character, colour }.pack(), Ordering::Relaxed);
        }
    }

    /// Moves all up by some rows, and gives the first that is empty then.
    fn scroll(&self) -> usize {
        let by = (self.rows / SCROLLED).max(1);
        let blank = Cell::BLANK.pack();
        let later = self.cells.iter().skip(by * self.columns);
        let later = later.map(|cell| cell.load(Ordering::Relaxed));
        let blanks = core::iter::repeat(blank);
        for (cell, value) in self.cells.iter().zip(later.chain(blanks)) {
            cell.store(value, Ordering::Relaxed);
        }
        self.rows - by
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is seen, when only what is said to be drawn is drawn.
    struct Screen {
        columns: usize,
        cells: Vec<Cell>,
        drawings: usize,
    }

    impl Screen {
        fn new(columns: usize, rows: usize) -> Self {
            Self {
                columns,
                cells: vec![Cell::BLANK; columns * rows],
                drawings: 0,
            }
        }

        fn write(&mut self, text: &Text, line: &str, colour: Colour) {
            text.write(line, colour, &mut |column, row, cell| {
                assert!(column < self.columns);
                self.cells[row * self.columns + column] = cell;
                self.drawings += 1;
            });
        }

        fn rows(&self) -> Vec<String> {
            let row = |cells: &[Cell]| {
                let text: String = cells
                    .iter()
                    .map(|cell| char::from(cell.character))
                    .collect();
                text.trim_end().to_owned()
            };
            self.cells.chunks(self.columns).map(row).collect()
        }
    }

    #[test]
    fn lines_follow_each_other_and_long_ones_take_more_rows() {
        let text = Text::new(4, 5).unwrap();
        let mut screen = Screen::new(4, 5);
        screen.write(&text, "one", Colour::Plain);
        screen.write(&text, "", Colour::Plain);
        screen.write(&text, "abcdefgh", Colour::Error);
        assert_eq!(screen.rows(), ["one", "", "abcd", "efgh", ""]);
        assert_eq!(screen.cells[8].colour, Colour::Error);
        assert_eq!(screen.drawings, 3 + 8);
        screen.write(&text, "µs…", Colour::Plain);
        assert_eq!(screen.rows()[4], "?s?");
    }

    #[test]
    fn a_full_screen_scrolls_by_a_part_of_it() {
        let text = Text::new(2, 8).unwrap();
        let mut screen = Screen::new(2, 8);
        for line in ["0", "1", "2", "3", "4", "5", "6", "7", "8"] {
            screen.write(&text, line, Colour::Plain);
        }
        assert_eq!(screen.rows(), ["2", "3", "4", "5", "6", "7", "8", ""]);
        screen.write(&text, "9", Colour::Plain);
        assert_eq!(screen.rows()[7], "9");
        let one_row = Text::new(3, 1).unwrap();
        let mut screen = Screen::new(3, 1);
        screen.write(&one_row, "abcdef", Colour::Plain);
        screen.write(&one_row, "g", Colour::Plain);
        assert_eq!(screen.rows(), ["g"]);
    }

    #[test]
    fn a_screen_without_a_place_is_none() {
        for (columns, rows) in [(0, 5), (5, 0), (usize::MAX, 2), (1 << 40, 1 << 20)] {
            assert!(Text::new(columns, rows).is_none());
        }
    }

    proptest! {
        #[test]
        fn the_end_of_all_that_was_written_is_on_the_screen(
            columns in 1..12usize,
            rows in 1..12usize,
            lines in prop::collection::vec("[ -~]{0,30}", 0..30),
        ) {
            let text = Text::new(columns, rows).unwrap();
            let mut screen = Screen::new(columns, rows);
            let mut all = Vec::new();
            for line in &lines {
                screen.write(&text, line, Colour::Plain);
                let pieces = line.as_bytes().chunks(columns);
                let pieces = pieces.map(|piece| String::from_utf8_lossy(piece).trim_end().to_owned());
                let before = all.len();
                all.extend(pieces);
                if all.len() == before {
                    all.push(String::new());
                }
            }
            // Of the rows that are kept some are always shown: those that were not scrolled away.
            let shown = screen.rows();
            let filled = text.next.load(Ordering::Relaxed);
            prop_assert!(filled <= rows && (filled == all.len() || filled + rows / SCROLLED >= rows));
            prop_assert_eq!(&shown[..filled], &all[all.len() - filled..]);
            prop_assert!(shown[filled..].iter().all(String::is_empty));
        }
    }
}
