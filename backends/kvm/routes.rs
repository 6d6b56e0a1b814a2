//! The VM's routing table (`virt/kvm/api.rst`, section 4.52, `KVM_SET_GSI_ROUTING`): where each GSI leads.
//!
//! The kernel takes the whole table at once and does not give it back, so there is one owner of it in a VM, and this is it.

use std::{collections::BTreeMap, sync::Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

use super::{Gsi, IrqName, KvmIrqError};
use crate::{interrupt::MsiMessage, sync::lock};

/// The wires of the kernel's own controllers: those that its table has from the start.
#[cfg(target_arch = "x86_64")]
pub(super) const WIRES: u32 = 24;
#[cfg(target_arch = "aarch64")]
pub(super) const WIRES: u32 = 988;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const WIRES: u32 = 0;

/// Where a GSI leads that is no wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub message: MsiMessage,
    /// The device ID that an ITS looks at.
    pub device: Option<u32>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Routes(Mutex<Table>);

#[derive(Default)]
struct Table {
    /// The routes of the wires, kept as the kernel had them. Which there are is seen when the first route is made.
    wires: Option<Vec<kvm_irq_routing_entry>>,
    routes: BTreeMap<Gsi, Route>,
}

impl Routes {
    /// Replaces the wires of the kernel's controllers. The routes stay.
    #[cfg(target_arch = "x86_64")]
    pub fn set_wires(&self, vm: &VmFd, wires: Vec<kvm_irq_routing_entry>) -> Result<(), KvmIrqError> {
        let mut table = lock(&self.0);
        set(vm, Gsi(0), &wires, &table.routes)?;
        table.wires = Some(wires);
        Ok(())
    }

    /// Makes, rewrites and removes routes: all of them in one step, or none.
    ///
    /// A line on a GSI follows its new route from the moment that this has returned.
    pub fn change(&self, vm: &VmFd, changes: &[(Gsi, Option<Route>)]) -> Result<(), KvmIrqError> {
        let mut table = lock(&self.0);
        let is_new = |&&(gsi, route): &&(Gsi, Option<Route>)| table.routes.get(&gsi) != route.as_ref();
        let Some(&(first, _)) = changes.iter().find(is_new) else {
            return Ok(());
        };
        let wires = table.wires.clone().unwrap_or_else(|| default_routes(vm));
        let taken = changes
            .iter()
            .find(|(gsi, _)| wires.iter().any(|wire| wire.gsi == gsi.0));
        if let Some(&(gsi, _)) = taken {
            return Err(KvmIrqError::Wired { gsi });
        }
        let mut routes = table.routes.clone();
        for &(gsi, route) in changes {
            match route {
                Some(route) => _ = routes.insert(gsi, route),
                None => _ = routes.remove(&gsi),
            }
        }
        // Without an interrupt controller this is refused, and the next change looks for one again.
        set(vm, first, &wires, &routes)?;
        *table = Table {
            wires: Some(wires),
            routes,
        };
        Ok(())
    }
}

/// Gives the kernel the whole table. `gsi` is what a refusal is about.
fn set(vm: &VmFd, gsi: Gsi, wires: &[kvm_irq_routing_entry], routes: &BTreeMap<Gsi, Route>) -> Result<(), KvmIrqError> {
    let refused = |source| KvmIrqError::Refused {
        operation: "KVM_SET_GSI_ROUTING",
        irq: IrqName::Gsi(gsi),
        source,
    };
    let mut entries = wires.to_vec();
    entries.extend(routes.iter().map(|(&gsi, route)| entry(gsi, route)));
    let entries = KvmIrqRouting::from_entries(&entries)
        .map_err(|_too_many| refused(std::io::Error::from_raw_os_error(libc::ENOSPC)))?;
    vm.set_gsi_routing(&entries).map_err(|error| match error.errno() {
        // The entries are such as it takes: it takes none.
        libc::EINVAL => KvmIrqError::NoIrqchip {
            irq: IrqName::Gsi(gsi),
            source: error.into(),
        },
        _ => refused(error.into()),
    })
}

fn entry(gsi: Gsi, route: &Route) -> kvm_irq_routing_entry {
    let MsiMessage { address, data } = route.message;
    let mut entry = kvm_irq_routing_entry {
        gsi: gsi.0,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let mut message = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data,
        ..Default::default()
    };
    if let Some(device) = route.device {
        entry.flags = KVM_MSI_VALID_DEVID;
        message.__bindgen_anon_1.devid = device;
    }
    entry.u.msi = message;
    entry
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn wire(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        ..Default::default()
    };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

/// What `KVM_CREATE_IRQCHIP` has put into the table: GSI n is pin n of the IOAPIC, and the first sixteen are inputs of the
/// 8259 too. With the split irqchip there are no pins in the kernel, and the table is empty.
#[cfg(target_arch = "x86_64")]
fn default_routes(vm: &VmFd) -> Vec<kvm_irq_routing_entry> {
    use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip};

    let mut ioapic = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..Default::default()
    };
    if vm.get_irqchip(&mut ioapic).is_err() {
        return Vec::new();
    }
    let pic = |gsi| match gsi {
        0..8 => Some(wire(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
        8..16 => Some(wire(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
        _ => None,
    };
    let pins = (0..WIRES).flat_map(|gsi| pic(gsi).into_iter().chain([wire(gsi, KVM_IRQCHIP_IOAPIC, gsi)]));
    pins.collect()
}

/// What an initialized VGIC has put into the table: GSI n is SPI n. A pin beyond its SPIs leads nowhere, as without a route.
#[cfg(target_arch = "aarch64")]
fn default_routes(_vm: &VmFd) -> Vec<kvm_irq_routing_entry> {
    (0..WIRES).map(|gsi| wire(gsi, 0, gsi)).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn default_routes(_vm: &VmFd) -> Vec<kvm_irq_routing_entry> {
    Vec::new()
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("wires", &self.wires.as_ref().map(Vec::len))
            .field("routes", &self.routes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_its_device_where_it_has_one() {
        let message = MsiMessage {
            address: 0x1_0808_0040,
            data: 3,
        };
        for (device, flags, devid) in [(None, 0, 0), (Some(0x1_0018), KVM_MSI_VALID_DEVID, 0x1_0018)] {
            let entry = entry(Gsi(1000), &Route { message, device });
            assert_eq!(
                (entry.gsi, entry.type_, entry.flags),
                (1000, KVM_IRQ_ROUTING_MSI, flags)
            );
            // SAFETY: an entry of this type is a message, and of a message every bit pattern is one.
            let (found, number) = unsafe { (entry.u.msi, entry.u.msi.__bindgen_anon_1.devid) };
            assert_eq!((found.address_hi, found.address_lo, found.data), (1, 0x0808_0040, 3));
            assert_eq!(number, devid);
        }
    }
}
