//! The console driver of `virtio-drivers`, on both transports.

use devisor::virtio::console::{Console, MemoryPeer, Port, Size};
use virtio_drivers::{device::console::VirtIOConsole, transport::Transport};

use crate::{
    guest_drivers::GuestDma,
    plugged::{Plugged, until},
};

fn device() -> (Console, MemoryPeer) {
    let peer = MemoryPeer::new(1 << 16);
    let port = Port {
        size: Some(Size { cols: 132, rows: 50 }),
        ..Port::console(peer.clone())
    };
    (Console::single(port).unwrap(), peer)
}

fn talk(transport: impl Transport, peer: &MemoryPeer) {
    let mut console = VirtIOConsole::<GuestDma, _>::new(transport).unwrap();
    let size = console.size().unwrap().expect("F_SIZE is offered");
    assert_eq!((size.columns, size.rows), (132, 50));
    let mut output = Vec::new();
    for round in 0..50 {
        let text = format!("line {round}\n");
        console.send_bytes(text.as_bytes()).unwrap();
        console.send(b'>').unwrap();
        until("output", || {
            output.extend(peer.output());
            output.ends_with(b">").then_some(())
        });
        peer.type_in(b"answer");
        let answer: Vec<u8> = (0..6).map(|_| until("input", || console.recv(true).unwrap())).collect();
        assert_eq!(answer, b"answer");
    }
    let expected: String = (0..50).map(|round| format!("line {round}\n>")).collect();
    assert_eq!(String::from_utf8(output).unwrap(), expected);
    console.emergency_write(b'!').unwrap();
    assert_eq!(peer.output(), b"!");
}

#[test]
fn over_mmio() {
    let (device, peer) = device();
    let (plugged, transport) = Plugged::mmio(device);
    talk(transport, &peer);
    assert!(plugged.interrupts() > 0);
}

#[test]
fn over_pci() {
    let (device, peer) = device();
    let (plugged, transport) = Plugged::pci(device);
    talk(transport, &peer);
    assert!(plugged.interrupts() > 0);
}
