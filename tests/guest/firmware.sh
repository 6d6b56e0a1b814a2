#!/bin/sh
# Debian's firmware, unmodified, on our boards: U-Boot and UEFI to their shells, from our flash, fw_cfg and disk, and UEFI on to a kernel
# that has its board from our ACPI tables.
#
# usage: tests/guest/firmware.sh [u-boot|edk2|acpi|ovmf]...      all of them without one
#
# Needs what fetch.sh makes, and Debian's u-boot-qemu, qemu-efi-aarch64 and ovmf. Each is a minute or two of an emulated core.
set -eu

# run FILE OPTION...: that firmware.
run() {
    file=$1
    shift
    if [ ! -f "$file" ]; then
        echo "skipped: there is no $file"
        return
    fi
    cargo run --release --quiet --all-features --example linux -- --firmware "$file" --timeout 900 "$@"
}

[ $# -gt 0 ] || set -- u-boot edk2 acpi ovmf
for which; do
    case $which in
        u-boot) run /usr/lib/u-boot/qemu_arm64/u-boot.bin --shell yes ;;
        edk2) run /usr/share/qemu-efi-aarch64/QEMU_EFI.fd --transport pci --shell yes ;;
        acpi) run /usr/share/qemu-efi-aarch64/QEMU_EFI.fd --transport pci --acpi yes ;;
        ovmf) run /usr/share/OVMF/OVMF_CODE.fd --arch x86_64 --shell yes ;;
        *)
            echo "firmware.sh: no firmware is called $which: there are u-boot, edk2, acpi and ovmf" >&2
            exit 2
            ;;
    esac
done
