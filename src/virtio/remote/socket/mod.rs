//! A vhost-user back end at the end of a socket.

mod channel;
mod state;
mod unasked;

use std::{
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    time::Instant,
};

use super::{
    event::{Ends, Events},
    log::Log,
    objects::{Member, Uuid},
    peer::{Described, InflightTable, Peer, wrong},
    regions::{SharedRegion, not_shared},
    registers::{MAX_QUEUES, status},
    windows::Windows,
};
use crate::{
    sync::lock,
    virtio::vhost_user::{
        self as wire, Config, FrontRequest, Inflight, ShmemConfig, Single, Table, VringAddress, VringFile, VringState,
        Word, protocol_feature as protocol, vhost_feature,
    },
};
use channel::Channel;

/// Protocol features that are made use of.
const WANTED: u64 = protocol::MQ
    | protocol::LOG_SHMFD
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS
    | protocol::DEVICE_STATE;

pub(super) struct SocketPeer {
    channel: Channel,
    protocol: u64,
    offered: u64,
    queues: Option<u16>,
    /// It was told FEATURES_OK.
    features_ok: bool,
}

impl SocketPeer {
    /// A new connection, as far as it goes without a driver.
    pub fn reach(
        stream: UnixStream,
        windows: &Arc<Mutex<Windows>>,
        objects: Option<&Arc<Member>>,
        deadline: Instant,
    ) -> io::Result<Self> {
        let mut channel = Channel::new(stream)?;
        let offered = channel.ask_word(FrontRequest::GetFeatures, deadline)?;
        let mut agreed = 0;
        if offered & vhost_feature::PROTOCOL_FEATURES != 0 {
            // Mappings are made where there is room for them, of files that come along.
            let shared_memory = match lock(windows).are_there() {
                true => protocol::SHMEM | protocol::BACKEND_SEND_FD,
                false => 0,
            };
            let shared_objects = objects.map_or(0, |_| protocol::SHARED_OBJECT);
            let wanted = WANTED | shared_memory | shared_objects;
            agreed = channel.ask_word(FrontRequest::GetProtocolFeatures, deadline)? & wanted;
            let payload = Word(agreed).to_bytes();
            channel.tell(FrontRequest::SetProtocolFeatures, &payload, Vec::new(), deadline)?;
            channel.acknowledges = agreed & protocol::REPLY_ACK != 0;
        }
        let mut queues = None;
        if agreed & protocol::MQ != 0 {
            let number = channel.ask_word(FrontRequest::GetQueueNum, deadline)?;
            // There is one at least, and what is beyond what can be named is not made use of.
            queues = Some(number.clamp(1, MAX_QUEUES.into()) as u16);
        }
        channel.tell(FrontRequest::SetOwner, &[], Vec::new(), deadline)?;
        if agreed & protocol::BACKEND_REQ != 0 {
            let theirs = channel.open_unasked(Arc::clone(windows), objects.cloned())?;
            channel.tell(FrontRequest::SetBackendReqFd, &[], vec![theirs], deadline)?;
        }
        Ok(Self {
            channel,
            protocol: agreed,
            offered,
            queues,
            features_ok: false,
        })
    }

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    /// The sizes of its shared memory regions, by their IDs.
    pub fn shared_memory(&mut self, deadline: Instant) -> io::Result<Vec<u64>> {
        if !self.has(protocol::SHMEM) {
            return Ok(Vec::new());
        }
        let message = self.channel.ask(FrontRequest::GetShmemConfig, &[], deadline)?;
        match ShmemConfig::from_bytes(&message.payload) {
            Some(ShmemConfig(sizes)) => Ok(sizes),
            None => Err(wrong("sizes of shared memory regions, cut short")),
        }
    }

    fn set_status(&mut self, status: u64, deadline: Instant) -> io::Result<()> {
        let payload = Word(status).to_bytes();
        self.channel
            .tell(FrontRequest::SetStatus, &payload, Vec::new(), deadline)
    }

    fn set_address(&mut self, ring: &Described, addresses: [u64; 3], logs: bool, deadline: Instant) -> io::Result<()> {
        let [descriptor, available, used] = addresses;
        let address = VringAddress {
            index: ring.index.into(),
            flags: u32::from(logs),
            descriptor,
            used,
            available,
            log: ring.layout.device_area,
        };
        self.channel
            .tell(FrontRequest::SetVringAddr, &address.to_bytes(), Vec::new(), deadline)
    }

    fn set_all_memory(&mut self, regions: &[SharedRegion], deadline: Instant) -> io::Result<()> {
        let count = regions.len();
        if count > Table::MAX as usize {
            return Err(wrong(format!(
                "{count} regions of memory, where the back end takes {}",
                Table::MAX
            )));
        }
        let table = Table(regions.iter().map(|shared| shared.region).collect()).to_bytes();
        let files: io::Result<_> = regions.iter().map(share).collect();
        self.channel.tell(FrontRequest::SetMemTable, &table, files?, deadline)
    }

    fn change_memory(&mut self, known: &[SharedRegion], regions: &[SharedRegion], deadline: Instant) -> io::Result<()> {
        let most = self.most_regions(deadline)?;
        if regions.len() as u64 > most {
            return Err(wrong(format!(
                "{} regions of memory, where the back end takes {most}",
                regions.len()
            )));
        }
        let channel = &mut self.channel;
        for SharedRegion { region, .. } in known.iter().filter(|known| !regions.contains(known)) {
            let payload = Single(*region).to_bytes();
            channel.tell(FrontRequest::RemMemReg, &payload, Vec::new(), deadline)?;
        }
        for shared in regions.iter().filter(|shared| !known.contains(shared)) {
            let payload = Single(shared.region).to_bytes();
            channel.tell(FrontRequest::AddMemReg, &payload, vec![share(shared)?], deadline)?;
        }
        Ok(())
    }
}

impl Peer for SocketPeer {
    fn offered(&self) -> u64 {
        self.offered
    }

    fn queues(&self) -> Option<u16> {
        self.queues
    }

    fn needs_files(&self) -> bool {
        true
    }

    fn most_regions(&mut self, deadline: Instant) -> io::Result<u64> {
        match self.has(protocol::CONFIGURE_MEM_SLOTS) {
            true => self.channel.ask_word(FrontRequest::GetMaxMemSlots, deadline),
            false => Ok(Table::MAX.into()),
        }
    }

    fn config(&mut self, len: usize, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        if !self.has(protocol::CONFIG) {
            return Ok(None);
        }
        let payload = Config {
            offset: 0,
            flags: Config::WRITABLE,
            data: vec![0; len],
        };
        let message = self
            .channel
            .ask(FrontRequest::GetConfig, &payload.to_bytes(), deadline)?;
        match Config::from_bytes(&message.payload) {
            Some(config) if config.offset == 0 && config.data.len() == len && message.descriptors.is_empty() => {
                Ok(Some(config.data))
            }
            _ => Err(wrong(format!(
                "{} bytes, where {len} of the configuration space were asked for",
                message.payload.len()
            ))),
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8], deadline: Instant) -> io::Result<()> {
        let payload = Config {
            offset,
            flags: Config::WRITABLE,
            data: data.to_vec(),
        };
        self.channel
            .tell(FrontRequest::SetConfig, &payload.to_bytes(), Vec::new(), deadline)
    }

    fn accept(&mut self, features: u64, deadline: Instant) -> io::Result<()> {
        let told = features | self.offered & vhost_feature::PROTOCOL_FEATURES;
        let payload = Word(told).to_bytes();
        self.channel
            .tell(FrontRequest::SetFeatures, &payload, Vec::new(), deadline)?;
        if self.has(protocol::STATUS) && !self.features_ok {
            self.set_status(status::FEATURES_OK, deadline)?;
            self.features_ok = true;
        }
        Ok(())
    }

    fn can_log(&self) -> bool {
        self.has(protocol::LOG_SHMFD) && self.offered & vhost_feature::LOG_ALL != 0
    }

    fn set_log(&mut self, log: &Log, deadline: Instant) -> io::Result<()> {
        let payload = wire::Log {
            size: log.len(),
            offset: 0,
        };
        // It is always answered.
        self.channel.ask_with(
            FrontRequest::SetLogBase,
            &payload.to_bytes(),
            vec![log.share()?],
            deadline,
        )?;
        Ok(())
    }

    fn tracks_inflight(&self) -> bool {
        self.has(protocol::INFLIGHT_SHMFD)
    }

    fn share_inflight(
        &mut self,
        table: &mut Option<InflightTable>,
        queues: u16,
        queue_size: u16,
        deadline: Instant,
    ) -> io::Result<()> {
        if !self.tracks_inflight() {
            return Ok(());
        }
        let channel = &mut self.channel;
        if table.is_none() {
            let asked = Inflight {
                mmap_size: 0,
                mmap_offset: 0,
                queues,
                queue_size,
            };
            let mut message = channel.ask(FrontRequest::GetInflightFd, &asked.to_bytes(24), deadline)?;
            let description = Inflight::from_bytes(&message.payload);
            let (Some(description), Some(file), true) =
                (description, message.descriptors.pop(), message.descriptors.is_empty())
            else {
                return Err(wrong("no table of requests in flight, where one was asked for"));
            };
            if description.mmap_size == 0 {
                return Err(wrong("a table of requests in flight without a byte"));
            }
            *table = Some(InflightTable {
                description: Inflight {
                    queues,
                    queue_size,
                    ..description
                },
                file,
                len: message.payload.len(),
            });
        }
        if let Some(InflightTable { description, file, len }) = table {
            let payload = description.to_bytes(*len);
            channel.tell(FrontRequest::SetInflightFd, &payload, vec![file.try_clone()?], deadline)?;
        }
        Ok(())
    }

    fn set_memory(&mut self, known: &[SharedRegion], regions: &[SharedRegion], deadline: Instant) -> io::Result<()> {
        not_shared(regions).map_err(io::Error::other)?;
        match self.has(protocol::CONFIGURE_MEM_SLOTS) {
            true => self.change_memory(known, regions, deadline),
            false => self.set_all_memory(regions, deadline),
        }
    }

    fn start_ring(
        &mut self,
        ring: &Described,
        addresses: [u64; 3],
        logs: bool,
        events: &Events,
        deadline: Instant,
    ) -> io::Result<()> {
        let index = u32::from(ring.index);
        let state = |num| VringState { index, num }.to_bytes();
        let file = VringFile {
            index: ring.index as u8,
            has_descriptor: true,
        };
        let size = state(ring.layout.size.into());
        self.channel
            .tell(FrontRequest::SetVringNum, &size, Vec::new(), deadline)?;
        self.channel
            .tell(FrontRequest::SetVringBase, &state(ring.base()), Vec::new(), deadline)?;
        self.set_address(ring, addresses, logs, deadline)?;
        for (request, event) in [
            (FrontRequest::SetVringErr, events.error.share()?),
            (FrontRequest::SetVringCall, events.called()?),
            (FrontRequest::SetVringKick, events.kick.share()?),
        ] {
            self.channel.tell(request, &file.to_bytes(), vec![event], deadline)?;
        }
        if self.offered & vhost_feature::PROTOCOL_FEATURES != 0 {
            self.channel
                .tell(FrontRequest::SetVringEnable, &state(1), Vec::new(), deadline)?;
        }
        if !self.channel.acknowledges {
            // Some forget a kick that comes before they have enabled the ring: they have once they answer.
            self.channel.ask_word(FrontRequest::GetFeatures, deadline)?;
        }
        Ok(())
    }

    fn log_ring(&mut self, ring: &Described, addresses: [u64; 3], logs: bool, deadline: Instant) -> io::Result<()> {
        self.set_address(ring, addresses, logs, deadline)
    }

    fn set_call(&mut self, index: u16, events: &Events, deadline: Instant) -> io::Result<()> {
        let file = VringFile {
            index: index as u8,
            has_descriptor: true,
        };
        let (payload, call) = (file.to_bytes(), events.called()?);
        self.channel
            .tell(FrontRequest::SetVringCall, &payload, vec![call], deadline)
    }

    fn all_started(&mut self, deadline: Instant) -> io::Result<()> {
        match self.has(protocol::STATUS) {
            true => self.set_status(status::DRIVER_OK, deadline),
            false => Ok(()),
        }
    }

    fn stop_ring(&mut self, index: u16, deadline: Instant) -> io::Result<u16> {
        let index = u32::from(index);
        let payload = VringState { index, num: 0 }.to_bytes();
        let message = self.channel.ask(FrontRequest::GetVringBase, &payload, deadline)?;
        match VringState::from_bytes(&message.payload) {
            Some(state) if state.index == index && message.payload.len() == 8 => Ok(state.num as u16),
            _ => Err(wrong(format!(
                "an answer of {} bytes to GetVringBase",
                message.payload.len()
            ))),
        }
    }

    fn reset(&mut self, deadline: Instant) -> io::Result<()> {
        self.features_ok = false;
        if self.has(protocol::RESET_DEVICE) {
            self.channel.tell(FrontRequest::ResetDevice, &[], Vec::new(), deadline)
        } else if self.has(protocol::STATUS) {
            self.set_status(0, deadline)
        } else {
            Ok(())
        }
    }

    fn look(&mut self) -> io::Result<bool> {
        self.channel.look()
    }

    fn config_changed(&self) -> bool {
        self.channel.config_changed()
    }

    fn ends(&self) -> Arc<Ends> {
        self.channel.ends()
    }

    fn shared_object(&mut self, uuid: Uuid, deadline: Instant) -> io::Result<Option<OwnedFd>> {
        if !self.has(protocol::SHARED_OBJECT) {
            return Ok(None);
        }
        let mut message = self.channel.ask(FrontRequest::GetSharedObject, &uuid, deadline)?;
        match (message.descriptors.pop(), message.descriptors.is_empty()) {
            (file, true) => Ok(file),
            _ => Err(wrong("several files for an object")),
        }
    }

    fn has_state(&self) -> bool {
        self.has(protocol::DEVICE_STATE)
    }

    fn save(&mut self, most: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        state::save(&mut self.channel, most, deadline)
    }

    fn load(&mut self, state: &[u8], deadline: Instant) -> io::Result<()> {
        state::load(&mut self.channel, state, deadline)
    }
}

fn share(shared: &SharedRegion) -> io::Result<OwnedFd> {
    let file = shared.file.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
    file.try_clone().map(Into::into)
}
