//! Function names and source lines for the kernel's return addresses.

use std::cell::{Cell, OnceCell};
use std::path::{Path, PathBuf};

use addr2line::Loader;

use crate::line::{self, CodeAddress, LogLine};
use crate::workspace;

/// The kernel's debug information, read when the first address needs it.
pub struct Symbols {
    elf: PathBuf,
    loader: OnceCell<Option<Loader>>,
    /// Where the last reported exception happened: its backtrace begins there,
    /// and that is no return address.
    exception: Cell<Option<u64>>,
}

impl Symbols {
    /// Returns the symbols of an ELF file.
    pub fn of(elf: &Path) -> Self {
        Self {
            elf: elf.into(),
            loader: OnceCell::new(),
            exception: Cell::new(None),
        }
    }

    /// Annotates a line of the log with ` in function (file:line)` after an address in the kernel's
    /// code, and, in a backtrace, one more line for each function that had been inlined there. A
    /// stopped CPU's address gets one function: the one that the others were inlined into. Other
    /// lines come back as they are.
    pub fn annotate(&self, text: &str) -> String {
        let Some(message) = LogLine::parse(text).map(|line| line.message) else {
            return text.into();
        };
        if let Some(instruction) = line::instruction_pointer(message) {
            self.exception.set(Some(instruction));
        }
        let address = line::code_address(message);
        let is_stop = matches!(address, Some(CodeAddress::Instruction(_)));
        let instruction = match address {
            Some(CodeAddress::Return(address)) if self.exception.get() == Some(address) => address,
            // The call lies before the address it returns to, which may already
            // be another line, or another function after one that never returns.
            Some(CodeAddress::Return(address)) => address.saturating_sub(1),
            Some(CodeAddress::Instruction(address)) => address,
            None => return text.into(),
        };
        let mut places = self.places(instruction);
        if is_stop {
            places.drain(..places.len().saturating_sub(1));
        }
        let mut annotated = text.trim_end().to_owned();
        for (depth, place) in places.iter().enumerate() {
            if depth > 0 {
                annotated += "\n        inlined";
            }
            annotated += &format!(" in {place}");
        }
        annotated
    }

    /// Returns the function at an instruction: the one that the others there were inlined into.
    pub fn function(&self, instruction: u64) -> Option<String> {
        self.places(instruction).pop()
    }

    /// Returns the functions at an instruction, the innermost first.
    fn places(&self, instruction: u64) -> Vec<String> {
        let loader = self.loader.get_or_init(|| Loader::new(&self.elf).ok());
        let Some(loader) = loader else {
            return Vec::new();
        };
        let mut places = Vec::new();
        if let Ok(mut frames) = loader.find_frames(instruction) {
            while let Ok(Some(frame)) = frames.next() {
                let Some(function) = frame.function else {
                    continue;
                };
                let name = function
                    .demangle()
                    .map_or_else(|_| "?".into(), |name| name.into_owned());
                let place = match frame.location {
                    Some(addr2line::Location {
                        file: Some(file),
                        line: Some(line),
                        ..
                    }) => {
                        format!("{} ({}:{line})", without_hash(&name), short(file))
                    }
                    _ => without_hash(&name).into(),
                };
                places.push(place);
            }
        }
        if places.is_empty()
            && let Some(name) = loader.find_symbol(instruction)
        {
            let name = addr2line::demangle_auto(name.into(), None);
            places.push(without_hash(&name).into());
        }
        places
    }
}

/// Returns a demangled name without the hash that distinguishes two versions of a crate.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            name
        }
        _ => name,
    }
}

/// Returns a source file's path without the folders that differ from host to host: the workspace,
/// the standard library's sources, Cargo's registry.
fn short(file: &str) -> &str {
    let root = workspace::root().to_str().unwrap_or_default();
    if let Some(own) = file.strip_prefix(root) {
        return own.trim_start_matches('/');
    }
    if let Some((_, library)) = file.split_once("/rust/library/") {
        return library;
    }
    if let Some((_, registry)) = file.split_once("/registry/src/") {
        return registry
            .split_once('/')
            .map_or(registry, |(_, krate)| krate);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_a_return_address_stay() {
        let symbols = Symbols::of(Path::new("/nonexistent"));
        for text in ["", "hello #1 0x10", "   0.000001   0 INFO  roll     #x"] {
            assert_eq!(symbols.annotate(text), text);
        }
    }

    #[test]
    fn without_debug_information_the_address_stays() {
        let symbols = Symbols::of(Path::new("/nonexistent"));
        let text = "   0.000001   0 ERROR panic      #1 0xffffffff80000010";
        assert_eq!(symbols.annotate(text), text);
    }

    #[test]
    fn a_return_address_gets_its_function_and_line() {
        // This test's own executable stands in for the kernel.
        let own = std::env::current_exe().unwrap();
        let loader = Loader::new(&own).unwrap();
        let symbols = Symbols::of(&own);
        let wanted = symbols_of_this_module(&own);
        assert!(loader.find_symbol(wanted).is_some());
        let landmark = |message: String| {
            let text = format!("   0.000001   0 ERROR panic    {message}");
            symbols
                .annotate(&text)
                .contains("landmark (runner/src/symbols.rs:")
        };
        assert!(landmark(format!("  #1 {:#018x}", wanted + 1)));
        assert!(landmark(format!("CPU 1 stopped at {wanted:#018x}")));
        // What happened at the first instruction of a function is not in the
        // function before it.
        assert!(!landmark(format!("  #0 {wanted:#018x}")));
        assert!(!landmark(format!(
            "rip {wanted:016x}  flags 0000000000000082"
        )));
        assert!(landmark(format!("  #0 {wanted:#018x}")));
    }

    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn landmark() -> u32 {
        std::hint::black_box(1)
    }

    fn symbols_of_this_module(own: &Path) -> u64 {
        use object::{Object, ObjectSymbol};
        landmark();
        let data = std::fs::read(own).unwrap();
        let file = object::File::parse(&*data).unwrap();
        file.symbol_by_name("landmark").unwrap().address()
    }

    #[test]
    fn paths_and_names_are_short() {
        let own = workspace::root().join("src/report/panic.rs");
        assert_eq!(short(own.to_str().unwrap()), "src/report/panic.rs");
        assert_eq!(
            short("/usr/lib/rustlib/src/rust/library/core/src/a.rs"),
            "core/src/a.rs"
        );
        assert_eq!(
            short("/h/.cargo/registry/src/index-1/log-0.4.1/src/a.rs"),
            "log-0.4.1/src/a.rs"
        );
        assert_eq!(short("/elsewhere/a.rs"), "/elsewhere/a.rs");
        assert_eq!(without_hash("a::b::h0123456789abcdef"), "a::b");
        assert_eq!(without_hash("a::hello"), "a::hello");
    }
}
