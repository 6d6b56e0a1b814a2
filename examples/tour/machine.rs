//! The device on the transport that a board has a place for: virtio-mmio, or a PCI bus with a host bridge.

use std::sync::Arc;

use devisor::{
    bus::Bus,
    event_loop::Seat,
    interrupt::{LevelInterrupt, MsiVectors, NoInterrupt},
    pci::{DeviceFunction, HostBridge, NoMessages, Pin, RootBus},
    virtio::{VirtioDevice, VirtioMmio, VirtioPci, VirtioTransport, transport::mmio::Line},
};
use vm_memory::GuestMemoryMmap;

use crate::{
    board::{Acknowledge, Attach, PlugError, Trace},
    guest_drivers::MmioTransport,
    guest_pci::{Messages, PciTransport, guest_bus},
};

/// The way to the device, for its driver.
pub enum Plugged {
    /// Registers in memory.
    Mmio(MmioTransport),
    /// A PCI function.
    Pci(PciTransport),
}

/// A device that is plugged in.
pub struct Machine {
    /// The device, whatever its transport is.
    pub device: Arc<dyn VirtioTransport>,
    /// The way to it.
    pub transport: Plugged,
    /// What the guest does there when it is interrupted.
    pub acknowledge: Acknowledge,
    /// The name of the line that its queue interrupts by.
    pub line: &'static str,
}

/// Plugs the device in, to interrupt by what `attach` says. It takes `seat` where it is to run on a worker.
///
/// # Errors
/// [`PlugError::Failed`].
pub fn plug<D: VirtioDevice + 'static>(
    device: D,
    memory: GuestMemoryMmap,
    attach: Attach,
    trace: &Trace,
    seat: Option<&Seat>,
) -> Result<Machine, PlugError> {
    let memory = Arc::new(memory);
    match attach {
        Attach::Mmio(line) => {
            let line = match line {
                Line::Edge(line) => Line::Edge(trace.edge("line", line)),
                Line::Level(line) => Line::Level(trace.level("line", line)),
            };
            let mut device = VirtioMmio::new(device, memory, line).map_err(PlugError::failed)?;
            if let Some(seat) = seat {
                device = device.with_doorbell(seat.clone());
            }
            let device = Arc::new(device);
            take(seat, &(Arc::clone(&device) as _));
            Ok(Machine {
                transport: Plugged::Mmio(MmioTransport::new(Arc::clone(&device) as _).map_err(PlugError::failed)?),
                acknowledge: Acknowledge::Mmio(Arc::clone(&device) as _),
                device,
                line: "line",
            })
        }
        Attach::Intx(wire) => {
            let wire = trace.level("line", wire);
            let (device, bus) = plug_pci(device, memory, wire, Arc::new(NoMessages), seat)?;
            let transport = PciTransport::new(&bus, &Messages::Intx).map_err(PlugError::failed)?;
            Ok(Machine {
                acknowledge: Acknowledge::Isr(transport.isr_status()),
                transport: Plugged::Pci(transport),
                device,
                line: "line",
            })
        }
        Attach::MsiX { vectors, message } => {
            let vectors = trace.vectors("vector", vectors);
            let (device, bus) = plug_pci(device, memory, Arc::new(NoInterrupt), vectors, seat)?;
            // The configuration does not change here, so its vector may be the same.
            let messages = Messages::MsiX(vec![message; 2]);
            let transport = PciTransport::new(&bus, &messages).map_err(PlugError::failed)?;
            Ok(Machine {
                acknowledge: Acknowledge::Message,
                transport: Plugged::Pci(transport),
                device,
                line: "vector.1",
            })
        }
    }
}

/// Puts the device on a PCI bus, behind a host bridge.
fn plug_pci<D: VirtioDevice + 'static>(
    device: D,
    memory: Arc<GuestMemoryMmap>,
    wire: Arc<dyn LevelInterrupt>,
    vectors: Arc<dyn MsiVectors>,
    seat: Option<&Seat>,
) -> Result<(Arc<dyn VirtioTransport>, Arc<Bus>), PlugError> {
    let address = |device| DeviceFunction::new(device, 0).ok_or_else(|| PlugError::failed("no such device number"));
    let mut wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>);
    wires[address(1)?.wire(Pin::A)] = wire;
    let root = RootBus::new(wires, vectors);
    let bridge = HostBridge::new(root.slot(address(0)?).map_err(PlugError::failed)?);
    root.insert(Arc::new(bridge)).map_err(PlugError::failed)?;
    let slot = root.slot(address(1)?).map_err(PlugError::failed)?;
    let mut device = VirtioPci::new(device, memory, slot).map_err(PlugError::failed)?;
    if let Some(seat) = seat {
        device = device.with_doorbell(seat.clone());
    }
    let device = Arc::new(device);
    take(seat, &(Arc::clone(&device) as _));
    root.insert(Arc::clone(&device) as _).map_err(PlugError::failed)?;
    Ok((device, guest_bus(&root)))
}

fn take(seat: Option<&Seat>, device: &Arc<dyn VirtioTransport>) {
    if let Some(seat) = seat {
        seat.take(device);
    }
}
