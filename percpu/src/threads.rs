//! Threads standing for CPUs, so that per-CPU code can be tested on a host.

/// Defines a [`Register`](crate::Register) in which each thread is a CPU.
///
/// ```
/// use core::cell::Cell;
/// use core::sync::atomic::AtomicU64;
///
/// muster_percpu::thread_register!(
///     /// Each test thread is a CPU.
///     pub struct Threads { local: Cell<u64>, shared: AtomicU64 }
/// );
/// type Cpu = muster_percpu::Storage<Threads>;
/// ```
#[macro_export]
macro_rules! thread_register {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident {
        local: $local:ty, shared: $shared:ty $(,)?
    }) => {
        $(#[$attribute])*
        $visibility struct $name;

        const _: () = {
            ::std::thread_local! {
                static BLOCK: ::core::cell::Cell<*const $crate::Header> =
                    const { ::core::cell::Cell::new($crate::UNREGISTERED.header()) };
            }

            // SAFETY: (1) the thread-local starts with `UNREGISTERED`, whose address field is null,
            // and holds what was last stored. (2) Each use of the macro has a thread-local of its
            // own, which nothing else can name; and all names here are absolute, so that they mean the same
            // in any module. (3) Code doesn't move between threads. (4) Nothing
            // interrupts a thread but a signal handler, which tests don't have.
            unsafe impl $crate::Register for $name {
                type Local = $local;
                type Shared = $shared;
                type Head = ();
                type NoPreempt = ();

                fn disable_preemption() {}

                fn unregistered() -> &'static $crate::Unregistered {
                    &$crate::UNREGISTERED
                }

                fn load() -> *const $crate::Header {
                    // SAFETY: `store` admits only headers of 'static blocks and `UNREGISTERED`.
                    unsafe { &*BLOCK.get() }.this()
                }

                unsafe fn store(header: *const $crate::Header) {
                    BLOCK.set(header);
                }
            }
        };
    };
}
