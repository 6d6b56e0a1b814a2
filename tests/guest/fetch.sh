#!/bin/sh
# Gets what plays the guest: Debian's arm64 kernel with its modules and a static busybox, unmodified, and makes of
# them, in tests/guest/build/:
#
#   kernel       an arm64 boot Image
#   initrd.cpio  loads the virtio modules and hands over to the disk (initramfs-init)
#   root.ext4    the root file system that the guest mounts from our disk (root-init)
#
# Needs Debian with cpio, xz-utils and e2fsprogs, and says what is missing. Root is needed only where apt does not know
# arm64 packages yet. KERNEL names another kernel meta package, such as linux-image-arm64.
set -eu

kernel=${KERNEL:-linux-image-cloud-arm64}

# All that is missing at once, with the packages that have it.
missing=
packages=
# need PACKAGE TOOL [WHERE]
need() {
    command -v "$2" >/dev/null || command -v "${3:-$2}" >/dev/null || {
        missing="$missing $2"
        packages="$packages $1"
    }
}
need apt apt-get
need apt apt-cache
need dpkg dpkg
need cpio cpio
need xz-utils xz
# Not everybody's path leads to it.
need e2fsprogs mkfs.ext4 /sbin/mkfs.ext4
case $missing in
'') ;;
*apt-* | *dpkg*)
    echo "fetch.sh: missing:$missing. This takes Debian's packages, with Debian's tools" >&2
    exit 1
    ;;
*)
    echo "fetch.sh: missing:$missing. As root: apt-get update && apt-get install --yes$packages" >&2
    exit 1
    ;;
esac
PATH=$PATH:/usr/sbin:/sbin

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
build=$here/build

if ! apt-cache show "$kernel:arm64" >/dev/null 2>&1; then
    dpkg --add-architecture arm64
    apt-get update
fi

mkdir -p "$build"
work=$(mktemp -d "$build/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The meta package depends on whichever kernel is current: a version written down here would vanish from the mirrors.
download() {
    image=$(apt-cache show --no-all-versions "$kernel:arm64" |
        sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\).*/\1/p')
    [ -n "$image" ] || {
        echo "fetch.sh: $kernel names no versioned kernel among its dependencies" >&2
        exit 1
    }
    apt-get -o APT::Sandbox::User=root download "$image:arm64" busybox-static:arm64
}
cd "$work"
# What apt knows may be older than what the mirror still has.
download || {
    apt-get update
    download
}
for package in ./*.deb; do
    dpkg -x "$package" unpacked
done

# In the order in which the guest inserts them. What a kernel has built in has no file and is left out.
mkdir -p initrd/bin initrd/modules root/bin root/sbin
: >initrd/modules/order
for module in virtio_ring virtio virtio_mmio \
    virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk rng-core virtio-rng \
    libcrc32c crc32c_generic crc16 mbcache jbd2 ext4 rtc-pl031 \
    virtio_balloon virtio_mem libnvdimm dax nd_btt nd_pmem nd_virtio virtio_pmem; do
    found=$(find unpacked/lib/modules unpacked/usr/lib/modules -name "$module.ko*" 2>/dev/null | head -n 1)
    case $found in
    '') continue ;;
    *.xz) xz -dc "$found" >"initrd/modules/$module.ko" ;;
    *.ko) cp "$found" initrd/modules/ ;;
    *)
        echo "fetch.sh: $found is compressed in a way that is not handled here" >&2
        exit 1
        ;;
    esac
    echo "$module.ko" >>initrd/modules/order
done

busybox=$(find unpacked/bin unpacked/usr/bin -type f -name busybox 2>/dev/null | head -n 1)
install -m 755 "$busybox" initrd/bin/busybox
install -m 755 "$here/initramfs-init" initrd/init
install -m 755 "$busybox" root/bin/busybox
install -m 755 "$here/root-init" root/sbin/init
for directory in dev proc sys run; do
    mkdir "initrd/$directory" "root/$directory"
done
mkdir initrd/root

(cd initrd && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >initrd.cpio
truncate -s 64M root.ext4
mkfs.ext4 -q -F -L devisor -E root_owner=0:0 -d root root.ext4

cp unpacked/boot/vmlinuz-* kernel
mv kernel initrd.cpio root.ext4 "$build/"
echo "fetch.sh: $image and busybox are in $build"
