//! Peers of the host: sockets, pseudo-terminals, pipes.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write, pipe},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::Mutex,
    time::Duration,
};

use devisor::virtio::{
    Wait,
    console::{Console, ConsoleOptions, FdPair, Interest, Peer, Port, Pty, Size, SocketPeer, Unheard},
};
use vm_memory::VolatileSlice;

use crate::{
    machine::{BUSES, Machine},
    support::*,
};

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("devisor-console-{name}-{}", std::process::id()))
}

fn poll(guest: &Guest) {
    crate::poll::poll(guest, Duration::ZERO);
}

#[test]
fn who_connects_to_the_socket_is_at_the_console_and_the_next_one_comes_after() {
    for bus in BUSES {
        let path = path(&format!("socket-{bus:?}"));
        let port = Port::console(SocketPeer::bind(&path, clock()).unwrap());
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        guest.send(TX, &[b"boot\n"]);
        poll(&guest);
        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        poll(&guest);
        let mut text = [0; 5];
        first.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"boot\n");
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        guest.room(RX, 16);
        poll(&guest);
        assert_eq!(guest.received(RX), [b"first"]);
        drop(first);
        guest.room(RX, 16);
        poll(&guest);
        assert_eq!(guest.received(RX), [b"second"]);
        guest.send(TX, &[b"hello"]);
        poll(&guest);
        second.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        drop(guest);
        assert!(!path.exists());
    }
}

#[test]
fn a_socket_that_comes_and_goes_tells_the_guest() {
    for bus in BUSES {
        let path = path(&format!("open-{bus:?}"));
        let (mut guest, ports) = multiport(bus);
        ports
            .plug(1, Port::generic("agent", SocketPeer::bind(&path, clock()).unwrap()))
            .unwrap();
        guest.say(0, DEVICE_READY, 1);
        guest.hear();
        guest.ready(1);
        guest.say(1, PORT_OPEN, 1);
        guest.hear();
        let agent = UnixStream::connect(&path).unwrap();
        poll(&guest);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 1, vec![])]);
        drop(agent);
        guest.room(rx(1), 4);
        poll(&guest);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 0, vec![])]);
        let _agent = UnixStream::connect(&path).unwrap();
        poll(&guest);
        assert_eq!(guest.hear(), [(1, PORT_OPEN, 1, vec![])]);
    }
}

#[test]
fn a_socket_that_nobody_reads_fills_up_and_loses_nothing() {
    for bus in BUSES {
        let path = path(&format!("full-{bus:?}"));
        let port = Port::console(SocketPeer::bind(&path, clock()).unwrap());
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        let mut peer = UnixStream::connect(&path).unwrap();
        let text: Vec<u8> = (0..1 << 20).map(|byte: u32| (byte / 3) as u8).collect();
        let mut got = vec![0; text.len()];
        let (mut sent, mut read) = (0, 0);
        peer.set_nonblocking(true).unwrap();
        while read < text.len() {
            if sent < text.len() && guest.rings[1].avail_idx().wrapping_sub(guest.rings[1].used_idx()) < 8 {
                guest.send(TX, &[&text[sent..sent + 0x8000]]);
                sent += 0x8000;
            }
            poll(&guest);
            if let Ok(len) = peer.read(&mut got[read..(read + 5000).min(text.len())]) {
                read += len;
            }
        }
        assert!(got == text);
    }
}

#[test]
fn who_opens_the_pseudo_terminal_is_at_the_console() {
    for bus in BUSES {
        let pty = Pty::open().unwrap();
        let path = pty.path().to_path_buf();
        let options = ConsoleOptions {
            size: Some(Size { cols: 80, rows: 25 }),
            ..ConsoleOptions::default()
        };
        let console = Console::new(options).unwrap();
        let ports = console.ports();
        ports.plug(0, Port::console(pty)).unwrap();
        let mut guest = Machine::new(bus, console, F_SIZE);
        guest.send(TX, &[b"unheard"]);
        guest.room(RX, 16);
        guest.room(RX, 16);
        poll(&guest);
        assert_eq!(guest.used(TX), 1);

        let open = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut terminal = open();
        poll(&guest);
        let mut text = [0; 7];
        terminal.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"unheard");
        // It is raw: no line, no echo, no signal.
        terminal.write_all(b"\x03ls").unwrap();
        poll(&guest);
        assert_eq!(guest.received(RX), [b"\x03ls"]);

        set_size(&terminal, 132, 43);
        ports.refresh_size(0).unwrap();
        assert_eq!(guest.read_config(0, 4), [132, 0, 43, 0]);

        // It hangs up, and comes again.
        drop(terminal);
        poll(&guest);
        guest.send(TX, &[b"between"]);
        poll(&guest);
        assert_eq!(guest.used(TX), 1);
        let mut terminal = open();
        poll(&guest);
        terminal.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"between");
        terminal.write_all(b"again").unwrap();
        poll(&guest);
        assert_eq!(guest.received(RX), [b"again"]);
    }
}

fn set_size(terminal: &File, cols: u16, rows: u16) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the structure is there for the call.
    assert_eq!(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
}

#[test]
fn a_pair_of_pipes_is_a_console_and_its_input_may_end_before_its_output() {
    for bus in BUSES {
        let (input, mut typed) = pipe().unwrap();
        let (mut printed, output) = pipe().unwrap();
        let pair = FdPair::new(OwnedFd::from(input), OwnedFd::from(output)).unwrap();
        let mut guest = Machine::new(bus, Console::single(Port::console(pair)).unwrap(), 0);
        typed.write_all(b"in").unwrap();
        guest.room(RX, 8);
        guest.room(RX, 8);
        poll(&guest);
        assert_eq!(guest.received(RX), [b"in"]);
        drop(typed);
        poll(&guest);
        guest.send(TX, &[b"out"]);
        poll(&guest);
        let mut text = [0; 3];
        printed.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"out");
        assert_eq!(guest.used(RX), 0);
        drop(printed);
        guest.send(TX, &[b"to nobody"]);
        poll(&guest);
        assert_eq!(guest.used(TX), 2, "a console is not held up");
        assert!(guest.with_device(|console| console.host_failures().count) > 0);
    }
}

#[test]
fn descriptors_block_again_when_the_pair_has_gone() {
    let blocks = |fd: &File| {
        // SAFETY: no memory is involved.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK == 0 }
    };
    let (input, _typed) = pipe().unwrap();
    let (_printed, output) = pipe().unwrap();
    let (input, output) = (File::from(OwnedFd::from(input)), File::from(OwnedFd::from(output)));
    let clone = |file: &File| OwnedFd::from(file.try_clone().unwrap());
    let pair = FdPair::new(clone(&input), clone(&output)).unwrap();
    assert!(!blocks(&input) && !blocks(&output));
    drop(pair);
    assert!(blocks(&input) && blocks(&output));
    // One file for both.
    let (one, _other) = UnixStream::pair().unwrap();
    let one = File::from(OwnedFd::from(one));
    let pair = FdPair::new(clone(&one), clone(&one)).unwrap();
    assert!(!blocks(&one));
    drop(pair);
    assert!(blocks(&one));
}

#[test]
fn output_without_a_listener_waits_at_a_socket_if_the_port_says_so() {
    for bus in BUSES {
        let path = path(&format!("waits-{bus:?}"));
        let port = Port {
            unheard: Unheard::Wait,
            ..Port::console(SocketPeer::bind(&path, clock()).unwrap())
        };
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        guest.send(TX, &[b"patience"]);
        poll(&guest);
        assert_eq!(guest.used(TX), 0);
        let mut peer = UnixStream::connect(&path).unwrap();
        poll(&guest);
        let mut text = [0; 8];
        peer.read_exact(&mut text).unwrap();
        assert_eq!((&text, guest.used(TX)), (b"patience", 1));
    }
}

#[test]
fn what_a_program_has_written_last_arrives_though_output_finds_it_gone() {
    for bus in BUSES {
        let path = path(&format!("last-{bus:?}"));
        let port = Port::generic("agent", SocketPeer::bind(&path, clock()).unwrap());
        let port = Port {
            kind: devisor::virtio::console::PortKind::Console,
            ..port
        };
        let mut guest = Machine::new(bus, Console::single(port).unwrap(), 0);
        let mut first = UnixStream::connect(&path).unwrap();
        poll(&guest);
        first.write_all(b"last words").unwrap();
        drop(first);
        guest.send(TX, &[b"for the next"]);
        poll(&guest);
        assert_eq!(guest.used(TX), 0, "nobody has taken it");
        // In two pieces.
        guest.room(RX, 5);
        poll(&guest);
        guest.room(RX, 16);
        poll(&guest);
        assert_eq!(guest.received(RX).concat(), b"last words");
        guest.room(RX, 16);
        poll(&guest);
        let mut second = UnixStream::connect(&path).unwrap();
        poll(&guest);
        let mut text = [0; 12];
        second.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"for the next");
    }
}

/// The program that has the terminal open goes when it is about to be read, and another one comes when that has found the end.
struct Changing {
    pty: Pty,
    programs: Mutex<(Option<File>, Option<File>)>,
}

fn open(pty: &Pty) -> File {
    OpenOptions::new().read(true).write(true).open(pty.path()).unwrap()
}

impl Peer for Changing {
    fn is_open(&self) -> bool {
        self.pty.is_open()
    }

    fn read(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let (first, second) = &mut *self.programs.lock().unwrap();
        let is_last = first.take().is_some();
        let read = self.pty.read(room);
        if is_last {
            assert_eq!(read.as_ref().ok(), Some(&0));
            second.insert(open(&self.pty)).write_all(b"typed").unwrap();
        }
        read
    }

    fn write(&self, data: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.pty.write(data)
    }

    fn wait(&self, interest: Interest) -> Option<Wait> {
        self.pty.wait(interest)
    }
}

#[test]
fn who_opens_the_terminal_when_the_last_one_has_just_gone_is_heard() {
    for bus in BUSES {
        let pty = Pty::open().unwrap();
        let programs = Mutex::new((Some(open(&pty)), None));
        let console = Console::single(Port::console(Changing { pty, programs })).unwrap();
        let mut guest = Machine::new(bus, console, 0);
        poll(&guest);
        guest.room(RX, 16);
        poll(&guest);
        assert_eq!(guest.received(RX), [b"typed"]);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn who_cannot_be_let_in_for_want_of_descriptors_waits_and_nothing_spins() {
    use crate::descriptors::{Hoard, on_own_table};
    use devisor::virtio::QueueIndex;

    on_own_table(|| {
        let (path, clock) = (path("descriptors"), clock());
        let port = Port::console(SocketPeer::bind(&path, clock.clone()).unwrap());
        let mut guest = Machine::new(BUSES[0], Console::single(port).unwrap(), 0);
        guest.room(RX, 16);
        poll(&guest);
        let mut program = UnixStream::connect(&path).unwrap();
        program.write_all(b"hello").unwrap();
        let hoard = Hoard::all();
        for _ in 0..3 {
            for queue in [RX, TX] {
                guest.transport().process(QueueIndex(queue));
            }
        }
        let later = Duration::from_millis(100);
        assert_eq!(guest.waits(RX), [Wait::Until(later)]);
        let failures = guest.with_device(|console| console.host_failures());
        assert_eq!(failures.count, 1);
        assert_eq!(failures.last.unwrap().raw_os_error(), Some(libc::EMFILE));
        drop(hoard);
        poll(&guest);
        assert_eq!(guest.used(RX), 0, "it is not time");
        clock.advance(later);
        crate::poll::poll(&guest, later);
        assert_eq!(guest.received(RX), [b"hello"]);
    });
}
