#!/bin/sh
# Builds the program of this folder, runs it under QEMU and writes what it logged to tests/recordings/arm64-*.txt.gz.
#
# Needs Debian's gcc-aarch64-linux-gnu and qemu-system-arm. CPUS, STEPS and SEED ask for one recording that goes to the
# standard output instead.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
recordings=$here/../../recordings
gcc=${GCC:-aarch64-linux-gnu-gcc}
for tool in "$gcc" qemu-system-aarch64 gzip; do
    command -v "$tool" >/dev/null || {
        echo "record.sh: $tool is missing: this needs Debian's gcc-aarch64-linux-gnu and qemu-system-arm" >&2
        exit 1
    }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$gcc" -std=gnu2x -O2 -Wall -Wextra -ffreestanding -fno-stack-protector -fno-pic -mgeneral-regs-only -mstrict-align -Wa,--no-warn \
    -nostdlib -static -Wl,-T,"$here/link.ld" -Wl,--build-id=none -Wl,--no-warn-rwx-segments \
    -o "$work/gic" "$here"/*.S "$here"/*.c

# CPUs take turns, and instructions are the clock: each run is like the last.
record() {
    cpus=$1 steps=$2 seed=$3
    qemu-system-aarch64 -M virt,gic-version=3,its=on,highmem=off -cpu cortex-a72 -smp "$cpus" -m 64 \
        -accel tcg,thread=single -icount shift=0 -display none -nodefaults -serial null \
        -device edu,addr=1 -device edu,addr=2 -device edu,addr=3 \
        -semihosting-config "enable=on,target=native,arg=gic,arg=$seed,arg=$steps,arg=$cpus" -kernel "$work/gic" \
        >"$work/log" || {
        tail -n 5 "$work/log" >&2
        echo "record.sh: QEMU or the program failed" >&2
        exit 1
    }
    cat "$work/log"
}

if [ -n "${CPUS:-}" ]; then
    record "$CPUS" "${STEPS:-10000}" "${SEED:-1}"
    exit
fi
for run in 1:10000:1 2:14000:2 4:18000:3; do
    cpus=${run%%:*} seed=${run##*:} steps=${run#*:}
    record "$cpus" "${steps%:*}" "$seed" | gzip -9n >"$recordings/arm64-$cpus-cpus.txt.gz"
done
