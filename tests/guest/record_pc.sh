#!/bin/sh
# Boots the x86_64 kernel of fetch.sh under QEMU, with local APICs and an IOAPIC on 2 CPUs, on 1 without messages from PCI, and
# with 8259s alone, and writes what it asks of them and of the 8254 to tests/recordings/pc-*.txt.gz.
#
# Needs what fetch.sh made, and Debian's qemu-system-x86, cpio and python3. KEEP names a directory for QEMU's own words.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=$here/build
for tool in qemu-system-x86_64 cpio python3 gzip; do
    command -v "$tool" >/dev/null || {
        echo "record_pc.sh: $tool is missing: this needs Debian's qemu-system-x86, cpio and python3" >&2
        exit 1
    }
done
[ -f "$build/x86_64/kernel" ] || {
    echo "record_pc.sh: no kernel: run tests/guest/fetch.sh x86_64 first" >&2
    exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A second archive overrides files of the first.
install -m 755 "$here/gicv3-init" "$work/init"
cat "$build/x86_64/initrd.cpio" >"$work/initrd"
(cd "$work" && echo init | cpio --quiet -o -H newc -R 0:0) >>"$work/initrd"

# What concerns the interrupt controllers and the timer, of some hundred MiB.
regions="name '(pic|pit|elcr|pcspk|ioapic|apic-msi)'"
wanted="$regions|:(ioapic_|apic_|pic_)|v=.. |^GDT=|^CPU Reset"

# record NAME CPUS COMMAND LINE
record() {
    # One thread for all CPUs: what happens is in one order. Each event has the host's time.
    timeout 600 qemu-system-x86_64 -M q35,kernel-irqchip=off,hpet=off -cpu qemu64 -smp "$2" -m 256 \
        -accel tcg,thread=single -nodefaults -display none -serial "file:$work/serial" -no-reboot \
        -kernel "$build/x86_64/kernel" -initrd "$work/initrd" \
        -append "console=ttyS0 quiet panic=-1 nokaslr cryptomgr.notests mitigations=off $3" \
        -drive "if=none,id=disk,format=raw,readonly=on,file=$build/x86_64/root.ext4" \
        -device virtio-blk-pci,drive=disk,addr=1 -device virtio-rng-pci,addr=2 -msg timestamp=on \
        -d 'trace:memory_region_ops_*,trace:ioapic_*,trace:apic_*,trace:pic_*,int,cpu_reset' -D /dev/fd/3 3>&1 |
        grep -E "$wanted" >"$work/trace"
    grep -q '^guest: done' "$work/serial" || {
        tail -n 20 "$work/serial" >&2
        echo "record_pc.sh: the guest did not come through" >&2
        exit 1
    }
    python3 "$here/x86_trace.py" "$2" "$work/trace" >"$work/recording"
    gzip -9n <"$work/recording" >"$here/../recordings/$1.txt.gz"
    [ -z "${KEEP:-}" ] || cp "$work/trace" "$work/serial" "$KEEP"
}

record pc-apic-2-cpus 2 ""
record pc-apic-1-cpus 1 "pci=nomsi"
record pc-pic 1 "noapic nolapic"
