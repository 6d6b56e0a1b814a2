//! How worn a storage is.

/// How worn a storage is (`struct virtio_blk_lifetime`, section 5.2.6), as eMMC counts it (JESD84-B50).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// How many of the reserved blocks are used up: zero if that is not known, 1 for fewer than 80 %, 2 from there on, 3 from 90 % on.
    pub pre_eol_info: u16,
    /// Wear of cells of one bit: zero if that is not known, 1 to 10 for up to so many tenths of the expected life, 11 beyond.
    pub device_lifetime_est_typ_a: u16,
    /// Wear of cells of several bits, in the same way.
    pub device_lifetime_est_typ_b: u16,
}

impl Lifetime {
    pub(in crate::virtio::block) fn to_bytes(self) -> [u8; 6] {
        let Self {
            pre_eol_info,
            device_lifetime_est_typ_a,
            device_lifetime_est_typ_b,
        } = self;
        let mut bytes = [0; 6];
        bytes[..2].copy_from_slice(&pre_eol_info.to_le_bytes());
        bytes[2..4].copy_from_slice(&device_lifetime_est_typ_a.to_le_bytes());
        bytes[4..].copy_from_slice(&device_lifetime_est_typ_b.to_le_bytes());
        bytes
    }
}
