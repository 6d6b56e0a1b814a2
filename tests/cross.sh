#!/bin/sh
# Type-checks the crate for hosts that there are none of here, the standard library with it: with Debian's Rust and its
# library's source. macOS and Windows, and big-endian ones.
#
# Needs the packages that `packages` names, and installs nothing itself. Says little about what passed, and a line
# "skipped:" for all that is left out. `tests/cross.sh TARGET...` checks those alone.
set -u
cd "$(dirname "$0")/.."

packages='rustc-web cargo-web rust-web-src binutils-mingw-w64-x86-64'
# Not what a toolchain manager puts before them: it has no such source.
cargo=${CARGO_CROSS:-/usr/bin/cargo}
RUSTC=${RUSTC_CROSS:-/usr/bin/rustc}
# A released compiler builds its own standard library.
export RUSTC RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/cross CARGO_INCREMENTAL=0
export RUSTFLAGS="${RUSTFLAGS:--D warnings}"

skip() {
    echo "skipped: cross: $*"
}

for tool in "$cargo" "$RUSTC" x86_64-w64-mingw32-dlltool; do
    command -v "$tool" >/dev/null || {
        skip "everything: $tool is missing: install $packages"
        exit 0
    }
done
[ -e "$("$RUSTC" --print sysroot)/lib/rustlib/src/rust/library/std/Cargo.toml" ] || {
    skip "everything: there is no source of the standard library: install $packages"
    exit 0
}

# check TARGET FEATURES: with these features, and with none.
check() {
    for features in '' "$2"; do
        echo "== $1: ${features:-no feature}"
        "$cargo" check --quiet --lib -Zbuild-std=std,panic_abort --target "$1" --no-default-features --features "$features" || exit 1
    done
}

# What does not go by the order of the host's bytes is run in the other one too.
big_endian() {
    command -v s390x-linux-gnu-gcc >/dev/null && command -v qemu-s390x-static >/dev/null || {
        skip "big-endian run: install gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user-static"
        return
    }
    echo "== s390x-unknown-linux-gnu: tests/big_endian.rs under qemu-user"
    (
        cd tests/cross || exit 1
        export CARGO_TARGET_DIR=../../target/cross CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_LINKER=s390x-linux-gnu-gcc
        export CARGO_TARGET_S390X_UNKNOWN_LINUX_GNU_RUNNER='qemu-s390x-static -L /usr/s390x-linux-gnu'
        "$cargo" test --quiet --lib -Zbuild-std --target s390x-unknown-linux-gnu
    ) || exit 1
}

skip "nbd-tls: the cryptography behind it compiles C, for which there is no compiler"
# All features that there are, where they add nothing too.
# (virtio-queue on Windows: vm-memory has no descriptors to read there, and that crate demands them.)
all='recorder irqchip kvm hvf event-loop fdt acpi io-uring nbd images virtio-queue'
for target in ${*:-aarch64-apple-darwin x86_64-pc-windows-gnu s390x-unknown-linux-gnu powerpc64-unknown-linux-gnu}; do
    case $target in
    s390x-*)
        skip "io-uring on s390x: the crate has no bindings for it"
        check "$target" "$(echo "$all" | sed 's/ io-uring//')"
        big_endian
        ;;
    *) check "$target" "$all" ;;
    esac
done
