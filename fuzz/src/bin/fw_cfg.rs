//! The firmware configuration device: DMA commands anywhere, with anything in them, leave what cannot be written as it was, and a
//! state that was saved is taken back.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    bus::BusDevice,
    platform::fw_cfg::{FwCfg, FwCfgMmio, FwCfgPorts, Key},
};
use devisor_fuzz::Access;
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 0x1_0000;
const FIXED: &[u8] = b"these bytes are for reading";

#[derive(Arbitrary, Debug)]
enum Step {
    Ports(Access),
    Mmio(Access),
    Select(u8),
    Read(u8),
    Dma {
        control: u8,
        key: u8,
        length: u32,
        address: u64,
        at: u16,
    },
    Memory {
        at: u16,
        bytes: [u8; 8],
    },
    Reset,
    Restore {
        selector: u16,
        offset: u32,
        len: u8,
    },
}

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    fw_cfg: FwCfg,
    ports: FwCfgPorts,
    mmio: FwCfgMmio,
    fixed: Key,
    writable: Key,
}

impl Machine {
    fn new() -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let fw_cfg = FwCfg::new(Arc::clone(&memory));
        Self {
            fixed: fw_cfg.add_file("fixed", FIXED).unwrap(),
            writable: fw_cfg
                .add_writable_file("writable", vec![0; 40], |bytes| assert_eq!(bytes.len(), 40))
                .unwrap(),
            ports: fw_cfg.ports(),
            mmio: fw_cfg.mmio(),
            memory,
            fw_cfg,
        }
    }

    fn key(key: u8) -> u16 {
        [0x00, 0x01, 0x19, 0x20, 0x21, 0x22, 0x4020, 0x4021, 0x8020][usize::from(key % 9)]
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ports(access) => access.run(&self.ports, FwCfgPorts::SIZE, 4),
            Step::Mmio(access) => access.run(&self.mmio, FwCfgMmio::SIZE, 8),
            Step::Select(key) => self.ports.write(0, &Self::key(key).to_le_bytes()),
            Step::Read(len) => self.ports.read(1, &mut vec![0; len.into()]),
            Step::Dma {
                control,
                key,
                length,
                address,
                at,
            } => {
                let control = u32::from(Self::key(key)) << 16 | u32::from(control);
                // Mostly little, and to memory.
                let length = if length >> 28 == 0 { length } else { length % 64 };
                let address = if address >> 60 == 0 {
                    address
                } else {
                    address % MEMORY as u64
                };
                let command = [
                    &control.to_be_bytes()[..],
                    &length.to_be_bytes(),
                    &address.to_be_bytes(),
                ]
                .concat();
                let _ = self.memory.write(&command, GuestAddress(at.into()));
                self.mmio.write(16, &u64::from(at).to_be_bytes());
            }
            Step::Memory { at, bytes } => _ = self.memory.write(&bytes, GuestAddress(at.into())),
            Step::Reset => self.fw_cfg.reset(),
            Step::Restore { selector, offset, len } => {
                let mut state = self.fw_cfg.save();
                (state.selector, state.offset) = (selector, offset);
                state.written.insert(self.writable, vec![7; len.into()]);
                assert_eq!(self.fw_cfg.restore(&state).is_ok(), len == 40);
                assert_eq!(self.fw_cfg.save() == state, len == 40);
            }
        }
    }

    fn check(&self) {
        let state = self.fw_cfg.save();
        assert_eq!(state.written.keys().collect::<Vec<_>>(), [&self.writable]);
        let other = Self::new();
        other.fw_cfg.restore(&state).expect("it was saved");
        assert_eq!(other.fw_cfg.save(), state);
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut machine = Machine::new();
    for step in steps.iter().take(100) {
        machine.step(step);
    }
    machine.check();
    machine.ports.write(0, &machine.fixed.0.to_le_bytes());
    let mut bytes = [0; FIXED.len()];
    machine.ports.read(1, &mut bytes);
    assert_eq!(bytes, FIXED);
});
