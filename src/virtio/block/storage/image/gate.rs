//! Which files an image may lead to.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use imago::{
    FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions, file::File, format::gate::ImplicitOpenGate,
};

use super::References;

/// Files that one image may need in all.
const MAX_FILES: u32 = 64;

/// Lets an image open what it refers to, if that is allowed.
#[derive(Clone)]
pub struct Gate {
    references: References,
    /// The one that was asked for, without links.
    image: PathBuf,
    opened: Arc<AtomicU32>,
}

impl Gate {
    pub fn new(image: &Path, references: References) -> io::Result<Self> {
        Ok(Self {
            references,
            image: regular(image)?,
            opened: Arc::default(),
        })
    }

    /// The file without links, if an image may refer to it.
    pub fn allows(&self, path: &Path) -> io::Result<PathBuf> {
        let refused = |why: &str| {
            Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{}: {why}", path.display()),
            ))
        };
        let real = regular(path)?;
        let directory = self.image.parent().unwrap_or(Path::new("/"));
        match self.references {
            // It is opened in the same way.
            _ if real == self.image => Ok(real),
            References::None => refused("the image refers to a file, and that is not allowed"),
            References::Beside if !real.starts_with(directory) => {
                refused("the image refers to a file outside of its directory, and that is not allowed")
            }
            _ => Ok(real),
        }
    }
}

/// The path without links of a file or block device: what else there is may wait for ever.
fn regular(path: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let real = fs::canonicalize(path)?;
    let kind = fs::metadata(&real)?.file_type();
    match kind.is_file() || kind.is_block_device() {
        true => Ok(real),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is no file and no block device", path.display()),
        )),
    }
}

impl ImplicitOpenGate<File> for Gate {
    fn open_format<F: FormatDriverBuilder<File>>(&mut self, builder: F) -> io::Result<FormatAccess<File>> {
        if let Some(path) = builder.get_image_path() {
            self.allows(&path)?;
        }
        Ok(FormatAccess::new(builder.open(self.clone())?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<File> {
        if self.opened.fetch_add(1, Relaxed) >= MAX_FILES {
            return Err(io::Error::other("the image leads to too many files"));
        }
        let Some(path) = options.get_filename() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.allows(path)?;
        File::open(options)
    }
}
