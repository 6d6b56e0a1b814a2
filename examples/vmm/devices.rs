//! A PC's odds and ends: small, and for test kernels. None of them interrupts.

use std::{mem::MaybeUninit, ptr, sync::Mutex};

use devisor::{
    bus::{BusDevice, read_le},
    interrupt::LevelInterrupt,
};

use crate::{
    complain,
    machine::{End, Ending},
    timers::lock,
};

/// What only takes notice of writes. It reads as zero: of the keyboard controller, no output, and ready for input.
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

/// A port whose `bits` reset the machine when `mask` of what is written equals them: 0x64, 0x92 and 0xcf9.
pub fn reset_port(ending: Ending, mask: u8, bits: u8) -> impl BusDevice {
    Writes(move |_, data: &[u8]| {
        if data.first().is_some_and(|value| value & mask == bits) {
            ending.end(End::Reset);
        }
    })
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

/// QEMU's firmware configuration device: a selector and a port that gives the selected item, byte by byte. It has what kernels
/// ask for that run without firmware.
pub struct FwCfg {
    memory: u64,
    cpus: u16,
    selected: Mutex<(u16, usize)>,
}

impl FwCfg {
    pub fn new(memory: u64, cpus: u32) -> Self {
        Self {
            memory,
            cpus: cpus as u16,
            selected: Mutex::default(),
        }
    }

    fn item(&self, key: u16) -> Vec<u8> {
        match key {
            0x00 => b"QEMU".to_vec(),
            0x01 => 1_u32.to_le_bytes().to_vec(), // the interface: these two ports, no DMA
            0x03 => self.memory.to_le_bytes().to_vec(),
            0x05 | 0x0f => self.cpus.to_le_bytes().to_vec(), // CPUs, and the most there can be
            0x19 => 0_u32.to_be_bytes().to_vec(),            // no files
            _ => Vec::new(),
        }
    }
}

impl BusDevice for FwCfg {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut selected = lock(&self.selected);
        let (key, at) = &mut *selected;
        let item = self.item(*key);
        for byte in data {
            // Past the end of an item there are zeros.
            *byte = item.get(*at).copied().filter(|_| offset == 1).unwrap_or(0);
            *at += usize::from(offset == 1 && *at < item.len());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, 2) = (offset, data.len()) {
            *lock(&self.selected) = (read_le(data) as u16, 0);
        }
    }
}

/// The MC146818's clock, without its interrupts, and its memory: an index port and a data port.
pub struct Cmos(Mutex<CmosState>);

struct CmosState {
    index: u8,
    memory: [u8; 128],
}

impl Cmos {
    pub fn new(memory_size: u64, cpus: u32) -> Self {
        const BASE_KIB: u16 = 640;
        let mut memory = [0; 128];
        let extended = (memory_size >> 10).saturating_sub(1024).min(0xffff) as u16;
        let above_16_mib = (memory_size.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        for (at, value) in [
            (0x15, BASE_KIB),
            (0x17, extended),
            (0x30, extended),
            (0x34, above_16_mib),
        ] {
            memory[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        memory[0x5f] = cpus.saturating_sub(1) as u8;
        Self(Mutex::new(CmosState { index: 0, memory }))
    }
}

impl CmosState {
    fn register(&self) -> u8 {
        let now = now();
        let binary = match self.index {
            0x00 => now.tm_sec,
            0x02 => now.tm_min,
            0x04 => now.tm_hour,
            0x06 => now.tm_wday + 1,
            0x07 => now.tm_mday,
            0x08 => now.tm_mon + 1,
            0x09 => now.tm_year % 100,
            0x32 => now.tm_year / 100 + 19,
            0x0a => return 0x26, // 32768 Hz, and no update in progress
            0x0b => return 0x02, // 24 hours, BCD
            0x0c => return 0,    // no interrupt
            0x0d => return 0x80, // the battery is good
            index => return self.memory[usize::from(index)],
        };
        (binary / 10 * 16 + binary % 10) as u8
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, Some(byte)) = (offset, data.first_mut()) {
            *byte = lock(&self.0).register();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        const NMI_DISABLE: u8 = 0x80;
        let mut state = lock(&self.0);
        match (offset, data.first()) {
            (0, Some(byte)) => state.index = byte & !NMI_DISABLE,
            (1, Some(byte)) => {
                let index = usize::from(state.index);
                state.memory[index] = *byte;
            }
            _ => (),
        }
    }
}

/// The time in UTC.
fn now() -> libc::tm {
    let mut time = MaybeUninit::zeroed();
    // SAFETY: the first call has no place to write to, the second two that are there; a `tm` may be all zeros.
    unsafe {
        libc::gmtime_r(&libc::time(ptr::null_mut()), time.as_mut_ptr());
        time.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_has_the_date_in_bcd() {
        let cmos = Cmos::new(64 << 20, 1);
        let read = |index| {
            let mut byte = [0];
            cmos.write(0, &[index]);
            cmos.read(1, &mut byte);
            byte[0]
        };
        assert_eq!(read(0x32), 0x20);
        for (index, allowed) in [(0x09, 0x24..=0x99), (0x08, 1..=0x12), (0x07, 1..=0x31), (0x06, 1..=7)] {
            let value = read(index);
            assert!(allowed.contains(&value) && value & 0xf < 10, "{index:#x}: {value:#x}");
        }
    }

    #[test]
    fn cpus_that_read_and_write_the_cmos_memory_at_once_do_not_wait_for_each_other_for_ever() {
        use std::{sync::Arc, sync::mpsc, thread, time::Duration};

        let cmos = Arc::new(Cmos::new(64 << 20, 2));
        cmos.write(0, &[0x40]);
        let (done, all) = mpsc::channel();
        for reads in [true, false] {
            let (cmos, done) = (Arc::clone(&cmos), done.clone());
            thread::spawn(move || {
                for _ in 0..100_000 {
                    match reads {
                        true => cmos.read(1, &mut [0]),
                        false => cmos.write(1, &[7]),
                    }
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..2 {
            all.recv_timeout(Duration::from_secs(20))
                .expect("both come to their end");
        }
    }

    #[test]
    fn fw_cfg_gives_each_item_from_its_beginning_and_zeros_after_its_end() {
        let fw_cfg = FwCfg::new(64 << 20, 3);
        let read = |key: u16, len| {
            fw_cfg.write(0, &key.to_le_bytes());
            (0..len)
                .map(|_| {
                    let mut byte = [0xff];
                    fw_cfg.read(1, &mut byte);
                    byte[0]
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(read(0x00, 5), *b"QEMU\0");
        assert_eq!(read(0x00, 2), *b"QE");
        assert_eq!(read(0x03, 8), (64_u64 << 20).to_le_bytes());
        assert_eq!(read(0x05, 2), [3, 0]);
        assert_eq!(read(0x0f, 3), [3, 0, 0]);
        assert_eq!(read(0xffff, 2), [0, 0]);
    }
}
