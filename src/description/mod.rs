//! What a board is made of, as its guest is told: device trees and ACPI tables from one list of parts.
//!
//! Each device, controller and bus has a `describe` beside its code, which says where it is, which interrupts it has, and
//! what its node of a device tree and its ACPI device look like. An embedder lists the [`Part`]s, and renders the list:
//! `fdt::build` with the feature `fdt`, `acpi::build` with `acpi`. Either [checks](check) first that the parts fit together.
//! A part that one of the two has no word for is left out there: there is no generic event device in a device tree, and no
//! flash in a DSDT.
//!
//! | type | what it is |
//! |---|---|
//! | [`Part`] | one thing of a board: its regions, its wires, its nodes and its ACPI entries |
//! | [`Wire`] | an interrupt: which input of the controller, trigger, polarity, whether it is shared |
//! | [`Node`], [`Value`], [`Cell`] | a node of a device tree, with references that are resolved when it is rendered |
//! | [`Acpi`], [`Object`] | what ACPI tables say of it |
//! | [`arm`], [`memory`] | what is no device of this crate: CPUs, their timers, PSCI, RAM |
//!
//! A device of your own is described the same way:
//!
//! ```
//! use devisor::description::{Input, Part, Wire};
//!
//! let part = Part::new("watchdog")
//!     .memory(0x0905_0000, 0x1000)
//!     .wire(Wire::level(Input::Spi(8)))
//!     .node(&["vendor,watchdog"], |node| node.number("timeout-sec", 30))
//!     .object("WD", "VEND0001");
//! assert_eq!(part.to_string(), "watchdog@9050000");
//! ```
//!
//! This is floor 1, beside [`bus`](crate::bus): it names no device, and a backend may name it.

#[cfg(feature = "acpi")]
pub mod acpi;
pub mod arm;
mod check;
mod entries;
#[cfg(feature = "fdt")]
pub mod fdt;
mod node;

use std::fmt;

pub use check::{BoardError, check};
pub use entries::{
    Acpi, EventBits, EventRegisters, Gic, Object, PciHost, PortWindow, PowerManagement, Processor, Register, Serial,
    SmiPort,
};
pub use node::{Cell, Node, Value};

/// An input of the board's interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Input {
    /// A global system interrupt of ACPI on x86: a pin of an IOAPIC.
    Gsi(u32),
    /// A shared peripheral interrupt of a GIC: this is INTID 32 + n.
    Spi(u32),
    /// A private peripheral interrupt of a GIC: this is INTID 16 + n, of each CPU.
    Ppi(u32),
}

impl Input {
    /// As ACPI counts: the GSI, or the INTID.
    pub fn gsi(self) -> u32 {
        match self {
            Self::Gsi(gsi) => gsi,
            Self::Spi(spi) => spi.saturating_add(32),
            Self::Ppi(ppi) => ppi.saturating_add(16),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gsi(number) => write!(f, "GSI {number}"),
            Self::Spi(number) => write!(f, "SPI {number}"),
            Self::Ppi(number) => write!(f, "PPI {number}"),
        }
    }
}

/// When a controller is to take an input for asserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// For a moment, at an edge.
    Edge,
    /// As long as it has the level.
    Level,
}

/// Which level, or which edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Polarity {
    /// The high level, or a rise.
    High,
    /// The low level, or a fall.
    Low,
}

/// A wire from a part to the interrupt controller. One that is exclusive is the only one of its input; those that share an
/// input agree in everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wire {
    /// Where it ends.
    pub input: Input,
    /// Level, or edge.
    pub trigger: Trigger,
    /// High, or low.
    pub polarity: Polarity,
    /// Others may end there, too.
    pub shared: bool,
}

impl Wire {
    /// Active high, level-triggered, exclusive: what [`LevelInterrupt`](crate::interrupt::LevelInterrupt) is.
    pub fn level(input: impl Into<Input>) -> Self {
        Self {
            input: input.into(),
            trigger: Trigger::Level,
            polarity: Polarity::High,
            shared: false,
        }
    }

    /// Edge-triggered by a rise, exclusive: what [`Interrupt`](crate::interrupt::Interrupt) is.
    pub fn edge(input: impl Into<Input>) -> Self {
        Self {
            trigger: Trigger::Edge,
            ..Self::level(input)
        }
    }

    /// The same, active low. The wires of a PC's PCI are.
    pub fn active_low(self) -> Self {
        Self {
            polarity: Polarity::Low,
            ..self
        }
    }

    /// The same, shared with others.
    pub fn shared(self) -> Self {
        Self { shared: true, ..self }
    }
}

/// The address space that a [`Region`] is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Guest physical memory.
    Memory,
    /// The ports of x86.
    Ports,
}

/// Where the registers, or the bytes, of a part are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// In which address space.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// How many bytes.
    pub len: u64,
}

impl Region {
    /// The last address, if there is one.
    pub fn last(&self) -> Option<u64> {
        self.base.checked_add(self.len.checked_sub(1)?)
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space = match self.space {
            Space::Memory => "memory",
            Space::Ports => "ports",
        };
        write!(f, "{:#x} bytes of {space} at {:#x}", self.len, self.base)
    }
}

/// Which inputs an interrupt controller has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Inputs {
    /// A GIC: SPIs 0 to `spis` - 1, and PPIs 0 to 15.
    Gic {
        /// How many SPIs.
        spis: u32,
        /// CPUs to be named with a PPI in a device tree, where bindings want it: a bit for each.
        ppi_cpus: u32,
    },
    /// An IOAPIC, with GSIs from `first` on.
    IoApic {
        /// The first GSI.
        first: u32,
        /// How many pins.
        pins: u32,
    },
}

/// How a device tree maps the senders of messages to a part that takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Messages {
    /// They are all the same to it: `msi-parent`.
    Any,
    /// It tells them apart, by the number that is their requester ID: `msi-map`.
    ByRequester,
}

/// Where the board's IOMMU is, which is one of virtio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IommuPlace {
    /// A virtio-mmio device at this address.
    Memory(u64),
    /// A function of the PCI bus, by its requester ID.
    Pci(u16),
}

impl IommuPlace {
    /// First and last requester IDs of all functions that it is not itself.
    #[cfg(any(feature = "fdt", feature = "acpi"))]
    fn others(self) -> Vec<(u16, u16)> {
        let Self::Pci(own) = self else {
            return vec![(0, u16::MAX)];
        };
        let before = own.checked_sub(1).map(|last| (0, last));
        let after = own.checked_add(1).map(|first| (first, u16::MAX));
        before.into_iter().chain(after).collect()
    }
}

/// One thing of a board. Plain data: it is made by a `describe`, or by hand, and holds nothing of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    name: &'static str,
    regions: Vec<Region>,
    wires: Vec<Wire>,
    inputs: Option<Inputs>,
    messages: Option<Messages>,
    iommu: Option<IommuPlace>,
    nodes: Vec<Node>,
    acpi: Vec<Acpi>,
    console: bool,
}

impl Part {
    /// A part without anything. The name is that of its node, generic as the Devicetree Specification recommends (2.2.2), and
    /// the one that errors call it.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            regions: Vec::new(),
            wires: Vec::new(),
            inputs: None,
            messages: None,
            iommu: None,
            nodes: Vec::new(),
            acpi: Vec::new(),
            console: false,
        }
    }

    /// It has `len` bytes of memory from `base` on.
    pub fn memory(self, base: u64, len: u64) -> Self {
        self.region(Space::Memory, base, len)
    }

    /// It has `len` ports from `base` on.
    pub fn ports(self, base: u16, len: u64) -> Self {
        self.region(Space::Ports, base.into(), len)
    }

    fn region(mut self, space: Space, base: u64, len: u64) -> Self {
        self.regions.push(Region { space, base, len });
        self
    }

    /// It interrupts by `wire`.
    pub fn wire(mut self, wire: Wire) -> Self {
        self.wires.push(wire);
        self
    }

    /// It is the interrupt controller, which takes these.
    pub fn controls(mut self, inputs: Inputs) -> Self {
        self.inputs = Some(inputs);
        self
    }

    /// It takes messages.
    pub fn takes_messages(mut self, messages: Messages) -> Self {
        self.messages = Some(messages);
        self
    }

    /// It is the board's IOMMU, behind virtio-mmio: `#iommu-cells` of the node that it has so far, and the VIOT. Those that
    /// are behind it say [so](Self::behind_iommu).
    pub fn is_iommu(mut self) -> Self {
        self.iommu = self.regions.first().map(|region| IommuPlace::Memory(region.base));
        let node = self.nodes.pop();
        self.nodes
            .extend(node.map(|node| node.number("#iommu-cells", 1).referred()));
        self
    }

    /// A function of this PCI bus is the board's IOMMU, by its requester ID: a node in that of the bus, and the VIOT.
    pub fn has_iommu(mut self, function: u16) -> Self {
        self.iommu = Some(IommuPlace::Pci(function));
        let (device, number) = (function >> 3 & 0x1f, function & 7);
        let name = match number {
            0 => format!("iommu@{device:x}"),
            _ => format!("iommu@{device:x},{number:x}"),
        };
        let reg = [u32::from(function) << 8, 0, 0, 0, 0].map(Cell::U32);
        let iommu = Node::new(name)
            .text("compatible", "virtio,pci-iommu")
            .cells("reg", reg)
            .number("#iommu-cells", 1)
            .referred();
        let node = self.nodes.pop();
        self.nodes.extend(node.map(|node| node.child(iommu)));
        self
    }

    /// The board's IOMMU translates for it, and knows it by this number: `iommus` of the node that it has so far, and the VIOT.
    pub fn behind_iommu(mut self, endpoint: u32) -> Self {
        let node = self.nodes.pop();
        self.nodes
            .extend(node.map(|node| node.property("iommus", Value::Endpoint(endpoint))));
        let base = self.regions.first().map(|region| region.base);
        self.acpi.extend(base.map(|base| Acpi::Endpoint { base, id: endpoint }));
        self
    }

    /// The board's IOMMU translates for all functions of this PCI bus, and knows them by their requester IDs: `iommu-map` of its node,
    /// and the VIOT.
    pub fn all_behind_iommu(mut self) -> Self {
        let node = self.nodes.pop();
        self.nodes
            .extend(node.map(|node| node.property("iommu-map", Value::PciEndpoints)));
        self.acpi(Acpi::PciEndpoints)
    }

    /// It has a node in a device tree: of its name, with the memory and the wires that it has so far, and what `more` adds.
    pub fn node(self, compatible: &[&str], more: impl FnOnce(Node) -> Node) -> Self {
        let memory = self.regions.iter().filter(|region| region.space == Space::Memory);
        let memory: Vec<_> = memory.collect();
        let name = match memory.first() {
            Some(first) => format!("{}@{:x}", self.name, first.base),
            None => self.name.to_owned(),
        };
        let mut node = Node::new(name).texts("compatible", compatible);
        if !memory.is_empty() {
            let cells = memory
                .iter()
                .flat_map(|region| [region.base, region.len].map(Cell::U64));
            node = node.cells("reg", cells);
        }
        if !self.wires.is_empty() {
            node = node.cells("interrupts", self.wires.iter().copied().map(Cell::Wire));
        }
        self.with_node(more(node))
    }

    /// It has another node, as it is.
    pub fn with_node(mut self, node: Node) -> Self {
        self.nodes.push(node);
        self
    }

    /// It is an ACPI device, with the regions and the wires that it has so far. `prefix` are the first two letters of its name.
    pub fn object(self, prefix: &'static str, hid: &'static str) -> Self {
        let object = Object {
            regions: self.regions.clone(),
            wires: self.wires.clone(),
            ..Object::new(prefix, hid)
        };
        self.acpi(Acpi::Device(object))
    }

    /// ACPI tables say this of it, too.
    pub fn acpi(mut self, entry: Acpi) -> Self {
        self.acpi.push(entry);
        self
    }

    /// It is the console: `stdout-path` of a device tree, and the SPCR.
    pub fn console(mut self) -> Self {
        self.console = true;
        self
    }

    /// Its address spaces.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Its interrupts.
    pub fn wires(&self) -> &[Wire] {
        &self.wires
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What ACPI tables say of it.
    pub fn acpi_entries(&self) -> &[Acpi] {
        &self.acpi
    }
}

/// Its name and where it is.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match self.regions.first() {
            Some(region) => write!(f, "@{:x}", region.base),
            None => Ok(()),
        }
    }
}

/// RAM: `len` bytes from `base` on.
pub fn memory(base: u64, len: u64) -> Part {
    let node = Node::new(format!("memory@{base:x}"))
        .text("device_type", "memory")
        .cells("reg", [base, len].map(Cell::U64));
    Part::new("memory").memory(base, len).with_node(node)
}
