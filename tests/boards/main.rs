//! Boards as their guests are told of them: device trees and ACPI tables of a PC, an arm64 board and a microvm, read by a
//! reader of our own and by the tools that others read them with.
#![cfg(all(feature = "irqchip", feature = "fdt", feature = "acpi"))]

#[path = "../support/skip.rs"]
mod skip;

mod acpi;
mod fdt;
#[cfg(unix)]
mod linux;
mod parts;
mod refused;
mod tools;
