//! What a console device keeps for its guest, as plain data.

use std::sync::atomic::Ordering;

use super::{
    MAX_NAME, PortKind, Size,
    shared::{Shared, unpack},
    slot::{Slot, Told},
};
use crate::{sync::lock, virtio::DeviceStateError};

/// The state of a console device as plain data. What the peers keep is the embedder's to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleState {
    /// As the device was made.
    pub max_ports: Option<u16>,
    /// The size in the configuration space.
    pub size: Size,
    /// The driver has said DEVICE_READY.
    pub device_ready: bool,
    /// Each port.
    pub ports: Vec<PortState>,
}

/// The state of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortState {
    /// What DEVICE_ADD has told the driver of: kind and name.
    pub told: Option<(PortKind, String)>,
    /// The driver has said PORT_READY.
    pub ready: bool,
    /// The driver has its end open.
    pub guest_open: bool,
    /// CONSOLE_PORT was told.
    pub console_told: bool,
    /// PORT_NAME was told.
    pub name_told: bool,
    /// The last PORT_OPEN said that somebody is there.
    pub open_told: bool,
    /// Somebody has left since then.
    pub was_closed: bool,
    /// The driver does not know the size yet.
    pub resize_owed: bool,
    /// The size of the terminal.
    pub size: Option<Size>,
    /// Output that was taken from the driver, and not by the peer yet.
    pub backlog: Vec<u8>,
    /// Bytes of the first chain in the `transmitq` that the peer has already.
    pub sent: u32,
}

impl PortState {
    fn of(slot: &Slot) -> Self {
        let Slot {
            // The embedder's, who plugs it in again.
            plugged: _,
            told,
            ready,
            guest_open,
            console_told,
            name_told,
            open_told,
            was_closed,
            resize_owed,
            size,
            backlog,
            sent,
        } = slot;
        Self {
            told: told.as_ref().map(|told| (told.kind, told.name.clone())),
            ready: *ready,
            guest_open: *guest_open,
            console_told: *console_told,
            name_told: *name_told,
            open_told: *open_told,
            was_closed: *was_closed,
            resize_owed: *resize_owed,
            size: *size,
            backlog: backlog.iter().copied().collect(),
            sent: *sent,
        }
    }

    /// What of it cannot be, if anything.
    fn contradiction(&self, multiport: bool, bound: usize) -> Option<&'static str> {
        let Self {
            told,
            ready,
            guest_open,
            console_told,
            name_told,
            open_told,
            was_closed,
            resize_owed,
            size,
            backlog,
            sent: _,
        } = self;
        let is_console = told.as_ref().is_some_and(|(kind, _)| *kind == PortKind::Console);
        let name = told.as_ref().map_or("", |(_, name)| name);
        let after_ready = *guest_open || *console_told || *name_told || *open_told;
        match () {
            _ if told.is_some() && !multiport => {
                Some("a port was announced, and there is no VIRTIO_CONSOLE_F_MULTIPORT")
            }
            _ if *ready && told.is_none() => Some("a port is ready, and was never announced"),
            // A driver may say later that it is not ready after all.
            _ if after_ready && told.is_none() => Some("a port is open, and was never announced"),
            _ if *console_told && !is_console => Some("a port that is no console was told to be one"),
            _ if *name_told && name.is_empty() => Some("a port without a name was told to have one"),
            _ if *was_closed && !*open_told => Some("somebody has left a port that was never open"),
            _ if *resize_owed && (!*console_told || size.is_none()) => Some("a size is owed to what is no console"),
            _ if name.len() > MAX_NAME || name.contains('\0') => Some("a port's name is too long, or has a NUL"),
            _ if backlog.len() > bound => Some("more output is kept than the port keeps"),
            _ => None,
        }
    }
}

impl Shared {
    pub fn save(&self) -> ConsoleState {
        let Self {
            options,
            // Follow from the options.
            features: _,
            // The embedder's.
            handle: _,
            // A count of this process.
            failures: _,
            slots,
            // Of this process.
            generation: _,
            size,
            // The transport's, which hands it to us again.
            negotiated: _,
            device_ready,
        } = self;
        ConsoleState {
            max_ports: options.max_ports,
            size: unpack(size.load(Ordering::SeqCst)),
            device_ready: device_ready.load(Ordering::SeqCst),
            ports: slots.iter().map(|slot| PortState::of(&lock(slot))).collect(),
        }
    }

    /// All or nothing.
    pub fn restore(&self, state: &ConsoleState) -> Result<(), DeviceStateError> {
        let ConsoleState {
            max_ports,
            size,
            device_ready,
            ports,
        } = state;
        let refused = |why: String| Err(DeviceStateError::Otherwise(why));
        if *max_ports != self.options.max_ports {
            let made = self.options.max_ports;
            return refused(format!("with `max_ports` {made:?}, where the state has {max_ports:?}"));
        }
        if ports.len() != usize::from(self.ports()) {
            return refused(format!(
                "with {} ports, where the state has {}",
                self.ports(),
                ports.len()
            ));
        }
        let multiport = max_ports.is_some();
        if *device_ready && !multiport {
            return refused("without VIRTIO_CONSOLE_F_MULTIPORT, where the state has its messages".into());
        }
        for (index, port) in (0..).zip(ports) {
            let bound = self.slot(index).map_or(0, |slot| slot.bound());
            if let Some(why) = port.contradiction(multiport, bound) {
                return refused(format!("and no device could come to this state of port {index}: {why}"));
            }
        }
        for (index, port) in (0..).zip(ports) {
            if let Some(mut slot) = self.slot(index) {
                let PortState {
                    told,
                    ready,
                    guest_open,
                    console_told,
                    name_told,
                    open_told,
                    was_closed,
                    resize_owed,
                    size,
                    backlog,
                    sent,
                } = port.clone();
                slot.told = told.map(|(kind, name)| Told {
                    generation: slot.generation_of(kind, &name),
                    kind,
                    name,
                });
                let known = guest_open && slot.is_known();
                if known != slot.guest_open
                    && let Some(plugged) = &slot.plugged
                {
                    plugged.port.peer.guest_opened(known);
                }
                (slot.ready, slot.guest_open) = (ready, guest_open);
                (slot.console_told, slot.name_told) = (console_told, name_told);
                (slot.open_told, slot.was_closed) = (open_told, was_closed);
                (slot.resize_owed, slot.size) = (resize_owed, size);
                (slot.backlog, slot.sent) = (backlog.into(), sent);
            }
        }
        self.store_size(*size);
        self.device_ready.store(*device_ready, Ordering::SeqCst);
        Ok(())
    }
}
