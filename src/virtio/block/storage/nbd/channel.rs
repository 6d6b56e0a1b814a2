//! A queue of a device, on a connection.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    task::Waker,
};

use super::{
    super::{Buffers, Channel, Ended, Operation, Tag},
    Shared,
    link::Link,
};
use crate::{sync::lock, virtio::Wait};

pub struct Queue {
    shared: Arc<Shared>,
    link: Arc<Mutex<Link>>,
    lane: usize,
    /// Among those who are woken.
    number: u64,
    reaped: Vec<Ended>,
    /// What was told to be waited for is not closed before that is told anew.
    watched: Option<Arc<OwnedFd>>,
}

impl Queue {
    pub fn new(shared: Arc<Shared>, link: Arc<Mutex<Link>>, waker: Waker) -> Self {
        let number = shared.number();
        lock(&shared.agreed).wakers.push((number, waker.clone()));
        let lane = lock(&link).add_lane(waker);
        Self {
            shared,
            link,
            lane,
            number,
            reaped: Vec::new(),
            watched: None,
        }
    }

    /// Wakes others only when nothing is locked any more.
    fn with<R>(&self, f: impl FnOnce(&mut Link, usize) -> R) -> R {
        let mut link = lock(&self.link);
        let result = f(&mut link, self.lane);
        let wake = std::mem::take(&mut link.wake);
        drop(link);
        wake.iter().for_each(Waker::wake_by_ref);
        result
    }
}

impl Channel for Queue {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        self.with(|link, lane| link.submit(lane, tag, operation, buffers));
    }

    fn commit(&mut self) {
        self.with(|link, lane| link.commit(lane));
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.with(|link, lane| link.reap(lane, &mut reaped));
        reaped.drain(..).for_each(ended);
        self.reaped = reaped;
    }

    fn cancel(&mut self) {
        self.with(|link, lane| link.cancel(lane));
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        let watched = self.with(|link, _| link.waits(wait));
        self.watched = watched;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        lock(&self.shared.agreed)
            .wakers
            .retain(|(number, _)| *number != self.number);
        self.with(|link, lane| link.remove_lane(lane));
    }
}
