//! Disk images that nobody made well: refused, or errors, and never a panic, a hang, or a byte in a file that is not theirs. One that was not
//! damaged reads as it was written.
#![no_main]

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process,
    sync::Once,
};

use arbitrary::Arbitrary;
use devisor::virtio::block::{ImageFormat, ImageOptions, ImageStorage, References, Storage};
use libfuzzer_sys::fuzz_target;
use vm_memory::VolatileSlice;

/// Which part of a qcow2 image.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Table {
    Header,
    /// Behind the header: extensions and the name of the backing file.
    Extensions,
    L1,
    L2,
    Refcounts,
    RefcountBlock,
    Anywhere,
}

/// What an entry of a table may say that matters.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Value {
    Any(u64),
    /// A cluster of the file, or shortly behind it, with flags.
    Cluster {
        number: u8,
        flags: u8,
    },
    Bit(u8),
    Ones {
        shift: u8,
    },
}

#[derive(Arbitrary, Debug)]
struct Damage {
    table: Table,
    at: u16,
    value: Value,
    /// Bytes of it: 1 to 8.
    len: u8,
}

#[derive(Arbitrary, Debug)]
enum Image {
    Qcow2 {
        damage: Vec<Damage>,
        cut: Option<u32>,
    },
    /// Of these bytes.
    Bytes(Vec<u8>),
    /// A descriptor of these lines between its own.
    Vmdk(Vec<Line>),
    VmdkText(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Line {
    Version(u8),
    Kind(u8),
    Extent {
        access: u8,
        sectors: u64,
        kind: u8,
        file: u8,
        offset: Option<u64>,
    },
    Parent(u32),
    Text(String),
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read { at: u16, len: u16 },
    Write { at: u16, len: u16, value: u8 },
    Zeroes { at: u16, len: u16, may_unmap: bool },
    Discard { at: u16, len: u16 },
    Flush,
    Grow(u8),
    Reopen,
}

#[derive(Arbitrary, Debug)]
struct Input {
    image: Image,
    /// Which files it may lead to.
    anywhere: bool,
    steps: Vec<Step>,
}

const SIZE: usize = 1 << 20;
const CLUSTER: usize = 65536;
/// What is in the file behind, which is shorter.
const BEHIND: usize = 3 * CLUSTER + 512;

/// A folder with what is behind, and an image that is as it should be.
struct Place {
    folder: PathBuf,
    good: Vec<u8>,
    /// What a guest sees in it.
    data: Vec<u8>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn behind() -> Vec<u8> {
    (0..BEHIND).map(|at| (at / 512) as u8 | 1).collect()
}

impl Place {
    fn new() -> Self {
        let shared = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        let folder = if shared.is_dir() { shared } else { &temporary };
        let folder = folder.join(format!("devisor-fuzz-images-{}", process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("base"), behind()).expect("room");
        let path = folder.join("good");
        ImageStorage::create(&path, SIZE as u64, Some(("base".as_ref(), ImageFormat::Raw))).expect("an image");
        let mut data = behind();
        data.resize(SIZE, 0);
        let image = ImageStorage::open(&path, ImageFormat::Qcow2, ImageOptions::default()).expect("it is well");
        for at in [512, CLUSTER, 9 * CLUSTER - 512] {
            write(&image, at, 1024, 0x77).expect("it is written");
            data[at..at + 1024].fill(0x77);
        }
        image
            .write_zeroes(2 * CLUSTER as u64, CLUSTER as u64, true)
            .expect("zeros");
        data[2 * CLUSTER..3 * CLUSTER].fill(0);
        image.flush().expect("stable");
        drop(image);
        let good = fs::read(&path).expect("it is there");
        Self { folder, good, data }
    }
}

thread_local! {
    static PLACE: RefCell<Place> = RefCell::new(Place::new());
}

fn read(image: &ImageStorage, at: usize, data: &mut [u8]) -> std::io::Result<()> {
    let len = data.len();
    let count = image.read_at(at as u64, &[VolatileSlice::from(data)])?;
    assert!(count <= len);
    match count == len {
        true => Ok(()),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn write(image: &ImageStorage, at: usize, len: usize, value: u8) -> std::io::Result<()> {
    let mut data = vec![value; len];
    let count = image.write_at(at as u64, &[VolatileSlice::from(&mut data[..])])?;
    assert!(count <= len);
    match count == len {
        true => Ok(()),
        false => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

fn damaged(good: &[u8], damage: &[Damage], cut: Option<u32>) -> Vec<u8> {
    let word = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().expect("eight"));
    let entry = |at: u64| word(at as usize) & 0x00ff_ffff_ffff_fe00;
    let (l1, refcounts) = (word(40), word(48));
    let (l2, block) = (entry(l1), entry(refcounts));
    let mut bytes = good.to_vec();
    for one in damage {
        let (start, len) = match one.table {
            Table::Header => (0, 112),
            Table::Extensions => (104, 256),
            Table::L1 => (l1, 64),
            Table::L2 => (l2, 256),
            Table::Refcounts => (refcounts, 64),
            Table::RefcountBlock => (block, 64),
            Table::Anywhere => (0, bytes.len() as u64 - 8),
        };
        let at = (start + u64::from(one.at) * if one.len % 8 == 7 { 8 } else { 1 } % len) as usize;
        let old = bytes
            .get(at..at + 8)
            .map_or(0, |old| u64::from_be_bytes(old.try_into().expect("eight")));
        let value = match one.value {
            Value::Any(value) => value,
            Value::Cluster { number, flags } => {
                let clusters = (good.len() / CLUSTER + 4) as u64;
                (u64::from(number) % clusters * CLUSTER as u64) | (u64::from(flags & 0xf0) << 56) | u64::from(flags & 1)
            }
            Value::Bit(bit) => old ^ 1 << (bit % 64),
            Value::Ones { shift } => u64::MAX << (shift % 64),
        };
        let new = value.to_be_bytes();
        let len = usize::from(one.len % 8) + 1;
        for (byte, new) in bytes.iter_mut().skip(at).zip(&new[8 - len..]) {
            *byte = *new;
        }
    }
    if let Some(cut) = cut {
        bytes.truncate(cut as usize % (bytes.len() + 1));
    }
    bytes
}

fn descriptor(lines: &[Line]) -> String {
    let mut text = String::from("# Disk DescriptorFile\n");
    let one_of = |names: &[&str], which: u8| names[usize::from(which) % names.len()].to_owned();
    for line in lines {
        let line = match line {
            Line::Version(version) => format!("version={version}"),
            Line::Kind(kind) => {
                let kinds = [
                    "monolithicFlat",
                    "twoGbMaxExtentFlat",
                    "monolithicSparse",
                    "fullDevice",
                    "custom",
                ];
                format!("createType=\"{}\"", one_of(&kinds, *kind))
            }
            Line::Extent {
                access,
                sectors,
                kind,
                file,
                offset,
            } => {
                let access = one_of(&["RW", "RDONLY", "NOACCESS"], *access);
                let sectors = if sectors % 4 == 0 { *sectors } else { sectors % 4096 };
                let kind = one_of(&["FLAT", "ZERO", "SPARSE", "VMFS"], *kind);
                let file = one_of(&["base", "good", "image", "../base", "/dev/null", "nothing"], *file);
                let offset = offset.map_or(String::new(), |offset| format!(" {offset}"));
                format!("{access} {sectors} {kind} \"{file}\"{offset}")
            }
            Line::Parent(parent) => format!("parentCID={parent:08x}"),
            Line::Text(text) => text.clone(),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fuzz_target!(|input: Input| {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        // What the format's code does not survive is contained, and no finding. What comes out of it ends this process still.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let inside = panic.location().is_some_and(|at| at.file().contains("imago"));
            if !inside {
                before(panic);
            }
        }));
    });
    PLACE.with_borrow(|place| one(place, input));
});

fn one(place: &Place, input: Input) {
    let path = place.folder.join("image");
    let (bytes, format, mut data) = match &input.image {
        Image::Qcow2 { damage, cut } => {
            let well = damage.is_empty() && cut.is_none();
            let data = well.then(|| place.data.clone());
            (damaged(&place.good, damage, *cut), ImageFormat::Qcow2, data)
        }
        Image::Bytes(bytes) => (bytes.clone(), ImageFormat::Qcow2, None),
        Image::Vmdk(lines) => (descriptor(lines).into_bytes(), ImageFormat::Vmdk, None),
        Image::VmdkText(text) => (text.clone(), ImageFormat::Vmdk, None),
    };
    let _ = fs::remove_file(&path);
    fs::write(&path, &bytes).expect("room");
    let options = ImageOptions {
        read_only: false,
        references: if input.anywhere {
            References::Any
        } else {
            References::Beside
        },
    };
    let open = || ImageStorage::open(&path, format, options);
    let Ok(mut image) = open() else {
        assert!(data.is_none(), "nothing is wrong with it");
        return;
    };
    for step in input.steps.iter().take(64) {
        let size = usize::try_from(image.capacity().expect("it is known")).unwrap_or(usize::MAX);
        let place = |at: u16, len: u16| {
            // Of what a device would ask: sectors within the capacity.
            let at = usize::from(at) * 512 % size.max(1) / 512 * 512;
            (at, (usize::from(len % 256) * 512).min((size - at) / 512 * 512))
        };
        let result = match *step {
            Step::Read { at, len } => {
                let (at, len) = place(at, len);
                let mut found = vec![0; len];
                let result = read(&image, at, &mut found);
                if let Some(data) = &data {
                    assert!(found == data[at..at + len], "it reads as it was written");
                }
                result
            }
            Step::Write { at, len, value } => {
                let (at, len) = place(at, len);
                if let Some(data) = &mut data {
                    data[at..at + len].fill(value);
                }
                write(&image, at, len, value)
            }
            Step::Zeroes { at, len, may_unmap } => {
                let (at, len) = place(at, len);
                if let Some(data) = &mut data {
                    data[at..at + len].fill(0);
                }
                image.write_zeroes(at as u64, len as u64, may_unmap)
            }
            Step::Discard { at, len } => {
                let (at, len) = place(at, len);
                let result = image.discard(at as u64, len as u64);
                if let Some(data) = &mut data {
                    // Anything may be there now; it stays so.
                    read(&image, at, &mut data[at..at + len]).expect("it is well");
                }
                result
            }
            Step::Flush => image.flush(),
            Step::Grow(more) => {
                let size = size as u64 + u64::from(more) * 512;
                let result = image.grow(size);
                if let Some(data) = &mut data {
                    data.resize(size as usize, 0);
                }
                result
            }
            Step::Reopen => {
                let flushed = image.flush();
                drop(image);
                match open() {
                    Ok(opened) => image = opened,
                    Err(error) => {
                        assert!(data.is_none(), "{error}");
                        return;
                    }
                }
                flushed
            }
        };
        assert!(data.is_none() || result.is_ok(), "{step:?}: {result:?}");
    }
    drop(image);
    assert!(
        fs::read(place.folder.join("base")).expect("it is there") == behind(),
        "it is not the image's"
    );
    assert!(
        fs::read(place.folder.join("good")).expect("it is there") == place.good,
        "nor is that"
    );
}
