//! Tells the guest the same in ACPI tables, which firmware asks for and places.

use devisor::description::{
    BoardError,
    acpi::{self, Oem},
};

use super::{board, parts::parts};
use crate::options::Options;

/// The tables as files of the device that firmware asks.
pub fn files(options: &Options) -> Result<[(&'static str, Vec<u8>); 3], BoardError> {
    // Where they are to be in the end, firmware says.
    Ok(acpi::build(&parts(options), board::RAM.base, &Oem::default())?.files())
}
