//! The devices, and what stands behind them.

use std::{
    error::Error,
    fs::OpenOptions,
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    sync::Arc,
};

use devisor::{
    time::Clock,
    virtio::{
        VirtioDevice,
        balloon::{Balloon, BalloonOptions},
        block::{Block, BlockOptions, FileStorage, MappedStorage},
        console::{Console, Port, SocketPeer, Stdio},
        entropy::Entropy,
        net::{Net, NetOptions, StreamSocket, Switch, Tap},
        transport::vhost_user::FrontEndMemory,
        vsock::{UnixHost, Vsock, VsockOptions},
    },
};

use super::{arguments::Arguments, faults};

type Made = Result<Box<dyn VirtioDevice>, Box<dyn Error>>;

/// One of the devices of this process. `switch` is what is between them.
pub fn make(arguments: &Arguments, clock: &Arc<dyn Clock>, memory: &FrontEndMemory, switch: &Switch) -> Made {
    match arguments.kind.as_str() {
        "blk" => block(arguments),
        "net" => net(arguments, clock, switch),
        "console" => console(arguments, clock),
        "vsock" => vsock(arguments, clock),
        "rng" => Ok(Box::new(Entropy::from_os())),
        "balloon" => balloon(arguments, memory),
        other => Err(format!("no device {other:?}: blk, net, console, vsock, rng and balloon there are").into()),
    }
}

fn block(arguments: &Arguments) -> Made {
    let image = arguments
        .image
        .as_ref()
        .ok_or("--image is needed: the file that is the disk")?;
    // Past the page cache of the host, which the guest has its own in front of.
    let flags = if arguments.has("--direct") { libc::O_DIRECT } else { 0 };
    let opened = OpenOptions::new()
        .read(true)
        .write(!arguments.read_only)
        .custom_flags(flags)
        .open(image);
    let file = opened.map_err(Into::into).and_then(FileStorage::new);
    let file = file.map_err(|error| format!("{}: {error}", image.display()))?;
    let options = BlockOptions {
        queues: arguments.queues,
        read_only: arguments.read_only,
        ..BlockOptions::default()
    };
    match arguments.has("--uring") {
        true if arguments.has("--map") => Err("--map or --uring, one of them: what is mapped is not asked for".into()),
        false if arguments.has("--map") => {
            let storage = MappedStorage::new(file)?;
            faults::not_within(storage.as_ptr_range())?;
            Ok(Box::new(Block::new(storage, options)?))
        }
        false => Ok(Box::new(Block::new(file, options)?)),
        #[cfg(feature = "io-uring")]
        true => {
            use devisor::virtio::block::{UringOptions, UringStorage};
            let uring = UringOptions {
                register_memory: arguments.has("--register-memory"),
                ..UringOptions::default()
            };
            let storage = UringStorage::new(file, uring)?;
            Ok(Box::new(Block::with_async(storage, options)?))
        }
        #[cfg(not(feature = "io-uring"))]
        true => Err("--uring: built without the feature io-uring".into()),
    }
}

fn net(arguments: &Arguments, clock: &Arc<dyn Clock>, switch: &Switch) -> Made {
    let options = NetOptions {
        mac: arguments.other("--mac").map(str::parse).transpose()?,
        pairs: arguments.queues,
        // QEMU and DPDK have the control queue of an interface to themselves, and accept of the features only those that are without it.
        control_queue_size: 0,
        front_end_controls: true,
        ..NetOptions::default()
    };
    let net = match (
        arguments.other("--tap"),
        arguments.other("--stream"),
        arguments.has("--switch"),
    ) {
        (Some(name), None, false) => Net::new(Tap::open_queues(name, arguments.queues)?, options)?,
        (None, None, true) => Net::new([switch.port()], options)?,
        (None, Some(path), false) => {
            let stream = UnixStream::connect(path).map_err(|error| format!("{path}: {error}"))?;
            Net::new([StreamSocket::new(stream)?], options)?
        }
        _ => return Err("one of --tap, --stream and --switch is needed: where the network is".into()),
    };
    Ok(Box::new(net.with_clock(Arc::clone(clock))))
}

fn console(arguments: &Arguments, clock: &Arc<dyn Clock>) -> Made {
    let port = match arguments.other("--stream") {
        Some(path) => Port::console(SocketPeer::bind(path, Arc::clone(clock))?),
        None => Port::console(Stdio::new()?),
    };
    Ok(Box::new(Console::single(port)?))
}

fn vsock(arguments: &Arguments, clock: &Arc<dyn Clock>) -> Made {
    let cid = arguments.other("--cid").ok_or("--cid is needed: the guest's address")?;
    let path = arguments
        .other("--uds-path")
        .ok_or("--uds-path is needed: where the host's sockets are")?;
    let options = VsockOptions {
        guest_cid: cid.parse()?,
        ..VsockOptions::default()
    };
    let host = UnixHost::bind(path).map_err(|error| format!("{path}: {error}"))?;
    Ok(Box::new(Vsock::new(host, Arc::clone(clock), options)?))
}

fn balloon(arguments: &Arguments, memory: &FrontEndMemory) -> Made {
    let mut balloon = Balloon::new(memory.clone(), BalloonOptions::default())?;
    if let Some(pages) = arguments.other("--pages") {
        balloon.set_target(pages.parse()?);
    }
    Ok(Box::new(balloon))
}
