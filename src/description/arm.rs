//! What an Arm board has that is no device: CPUs, their timers, and firmware.

use super::{Acpi, Cell, Input, Node, Part, Processor, Wire};

/// The CPUs, one for each MPIDR_EL1, as `compatible` says (`arm,cortex-a53`). PSCI starts all but the first.
pub fn cpus(compatible: &str, mpidrs: &[u64]) -> Part {
    // Affinity fields alone: bit 31 is RES1 and the others are flags (the binding arm/cpus.yaml).
    let ids: Vec<_> = mpidrs.iter().map(|mpidr| mpidr & 0xff_00ff_ffff).collect();
    let wide = ids.iter().any(|id| id >> 32 != 0);
    let mut cpus = Node::new("cpus")
        .number("#address-cells", 1 + u32::from(wide))
        .number("#size-cells", 0);
    for &id in &ids {
        let reg = if wide { Cell::U64(id) } else { Cell::U32(id as u32) };
        let cpu = Node::new(format!("cpu@{id:x}"))
            .text("device_type", "cpu")
            .text("compatible", compatible)
            .cells("reg", [reg])
            .text("enable-method", "psci");
        cpus = cpus.child(cpu);
    }
    let part = Part::new("cpus").with_node(cpus);
    ids.iter()
        .fold(part, |part, &id| part.acpi(Acpi::Processor(Processor::Arm(id))))
}

/// How a guest calls PSCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conduit {
    /// By HVC: a hypervisor at EL2 takes it.
    Hvc,
    /// By SMC: firmware at EL3 does, or what plays it.
    Smc,
}

/// Arm's Power State Coordination Interface 1.0 (DEN 0022).
pub fn psci(conduit: Conduit) -> Part {
    let method = match conduit {
        Conduit::Hvc => "hvc",
        Conduit::Smc => "smc",
    };
    Part::new("psci")
        .node(&["arm,psci-1.0", "arm,psci-0.2"], |node| node.text("method", method))
        .acpi(Acpi::Psci {
            hvc: conduit == Conduit::Hvc,
        })
}

/// The PPIs of the generic timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerPpis {
    /// The secure physical timer's.
    pub secure: u32,
    /// The physical timer's.
    pub physical: u32,
    /// The virtual timer's.
    pub virtual_: u32,
    /// The hypervisor's.
    pub hypervisor: u32,
}

impl Default for TimerPpis {
    /// As Arm's Base System Architecture recommends them (DEN0094): 13, 14, 11 and 10.
    fn default() -> Self {
        Self {
            secure: 13,
            physical: 14,
            virtual_: 11,
            hypervisor: 10,
        }
    }
}

/// The generic timers of the CPUs, which never stop.
pub fn timer(ppis: TimerPpis) -> Part {
    let TimerPpis {
        secure,
        physical,
        virtual_,
        hypervisor,
    } = ppis;
    let wires = [secure, physical, virtual_, hypervisor].map(|ppi| Wire::level(Input::Ppi(ppi)));
    let part = wires.iter().fold(Part::new("timer"), |part, &wire| part.wire(wire));
    part.node(&["arm,armv8-timer"], |node| node.flag("always-on"))
        .acpi(Acpi::Timers(wires))
}
