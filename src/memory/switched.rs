//! Guest memory whose addresses are translated or not, as is agreed on while no queue runs.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use super::{Behind, Memory, Pin, Space, Translated};

/// The end of a [`Memory`] that its owner holds.
pub(crate) struct Switched(Arc<Both>);

struct Both {
    plain: Memory,
    translated: Memory,
    is_translated: AtomicBool,
}

impl Switched {
    /// Not translated, to begin with.
    pub fn new(plain: Memory, by: Arc<Translated>) -> Self {
        Self(Arc::new(Both {
            plain,
            translated: Memory::translated(by),
            is_translated: AtomicBool::new(false),
        }))
    }

    /// What devices get.
    pub fn memory(&self) -> Memory {
        Memory {
            space: Arc::clone(&self.0) as _,
            is_fixed: false,
        }
    }

    /// Pins are of the one or the other from here on. No queue runs.
    pub fn translate(&self, is_translated: bool) {
        self.0.is_translated.store(is_translated, Ordering::SeqCst);
    }
}

impl Both {
    fn current(&self) -> &Memory {
        match self.is_translated() {
            false => &self.plain,
            true => &self.translated,
        }
    }
}

impl Space for Both {
    fn pin(&self) -> Pin {
        self.current().pin()
    }

    fn is_current(&self, pin: &Pin) -> bool {
        // Neither takes the other's.
        self.current().is_current(pin)
    }

    fn maps_held(&self) -> usize {
        // The translated one holds maps of the plain one.
        self.plain.old_maps_held().max(self.translated.old_maps_held())
    }

    fn is_translated(&self) -> bool {
        self.is_translated.load(Ordering::SeqCst)
    }

    fn add_behind(&self, behind: Weak<dyn Behind>) {
        self.translated.add_behind(behind);
    }
}
