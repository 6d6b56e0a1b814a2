//! virtiofsd, the one in Rust or that of QEMU, as a file system device: a tree copied in and out, random accesses beside a model, and moved.

use std::{collections::BTreeMap, fs, path::Path};

use devisor::virtio::{
    DeviceId,
    remote::{BackEndState, ConfigSpace, RemoteOptions},
};

use crate::{
    daemon::{Daemon, Place, device, device_in, machine},
    fuse::Files,
    machine::{BUSES, Bus, VERSION_1},
};

/// QEMU's of before 8.0, which Debian has, is last.
const PROGRAMS: [&str; 4] = [
    "virtiofsd",
    "/usr/libexec/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/libexec/qemu/virtiofsd",
];

fn start(place: &Place, socket: &str) -> Option<Daemon> {
    let program = Daemon::find(&PROGRAMS)?;
    let shared = place.text("shared");
    fs::create_dir_all(&shared).unwrap();
    let socket = place.join(socket);
    let path = format!("--socket-path={}", socket.display());
    let arguments = match program.components().any(|part| part.as_os_str() == "qemu") {
        true => vec![path, "-o".into(), format!("source={shared},sandbox=chroot")],
        false => ["--shared-dir", &shared, "--sandbox", "none"]
            .map(String::from)
            .into_iter()
            .chain([path])
            .collect(),
    };
    Some(Daemon::start(&program, &arguments, &socket))
}

/// The tag and the number of request queues are ours to say.
fn options() -> RemoteOptions {
    let mut options = RemoteOptions::new(DeviceId(26));
    let mut config = b"shared".to_vec();
    config.resize(36, 0);
    config.extend(1_u32.to_le_bytes());
    options.config = ConfigSpace::Own(config);
    options
}

fn mount(place: &Place, bus: Bus) -> Files {
    let (device, memory) = device(place.socket(), options());
    let mut machine = machine(bus, device, &memory);
    machine.start(VERSION_1);
    assert_eq!(machine.read_config(0, 7), b"shared\0");
    Files::mount(machine)
}

/// A number after another, the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % end
    }
}

fn contents(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| (at * 31 + seed * 7 + (at >> 8)) as u8)
        .collect()
}

/// Files in folders, some of them empty, some long.
fn some_tree() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (number, len) in (0..).zip([0, 1, 4095, 4096, 4097, 70_000, 200_000]) {
        let folder = ["", "/a", "/a/b", "/c"][number as usize % 4];
        files.insert(format!("{folder}/file-{number}"), contents(number, len));
    }
    files
}

fn tree_on_host(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = format!("/{}", path.strip_prefix(root).unwrap().display());
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

#[test]
fn a_tree_that_the_guest_copies_into_virtiofsd_is_on_the_host_and_reads_back() {
    for bus in BUSES {
        let place = Place::new(&format!("files-{bus:?}"));
        let Some(_daemon) = start(&place, "socket") else { return };
        let mut files = mount(&place, bus);
        let tree = some_tree();
        files.copy_in(&tree);
        assert_eq!(tree_on_host(&place.join("shared")), tree);
        fs::write(place.join("shared/a/of-host"), b"hello").unwrap();
        let mut more = tree.clone();
        more.insert("/a/of-host".into(), b"hello".to_vec());
        assert_eq!(files.tree(), more);
        let root = files.root();
        let nothing = files.look_up(root, "nothing");
        // A server may say that there is none in an answer without a node.
        assert!(nothing.is_err_and(|error| error == libc::ENOENT) || nothing.is_ok_and(|entry| entry.node == 0));
        files.unlink(root, "file-0").unwrap();
        assert!(!place.join("shared/file-0").exists());
        let failures = files.machine.with_device(|device| device.host_failures());
        assert_eq!(failures.count, 0, "{failures:?}");
    }
}

#[test]
fn random_accesses_to_a_file_of_virtiofsd_do_what_they_do_to_a_model() {
    let place = Place::new("files-random");
    let Some(_daemon) = start(&place, "socket") else { return };
    let mut files = mount(&place, Bus::Pci);
    let root = files.root();
    let file = files.create(root, "model").unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut random = Random(1);
    for round in 0..2000 {
        let at = random.below(100_000) as usize;
        let len = 1 + random.below(16_000) as usize;
        match random.below(10) {
            0..4 => {
                let data = contents(round, len);
                assert_eq!(files.write(file, at as u64, &data), Ok(len));
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&data);
            }
            4..9 => {
                let expected: Vec<_> = model.iter().skip(at).take(len).copied().collect();
                assert_eq!(files.read(file, at as u64, len).unwrap(), expected, "round {round}");
            }
            _ => {
                files.set_size(file, at as u64).unwrap();
                model.resize(at, 0);
            }
        }
    }
    files.close(file).unwrap();
    assert_eq!(fs::read(place.join("shared/model")).unwrap(), model);
}

#[test]
fn open_files_of_virtiofsd_move_to_another_in_the_middle_of_reads() {
    let place = Place::new("files-moved");
    let Some(_daemon) = start(&place, "socket") else { return };
    let mut files = mount(&place, Bus::Mmio);
    let tree = some_tree();
    files.copy_in(&tree);
    let root = files.root();
    let long = files
        .look_up(root, "c")
        .and_then(|folder| files.look_up(folder.node, "file-3"));
    let long = files.open(long.unwrap().node, false).unwrap();
    let created = files.create(root, "created").unwrap();
    assert_eq!(files.write(created, 0, b"before"), Ok(6));

    if files.machine.with_device(|device| device.start_dirty_log()).is_err() {
        crate::skip::skipped("this virtiofsd does not log what it writes");
        return;
    }
    // The answers are in pages that were noted.
    assert_eq!(files.read(long, 0, 4096).unwrap(), tree["/c/file-3"]);
    let mut dirty = Vec::new();
    files
        .machine
        .with_device(|device| device.take_dirty(|page| dirty.push(page)));
    assert!(!dirty.is_empty());

    let asked: Vec<_> = (0..3).map(|at| files.begin_read(long, at * 1000, 1000)).collect();
    let state = files.machine.save();
    let devisor::virtio::DeviceState::Remote(of_device) = &state.device else {
        panic!("{:?}", state.device)
    };
    if of_device.back_end == BackEndState::None {
        crate::skip::skipped("this virtiofsd has no state to move (DEVICE_STATE)");
        return;
    }
    let Some(_other) = start(&place, "socket-2") else {
        return;
    };
    let mut files = files.moved(|old| {
        let device = device_in(&old.memory, place.join("socket-2"), &mut options());
        let moved = old.moved(device, &state);
        moved.transport().resume();
        moved.run();
        moved
    });
    for (at, asked) in asked.iter().enumerate() {
        let expected = &tree["/c/file-3"][at * 1000..at * 1000 + 1000];
        assert_eq!(files.finish(asked).unwrap(), expected);
    }
    assert_eq!(files.read(long, 3000, 4096).unwrap(), &tree["/c/file-3"][3000..]);
    assert_eq!(files.write(created, 6, b" and after"), Ok(10));
    assert_eq!(fs::read(place.join("shared/created")).unwrap(), b"before and after");
}
