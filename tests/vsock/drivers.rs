//! The socket driver of `virtio-drivers`, on both transports.

use std::sync::Arc;

use devisor::{
    time::ManualClock,
    virtio::vsock::{MemoryHost, SocketKind, Vsock, VsockOptions},
};
use virtio_drivers::{
    device::socket::{VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType},
    transport::Transport,
};

use crate::{
    guest_drivers::GuestDma,
    plugged::{Plugged, until},
};

fn device() -> (Vsock, MemoryHost) {
    let host = MemoryHost::new(1 << 16);
    let options = VsockOptions {
        guest_cid: 42,
        ..VsockOptions::default()
    };
    let vsock = Vsock::new(host.clone(), Arc::new(ManualClock::default()), options).unwrap();
    (vsock, host)
}

fn talk(transport: impl Transport, host: &MemoryHost) {
    let driver = VirtIOSocket::<GuestDma, _, 512>::new(transport).unwrap();
    assert_eq!(driver.guest_cid(), 42);
    let mut sockets = VsockConnectionManager::new(driver);
    let server = VsockAddr { cid: 2, port: 80 };

    // Nobody listens.
    sockets.connect(server, 1000).unwrap();
    let event: VsockEvent = until("a refusal", || sockets.poll().unwrap());
    assert!(matches!(event.event_type, VsockEventType::Disconnected { .. }));

    host.listen(80, SocketKind::Stream);
    sockets.connect(server, 1000).unwrap();
    let event = until("an answer", || sockets.poll().unwrap());
    assert_eq!(event.event_type, VsockEventType::Connected);
    let socket = until("the connection", || host.accept(80, SocketKind::Stream));

    // Far more than the driver has room for at a time, which is 1024 bytes.
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    let mut heard = Vec::<u8>::new();
    let down: Vec<u8> = (0..20_000_u32).map(|byte| (byte / 5) as u8).collect();
    let mut written = 0;
    let mut buffer = [0; 300];
    until("both directions", || {
        written += socket.write(&down[written..(written + 700).min(down.len())]);
        if sent.len() < 40_000 {
            let part = [(sent.len() / 100) as u8; 100];
            if sockets.send(server, 1000, &part).is_ok() {
                sent.extend(part);
            }
        }
        got.extend(socket.read());
        sockets.poll().unwrap();
        let len = sockets.recv(server, 1000, &mut buffer).unwrap();
        heard.extend(&buffer[..len]);
        if len != 0 {
            sockets.update_credit(server, 1000).unwrap();
        }
        (heard.len() == down.len() && got.len() == 40_000).then_some(())
    });
    assert!(heard == down && got == sent);

    sockets.shutdown(server, 1000).unwrap();
    let event = until("the end", || sockets.poll().unwrap().filter(is_end));
    assert_eq!(event.source, server);
    assert!(socket.is_closed());

    // The other way.
    sockets.listen(22);
    let socket = host.connect(22, SocketKind::Stream);
    let event = until("a request", || sockets.poll().unwrap());
    assert_eq!(event.event_type, VsockEventType::ConnectionRequest);
    let client = event.source;
    until("the connection", || socket.is_open().then_some(()));
    assert_eq!(socket.port(), Some(client.port));
    sockets.send(client, 22, b"SSH-2.0").unwrap();
    until("a greeting", || (socket.read() == b"SSH-2.0").then_some(()));
    drop(socket);
    until("the end", || sockets.poll().unwrap().filter(is_end));
}

fn is_end(event: &VsockEvent) -> bool {
    matches!(event.event_type, VsockEventType::Disconnected { .. })
}

#[test]
fn over_mmio() {
    let (device, host) = device();
    let (plugged, transport) = Plugged::mmio(device);
    talk(transport, &host);
    assert!(plugged.interrupts() > 0);
}

#[test]
fn over_pci() {
    let (device, host) = device();
    let (plugged, transport) = Plugged::pci(device);
    talk(transport, &host);
    assert!(plugged.interrupts() > 0);
}
