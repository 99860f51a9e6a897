//! Where each CPU's stacks lie: a window of equal slots, guard pages between.
//!
//! A slot, from its lowest address: guard, double-fault stack, guard, NMI stack,
//! guard, machine-check stack, guard, main stack, guard up to the slot's end.
//! A stack that grows too far runs into a page that is not mapped.

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use muster_frames::FRAME_SIZE;
use muster_paging::VirtAddr;

use super::window::STACKS;
use crate::arch::descriptors::InterruptStack;

/// The main stack of each CPU, in bytes.
const MAIN: u64 = 64 * 1024;

/// Each interrupt stack, in bytes: the fault report runs on it.
const INTERRUPT: u64 = 16 * 1024;

/// The guard below each stack, in bytes.
const GUARD: u64 = FRAME_SIZE;

/// The part of the window for one CPU, in bytes.
const SLOT: u64 = 256 * 1024;

/// Stacks per slot.
const COUNT: usize = InterruptStack::COUNT + 1;

const _: () = assert!(COUNT as u64 * GUARD + BYTES + GUARD <= SLOT);

/// Bytes that the stacks of a CPU take of memory.
pub const BYTES: u64 = 3 * INTERRUPT + MAIN;

const _: () = assert!(InterruptStack::COUNT == 3);

/// The value of a stack's word that was never used: no address, and an unlikely number.
const PAINT: u64 = 0x5ac4_ed00_0000_5ac4;

/// Paints memory that is to be a stack.
///
/// # Safety
///
/// `length` is a multiple of 8; that many bytes may be written there, and nothing uses them.
pub unsafe fn paint(memory: NonNull<u64>, length: u64) {
    for word in 0..length as usize / size_of::<u64>() {
        // SAFETY: within the memory, as the caller promises.
        unsafe { memory.add(word).write(PAINT) };
    }
}

/// The stacks of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

/// Where a stack is: `bottom` is its lowest address, `top` the first above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its purpose, as it is called in the plan and in reports.
    pub name: &'static str,
    /// Its lowest address.
    pub bottom: VirtAddr,
    /// The first address above it, where the stack pointer starts.
    pub top: VirtAddr,
}

impl Extent {
    /// Returns its size in bytes.
    pub fn length(&self) -> u64 {
        self.top - self.bottom
    }

    /// Returns the peak use of it, in bytes: all but the words that still hold the paint.
    ///
    /// # Safety
    ///
    /// It is mapped in the tables in use.
    pub unsafe fn peak_used(&self) -> u64 {
        let bottom = self.bottom.as_mut_ptr::<u64>();
        let untouched = (0..self.length() as usize / size_of::<u64>())
            .map(|word| bottom.wrapping_add(word))
            // SAFETY: aligned and mapped, as the stack is whole words and, by the caller's promise,
            // in the tables. Its CPU may write there: then a word is read as it was or as it is.
            .take_while(|word| unsafe { word.read_volatile() } == PAINT)
            .count() as u64;
        self.length() - untouched * size_of::<u64>() as u64
    }

    /// Returns whether `address` lies in it.
    pub fn contains(&self, address: VirtAddr) -> bool {
        (self.bottom..self.top).contains(&address)
    }
}

impl Slot {
    /// Returns the slot of CPU `index`.
    pub fn of(index: u32) -> Self {
        Self(index)
    }

    /// Returns all stacks of the slot: the interrupt stacks in their order, then the main one.
    pub fn stacks(self) -> [Extent; COUNT] {
        let mut bottom = STACKS.start + u64::from(self.0) * SLOT;
        [
            ("double-fault stack", INTERRUPT),
            ("NMI stack", INTERRUPT),
            ("machine-check stack", INTERRUPT),
            ("stack", MAIN),
        ]
        .map(|(name, length)| {
            let stack = Extent {
                name,
                bottom: bottom + GUARD,
                top: bottom + GUARD + length,
            };
            bottom = stack.top;
            stack
        })
    }

    /// Returns the stack the CPU runs on.
    pub fn main(self) -> Extent {
        self.stacks()[COUNT - 1]
    }

    /// Returns the tops of the interrupt stacks, for the TSS.
    pub fn interrupt_tops(self) -> [VirtAddr; InterruptStack::COUNT] {
        let [double_fault, nmi, machine_check, _] = self.stacks();
        [double_fault.top, nmi.top, machine_check.top]
    }
}

/// The location of an address in the stack window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StackLocation {
    /// In a stack.
    In(u32, &'static str),
    /// In the guard below a stack: that stack overflowed.
    GuardBelow(u32, &'static str),
    /// In the guard below the boot stack.
    GuardBelowBoot,
}

impl StackLocation {
    /// Returns the location of `address`, if it is in the window, or in the guard below the boot
    /// stack.
    pub fn of(address: VirtAddr) -> Option<Self> {
        let boot = boot_bottom();
        if address < boot && boot - address <= GUARD {
            return Some(Self::GuardBelowBoot);
        }
        if !STACKS.contains(address) {
            return None;
        }
        let cpu = u32::try_from((address - STACKS.start) / SLOT).ok()?;
        let stacks = Slot::of(cpu).stacks();
        stacks
            .iter()
            .find(|stack| address < stack.top)
            .map(|stack| {
                if stack.contains(address) {
                    Self::In(cpu, stack.name)
                } else {
                    Self::GuardBelow(cpu, stack.name)
                }
            })
    }
}

impl fmt::Display for StackLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(cpu, name) => write!(f, "the {name} of CPU {cpu}"),
            Self::GuardBelow(cpu, name) => {
                write!(
                    f,
                    "the guard page below the {name} of CPU {cpu}: stack overflow"
                )
            }
            Self::GuardBelowBoot => {
                f.write_str("the guard page below the boot stack: stack overflow")
            }
        }
    }
}

/// Returns the stack that an address lies in, of those that are mapped for good.
pub fn around(address: VirtAddr) -> Option<Extent> {
    let boot = Extent {
        name: "boot stack",
        bottom: boot_bottom(),
        top: boot_top(),
    };
    let cpu =
        (address.checked_sub(STACKS.start)).and_then(|offset| (offset / SLOT).try_into().ok());
    let slot = cpu.filter(|_| STACKS.contains(address)).map(Slot::of);
    slot.map(Slot::stacks)
        .into_iter()
        .flatten()
        .chain([boot])
        .find(|stack| stack.contains(address))
}

/// Leaves the current stack for good and continues with `next` on the one that ends at `top`.
///
/// # Safety
///
/// The stack is mapped, writable, large enough, and used by no one; `top` is a
/// multiple of 16. Nothing on the current stack is used again.
pub unsafe fn run_on(top: VirtAddr, next: extern "C" fn() -> !) -> ! {
    // SAFETY: the stack is as the caller promises, and `call` pushes 8 bytes, so that
    // `next` finds it aligned as the ABI has it. The frame pointer 0 ends every
    // backtrace here.
    unsafe {
        core::arch::asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "call {next}",
            "ud2",
            top = in(reg) top.get(),
            next = in(reg) next,
            options(noreturn)
        );
    }
}

/// The size of the stack on which the BSP plans and builds the shared state, in bytes.
const BOOT: usize = 256 * 1024;

/// Its memory, in the image: the loader's own stack need only be 64 KiB. The page below it is in no
/// segment (`linker.ld`), so it has a guard in the loader's tables, too.
#[repr(C, align(4096))]
struct BootStack(UnsafeCell<[u8; BOOT]>);

// SAFETY: only the BSP runs on it, and others look at it only as `peek_boot` does.
unsafe impl Sync for BootStack {}

#[unsafe(link_section = ".boot_stack")]
static BOOT_STACK: BootStack = BootStack(UnsafeCell::new([0; BOOT]));

/// The interrupt stacks of the BSP while it is on the boot stack.
#[repr(C, align(16))]
struct BootInterruptStacks(UnsafeCell<[[u8; INTERRUPT as usize]; InterruptStack::COUNT]>);

// SAFETY: only the BSP runs on them.
unsafe impl Sync for BootInterruptStacks {}

static BOOT_INTERRUPT_STACKS: BootInterruptStacks = BootInterruptStacks(UnsafeCell::new(
    [[0; INTERRUPT as usize]; InterruptStack::COUNT],
));

/// Returns the tops of the BSP's interrupt stacks while it is on the boot stack.
pub fn boot_interrupt_tops() -> [VirtAddr; InterruptStack::COUNT] {
    let bottom = VirtAddr::from_ptr(BOOT_INTERRUPT_STACKS.0.get());
    core::array::from_fn(|number| bottom + (number as u64 + 1) * INTERRUPT)
}

/// Returns the first address above the boot stack.
pub fn boot_top() -> VirtAddr {
    boot_bottom() + BOOT as u64
}

fn boot_bottom() -> VirtAddr {
    VirtAddr::from_ptr(BOOT_STACK.0.get())
}

/// Reads a word of the boot stack, for a fault report before there are other stacks.
pub fn peek_boot(address: VirtAddr) -> Option<u64> {
    let is_inside = boot_bottom() <= address && address < boot_top();
    if !address.is_multiple_of(8) || !is_inside {
        return None;
    }
    let word = address.as_mut_ptr::<u64>();
    // SAFETY: an aligned word of the static, which only this CPU writes.
    Some(unsafe { word.read_volatile() })
}
