//! A storage that answers at once, as one whose requests end later.

use std::{collections::VecDeque, io, sync::Arc, task::Waker};

use super::{AsyncStorage, Buffers, Channel, Ended, Operation, Storage, Tag, Zones};
use crate::virtio::QueueIndex;

/// A [`Storage`] as an [`AsyncStorage`]: each request has ended when it is committed. For what stacks on those.
///
/// ```
/// use devisor::virtio::block::{Block, BlockOptions, MemoryStorage, Synchronous};
///
/// let disk = Block::with_async(Synchronous::new(MemoryStorage::new(1 << 20)), BlockOptions::default())?;
/// assert_eq!(disk.capacity(), 2048);
/// # Ok::<(), devisor::virtio::block::BlockError>(())
/// ```
#[derive(Debug)]
pub struct Synchronous<S: ?Sized>(Arc<S>);

impl<S> Synchronous<S> {
    /// Over `storage`.
    pub fn new(storage: S) -> Self {
        Self(Arc::new(storage))
    }
}

impl<S: ?Sized> Clone for Synchronous<S> {
    /// Of the same storage.
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: ?Sized> From<Arc<S>> for Synchronous<S> {
    fn from(storage: Arc<S>) -> Self {
        Self(storage)
    }
}

impl<S: Storage + ?Sized + 'static> AsyncStorage for Synchronous<S> {
    as_told_by!(self => self.0);

    fn open(&self, _: QueueIndex, _: Waker) -> io::Result<Box<dyn Channel>> {
        Ok(Box::new(AtOnce {
            storage: self.clone(),
            ended: VecDeque::new(),
        }))
    }
}

struct AtOnce<S: ?Sized> {
    storage: Synchronous<S>,
    ended: VecDeque<Ended>,
}

impl<S: Storage + ?Sized + 'static> Channel for AtOnce<S> {
    fn submit(&mut self, tag: Tag, operation: Operation, buffers: Buffers) {
        let result = perform(&*self.storage.0, operation, &buffers);
        self.ended.push_back(Ended::done(tag, buffers, result));
    }

    fn reap(&mut self, ended: &mut dyn FnMut(Ended)) {
        self.ended.drain(..).for_each(ended);
    }
}

/// Does what is asked, on this thread.
pub(super) fn perform<S: Storage + ?Sized>(storage: &S, operation: Operation, buffers: &Buffers) -> io::Result<u64> {
    let moved = |moved: io::Result<usize>| moved.map(|moved| moved as u64);
    let done = |done: io::Result<()>| done.map(|()| 0);
    match operation {
        Operation::Read { offset } => moved(buffers.with_slices(|slices| storage.read_at(offset, slices))),
        Operation::Write { offset, fua } => {
            let written = buffers.with_slices(|slices| storage.write_at(offset, slices))?;
            if fua {
                storage.flush()?;
            }
            Ok(written as u64)
        }
        Operation::Flush => done(storage.flush()),
        Operation::Discard { offset, len } => done(storage.discard(offset, len)),
        Operation::WriteZeroes { offset, len, may_unmap } => done(storage.write_zeroes(offset, len, may_unmap)),
        Operation::SecureErase { offset, len } => done(storage.secure_erase(offset, len)),
        Operation::Append { zone } => buffers.with_slices(|slices| zones(storage)?.append(zone, slices)),
        Operation::Zone { action, zone } => done(zones(storage)?.act(action, zone)),
        Operation::ResetZones => done(zones(storage)?.reset_all()),
    }
}

fn zones<S: Storage + ?Sized>(storage: &S) -> io::Result<&dyn Zones> {
    storage.zones().ok_or_else(|| io::ErrorKind::Unsupported.into())
}
