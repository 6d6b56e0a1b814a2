//! Debian's kernel for arm64: one core, a GICv2, a PL011 and a PL031.

mod acpi;
pub mod board;
mod devicetree;
mod gic;
mod machine;
mod parts;

use std::{error::Error, fs, path::Path, sync::Arc, time::Duration};

use devisor::{backends::recorder::Recorder, time::ManualClock};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    devices::Devices,
    options::Options,
    ram::Ram,
    virtio::Transport,
    wing::{Facts, Plan, PowerRequest, Uart, Wing},
};
use board::Board;
use machine::Machine;
pub use machine::TICKS_PER_SECOND;

pub struct Arm64 {
    machine: Machine,
    board: Board,
    recorder: Recorder,
}

impl Arm64 {
    pub fn new(plan: &Plan<'_>) -> Result<Self, Box<dyn Error>> {
        let ram = plan.options.devices.memory(&board::ROOM, &plan.options.initrd)?;
        let (entry, x0) = match &plan.options.firmware {
            None => (board::KERNEL, board::DEVICE_TREE),
            Some(_) => (board::CODE.base, 0),
        };
        let (machine, pins) = Machine::new(&plan.options.engine, &ram, entry, x0)?;
        match &plan.options.firmware {
            None => load(plan.options, &ram)?,
            Some(image) => load_firmware(plan.options, image, &ram, &machine)?,
        }
        // The guest's time is all the time there is: the clock stands still while the guest does.
        let clock = Arc::new(ManualClock::new(board::EPOCH));
        let recorder = Recorder::builder().clock(clock.clone()).capacity(1 << 20).build();
        let board = Board::new(plan, &machine, pins, &ram, clock, &recorder)?;
        Ok(Self {
            machine,
            board,
            recorder,
        })
    }
}

impl Wing for Arm64 {
    fn run(&self, quantum: Duration) {
        self.machine.run(quantum);
    }

    fn time(&self) -> Duration {
        self.machine.time()
    }

    fn let_time_pass(&self) {
        self.board.let_time_pass(self.machine.time());
    }

    fn sleeps(&self) -> bool {
        self.machine.sleeps()
    }

    fn deadline(&self) -> Option<Duration> {
        self.machine.deadline().into_iter().chain(self.board.alarm()).min()
    }

    fn sleep_until(&self, time: Duration) {
        self.machine.sleep_until(time);
    }

    fn forget_translations(&self) {
        self.machine.forget_translations();
    }

    fn power_request(&self) -> Option<PowerRequest> {
        self.machine.power_request()
    }

    fn devices(&self) -> &Devices {
        &self.board.devices
    }

    fn uart(&self) -> &dyn Uart {
        &*self.board.uart
    }

    fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    fn accesses(&self) -> Vec<(&'static str, u64)> {
        self.machine.accesses()
    }

    fn facts(&self, options: &Options) -> Facts {
        board::facts(options)
    }
}

/// Puts kernel, initial RAM disk and device tree into RAM.
fn load(options: &Options, ram: &Ram) -> Result<(), Box<dyn Error>> {
    let kernel = fs::read(&options.kernel)?;
    if kernel.get(0x38..0x3c) != Some(b"ARM\x64") {
        return Err(format!("{} is not an arm64 boot Image", options.kernel.display()).into());
    }
    let initrd = fs::read(&options.initrd)?;
    let initrd_range = board::INITRD..board::INITRD + initrd.len() as u64;
    let tree = devicetree::build(options, Some((command_line(options), initrd_range)))?;
    for (data, address, what) in [
        (&kernel, board::KERNEL, "kernel"),
        (&tree, board::DEVICE_TREE, "device tree"),
        (&initrd, board::INITRD, "initial RAM disk"),
    ] {
        ram.memory()
            .write_slice(data, GuestAddress(address))
            .map_err(|error| format!("the {what} does not fit into RAM: {error}"))?;
    }
    Ok(())
}

/// Puts firmware where the core begins, and the device tree where it looks for it.
fn load_firmware(options: &Options, image: &Path, ram: &Ram, machine: &Machine) -> Result<(), Box<dyn Error>> {
    let code = fs::read(image)?;
    if code.len() as u64 > board::CODE.len {
        return Err(format!("{} has more than 64 MiB, the room for firmware", image.display()).into());
    }
    machine.plug_code(code, board::CODE.base)?;
    let tree = devicetree::build(options, None)?;
    ram.memory()
        .write_slice(&tree, GuestAddress(board::FIRMWARE_DEVICE_TREE))?;
    Ok(())
}

pub fn command_line(options: &Options) -> String {
    // The kernel's self-tests of its ciphers take as long as all the rest of its boot, and test nothing of ours.
    let mut line = "console=ttyAMA0 panic=1 cryptomgr.notests".to_owned();
    line += options.devices.command_line();
    if options.transport == Transport::PciIntx {
        line += " pci=nomsi";
    }
    line + options.of_measurement()
}
