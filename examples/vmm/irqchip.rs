//! The three modes: where the interrupt controllers are, what lines devices get, and how a vCPU takes interrupts.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    sync::{Arc, Mutex},
};

use devisor::{
    backends::{
        irqchip::{
            CpuId,
            lapic::{ApicId, LocalApicParts, LocalApics, LocalApicsConfig},
            pc::{Gsi, Pc, PcConfig},
        },
        kvm::{
            self, IrqLine, KvmIrqs,
            x86::{SplitIrqchip, VcpuWaker, X86Vcpu, prepare_software},
        },
    },
    bus::{Bus, BusDevice},
    interrupt::{Interrupt, LevelInterrupt, SharedLine, level_from_fn},
};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::{
    options::Error,
    timers::{Timers, lock},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Kernel,
    Split,
    Software,
}

impl Mode {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "kernel" => Some(Self::Kernel),
            "split" => Some(Self::Split),
            "software" => Some(Self::Software),
            _ => None,
        }
    }
}

/// Pins of the IOAPIC.
pub const PINS: u32 = 24;

/// The controllers of the machine.
pub enum Irqchip {
    Kernel {
        irqs: KvmIrqs,
        wires: Mutex<BTreeMap<Gsi, SharedLine<IrqLine>>>,
    },
    Split {
        irqchip: SplitIrqchip,
        board: Arc<Pc>,
    },
    Software {
        board: Arc<Pc>,
        apics: LocalApics,
    },
}

impl Irqchip {
    /// Makes the controllers of `vm`, before it has vCPUs, one for each of `wakers`. `x2apic` is whether those of devisor have that mode.
    pub fn new(
        mode: Mode,
        vm: &Arc<VmFd>,
        wakers: &[VcpuWaker],
        timers: &Timers,
        tsc_hz: u64,
        x2apic: bool,
    ) -> Result<Self, Error> {
        match mode {
            Mode::Kernel => {
                vm.create_irq_chip()?;
                vm.create_pit2(kvm_pit_config {
                    flags: KVM_PIT_SPEAKER_DUMMY,
                    ..Default::default()
                })?;
                let irqs = KvmIrqs::new(Arc::clone(vm), 1..=PINS - 1)?;
                irqs.wire_as_pc()?;
                let wires = Mutex::default();
                Ok(Self::Kernel { irqs, wires })
            }
            Mode::Split => {
                let irqs = KvmIrqs::new(Arc::clone(vm), 1..=PINS - 1)?;
                let irqchip = SplitIrqchip::new(&irqs, PcConfig::default())?;
                let wakers = wakers.to_vec();
                let intr = level_from_fn(move |up| {
                    wakers.iter().filter(|_| up).for_each(VcpuWaker::wake);
                    Ok(())
                });
                let board = irqchip.board(intr, timers.clock(), timers.slot())?;
                Ok(Self::Split { irqchip, board })
            }
            Mode::Software => {
                prepare_software(vm)?;
                let config = LocalApicsConfig {
                    tsc_hz,
                    x2apic,
                    ..Default::default()
                };
                // The timers' slots in the order of `expiries`: the board's first.
                let slot = timers.slot();
                let parts = (0..).zip(wakers).map(|(id, waker)| LocalApicParts {
                    id: ApicId(id),
                    wake: Box::new(waker.clone()),
                    alarm: Box::new(timers.slot()),
                });
                let apics = LocalApics::new(config, Arc::new(timers.clock()), parts.collect())?;
                let board = Pc::with_local_apics(PcConfig::default(), &apics, timers.clock(), slot)?;
                let board = Arc::new(board);
                Ok(Self::Software { board, apics })
            }
        }
    }

    /// What is to be called when an alarm goes off, in the order of the slots.
    pub fn expiries(&self) -> Result<Vec<Box<dyn Fn() + Send>>, Error> {
        let mut expiries: Vec<Box<dyn Fn() + Send>> = Vec::new();
        if let Self::Split { board, .. } | Self::Software { board, .. } = self {
            let pit = board.pit().clone();
            expiries.push(Box::new(move || pit.expire()));
        }
        if let Self::Software { apics, .. } = self {
            for cpu in (0..).take(apics.cpus()).map(CpuId) {
                let apic = apics.cpu(cpu)?;
                expiries.push(Box::new(move || apic.expire()));
            }
        }
        Ok(expiries)
    }

    /// Places the registers that KVM does not catch itself.
    pub fn plug(&self, memory: &mut Bus, ports: &mut Bus) -> Result<(), Error> {
        match self {
            Self::Kernel { .. } => Ok(()),
            Self::Split { board, .. } | Self::Software { board, .. } => Ok(board.plug(memory, ports)?),
        }
    }

    /// A level line into a pin. Several of one pin are a wired-OR.
    pub fn level_line(&self, gsi: Gsi) -> Result<Box<dyn LevelInterrupt>, Error> {
        Ok(match self {
            Self::Kernel { irqs, wires } => {
                // The kernel has one level for all that is outside of it.
                let mut wires = lock(wires);
                let wire = match wires.entry(gsi) {
                    Entry::Occupied(wire) => wire.into_mut(),
                    Entry::Vacant(none) => {
                        let line = irqs.claim(kvm::Gsi(gsi.0), "a level line")?.irq_line()?;
                        none.insert(SharedLine::new(line))
                    }
                };
                Box::new(wire.source()?)
            }
            Self::Split { board, .. } | Self::Software { board, .. } => Box::new(board.gsi_level_line(gsi)?),
        })
    }

    /// An edge line into a pin that has no level line.
    pub fn edge_line(&self, gsi: Gsi) -> Result<Arc<dyn Interrupt>, Error> {
        Ok(match self {
            Self::Kernel { irqs, .. } => Arc::new(irqs.claim(kvm::Gsi(gsi.0), "an edge line")?.irqfd()?),
            Self::Split { board, .. } | Self::Software { board, .. } => Arc::new(board.gsi_edge_line(gsi)?),
        })
    }

    /// The vCPU with number `cpu` behind the controllers. Where there is no firmware, its local APIC is as that leaves it: LINT0 of the
    /// first CPU lets the 8259's requests through.
    pub fn vcpu(&self, cpu: u32, fd: VcpuFd, waker: VcpuWaker, has_firmware: bool) -> Result<X86Vcpu, Error> {
        const SVR: usize = 0xf0;
        const LVT0: usize = 0x350;
        const LVT1: usize = 0x360;
        const VIRTUAL_WIRE: [(usize, u32); 3] = [(SVR, 0x1ff), (LVT0, 0x700), (LVT1, 0x400)];
        match self {
            Self::Kernel { .. } | Self::Split { .. } if cpu == 0 && !has_firmware => {
                let mut apic = fd.get_lapic()?;
                for (register, value) in VIRTUAL_WIRE {
                    for (byte, value) in apic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
                        *byte = value as _;
                    }
                }
                fd.set_lapic(&apic)?;
            }
            Self::Software { apics, .. } if cpu == 0 && !has_firmware => {
                let apic = apics.cpu(CpuId(cpu))?;
                for (register, value) in VIRTUAL_WIRE {
                    apic.write(register as u64, &value.to_le_bytes());
                }
            }
            _ => (),
        }
        let vcpu: io::Result<X86Vcpu> = match self {
            Self::Kernel { .. } => X86Vcpu::kernel(fd, waker),
            Self::Split { irqchip, .. } => X86Vcpu::split(fd, waker, irqchip),
            Self::Software { board, apics } => X86Vcpu::software(fd, waker, apics.cpu(CpuId(cpu))?, Arc::clone(board)),
        };
        Ok(vcpu?)
    }
}
