//! Guests of QEMU whose disk, network interfaces, sockets and entropy are ours; and such behind an IOMMU.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{
    daemon::folder,
    guests::{GROUPS, INTEL, VIRTIO, assert_translated, chardev, device, devisord_at, qemu_with, tracing_misses},
    skip::skipped,
};

/// Two interfaces on one switch, the second in a network namespace of its own: each gets a file from the other, over TCP. Then entropy, a
/// file system of the disk's, and sockets, both ways. Files are as long as they are so that all of it is done in less than a minute.
const SCRIPT: &str = r#"
for virtio in /sys/bus/virtio/devices/*; do
    features=$(busybox cat $virtio/features)
    echo "guest: device $(busybox cat $virtio/device) packed $(echo $features | busybox cut -c 35) platform $(echo $features | busybox cut -c 34)"
done
for net in eth0 eth1; do
    features=$(busybox cat /sys/class/net/$net/device/features)
    echo "guest: $net mergeable $(echo $features | busybox cut -c 16)"
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

/// Says back what it hears. It goes on hearing while nobody hears it: a guest's program that is held by its own write reads nothing.
fn say_back(mut hears: impl Read, mut back: UnixStream) {
    let (heard, to_say) = mpsc::channel::<Vec<u8>>();
    let says = thread::spawn(move || {
        let _ = to_say.iter().try_for_each(|piece| back.write_all(&piece));
        let _ = back.shutdown(Shutdown::Write);
    });
    let mut piece = [0; 8192];
    while let Ok(len @ 1..) = hears.read(&mut piece) {
        let _ = heard.send(piece[..len].to_vec());
    }
    drop(heard);
    let _ = says.join();
}

fn echo(stream: UnixStream) {
    say_back(stream.try_clone().unwrap(), stream);
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
            return say_back(heard, stream);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// An IOMMU of QEMU's, and how the guest's kernel is to use it.
struct Iommu {
    device: &'static str,
    kernel: &'static str,
}

fn talks(arch: &str, packed: bool, iommu: Option<&Iommu>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
    let root = if arch == "arm64" { root } else { root.join(arch) }.join("root.ext4");
    if !root.is_file() {
        skipped(format_args!("no guest {arch}: tests/guest/fetch.sh gets it"));
        return;
    }
    let translated = iommu.is_some();
    let folder = folder(&format!("qemu-net-{arch}-{packed}-{translated}"));
    let path = |name: &str| folder.join(name);
    let (nets, disk, rng, vsock) = ([path("n0"), path("n1")], path("d"), path("r"), path("v"));
    let (uds, trace) = (path("uds"), path("trace"));
    let with = |arguments: &[&str], sockets: &[&Path]| {
        let more = [(packed, "--packed"), (translated, "--iommu")];
        let more = more.iter().filter(|(wanted, _)| *wanted).map(|(_, option)| *option);
        devisord_at(&arguments.iter().copied().chain(more).collect::<Vec<_>>(), sockets)
    };
    let Some(_nets) = with(&["net", "--switch"], &[&nets[0], &nets[1]]) else {
        return;
    };
    let _disk = with(&["blk", "--read-only", "--image", root.to_str().unwrap()], &[&disk]);
    let _rng = with(&["rng"], &[&rng]);
    let host = UnixListener::bind(path("uds_1024")).unwrap();
    thread::spawn(move || host.incoming().flatten().for_each(echo));
    let _vsock = with(&["vsock", "--cid", "3", "--uds-path", uds.to_str().unwrap()], &[&vsock]);
    let mut devices = Vec::new();
    let mut kernel = "";
    if let Some(iommu) = iommu {
        kernel = iommu.kernel;
        devices.extend(device(iommu.device));
        devices.extend(tracing_misses(&trace));
    }
    let mut add = |name: &str, socket: &Path, model: &str| {
        devices.extend(chardev(name, socket, ""));
        if model.starts_with("virtio-net") {
            devices.extend(["-netdev".into(), format!("vhost-user,id=net-{name},chardev={name}")]);
        }
        let mut model = format!("{model},packed={}", if packed { "on" } else { "off" });
        if translated {
            // ATS, with which QEMU tells of what is unmapped, is for what is not of the root bus.
            devices.extend(device(&format!(
                "pcie-root-port,id=port-{name},chassis={}",
                devices.len()
            )));
            model += &format!(",bus=port-{name},iommu_platform=on,ats=on");
        }
        devices.extend(device(&model));
    };
    add("d", &disk, "vhost-user-blk-pci,chardev=d,num-queues=1");
    for (name, socket) in ["n0", "n1"].iter().zip(&nets) {
        // No MSI-X: QEMU 7.2 without an accelerator falls over the mask of a vector of such an interface.
        let model = format!("virtio-net-pci,netdev=net-{name},mac=52:54:00:00:00:{name},romfile=,vectors=0");
        add(name, socket, &model.replace(":n", ":0"));
    }
    add("r", &rng, "vhost-user-rng-pci,chardev=r");
    add("v", &vsock, "vhost-user-vsock-pci,chardev=v");
    let script = format!("{GROUPS}{SCRIPT}");
    let Some(mut guest) = qemu_with(&folder, arch, kernel, &devices, &script) else {
        return;
    };
    guest.assert_says("guest: listens", Duration::from_secs(90));
    thread::spawn(move || call(&uds));
    guest.assert_says("guest: end", Duration::from_secs(60));
    let features = format!("packed {} platform {}", u8::from(packed), u8::from(translated));
    let ids = ["0x0001", "0x0002", "0x0004", "0x0013"];
    let lines = ids.map(|id| format!("device {id} {features}"));
    for line in lines.iter().map(String::as_str).chain([
        "eth0 mergeable 1",
        "eth1 mergeable 1",
        "ping",
        "net to eth0",
        "net to eth1",
        "entropy",
        "vsock calls",
        "vsock was called",
    ]) {
        assert!(
            guest.all.contains(&format!("guest: {line}")),
            "{arch}: {line}:\n{}",
            guest.all
        );
    }
    assert_eq!(guest.all.matches(&features).count(), 5, "{arch}:\n{}", guest.all);
    if translated {
        assert_translated(&guest, &trace, 5);
    }
    let _ = fs::remove_dir_all(&folder);
}

#[test]
fn an_x86_64_guest_of_qemu_uses_network_sockets_and_entropy() {
    talks("x86_64", false, None);
}

#[test]
fn an_x86_64_guest_of_qemu_uses_them_with_packed_rings() {
    talks("x86_64", true, None);
}

#[test]
fn an_arm64_guest_of_qemu_uses_network_sockets_and_entropy() {
    talks("arm64", false, None);
}

#[test]
fn an_arm64_guest_of_qemu_uses_them_with_packed_rings() {
    talks("arm64", true, None);
}

#[test]
fn an_x86_64_guest_of_qemu_uses_them_behind_an_iommu() {
    let iommu = Iommu {
        device: INTEL,
        kernel: "intel_iommu=on iommu.strict=1",
    };
    talks("x86_64", false, Some(&iommu));
}

/// Kernels of before have no driver of it.
#[test]
fn an_arm64_guest_of_qemu_uses_them_behind_virtio_iommu_with_packed_rings() {
    let iommu = Iommu {
        device: VIRTIO,
        kernel: "iommu.strict=1",
    };
    talks("backports", true, Some(&iommu));
}
