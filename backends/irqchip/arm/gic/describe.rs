//! What the nodes of all GICs have in common, and their interrupts as descriptions name them.

use super::ids::{Ppi, Spi};
use crate::description::{Input, Node};

/// As `arm,gic.yaml` and `arm,gic-v3.yaml` want it. Frames that take messages are in it.
pub(in super::super) fn controller_node(node: Node) -> Node {
    node.flag("interrupt-controller")
        .number("#interrupt-cells", 3)
        .number("#address-cells", 2)
        .number("#size-cells", 2)
        .flag("ranges")
        .referred()
}

impl From<Spi> for Input {
    fn from(Spi(number): Spi) -> Self {
        Self::Spi(number)
    }
}

impl From<Ppi> for Input {
    fn from(Ppi(number): Ppi) -> Self {
        Self::Ppi(number)
    }
}
