//! What test kernels expect beside a PC's devices: a port that ends the process, and ports for the lines.

use devisor::{
    bus::{BusDevice, read_le},
    interrupt::LevelInterrupt,
};

use crate::{
    complain,
    machine::{End, Ending},
};

/// What only takes notice of writes. It reads as zero.
struct Writes<F>(F);

impl<F: Fn(u64, &[u8]) + Send + Sync> BusDevice for Writes<F> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0(offset, data);
    }
}

/// Port 0xf4, four bytes: the guest ends the process.
pub fn exit_port(ending: Ending) -> impl BusDevice {
    Writes(move |_, data: &[u8]| ending.end(End::Status((read_le(data) << 1 | 1) as u8)))
}

/// A port for each pin of the IOAPIC: its level.
pub fn line_tester(lines: Vec<Option<Box<dyn LevelInterrupt>>>) -> impl BusDevice {
    Writes(move |offset, data: &[u8]| {
        for (byte, line) in data.iter().zip(lines.iter().skip(offset as usize)) {
            let Some(line) = line else { continue };
            let told = if *byte != 0 { line.trigger() } else { line.clear() };
            if let Err(error) = told {
                complain(&format_args!("the line tester: {error}"));
            }
        }
    })
}
