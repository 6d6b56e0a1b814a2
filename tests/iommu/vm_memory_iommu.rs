//! An embedder's own IOMMU: `vm-memory`'s `IommuMemory` as guest memory, which is translated at each access.

use std::{
    ops::Deref,
    sync::{Arc, RwLock, RwLockReadGuard},
};

use devisor::{
    memory::Memory,
    virtio::{entropy::Entropy, features, transport::TransportOptions},
};
use vm_memory::{
    GuestAddress, GuestMemoryMmap, Permissions,
    iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange},
};

use crate::{
    behind::disk,
    both::{ANSWER, BOTH, COMMON, Guest, REQUEST, Transport},
    driver::{OWN, SHIFT},
    ring::{memory, readable, writable},
};

/// What there is, and nothing behind it.
#[derive(Debug, Default)]
struct Table(RwLock<Iotlb>);

struct Guard<'a>(RwLockReadGuard<'a, Iotlb>);

impl Deref for Guard<'_> {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.0
    }
}

impl Iommu for Table {
    type IotlbGuard<'a> = Guard<'a>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Guard<'_>>, Error> {
        let table = Guard(self.0.read().unwrap());
        Iotlb::lookup(table, iova, length, access).map_err(|_| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: "not there".into(),
        })
    }
}

type Translated = IommuMemory<GuestMemoryMmap, Table>;

fn set(memory: &Translated, from: u64, to: u64, len: u64, access: Permissions) {
    let mut table = memory.iommu().0.write().unwrap();
    table
        .set_mapping(GuestAddress(from), GuestAddress(to), len as usize, access)
        .unwrap();
}

fn start<D: devisor::virtio::VirtioDevice + 'static>(kind: Transport, device: D) -> (Guest<D>, Arc<Translated>) {
    let ram = memory();
    let translated = Arc::new(IommuMemory::new((*ram).clone(), Table::default(), true, ()));
    let options = TransportOptions {
        access_platform: true,
        ..kind.options()
    };
    let space = Memory::new(Arc::clone(&translated));
    let guest = Guest::behind(kind, device, (&ram, space, SHIFT), options);
    (guest, translated)
}

#[test]
fn a_device_works_through_it_and_keeps_to_its_permissions() {
    for kind in BOTH {
        let (mut block, table) = start(kind, disk());
        assert_ne!(block.offered() & features::ACCESS_PLATFORM, 0);
        set(&table, SHIFT, 0, OWN, Permissions::ReadWrite);
        set(&table, 0x1000, 0xc_0000, 0x1000, Permissions::Read);
        set(&table, 0x2000, 0xe_0000, 0x1000, Permissions::Write);
        block.drive(COMMON | features::ACCESS_PLATFORM, &[0]);
        let mut transfer = |write: u8, data| {
            block.put(REQUEST, &[write, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let chain = [readable(REQUEST + SHIFT, 16), data, writable(ANSWER + SHIFT, 1)];
            block.run(0, &chain)
        };
        assert_eq!(transfer(1, readable(0x1000, 512)), 1);
        assert_eq!(transfer(0, writable(0x2000, 512)), 513);
        assert_eq!(transfer(0, writable(0x1000, 512)), 0, "it can only be read");
        assert_eq!(transfer(1, readable(0x2000, 512)), 0, "it can only be written");
        assert_eq!(transfer(1, readable(0x3000, 512)), 0, "it is not there");
        assert_eq!(transfer(1, readable(0x1f00, 512)), 0, "a part can only be written");
        assert_eq!(block.counters(0).malformed, 4);
    }
}

#[test]
fn a_change_of_its_table_holds_for_the_next_access() {
    for kind in BOTH {
        let (mut rng, table) = start(kind, Entropy::seeded(1));
        set(&table, SHIFT, 0, OWN, Permissions::ReadWrite);
        rng.drive(COMMON | features::ACCESS_PLATFORM, &[0]);
        for physical in [0xc_0000, 0xd_0000] {
            set(&table, 0x1000, physical, 0x1000, Permissions::Write);
            assert_eq!(rng.run(0, &[writable(0x1000, 16)]), 16);
            assert_ne!(rng.get(physical, 16), [0; 16]);
        }
        table.iommu().0.write().unwrap().invalidate_all();
        rng.ring(0).request(&[writable(0x1000, 16)]);
        rng.kick(0);
        assert_eq!(rng.status() & 64, 64, "its ring is gone");
    }
}

#[test]
fn a_driver_that_does_not_accept_it_is_not_let_at_the_device() {
    for kind in BOTH {
        let (rng, _) = start(kind, Entropy::seeded(1));
        assert!(!rng.negotiate(COMMON));
    }
}
