//! The control queue (virtio 1.2, section 5.1.6.5).

use std::sync::{Arc, OnceLock};

use super::{
    Coalescing, Mac, MacTable, Offloads, Steering,
    filter::MAC_TABLE,
    hash::{MAX_KEY, MAX_TABLE},
    registers::{control, feature},
    settings::{Hashing, Settings},
    shared::Shared,
};
use crate::virtio::{
    ChainError, Fault, Handle, QueueHandler, QueueIndex, Round,
    queue::{Chain, Reader},
};

/// Serves `controlq`.
pub(super) struct Control {
    shared: Arc<Shared>,
    handle: Arc<OnceLock<Handle>>,
}

/// A command that gets VIRTIO_NET_ERR; nothing has changed.
struct Refused;

impl From<ChainError> for Refused {
    fn from(_: ChainError) -> Self {
        Self
    }
}

/// What a command has come to.
enum Answer {
    /// Done, and to be seen by all queues before the driver is told.
    Done,
    /// An answer in front of `ack`.
    Coalescing(Coalescing),
}

impl Control {
    pub fn new(shared: Arc<Shared>, handle: Arc<OnceLock<Handle>>) -> Self {
        Self { shared, handle }
    }

    fn answer(&self, command: Reader<'_>) -> Result<Answer, Refused> {
        let mut command = command;
        let [class, number] = read(&mut command)?;
        let settings = self.shared.settings();
        match class {
            control::RX => self.set_mode(&settings, number, &mut command)?,
            control::MAC => self.set_address(&settings, number, &mut command)?,
            control::VLAN => self.set_vlan(&settings, number, &mut command)?,
            control::ANNOUNCE if number == control::ANNOUNCE_ACK && settings.has(feature::GUEST_ANNOUNCE) => {
                ended(&command)?;
                self.show(|settings| settings.announce = false);
            }
            control::MQ => self.set_steering(&settings, number, &mut command)?,
            control::GUEST_OFFLOADS
                if number == control::GUEST_OFFLOADS_SET && settings.has(feature::CTRL_GUEST_OFFLOADS) =>
            {
                self.set_offloads(&settings, &mut command)?;
            }
            control::NOTF_COAL => return self.coalesce(&settings, number, &mut command),
            _ => return Err(Refused),
        }
        Ok(Answer::Done)
    }

    /// Changes what the configuration space shows, where the driver is told of it.
    fn show(&self, change: impl FnOnce(&mut Settings)) {
        let mut change = Some(change);
        let mut apply = || {
            if let Some(change) = change.take() {
                self.shared.change(change);
            }
        };
        if let Some(handle) = self.handle.get() {
            handle.change_config(&mut apply);
        }
        // Without a transport there is nobody to tell.
        apply();
    }

    /// VIRTIO_NET_CTRL_RX.
    fn set_mode(&self, settings: &Settings, number: u8, command: &mut Reader<'_>) -> Result<(), Refused> {
        let needed = match number {
            control::RX_PROMISC | control::RX_ALLMULTI => feature::CTRL_RX,
            _ => feature::CTRL_RX_EXTRA,
        };
        let on = match read(command)? {
            [0] => false,
            [1] => true,
            _ => return Err(Refused),
        };
        ended(command)?;
        if !settings.has(needed) {
            return Err(Refused);
        }
        self.shared.change(|settings| {
            let modes = &mut settings.filter.modes;
            let mode = match number {
                control::RX_PROMISC => &mut modes.promiscuous,
                control::RX_ALLMULTI => &mut modes.all_multicast,
                control::RX_ALLUNI => &mut modes.all_unicast,
                control::RX_NOMULTI => &mut modes.no_multicast,
                control::RX_NOUNI => &mut modes.no_unicast,
                control::RX_NOBCAST => &mut modes.no_broadcast,
                _ => return Err(Refused),
            };
            *mode = on;
            Ok(())
        })
    }

    /// VIRTIO_NET_CTRL_MAC.
    fn set_address(&self, settings: &Settings, number: u8, command: &mut Reader<'_>) -> Result<(), Refused> {
        match number {
            control::MAC_TABLE_SET if settings.has(feature::CTRL_RX) => {
                let unicast = read_table(command)?;
                let multicast = read_table(command)?;
                ended(command)?;
                // A group among the first would let it through however multicast is set.
                let mixed = unicast.addresses.iter().any(|mac| mac.is_group());
                if mixed || multicast.addresses.iter().any(|mac| !mac.is_group()) {
                    return Err(Refused);
                }
                self.shared.change(|settings| {
                    settings.filter.unicast = unicast;
                    settings.filter.multicast = multicast;
                });
                Ok(())
            }
            control::MAC_ADDR_SET if settings.has(feature::CTRL_MAC_ADDR) => {
                let mac = Mac(read(command)?);
                ended(command)?;
                if !mac.is_station() {
                    return Err(Refused);
                }
                self.show(|settings| settings.mac = Some(mac));
                Ok(())
            }
            _ => Err(Refused),
        }
    }

    /// VIRTIO_NET_CTRL_VLAN.
    fn set_vlan(&self, settings: &Settings, number: u8, command: &mut Reader<'_>) -> Result<(), Refused> {
        let on = match number {
            control::VLAN_ADD => true,
            control::VLAN_DEL => false,
            _ => return Err(Refused),
        };
        let vlan = u16::from_le_bytes(read(command)?);
        ended(command)?;
        if !settings.has(feature::CTRL_VLAN) || vlan > 4095 {
            return Err(Refused);
        }
        self.shared.change(|settings| settings.filter.vlans.set(vlan, on));
        Ok(())
    }

    /// VIRTIO_NET_CTRL_MQ: the last command of any kind decides (section 5.1.6.5.5).
    fn set_steering(&self, settings: &Settings, number: u8, command: &mut Reader<'_>) -> Result<(), Refused> {
        let known = settings.known_pairs(&self.shared.options);
        match number {
            control::MQ_VQ_PAIRS_SET if settings.has(feature::MQ) => {
                let pairs = u16::from_le_bytes(read(command)?);
                ended(command)?;
                if !(1..=known).contains(&pairs) {
                    return Err(Refused);
                }
                self.shared.change(|settings| {
                    settings.pairs = pairs;
                    // What is reported stays; who steers is another.
                    if let Some(hash) = settings.hash.take_if(|hash| hash.steering.is_some()) {
                        settings.hash = settings
                            .has(feature::HASH_REPORT)
                            .then(|| Arc::new(Hashing::new(hash.types, &hash.key, None)));
                    }
                });
            }
            control::MQ_RSS_CONFIG if settings.has(feature::RSS) => {
                let types = self.read_types(command)?;
                let [mask, unclassified] = read_numbers(command)?;
                // "MUST be a power of two", and less than the length that was told.
                let entries = usize::from(mask) + 1;
                if !entries.is_power_of_two() || entries > MAX_TABLE {
                    return Err(Refused);
                }
                let table = (0..entries).map(|_| Ok(u16::from_le_bytes(read(command)?)));
                let table: Vec<_> = table.collect::<Result<_, Refused>>()?;
                let [max_tx_vq] = read_numbers(command)?;
                let key = read_key(command)?;
                ended(command)?;
                let there = table.iter().chain([&unclassified]).all(|&pair| pair < known);
                if !there || !(1..=known).contains(&max_tx_vq) {
                    return Err(Refused);
                }
                let steering = Steering {
                    unclassified,
                    table,
                    max_tx_vq,
                };
                let hashing = Arc::new(Hashing::new(types, &key, Some(steering)));
                self.shared.change(|settings| settings.hash = Some(hashing));
            }
            control::MQ_HASH_CONFIG if settings.has(feature::HASH_REPORT) => {
                let types = self.read_types(command)?;
                // "MUST contain all zeroes", but Linux has the number of its queues in the last, as for the command above.
                let _reserved: [u16; 4] = read_numbers(command)?;
                let key = read_key(command)?;
                ended(command)?;
                let hashing = Arc::new(Hashing::new(types, &key, None));
                self.shared.change(|settings| settings.hash = Some(hashing));
            }
            _ => return Err(Refused),
        }
        self.shared.tell_ports();
        // One that is in use from here on has its buffers already, and one that is not any more hands over what waits for it.
        if let Some(handle) = self.handle.get() {
            (0..known).for_each(|pair| handle.look(QueueIndex(pair * 2)));
        }
        Ok(())
    }

    fn read_types(&self, command: &mut Reader<'_>) -> Result<u32, Refused> {
        let types = u32::from_le_bytes(read(command)?);
        match types & !self.shared.options.hash_types {
            0 => Ok(types),
            _ => Err(Refused),
        }
    }

    /// VIRTIO_NET_CTRL_GUEST_OFFLOADS.
    fn set_offloads(&self, settings: &Settings, command: &mut Reader<'_>) -> Result<(), Refused> {
        let offloads = u64::from_le_bytes(read(command)?);
        ended(command)?;
        // "MUST NOT enable an offload for which the appropriate feature has not been negotiated."
        if offloads & !(settings.negotiated & feature::GUEST_OFFLOADS) != 0 {
            return Err(Refused);
        }
        self.shared
            .change(|settings| settings.offloads = Some(Offloads::from_guest(offloads)));
        self.shared.tell_ports();
        Ok(())
    }

    /// VIRTIO_NET_CTRL_NOTF_COAL (section 5.1.6.5.8). Notifications that are held by now come by what was set when they were.
    fn coalesce(&self, settings: &Settings, number: u8, command: &mut Reader<'_>) -> Result<Answer, Refused> {
        let of_one = matches!(number, control::NOTF_COAL_VQ_SET | control::NOTF_COAL_VQ_GET);
        let needed = if of_one {
            feature::VQ_NOTF_COAL
        } else {
            feature::NOTF_COAL
        };
        if !settings.has(needed) {
            return Err(Refused);
        }
        let queue = match of_one {
            true => {
                let [queue, _reserved] = read_numbers(command)?;
                let known = settings.known_pairs(&self.shared.options) * 2;
                Some(usize::from(queue)).filter(|_| queue < known)
            }
            false => None,
        };
        if of_one && queue.is_none() {
            return Err(Refused);
        }
        if number == control::NOTF_COAL_VQ_GET {
            ended(command)?;
            let told = queue.and_then(|queue| settings.coalescing.get(queue)).ok_or(Refused)?;
            return Ok(Answer::Coalescing(*told));
        }
        let [max_packets, max_usecs] = [read(command)?, read(command)?].map(u32::from_le_bytes);
        ended(command)?;
        let is_meant = |at: usize| match number {
            control::NOTF_COAL_TX_SET => at & 1 == 1,
            control::NOTF_COAL_RX_SET => at & 1 == 0,
            _ => queue == Some(at),
        };
        if number > control::NOTF_COAL_VQ_SET {
            return Err(Refused);
        }
        let coalescing = settings
            .coalescing
            .iter()
            .enumerate()
            .map(|(at, &old)| match is_meant(at) {
                true => Coalescing { max_packets, max_usecs },
                false => old,
            });
        let coalescing = coalescing.collect();
        self.shared.change(|settings| settings.coalescing = coalescing);
        Ok(Answer::Done)
    }

    /// Writes the answer into the chain. Whether that went well, and how long it is.
    fn write(&self, chain: &Chain<'_, '_>, answer: &Result<Answer, Refused>) -> Result<u32, ChainError> {
        let mut room = chain.writer();
        match answer {
            Ok(Answer::Done) => room.write(&[control::OK])?,
            Err(Refused) => room.write(&[control::ERR])?,
            Ok(Answer::Coalescing(Coalescing { max_packets, max_usecs })) if room.remaining() > 8 => {
                room.write(&max_packets.to_le_bytes())?;
                room.write(&max_usecs.to_le_bytes())?;
                room.write(&[control::OK])?;
            }
            // No room for what was asked for.
            Ok(Answer::Coalescing(_)) => room.write(&[control::ERR])?,
        }
        Ok(chain.writable_len() - room.remaining())
    }
}

fn read<const N: usize>(command: &mut Reader<'_>) -> Result<[u8; N], Refused> {
    let mut bytes = [0; N];
    command.read(&mut bytes)?;
    Ok(bytes)
}

fn read_numbers<const N: usize>(command: &mut Reader<'_>) -> Result<[u16; N], Refused> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = u16::from_le_bytes(read(command)?);
    }
    Ok(numbers)
}

/// `hash_key_length` and `hash_key_data`.
fn read_key(command: &mut Reader<'_>) -> Result<Vec<u8>, Refused> {
    let [len] = read(command)?;
    let len = usize::from(len);
    if len > MAX_KEY {
        return Err(Refused);
    }
    let mut key = [0; MAX_KEY];
    command.read(&mut key[..len])?;
    Ok(key[..len].to_vec())
}

/// `struct virtio_net_ctrl_mac`. Of a table that is too long its length alone is looked at.
fn read_table(command: &mut Reader<'_>) -> Result<MacTable, Refused> {
    let entries = u32::from_le_bytes(read(command)?);
    let bytes = entries.checked_mul(6).filter(|&bytes| bytes <= command.remaining());
    let bytes = bytes.ok_or(Refused)?;
    let overflown = entries as usize > MAC_TABLE;
    let mut table = MacTable {
        addresses: Vec::new(),
        overflown,
    };
    if !overflown {
        for _ in 0..entries {
            table.addresses.push(Mac(read(command)?));
        }
        return Ok(table);
    }
    let mut left = bytes as usize;
    let mut block = [0; 512];
    // Bounded by what a control command may be.
    while left != 0 {
        let len = left.min(block.len());
        command.read(&mut block[..len])?;
        left -= len;
    }
    Ok(table)
}

/// A command that goes on after its end is not what it says.
fn ended(command: &Reader<'_>) -> Result<(), Refused> {
    match command.remaining() {
        0 => Ok(()),
        _ => Err(Refused),
    }
}

/// The longest command: two tables of addresses that overflow the filter by far.
const MAX_COMMAND: u32 = 64 * 1024;

impl QueueHandler for Control {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            // No place for `ack`.
            if chain.writable_len() == 0 {
                chain.refuse()?;
                continue;
            }
            let answer = match chain.readable_len() {
                ..=MAX_COMMAND => self.answer(chain.reader()),
                _ => Err(Refused),
            };
            let Ok(written) = self.write(&chain, &answer) else {
                chain.refuse()?;
                continue;
            };
            match answer {
                Ok(Answer::Done) if !self.shared.is_settled() => self.shared.complete_when_settled(chain.take()),
                _ => chain.complete(written)?,
            }
        }
        Ok(())
    }
}

/// Serves a queue that the negotiated features do not have: nobody is there.
pub(super) struct Nobody;

impl QueueHandler for Nobody {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        while let Some(chain) = round.next()? {
            chain.refuse()?;
        }
        Ok(())
    }
}
