//! PCI: configuration space, INTx, MSI and MSI-X, and a root bus, as in *PCI Local Bus Specification 3.0*.
//!
//! | type | what it is |
//! |---|---|
//! | [`EndpointConfig`] | what a function is: identity, [BARs](Bar), capabilities, MSI-X, MSI |
//! | [`Endpoint`] | its configuration space and its interrupts, which a device is built around |
//! | [`Function`] | what a device implements: accesses to its BARs |
//! | [`MsiX`], [`Msi`], [`Intx`] | the ways to interrupt |
//! | [`RootBus`] | up to 256 functions, where their BARs decode, four wires |
//! | [`Ecam`], [`ConfigPorts`], [`Window`] | the faces of a root bus towards the guest |
//!
//! A backend is met as [`LevelInterrupt`](crate::interrupt::LevelInterrupt) and
//! [`MsiVectors`](crate::interrupt::MsiVectors) alone. Masks and pending bits live here, once for all of them: a vector
//! that is masked has no message at the backend, so nothing that was handed out of it can signal past the mask. That holds
//! for a [descriptor](MsiX::export) too: what others signal through it meanwhile is read as the pending bit, and sent on
//! the unmask.
//!
//! What `lspci -n -vv` makes of a function with one of everything, after a guest has placed its BARs, set INTx Disable and
//! enabled MSI-X, while an INTx cause is pending:
//!
//! ```text
//! 00:03.1 0180: 1af4:1042 (rev 01) (prog-if 02)
//!     Subsystem: 1af4:0040
//!     Control: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+
//!     Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx+
//!     Latency: 0
//!     Interrupt: pin A routed to IRQ 11
//!     Region 0: Memory at 80000000 (64-bit, non-prefetchable)
//!     Region 2: I/O ports at c000
//!     Region 3: Memory at 40000000 (32-bit, non-prefetchable)
//!     Region 4: Memory at 40002000 (32-bit, non-prefetchable)
//!     Capabilities: [40] MSI-X: Enable+ Count=5 Masked-
//!         Vector table: BAR=3 offset=00000000
//!         PBA: BAR=3 offset=00001000
//!     Capabilities: [4c] MSI: Enable- Count=1/8 Maskable+ 64bit+
//!         Address: 0000000000000000  Data: 0000
//!         Masking: 00000000  Pending: 00000000
//!     Capabilities: [64] Vendor Specific Information: Len=06 <?>
//! ```
//!
//! And of a virtio device, the one for entropy, once it is placed and MSI-X is enabled:
//!
//! ```text
//! 00:03.1 ff00: 1af4:1044 (rev 01)
//!     Subsystem: 1af4:0040
//!     Control: I/O- Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx-
//!     Status: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
//!     Latency: 0
//!     Interrupt: pin A routed to IRQ 0
//!     Region 0: Memory at 40000000 (32-bit, non-prefetchable)
//!     Region 1: Memory at 40004000 (32-bit, non-prefetchable)
//!     Capabilities: [40] MSI-X: Enable+ Count=2 Masked-
//!         Vector table: BAR=1 offset=00000000
//!         PBA: BAR=1 offset=00001000
//!     Capabilities: [4c] Vendor Specific Information: VirtIO: CommonCfg
//!         BAR=0 offset=00000000 size=0000003c
//!     Capabilities: [5c] Vendor Specific Information: VirtIO: ISR
//!         BAR=0 offset=00001000 size=00000001
//!     Capabilities: [6c] Vendor Specific Information: VirtIO: DeviceCfg
//!         BAR=0 offset=00002000 size=00001000
//!     Capabilities: [7c] Vendor Specific Information: VirtIO: Notify
//!         BAR=0 offset=00003000 size=00000004 multiplier=00000004
//! ```

mod access;
mod address;
mod bar;
mod config;
mod describe;
mod endpoint;
mod error;
mod exchange;
mod function;
mod host_bridge;
mod intx;
mod messages;
mod msi;
mod msix;
mod registers;
mod root;
mod signal;
mod slot;
mod space;

pub use access::{CONFIG_PORTS, ConfigPorts, Ecam};
pub use address::DeviceFunction;
pub use bar::{Bar, BarIndex, BarKind};
pub use config::{ConfigError, EndpointConfig, Identity, Pin};
pub use describe::describe;
pub use endpoint::{Endpoint, EndpointState};
pub use error::StateError;
pub use function::Function;
pub use host_bridge::HostBridge;
pub use intx::Intx;
pub use messages::NoMessages;
pub use msi::Msi;
pub use msix::{MsiX, MsiXEntry, MsiXState};
pub use root::{RootBus, RootBusError, Window};
pub use signal::Signalled;
pub use slot::Slot;
