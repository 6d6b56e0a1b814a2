//! A table for each letter of the suite: a row a line, however long, so that it is found.

pub mod admin;
pub mod balloon;
pub mod block;
pub mod clock;
pub mod console;
pub mod entropy;
pub mod folder;
pub mod iommu;
pub mod memory;
pub mod mmio;
pub mod net;
pub mod packed;
pub mod pci;
pub mod pmem;
pub mod split;
pub mod states;
pub mod vsock;
pub mod watchdog;
pub mod zoned;

/// What rows of several tables say.
const HOTPLUG: &str = "tests/pci/bus.rs::a_slot_is_given_once_and_a_foreign_function_is_refused";
/// What breaks a ring or leaves memory costs the same whatever device has the ring.
const RINGS: &str = "tests/hostile.rs::of_86_hostile_cases_68_cost_a_request_and_18_the_device";
