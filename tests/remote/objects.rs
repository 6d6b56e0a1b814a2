//! Objects that back ends share with each other, by way of their front ends.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixStream},
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::{
    remote::{Connect, Remote, RemoteOptions, SharedObjects},
    transport::vhost_user::VhostUser,
};

use crate::{
    back::{Back, Counter, FEATURE, World, pair},
    front::{Backs, connect_to, memfd, options, shared_memory},
    machine::{Bus, Machine},
    middle::More,
    poll::poll,
    wire::{Fate, Message, Way, between},
};

const UUID: [u8; 16] = *b"a name of sorts!";

const SET_BACKEND_REQ_FD: u32 = 21;
const GET_CONFIG: u32 = 24;
const GET_SHARED_OBJECT: u32 = 41;
/// Of the back end.
const LOOKUP: u32 = 8;

fn number(file: OwnedFd) -> u64 {
    File::from(file).metadata().unwrap().ino()
}

/// A machine with a device, whose back end is on a thread.
struct Side {
    machine: Machine<Remote>,
    backs: Backs,
}

impl Side {
    fn new(objects: Option<&SharedObjects>) -> Self {
        let mut options = options();
        options.shared_objects = objects.cloned();
        Self::by(connect_to(&Arc::<World>::default()), options)
    }

    fn by((connect, backs): (impl Connect + 'static, Backs), options: RemoteOptions) -> Self {
        let memory = shared_memory(1);
        let device = Remote::new(connect, Arc::clone(&memory), options).unwrap();
        let mut machine = Machine::in_memory(Bus::Mmio, device, memory);
        machine.start(FEATURE);
        Self { machine, backs }
    }

    fn back(&self) -> Arc<VhostUser<Counter>> {
        Arc::clone(&self.backs.lock().unwrap().last().unwrap().device)
    }
}

/// Looks at all devices until `done`, which is not long.
fn work_until(sides: &[&Side], mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "it does not come");
        sides.iter().for_each(|side| poll(&side.machine, Duration::ZERO));
        thread::sleep(Duration::from_micros(200));
    }
}

/// What the back end of `by` finds.
fn look_up(by: &Side, sides: &[&Side]) -> Option<u64> {
    let (told, hears) = mpsc::channel();
    by.back()
        .look_up_object(UUID, move |found| told.send(found.map(number)).unwrap());
    let mut found = None;
    work_until(sides, || {
        found = hears.try_recv().ok();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn what_a_back_end_exports_another_one_finds_until_it_is_withdrawn() {
    let objects = SharedObjects::new(8);
    let sides = [(); 2].map(|()| Side::new(Some(&objects)));
    let all = [&sides[0], &sides[1]];
    assert_eq!(look_up(all[1], &all), None);
    let file: OwnedFd = memfd(4096).into();
    let expected = number(file.try_clone().unwrap());
    all[0].back().export_object(UUID, file);
    work_until(&all, || objects.count() == 1);
    assert_eq!(look_up(all[1], &all), Some(expected));
    assert_eq!(look_up(all[0], &all), None, "its own it knows");
    assert_eq!(number(objects.get(UUID).unwrap()), expected);
    assert!(objects.get([0; 16]).is_err());

    // Who has not exported it cannot take it away, nor its name.
    all[1].back().export_object(UUID, memfd(4096).into());
    assert!(all[1].back().withdraw_object(UUID));
    assert_eq!(look_up(all[1], &all), Some(expected));
    assert!(all[0].back().withdraw_object(UUID));
    work_until(&all, || objects.count() == 0);
    assert_eq!(look_up(all[1], &all), None);
    for side in all {
        assert_eq!(side.machine.with_device(|device| device.host_failures().count), 0);
    }
}

#[test]
fn what_a_back_end_has_exported_goes_and_comes_with_its_connection() {
    let objects = SharedObjects::new(8);
    let sides = [(); 2].map(|()| Side::new(Some(&objects)));
    let all = [&sides[0], &sides[1]];
    all[0].back().export_object(UUID, memfd(4096).into());
    work_until(&all, || objects.count() == 1);
    sides[0].backs.lock().unwrap().clear();
    // The next one exports nothing yet.
    work_until(&all, || objects.count() == 0);
    assert_eq!(look_up(all[1], &all), None);
    work_until(&all, || {
        // Whoever is kicked looks for its back end.
        sides[0].machine.kick(0);
        !sides[0].backs.lock().unwrap().is_empty()
    });
    let back = all[0].back();
    back.export_object(UUID, memfd(4096).into());
    work_until(&all, || objects.count() == 1);
    drop(sides);
    assert_eq!(objects.count(), 0, "devices that are gone export nothing");
}

#[test]
fn a_table_has_a_bound_and_a_device_without_one_shares_nothing() {
    let objects = SharedObjects::new(2);
    let (some, none) = (Side::new(Some(&objects)), Side::new(None));
    for name in 0..4 {
        some.back().export_object([name; 16], memfd(4096).into());
        none.back().export_object([name + 4; 16], memfd(4096).into());
    }
    work_until(&[&some, &none], || objects.count() == 2);
    assert_eq!(look_up(&none, &[&some, &none]), None);
    assert_eq!(look_up(&some, &[&some, &none]), None);
    assert_eq!(objects.count(), 2);
}

/// Reaches back ends of ours by way of somebody who does `decide` to what is said.
fn connect_by<F: Fn(Way, &mut Message) -> Fate + Clone + Send + Sync + 'static>(
    world: &Arc<World>,
    decide: F,
) -> (impl FnMut() -> io::Result<UnixStream> + Send + use<F>, Backs) {
    let backs = Backs::default();
    let (world, made) = (Arc::clone(world), Arc::clone(&backs));
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        made.lock().unwrap().push(Back::new(&world, back));
        let _ = between(middle, middle2, decide.clone());
        Ok(front)
    };
    (connect, backs)
}

#[test]
fn an_exporter_that_never_answers_costs_nobody_else_its_connection() {
    let objects = SharedObjects::new(8);
    let mut options = options();
    options.patience = Duration::from_millis(800);
    options.shared_objects = Some(objects.clone());
    let silent = connect_by(&Arc::default(), |way, message| {
        match (way, message.request) == (Way::ToFront, GET_SHARED_OBJECT) {
            true => Fate::Drop,
            false => Fate::Pass,
        }
    });
    let silent = Side::by(silent, options.clone());
    silent.back().export_object(UUID, memfd(4096).into());
    work_until(&[&silent], || objects.count() == 1);

    // It answers once it is answered itself.
    let more = Arc::new(More::default());
    let asks = Arc::new(AtomicBool::new(false));
    let asking = connect_by(&Arc::default(), {
        let (more, asks) = (Arc::clone(&more), Arc::clone(&asks));
        move |way, message| {
            if way == Way::ToBack && message.request == SET_BACKEND_REQ_FD {
                let channel = message.descriptors[0].try_clone().unwrap();
                *more.channel.lock().unwrap() = Some(channel.into());
            }
            if (way, message.request) == (Way::ToBack, GET_CONFIG) && asks.load(SeqCst) {
                assert_eq!(more.ask(LOOKUP, UUID.into(), Vec::new()), Some(1));
            }
            Fate::Pass
        }
    });
    let asking = Side::by(asking, options);
    asks.store(true, SeqCst);
    asking.machine.write_config(0, b"x");
    let failures = |side: &Side| side.machine.with_device(|device| device.host_failures());
    assert_eq!(failures(&asking).count, 0, "{:?}", failures(&asking).last);
    assert_eq!(asking.machine.read_config(0, 1), b"x");
    assert_eq!(failures(&silent).count, 1);
}

#[test]
fn a_configuration_that_changes_while_something_is_asked_is_told() {
    let objects = SharedObjects::new(8);
    let mut options = options();
    options.shared_objects = Some(objects.clone());
    let world = Arc::<World>::default();
    let slow = connect_by(&world, |way, message| {
        if (way, message.request) == (Way::ToFront, GET_SHARED_OBJECT) {
            thread::sleep(Duration::from_millis(20));
        }
        Fate::Pass
    });
    let side = Side::by(slow, options);
    side.back().export_object(UUID, memfd(4096).into());
    work_until(&[&side], || objects.count() == 1);
    let before = side.machine.config_generation();
    let changed = || world.config.lock().unwrap()[7] = 77;
    side.back().change_config(|_| changed());
    objects.get(UUID).unwrap();
    work_until(&[&side], || side.machine.read_config(7, 1) == [77]);
    assert_ne!(side.machine.config_generation(), before);
}
