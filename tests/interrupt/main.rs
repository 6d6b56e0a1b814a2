//! What floor 0 promises: level lines, shared lines, the edge-to-level adapter, messages, and the bus that decodes
//! addresses. The schedules of several threads are `tests/loom.rs`.

#![cfg(not(loom))]

mod bus;
mod edge_to_level;
mod heard;
mod level_output;
mod lines;
mod msi;
mod shared_line;
mod time;
