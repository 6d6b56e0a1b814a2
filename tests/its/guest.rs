//! What plays the guest: two CPUs that take interrupts of any priority, and drivers of their redistributors and of the ITS.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use devisor::{
    backends::irqchip::{
        CpuId,
        gicv3::{CpuOutputs, GicV3, GicV3Config, LpiSupport, Redistributor, SysReg},
        its::{ControlFrame, EventId, Its, ItsConfig},
    },
    bus::{BusDevice, read_le},
    interrupt::{MsiSink, NoInterrupt, RequesterId, level_from_fn},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::command::{self, Command, VALID};

const CPUS: u32 = 2;
/// The function whose events are used: 00:01.0.
pub const DEVICE: u32 = 8;

const RAM: u64 = 0x4000_0000;
const QUEUE: u64 = RAM;
pub const DEVICE_TABLE: u64 = RAM + 0x1_0000;
const COLLECTION_TABLE: u64 = RAM + 0x2_0000;
const ITT: u64 = RAM + 0x3_0000;
const PROPERTIES: u64 = RAM + 0x4_0000;
const PENDING: u64 = RAM + 0x8_0000;

pub struct Guest {
    pub gic: GicV3,
    pub its: Its,
    frame: ControlFrame,
    pub redistributors: Vec<Redistributor>,
    irqs: Vec<Arc<AtomicBool>>,
    pub memory: Arc<GuestMemoryMmap>,
}

/// CPUs, and whether the IRQ of each is up.
pub fn outputs(cpus: u32) -> (Vec<Arc<AtomicBool>>, Vec<CpuOutputs>) {
    let irqs: Vec<Arc<AtomicBool>> = (0..cpus).map(|_| Arc::default()).collect();
    let outputs = irqs.iter().map(|irq| {
        let pin = Arc::clone(irq);
        CpuOutputs {
            irq: Box::new(level_from_fn(move |up| {
                pin.store(up, SeqCst);
                Ok(())
            })),
            fiq: Box::new(NoInterrupt),
        }
    });
    let outputs = outputs.collect();
    (irqs, outputs)
}

impl Guest {
    /// As it is after a reset.
    pub fn over(memory: Arc<GuestMemoryMmap>) -> Self {
        let config = GicV3Config {
            lpis: LpiSupport::Its,
            ..GicV3Config::new(CPUS)
        };
        let (irqs, outputs) = outputs(CPUS);
        let gic = GicV3::with_lpis(config, outputs, Arc::clone(&memory)).unwrap();
        let its = Its::new(ItsConfig::default(), &gic, Arc::clone(&memory)).unwrap();
        Self {
            frame: its.control_frame(),
            redistributors: (0..CPUS).map(|cpu| gic.redistributor(CpuId(cpu)).unwrap()).collect(),
            irqs,
            gic,
            its,
            memory,
        }
    }

    /// With collection n at CPU n, and room for 32 events of [`DEVICE`]. All LPIs are enabled.
    pub fn mapped() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x10_0000)]).unwrap();
        memory
            .write_slice(&[0xa1; 0x1_0000 - 8192], GuestAddress(PROPERTIES))
            .unwrap();
        let guest = Self::over(Arc::new(memory));
        guest.gic.distributor().write(0x000, &0b10_u32.to_le_bytes());
        for (cpu, redistributor) in (0..).zip(&guest.redistributors) {
            redistributor.write(0x14, &0_u32.to_le_bytes());
            redistributor.write(0x70, &(PROPERTIES | 15).to_le_bytes());
            redistributor.write(0x78, &(PENDING + cpu * 0x1_0000).to_le_bytes());
            redistributor.write(0x00, &1_u32.to_le_bytes());
            let interface = guest.gic.cpu_interface(CpuId(cpu as u32)).unwrap();
            interface.write_sysreg(SysReg::ICC_PMR_EL1, 0xff).unwrap();
            interface.write_sysreg(SysReg::ICC_IGRPEN1_EL1, 1).unwrap();
        }
        for (offset, value) in [(0x080, QUEUE), (0x100, DEVICE_TABLE), (0x108, COLLECTION_TABLE)] {
            guest.frame.write(offset, &(VALID | value).to_le_bytes());
        }
        guest.frame.write(0x000, &1_u32.to_le_bytes());
        guest.run(&[command::mapc(0, 0), command::mapc(1, 1), command::mapd(DEVICE, ITT, 5)]);
        guest
    }

    /// Commands, none of which is refused.
    pub fn run(&self, commands: &[Command]) {
        assert_eq!(self.try_run(commands), 0, "{commands:x?}");
    }

    /// Commands, and how many are refused.
    pub fn try_run(&self, commands: &[Command]) -> u64 {
        let before = self.its.refused_commands();
        let mut at = read(&self.frame, 0x088, 8);
        for command in commands {
            for (word, index) in command.iter().zip(0..) {
                self.memory
                    .write_obj(word.to_le(), GuestAddress(QUEUE + at + index * 8))
                    .unwrap();
            }
            at = (at + 32) % 0x1000;
        }
        self.frame.write(0x088, &at.to_le_bytes());
        assert_eq!(read(&self.frame, 0x090, 8), at);
        self.its.refused_commands() - before
    }

    /// A message of [`DEVICE`].
    pub fn message(&self, event: u32) {
        self.its
            .send(RequesterId(DEVICE as u16), self.its.message(EventId(event)))
            .unwrap();
    }

    /// Writes the configuration of an LPI to its table.
    pub fn configure(&self, lpi: u32, configuration: u8) {
        let address = GuestAddress(PROPERTIES + u64::from(lpi - 8192));
        self.memory.write_obj(configuration, address).unwrap();
    }

    pub fn irqs(&self) -> [bool; CPUS as usize] {
        std::array::from_fn(|cpu| self.irqs[cpu].load(SeqCst))
    }

    /// The CPU acknowledges an interrupt and ends it.
    pub fn take(&self, cpu: usize) -> u32 {
        let interface = self.gic.cpu_interface(CpuId(cpu as u32)).unwrap();
        let intid = interface.read_sysreg(SysReg::ICC_IAR1_EL1).unwrap();
        interface.write_sysreg(SysReg::ICC_EOIR1_EL1, intid).unwrap();
        intid as u32
    }

    pub fn read_distributor(&self, offset: u64) -> u64 {
        read(&self.gic.distributor(), offset, 4)
    }
}

pub fn read(face: &impl BusDevice, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    face.read(offset, &mut data[..len]);
    read_le(&data)
}
