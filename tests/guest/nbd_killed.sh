#!/bin/sh
# The guest's root is a qcow2 image that qemu-nbd serves, which is killed again and again, and started again, while fio writes in the
# guest and verifies. The guest sees nothing but pauses; afterwards the image is clean, and has what the guest wrote.
#
# usage: tests/guest/nbd_killed.sh [OPTION VALUE]...      options of the example `linux`, for arm64
#
# Needs what tests/guest/fetch.sh makes, and qemu-utils.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for program in qemu-nbd qemu-img; do
    command -v "$program" >/dev/null || {
        echo "skipped: $program is not installed (apt-get install qemu-utils)"
        exit 0
    }
done
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT

image=$here/build/fio.ext4
# With lazy refcounts, whoever opens an image that was not closed sets them right.
qemu-img convert -f raw -O qcow2 -o lazy_refcounts=on "$image" "$work/root.qcow2"

# serve: starts the server, and waits until it listens.
serve() {
    rm -f "$work/socket"
    qemu-nbd -k "$work/socket" -t -e 16 -f qcow2 --discard=unmap "$work/root.qcow2" &
    server=$!
    tries=0
    while [ ! -S "$work/socket" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || {
            echo "nbd_killed.sh: qemu-nbd does not listen" >&2
            exit 1
        }
        sleep 0.05
    done
}
serve

cargo run --release --quiet --all-features --example linux -- --disk "nbd+unix:///?socket=$work/socket" "$@" >"$work/log" 2>&1 &
guest=$!

# says LINE: whether the guest has said so.
says() {
    grep -aq "^guest: $1" "$work/log"
}
kills=0
while kill -0 "$guest" 2>/dev/null; do
    # From when it writes until all is read again.
    if says 'say a word' && ! says 'fio verified'; then
        kill -KILL "$server"
        wait "$server" 2>/dev/null || true
        kills=$((kills + 1))
        # It is away for a moment, longer each time.
        sleep "0.$((kills % 10))"
        serve
    fi
    sleep 1.5
done
status=0
wait "$guest" || status=$?
cat "$work/log"
kill "$server"
wait "$server" || true
server=
echo "$kills kills"
[ "$status" -eq 0 ] && [ "$kills" -ge 3 ] || exit 1
# What the guest's kernel says of a disk that fails.
! grep -aE 'I/O error|Buffer I/O|EXT4-fs error|Remounting filesystem|blocked for more than' "$work/log" || exit 1
qemu-img check -f qcow2 "$work/root.qcow2"
