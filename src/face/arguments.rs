//! The client's own part of the command line: all behind the first `--`.
//!
//! The kernel refuses to start with an option that it does not know, so that a slip is seen; what is behind
//! `--` it leaves to the client.

use conquer_once::spin::OnceCell;

static LINE: OnceCell<&'static str> = OnceCell::uninit();

/// Keeps the whole command line, before the client is called.
pub(crate) fn keep(line: &'static str) {
    LINE.init_once(|| line);
}

/// Returns the words of the client's part, in their order.
pub fn words() -> impl Iterator<Item = &'static str> {
    let line = LINE.try_get().copied().unwrap_or_default();
    muster_arguments::client_words(line)
}
