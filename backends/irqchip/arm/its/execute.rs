//! Carrying out a command: what it makes of the tables.
//!
//! What an ITS does about a command with a bad parameter is left to it, within limits. Here, as in KVM and QEMU, the
//! command is ignored and the queue goes on; a command that needs a table where there is no memory stalls the queue, as
//! does one that cannot be read.

use super::{
    commands::{Command, Effect},
    model::Model,
    registers::COLLECTIONS,
    tables::{Collection, Device, Fault, Translation, first_address},
    translations::Target,
};

impl Model {
    /// Changes the tables as `command` says. A command that faults has changed nothing.
    pub(super) fn execute(&mut self, command: Command) -> Result<Effect, Fault> {
        match command {
            Command::Mapd { device, to } => self.map_device(device, to).map(|()| Effect::None),
            Command::Mapc { collection, to } => self.map_collection(collection, to).map(|()| Effect::None),
            Command::Mapti { device, event, to } => self.map_event(device, event, to).map(|()| Effect::None),
            Command::Movi {
                device,
                event,
                collection,
            } => self.move_event(device, event, collection),
            Command::Int { device, event } => {
                let at = self.translate(device, event)?;
                Ok(Effect::Pending { at, pending: true })
            }
            Command::Clear { device, event } => {
                let at = self.translate(device, event)?;
                Ok(Effect::Pending { at, pending: false })
            }
            Command::Discard { device, event } => self.discard(device, event),
            Command::Inv { device, event } => self.translate(device, event).map(Effect::Invalidate),
            Command::Invall { collection } => self.collection(collection).map(Effect::InvalidateAll),
            Command::Movall { from, to } => {
                let (from, to) = (self.redistributor(from)?, self.redistributor(to)?);
                Ok(match from == to {
                    true => Effect::None,
                    false => Effect::MoveAll { from, to },
                })
            }
            // Each command is complete before the next is looked at.
            Command::Sync { processor } => self.redistributor(processor).map(|_| Effect::None),
        }
    }

    fn map_device(&mut self, device: u32, to: Option<Device>) -> Result<(), Fault> {
        if to.is_some_and(|to| to.event_bits > self.config.event_bits) {
            return Err(Fault::Refused);
        }
        let address = self.device_address(device)?;
        self.change(address, to.map_or(0, Device::pack))
    }

    fn map_collection(&mut self, collection: u16, to: Option<Collection>) -> Result<(), Fault> {
        if let Some(to) = to {
            self.redistributor(to.processor)?;
        }
        let address = self.collection_address(collection)?;
        self.change(address, to.map_or(0, Collection::pack))
    }

    /// The collection may be mapped later, and the guest may give its table a page for it later.
    fn map_event(&mut self, device: u32, event: u32, to: Translation) -> Result<(), Fault> {
        let address = self.device(device)?.event_address(event)?;
        first_address(
            self.tables[COLLECTIONS],
            self.config.collection_bits,
            to.collection.into(),
        )?;
        match self.is_lpi(to.lpi) {
            true => self.change(address, to.pack()),
            false => Err(Fault::Refused),
        }
    }

    fn move_event(&mut self, device: u32, event: u32, collection: u16) -> Result<Effect, Fault> {
        let (address, was) = self.event(device, event)?;
        let cpu = self.collection(was.collection)?;
        let to = self.collection(collection)?;
        self.change(address, Translation { collection, ..was }.pack())?;
        let from = Target { cpu, lpi: was.lpi };
        Ok(match cpu == to {
            true => Effect::None,
            false => Effect::Move { from, to },
        })
    }

    fn discard(&mut self, device: u32, event: u32) -> Result<Effect, Fault> {
        let (address, was) = self.event(device, event)?;
        let cpu = self.collection(was.collection)?;
        self.change(address, 0)?;
        let at = Target { cpu, lpi: was.lpi };
        Ok(Effect::Pending { at, pending: false })
    }
}
