//! That a page is marked dirty after its bytes are written, whoever writes them: who migrates the guest may see the mark and copy the
//! page at once, and then never again.

#[path = "support/copied.rs"]
mod copied;
#[path = "support/packed.rs"]
mod packed;
#[path = "support/ring.rs"]
mod ring;
#[path = "support/translated.rs"]
mod translated;

use std::sync::Arc;

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueHandler, QueueIndex, VirtioDevice,
        block::{Block, BlockOptions, MemoryStorage, Synchronous},
        features,
        net::{Header, Net, NetOptions, Port, Switch, SwitchOptions},
        queue::{QueueLayout, SeveralRoom, Silent, Slices},
    },
};
use packed::PackedRing;
use ring::{Buffer, Ring, readable, writable};
use translated::Translated;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

const SIZE: u16 = 32;
/// The second region begins in the middle of a buffer.
const SEAM: u64 = 0x5_0000;
const END: u64 = 0x6_0000;

/// The areas of a ring each have a page, and so have the entries of a used ring after its index.
const LAYOUT: QueueLayout = QueueLayout {
    size: SIZE,
    descriptor_area: 0x1000,
    driver_area: 0x2000,
    device_area: 0x4000 - 4,
};

/// What kind of ring is in what kind of memory.
#[derive(Clone, Copy, Debug)]
struct Kind {
    packed: bool,
    event_idx: bool,
    /// Whether host addresses are stable.
    hosts: bool,
}

fn kinds() -> impl Iterator<Item = Kind> {
    (0..8).map(|bits| Kind {
        packed: bits & 1 != 0,
        event_idx: bits & 2 != 0,
        hosts: bits & 4 != 0,
    })
}

enum Driver {
    Split(Ring<copied::Copied>),
    Packed(PackedRing<copied::Copied>),
}

/// A queue, its driver, and who copies their memory.
struct Rig {
    kind: Kind,
    ram: Arc<copied::Memory>,
    driver: Driver,
    queue: Queue,
}

impl Rig {
    fn new(kind: Kind) -> Self {
        let regions = [
            (GuestAddress(0), SEAM as usize),
            (GuestAddress(SEAM), (END - SEAM) as usize),
        ];
        let ram = Arc::new(copied::Memory::from_ranges(&regions).unwrap());
        let space = match kind.hosts {
            true => Memory::new(Arc::clone(&ram)),
            false => Memory::new(Arc::new(Translated(Arc::clone(&ram)))),
        };
        let driver = match kind.packed {
            false => Driver::Split(Ring::at(&ram, LAYOUT)),
            true => Driver::Packed(PackedRing::at(&ram, LAYOUT)),
        };
        let mut features = features::COMMON & !features::EVENT_IDX;
        for (has, feature) in [
            (kind.packed, features::RING_PACKED),
            (kind.event_idx, features::EVENT_IDX),
        ] {
            features |= if has { feature } else { 0 };
        }
        let queue = Queue::new(QueueIndex(0), SIZE, LAYOUT, features, &space, Arc::new(Silent)).unwrap();
        copied::begin(&ram);
        Self {
            kind,
            ram,
            driver,
            queue,
        }
    }

    fn request(&mut self, buffers: &[Buffer]) {
        match &mut self.driver {
            Driver::Split(ring) => _ = ring.request(buffers),
            Driver::Packed(ring) => _ = ring.request(buffers),
        }
    }

    /// How many came back since this was last asked.
    fn used(&mut self) -> usize {
        match &mut self.driver {
            Driver::Split(ring) => ring.used().len(),
            Driver::Packed(ring) => ring.used().len(),
        }
    }

    fn serve(&mut self, handler: &mut dyn QueueHandler) {
        let mut round = self.queue.round().unwrap();
        handler.serve(&mut round).unwrap();
        let _ = round.end().unwrap();
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    fn get(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// All that was written is in the copy.
fn is_there(ram: &copied::Memory, kind: Kind, what: &str) {
    assert_eq!(copied::missing(ram), [0_u64; 0], "{what}: {kind:?}");
}

fn fill(slices: &[VolatileSlice<'_>], byte: u8) {
    slices
        .iter()
        .for_each(|slice| slice.copy_from(&vec![byte; slice.len()]));
}

#[test]
fn a_queue_marks_buffers_and_rings_after_it_has_written_them() {
    for kind in kinds() {
        let mut rig = Rig::new(kind);
        let ram = Arc::clone(&rig.ram);
        let there = |what| is_there(&ram, kind, what);

        rig.request(&[
            readable(0x8000, 4),
            writable(0x9000, 1),
            writable(SEAM - 0x800, 0x1800),
            writable(0xc000, 8),
            writable(0xd000, 8),
        ]);
        let mut round = rig.queue.round().unwrap();
        let chain = round.next().unwrap().unwrap();
        there("no kicks");
        let mut writer = chain.writer();
        writer.write(&[1]).unwrap();
        there("a byte");
        writer.write(&[2; 0x1800]).unwrap();
        there("bytes of two regions");
        writer.fill(3, 8).unwrap();
        there("the same byte");
        writer
            .with_slices(&mut Slices::default(), |slices| fill(slices, 4))
            .unwrap();
        there("what was lent");
        chain.complete(0x1811).unwrap();
        assert!(round.next().unwrap().is_none());
        let _ = round.end().unwrap();
        there("a round");

        let buffers = [0xe000, 0xf000];
        buffers.iter().for_each(|&at| rig.request(&[writable(at, 16)]));
        let mut round = rig.queue.round().unwrap();
        let mut room = SeveralRoom::default();
        let mut several = round.several(&mut room);
        while several.next().unwrap().is_some() {
            several.push(0, 16);
        }
        several.fill(32, |slices| fill(slices, 5)).unwrap();
        there("what was lent of several");
        (0..2).for_each(|_| several.put(16).unwrap());
        drop(several);
        let _ = round.end().unwrap();
        there("a round of several");

        rig.request(&[writable(0x9000, 16)]);
        buffers.iter().for_each(|&at| rig.request(&[writable(at, 16)]));
        let mut round = rig.queue.round().unwrap();
        round.next().unwrap().unwrap().complete(0).unwrap();
        let [one, other] = buffers.map(|_| round.next().unwrap().unwrap().take());
        assert!(round.next().unwrap().is_none());
        let _ = round.end().unwrap();
        there("a round whose last chains are taken");
        one.writer().write(&[6; 16]).unwrap();
        there("bytes of a chain that was taken");
        one.complete(16);
        there("a chain that ends elsewhere");
        let mut round = rig.queue.round().unwrap();
        other.writer().write(&[7; 16]).unwrap();
        round.put(other, 16).unwrap();
        let _ = round.end().unwrap();
        there("a round that puts what was taken");
    }
}

#[test]
fn a_disk_marks_data_and_status_after_it_has_written_them() {
    const HEADER: u64 = 0x8000;
    const STATUS: u64 = 0xd000;
    for kind in kinds() {
        let storage = || {
            Arc::new(MemoryStorage::from(
                (1..=255).cycle().take(64 * 512).collect::<Vec<u8>>(),
            ))
        };
        let options = BlockOptions::default;
        for (later, mut disk) in [
            Block::new(storage(), options()).unwrap(),
            Block::with_async(Synchronous::from(storage()), options()).unwrap(),
        ]
        .into_iter()
        .enumerate()
        {
            let mut rig = Rig::new(kind);
            disk.negotiated(disk.features());
            let mut handler = disk.start(QueueIndex(0));
            // A read, one beyond the end, the name, and what there is not.
            let requests = [(0, 1, 0x1000, 0), (0, 1000, 512, 1), (8, 0, 20, 0), (99, 0, 4, 2)];
            for data in [0x9000, SEAM - 8] {
                for (request, sector, len, status) in requests {
                    let header = [request, 0, sector, 0].map(u32::to_le_bytes);
                    rig.put(HEADER, header.as_flattened());
                    rig.put(data, &vec![0xee; len]);
                    rig.put(STATUS, &[0xee]);
                    rig.request(&[readable(HEADER, 16), writable(data, len as u32), writable(STATUS, 1)]);
                    rig.serve(&mut *handler);
                    assert_eq!((rig.used(), rig.get(STATUS, 1)), (1, vec![status]));
                    is_there(
                        &rig.ram,
                        kind,
                        &format!("request {request} at {data:#x}, later: {later}"),
                    );
                }
            }
        }
    }
}

#[test]
fn a_network_device_marks_frames_after_it_has_written_them() {
    const MRG_RXBUF: u64 = 1 << 15;
    let buffer = |number: usize| 0x1_0000 + 0x1000 * number as u64;
    for kind in kinds() {
        for features in [0, MRG_RXBUF] {
            let switch = Switch::new(SwitchOptions::default());
            let mut net = Net::new([switch.port()], NetOptions::default()).unwrap();
            let other = switch.port();
            let mut rig = Rig::new(kind);
            net.negotiated(features | features::VERSION_1);
            let mut handler = net.start(QueueIndex(0));
            // More than are delivered together, and long ones; in buffers that they are spread over, if they can be.
            let lens: Vec<usize> = [vec![60; 20], vec![1000, 1500], vec![60]].concat();
            let room = if features == 0 { 0x800 } else { 0x400 };
            let count = lens.len() + usize::from(features != 0);
            for byte in 1..=2 {
                (0..count).for_each(|number| rig.request(&[writable(buffer(number), room)]));
                rig.serve(&mut *handler);
                for &len in &lens {
                    let mut frame = vec![byte; len];
                    frame[..6].fill(0xff);
                    // SAFETY: the frame is there for longer than the slice.
                    let slice = unsafe { VolatileSlice::new(frame.as_mut_ptr(), len) };
                    other.send(&Header::default(), &[slice]).unwrap();
                }
                rig.serve(&mut *handler);
                assert_eq!(rig.used(), count);
                assert_eq!(rig.get(buffer(0) + 18, 54), [byte; 54]);
                is_there(&rig.ram, rig.kind, &format!("features {features:#x}"));
            }
        }
    }
}
