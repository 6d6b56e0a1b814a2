//! Waits as an event loop does: with one call for a ring and for a bell of its own, by which others would have it do something.

use std::{
    cell::Cell,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

pub struct Waiter {
    poller: OwnedFd,
    _bell: OwnedFd,
    watched: Cell<RawFd>,
}

impl Waiter {
    pub fn new() -> Self {
        // SAFETY: no memory is involved.
        let (poller, bell) = unsafe {
            (
                libc::epoll_create1(libc::EPOLL_CLOEXEC),
                libc::eventfd(0, libc::EFD_CLOEXEC),
            )
        };
        assert!(poller >= 0 && bell >= 0, "descriptors");
        // SAFETY: they are new, and nobody else's.
        let (poller, bell) = unsafe { (OwnedFd::from_raw_fd(poller), OwnedFd::from_raw_fd(bell)) };
        let waiter = Self {
            watched: Cell::new(-1),
            poller,
            _bell: bell,
        };
        waiter.watch(waiter._bell.as_raw_fd());
        waiter
    }

    fn watch(&self, descriptor: RawFd) {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: 0,
        };
        // SAFETY: one structure.
        let result =
            unsafe { libc::epoll_ctl(self.poller.as_raw_fd(), libc::EPOLL_CTL_ADD, descriptor, &raw mut event) };
        assert_eq!(result, 0, "watched");
    }

    /// Until there is something at `descriptor`, which is always the same one, or the wait was interrupted: so it is by the kernel,
    /// when it has something to do for this thread's requests.
    pub fn wait(&self, descriptor: RawFd) {
        let watched = self.watched.replace(descriptor);
        if watched != descriptor {
            assert_eq!(watched, -1, "another ring");
            self.watch(descriptor);
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        // SAFETY: as many structures as are told.
        let there = unsafe { libc::epoll_wait(self.poller.as_raw_fd(), events.as_mut_ptr(), 2, 10_000) };
        assert_ne!(there, 0, "it ends");
    }
}
