//! A crate with a trait whose method has the name of one that `thread_register!` calls: the macro is not led
//! astray by it.
#![forbid(unsafe_code)]

use std::thread::LocalKey;

use muster_percpu::threads::ThreadSlot;
use muster_percpu::{Block, Header, Storage};

/// The result of `load` and `store` of a register.
#[allow(dead_code, reason = "nobody should reach it")]
trait Returned {
    fn make() -> Self;
}

impl Returned for *const Header {
    fn make() -> Self {
        std::ptr::without_provenance(0x1000)
    }
}

impl Returned for () {
    fn make() -> Self {}
}

/// A method that takes a value is preferred to one that takes a reference to it, even if that is the
/// type's own.
#[allow(dead_code, reason = "as above")]
trait Intruder {
    fn with<R: Returned>(self, _: impl FnOnce(&ThreadSlot) -> R) -> R;
}

impl Intruder for LocalKey<ThreadSlot> {
    fn with<R: Returned>(self, _: impl FnOnce(&ThreadSlot) -> R) -> R {
        R::make()
    }
}

muster_percpu::thread_register!(
    struct Threads;
);

#[test]
fn the_register_of_threads_is_reached_by_no_method_of_the_module_it_is_in() {
    assert!(Storage::<Threads>::try_with(|here| here.index()).is_none());
    let block = Box::leak(Box::new(Block::new(7)));
    assert!(Threads::register(block).is_ok());
    assert_eq!(Storage::<Threads>::try_with(|here| here.index()), Some(7));
}
