//! The number that names an interrupt to an x86 CPU.

use std::fmt;

/// An entry of an x86 CPU's interrupt descriptor table, as the guest programs it into its interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vector(pub u8);

impl fmt::Display for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vector {:#04x}", self.0)
    }
}
