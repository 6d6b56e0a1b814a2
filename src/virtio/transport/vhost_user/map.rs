//! The front end's memory as requests change it, and its log.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Weak},
};

use super::{
    VhostUser,
    iotlb::Wake,
    log::Log,
    regions::{Mapped, Regions},
    requests::{Outcome, one, parse},
    session::{Answer, Session},
};
use crate::{
    memory::{Memory, Ticket},
    virtio::{
        VirtioDevice,
        vhost_user::{self as protocol, IotlbKind, Single, Table, Word, protocol_feature as feature, vhost_feature},
    },
};

impl<D: VirtioDevice> VhostUser<D> {
    /// Maps the regions anew, with the log if it is wanted.
    pub(super) fn map(&self, session: &Session) -> Result<(), String> {
        let memory = Self::mapped(session, &session.regions)?;
        self.replace_memory(&session.regions, &memory);
        Ok(())
    }

    fn mapped(session: &Session, regions: &Regions) -> Result<Memory, String> {
        let wanted = session
            .features
            .is_some_and(|features| features & vhost_feature::LOG_ALL != 0);
        regions.memory(session.log.as_ref().filter(|_| wanted))
    }

    fn replace_memory(&self, regions: &Regions, memory: &Memory) {
        if let Some(told) = &self.options.memory {
            told.set(regions);
        }
        self.iotlb.set_regions(regions);
        self.memory.replace(memory);
        self.core.memory_changed();
    }

    pub(super) fn set_mem_table(&self, session: &mut Session, payload: &[u8], descriptors: Vec<OwnedFd>) -> Outcome {
        let Table(regions) = parse(Table::from_bytes(payload))?;
        if regions.len() != descriptors.len() {
            return Err(format!(
                "{} regions with {} descriptors",
                regions.len(),
                descriptors.len()
            ));
        }
        let mapped = regions.into_iter().zip(descriptors);
        let mapped = mapped.map(|(region, descriptor)| Mapped::new(region, descriptor));
        self.change_regions(session, Regions::new(mapped.collect::<Result<_, _>>()?)?)
    }

    pub(super) fn add_mem_reg(&self, session: &mut Session, payload: &[u8], mut descriptors: Vec<OwnedFd>) -> Outcome {
        let Single(region) = parse(Single::from_bytes(payload))?;
        let region = Mapped::new(region, one(&mut descriptors)?)?;
        // No ring is elsewhere then, and those that run go on.
        let regions = session.regions.with(region, self.max_regions())?;
        let memory = Self::mapped(session, &regions)?;
        session.regions = regions;
        self.replace_memory(&session.regions, &memory);
        Ok(Answer::Done)
    }

    /// All or nothing. Rings that are elsewhere then begin there, and those that are nowhere end.
    pub(super) fn change_regions(&self, session: &mut Session, regions: Regions) -> Outcome {
        let memory = Self::mapped(session, &regions)?;
        let translates = self.translates();
        for index in 0..session.rings.len() {
            let ring = &session.rings[index];
            if ring.runs.is_some() && (translates || ring.runs != ring.layout(&regions, translates)) {
                if !self.core.is_ring_still(index) {
                    return Err("a ring that runs is in no region any more".into());
                }
                // While what is in flight can be put back where it is still.
                self.end(session, index);
            }
        }
        session.regions = regions;
        self.replace_memory(&session.regions, &memory);
        Ok(Answer::Done)
    }

    pub(super) fn set_log_base(&self, session: &mut Session, payload: &[u8], mut descriptors: Vec<OwnedFd>) -> Outcome {
        if !session.has(feature::LOG_SHMFD) {
            return Err("a log without LOG_SHMFD is in no memory that could be reached".into());
        }
        let log = parse(protocol::Log::from_bytes(payload))?;
        let log = Log::new(log, one(&mut descriptors)?)?;
        let before = session.log.replace(Arc::new(log));
        if let Err(reason) = self.map(session) {
            session.log = before;
            return Err(reason);
        }
        Ok(Answer::Payload(Word(0).to_bytes()))
    }

    /// Has rings that miss a translation look again.
    pub(super) fn look_again(&self, session: &Session) {
        let rings = session.rings.iter().enumerate();
        rings
            .filter(|(_, ring)| ring.runs.is_some())
            .for_each(|(index, _)| self.core.mark_and_ring(index));
    }

    /// What the front end's IOMMU does with addresses of the device.
    pub(super) fn change_translations(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let told = parse(protocol::Iotlb::from_bytes(payload))?;
        if !self.translates() {
            return Err("a translation without ACCESS_PLATFORM: addresses are those of memory".into());
        }
        let mut used: Weak<Wake> = Weak::new();
        if let Some(range) = self.iotlb.takes_back(&told) {
            // While what is in flight can be put back where the driver has it. They are started again when they are translated.
            for index in self.rings_at(session, &range) {
                self.end(session, index);
            }
            let wake = Arc::new(Wake(Arc::clone(&self.wake)));
            used = Arc::downgrade(&wake);
            let ticket: Ticket = wake;
            // What is taken back is nowhere in them, so of these few pieces are left.
            let kept = self.ring_addresses(session, |ring| ring.runs.is_some());
            self.iotlb.take_back(&range, &ticket, &kept);
        }
        match told.kind {
            IotlbKind::INVALIDATE => {}
            IotlbKind::UPDATE => {
                if self.iotlb.update(&told, &self.ring_addresses(session, |_| true))? {
                    self.look_again(session);
                }
            }
            kind => {
                return Err(format!(
                    "a translation message {kind}: 2 (update) and 3 (invalidate) are accepted"
                ));
            }
        }
        match used.strong_count() {
            0 => Ok(Answer::Payload(Word(0).to_bytes())),
            _ => Ok(Answer::Unused(used)),
        }
    }
}
