//! What the control face, the queues and the embedder share: all places for ports.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::{
    ConsoleError, ConsoleOptions, MAX_NAME, News, Peer, Port, PortKind, Size, Unheard,
    registers::{CONTROL_RECEIVE, feature, receive_queue},
    slot::{Flushed, Message, Plugged, Slot},
};
use crate::{
    sync::lock,
    virtio::{FailureLog, Handle, QueueIndex},
};

/// What the control face, the queues and the embedder share.
pub(super) struct Shared {
    // Configured.
    pub options: ConsoleOptions,
    pub features: u64,
    // Plugged in.
    pub handle: OnceLock<Handle>,
    pub failures: Arc<FailureLog>,
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

/// A port as a round finds it.
pub(super) struct View {
    pub peer: Arc<dyn Peer>,
    /// Somebody is at the other end.
    pub open: bool,
    /// Who takes output.
    pub listens: bool,
    /// The driver uses what is plugged in: it has set the port up as that, or there is but one.
    pub in_use: bool,
    pub guest_open: bool,
    pub unheard: Unheard,
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
            failures: Arc::default(),
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

    pub fn peer(&self, port: u16) -> Option<Arc<dyn Peer>> {
        let slot = self.slot(port)?;
        slot.plugged.as_ref().map(|plugged| Arc::clone(&plugged.port.peer))
    }

    fn news(&self, port: u16) -> News {
        let failures = Arc::clone(&self.failures);
        News::new(self.handle.get().cloned(), receive_queue(port), failures)
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
            listens: plugged.open && plugged.port.peer.listens(),
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

    pub fn no_such_port(&self, port: u16) -> ConsoleError {
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
