//! A guest of QEMU that goes from one `devisord` to another, while it writes.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    daemon::{folder, wait_for},
    guests::{Guest, chardev, device, devisord_with, image, qemu_command},
};

/// What QEMU's monitor says to a command.
fn monitor(path: &Path, command: &str) -> String {
    let mut socket = UnixStream::connect(path).expect("a monitor");
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut said = String::new();
    let mut read = |socket: &mut UnixStream| {
        let mut piece = [0; 4096];
        while let Ok(some @ 1..) = socket.read(&mut piece) {
            said += &String::from_utf8_lossy(&piece[..some]);
        }
    };
    read(&mut socket);
    socket.write_all(format!("{command}\n").as_bytes()).unwrap();
    read(&mut socket);
    said
}

#[test]
fn a_guest_of_qemu_goes_from_one_daemon_to_another_in_the_middle_of_its_writes() {
    let begun = Instant::now();
    let limit = Duration::from_secs(180);
    for packed in [false, true] {
        let folder = folder(&format!("migration-{packed}"));
        let disk = folder.join("disk");
        image(&disk, 16 << 20);
        let mut arguments = vec!["blk", "--image", disk.to_str().unwrap()];
        if packed {
            arguments.push("--packed");
        }
        // It goes on until it is told that it has moved, on the disk.
        let script = "round=0; until [ \"$(busybox dd if=/dev/vda bs=4 skip=3932160 count=1 2>/dev/null)\" = over ]; do\n\
            round=$((round+1))\n\
            for job in 0 1 2; do (busybox dd if=/dev/urandom of=/run/f$job bs=64k count=16 2>/dev/null\n\
            busybox dd if=/run/f$job of=/dev/vda bs=4k seek=$((job*1024)) conv=fsync 2>/dev/null || echo guest: write failed) & done\n\
            wait; echo 3 > /proc/sys/vm/drop_caches\n\
            for job in 0 1 2; do busybox dd if=/dev/vda bs=64k skip=$((job*64)) count=16 2>/dev/null | busybox cmp - /run/f$job || echo guest: wrong; done\n\
            echo guest: round $round; done\necho guest: end\n";
        let mut daemons = Vec::new();
        let mut sides = Vec::new();
        for side in ["from", "to"] {
            let side = folder.join(side);
            fs::create_dir_all(&side).unwrap();
            let (socket, control) = (side.join("s"), side.join("m"));
            let Some(daemon) = devisord_with(&arguments, &socket) else {
                return;
            };
            daemons.push(daemon);
            let on = if packed { "on" } else { "off" };
            let devices = [
                chardev("c0", &socket, ""),
                device(&format!("vhost-user-blk-pci,chardev=c0,num-queues=1,packed={on}")),
            ]
            .concat();
            let Some(mut command) = qemu_command(&side, "x86_64", "", &devices, script) else {
                return;
            };
            command.args(["-monitor", &format!("unix:{},server=on,wait=off", control.display())]);
            sides.push((command, control));
        }
        let incoming = format!("unix:{}", folder.join("migration").display());
        let [(from, from_control), (mut to, to_control)] = <[_; 2]>::try_from(sides).ok().unwrap();
        let mut from = Guest::start(from);
        from.assert_says("guest: up", Duration::from_secs(100));
        to.args(["-incoming", &incoming]);
        let mut to = Guest::start(to);
        wait_for(&to_control);
        from.assert_says("guest: round 1", Duration::from_secs(60));
        thread::sleep(Duration::from_millis(300));
        monitor(&from_control, "migrate_set_parameter max-bandwidth 4g");
        monitor(&from_control, "migrate_set_parameter downtime-limit 1000");
        monitor(&from_control, &format!("migrate -d {incoming}"));
        loop {
            let status = monitor(&from_control, "info migrate");
            if status.contains("Migration status: completed") {
                break;
            }
            assert!(!status.contains("failed"), "{status}\n{}\n{}", from.all, to.all);
            assert!(
                begun.elapsed() < limit,
                "it does not come to its end: {status}\n{}",
                from.all
            );
        }
        let told = fs::OpenOptions::new().write(true).open(&disk).unwrap();
        told.write_all_at(b"over", 4 * 3_932_160).unwrap();
        to.assert_says("guest: end", limit.saturating_sub(begun.elapsed()));
        assert!(!from.until("guest: end", Duration::from_millis(100)));
        for side in [&from.all, &to.all] {
            assert!(!side.contains("guest: wrong") && !side.contains("failed"), "{side}");
        }
        assert!(to.all.contains("guest: round"), "{}", to.all);
        let _ = fs::remove_dir_all(&folder);
    }
}
