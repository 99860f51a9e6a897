//! Hands the linker script, which is Muster's own, to the linker.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rustc-link-arg-bins=-T{root}/../../linker.ld");
    println!("cargo::rerun-if-changed=../../linker.ld");
}
