//! Objects that a device shares with others of its machine, by UUIDs (virtio 1.2, section 2.11; `SHARED_OBJECT`).

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Mutex,
};

use super::{
    VhostUser,
    channel::{Expected, Found},
    lines::Lines,
    session::Answer,
};
use crate::{
    interrupt::Interrupt,
    sync::lock,
    virtio::{
        VirtioDevice,
        vhost_user::{BackRequest, Header},
    },
};

type Uuid = [u8; 16];

/// What a device exports.
#[derive(Default)]
pub(super) struct Objects(Mutex<Table>);

#[derive(Default)]
struct Table {
    exported: BTreeMap<Uuid, Exported>,
    /// SHARED_OBJECT was negotiated.
    negotiated: bool,
}

struct Exported {
    file: OwnedFd,
    /// The front end knows of it.
    told: bool,
}

fn header(request: BackRequest) -> Header {
    Header::request(request as u32, size_of::<Uuid>())
}

impl Table {
    /// Tells of what is exported, as far as there is room. Whether there is room for no more.
    fn tell(&mut self, lines: &Lines) -> bool {
        if !self.negotiated || lines.channel_descriptor().is_none() {
            return false;
        }
        for (uuid, exported) in self.exported.iter_mut().filter(|(_, exported)| !exported.told) {
            let said = lines.say(header(BackRequest::SharedObjectAdd), uuid);
            if said.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                return true;
            }
            // Or nobody hears.
            exported.told = true;
        }
        false
    }
}

impl Objects {
    pub fn negotiated(&self, negotiated: bool) {
        lock(&self.0).negotiated = negotiated;
    }

    /// Tells of what is exported and was not told of yet. Whether there is room for no more.
    pub fn tell(&self, lines: &Lines) -> bool {
        lock(&self.0).tell(lines)
    }

    /// The connection has ended.
    pub fn forget(&self) {
        let mut table = lock(&self.0);
        table.negotiated = false;
        table.exported.values_mut().for_each(|exported| exported.told = false);
    }

    /// GET_SHARED_OBJECT. QEMU says that its payload is none, and drops what is refused: an object without a name is one that there is not.
    pub fn get(&self, payload: &[u8]) -> Answer {
        let Some(&uuid) = payload.first_chunk::<16>() else {
            return Answer::Payload(vec![0; size_of::<Uuid>()]);
        };
        let file = lock(&self.0)
            .exported
            .get(&uuid)
            .and_then(|exported| exported.file.as_fd().try_clone_to_owned().ok());
        match file {
            Some(file) => Answer::WithDescriptor(uuid.into(), file),
            None => Answer::Payload(uuid.into()),
        }
    }
}

impl<D: VirtioDevice> VhostUser<D> {
    /// Exports a file, a dma-buf say, to other devices of the machine, in the place of what had its UUID. This front end and later ones are
    /// told, if they share objects (SHARED_OBJECT).
    pub fn export_object(&self, uuid: [u8; 16], file: OwnedFd) {
        let mut table = lock(&self.objects.0);
        let told = table.exported.get(&uuid).is_some_and(|before| before.told);
        table.exported.insert(uuid, Exported { file, told });
        if table.tell(&self.lines) {
            // Whoever waits for the connection is to wait for room too.
            let _ = self.wake.trigger();
        }
    }

    /// Exports it no longer. Whether it was.
    pub fn withdraw_object(&self, uuid: [u8; 16]) -> bool {
        let mut table = lock(&self.objects.0);
        let exported = table.exported.remove(&uuid);
        if exported.as_ref().is_some_and(|exported| exported.told) {
            // A front end that is not told asks, and is told then.
            let _ = self.lines.say(header(BackRequest::SharedObjectRemove), &uuid);
        }
        exported.is_some()
    }

    /// Asks for what another device exports with this UUID. `found` is called with it by
    /// [`serve_connection`](Self::serve_connection), or without if there is none; without, too, by whoever ends the connection; and at
    /// once if the front end shares no objects, or answers nothing (REPLY_ACK), or is asked for as much as it can be. It may call the
    /// device. This neither waits for the connection nor ends it.
    pub fn look_up_object(&self, uuid: [u8; 16], found: impl FnOnce(Option<OwnedFd>) + Send + 'static) {
        let mut found: Option<Found> = Some(Box::new(found));
        let negotiated = lock(&self.objects.0).negotiated;
        let asked = negotiated
            && self
                .lines
                .ask(header(BackRequest::SharedObjectLookup), &uuid, || {
                    Expected::Object(found.take().unwrap_or_else(|| Box::new(|_| ())))
                })
                .unwrap_or(false);
        if asked {
            // Whoever waits for the connection is to wait for the channel too.
            let _ = self.wake.trigger();
        }
        if let Some(found) = found {
            found(None);
        }
    }
}
