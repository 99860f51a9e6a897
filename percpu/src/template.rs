//! The template of the CPU-local variables, which the linker gathers, and the blocks made from it.

#[cfg(feature = "alloc")]
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;
use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;
#[cfg(feature = "alloc")]
use core::ptr::NonNull;
#[cfg(feature = "alloc")]
use core::slice;

use crate::variable::MAX_ALIGNMENT;
use crate::{Block, Header};

/// Declares CPU-local variables: every CPU has its own of each, in its [`Block`].
///
/// They may be declared in any module of any crate of the program: the linker gathers their initial values,
/// of which each block gets a copy, and their number and size are known when the program is linked.
///
/// ```
/// use core::sync::atomic::AtomicU64;
/// use muster_percpu::{LocalCell, LocalWord, cpu_local};
///
/// cpu_local! {
///     /// Only its CPU reaches it.
///     pub static DEPTH: LocalWord<u32> = LocalWord::new(0);
///     static NAMES: LocalCell<Vec<String>> = LocalCell::new(Vec::new());
///
///     /// Other CPUs may read it, too.
///     pub shared static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
/// }
/// ```
///
/// A variable is a [`LocalKey`](crate::LocalKey) or a [`SharedKey`](crate::SharedKey), by which a CPU reaches its own:
/// [`Here::get`](crate::Here::get), [`Storage::with_own`](crate::Storage::with_own). Another
/// CPU's are reached by [`Directory::on`](crate::Directory::on), if they are shared. No variable is ever
/// dropped.
///
/// # Mistakes that do not compile
///
/// An initial value that is not a constant:
///
/// ```compile_fail,E0015
/// # use muster_percpu::LocalWord;
/// # fn now() -> u64 { 0 }
/// muster_percpu::cpu_local! { static START: LocalWord<u64> = LocalWord::new(now()); }
/// ```
///
/// One by which all CPUs would have the same cell:
///
/// ```compile_fail,E0492
/// # use core::sync::atomic::AtomicU64;
/// muster_percpu::cpu_local! { shared static ALL: &'static AtomicU64 = &AtomicU64::new(0); }
/// ```
///
/// A shared variable that only one CPU may use at a time:
///
/// ```compile_fail,E0277
/// # use muster_percpu::LocalWord;
/// muster_percpu::cpu_local! { shared static TICKS: LocalWord<u64> = LocalWord::new(0); }
/// ```
///
/// A local one that a handler could find half changed; see
/// [`InterruptSafe`](crate::InterruptSafe):
///
/// ```compile_fail,E0277
/// # use core::cell::Cell;
/// muster_percpu::cpu_local! { static NAMES: Cell<Vec<String>> = Cell::new(Vec::new()); }
/// ```
///
/// ```compile_fail,E0277
/// # use core::cell::Cell;
/// muster_percpu::cpu_local! { static TICKS: Cell<u8> = Cell::new(0); }
/// ```
///
/// One with a value that a task, which uses it and moves on to another CPU, must not take there:
///
/// ```compile_fail,E0277
/// # use std::rc::Rc;
/// # use muster_percpu::LocalCell;
/// muster_percpu::cpu_local! { static NAME: LocalCell<Option<Rc<str>>> = LocalCell::new(None); }
/// ```
///
/// One whose alignment is above [`MAX_ALIGNMENT`]:
///
/// ```compile_fail,E0080
/// # use core::sync::atomic::AtomicU64;
/// #[repr(align(4096))]
/// struct Page(AtomicU64);
/// muster_percpu::cpu_local! { shared static PAGE: Page = Page(AtomicU64::new(0)); }
/// ```
///
/// # Where it works
///
/// Where object files are ELF, as everywhere but on Windows, Apple's systems, UEFI and WebAssembly. It does
/// not compile there, nor under Miri, which does not link. A linker script must place the two sections inside
/// the image: [`Template::find`] names the line if it does not.
#[macro_export]
macro_rules! cpu_local {
    (
        $(
            $(#[$attribute:meta])* $visibility:vis $(shared $(@$never:tt)*)? static $name:ident: $value:ty = $initial:expr
        );* $(;)?
    ) => {
        $(
            $crate::cpu_local_variable! {
                $(shared $(@$never)*)? $(#[$attribute])* $visibility static $name: $value = $initial
            }
        )*
    };
}

/// Declares one variable, for [`cpu_local!`](crate::cpu_local) alone.
#[doc(hidden)]
#[macro_export]
macro_rules! cpu_local_variable {
    (shared $(#[$attribute:meta])* $visibility:vis static $name:ident: $value:ty = $initial:expr) => {
        $(#[$attribute])*
        $visibility const $name: $crate::SharedKey<$value> = {
            // A constant, of which there may be any number of copies. A static of the same value would
            // not do: it may refer to a cell that it alone has.
            const __MUSTER_INITIAL: $value = $initial;
            #[used]
            #[unsafe(link_section = "muster_percpu_shared")]
            static __MUSTER_TEMPLATE: $crate::Initial<$value> =
                $crate::Initial::new(__MUSTER_INITIAL);
            // SAFETY: a constant's value, in the section of shared variables.
            unsafe { $crate::SharedKey::new(&raw const __MUSTER_TEMPLATE) }
        };
    };
    ($(#[$attribute:meta])* $visibility:vis static $name:ident: $value:ty = $initial:expr) => {
        $(#[$attribute])*
        $visibility const $name: $crate::LocalKey<$value> = {
            // As above.
            const __MUSTER_INITIAL: $value = $initial;
            #[used]
            #[unsafe(link_section = "muster_percpu_local")]
            static __MUSTER_TEMPLATE: $crate::Initial<$value> =
                $crate::Initial::new(__MUSTER_INITIAL);
            // SAFETY: a constant's value, in the section of local variables.
            unsafe { $crate::LocalKey::new(&raw const __MUSTER_TEMPLATE) }
        };
    };
}

/// The initial values of all variables that the program declares by [`cpu_local!`](crate::cpu_local):
/// two sections of the image, which nothing writes once it is loaded. Every CPU's block gets a copy.
///
/// # Why a copy will do
///
/// The macro takes an initial value as a `const`. Each use of a constant is a copy of the bytes that the
/// compiler has computed for it, and a program may use it any number of times, on any CPU. The block of a CPU
/// is one more use. A copy refers to what the constant does: not to its own place; at most to the value in the image, an
/// opaque `Initial`, by which nobody reads or writes it; and not to a cell that the
/// copies would share, as the compiler refuses a constant that refers to anything that changes, unless that is a
/// `static`, which is `Sync`. The values in the image are neither used nor dropped, and the copies
/// are never dropped, as blocks live for good.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    pub(crate) local: Section,
    pub(crate) shared: Section,
}

/// One of the two sections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    start: *const u8,
    len: usize,
}

// SAFETY: the pointer leads to a part of the image that nothing writes.
unsafe impl Send for Section {}
// SAFETY: as above.
unsafe impl Sync for Section {}

/// The value of the anchors: the letters `percpu` and a version.
const MAGIC: u64 = u64::from_le_bytes(*b"percpu\0\x01");

/// A variable that no CPU uses. It makes a section of a program without variables, and shows at start-up whether
/// the section is where it should be, and has been loaded.
#[repr(transparent)]
struct Anchor(UnsafeCell<u64>);

// SAFETY: nothing writes it.
unsafe impl Sync for Anchor {}

// In an `UnsafeCell`, as the variables are, so that the compiler asks the linker for one kind of section.
#[used]
#[unsafe(link_section = "muster_percpu_local")]
static LOCAL: Anchor = Anchor(UnsafeCell::new(MAGIC));

#[used]
#[unsafe(link_section = "muster_percpu_shared")]
static SHARED: Anchor = Anchor(UnsafeCell::new(MAGIC));

// The linker defines these for a section whose name is a C identifier.
unsafe extern "C" {
    #[link_name = "__start_muster_percpu_local"]
    static LOCAL_START: [u8; 0];
    #[link_name = "__stop_muster_percpu_local"]
    static LOCAL_STOP: [u8; 0];
    #[link_name = "__start_muster_percpu_shared"]
    static SHARED_START: [u8; 0];
    #[link_name = "__stop_muster_percpu_shared"]
    static SHARED_STOP: [u8; 0];
}

impl Template {
    /// Finds the template in the image that runs, and checks that the linker has put it where it belongs.
    ///
    /// `is_loaded` says whether the image has these addresses, that is, whether a loader has put there what
    /// the linker intended: they lie between symbols of the linker script, or in a segment that the
    /// program headers list. On a host, where the system loads every section, it is `|_| true`.
    ///
    /// For the first CPU, once, before it makes the blocks.
    ///
    /// # Errors
    ///
    /// [`TemplateError`], which names the line that the linker script lacks.
    pub fn find(is_loaded: impl Fn(Range<usize>) -> bool) -> Result<Self, TemplateError> {
        let [local, shared] = linked();
        Ok(Self {
            local: local.check(&is_loaded)?,
            shared: shared.check(&is_loaded)?,
        })
    }

    /// Returns what a CPU's local variables take, in bytes.
    pub const fn local_bytes(&self) -> usize {
        self.local.len
    }

    /// Returns what a CPU's shared variables take, in bytes.
    pub const fn shared_bytes(&self) -> usize {
        self.shared.len
    }
}

/// A section as the linker describes it.
struct Linked {
    name: &'static str,
    start: *const u8,
    stop: *const u8,
    anchor: *const u64,
}

/// Returns both sections as the linker describes them, the local one first.
///
/// Never inlined: on a host a program may be made of several shared objects, and then each has such sections of
/// its own. The ones that count are those of the object that this function is in.
#[inline(never)]
fn linked() -> [Linked; 2] {
    // The compiler takes each symbol for an object of its own, of no size, at an address that no other one has.
    // They stand for what lies between them. And the anchors are named here, so the linker keeps the sections,
    // whatever it does with those that nothing refers to.
    black_box([
        Linked {
            name: "muster_percpu_local",
            start: (&raw const LOCAL_START).cast(),
            stop: (&raw const LOCAL_STOP).cast(),
            anchor: LOCAL.0.get(),
        },
        Linked {
            name: "muster_percpu_shared",
            start: (&raw const SHARED_START).cast(),
            stop: (&raw const SHARED_STOP).cast(),
            anchor: SHARED.0.get(),
        },
    ])
}

impl Linked {
    fn addresses(&self) -> Range<usize> {
        self.start.addr()..self.stop.addr()
    }

    fn check(self, is_loaded: &impl Fn(Range<usize>) -> bool) -> Result<Section, TemplateError> {
        let addresses = self.addresses();
        // SAFETY: a static, which nothing writes. Volatile: the compiler must not take the value from the
        // source, as the one in memory counts.
        let read = || unsafe { self.anchor.read_volatile() };
        let problem = problem(&addresses, self.anchor.addr(), is_loaded, read);
        let len = addresses.end.wrapping_sub(addresses.start);
        match problem {
            None => Ok(Section {
                start: self.start,
                len,
            }),
            Some(problem) => Err(TemplateError {
                section: self.name,
                addresses,
                problem,
            }),
        }
    }
}

/// Returns whether an initial value is in the template. On bare metal, where there is one image, all are.
pub(crate) fn is_gathered(initial: usize) -> bool {
    // One without a size may lie at the very end.
    let has = |section: &Linked| section.start.addr() <= initial && initial <= section.stop.addr();
    linked().iter().any(has)
}

/// Returns what is wrong with a section at these addresses, whose anchor has this address. `read` reads the
/// anchor, which is not done before its address is known to be good.
fn problem(
    addresses: &Range<usize>,
    anchor: usize,
    is_loaded: &impl Fn(Range<usize>) -> bool,
    read: impl FnOnce() -> u64,
) -> Option<Problem> {
    let last = anchor.wrapping_add(size_of::<Anchor>() - 1);
    if !addresses.contains(&anchor) || !addresses.contains(&last) {
        return Some(Problem::Scattered { anchor });
    }
    if !is_loaded(addresses.clone()) {
        return Some(Problem::OutsideImage);
    }
    (read() != MAGIC).then_some(Problem::NotLoaded)
}

impl Section {
    /// Returns the space for a copy of the section: whole pairs of cache lines, which so hold nothing else.
    fn space(&self) -> usize {
        (self.offset() + self.len).next_multiple_of(MAX_ALIGNMENT)
    }

    /// Returns where in that space the copy starts: as far behind a multiple of the largest alignment as the
    /// section in the image, so that each variable is aligned as the linker has aligned it there.
    fn offset(&self) -> usize {
        self.start.addr() % MAX_ALIGNMENT
    }

    /// Copies the section, and returns the base of the variables in the copy.
    ///
    /// # Safety
    ///
    /// At `space` there is as much writable memory as [`Self::space`] says, aligned to [`MAX_ALIGNMENT`], and
    /// used by nothing else.
    unsafe fn copy_to(&self, space: *mut u8) -> *const u8 {
        // SAFETY: (1) the section is part of the image, as `find` has checked; (2) the copy lies in the
        // space, which is no part of the image.
        let copy = unsafe {
            let copy = space.add(self.offset());
            ptr::copy_nonoverlapping(self.start, copy, self.len);
            copy
        };
        copy.wrapping_sub(self.start.addr())
    }
}

impl<H> Block<H> {
    /// The alignment of the memory of a block, in bytes.
    pub const ALIGNMENT: usize = align_of::<Self>();

    /// Returns the size of the memory of a block with the program's variables, in bytes.
    pub fn size(template: &Template) -> usize {
        size_of::<Self>() + template.local.space() + template.shared.space()
    }

    /// Makes the block of the CPU with the given index in `memory`, with the program's variables at their
    /// initial values.
    ///
    /// The memory is of [`size`](Self::size) bytes, at a multiple of [`ALIGNMENT`](Self::ALIGNMENT). What it
    /// has more is not used.
    ///
    /// # Errors
    ///
    /// [`PlaceError`] if the memory is too small or not aligned.
    #[inline]
    pub fn place(
        memory: &'static mut [MaybeUninit<u8>],
        template: &Template,
        index: u32,
        head: H,
    ) -> Result<&'static Self, PlaceError> {
        let needed = Self::size(template);
        if memory.len() < needed {
            return Err(PlaceError::TooSmall {
                needed,
                given: memory.len(),
            });
        }
        let start = memory.as_mut_ptr().cast::<u8>();
        if !start.addr().is_multiple_of(Self::ALIGNMENT) {
            return Err(PlaceError::Misaligned {
                needed: Self::ALIGNMENT,
                address: start.addr(),
            });
        }
        // SAFETY: (1) the memory is large enough for the block and the two spaces behind it, of which none
        // overlaps another one, and borrowed for good; (2) the start is aligned for the block, and so
        // are the spaces, as a block's size and alignment are multiples of `MAX_ALIGNMENT`, and
        // so is the size of a space.
        unsafe {
            let local = start.add(size_of::<Self>());
            let shared = local.add(template.local.space());
            let header = Header::with_variables(
                index,
                template.local.copy_to(local),
                template.shared.copy_to(shared),
            );
            Ok(Self::write(start.cast(), header, head))
        }
    }

    /// Makes the block of the CPU with the given index in memory of the heap, which is never freed; see
    /// [`place`](Self::place).
    ///
    /// # Errors
    ///
    /// [`PlaceError::OutOfMemory`].
    #[cfg(feature = "alloc")]
    #[inline]
    pub fn allocate(template: &Template, index: u32, head: H) -> Result<&'static Self, PlaceError> {
        let needed = Self::size(template);
        let memory = Layout::from_size_align(needed, Self::ALIGNMENT)
            .ok()
            // SAFETY: the size is not 0, as a block has a header.
            .map(|layout| unsafe { alloc::alloc::alloc(layout) })
            .and_then(NonNull::new)
            .ok_or(PlaceError::OutOfMemory { needed })?;
        // SAFETY: the heap's memory of this size, which nobody else has and which is never freed; any
        // bytes will do as `MaybeUninit`.
        let memory = unsafe { slice::from_raw_parts_mut(memory.cast().as_ptr(), needed) };
        Self::place(memory, template, index, head)
    }
}

/// The reason why the template can't be used: the linker script has no line for one of its sections, and the
/// linker has put that where the loader does not look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateError {
    section: &'static str,
    addresses: Range<usize>,
    problem: Problem,
}

/// What is wrong with a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// The linker's symbols enclose something else than what the section has.
    Scattered { anchor: usize },
    /// It lies outside the image.
    OutsideImage,
    /// What is in memory there is not what the linker has put there.
    NotLoaded,
}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            section,
            addresses: Range { start, end },
            problem,
        } = self;
        write!(f, "section {section}, {start:#x} to {end:#x}, ")?;
        match problem {
            Problem::Scattered { anchor } => {
                write!(f, "has not all CPU-local variables: one is at {anchor:#x}")?;
            }
            Problem::OutsideImage => f.write_str("is outside the loaded image")?,
            Problem::NotLoaded => f.write_str("has not been loaded")?,
        }
        write!(
            f,
            ": add `{section} : {{ KEEP(*({section})) }}` to the linker script, among the read-only sections"
        )
    }
}

impl core::error::Error for TemplateError {}

/// The reason why a block could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// The memory is too small.
    TooSmall {
        /// The size of a block, in bytes.
        needed: usize,
        /// The size of the memory, in bytes.
        given: usize,
    },
    /// The memory is not aligned.
    Misaligned {
        /// The alignment of a block, in bytes.
        needed: usize,
        /// The address of the memory.
        address: usize,
    },
    /// The heap has no memory for the block.
    OutOfMemory {
        /// The size of a block, in bytes.
        needed: usize,
    },
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { needed, given } => write!(
                f,
                "{given} bytes are too few for a per-CPU block: give it the {needed} of `Block::size`"
            ),
            Self::Misaligned { needed, address } => write!(
                f,
                "{address:#x} is not aligned for a per-CPU block: use a multiple of {needed}"
            ),
            Self::OutOfMemory { needed } => {
                write!(f, "the heap has no {needed} bytes for a per-CPU block")
            }
        }
    }
}

impl core::error::Error for PlaceError {}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: usize = 0x1010;

    fn problem_of(
        addresses: Range<usize>,
        is_loaded: bool,
        read: impl FnOnce() -> u64,
    ) -> Option<Problem> {
        problem(
            &addresses,
            ANCHOR,
            &|asked| is_loaded && asked == addresses,
            read,
        )
    }

    #[test]
    fn a_section_that_lies_elsewhere_or_has_something_else_in_it_is_refused() {
        let never = || panic!("an anchor that may not be there is read");
        let scattered = Some(Problem::Scattered { anchor: ANCHOR });
        assert_eq!(problem_of(0x1000..0x1018, true, || MAGIC), None);
        assert_eq!(problem_of(ANCHOR..0x1018, true, || MAGIC), None);
        for addresses in [0..0, 0x1000..0x1010, 0x1000..0x1017, 0x1011..0x1020] {
            assert_eq!(problem_of(addresses, true, never), scattered);
        }
        #[expect(clippy::reversed_empty_ranges, reason = "symbols in the wrong order")]
        let reversed = 0x1018..0x1000;
        assert_eq!(problem_of(reversed, true, never), scattered);
        assert_eq!(
            problem_of(0x1000..0x1018, false, never),
            Some(Problem::OutsideImage)
        );
        assert_eq!(
            problem_of(0x1000..0x1018, true, || 0),
            Some(Problem::NotLoaded)
        );
    }

    #[test]
    fn a_copy_is_aligned_as_the_section_and_shares_no_pair_of_lines() {
        for start in 0x1000..0x1000 + MAX_ALIGNMENT {
            for len in 0..3 * MAX_ALIGNMENT {
                let section = Section {
                    start: ptr::without_provenance(start),
                    len,
                };
                let copy = 0x8000 + section.offset();
                assert_eq!(copy % MAX_ALIGNMENT, start % MAX_ALIGNMENT);
                assert!(section.offset() + len <= section.space());
                assert!(section.space().is_multiple_of(MAX_ALIGNMENT));
            }
        }
    }

    #[test]
    fn each_problem_is_named_with_the_line_that_mends_it() {
        let named = |problem| {
            let error = TemplateError {
                section: "muster_percpu_local",
                addresses: 0x1000..0x2000,
                problem,
            };
            std::string::ToString::to_string(&error)
        };
        for (problem, words) in [
            (Problem::Scattered { anchor: 0x30 }, "one is at 0x30:"),
            (Problem::OutsideImage, "is outside the loaded image:"),
            (Problem::NotLoaded, "has not been loaded:"),
        ] {
            let text = named(problem);
            assert!(text.starts_with("section muster_percpu_local, 0x1000 to 0x2000, "));
            assert!(text.contains(words), "{text}");
            assert!(text.contains("`muster_percpu_local : { KEEP(*(muster_percpu_local)) }`"));
        }
    }
}
