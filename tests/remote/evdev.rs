//! An input device's file where the kernel has none: in a file system of our own (`linux/fuse.h`), which answers what is asked of it.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

/// `EVIOCGNAME`, by the number of the request alone (`linux/input.h`).
const GET_NAME: u32 = 0x4506;
/// `EVIOCGBIT`, of the types of events; and of keys.
const GET_TYPES: u32 = 0x4520;
const GET_KEYS: u32 = 0x4521;
/// `struct input_event`.
const EVENT: usize = 24;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const IOCTL: u32 = 39;
const POLL: u32 = 40;
const BATCH_FORGET: u32 = 42;
const NOTIFY_POLL: i32 = 1;

#[derive(Default)]
struct Waiting {
    events: Vec<u8>,
    /// Who waits for them, as the kernel has named it.
    poll: Option<u64>,
}

/// It goes with this.
pub struct Evdev {
    folder: PathBuf,
    file: Arc<File>,
    waiting: Arc<Mutex<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

fn halves(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let mode = if node == 1 { 0o40_755 } else { 0o100_666 };
    let mut bytes = node.to_ne_bytes().to_vec();
    bytes.resize(48, 0);
    bytes.extend(halves(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]));
    bytes
}

/// `error` is negative, or what a notice is about.
fn send(mut file: &File, error: i32, unique: u64, body: &[u8]) -> io::Result<()> {
    let mut bytes = halves(&[16 + body.len() as u32, error as u32]);
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(body);
    file.write_all(&bytes)
}

impl Evdev {
    /// The device with this name, as a file in a folder. It takes who may mount.
    pub fn mount(folder: &Path, name: &'static str) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let text = |text: String| CString::new(text).unwrap();
        let target = text(folder.display().to_string());
        let options = text(format!("fd={},rootmode=40000,user_id=0,group_id=0", file.as_raw_fd()));
        // SAFETY: all of them are strings that outlive the call.
        let mounted = unsafe {
            libc::mount(
                c"evdev".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        if mounted != 0 {
            return Err(io::Error::last_os_error());
        }
        let (file, waiting) = (Arc::new(file), Arc::<Mutex<Waiting>>::default());
        let thread = thread::spawn({
            let (file, waiting) = (Arc::clone(&file), Arc::clone(&waiting));
            move || serve(&file, &waiting, name)
        });
        Ok(Self {
            folder: folder.into(),
            file,
            waiting,
            thread: Some(thread),
        })
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join("event0")
    }

    /// These come from it: type, code and value of each.
    pub fn emit(&self, events: &[(u16, u16, u32)]) {
        let mut waiting = self.waiting.lock().unwrap();
        for (kind, code, value) in events {
            let mut event = vec![0; 16];
            event.extend([kind, code].map(|number| number.to_ne_bytes()).concat());
            event.extend(value.to_ne_bytes());
            assert_eq!(event.len(), EVENT);
            waiting.events.extend(event);
        }
        if let Some(poll) = waiting.poll.take() {
            send(&self.file, NOTIFY_POLL, 0, &poll.to_ne_bytes()).unwrap();
        }
    }
}

impl Drop for Evdev {
    fn drop(&mut self) {
        let target = CString::new(self.folder.display().to_string()).unwrap();
        // SAFETY: a string that outlives the call.
        let unmounted = unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH | libc::MNT_FORCE) };
        // Whoever has it open keeps it; the thread ends with them then.
        if let Some(thread) = self.thread.take().filter(|_| unmounted == 0 && !thread::panicking()) {
            let _ = thread.join();
        }
    }
}

fn serve(mut file: &File, waiting: &Mutex<Waiting>, name: &str) {
    let mut request = vec![0; 1 << 17];
    loop {
        match file.read(&mut request) {
            Ok(40..) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => return,
        }
        let (opcode, unique, node) = (word(&request, 4), long(&request, 8), long(&request, 16));
        let body = &request[40..];
        let answer = match opcode {
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            INIT => {
                let mut body = halves(&[7, 31, 1 << 16, 0, 0, 1 << 16, 1]);
                body.resize(64, 0);
                Ok(body)
            }
            LOOKUP => {
                let mut body = 2_u64.to_ne_bytes().to_vec();
                body.resize(16, 0);
                body.extend([1_u64, 1].map(u64::to_ne_bytes).concat());
                body.resize(40, 0);
                body.extend(attributes(2));
                Ok(body)
            }
            GETATTR => {
                let mut body = 1_u64.to_ne_bytes().to_vec();
                body.resize(16, 0);
                body.extend(attributes(node));
                Ok(body)
            }
            // Read past the page cache.
            OPEN => Ok(halves(&[1, 0, 1, 0])),
            READ => {
                let mut waiting = waiting.lock().unwrap();
                let len = waiting.events.len().min(word(body, 16) as usize);
                Ok(waiting.events.drain(..len).collect())
            }
            IOCTL => {
                let (asked, room) = (word(body, 12), word(body, 28) as usize);
                // What it is called, that it has the first keys there are, and nothing of all others.
                let mut answer = match asked & 0xffff {
                    GET_NAME => [name.as_bytes(), &[0]].concat(),
                    // EV_SYN and EV_KEY.
                    GET_TYPES => vec![3],
                    GET_KEYS => vec![0xff; 8],
                    _ => Vec::new(),
                };
                let len = answer.len();
                answer.resize(room, 0);
                let mut body = halves(&[len as u32, 0, 0, 0]);
                body.extend(answer);
                Ok(body)
            }
            POLL => {
                let mut waiting = waiting.lock().unwrap();
                waiting.poll = Some(long(body, 8));
                let ready = if waiting.events.is_empty() {
                    0
                } else {
                    libc::POLLIN as u32
                };
                Ok(halves(&[ready, 0]))
            }
            RELEASE | FLUSH => Ok(Vec::new()),
            _ => Err(-libc::ENOSYS),
        };
        let sent = match answer {
            Ok(body) => send(file, 0, unique, &body),
            Err(error) => send(file, error, unique, &[]),
        };
        // A request may have been given up meanwhile.
        if sent.is_err_and(|error| error.raw_os_error() != Some(libc::ENOENT)) {
            return;
        }
    }
}
