#!/bin/sh
# The tests on another architecture: cross-compiled to aarch64 with Debian's Rust, and run under qemu-user.
#
# Needs, after `dpkg --add-architecture arm64`, the packages that `packages` names, and installs nothing itself. Says
# little about what passed, and a line "skipped:" for all that is left out.
set -u
cd "$(dirname "$0")/.."

packages='rustc-web cargo-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static'
target=aarch64-unknown-linux-gnu
# Not what a toolchain manager puts before them: it has no such target.
cargo=${CARGO_AARCH64:-/usr/bin/cargo}
RUSTC=${RUSTC_AARCH64:-/usr/bin/rustc}
export RUSTC CARGO_TARGET_DIR=target/aarch64 CARGO_INCREMENTAL=0
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# The C library is that of libstd's dependencies. With -L, qemu-user would mix it with the cross compiler's copy.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64-static
# Emulated, a case takes ten times as long.
export PROPTEST_CASES="${PROPTEST_CASES:-32}" DEVISOR_RINGS="${DEVISOR_RINGS:-2000}"

skip() {
    echo "skipped: aarch64: $*"
}

for tool in "$cargo" "$RUSTC" aarch64-linux-gnu-gcc qemu-aarch64-static; do
    command -v "$tool" >/dev/null || {
        skip "everything: $tool is missing: install $packages"
        exit 0
    }
done
[ -d "$("$RUSTC" --print sysroot)/lib/rustlib/$target/lib" ] && [ -e /lib/ld-linux-aarch64.so.1 ] || {
    skip "everything: there is no standard library for $target: install $packages"
    exit 0
}

tests='' kvm='' qemu='' daemons=''
for file in tests/*.rs tests/*/main.rs; do
    name=${file#tests/}
    name=${name%/main.rs}
    name=${name%.rs}
    case $name in
    *kvm*) kvm="$kvm $name" ;;
    vmm | x86_vcpu) kvm="$kvm $name" ;;
    *_qemu) qemu="$qemu $name" ;;
    remote | vhost_user) daemons="$daemons $name" ;;
    fetch | flaws) ;; # they look at files, which are the same
    loom) ;; # empty without --cfg loom
    *) tests="$tests --test $name" ;;
    esac
done
skip "qemu-user has no /dev/kvm:$kvm"
skip "the comparisons with QEMU are made on the host:$qemu"
skip "what is at the other end of vhost-user runs on the host:$daemons"
skip "loom: its models run on the host"
skip "examples: the core that they run a guest on makes machine code for x86 only"

# It starts itself once more, and the kernel does not know that this takes qemu-user.
executes=a_write_that_the_host_cuts_short_is_continued_up_to_the_refusal
skip "$executes: it executes itself"
# qemu-user takes advice on memory and does nothing.
advises='resident:: what_is_unplugged_is_no_longer_in_the_hosts_memory'
skip "qemu-user has no madvise: $advises"
# What every host answers alike; emulated, it takes minutes.
grids=sweep::
skip "the grids of requests in tests/villain are asked on the host"

# shellcheck disable=SC2046,SC2086 # lists of words
exec "$cargo" test --quiet --target "$target" --lib $tests -- --skip "$executes" --skip "$grids" \
    $(for name in $advises; do echo "--skip $name"; done)
