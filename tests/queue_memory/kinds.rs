//! The same scripts in each kind of memory.

use std::sync::Arc;

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueIndex,
        queue::{OwnedChain, QueueCounters, Rest, Silent, Slices},
    },
};
use proptest::prelude::*;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryMmap,
    bitmap::{AtomicBitmap, Bitmap},
};

use crate::{
    ALL, NO_EVENT_IDX, SIZE, Tracked,
    driver::Driver,
    layout,
    packed::PackedRing,
    parted,
    ring::{Buffer, Ring},
    translated::Translated,
    whole,
};

/// What a request of a script is, and how the device answers it.
#[derive(Clone, Debug)]
struct Step {
    buffers: Vec<Buffer>,
    indirect: bool,
    /// Completed in its round, later, or given back untouched first.
    how: u8,
    fill: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let address = prop_oneof![4 => 0x5000u64..0xff00, 1 => 0x7ff0u64..0x8010, 1 => 0xfff0u64..0x10010];
    let buffer =
        (address, 0u32..0x100, any::<bool>()).prop_map(|(address, len, writable)| Buffer { address, len, writable });
    let buffers = proptest::collection::vec(buffer, 1..=4).prop_map(|mut buffers| {
        buffers.sort_by_key(|buffer| buffer.writable);
        buffers
    });
    (buffers, any::<bool>(), 0u8..4, any::<u8>()).prop_map(|(buffers, indirect, how, fill)| Step {
        buffers,
        indirect,
        how,
        fill,
    })
}

/// Plays a script on a queue in `space`, whose bytes `ram` holds. What the driver got: used elements, counters, and all memory.
fn play<B, R>(
    ram: &Arc<GuestMemoryMmap<B>>,
    space: &Memory,
    features: u64,
    script: &[Step],
) -> (Vec<(u32, u32)>, QueueCounters, Vec<u8>)
where
    B: Bitmap + Send + Sync + 'static,
    R: Driver<B>,
{
    let (layout, features) = (layout(SIZE), features | R::FORMAT);
    let mut ring = R::new(ram, layout);
    let mut queue = Queue::new(QueueIndex(0), SIZE, layout, features, space, Arc::new(Silent)).unwrap();
    let (mut used, mut late) = (Vec::new(), Vec::<(OwnedChain, u8)>::new());
    for step in script {
        let head = match step.indirect {
            true => ring.add_indirect(0x4000, &step.buffers),
            false => ring.add(&step.buffers),
        };
        ring.offer(head);
        let answer =
            |reader: devisor::virtio::queue::Reader<'_>, writer: devisor::virtio::queue::Writer<'_>, fill: u8| {
                let mut reader = reader;
                let mut sum = vec![0; reader.remaining() as usize];
                reader.read(&mut sum).unwrap();
                let sum = sum.iter().fold(fill, |sum, byte| sum.wrapping_add(*byte));
                let (mut first, second) = {
                    let half = writer.remaining() / 2;
                    writer.split_at(half).unwrap()
                };
                let half = first.remaining();
                first.fill(sum, half).unwrap();
                let lent = second.with_slices(&mut Slices::default(), |slices| {
                    slices.iter().for_each(|slice| slice.copy_from(&vec![sum; slice.len()]));
                });
                lent.unwrap();
            };
        let mut round = queue.round().unwrap();
        while let Some(chain) = round.next().unwrap() {
            match step.how {
                0 | 1 => {
                    answer(chain.reader(), chain.writer(), step.fill);
                    let len = chain.writable_len();
                    if step.how == 0 {
                        chain.complete(len).unwrap()
                    } else {
                        chain.put(len).unwrap()
                    }
                }
                _ => late.push((chain.take(), step.fill)),
            }
        }
        assert_eq!(round.end().unwrap(), Rest::Drained);
        if step.how == 3
            && let Some((chain, _)) = late.pop()
        {
            chain.give_back();
            let mut round = queue.round().unwrap();
            late.extend(round.next().unwrap().map(|chain| (chain.take(), step.fill)));
            drop(round);
        }
        // At most four descriptors each, and eight in all.
        for (chain, fill) in late.drain(..) {
            answer(chain.reader(), chain.writer(), fill);
            let len = chain.writable_len();
            chain.complete(len);
        }
        used.extend(ring.used());
    }
    let mut bytes = vec![0; 0x10000];
    ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    (used, queue.counters(), bytes)
}

/// Plays a script in each kind of memory, by drivers of one format.
fn compare<P: Driver<()>, T: Driver<AtomicBitmap>>(features: u64, script: &[Step]) -> Result<(), TestCaseError> {
    let ram = |ranges: Vec<_>| Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let flat = ram(whole());
    let expected = play::<_, P>(&flat, &Memory::new(flat.clone()), features, script);
    prop_assert!(expected.0.len() == script.len());
    for ranges in [whole(), parted()] {
        let pieces = ram(ranges.clone());
        prop_assert!(play::<_, P>(&pieces, &Memory::new(pieces.clone()), features, script) == expected);
        let behind = ram(ranges.clone());
        let space = Memory::new(Arc::new(Translated(behind.clone())));
        let translated = play::<_, P>(&behind, &space, features, script);
        prop_assert!(translated == expected, "translated, {:?}", ranges);
        let tracked = Arc::new(Tracked::from_ranges(&ranges).unwrap());
        let marked = play::<_, T>(&tracked, &Memory::new(tracked.clone()), features, script);
        prop_assert!(marked == expected, "tracked");
    }
    Ok(())
}

proptest! {
    /// Host addresses are a short cut: the same driver sees the same, whatever memory is made of.
    #[test]
    fn every_kind_of_memory_gives_the_same_results(
        script in proptest::collection::vec(step(), 1..24),
        features in prop_oneof![Just(ALL), Just(NO_EVENT_IDX)],
    ) {
        compare::<Ring, Ring<AtomicBitmap>>(features, &script)?;
    }

    #[test]
    fn every_kind_of_memory_gives_the_same_results_in_a_packed_ring(
        script in proptest::collection::vec(step(), 1..24),
        features in prop_oneof![Just(ALL), Just(NO_EVENT_IDX)],
    ) {
        compare::<PackedRing, PackedRing<AtomicBitmap>>(features, &script)?;
    }
}
