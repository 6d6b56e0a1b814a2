//! A back end of ours, with somebody in the middle who can more: it has a state of its own that moves, and asks for mappings.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    back::{Back, World, pair},
    wire::{Fate, Message, Way, between, receive, send},
};

/// Protocol features that it adds.
pub const DEVICE_STATE: u64 = 1 << 19;
pub const SHMEM: u64 = 1 << 22;
pub const SEND_FD: u64 = 1 << 10;

const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;
const SET_DEVICE_STATE_FD: u32 = 42;
const CHECK_DEVICE_STATE: u32 = 43;
const GET_SHMEM_CONFIG: u32 = 44;

/// What it is, and what becomes of it.
#[derive(Default)]
pub struct More {
    pub features: u64,
    /// Protocol features that were agreed on.
    pub agreed: AtomicU64,
    /// Its own state.
    pub state: Mutex<Vec<u8>>,
    /// What it does wrong when it is asked for its state.
    pub fault: Mutex<Fault>,
    /// How often it was given a state.
    pub loads: AtomicU64,
    /// The sizes of its shared memory regions.
    pub regions: Vec<u64>,
    /// Its channel for requests of its own.
    pub channel: Mutex<Option<UnixStream>>,
    pub reading: Mutex<Option<JoinHandle<Vec<u8>>>>,
    pub kept: Mutex<Vec<OwnedFd>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// It says that it does not.
    Refuses,
    /// It says in the end that it did not.
    Failed,
    /// It never closes its end.
    NeverEnds,
    /// It writes as long as anybody reads.
    Flood,
    /// It says that there is a descriptor, and there is none.
    NoDescriptor,
    /// It says that there is none, and there is one.
    TwoDescriptors,
    /// One of its own that is no pipe.
    File,
    /// One of its own, which is well.
    OwnPipe,
    /// An end of its own for the other direction.
    OtherEnd,
    /// It closes its end before it has read anything.
    ReadsNothing,
}

impl More {
    fn answer(&self, message: &mut Message) -> Option<Message> {
        let reply = |word: u64, descriptors| Message {
            request: message.request,
            flags: 5,
            payload: word.to_ne_bytes().into(),
            descriptors,
        };
        match message.request {
            SET_DEVICE_STATE_FD => {
                let fault = *self.fault.lock().unwrap();
                let theirs = message.descriptors.pop().unwrap();
                let loads = message.payload[0] == 1;
                let (theirs, own) = match fault {
                    Fault::OwnPipe => {
                        let (read, write) = io::pipe().unwrap();
                        if loads {
                            (read.into(), Some(write.into()))
                        } else {
                            (write.into(), Some(read.into()))
                        }
                    }
                    Fault::OtherEnd => {
                        let (read, write) = io::pipe().unwrap();
                        let own: OwnedFd = if loads { read.into() } else { write.into() };
                        (own.try_clone().unwrap(), Some(own))
                    }
                    Fault::TwoDescriptors => (theirs.try_clone().unwrap(), Some(theirs)),
                    Fault::File => (theirs, Some(crate::front::memfd(4096).into())),
                    _ => (theirs, None),
                };
                let has_own = matches!(
                    fault,
                    Fault::OwnPipe | Fault::OtherEnd | Fault::File | Fault::NoDescriptor
                );
                let word = if has_own { 0 } else { 0x100 } | u64::from(fault == Fault::Refuses);
                self.transfer(theirs, loads, fault);
                Some(reply(word, own.into_iter().collect()))
            }
            CHECK_DEVICE_STATE => {
                if let Some(reading) = self.reading.lock().unwrap().take() {
                    *self.state.lock().unwrap() = reading.join().unwrap();
                    self.loads.fetch_add(1, SeqCst);
                }
                let failed = *self.fault.lock().unwrap() == Fault::Failed;
                Some(reply(failed.into(), Vec::new()))
            }
            GET_SHMEM_CONFIG => {
                let mut payload = [self.regions.len() as u32, 0].map(u32::to_ne_bytes).concat();
                payload.extend((0..256).flat_map(|at| self.regions.get(at).unwrap_or(&0).to_ne_bytes()));
                Some(Message {
                    payload,
                    ..reply(0, Vec::new())
                })
            }
            _ => None,
        }
    }

    fn transfer(&self, end: OwnedFd, loads: bool, fault: Fault) {
        let mut end = File::from(end);
        match fault {
            Fault::NeverEnds => self.kept.lock().unwrap().push(end.into()),
            Fault::ReadsNothing => drop(end),
            _ if loads => {
                let reading = thread::spawn(move || {
                    let mut state = Vec::new();
                    let _ = end.read_to_end(&mut state);
                    state
                });
                *self.reading.lock().unwrap() = Some(reading);
            }
            Fault::Flood => {
                thread::spawn(move || while end.write_all(&[0; 4096]).is_ok() {});
            }
            _ => {
                let state = self.state.lock().unwrap().clone();
                thread::spawn(move || end.write_all(&state));
            }
        }
    }

    /// Asks for something on its own channel. What is answered.
    pub fn ask(&self, request: u32, payload: Vec<u8>, descriptors: Vec<OwnedFd>) -> Option<u64> {
        let channel = self.channel.lock().unwrap().as_ref().unwrap().try_clone().unwrap();
        let message = Message {
            request,
            flags: 9,
            payload,
            descriptors,
        };
        send(&channel, &message).ok()?;
        channel.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let answer = receive(&channel)?;
        assert_eq!((answer.request, answer.flags), (request, 5));
        Some(u64::from_ne_bytes(answer.payload[..].try_into().unwrap()))
    }
}

/// Reaches one that does `more` besides.
pub fn connect(world: &Arc<World>, more: &Arc<More>) -> impl FnMut() -> io::Result<UnixStream> + Send + use<> {
    let (world, more) = (Arc::clone(world), Arc::clone(more));
    let mut backs = Vec::new();
    move || {
        // One at a time.
        backs.clear();
        let (front, middle) = pair();
        let (middle2, back) = pair();
        backs.push(Back::new(&world, back));
        let answers = middle.try_clone()?;
        let more = Arc::clone(&more);
        let _ = between(middle, middle2, move |way, message| {
            let word = |message: &Message| u64::from_ne_bytes(message.payload[..8].try_into().unwrap());
            match (way, message.request) {
                (Way::ToFront, GET_PROTOCOL_FEATURES) => {
                    message.payload = (word(message) | more.features).to_ne_bytes().into();
                }
                (Way::ToBack, SET_PROTOCOL_FEATURES) => {
                    more.agreed.store(word(message), SeqCst);
                    message.payload = (word(message) & !(DEVICE_STATE | SHMEM | SEND_FD)).to_ne_bytes().into();
                }
                (Way::ToBack, SET_BACKEND_REQ_FD) => {
                    let channel = message.descriptors[0].try_clone().unwrap();
                    *more.channel.lock().unwrap() = Some(channel.into());
                }
                (Way::ToBack, _) => {
                    if let Some(answer) = more.answer(message) {
                        let _ = send(&answers, &answer);
                        return Fate::Drop;
                    }
                }
                _ => {}
            }
            Fate::Pass
        });
        Ok(front)
    }
}
