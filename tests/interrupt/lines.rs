//! What every line is.

use crate::heard::*;
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use devisor::interrupt::{
    EdgeToLevel, FnLevelInterrupt, Interrupt, LevelInterrupt, LevelOutput, LineSource, MsiMessage, MsiSink, MsiVectors,
    NoInterrupt, RequesterId, SharedLine, SinkVectors, TooManySources, from_fn, level_from_fn,
};
use proptest::prelude::*;

#[test]
fn lines_behind_pointers_are_lines() {
    fn pulse(line: impl LevelInterrupt) {
        line.trigger().unwrap();
        line.clear().unwrap();
    }
    let heard = Heard::default();
    let line: Arc<dyn LevelInterrupt> = Arc::new(heard.line());
    pulse(&line);
    pulse(Box::new(Arc::clone(&line)) as Box<dyn LevelInterrupt>);
    pulse(line);
    assert_eq!(heard.calls(), [true, false].repeat(3));
}
