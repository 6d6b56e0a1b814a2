//! What is accepted when a device is made, and what is refused in one sentence.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

use devisor::virtio::{
    DeviceId, features,
    remote::{ConfigSpace, Remote, RemoteError, RemoteOptions, SocketPath},
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    back::{FEATURE, World},
    front::*,
    machine::{BUSES, VERSION_1},
};

#[test]
fn memory_without_a_file_is_refused() {
    let (connect, _backs) = connect_to(&Arc::default());
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap());
    let error = Remote::new(connect, memory, options()).unwrap_err();
    assert!(matches!(error, RemoteError::NotShared(0x1000)), "{error}");
}

#[test]
fn a_back_end_that_is_not_there_is_an_error() {
    let nowhere = SocketPath("/nonexistent/socket".into());
    let error = Remote::new(nowhere, shared_memory(1), options()).unwrap_err();
    assert!(
        matches!(&error, RemoteError::BackEnd(error) if error.kind() == io::ErrorKind::NotFound),
        "{error}"
    );
    let long = SocketPath("x".repeat(200).into());
    assert!(Remote::new(long, shared_memory(1), options()).is_err());
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |change: &dyn Fn(&mut RemoteOptions)| {
        let (connect, _backs) = connect_to(&Arc::default());
        let mut options = options();
        change(&mut options);
        Remote::new(connect, shared_memory(1), options).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|options| options.queues = Some(0)),
        "0 queues: 1 to 256 are accepted by this back end"
    );
    assert_eq!(
        refused(&|options| options.queues = Some(4)),
        "4 queues: 1 to 3 are accepted by this back end"
    );
    assert_eq!(
        refused(&|options| options.queue_size = 48),
        "queue size 48: a power of two up to 32768 is accepted"
    );
    assert_eq!(
        refused(&|options| options.config = ConfigSpace::Own(vec![0; 257])),
        "a configuration space of 257 bytes: up to 256 are accepted"
    );
}

#[test]
fn the_back_end_says_how_many_queues_there_are_if_nobody_else_does() {
    let (connect, _backs) = connect_to(&Arc::default());
    let mut options = options();
    options.queues = None;
    let remote = Remote::new(connect, shared_memory(1), options).unwrap();
    use devisor::virtio::VirtioDevice;
    assert_eq!(remote.queue_sizes(), [64; 3]);
    assert_eq!(remote.device_id(), DeviceId(42));
}

#[test]
fn the_driver_is_offered_what_the_back_end_has_and_no_feature_of_the_protocol() {
    for bus in BUSES {
        let (connect, _backs) = connect_to(&Arc::default());
        let front = Front::cold(bus, connect, shared_memory(1), options());
        let offered = front.machine.offered();
        assert_eq!(offered & (1 << 30 | 1 << 26), 0, "{offered:#x}");
        let needed = VERSION_1 | FEATURE | features::EVENT_IDX | features::INDIRECT_DESC;
        assert_eq!(offered & needed, needed, "{offered:#x}");
    }
}

#[test]
fn what_the_back_end_lacks_of_rings_is_not_offered() {
    let world = Arc::new(World::default());
    let backs: Backs = Arc::default();
    let connect = {
        let (world, backs) = (Arc::clone(&world), Arc::clone(&backs));
        move || {
            let (front, middle) = crate::back::pair();
            let (middle2, back) = crate::back::pair();
            backs.lock().unwrap().push(crate::back::Back::new(&world, back));
            let _ = crate::wire::between(middle, middle2, |way, message| {
                if way == crate::wire::Way::ToFront && message.request == 1 {
                    let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                    message.payload = (all & !features::EVENT_IDX).to_ne_bytes().into();
                }
                crate::wire::Fate::Pass
            });
            Ok(front)
        }
    };
    for bus in BUSES {
        let mut front = Front::cold(bus, connect.clone(), shared_memory(1), options());
        assert_eq!(front.machine.offered() & features::EVENT_IDX, 0);
        front.machine.start(FEATURE);
        front.ask(0);
        front.settle();
    }
}

#[test]
fn what_hangs_on_a_queue_that_the_back_end_does_not_serve_is_not_offered() {
    // Net: DEVICE_STATS, HASH_TUNNEL, VQ_NOTF_COAL, NOTF_COAL, HASH_REPORT, RSS. Linux takes no device that has them without CTRL_VQ.
    let net = 1 << 17 | 0b1111 << 50 | 1 << 57 | 1 << 60;
    // Console: MULTIPORT, whose driver wants two queues more.
    for (device, feature) in [(DeviceId::NET, net), (DeviceId::CONSOLE, 1 << 1)] {
        let (made, world) = (Backs::default(), Arc::default());
        let connect = move || {
            let (front, middle) = crate::back::pair();
            let (middle2, back) = crate::back::pair();
            made.lock().unwrap().push(crate::back::Back::new(&world, back));
            let _ = crate::wire::between(middle, middle2, move |way, message| {
                if way == crate::wire::Way::ToFront && message.request == 1 {
                    let all = u64::from_ne_bytes(message.payload[..].try_into().unwrap());
                    message.payload = (all | feature).to_ne_bytes().into();
                }
                crate::wire::Fate::Pass
            });
            Ok(front)
        };
        let mut options = RemoteOptions::new(device);
        options.config = ConfigSpace::Own(vec![0; 12]);
        let front = Front::cold(BUSES[0], connect, shared_memory(1), options);
        let offered = front.machine.offered();
        assert_eq!(offered & (feature | FEATURE), FEATURE, "{offered:#x}");
    }
}

#[test]
fn an_own_configuration_space_is_shown_and_not_written() {
    for bus in BUSES {
        let (connect, _backs) = connect_to(&Arc::default());
        let mut options = options();
        options.config = ConfigSpace::Own(b"tag".to_vec());
        let front = Front::cold(bus, connect, shared_memory(1), options);
        assert_eq!(front.machine.read_config(0, 4), b"tag\0");
        front.machine.write_config(0, b"x");
        assert_eq!(front.machine.read_config(0, 4), b"tag\0");
    }
}

#[test]
fn the_configuration_space_is_the_back_ends_and_the_driver_writes_it() {
    for bus in BUSES {
        let world = Arc::new(World {
            config: Mutex::new(*b"original"),
            ..World::default()
        });
        let (connect, backs) = connect_to(&world);
        let mut front = Front::started(bus, connect, FEATURE);
        assert_eq!(front.machine.read_config(0, 8), b"original");
        front.machine.write_config(0, b"O");
        assert_eq!(front.machine.read_config(0, 8), b"Original");
        assert_eq!(&*world.config.lock().unwrap(), b"Original");
        // The last byte is read-only, and what is beyond the space is nothing.
        front.machine.write_config(7, b"L");
        front.machine.write_config(8, b"!");
        assert_eq!(front.machine.read_config(0, 8), b"Original");

        // It changes by itself: the driver is told.
        let generation = front.machine.config_generation();
        let before = front.interrupts.0.load(SeqCst);
        let changed = world.clone();
        backs.lock().unwrap()[0]
            .device
            .change_config(|_| *changed.config.lock().unwrap() = *b"changed!");
        let seen = front.work_until(std::time::Duration::from_secs(5), |front| {
            front.machine.read_config(0, 8) == b"changed!"
        });
        assert!(seen);
        assert_ne!(front.machine.config_generation(), generation);
        if bus == crate::machine::Bus::Mmio {
            assert!(front.interrupts.0.load(SeqCst) > before);
        }
    }
}
