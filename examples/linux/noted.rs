//! A storage that stacks on any other: it notes when that is read.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use devisor::virtio::{
    QueueIndex, Wait,
    block::{Abilities, AsyncStorage, Buffers, Channel, Ended, Limits, Operation, Storage, Tag},
};
use vm_memory::VolatileSlice;

/// Passes everything on to `S`, and notes when something has been read over what was there: only so can code be replaced in RAM that
/// the core has not written itself, for [`Wing::forget_translations`](crate::wing::Wing::forget_translations). Where there were zeros
/// there was no code; that is what Debian's kernels make of pages that they give out.
pub struct Noted<S> {
    storage: S,
    was_read: Arc<AtomicBool>,
}

impl<S> Noted<S> {
    /// Sets `was_read` whenever `storage` was read over something.
    pub fn new(storage: S, was_read: Arc<AtomicBool>) -> Self {
        Self { storage, was_read }
    }
}

/// What both kinds of storage say of themselves.
macro_rules! as_it_is {
    () => {
        fn capacity(&self) -> io::Result<u64> {
            self.storage.capacity()
        }

        fn abilities(&self) -> Abilities {
            self.storage.abilities()
        }

        fn limits(&self) -> Limits {
            self.storage.limits()
        }
    };
}

impl<S: Storage> Storage for Noted<S> {
    as_it_is!();

    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if !buffers.iter().all(is_zero) {
            self.was_read.store(true, Ordering::SeqCst);
        }
        self.storage.read_at(offset, buffers)
    }

    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.storage.write_at(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.storage.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.storage.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        self.storage.write_zeroes(offset, len, may_unmap)
    }
}

impl<S: AsyncStorage> AsyncStorage for Noted<S> {
    as_it_is!();

    fn open(&self, queue: QueueIndex, waker: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(NotedChannel {
            channel: self.storage.open(queue, waker)?,
            reads: HashSet::new(),
            was_read: Arc::clone(&self.was_read),
        }))
    }
}

fn is_zero(slice: &VolatileSlice<'_>) -> bool {
    let mut bytes = [0_u8; 4096];
    let mut rest = *slice;
    while !rest.is_empty() {
        let count = rest.copy_to(&mut bytes);
        if bytes[..count] != [0; 4096][..count] {
            return false;
        }
        rest = rest.offset(count).expect("no more than there is");
    }
    true
}

/// A queue's.
struct NotedChannel {
    channel: Box<dyn Channel>,
    /// Those over something that are under way.
    reads: HashSet<Tag>,
    was_read: Arc<AtomicBool>,
}

impl Channel for NotedChannel {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        if matches!(operation, Operation::Read { .. }) && !buffers.with_slices(|slices| slices.iter().all(is_zero)) {
            self.reads.insert(tag);
        }
        self.channel.submit(tag, operation, buffers);
    }

    fn commit(&mut self) {
        self.channel.commit();
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        self.channel.reap(&mut |request| {
            if self.reads.remove(&request.tag) {
                self.was_read.store(true, Ordering::SeqCst);
            }
            ended(request);
        });
    }

    fn cancel(&mut self) {
        self.channel.cancel();
    }

    fn waits(&mut self, wait: &mut dyn FnMut(Wait)) {
        self.channel.waits(wait);
    }
}
