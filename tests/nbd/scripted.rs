//! Servers that lie: each costs its connection, and never more.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use devisor::virtio::block::{Buffers, NbdError, NbdOptions, NbdStorage, Operation, Outcome};

use crate::channel::{Driver, clock, hasty, pattern};

const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
const SIZE: u64 = 1 << 20;

/// A request, as a server reads it.
struct Request {
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

fn numbers(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn take(socket: &mut UnixStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut reply = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    reply.extend(option.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend((data.len() as u32).to_be_bytes());
    reply.extend(data);
    reply
}

/// Agrees to everything that a good server agrees to.
fn greet(socket: &mut UnixStream) -> io::Result<()> {
    socket.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    take(socket, 4)?;
    loop {
        let head = take(socket, 16)?;
        let (option, len) = (numbers(&head[8..12]) as u32, numbers(&head[12..]) as usize);
        take(socket, len)?;
        if option == 7 {
            let export = [&[0, 0][..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()].concat();
            socket.write_all(&option_reply(7, 3, &export))?;
            return socket.write_all(&option_reply(7, 1, &[]));
        }
        socket.write_all(&option_reply(option, 1, &[]))?;
    }
}

fn request(socket: &mut UnixStream) -> io::Result<Request> {
    let head = take(socket, 28)?;
    let (kind, len) = (numbers(&head[6..8]) as u16, numbers(&head[24..]) as u32);
    if kind == 1 {
        take(socket, len as usize)?;
    }
    Ok(Request {
        kind,
        cookie: numbers(&head[8..16]),
        offset: numbers(&head[16..24]),
        len,
    })
}

fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    let head = [0x6744_6698_u32.to_be_bytes(), error.to_be_bytes()].concat();
    [head, cookie.to_be_bytes().to_vec()].concat()
}

fn data(flags: u16, cookie: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    chunk(flags, 1, cookie, &[&offset.to_be_bytes()[..], bytes].concat())
}

/// A good server: reads are sevens.
fn serve(socket: &mut UnixStream) -> io::Result<()> {
    loop {
        let Request {
            kind,
            cookie,
            offset,
            len,
        } = request(socket)?;
        match kind {
            0 => socket.write_all(&data(1, cookie, offset, &vec![7; len as usize]))?,
            2 => return Ok(()),
            _ => socket.write_all(&simple(0, cookie))?,
        }
    }
}

type Script = dyn Fn(usize, &mut UnixStream) -> io::Result<()> + Send + Sync;

/// A storage whose servers do as the script says: it is given the number of the connection.
fn scripted(options: NbdOptions, script: Arc<Script>) -> Result<NbdStorage, NbdError> {
    let connections = Arc::new(AtomicUsize::new(0));
    let connect = move || {
        let (ours, mut theirs) = UnixStream::pair()?;
        let number = connections.fetch_add(1, SeqCst);
        let script = Arc::clone(&script);
        thread::spawn(move || _ = script(number, &mut theirs));
        Ok(ours.into())
    };
    NbdStorage::with_sockets(connect, "", options, clock())
}

/// What the first connection answers to the first request; all others are good.
fn lying(lie: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> NbdStorage {
    let script: Arc<Script> = Arc::new(move |number, socket| {
        greet(socket)?;
        if number == 0 {
            let first = request(socket)?;
            socket.write_all(&lie(&first))?;
            // Until the client has enough.
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest)?;
            return Ok(());
        }
        serve(socket)
    });
    scripted(hasty(), script).expect("it greets well")
}

type Lie = Box<dyn Fn(&Request) -> Vec<u8> + Send + Sync>;

#[test]
fn a_lie_costs_the_connection_and_the_request_is_asked_again() {
    let lies: Vec<(&str, Lie)> = vec![
        ("no reply at all", Box::new(|_| vec![0xff; 64])),
        (
            "another's cookie",
            Box::new(|r| data(1, r.cookie ^ 1, r.offset, &[1; 512])),
        ),
        (
            "an old cookie",
            Box::new(|r| data(1, r.cookie - (1 << 32), r.offset, &[1; 512])),
        ),
        (
            "a cookie beyond",
            Box::new(|r| data(1, r.cookie | 0xffff_ffff, r.offset, &[1; 512])),
        ),
        ("twice", Box::new(|r| data(1, r.cookie, r.offset, &[7; 4096]).repeat(2))),
        ("too little", Box::new(|r| data(1, r.cookie, r.offset, &[1; 4095]))),
        ("too much", Box::new(|r| data(1, r.cookie, r.offset, &[1; 4097]))),
        ("before", Box::new(|r| data(1, r.cookie, r.offset - 1, &[1; 4096]))),
        (
            "overlapping",
            Box::new(|r| {
                [
                    data(0, r.cookie, r.offset, &[1; 600]),
                    data(1, r.cookie, r.offset + 512, &[1; 3584]),
                ]
                .concat()
            }),
        ),
        (
            "a hole outside",
            Box::new(|r| {
                chunk(
                    1,
                    2,
                    r.cookie,
                    &[&(r.offset + 1).to_be_bytes()[..], &4096_u32.to_be_bytes()].concat(),
                )
            }),
        ),
        (
            "an endless hole",
            Box::new(|r| {
                chunk(
                    1,
                    2,
                    r.cookie,
                    &[&r.offset.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat(),
                )
            }),
        ),
        ("an unknown chunk", Box::new(|r| chunk(1, 77, r.cookie, &[]))),
        ("nothing that is not the end", Box::new(|r| chunk(0, 0, r.cookie, &[]))),
        (
            "a huge length",
            Box::new(|r| {
                [
                    &chunk(1, 1, r.cookie, &[])[..16],
                    &u32::MAX.to_be_bytes(),
                    &r.offset.to_be_bytes(),
                ]
                .concat()
            }),
        ),
        (
            "an error that is none",
            Box::new(|r| chunk(1, 0x8001, r.cookie, &[0; 6])),
        ),
        (
            "a message beyond its chunk",
            Box::new(|r| chunk(1, 0x8001, r.cookie, &[0, 0, 0, 5, 0xff, 0xff])),
        ),
        (
            "errors without an end",
            Box::new(|r| chunk(0, 0x8001, r.cookie, &[0, 0, 0, 5, 0, 0]).repeat(1000)),
        ),
        (
            "not structured",
            Box::new(|r| [simple(0, r.cookie), vec![1; 4096]].concat()),
        ),
        ("good by", Box::new(|r| simple(108, r.cookie))),
        (
            "cut in the head",
            Box::new(|r| data(1, r.cookie, r.offset, &[1; 4096])[..10].to_vec()),
        ),
        (
            "cut in the data",
            Box::new(|r| data(1, r.cookie, r.offset, &[1; 4096])[..2000].to_vec()),
        ),
    ];
    let mut options = hasty();
    options.request_timeout = Duration::from_millis(300);
    for (name, lie) in lies {
        let script: Arc<Script> = Arc::new(move |number, socket| {
            greet(socket)?;
            if number != 0 {
                return serve(socket);
            }
            let first = request(socket)?;
            socket.write_all(&lie(&first))?;
            // Until the client has had enough.
            let _ = socket.read_to_end(&mut Vec::new());
            Ok(())
        });
        let storage = scripted(options.clone(), script).expect("it greets well");
        let mut driver = Driver::open(&storage, &clock());
        // A frame around what is read: nothing is written outside.
        let frame = Buffers::zeroed(4096 + 2048, 512);
        frame.fill(0x5a);
        driver.submit(Operation::Read { offset: 65536 }, frame.part(1024, 4096));
        let ended = driver.next();
        assert!(
            matches!(ended.outcome, Outcome::Done(Ok(4096))),
            "{name}: {:?}",
            ended.outcome
        );
        // One that is told twice is found with the next.
        assert_eq!(driver.read(0, 512).unwrap(), [7; 512]);
        let mut bytes = vec![0; 6144];
        frame.read(0, &mut bytes);
        assert!(
            bytes[..1024].iter().chain(&bytes[5120..]).all(|&byte| byte == 0x5a),
            "{name}: outside of the buffers"
        );
        assert!(bytes[1024..5120].iter().all(|&byte| byte == 7), "{name}");
        assert_eq!(storage.status().lost, 1, "{name}: {:?}", storage.host_failures());
    }
}

#[test]
fn pieces_and_holes_may_come_in_any_order_and_errors_with_words() {
    let storage = lying(|r| {
        let at = |at: u64| r.offset + at;
        let hole = [&at(1024).to_be_bytes()[..], &512_u32.to_be_bytes()].concat();
        [
            data(0, r.cookie, at(1536), &[3; 2560]),
            chunk(0, 2, r.cookie, &hole),
            data(0, r.cookie, at(0), &[1; 1024]),
            chunk(1, 0, r.cookie, &[]),
        ]
        .concat()
    });
    let mut driver = Driver::open(&storage, &clock());
    let bytes = driver.read(0, 4096).unwrap();
    assert!(bytes == [vec![1; 1024], vec![0; 512], vec![3; 2560]].concat());
    assert_eq!(storage.status().lost, 0);

    let storage = lying(|r| {
        let words = b"the disk is \x1b[31mon fire";
        let error = [&28_u32.to_be_bytes()[..], &(words.len() as u16).to_be_bytes(), words].concat();
        [
            data(0, r.cookie, r.offset, &[1; 512]),
            chunk(1, 0x8001, r.cookie, &error),
        ]
        .concat()
    });
    let mut driver = Driver::open(&storage, &clock());
    let error = driver.read(0, 4096).expect_err("it fails");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(
        error.to_string().contains("on fire") && !error.to_string().contains('\x1b'),
        "{error}"
    );
    assert_eq!(storage.status().lost, 0);
}

#[test]
fn handshakes_that_lie_are_refused_in_time() {
    let endless = |option: u32, kind: u32| {
        move |socket: &mut UnixStream| {
            socket.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
            loop {
                socket.write_all(&option_reply(option, kind, &[0; 12]))?;
            }
        }
    };
    type Greeting = Box<dyn Fn(&mut UnixStream) -> io::Result<()> + Send + Sync>;
    let greetings: Vec<(&str, Greeting)> = vec![
        (
            "not NBD",
            Box::new(|s| s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        ),
        (
            "old style",
            Box::new(|s| s.write_all(b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\0\0\0\0\0\0\0\0")),
        ),
        ("not fixed", Box::new(|s| s.write_all(b"NBDMAGICIHAVEOPT\0\x02"))),
        ("hangs up", Box::new(|s| s.write_all(b"NBDMAGIC"))),
        ("silent", Box::new(|s| s.read_to_end(&mut Vec::new()).map(|_| ()))),
        ("other options", Box::new(endless(99, 1))),
        ("endless", Box::new(endless(7, 3))),
        (
            "long",
            Box::new(|s| {
                s.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
                let reply = option_reply(8, 1, &[]);
                s.write_all(&[&reply[..16], &u32::MAX.to_be_bytes()].concat())
            }),
        ),
        (
            "no size",
            Box::new(|s| {
                s.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
                s.write_all(&[option_reply(8, 1, &[]), option_reply(7, 1, &[])].concat())
            }),
        ),
        (
            "blocks of no size",
            Box::new(|s| {
                s.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
                let export = [&[0, 0][..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()].concat();
                let blocks = [
                    &[0, 3][..],
                    &3_u32.to_be_bytes(),
                    &3_u32.to_be_bytes(),
                    &1_u32.to_be_bytes(),
                ]
                .concat();
                s.write_all(
                    &[
                        option_reply(8, 1, &[]),
                        option_reply(7, 3, &export),
                        option_reply(7, 3, &blocks),
                        option_reply(7, 1, &[]),
                    ]
                    .concat(),
                )
            }),
        ),
        (
            "talks too early",
            Box::new(|s| {
                greet(s)?;
                s.write_all(&simple(0, 0))
            }),
        ),
        (
            "demands TLS",
            Box::new(|s| {
                s.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
                s.write_all(&option_reply(8, 1 << 31 | 5, &[]))
            }),
        ),
    ];
    let mut options = hasty();
    options.connect_timeout = Duration::from_millis(300);
    for (name, greeting) in greetings {
        let greeting = Arc::new(greeting);
        let script: Arc<Script> = Arc::new(move |_, socket| {
            let _ = greeting(socket);
            // What is early comes with the rest.
            let _ = socket.read_to_end(&mut Vec::new());
            Ok(())
        });
        match scripted(options.clone(), script) {
            Err(error) => assert!(!error.to_string().is_empty(), "{name}"),
            // It may come a moment later, and then costs the connection.
            Ok(_) => assert_eq!(name, "talks too early"),
        }
    }
}

#[test]
fn a_server_that_never_gets_it_right_keeps_a_request_no_longer_than_is_allowed() {
    let mut options = hasty();
    options.give_up = Some(Duration::from_millis(400));
    let script: Arc<Script> = Arc::new(|_, socket| {
        greet(socket)?;
        let first = request(socket)?;
        socket.write_all(&data(1, first.cookie ^ 1, first.offset, &[1; 512]))
    });
    let storage = scripted(options, script).unwrap();
    let mut driver = Driver::open(&storage, &clock());
    let error = driver.read(0, 512).expect_err("it is given up");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let status = storage.status();
    assert!((2..200).contains(&status.lost), "{status:?}");
}

#[test]
fn a_read_that_is_canceled_leaves_its_memory_alone_and_the_connection_goes_on() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let script: Arc<Script> = Arc::new(move |_, socket| {
        greet(socket)?;
        let first = request(socket)?;
        let reply = data(1, first.cookie, first.offset, &[1; 4096]);
        socket.write_all(&reply[..1000])?;
        let _ = wait.lock().unwrap().recv();
        socket.write_all(&reply[1000..])?;
        serve(socket)
    });
    let storage = scripted(hasty(), script).unwrap();
    let mut driver = Driver::open(&storage, &clock());
    driver.submit(Operation::Read { offset: 0 }, Buffers::zeroed(4096, 512));
    driver.round();
    thread::sleep(Duration::from_millis(50));
    driver.round();
    driver.cancel();
    let ended = driver.next();
    assert!(matches!(ended.outcome, Outcome::Canceled));
    ended.buffers.fill(0xaa);
    go.send(()).unwrap();
    assert_eq!(driver.read(8192, 512).unwrap(), [7; 512]);
    let mut bytes = vec![0; 4096];
    ended.buffers.read(0, &mut bytes);
    assert!(bytes.iter().all(|&byte| byte == 0xaa));
    assert_eq!(storage.status().lost, 0);
}

#[test]
fn a_write_that_was_sent_is_not_canceled_but_ends_with_the_connection() {
    let script: Arc<Script> = Arc::new(|number, socket| {
        greet(socket)?;
        if number != 0 {
            return serve(socket);
        }
        let first = request(socket)?;
        thread::sleep(Duration::from_millis(100));
        socket.write_all(&simple(0, first.cookie))?;
        // The next is not answered.
        request(socket)?;
        thread::sleep(Duration::from_millis(100));
        Ok(())
    });
    let storage = scripted(hasty(), script).unwrap();
    let mut driver = Driver::open(&storage, &clock());
    let write = |driver: &mut Driver| {
        driver.submit(
            Operation::Write { offset: 0, fua: false },
            Buffers::from(&pattern(1, 4096)[..]),
        );
        driver.round();
        driver.cancel();
        driver.next().outcome
    };
    assert!(matches!(write(&mut driver), Outcome::Done(Ok(4096))));
    assert!(matches!(write(&mut driver), Outcome::Canceled));
    assert_eq!(driver.read(0, 512).unwrap(), [7; 512]);
}

#[test]
fn a_channel_that_is_dropped_leaves_nothing_behind_for_those_that_share_its_connection() {
    let script: Arc<Script> = Arc::new(|_, socket| {
        greet(socket)?;
        serve(socket)
    });
    let storage = scripted(hasty(), script).unwrap();
    let clock = clock();
    let mut stays = Driver::open(&storage, &clock);
    for round in 0..20 {
        let mut goes = Driver::open(&storage, &clock);
        let buffers: Vec<_> = (0..8).map(|_| Buffers::zeroed(65536, 512)).collect();
        for (index, buffers) in buffers.iter().enumerate() {
            let offset = index as u64 * 65536;
            match index % 2 {
                0 => goes.submit(Operation::Read { offset }, buffers.part(0, 65536)),
                _ => goes.submit(Operation::Write { offset, fua: false }, buffers.part(0, 65536)),
            };
        }
        if round % 3 != 0 {
            goes.round();
        }
        drop(goes);
        buffers.iter().for_each(|buffers| buffers.fill(0xaa));
        assert_eq!(stays.read(0, 65536).unwrap(), vec![7; 65536]);
        for buffers in &buffers {
            let mut bytes = vec![0; 65536];
            buffers.read(0, &mut bytes);
            assert!(bytes.iter().all(|&byte| byte == 0xaa));
        }
    }
    assert_eq!((storage.status().lost, storage.status().established), (0, 1));
}
