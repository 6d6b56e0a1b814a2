//! Foreign front ends: user-mode Linux and QEMU, whose guests find our devices by `devisord`.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::FileExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    daemon::{Running, devisord, folder, wait_for},
    skip::skipped,
};

/// A program of the host's, if it is there.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        skipped(format_args!("{name} is not installed"));
    }
    found
}

pub fn devisord_with(arguments: &[&str], socket: &Path) -> Option<Running> {
    devisord_at(arguments, &[socket])
}

pub fn devisord_at(arguments: &[&str], sockets: &[&Path]) -> Option<Running> {
    let mut command = Command::new(devisord()?);
    command.args(arguments);
    for socket in sockets {
        let _ = fs::remove_file(socket);
        command.arg("--socket-path").arg(socket);
    }
    let running = Running(command.spawn().expect("devisord starts"));
    sockets.iter().for_each(|socket| wait_for(socket));
    Some(running)
}

/// A guest's console, a line at a time; or that of another program.
pub struct Guest {
    running: Running,
    lines: mpsc::Receiver<String>,
    pub all: String,
}

impl Guest {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::start_with_input(command)
    }

    pub fn start_with_input(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        // So that all of its processes end with it.
        command.process_group(0);
        let mut child = command.spawn().expect("it starts");
        let (sender, lines) = mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] = [
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).trim().to_owned();
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Self {
            running: Running(child),
            lines,
            all: String::new(),
        }
    }

    /// Reads on until a line has `text`, or nothing more comes.
    pub fn until(&mut self, text: &str, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.all += &line;
            self.all.push('\n');
            if line.contains(text) {
                return true;
            }
        }
        false
    }

    pub fn assert_says(&mut self, text: &str, limit: Duration) {
        let said = self.until(text, limit);
        assert!(said, "it does not say {text:?}:\n{}", self.all);
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.running.0
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let group = self.child().id() as i32;
        // SAFETY: the group that was made for it, whose leader has not been waited for.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

/// A script that user-mode Linux runs as its first process, on the host's files.
fn uml(folder: &Path, devices: &[(&Path, u32)], script: &str) -> Option<Guest> {
    let linux = program("linux.uml")?;
    program("insmod")?;
    let init = folder.join("init");
    let script = format!(
        "#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run; mount -t devtmpfs dev /dev 2>/dev/null\n\
         K=/usr/lib/uml/modules/$(uname -r)/kernel; cd /run\n\
         echo guest: up\n{script}\necho o > /proc/sysrq-trigger; sleep 1\n"
    );
    fs::write(&init, script).unwrap();
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let boot = |preload: Option<&Path>| boot_uml(&linux, &init, devices, preload);
    let mut guest = boot(None);
    if guest.until("guest: up", Duration::from_secs(20)) {
        return Some(guest);
    }
    // Its kernel knows of less state of a CPU than some have: a library in between helps, where there is a compiler.
    let library = folder.join("state.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vhost_user/state.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-o"])
        .arg(&library)
        .arg(source)
        .status();
    if compiled.is_ok_and(|status| status.success()) {
        drop(guest);
        guest = boot(Some(&library));
        if guest.until("guest: up", Duration::from_secs(20)) {
            return Some(guest);
        }
    }
    skipped(format_args!(
        "user-mode Linux does not run here: {}",
        guest.all.lines().last().unwrap_or("it says nothing")
    ));
    None
}

fn boot_uml(linux: &Path, init: &Path, devices: &[(&Path, u32)], preload: Option<&Path>) -> Guest {
    let mut command = Command::new(linux);
    if let Some(library) = preload {
        command.env("LD_PRELOAD", library);
    }
    command.args([
        "mem=128M",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        "con=null",
        "con0=fd:0,fd:1",
        "quiet",
    ]);
    command
        .arg(format!("init={}", init.display()))
        .env("TMPDIR", "/dev/shm");
    for (socket, kind) in devices {
        command.arg(format!("virtio_uml.device={}:{kind}", socket.display()));
    }
    Guest::start(command)
}

/// Bytes that follow no rule, in a file.
pub fn image(path: &Path, len: usize) {
    let mut seed = 88172645463325252u64;
    let bytes: Vec<u8> = (0..len / 8)
        .flat_map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_ne_bytes()
        })
        .collect();
    fs::write(path, bytes).unwrap();
}

#[test]
fn user_mode_linux_writes_a_file_system_and_reads_it_back() {
    for more in [&[][..], &["--packed"], &["--packed", "--in-order"]] {
        let folder = folder("uml-blk");
        let (socket, disk) = (folder.join("s"), folder.join("disk"));
        image(&disk, 32 << 20);
        let arguments = [&["blk", "--image", disk.to_str().unwrap()], more].concat();
        let Some(_daemon) = devisord_with(&arguments, &socket) else {
            return;
        };
        let script = "insmod $K/drivers/block/virtio_blk.ko\n\
             mkfs.ext4 -q -F /dev/vda && mkdir m && mount /dev/vda m && dd if=/dev/urandom of=m/a bs=1M count=8 status=none && \
             md5sum < m/a > before && umount m && echo 3 > /proc/sys/vm/drop_caches && mount /dev/vda m && md5sum < m/a > after && \
             umount m && cmp before after && echo guest: same\n";
        let Some(mut guest) = uml(&folder, &[(&socket, 2)], script) else {
            return;
        };
        guest.assert_says("guest: same", Duration::from_secs(60));
        let _ = fs::remove_dir_all(&folder);
    }
}

#[test]
fn user_mode_linux_talks_over_console_and_sockets_fills_a_balloon_and_gets_entropy() {
    let folder = folder("uml-others");
    let socket = |name: &str| folder.join(name);
    let (console, vsock, balloon, rng) = (socket("con"), socket("vs"), socket("bal"), socket("rng"));
    let peer = folder.join("peer");
    let uds = folder.join("uds");
    let host = std::os::unix::net::UnixListener::bind(folder.join("uds_1234")).unwrap();
    thread::spawn(move || {
        // Says back all that it hears.
        while let Ok((mut stream, _)) = host.accept() {
            let mut back = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut back);
            let _ = back.shutdown(std::net::Shutdown::Both);
        }
    });
    let uds = uds.to_str().unwrap();
    let Some(_console) = devisord_with(&["console", "--stream", peer.to_str().unwrap()], &console) else {
        return;
    };
    let _vsock = devisord_with(&["vsock", "--cid", "3", "--uds-path", uds], &vsock);
    let _balloon = devisord_with(&["balloon", "--pages", "2048"], &balloon);
    let _rng = devisord_with(&["rng"], &rng);
    let terminal = std::os::unix::net::UnixStream::connect(&peer).unwrap();
    let typist = terminal.try_clone().unwrap();
    thread::spawn(move || {
        while std::io::Write::write_all(&mut &typist, b"typed\n").is_ok() {
            thread::sleep(Duration::from_millis(300));
        }
    });
    let script = "free() { sed -n 's/MemFree: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }\n\
        V=$K/net/vmw_vsock; insmod $V/vsock.ko; insmod $V/vmw_vsock_virtio_transport_common.ko; insmod $V/vmw_vsock_virtio_transport.ko\n\
        insmod $K/drivers/char/virtio_console.ko; sleep 0.3\n\
        echo hello > /dev/hvc0; read line < /dev/hvc0; [ \"$line\" = typed ] && echo guest: console\n\
        [ $(head -c 64 /dev/hwrng | wc -c) = 64 ] && echo guest: entropy\n\
        a=$(free); insmod $K/drivers/virtio/virtio_balloon.ko; sleep 1; b=$(free)\n\
        [ $((a - b)) -gt 6000 ] && echo guest: balloon || echo guest: free $a $b\n\
        perl -e 'alarm 20; socket(S, 40, 1, 0) && connect(S, pack(\"SSLLx4\", 40, 0, 1234, 2)) or die \"$!\";\n\
        if (!fork) { $d = \"x\" x 300000; while (length $d) { substr($d, 0, syswrite(S, $d)) = \"\" } shutdown(S, 1); exit }\n\
        while (sysread(S, $b, 65536)) { $n += length $b } print \"guest: vsock $n\\n\"'\necho guest: end\n";
    let devices = [(&*console, 3), (&*vsock, 19), (&*balloon, 5), (&*rng, 4)];
    let Some(mut guest) = uml(&folder, &devices, script) else {
        return;
    };
    guest.assert_says("guest: end", Duration::from_secs(60));
    // Beside what the guest's terminal echoes of what is typed.
    let mut heard = Vec::new();
    terminal.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while !heard.windows(5).any(|word| word == b"hello") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut &terminal, &mut byte).expect("it says hello");
        heard.push(byte[0]);
    }
    for part in ["console", "entropy", "balloon", "vsock 300000"] {
        assert!(guest.all.contains(&format!("guest: {part}")), "{part}:\n{}", guest.all);
    }
    let _ = fs::remove_dir_all(&folder);
}

/// Two interfaces on one switch, the second in a network namespace of its own, where all that comes is said back.
#[test]
fn user_mode_linux_talks_to_itself_over_a_switch() {
    for more in [&[][..], &["--packed"]] {
        let folder = folder("uml-net");
        let sockets = [folder.join("n0"), folder.join("n1")];
        let arguments = [&["net", "--switch"], more].concat();
        let Some(_daemon) = devisord_at(&arguments, &sockets.each_ref().map(|socket| &**socket)) else {
            return;
        };
        let script = "insmod $K/net/core/failover.ko; insmod $K/drivers/net/net_failover.ko; insmod $K/drivers/net/virtio_net.ko\n\
            unshare -n sleep 1000 & there=$!; sleep 0.5\n\
            in_there() { nsenter -t $there -n \"$@\"; }\n\
            ip link set eth1 netns $there; ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up\n\
            in_there ip addr add 10.0.0.2/24 dev eth1; in_there ip link set eth1 up\n\
            in_there perl -MIO::Socket::INET -e '$l = IO::Socket::INET->new(LocalPort => 7, Listen => 1) or die;\n\
            $c = $l->accept; while (sysread($c, $b, 65536)) { syswrite($c, $b) }' &\n\
            sleep 0.5; head -c 3000000 /dev/urandom > sent\n\
            perl -MIO::Socket::INET -e 'alarm 40; $s = IO::Socket::INET->new(\"10.0.0.2:7\") or die \"$!\";\n\
            open F, \"sent\"; if (!fork) { while (sysread(F, $b, 65536)) { syswrite($s, $b) } shutdown($s, 1); exit }\n\
            while (sysread($s, $b, 65536)) { print $b }' > back; cmp sent back && echo guest: same\n\
            cat /sys/class/net/eth0/statistics/tx_bytes\nkill $there\necho guest: end\n";
        let Some(mut guest) = uml(&folder, &[(&sockets[0], 1), (&sockets[1], 1)], script) else {
            return;
        };
        guest.assert_says("guest: end", Duration::from_secs(60));
        assert!(guest.all.contains("guest: same"), "{more:?}:\n{}", guest.all);
        let sent = guest
            .all
            .lines()
            .filter_map(|line| line.parse::<u64>().ok())
            .next_back();
        assert!(sent > Some(3_000_000), "not by another way:\n{}", guest.all);
        let _ = fs::remove_dir_all(&folder);
    }
}

/// An archive with a file `/init`, to be put behind the one that has the modules.
fn cpio(init: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, data) in [("init", 0o100_755, init), ("TRAILER!!!", 0, "")] {
        let fields = [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        fields
            .iter()
            .for_each(|field| archive.extend(format!("{field:08x}").bytes()));
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(data.bytes());
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

const BEGIN: &str = "#!/bin/busybox sh\nexport PATH=/bin\n\
    busybox mount -t proc proc /proc; busybox mount -t sysfs sysfs /sys; busybox mount -t devtmpfs devtmpfs /dev\n\
    busybox mount -t tmpfs tmpfs /run\n\
    while read -r module; do busybox insmod /modules/$module; done < /modules/order\n\
    tries=0; while [ ! -b /dev/vda ] && [ $tries -lt 50 ]; do busybox usleep 100000; tries=$((tries+1)); done\n\
    echo guest: up\n";

/// QEMU, without an accelerator, with the kernel and modules of the other guests here.
pub fn qemu(folder: &Path, arch: &str, devices: &[String], script: &str) -> Option<Guest> {
    qemu_with(folder, arch, "", devices, script)
}

/// The same, with more for the kernel's command line.
pub fn qemu_with(folder: &Path, arch: &str, kernel: &str, devices: &[String], script: &str) -> Option<Guest> {
    let mut guest = Guest::start(qemu_command(folder, arch, kernel, devices, script)?);
    guest.assert_says("guest: up", Duration::from_secs(120));
    Some(guest)
}

pub fn qemu_command(folder: &Path, arch: &str, more: &str, devices: &[String], script: &str) -> Option<Command> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build");
    let (program_name, build, machine, console) = match arch {
        "x86_64" => ("qemu-system-x86_64", build.join("x86_64"), ["q35", "max"], "ttyS0"),
        "backports" => (
            "qemu-system-aarch64",
            build.join("backports"),
            ["virt", "cortex-a57"],
            "ttyAMA0",
        ),
        _ => ("qemu-system-aarch64", build, ["virt", "cortex-a57"], "ttyAMA0"),
    };
    let qemu = program(program_name)?;
    let kernel = build.join("kernel");
    let Ok(mut initrd) = fs::read(build.join("initrd.cpio")) else {
        skipped(format_args!("no guest {arch}: tests/guest/fetch.sh gets it"));
        return None;
    };
    initrd.resize(initrd.len().next_multiple_of(512), 0);
    initrd.extend(cpio(&format!("{BEGIN}{script}\nbusybox poweroff -f\n")));
    let path = folder.join("initrd");
    fs::write(&path, initrd).unwrap();
    let mut command = Command::new(qemu);
    let [machine, cpu] = machine;
    // A host that is busy is late with the ticks by which x86 looks whether its timer works.
    command
        .args([
            "-M",
            &format!("{machine},memory-backend=mem"),
            "-accel",
            "tcg",
            "-cpu",
            cpu,
            "-m",
            "256",
        ])
        .args(["-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
        .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(path)
        .args([
            "-append",
            &format!("console={console} panic=-1 quiet no_timer_check {more}"),
        ])
        .args(devices);
    Some(command)
}

pub fn chardev(id: &str, socket: &Path, more: &str) -> [String; 2] {
    [
        "-chardev".into(),
        format!("socket,id={id},path={}{more}", socket.display()),
    ]
}

pub fn device(text: &str) -> [String; 2] {
    ["-device".into(), text.into()]
}

#[test]
fn guests_of_qemu_write_and_read_a_disk_and_get_entropy() {
    for (arch, more, packed) in [
        ("x86_64", &[][..], "off"),
        ("x86_64", &["--packed"], "on"),
        ("arm64", &[], "off"),
        ("arm64", &["--packed"], "on"),
    ] {
        let folder = folder(&format!("qemu-{arch}-{packed}"));
        let (disk, socket, rng) = (folder.join("disk"), folder.join("s"), folder.join("r"));
        image(&disk, 16 << 20);
        let arguments = [&["blk", "--image", disk.to_str().unwrap(), "--queues", "2"], more].concat();
        let Some(_daemon) = devisord_with(&arguments, &socket) else {
            return;
        };
        let _rng = devisord_with(&["rng"], &rng);
        let devices = [
            chardev("c0", &socket, ""),
            device(&format!("vhost-user-blk-pci,chardev=c0,num-queues=2,packed={packed}")),
            chardev("c1", &rng, ""),
            device("vhost-user-rng-pci,chardev=c1"),
        ]
        .concat();
        let script = "echo guest: packed $(busybox cut -c 35 /sys/block/vda/device/features)\n\
            busybox dd if=/dev/vda of=/run/a bs=64k count=64 2>/dev/null; busybox md5sum < /run/a\n\
            busybox dd if=/run/a of=/dev/vda bs=64k seek=128 conv=fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches\n\
            busybox dd if=/dev/vda bs=64k skip=128 count=64 2>/dev/null | busybox cmp - /run/a && echo guest: same\n\
            busybox dd if=/dev/hwrng bs=32 count=1 2>/dev/null | busybox wc -c\necho guest: end\n";
        let Some(mut guest) = qemu(&folder, arch, &devices, script) else {
            return;
        };
        guest.assert_says("guest: end", Duration::from_secs(120));
        assert!(
            guest.all.contains("guest: same") && guest.all.contains("\n32\n"),
            "{arch}: {}",
            guest.all
        );
        let ring = format!("guest: packed {}", u8::from(packed == "on"));
        assert!(guest.all.contains(&ring), "{arch}: {}", guest.all);
        let disk = fs::read(&disk).unwrap();
        assert!(
            disk[..4 << 20] == disk[8 << 20..12 << 20],
            "what the guest wrote is on the disk"
        );
        let _ = fs::remove_dir_all(&folder);
    }
}

pub const INTEL: &str = "intel-iommu,intremap=on,device-iotlb=on";
pub const VIRTIO: &str = "virtio-iommu-pci";

/// How the guest's kernel uses its IOMMU: one domain that leaves addresses as they are would do for a device that never asks.
pub const GROUPS: &str =
    "for type in /sys/kernel/iommu_groups/*/type; do [ -f $type ] && echo guest: domain $(busybox cat $type); done\n";

/// QEMU writes down each translation that a back end asks it for.
pub fn tracing_misses(trace: &Path) -> [String; 4] {
    ["-trace", "vhost_iotlb_miss", "-D", trace.to_str().unwrap()].map(Into::into)
}

/// Each of so many devices has asked for translations, and has got them, of an IOMMU that its guest uses.
pub fn assert_translated(guest: &Guest, trace: &Path, devices: usize) {
    assert!(
        guest.all.contains("guest: domain DMA") && !guest.all.contains("guest: domain identity"),
        "{}",
        guest.all
    );
    let trace = fs::read_to_string(trace).unwrap();
    let answered: BTreeSet<_> = trace
        .lines()
        .filter_map(|line| line.split_once("vhost_iotlb_miss ")?.1.strip_suffix(" step 2"))
        .collect();
    assert_eq!(answered.len(), devices, "{}", guest.all);
}

/// What a driver behind an IOMMU does: each buffer is mapped for it, and taken back, in the strict mode at once and in the lazy one all
/// together.
#[test]
fn guests_of_qemu_behind_an_iommu_write_and_read_a_disk() {
    for (name, arch, iommu, kernel, packed) in [
        ("strict", "x86_64", INTEL, "intel_iommu=on iommu.strict=1", "off"),
        ("lazy", "x86_64", INTEL, "intel_iommu=on iommu.strict=0", "on"),
        // Kernels of before have no driver for it.
        ("virtio-strict", "backports", VIRTIO, "iommu.strict=1", "on"),
        ("virtio-lazy", "backports", VIRTIO, "iommu.strict=0", "off"),
    ] {
        let folder = folder(&format!("qemu-iommu-{name}"));
        let (disk, socket, trace) = (folder.join("disk"), folder.join("s"), folder.join("trace"));
        image(&disk, 16 << 20);
        let mut arguments = vec!["blk", "--image", disk.to_str().unwrap(), "--iommu", "--packed"];
        if packed == "off" {
            arguments.pop();
        }
        let Some(_daemon) = devisord_with(&arguments, &socket) else {
            return;
        };
        let blk = format!(
            "vhost-user-blk-pci,bus=rp0,chardev=c0,num-queues=1,iommu_platform=on,ats=on,disable-legacy=on,packed={packed}"
        );
        let mut devices = [
            device(iommu),
            // QEMU tells of what is unmapped only where the guest enables ATS, which a device of the root bus does not have.
            device("pcie-root-port,id=rp0,chassis=1"),
            chardev("c0", &socket, ""),
            device(&blk),
        ]
        .concat();
        devices.extend(tracing_misses(&trace));
        let script = "for round in 1 2 3; do busybox dd if=/dev/vda of=/run/a bs=64k count=32 2>/dev/null\n\
            busybox dd if=/run/a of=/dev/vda bs=64k seek=128 conv=fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches\n\
            busybox dd if=/dev/vda bs=64k skip=128 count=32 2>/dev/null | busybox cmp - /run/a && echo guest: same $round; done\n\
            features=$(busybox cat /sys/block/vda/device/features)\n\
            echo guest: packed $(echo $features | busybox cut -c 35) platform $(echo $features | busybox cut -c 34)\necho guest: end\n";
        let Some(mut guest) = qemu_with(&folder, arch, kernel, &devices, &format!("{GROUPS}{script}")) else {
            continue;
        };
        guest.assert_says("guest: end", Duration::from_secs(120));
        assert!(guest.all.contains("guest: same 3"), "{name}: {}", guest.all);
        let features = format!("guest: packed {} platform 1", u8::from(packed == "on"));
        assert!(guest.all.contains(&features), "{name}: {}", guest.all);
        assert_translated(&guest, &trace, 1);
        let disk = fs::read(&disk).unwrap();
        assert!(disk[..2 << 20] == disk[8 << 20..10 << 20], "{name}");
        let _ = fs::remove_dir_all(&folder);
    }
}

#[test]
fn a_daemon_that_is_killed_and_started_again_in_the_middle_of_writes_loses_nothing() {
    let variants: &[&[&str]] = match cfg!(feature = "io-uring") {
        true => &[&[], &["--uring"]],
        false => &[&[]],
    };
    for more in variants {
        let folder = folder("qemu-kill");
        let (disk, socket) = (folder.join("disk"), folder.join("s"));
        image(&disk, 16 << 20);
        let arguments = [&["blk", "--image", disk.to_str().unwrap()], *more].concat();
        let Some(mut daemon) = devisord_with(&arguments, &socket) else {
            return;
        };
        let devices = [
            chardev("c0", &socket, ",reconnect=1"),
            device("vhost-user-blk-pci,chardev=c0,num-queues=1"),
        ]
        .concat();
        // It goes on until it is told that it is over, on the disk.
        let script = "echo guest: begins; round=0; until [ \"$(busybox dd if=/dev/vda bs=4 skip=3932160 count=1 2>/dev/null)\" = over ]; do\n\
            round=$((round+1))\n\
            for job in 0 1 2 3; do (busybox dd if=/dev/urandom of=/run/f$job bs=64k count=32 2>/dev/null\n\
            busybox dd if=/run/f$job of=/dev/vda bs=4k seek=$((job*1024)) conv=fsync 2>/dev/null || echo guest: write failed) & done\n\
            wait; echo 3 > /proc/sys/vm/drop_caches\n\
            for job in 0 1 2 3; do busybox dd if=/dev/vda bs=64k skip=$((job*64)) count=32 2>/dev/null | busybox cmp - /run/f$job || echo guest: wrong; done\n\
            echo guest: round $round; done\necho guest: end\n";
        let Some(mut guest) = qemu(&folder, "x86_64", &devices, script) else {
            return;
        };
        guest.assert_says("guest: begins", Duration::from_secs(60));
        for _ in 0..5 {
            assert!(!guest.until("guest: end", Duration::from_millis(1500)), "{}", guest.all);
            // No word of warning.
            drop(daemon);
            daemon = devisord_with(&arguments, &socket).unwrap();
        }
        let told = fs::OpenOptions::new().write(true).open(&disk).unwrap();
        told.write_all_at(b"over", 4 * 3_932_160).unwrap();
        guest.assert_says("guest: end", Duration::from_secs(90));
        assert!(
            !guest.all.contains("guest: wrong") && !guest.all.contains("write failed"),
            "{}",
            guest.all
        );
        let _ = fs::remove_dir_all(&folder);
    }
}

/// Whether a request is in flight that was taken before another which is done: by the table that QEMU keeps, of a daemon that has stopped.
/// The ring alone does not say then what is in flight; and of a packed one, descriptors of it are written over.
fn is_overtaken(qemu: u32, packed: bool) -> bool {
    let open = fs::read_dir(format!("/proc/{qemu}/fd")).unwrap().flatten();
    let mut tables = open.map(|entry| entry.path()).filter(|path| {
        let name = fs::read_link(path).unwrap_or_default();
        name.to_string_lossy().starts_with("/memfd:inflight")
    });
    let Some(table) = tables.next().and_then(|path| fs::read(path).ok()) else {
        return false;
    };
    // As `QueueRegionSplit` and `QueueRegionPacked` have it: as much before the entries as an entry has.
    let size = if packed { 32 } else { 16 };
    let count = u16::from_ne_bytes(table[10..12].try_into().unwrap());
    let entries = table[size..].chunks_exact(size).take(count.into());
    let counters = entries
        .filter(|entry| entry[0] != 0)
        .map(|entry| u64::from_ne_bytes(entry[8..16].try_into().unwrap()));
    let counters: BTreeSet<_> = counters.collect();
    match (counters.first(), counters.last()) {
        (Some(first), Some(last)) => last - first >= counters.len() as u64,
        _ => false,
    }
}

/// fio writes blocks in any order and reads each of them back, with a checksum in it, while the daemon is killed and started again.
fn fio_finds_all_though_its_daemon_is_killed(packed: bool) {
    let fio = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/build/fio.ext4");
    if !fio.is_file() {
        skipped("no guest with fio: tests/guest/fetch.sh gets it");
        return;
    }
    let folder = folder(&format!("qemu-fio-{packed}"));
    let socket = folder.join("s");
    // Of a file in memory, requests end in the order in which they were made.
    let name = format!("fio-{packed}-{}", std::process::id());
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // The guest goes on until it is told that it is over, in a block that fio leaves alone.
    let over_at = 16 << 20;
    image(&disk, over_at + 4096);
    // Requests end in another order than they were made, so that the used ring alone does not say which are in flight.
    let mut arguments = vec!["blk", "--image", disk.to_str().unwrap(), "--direct"];
    let in_any_order = cfg!(feature = "io-uring");
    if in_any_order {
        arguments.push("--uring");
    }
    let ring = if packed { "on" } else { "off" };
    if packed {
        arguments.push("--packed");
    }
    let Some(mut daemon) = devisord_with(&arguments, &socket) else {
        return;
    };
    let devices = [
        chardev("c0", &socket, ",reconnect=1").to_vec(),
        device(&format!("vhost-user-blk-pci,chardev=c0,num-queues=1,packed={ring}")).to_vec(),
        vec![
            "-drive".into(),
            format!("if=virtio,format=raw,readonly=on,file={}", fio.display()),
        ],
    ]
    .concat();
    let script = "ours=; for disk in vda vdb; do case $(busybox cat /sys/block/$disk/size) in 32776) ours=/dev/$disk\n\
        echo guest: packed $(busybox cut -c 35 /sys/block/$disk/device/features) ;;\n\
        *) busybox mount -t ext4 -o ro /dev/$disk /root ;; esac; done\n\
        busybox mount -t devtmpfs devtmpfs /root/dev; busybox mount -t proc proc /root/proc; busybox mount -t tmpfs tmpfs /root/run\n\
        cd /root/run; round=0; until [ \"$(busybox dd if=$ours bs=4 skip=4194304 count=1 2>/dev/null)\" = over ]; do\n\
        round=$((round+1))\n\
        busybox chroot /root /bin/fio --name=verify --filename=$ours --thread --ioengine=libaio --direct=1 --iodepth=64 --bsrange=4k-64k \
        --size=16m --rw=randwrite --randseed=$round --verify=crc32c --verify_fatal=1 --verify_backlog=512 --eta=never \
        --output=/run/log && echo guest: verified $(busybox grep -c 'err= 0' log) || busybox cat log\n\
        echo guest: round $round; echo 3 > /root/proc/sys/vm/drop_caches; done\necho guest: end\n";
    let Some(mut guest) = qemu(&folder, "arm64", &devices, script) else {
        return;
    };
    let (mut kills, mut tries, begun) = (0, 0, Instant::now());
    let (mut wait, mut is_told) = (Duration::from_millis(1500), false);
    while !guest.until("guest: end", wait) {
        assert!(begun.elapsed() < Duration::from_secs(150), "it hangs:\n{}", guest.all);
        if is_told {
            continue;
        }
        // Where others are at work too, the moments for a kill are rare.
        if kills == 10 || kills > 2 && begun.elapsed() > Duration::from_secs(60) {
            daemon.go_on();
            let told = fs::OpenOptions::new().write(true).open(&disk).unwrap();
            told.write_all_at(b"over", over_at as u64).unwrap();
            is_told = true;
            continue;
        }
        if tries != 0 {
            daemon.go_on();
            thread::sleep(Duration::from_micros(200 * (tries % 16)));
        }
        daemon.stop();
        if in_any_order && !is_overtaken(guest.child().id(), packed) {
            // Held up for a moment, so that there are many requests at once when it goes on.
            wait = Duration::from_millis(10);
            tries += 1;
            continue;
        }
        drop(daemon);
        daemon = devisord_with(&arguments, &socket).unwrap();
        kills += 1;
        (wait, tries) = (Duration::from_millis(1500), 0);
    }
    assert!(is_told, "it was over before it was told:\n{}", guest.all);
    let accepted = format!("guest: packed {}", u8::from(packed));
    assert!(guest.all.contains(&accepted), "{}", guest.all);
    let rounds = guest.all.matches("guest: round").count();
    assert_ne!(rounds, 0, "{}", guest.all);
    assert_eq!(guest.all.matches("guest: verified 1").count(), rounds, "{}", guest.all);
    let _ = fs::remove_file(&disk);
    let _ = fs::remove_dir_all(&folder);
}

#[test]
fn fio_finds_all_that_it_has_written_though_its_daemon_is_killed_and_started_again() {
    fio_finds_all_though_its_daemon_is_killed(false);
}

/// Used descriptors are written over those of requests that are still in flight, which the table alone has then.
#[test]
fn fio_finds_all_that_it_has_written_with_a_packed_ring_though_its_daemon_is_killed_and_started_again() {
    fio_finds_all_though_its_daemon_is_killed(true);
}
