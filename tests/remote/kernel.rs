//! vhost in the kernel, by ioctls: what stands in for it here, and the real one where there is one.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use devisor::virtio::{
    DeviceId, features,
    remote::{
        Connect, Remote, RemoteError, RemoteOptions,
        kernel::{VhostNet, VhostVdpa, VhostVsock},
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    back::{FEATURE, World},
    front::*,
    machine::{BUSES, Bus, Machine, VERSION_1},
    ring::writable,
    skip::skipped,
    stand_in::{Kernel, Kind},
};

const LONG: Duration = Duration::from_secs(10);

fn of_kind(kind: Kind, kernel: &Arc<Kernel>) -> (Box<dyn Connect>, RemoteOptions) {
    let kernel = kernel.open();
    let mut of_type = match kind {
        Kind::Net => RemoteOptions::new(DeviceId::NET),
        Kind::Vsock => RemoteOptions::new(DeviceId::SOCKET),
        Kind::Vdpa => options(),
    };
    of_type.retry = Duration::from_millis(1);
    let connect: Box<dyn Connect> = match kind {
        Kind::Net => {
            of_type.queues = Some(4);
            of_type.config = devisor::virtio::remote::ConfigSpace::Own(vec![2, 0, 0, 0, 0, 1]);
            let ports: Vec<OwnedFd> = vec![memfd(1).into(), memfd(1).into()];
            Box::new(VhostNet::with(ports, kernel))
        }
        Kind::Vsock => Box::new(VhostVsock::with(7, kernel)),
        Kind::Vdpa => Box::new(VhostVdpa::with(kernel)),
    };
    (connect, of_type)
}

fn front(bus: Bus, kind: Kind) -> (Front, Arc<Kernel>, Arc<World>) {
    let world: Arc<World> = Arc::default();
    let memory = shared_memory(2);
    let kernel = Kernel::new(kind, &world, &memory);
    let (connect, options) = of_kind(kind, &kernel);
    let front = Front::cold(bus, Boxed(connect), memory, options);
    (front, kernel, world)
}

/// Of any kind.
struct Boxed(Box<dyn Connect>);

impl Connect for Boxed {
    fn connect(&mut self) -> std::io::Result<devisor::virtio::remote::Connection> {
        self.0.connect()
    }
}

const KINDS: [(Kind, u16); 3] = [(Kind::Net, 4), (Kind::Vsock, 2), (Kind::Vdpa, 3)];

#[test]
fn queues_in_the_kernel_are_served_stopped_reset_and_served_again() {
    for bus in BUSES {
        for (kind, queues) in KINDS {
            let (mut front, _kernel, world) = front(bus, kind);
            for round in 0..3 {
                front.machine.start(FEATURE);
                for _ in 0..5 {
                    (0..queues).for_each(|queue| _ = front.ask(queue));
                    front.settle();
                }
                front.machine.transport().pause();
                assert!(front.machine.transport().wait_until_still(Some(LONG)));
                (0..queues).for_each(|queue| _ = front.ask(queue));
                front.machine.transport().resume();
                front.settle();
                let answered = world.answered.lock().unwrap().len();
                assert_eq!(answered, usize::from(queues) * 6 * (round + 1), "{kind:?}");
                let failures = front.failures();
                assert_eq!(failures.count, 0, "{kind:?}: {failures:?}");
                front.forget();
            }
        }
    }
}

#[test]
fn a_saved_device_goes_on_with_another_in_the_kernel() {
    for (kind, queues) in KINDS {
        let (mut front, _kernel, world) = front(Bus::Mmio, kind);
        front.machine.start(FEATURE);
        front.ask(0);
        front.settle();
        let state = front.machine.save();
        (0..queues).for_each(|queue| _ = front.ask(queue));
        let memory = Arc::clone(&front.machine.memory);
        let kernel = Kernel::new(kind, &world, &memory);
        let (connect, options) = of_kind(kind, &kernel);
        let mut other = Front::cold(Bus::Mmio, Boxed(connect), memory, options);
        other.machine.transport().restore(&state).unwrap();
        other.take_driver(&mut front);
        other.machine.transport().resume();
        other.settle();
        assert_eq!(world.answered.lock().unwrap().len(), 1 + usize::from(queues));
        assert_eq!(other.failures().count, 0);
    }
}

#[test]
fn the_driver_of_a_socket_device_hears_that_its_connections_ended_when_it_has_moved() {
    let (mut front, kernel, world) = front(Bus::Mmio, Kind::Vsock);
    assert_eq!(front.machine.read_config(0, 8), 7_u64.to_le_bytes());
    assert_eq!(kernel.arguments(0x60), [7_u64.to_ne_bytes().to_vec()]);
    front.machine.start(FEATURE);
    let event = front.machine.place(2, 8);
    front.machine.fill(event, &[0xff; 8]);
    front.machine.offer(2, &[writable(event, 8)]);
    front.machine.run();
    assert_eq!(front.machine.used(2), 0, "nothing has happened");
    let state = front.machine.save();
    let memory = Arc::clone(&front.machine.memory);
    let (connect, options) = of_kind(Kind::Vsock, &Kernel::new(Kind::Vsock, &world, &memory));
    let mut other = Front::cold(Bus::Mmio, Boxed(connect), memory, options);
    other.machine.transport().restore(&state).unwrap();
    other.take_driver(&mut front);
    other.machine.transport().resume();
    assert!(other.work_until(LONG, |other| other.machine.used(2) == 1));
    assert_eq!(other.machine.bytes(event, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    // Once.
    other.machine.offer(2, &[writable(event, 8)]);
    other.machine.run();
    assert_eq!(other.machine.used(2), 0);
}

#[test]
fn pages_that_the_kernel_writes_are_noted_where_it_was_told() {
    let (mut front, kernel, _world) = front(Bus::Mmio, Kind::Vsock);
    front.machine.start(FEATURE);
    front.machine.with_device(|device| device.start_dirty_log()).unwrap();
    assert_eq!(kernel.arguments(0x04).len(), 1);
    let mut pages = Vec::new();
    front
        .machine
        .with_device(|device| device.take_dirty(|page| pages.push(page)));
    let used = |queue: usize| front.machine.rings[queue].layout.device_area / 4096 * 4096;
    assert_eq!(pages, [used(0), used(1)]);
    let (mut vdpa, ..) = self::front(Bus::Mmio, Kind::Vdpa);
    vdpa.machine.start(FEATURE);
    let refused = vdpa.machine.with_device(|device| device.start_dirty_log());
    assert!(matches!(refused, Err(RemoteError::NoLog)));
}

#[test]
fn the_configuration_space_of_a_vdpa_device_is_its_own() {
    let (mut front, kernel, world) = front(Bus::Mmio, Kind::Vdpa);
    *world.config.lock().unwrap() = *b"original";
    front.machine.start(FEATURE);
    front.machine.write_config(0, b"O");
    assert_eq!(front.machine.read_config(0, 8), b"Original");
    assert_eq!(kernel.arguments(0x74).len(), 1);
    assert_eq!(front.failures().count, 0);
}

#[test]
fn memory_without_a_file_is_the_kernels_to_use_and_a_request_that_fails_is_an_error() {
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    for (kind, _) in KINDS {
        let kernel = Kernel::new(kind, &Arc::default(), &memory);
        let (connect, options) = of_kind(kind, &kernel);
        Remote::new(Boxed(connect), Arc::clone(&memory), options).unwrap();
        *kernel.fails.lock().unwrap() = Some(0x00);
        let (connect, options) = of_kind(kind, &kernel);
        let error = Remote::new(Boxed(connect), Arc::clone(&memory), options).unwrap_err();
        assert!(matches!(error, RemoteError::BackEnd(_)), "{error}");
    }
    let kernel = Kernel::new(Kind::Net, &Arc::default(), &memory);
    let none = VhostNet::with(Vec::new(), kernel.open());
    assert!(Remote::new(none, memory, RemoteOptions::new(DeviceId::NET)).is_err());
}

#[test]
fn a_device_in_the_kernel_whose_requests_fail_is_opened_anew_and_nothing_is_lost() {
    for (kind, queues) in KINDS {
        let (mut front, kernel, world) = front(Bus::Mmio, kind);
        front.machine.start(FEATURE);
        // What stops a ring, what describes it, what has it run.
        for number in [0x12, 0x10, 0x11, 0x20, 0x30, 0x61, 0x72, 0x7d] {
            *kernel.fails.lock().unwrap() = Some(number);
            front.machine.transport().pause();
            assert!(front.machine.transport().wait_until_still(Some(LONG)));
            front.machine.transport().resume();
            (0..queues).for_each(|queue| _ = front.ask(queue));
            front.work_until(Duration::from_millis(20), |_| false);
            *kernel.fails.lock().unwrap() = None;
            front.settle();
        }
        assert_eq!(
            world.answered.lock().unwrap().len(),
            8 * usize::from(queues),
            "{kind:?}"
        );
        assert!(front.returns() > 0);
    }
}

#[test]
fn a_queue_of_a_device_that_stops_as_a_whole_is_not_reset_alone() {
    for bus in BUSES {
        for (kind, stops_alone) in [(Kind::Net, true), (Kind::Vsock, false), (Kind::Vdpa, false)] {
            let (front, ..) = front(bus, kind);
            let offered = front.machine.offered() & features::RING_RESET != 0;
            assert_eq!(offered, stops_alone, "{kind:?}");
        }
    }
}

#[test]
fn the_driver_of_a_socket_device_hears_that_its_connections_ended_when_it_is_opened_anew() {
    let (mut front, kernel, _world) = front(Bus::Mmio, Kind::Vsock);
    front.machine.start(FEATURE);
    let event = front.machine.place(2, 8);
    front.machine.fill(event, &[0xff; 8]);
    front.machine.offer(2, &[writable(event, 8)]);
    *kernel.fails.lock().unwrap() = Some(0x12);
    front.machine.transport().pause();
    assert!(front.machine.transport().wait_until_still(Some(LONG)));
    *kernel.fails.lock().unwrap() = None;
    front.machine.transport().resume();
    assert!(front.work_until(LONG, |front| front.machine.used(2) == 1));
    assert_eq!(front.machine.bytes(event, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert!(front.work_until(LONG, |front| front.returns() == 1));
    // Once.
    front.machine.offer(2, &[writable(event, 8)]);
    assert!(!front.work_until(Duration::from_millis(20), |front| front.machine.used(2) == 1));
}

#[test]
fn the_kernel_has_a_log_no_longer_when_it_is_gone() {
    for kind in [Kind::Net, Kind::Vsock] {
        let (front, kernel, _world) = front(Bus::Mmio, kind);
        let mut front = front;
        front.machine.start(FEATURE);
        // The log is set, and the ring that is to use it is not.
        *kernel.fails.lock().unwrap() = Some(0x11);
        let started = front.machine.with_device(|device| device.start_dirty_log());
        assert!(started.is_err());
        assert_eq!(kernel.arguments(0x04).len(), if kind == Kind::Net { 2 } else { 1 });
        assert_eq!(kernel.logs_gone.load(SeqCst), 0, "{kind:?}");
    }
}

#[test]
fn the_kernels_own_devices_are_driven_where_there_are_any() {
    let mut machine = None;
    let memory = shared_memory(1);
    match Path::new("/dev/vhost-vsock").exists() {
        true => {
            let device = Remote::new(
                VhostVsock::new(4711),
                Arc::clone(&memory),
                RemoteOptions::new(DeviceId::SOCKET),
            );
            machine = Some(Machine::in_memory(Bus::Mmio, device.unwrap(), memory));
        }
        false => skipped("there is no /dev/vhost-vsock"),
    }
    if let Some(machine) = &mut machine {
        machine.start(VERSION_1);
        machine.room(0, 4096);
        machine.run();
        machine.transport().pause();
        assert!(machine.transport().wait_until_still(Some(LONG)));
        assert_eq!(machine.with_device(|device| device.host_failures().count), 0);
    }
    if !Path::new("/dev/vhost-net").exists() {
        skipped("there is no /dev/vhost-net, and what it needs is tried with what stands in for it alone");
    }
}
