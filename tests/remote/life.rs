//! What becomes of requests when queues stop, memory changes, and back ends go and come.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use devisor::virtio::{
    QueueIndex, features,
    transport::{TransportOptions, vhost_user::VhostUserOptions},
};

use crate::{
    back::{Back, FEATURE, World, pair},
    front::*,
    machine::{BUSES, Bus, NEEDS_RESET},
    moved::connect_without,
    wire::{Fate, Way, between},
};

const LONG: Duration = Duration::from_secs(10);

fn eventfd() -> File {
    // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has.
    unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) }
}

#[test]
fn numbers_are_answered_on_all_queues_and_the_driver_is_interrupted() {
    for bus in BUSES {
        for features in [FEATURE, FEATURE | features::EVENT_IDX] {
            let (connect, _backs) = connect_to(&Arc::default());
            let mut front = Front::started(bus, connect, features);
            for round in 0..100 {
                let queue = round % 3;
                front.machine.rings[usize::from(queue)].want_signal();
                front.ask(queue);
                front.settle();
            }
            if bus == Bus::Mmio {
                let told = front.work_until(LONG, |front| front.interrupts.0.load(SeqCst) >= 100);
                assert!(told, "{} interrupts", front.interrupts.0.load(SeqCst));
            }
            assert_eq!(front.failures().count, 0);
        }
    }
}

#[test]
fn a_device_is_reset_and_driven_anew() {
    for bus in BUSES {
        let (connect, _backs) = connect_to(&Arc::default());
        let mut front = Front::started(bus, connect, FEATURE);
        for _ in 0..3 {
            front.ask(1);
            front.settle();
            front.restart(FEATURE);
        }
        front.ask(2);
        front.settle();
        assert_eq!(front.failures().count, 0);
    }
}

#[test]
fn a_paused_device_is_still_and_goes_on_where_it_was() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let (connect, _backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        for _ in 0..5 {
            front.ask(0);
            front.settle();
            front.machine.transport().pause();
            assert!(front.machine.transport().wait_until_still(Some(LONG)));
            let before = world.answered.lock().unwrap().len();
            front.ask(0);
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(world.answered.lock().unwrap().len(), before);
            front.machine.transport().resume();
            front.settle();
        }
        let answered = world.answered.lock().unwrap();
        assert_eq!(*answered, (1000..1010).collect::<Vec<_>>());
    }
}

#[test]
fn a_saved_device_goes_on_with_another_back_end() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let (connect, _backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        front.machine.write_config(0, b"w");
        front.ask(0);
        front.settle();
        let state = front.machine.save();
        *world.config.lock().unwrap() = *b"another.";
        let (connect, _backs2) = connect_to(&world);
        let mut other = Front::cold(bus, connect, Arc::clone(&front.machine.memory), options());
        other.machine.transport().restore(&state).unwrap();
        other.machine.take_driver(&mut front.machine);
        other.machine.transport().resume();
        other.ask(0);
        other.settle();
        assert_eq!(
            &world.config.lock().unwrap()[..1],
            b"w",
            "what the driver has written is told"
        );
        assert_eq!(world.answered.lock().unwrap().len(), 2);
    }
}

/// Ours at both ends, which move the state through a pipe of the one that is longer than a pipe.
#[test]
fn what_a_back_end_of_ours_keeps_moves_with_its_device() {
    let kept: Vec<u8> = (0..300_000_u32).map(|at| (at * 7) as u8).collect();
    for bus in BUSES {
        let world = Arc::new(World::default());
        *world.kept.lock().unwrap() = kept.clone();
        let (connect, _backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        front.ask(0);
        front.settle();
        let state = front.machine.save();
        let there = Arc::new(World::default());
        let (connect, _backs2) = connect_to(&there);
        let mut other = Front::cold(bus, connect, Arc::clone(&front.machine.memory), options());
        other.machine.transport().restore(&state).unwrap();
        assert_eq!(*there.kept.lock().unwrap(), kept);
        other.machine.take_driver(&mut front.machine);
        other.machine.transport().resume();
        other.ask(0);
        other.settle();
        assert_eq!(*there.kept.lock().unwrap(), kept);
        assert_eq!(other.failures().count, 0);
    }
}

#[test]
fn a_back_end_that_goes_in_the_middle_of_requests_is_followed_by_one_that_answers_them() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let (connect, backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        for round in 1..=5 {
            front.ask(0);
            front.settle();
            world.holds.store(true, SeqCst);
            let asked: Vec<_> = (0..6).map(|at| front.ask(at % 3)).collect();
            std::thread::sleep(Duration::from_millis(30));
            backs.lock().unwrap().clear();
            world.holds.store(false, SeqCst);
            front.settle();
            assert_eq!(front.returns(), round);
            world.assert_each_answered_once(asked);
        }
    }
}

/// GET_PROTOCOL_FEATURES, and the bit of INFLIGHT_SHMFD in its answer.
const PROTOCOL_FEATURES: u32 = 15;
const INFLIGHT: u64 = 1 << 12;

#[test]
fn a_back_end_without_a_table_that_goes_with_later_requests_used_before_earlier_ones_loses_none() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let backs = Backs::default();
        let (made, shared) = (Arc::clone(&backs), Arc::clone(&world));
        let connect = move || {
            let (front, middle) = pair();
            let (middle2, back) = pair();
            made.lock().unwrap().push(Back::new(&shared, back));
            let _ = between(middle, middle2, |way, message| {
                if way == Way::ToFront && message.request == PROTOCOL_FEATURES {
                    let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                    message.payload = (all & !INFLIGHT).to_ne_bytes().into();
                }
                Fate::Pass
            });
            Ok(front)
        };
        let mut front = Front::started(bus, connect, FEATURE);
        for round in 1..=4 {
            world.holds_even.store(true, SeqCst);
            let asked: Vec<_> = (0..5).map(|_| front.ask(0)).collect();
            let odd = asked.iter().filter(|number| **number % 2 == 1).count();
            let before = (round - 1) * 5;
            assert!(front.work_until(LONG, |_| world.answered.lock().unwrap().len() == before + odd));
            backs.lock().unwrap().clear();
            world.holds_even.store(false, SeqCst);
            front.settle();
            world.assert_each_answered_once(asked);
            assert_eq!(front.returns(), round as u64);
        }
    }
}

#[test]
fn a_back_end_with_a_table_that_comes_after_one_without_loses_none_on_any_queue() {
    let world = Arc::new(World::default());
    let (backs, came) = (Backs::default(), Arc::new(AtomicUsize::new(0)));
    let (made, shared, count) = (Arc::clone(&backs), Arc::clone(&world), Arc::clone(&came));
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        made.lock().unwrap().push(Back::new(&shared, back));
        let first = count.fetch_add(1, SeqCst) == 0;
        let _ = between(middle, middle2, move |way, message| {
            if first && way == Way::ToFront && message.request == PROTOCOL_FEATURES {
                let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                message.payload = (all & !INFLIGHT).to_ne_bytes().into();
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut options = options();
    options.retry = Duration::ZERO;
    let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options);
    front.machine.start(FEATURE);
    world.holds_even.store(true, SeqCst);
    // On each, the second is used before the first.
    let asked: Vec<_> = [0, 0, 1, 1, 2, 2].map(|queue| front.ask(queue)).into();
    assert!(front.work_until(LONG, |_| world.answered.lock().unwrap().len() == 3));
    backs.lock().unwrap().clear();
    world.holds_even.store(false, SeqCst);
    front.settle();
    assert_eq!(came.load(SeqCst), 2);
    world.assert_each_answered_once(asked);
}

#[test]
fn a_device_that_is_saved_when_its_back_end_has_gone_takes_along_what_was_in_flight() {
    const DEVICE_STATE: u64 = 1 << 19;
    for forgotten in [DEVICE_STATE, DEVICE_STATE | INFLIGHT] {
        let world = Arc::new(World::default());
        let reach = || connect_without(forgotten, Arc::clone(&world));
        let (connect, backs) = reach();
        let mut front = Front::started(Bus::Mmio, connect, FEATURE);
        world.holds_even.store(true, SeqCst);
        // The second is used before the first.
        let asked = [front.ask(0), front.ask(0), front.ask(0)];
        assert!(front.work_until(LONG, |_| world.answered.lock().unwrap().len() == 1));
        backs.lock().unwrap().clear();
        let state = front.machine.save();
        world.holds_even.store(false, SeqCst);
        let (connect, _backs) = reach();
        let mut other = Front::cold(Bus::Mmio, connect, Arc::clone(&front.machine.memory), options());
        other.machine.transport().restore(&state).unwrap();
        other.take_driver(&mut front);
        other.machine.transport().resume();
        other.settle();
        world.assert_each_answered_once(asked);
    }
}

#[test]
fn a_kick_after_as_many_requests_as_an_index_counts_is_passed_on() {
    const SET_VRING_KICK: u32 = 12;
    let (world, mut backs) = (Arc::default(), Vec::new());
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        // It looks by itself, as those do that poll: nobody takes its kicks.
        let _ = between(middle, middle2, |way, message| {
            if way == Way::ToBack && message.request == SET_VRING_KICK {
                message.descriptors = vec![eventfd().into()];
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    let kick = front.machine.with_device(|device| {
        let kick = device.kick(QueueIndex(0)).unwrap();
        File::from(kick.try_clone_to_owned().unwrap())
    });
    let kicked = || (&kick).read(&mut [0; 8]).is_ok();
    front.ask(0);
    front.settle();
    assert!(kicked());
    // What it has called is heard.
    front.work_until(Duration::from_millis(20), |_| false);
    assert!(!kicked());
    // So many requests later the index is what it was. A call that comes late is no second one.
    let is_passed_on = (0..2).any(|_| {
        front.machine.kick(0);
        front.machine.run();
        kicked()
    });
    assert!(is_passed_on);
}

#[test]
fn a_back_end_that_goes_and_uses_in_order_has_entries_skipped_as_it_may() {
    let transport = TransportOptions {
        in_order: true,
        ..TransportOptions::default()
    };
    let mut with = VhostUserOptions::default();
    with.transport.in_order = true;
    let world = Arc::new(World::default());
    let backs = Backs::default();
    let (made, shared) = (Arc::clone(&backs), Arc::clone(&world));
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        made.lock().unwrap().push(Back::with(&shared, back, with.clone()));
        let _ = between(middle, middle2, |way, message| {
            if way == Way::ToFront && message.request == PROTOCOL_FEATURES {
                let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                message.payload = (all & !INFLIGHT).to_ne_bytes().into();
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut front = Front::cold_with(connect, shared_memory(1), options(), &transport);
    front.machine.start(FEATURE | features::IN_ORDER);
    front.ask(0);
    front.settle();
    world.holds_even.store(true, SeqCst);
    // Of the first queue two that are used, one that is not, and one behind it.
    let asked: Vec<_> = [0, 1, 0, 0, 0].map(|queue| front.ask(queue)).into();
    assert_eq!(asked, [1001, 1002, 1003, 1004, 1005]);
    let ring = &front.machine.rings[0];
    let (layout, used) = (ring.layout, 3);
    assert!(front.work_until(LONG, |front| front.machine.rings[0].used_idx() == used));
    // As a batch: one entry for both, and whatever was in the other before.
    let ring = &front.machine.rings[0];
    let head = |position: u64| ring.get::<u16>(layout.driver_area + 4 + 2 * position);
    for (position, of) in [(1, 2), (2, 3)] {
        ring.put(layout.device_area + 4 + 8 * position, u32::from(head(of)));
    }
    backs.lock().unwrap().clear();
    world.holds_even.store(false, SeqCst);
    front.settle();
    let answered = world.answered.lock().unwrap().clone();
    for number in asked {
        let times = answered.iter().filter(|other| **other == number).count();
        // The last was answered once already, behind one that was not.
        assert_eq!(
            times,
            if number == 1005 { 2 } else { 1 },
            "{number} was answered {times} times"
        );
    }
}

#[test]
fn without_a_back_end_requests_wait_and_the_device_can_be_stopped() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let (mut make, backs) = connect_to(&world);
        let there = Arc::new(AtomicUsize::new(1));
        let is_there = Arc::clone(&there);
        let connect = move || match is_there.load(SeqCst) {
            0 => Err(io::ErrorKind::ConnectionRefused.into()),
            _ => make(),
        };
        let mut front = Front::started(bus, connect, FEATURE);
        front.ask(0);
        front.settle();
        there.store(0, SeqCst);
        backs.lock().unwrap().clear();
        front.ask(0);
        assert!(!front.work_until(Duration::from_millis(50), Front::is_answered));
        front.machine.transport().pause();
        assert!(front.machine.transport().wait_until_still(Some(LONG)));
        front.machine.transport().resume();
        assert!(!front.work_until(Duration::from_millis(20), Front::is_answered));
        assert_eq!(front.machine.transport().status() & NEEDS_RESET, 0);
        there.store(1, SeqCst);
        front.settle();
        assert!(front.failures().count >= 2);
        front.machine.set_status(0);
        assert_eq!(front.machine.transport().status(), 0);
    }
}

/// A connection that ends before the message with this number, counted over all that go to the back end.
fn cut_before(
    world: &Arc<World>,
    number: usize,
) -> (impl FnMut() -> io::Result<UnixStream> + Send + use<>, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let (count, world) = (Arc::clone(&seen), Arc::clone(world));
    let mut backs = Vec::new();
    let connect = move || {
        // One at a time.
        backs.clear();
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let count = Arc::clone(&count);
        let _ = between(middle, middle2, move |way, _| match way {
            Way::ToBack if count.fetch_add(1, SeqCst) == number => Fate::Cut,
            _ => Fate::Pass,
        });
        Ok(front)
    };
    (connect, seen)
}

#[test]
fn a_back_end_that_dies_at_any_message_is_followed_by_one_that_answers() {
    // As many messages as there are, of which those up to the configuration space belong to the making of the device.
    let (connect, seen) = cut_before(&Arc::default(), usize::MAX);
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    front.ask(0);
    front.settle();
    drop(front);
    let (connect, making) = cut_before(&Arc::default(), usize::MAX);
    drop(Front::cold(Bus::Mmio, connect, shared_memory(1), options()));
    let (making, all) = (making.load(SeqCst), seen.load(SeqCst));
    assert!(making > 5 && all > making + 20, "{making} of {all}");
    for number in making..all + 4 {
        let (connect, _) = cut_before(&Arc::default(), number);
        let mut front = Front::started(Bus::Mmio, connect, FEATURE);
        (0..3).for_each(|queue| _ = front.ask(queue));
        front.settle();
        front.machine.transport().pause();
        assert!(
            front.machine.transport().wait_until_still(Some(LONG)),
            "cut before {number}"
        );
        front.machine.transport().resume();
        front.ask(1);
        front.settle();
        front.machine.set_status(0);
        assert_eq!(front.machine.transport().status(), 0, "cut before {number}");
    }
}

#[test]
fn a_configuration_that_changes_again_and_again_while_it_is_read_is_the_last_in_the_end() {
    const GET_CONFIG: u32 = 24;
    let world = Arc::new(World::default());
    let backs = Backs::default();
    let (made, shared, left) = (Arc::clone(&backs), Arc::clone(&world), Arc::new(AtomicUsize::new(0)));
    let changes = Arc::clone(&left);
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        made.lock().unwrap().push(Back::new(&shared, back));
        let (made, shared, left) = (Arc::clone(&made), Arc::clone(&shared), Arc::clone(&changes));
        let _ = between(middle, middle2, move |way, message| {
            let is_left = || left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            if way == Way::ToFront && message.request == GET_CONFIG && is_left() {
                // The answer is of before.
                let device = Arc::clone(&made.lock().unwrap()[0].device);
                device.change_config(|_| shared.config.lock().unwrap()[0] += 1);
                std::thread::sleep(Duration::from_millis(10));
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    front.ask(0);
    front.settle();
    front.work_until(Duration::from_millis(20), |_| false);
    left.store(40, SeqCst);
    let device = Arc::clone(&backs.lock().unwrap()[0].device);
    device.change_config(|_| world.config.lock().unwrap()[0] += 1);
    let told = front.work_until(LONG, |front| front.machine.read_config(0, 1) == [41]);
    assert!(told, "{:?}", front.machine.read_config(0, 1));
}

#[test]
fn a_configuration_that_changes_when_the_device_is_paused_is_told_where_it_has_moved_to() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let (connect, backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        front.ask(0);
        front.settle();
        let generation = front.machine.config_generation();
        let device = Arc::clone(&backs.lock().unwrap()[0].device);
        device.change_config(|_| world.config.lock().unwrap()[0] = 7);
        // Said, and not heard yet.
        std::thread::sleep(Duration::from_millis(20));
        let state = front.machine.save();
        let (connect, _backs2) = connect_to(&world);
        let mut other = Front::cold(bus, connect, Arc::clone(&front.machine.memory), options());
        other.machine.transport().restore(&state).unwrap();
        other.take_driver(&mut front);
        other.machine.transport().resume();
        other.work_until(Duration::from_millis(20), |_| false);
        assert_eq!(other.machine.read_config(0, 1), [7]);
        assert_ne!(other.machine.config_generation(), generation);
        // That of the configuration.
        assert_ne!(other.machine.interrupt_status() & 2, 0);
    }
}

#[test]
fn memory_in_many_regions_is_told_one_by_one() {
    let (connect, _backs) = connect_to(&Arc::default());
    let mut front = Front::cold(Bus::Mmio, connect, shared_memory(16), options());
    front.machine.start(FEATURE);
    (0..3).for_each(|queue| _ = front.ask(queue));
    front.settle();
    assert_eq!(front.failures().count, 0);
}

#[test]
fn a_back_end_calls_what_the_embedder_says_and_us_again_and_so_does_one_that_comes_later() {
    for bus in BUSES {
        let (connect, backs) = connect_to(&Arc::default());
        let mut front = Front::started(bus, connect, FEATURE);
        front.ask(0);
        front.settle();
        let other = eventfd();
        let direct = || Some(OwnedFd::from(other.try_clone().unwrap()));
        front
            .machine
            .with_device(|device| device.set_call(QueueIndex(0), direct()));
        let called = || (&other).read(&mut [0; 8]).is_ok();
        for round in 0..4 {
            if round == 2 {
                backs.lock().unwrap().clear();
            }
            called();
            front.machine.rings[0].want_signal();
            front.ask(0);
            front.settle();
            assert!(front.work_until(LONG, |_| called()), "round {round}");
        }
        front.machine.with_device(|device| device.set_call(QueueIndex(0), None));
        called();
        let before = front.interrupts.0.load(SeqCst);
        front.machine.rings[0].want_signal();
        front.ask(0);
        front.settle();
        assert!(bus == Bus::Pci || front.work_until(LONG, |front| front.interrupts.0.load(SeqCst) > before));
        assert!(!called());
    }
}
