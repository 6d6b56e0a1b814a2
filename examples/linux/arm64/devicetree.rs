//! Tells the guest what there is in a device tree.

use std::ops::Range;

use devisor::description::{
    BoardError,
    fdt::{self, Boot},
};

use super::parts::parts;
use crate::options::Options;

/// The device tree of the board, for a kernel with this command line and this initial RAM disk; or for firmware, which knows of
/// another way to both.
pub fn build(options: &Options, kernel: Option<(String, Range<u64>)>) -> Result<Vec<u8>, BoardError> {
    let (command_line, initrd) = kernel.unzip();
    let boot = Boot {
        compatible: vec!["linux,dummy-virt".into()],
        model: "devisor on rsemu".into(),
        command_line: command_line.unwrap_or_default(),
        initrd,
    };
    fdt::build(&parts(options), &boot)
}
