//! The devices.

use std::{error::Error, sync::Arc};

use devisor::{
    time::Clock,
    virtio::{
        VirtioDevice,
        block::{Block, BlockOptions, FileStorage},
        entropy::Entropy,
    },
};

use super::arguments::Arguments;

type Made = Result<Box<dyn VirtioDevice>, Box<dyn Error>>;

pub fn make(arguments: &Arguments, clock: Arc<dyn Clock + Send + Sync>) -> Made {
    let _ = clock;
    match arguments.kind.as_str() {
        "blk" => block(arguments),
        "rng" => Ok(Box::new(Entropy::from_os())),
        other => Err(format!("no device {other:?}: blk, net, console, vsock, rng and balloon there are").into()),
    }
}

fn block(arguments: &Arguments) -> Made {
    let image = arguments.image.as_ref().ok_or("--image is needed: the file that is the disk")?;
    let file = match arguments.read_only {
        true => FileStorage::open_read_only(image)?,
        false => FileStorage::open(image)?,
    };
    let options = BlockOptions {
        queues: arguments.queues,
        read_only: arguments.read_only,
        ..BlockOptions::default()
    };
    Ok(Box::new(Block::new(file, options)?))
}
