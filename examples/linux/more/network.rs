//! What is behind the network devices: a network namespace of the run's own, with a TAP interface, passt, and a server of HTTP.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    sync::{Arc, LazyLock, mpsc},
    thread,
};

use devisor::virtio::net::{StreamSocket, Tap};

use super::{random, xxh64};

/// What there is of it, or why it is not there. It ends with the process.
pub static NETWORK: LazyLock<Network> = LazyLock::new(Network::new);

pub struct Network {
    pub passt: Result<Arc<StreamSocket>, String>,
    pub tap: Result<Arc<Tap>, String>,
}

/// What passt has to lease: the address of the host's interface. Connections to its gateway go to the host's loopback interface.
pub const LEASED: &str = "192.0.2.2/24";
const GATEWAY: &str = "192.0.2.1";
/// The guest gives itself the next one.
const TAP: &str = "10.0.0.1/24";
const PORT: u16 = 8000;

static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| random(0x687474, 64 << 20));

/// Of what is served.
pub fn checksum_of_file() -> String {
    xxh64(&FILE)
}

impl Network {
    fn new() -> Self {
        let (made, network) = mpsc::channel();
        thread::spawn(move || {
            let listener = match enter_namespace() {
                Ok(listener) => listener,
                Err(why) => {
                    let (passt, tap) = (Err(why.clone()), Err(why));
                    let _ = made.send(Self { passt, tap });
                    return;
                }
            };
            let (passt, tap) = (passt(), tap());
            let _ = made.send(Self { passt, tap });
            for client in listener.incoming().flatten() {
                thread::spawn(move || serve(client));
            }
        });
        network.recv().expect("the thread says something before it ends")
    }
}

/// Has this thread alone in a new network namespace, where it listens.
fn enter_namespace() -> Result<TcpListener, String> {
    // SAFETY: no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(format!("a network namespace: {}", io::Error::last_os_error()));
    }
    ip("link set lo up")?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).map_err(|error| format!("port {PORT}: {error}"))
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}

fn tap() -> Result<Arc<Tap>, String> {
    let tap = Tap::open("tap0").map_err(|error| format!("a TAP interface: {error}"))?;
    ip(&format!("addr add {TAP} dev tap0"))?;
    ip("link set tap0 up")?;
    Ok(Arc::new(tap))
}

/// passt leases the address of the interface with the default route, so there has to be one.
fn passt() -> Result<Arc<StreamSocket>, String> {
    ip("link add uplink type veth peer name nowhere")?;
    ip(&format!("addr add {LEASED} dev uplink"))?;
    ip("link set uplink up")?;
    ip("link set nowhere up")?;
    ip(&format!("route add default via {GATEWAY}"))?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| error.to_string())?;
    let mut passt = Command::new("passt");
    // Its end of the socket is its standard input. It goes when the other end does.
    passt.args(["--foreground", "--quiet", "--ipv4-only", "--runas", "0", "--fd", "0"]);
    passt
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    passt.spawn().map_err(|error| format!("passt: {error}"))?;
    let socket = StreamSocket::new(ours).map_err(|error| error.to_string())?;
    Ok(Arc::new(socket))
}

/// Whatever is asked for is the one file that there is.
fn serve(client: TcpStream) -> io::Result<()> {
    let mut request = BufReader::new(&client).lines();
    while request
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let header = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", FILE.len());
    (&client).write_all(header.as_bytes())?;
    (&client).write_all(&FILE)
}
