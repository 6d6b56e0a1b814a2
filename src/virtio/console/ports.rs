//! The ports of a device: what is plugged in, what the driver knows of it, and what it is to be told.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use vm_memory::VolatileSlice;

use super::{
    ConsoleError, ConsoleOptions, MAX_NAME, News, Peer, Port, PortKind, Size, Unheard,
    registers::{CONTROL_RECEIVE, feature, receive_queue},
};
use crate::{
    sync::lock,
    virtio::{FailureLog, Handle, HostFailures, QueueIndex},
};

/// Bytes of emergency writes that are kept for a port whose options keep fewer.
const EMERGENCY: usize = 1024;

/// What the control face, the queues and the embedder share.
pub(super) struct Shared {
    // Configured.
    pub options: ConsoleOptions,
    pub features: u64,
    // Plugged in.
    pub handle: OnceLock<Handle>,
    pub failures: FailureLog,
    pub slots: Box<[Mutex<Slot>]>,
    /// The number of the port that was plugged in last.
    pub generation: AtomicU64,
    /// The size in the configuration space: columns, and rows above them.
    pub size: AtomicU32,
    // What the guest can change.
    pub negotiated: AtomicU64,
    /// The driver has said DEVICE_READY.
    pub device_ready: AtomicBool,
}

/// A place for a port.
#[derive(Default)]
pub(super) struct Slot {
    pub plugged: Option<Plugged>,
    /// What DEVICE_ADD has told the driver of.
    pub told: Option<Told>,
    /// The driver has said PORT_READY.
    pub ready: bool,
    /// The driver has its end open.
    pub guest_open: bool,
    pub console_told: bool,
    pub name_told: bool,
    /// The last PORT_OPEN said so.
    pub open_told: bool,
    /// Somebody has left since then.
    pub was_closed: bool,
    pub resize_owed: bool,
    pub size: Option<Size>,
    /// Output that was taken from the driver, and not by the peer yet.
    pub backlog: VecDeque<u8>,
    /// Bytes of the first chain of the transmitq that the peer has.
    pub sent: u32,
}

pub(super) struct Plugged {
    generation: u64,
    pub port: Port,
    /// Somebody was at the other end when this was last asked.
    open: bool,
    /// That was asked.
    asked: bool,
    /// Somebody has come, whose size was not asked yet.
    unasked: bool,
}

/// A port as the driver knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Zero, if it is one that is no longer there.
    pub generation: u64,
    pub kind: PortKind,
    pub name: String,
}

/// A message of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Add(Told),
    Remove,
    ConsolePort,
    Name(String),
    Open(bool),
    Resize(Size),
}

/// A port as a round finds it.
pub(super) struct View {
    pub peer: Arc<dyn Peer>,
    pub open: bool,
    /// The driver uses what is plugged in: it has set the port up as that, or there is but one.
    pub in_use: bool,
    pub guest_open: bool,
    pub unheard: Unheard,
}

/// What became of a backlog.
pub(super) enum Flushed {
    All,
    /// The peer has no room.
    Blocked,
    /// The peer has failed.
    Failed,
}

impl Slot {
    fn bound(&self) -> usize {
        match self.plugged.as_ref().map(|plugged| plugged.port.unheard) {
            Some(Unheard::Keep(bound)) => bound.max(EMERGENCY),
            _ => EMERGENCY,
        }
    }

    /// Whether what is plugged in is what the driver was told of.
    pub fn is_known(&self) -> bool {
        let told = self.told.as_ref().map(|told| told.generation);
        told.is_some() && told == self.plugged.as_ref().map(|plugged| plugged.generation)
    }

    /// Puts output behind what is kept already, whose oldest part makes room.
    fn keep(&mut self, bytes: &[u8], bound: usize) {
        let bytes = &bytes[bytes.len().saturating_sub(bound)..];
        let excess = (self.backlog.len() + bytes.len()).saturating_sub(bound);
        self.backlog.drain(..excess.min(self.backlog.len()));
        self.backlog.extend(bytes);
    }

    /// Looks for who has come or gone. Whether somebody has.
    fn observe(&mut self) -> bool {
        let Some(plugged) = &mut self.plugged else {
            return false;
        };
        let open = plugged.port.peer.is_open();
        plugged.asked = true;
        if open == plugged.open {
            return false;
        }
        plugged.open = open;
        plugged.unasked = open;
        if !open {
            self.was_closed = self.open_told;
        }
        true
    }

    /// Writes the backlog to the peer, and nothing else.
    fn flush(&mut self, failures: &FailureLog) -> Flushed {
        let Some(plugged) = &self.plugged else {
            return Flushed::Blocked;
        };
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_mut_slices();
            match plugged.port.peer.write(&[VolatileSlice::from(front)]) {
                Ok(0) => return Flushed::Blocked,
                Ok(taken) => _ = self.backlog.drain(..taken.min(self.backlog.len())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Flushed::Blocked,
                Err(error) => {
                    failures.record(error);
                    return Flushed::Failed;
                }
            }
        }
        if self.backlog.capacity() > EMERGENCY {
            self.backlog = VecDeque::new();
        }
        Flushed::All
    }

    /// The driver knows nothing of the port.
    fn forget_driver(&mut self) {
        if std::mem::take(&mut self.guest_open)
            && let Some(plugged) = &self.plugged
        {
            plugged.port.peer.guest_opened(false);
        }
        self.told = None;
        (self.ready, self.console_told, self.name_told) = (false, false, false);
        (self.open_told, self.was_closed, self.resize_owed) = (false, false, false);
    }

    /// What the driver is to be told next.
    fn message(&mut self, device_ready: bool) -> Option<Message> {
        let generation = self.plugged.as_ref().map(|plugged| plugged.generation);
        if !device_ready {
            return None;
        }
        if let Some(told) = &self.told
            && Some(told.generation) != generation
        {
            return Some(Message::Remove);
        }
        if self.plugged.as_ref().is_some_and(|plugged| !plugged.asked) {
            self.observe();
        }
        let Plugged { port, open, .. } = self.plugged.as_ref()?;
        if self.told.is_none() {
            return Some(Message::Add(Told {
                generation: generation?,
                kind: port.kind,
                name: port.name.clone(),
            }));
        }
        if !self.ready {
            return None;
        }
        let console = port.kind == PortKind::Console;
        if console && !self.console_told {
            return Some(Message::ConsolePort);
        }
        if !port.name.is_empty() && !self.name_told {
            return Some(Message::Name(port.name.clone()));
        }
        if self.open_told && (self.was_closed || !open) {
            return Some(Message::Open(false));
        }
        if !self.open_told && *open {
            return Some(Message::Open(true));
        }
        let size = self.size.filter(|_| console && self.resize_owed)?;
        Some(Message::Resize(size))
    }

    fn has_told(&mut self, message: &Message) {
        match message {
            Message::Add(told) => self.told = Some(told.clone()),
            Message::Remove => self.forget_driver(),
            Message::ConsolePort => {
                self.console_told = true;
                // Linux sizes the console when it hears of it.
                self.resize_owed = self.size.is_some();
            }
            Message::Name(_) => self.name_told = true,
            Message::Open(open) => (self.open_told, self.was_closed) = (*open, false),
            // One that came meanwhile is owed.
            Message::Resize(size) => self.resize_owed = self.size != Some(*size),
        }
    }
}

impl Shared {
    pub fn new(options: ConsoleOptions) -> Result<Self, ConsoleError> {
        let ports = options.max_ports.unwrap_or(1);
        if !(1..=super::MAX_PORTS).contains(&ports) {
            return Err(ConsoleError::MaxPorts(ports));
        }
        let queue_size = options.queue_size;
        if !queue_size.is_power_of_two() {
            return Err(ConsoleError::QueueSize(queue_size));
        }
        let offered = [
            (feature::SIZE, options.size.is_some()),
            (feature::MULTIPORT, options.max_ports.is_some()),
            (feature::EMERG_WRITE, options.emergency_write),
        ];
        let size = options.size.unwrap_or_default();
        Ok(Self {
            features: offered.iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum(),
            options,
            handle: OnceLock::new(),
            failures: FailureLog::default(),
            slots: (0..ports).map(|_| Mutex::default()).collect(),
            generation: AtomicU64::new(0),
            size: AtomicU32::new(pack(size)),
            negotiated: AtomicU64::new(0),
            device_ready: AtomicBool::new(false),
        })
    }

    pub fn slot(&self, port: u16) -> Option<MutexGuard<'_, Slot>> {
        self.slots.get(usize::from(port)).map(lock)
    }

    pub fn ports(&self) -> u16 {
        // Checked when it was made.
        self.slots.len() as u16
    }

    fn is_offered(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Whether the driver uses the ports and the control queues.
    pub fn is_multiport(&self) -> bool {
        self.negotiated.load(Ordering::SeqCst) & self.features & feature::MULTIPORT != 0
    }

    pub fn set_negotiated(&self, features: u64) {
        self.negotiated.store(features, Ordering::SeqCst);
    }

    pub fn size(&self) -> Size {
        unpack(self.size.load(Ordering::SeqCst))
    }

    pub fn store_size(&self, size: Size) {
        self.size.store(pack(size), Ordering::SeqCst);
    }

    /// The device is behind a transport.
    pub fn attach(&self, handle: Handle) {
        // Once: a device is put behind one transport.
        let _ = self.handle.set(handle);
        for port in 0..self.ports() {
            let peer = self.peer(port);
            if let Some(peer) = peer {
                peer.plugged(self.news(port));
            }
        }
    }

    fn peer(&self, port: u16) -> Option<Arc<dyn Peer>> {
        let slot = self.slot(port)?;
        slot.plugged.as_ref().map(|plugged| Arc::clone(&plugged.port.peer))
    }

    fn news(&self, port: u16) -> News {
        News::new(self.handle.get().cloned(), receive_queue(port))
    }

    /// Has a queue looked at. With no slot locked.
    pub fn look(&self, queue: u16) {
        if let Some(handle) = self.handle.get() {
            handle.look(QueueIndex(queue));
        }
    }

    /// Something of `port` has changed: its queues are looked at, and messages are sent.
    fn look_at(&self, port: u16) {
        self.look(receive_queue(port));
        self.look(receive_queue(port) + 1);
        if self.is_multiport() {
            self.look(CONTROL_RECEIVE);
        }
    }

    /// The port as it is now. `None`, if nothing is plugged in. Not from the control face.
    pub fn observe(&self, port: u16) -> Option<View> {
        let mut slot = self.slot(port)?;
        let changed = slot.observe();
        let multiport = self.is_multiport();
        let in_use = !multiport || slot.ready && slot.is_known();
        let guest_open = !multiport || slot.guest_open;
        let plugged = slot.plugged.as_mut()?;
        let unasked = std::mem::take(&mut plugged.unasked);
        let view = View {
            peer: Arc::clone(&plugged.port.peer),
            open: plugged.open,
            in_use,
            guest_open,
            unheard: plugged.port.unheard,
        };
        drop(slot);
        if unasked && let Some(size) = view.peer.size() {
            self.resize(port, size);
        }
        if changed {
            self.look_at(port);
        }
        Some(view)
    }

    /// Writes what is kept of the output of `port`.
    pub fn flush(&self, port: u16) -> Flushed {
        match self.slot(port) {
            Some(slot) if slot.backlog.is_empty() => Flushed::All,
            Some(mut slot) => slot.flush(&self.failures),
            None => Flushed::All,
        }
    }

    /// Keeps output for who comes next.
    pub fn keep(&self, port: u16, bytes: &[u8], bound: usize) {
        if let Some(mut slot) = self.slot(port) {
            slot.keep(bytes, bound);
        }
    }

    /// What is kept of the output of `port` is for nobody.
    pub fn forget_backlog(&self, port: u16) {
        if let Some(mut slot) = self.slot(port) {
            slot.backlog = VecDeque::new();
        }
    }

    /// A character is written to `emerg_wr` (section 5.3.5), whatever the state of the device.
    pub fn emergency_write(&self, byte: u8) {
        let (mut left, mut changed) = (false, false);
        if let Some(mut slot) = self.slot(0) {
            let bound = slot.bound();
            slot.keep(&[byte], bound);
            changed = slot.observe();
            if slot.plugged.as_ref().is_some_and(|plugged| plugged.open) {
                left = !matches!(slot.flush(&self.failures), Flushed::All);
            }
        }
        if changed {
            self.look_at(0);
        } else if left {
            self.look(receive_queue(0) + 1);
        }
    }

    /// The size of a port has changed. Not from the control face.
    pub fn resize(&self, port: u16, size: Size) {
        let Some(mut slot) = self.slot(port) else { return };
        if slot.size == Some(size) {
            return;
        }
        slot.size = Some(size);
        slot.resize_owed = slot.console_told;
        drop(slot);
        // The configuration is port 0's (section 5.3.6).
        if port == 0 && self.is_offered(feature::SIZE) && self.size() != size {
            match self.handle.get() {
                Some(handle) => handle.change_config(|| self.store_size(size)),
                None => self.store_size(size),
            }
        }
        if self.is_multiport() {
            self.look(CONTROL_RECEIVE);
        }
    }

    pub fn plug(&self, index: u16, port: Port) -> Result<(), ConsoleError> {
        if port.name.len() > MAX_NAME || port.name.contains('\0') {
            return Err(ConsoleError::Name(port.name.len()));
        }
        if self.options.max_ports.is_none() && port.kind != PortKind::Console {
            return Err(ConsoleError::NotAConsole);
        }
        let mut slot = self.slot(index).ok_or_else(|| self.no_such_port(index))?;
        if slot.plugged.is_some() {
            return Err(ConsoleError::Taken(index));
        }
        let peer = Arc::clone(&port.peer);
        // The configuration has the size of port 0, until somebody says another.
        slot.size = port.size.or(self.options.size.filter(|_| index == 0));
        slot.plugged = Some(Plugged {
            generation: self.generation.fetch_add(1, Ordering::SeqCst) + 1,
            port,
            open: false,
            asked: false,
            unasked: false,
        });
        drop(slot);
        peer.plugged(self.news(index));
        self.look_at(index);
        Ok(())
    }

    pub fn unplug(&self, index: u16) -> Result<Port, ConsoleError> {
        let mut slot = self.slot(index).ok_or_else(|| self.no_such_port(index))?;
        let plugged = slot.plugged.take().ok_or(ConsoleError::Empty(index))?;
        slot.backlog = VecDeque::new();
        (slot.size, slot.resize_owed) = (None, false);
        if std::mem::take(&mut slot.guest_open) {
            plugged.port.peer.guest_opened(false);
        }
        drop(slot);
        self.look_at(index);
        Ok(plugged.port)
    }

    fn no_such_port(&self, port: u16) -> ConsoleError {
        let last = self.ports() - 1;
        ConsoleError::NoSuchPort { port, last }
    }

    /// The next message to the driver, from port `*from` on, where it is then.
    pub fn message(&self, from: &mut u16) -> Option<Message> {
        let ready = self.device_ready.load(Ordering::SeqCst);
        let ports = self.ports();
        let start = *from % ports;
        (start..ports).chain(0..start).find_map(|port| {
            let message = self.slot(port)?.message(ready)?;
            *from = port;
            Some(message)
        })
    }

    /// The driver has got this message of `port`.
    pub fn has_told(&self, port: u16, message: &Message) {
        if let Some(mut slot) = self.slot(port) {
            slot.has_told(message);
        }
    }

    /// PORT_READY. Whether there is such a port.
    pub fn port_ready(&self, port: u16, ready: bool) -> bool {
        let Some(mut slot) = self.slot(port) else { return false };
        if slot.told.is_none() {
            return false;
        }
        if slot.is_known() {
            slot.ready = ready;
        }
        drop(slot);
        self.observe(port);
        self.look_at(port);
        true
    }

    /// PORT_OPEN of the driver. Whether there is such a port.
    pub fn guest_opened(&self, port: u16, open: bool) -> bool {
        let Some(mut slot) = self.slot(port) else { return false };
        if !slot.ready {
            return false;
        }
        let changed = slot.guest_open != open;
        // A driver that does not know yet that its port was unplugged opens nothing.
        if let (true, true, Some(plugged)) = (changed, slot.is_known(), &slot.plugged) {
            plugged.port.peer.guest_opened(open);
            slot.guest_open = open;
        }
        drop(slot);
        self.look_at(port);
        true
    }

    /// The device is reset. Output that was taken is still to be delivered.
    pub fn reset(&self) {
        self.device_ready.store(false, Ordering::SeqCst);
        self.set_negotiated(0);
        for slot in &self.slots {
            let mut slot = lock(slot);
            slot.forget_driver();
            slot.sent = 0;
        }
    }

    /// The generation of what is plugged into `slot`, if it is what a driver knows by this kind and name.
    pub fn generation_of(slot: &Slot, kind: PortKind, name: &str) -> u64 {
        let same = |plugged: &&Plugged| plugged.port.kind == kind && plugged.port.name == name;
        let plugged = slot.plugged.as_ref().filter(same);
        plugged.map_or(0, |plugged| plugged.generation)
    }

    /// How much of the output of what is plugged into `slot` can be kept.
    pub fn bound_of(slot: &Slot) -> usize {
        slot.bound()
    }
}

fn pack(size: Size) -> u32 {
    u32::from(size.cols) | u32::from(size.rows) << 16
}

pub(super) fn unpack(size: u32) -> Size {
    Size {
        cols: size as u16,
        rows: (size >> 16) as u16,
    }
}

/// The ports of a [`Console`](super::Console), to its embedder: they are plugged in and out while the guest runs, from any thread.
/// Clones are the same.
#[derive(Clone)]
pub struct Ports(pub(super) Arc<Shared>);

impl Ports {
    /// Plugs `port` in as number `index`. A driver that is there is told.
    ///
    /// # Errors
    /// There is no such port, it is taken, or it cannot be what it is to be.
    pub fn plug(&self, index: u16, port: Port) -> Result<(), ConsoleError> {
        self.0.plug(index, port)
    }

    /// Unplugs a port, which is returned. A driver that is there is told; what it has put out and nobody has read is gone.
    ///
    /// # Errors
    /// There is no such port, or it is empty.
    pub fn unplug(&self, index: u16) -> Result<Port, ConsoleError> {
        self.0.unplug(index)
    }

    /// A terminal has another size. The driver is told, if it is a console and the size is news: of port 0 by a configuration change,
    /// and of each by a control message if it has these. Not from inside the device's configuration.
    ///
    /// # Errors
    /// There is no such port.
    pub fn resize(&self, index: u16, size: Size) -> Result<(), ConsoleError> {
        if index >= self.0.ports() {
            return Err(self.0.no_such_port(index));
        }
        self.0.resize(index, size);
        Ok(())
    }

    /// Asks the peer of a port for its size: after SIGWINCH, say.
    ///
    /// # Errors
    /// There is no such port.
    pub fn refresh_size(&self, index: u16) -> Result<(), ConsoleError> {
        match self.0.peer(index).and_then(|peer| peer.size()) {
            Some(size) => self.resize(index, size),
            None if index < self.0.ports() => Ok(()),
            None => Err(self.0.no_such_port(index)),
        }
    }

    /// Whether the driver has its end of a port open.
    pub fn is_guest_open(&self, index: u16) -> bool {
        self.0.slot(index).is_some_and(|slot| slot.guest_open)
    }

    /// What peers have failed at.
    pub fn host_failures(&self) -> HostFailures {
        self.0.failures.get()
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports")
            .field("max", &self.0.ports())
            .finish_non_exhaustive()
    }
}
