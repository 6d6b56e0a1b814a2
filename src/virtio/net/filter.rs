//! Which received frames are for the guest (virtio 1.2, sections 5.1.6.5.1 to 5.1.6.5.3).

use super::Mac;

/// Addresses of one kind that the filter holds. A driver that has more of them gets all frames of that kind, as the
/// specification allows.
pub const MAC_TABLE: usize = 64;

/// The receive modes of VIRTIO_NET_CTRL_RX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxModes {
    /// Everything.
    pub promiscuous: bool,
    /// All multicast frames.
    pub all_multicast: bool,
    /// All unicast frames.
    pub all_unicast: bool,
    /// No multicast frames.
    pub no_multicast: bool,
    /// No unicast frames.
    pub no_unicast: bool,
    /// No broadcast frames.
    pub no_broadcast: bool,
}

/// One of the two tables of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacTable {
    /// The addresses, up to [`MAC_TABLE`] of them.
    pub addresses: Vec<Mac>,
    /// There were more: all of the kind are let through.
    pub overflown: bool,
}

impl MacTable {
    fn lets_through(&self, mac: Mac) -> bool {
        self.overflown || self.addresses.contains(&mac)
    }
}

/// A bit for each of the 4096 VLANs.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Vlans([u64; 64]);

impl Default for Vlans {
    fn default() -> Self {
        Self([0; 64])
    }
}

impl Vlans {
    /// Whether there is such a VLAN.
    pub fn set(&mut self, vlan: u16, on: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(vlan / 64)) else {
            return false;
        };
        let bit = 1 << (vlan % 64);
        *word = if on { *word | bit } else { *word & !bit };
        true
    }

    pub fn has(&self, vlan: u16) -> bool {
        self.0
            .get(usize::from(vlan / 64))
            .is_some_and(|word| word & 1 << (vlan % 64) != 0)
    }

    pub fn list(&self) -> Vec<u16> {
        (0..4096).filter(|&vlan| self.has(vlan)).collect()
    }
}

/// What the driver has set.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub modes: RxModes,
    pub unicast: MacTable,
    pub multicast: MacTable,
    pub vlans: Vlans,
}

/// What of the filter is in force, by the features that the driver has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct InForce {
    /// VIRTIO_NET_F_CTRL_RX. Without it there is no way to ask for more, so everything is received.
    pub addresses: bool,
    /// VIRTIO_NET_F_CTRL_VLAN.
    pub vlans: bool,
}

/// As many bytes of a frame as the filter looks at.
pub(super) const LOOK: usize = 18;

impl Filter {
    /// Whether every frame is let through.
    pub fn is_open(&self, in_force: InForce) -> bool {
        (!in_force.addresses || self.modes.promiscuous) && !in_force.vlans
    }

    /// Whether a frame that begins with `start` is for the guest whose address is `own`, if it has one that is known.
    pub fn lets_through(&self, start: &[u8], own: Option<Mac>, in_force: InForce) -> bool {
        let Some(destination) = start.first_chunk::<6>() else {
            return false;
        };
        (!in_force.vlans || self.lets_vlan_through(start))
            && (!in_force.addresses || self.lets_address_through(Mac(*destination), own))
    }

    /// The filter "applies only to VLAN tagged packets", also in promiscuous mode.
    fn lets_vlan_through(&self, start: &[u8]) -> bool {
        const TAG: [u8; 2] = [0x81, 0x00];
        match start.get(12..16) {
            Some(&[a, b, high, low]) if [a, b] == TAG => self.vlans.has(u16::from_be_bytes([high & 0x0f, low])),
            _ => true,
        }
    }

    fn lets_address_through(&self, destination: Mac, own: Option<Mac>) -> bool {
        let modes = &self.modes;
        if modes.promiscuous {
            return true;
        }
        if destination == Mac::BROADCAST {
            return !modes.no_broadcast;
        }
        if destination.is_group() {
            return !modes.no_multicast && (modes.all_multicast || self.multicast.lets_through(destination));
        }
        let is_own = own.is_none_or(|own| own == destination);
        !modes.no_unicast && (modes.all_unicast || is_own || self.unicast.lets_through(destination))
    }
}
