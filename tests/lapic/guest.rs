//! A machine of local APICs, with what its guest does to them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use devisor::{
    backends::irqchip::{
        CpuId,
        lapic::{ApicId, LocalApic, LocalApicParts, LocalApics, LocalApicsConfig, Request, Vector},
    },
    bus::BusDevice,
    interrupt::{MsiMessage, MsiSink, RequesterId, level_from_fn},
    time::{Alarm, ManualClock},
};

pub const ID: u64 = 0x020;
pub const TPR: u64 = 0x080;
pub const PPR: u64 = 0x0a0;
pub const EOI: u64 = 0x0b0;
pub const LDR: u64 = 0x0d0;
pub const DFR: u64 = 0x0e0;
pub const SVR: u64 = 0x0f0;
pub const ISR: u64 = 0x100;
pub const TMR: u64 = 0x180;
pub const IRR: u64 = 0x200;
pub const ESR: u64 = 0x280;
pub const ICR_LOW: u64 = 0x300;
pub const ICR_HIGH: u64 = 0x310;
pub const LVT_TIMER: u64 = 0x320;
pub const LVT_THERMAL: u64 = 0x330;
pub const LVT_PERFORMANCE: u64 = 0x340;
pub const LVT_LINT0: u64 = 0x350;
pub const LVT_LINT1: u64 = 0x360;
pub const LVT_ERROR: u64 = 0x370;
pub const INITIAL_COUNT: u64 = 0x380;
pub const CURRENT_COUNT: u64 = 0x390;
pub const DIVIDE: u64 = 0x3e0;

pub const MASKED: u32 = 1 << 16;
pub const ENABLE: u32 = 0x1ff;
pub const APIC_BASE: u32 = 0x1b;
pub const TSC_DEADLINE: u32 = 0x6e0;
pub const X2APIC: u64 = 0xfee0_0c00;

/// The line and the alarm of one CPU, as the embedder hears them.
#[derive(Default)]
pub struct Heard {
    pub awake: AtomicBool,
    pub wakes: AtomicU64,
    pub refuse: AtomicBool,
    pub deadlines: Mutex<Vec<Option<Duration>>>,
}

struct Deadlines(Arc<Heard>);

impl Alarm for Deadlines {
    fn set(&self, deadline: Option<Duration>) {
        self.0.deadlines.lock().unwrap().push(deadline);
    }
}

pub struct Machine {
    pub apics: LocalApics,
    pub clock: Arc<ManualClock>,
    pub cpus: Vec<Cpu>,
}

pub struct Cpu {
    pub apic: LocalApic,
    pub heard: Arc<Heard>,
}

impl Machine {
    pub fn new(cpus: u32) -> Self {
        Self::with(LocalApicsConfig::default(), &(0..cpus).collect::<Vec<_>>())
    }

    pub fn with(config: LocalApicsConfig, ids: &[u32]) -> Self {
        let clock = Arc::new(ManualClock::default());
        let heard: Vec<Arc<Heard>> = ids.iter().map(|_| Arc::default()).collect();
        let parts = ids.iter().zip(&heard).map(|(id, heard)| {
            let line = Arc::clone(heard);
            LocalApicParts {
                id: ApicId(*id),
                wake: Box::new(level_from_fn(move |up| {
                    if line.refuse.load(SeqCst) {
                        return Err(std::io::Error::other("refused"));
                    }
                    line.awake.store(up, SeqCst);
                    line.wakes.fetch_add(u64::from(up), SeqCst);
                    Ok(())
                })),
                alarm: Box::new(Deadlines(Arc::clone(heard))),
            }
        });
        let apics = LocalApics::new(config, clock.clone(), parts.collect()).unwrap();
        let cpus = heard.into_iter().enumerate().map(|(cpu, heard)| Cpu {
            apic: apics.cpu(CpuId(cpu as u32)).unwrap(),
            heard,
        });
        Self {
            cpus: cpus.collect(),
            apics,
            clock,
        }
    }

    /// With every APIC enabled by software, and running.
    pub fn enabled(cpus: u32) -> Self {
        let machine = Self::new(cpus);
        for cpu in &machine.cpus {
            cpu.enable();
            cpu.run();
        }
        machine
    }

    pub fn send(&self, address: u32, data: u32) {
        let address = u64::from(0xfee0_0000 | address);
        self.apics.send(RequesterId(0), MsiMessage { address, data }).unwrap();
    }

    /// Lets time pass, and expires what is due, once.
    pub fn pass(&self, step: Duration) {
        self.clock.advance(step);
        for cpu in &self.cpus {
            cpu.apic.expire();
        }
    }

    /// Which CPUs have the vector pending.
    pub fn pending(&self, vector: u8) -> Vec<usize> {
        let all = self.cpus.iter().enumerate();
        all.filter(|(_, cpu)| cpu.has(IRR, vector))
            .map(|(cpu, _)| cpu)
            .collect()
    }
}

impl Cpu {
    pub fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.apic.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.apic.write(offset, &value.to_le_bytes());
    }

    pub fn enable(&self) {
        self.write(SVR, ENABLE);
    }

    /// An application processor is started.
    pub fn run(&self) {
        if self.apic.waits_for_start_up() {
            let state = devisor::backends::irqchip::lapic::LocalApicState {
                waits_for_start_up: false,
                ..self.apic.save()
            };
            self.apic.restore(&state).unwrap();
        }
    }

    pub fn take(&self) -> Option<u8> {
        match self.apic.acknowledge()? {
            Request::Vector(Vector(vector)) => Some(vector),
            Request::External => panic!("an external interrupt"),
        }
    }

    pub fn eoi(&self) {
        self.write(EOI, 0);
    }

    /// Whether the vector is in IRR, ISR or TMR.
    pub fn has(&self, array: u64, vector: u8) -> bool {
        self.read(array + u64::from(vector / 32) * 16) >> (vector % 32) & 1 != 0
    }

    pub fn x2apic(&self) {
        let base = self.apic.read_msr(APIC_BASE).unwrap();
        self.apic.write_msr(APIC_BASE, base | 1 << 10).unwrap();
    }
}
