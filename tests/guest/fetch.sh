#!/bin/sh
# Gets what plays the guest: Debian's kernels with their modules and a static busybox, unmodified, and makes of them, in
# tests/guest/build/ for arm64 and in tests/guest/build/x86_64/ for x86_64:
#
#   kernel       an arm64 boot Image, or a bzImage
#   initrd.cpio  loads the virtio modules and hands over to the disk (initramfs-init)
#   root.ext4    the root file system that the guest mounts from our disk (root-init), with busybox, socat and xxhsum
#   fio.ext4     the same with fio, which the guest runs if it is there; for arm64 alone, as the emulated x86_64 core does not say of
#                itself what Debian's C library asks for
#   verify.ext4  the same with verify.rs in the place of fio, for x86_64 alone, where a rustc on an x86_64 host compiles it
#
# usage: tests/guest/fetch.sh [arm64|x86_64|backports]...
#
# Without a name it is the first two. What is there already, of these packages and these scripts, is left as it is.
#
# backports is arm64 with the newer kernel of Debian's backports, in tests/guest/build/backports/: it has a driver of virtio-iommu. Its
# packages come by way of an apt of its own, which knows Debian's release and the backports of that.
#
# Needs Debian with cpio, xz-utils and e2fsprogs, and says what is missing. Root is needed only where apt does not know the
# guest's packages yet. KERNEL names another kernel meta package for arm64, such as linux-image-arm64, and KERNEL_X86_64 for
# x86_64.
set -eu

for guest in "$@"; do
    case $guest in
    arm64 | x86_64 | backports) ;;
    *)
        echo "fetch.sh: no guest is called $guest: there are arm64, x86_64 and backports" >&2
        exit 1
        ;;
    esac
done

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
mkdir -p "$build"
work=$(mktemp -d "$build/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The meta package depends on whichever kernel is current: a version written down here would vanish from the mirrors.
name_image() {
    image=$(apt-cache show --no-all-versions "$kernel:$arch" |
        sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\).*/\1/p')
    [ -n "$image" ] || {
        echo "fetch.sh: $kernel names no versioned kernel among its dependencies" >&2
        exit 1
    }
}

# needed PACKAGE...: these, and the packages that they need.
needed() {
    apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
        --no-enhances "$@" | grep -v '^[ <]' | LC_ALL=C sort -u
}

# What the guest is made of: the kernel, busybox, xxhsum, and socat with the packages that it needs. And fio with the libraries
# that it needs, without the programs that these packages need besides.
name_packages() {
    name_image
    packages="$image:$arch busybox-static:$arch xxhash:$arch $(needed "socat:$arch")"
    fio_packages=
    [ "$arch" = arm64 ] || return 0
    # shellcheck disable=SC2046 # Several words.
    fio_packages="fio:$arch $(
        needed $(apt-cache depends "fio:$arch" | sed -n "s/^ *Depends: \(\(lib\|zlib\)[^ :]*\).*/\1:$arch/p") |
            if [ "$arch" = "$(dpkg --print-architecture)" ]; then grep -v :; else grep ":$arch\$"; fi |
            grep -E '^(lib|zlib)'
    )"
}

# download PACKAGE...
download() {
    apt-get -o APT::Sandbox::User=root download "$@"
}

# What a guest is made of: when this is the same, so is the guest.
recipe() {
    # shellcheck disable=SC2086 # Several words.
    apt-cache show --no-all-versions $packages $fio_packages | grep -E '^(Package|Version):'
    for script in fetch.sh initramfs-init root-init lease verify.rs; do
        cksum <"$here/$script"
    done
}

# guest NAME ARCHITECTURE KERNEL DIRECTORY
guest() {
    name=$1 arch=$2 kernel=$3 directory=$4
    if ! apt-cache show "$kernel:$arch" >/dev/null 2>&1; then
        [ "$arch" = "$(dpkg --print-architecture)" ] || dpkg --add-architecture "$arch"
        apt-get update
    fi
    name_packages
    if recipe | cmp -s - "$directory/recipe" && [ -s "$directory/kernel" ] && [ -s "$directory/initrd.cpio" ] &&
        [ -s "$directory/root.ext4" ] && { [ -z "$fio_packages" ] || [ -s "$directory/fio.ext4" ]; }; then
        echo "fetch.sh: $image and its guest are in $directory already"
        return
    fi
    mkdir -p "$directory" "$work/$name/fio"
    cd "$work/$name"
    # What apt knows may be older than what the mirror still has.
    # shellcheck disable=SC2086 # Several words.
    { download $packages && (cd fio && [ -z "$fio_packages" ] || download $fio_packages); } || {
        apt-get update
        name_packages
        download $packages
        (cd fio && [ -z "$fio_packages" ] || download $fio_packages)
    }
    for package in ./*.deb; do
        dpkg -x "$package" unpacked
    done

    # In the order in which the guest inserts them. What a kernel has built in has no file and is left out.
    mkdir -p initrd/bin initrd/modules root/bin root/sbin
    : >initrd/modules/order
    for module in virtio_ring virtio virtio_mmio virtio-iommu \
        virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk rng-core virtio-rng \
        libcrc32c crc32c_generic crc16 mbcache jbd2 ext4 rtc-pl031 \
        virtio_balloon virtio_mem libnvdimm dax nd_btt nd_pmem nd_virtio virtio_pmem \
        virtio_console vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport \
        failover net_failover virtio_net fuse virtiofs; do
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
    install -m 755 "$here/lease" root/sbin/lease
    install -m 755 unpacked/usr/bin/socat unpacked/usr/bin/xxhsum root/bin/
    # With the libraries that its packages bring, and who links them.
    mkdir root/lib
    ln -s lib root/lib64
    cp -P unpacked/lib/*-linux-gnu/*.so.* unpacked/usr/lib/*-linux-gnu/*.so.* root/lib/
    mkdir root/etc
    echo 'root::0:0:root:/:/bin/sh' >root/etc/passwd
    for mount in dev proc sys run; do
        mkdir "initrd/$mount" "root/$mount"
    done
    mkdir initrd/root

    (cd initrd && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0) >initrd.cpio
    truncate -s 64M root.ext4
    mkfs.ext4 -q -F -L devisor -E root_owner=0:0 -d root root.ext4
    if [ "$arch $(uname -m)" = "amd64 x86_64" ] &&
        rustc --edition 2024 -O -C strip=symbols -C target-feature=+crt-static "$here/verify.rs" -o root/bin/verify; then
        truncate -s 64M verify.ext4
        mkfs.ext4 -q -F -L devisor -E root_owner=0:0 -d root verify.ext4
        mv verify.ext4 "$directory/"
    fi
    if [ -n "$fio_packages" ]; then
        for package in fio/*.deb; do
            dpkg -x "$package" fio/unpacked
        done
        install -m 755 fio/unpacked/usr/bin/fio root/bin/
        find fio/unpacked -path '*-linux-gnu*/lib*.so.*' ! -type d ! -path '*/security/*' -exec cp -P -n {} root/lib/ \;
        truncate -s 256M fio.ext4
        mkfs.ext4 -q -F -L devisor -E root_owner=0:0 -d root fio.ext4
        mv fio.ext4 "$directory/"
    fi

    cp unpacked/boot/vmlinuz-* kernel
    recipe >recipe
    rm -f "$directory/recipe"
    mv kernel initrd.cpio root.ext4 "$directory/"
    mv recipe "$directory/"
    cd "$here"
    echo "fetch.sh: $image and its guest are in $directory"
}

# An apt for arm64 that prefers the backports of this release.
backports() {
    apt=$build/backports/apt
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # From where this machine has Debian.
    archive=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $release" | head -n 1)
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    for suite in "$release" "$release-backports"; do
        echo "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main"
    done >"$apt/sources.list"
    cat >"$apt/conf" <<END
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/none";
Dir::Etc::preferencesparts "$apt/none";
Dir::State "$apt/state";
Dir::State::status "/dev/null";
Dir::Cache "$apt/cache";
APT::Architectures { "$(dpkg --print-architecture)"; "arm64"; };
APT::Default-Release "$release-backports";
APT::Sandbox::User "root";
END
    mkdir -p "$apt/none"
    export APT_CONFIG="$apt/conf"
}

[ $# -ne 0 ] || set -- arm64 x86_64
for name in "$@"; do
    case $name in
    arm64) guest arm64 arm64 "${KERNEL:-linux-image-cloud-arm64}" "$build" ;;
    x86_64) guest x86_64 amd64 "${KERNEL_X86_64:-linux-image-cloud-amd64}" "$build/x86_64" ;;
    backports)
        # What it exports is for it alone.
        (backports && guest backports arm64 "${KERNEL_BACKPORTS:-linux-image-arm64}" "$build/backports") || exit 1
        ;;
    esac
done
