//! What all versions of the GIC share.

pub(super) mod arbiter;
pub(super) mod arrays;
pub(super) mod check;
mod describe;
pub(super) mod ids;
pub(super) mod lpis;
pub(super) mod memory;
pub(super) mod outputs;
pub(super) mod preemption;
pub(super) mod state;

pub(super) use describe::controller_node;

pub use check::StateError;
pub use ids::{IntId, Ppi, Spi};
pub use state::{Group, InterruptState, TriggerMode};
