//! The legacy interrupt controllers, which have nothing to say here.

use x86_64::instructions::port::Port;

/// The mask registers of the two 8259A (Intel 8259A data sheet, OCW1; at their places in the PC/AT).
const MASKS: [u16; 2] = [0x21, 0xa1];

/// Masks every line of both: their interrupts would come at the vectors of exceptions.
pub fn mask() {
    for port in MASKS {
        // SAFETY: the port is the PIC's in a PC, and unclaimed in any other; masking all lines has
        // no effect but that no interrupt comes from there.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}
