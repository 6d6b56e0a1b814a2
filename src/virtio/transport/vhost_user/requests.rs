//! What each request asks for, and does.

use std::os::fd::OwnedFd;

use super::{
    VhostUser, inflight,
    lines::Event,
    log::Log,
    regions::{Mapped, Regions},
    ring::{Kick, Ring, base_of},
    session::{Answer, Begun, Rest, Session},
};
use crate::virtio::{
    QueueIndex, VirtioDevice, features,
    transport::status::{DEVICE_NEEDS_RESET, FEATURES_OK},
    vhost_user::{
        self as protocol, Config, FrontRequest, Message, Single, Table, VringAddress, VringFile, VringState, Word,
        protocol_feature as feature, vhost_feature,
    },
};

/// What the back end can do, whatever its device.
pub(super) const PROTOCOL: u64 = feature::MQ
    | feature::LOG_SHMFD
    | feature::REPLY_ACK
    | feature::BACKEND_REQ
    | feature::CONFIG
    | feature::INFLIGHT_SHMFD
    | feature::RESET_DEVICE
    | feature::CONFIGURE_MEM_SLOTS
    | feature::STATUS;

/// Features of vhost's own.
pub(super) const VHOST: u64 = vhost_feature::LOG_ALL | vhost_feature::PROTOCOL_FEATURES;

type Outcome = Result<Answer, String>;

fn parse<T>(found: Option<T>) -> Result<T, String> {
    found.ok_or_else(|| "a payload as the specification has it, which may be longer, is accepted".into())
}

fn one(descriptors: &mut Vec<OwnedFd>) -> Result<OwnedFd, String> {
    match descriptors.len() {
        1 => descriptors.pop().ok_or_else(String::new),
        count => Err(format!("{count} descriptors: one is accepted")),
    }
}

/// The protocol feature without which there is no such request.
pub(super) fn needs(request: FrontRequest) -> Option<u64> {
    use FrontRequest::*;
    Some(match request {
        GetQueueNum => feature::MQ,
        SetBackendReqFd => feature::BACKEND_REQ,
        GetConfig | SetConfig => feature::CONFIG,
        ResetDevice => feature::RESET_DEVICE,
        GetMaxMemSlots | AddMemReg | RemMemReg => feature::CONFIGURE_MEM_SLOTS,
        SetStatus | GetStatus => feature::STATUS,
        GetInflightFd | SetInflightFd => feature::INFLIGHT_SHMFD,
        SetDeviceStateFd | CheckDeviceState => feature::DEVICE_STATE,
        _ => return None,
    })
}

impl<D: VirtioDevice> VhostUser<D> {
    /// What has to come to rest first. A request that is refused later asks for nothing more than another one of its kind.
    pub(super) fn rest_for(&self, session: &Session, request: FrontRequest, message: &Message) -> Rest {
        use FrontRequest::*;
        let state = VringState::from_bytes(&message.payload);
        let running = |index: u32| {
            let index = usize::try_from(index).ok()?;
            session.rings.get(index)?.runs.map(|_| index)
        };
        let of_ring = |index: Option<u32>| index.and_then(running).map_or(Rest::Nothing, Rest::Ring);
        match request {
            GetVringBase | SetVringNum | SetVringBase => of_ring(state.map(|state| state.index)),
            SetVringEnable => of_ring(state.filter(|state| state.num == 0).map(|state| state.index)),
            SetVringAddr => {
                // Once more the same, for its flags, is no reason to stop.
                let moved = VringAddress::from_bytes(&message.payload).filter(|address| {
                    let ring = usize::try_from(address.index).ok().and_then(|index| session.rings.get(index));
                    let present = ring.and_then(|ring| ring.address);
                    present.is_none_or(|present| {
                        (present.descriptor, present.available, present.used)
                            != (address.descriptor, address.available, address.used)
                    })
                });
                of_ring(moved.map(|address| address.index))
            }
            SetMemTable | RemMemReg | SetLogBase if session.runs_any() => Rest::All,
            SetFeatures => self.rest_for_features(session, message),
            ResetDevice => Rest::Device,
            SetStatus if Word::from_bytes(&message.payload) == Some(Word(0)) => match session.has(feature::RESET_DEVICE) {
                // The driver may be gone for a moment only: what resets the device is RESET_DEVICE.
                true => Rest::Nothing,
                false => Rest::Device,
            },
            _ => Rest::Nothing,
        }
    }

    fn rest_for_features(&self, session: &Session, message: &Message) -> Rest {
        let Some(Word(features)) = Word::from_bytes(&message.payload) else {
            return Rest::Nothing;
        };
        let broken = self.core.status() & DEVICE_NEEDS_RESET != 0;
        match session.features {
            _ if broken && !session.runs_any() => Rest::Device,
            None => Rest::Nothing,
            Some(before) if (before ^ features) & !VHOST != 0 && !session.runs_any() => Rest::Device,
            Some(before) if (before ^ features) & vhost_feature::LOG_ALL != 0 && session.runs_any() => Rest::All,
            Some(_) => Rest::Nothing,
        }
    }

    /// Does what a request asks for: what had to is at rest.
    pub(super) fn perform(&self, session: &mut Session, begun: &mut Begun) -> Outcome {
        use FrontRequest::*;
        let Message {
            payload, descriptors, ..
        } = &mut begun.message;
        let descriptors = std::mem::take(descriptors);
        let payload = &payload[..];
        match begun.request {
            GetFeatures => Ok(Answer::Payload(Word(self.offered()).to_bytes())),
            SetFeatures => self.set_features(session, payload),
            SetOwner => Ok(Answer::Done),
            // "It is recommended that back-ends either ignore this message".
            ResetOwner => Ok(Answer::Done),
            GetProtocolFeatures => Ok(Answer::Payload(Word(self.protocol()).to_bytes())),
            SetProtocolFeatures => self.set_protocol_features(session, payload),
            GetQueueNum => Ok(Answer::Payload(Word(session.rings.len() as u64).to_bytes())),
            SetMemTable => self.set_mem_table(session, payload, descriptors),
            AddMemReg => self.add_mem_reg(session, payload, descriptors),
            RemMemReg => {
                let Single(region) = parse(Single::from_bytes(payload))?;
                self.change_regions(session, session.regions.without(region)?)
            }
            GetMaxMemSlots => Ok(Answer::Payload(Word(self.max_regions() as u64).to_bytes())),
            SetLogBase => self.set_log_base(session, payload, descriptors),
            // A note that the log has grown: who reads the log does so when it likes.
            SetLogFd => Ok(Answer::Done),
            SetVringNum => {
                let VringState { index, num } = parse(VringState::from_bytes(payload))?;
                let (index, ring) = session.ring(index)?;
                ring.size = u16::try_from(num).map_err(|_| format!("a ring of {num}: up to 32768 is accepted"))?;
                self.end(session, index);
                Ok(Answer::Done)
            }
            SetVringAddr => self.set_vring_addr(session, payload),
            SetVringBase => {
                let VringState { index, num } = parse(VringState::from_bytes(payload))?;
                let (index, _) = session.ring(index)?;
                self.end(session, index);
                session.rings[index].base = num;
                Ok(Answer::Done)
            }
            GetVringBase => self.get_vring_base(session, payload),
            SetVringKick | SetVringCall | SetVringErr => self.set_vring_file(session, begun.request, payload, descriptors),
            SetVringEnable => {
                let VringState { index, num } = parse(VringState::from_bytes(payload))?;
                let (index, ring) = session.ring(index)?;
                let enabled = match num {
                    0 => false,
                    1 => true,
                    _ => return Err(format!("enable {num}: 0 and 1 are accepted")),
                };
                ring.enabled = Some(enabled);
                if !enabled {
                    self.end(session, index);
                }
                Ok(Answer::Done)
            }
            SetBackendReqFd => {
                let channel = one(&mut { descriptors })?;
                self.lines.set_channel(Some(channel));
                Ok(Answer::Done)
            }
            GetConfig => self.get_config(payload),
            SetConfig => {
                let Config { offset, flags, data } = parse(Config::from_bytes(payload))?;
                match flags {
                    Config::WRITABLE | Config::MIGRATION => {
                        self.core.write_config(offset.into(), &data);
                        Ok(Answer::Done)
                    }
                    _ => Err(format!("flags {flags} for the configuration space: 0 and 1 are accepted")),
                }
            }
            ResetDevice => {
                self.forget_rings(session);
                session.status = 0;
                Ok(Answer::Done)
            }
            SetStatus => self.set_status(session, payload),
            GetInflightFd => {
                let asked = parse(protocol::Inflight::from_bytes(payload))?;
                let queues = usize::from(asked.queues) <= session.rings.len();
                if !queues || asked.queues == 0 || asked.queue_size == 0 {
                    return Err(format!("a table for {} queues of {}", asked.queues, asked.queue_size));
                }
                let created = inflight::create(asked.queues, asked.queue_size, Self::is_packed(session));
                let (made, descriptor) = created.map_err(|error| error.to_string())?;
                Ok(Answer::WithDescriptor(made.to_bytes(payload.len()), descriptor))
            }
            SetInflightFd => {
                let given = parse(protocol::Inflight::from_bytes(payload))?;
                if session.runs_any() {
                    return Err("a table of requests in flight while rings run: it comes before they start".into());
                }
                let table = inflight::Table::new(given, one(&mut { descriptors })?, Self::is_packed(session))?;
                session.inflight = Some(table);
                Ok(Answer::Done)
            }
            GetStatus => {
                let failed = (self.core.status() & DEVICE_NEEDS_RESET) as u64;
                Ok(Answer::Payload(Word(u64::from(session.status) | failed).to_bytes()))
            }
            request => Err(format!("{request:?} is not for this back end")),
        }
    }

    fn set_features(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let Word(features) = parse(Word::from_bytes(payload))?;
        let offered = self.offered();
        if features & !offered != 0 {
            return Err(format!("features {features:#x}: of {offered:#x} there are"));
        }
        let before = session.features.replace(features);
        let same = before.is_some_and(|before| (before ^ features) & !VHOST == 0) && self.has_agreed();
        session.disagreed = false;
        if !same {
            if session.runs_any() {
                return Err("other features than before: they are accepted when all rings are stopped".into());
            }
            session.disagreed = !self.core.agree(features & !VHOST);
            if session.disagreed && !session.has(feature::STATUS) {
                return Err(format!("features {features:#x}: the device cannot work with these alone"));
            }
        }
        let logged = |features: Option<u64>| features.unwrap_or(0) & vhost_feature::LOG_ALL != 0;
        if session.log.is_some() && logged(before) != logged(Some(features)) {
            self.map(session)?;
        }
        Ok(Answer::Done)
    }

    fn is_packed(session: &Session) -> bool {
        session.features.is_some_and(|accepted| accepted & features::RING_PACKED != 0)
    }

    fn has_agreed(&self) -> bool {
        self.core.status() & FEATURES_OK != 0
    }

    fn set_protocol_features(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let Word(features) = parse(Word::from_bytes(payload))?;
        let offered = self.protocol();
        if features & !offered != 0 {
            return Err(format!("protocol features {features:#x}: of {offered:#x} there are"));
        }
        session.protocol = features;
        self.lines.hear_config(session.has(feature::CONFIG));
        Ok(Answer::Done)
    }

    fn set_mem_table(&self, session: &mut Session, payload: &[u8], descriptors: Vec<OwnedFd>) -> Outcome {
        let Table(regions) = parse(Table::from_bytes(payload))?;
        if regions.len() != descriptors.len() {
            return Err(format!("{} regions with {} descriptors", regions.len(), descriptors.len()));
        }
        let mapped = regions.into_iter().zip(descriptors);
        let mapped = mapped.map(|(region, descriptor)| Mapped::new(region, descriptor));
        self.change_regions(session, Regions::new(mapped.collect::<Result<_, _>>()?)?)
    }

    fn add_mem_reg(&self, session: &mut Session, payload: &[u8], mut descriptors: Vec<OwnedFd>) -> Outcome {
        let Single(region) = parse(Single::from_bytes(payload))?;
        let region = Mapped::new(region, one(&mut descriptors)?)?;
        let regions = session.regions.with(region, self.max_regions())?;
        self.change_regions(session, regions)
    }

    /// All or nothing.
    fn change_regions(&self, session: &mut Session, regions: Regions) -> Outcome {
        let before = std::mem::replace(&mut session.regions, regions);
        if let Err(error) = self.map(session) {
            session.regions = before;
            return Err(error);
        }
        // Rings that are elsewhere now begin there, and those that are nowhere end.
        for index in 0..session.rings.len() {
            let ring = &session.rings[index];
            if ring.runs.is_some() && ring.runs != ring.layout(&session.regions) {
                if !self.core.is_ring_still(index) {
                    return Err("a ring that runs is in no region any more".into());
                }
                self.end(session, index);
            }
        }
        Ok(Answer::Done)
    }

    fn set_log_base(&self, session: &mut Session, payload: &[u8], mut descriptors: Vec<OwnedFd>) -> Outcome {
        if !session.has(feature::LOG_SHMFD) {
            return Err("a log without LOG_SHMFD is in no memory that could be reached".into());
        }
        let log = parse(protocol::Log::from_bytes(payload))?;
        let log = Log::new(log, one(&mut descriptors)?)?;
        session.log = Some(std::sync::Arc::new(log));
        self.map(session)?;
        Ok(Answer::Payload(Word(0).to_bytes()))
    }

    fn set_vring_addr(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let address = parse(VringAddress::from_bytes(payload))?;
        let (index, ring) = session.ring(address.index)?;
        ring.address = Some(address);
        let ring = &session.rings[index];
        if ring.runs.is_some() && ring.runs != ring.layout(&session.regions) {
            self.end(session, index);
        }
        Ok(Answer::Done)
    }

    fn get_vring_base(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let VringState { index, .. } = parse(VringState::from_bytes(payload))?;
        let (at, _) = session.ring(index)?;
        self.end(session, at);
        let ring = &mut session.rings[at];
        ring.kick = Kick::None;
        let base = ring.base;
        // Its kick and call are for the ring as it was.
        self.lines.forget_kick(at);
        Ok(Answer::Payload(VringState { index, num: base }.to_bytes()))
    }

    fn set_vring_file(
        &self,
        session: &mut Session,
        request: FrontRequest,
        payload: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> Outcome {
        let VringFile { index, has_descriptor } = parse(VringFile::from_bytes(payload))?;
        let (index, ring) = session.ring(index)?;
        let event = match has_descriptor {
            true => Some(Event::new(one(&mut descriptors)?).map_err(|error| format!("an event descriptor: {error}"))?),
            false if descriptors.is_empty() => None,
            false => return Err("a descriptor that is said not to be there".into()),
        };
        match request {
            FrontRequest::SetVringKick => {
                if event.is_none() && !self.lines.polls() {
                    return Err("a ring without a kick: one with a kick is accepted".into());
                }
                ring.kick = Kick::Set;
                ring.refused = false;
                self.lines.set_kick(index, event);
            }
            FrontRequest::SetVringCall => {
                self.lines.set_call(index, event);
                // What was told to nobody.
                self.core.process(QueueIndex(index as u16));
            }
            _ => self.lines.set_error(index, event),
        }
        Ok(Answer::Done)
    }

    fn get_config(&self, payload: &[u8]) -> Outcome {
        let Some(mut config) = Config::from_bytes(payload) else {
            // "Uses zero length of payload to indicate an error".
            return Ok(Answer::Payload(Vec::new()));
        };
        self.core.read_config(config.offset.into(), &mut config.data);
        Ok(Answer::Payload(config.to_bytes()))
    }

    fn set_status(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let Word(status) = parse(Word::from_bytes(payload))?;
        let status = u8::try_from(status).map_err(|_| format!("status {status:#x}: eight bits there are"))?;
        session.status = status & !(DEVICE_NEEDS_RESET as u8);
        if session.disagreed {
            session.status &= !(FEATURES_OK as u8);
        }
        if status == 0 && !session.has(feature::RESET_DEVICE) {
            self.forget_rings(session);
        }
        Ok(Answer::Done)
    }

    /// The device was reset: all rings are disabled, and the front end describes them again.
    fn forget_rings(&self, session: &mut Session) {
        for (index, ring) in session.rings.iter_mut().enumerate() {
            ring.kept = None;
            ring.runs = None;
            ring.kick = Kick::None;
            ring.enabled = None;
            ring.base = 0;
            self.lines.forget_kick(index);
        }
        session.features = None;
        session.disagreed = false;
    }

    /// Ends a ring that is at rest, and keeps what is to be kept of it.
    pub(super) fn end(&self, session: &mut Session, index: usize) {
        let ring = &mut session.rings[index];
        if ring.runs.take().is_none() {
            return;
        }
        self.lines.stops(index);
        if let Some(mut state) = self.core.end_ring(index) {
            if session.inflight.is_none() {
                Ring::rewind(&mut state, self.core.memory());
            }
            ring.base = base_of(&state);
            ring.kept = Some(state);
        }
    }
}
