//! A driver of file system devices: FUSE requests (`linux/fuse.h`) in a queue, one at a time.

use std::collections::BTreeMap;

use devisor::virtio::remote::Remote;

use crate::{
    daemon::work_until,
    machine::Machine,
    ring::{readable, writable},
};

/// Requests, beside the queue of those that are urgent.
const QUEUE: u16 = 1;
const ROOT: u64 = 1;
const OUT_HEADER: usize = 16;
/// `struct fuse_entry_out`.
const ENTRY: usize = 128;
/// `struct fuse_open_out`.
const OPEN: usize = 16;

const LOOKUP: u32 = 1;
const SETATTR: u32 = 4;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const OPEN_FILE: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const CREATE: u32 = 35;

#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub node: u64,
    pub size: u64,
    pub is_directory: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Opened {
    pub node: u64,
    pub handle: u64,
}

/// A request under way.
pub struct Asked {
    answer: u64,
    room: usize,
}

pub struct Files {
    pub machine: Machine<Remote>,
    unique: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn named(mut bytes: Vec<u8>, name: &str) -> Vec<u8> {
    bytes.extend(name.as_bytes());
    bytes.push(0);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn entry(bytes: &[u8]) -> Entry {
    let mode = word(bytes, 40 + 60);
    Entry {
        node: long(bytes, 0),
        size: long(bytes, 40 + 8),
        is_directory: mode & 0o170_000 == 0o40_000,
    }
}

impl Files {
    /// A device whose driver has started it and agreed on a version.
    pub fn mount(machine: Machine<Remote>) -> Self {
        let mut files = Self { machine, unique: 2 };
        let version = words(&[7, 31, 0, 0]);
        let answer = files.ask(INIT, ROOT, &version, 64).unwrap();
        assert_eq!(word(&answer, 0), 7, "the major version");
        files
    }

    /// The same driver with a device that has moved.
    pub fn moved(self, machine: impl FnOnce(Machine<Remote>) -> Machine<Remote>) -> Self {
        Self {
            machine: machine(self.machine),
            unique: self.unique,
        }
    }

    pub fn begin(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> Asked {
        self.unique += 2;
        let mut header = words(&[(40 + body.len()) as u32, opcode]);
        header.extend(self.unique.to_le_bytes());
        header.extend(node.to_le_bytes());
        // Of root, process 1.
        header.extend(words(&[0, 0, 1, 0]));
        header.extend(body);
        let machine = &mut self.machine;
        let (at, answer) = (
            machine.place(QUEUE, header.len()),
            machine.place(QUEUE, OUT_HEADER + room),
        );
        machine.fill(at, &header);
        machine.fill(answer, &[0; OUT_HEADER]);
        let out = [
            readable(at, header.len() as u32),
            writable(answer, OUT_HEADER as u32),
            writable(answer + OUT_HEADER as u64, room as u32),
        ];
        machine.offer(QUEUE, if room == 0 { &out[..2] } else { &out });
        Asked { answer, room }
    }

    /// What is answered, or the number of an error.
    pub fn finish(&mut self, asked: &Asked) -> Result<Vec<u8>, i32> {
        let answered = work_until(&mut self.machine, |machine| {
            word(&machine.bytes(asked.answer, 4), 0) != 0
        });
        let failures = self.machine.with_device(|device| device.host_failures());
        assert!(answered, "not answered; failures: {failures:?}");
        // The length is there before the request is used.
        let queue = usize::from(QUEUE);
        assert!(work_until(&mut self.machine, |machine| {
            machine.rings[queue].used_idx() == machine.rings[queue].avail_idx()
        }));
        let header = self.machine.bytes(asked.answer, OUT_HEADER);
        let len = (word(&header, 0) as usize).saturating_sub(OUT_HEADER);
        assert!(len <= asked.room);
        match word(&header, 4) as i32 {
            0 => Ok(self.machine.bytes(asked.answer + OUT_HEADER as u64, len)),
            error => Err(-error),
        }
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> Result<Vec<u8>, i32> {
        let asked = self.begin(opcode, node, body, room);
        self.finish(&asked)
    }

    pub fn look_up(&mut self, node: u64, name: &str) -> Result<Entry, i32> {
        let answer = self.ask(LOOKUP, node, &named(Vec::new(), name), ENTRY)?;
        Ok(entry(&answer))
    }

    pub fn make_directory(&mut self, node: u64, name: &str) -> Result<Entry, i32> {
        let body = named(words(&[0o755, 0o022]), name);
        Ok(entry(&self.ask(MKDIR, node, &body, ENTRY)?))
    }

    pub fn create(&mut self, node: u64, name: &str) -> Result<Opened, i32> {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let body = named(words(&[flags as u32, 0o100_644, 0o022, 0]), name);
        let answer = self.ask(CREATE, node, &body, ENTRY + OPEN)?;
        Ok(Opened {
            node: long(&answer, 0),
            handle: long(&answer, ENTRY),
        })
    }

    pub fn open(&mut self, node: u64, directory: bool) -> Result<Opened, i32> {
        let opcode = if directory { OPENDIR } else { OPEN_FILE };
        let flags = if directory { libc::O_RDONLY } else { libc::O_RDWR };
        let answer = self.ask(opcode, node, &words(&[flags as u32, 0]), OPEN)?;
        let handle = long(&answer, 0);
        Ok(Opened { node, handle })
    }

    /// `struct fuse_read_in`, which `fuse_write_in` is too.
    fn at(file: Opened, offset: u64, len: usize) -> Vec<u8> {
        let mut body = [file.handle, offset].map(u64::to_le_bytes).concat();
        body.extend(words(&[len as u32, 0, 0, 0, 0, 0]));
        body
    }

    pub fn begin_read(&mut self, file: Opened, offset: u64, len: usize) -> Asked {
        self.begin(READ, file.node, &Self::at(file, offset, len), len)
    }

    pub fn read(&mut self, file: Opened, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let asked = self.begin_read(file, offset, len);
        self.finish(&asked)
    }

    pub fn write(&mut self, file: Opened, offset: u64, data: &[u8]) -> Result<usize, i32> {
        let mut body = Self::at(file, offset, data.len());
        body.extend(data);
        let answer = self.ask(WRITE, file.node, &body, 8)?;
        Ok(word(&answer, 0) as usize)
    }

    pub fn set_size(&mut self, file: Opened, size: u64) -> Result<(), i32> {
        const FATTR_SIZE: u32 = 1 << 3;
        const FATTR_FH: u32 = 1 << 6;
        let mut body = words(&[FATTR_SIZE | FATTR_FH, 0]);
        body.extend([file.handle, size].map(u64::to_le_bytes).concat());
        body.resize(88, 0);
        self.ask(SETATTR, file.node, &body, 104).map(drop)
    }

    pub fn unlink(&mut self, node: u64, name: &str) -> Result<(), i32> {
        self.ask(UNLINK, node, &named(Vec::new(), name), 0).map(drop)
    }

    pub fn close(&mut self, file: Opened) -> Result<(), i32> {
        let mut body = file.handle.to_le_bytes().to_vec();
        body.resize(24, 0);
        self.ask(RELEASE, file.node, &body, 0).map(drop)
    }

    /// The names in a directory.
    pub fn names(&mut self, node: u64) -> Vec<String> {
        let directory = self.open(node, true).unwrap();
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let body = Self::at(directory, offset, 4096);
            let answer = self.ask(READDIR, node, &body, 4096).unwrap();
            if answer.is_empty() {
                break;
            }
            let mut at = 0;
            while at + 24 <= answer.len() {
                offset = long(&answer, at + 8);
                let len = word(&answer, at + 16) as usize;
                let name = String::from_utf8(answer[at + 24..at + 24 + len].to_vec()).unwrap();
                if name != "." && name != ".." {
                    names.push(name);
                }
                at += (24 + len).next_multiple_of(8);
            }
        }
        names.sort();
        names
    }

    /// All files below a directory, by their paths, with what is in them.
    pub fn tree(&mut self) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        let mut directories = vec![(ROOT, String::new())];
        while let Some((node, path)) = directories.pop() {
            for name in self.names(node) {
                let found = self.look_up(node, &name).unwrap();
                let path = format!("{path}/{name}");
                if found.is_directory {
                    directories.push((found.node, path));
                    continue;
                }
                let file = self.open(found.node, false).unwrap();
                let mut bytes = Vec::new();
                while (bytes.len() as u64) < found.size {
                    let read = self.read(file, bytes.len() as u64, 32 << 10).unwrap();
                    assert!(!read.is_empty());
                    bytes.extend(read);
                }
                self.close(file).unwrap();
                files.insert(path, bytes);
            }
        }
        files
    }

    /// Copies these files in.
    pub fn copy_in(&mut self, files: &BTreeMap<String, Vec<u8>>) {
        for (path, bytes) in files {
            let mut node = ROOT;
            let mut parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
            let name = parts.pop().unwrap();
            for part in parts {
                node = match self.look_up(node, part) {
                    Ok(entry) => entry.node,
                    Err(_) => self.make_directory(node, part).unwrap().node,
                };
            }
            let file = self.create(node, name).unwrap();
            for (at, piece) in bytes.chunks(24 << 10).enumerate() {
                let offset = (at * (24 << 10)) as u64;
                assert_eq!(self.write(file, offset, piece), Ok(piece.len()));
            }
            self.close(file).unwrap();
        }
    }

    pub fn root(&self) -> u64 {
        ROOT
    }
}
