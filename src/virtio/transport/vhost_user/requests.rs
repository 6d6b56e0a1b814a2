//! What each request asks for, and does.

use std::os::fd::OwnedFd;

use super::{
    VhostUser, inflight,
    session::{Answer, Begun, Rest, Session},
};
use crate::virtio::{
    VirtioDevice, features,
    transport::status::{DEVICE_NEEDS_RESET, FEATURES_OK},
    vhost_user::{
        self as protocol, Config, FrontRequest, Message, Single, VringAddress, VringState, Word,
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
    | feature::STATUS
    | feature::SHARED_OBJECT
    | feature::DEVICE_STATE;

/// Features of vhost's own.
pub(super) const VHOST: u64 = vhost_feature::LOG_ALL | vhost_feature::PROTOCOL_FEATURES;

/// The payload of an answer that says that it was done.
pub(super) const DONE: [u8; 8] = [0; 8];
/// The payload of one that says that it was not.
const REFUSED: [u8; 8] = 1u64.to_ne_bytes();

/// So many maps that requests hold are added to without waiting for these. Each has all regions mapped.
const MOST_OLD_MAPS: usize = 8;

pub(super) type Outcome = Result<Answer, String>;

pub(super) fn parse<T>(found: Option<T>) -> Result<T, String> {
    found.ok_or_else(|| "a payload as the specification has it, which may be longer, is accepted".into())
}

pub(super) fn one(descriptors: &mut Vec<OwnedFd>) -> Result<OwnedFd, String> {
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
        GetSharedObject => feature::SHARED_OBJECT,
        _ => return None,
    })
}

impl<D: VirtioDevice> VhostUser<D> {
    fn offered(&self) -> u64 {
        self.core.offered() & !features::NOTIFICATION_DATA | VHOST
    }

    fn protocol(&self) -> u64 {
        PROTOCOL
    }

    pub(super) fn max_regions(&self) -> usize {
        self.options.max_regions.clamp(1, 509).into()
    }

    /// What has to come to rest first. A request that is refused later asks for nothing more than another one of its kind.
    pub(super) fn rest_for(&self, session: &Session, request: FrontRequest, message: &Message) -> Rest {
        use FrontRequest::*;
        let state = VringState::from_bytes(&message.payload);
        let running = |index: u32| {
            let index = usize::try_from(index).ok()?;
            session.rings.get(index)?.runs.map(|_| index)
        };
        let of_ring = |index: Option<u32>| {
            index
                .and_then(running)
                .map_or(Rest::Nothing, |index| Rest::Rings(vec![index]))
        };
        match request {
            GetVringBase | SetVringNum | SetVringBase => of_ring(state.map(|state| state.index)),
            SetVringEnable => of_ring(state.filter(|state| state.num == 0).map(|state| state.index)),
            SetVringAddr => {
                // Once more the same, for its flags, is no reason to stop.
                let moved = VringAddress::from_bytes(&message.payload).filter(|address| {
                    let ring = usize::try_from(address.index)
                        .ok()
                        .and_then(|index| session.rings.get(index));
                    let present = ring.and_then(|ring| ring.address);
                    present.is_none_or(|present| {
                        (present.descriptor, present.available, present.used)
                            != (address.descriptor, address.available, address.used)
                    })
                });
                of_ring(moved.map(|address| address.index))
            }
            SetMemTable | RemMemReg | SetLogBase if session.runs_any() => Rest::All,
            AddMemReg if session.runs_any() && self.core.memory().old_maps_held() >= MOST_OLD_MAPS => Rest::All,
            SetFeatures => self.rest_for_features(session, message),
            IotlbMsg => {
                let told = protocol::Iotlb::from_bytes(&message.payload).filter(|_| self.translates());
                match told.and_then(|told| self.iotlb.takes_back(&told)) {
                    Some(range) => Rest::Rings(self.rings_at(session, &range)),
                    None => Rest::Nothing,
                }
            }
            ResetDevice => Rest::Device,
            CheckDeviceState => Rest::Transfer,
            SetStatus if Word::from_bytes(&message.payload) == Some(Word(0)) => {
                match session.has(feature::RESET_DEVICE) {
                    // The driver may be gone for a moment only: what resets the device is RESET_DEVICE.
                    true => Rest::Nothing,
                    false => Rest::Device,
                }
            }
            _ => Rest::Nothing,
        }
    }

    fn rest_for_features(&self, session: &Session, message: &Message) -> Rest {
        let features = Word::from_bytes(&message.payload).filter(|Word(features)| features & !self.offered() == 0);
        let Some(Word(features)) = features else {
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
            SetVringKick | SetVringCall | SetVringErr => {
                self.set_vring_file(session, begun.request, payload, descriptors)
            }
            SetVringEnable => {
                let VringState { index, num } = parse(VringState::from_bytes(payload))?;
                let (index, ring) = session.ring(index)?;
                let enabled = match num {
                    0 => false,
                    1 => true,
                    _ => return Err(format!("enable {num}: 0 and 1 are accepted")),
                };
                ring.enabled = enabled;
                if !enabled {
                    self.end(session, index);
                }
                Ok(Answer::Done)
            }
            // It is always answered.
            IotlbMsg => self.change_translations(session, payload).or_else(|reason| {
                self.refuse(reason);
                Ok(Answer::Payload(REFUSED.into()))
            }),
            SetBackendReqFd => {
                let channel = one(&mut { descriptors })?;
                self.lines.set_channel(Some(channel));
                // What there was nobody to say to, or nobody has answered.
                self.objects.tell(&self.lines);
                self.iotlb.ask_again();
                self.core.tell_config_if_owed();
                Ok(Answer::Done)
            }
            GetSharedObject => Ok(self.objects.get(payload)),
            SetDeviceStateFd => self.begin_transfer(session, payload, &mut { descriptors }),
            CheckDeviceState => self.check_transfer(session),
            GetConfig => self.get_config(payload),
            SetConfig => {
                let Config { offset, flags, data } = parse(Config::from_bytes(payload))?;
                match flags {
                    Config::WRITABLE | Config::MIGRATION => {
                        self.core.write_config(offset.into(), &data);
                        Ok(Answer::Done)
                    }
                    _ => Err(format!(
                        "flags {flags} for the configuration space: 0 and 1 are accepted"
                    )),
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
                let created = inflight::create(asked.queues, asked.queue_size, session.is_packed());
                let (made, descriptor) = created.map_err(|error| error.to_string())?;
                Ok(Answer::WithDescriptor(made.to_bytes(payload.len()), descriptor))
            }
            SetInflightFd => {
                let given = parse(protocol::Inflight::from_bytes(payload))?;
                if session.runs_any() {
                    return Err("a table of requests in flight while rings run: it comes before they start".into());
                }
                let table = inflight::Table::new(given, one(&mut { descriptors })?, session.is_packed())?;
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
        let before = session.features;
        let same = before.is_some_and(|before| (before ^ features) & !VHOST == 0) && self.has_agreed();
        if !same && session.runs_any() {
            return Err("other features than before: they are accepted when all rings are stopped".into());
        }
        session.features = Some(features);
        let logged = |features: Option<u64>| features.unwrap_or(0) & vhost_feature::LOG_ALL != 0;
        if session.log.is_some()
            && logged(before) != logged(session.features)
            && let Err(reason) = self.map(session)
        {
            session.features = before;
            return Err(reason);
        }
        if features & vhost_feature::PROTOCOL_FEATURES == 0 {
            // "The back-end must enable all rings immediately."
            session.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        session.disagreed = false;
        if !same {
            let translated = features & crate::virtio::features::ACCESS_PLATFORM != 0;
            if translated != self.translates() {
                self.iotlb.forget();
                self.platform.translate(translated);
            }
            session.disagreed = !self.core.agree(features & !VHOST);
            if session.disagreed && !session.has(feature::STATUS) {
                return Err(format!(
                    "features {features:#x}: the device cannot work with these alone"
                ));
            }
        }
        Ok(Answer::Done)
    }

    /// Whether the device works with what SET_FEATURES has said.
    pub(super) fn has_agreed(&self) -> bool {
        self.core.status() & FEATURES_OK != 0
    }

    fn set_protocol_features(&self, session: &mut Session, payload: &[u8]) -> Outcome {
        let Word(features) = parse(Word::from_bytes(payload))?;
        let offered = self.protocol();
        if features & !offered != 0 {
            return Err(format!("protocol features {features:#x}: of {offered:#x} there are"));
        }
        session.protocol = features;
        self.lines
            .hear_config(session.has(feature::CONFIG | feature::BACKEND_REQ));
        self.lines.hear_answers(session.has(feature::REPLY_ACK));
        self.objects.negotiated(session.has(feature::SHARED_OBJECT));
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
}
