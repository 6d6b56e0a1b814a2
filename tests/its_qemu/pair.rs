//! The two models side by side: how both are reached, and what is compared.

use std::collections::BTreeSet;

use devisor::bus::{BusDevice, read_le};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    beside::{Random, Steps},
    command::Command,
    counts::Counts,
    ours::Ours,
    qtest::Qtest,
    registers::*,
};

/// The two models, and what the generator remembers.
pub struct Pair {
    pub qemu: Qtest,
    pub ours: Ours,
    pub random: Random,
    /// Where the next command goes.
    pub at: u64,
    pub queue_size: u64,
    /// The last that were pending.
    pub pending: BTreeSet<(u32, u32)>,
    pub steps: Steps,
    pub counts: Counts,
}

impl Pair {
    pub fn new(qemu: Qtest, seed: u64) -> Self {
        let mut pair = Self {
            qemu,
            ours: Ours::new(),
            random: Random(seed),
            at: 0,
            queue_size: 0x1000,
            pending: BTreeSet::new(),
            steps: Steps::new(seed),
            counts: Counts::default(),
        };
        for cpu in 0..CPUS {
            pair.write_both(
                GICR + u64::from(cpu) * GICR_SIZE + GICR_PROPBASER,
                8,
                CONFIGURATION_TABLE | 15,
            );
            let table = PENDING_TABLES + u64::from(cpu) * 0x1_0000;
            pair.write_both(GICR + u64::from(cpu) * GICR_SIZE + GICR_PENDBASER, 8, table | 1 << 62);
            pair.write_both(GICR + u64::from(cpu) * GICR_SIZE + GICR_CTLR, 4, 1);
        }
        pair
    }

    pub fn compare_identification(&mut self) {
        // QEMU: its interrupt translation tables have entries of 12 bytes. GITS_IIDR says who made it.
        let entry_size = 0xf << 4;
        let (qemu, ours) = (self.read_qemu(GITS + TYPER, 8), self.read_ours(GITS + TYPER, 8));
        self.compare("GITS_TYPER", qemu & !entry_size, ours & !entry_size);
        for offset in (0xffd0..0x1_0000).step_by(4) {
            self.compare_read(GITS + offset, 4);
        }
        self.compare_registers();
    }

    // What is compared.

    pub fn compare_registers(&mut self) {
        for offset in [CBASER, CWRITER, CREADR].into_iter().chain((BASER..0x140).step_by(8)) {
            self.compare_read(GITS + offset, 8);
        }
        // QEMU: says Quiescent while it is enabled, too.
        let (qemu, ours) = (self.read_qemu(GITS + CTLR, 4), self.read_ours(GITS + CTLR, 4));
        let quiescent = if ours & 1 != 0 { QUIESCENT } else { 0 };
        self.compare("GITS_CTLR", qemu & !quiescent, ours);
    }

    pub fn compare_pending(&mut self) {
        // Ours are in the table when the state is taken.
        self.ours.gic.save();
        let mut all = [BTreeSet::new(), BTreeSet::new()];
        for cpu in 0..CPUS {
            let address = PENDING_TABLES + u64::from(cpu) * 0x1_0000 + u64::from(LPIS.start / 8);
            let mut ours = vec![0; LPIS.len() / 8];
            self.ours.memory.read_slice(&mut ours, GuestAddress(address)).unwrap();
            let qemu = self.qemu.read_bytes(address, ours.len());
            for (all, bytes) in all.iter_mut().zip([&qemu, &ours]) {
                let pending = LPIS.filter(|lpi| {
                    let bit = lpi - LPIS.start;
                    bytes[bit as usize / 8] >> (bit % 8) & 1 != 0
                });
                all.extend(pending.map(|lpi| (cpu, lpi)));
            }
        }
        let [qemu, ours] = all;
        self.counts.reads += CPUS;
        if qemu != ours {
            let only = |one: &BTreeSet<_>, other| one.difference(other).copied().collect::<Vec<(u32, u32)>>();
            self.fail(&format!(
                "pending with QEMU only {:?}, with ours only {:?}; before {:?}",
                only(&qemu, &ours),
                only(&ours, &qemu),
                self.pending
            ));
        }
        if ours != self.pending {
            self.counts.pending += 1;
            self.pending = ours;
        }
    }

    pub fn compare_read(&mut self, address: u64, width: usize) {
        let (qemu, ours) = (self.read_qemu(address, width), self.read_ours(address, width));
        self.compare(&format!("{address:#x}"), qemu, ours);
    }

    pub fn compare(&mut self, what: &str, qemu: u64, ours: u64) {
        self.counts.reads += 1;
        if qemu != ours {
            self.fail(&format!("{what}: QEMU has {qemu:#x}, ours {ours:#x}"));
        }
    }

    pub fn fail(&self, what: &str) -> ! {
        self.steps.fail(what, self.counts.steps, &self.ours.its.save())
    }

    // How the two are reached.

    /// Puts a command into the queue, and says so only with the next one that is carried out.
    pub fn put(&mut self, command: Command) {
        self.note(format!("command at {:#x}: {command:x?}", self.at));
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.write_memory(QUEUE + self.at, &bytes);
        self.at = (self.at + 32) % self.queue_size;
    }

    pub fn command(&mut self, command: Command) {
        let refused = self.ours.its.refused_commands();
        self.put(command);
        self.write_both(GITS + CWRITER, 8, self.at);
        self.counts.refused += (self.ours.its.refused_commands() - refused) as u32;
        self.counts.stalls += (self.read_ours(GITS + CREADR, 8) & STALLED) as u32;
    }

    pub fn write_memory(&mut self, address: u64, data: &[u8]) {
        self.qemu.write_bytes(address, data);
        self.ours.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn write_both(&mut self, address: u64, width: usize, value: u64) {
        self.note(format!("write of {width} bytes at {address:#x}: {value:#x}"));
        self.qemu.write(address, width, value);
        let (face, offset) = self.face(address);
        face.write(offset, &value.to_le_bytes()[..width]);
    }

    pub fn read_ours(&self, address: u64, width: usize) -> u64 {
        let mut data = [0; 8];
        let (face, offset) = self.face(address);
        face.read(offset, &mut data[..width]);
        read_le(&data)
    }

    pub fn face(&self, address: u64) -> (&dyn BusDevice, u64) {
        match address.checked_sub(GICR) {
            None => (&self.ours.frame, address - GITS),
            Some(offset) => {
                let cpu = (offset / GICR_SIZE) as usize;
                (&self.ours.redistributors[cpu], offset % GICR_SIZE)
            }
        }
    }

    pub fn read_qemu(&mut self, address: u64, width: usize) -> u64 {
        self.qemu.read(address, width)
    }

    pub fn note(&mut self, line: String) {
        self.steps.note(line);
    }
}
