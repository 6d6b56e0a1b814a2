#!/bin/sh
# Boots the kernel of fetch.sh under QEMU with a GICv3 and an ITS, on 1, 2 and 4 CPUs, and writes every access it makes to
# them to tests/recordings/linux-*.txt.gz.
#
# Needs what fetch.sh made, and Debian's qemu-system-arm, cpio and python3. CPUS asks for one recording alone.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=$here/build
for tool in qemu-system-aarch64 cpio python3 gzip; do
    command -v "$tool" >/dev/null || {
        echo "record_linux.sh: $tool is missing: this needs Debian's qemu-system-arm, cpio and python3" >&2
        exit 1
    }
done
[ -f "$build/kernel" ] || {
    echo "record_linux.sh: no kernel: run tests/guest/fetch.sh first" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A second archive overrides files of the first.
install -m 755 "$here/gicv3-init" "$work/init"
cat "$build/initrd.cpio" >"$work/initrd"
(cd "$work" && echo init | cpio --quiet -o -H newc -R 0:0) >>"$work/initrd"

for cpus in ${CPUS:-1 2 4}; do
    # One thread for all CPUs and a clock of instructions: less to wait for, and nearly the same each time.
    timeout 600 qemu-system-aarch64 -M virt,gic-version=3,its=on -cpu cortex-a72 -smp "$cpus" -m 256 \
        -accel tcg,thread=single -nodefaults -display none -serial "file:$work/serial" -no-reboot \
        -kernel "$build/kernel" -initrd "$work/initrd" -append "console=ttyAMA0 quiet panic=-1" \
        -drive "if=none,id=disk,format=raw,readonly=on,file=$build/root.ext4" \
        -device virtio-blk-pci,drive=disk,addr=1 -device virtio-rng-device \
        -d 'trace:gicv3_*,cpu_reset' -D "$work/trace"
    grep -q '^guest: done' "$work/serial" || {
        tail -n 20 "$work/serial" >&2
        echo "record_linux.sh: the guest did not come through" >&2
        exit 1
    }
    python3 "$here/gicv3_trace.py" "$cpus" "$work/trace" >"$work/recording"
    gzip -9n <"$work/recording" >"$here/../recordings/linux-$cpus-cpus.txt.gz"
    [ -z "${KEEP:-}" ] || cp "$work/trace" "$work/serial" "$KEEP"
done
