//! Two network devices: one leads to passt, which leases the guest an address, the other to a TAP interface. Over each the guest
//! downloads a file.

use std::{error::Error, sync::Arc};

use devisor::virtio::{
    QueueIndex, VirtioTransport,
    net::{Mac, Net, NetOptions, Port},
};

use super::{
    Around, CheckOf, Measured, More,
    network::{LEASED, NETWORK, checksum_of_file},
};
use crate::verdict::{Check, line};

/// By which tests/guest/root-init tells them apart.
const OVER_PASST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const OVER_TAP: Mac = Mac([0x52, 0x54, 0, 0, 0, 2]);

pub fn is_passt_here() -> Result<(), String> {
    NETWORK.passt.as_ref().map(drop).map_err(String::clone)
}

pub fn is_tap_here() -> Result<(), String> {
    NETWORK.tap.as_ref().map(drop).map_err(String::clone)
}

pub fn plug_passt(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let socket = NETWORK.passt.as_ref().map_err(String::as_str)?;
    let (device, mut more) = plug(around, Arc::clone(socket), OVER_PASST, "passt downloaded ")?;
    let leases = |console: &str| -> Check {
        let leased = line(console, "passt leased ")?;
        (leased == LEASED)
            .then(|| leased.into())
            .ok_or_else(|| format!("{leased:?}, not {LEASED}"))
    };
    more.checks
        .insert(0, ("passt leases the guest an address", Box::new(leases)));
    Ok((device, more))
}

pub fn plug_tap(around: Around<'_>) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let tap = NETWORK.tap.as_ref().map_err(String::as_str)?;
    plug(around, Arc::clone(tap), OVER_TAP, "tap downloaded ")
}

fn plug<P: Port + 'static>(
    around: Around<'_>,
    port: P,
    mac: Mac,
    downloaded: &'static str,
) -> Result<(Arc<dyn VirtioTransport>, More), Box<dyn Error>> {
    let options = NetOptions {
        mac: Some(mac),
        ..NetOptions::default()
    };
    let net = around.plug(Net::new([port], options)?)?;
    let (device, measured) = (net.transport(), Measured::default());

    let (heard, notes) = (Arc::clone(&device), measured.clone());
    let hear = move |line: &str| {
        if line.starts_with(downloaded) {
            // When the guest powers off it resets the device.
            for (name, queue) in [("received", 0), ("sent", 1)] {
                let counters = heard.queue_counters(QueueIndex(queue));
                notes.note(name, counters.map_or(0, |counters| counters.requests));
            }
        }
        Ok(())
    };
    let downloads = move |console: &str| -> Check {
        let (theirs, ours) = (line(console, downloaded)?, checksum_of_file());
        let (received, sent) = (measured.get("received")?, measured.get("sent")?);
        let failures = net.with(|net| net.host_failures().count);
        let how = format!(
            "{theirs}, served {ours}; {received} buffers received, {sent} frames sent, {failures} failures of the host"
        );
        let right = theirs == ours && received != 0 && failures == 0;
        right.then(|| how.clone()).ok_or(how)
    };
    let what = match mac {
        OVER_PASST => "the guest downloads through passt",
        _ => "the guest downloads through a TAP interface",
    };
    let more = More {
        hear: Box::new(hear),
        checks: vec![(what, Box::new(downloads) as Box<CheckOf>)],
    };
    Ok((device, more))
}
