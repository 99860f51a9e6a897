//! The depot of one class: CPUs exchange full magazines there without going to the slabs.

use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering;

use muster_sync::{AtomicU64, AtomicUsize, const_unless_modelled};

use super::FramePlatform;
use super::cache::Block;
use super::class::{Class, FRAME};
use super::context::Context;
use super::frames::Use;
use crate::lock::{Guard, Lock, Waiter};

/// Words in front of the stack.
const UNUSED: usize = 1;

/// The number of magazines that a depot holds.
pub(super) const MAGAZINES: usize = 8;

/// A stack of free blocks that moves a magazine's worth at a time.
///
/// The addresses are copied, in and out of a frame of the depot's own. To exchange magazines whole
/// would move as many cache lines from CPU to CPU, only later, one miss at a time.
#[repr(align(128))]
pub(super) struct Depot {
    stack: Lock<Stack>,
    contended: AtomicU64,
    /// The stack's length, for all to read. Written under the lock; without it a hint and for reports, as
    /// `contended` is, so `Relaxed` will do for both.
    length: AtomicUsize,
}

/// `base` is null while the depot has no memory; then `length` is zero. It is the second word of that
/// memory: the frame before may be a slab whose last block somebody writes past.
struct Stack {
    base: *mut Block,
    length: usize,
}

// SAFETY: the stack owns the memory at `base`, which any CPU may use.
unsafe impl Send for Stack {}

impl Depot {
    const_unless_modelled! {
        pub(super) const fn new() -> Self {
            Self {
                stack: Lock::new(Stack {
                    base: ptr::null_mut(),
                    length: 0,
                }),
                contended: AtomicU64::new(0),
                length: AtomicUsize::new(0),
            }
        }
    }

    /// Returns the number of blocks in the depot.
    pub(super) fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// Returns how many times a CPU found another one at the depot.
    pub(super) fn contended(&self) -> u64 {
        self.contended.load(Ordering::Relaxed)
    }

    fn lock(&self, waiter: &impl Waiter) -> Option<Guard<'_, Stack>> {
        self.stack.try_lock(waiter.cpu()).or_else(|| {
            self.contended.fetch_add(1, Ordering::Relaxed);
            self.stack.lock(waiter)
        })
    }

    /// Takes as many blocks as there are and there is room for, and returns how many.
    pub(super) fn take(&self, waiter: &impl Waiter, into: &mut [MaybeUninit<Block>]) -> usize {
        // An empty depot is not worth the lock; a block that arrives just now is for another time.
        if self.length() == 0 {
            return 0;
        }
        let Some(mut stack) = self.lock(waiter) else {
            return 0;
        };
        let count = stack.length.min(into.len());
        stack.length -= count;
        if count > 0 {
            // SAFETY: `count` blocks lie from here up, in the stack's memory, which isn't `into`'s.
            unsafe {
                let from = stack.base.add(stack.length);
                ptr::copy_nonoverlapping(from.cast(), into.as_mut_ptr(), count);
            }
        }
        self.length.store(stack.length, Ordering::Relaxed);
        count
    }

    /// Puts the blocks in. `false`: they don't fit, or there is no frame to keep them in.
    pub(super) fn put<P: FramePlatform>(
        &self,
        context: &Context<'_, P>,
        class: Class,
        blocks: &[Block],
    ) -> bool {
        // As in `take`.
        if self.length() + blocks.len() > capacity(class) {
            return false;
        }
        loop {
            let Some(mut stack) = self.lock(context) else {
                return false;
            };
            if stack.length + blocks.len() > capacity(class) {
                return false;
            }
            if !stack.base.is_null() {
                // SAFETY: there is room for this many from here up, in the stack's memory, which is not
                // that of `blocks`.
                unsafe {
                    let to = stack.base.add(stack.length);
                    ptr::copy_nonoverlapping(blocks.as_ptr(), to, blocks.len());
                }
                stack.length += blocks.len();
                self.length.store(stack.length, Ordering::Relaxed);
                return true;
            }
            drop(stack);
            if !self.furnish(context, class) {
                return false;
            }
        }
    }

    /// Allocates the depot's memory.
    fn furnish<P: FramePlatform>(&self, context: &Context<'_, P>, class: Class) -> bool {
        let count = frames_of(class);
        // Another CPU may be faster: then this gives the frames back.
        let _transit = context.announce();
        let Some(memory) = context.frames.allocate(count, 1, Use::Own) else {
            return false;
        };
        if let Some(mut stack) = self.lock(context)
            && stack.base.is_null()
        {
            // SAFETY: the memory has that word, and room for the blocks after it.
            stack.base = unsafe { memory.cast::<Block>().as_ptr().add(UNUSED) };
            return true;
        }
        // SAFETY: just allocated; another CPU was faster, so they aren't used.
        unsafe { context.frames.free(memory, count, Use::Own) };
        true
    }

    /// Returns where its memory begins, if it has any.
    #[cfg(all(test, not(loom)))]
    pub(super) fn memory(&self) -> Option<NonNull<u8>> {
        let base = NonNull::new(self.lock(&None)?.base)?;
        // SAFETY: as in `release`.
        Some(unsafe { base.sub(UNUSED) }.cast())
    }

    /// Returns the depot's memory, if no block is in it.
    pub(super) fn release<P: FramePlatform>(&self, context: &Context<'_, P>, class: Class) {
        let _transit;
        let base = {
            let Some(mut stack) = self.lock(context) else {
                return;
            };
            if stack.length > 0 || stack.base.is_null() {
                return;
            }
            _transit = context.announce();
            core::mem::replace(&mut stack.base, ptr::null_mut())
        };
        if let Some(base) = NonNull::new(base) {
            // SAFETY: allocated so by `furnish`, and the depot's no more.
            unsafe {
                let memory = base.sub(UNUSED).cast();
                context.frames.free(memory, frames_of(class), Use::Own);
            }
        }
    }
}

const fn capacity(class: Class) -> usize {
    MAGAZINES * class.depth()
}

const fn frames_of(class: Class) -> usize {
    ((UNUSED + capacity(class)) * size_of::<Block>()).div_ceil(FRAME)
}
