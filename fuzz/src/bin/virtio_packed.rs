//! Hostile packed rings, with a device that completes late: whatever the driver writes and whenever requests end, nothing is lost, twice
//! used, or beyond its room, and a state that is saved goes on elsewhere.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueIndex, features,
        queue::{OwnedChain, QueueLayout, Rest, Silent},
    },
};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LAYOUT: QueueLayout = QueueLayout {
    size: 0,
    descriptor_area: 0x1000,
    driver_area: 0x2000,
    device_area: 0x2800,
};

#[derive(Arbitrary, Debug)]
enum Step {
    /// A descriptor, at the driver's place or anywhere.
    Write {
        anywhere: Option<u8>,
        address: u16,
        len: u16,
        id: u8,
        flags: u8,
        marks: Option<u8>,
    },
    /// One of a table.
    Table {
        index: u8,
        address: u32,
        len: u16,
        flags: u16,
    },
    Event([u16; 2]),
    /// A round, in which chains are taken, completed, put or refused as the bits say.
    Serve(u32),
    /// The end of one that was taken: completed, put in a round, or given back.
    End {
        which: u8,
        how: u8,
        len: u32,
    },
    Save,
}

#[derive(Arbitrary, Debug)]
struct Run {
    size: u8,
    event_idx: bool,
    in_order: bool,
    indirect: bool,
    steps: Vec<Step>,
}

fuzz_target!(|run: Run| {
    let size = u16::from(run.size % 24) + 1;
    let layout = QueueLayout { size, ..LAYOUT };
    let mut accepted = features::VERSION_1 | features::RING_PACKED;
    for (on, feature) in [
        (run.event_idx, features::EVENT_IDX),
        (run.in_order, features::IN_ORDER),
        (run.indirect, features::INDIRECT_DESC),
    ] {
        accepted |= if on { feature } else { 0 };
    }
    let ram = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap());
    let memory = Memory::new(ram.clone());
    let interrupt = Arc::new(Silent);
    let mut queue = Queue::new(QueueIndex(0), size, layout, accepted, &memory, interrupt.clone()).unwrap();
    let mut out: Vec<OwnedChain> = Vec::new();
    let (mut slot, mut wrap) = (0, true);
    for step in run.steps {
        match step {
            Step::Write {
                anywhere,
                address,
                len,
                id,
                flags,
                marks,
            } => {
                let at = anywhere.map_or(slot, |at| u16::from(at) % size);
                let right = if wrap { 1 << 7 } else { 1 << 15 };
                let marks = marks.map_or(right, |marks| u16::from(marks & 1) << 7 | u16::from(marks & 2) << 14);
                let flags = u16::from(flags & 7) | marks;
                let id = if id & 0x80 == 0 {
                    u16::from(id) % size
                } else {
                    id.into()
                };
                let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
                let words = [u64::from(address), rest];
                ram.write_obj(words, GuestAddress(LAYOUT.descriptor_area + 16 * u64::from(at)))
                    .unwrap();
                if anywhere.is_none() {
                    slot += 1;
                    if slot == size {
                        (slot, wrap) = (0, !wrap);
                    }
                }
            }
            Step::Table {
                index,
                address,
                len,
                flags,
            } => {
                let words = [u64::from(address), u64::from(len) | u64::from(flags) << 48];
                ram.write_obj(words, GuestAddress(0x4000 + 16 * u64::from(index)))
                    .unwrap();
            }
            Step::Event(event) => ram.write_obj(event, GuestAddress(LAYOUT.driver_area)).unwrap(),
            Step::Serve(how) => {
                let mut round = queue.round().unwrap();
                let mut how = how;
                let ended = loop {
                    match round.next() {
                        Ok(None) => break true,
                        Err(_) => break false,
                        Ok(Some(chain)) => {
                            let room = chain.writable_len();
                            assert!(chain.writer().fill(0, room.min(64)).is_ok());
                            match how % 4 {
                                0 => chain.complete(how).unwrap(),
                                1 => chain.put(how).unwrap(),
                                2 => chain.refuse().unwrap(),
                                _ => out.push(chain.take()),
                            }
                            how = how.rotate_right(2);
                        }
                    }
                };
                if !ended {
                    // The device needs a reset.
                    return;
                }
                assert_ne!(round.end().unwrap(), Rest::Left);
            }
            Step::End { which, how, len } if !out.is_empty() => {
                let chain = out.swap_remove(usize::from(which) % out.len());
                match how % 3 {
                    0 => chain.complete(len),
                    1 => queue.round().unwrap().put(chain, len).unwrap(),
                    _ => chain.give_back(),
                }
            }
            Step::End { .. } => {}
            Step::Save => {
                let before = out.len();
                out.clear();
                let state = queue.save();
                assert!(before <= state.in_flight.len());
                assert!(state.in_flight.len() <= size.into());
                queue = Queue::restore(QueueIndex(0), size, &state, &memory, interrupt.clone()).unwrap();
                assert_eq!(queue.save(), state);
            }
        }
    }
    out.clear();
});
