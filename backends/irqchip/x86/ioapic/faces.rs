//! The register face of an IOAPIC.

use super::{
    super::Vector,
    IoApic,
    registers::{EOI, REGION_SIZE},
};
use crate::{bus::BusDevice, sync::lock};

impl IoApic {
    /// Size of the register region in bytes.
    pub const SIZE: u64 = REGION_SIZE;
}

/// The words of 32 bits that an access touches: the offset of each, and which byte of it is which of the access.
fn words(offset: u64, len: usize) -> impl Iterator<Item = (u64, impl Iterator<Item = (u32, usize)> + Clone)> {
    let first = offset & !3;
    // An access that runs past the end of the region ends there.
    let end = offset.saturating_add(len as u64).min(REGION_SIZE);
    (first..end).step_by(4).map(move |word| {
        let bytes = (0..4).filter_map(move |lane| {
            let at = (word + u64::from(lane)).checked_sub(offset)?;
            ((at as usize) < len).then_some((lane * 8, at as usize))
        });
        (word, bytes)
    })
}

/// The registers are of 32 bits. An access of another width or alignment reads and writes the bytes that it covers of
/// each, the others keep what they are.
impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let model = lock(&self.shared.model);
        data.fill(0);
        for (word, bytes) in words(offset, data.len()) {
            let value = model.read(word);
            for (shift, at) in bytes {
                data[at] = (value >> shift) as u8;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.shared.with(|model| {
            for (word, bytes) in words(offset, data.len()) {
                let (mut value, mut lanes) = (0, 0);
                for (shift, at) in bytes {
                    value |= u32::from(data[at]) << shift;
                    lanes |= 0xff << shift;
                }
                model.write(word, value, lanes);
            }
        });
        // Only the low byte of the EOI register has a meaning.
        let eoi = EOI
            .checked_sub(offset)
            .and_then(|at| data.get(usize::try_from(at).ok()?));
        if let Some(vector) = eoi {
            self.shared.eoi(Vector(*vector));
        }
    }
}
