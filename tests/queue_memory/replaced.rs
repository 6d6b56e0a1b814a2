//! Memory that is replaced while queues run.

use std::sync::Arc;

use devisor::{
    memory::Memory,
    virtio::{
        Queue, QueueError, QueueIndex,
        queue::{Rest, Silent},
    },
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

use crate::{
    ALL, SIZE, regions,
    ring::{Ring, writable},
    whole,
};

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
