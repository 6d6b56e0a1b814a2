//! A place for a port: what is plugged in, what the driver knows of it, and what it is to be told.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::{Port, PortKind, Size, Unheard};
use crate::virtio::FailureLog;

/// Bytes of emergency writes that are kept for a port whose options keep fewer.
const EMERGENCY: usize = 1024;

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
    pub generation: u64,
    pub port: Port,
    /// Somebody was at the other end when this was last asked.
    pub open: bool,
    /// That was asked.
    pub asked: bool,
    /// Somebody has come, whose size was not asked yet.
    pub unasked: bool,
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

/// What became of a backlog.
pub(super) enum Flushed {
    All,
    /// The peer has no room.
    Blocked,
    /// The peer has failed.
    Failed,
}

impl Slot {
    /// How much output can be kept.
    pub fn bound(&self) -> usize {
        match self.plugged.as_ref().map(|plugged| plugged.port.unheard) {
            Some(Unheard::Keep(bound)) => bound.max(EMERGENCY),
            _ => EMERGENCY,
        }
    }

    /// The generation of what is plugged in, if it is what a driver knows by this kind and name.
    pub fn generation_of(&self, kind: PortKind, name: &str) -> u64 {
        let same = |plugged: &&Plugged| plugged.port.kind == kind && plugged.port.name == name;
        let plugged = self.plugged.as_ref().filter(same);
        plugged.map_or(0, |plugged| plugged.generation)
    }

    /// Whether what is plugged in is what the driver was told of.
    pub fn is_known(&self) -> bool {
        let told = self.told.as_ref().map(|told| told.generation);
        told.is_some() && told == self.plugged.as_ref().map(|plugged| plugged.generation)
    }

    /// Puts output behind what is kept already, whose oldest part makes room.
    pub fn keep(&mut self, bytes: &[u8], bound: usize) {
        let bytes = &bytes[bytes.len().saturating_sub(bound)..];
        let excess = (self.backlog.len() + bytes.len()).saturating_sub(bound);
        self.backlog.drain(..excess.min(self.backlog.len()));
        self.backlog.extend(bytes);
    }

    /// Looks for who has come or gone. Whether somebody has.
    pub fn observe(&mut self) -> bool {
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
    pub fn flush(&mut self, failures: &FailureLog) -> Flushed {
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
    pub fn forget_driver(&mut self) {
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
    pub fn message(&mut self, device_ready: bool) -> Option<Message> {
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

    pub fn has_told(&mut self, message: &Message) {
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
