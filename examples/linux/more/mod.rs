//! Devices that are not on every board, each with what it is asked while the guest runs and what has come of that. What the guest does
//! with them is in tests/guest/root-init: it prints a line, and the host acts on it.
//!
//! To add one: a file with a function that plugs it in, an entry in [`TABLE`], and a part of root-init.

mod balloon;
mod console;
#[cfg(feature = "vhost-user")]
mod files;
mod folder;
pub mod iommu;
mod memory;
mod net;
mod network;
mod pmem;
mod vsock;

use std::{
    error::Error,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use devisor::{
    bus::Bus,
    event_loop::EventLoop,
    virtio::{
        VirtioDevice, VirtioTransport,
        entropy::{SeededRandom, Source},
    },
};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{
    ram::Ram,
    verdict::{Check, line},
    virtio::{Place, Plugged, Slots, Window},
};

/// Which devices there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSet {
    /// The disk and the entropy device.
    Few,
    All,
}

/// What a board has for them.
pub struct Room {
    /// The guest's memory, and what it may have besides.
    pub ram: Window,
    pub pluggable: Window,
    /// Or why there can be no persistent memory.
    pub persistent: Result<Window, &'static str>,
    /// The place of the device with this number, of which the two on every board have 0 and 1, and whose line has this name.
    pub place: fn(u8, &'static str) -> Place,
}

/// Plugs a device in. What it is to the board, and to whoever wants to know what came of it.
pub type Plug = fn(Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>>;

/// A device: the name under which its line is recorded, what plugs it in, and whether what it needs of the host is here.
struct Row {
    name: &'static str,
    plug: Plug,
    is_possible: fn(&Room) -> Result<(), String>,
}

const fn row(name: &'static str, plug: Plug) -> Row {
    let is_possible = |_: &Room| Ok(());
    Row {
        name,
        plug,
        is_possible,
    }
}

const TABLE: [Row; 7 + cfg!(feature = "vhost-user") as usize] = [
    row("virtio-balloon", balloon::plug),
    row("virtio-mem", memory::plug),
    Row {
        name: "virtio-pmem",
        plug: pmem::plug,
        is_possible: |room| room.persistent.map(|_| ()).map_err(str::to_owned),
    },
    row("virtio-console", console::plug),
    row("virtio-vsock", vsock::plug),
    Row {
        name: "virtio-net on passt",
        plug: net::plug_passt,
        is_possible: |_| net::is_passt_here(),
    },
    Row {
        name: "virtio-net on TAP",
        plug: net::plug_tap,
        is_possible: |_| net::is_tap_here(),
    },
    #[cfg(feature = "vhost-user")]
    Row {
        name: "virtio-fs by virtiofsd",
        plug: files::plug,
        is_possible: |_| files::is_virtiofsd_here(),
    },
];

impl DeviceSet {
    /// By the names that the command line has for them.
    pub const NAMES: [(&str, Self); 2] = [("few", Self::Few), ("all", Self::All)];

    /// Where each that is not on every board is, and what plugs it in.
    pub fn more(self, room: &Room) -> Vec<(Place, Plug)> {
        let rows = match self {
            Self::Few => &[][..],
            Self::All => &TABLE,
        };
        let possible = rows.iter().filter(|row| (row.is_possible)(room).is_ok());
        let places = (2..).zip(possible);
        places
            .map(|(number, row)| ((room.place)(number, row.name), row.plug))
            .collect()
    }

    /// Which are left out, and why.
    pub fn skipped(self, room: &Room) -> Vec<String> {
        let rows = match self {
            Self::Few => &[][..],
            Self::All => &TABLE,
        };
        let why = |row: &Row| Some(format!("{}: {}", row.name, (row.is_possible)(room).err()?));
        rows.iter().filter_map(why).collect()
    }

    /// Where all virtio devices are, with those that are on every board.
    pub fn places(self, always: [Place; 2], room: &Room) -> Vec<Place> {
        let more = self.more(room).into_iter().map(|(place, _)| place);
        always.into_iter().chain(more).collect()
    }

    /// The memory of a machine: what is persistent of it is a file beside this one.
    pub fn memory(self, room: &Room, beside: &Path) -> Result<Ram, Box<dyn Error>> {
        match self {
            Self::Few => Ram::private(&[room.ram]),
            Self::All => match room.persistent {
                Err(_) => Ram::shared(&[room.ram, room.pluggable], None),
                Ok(persistent) => {
                    let file = pmem::persistent_file(beside, persistent.len)?;
                    Ram::shared(&[room.ram, room.pluggable, persistent], Some(file))
                }
            },
        }
    }

    /// What the guest's kernel has to be told.
    pub fn command_line(self) -> &'static str {
        match self {
            Self::Few => "",
            // What is plugged is used at once, for what can be moved away again.
            Self::All => " memhp_default_state=online_movable",
        }
    }
}

/// What a device is plugged into.
pub struct Around<'a> {
    pub place: Place,
    pub room: &'a Room,
    pub slots: &'a Slots<'a>,
    pub memory: &'a Arc<GuestMemoryMmap>,
    pub events: &'a EventLoop,
    pub bus: &'a mut Bus,
    /// What is in the persistent memory.
    pub persistent: Option<&'a File>,
}

impl Around<'_> {
    fn plug<D: VirtioDevice + 'static>(self, device: D) -> Result<Arc<Plugged<D>>, Box<dyn Error>> {
        let plugged = self
            .slots
            .plug(&self.place, device, self.memory, self.events, self.bus)?;
        Ok(Arc::new(plugged))
    }
}

/// What a device has to do with a run.
pub struct More {
    hear: Box<Hear>,
    checks: Vec<(&'static str, Box<CheckOf>)>,
}

type Hear = dyn Fn(&str) -> Result<(), Box<dyn Error>>;
type CheckOf = dyn Fn(&str) -> Check;

impl More {
    /// The guest has printed a line.
    pub fn hear(&self, line: &str) -> Result<(), Box<dyn Error>> {
        match line.strip_prefix("guest: ") {
            Some(line) => (self.hear)(line),
            None => Ok(()),
        }
    }

    pub fn check(&self, console: &str) -> Vec<(&'static str, Check)> {
        self.checks
            .iter()
            .map(|(what, check)| (*what, check(console)))
            .collect()
    }
}

/// What the host measured when the guest printed a line, by what the line begins with.
#[derive(Clone, Default)]
struct Measured(Arc<Mutex<Vec<(&'static str, u64)>>>);

impl Measured {
    fn note(&self, when: &'static str, what: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((when, what));
    }

    fn get(&self, when: &str) -> Result<u64, String> {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = notes.iter().find(|(at, _)| *at == when);
        found
            .map(|(_, what)| *what)
            .ok_or_else(|| format!("the guest did not come to {when:?}"))
    }
}

/// What the host does at its end of a device, on a thread of its own, while the guest runs.
struct Task<T>(Mutex<Option<mpsc::Receiver<io::Result<T>>>>);

impl<T> Default for Task<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Send + 'static> Task<T> {
    fn begin(&self, f: impl FnOnce() -> io::Result<T> + Send + 'static) {
        let (done, result) = mpsc::channel();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        thread::spawn(move || done.send(f()));
    }

    /// The guest has come to its end, so this is done, or never will be.
    fn result(&self) -> Result<T, String> {
        let result = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = result.ok_or("the guest did not come to it")?;
        let result = result.recv_timeout(Duration::from_secs(5));
        result
            .map_err(|_| "the host waits for the guest")?
            .map_err(|error| error.to_string())
    }
}

const MIB: u64 = 1 << 20;

/// Bytes that hang on `seed` alone.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    SeededRandom::new(seed)
        .fill(&mut bytes)
        .expect("this source does not fail");
    bytes
}

/// What `xxhsum` says of these bytes, of which there are a multiple of 32: XXH64, which is the cheapest that guests have.
pub fn xxh64(bytes: &[u8]) -> String {
    const A: u64 = 0x9e37_79b1_85eb_ca87;
    const B: u64 = 0xc2b2_ae3d_27d4_eb4f;
    const C: u64 = 0x1656_67b1_9e37_79f9;
    const D: u64 = 0x85eb_ca77_c2b2_ae63;
    let round = |lane: u64, word: u64| lane.wrapping_add(word.wrapping_mul(B)).rotate_left(31).wrapping_mul(A);
    let mut lanes = [A.wrapping_add(B), B, 0, A.wrapping_neg()];
    for stripe in bytes.as_chunks::<32>().0 {
        for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks().0) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }
    let rotated = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, by)| lane.rotate_left(by));
    let sum = rotated.fold(0, u64::wrapping_add);
    let merge = |hash: u64, lane: &u64| (hash ^ round(0, *lane)).wrapping_mul(A).wrapping_add(D);
    let mut hash = lanes.iter().fold(sum, merge).wrapping_add(bytes.len() as u64);
    hash = (hash ^ hash >> 33).wrapping_mul(B);
    hash = (hash ^ hash >> 29).wrapping_mul(C);
    format!("{:016x}", hash ^ hash >> 32)
}

/// The first number of the rest of a line of the guest's: of KiB, in bytes.
fn kib(console: &str, beginning: &str) -> Result<u64, String> {
    let rest = line(console, beginning)?;
    let number = rest.split(' ').next().and_then(|number| number.parse::<u64>().ok());
    number
        .map(|kib| kib << 10)
        .ok_or_else(|| format!("{beginning:?} is followed by {rest:?}"))
}

/// How many bytes of a part of the guest's memory are in the host's, by `mincore(2)`.
fn resident(memory: &GuestMemoryMmap, Window { base, len }: Window) -> Result<u64, Box<dyn Error>> {
    let host = memory.get_host_address(GuestAddress(base))?;
    let mut pages = vec![0_u8; (len / 4096) as usize];
    // SAFETY: the window is mapped, and there is a byte for each of its pages.
    if unsafe { libc::mincore(host.cast(), len as usize, pages.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(pages.iter().filter(|&&page| page & 1 != 0).count() as u64 * 4096)
}

#[cfg(test)]
mod tests {
    use super::xxh64;

    #[test]
    fn checksums_are_those_of_xxhsum() {
        assert_eq!(xxh64(&vec![0; 16 << 20]), "412f1e415ee2d80b");
    }
}
