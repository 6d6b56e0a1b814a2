//! Disk images: beside qemu-img, and hostile ones.
#![cfg(all(unix, feature = "images"))]

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use devisor::virtio::block::{
    Abilities, Block, BlockOptions, ImageFormat, ImageOptions, ImageStorage, References, Storage,
};
use skip::skipped;
use vm_memory::VolatileSlice;

struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let path = std::env::temp_dir().join(format!("devisor-images-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs qemu-img here. What it says; `None`, and said so, if it is not installed.
    fn qemu_img(&self, arguments: &[&str]) -> Option<String> {
        let Ok(output) = Command::new("qemu-img").current_dir(&self.0).args(arguments).output() else {
            skipped("qemu-img is not installed");
            return None;
        };
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "qemu-img {arguments:?}: {said}");
        Some(said)
    }

    fn open(&self, name: &str) -> ImageStorage {
        let image = ImageStorage::open(self.path(name), ImageFormat::Qcow2, ImageOptions::default());
        image.unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(&self, name: &str, format: ImageFormat, options: ImageOptions) -> String {
        ImageStorage::open(self.path(name), format, options)
            .expect_err("it is refused")
            .to_string()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn read(image: &impl Storage, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0xee; len];
    let (left, right) = bytes.split_at_mut(len / 3);
    let count = image.read_at(offset, &[VolatileSlice::from(left), VolatileSlice::from(right)])?;
    bytes.truncate(count);
    Ok(bytes)
}

fn write(image: &impl Storage, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut bytes = bytes.to_vec();
    let len = bytes.len();
    let (left, right) = bytes.split_at_mut(len / 3);
    let count = image.write_at(offset, &[VolatileSlice::from(left), VolatileSlice::from(right)])?;
    assert_eq!(count, len);
    Ok(())
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Random requests of all kinds, compared with a model, which is returned.
fn exercise(image: &ImageStorage, seed: u64, rounds: u32) -> Vec<u8> {
    let size = image.capacity().unwrap();
    let mut model = read(image, 0, size as usize).unwrap();
    let mut random = Random(seed);
    for round in 0..rounds {
        let offset = random.below(size / 512) * 512;
        let len = ((random.below(256) + 1) * 512).min(size - offset);
        let range = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0..3 => assert!(read(image, offset, len as usize).unwrap() == model[range]),
            3..6 => {
                let bytes: Vec<_> = (0..len).map(|at| (at / 512 + u64::from(round)) as u8).collect();
                write(image, offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            6 => {
                image.write_zeroes(offset, len, round % 2 == 0).unwrap();
                model[range].fill(0);
            }
            _ => image.flush().unwrap(),
        }
    }
    model
}

#[test]
fn what_is_written_checks_clean_and_compares_equal() {
    for options in [
        "cluster_size=64k",
        "cluster_size=4k",
        "cluster_size=512",
        "cluster_size=2M,refcount_bits=1",
        "lazy_refcounts=on",
    ] {
        let place = Place::new();
        if place
            .qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "disk", "16M"])
            .is_none()
        {
            return;
        }
        let image = place.open("disk");
        assert_eq!(
            image.abilities(),
            Abilities {
                discard: true,
                unmap: true,
                ..Abilities::default()
            }
        );
        let model = exercise(&image, 1, 400);
        drop(image);
        fs::write(place.path("model"), &model).unwrap();
        place.qemu_img(&["check", "-q", "-f", "qcow2", "disk"]);
        place.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "disk", "model"]);
        // And what others have written is read.
        place.qemu_img(&[
            "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "model", "other",
        ]);
        let other = place.open("other");
        assert!(read(&other, 0, model.len()).unwrap() == model, "{options}");
        exercise(&other, 2, 100);
        drop(other);
        place.qemu_img(&["check", "-q", "-f", "qcow2", "other"]);
    }
}

#[test]
fn images_made_here_have_backing_files_and_grow() {
    let place = Place::new();
    let base = place.path("base");
    fs::write(&base, vec![7_u8; 4 << 20]).unwrap();
    ImageStorage::create(place.path("middle"), 4 << 20, Some(("base".as_ref(), ImageFormat::Raw))).unwrap();
    ImageStorage::create(
        place.path("top"),
        4 << 20,
        Some(("middle".as_ref(), ImageFormat::Qcow2)),
    )
    .unwrap();
    assert!(ImageStorage::create(place.path("top"), 4 << 20, None).is_err());
    write(&place.open("middle"), 65536, &[8; 65536]).unwrap();
    let top = place.open("top");
    write(&top, 512, &[9; 512]).unwrap();
    top.discard(1 << 20, 1 << 20).unwrap();
    top.grow(8 << 20).unwrap();
    assert!(top.grow(4 << 20).is_err());
    assert_eq!(top.capacity().unwrap(), 8 << 20);
    let all = read(&top, 0, 8 << 20).unwrap();
    assert!(all[..512].iter().all(|&byte| byte == 7) && all[512..1024].iter().all(|&byte| byte == 9));
    assert!(all[65536..131_072].iter().all(|&byte| byte == 8));
    assert!(all[4 << 20..].iter().all(|&byte| byte == 0));
    let model = exercise(&top, 3, 300);
    drop(top);
    assert!(fs::read(&base).unwrap().iter().all(|&byte| byte == 7));
    fs::write(place.path("model"), &model).unwrap();
    for name in ["top", "middle"] {
        if place.qemu_img(&["check", "-q", "-f", "qcow2", name]).is_none() {
            return;
        }
    }
    place.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "top", "model"]);
}

#[test]
fn an_overlay_that_others_made_is_written_and_checks_clean_with_all_that_is_behind_it() {
    let place = Place::new();
    let Some(_) = place.qemu_img(&["create", "-q", "-f", "qcow2", "base", "8M"]) else {
        return;
    };
    let base = exercise(&place.open("base"), 12, 200);
    // Smaller clusters than what is behind has, and more of the disk.
    place.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "cluster_size=4k",
        "-b",
        "base",
        "-F",
        "qcow2",
        "top",
        "12M",
    ]);
    let before = fs::read(place.path("base")).unwrap();
    let top = place.open("top");
    let read_through = read(&top, 0, 12 << 20).unwrap();
    assert!(read_through[..8 << 20] == base && read_through[8 << 20..].iter().all(|&byte| byte == 0));
    exercise(&top, 13, 300);
    top.grow(16 << 20).unwrap();
    let model = exercise(&top, 14, 300);
    drop(top);
    assert!(
        fs::read(place.path("base")).unwrap() == before,
        "what is behind is not written"
    );
    fs::write(place.path("model"), &model).unwrap();
    place.qemu_img(&["check", "-q", "-f", "qcow2", "top"]);
    place.qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw", "top", "model"]);
}

#[test]
fn an_image_with_internal_snapshots_is_read_and_left_as_it_is() {
    let place = Place::new();
    let Some(_) = place.qemu_img(&["create", "-q", "-f", "qcow2", "disk", "4M"]) else {
        return;
    };
    let then = exercise(&place.open("disk"), 15, 150);
    place.qemu_img(&["snapshot", "-c", "then", "disk"]);
    // Others write on; what the snapshot has stays.
    fs::write(place.path("later"), [5; 65536]).unwrap();
    place.qemu_img(&["convert", "-n", "-f", "raw", "-O", "qcow2", "later", "disk"]);
    let bytes = fs::read(place.path("disk")).unwrap();
    let image = place.open("disk");
    assert!(image.is_read_only());
    assert!(read(&image, 0, 65536).unwrap().iter().all(|&byte| byte == 5));
    assert!(write(&image, 0, &[1; 512]).is_err());
    assert!(image.write_zeroes(0, 512, true).is_err() && image.discard(0, 65536).is_err());
    assert!(image.grow(8 << 20).is_err());
    image.flush().unwrap();
    drop(image);
    assert!(fs::read(place.path("disk")).unwrap() == bytes, "not a byte has changed");
    place.qemu_img(&["check", "-q", "-f", "qcow2", "disk"]);
    // A snapshot is read when it has been made an image of its own, and written as one.
    place.qemu_img(&[
        "convert",
        "-l",
        "snapshot.name=then",
        "-f",
        "qcow2",
        "-O",
        "qcow2",
        "disk",
        "copy",
    ]);
    let copy = place.open("copy");
    assert!(read(&copy, 0, 4 << 20).unwrap() == then);
    exercise(&copy, 16, 50);
    drop(copy);
    place.qemu_img(&["check", "-q", "-f", "qcow2", "copy"]);
}

#[test]
fn data_files_raw_images_and_flat_vmdk_are_read() {
    let place = Place::new();
    let Some(_) = place.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=data", "disk", "4M"]) else {
        return;
    };
    let image = place.open("disk");
    let model = exercise(&image, 4, 200);
    drop(image);
    fs::write(place.path("model"), &model).unwrap();
    place.qemu_img(&["check", "-q", "-f", "qcow2", "disk"]);
    place.qemu_img(&["compare", "-f", "qcow2", "-F", "raw", "disk", "model"]);

    let raw = ImageStorage::open(place.path("model"), ImageFormat::Raw, ImageOptions::default()).unwrap();
    let model = exercise(&raw, 5, 200);
    drop(raw);
    assert!(fs::read(place.path("model")).unwrap() == model);

    for form in ["monolithicFlat", "twoGbMaxExtentFlat"] {
        place.qemu_img(&[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            &format!("subformat={form}"),
            "model",
            "disk.vmdk",
        ]);
        let vmdk = ImageStorage::open(place.path("disk.vmdk"), ImageFormat::Vmdk, ImageOptions::default()).unwrap();
        assert!(vmdk.abilities().read_only);
        assert!(read(&vmdk, 0, model.len()).unwrap() == model);
    }
    place.qemu_img(&["convert", "-f", "raw", "-O", "vmdk", "model", "sparse.vmdk"]);
    let why = place.refused("sparse.vmdk", ImageFormat::Vmdk, ImageOptions::default());
    assert!(why.contains("sparse"), "{why}");
}

#[test]
fn a_range_of_nothing_and_one_behind_the_end_do_no_harm() {
    let place = Place::new();
    ImageStorage::create(place.path("image"), 65536, None).unwrap();
    let image = place.open("image");
    assert_eq!(read(&image, 0, 0).unwrap(), []);
    for offset in [0, 512, 65536, 1 << 40] {
        assert_eq!(image.read_at(offset, &[]).unwrap(), 0);
        assert_eq!(image.write_at(offset, &[]).unwrap(), 0);
    }
    for offset in [65536, 1 << 40] {
        let mut data = [1; 512];
        assert_eq!(image.read_at(offset, &[(&mut data[..]).into()]).unwrap(), 0);
        assert_eq!(image.write_at(offset, &[(&mut data[..]).into()]).unwrap(), 0);
    }
    image.discard(512, 0).unwrap();
    image.write_zeroes(512, 0, true).unwrap();
    image.write_zeroes(512, 0, false).unwrap();
    write(&image, 0, &[7; 512]).unwrap();
    assert_eq!(read(&image, 0, 512).unwrap(), [7; 512]);
}

#[test]
fn what_is_not_taken_is_refused_in_a_sentence() {
    let place = Place::new();
    for (options, why) in [
        ("compat=0.10", "version 2"),
        ("extended_l2=on", "extended L2"),
        ("compression_type=zstd", "zlib"),
        // Not with LUKS, for which qemu-img measures its own CPU time, and fails on a busy machine.
        ("encrypt.format=aes,encrypt.key-secret=k", "encrypted"),
    ] {
        let _ = fs::remove_file(place.path("disk"));
        let secret = "secret,id=k,data=abc";
        if place
            .qemu_img(&[
                "create", "-q", "--object", secret, "-f", "qcow2", "-o", options, "disk", "16M",
            ])
            .is_none()
        {
            return;
        }
        let said = place.refused("disk", ImageFormat::Qcow2, ImageOptions::default());
        assert!(said.contains(why) && said.contains("disk"), "{options}: {said}");
    }
    // With snapshots it is read as it is now.
    let _ = fs::remove_file(place.path("disk"));
    place.qemu_img(&["create", "-q", "-f", "qcow2", "disk", "4M"]);
    let model = exercise(&place.open("disk"), 6, 100);
    place.qemu_img(&["snapshot", "-c", "before", "disk"]);
    let image = place.open("disk");
    assert!(image.is_read_only() && write(&image, 0, &[1; 512]).is_err());
    assert!(read(&image, 0, 4 << 20).unwrap() == model);
}

#[test]
fn an_image_leads_nowhere_it_may_not() {
    let place = Place::new();
    fs::create_dir(place.path("inside")).unwrap();
    fs::write(place.path("secret"), [1; 65536]).unwrap();
    let create = |name: &str, behind: &str| {
        ImageStorage::create(place.path(name), 65536, Some((behind.as_ref(), ImageFormat::Raw))).unwrap();
    };
    create("inside/disk", "../secret");
    std::os::unix::fs::symlink(place.path("secret"), place.path("inside/link")).unwrap();
    create("inside/other", "link");
    for name in ["inside/disk", "inside/other"] {
        let said = place.refused(name, ImageFormat::Qcow2, ImageOptions::default());
        assert!(said.contains("not allowed"), "{said}");
        let any = ImageOptions {
            references: References::Any,
            ..ImageOptions::default()
        };
        let image = ImageStorage::open(place.path(name), ImageFormat::Qcow2, any).unwrap();
        assert_eq!(read(&image, 0, 512).unwrap(), [1; 512]);
    }
    create("disk", "secret");
    let none = ImageOptions {
        references: References::None,
        ..ImageOptions::default()
    };
    assert!(place.refused("disk", ImageFormat::Qcow2, none).contains("not allowed"));
    // What would wait for ever.
    let fifo = std::ffi::CString::new(place.path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a path that ends with a zero.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    create("waits", "fifo");
    assert!(
        place
            .refused("waits", ImageFormat::Qcow2, ImageOptions::default())
            .contains("no file")
    );
    assert!(
        place
            .refused("fifo", ImageFormat::Qcow2, ImageOptions::default())
            .contains("no file")
    );
}

#[test]
fn loops_of_backing_files_and_long_chains_are_refused() {
    let place = Place::new();
    ImageStorage::create(place.path("a"), 65536, Some(("b".as_ref(), ImageFormat::Qcow2))).unwrap();
    ImageStorage::create(place.path("b"), 65536, Some(("c".as_ref(), ImageFormat::Qcow2))).unwrap();
    ImageStorage::create(place.path("c"), 65536, Some(("a".as_ref(), ImageFormat::Qcow2))).unwrap();
    ImageStorage::create(place.path("self"), 65536, Some(("self".as_ref(), ImageFormat::Qcow2))).unwrap();
    for name in ["a", "b", "c", "self"] {
        let said = place.refused(name, ImageFormat::Qcow2, ImageOptions::default());
        assert!(said.contains("loop"), "{said}");
    }
    ImageStorage::create(place.path("0"), 65536, None).unwrap();
    for number in 1..20 {
        let (name, behind) = (number.to_string(), (number - 1).to_string());
        ImageStorage::create(place.path(&name), 65536, Some((behind.as_ref(), ImageFormat::Qcow2))).unwrap();
    }
    assert_eq!(place.open("15").capacity().unwrap(), 65536);
    assert!(
        place
            .refused("16", ImageFormat::Qcow2, ImageOptions::default())
            .contains("16 others")
    );
}

/// Does something on a thread of its own, which has so much time.
fn in_time<R: Send + 'static>(what: &str, f: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, wait) = mpsc::channel();
    let worker = thread::spawn(move || _ = done.send(f()));
    match wait.recv_timeout(Duration::from_secs(30)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            worker
                .join()
                .map_err(|_| format!("{what} panics"))
                .expect("no panic comes out");
            unreachable!("it has sent or panicked")
        }
    }
}

#[test]
fn damage_is_refused_or_an_error_and_never_hangs_or_panics() {
    let place = Place::new();
    fs::write(place.path("base"), vec![3_u8; 1 << 20]).unwrap();
    ImageStorage::create(place.path("good"), 1 << 20, Some(("base".as_ref(), ImageFormat::Raw))).unwrap();
    exercise(&place.open("good"), 7, 60);
    let good = Arc::new(fs::read(place.path("good")).unwrap());
    let table = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
    let (l1, reftable) = (table(40), table(48));
    let entry = |at: u64| table(at as usize) & 0x00ff_ffff_ffff_fe00;
    let (l2, refblock) = (entry(l1), entry(reftable));
    // Header, L1, L2, refcount table, refcount block.
    let tables = [
        0..112,
        l1..l1 + 64,
        l2..l2 + 256,
        reftable..reftable + 64,
        refblock..refblock + 64,
    ];
    let mut random = Random(11);
    let (mut refused, mut failed, mut survived) = (0, 0, 0);
    let values = [
        0,
        1,
        0x200,
        0x1_0000,
        1 << 20,
        1 << 30,
        1 << 40,
        1 << 55,
        1 << 56,
        1 << 62,
        3 << 62,
        u64::MAX,
        u64::MAX - 511,
    ];
    // More of them when somebody has the time.
    let cases = std::env::var("DEVISOR_IMAGE_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    for case in 0..cases.unwrap_or(600_u64) {
        let mut bytes = (*good).clone();
        for _ in 0..=random.below(2) {
            let table = &tables[(case % 5) as usize];
            let at = table.start + random.below(table.end - table.start);
            match random.below(3) {
                0 => bytes[at as usize] ^= 1 << random.below(8),
                1 => bytes[at as usize] = random.below(256) as u8,
                _ => {
                    let at = (at & !7) as usize;
                    let value = values[random.below(values.len() as u64) as usize] | random.below(2);
                    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
                }
            }
        }
        if case % 50 == 49 {
            bytes.truncate(random.below(bytes.len() as u64) as usize);
        }
        let path = place.path(&format!("bad{case}"));
        fs::write(&path, &bytes).unwrap();
        let what = format!("case {case}");
        let outcome = in_time(&what, move || {
            let image = match ImageStorage::open(&path, ImageFormat::Qcow2, ImageOptions::default()) {
                Ok(image) => image,
                Err(_) => return 0,
            };
            let mut errors = 0;
            let size = image.capacity().unwrap_or(0);
            for step in 0..24_u64 {
                let offset = step % 12 * 65536 + step * 512;
                let result = match step % 4 {
                    _ if offset + 1024 > size => continue,
                    0 => write(&image, offset, &[step as u8; 1024]),
                    1 => image.write_zeroes(offset, 1024, true),
                    2 => image.discard(offset, 1024),
                    _ => read(&image, offset, 1024).map(|_| ()),
                };
                errors += u32::from(result.is_err());
            }
            errors += u32::from(image.flush().is_err());
            1 + errors
        });
        match outcome {
            0 => refused += 1,
            1 => survived += 1,
            _ => failed += 1,
        }
        let _ = fs::remove_file(place.path(&format!("bad{case}")));
    }
    eprintln!("{refused} refused, {failed} with errors, {survived} without");
    assert!(
        refused > 50 && failed > 0 && survived > 0,
        "{refused} {failed} {survived}"
    );
    // The file that is behind is never written.
    assert!(fs::read(place.path("base")).unwrap().iter().all(|&byte| byte == 3));
}

#[test]
fn a_disk_stands_on_an_image() {
    let place = Place::new();
    ImageStorage::create(place.path("disk"), 3 << 20, None).unwrap();
    let file = fs::File::open(place.path("disk")).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"QFI\xfb");
    let disk = Block::new(place.open("disk"), BlockOptions::default()).unwrap();
    assert_eq!(disk.capacity(), 6144);
}
