//! Devices that are not on every board, each with what it is asked while the guest runs and what has come of that. What the guest does
//! with them is in tests/guest/root-init: it prints a line, and the host acts on it.
//!
//! To add one: a function that plugs it in, an entry in [`Devices::more`], and a part of root-init.

use std::{
    error::Error,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use devisor::{
    bus::Bus,
    event_loop::EventLoop,
    virtio::{
        VirtioDevice, VirtioTransport,
        balloon::{Balloon, BalloonOptions, Statistic},
        mem::{MemoryDevice, MemoryDeviceOptions},
        pmem::{Pmem, PmemOptions},
        reclaim::Madvise,
    },
};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::{
    board::{self, PERSISTENT, PLUGGABLE, RAM, Window},
    verdict::{Check, e2fsprogs, line},
    virtio::{Place, Plugged, Slots},
};

/// Which devices there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// The disk and the entropy device.
    Few,
    All,
}

/// Plugs a device in. What it is to the board, and to whoever wants to know what came of it.
pub type Plug = fn(Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>>;

impl Devices {
    /// By the names that the command line has for them.
    pub const NAMES: [(&str, Self); 2] = [("few", Self::Few), ("all", Self::All)];

    /// The table: where each is, and what plugs it in.
    pub fn more(self) -> Vec<(Place, Plug)> {
        let all: [(Place, Plug); 3] = [
            (board::place(2, "virtio-balloon", "virtio2"), balloon),
            (board::place(3, "virtio-mem", "virtio3"), memory_device),
            (board::place(4, "virtio-pmem", "virtio4"), pmem),
        ];
        match self {
            Self::Few => Vec::new(),
            Self::All => all.into(),
        }
    }

    /// Where all virtio devices are.
    pub fn places(self) -> Vec<Place> {
        let more = self.more().into_iter().map(|(place, _)| place);
        board::VIRTIO.into_iter().chain(more).collect()
    }

    /// What memory the machine has.
    pub fn memory(self) -> &'static [Window] {
        match self {
            Self::Few => &[RAM],
            Self::All => &[RAM, PLUGGABLE, PERSISTENT],
        }
    }
}

/// What a device is plugged into.
pub struct Around<'a> {
    pub place: Place,
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

// The balloon: 64 MiB are asked for, and given back.

const SQUEEZE: u64 = 64 * MIB;

fn balloon(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let memory = Arc::clone(around.memory);
    let reclaim = Madvise::new(Arc::clone(&memory)).within([RAM.base..RAM.base + RAM.len]);
    let balloon = around.plug(Balloon::new(reclaim, BalloonOptions::default())?)?;
    let (device, measured) = (balloon.transport(), Measured::default());

    let (heard, notes) = (Arc::clone(&balloon), measured.clone());
    let hear = move |line: &str| {
        if line == "squeeze me" {
            notes.note("before", resident(&memory, RAM)?);
            heard.change_config(|balloon| balloon.set_target((SQUEEZE / 4096) as u32));
        } else if line.starts_with("balloon took ") {
            notes.note("after", resident(&memory, RAM)?);
            notes.note("actual", u64::from(heard.with(|balloon| balloon.actual())) * 4096);
            heard.with(|balloon| balloon.request_statistics())?;
            heard.change_config(|balloon| balloon.set_target(0));
        }
        Ok(())
    };
    let inflates = {
        let (balloon, measured) = (Arc::clone(&balloon), measured.clone());
        move |console: &str| -> Check {
            let took = kib(console, "balloon took ")?;
            let (before, after, actual) = (measured.get("before")?, measured.get("after")?, measured.get("actual")?);
            let counters = balloon.with(|balloon| balloon.counters());
            let failures = balloon.with(|balloon| balloon.host_failures());
            let fell = before.saturating_sub(after);
            // What was reported free before it was put into the balloon had gone already.
            let gone = RAM.len - after;
            let how = format!(
                "the guest misses {} MiB, the host has {} MiB less than {}: {} since it asked",
                took / MIB,
                gone / MIB,
                RAM.len / MIB,
                fell / MIB
            );
            let right = took.abs_diff(SQUEEZE) < MIB
                && actual == SQUEEZE
                && gone >= SQUEEZE
                && counters.inflated >= SQUEEZE
                && counters.outside == 0
                && failures.count == 0;
            right
                .then(|| how.clone())
                .ok_or_else(|| format!("{how}; {actual} in the balloon, {counters:?}, {failures:?}"))
        }
    };
    let deflates = {
        let balloon = Arc::clone(&balloon);
        move |console: &str| -> Check {
            let back = kib(console, "balloon gave back ")?;
            let (actual, counters) = balloon.with(|balloon| (balloon.actual(), balloon.counters()));
            let how = format!("the guest has {} MiB again, {actual} pages are left in it", back / MIB);
            let right = back.abs_diff(SQUEEZE) < MIB && actual == 0 && counters.deflated >= SQUEEZE;
            right.then(|| how.clone()).ok_or(how)
        }
    };
    let reports = {
        let balloon = Arc::clone(&balloon);
        move |_: &str| -> Check {
            let counters = balloon.with(|balloon| balloon.counters());
            let how = format!(
                "{} MiB, of which {} went back",
                counters.reported / MIB,
                (counters.given_back.saturating_sub(counters.inflated)) / MIB
            );
            (counters.reported != 0).then(|| how.clone()).ok_or(how)
        }
    };
    let tells = move |console: &str| -> Check {
        let total = kib(console, "memory is ")?;
        let statistics = balloon
            .with(|balloon| balloon.statistics())
            .ok_or("it has told nothing")?;
        let told = statistics
            .get(Statistic::MemoryTotal)
            .ok_or("not how much memory there is")?;
        let free = statistics
            .get(Statistic::MemoryFree)
            .ok_or("not how much of it is free")?;
        let how = format!(
            "{} of {} MiB are free, told {} times",
            free / MIB,
            told / MIB,
            statistics.count
        );
        // Asked when the balloon was full, at the latest.
        let right = statistics.count >= 2 && free < told && told.abs_diff(total) <= SQUEEZE + MIB;
        right.then(|| how.clone()).ok_or(how)
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![
            ("the balloon inflates, and the host has that memory", Box::new(inflates)),
            ("it deflates", Box::new(deflates)),
            ("the guest reports free pages", Box::new(reports)),
            ("it tells statistics of its memory", Box::new(tells)),
        ],
    };
    Ok((device, more))
}

// The memory device: 64 MiB are plugged, used and unplugged.

const PLUG: u64 = 64 * MIB;

fn memory_device(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let memory = Arc::clone(around.memory);
    let region = PLUGGABLE.base..PLUGGABLE.base + PLUGGABLE.len;
    let reclaim = Madvise::new(Arc::clone(&memory)).within([region.clone()]);
    let device = around.plug(MemoryDevice::new(reclaim, MemoryDeviceOptions::new(region))?)?;
    let (transport, measured) = (device.transport(), Measured::default());

    let (heard, notes) = (Arc::clone(&device), measured.clone());
    let hear = move |line: &str| {
        let plugged = || heard.with(|device| device.plugged_size());
        if line == "plug me" {
            heard.change_config(|device| device.set_requested_size(PLUG))?;
        } else if line.starts_with("plugged ") {
            notes.note("plugged", plugged());
        } else if line == "unplug me" {
            notes.note("used", resident(&memory, PLUGGABLE)?);
            heard.change_config(|device| device.set_requested_size(0))?;
        } else if line.starts_with("unplugged ") {
            notes.note("unplugged", plugged());
            notes.note("left", resident(&memory, PLUGGABLE)?);
        }
        Ok(())
    };
    let plugs = {
        let (device, measured) = (Arc::clone(&device), measured.clone());
        move |console: &str| -> Check {
            let more = kib(console, "plugged ")?;
            let plugged = measured.get("plugged")?;
            let how = format!(
                "the guest has {} MiB more, of {} that are plugged",
                more / MIB,
                plugged / MIB
            );
            let right = plugged == PLUG && more == PLUG && device.with(|device| device.host_failures().count) == 0;
            right.then(|| how.clone()).ok_or(how)
        }
    };
    let unplugs = move |console: &str| -> Check {
        let less = kib(console, "unplugged ")?;
        let (used, unplugged, left) = (measured.get("used")?, measured.get("unplugged")?, measured.get("left")?);
        let how = format!(
            "the guest has {} MiB less, {} are left plugged; the host has {} MiB of it after {}",
            less / MIB,
            unplugged / MIB,
            left / MIB,
            used / MIB
        );
        let right = unplugged == 0 && less == PLUG && left < used;
        right.then(|| how.clone()).ok_or(how)
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![
            ("the guest plugs memory and uses it", Box::new(plugs)),
            ("it unplugs it", Box::new(unplugs)),
        ],
    };
    Ok((transport, more))
}

// Persistent memory: a file system that the guest mounts and writes.

/// A new file next to the disk, with an empty ext4 in it.
pub fn persistent_file(disk: &Path) -> Result<File, Box<dyn Error>> {
    let path = persistent_path(disk);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)?;
    file.set_len(PERSISTENT.len)?;
    let made = e2fsprogs("mkfs.ext4", &["-q", "-F"], &path)?;
    if !made.status.success() {
        return Err(format!("mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr)).into());
    }
    Ok(file)
}

fn persistent_path(disk: &Path) -> PathBuf {
    disk.with_extension("pmem")
}

fn pmem(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let file = around.persistent.ok_or("there is no persistent memory")?;
    let region = PERSISTENT.base..PERSISTENT.base + PERSISTENT.len;
    // Kept, to look what is in it.
    let (kept, looked) = (file.try_clone()?, Path::new("/proc/self/fd").to_owned());
    let pmem = around.plug(Pmem::new(file.try_clone()?, PmemOptions::new(region))?)?;
    let device = pmem.transport();
    let mounts = move |console: &str| -> Check {
        use std::os::fd::AsRawFd;
        let mounted = line(console, "pmem is ")?;
        let word = line(console, "pmem has ")?;
        let failures = pmem.with(|pmem| pmem.host_failures());
        let image = looked.join(kept.as_raw_fd().to_string());
        let read = e2fsprogs("debugfs", &["-R", "cat /word"], &image).map_err(|error| format!("debugfs: {error}"))?;
        let found = String::from_utf8_lossy(&read.stdout);
        let flushes = pmem
            .transport()
            .queue_counters(devisor::virtio::QueueIndex(0))
            .map_or(0, |counters| counters.completed);
        let how = format!("{mounted}; the file has {:?}, after {flushes} flushes", found.trim());
        let right = found.trim() == word && word.len() == 16 && flushes != 0 && failures.count == 0;
        right.then(|| how.clone()).ok_or(how)
    };
    let more = More {
        hear: Box::new(|_| Ok(())),
        checks: vec![(
            "the file has what the guest wrote to persistent memory",
            Box::new(mounts),
        )],
    };
    Ok((device, more))
}
