//! vCPUs before devisor's interrupt controllers, in situations that a guest by itself gets into only now and then.

#![cfg(all(feature = "irqchip", feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

mod init;
mod ioapic;
mod machine;
mod nmi;
mod page;
mod pci_wires;
#[path = "../support/skip.rs"]
mod skip;
mod state;
mod taking;
