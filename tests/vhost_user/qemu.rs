//! Guests of QEMU whose network interfaces, sockets and entropy are ours.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
    time::Duration,
};

use super::{
    daemon::folder,
    guests::{chardev, device, devisord_at, devisord_with, qemu},
    skip::skipped,
};

/// Two interfaces on one switch, the second in a network namespace of its own: each gets a file from the other, over TCP. Then sockets,
/// both ways, and entropy. Files are as long as they are so that all of it is done in less than a minute.
const SCRIPT: &str = r#"
for net in eth0 eth1; do
    features=$(busybox cat /sys/class/net/$net/device/features)
    echo "guest: $net packed $(echo $features | busybox cut -c 35) mergeable $(echo $features | busybox cut -c 16)"
done
busybox mkdir /run/www
busybox dd if=/dev/urandom of=/run/www/file bs=64k count=48 2>/dev/null
busybox unshare -n busybox sleep 1000 &
there=$!
busybox usleep 500000
busybox ip link set eth1 netns $there
in_there() { busybox nsenter -t $there -n busybox "$@"; }
busybox ip addr add 10.0.0.1/24 dev eth0
busybox ip link set eth0 up
in_there ip addr add 10.0.0.2/24 dev eth1
in_there ip link set eth1 up
busybox ping -c 3 -i 0.2 -s 1400 10.0.0.2 | busybox grep -q "3 packets received" && echo guest: ping
in_there httpd -h /run/www
busybox httpd -h /run/www
busybox wget -q -O /run/got http://10.0.0.2/file && busybox cmp /run/got /run/www/file && echo guest: net to eth0
in_there wget -q -O /run/got2 http://10.0.0.1/file && busybox cmp /run/got2 /run/www/file && echo guest: net to eth1
[ $(busybox dd if=/dev/hwrng bs=32 count=2 2>/dev/null | busybox wc -c) = 64 ] && echo guest: entropy
busybox mount -t ext4 -o ro /dev/vda /root
socat() { busybox chroot /root /bin/socat -t 30 "$@"; }
socat - VSOCK-CONNECT:2:1024 < /run/www/file > /run/back && busybox cmp /run/back /run/www/file && echo guest: vsock calls
echo guest: listens
socat VSOCK-LISTEN:1024 - < /run/www/file > /run/back && busybox cmp /run/back /run/www/file && echo guest: vsock was called
echo guest: end
"#;

/// Says back what it hears.
fn echo(stream: UnixStream) {
    let mut back = stream.try_clone().unwrap();
    let _ = std::io::copy(&mut &stream, &mut back);
    let _ = back.shutdown(Shutdown::Write);
}

/// Calls a guest that listens, and says back what it hears.
fn call(uds: &Path) {
    // Its socket may be a moment later than what it prints.
    for _ in 0..100 {
        let stream = UnixStream::connect(uds).unwrap();
        (&stream).write_all(b"CONNECT 1024\n").unwrap();
        let mut heard = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        if heard.read_line(&mut line).is_ok() && line.starts_with("OK") {
            let mut back = stream;
            let _ = std::io::copy(&mut heard, &mut back);
            let _ = back.shutdown(Shutdown::Write);
            let _ = back.read(&mut [0]);
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn talks(arch: &str, packed: bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
    let root = if arch == "x86_64" { root.join("x86_64") } else { root }.join("root.ext4");
    if !root.is_file() {
        skipped("no guest: tests/guest/fetch.sh gets it");
        return;
    }
    let folder = folder(&format!("qemu-net-{arch}-{packed}"));
    let path = |name: &str| folder.join(name);
    let (nets, rng, vsock, uds) = ([path("n0"), path("n1")], path("r"), path("v"), path("uds"));
    let format: &[&'static str] = if packed { &["--packed"] } else { &[] };
    let with = |arguments: &[&'static str]| [arguments, format].concat();
    let Some(_nets) = devisord_at(&with(&["net", "--switch"]), &[&nets[0], &nets[1]]) else {
        return;
    };
    let _rng = devisord_with(&with(&["rng"]), &rng);
    let host = UnixListener::bind(path("uds_1024")).unwrap();
    thread::spawn(move || host.incoming().flatten().for_each(echo));
    let _vsock = devisord_with(
        &[&["vsock", "--cid", "3", "--uds-path", uds.to_str().unwrap()], format].concat(),
        &vsock,
    );
    let ring = if packed { "packed=on" } else { "packed=off" };
    let mut devices = vec![
        "-drive".to_owned(),
        format!("if=virtio,format=raw,readonly=on,file={}", root.display()),
    ];
    for (number, socket) in nets.iter().enumerate() {
        devices.extend(chardev(&format!("n{number}"), socket, ""));
        devices.extend(["-netdev".into(), format!("vhost-user,id=net{number},chardev=n{number}")]);
        // No MSI-X: QEMU 7.2 without an accelerator falls over the mask of a vector of such an interface.
        devices.extend(device(&format!(
            "virtio-net-pci,netdev=net{number},mac=52:54:00:00:00:0{number},romfile=,vectors=0,{ring}"
        )));
    }
    devices.extend(chardev("r", &rng, ""));
    devices.extend(device(&format!("vhost-user-rng-pci,chardev=r,{ring}")));
    devices.extend(chardev("v", &vsock, ""));
    devices.extend(device(&format!("vhost-user-vsock-pci,chardev=v,{ring}")));
    let Some(mut guest) = qemu(&folder, arch, &devices, SCRIPT) else {
        return;
    };
    guest.assert_says("guest: listens", Duration::from_secs(90));
    thread::spawn(move || call(&uds));
    guest.assert_says("guest: end", Duration::from_secs(60));
    let packed = u8::from(packed);
    for line in [
        &*format!("eth0 packed {packed} mergeable 1"),
        &*format!("eth1 packed {packed} mergeable 1"),
        "ping",
        "net to eth0",
        "net to eth1",
        "entropy",
        "vsock calls",
        "vsock was called",
    ] {
        assert!(
            guest.all.contains(&format!("guest: {line}")),
            "{arch}: {line}:\n{}",
            guest.all
        );
    }
    let _ = fs::remove_dir_all(&folder);
}

#[test]
fn an_x86_64_guest_of_qemu_uses_network_sockets_and_entropy() {
    talks("x86_64", false);
}

#[test]
fn an_x86_64_guest_of_qemu_uses_them_with_packed_rings() {
    talks("x86_64", true);
}

#[test]
fn an_arm64_guest_of_qemu_uses_network_sockets_and_entropy() {
    talks("arm64", false);
}

#[test]
fn an_arm64_guest_of_qemu_uses_them_with_packed_rings() {
    talks("arm64", true);
}
