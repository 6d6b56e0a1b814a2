//! What is refused of an image before anything of it is believed (`docs/interop/qcow2.txt` of QEMU).

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{ImageError, ImageFormat, gate::Gate};

/// Images in a chain.
const MAX_CHAIN: usize = 16;
/// Bytes of tables, as QEMU has them at most.
const MAX_L1: u64 = 32 << 20;
const MAX_REFTABLE: u64 = 8 << 20;
/// Bytes of a VMDK descriptor.
const MAX_DESCRIPTOR: u64 = 1 << 20;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const BACKING_FORMAT: u32 = 0xe279_2aca;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Bytes of a cluster; of a raw image, of a sector.
    pub cluster: u32,
    /// It has internal snapshots.
    pub snapshots: bool,
}

/// A header, as far as it matters here.
struct Header {
    found: Found,
    backing: Option<(String, ImageFormat)>,
}

/// Looks at an image and all that is behind it.
pub fn chain(path: &Path, format: ImageFormat, gate: &Gate) -> Result<Found, ImageError> {
    let failed = |path: &Path, source| ImageError::Io {
        path: path.into(),
        source,
    };
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut at = fs::canonicalize(path).map_err(|source| failed(path, source))?;
    let (mut format, mut first) = (format, None);
    loop {
        let refused = |why: &str| ImageError::Refused {
            path: at.clone(),
            why: why.into(),
        };
        if seen.contains(&at) {
            return Err(refused("it is behind itself, in a loop of backing files"));
        }
        if seen.len() == MAX_CHAIN {
            return Err(refused("it is behind 16 others, which is as many as are taken"));
        }
        seen.push(at.clone());
        let header = match header(&at, format) {
            Ok(header) => header,
            Err(error) => match error.get_ref().and_then(|inner| inner.downcast_ref::<Why>()) {
                Some(Why(why)) => return Err(refused(why)),
                None => return Err(failed(&at, error)),
            },
        };
        let found = *first.get_or_insert(header.found);
        let Some((name, behind)) = header.backing else {
            return Ok(found);
        };
        // Relative to the image that names it; one that is absolute replaces all.
        let next = at.parent().unwrap_or(Path::new("/")).join(name);
        at = gate.allows(&next).map_err(|source| failed(&at, source))?;
        format = behind;
    }
}

/// Why something is refused.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

fn refuse<T>(why: &'static str) -> io::Result<T> {
    Err(io::Error::other(Why(why)))
}

fn header(path: &Path, format: ImageFormat) -> io::Result<Header> {
    let plain = Header {
        found: Found {
            cluster: 512,
            snapshots: false,
        },
        backing: None,
    };
    match format {
        ImageFormat::Raw => Ok(plain),
        ImageFormat::Vmdk => {
            let mut file = fs::File::open(path)?;
            let mut magic = [0; 4];
            file.read_exact(&mut magic)
                .or_else(|_| refuse("it is too short for a VMDK descriptor"))?;
            match magic {
                [b'K', b'D', b'M', b'V'] => {
                    refuse("its VMDK extent is sparse, and only descriptors with flat extents are read")
                }
                _ if file.metadata()?.len() > MAX_DESCRIPTOR => refuse("it is too long for a VMDK descriptor"),
                _ => Ok(plain),
            }
        }
        ImageFormat::Qcow2 => qcow2(&mut fs::File::open(path)?),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |all, byte| all << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

fn qcow2(file: &mut fs::File) -> io::Result<Header> {
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut head = [0; 112];
    let count = len.min(112) as usize;
    file.read_exact(&mut head[..count])?;
    if count < 104 || &head[..4] != b"QFI\xfb" {
        return refuse("it does not begin as qcow2 does");
    }
    match u32_at(&head, 4) {
        3 => {}
        2 => return refuse("it is qcow2 of version 2, and version 3 is taken (qemu-img amend -o compat=1.1)"),
        _ => return refuse("it is qcow2 of a version other than 3"),
    }
    let cluster_bits = u32_at(&head, 20);
    if !(9..=21).contains(&cluster_bits) {
        return refuse("its clusters are not of 512 bytes to 2 MiB");
    }
    let cluster = 1_u64 << cluster_bits;
    let (size, l1_entries, l1) = (u64_at(&head, 24), u64::from(u32_at(&head, 36)), u64_at(&head, 40));
    if u32_at(&head, 32) != 0 {
        return refuse("it is encrypted");
    }
    let incompatible = u64_at(&head, 72);
    if incompatible & CORRUPT != 0 {
        return refuse("it is marked corrupt (qemu-img check -r all)");
    }
    if incompatible & EXTENDED_L2 != 0 {
        return refuse("it has extended L2 entries");
    }
    if incompatible & !(DIRTY | DATA_FILE | COMPRESSION) != 0 {
        return refuse("it has features that are not known here");
    }
    let header_len = u64::from(u32_at(&head, 100));
    if incompatible & COMPRESSION != 0 && header_len >= 105 && head[104] != 0 {
        return refuse("its clusters are compressed otherwise than by zlib");
    }
    if !(104..=cluster).contains(&header_len) || header_len > len || u32_at(&head, 96) > 6 {
        return refuse("its header contradicts itself");
    }
    // An L2 table is a cluster of entries of 8 bytes.
    let covered = cluster * (cluster / 8);
    if size > i64::MAX as u64 || size.div_ceil(covered) > l1_entries {
        return refuse("its L1 table is too small for its size, or it is larger than a file can be");
    }
    let table = |offset: u64, bytes: u64, most: u64| {
        bytes > most || !offset.is_multiple_of(cluster) || offset.checked_add(bytes).is_none_or(|end| end > len)
    };
    if l1_entries != 0 && table(l1, l1_entries * 8, MAX_L1) {
        return refuse("its L1 table is outside of the file, not aligned, or larger than 32 MiB");
    }
    let reftable = u64::from(u32_at(&head, 56)) * cluster;
    if reftable == 0 || table(u64_at(&head, 48), reftable, MAX_REFTABLE) {
        return refuse("its refcount table is outside of the file, not aligned, or larger than 8 MiB");
    }
    let snapshots = u32_at(&head, 60) != 0;
    let backing = backing(file, &head, cluster, header_len, len)?;
    let found = Found {
        cluster: cluster as u32,
        snapshots,
    };
    Ok(Header { found, backing })
}

/// What is behind an image.
fn backing(
    file: &mut fs::File,
    head: &[u8],
    cluster: u64,
    header_len: u64,
    len: u64,
) -> io::Result<Option<(String, ImageFormat)>> {
    let (offset, name_len) = (u64_at(head, 8), u64::from(u32_at(head, 16)));
    if offset == 0 {
        return Ok(None);
    }
    let end = offset.checked_add(name_len).filter(|end| *end <= cluster.min(len));
    let Some(end) = end.filter(|_| (1..=1023).contains(&name_len)) else {
        return refuse("the name of its backing file is outside of its first cluster, empty or too long");
    };
    let mut first = vec![0; cluster.min(len) as usize];
    file.seek(SeekFrom::Start(0))?;
    file.read_exact(&mut first)?;
    let name = std::str::from_utf8(&first[offset as usize..end as usize]);
    let Ok(name) = name else {
        return refuse("the name of its backing file is not UTF-8");
    };
    if name.contains('\0') {
        return refuse("the name of its backing file has a zero in it");
    }
    // Extensions lie between the header and that name.
    let mut at = header_len as usize;
    while let Some(head) = first.get(at..at + 8) {
        let (kind, len) = (u32_at(head, 0), u32_at(head, 4) as usize);
        let data = first.get(at + 8..).and_then(|rest| rest.get(..len));
        match (kind, data) {
            (0, _) => break,
            (_, None) => return refuse("a header extension is longer than its cluster"),
            (BACKING_FORMAT, Some(b"qcow2")) => return Ok(Some((name.into(), ImageFormat::Qcow2))),
            (BACKING_FORMAT, Some(b"raw" | b"file")) => return Ok(Some((name.into(), ImageFormat::Raw))),
            (BACKING_FORMAT, _) => return refuse("its backing file is neither raw nor qcow2"),
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
    refuse("it does not say what format its backing file has, and none is guessed (qemu-img rebase -u -F)")
}
