//! Both queues served at the same time, by threads of their own.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use devisor::{
    time::ManualClock,
    virtio::{
        QueueIndex, VirtioTransport, Wait,
        vsock::{Host, Incoming, MemoryHost, Ready, SocketKind, Stream, Token, Vsock, VsockOptions, Waker},
    },
};

use crate::{machine::BUSES, support::*};

const TOTAL: usize = 1 << 20;

#[test]
fn both_directions_go_on_while_two_threads_serve_them() {
    for bus in BUSES {
        let options = VsockOptions {
            buf_alloc: 32 << 10,
            ..VsockOptions::default()
        };
        let mut world = World::negotiated(bus, options, 10_000, F_STREAM);
        let socket = world.open(A);
        let (device, stop) = (world.guest.shared(), AtomicBool::new(false));
        let down: Vec<u8> = (0..TOTAL).map(|byte| (byte / 11) as u8).collect();
        let up: Vec<u8> = (0..TOTAL).map(|byte| (byte / 13) as u8).collect();
        thread::scope(|scope| {
            for queue in [RX, TX] {
                let (device, stop) = (&device, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        device.process(QueueIndex(queue));
                        thread::yield_now();
                    }
                });
            }
            let (down, up) = (&down, &up);
            let program = scope.spawn(move || {
                let (mut got, mut written) = (Vec::new(), 0);
                let begun = Instant::now();
                while got.len() < TOTAL || written < TOTAL {
                    assert!(begun.elapsed() < Duration::from_secs(60), "{} {written}", got.len());
                    written += socket.write(&down[written..(written + 3000).min(TOTAL)]);
                    got.extend(socket.read());
                }
                (socket, got)
            });
            let (mut sent, mut heard, mut forwarded) = (0, Vec::new(), 0_u32);
            let begun = Instant::now();
            let result = loop {
                if heard.len() == TOTAL && program.is_finished() {
                    break Ok(());
                }
                if begun.elapsed() > Duration::from_secs(60) {
                    break Err(format!("{sent} sent, {} heard", heard.len()));
                }
                for packet in world.guest.received(RX) {
                    let packet = Packet::decode(&packet);
                    heard.extend(packet.data);
                    forwarded = packet.fwd_cnt;
                }
                let free = |queue: u16| {
                    let ring = &world.guest.rings[usize::from(queue)];
                    ring.avail_idx().wrapping_sub(ring.used_idx()) < 4
                };
                let (room, tx) = (free(RX), free(TX));
                if room {
                    world.guest.room(RX, 4096);
                }
                if tx {
                    let credit = (32 << 10) - (sent as u32).wrapping_sub(forwarded) as usize;
                    let len = credit.min(2000).min(TOTAL - sent);
                    let packet = Packet {
                        fwd_cnt: heard.len() as u32,
                        ..if len == 0 {
                            A.packet(CREDIT_REQUEST)
                        } else {
                            A.data(&up[sent..sent + len])
                        }
                    };
                    world.guest.send(TX, &[&packet.bytes(), &packet.data]);
                    sent += len;
                }
                thread::yield_now();
            };
            stop.store(true, Ordering::SeqCst);
            let (_socket, got) = program.join().expect("the program");
            assert_eq!(result, Ok(()));
            assert!(got == *up && heard == *down);
        });
    }
}

/// While the guest's connection is made, the other queue is served.
#[derive(Clone)]
struct Meanwhile {
    host: MemoryHost,
    transport: Arc<Mutex<Option<Arc<dyn VirtioTransport>>>>,
}

impl Host for Meanwhile {
    fn attach(&self, waker: Waker) {
        self.host.attach(waker);
    }

    fn connect(&self, port: u32, guest_port: u32, kind: SocketKind, token: Token) -> io::Result<Box<dyn Stream>> {
        if let Some(transport) = self.transport.lock().unwrap().take() {
            thread::scope(|scope| scope.spawn(|| transport.process(QueueIndex(RX))).join()).unwrap();
        }
        Host::connect(&self.host, port, guest_port, kind, token)
    }

    fn accept(&self, token: Token) -> Option<Incoming> {
        Host::accept(&self.host, token)
    }

    fn poll(&self, now: Duration, tell: &mut dyn FnMut(Token, Ready)) {
        self.host.poll(now, tell);
    }

    fn waits(&self, full: bool, wait: &mut dyn FnMut(Wait)) {
        self.host.waits(full, wait);
    }
}

#[test]
fn two_that_come_at_the_same_time_from_both_sides_do_not_exceed_the_bound() {
    for bus in BUSES {
        let host = Meanwhile {
            host: MemoryHost::new(100),
            transport: Arc::default(),
        };
        let options = VsockOptions {
            max_connections: 1,
            ..VsockOptions::default()
        };
        let clock = Arc::new(ManualClock::new(Duration::ZERO));
        let device = Vsock::new(host.clone(), clock, options).unwrap();
        let mut guest = Guest::new(bus, device, F_STREAM);
        host.host.listen(A.host, SocketKind::Stream);
        let other = host.host.connect(22, SocketKind::Stream);
        *host.transport.lock().unwrap() = Some(guest.shared());
        guest.send(TX, &[&A.packet(REQUEST).bytes()]);
        guest.transport().process(QueueIndex(TX));
        assert!(host.transport.lock().unwrap().is_none(), "it was asked");
        assert_eq!(guest.with_device(|device| device.connections()), 1);
        assert!(!other.is_closed(), "it waits");
    }
}
