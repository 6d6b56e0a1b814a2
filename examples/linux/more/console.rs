//! The console: somebody logs in at its first port, a pseudo-terminal, and has 64 KiB echoed by its second, a Unix socket.

use std::{
    error::Error,
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    sync::Arc,
    thread,
};

use devisor::virtio::{
    VirtioTransport,
    console::{Console, ConsoleOptions, Port, Pty, SocketPeer},
};

use super::{Around, More, Task, folder::Folder, random};
use crate::verdict::{Check, line};

const ECHOED: usize = 64 << 10;

pub fn plug(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let pty = Pty::open()?;
    let mut terminal = File::options();
    let terminal = terminal.read(true).write(true).custom_flags(libc::O_NOCTTY);
    let terminal = Arc::new(terminal.open(pty.path())?);
    let folder = Folder::new("console")?;
    let path = folder.join("echo");
    let socket = SocketPeer::bind(&path, Arc::new(around.events.clone()))?;
    let other_end = Arc::new(UnixStream::connect(&path)?);

    let console = Console::new(ConsoleOptions {
        max_ports: Some(2),
        ..ConsoleOptions::default()
    })?;
    console.ports().plug(0, Port::console(pty))?;
    console.ports().plug(1, Port::generic("echo", socket))?;
    let console = around.plug(console)?;
    let device = console.transport();

    let (shell, echo) = (Arc::new(Task::default()), Arc::new(Task::default()));
    let (begun, echo_begun) = (Arc::clone(&shell), Arc::clone(&echo));
    let hear = move |line: &str| {
        if line == "log in" {
            let terminal = Arc::clone(&terminal);
            begun.begin(move || ask(&terminal));
        } else if line.starts_with("echo at ") {
            let other_end = Arc::clone(&other_end);
            echo_begun.begin(move || have_echoed(&other_end));
        }
        Ok(())
    };
    let logs_in = move |console: &str| -> Check {
        let _until_the_end = &folder;
        line(console, "has logged out")?;
        let answer = shell.result()?;
        let right = answer == "the answer is 42 at /dev/hvc0";
        right.then(|| answer.clone()).ok_or(answer)
    };
    let echoes = move |at: &str| -> Check {
        line(at, "echo has ended")?;
        let port = line(at, "echo at ")?;
        let came_back = echo.result()?;
        let failures = console.with(|console| console.host_failures().count);
        let how = format!("{ECHOED} bytes went to {port} and back, {failures} failures of the host");
        (came_back && failures == 0).then(|| how.clone()).ok_or(how)
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![
            ("a login shell on hvc0 does what is typed", Box::new(logs_in)),
            ("the second port echoes", Box::new(echoes)),
        ],
    };
    Ok((device, more))
}

/// Types a command once there is a prompt, and leaves. Returns the answer.
fn ask(terminal: &File) -> io::Result<String> {
    // The command comes back as it is typed, and has no number there.
    const ANSWER: &str = "the answer is ";
    let (mut keyboard, mut screen) = (terminal, terminal);
    let mut heard = String::new();
    let mut hear_until = |end: &str| -> io::Result<String> {
        let mut bytes = [0; 256];
        loop {
            if let Some(at) = heard.find(end) {
                return Ok(heard.drain(..at + end.len()).collect());
            }
            match screen.read(&mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                len => heard += &String::from_utf8_lossy(&bytes[..len]),
            }
        }
    };
    hear_until("# ")?;
    keyboard.write_all(format!("echo {ANSWER}$((6 * 7)) at $(tty)\n").as_bytes())?;
    hear_until(&format!("{ANSWER}4"))?;
    let rest = hear_until("\r\n")?;
    keyboard.write_all(b"exit\n")?;
    Ok(format!("{ANSWER}4{}", rest.trim_end()))
}

/// Whether all that is sent comes back.
fn have_echoed(other_end: &UnixStream) -> io::Result<bool> {
    let sent = random(0xec0, ECHOED);
    let mut received = vec![0; sent.len()];
    let (mut to, mut from) = (other_end, other_end);
    thread::scope(|scope| {
        let sender = scope.spawn(|| to.write_all(&sent));
        from.read_exact(&mut received)?;
        sender.join().expect("it does not panic")
    })?;
    other_end.shutdown(Shutdown::Both)?;
    Ok(sent == received)
}
