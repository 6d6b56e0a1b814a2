//! Kicks of a running vCPU that go to the back end without an exit, and without a thread of ours.
#![cfg(all(feature = "kvm", target_arch = "x86_64"))]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use devisor::{
    backends::kvm::{Gsi, KvmDoorbells, KvmIrqs},
    bus::{Bus, BusDevice, DoorbellStore, Doorbells, Space},
    interrupt::{Interrupt, NoInterrupt},
    virtio::{QueueIndex, VirtioMmio, remote::Remote, transport::mmio::Line},
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    back::{FEATURE, World},
    front::{connect_to, options, shared_memory},
    kvm_guest::{self, Action, Controller, Machine, Program, Sensing, Wire},
    plugged::start_with,
    ring::{Ring, readable, writable},
    skip::skipped,
};

/// On which the guest kicks.
const START: Gsi = Gsi(2);
const DEVICE: u64 = 0xd000_0000;
/// `QueueNotify` (virtio 1.2, section 4.2.2).
const NOTIFY: u64 = 0x50;

/// Counts what exits.
struct Exits {
    device: Arc<VirtioMmio<Remote>>,
    stores: AtomicU64,
}

impl BusDevice for Exits {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.stores.fetch_add(1, SeqCst);
        self.device.write(offset, data);
    }
}

#[test]
fn a_kick_goes_from_the_kernel_to_the_back_end() {
    if let Some(why) = kvm_guest::unavailable() {
        skipped(why);
        return;
    }
    let kvm = Machine::new(Machine::small_memory().unwrap()).unwrap();
    let irqs = KvmIrqs::new(Arc::clone(kvm.vm()), 0..=23).unwrap();
    let start = irqs.claim(START, "start").unwrap().irq_pulse().unwrap();
    let doorbells = KvmDoorbells::new(Arc::clone(kvm.vm()));
    let kick = doorbells.eventfd(0).unwrap().try_clone().unwrap();

    let world = Arc::new(World::default());
    let (connect, _backs) = connect_to(&world);
    let memory = shared_memory(1);
    let remote = Remote::new(connect, Arc::clone(&memory), options()).unwrap();
    // SAFETY: nobody else has the descriptor.
    let kick = unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(kick)) };
    let remote = remote.with_kick(QueueIndex(0), kick);
    let device = VirtioMmio::new(remote, Arc::clone(&memory), Line::Edge(Arc::new(NoInterrupt))).unwrap();
    let device = Arc::new(device);
    let mut ring = Ring::new(&memory, 0x1_0000, 16);
    start_with(&device, &ring.layout, FEATURE);

    let store = DoorbellStore {
        space: Space::Memory,
        address: DEVICE + NOTIFY,
        len: Some(4),
        value: Some(0),
    };
    let _caught = doorbells.catch(0, store).unwrap();
    let exits = Arc::new(Exits {
        device,
        stores: AtomicU64::new(0),
    });
    let mut mmio = Bus::new();
    mmio.insert(DEVICE, 0x200, Arc::clone(&exits) as _).unwrap();
    let handler = vec![Action::WriteLong {
        address: (DEVICE + NOTIFY) as u32,
        value: 0,
    }];
    let (gsi, sensing) = (START, Sensing::Edge);
    let guest = kvm.start(Program {
        controller: Controller::IoApic,
        wires: vec![Wire { gsi, sensing, handler }],
        mmio,
        ..Default::default()
    });
    let guest = guest.unwrap();
    for round in 1..=20_u64 {
        let at = 0x20_0000;
        memory.write_obj(round, GuestAddress(at)).unwrap();
        memory.write_obj(0_u64, GuestAddress(at + 8)).unwrap();
        ring.request(&[readable(at, 8), writable(at + 8, 8)]);
        start.trigger().unwrap();
        guest.wait_done(START, round).unwrap();
        // Nobody looks at the device.
        let end = Instant::now() + Duration::from_secs(10);
        while ring.used_idx() != ring.avail_idx() {
            assert!(Instant::now() < end, "round {round}");
            thread::sleep(Duration::from_micros(100));
        }
        assert_eq!(memory.read_obj::<u64>(GuestAddress(at + 8)).unwrap(), round + 1);
    }
    assert_eq!(exits.stores.load(SeqCst), 0, "stores that exited");
}
