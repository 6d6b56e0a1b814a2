//! Guests that do anything.

use devisor::{bus::BusDevice, virtio::transport::VirtioTransport};
use proptest::prelude::*;

use crate::{driver::*, rest, ring::writable};

proptest! {
    /// Any accesses of any width anywhere: no panic, and the level is what InterruptStatus says.
    #[test]
    fn any_accesses_are_contained(
        accesses in proptest::collection::vec(
            (prop_oneof![(0u64..64).prop_map(|n| 4 * n), any::<u64>()], 0usize..10, any::<u32>(), any::<bool>()),
            0..200,
        ),
        walk in any::<bool>(),
    ) {
        let (line, heard) = level();
        let driver = Driver::new(line);
        if walk {
            driver.start().request(&[writable(0x8000, 1)]);
        }
        for (offset, len, value, write) in accesses {
            let mut data = vec![0; len];
            for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
                *byte = value;
            }
            match write {
                true => driver.mmio.write(offset, &data),
                false => driver.mmio.read(offset, &mut data),
            }
            let status = rest::mmio(&mut rest::at_rest(&*driver.mmio)).interrupt.status;
            let up = heard.lock().unwrap().last().copied().unwrap_or(false);
            prop_assert_eq!(up, status != 0);
            driver.mmio.resume();
        }
    }
}
