//! A crate that has something else under the names of `core` and `std`: `thread_register!` and `cpu_local!`
//! are not led astray by it.
#![forbid(unsafe_code)]

extern crate self as core;
extern crate self as std;
extern crate std as real_std;

#[allow(
    unused_imports,
    reason = "for whoever takes this for the standard library"
)]
use real_std::thread_local;

mod cell {
    use muster_percpu::Header;

    /// Not the standard library's: what it returns was never stored.
    #[allow(dead_code, reason = "nobody should reach it")]
    pub struct Cell<T>(crate::real_std::cell::Cell<T>);

    #[allow(dead_code, reason = "as above")]
    impl<T: Copy> Cell<T> {
        pub const fn new(value: T) -> Self {
            Self(crate::real_std::cell::Cell::new(value))
        }
    }

    /// A trait that the standard library keeps for itself.
    pub trait Access {
        #[allow(dead_code, reason = "as above")]
        fn get(&'static self) -> *const Header {
            crate::real_std::ptr::without_provenance(0x1000)
        }

        #[allow(dead_code, reason = "as above")]
        fn set(&'static self, _: *const Header) {}
    }

    impl Access for crate::real_std::thread::LocalKey<Cell<*const Header>> {}
}

#[allow(unused_imports, reason = "as above")]
use cell::Access as _;

muster_percpu::thread_register!(
    struct Threads;
);

#[test]
fn the_register_of_threads_goes_by_no_name_of_the_crate_it_is_in() {
    let index = muster_percpu::Storage::<Threads>::try_with(|here| here.index());
    real_std::assert!(index.is_none());
}

#[cfg(not(any(
    windows,
    target_vendor = "apple",
    target_os = "uefi",
    target_family = "wasm",
    miri
)))]
#[test]
fn variables_go_by_no_name_of_the_crate_they_are_in() {
    muster_percpu::cpu_local! {
        static DEPTH: muster_percpu::LocalWord<u32> = muster_percpu::LocalWord::new(3);
    }
    let depth = muster_percpu::Storage::<Threads>::try_with_own(&DEPTH, |depth| depth.get());
    real_std::assert!(depth.is_none());
}
