//! A driver of either format.

use std::sync::Arc;

use devisor::virtio::{features, queue::QueueLayout};
use vm_memory::{GuestMemoryMmap, bitmap::Bitmap};

use crate::{
    packed::PackedRing,
    ring::{Buffer, Ring},
};

pub trait Driver<B> {
    /// What it takes besides what both do.
    const FORMAT: u64;

    fn new(memory: &Arc<GuestMemoryMmap<B>>, layout: QueueLayout) -> Self;
    fn add(&mut self, buffers: &[Buffer]) -> u16;
    fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16;
    fn offer(&mut self, head: u16);
    fn used(&mut self) -> Vec<(u32, u32)>;
}

macro_rules! driver {
    ($ring:ident, $format:expr) => {
        impl<B: Bitmap + Send + Sync + 'static> Driver<B> for $ring<B> {
            const FORMAT: u64 = $format;

            fn new(memory: &Arc<GuestMemoryMmap<B>>, layout: QueueLayout) -> Self {
                $ring::at(memory, layout)
            }

            fn add(&mut self, buffers: &[Buffer]) -> u16 {
                self.add(buffers)
            }

            fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
                self.add_indirect(table, buffers)
            }

            fn offer(&mut self, head: u16) {
                self.offer(head);
            }

            fn used(&mut self) -> Vec<(u32, u32)> {
                self.used()
            }
        }
    };
}

driver!(Ring, 0);
driver!(PackedRing, features::RING_PACKED);
