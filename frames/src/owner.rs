//! Whose memory is: a type of the kernel's own.

use core::fmt;

/// The owners of a kernel's memory. [`owners!`](crate::owners) makes an enumeration of them that implements this.
///
/// An owner tells the allocator who may free a frame, and whose it counts. It is asked for its number once for each frame.
/// Whether a frame is free is not asked of it, so an implementation that contradicts itself spoils counts and names,
/// has frames refused, or panics; but it breaks no memory.
pub trait Owner: Copy + Eq + fmt::Debug + fmt::Display + 'static {
    /// All owners, each at the place of its [number](Self::number).
    const ALL: &'static [Self];
    /// Nobody: free to be handed out. Its number is 0.
    const FREE: Self;
    /// The owner of what becomes free later, as a boot loader's memory does: whole frames without frame 0. So it is neither
    /// [`Self::REST`] nor [`Self::NULL_FRAME`], or a [`PhysicalMap`](crate::PhysicalMap) gives it parts of frames, or frame 0.
    const LATER: Self;
    /// The owner of what is left of a frame of which not all is free, or becomes so.
    const REST: Self;
    /// The owner of frame 0, which is never handed out.
    const NULL_FRAME: Self;

    /// Returns its number, from 0. Frames are handed out to owners with a number below [`MAX_FRAME_OWNERS`].
    fn number(self) -> u8;

    /// Returns the owner of a number, if there is one.
    #[inline]
    fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// The number of [`Owner::FREE`].
pub(crate) const FREE: u8 = 0;

/// How many owners there may be that frames are handed out to, [`Owner::FREE`] and [`Owner::LATER`] among them: their
/// counts are as many as fit in a CPU's own pair of cache lines.
pub const MAX_FRAME_OWNERS: usize = 14;

/// How many owners there may be.
pub const MAX_OWNERS: usize = 32;

/// Defines the [owners](Owner) of a kernel's memory: an enumeration, each with its name, and which of them the
/// crate itself has to know.
///
/// ```
/// muster_frames::owners! {
///     /// Whose memory is.
///     pub enum Whose {
///         /// Nobody's.
///         Free = "free",
///         /// The boot loader's.
///         Loader = "loader",
///         /// The heap's.
///         Heap = "heap",
///         /// The firmware's.
///         Reserved = "reserved",
///         /// Frame 0.
///         NullFrame = "null frame",
///     }
///     free: Free, later: Loader, rest: Reserved, null_frame: NullFrame
/// }
///
/// use muster_frames::Owner;
/// assert_eq!((Whose::Heap.number(), Whose::of(3)), (2, Some(Whose::Reserved)));
/// assert_eq!(Whose::NullFrame.to_string(), "null frame");
/// ```
///
/// The owner of free memory comes first, as its number is 0:
///
/// ```compile_fail,E0080
/// muster_frames::owners! {
///     enum Whose { Heap = "heap", Free = "free", Later = "later", Rest = "rest" }
///     free: Free, later: Later, rest: Rest, null_frame: Rest
/// }
/// ```
///
/// ```compile_fail,E0080
/// muster_frames::owners! {
///     enum Whose { FREE = "heap", Free = "free", Later = "later", Rest = "rest" }
///     free: Free, later: Later, rest: Rest, null_frame: Rest
/// }
/// ```
///
/// It is the owner of nothing else:
///
/// ```compile_fail,E0080
/// muster_frames::owners! {
///     enum Whose { Free = "free", Rest = "rest" }
///     free: Free, later: Free, rest: Rest, null_frame: Rest
/// }
/// ```
///
/// What becomes free later consists of whole frames, without frame 0:
///
/// ```compile_fail,E0080
/// muster_frames::owners! {
///     enum Whose { Free = "free", Rest = "rest", NullFrame = "null frame" }
///     free: Free, later: Rest, rest: Rest, null_frame: NullFrame
/// }
/// ```
///
/// ```compile_fail,E0080
/// muster_frames::owners! {
///     enum Whose { Free = "free", Later = "later", Rest = "rest" }
///     free: Free, later: Later, rest: Rest, null_frame: Later
/// }
/// ```
#[macro_export]
macro_rules! owners {
    (
        $(#[$attribute:meta])* $visibility:vis enum $name:ident {
            $($(#[$of_owner:meta])* $owner:ident = $text:literal),+ $(,)?
        }
        free: $free:ident, later: $later:ident, rest: $rest:ident, null_frame: $null:ident $(,)?
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        $visibility enum $name {
            $($(#[$of_owner])* $owner),+
        }

        impl $crate::Owner for $name {
            const ALL: &'static [Self] = &[$(Self::$owner),+];
            const FREE: Self = Self::$free;
            const LATER: Self = Self::$later;
            const REST: Self = Self::$rest;
            const NULL_FRAME: Self = Self::$null;

            #[inline]
            fn number(self) -> u8 {
                self as u8
            }
        }

        const _: () = {
            // By the trait: a variant may have the name of one of its constants.
            const ALL: &[$name] = <$name as $crate::Owner>::ALL;
            const FREE: $name = <$name as $crate::Owner>::FREE;
            const OTHERS: [$name; 3] = [
                <$name as $crate::Owner>::LATER,
                <$name as $crate::Owner>::REST,
                <$name as $crate::Owner>::NULL_FRAME,
            ];
            ::core::assert!(ALL.len() <= $crate::MAX_OWNERS, "there are too many owners of memory");
            ::core::assert!(FREE as u8 == 0, "the owner of free memory is listed first");
            let [later, rest, null_frame] = OTHERS;
            ::core::assert!(
                later as u8 != 0 && rest as u8 != 0 && null_frame as u8 != 0,
                "the owner of free memory owns nothing else"
            );
            ::core::assert!(
                later as u8 != rest as u8 && later as u8 != null_frame as u8,
                "the owner of what becomes free later owns no rests of frames, nor frame 0"
            );
        };

        impl ::core::fmt::Display for $name {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.pad(match self {
                    $(Self::$owner => $text),+
                })
            }
        }
    };
}

crate::owners! {
    /// The owners of a kernel that tells none apart: memory is used, or it is not.
    pub enum SoleOwner {
        /// Nobody's: free to be handed out.
        Free = "free",
        /// The boot loader's, until it is adopted.
        Later = "free later",
        /// Handed out, or the kernel's.
        Used = "used",
        /// No memory to be handed out: reserved, a device's, or the rest of a frame.
        Rest = "reserved",
        /// Frame 0.
        NullFrame = "null frame",
    }
    free: Free, later: Later, rest: Rest, null_frame: NullFrame
}
