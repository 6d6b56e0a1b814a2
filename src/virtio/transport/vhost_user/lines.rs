//! What a queue hears and says by: kick, call and error descriptors, and the channel for the back end's own requests.

use std::{
    io, mem,
    os::fd::{OwnedFd, RawFd},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    channel::{Channel, Expected, Found},
    event::Event,
    options::VhostUserOptions,
};
use crate::{
    interrupt::Interrupt,
    sync::lock,
    virtio::{
        QueueIndex, Wait,
        queue::VirtioInterrupt,
        transport::Doorbell,
        vhost_user::{BackRequest, Header, Message},
    },
};

/// By what the front end hears of used buffers.
#[derive(Default)]
enum Call {
    /// It has not said: what there is to say is owed until it does.
    #[default]
    Unsaid,
    /// It looks.
    Polled,
    By(Event),
}

/// Of one queue.
#[derive(Default)]
pub(super) struct QueueLines {
    pub kick: Option<Event>,
    call: Call,
    pub error: Option<Event>,
    /// The other end of the kick is closed: it is readable for ever, and not waited for.
    kick_is_over: bool,
    /// There is no kick, and the queue is polled.
    pub polled: bool,
    /// It runs: its kick is waited for.
    pub runs: bool,
    /// What its handler waits for.
    handler: Vec<Wait>,
    /// The embedder knows what is waited for now.
    told: bool,
    /// It comes for something else than a kick: it was rung for, or there was more.
    due: bool,
}

impl QueueLines {
    /// From its kick on to the end of that.
    fn is_started(&self) -> bool {
        self.kick.is_some() || self.polled
    }
}

/// Of the device. No lock is held while another is taken.
pub(super) struct Lines {
    queues: Box<[Mutex<QueueLines>]>,
    channel: Mutex<Option<Channel>>,
    /// What has become of objects that were looked up, for who is to hear of it.
    found: Mutex<Vec<(Found, Option<OwnedFd>)>>,
    /// The front end answers requests of the back end's own, if it is asked to.
    answers: AtomicBool,
    /// The front end hears of changes of the configuration.
    pub hears_config: AtomicBool,
    /// The connection has something to send.
    wake: Arc<Event>,
    doorbell: OnceLock<Box<dyn Doorbell>>,
    options: VhostUserOptions,
}

impl Lines {
    pub fn new(queues: usize, options: VhostUserOptions, wake: Arc<Event>) -> Self {
        Self {
            queues: (0..queues).map(|_| Mutex::default()).collect(),
            channel: Mutex::new(None),
            found: Mutex::default(),
            answers: AtomicBool::new(false),
            hears_config: AtomicBool::new(false),
            wake,
            doorbell: OnceLock::new(),
            options,
        }
    }

    pub fn set_doorbell(&self, doorbell: Box<dyn Doorbell>) {
        let _ = self.doorbell.set(doorbell);
    }

    pub fn has_doorbell(&self) -> bool {
        self.doorbell.get().is_some()
    }

    pub fn with<R>(&self, index: usize, f: impl FnOnce(&mut QueueLines) -> R) -> Option<R> {
        self.queues.get(index).map(|lines| f(&mut lock(lines)))
    }

    /// Says something on the back end's own channel, if there is one.
    ///
    /// # Errors
    /// There is no room, or the other end has gone.
    pub fn say(&self, header: Header, payload: &[u8]) -> io::Result<()> {
        match &*lock(&self.channel) {
            Some(channel) => channel.say(header, payload),
            None => Ok(()),
        }
    }

    /// Says something that is answered, if that can be. Whether it was said.
    ///
    /// # Errors
    /// As of [`say`](Self::say).
    pub fn ask(&self, header: Header, payload: &[u8], expected: impl FnOnce() -> Expected) -> io::Result<bool> {
        match &mut *lock(&self.channel) {
            Some(channel) if self.answers.load(Ordering::SeqCst) && channel.has_room() => {
                channel.ask(header, payload, expected).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// What was answered. `None`: nothing for now.
    pub fn next_answer(&self) -> Option<(Expected, Option<Message>)> {
        lock(&self.channel).as_mut()?.next_answer()
    }

    /// Whether the same translation was asked for once more.
    pub fn expects(&self, page: u64, access: u8) -> bool {
        let channel = lock(&self.channel);
        channel.as_ref().is_some_and(|channel| channel.expects(page, access))
    }

    /// The channel, if answers are waited for there.
    pub fn awaited(&self) -> Option<RawFd> {
        let channel = lock(&self.channel);
        channel
            .as_ref()
            .filter(|channel| channel.awaits())
            .map(Channel::descriptor)
    }

    pub fn hear_answers(&self, answers: bool) {
        self.answers.store(answers, Ordering::SeqCst);
    }

    pub fn channel_descriptor(&self) -> Option<RawFd> {
        lock(&self.channel).as_ref().map(Channel::descriptor)
    }

    pub fn set_channel(&self, channel: Option<OwnedFd>) {
        let channel = channel.map(Channel::new);
        let before = mem::replace(&mut *lock(&self.channel), channel);
        // Nobody answers there any more.
        for expected in before.into_iter().flat_map(Channel::into_expected) {
            if let Expected::Object(found) = expected {
                self.keep_found(found, None);
            }
        }
    }

    /// Keeps what is to be told: who hears of it may call the device, which is in use.
    pub fn keep_found(&self, found: Found, file: Option<OwnedFd>) {
        lock(&self.found).push((found, file));
    }

    /// Tells all of it. No lock is held.
    pub fn tell_found(&self) {
        let all = mem::take(&mut *lock(&self.found));
        for (found, file) in all {
            found(file);
        }
    }

    /// Lets go of all descriptors.
    pub fn forget_all(&self) {
        for index in 0..self.queues.len() {
            self.stops(index);
            let before = self.with(index, mem::take);
            drop(before);
        }
        self.hears_config.store(false, Ordering::SeqCst);
        self.hear_answers(false);
        self.set_channel(None);
    }

    /// Takes a kick, before its queue is looked at. Whether there was one. Who comes for something else saves the system call: if there is
    /// a kick too, that is still waited for.
    pub fn take_kick(&self, index: usize) -> bool {
        let taken = self.with(index, |lines| {
            lines.told = false;
            match &lines.kick {
                _ if mem::take(&mut lines.due) => false,
                Some(kick) if lines.runs => {
                    let taken = kick.take();
                    lines.kick_is_over = taken.is_err();
                    taken.unwrap_or(false)
                }
                _ => false,
            }
        });
        taken == Some(true)
    }

    /// The embedder will come for a queue, whether there is a kick or not.
    pub fn will_come(&self, index: usize) {
        self.with(index, |lines| lines.due = true);
    }

    /// A queue runs from here on.
    pub fn starts(&self, index: usize) {
        self.with(index, |lines| lines.runs = true);
        self.tell(index);
    }

    /// A queue does not run any more: before its kick descriptor is closed.
    pub fn stops(&self, index: usize) {
        self.with(index, |lines| lines.runs = false);
        self.tell(index);
    }

    /// Nobody waits for kicks: the embedder comes again and again.
    pub fn is_polled(&self) -> bool {
        self.options.transport.polled
    }

    /// What a queue waits for: what its handler says, and its kick.
    pub fn waits(&self, index: usize, handler: &[Wait]) -> Vec<Wait> {
        let mut waits = handler.to_vec();
        if self.is_polled() {
            return waits;
        }
        let kick = self.with(index, |lines| match &lines.kick {
            Some(kick) if lines.runs && !lines.kick_is_over => Some(Wait::Readable(kick.descriptor())),
            None if lines.runs && lines.polled => {
                let (clock, interval) = self.options.polled.as_ref()?;
                Some(Wait::Until(clock.now() + *interval))
            }
            _ => None,
        });
        waits.extend(kick.flatten());
        waits
    }

    /// Tells the embedder what a queue waits for.
    pub fn tell(&self, index: usize) {
        let Some(doorbell) = self.doorbell.get() else { return };
        let Some(handler) = self.with(index, |lines| {
            lines.told = true;
            lines.handler.clone()
        }) else {
            return;
        };
        doorbell.wait(QueueIndex(index as u16), &self.waits(index, &handler));
    }

    /// Tells it, if it was not told since the kick was taken.
    pub fn tell_again(&self, index: usize) {
        if !self.is_polled() && self.with(index, |lines| !lines.told) == Some(true) {
            self.tell(index);
        }
    }

    /// Tells the front end that the device has failed.
    pub fn fail(&self) {
        for index in 0..self.queues.len() {
            self.with(index, |lines| lines.error.as_ref().map(Interrupt::trigger));
        }
    }
}

/// What the device rings, and says to what it waits for.
pub(super) struct Bell(pub Arc<Lines>);

impl Doorbell for Bell {
    fn ring(&self, queue: QueueIndex) -> io::Result<()> {
        match self.0.doorbell.get() {
            Some(doorbell) => {
                // Before it comes.
                self.0.will_come(queue.0.into());
                doorbell.ring(queue)
            }
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn wait(&self, queue: QueueIndex, waits: &[Wait]) {
        self.0.with(queue.0.into(), |lines| {
            lines.handler.clear();
            lines.handler.extend_from_slice(waits);
        });
        self.0.tell(queue.0.into());
    }
}

impl VirtioInterrupt for Lines {
    fn used(&self, queues: &[QueueIndex]) -> io::Result<()> {
        let mut result = Ok(());
        for &QueueIndex(index) in queues {
            let called = self.with(index.into(), |lines| match &lines.call {
                Call::By(call) => call.trigger(),
                Call::Polled => Ok(()),
                Call::Unsaid => Err(io::ErrorKind::NotConnected.into()),
            });
            result = result.and(called.unwrap_or(Ok(())));
        }
        result
    }

    fn config_changed(&self) -> io::Result<()> {
        if !self.keeps_config() {
            return Ok(());
        }
        if self.is_suspended() || self.channel_descriptor().is_none() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        match self.say(Header::request(BackRequest::ConfigChangeMsg as u32, 0), &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Whoever waits for the connection is to wait for room too.
                let _ = self.wake.trigger();
                Err(error)
            }
            // Or nobody hears.
            _ => Ok(()),
        }
    }

    fn reset(&self) {}

    fn keeps_config(&self) -> bool {
        self.hears_config.load(Ordering::SeqCst)
    }
}

impl Lines {
    pub fn hear_config(&self, hears: bool) {
        self.hears_config.store(hears, Ordering::SeqCst);
    }

    /// No queue is started: nothing is said to the front end but what it asks for.
    pub fn is_suspended(&self) -> bool {
        (0..self.queues.len()).all(|index| self.with(index, |lines| lines.is_started()) != Some(true))
    }

    /// Whether queues without a kick are polled.
    pub fn polls(&self) -> bool {
        self.is_polled() || self.options.polled.is_some()
    }

    pub fn set_kick(&self, index: usize, kick: Option<Event>) {
        let before = self.with(index, |lines| {
            lines.polled = kick.is_none();
            lines.kick_is_over = false;
            mem::replace(&mut lines.kick, kick)
        });
        // The embedder hears of the new one before the old one is closed.
        self.tell(index);
        drop(before);
    }

    pub fn forget_kick(&self, index: usize) {
        let before = self.with(index, |lines| {
            lines.polled = false;
            lines.kick.take()
        });
        self.tell(index);
        drop(before);
    }

    pub fn set_call(&self, index: usize, call: Option<Event>) {
        let call = call.map_or(Call::Polled, Call::By);
        let before = self.with(index, |lines| mem::replace(&mut lines.call, call));
        drop(before);
    }

    pub fn set_error(&self, index: usize, error: Option<Event>) {
        let before = self.with(index, |lines| mem::replace(&mut lines.error, error));
        drop(before);
    }
}
