//! The requests that all devices know, with their arguments.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use super::{
    super::{event::Events, log::Log, peer::Described, regions::SharedRegion},
    device::VhostDevice,
    numbers,
};
use crate::virtio::vhost_user::{VringAddress, VringState};

/// `VHOST_MEMORY_MAX_NREGIONS` is a parameter of the module, and this unless somebody has changed it.
pub(super) const MOST_REGIONS: u64 = 64;

pub(super) struct Calls(pub Box<dyn VhostDevice>);

impl Calls {
    pub fn set(&mut self, request: u32, argument: impl AsRef<[u8]>) -> io::Result<()> {
        let mut argument = argument.as_ref().to_vec();
        self.0.request(request, &mut argument)
    }

    pub fn get<const N: usize>(&mut self, request: u32) -> io::Result<[u8; N]> {
        let mut argument = [0; N];
        self.0.request(request, &mut argument)?;
        Ok(argument)
    }

    pub fn features(&mut self) -> io::Result<u64> {
        self.get(numbers::GET_FEATURES).map(u64::from_ne_bytes)
    }

    pub fn set_features(&mut self, features: u64) -> io::Result<()> {
        self.set(numbers::SET_FEATURES, features.to_ne_bytes())
    }

    pub fn set_owner(&mut self) -> io::Result<()> {
        self.set(numbers::SET_OWNER, [])
    }

    pub fn set_memory(&mut self, regions: &[SharedRegion]) -> io::Result<()> {
        let mut table = [(regions.len() as u32).to_ne_bytes(), [0; 4]].concat();
        for SharedRegion { region, .. } in regions {
            // The last word is padding here.
            let words = [region.guest, region.size, region.user, 0];
            table.extend(words.map(u64::to_ne_bytes).concat());
        }
        self.set(numbers::SET_MEM_TABLE, table)
    }

    pub fn set_log(&mut self, log: &Log) -> io::Result<()> {
        self.set(numbers::SET_LOG_BASE, log.address().to_ne_bytes())
    }

    /// A ring, up to its events. `index` is the device's own.
    pub fn describe(
        &mut self,
        index: u32,
        ring: &Described,
        addresses: [u64; 3],
        logs: bool,
        events: &Events,
    ) -> io::Result<()> {
        let state = |num| VringState { index, num }.to_bytes();
        self.set(numbers::SET_VRING_NUM, state(ring.layout.size.into()))?;
        self.set(numbers::SET_VRING_BASE, state(ring.base()))?;
        self.set_addresses(index, ring, addresses, logs)?;
        self.set(numbers::SET_VRING_ERR, file(index, events.error.descriptor()))?;
        self.set_call(index, events)?;
        self.set(numbers::SET_VRING_KICK, file(index, events.kick.descriptor()))
    }

    pub fn set_call(&mut self, index: u32, events: &Events) -> io::Result<()> {
        let call = events.called()?;
        self.set(numbers::SET_VRING_CALL, file(index, call.as_raw_fd()))
    }

    pub fn set_addresses(&mut self, index: u32, ring: &Described, addresses: [u64; 3], logs: bool) -> io::Result<()> {
        let [descriptor, available, used] = addresses;
        let address = VringAddress {
            index,
            flags: u32::from(logs),
            descriptor,
            used,
            available,
            log: ring.layout.device_area,
        };
        self.set(numbers::SET_VRING_ADDR, address.to_bytes())
    }

    /// How far it has come: not while it runs.
    pub fn base(&mut self, index: u32) -> io::Result<u16> {
        let mut argument = VringState { index, num: 0 }.to_bytes();
        self.0.request(numbers::GET_VRING_BASE, &mut argument)?;
        let state = VringState::from_bytes(&argument).ok_or(io::ErrorKind::InvalidData)?;
        Ok(state.num as u16)
    }
}

/// `struct vhost_vring_file`. A descriptor of -1 is none.
pub(super) fn file(index: u32, descriptor: RawFd) -> Vec<u8> {
    [index.to_ne_bytes(), descriptor.to_ne_bytes()].concat()
}
