//! Virtqueues in every kind of guest memory: across regions, without stable host addresses, replaced while they run, and
//! with dirty pages tracked.

#[path = "support/packed.rs"]
mod packed;
#[path = "support/ring.rs"]
mod ring;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueError, QueueIndex, features,
        queue::{OwnedChain, QueueCounters, QueueLayout, Rest, Silent, Slices},
    },
};
use packed::PackedRing;
use proptest::prelude::*;
use ring::{Buffer, Ring, readable, writable};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    MmapRegion, Permissions,
    bitmap::{AtomicBitmap, BS, Bitmap},
    guest_memory::GuestMemorySliceIterator,
};

const SIZE: u16 = 8;
const ALL: u64 = features::COMMON;
const NO_EVENT_IDX: u64 = features::COMMON & !features::EVENT_IDX;

type Tracked = GuestMemoryMmap<AtomicBitmap>;

/// Memory as behind an IOMMU: accesses are translated one by one, and no host address is stable.
struct Translated<M>(Arc<M>);

impl<M: GuestMemoryBackend + 'static> GuestMemory for Translated<M> {
    type PhysicalMemory = M;
    type Bitmap = <M as GuestMemory>::Bitmap;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&*self.0, address, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        GuestMemory::get_slices(&*self.0, address, count, access)
    }
}

/// A driver of either format.
trait Driver<B> {
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

/// Where the areas of a ring are, of either format.
const fn layout(size: u16) -> QueueLayout {
    QueueLayout {
        size,
        descriptor_area: 0x1000,
        driver_area: 0x2000,
        device_area: 0x3000,
    }
}

fn regions<const N: usize>(bounds: [u64; N]) -> Vec<(GuestAddress, usize)> {
    let pieces = bounds.windows(2);
    pieces
        .map(|ends| (GuestAddress(ends[0]), (ends[1] - ends[0]) as usize))
        .collect()
}

/// 64 KiB in one piece, and in pieces that part each area of a ring at 0x1000, and buffers.
fn whole() -> Vec<(GuestAddress, usize)> {
    regions([0, 0x10000])
}

fn parted() -> Vec<(GuestAddress, usize)> {
    // Within a descriptor, within the entries of either ring, and of an indirect table.
    regions([0, 0x1028, 0x200a, 0x3014, 0x4018, 0x8004, 0x10000])
}

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

// Memory that is replaced.

/// A ring in memory that can be replaced by another map of other bytes.
fn replaceable() -> (GuestMemoryAtomic<GuestMemoryMmap>, Memory, Ring, Queue) {
    let first = Arc::new(GuestMemoryMmap::from_ranges(&whole()).unwrap());
    let ring = Ring::new(&first, 0x1000, SIZE);
    let space = GuestMemoryAtomic::from(first);
    let memory = Memory::new(space.clone());
    let queue = Queue::new(QueueIndex(0), SIZE, ring.layout, ALL, &memory, Arc::new(Silent)).unwrap();
    (space, memory, ring, queue)
}

/// The same bytes elsewhere in the host.
fn moved(ring: &mut Ring) -> Arc<GuestMemoryMmap> {
    let elsewhere = Arc::new(GuestMemoryMmap::from_ranges(&whole()).unwrap());
    let mut bytes = vec![0; 0x10000];
    ring.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    elsewhere.write_slice(&bytes, GuestAddress(0)).unwrap();
    ring.memory = elsewhere.clone();
    elsewhere
}

fn replace(space: &GuestMemoryAtomic<GuestMemoryMmap>, map: &Arc<GuestMemoryMmap>) {
    space.lock().unwrap().replace((**map).clone());
}

#[test]
fn a_round_goes_by_the_memory_map_as_it_is_then_and_lets_the_old_one_go() {
    let (space, memory, mut ring, mut queue) = replaceable();
    for byte in 1..=3 {
        ring.request(&[writable(0x8000, 1)]);
        let mut round = queue.round().unwrap();
        round.each(|chain| chain.writer().write(&[byte]).map(|()| 1)).unwrap();
        assert_eq!(round.end().unwrap(), Rest::Drained);
        assert_eq!(ring.used().len(), 1);
        assert_eq!(ring.get::<u8>(0x8000), byte);
        assert_eq!(memory.old_maps_held(), 0);
        let map = moved(&mut ring);
        replace(&space, &map);
        assert_eq!(memory.old_maps_held(), 1, "of an idle queue, which has not looked yet");
    }
}

#[test]
fn a_chain_that_was_taken_holds_the_map_in_which_it_was_found_and_is_used_in_the_new_one() {
    let (space, memory, mut ring, mut queue) = replaceable();
    ring.request(&[writable(0x8000, 1)]);
    let taken = {
        let mut round = queue.round().unwrap();
        let taken = round.next().unwrap().unwrap().take();
        assert_eq!(round.end().unwrap(), Rest::More);
        taken
    };
    let old = ring.memory.clone();
    let map = moved(&mut ring);
    replace(&space, &map);
    // A round looks the ring up in the new map; the buffer stays where it was.
    assert_eq!(queue.round().unwrap().end().unwrap(), Rest::Left);
    assert_eq!(memory.old_maps_held(), 1);
    taken.writer().write(&[7]).unwrap();
    assert_eq!(old.read_obj::<u8>(GuestAddress(0x8000)).unwrap(), 7);
    taken.complete(1);
    assert_eq!(ring.used(), [(0, 1)]);
    assert_eq!(memory.old_maps_held(), 0);
}

#[test]
fn a_chain_that_is_left_or_given_back_is_found_again_in_the_new_map() {
    let (space, memory, mut ring, mut queue) = replaceable();
    ring.request(&[writable(0x8000, 1)]);
    ring.request(&[writable(0x8001, 1)]);
    let mut round = queue.round().unwrap();
    let taken = round.next().unwrap().unwrap().take();
    let _ = round.next().unwrap().unwrap();
    assert_eq!(round.end().unwrap(), Rest::Left);
    let map = moved(&mut ring);
    replace(&space, &map);
    taken.give_back();
    let mut round = queue.round().unwrap();
    round.each(|chain| chain.writer().write(&[9]).map(|()| 1)).unwrap();
    assert_eq!(round.end().unwrap(), Rest::Drained);
    assert_eq!(ring.used(), [(0, 1), (1, 1)]);
    assert_eq!(ring.get::<[u8; 2]>(0x8000), [9, 9]);
    assert_eq!(memory.old_maps_held(), 0);
}

#[test]
fn a_ring_that_is_unplugged_is_broken_and_a_buffer_that_is_costs_its_chain() {
    let (space, _memory, mut ring, mut queue) = replaceable();
    ring.request(&[writable(0x8000, 1)]);
    ring.request(&[writable(0x5000, 1)]);
    let bytes = moved(&mut ring);
    let unplug = |end: u64| {
        let map = Arc::new(GuestMemoryMmap::from_ranges(&regions([0, end])).unwrap());
        let mut all = vec![0; end as usize];
        bytes.read_slice(&mut all, GuestAddress(0)).unwrap();
        map.write_slice(&all, GuestAddress(0)).unwrap();
        replace(&space, &map);
        map
    };
    ring.memory = unplug(0x6000);
    let mut round = queue.round().unwrap();
    let taken = round.next().unwrap().unwrap().take();
    assert_eq!(taken.head(), 1);
    let _ = round.end().unwrap();
    assert_eq!(ring.used(), [(0, 0)]);
    let _ = unplug(0x2000);
    assert!(matches!(queue.round().map(|_| ()), Err(QueueError::Outside(_))));
    // Nowhere to say so; the round above does.
    taken.complete(1);
}

// Dirty pages.

fn space(ram: &Arc<Tracked>, translated: bool) -> Memory {
    match translated {
        false => Memory::new(ram.clone()),
        true => Memory::new(Arc::new(Translated(ram.clone()))),
    }
}

/// The pages of 4 KiB that were marked since this was last asked.
fn dirty(memory: &Tracked) -> Vec<usize> {
    let mut pages = Vec::new();
    for region in memory.iter() {
        let mapping: &MmapRegion<AtomicBitmap> = region;
        let first = region_start(region) / 0x1000;
        let words = mapping.bitmap().get_and_reset();
        let bits = words.iter().enumerate().flat_map(|(at, word)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| 64 * at + bit)
        });
        pages.extend(bits.map(|page| first + page));
    }
    pages
}

fn region_start(region: &vm_memory::GuestRegionMmap<AtomicBitmap>) -> usize {
    use vm_memory::GuestMemoryRegion;
    region.start_addr().0 as usize
}

#[test]
fn every_write_into_guest_memory_is_marked_dirty() {
    for features in [ALL, NO_EVENT_IDX] {
        for translated in [false, true] {
            let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
            let mut ring = Ring::new(&ram, 0x1000, SIZE);
            let memory = space(&ram, translated);
            let mut queue = Queue::new(QueueIndex(0), SIZE, ring.layout, features, &memory, Arc::new(Silent)).unwrap();
            ring.request(&[
                readable(0x8000, 4),
                writable(0x9000, 4),
                writable(0xa000, 4),
                writable(0xb000, 4),
                writable(0xc000, 4),
            ]);
            let _ = dirty(&ram);
            let none = [0usize; 0];

            let mut round = queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            let told = if features == ALL { vec![] } else { vec![3] };
            assert_eq!(dirty(&ram), told, "the flags of the used ring");
            chain.reader().read(&mut [0; 4]).unwrap();
            chain.reader().with_slices(&mut Slices::default(), |_| ()).unwrap();
            assert_eq!(dirty(&ram), none, "reading leaves no mark");

            let mut writer = chain.writer();
            writer.write(&[1; 4]).unwrap();
            assert_eq!(dirty(&ram), [9]);
            writer.fill(1, 4).unwrap();
            assert_eq!(dirty(&ram), [0xa]);
            writer.with_slices(&mut Slices::default(), |_| ()).unwrap();
            assert_eq!(dirty(&ram), [0xb, 0xc]);
            chain.complete(16).unwrap();
            assert!(round.next().unwrap().is_none());
            assert_eq!(round.end().unwrap(), Rest::Drained);
            assert_eq!(
                dirty(&ram),
                [3],
                "the used ring, when the round has ended, and avail_event or the flags"
            );

            // What a round has used is marked by its end alone, whatever ends it.
            ring.request(&[writable(0x9000, 4)]);
            let _ = dirty(&ram);
            let mut round = queue.round().unwrap();
            round.next().unwrap().unwrap().complete(0).unwrap();
            drop(round);
            assert_eq!(dirty(&ram), [3]);

            ring.request(&[writable(0x9000, 4)]);
            let mut round = queue.round().unwrap();
            let taken = round.next().unwrap().unwrap().take();
            assert!(round.next().unwrap().is_none());
            let _ = round.end().unwrap();
            let _ = dirty(&ram);
            taken.writer().write(&[2; 4]).unwrap();
            assert_eq!(dirty(&ram), [9]);
            taken.complete(4);
            assert_eq!(dirty(&ram), [3], "the used ring");
        }
    }
}

#[test]
fn every_write_into_a_packed_ring_is_marked_dirty() {
    for features in [ALL, NO_EVENT_IDX] {
        for translated in [false, true] {
            let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
            let mut ring = PackedRing::at(&ram, layout(SIZE));
            let memory = space(&ram, translated);
            let features = features | features::RING_PACKED;
            let mut queue = Queue::new(QueueIndex(0), SIZE, ring.layout, features, &memory, Arc::new(Silent)).unwrap();
            let _ = dirty(&ram);
            for short in [false, true] {
                // The second round of a queue finds its chains the short way.
                ring.request(&[readable(0x8000, 4), writable(0x9000, 4)]);
                let _ = dirty(&ram);
                let mut round = queue.round().unwrap();
                let chain = round.next().unwrap().unwrap();
                assert_eq!(dirty(&ram), [3], "no kicks while there is something to take: {short}");
                chain.writer().write(&[1; 4]).unwrap();
                assert_eq!(dirty(&ram), [9]);
                chain.complete(4).unwrap();
                assert!(round.next().unwrap().is_none());
                assert_eq!(round.end().unwrap(), Rest::Drained);
                assert_eq!(
                    dirty(&ram),
                    [1, 3],
                    "the used descriptor, and what the driver is to kick for: {short}"
                );
                assert_eq!(ring.used().len(), 1);
            }

            // Whatever ends the round.
            ring.request(&[writable(0x9000, 4)]);
            let mut round = queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            let _ = dirty(&ram);
            chain.complete(0).unwrap();
            drop(round);
            assert_eq!(dirty(&ram), [1]);

            // The last descriptors and the first.
            ring.request(&[writable(0x9000, 4)]);
            ring.request(&[writable(0x9000, 4), writable(0xa000, 4)]);
            let mut round = queue.round().unwrap();
            let taken = [(); 2].map(|()| round.next().unwrap().unwrap().take());
            assert!(round.next().unwrap().is_none());
            let _ = round.end().unwrap();
            let _ = dirty(&ram);
            for chain in taken {
                chain.complete(4);
                assert_eq!(dirty(&ram), [1], "by who completes elsewhere");
            }
        }
    }
}

#[test]
fn what_a_round_has_hidden_in_a_packed_ring_is_marked_when_another_shows_it() {
    let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
    // Its first half is in one page, and the other in the next.
    let layout = QueueLayout {
        descriptor_area: 0x1000 - 16 * u64::from(SIZE) / 2,
        ..layout(SIZE)
    };
    let mut ring = PackedRing::at(&ram, layout);
    let memory = space(&ram, false);
    let features = ALL | features::RING_PACKED;
    let mut queue = Queue::new(QueueIndex(0), SIZE, layout, features, &memory, Arc::new(Silent)).unwrap();
    let request = [writable(0x9000, 4)];
    for _ in 0..SIZE / 2 - 1 {
        ring.request(&request);
        let mut round = queue.round().unwrap();
        round.next().unwrap().unwrap().complete(4).unwrap();
        let _ = round.end().unwrap();
    }
    // The last of one page, and the first of the other.
    (0..2).for_each(|_| _ = ring.request(&request));
    let mut round = queue.round().unwrap();
    let [first, second] = [(); 2].map(|()| round.next().unwrap().unwrap().take());
    let _ = round.end().unwrap();
    let mut round = queue.round().unwrap();
    round.put(first, 4).unwrap();
    let _ = dirty(&ram);
    second.complete(4);
    assert_eq!(dirty(&ram), [0, 1]);
    let _ = round.end().unwrap();
    assert_eq!(ring.used().len(), usize::from(SIZE / 2) + 1);
}

#[test]
fn what_a_panic_leaves_half_written_is_marked() {
    for translated in [false, true] {
        let ram = Arc::new(Tracked::from_ranges(&whole()).unwrap());
        let mut ring = Ring::new(&ram, 0x1000, SIZE);
        let memory = space(&ram, translated);
        let mut queue = Queue::new(QueueIndex(0), SIZE, ring.layout, ALL, &memory, Arc::new(Silent)).unwrap();
        ring.request(&[writable(0x9000, 4)]);
        let _ = dirty(&ram);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut round = queue.round().unwrap();
            let chain = round.next().unwrap().unwrap();
            let lent = chain.writer().with_slices(&mut Slices::default(), |slices| {
                slices[0].copy_from(&[7u8; 2]);
                panic!("a backend's");
            });
            lent.unwrap();
        }));
        assert!(panicked.is_err());
        assert!(dirty(&ram).contains(&9), "translated {translated}");
    }
}

/// Ends a loop on another thread, also when a test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A migration copies pages while the device works, in its rounds and on another thread: with the pages that are marked last,
/// the copy is what the memory is. A page that was marked before its bytes were written would be missing in it.
#[test]
fn a_copy_by_dirty_pages_misses_nothing_under_random_io() {
    copy_by_dirty_pages::<Ring<AtomicBitmap>>();
}

#[test]
fn a_copy_by_dirty_pages_misses_nothing_of_a_packed_ring() {
    copy_by_dirty_pages::<PackedRing<AtomicBitmap>>();
}

fn copy_by_dirty_pages<R: Driver<AtomicBitmap>>() {
    for (seed, translated) in [(1u64, false), (2, true), (3, false)] {
        let ranges = if seed == 3 { parted() } else { whole() };
        let ram = Arc::new(Tracked::from_ranges(&ranges).unwrap());
        let memory = space(&ram, translated);
        let (layout, features) = (layout(16), NO_EVENT_IDX | R::FORMAT);
        let mut ring = R::new(&ram, layout);
        let mut queue = Queue::new(QueueIndex(0), 16, layout, features, &memory, Arc::new(Silent)).unwrap();
        let copy = Arc::new(Mutex::new(vec![0; 0x10000]));
        let pass = {
            let (ram, copy) = (ram.clone(), copy.clone());
            // Regions that begin within a page have pages of their own.
            move || {
                let mut copy = copy.lock().unwrap();
                for region in ram.iter() {
                    let start = region_start(region);
                    let len = region.size();
                    let bits = region.bitmap().get_and_reset();
                    for page in (0..len.div_ceil(0x1000)).filter(|page| bits[page / 64] >> (page % 64) & 1 != 0) {
                        let (from, to) = (start + page * 0x1000, (start + len).min(start + (page + 1) * 0x1000));
                        ram.read_slice(&mut copy[from..to], GuestAddress(from as u64)).unwrap();
                    }
                }
            }
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let ended = Ended(&done);
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    pass();
                }
            });
            let (give, taken) = mpsc::channel::<(OwnedChain, u8)>();
            let other = scope.spawn(move || {
                for (chain, byte) in taken {
                    let len = chain.writable_len();
                    let mut room = chain.writer();
                    room.fill(byte, len / 2).unwrap();
                    let lent = room.with_slices(&mut Slices::default(), |slices| {
                        slices
                            .iter()
                            .for_each(|slice| slice.copy_from(&vec![byte; slice.len()]));
                    });
                    lent.unwrap();
                    chain.complete(len);
                }
            });
            let mut random = seed;
            let mut next = move || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let mut out = 0;
            for _ in 0..1000 {
                if out == 0 {
                    // As many as there are descriptors for.
                    for _ in 0..8 {
                        let buffers = [(); 2].map(|()| writable(0x5000 + next() % 0xa000, (next() % 0x800) as u32));
                        let head = ring.add(&buffers);
                        ring.offer(head);
                    }
                    out = 8;
                }
                let mut round = queue.round().unwrap();
                while let Some(chain) = round.next().unwrap() {
                    let byte = next() as u8;
                    if next() % 2 == 0 {
                        give.send((chain.take(), byte)).unwrap();
                    } else {
                        let len = chain.writable_len();
                        chain.writer().fill(byte, len).unwrap();
                        chain.complete(len).unwrap();
                    }
                }
                let _ = round.end().unwrap();
                out -= ring.used().len();
            }
            drop(give);
            other.join().unwrap();
            drop(ended);
        });
        pass();
        let mut bytes = vec![0; 0x10000];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let copy = copy.lock().unwrap();
        let missed = (0..0x10000).filter(|&at| copy[at] != bytes[at]).count();
        assert_eq!(missed, 0, "seed {seed}, translated {translated}");
    }
}
