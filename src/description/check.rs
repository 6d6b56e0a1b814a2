//! Whether the parts of a board fit together.

use super::{Inputs, IommuPlace, Messages, Part, Region, Space, Wire};

/// Parts do not make a board, or a board cannot be told of. Parts are named by what they are and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoardError {
    /// A region has no bytes, or runs past the end of its address space.
    #[error("{part} has {region}: at least one is needed, and none beyond the end of the address space")]
    Bounds {
        /// The part.
        part: String,
        /// Its region.
        region: Region,
    },
    /// Two parts are in the same place.
    #[error("{second} has {region}, which overlaps {taken} of {first}")]
    Overlap {
        /// The part that is listed first.
        first: String,
        /// What it has there.
        taken: Region,
        /// The other.
        second: String,
        /// What that has there.
        region: Region,
    },
    /// Two parts interrupt by the same input, and do not share it in the same way.
    #[error(
        "{second} interrupts by {}, which is {first}'s: both would have to share it, with one trigger and one polarity",
        wire.input
    )]
    Shared {
        /// The part that is listed first.
        first: String,
        /// The other.
        second: String,
        /// The wire of the other.
        wire: Wire,
    },
    /// The controller has no such input.
    #[error("{part} interrupts by {}: {controller} has {has}", wire.input)]
    NoInput {
        /// The part.
        part: String,
        /// Its wire.
        wire: Wire,
        /// The controller.
        controller: String,
        /// Which inputs it has.
        has: String,
    },
    /// Parts interrupt, or CPUs are there, and no interrupt controller is.
    #[error("{part} needs an interrupt controller, and the board has none")]
    NoController {
        /// The part.
        part: String,
    },
    /// A board has one of this kind.
    #[error("{first} and {second} are both {what}: a board has one")]
    Two {
        /// Of which kind.
        what: &'static str,
        /// The part that is listed first.
        first: String,
        /// The other.
        second: String,
    },
    /// A table, a name or a property has no room for it.
    #[error("{part}: {what}")]
    Unfit {
        /// The part.
        part: String,
        /// What does not fit where.
        what: String,
    },
    /// The device tree cannot be written.
    #[cfg(feature = "fdt")]
    #[error("device tree: {0}")]
    Fdt(#[from] vm_fdt::Error),
}

/// The parts that others refer to.
#[cfg_attr(
    not(all(feature = "fdt", feature = "acpi")),
    allow(dead_code, reason = "renderers read them")
)]
pub(super) struct Checked<'a> {
    pub controller: Option<(&'a Part, Inputs)>,
    pub messages: Option<(&'a Part, Messages)>,
    pub console: Option<&'a Part>,
    pub iommu: Option<(&'a Part, IommuPlace)>,
}

/// Whether the parts fit together: no region overlaps another's, no input is somebody else's, and the controller has all of them.
///
/// # Errors
/// [`BoardError`], which names both parts.
pub fn check(parts: &[Part]) -> Result<(), BoardError> {
    checked(parts).map(|_| ())
}

pub(super) fn checked(parts: &[Part]) -> Result<Checked<'_>, BoardError> {
    regions(parts)?;
    let controller = one(parts, "the interrupt controller", |part| part.inputs)?;
    let messages = one(parts, "what takes messages", |part| part.messages)?;
    let console = one(parts, "the console", |part| part.console.then_some(()))?;
    wires(parts, controller)?;
    Ok(Checked {
        controller,
        messages,
        console: console.map(|(part, ())| part),
        iommu: iommu(parts)?,
    })
}

/// The board's IOMMU.
pub(super) fn iommu(parts: &[Part]) -> Result<Option<(&Part, IommuPlace)>, BoardError> {
    one(parts, "the IOMMU", |part| part.iommu)
}

/// The only part of which `kind` knows something.
pub(super) fn one<'a, T>(
    parts: &'a [Part],
    what: &'static str,
    kind: impl Fn(&'a Part) -> Option<T>,
) -> Result<Option<(&'a Part, T)>, BoardError> {
    let mut found: Option<(&Part, T)> = None;
    for part in parts {
        if let Some(it) = kind(part) {
            if let Some((first, _)) = found {
                return Err(BoardError::Two {
                    what,
                    first: first.to_string(),
                    second: part.to_string(),
                });
            }
            found = Some((part, it));
        }
    }
    Ok(found)
}

fn regions(parts: &[Part]) -> Result<(), BoardError> {
    let all = || {
        parts
            .iter()
            .flat_map(|part| part.regions.iter().map(move |region| (part, region)))
    };
    for (part, region) in all() {
        region.end(part)?;
    }
    for (at, (second, region)) in all().enumerate() {
        for (first, taken) in all().take(at) {
            let apart = taken.last() < Some(region.base) || region.last() < Some(taken.base);
            if taken.space == region.space && !apart {
                return Err(BoardError::Overlap {
                    first: first.to_string(),
                    taken: *taken,
                    second: second.to_string(),
                    region: *region,
                });
            }
        }
    }
    Ok(())
}

fn wires(parts: &[Part], controller: Option<(&Part, Inputs)>) -> Result<(), BoardError> {
    for (at, part) in parts.iter().enumerate() {
        for &wire in &part.wires {
            let Some((controller, inputs)) = controller else {
                let part = part.to_string();
                return Err(BoardError::NoController { part });
            };
            if !inputs.have(wire) {
                return Err(BoardError::NoInput {
                    part: part.to_string(),
                    wire,
                    controller: controller.to_string(),
                    has: inputs.to_string(),
                });
            }
            // A part may have one input for several of its own.
            for other in &parts[..at] {
                let meet = |taken: &&Wire| taken.input == wire.input && !(wire.shared && **taken == wire);
                if other.wires.iter().any(|taken| meet(&taken)) {
                    return Err(BoardError::Shared {
                        first: other.to_string(),
                        second: part.to_string(),
                        wire,
                    });
                }
            }
        }
    }
    Ok(())
}

impl Region {
    /// The last address, if there is one.
    pub(super) fn end(&self, part: &Part) -> Result<u64, BoardError> {
        let end = match self.space {
            Space::Memory => u64::MAX,
            Space::Ports => 0xffff,
        };
        let last = self.last().filter(|last| *last <= end);
        last.ok_or_else(|| BoardError::Bounds {
            part: part.to_string(),
            region: *self,
        })
    }
}

impl Inputs {
    fn have(self, wire: Wire) -> bool {
        use super::Input::{Gsi, Ppi, Spi};
        match (self, wire.input) {
            (Self::Gic { spis, .. }, Spi(spi)) => spi < spis,
            (Self::Gic { .. }, Ppi(ppi)) => ppi < 16,
            (Self::IoApic { first, pins }, Gsi(gsi)) => gsi.checked_sub(first).is_some_and(|pin| pin < pins),
            _ => false,
        }
    }
}

impl std::fmt::Display for Inputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Gic { spis, .. } => write!(f, "{spis} SPIs and 16 PPIs, from 0 on"),
            Self::IoApic { first, pins } => write!(f, "{pins} GSIs, from {first} on"),
        }
    }
}
