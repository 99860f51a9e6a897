//! Size classes: which sizes there are, and what is right for each.

use core::alloc::Layout;
use core::fmt;
use core::ops::Index;

/// A page frame, in bytes (Intel SDM, volume 3, section 5.5: the smallest page).
pub const FRAME: usize = 4096;

/// The number of size classes.
pub const CLASSES: usize = EVEN + PER_DOUBLING * DOUBLINGS;

/// The largest block that comes from slabs, in bytes. Larger blocks are frames.
pub const MAX_CLASS_SIZE: usize = (EVEN * UNIT) << DOUBLINGS;

/// All sizes are multiples of this, which is also the least alignment: that of `max_align_t` on
/// x86-64 (System V ABI, section 3.1.2).
pub(super) const UNIT: usize = 16;
/// Classes in steps of one unit.
const EVEN: usize = 8;
/// From there on, a class wastes at most a fifth of a block.
const PER_DOUBLING: usize = 4;
const DOUBLINGS: usize = 6;

/// The size of a magazine's blocks together, in bytes. Half as much costs a few per cent of speed,
/// twice as much gains nothing.
const MAGAZINE: usize = 16 << 10;
/// The fewest blocks a magazine holds: with less, the slow path halves the throughput.
const MIN_DEPTH: usize = 8;
/// The most: what moves at once must not keep a CPU for long, and 16 KiB of the smallest blocks would.
pub(super) const MAX_DEPTH: usize = 128;

/// The budget of one CPU: the most bytes that it keeps to itself, when all its magazines have grown
/// to their full depth and are full, and so is its reserve. Less than 2.3 MiB. A block that shrank where
/// it was, as no memory was left ([`MagazineHeap`](super::MagazineHeap)), is larger than it counts here.
pub const MAX_CACHED: usize = {
    let mut bytes = MAX_LARGE_FRAMES * FRAME;
    let mut class = 0;
    while let Some(this) = Class::from_index(class) {
        bytes += (2 * this.depth() + 1) * this.size();
        class += 1;
    }
    bytes
};

/// The most blocks of a slab: one bit each in a [`Slab`](super::slab::Slab).
pub(super) const MAX_BLOCKS: usize = 256;
/// The largest slab, in frames.
pub(super) const MAX_FRAMES: usize = 8;

/// A size class: all blocks of a class are of one size.
///
/// The value is the class's number times `STRIDE`, and the number is less than [`CLASSES`]:
/// nothing outside this file makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class(u16);

/// The distance, in bytes, of what belongs to two neighbouring classes on the fast path, which so
/// need not multiply.
pub(super) const STRIDE: usize = 16;

impl Class {
    /// Returns the class that serves a layout, or `None` if it is larger than any.
    ///
    /// The size of the class is a multiple of the layout's alignment, and slabs are aligned to
    /// their size, so each block is aligned as it must be: with an alignment above 16, the size is
    /// first rounded up to a multiple of it. If such a multiple isn't itself the size of a class, it
    /// lies between two of which both are multiples of the alignment, as classes are 2ᵏ apart from
    /// 4·2ᵏ to 8·2ᵏ: an alignment above 2ᵏ has no multiples there but sizes of classes.
    pub const fn of(layout: Layout) -> Option<Self> {
        if layout.align() > UNIT {
            let size = layout.pad_to_align().size();
            // None is a multiple of any alignment, but no block is that small.
            Self::of_size(if size == 0 { layout.align() } else { size })
        } else {
            Self::of_size(layout.size())
        }
    }

    /// Does what [`of`](Self::of) does, but only for the alignments that every block has: a fast path
    /// has no instruction to spare for others.
    #[inline(always)]
    pub(super) const fn of_usual(layout: Layout) -> Option<Self> {
        if layout.align() > UNIT {
            None
        } else {
            Self::of_size(layout.size())
        }
    }

    #[inline(always)]
    const fn of_size(size: usize) -> Option<Self> {
        // Two instructions, as a layout's size is at most `isize::MAX`, which `div_ceil` doesn't know.
        let units = (size + UNIT - 1) >> UNIT.ilog2();
        if units < OF_UNITS.len() {
            Some(Self(OF_UNITS[units]))
        } else {
            None
        }
    }

    /// Returns all classes, from the smallest.
    pub fn all() -> impl ExactSizeIterator<Item = Self> + Clone {
        // The cast is exact, as there are few classes.
        (0..CLASSES).map(|index| Self((index * STRIDE) as u16))
    }

    pub(super) const fn from_index(index: usize) -> Option<Self> {
        if index < CLASSES {
            Some(Self((index * STRIDE) as u16))
        } else {
            None
        }
    }

    /// Returns the class's number, counted from 0.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize / STRIDE
    }

    /// Returns the size of a block in bytes.
    #[inline]
    pub const fn size(self) -> usize {
        size_of_class(self.index())
    }

    /// Returns the alignment of each of its blocks: the largest alignment of a layout of this class.
    pub(super) const fn alignment(self) -> usize {
        1 << self.size().trailing_zeros()
    }

    /// Returns how many blocks move between a CPU, the depot and the slabs at once. A CPU caches twice
    /// as many: Bonwick's loaded and previous magazine.
    pub const fn depth(self) -> usize {
        let depth = MAGAZINE / self.size();
        if depth < MIN_DEPTH {
            MIN_DEPTH
        } else if depth > MAX_DEPTH {
            MAX_DEPTH
        } else {
            depth
        }
    }

    /// Returns how many blocks a magazine may have at first, before misses make it grow.
    pub(super) const fn first_limit(self) -> usize {
        self.depth() / 2
    }

    /// Returns how many frames a slab has: a power of two, the least that loses at most an eighth to
    /// the end of the slab and holds 8 blocks; or else the most there may be.
    pub const fn slab_frames(self) -> usize {
        let mut frames = 1;
        while frames < MAX_FRAMES {
            let bytes = frames * FRAME;
            if bytes % self.size() * 8 <= bytes && bytes / self.size() >= 8 {
                break;
            }
            frames *= 2;
        }
        frames
    }

    /// Returns how many frames a slab may have, from the best number on. A smaller slab wastes more, but is better than none:
    /// when memory is in pieces, and when a larger one would take the frames that its description needs.
    pub(super) fn slab_counts(self) -> impl Iterator<Item = usize> {
        let min = self.size().div_ceil(FRAME).next_power_of_two();
        core::iter::successors(Some(self.slab_frames()), |count| Some(count / 2))
            .take_while(move |&count| count >= min)
    }

    /// Returns the number of the block at an offset in a slab, or `None` if no block starts there.
    #[inline]
    pub(super) fn block_at(self, offset: usize) -> Option<usize> {
        // Division by multiplication, as the size isn't known to the compiler: exact for offsets
        // up to the largest slab's size, which a test goes through one by one.
        let index = ((offset as u64 * INVERSE[self]) >> 32) as usize;
        (index * self.size() == offset).then_some(index)
    }
}

/// The most frames of a large block that a magazine holds.
const MAX_RUN: usize = 64;
/// The fewest frames of a large block.
const MIN_RUN: usize = MAX_CLASS_SIZE / FRAME + 1;

/// The number of magazines of a CPU: one for each class, and one for large blocks of each number of frames up to
/// [`MAX_RUN`].
pub(super) const BINS: usize = CLASSES + LARGE_BINS;
/// Those for large blocks.
pub(super) const LARGE_BINS: usize = MAX_RUN - MIN_RUN + 1;

/// The most frames that a CPU keeps in large blocks.
pub(super) const MAX_LARGE_FRAMES: usize = 256;

/// What a magazine is for: the blocks of a class, or large blocks of one number of frames.
///
/// As for a [`Class`], the value is the magazine's number times [`STRIDE`], and the number is less than [`BINS`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Bin(u16);

impl Bin {
    /// Returns the bin of large blocks with this layout, which no class serves; `None` if it takes more frames than a
    /// magazine holds, or they are to be aligned to more than a frame.
    #[inline]
    pub(super) const fn of_large(layout: Layout) -> Option<Self> {
        let frames = layout.size().div_ceil(FRAME);
        if layout.align() > FRAME || frames < MIN_RUN || frames > MAX_RUN {
            return None;
        }
        Self::from_index(CLASSES + frames - MIN_RUN)
    }

    pub(super) const fn from_index(index: usize) -> Option<Self> {
        if index < BINS {
            Some(Self((index * STRIDE) as u16))
        } else {
            None
        }
    }

    /// Returns all bins of large blocks, from that of the fewest frames.
    pub(super) fn all_large() -> impl Iterator<Item = Self> {
        (CLASSES..BINS).filter_map(Self::from_index)
    }

    /// Returns the bit of a bin of large blocks in a word that has one for each.
    pub(super) const fn large_bit(self) -> u64 {
        const { assert!(LARGE_BINS <= u64::BITS as usize) };
        1 << self.index().saturating_sub(CLASSES)
    }

    /// Returns the number times [`STRIDE`].
    #[inline(always)]
    pub(super) const fn offset(self) -> usize {
        self.0 as usize
    }

    #[inline(always)]
    pub(super) const fn index(self) -> usize {
        self.0 as usize / STRIDE
    }

    /// Returns the class, or else how many frames the large blocks have.
    pub(super) const fn class(self) -> Result<Class, usize> {
        match Class::from_index(self.index()) {
            Some(class) => Ok(class),
            None => Err(self.index() - CLASSES + MIN_RUN),
        }
    }

    /// Returns how many blocks a CPU caches at most: twice a class's depth, and large blocks of [`MAX_RUN`] frames together.
    pub(super) const fn capacity(self) -> usize {
        match self.class() {
            Ok(class) => 2 * class.depth(),
            Err(frames) => MAX_RUN / frames,
        }
    }

    /// Returns how many blocks a magazine may have at first: no large one, before one has been freed.
    pub(super) const fn first_limit(self) -> usize {
        match self.class() {
            Ok(class) => class.first_limit(),
            Err(_) => 0,
        }
    }
}

impl From<Class> for Bin {
    #[inline(always)]
    fn from(class: Class) -> Self {
        Self(class.0)
    }
}

impl<T> Index<Bin> for [T; BINS] {
    type Output = T;

    #[inline(always)]
    fn index(&self, bin: Bin) -> &T {
        // SAFETY: a bin's number is less than `BINS`, see the type.
        unsafe { self.get_unchecked(bin.index()) }
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Class({} bytes)", self.size())
    }
}

impl<T> Index<Class> for [T; CLASSES] {
    type Output = T;

    #[inline(always)]
    fn index(&self, class: Class) -> &T {
        // SAFETY: a class's number is less than `CLASSES`, see the type.
        unsafe { self.get_unchecked(class.index()) }
    }
}

static INVERSE: [u64; CLASSES] = {
    let mut table = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        table[class] = (1 << 32) / size_of_class(class) as u64 + 1;
        class += 1;
    }
    table
};

/// The class of a size in units, rounded up. Zero bytes count as one.
static OF_UNITS: [u16; MAX_CLASS_SIZE / UNIT + 1] = {
    let mut table = [0; MAX_CLASS_SIZE / UNIT + 1];
    let mut class = 0;
    let mut units = 0;
    while units < table.len() {
        if units * UNIT > size_of_class(class) {
            class += 1;
        }
        table[units] = (class * STRIDE) as u16;
        units += 1;
    }
    table
};

const fn size_of_class(class: usize) -> usize {
    if class < EVEN {
        return (class + 1) * UNIT;
    }
    let doubling = (class - EVEN) / PER_DOUBLING;
    let step = (class - EVEN) % PER_DOUBLING + 1;
    let whole = (EVEN * UNIT) << doubling;
    whole + step * whole / PER_DOUBLING
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn sizes_are_even_steps_and_then_quarters_of_doublings() {
        let sizes: Vec<_> = Class::all().map(Class::size).collect();
        assert_eq!(sizes[..9], [16, 32, 48, 64, 80, 96, 112, 128, 160]);
        assert_eq!(sizes[sizes.len() - 5..], [4096, 5120, 6144, 7168, 8192]);
        assert_eq!(sizes.last(), Some(&MAX_CLASS_SIZE));
        assert!(sizes.is_sorted());
    }

    #[test]
    fn every_layout_gets_the_least_class_that_fits_and_is_aligned() {
        for shift in 0..=14 {
            for size in 0..=MAX_CLASS_SIZE + 1 {
                let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                let fits = |class: &Class| {
                    class.size() >= size && class.size().is_multiple_of(layout.align())
                };
                // Blocks are aligned to a unit in any case.
                let smallest = Class::all().find(fits);
                assert_eq!(Class::of(layout), smallest, "{layout:?}");
            }
        }
    }

    #[test]
    fn slabs_waste_little_and_fit_their_bitmap() {
        for class in Class::all() {
            let frames = class.slab_frames();
            assert!(frames.is_power_of_two() && frames <= MAX_FRAMES);
            let bytes = frames * FRAME;
            assert!(bytes % class.size() * 8 <= bytes, "{class:?}");
            assert!(bytes / class.size() <= MAX_BLOCKS, "{class:?}");
        }
    }

    #[test]
    fn a_cpu_caches_what_the_documentation_says() {
        const { assert!(MAX_CACHED * 10 <= 23 << 20) };
        let magazines: usize = Class::all()
            .map(|class| 2 * class.depth() * class.size())
            .sum();
        let reserve: usize = Class::all().map(Class::size).sum();
        assert_eq!(MAX_CACHED, magazines + reserve + (1 << 20));
    }

    #[test]
    fn block_at_divides_exactly() {
        for class in Class::all() {
            for offset in 0..MAX_FRAMES * FRAME {
                let expected = offset
                    .is_multiple_of(class.size())
                    .then_some(offset / class.size());
                assert_eq!(class.block_at(offset), expected, "{class:?} {offset}");
            }
        }
    }
}
