//! Device trees (*Devicetree Specification 0.4*; the bindings are in the kernel's `Documentation/devicetree/bindings`).

use std::ops::Range;

use vm_fdt::FdtWriter;

use super::{BoardError, Cell, Input, Inputs, IommuPlace, Messages, Node, Part, Polarity, Trigger, Value, Wire, check};

/// What the tree says of the board as a whole, and of how it is booted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// `compatible` of the root, the most specific first.
    pub compatible: Vec<String>,
    /// `model` of the root.
    pub model: String,
    /// `bootargs`: the kernel's command line.
    pub command_line: String,
    /// Where an initial RAM disk is.
    pub initrd: Option<Range<u64>>,
}

/// The device tree blob of a board.
///
/// # Errors
/// [`BoardError`] if the parts do not fit together, or a text has a zero in it.
pub fn build(parts: &[Part], boot: &Boot) -> Result<Vec<u8>, BoardError> {
    let checked = check::checked(parts)?;
    let mut tree = Tree {
        writer: FdtWriter::new()?,
        parts,
        controller: checked.controller,
        messages: checked.messages,
        iommu: checked.iommu,
        clocks: Vec::new(),
    };
    let root = tree.writer.begin_node("")?;
    tree.writer
        .property_string_list("compatible", boot.compatible.clone())?;
    tree.writer.property_string("model", &boot.model)?;
    tree.writer.property_u32("#address-cells", 2)?;
    tree.writer.property_u32("#size-cells", 2)?;
    if let Some((controller, _)) = tree.controller {
        let phandle = tree.phandle(controller);
        tree.writer.property_u32("interrupt-parent", phandle)?;
    }

    let chosen = tree.writer.begin_node("chosen")?;
    tree.writer.property_string("bootargs", &boot.command_line)?;
    if let Some(node) = checked.console.and_then(|console| console.nodes.first()) {
        tree.writer.property_string("stdout-path", &format!("/{}", node.name))?;
    }
    if let Some(Range { start, end }) = boot.initrd {
        tree.writer.property_u64("linux,initrd-start", start)?;
        tree.writer.property_u64("linux,initrd-end", end)?;
    }
    tree.writer.end_node(chosen)?;

    for part in parts {
        for node in part.nodes.iter().filter(|node| !node.in_controller) {
            tree.node(part, node, part.inputs.is_some())?;
        }
    }
    for (at, hz) in std::mem::take(&mut tree.clocks).into_iter().enumerate() {
        let clock = tree.writer.begin_node(&format!("clock-{hz}"))?;
        tree.writer.property_string("compatible", "fixed-clock")?;
        tree.writer.property_u32("#clock-cells", 0)?;
        tree.writer.property_u32("clock-frequency", hz)?;
        tree.writer.property_phandle(tree.clock_phandle(at))?;
        tree.writer.end_node(clock)?;
    }
    tree.writer.end_node(root)?;
    Ok(tree.writer.finish()?)
}

/// A tree that is being written.
struct Tree<'a> {
    writer: FdtWriter,
    parts: &'a [Part],
    controller: Option<(&'a Part, Inputs)>,
    messages: Option<(&'a Part, Messages)>,
    iommu: Option<(&'a Part, IommuPlace)>,
    /// Frequencies of the clocks that were referred to, in the order of their phandles.
    clocks: Vec<u32>,
}

impl Tree<'_> {
    /// By the place in the list: 0 is none.
    fn phandle(&self, part: &Part) -> u32 {
        let at = self.parts.iter().position(|other| std::ptr::eq(part, other));
        at.map_or(0, |at| at as u32 + 1)
    }

    fn clock_phandle(&self, at: usize) -> u32 {
        (self.parts.len() + at) as u32 + 1
    }

    fn node(&mut self, part: &Part, node: &Node, is_controller: bool) -> Result<(), BoardError> {
        let open = self.writer.begin_node(&node.name)?;
        for (name, value) in &node.properties {
            match value {
                Value::Empty => self.writer.property_null(name)?,
                Value::Texts(texts) => self.writer.property_string_list(name, texts.clone())?,
                Value::Cells(cells) => {
                    let cells = self.cells(part, cells)?;
                    self.writer.property_array_u32(name, &cells)?;
                }
                Value::Messages => self.message_map()?,
                Value::Endpoint(id) => {
                    if let Some((iommu, _)) = self.iommu {
                        let phandle = self.phandle(iommu);
                        self.writer.property_array_u32(name, &[phandle, *id])?;
                    }
                }
                Value::PciEndpoints => self.iommu_map(name)?,
            }
        }
        if node.referred {
            self.writer.property_phandle(self.phandle(part))?;
        }
        for child in &node.children {
            self.node(part, child, false)?;
        }
        if is_controller {
            for part in self.parts {
                for node in part.nodes.iter().filter(|node| node.in_controller) {
                    self.node(part, node, false)?;
                }
            }
        }
        Ok(self.writer.end_node(open)?)
    }

    /// `pci-iommu.txt`: from requester IDs on, to the same numbers, so many.
    fn iommu_map(&mut self, name: &str) -> Result<(), BoardError> {
        let Some((iommu, place)) = self.iommu else {
            return Ok(());
        };
        let phandle = self.phandle(iommu);
        let entry = |(first, last): (u16, u16)| [first.into(), phandle, first.into(), u32::from(last - first) + 1];
        let map: Vec<_> = place.others().into_iter().flat_map(entry).collect();
        Ok(self.writer.property_array_u32(name, &map)?)
    }

    fn message_map(&mut self) -> Result<(), BoardError> {
        let Some((taker, messages)) = self.messages else {
            return Ok(());
        };
        let phandle = self.phandle(taker);
        match messages {
            Messages::Any => self.writer.property_u32("msi-parent", phandle)?,
            // From requester ID 0 on, to the same numbers, all.
            Messages::ByRequester => self.writer.property_array_u32("msi-map", &[0, phandle, 0, 0x1_0000])?,
        }
        Ok(())
    }

    fn cells(&mut self, part: &Part, cells: &[Cell]) -> Result<Vec<u32>, BoardError> {
        let mut out = Vec::with_capacity(cells.len());
        for &cell in cells {
            match cell {
                Cell::U32(value) => out.push(value),
                Cell::U64(value) => out.extend([(value >> 32) as u32, value as u32]),
                Cell::Own => out.push(self.phandle(part)),
                Cell::Clock(hz) => {
                    let at = self.clocks.iter().position(|clock| *clock == hz);
                    let at = at.unwrap_or_else(|| {
                        self.clocks.push(hz);
                        self.clocks.len() - 1
                    });
                    out.push(self.clock_phandle(at));
                }
                Cell::Wire(wire) => out.extend(self.specifier(part, wire)?),
                Cell::Parent(wire) => {
                    let specifier = self.specifier(part, wire)?;
                    if let Some((controller, _)) = self.controller {
                        // The unit address of the parent has two cells, and is not looked at.
                        out.extend([self.phandle(controller), 0, 0]);
                    }
                    out.extend(specifier);
                }
            }
        }
        Ok(out)
    }

    /// `interrupts` as `arm,gic.yaml` and `arm,gic-v3.yaml` have them.
    fn specifier(&self, part: &Part, wire: Wire) -> Result<[u32; 3], BoardError> {
        const SPI: u32 = 0;
        const PPI: u32 = 1;
        let flags = match (wire.trigger, wire.polarity) {
            (Trigger::Edge, Polarity::High) => 1,
            (Trigger::Edge, Polarity::Low) => 2,
            (Trigger::Level, Polarity::High) => 4,
            (Trigger::Level, Polarity::Low) => 8,
        };
        match (self.controller, wire.input) {
            (Some((_, Inputs::Gic { .. })), Input::Spi(spi)) => Ok([SPI, spi, flags]),
            (Some((_, Inputs::Gic { ppi_cpus, .. })), Input::Ppi(ppi)) => Ok([PPI, ppi, ppi_cpus << 8 | flags]),
            (_, input) => Err(BoardError::Unfit {
                part: part.to_string(),
                what: format!("{input} has no words in a device tree: SPIs and PPIs of a GIC have"),
            }),
        }
    }
}
