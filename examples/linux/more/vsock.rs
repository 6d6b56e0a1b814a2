//! The socket device: socat in the guest calls the host, and is called by it. Each side sends 1 MiB, says that this was all, and
//! hears the other out.

use std::{
    error::Error,
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use devisor::virtio::{
    VirtioTransport,
    vsock::{UnixHost, Vsock, VsockOptions},
};

use super::{Around, More, Task, folder::Folder, random, xxh64};
use crate::verdict::{Check, line};

const PAYLOAD: usize = 1 << 20;

pub fn plug(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let folder = Folder::new("vsock")?;
    let path = folder.join("vsock");
    let options = VsockOptions {
        // An emulated guest may take its time.
        connect_timeout: Duration::from_secs(60),
        ..VsockOptions::default()
    };
    let host = UnixHost::bind(&path)?;
    let vsock = Vsock::new(host, Arc::new(around.events.clone()), options)?;
    let listening_at = folder.join("vsock_1024");
    let listener = UnixListener::bind(&listening_at)?;
    let vsock = around.plug(vsock)?;
    let device = vsock.transport();

    let (called, calls) = (Arc::new(Task::default()), Arc::new(Task::default()));
    let (called_begun, calls_begun) = (Arc::clone(&called), Arc::clone(&calls));
    let listener = Arc::new(listener);
    let hear = move |line: &str| {
        if line == "vsock calls" {
            let (listener, listening_at) = (Arc::clone(&listener), listening_at.clone());
            called_begun.begin(move || {
                let (stream, _) = listener.accept()?;
                fs::remove_file(listening_at)?;
                converse(&stream)
            });
        } else if line == "vsock listens" {
            let path = path.clone();
            calls_begun.begin(move || converse(&call(&path)?));
        }
        Ok(())
    };
    let guest_calls = move |console: &str| {
        let _until_the_end = &folder;
        compare(line(console, "vsock called, ")?, called.result()?)
    };
    let host_calls = move |console: &str| {
        let failures = vsock.with(|vsock| vsock.host_failures().count);
        match failures {
            0 => compare(line(console, "vsock was called, ")?, calls.result()?),
            _ => Err(format!("{failures} failures of the host")),
        }
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![
            ("socat in the guest calls the host", Box::new(guest_calls)),
            ("the host calls socat in the guest", Box::new(host_calls)),
        ],
    };
    Ok((device, more))
}

/// A connection to the guest's port 1024, by the protocol of [`UnixHost`]; until somebody listens there it is refused.
fn call(path: &Path) -> io::Result<UnixStream> {
    for _ in 0..600 {
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(b"CONNECT 1024\n")?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            answer.extend(byte);
        }
        if answer.starts_with(b"OK ") {
            return Ok(stream);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// Sends all there is to say, says that it was all, and hears the other out. Returns the checksums of both.
fn converse(stream: &UnixStream) -> io::Result<[String; 2]> {
    let said = random(0x50c4, PAYLOAD);
    let mut heard = Vec::new();
    let (mut to, mut from) = (stream, stream);
    thread::scope(|scope| {
        let speaker = scope.spawn(|| {
            to.write_all(&said)?;
            to.shutdown(Shutdown::Write)
        });
        from.read_to_end(&mut heard)?;
        speaker.join().expect("it does not panic")
    })?;
    match heard.len() {
        PAYLOAD => Ok([xxh64(&said), xxh64(&heard)]),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What the guest has said is what we have heard, and the other way round.
fn compare(guest: &str, [said, heard]: [String; 2]) -> Check {
    let ours = format!("said {heard} and heard {said}");
    match guest == ours {
        true => Ok(format!("it {guest}, {PAYLOAD} bytes each, as by us")),
        false => Err(format!("it {guest}, and by us it {ours}")),
    }
}
