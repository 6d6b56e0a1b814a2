//! A file system device that a daemon serves, virtiofsd: a tree goes into the guest and comes back, and a file is written here and there.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use devisor::{
    time::HostClock,
    virtio::{
        DeviceId, VirtioTransport,
        remote::{ConfigSpace, Remote, RemoteOptions, SocketPath},
    },
};

use super::{Around, More, folder::Folder, random, xxh64};
use crate::verdict::line;

/// Lengths of files of the tree.
const LENGTHS: [usize; 6] = [0, 1, 4095, 4096, 70_000, 300_000];

/// Where it may be: that of QEMU before 8.0, which takes other arguments, comes last.
fn program() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut all = env::split_paths(&path)
        .chain(["/usr/libexec".into(), "/usr/lib/qemu".into()])
        .map(|folder| folder.join("virtiofsd"));
    all.find(|program| program.is_file())
}

pub fn is_virtiofsd_here() -> Result<(), String> {
    match program() {
        Some(_) => Ok(()),
        None => Err("no virtiofsd here (Debian package qemu-system-common, or virtiofsd)".into()),
    }
}

/// It ends with this.
struct Daemon(Child);

impl Daemon {
    fn start(shared: &Path, socket: &Path) -> io::Result<Self> {
        let program = program().ok_or(io::ErrorKind::NotFound)?;
        let mut command = Command::new(&program);
        command.arg(format!("--socket-path={}", socket.display()));
        match program.starts_with("/usr/lib/qemu") {
            true => command
                .arg("-o")
                .arg(format!("source={},sandbox=chroot", shared.display())),
            false => command.arg("--sandbox=none").arg("--shared-dir").arg(shared),
        };
        let daemon = Self(command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
        for _ in 0..1000 {
            if socket.exists() {
                return Ok(daemon);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "virtiofsd does not listen"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn plug(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let folder = Folder::new("files")?;
    let shared = folder.join("shared");
    for (seed, len) in (1..).zip(LENGTHS) {
        let below = shared.join("tree").join(["", "a", "a/b"][seed as usize % 3]);
        fs::create_dir_all(&below)?;
        fs::write(below.join(format!("file-{seed}")), random(seed, len))?;
    }
    let socket = folder.join("socket");
    let daemon = Daemon::start(&shared, &socket)?;

    let mut options = RemoteOptions::new(DeviceId(26));
    // The tag, and one queue for requests (virtio 1.2, section 5.11.4).
    let mut config = b"shared".to_vec();
    config.resize(36, 0);
    config.extend(1_u32.to_le_bytes());
    options.config = ConfigSpace::Own(config);
    options.patience = Duration::from_secs(10);
    let device = Remote::new(SocketPath(socket), Arc::clone(around.memory), options)?;
    let device = device.with_clock(HostClock::starting_at(Duration::ZERO));
    let device = around.plug(device)?;
    let transport = device.transport();

    let tree = shared.clone();
    let copied = move |_: &str| {
        let (there, back) = (files(&tree.join("tree"))?, files(&tree.join("copy"))?);
        match there == back && there.len() == LENGTHS.len() {
            true => Ok(format!("{} files are as they were", there.len())),
            false => Err(format!(
                "{} files went there, {} came back, or others",
                there.len(),
                back.len()
            )),
        }
    };
    let written = move |console: &str| {
        let _until_the_end = &daemon;
        let failures = device.with(|device| device.host_failures().count);
        let bytes = fs::read(folder.join("shared/file")).map_err(|error| error.to_string())?;
        let whole = bytes.len() / 32 * 32;
        let said = line(console, "files differ ")?;
        // The sum that we know is of whole blocks.
        let agrees = whole != bytes.len() || said.ends_with(&xxh64(&bytes));
        match failures == 0 && said.starts_with("0 times") && agrees {
            true => Ok(format!("{said}, {} bytes", bytes.len())),
            false => Err(format!("files differ {said}; {failures} failures of the host")),
        }
    };
    let more = More {
        hear: Box::new(|_| Ok(())),
        checks: vec![
            ("a tree goes to the guest and back", Box::new(copied)),
            ("a file is written and cut here and there", Box::new(written)),
        ],
    };
    Ok((transport, more))
}

/// All files below a folder, with what is in them.
fn files(root: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    let fail = |error: io::Error| format!("{}: {error}", root.display());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root).map_err(|error| error.to_string())?;
            files.push((name.to_path_buf(), fs::read(&path).map_err(fail)?));
        }
    }
    files.sort();
    Ok(files)
}
