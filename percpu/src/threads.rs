//! Threads standing for CPUs, so that per-CPU code can be tested on a host.

use core::cell::Cell;

use crate::{Header, UNREGISTERED};

// By way of this crate, where `std` is the standard library whatever the macro's user has under that
// name.
pub use core::result::Result;
pub use std::thread::LocalKey;
pub use std::thread_local;

/// The register of a thread, for [`thread_register!`](crate::thread_register) to keep in a
/// thread-local.
///
/// A type of its own, which safe code can't change: the items of a macro have no hygiene, so what stands beside
/// them may know the thread-local's name.
pub struct ThreadSlot(Cell<*const Header>);

impl ThreadSlot {
    /// Makes the register of a thread that has no block.
    #[expect(clippy::new_without_default, reason = "for the macro alone")]
    pub const fn new() -> Self {
        Self(Cell::new(UNREGISTERED.header()))
    }

    /// Does what [`Register::load`](crate::Register::load) does.
    pub fn load(&self) -> *const Header {
        // SAFETY: what is there is the header of `UNREGISTERED` or of a `'static` block: nothing but
        // `store` changes it.
        unsafe { &*self.0.get() }.this()
    }

    /// Does what [`Register::store`](crate::Register::store) does.
    ///
    /// # Safety
    ///
    /// As there, for the register that it serves.
    pub unsafe fn store(&self, header: *const Header) {
        self.0.set(header);
    }
}

/// Defines a [`Register`](crate::Register) in which each thread is a CPU.
///
/// A thread is not interrupted by what would register a block, so there [`Storage::register`](crate::Storage::register)
/// has a safe form, the function `register` of the type.
///
/// ```
/// use muster_percpu::{Block, Storage};
///
/// muster_percpu::thread_register!(
///     /// Each test thread is a CPU.
///     pub struct Threads;
/// );
/// type Cpu = Storage<Threads>;
///
/// static FIRST: Block = Block::new(0);
/// Threads::register(&FIRST)?;
/// assert_eq!(Cpu::with(|here| here.index()), 0);
/// # Ok::<(), muster_percpu::RegisterError>(())
/// ```
#[macro_export]
macro_rules! thread_register {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident $(;)?) => {
        $(#[$attribute])*
        $visibility struct $name;

        const _: () = {
            $crate::threads::thread_local! {
                static BLOCK: $crate::threads::ThreadSlot =
                    const { $crate::threads::ThreadSlot::new() };
            }

            // SAFETY: (1) a new slot has `UNREGISTERED`, and then what was last stored, of which `load`
            // reads the address field. (2) Each use of the macro has a thread-local of its own, in which
            // only `store` changes anything; and all names here are this crate's, a method's by way of its
            // type, as a trait of the module's may have one of that name: so they mean the same in any
            // module and any crate. (3), (4) Code doesn't move between threads, and a guard does nothing.
            unsafe impl $crate::Register for $name {
                type Head = ();
                type NoPreempt = ();

                fn disable_preemption() {}

                fn unregistered() -> &'static $crate::Unregistered {
                    &$crate::UNREGISTERED
                }

                fn load() -> *const $crate::Header {
                    $crate::threads::LocalKey::with(&BLOCK, $crate::threads::ThreadSlot::load)
                }

                unsafe fn store(header: *const $crate::Header) {
                    $crate::threads::LocalKey::with(&BLOCK, |slot| {
                        // SAFETY: the caller's promise.
                        unsafe { $crate::threads::ThreadSlot::store(slot, header) };
                    });
                }
            }

            impl $name {
                /// Makes `block` this thread's own, for good. Not for a handler of signals.
                ///
                /// # Errors
                ///
                /// Those of `Storage::register`.
                #[allow(dead_code, reason = "for tests that need it")]
                $visibility fn register(
                    block: &'static $crate::Block,
                ) -> $crate::threads::Result<(), $crate::RegisterError> {
                    // SAFETY: (1) a thread has no handlers that interrupt what uses its storage, but those of signals, which
                    // may call only what is safe for signals. (2) A guard does nothing.
                    unsafe { <$crate::Storage<$name>>::register(block) }
                }
            }
        };
    };
}
