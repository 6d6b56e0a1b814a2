//! A node of a device tree, before it is known what its references refer to.

use super::Wire;

/// A 32-bit cell of a property, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cell {
    /// A number.
    U32(u32),
    /// A number of two cells.
    U64(u64),
    /// An interrupt, as the controller of the board wants it.
    Wire(Wire),
    /// An interrupt with its parent before it: phandle and unit address, as in an `interrupt-map`.
    Parent(Wire),
    /// The phandle of the [`referred`](Node::referred) node of the same part.
    Own,
    /// The phandle of a fixed clock of so many Hz, which is made where there is none.
    Clock(u32),
}

/// What a property is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Value {
    /// Nothing: its presence tells.
    Empty,
    /// Strings.
    Texts(Vec<String>),
    /// Cells.
    Cells(Vec<Cell>),
    /// Where its messages go: `msi-parent` or `msi-map`, or nothing where no part of the board takes messages.
    Messages,
    /// `iommus`: the device is this endpoint of the board's IOMMU; or nothing where the board has none.
    Endpoint(u32),
    /// `iommu-map`: all functions but the IOMMU's own are endpoints by their requester IDs; or nothing.
    PciEndpoints,
}

/// A node of a device tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub(super) name: String,
    pub(super) properties: Vec<(&'static str, Value)>,
    pub(super) children: Vec<Node>,
    pub(super) referred: bool,
    pub(super) in_controller: bool,
}

impl Node {
    /// A node of this name, which includes the unit address.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            properties: Vec::new(),
            children: Vec::new(),
            referred: false,
            in_controller: false,
        }
    }

    /// Its name, with the unit address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A property.
    pub fn property(mut self, name: &'static str, value: Value) -> Self {
        self.properties.push((name, value));
        self
    }

    /// A property that is there.
    pub fn flag(self, name: &'static str) -> Self {
        self.property(name, Value::Empty)
    }

    /// A number.
    pub fn number(self, name: &'static str, value: u32) -> Self {
        self.cells(name, [Cell::U32(value)])
    }

    /// Cells.
    pub fn cells(self, name: &'static str, cells: impl IntoIterator<Item = Cell>) -> Self {
        self.property(name, Value::Cells(cells.into_iter().collect()))
    }

    /// A string.
    pub fn text(self, name: &'static str, text: &str) -> Self {
        self.texts(name, &[text])
    }

    /// Strings.
    pub fn texts(self, name: &'static str, texts: &[&str]) -> Self {
        self.property(
            name,
            Value::Texts(texts.iter().map(|text| (*text).to_owned()).collect()),
        )
    }

    /// `clocks` and `clock-names`: of each name, a fixed clock of so many Hz.
    pub fn clocks(self, names: &[&str], hz: u32) -> Self {
        self.cells("clocks", names.iter().map(|_| Cell::Clock(hz)))
            .texts("clock-names", names)
    }

    /// A node in it.
    pub fn child(mut self, node: Node) -> Self {
        self.children.push(node);
        self
    }

    /// It has a phandle: [`Cell::Own`], and those that refer to what it controls.
    pub fn referred(mut self) -> Self {
        self.referred = true;
        self
    }

    /// It lies in the node of the interrupt controller.
    pub fn in_controller(mut self) -> Self {
        self.in_controller = true;
        self
    }
}
