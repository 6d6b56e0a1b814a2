//! The memory device: 64 MiB are plugged, used and unplugged.

use std::{error::Error, sync::Arc};

use devisor::virtio::{
    VirtioTransport,
    mem::{MemoryDevice, MemoryDeviceOptions},
    reclaim::{Madvise, Reclaim},
};

use super::{Around, MIB, Measured, More, kib, resident};
use crate::verdict::Check;

const PLUG: u64 = 64 * MIB;

pub fn plug(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let (memory, pluggable) = (Arc::clone(around.memory), around.room.pluggable);
    let region = pluggable.base..pluggable.base + pluggable.len;
    let reclaim = Madvise::new(Arc::clone(&memory)).within(region.clone());
    // The emulator has touched all of it.
    reclaim.discard(pluggable.base, pluggable.len)?;
    let device = around.plug(MemoryDevice::new(reclaim, MemoryDeviceOptions::new(region))?)?;
    let (transport, measured) = (device.transport(), Measured::default());

    let (heard, notes) = (Arc::clone(&device), measured.clone());
    let hear = move |line: &str| {
        let plugged = || heard.with(|device| device.plugged_size());
        if line == "plug me" {
            heard.change_config(|device| device.set_requested_size(PLUG))?;
        } else if line.starts_with("plugged ") {
            notes.note("plugged", plugged());
        } else if line == "unplug me" {
            notes.note("used", resident(&memory, pluggable)?);
            heard.change_config(|device| device.set_requested_size(0))?;
        } else if line.starts_with("unplugged ") {
            notes.note("unplugged", plugged());
            notes.note("left", resident(&memory, pluggable)?);
        }
        Ok(())
    };
    let plugs = {
        let (device, measured) = (Arc::clone(&device), measured.clone());
        move |console: &str| -> Check {
            let more = kib(console, "plugged ")?;
            let plugged = measured.get("plugged")?;
            let how = format!(
                "the guest has {} MiB more, of {} that are plugged",
                more / MIB,
                plugged / MIB
            );
            let right = plugged == PLUG && more == PLUG && device.with(|device| device.host_failures().count) == 0;
            right.then(|| how.clone()).ok_or(how)
        }
    };
    let unplugs = move |console: &str| -> Check {
        let less = kib(console, "unplugged ")?;
        let (used, unplugged, left) = (measured.get("used")?, measured.get("unplugged")?, measured.get("left")?);
        let how = format!(
            "the guest has {} MiB less, {} are left plugged; the host has {} MiB of it after {}",
            less / MIB,
            unplugged / MIB,
            left / MIB,
            used / MIB
        );
        let right = unplugged == 0 && less == PLUG && used != 0 && left == 0;
        right.then(|| how.clone()).ok_or(how)
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![
            ("the guest plugs memory and uses it", Box::new(plugs)),
            ("it unplugs it", Box::new(unplugs)),
        ],
    };
    Ok((transport, more))
}
