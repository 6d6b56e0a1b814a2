//! Back ends that lie: it costs their connection, and no more.

use std::{
    io,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use devisor::virtio::remote::Remote;

use crate::{
    back::{Back, FEATURE, World, pair},
    front::*,
    machine::Bus,
    wire::{Fate, Message, Way, between, send},
};

type Lie = fn(&mut Message) -> Fate;

/// Answers that a back end should not give.
const LIES: [(&str, Lie); 8] = [
    ("of no length", |message| {
        message.payload.clear();
        Fate::Pass
    }),
    ("shorter than it says", |message| {
        let size = message.payload.len() as u32;
        message.payload.truncate(1);
        Fate::PassAs(size)
    }),
    ("longer than anything", |_| Fate::PassAs(u32::MAX)),
    ("to another question", |message| {
        message.request = 27;
        Fate::Pass
    }),
    ("that is none", |message| {
        message.flags &= !4;
        Fate::Pass
    }),
    ("of another version", |message| {
        message.flags ^= 3;
        Fate::Pass
    }),
    ("with descriptors", |message| {
        message.descriptors.extend((0..9).map(|_| memfd(4096).into()));
        Fate::Pass
    }),
    ("that never comes", |_| Fate::Drop),
];

/// Lies in the answer with this number, over all connections.
fn liar(lie: Lie, number: usize) -> (impl FnMut() -> io::Result<UnixStream> + Send + use<>, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let world = Arc::new(World::default());
    let mut backs = Vec::new();
    let connect = move || {
        backs.clear();
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let count = Arc::clone(&count);
        let _ = between(middle, middle2, move |way, message| {
            match way == Way::ToFront && count.fetch_add(1, SeqCst) == number {
                true => lie(message),
                false => Fate::Pass,
            }
        });
        Ok(front)
    };
    (connect, seen)
}

#[test]
fn an_answer_that_is_wrong_costs_the_connection_wherever_it_comes() {
    let (connect, seen) = liar(|_| Fate::Pass, usize::MAX);
    let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options());
    let making = seen.load(SeqCst);
    front.machine.start(FEATURE);
    front.ask(0);
    front.settle();
    let all = seen.load(SeqCst);
    drop(front);
    for (name, lie) in LIES {
        // Those that take as long as the patience lasts are tried here and there.
        let slow = name.starts_with("shorter") || name.starts_with("that never");
        for number in (0..all).step_by(if slow { 7 } else { 1 }) {
            let (connect, _) = liar(lie, number);
            let mut options = options();
            options.patience = Duration::from_millis(if slow { 300 } else { 5000 });
            if number < making {
                // It is not made, or what was said does not matter to it.
                let began = Instant::now();
                let _ = Remote::new(connect, shared_memory(1), options);
                assert!(
                    began.elapsed() < Duration::from_secs(5),
                    "an answer {name}, number {number}"
                );
                continue;
            }
            let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options);
            front.machine.start(FEATURE);
            (0..3).for_each(|queue| _ = front.ask(queue));
            front.settle();
            assert!(
                front.failures().count > 0,
                "an answer {name}, number {number}, was taken"
            );
            front.machine.set_status(0);
            assert_eq!(front.machine.transport().status(), 0);
        }
    }
}

#[test]
fn a_message_that_nobody_asked_for_costs_the_connection() {
    let world = Arc::new(World::default());
    let mut backs = Vec::new();
    let says = Arc::new(AtomicBool::new(false));
    let speaks = Arc::clone(&says);
    let connect = move || {
        backs.clear();
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let speaker = middle.try_clone()?;
        let _ = between(middle, middle2, |_, _| Fate::Pass);
        let speaks = Arc::clone(&speaks);
        std::thread::spawn(move || {
            while !speaks.swap(false, SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            let message = Message {
                request: 1,
                flags: 5,
                payload: vec![0; 8],
                descriptors: Vec::new(),
            };
            let _ = send(&speaker, &message);
        });
        Ok(front)
    };
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    front.ask(0);
    front.settle();
    says.store(true, SeqCst);
    assert!(front.work_until(Duration::from_secs(5), |front| front.returns() == 1));
    front.ask(0);
    front.settle();
    says.store(true, SeqCst);
}

#[test]
fn a_back_end_that_never_answers_holds_nobody_for_longer_than_its_patience() {
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let world = Arc::new(World::default());
    let mut backs = Vec::new();
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let is_silent = Arc::clone(&is_silent);
        let _ = between(middle, middle2, move |way, _| match way {
            Way::ToFront if is_silent.load(SeqCst) => Fate::Drop,
            _ => Fate::Pass,
        });
        Ok(front)
    };
    let mut options = options();
    (options.patience, options.drain) = (Duration::from_millis(50), Duration::from_millis(200));
    let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options);
    front.machine.start(FEATURE);
    front.ask(0);
    front.settle();
    silent.store(true, SeqCst);
    let began = Instant::now();
    front.machine.write_config(0, b"x");
    front.ask(0);
    front.machine.set_status(0);
    assert_eq!(front.machine.transport().status(), 0);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(front.failures().count > 0);
}
