//! What the host sees of the guest's interrupts: what it acknowledges at the GIC.

use std::sync::Arc;

use devisor::{
    backends::irqchip::IntId,
    bus::{BusDevice, read_le},
};

use crate::{counts::Id, watch::Watch};

/// A GIC's CPU interface that counts what the guest acknowledges: reads of GICC_IAR (IHI 0048B, 4.4.4).
pub struct WatchedCpuInterface<D> {
    inner: D,
    watch: Arc<Watch>,
}

const GICC_IAR: u64 = 0x00c;
const INTERRUPT_ID: u64 = 0x3ff;
/// 1020 to 1023 mean that there was nothing to acknowledge.
const FIRST_SPECIAL_ID: u32 = 1020;

impl<D: BusDevice> WatchedCpuInterface<D> {
    pub fn new(inner: D, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }
}

impl<D: BusDevice> BusDevice for WatchedCpuInterface<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.inner.read(offset, data);
        let id = (read_le(data) & INTERRUPT_ID) as u32;
        if offset == GICC_IAR && id < FIRST_SPECIAL_ID {
            self.watch.acknowledged(Id::IntId(IntId(id)));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.inner.write(offset, data);
    }
}
