//! Guest memory that becomes another, of another type too, while devices run.

use std::{
    ptr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicPtr, Ordering},
    },
};

use super::{Memory, Pin, Space, map::Map};
use crate::sync::lock;

/// The end of a [`Memory`] that its owner holds.
pub(crate) struct Replaceable(Arc<Replaced>);

struct Replaced {
    /// The map as it is now, as pins are told apart.
    identity: AtomicPtr<()>,
    maps: Mutex<Maps>,
}

struct Maps {
    current: Pin,
    /// What was current before, and may still be in use.
    old: Vec<Weak<Map>>,
}

impl Replaceable {
    /// `first` never changes by itself.
    pub fn new(first: &Memory) -> Self {
        let current = first.pin();
        let identity = AtomicPtr::new(current.0.identity.cast_mut());
        let maps = Mutex::new(Maps {
            current,
            old: Vec::new(),
        });
        Self(Arc::new(Replaced { identity, maps }))
    }

    /// What devices get.
    pub fn memory(&self) -> Memory {
        Memory {
            space: Arc::clone(&self.0) as _,
            is_fixed: false,
        }
    }

    /// Pins are of `next` from here on, which never changes by itself. Queues are to be told.
    pub fn replace(&self, next: &Memory) {
        let next = next.pin();
        let mut maps = lock(&self.0.maps);
        self.0.identity.store(next.0.identity.cast_mut(), Ordering::SeqCst);
        let before = std::mem::replace(&mut maps.current, next);
        maps.old.retain(|map| map.strong_count() != 0);
        maps.old.push(Arc::downgrade(&before.0));
        drop(maps);
        // It may be the last: memory is unmapped with nothing locked.
        drop(before);
    }
}

impl Space for Replaced {
    fn pin(&self) -> Pin {
        lock(&self.maps).current.clone()
    }

    fn is_current(&self, pin: &Pin) -> bool {
        // Whoever has a pin keeps its map, so none that came later is at its place.
        ptr::eq(self.identity.load(Ordering::SeqCst).cast_const(), pin.0.identity)
    }

    fn maps_held(&self) -> usize {
        let maps = lock(&self.maps);
        maps.old.iter().filter(|map| map.strong_count() != 0).count()
    }
}
