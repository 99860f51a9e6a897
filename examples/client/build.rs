//! Names the linker script, which Muster puts on the linker's search path.

fn main() {
    println!("cargo::rustc-link-arg-bins=-Tmuster.ld");
}
