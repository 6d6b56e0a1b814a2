//! Back ends that lie: it costs their connection, and no more.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use devisor::virtio::remote::Remote;

use crate::{
    back::{Back, FEATURE, World, pair},
    front::*,
    machine::{Bus, NEEDS_RESET},
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
    (options.patience, options.drain) = (Duration::from_millis(300), Duration::from_millis(200));
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

/// A back end whose answers to one request are changed, for as long as it lies.
fn changed<F: Fn(&mut Message) + Clone + Send + Sync + 'static>(
    request: u32,
    lies: &Arc<AtomicBool>,
    lie: F,
) -> (impl FnMut() -> io::Result<UnixStream> + Send + use<F>, Backs) {
    let (lies, backs) = (Arc::clone(lies), Backs::default());
    let (world, made) = (Arc::default(), Arc::clone(&backs));
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        *made.lock().unwrap() = vec![Back::new(&world, back)];
        let (lies, lie) = (Arc::clone(&lies), lie.clone());
        let _ = between(middle, middle2, move |way, message| {
            if way == Way::ToFront && message.request == request && lies.load(SeqCst) {
                lie(message);
            }
            Fate::Pass
        });
        Ok(front)
    };
    (connect, backs)
}

#[test]
fn a_configuration_space_that_is_not_what_was_asked_for_costs_the_connection() {
    const GET_CONFIG: u32 = 24;
    let word = |message: &mut Message, at: usize, word: u32| {
        message.payload[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    };
    type Set<'a> = &'a dyn Fn(&mut Message, usize, u32);
    let lies: [fn(&mut Message, Set<'_>); 6] = [
        // Of more bytes than were asked for, which are there.
        |message, word| {
            message.payload.extend([7; 248]);
            word(message, 4, 256);
        },
        // Of more than are there.
        |message, word| word(message, 4, 9),
        |message, word| word(message, 4, u32::MAX),
        |message, word| word(message, 4, 7),
        |message, word| word(message, 0, 1),
        |message, _| message.descriptors.push(memfd(4096).into()),
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let now = Arc::new(AtomicBool::new(true));
        let (connect, _backs) = changed(GET_CONFIG, &now, move |message| lie(message, &word));
        assert!(
            Remote::new(connect, shared_memory(1), options()).is_err(),
            "lie {number}"
        );
        now.store(false, SeqCst);
        let (connect, _backs) = changed(GET_CONFIG, &now, move |message| lie(message, &word));
        let mut front = Front::started(Bus::Mmio, connect, FEATURE);
        now.store(true, SeqCst);
        front.machine.write_config(0, b"x");
        assert!(front.failures().count > 0, "lie {number}");
        assert_eq!(front.machine.read_config(8, 4), [0; 4]);
        now.store(false, SeqCst);
        front.ask(0);
        front.settle();
        assert_eq!(front.machine.read_config(0, 1), b"x");
    }
}

#[test]
fn a_table_of_requests_in_flight_that_is_not_there_costs_the_connection() {
    const GET_INFLIGHT_FD: u32 = 31;
    let lies: [fn(&mut Message); 4] = [
        |message| message.descriptors.clear(),
        |message| message.descriptors.push(memfd(4096).into()),
        |message| message.payload.truncate(8),
        |message| message.payload[..8].fill(0),
    ];
    for lie in lies {
        let now = Arc::new(AtomicBool::new(true));
        let (connect, _backs) = changed(GET_INFLIGHT_FD, &now, lie);
        let mut front = Front::started(Bus::Mmio, connect, FEATURE);
        front.ask(0);
        assert!(!front.work_until(Duration::from_millis(20), Front::is_answered));
        assert!(front.failures().count > 0);
        now.store(false, SeqCst);
        front.settle();
    }
}

#[test]
fn a_back_end_that_comes_with_less_than_the_one_before_is_none() {
    const GET_FEATURES: u32 = 1;
    const GET_QUEUE_NUM: u32 = 17;
    const GET_PROTOCOL_FEATURES: u32 = 15;
    type Change = fn(&mut Message);
    let lies: [(u32, Change); 4] = [
        (GET_FEATURES, |message| message.payload[0] &= !(FEATURE as u8)),
        // INFLIGHT_SHMFD, DEVICE_STATE.
        (GET_PROTOCOL_FEATURES, |message| message.payload[1] &= !(1 << 4)),
        (GET_PROTOCOL_FEATURES, |message| message.payload[2] &= !(1 << 3)),
        (GET_QUEUE_NUM, |message| message.payload[0] = 2),
    ];
    for (request, lie) in lies {
        let now = Arc::new(AtomicBool::new(false));
        let (connect, backs) = changed(request, &now, lie);
        let mut front = Front::started(Bus::Mmio, connect, FEATURE);
        front.ask(0);
        front.settle();
        now.store(true, SeqCst);
        // It goes.
        backs.lock().unwrap().clear();
        front.ask(0);
        assert!(!front.work_until(Duration::from_millis(20), Front::is_answered));
        assert!(front.failures().count > 1, "{request}");
        now.store(false, SeqCst);
        front.settle();
    }
}

#[test]
fn a_ring_that_was_used_further_than_it_was_filled_costs_the_device_until_its_reset() {
    for further in [1, 100, 0x8000] {
        let (connect, _backs) = connect_to(&Arc::default());
        let mut options = options();
        (options.patience, options.drain) = (Duration::from_millis(200), Duration::from_millis(200));
        let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options);
        front.machine.start(FEATURE);
        front.ask(0);
        front.settle();
        let ring = &front.machine.rings[0];
        let index = ring.avail_idx().wrapping_add(further);
        ring.put(ring.layout.device_area + 2, index);
        let began = Instant::now();
        front.machine.kick(0);
        front.machine.run();
        front.machine.transport().pause();
        assert!(front.machine.transport().wait_until_still(Some(Duration::from_secs(5))));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        front.machine.transport().resume();
        front.work_until(Duration::from_millis(50), |_| false);
        assert_ne!(front.machine.transport().status() & NEEDS_RESET, 0, "{further}");
        front.restart(FEATURE);
        front.ask(0);
        front.settle();
    }
}

#[test]
fn a_ring_that_the_back_end_has_given_up_more_than_once_is_revived_by_one_reset() {
    const SET_VRING_ERR: u32 = 14;
    let error = Arc::new(std::sync::Mutex::new(None));
    let (world, kept, mut backs) = (Arc::default(), Arc::clone(&error), Vec::new());
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let kept = Arc::clone(&kept);
        let _ = between(middle, middle2, move |way, message| {
            if way == Way::ToBack && message.request == SET_VRING_ERR && message.payload[0] == 0 {
                *kept.lock().unwrap() = Some(UnixStream::from(message.descriptors[0].try_clone().unwrap()));
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    front.ask(0);
    front.settle();
    let gives_up = || {
        let error = error.lock().unwrap();
        io::Write::write_all(&mut AsFile(error.as_ref().unwrap()), &1_u64.to_ne_bytes()).unwrap();
    };
    gives_up();
    let needs_reset = |front: &mut Front| front.machine.transport().status() & NEEDS_RESET != 0;
    assert!(front.work_until(Duration::from_secs(5), needs_reset));
    gives_up();
    front.restart(FEATURE);
    front.ask(0);
    front.settle();
    assert!(!needs_reset(&mut front));
}

#[test]
fn a_back_end_that_is_slow_in_all_that_it_is_asked_holds_nobody_for_longer_than_its_patience() {
    let slow = Arc::new(AtomicBool::new(false));
    let (is_slow, world, backs) = (Arc::clone(&slow), Arc::default(), Backs::default());
    let made = Arc::clone(&backs);
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        *made.lock().unwrap() = vec![Back::new(&world, back)];
        let is_slow = Arc::clone(&is_slow);
        let _ = between(middle, middle2, move |way, _| {
            if way == Way::ToFront && is_slow.load(SeqCst) {
                thread::sleep(Duration::from_millis(100));
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut options = options();
    options.patience = Duration::from_millis(900);
    let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options);
    front.machine.start(FEATURE);
    front.ask(0);
    front.settle();
    // It goes, and who comes has a ring described: that is more than it has the time for.
    slow.store(true, SeqCst);
    backs.lock().unwrap().clear();
    let mut held = Duration::ZERO;
    while front.failures().count < 2 && front.returns() == 0 {
        let began = Instant::now();
        front.machine.transport().process(devisor::virtio::QueueIndex(0));
        held = held.max(began.elapsed());
    }
    slow.store(false, SeqCst);
    assert!(held < Duration::from_millis(1500), "{held:?}");
    front.ask(0);
    front.settle();
}

#[test]
fn a_ring_across_two_regions_of_memory_costs_the_device_until_its_reset_and_not_the_connection() {
    // In the middle of the second ring's descriptors, and in that of its available ring.
    for end in [0x1_4080, 0x1_5010_u64] {
        let regions = [(0, end), (end, MEMORY - end)].map(|(at, len)| {
            let file = vm_memory::FileOffset::new(memfd(len), 0);
            (vm_memory::GuestAddress(at), len as usize, Some(file))
        });
        let memory = vm_memory::GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
        let (connect, _backs) = connect_to(&Arc::default());
        let mut front = Front::cold(Bus::Mmio, connect, Arc::new(memory), options());
        front.machine.start(FEATURE);
        front.work_until(Duration::from_millis(50), |_| false);
        let failures = front.failures();
        assert_ne!(front.machine.transport().status() & NEEDS_RESET, 0);
        assert_eq!(failures.count, 0, "{failures:?}");
    }
}

#[test]
fn a_ring_that_says_the_same_request_was_used_twice_harms_nobody_else() {
    let (connect, backs) = connect_to(&Arc::default());
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    for _ in 0..4 {
        front.ask(0);
        front.settle();
    }
    // All entries are the same, or of no descriptor; what was in flight is looked for in them when the back end goes.
    for head in [0_u32, 1, 0xffff, u32::MAX] {
        let ring = &front.machine.rings[0];
        for entry in 0..u64::from(ring.layout.size) {
            ring.put(ring.layout.device_area + 4 + 8 * entry, head);
        }
        backs.lock().unwrap().clear();
        front.ask(0);
        front.ask(1);
        front.settle();
    }
}

#[test]
fn calls_and_requests_without_end_hold_nobody() {
    const SET_VRING_CALL: u32 = 13;
    const SET_BACKEND_REQ_FD: u32 = 21;
    let world = Arc::new(World::default());
    let ends = Arc::new(AtomicBool::new(false));
    let (stop, mut backs) = (Arc::clone(&ends), Vec::new());
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let stop = Arc::clone(&stop);
        let _ = between(middle, middle2, move |way, message| {
            if way == Way::ToBack && [SET_VRING_CALL, SET_BACKEND_REQ_FD].contains(&message.request) {
                let descriptor = message.descriptors[0].try_clone().unwrap();
                let (stop, calls) = (Arc::clone(&stop), message.request == SET_VRING_CALL);
                thread::spawn(move || {
                    let stream = UnixStream::from(descriptor);
                    // CONFIG_CHANGE_MSG, and one that nobody knows, without an answer.
                    let storm = [2_u32, 1, 0, 77, 1, 0].map(u32::to_ne_bytes).concat();
                    while !stop.load(SeqCst) {
                        let bytes: &[u8] = if calls { &[1, 0, 0, 0, 0, 0, 0, 0] } else { &storm };
                        if io::Write::write_all(&mut AsFile(&stream), bytes).is_err() && !calls {
                            return;
                        }
                    }
                });
            }
            Fate::Pass
        });
        Ok(front)
    };
    let mut front = Front::started(Bus::Mmio, connect, FEATURE);
    let mut longest = Duration::ZERO;
    for round in 0..50 {
        let queue = round % 3;
        let began = Instant::now();
        front.ask(queue);
        front.machine.write_config(0, b"x");
        for queue in 0..3 {
            front.machine.transport().process(devisor::virtio::QueueIndex(queue));
        }
        longest = longest.max(began.elapsed());
    }
    let end = Instant::now() + Duration::from_secs(10);
    while !front.is_answered() {
        assert!(Instant::now() < end, "not answered");
        (0..3).for_each(|queue| front.machine.transport().process(devisor::virtio::QueueIndex(queue)));
    }
    let began = Instant::now();
    front.machine.set_status(0);
    assert_eq!(front.machine.transport().status(), 0);
    ends.store(true, SeqCst);
    assert!(longest.max(began.elapsed()) < Duration::from_secs(4), "{longest:?}");
}

#[test]
fn a_back_end_that_makes_shared_descriptors_wait_holds_nobody() {
    const SET_VRING_KICK: u32 = 12;
    const SET_VRING_ERR: u32 = 14;
    let world = Arc::new(World::default());
    let mut backs = Vec::new();
    let connect = move || {
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let _ = between(middle, middle2, move |way, message| {
            if way == Way::ToBack && (SET_VRING_KICK..=SET_VRING_ERR).contains(&message.request) {
                let shared = UnixStream::from(message.descriptors[0].try_clone().unwrap());
                if message.request == SET_VRING_KICK {
                    // As full as can be, and nobody takes it.
                    io::Write::write_all(&mut AsFile(&shared), &(u64::MAX - 1).to_ne_bytes()).unwrap();
                    // SAFETY: the result is a new descriptor.
                    let other = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
                    message.descriptors = vec![other];
                }
                // SAFETY: a call that takes numbers.
                unsafe { libc::fcntl(shared.as_raw_fd(), libc::F_SETFL, 0) };
            }
            Fate::Pass
        });
        Ok(front)
    };
    let (told, done) = mpsc::channel();
    thread::spawn(move || {
        let mut front = Front::cold(Bus::Mmio, connect, shared_memory(1), options());
        front.machine.start(FEATURE);
        for queue in 0..3 {
            front.ask(queue);
            front.machine.transport().process(devisor::virtio::QueueIndex(queue));
        }
        front.machine.set_status(0);
        told.send(front.machine.transport().status()).unwrap();
    });
    assert_eq!(done.recv_timeout(Duration::from_secs(30)), Ok(0));
}

/// Written to as it is, a socket or not.
struct AsFile<'a>(&'a UnixStream);

impl io::Write for AsFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: the bytes outlive the call.
        let written = unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
