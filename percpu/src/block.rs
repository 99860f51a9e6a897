//! The per-CPU block: its header and its head, with the variables behind them.

use core::fmt;
use core::mem::{MaybeUninit, offset_of};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use muster_sync::{AtomicBool, const_unless_modelled};

use crate::SharedKey;
use crate::storage::no_variables;
use crate::variable::at;

/// The first bytes of every [`Block`], at a layout that assembly may rely on.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | the block's own address once a CPU has claimed it, null before |
/// | 8 | 4 | the CPU's index |
/// | 16 | 8 | the [base](#bases) of the CPU's local variables, null where the block has none |
/// | 24 | 8 | that of its shared variables |
/// | [`head_offset`] | any | the [head](Block#the-head), of the kernel's own type |
///
/// The address at offset 0 is there because a segment-relative load can't yield the segment's base:
/// reading `gs:[0]` is the cheapest way to get from GS base to a pointer.
///
/// # Bases
///
/// The base of a kind of variables is the address of the CPU's copy of their [`Template`](crate::Template) less
/// that of the template. So a variable lies at the base plus the address of its initial value in the image,
/// which the linker knows; and where addresses are constants, that is an operand of an instruction.
#[repr(C)]
pub struct Header {
    this: AtomicPtr<Header>,
    index: u32,
    local: *const u8,
    shared: *const u8,
}

const _: () = assert!(offset_of!(Header, this) == 0 && offset_of!(Header, index) == 8);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(Header::LOCAL == 16 && Header::SHARED == 24);

// SAFETY: `this` is an atomic, and the other fields never change once the header is made. The pointers
// are only handed out, and what may be done with one is for the code that does it to say.
unsafe impl Send for Header {}
// SAFETY: as above.
unsafe impl Sync for Header {}

/// Returns the offset of the head from the address of a [`Block`] or an [`Unregistered`], in bytes:
/// behind the [`Header`], 32 bytes on 64-bit machines, at the next multiple of `H`'s own alignment.
///
/// Where the register is a segment base, the offset from that is the same: `gs:[head_offset::<H>()]`.
pub const fn head_offset<H>() -> usize {
    offset_of!(Unregistered<H>, head)
}

/// The sentinel that a CPU's register points to while the CPU has no block: the header and the head of
/// a block, but the address field is null, so that [`Register::load`](crate::Register::load) yields
/// null instead of whatever lies at address 0.
///
/// The head is there for code that goes by the register without asking whether the CPU has a block, as
/// the fast paths of a heap do. It finds this one, and must find in it that there is nothing available:
/// a cache that is empty and has no room. All CPUs without a block share it, so it is made of what may
/// be written on several at once, or it is never written at all.
///
/// A kernel has one, in a `static`, which its [`Register::unregistered`](crate::Register::unregistered)
/// returns; [`UNREGISTERED`] if its blocks have no head.
#[repr(C, align(128))]
pub struct Unregistered<H = ()> {
    header: Header,
    head: H,
}

/// The sentinel for blocks that have no head.
pub static UNREGISTERED: Unregistered = Unregistered::new(());

impl<H> Unregistered<H> {
    /// Creates a sentinel with this head.
    pub const fn new(head: H) -> Self {
        const {
            let head = head_offset::<H>();
            assert!(offset_of!(Self, header) == 0);
            assert!(head == size_of::<Header>().next_multiple_of(align_of::<H>()));
        }
        Self {
            header: Header::new(u32::MAX),
            head,
        }
    }

    /// Returns the address of the whole, for a register to hold.
    pub const fn header(&'static self) -> *const Header {
        // Made from the whole, so that the pointer's provenance covers the head.
        ptr::from_ref(self).cast()
    }
}

impl Header {
    /// The offset of the base of local variables from the address of the block, in bytes.
    pub(crate) const LOCAL: usize = offset_of!(Header, local);
    /// The offset of the base of shared variables from the address of the block, in bytes.
    pub(crate) const SHARED: usize = offset_of!(Header, shared);

    /// Creates the header of a block without variables.
    const fn new(index: u32) -> Self {
        Self::with_variables(index, ptr::null(), ptr::null())
    }

    /// Creates the header of a block whose variables have these bases.
    pub(crate) const fn with_variables(index: u32, local: *const u8, shared: *const u8) -> Self {
        Self {
            this: AtomicPtr::new(ptr::null_mut()),
            index,
            local,
            shared,
        }
    }

    /// Returns the base of the CPU's local variables; null if the block was made without variables, and
    /// for an [`Unregistered`].
    #[inline]
    pub(crate) const fn local(&self) -> *const u8 {
        self.local
    }

    /// Returns the same for the shared variables.
    #[inline]
    pub(crate) const fn shared(&self) -> *const u8 {
        self.shared
    }

    /// Returns the address stored at offset 0: this header's own once a CPU has claimed the block, null
    /// before, and always null for that of an [`Unregistered`].
    ///
    /// For a [`Register`](crate::Register) that holds the pointer itself (a thread-local, a
    /// coprocessor register) rather than a segment base to read through.
    pub fn this(&self) -> *const Header {
        // Relaxed: only the CPU that claimed the block reads this, and it wrote it itself.
        self.this.load(Ordering::Relaxed)
    }
}

/// One CPU's memory: the variables that the program declares by [`cpu_local!`](crate::cpu_local), and a head
/// that code may reach by the register alone.
///
/// A block with variables has a size that only the linked program knows, and is made by `Block::place` or
/// `Block::allocate`. One that is made by [`new`](Self::new), [`with_head`](Self::with_head) or
/// [`init`](Self::init) has none: to use one on its CPU is a panic.
///
/// # The head
///
/// A kernel whose register is a segment base can have code that goes by it directly, without the way
/// through a pointer: `inc qword ptr gs:[32]`, or the restartable fast paths of a heap. Such code
/// reaches the block's head, [`head_offset`] bytes from the base; and as that code doesn't ask whether
/// the CPU has a block, an [`Unregistered`] has a head at the same distance. Nothing else of a block is
/// at a fixed offset.
///
/// All CPUs may have a reference to the head, so it is `Sync`; and such code may write only where one
/// could by that reference, to atomics and what lies in an `UnsafeCell`. A kernel without such code
/// leaves it out: `()` takes no space.
///
/// # Layout
///
/// A block is aligned to a 128-byte boundary: two cache lines, because the spatial prefetcher of Intel's
/// cores fetches lines in pairs (Intel 64 and IA-32 Architectures Optimization Reference Manual, "Data
/// Prefetching"). So no two blocks ever share a line. The variables follow, the local and the shared ones
/// on lines of their own.
///
/// A block belongs to the first CPU that registers it, for good.
#[repr(C, align(128))]
pub struct Block<H = ()> {
    header: Header,
    head: H,
    /// Whether a CPU has claimed the block. Accesses are `Relaxed`: that one of all claims succeeds is
    /// what a read-modify-write is for, and nothing is published by it. A CPU that claims the block
    /// reads what it was made with, which came with the reference to it; others read only shared
    /// variables and the head, by whatever these are made of.
    claimed: AtomicBool,
}

impl Block {
    const_unless_modelled! {
        /// Creates a block for the CPU with the given index, without a head and without variables.
        ///
        /// The index is the kernel's own, counted from 0 without gaps (not a LAPIC id).
        pub const fn new(index: u32) -> Self {
            Self::with_head(index, ())
        }
    }
}

impl<H> Block<H> {
    const LAYOUT: () = {
        assert!(offset_of!(Self, header) == 0);
        assert!(offset_of!(Self, head) == head_offset::<H>());
        assert!(align_of::<Self>() >= 128);
        assert!(size_of::<Self>().is_multiple_of(128));
    };

    const_unless_modelled! {
        /// Creates a block for the CPU with the given index, without variables.
        ///
        /// The index is the kernel's own, counted from 0 without gaps (not a LAPIC id).
        pub const fn with_head(index: u32, head: H) -> Self {
            let () = Self::LAYOUT;
            Self {
                header: Header::new(index),
                head,
                claimed: AtomicBool::new(false),
            }
        }
    }

    /// Makes the block of the CPU with the given index where it is to stay, without variables: for a head
    /// that is too large for a stack.
    #[inline]
    pub fn init(place: &'static mut MaybeUninit<Self>, index: u32, head: H) -> &'static Self {
        // SAFETY: `place` is memory for a block, and borrowed for good, so nothing else uses it.
        unsafe { Self::write(place.as_mut_ptr(), Header::new(index), head) }
    }

    /// Makes a block at `block`.
    ///
    /// # Safety
    ///
    /// `block` is memory for a block, writable for good, and used by nothing else.
    #[inline]
    pub(crate) unsafe fn write(block: *mut Self, header: Header, head: H) -> &'static Self {
        let () = Self::LAYOUT;
        // SAFETY: (1) the memory is large enough, and no one else's: the caller's promise; (2) each field is
        // written once, and a reference is made when all are.
        unsafe {
            (&raw mut (*block).head).write(head);
            (&raw mut (*block).header).write(header);
            (&raw mut (*block).claimed).write(AtomicBool::new(false));
            &*block
        }
    }

    /// Returns the index of the CPU this block was made for.
    pub const fn index(&self) -> u32 {
        self.header.index
    }

    /// Returns whether a CPU has claimed this block, or is about to. Says nothing of what that CPU has
    /// done.
    pub fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Relaxed)
    }

    /// Returns the part that code may reach by the register alone, and every CPU by this reference.
    pub const fn head(&self) -> &H {
        &self.head
    }

    /// Returns what this block's CPU has of a shared variable.
    ///
    /// # Panics
    ///
    /// If the block was made without variables: by [`Block::new`], [`Block::with_head`] or [`Block::init`].
    #[track_caller]
    pub fn get<V>(&self, variable: &SharedKey<V>) -> &'static V {
        let base = self.header.shared();
        if base.is_null() {
            no_variables(Some(self.index()));
        }
        // SAFETY: the base is that of a block, and not null.
        unsafe { at(variable, base) }
    }

    /// Returns the first bytes.
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// Makes the calling CPU the owner; `None` if the block has one already.
    pub(crate) fn claim(&'static self) -> Option<*const Header> {
        self.claimed
            .compare_exchange(false, true, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        // Made from the whole block, so that the pointer's provenance covers the block behind the
        // header.
        let this = ptr::from_ref(self).cast::<Header>();
        // Relaxed: as in `Header::this`.
        self.header.this.store(this.cast_mut(), Ordering::Relaxed);
        Some(this)
    }
}

impl<H> fmt::Debug for Block<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("index", &self.index())
            .field("claimed", &self.is_claimed())
            .finish_non_exhaustive()
    }
}
