//! Devices that are not on every board, each with what it is asked while the guest runs and what has come of that. What the guest does
//! with them is in tests/guest/root-init: it prints a line, and the host acts on it.
//!
//! To add one: a file with a function that plugs it in, an entry in [`TABLE`], and a part of root-init.

mod balloon;
mod memory;
mod pmem;

use std::{
    error::Error,
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use devisor::{
    bus::Bus,
    event_loop::EventLoop,
    virtio::{VirtioDevice, VirtioTransport},
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
    pub persistent: Window,
    /// The place of the device with this number, of which the two on every board have 0 and 1; whose line has this name, and for
    /// which the guest has that one.
    pub place: fn(u8, &'static str, &'static str) -> Place,
}

/// Plugs a device in. What it is to the board, and to whoever wants to know what came of it.
pub type Plug = fn(Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>>;

/// The number of each, its names, and what plugs it in.
const TABLE: [(u8, &str, &str, Plug); 3] = [
    (2, "virtio-balloon", "virtio2", balloon::plug),
    (3, "virtio-mem", "virtio3", memory::plug),
    (4, "virtio-pmem", "virtio4", pmem::plug),
];

impl DeviceSet {
    /// By the names that the command line has for them.
    pub const NAMES: [(&str, Self); 2] = [("few", Self::Few), ("all", Self::All)];

    /// Where each that is not on every board is, and what plugs it in.
    pub fn more(self, room: &Room) -> Vec<(Place, Plug)> {
        let all = TABLE.map(|(number, name, guest_name, plug)| ((room.place)(number, name, guest_name), plug));
        match self {
            Self::Few => Vec::new(),
            Self::All => all.into(),
        }
    }

    /// Where all virtio devices are, with those that are on every board.
    pub fn places(self, always: [Place; 2], room: &Room) -> Vec<Place> {
        let more = self.more(room).into_iter().map(|(place, _)| place);
        always.into_iter().chain(more).collect()
    }

    /// The memory of a machine whose disk is this: what is persistent of it is a file.
    pub fn memory(self, room: &Room, disk: &Path) -> Result<Ram, Box<dyn Error>> {
        match self {
            Self::Few => Ram::new(&[room.ram], None),
            Self::All => {
                let file = pmem::persistent_file(disk, room.persistent.len)?;
                Ram::new(&[room.ram, room.pluggable, room.persistent], Some(file))
            }
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

const MIB: u64 = 1 << 20;

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
