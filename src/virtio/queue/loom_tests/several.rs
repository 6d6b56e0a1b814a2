//! Chains that are lent together, while others come back from elsewhere.

use super::*;
use crate::virtio::queue::SeveralRoom;

/// Lends all that there are, and uses them.
fn serve(queue: &mut Queue) {
    let mut room = SeveralRoom::default();
    let mut round = queue.round().unwrap();
    let mut several = round.several(&mut room);
    while several.next().unwrap().is_some() {
        several.push(0, 1);
    }
    while !several.is_empty() {
        several.put(1).unwrap();
    }
    drop(several);
    let _ = round.end().unwrap();
}

/// The one that comes back was taken before the one that is lent.
#[test]
fn loom_a_chain_that_comes_back_beside_chains_that_are_lent_is_used_once_and_so_are_they() {
    for features in [0, features::IN_ORDER] {
        model(move || {
            let ram = ram();
            let memory = Memory::new(ram.clone());
            let line = Arc::new(Line::default());
            let mut queue = Queue::new(QueueIndex(0), 2, LAYOUT, features, &memory, line).unwrap();
            ram.write_obj(2_u16, GuestAddress(DRIVER + 2)).unwrap();
            let [first, second] = [(); 2].map(|()| {
                let mut round = queue.round().unwrap();
                round.next().unwrap().expect("a chain").take()
            });
            drop(second);
            let elsewhere = thread::spawn(move || drop(first));
            serve(&mut queue);
            elsewhere.join().unwrap();
            serve(&mut queue);
            let used = |at: u64| ram.read_obj::<u32>(GuestAddress(DEVICE + 4 + 8 * at)).unwrap();
            assert_eq!(ram.read_obj::<u16>(GuestAddress(DEVICE + 2)).unwrap(), 2);
            let mut heads = [used(0), used(1)];
            if features == 0 {
                heads.sort_unstable();
            }
            assert_eq!(heads, [0, 1]);
        });
    }
}
