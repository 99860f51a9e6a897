//! The legacy interrupt controllers, two 8259A, which are not used here (Intel 8259A data sheet; at the
//! ports of the PC/AT).

use x86_64::instructions::port::Port;

/// The vector of the first controller's first line. The second one's follow on its eight.
pub const FIRST_VECTOR: u8 = 0x20;

/// Lines of both.
pub const LINES: u8 = 16;

/// The first ports of the two, and their second ones, which take the masks (OCW1).
const COMMANDS: [u16; 2] = [0x20, 0xa0];
const MASKS: [u16; 2] = [0x21, 0xa1];

/// The initialisation words of a controller: a sequence of four follows, edge by edge (ICW1); where
/// the two meet, as a bit and as a number (ICW3); and that they are an 8086's (ICW4).
const ICW1: u8 = 0x11;
const ICW3: [u8; 2] = [1 << 2, 2];
const ICW4: u8 = 0x01;

/// Asks for the lines whose interrupts are in service (OCW3), and ends the last of them (OCW2).
const READ_IN_SERVICE: u8 = 0x0b;
const END_OF_INTERRUPT: u8 = 0x20;

/// An unused port, a write to which takes as long as these old devices need.
const DELAY: u16 = 0x80;

/// Moves the lines of both away from the vectors of exceptions, and then masks them all: the spurious
/// interrupt of a masked controller still comes, at the vector of its last line.
pub fn silence() {
    for (number, (command, mask)) in (0..).zip(COMMANDS.into_iter().zip(MASKS)) {
        let first = FIRST_VECTOR + 8 * number;
        let words = [
            (command, ICW1),
            (mask, first),
            (mask, ICW3[usize::from(number)]),
            (mask, ICW4),
        ];
        for (port, word) in words {
            write(port, word);
        }
    }
    for mask in MASKS {
        write(mask, 0xff);
    }
}

/// Ends the interrupt of this line, if a controller has it in service; a spurious one is in none.
pub fn end(line: u8) {
    let number = usize::from(line / 8);
    write(COMMANDS[number], READ_IN_SERVICE);
    // SAFETY: the port is the PIC's in a PC, and unclaimed in any other; reading the register that was
    // just asked for has no side effect.
    let in_service = unsafe { Port::<u8>::new(COMMANDS[number]).read() };
    // The second one's spurious interrupt is a real one to the first, where the two meet.
    if in_service >> (line % 8) & 1 != 0 {
        write(COMMANDS[number], END_OF_INTERRUPT);
    }
    if number == 1 {
        write(COMMANDS[0], END_OF_INTERRUPT);
    }
}

fn write(port: u16, value: u8) {
    // SAFETY: the port is the PIC's in a PC, and unclaimed in any other. All that is written here sets
    // the vectors of lines that are masked in the end, or ends what they sent. The second port is that
    // of the firmware's progress codes, which has no effect on memory.
    unsafe {
        Port::new(port).write(value);
        Port::new(DELAY).write(0_u8);
    }
}
