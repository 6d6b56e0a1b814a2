//! What a step can be.

use devisor::backends::irqchip::its::{DeviceId, EventId};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    EPISODE, MIGRATION,
    command::{self, Command, VALID},
    pair::Pair,
    registers::*,
};

impl Pair {
    pub fn step(&mut self, step: u32) {
        self.counts.steps += 1;
        if step.is_multiple_of(EPISODE) || self.read_ours(GITS + CREADR, 8) & STALLED != 0 {
            self.begin_episode();
        }
        match self.random.below(100) {
            0..8 => self.message(),
            8..12 => self.registers(),
            12..14 => self.level_1_entry(),
            14..17 => self.position(),
            _ => self.commands(),
        }
        if step % MIGRATION == MIGRATION - 1 {
            self.note("migration".into());
            self.ours = self.ours.migrated();
        }
        self.compare_registers();
        self.compare_pending();
    }

    /// Lays out tables and queue anew. What is pending stays.
    fn begin_episode(&mut self) {
        self.write_both(GITS + CTLR, 4, 0);
        self.qemu.fill(RAM, AREA, 0);
        self.ours
            .memory
            .write_slice(&vec![0; AREA as usize], GuestAddress(RAM))
            .unwrap();
        let pages = self.random.below(4);
        self.queue_size = u64::from(pages + 1) * 0x1000;
        self.at = 0;
        // QEMU: reads commands where no memory is as zeros, where ours stalls. So the queue is always in memory.
        self.write_both(GITS + CBASER, 8, VALID | QUEUE | u64::from(pages));
        // Some guests may leave it, and find what the queue had before carried out again.
        if self.random.below(4) != 0 {
            self.write_both(GITS + CWRITER, 8, 0);
        }
        for (index, table) in [DEVICE_TABLE, COLLECTION_TABLE].into_iter().enumerate() {
            let table = if self.random.below(32) == 0 { NOWHERE } else { table };
            let page_size = self.random.below(3);
            let indirect = if self.random.below(2) == 0 { INDIRECT } else { 0 };
            let valid = if self.random.below(32) == 0 { 0 } else { VALID };
            let value = valid | indirect | table | u64::from(page_size) << 8;
            self.write_both(GITS + BASER + index as u64 * 8, 8, value);
        }
        // Mostly what is used is there.
        for table in [DEVICE_TABLE, COLLECTION_TABLE] {
            if self.read_ours(GITS + BASER + if table == DEVICE_TABLE { 0 } else { 8 }, 8) & INDIRECT != 0 {
                let page = LEVEL_2 + if table == DEVICE_TABLE { 0 } else { 0x1_0000 };
                self.write_memory(table, &(VALID | page).to_le_bytes());
            }
        }
        self.write_both(GITS + CTLR, 4, 1);
        for cpu in 0..CPUS {
            self.command(command::mapc(cpu as u16, cpu));
        }
        for device in 0..3 {
            self.command(command::mapd(device, itt(device), 5));
            for event in 0..4 {
                let collection = self.random.below(CPUS) as u16;
                self.command(command::mapti(
                    device,
                    event,
                    LPIS.start + device * 8 + event,
                    collection,
                ));
            }
        }
    }

    /// One or several, in one go.
    fn commands(&mut self) {
        for _ in 0..self.random.below(4) {
            let command = self.random_command();
            self.put(command);
        }
        let command = self.random_command();
        self.command(command);
    }

    fn random_command(&mut self) -> Command {
        let device = self.device();
        let event = self.event();
        let collection = self.collection();
        let processor = self.processor();
        match self.random.below(100) {
            0..8 => {
                let itt = match self.random.below(24) {
                    0 => NOWHERE,
                    _ => itt(self.random.below(6)),
                };
                let bits = self.random.pick(&[1, 2, 3, 5, 5, 5, 8, 16, 17, 32]);
                command::mapd(device, itt, bits)
            }
            // QEMU: also looks at the size of one that unmaps. Here it is zero.
            8..10 => command::unmapd(device),
            10..16 => command::mapc(collection, processor),
            16..18 => command::unmapc(collection),
            18..36 => command::mapti(device, event, self.lpi(), collection),
            36..40 => command::mapi(device, self.lpi(), collection),
            40..52 => command::movi(device, event, collection),
            52..72 => command::int(device, event),
            72..78 => command::clear(device, event),
            78..84 => command::discard(device, event),
            84..87 => command::inv(device, event),
            87..89 => command::invall(collection),
            89..91 => command::sync(processor),
            91..96 => command::movall(processor, self.processor()),
            _ => std::array::from_fn(|_| self.random.next()),
        }
    }

    fn device(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[511, 512, 2047, 2048, 8191, 8192, 0xffff]),
            1 => self.random.pick(&[0x1_0000, 0x1_0001, u32::MAX]),
            _ => self.random.below(4),
        }
    }

    fn event(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[31, 32, 33, 255, 0xffff, 0x1_0000, u32::MAX]),
            _ => self.random.below(5),
        }
    }

    fn collection(&mut self) -> u16 {
        match self.random.below(16) {
            0 => self.random.pick(&[511, 512, 2048, 8191, 8192, u16::MAX]),
            _ => self.random.below(5) as u16,
        }
    }

    fn processor(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[CPUS, 0xffff]),
            _ => self.random.below(CPUS),
        }
    }

    fn lpi(&mut self) -> u32 {
        match self.random.below(16) {
            0 => self.random.pick(&[0, 31, 1023, 8191, 0x1_0000, u32::MAX]),
            _ => LPIS.start + self.random.below(40),
        }
    }

    /// QEMU: a store through qtest is one of requester 0. A CPU's own store is none of a device with us, so the message
    /// comes by the other way.
    fn message(&mut self) {
        let event = self.event();
        self.note(format!("message {event:#x}"));
        self.qemu.write(TRANSLATER, 4, event.into());
        self.ours.its.signal(DeviceId(0), EventId(event));
    }

    /// Disabled for a moment, writes to what is frozen, and to what cannot be written.
    fn registers(&mut self) {
        match self.random.below(4) {
            0 => {
                self.write_both(GITS + CTLR, 4, 0);
                self.compare_registers();
                let command = self.random_command();
                self.put(command);
                self.write_both(GITS + CWRITER, 8, self.at);
                self.compare_registers();
                self.write_both(GITS + CTLR, 4, 1);
            }
            1 => {
                let value = self.random.next();
                let offset = BASER + u64::from(self.random.below(8)) * 8;
                self.write_both(GITS + offset, 8, value);
                self.write_both(GITS + CBASER, 8, value);
            }
            2 => {
                let offset = self
                    .random
                    .pick(&[0x0004, 0x0008, 0x000c, 0x0010, 0x0040, 0x0048, 0x0200, 0xffe8]);
                self.write_both(GITS + offset, 4, u64::MAX);
                self.compare_read(GITS + offset.max(0x10), 4);
            }
            _ => {
                for offset in [
                    CBASER,
                    CBASER + 4,
                    CWRITER,
                    CWRITER + 4,
                    CREADR + 4,
                    BASER,
                    BASER + 4,
                    BASER + 12,
                ] {
                    self.compare_read(GITS + offset, 4);
                }
            }
        }
    }

    /// The guest takes a page of the second level away, or puts it back, or elsewhere.
    fn level_1_entry(&mut self) {
        let (index, table) = self.random.pick(&[(0, DEVICE_TABLE), (1, COLLECTION_TABLE)]);
        if self.read_ours(GITS + BASER + index * 8, 8) & INDIRECT == 0 {
            return;
        }
        let page = match self.random.below(8) {
            0 => 0,
            1 => VALID | NOWHERE,
            _ => VALID | (LEVEL_2 + index * 0x1_0000),
        };
        let entry = self.random.pick(&[0_u64, 0, 1]);
        self.write_memory(table + entry * 8, &page.to_le_bytes());
        // What is remembered of the table is forgotten with the next command that changes one.
        self.command(command::mapc(3, 3));
    }

    /// A position beyond the queue, and then the right one again.
    fn position(&mut self) {
        let beyond = self.queue_size + u64::from(self.random.below(4)) * 32;
        self.write_both(GITS + CWRITER, 8, beyond);
        self.compare_registers();
        self.write_both(GITS + CWRITER, 8, self.at);
    }
}
