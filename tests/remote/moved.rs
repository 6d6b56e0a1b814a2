//! A device that moves in the middle of traffic: its back end's own state, and the pages that were written meanwhile.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use devisor::virtio::{
    DeviceState,
    remote::{BackEndState, Remote, RemoteError, RemoteState},
};

use crate::{
    back::{FEATURE, World},
    front::*,
    machine::{BUSES, Bus},
    middle::{self, DEVICE_STATE, Fault, More},
    wire::{Fate, Way, between},
};

fn stateful(state: &[u8]) -> Arc<More> {
    Arc::new(More {
        features: DEVICE_STATE,
        state: state.to_vec().into(),
        ..More::default()
    })
}

fn of_back_end(state: &devisor::virtio::transport::SavedDevice) -> BackEndState {
    match &state.device {
        DeviceState::Remote(RemoteState { back_end, .. }) => back_end.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_back_ends_own_state_moves_with_its_device_in_the_middle_of_requests() {
    for bus in BUSES {
        // As long as no pipe is.
        for len in [0, 1, 3_000_000] {
            let world = Arc::new(World::default());
            let own: Vec<_> = (0..len).map(|at: u32| at as u8).collect();
            let source = stateful(&own);
            let mut front = Front::started(bus, middle::connect(&world, &source), FEATURE);
            (0..3).for_each(|queue| _ = front.ask(queue));
            front.settle();
            world.holds.store(true, SeqCst);
            (0..3).for_each(|queue| _ = front.ask(queue));
            let state = front.machine.save();
            assert_eq!(of_back_end(&state), BackEndState::Saved(own.clone()));
            world.holds.store(false, SeqCst);

            let target = stateful(b"fresh");
            let mut other = Front::cold(
                bus,
                middle::connect(&world, &target),
                Arc::clone(&front.machine.memory),
                options(),
            );
            other.machine.transport().restore(&state).unwrap();
            assert_eq!(*target.state.lock().unwrap(), own);
            other.take_driver(&mut front);
            other.machine.transport().resume();
            (0..3).for_each(|queue| _ = other.ask(queue));
            other.settle();
            assert_eq!(world.answered.lock().unwrap().len(), 9);
            assert_eq!(other.failures().count, 0);
            // It was given once, and what comes later is its own.
            other.machine.transport().pause();
            assert!(
                other
                    .machine
                    .transport()
                    .wait_until_still(Some(Duration::from_secs(10)))
            );
            other.machine.transport().resume();
            other.ask(0);
            other.settle();
            assert_eq!(target.loads.load(SeqCst), 1);
        }
    }
}

#[test]
fn a_state_comes_through_a_pipe_of_the_back_ends_too() {
    let source = stateful(b"mine");
    *source.fault.lock().unwrap() = Fault::OwnPipe;
    let front = Front::started(Bus::Mmio, middle::connect(&Arc::default(), &source), FEATURE);
    let state = front.machine.save();
    assert_eq!(of_back_end(&state), BackEndState::Saved(b"mine".to_vec()));
    let target = stateful(b"");
    *target.fault.lock().unwrap() = Fault::OwnPipe;
    let other = Front::cold(
        Bus::Mmio,
        middle::connect(&Arc::default(), &target),
        shared_memory(1),
        options(),
    );
    other.machine.transport().restore(&state).unwrap();
    assert_eq!(*target.state.lock().unwrap(), b"mine");
}

#[test]
fn a_state_that_cannot_be_had_is_lost_and_restored_nowhere() {
    for fault in [
        Fault::Refuses,
        Fault::Failed,
        Fault::NeverEnds,
        Fault::Flood,
        Fault::NoDescriptor,
        Fault::TwoDescriptors,
        Fault::File,
        Fault::OtherEnd,
    ] {
        let source = stateful(b"mine");
        let mut options = options();
        (options.patience, options.drain) = (Duration::from_millis(300), Duration::from_millis(300));
        options.most_state = 1 << 20;
        let mut front = Front::cold(
            Bus::Mmio,
            middle::connect(&Arc::default(), &source),
            shared_memory(1),
            options.clone(),
        );
        front.machine.start(FEATURE);
        front.ask(0);
        front.settle();
        *source.fault.lock().unwrap() = fault;
        let began = Instant::now();
        let state = front.machine.save();
        assert!(began.elapsed() < Duration::from_secs(5), "{fault:?}");
        assert_eq!(of_back_end(&state), BackEndState::Lost, "{fault:?}");
        assert!(front.failures().count > 0, "{fault:?}");
        let target = stateful(b"");
        let other = Front::cold(
            Bus::Mmio,
            middle::connect(&Arc::default(), &target),
            shared_memory(1),
            options,
        );
        assert!(other.machine.transport().restore(&state).is_err(), "{fault:?}");
        // The source goes on, with another back end.
        *source.fault.lock().unwrap() = Fault::None;
        front.machine.transport().resume();
        front.ask(0);
        front.settle();
    }
}

#[test]
fn a_state_that_the_back_end_does_not_take_is_refused() {
    let source = stateful(&[7; 300_000]);
    let front = Front::started(Bus::Mmio, middle::connect(&Arc::default(), &source), FEATURE);
    let state = front.machine.save();
    for fault in [
        Fault::Refuses,
        Fault::Failed,
        Fault::NeverEnds,
        Fault::ReadsNothing,
        Fault::File,
        Fault::OtherEnd,
    ] {
        let target = stateful(b"");
        *target.fault.lock().unwrap() = fault;
        let mut options = options();
        (options.patience, options.drain) = (Duration::from_millis(300), Duration::from_millis(300));
        let other = Front::cold(
            Bus::Mmio,
            middle::connect(&Arc::default(), &target),
            shared_memory(1),
            options,
        );
        let began = Instant::now();
        let refused = other.machine.transport().restore(&state);
        assert!(refused.is_err(), "{fault:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{fault:?}");
    }
    // And one that has none does not forget it in silence.
    let (connect, _backs) = connect_without(DEVICE_STATE, Arc::default());
    let other = Front::cold(Bus::Mmio, connect, shared_memory(1), options());
    assert!(other.machine.transport().restore(&state).is_err());
}

#[test]
fn a_state_is_given_again_to_a_back_end_that_comes_before_any_ring_has_started() {
    let source = stateful(b"mine");
    let front = Front::started(Bus::Mmio, middle::connect(&Arc::default(), &source), FEATURE);
    let state = front.machine.save();
    let target = stateful(b"");
    let mut other = Front::cold(
        Bus::Mmio,
        middle::connect(&Arc::default(), &target),
        Arc::clone(&front.machine.memory),
        options(),
    );
    other.machine.transport().restore(&state).unwrap();
    // Its connection ends.
    *target.state.lock().unwrap() = b"gone".to_vec();
    let channel = target.channel.lock().unwrap().take().unwrap();
    channel.shutdown(std::net::Shutdown::Both).unwrap();
    let mut front = front;
    other.take_driver(&mut front);
    other.machine.transport().resume();
    other.ask(0);
    other.settle();
    assert_eq!(*target.state.lock().unwrap(), b"mine");
}

/// A back end of ours that does not say that it has these protocol features.
pub fn connect_without(
    features: u64,
    world: Arc<crate::back::World>,
) -> (
    impl FnMut() -> std::io::Result<std::os::unix::net::UnixStream> + Send,
    Backs,
) {
    const GET_PROTOCOL_FEATURES: u32 = 15;
    let backs = Backs::default();
    let made = Arc::clone(&backs);
    let connect = move || {
        let (front, middle) = crate::back::pair();
        let (middle2, back) = crate::back::pair();
        made.lock().unwrap().push(crate::back::Back::new(&world, back));
        let _ = between(middle, middle2, move |way, message| {
            if way == Way::ToFront && message.request == GET_PROTOCOL_FEATURES {
                let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                message.payload = (all & !features).to_ne_bytes().into();
            }
            Fate::Pass
        });
        Ok(front)
    };
    (connect, backs)
}

// Pages that are written.

const PAGE: u64 = 4096;

fn dirty(front: &Front) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    front
        .machine
        .with_device(|device| device.take_dirty(|page| _ = pages.insert(page)));
    pages
}

#[test]
fn pages_that_the_back_end_writes_are_noted_from_the_middle_of_traffic_on() {
    for bus in BUSES {
        let world = Arc::new(World::default());
        let (connect, backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        front.ask(0);
        front.settle();
        assert!(dirty(&front).is_empty(), "nobody has asked");
        world.holds.store(true, SeqCst);
        front.ask(0);
        front.machine.with_device(|device| device.start_dirty_log()).unwrap();
        world.holds.store(false, SeqCst);
        for round in 0..5 {
            let at = front.machine.place(0, 0);
            front.ask(0);
            front.settle();
            let pages = dirty(&front);
            let used = front.machine.rings[0].layout.device_area / PAGE * PAGE;
            assert!(pages.contains(&used), "{round}: the used ring in {pages:x?}");
            assert!(
                pages.contains(&((at + 8) / PAGE * PAGE)),
                "{round}: the answer in {pages:x?}"
            );
            assert!(pages.len() < 8, "{round}: what was not written in {pages:x?}");
        }
        // With a back end that has come anew it goes on.
        backs.lock().unwrap().clear();
        front.ask(0);
        front.settle();
        assert_eq!(front.returns(), 1);
        assert!(!dirty(&front).is_empty());
        front.machine.with_device(|device| device.stop_dirty_log());
        front.ask(0);
        front.settle();
        assert!(dirty(&front).is_empty());
        // And once more.
        front.machine.with_device(|device| device.start_dirty_log()).unwrap();
        front.ask(0);
        front.settle();
        assert!(!dirty(&front).is_empty());
    }
}

#[test]
fn a_log_that_is_asked_for_before_the_driver_is_there_begins_with_it() {
    let (connect, _backs) = connect_to(&Arc::default());
    let mut front = Front::cold(Bus::Mmio, connect, shared_memory(2), options());
    front.machine.with_device(|device| device.start_dirty_log()).unwrap();
    front.machine.start(FEATURE);
    front.ask(0);
    front.settle();
    assert!(!dirty(&front).is_empty());
    assert_eq!(front.failures().count, 0);
}

#[test]
fn a_back_end_that_does_not_log_is_none_for_a_migration() {
    const LOG_SHMFD: u64 = 1 << 1;
    let (connect, _backs) = connect_without(LOG_SHMFD, Arc::default());
    let device = Remote::new(connect, shared_memory(1), options()).unwrap();
    assert!(matches!(device.start_dirty_log(), Err(RemoteError::NoLog)));
}

#[test]
fn a_log_that_the_back_end_makes_shorter_is_as_long_as_it_was() {
    const SET_LOG_BASE: u32 = 6;
    let world = Arc::default();
    let mut backs = Vec::new();
    let connect = move || {
        let (front, middle) = crate::back::pair();
        let (middle2, back) = crate::back::pair();
        backs.push(crate::back::Back::new(&world, back));
        let _ = between(middle, middle2, move |way, message| {
            if way == Way::ToBack && message.request == SET_LOG_BASE {
                let log = std::fs::File::from(message.descriptors[0].try_clone().unwrap());
                assert!(log.set_len(0).is_err());
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    front.machine.with_device(|device| device.start_dirty_log()).unwrap();
    front.ask(0);
    front.settle();
    assert!(!dirty(&front).is_empty());
}
