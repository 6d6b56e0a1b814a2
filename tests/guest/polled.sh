#!/bin/sh
# Runs test programs of ours in a guest of QEMU's that has what few hosts have: an NVMe disk with queues to poll (under /tmp, as ext4), and
# a zoned null_blk (/dev/nullb0). The kernel is Debian's linux-image-amd64, unmodified.
#
# usage: tests/guest/polled.sh 'PROGRAM [ARGUMENT]...'...
#
# For instance, with what `cargo test --all-features --no-run --lib --test block` has made:
#   tests/guest/polled.sh "$lib uring::tests --nocapture --test-threads=1" "$block polled_for --nocapture"
#
# Needs what fetch.sh has made for x86_64, and Debian with qemu-system-x86, cpio, kmod and e2fsprogs. It is the emulator alone, so it takes a minute.
set -eu
PATH=$PATH:/usr/sbin:/sbin

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p "$here/build"
work=$(mktemp -d "$here/build/polled.XXXXXX")
trap 'rm -rf "$work"' EXIT

image=$(apt-cache show --no-all-versions linux-image-amd64 | sed -n 's/^Depends:.*\(linux-image-[0-9][^ ,]*\).*/\1/p')
kept=$here/build/$image
if [ ! -d "$kept" ]; then
    (cd "$work" && apt-get -o APT::Sandbox::User=root download "$image" && dpkg -x "$image"_*.deb kernel)
    mv "$work/kernel" "$kept"
fi

root=$work/root
mkdir -p "$root/bin" "$root/modules" "$root/dev" "$root/proc" "$root/sys" "$root/tmp" "$root/lib64"
debugfs -R "dump /bin/busybox $root/bin/busybox" "$here/build/x86_64/root.ext4" 2>/dev/null
chmod 755 "$root/bin/busybox"
: >"$root/modules/order"
version=$(basename "$kept"/lib/modules/*)
depmod -b "$kept" "$version"
for module in nvme null_blk crc32c_generic ext4; do
    modprobe -d "$kept" -S "$version" --show-depends "$module" | while read -r _ found; do
        [ -e "$root/modules/$(basename "$found")" ] && continue
        cp "$found" "$root/modules/"
        basename "$found" .ko >>"$root/modules/order"
    done
done
number=0
: >"$root/run"
for line in "$@"; do
    program=${line%% *}
    cp "$program" "$root/bin/program$number"
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        mkdir -p "$root/$(dirname "$library")"
        cp -L -n "$library" "$root/$library"
    done
    arguments=${line#"$program"}
    echo "/bin/program$number$arguments && echo 'guest: passed' || echo 'guest: failed'" >>"$root/run"
    number=$((number + 1))
done
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox --install -s /bin
while read -r module; do
    options=
    case $module in
    nvme) options=poll_queues=1 ;;
    null_blk) options='zoned=1 zone_size=1 zone_nr_conv=2 zone_max_open=4 zone_max_active=6 gb=1 memory_backed=1 bs=512 nr_devices=1' ;;
    esac
    insmod "/modules/$module.ko" $options
done </modules/order
sleep 1
echo "guest: $(uname -r), polled: $(cat /sys/block/nvme0n1/queue/io_poll), zoned: $(cat /sys/block/nullb0/queue/zoned)"
mount -t ext4 /dev/nvme0n1 /tmp
sh /run
poweroff -f
INIT
chmod 755 "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc -R 0:0 | gzip -1 >"$work/initrd")
truncate -s 256M "$work/disk"
mkfs.ext4 -q -F "$work/disk"
timeout "${TIMEOUT:-400}" qemu-system-x86_64 -M q35 -cpu max -accel tcg -smp 2 -m 1024 -nodefaults -nographic -no-reboot -serial stdio \
    -kernel "$(echo "$kept"/boot/vmlinuz-*)" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests" \
    -drive "file=$work/disk,format=raw,if=none,id=disk" -device nvme,drive=disk,serial=polled | tee "$work/log"
[ "$(grep -c 'guest: passed' "$work/log")" -eq "$number" ]
