//! The root disk: where it is, and how its requests run.
//!
//! An embedder needs one of these ways: `Block::new` over what answers at once, or `Block::with_async` over what answers later.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use devisor::{
    event_loop::EventLoop,
    virtio::{
        VirtioDevice,
        block::{AsyncStorage, Block, BlockOptions, FileStorage, Pool, Storage},
    },
};

use crate::{
    completion::{Completion, Gate, completed},
    noted::Noted,
    verdict::Check,
};

/// Where the data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a file, byte for byte.
    File(PathBuf),
    /// In an image.
    Qcow2(PathBuf),
    /// With the NBD server that this URI names.
    Nbd(String),
}

/// How its requests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// Each is done in the round that finds it.
    Sync,
    /// By threads of ours.
    Threads,
    /// By the kernel.
    IoUring,
}

impl Runs {
    pub const NAMES: [(&str, Self); 3] = [
        ("sync", Self::Sync),
        ("threads", Self::Threads),
        ("io_uring", Self::IoUring),
    ];
}

/// As many requests are under way at a time, where threads run them.
const THREADS: usize = 4;

impl Source {
    /// `qcow2:FILE`, `nbd:URI`, a URI of NBD's by itself, or a file.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(file) = text.strip_prefix("qcow2:") {
            return match cfg!(feature = "images") {
                true => Ok(Self::Qcow2(file.into())),
                false => Err(needs("images")),
            };
        }
        let uri = text.strip_prefix("nbd:").filter(|rest| !rest.starts_with("//"));
        let is_uri = |text: &&str| {
            text.split_once("://")
                .is_some_and(|(scheme, _)| scheme.starts_with("nbd"))
        };
        match uri.or(Some(text).filter(is_uri)) {
            Some(uri) => nbd::check(uri).map(|()| Self::Nbd(uri.into())),
            None => Ok(Self::File(text.into())),
        }
    }

    /// The file that has to be there.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) | Self::Qcow2(path) => Some(path),
            Self::Nbd(_) => None,
        }
    }

    /// Whether it can be run so; if not, why.
    pub fn runs(&self, runs: Option<Runs>) -> Result<(), &'static str> {
        match (self, runs) {
            (Self::Nbd(_), Some(_)) => {
                Err("--async is for disks in files: requests to an NBD server are always under way")
            }
            (Self::Qcow2(_), Some(Runs::IoUring)) => {
                Err("--async io_uring is for a disk that is a plain file: a qcow2 image can have sync or threads")
            }
            (Self::File(_), Some(Runs::IoUring)) if !cfg!(all(target_os = "linux", feature = "io-uring")) => {
                Err("--async io_uring takes Linux and --features io-uring")
            }
            _ => Ok(()),
        }
    }

    /// What the guest may write to: a copy of the file, FILE.run; an overlay over the image, FILE.run; or what the server has.
    pub fn for_a_run(&self) -> Result<Self, Box<dyn Error>> {
        let run = |path: &Path| {
            let mut name = path.to_owned().into_os_string();
            name.push(".run");
            PathBuf::from(name)
        };
        Ok(match self {
            Self::File(path) => {
                fs::copy(path, run(path))?;
                Self::File(run(path))
            }
            Self::Qcow2(path) => {
                qcow2::overlay(&run(path), path)?;
                Self::Qcow2(run(path))
            }
            Self::Nbd(_) => self.clone(),
        })
    }

    fn storage(&self) -> Result<Arc<dyn Storage>, Box<dyn Error>> {
        match self {
            Self::File(path) => Ok(Arc::new(FileStorage::open(path)?)),
            Self::Qcow2(path) => qcow2::storage(path),
            Self::Nbd(_) => Err("an NBD server does not answer at once".into()),
        }
    }

    /// The disk, to be run by `events`. `was_read` is set when something of it has been read. If it is run at once, its requests end as
    /// `completion` says, by a thread that runs `completing`, while nobody holds `gate`.
    pub fn device(
        &self,
        options: BlockOptions,
        runs: Runs,
        events: &EventLoop,
        was_read: &Arc<AtomicBool>,
        (completion, completing, gate): (Completion, &EventLoop, Gate),
    ) -> Result<Box<dyn VirtioDevice>, Box<dyn Error>> {
        let later: Box<dyn AsyncStorage> = match (self, runs) {
            (Self::Nbd(uri), _) => nbd::storage(uri, events)?,
            (Self::File(path), Runs::IoUring) => uring::storage(path)?,
            (_, Runs::Threads) => {
                let pool = Pool::new();
                for _ in 0..THREADS {
                    let pool = pool.clone();
                    // They end with the process.
                    thread::Builder::new()
                        .name("storage".into())
                        .spawn(move || pool.run())?;
                }
                Box::new(pool.storage(self.storage()?))
            }
            _ => {
                let storage = Arc::new(Noted::new(self.storage()?, Arc::clone(was_read)));
                let block = Block::new(Arc::clone(&storage), options)?;
                return Ok(completed(block, storage, completion, completing, gate));
            }
        };
        let noted = Noted::new(later, Arc::clone(was_read));
        Ok(Box::new(Block::with_async(noted, options)?))
    }

    /// When the guest is off: what QEMU's tool finds in it, and the data byte for byte, in a file.
    pub fn after_a_run(&self) -> (PathBuf, Option<Check>) {
        let name = match self {
            Self::File(path) => return (path.clone(), None),
            Self::Qcow2(path) => path.display().to_string(),
            Self::Nbd(uri) => uri.clone(),
        };
        let (format, found) = match self {
            Self::Qcow2(_) => ("qcow2", "qemu-img finds no error in, and reads,"),
            _ => ("raw", "qemu-img reads"),
        };
        let file = std::env::temp_dir().join(format!("devisor-linux-{}.raw", std::process::id()));
        let check = match self {
            Self::Qcow2(_) => qemu_img(&["check", "-q", "-f", "qcow2", &name]),
            _ => Ok(()),
        };
        let to = file.display().to_string();
        let check = check.and_then(|()| qemu_img(&["convert", "-f", format, "-O", "raw", &name, &to]));
        (file, Some(check.map(|()| format!("{found} {name}"))))
    }
}

fn qemu_img(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("qemu-img").args(arguments).output();
    let output = output.map_err(|error| format!("qemu-img: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "qemu-img {arguments:?}: {}",
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim()
        )),
    }
}

fn needs(feature: &str) -> String {
    format!("--disk: this is built without --features {feature}")
}

#[cfg(all(target_os = "linux", feature = "io-uring"))]
mod uring {
    use super::*;
    use devisor::virtio::block::{UringOptions, UringStorage};

    pub fn storage(path: &Path) -> Result<Box<dyn AsyncStorage>, Box<dyn Error>> {
        let file = FileStorage::open(path)?;
        Ok(Box::new(UringStorage::new(file, UringOptions::default())?))
    }
}

#[cfg(not(all(target_os = "linux", feature = "io-uring")))]
mod uring {
    use super::*;

    pub fn storage(_: &Path) -> Result<Box<dyn AsyncStorage>, Box<dyn Error>> {
        Err(needs("io-uring").into())
    }
}

#[cfg(all(unix, feature = "images"))]
mod qcow2 {
    use super::*;
    use devisor::virtio::block::{ImageFormat, ImageOptions, ImageStorage};

    pub fn storage(path: &Path) -> Result<Arc<dyn Storage>, Box<dyn Error>> {
        let image = ImageStorage::open(path, ImageFormat::Qcow2, ImageOptions::default())?;
        Ok(Arc::new(image))
    }

    /// A new image beside `base`, for what will differ from it.
    pub fn overlay(path: &Path, base: &Path) -> Result<(), Box<dyn Error>> {
        let size = storage(base)?.capacity()?;
        let name = Path::new(base.file_name().ok_or("the image has no name")?);
        let _ = fs::remove_file(path);
        Ok(ImageStorage::create(path, size, Some((name, ImageFormat::Qcow2)))?)
    }
}

#[cfg(not(all(unix, feature = "images")))]
mod qcow2 {
    use super::*;

    pub fn storage(_: &Path) -> Result<Arc<dyn Storage>, Box<dyn Error>> {
        Err(needs("images").into())
    }

    pub fn overlay(_: &Path, _: &Path) -> Result<(), Box<dyn Error>> {
        Err(needs("images").into())
    }
}

#[cfg(all(unix, feature = "nbd"))]
mod nbd {
    use super::*;
    use devisor::virtio::block::{NbdOptions, NbdStorage, NbdUri};

    pub fn check(uri: &str) -> Result<(), String> {
        uri.parse::<NbdUri>()
            .map(drop)
            .map_err(|error| format!("--disk: {error}"))
    }

    /// Its times are those of the loop that runs it.
    pub fn storage(uri: &str, events: &EventLoop) -> Result<Box<dyn AsyncStorage>, Box<dyn Error>> {
        let clock = Arc::new(events.clone());
        Ok(Box::new(NbdStorage::connect(
            &uri.parse()?,
            NbdOptions::default(),
            clock,
        )?))
    }
}

#[cfg(not(all(unix, feature = "nbd")))]
mod nbd {
    use super::*;

    pub fn check(_: &str) -> Result<(), String> {
        Err(needs("nbd"))
    }

    pub fn storage(_: &str, _: &EventLoop) -> Result<Box<dyn AsyncStorage>, Box<dyn Error>> {
        Err(needs("nbd").into())
    }
}
