//! What every line is.

use crate::heard::*;
use std::sync::Arc;

use devisor::interrupt::LevelInterrupt;

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
