//! The doorbells of the KVM backend: stores of a running vCPU that ring an eventfd and do not exit.
#![cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[allow(dead_code, reason = "shared with tests, which need other parts of it")]
#[path = "support/kvm_guest.rs"]
mod kvm_guest;
#[path = "support/skip.rs"]
mod skip;

use std::{
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use devisor::{
    backends::kvm::{Gsi, IrqPulse, KvmDoorbells, KvmIrqs},
    bus::{Bus, BusDevice, DoorbellStore, Doorbells, Space},
    interrupt::Interrupt,
};
use kvm_guest::{Action, Controller, Guest, Machine, Program, Sensing, Wire};
use skip::skipped;

/// The wire on which the guest stores.
const START: Gsi = Gsi(2);
/// Where it stores: memory, and a port.
const DEVICE: u64 = 0xd000_0000;
const PORT: u16 = 0x500;

fn long(address: u32, value: u32) -> Action {
    Action::WriteLong { address, value }
}

fn word(address: u32, value: u16) -> Action {
    Action::WriteWord { address, value }
}

/// Skips the test, loudly, where there is no /dev/kvm.
macro_rules! or_skip {
    ($made:expr) => {
        match $made {
            Some(made) => made,
            None => return,
        }
    };
}

/// Those of a VM without anything else.
fn doorbells() -> Option<KvmDoorbells> {
    if let Some(why) = kvm_guest::unavailable() {
        skipped(why);
        return None;
    }
    let machine = Machine::new(Machine::small_memory().unwrap()).unwrap();
    Some(KvmDoorbells::new(Arc::clone(machine.vm())))
}

/// Counts what exits.
#[derive(Default)]
struct Exits(AtomicU64);

impl BusDevice for Exits {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A guest that does `stores` on [`START`], at [`DEVICE`] and at [`PORT`], and what of them exits.
fn storing(stores: Vec<Action>) -> Option<(Guest, IrqPulse, KvmDoorbells, Arc<Exits>)> {
    if let Some(why) = kvm_guest::unavailable() {
        skipped(why);
        return None;
    }
    let machine = Machine::new(Machine::small_memory().unwrap()).unwrap();
    let irqs = KvmIrqs::new(Arc::clone(machine.vm()), 0..=23).unwrap();
    let start = irqs.claim(START, "start").unwrap().irq_pulse().unwrap();
    let doorbells = KvmDoorbells::new(Arc::clone(machine.vm()));
    let exits = Arc::new(Exits::default());
    let (mut mmio, mut ports) = (Bus::new(), Bus::new());
    mmio.insert(DEVICE, 8, Arc::clone(&exits) as _).unwrap();
    ports.insert(PORT.into(), 1, Arc::clone(&exits) as _).unwrap();
    let (gsi, sensing) = (START, Sensing::Edge);
    let handler = stores;
    let program = Program {
        controller: Controller::IoApic,
        wires: vec![Wire { gsi, sensing, handler }],
        mmio,
        ports,
        ..Default::default()
    };
    Some((machine.start(program).unwrap(), start, doorbells, exits))
}

fn store(space: Space, address: u64, len: Option<u8>, value: Option<u64>) -> DoorbellStore {
    DoorbellStore {
        space,
        address,
        len,
        value,
    }
}

fn out(value: u8) -> Action {
    Action::OutByte { port: PORT, value }
}

#[test]
fn what_is_caught_is_told_by_space_width_and_value_and_the_rest_exits() {
    let stores = vec![
        long(DEVICE as u32, 7),
        long(DEVICE as u32, 8),
        word(DEVICE as u32, 7),
        word(DEVICE as u32 + 4, 9),
        long(DEVICE as u32 + 4, 9),
        out(3),
        out(4),
    ];
    for (caught, rings) in [
        (store(Space::Memory, DEVICE, Some(4), Some(7)), 1),
        (store(Space::Memory, DEVICE, Some(4), None), 2),
        (store(Space::Memory, DEVICE, Some(2), None), 1),
        (store(Space::Memory, DEVICE + 4, None, None), 2),
        (store(Space::Memory, DEVICE, None, None), 3),
        (store(Space::Ports, PORT.into(), Some(1), Some(4)), 1),
        (store(Space::Ports, PORT.into(), None, None), 2),
        (store(Space::Memory, PORT.into(), None, None), 0),
        (store(Space::Ports, DEVICE & 0xffff, None, None), 0),
    ] {
        let (guest, start, doorbells, exits) = or_skip!(storing(stores.clone()));
        let held = doorbells.catch(5, caught).unwrap();
        start.trigger().unwrap();
        guest.wait_done(START, 1).unwrap();
        assert_eq!(doorbells.eventfd(5).unwrap().read().unwrap_or(0), rings, "{caught:?}");
        assert_eq!(exits.0.load(SeqCst), stores.len() as u64 - rings, "{caught:?}");
        drop(held);
        start.trigger().unwrap();
        guest.wait_done(START, 2).unwrap();
        assert!(doorbells.eventfd(5).unwrap().read().is_err(), "it is let go");
        assert_eq!(exits.0.load(SeqCst), 2 * stores.len() as u64 - rings);
    }
}

#[test]
fn each_store_of_the_vcpu_rings_or_exits_while_its_doorbell_comes_and_goes() {
    const STORES: usize = 500;
    let stores = [long(DEVICE as u32, 7), word(DEVICE as u32 + 4, 9), out(3)]
        .into_iter()
        .cycle()
        .take(STORES);
    let (guest, start, doorbells, exits) = or_skip!(storing(stores.collect()));
    let caught = [
        store(Space::Memory, DEVICE, Some(4), Some(7)),
        store(Space::Memory, DEVICE + 4, None, None),
        store(Space::Ports, PORT.into(), Some(1), None),
    ];
    let mut rung = 0;
    let mut take = || {
        for number in 0..caught.len() as u16 {
            rung += doorbells.eventfd(number).unwrap().read().unwrap_or(0);
        }
    };
    for round in 1..=4 {
        start.trigger().unwrap();
        while guest.taken(START).count < round || exits.0.load(SeqCst) == 0 {
            thread::yield_now();
        }
        for _ in 0..20 {
            let held: Vec<_> = (0..)
                .zip(caught)
                .map(|(n, store)| doorbells.catch(n, store).unwrap())
                .collect();
            thread::yield_now();
            drop(held);
        }
        guest.wait_done(START, round).unwrap();
        take();
    }
    assert_eq!(rung + exits.0.load(SeqCst), 4 * STORES as u64);
}

#[test]
fn a_doorbell_is_caught_once_and_can_be_caught_again_after_the_drop() {
    let doorbells = or_skip!(doorbells());
    for store in [
        store(Space::Memory, 0xd000_0000, Some(4), Some(1)),
        store(Space::Memory, 0xd000_0004, Some(2), None),
        store(Space::Memory, 0xd000_0008, None, None),
        store(Space::Ports, 0xc000, Some(2), Some(1)),
        store(Space::Ports, 0xffff, Some(1), None),
        store(Space::Ports, 0xc010, None, None),
        store(Space::Ports, 0xffff, None, None),
    ] {
        let caught = doorbells.catch(1, store).unwrap();
        let Err(again) = doorbells.catch(1, store) else {
            panic!("{store:?} is caught already");
        };
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        drop(caught);
        doorbells.catch(2, store).unwrap();
    }
}

#[test]
fn stores_that_no_guest_makes_are_refused() {
    let doorbells = or_skip!(doorbells());
    for store in [
        store(Space::Memory, 0xd000_0000, Some(3), None),
        store(Space::Memory, 0xd000_0000, Some(0), None),
        store(Space::Memory, 0xd000_0000, None, Some(1)),
        store(Space::Memory, u64::MAX, Some(2), None),
        store(Space::Ports, 0xffff, Some(2), None),
        store(Space::Ports, 0x1_0000, Some(1), None),
    ] {
        let Err(refused) = doorbells.catch(1, store) else {
            panic!("{store:?} is caught");
        };
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn each_number_has_one_eventfd() {
    let doorbells = or_skip!(doorbells());
    let (first, second) = (doorbells.eventfd(0).unwrap(), doorbells.eventfd(1).unwrap());
    assert!(Arc::ptr_eq(&first, &doorbells.eventfd(0).unwrap()));
    assert!(!Arc::ptr_eq(&first, &second));
}
