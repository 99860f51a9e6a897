//! Hands the kernel's linker script to the linker: of this package's binary, and, by the linker's search
//! path, of the clients that name it.

use std::path::PathBuf;
use std::{env, fs, io};

/// The name by which clients have it.
const NAME: &str = "muster.ld";

fn main() -> io::Result<()> {
    let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::copy(PathBuf::from(&root).join("linker.ld"), out.join(NAME))?;
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rustc-link-arg-bins=-T{root}/linker.ld");
    println!("cargo::rerun-if-changed=linker.ld");
    Ok(())
}
