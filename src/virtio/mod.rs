//! temp
pub mod features;
pub mod queue;
pub use queue::*;
