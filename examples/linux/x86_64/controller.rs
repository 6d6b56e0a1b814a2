//! What is between a core of rsemu's and its local APIC: what a VMM does before it enters a vCPU, and after.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use devisor::{
    backends::irqchip::{
        lapic::{CpuEvent, LocalApic, Request},
        pic::Pic,
    },
    bus::BusDevice,
    interrupt::{LevelInterrupt, level_from_fn},
};
use rsemu::core::wire::{IntAck, IntAckCycle, IntAckResponse, Level, LocalController, Startup, WireId, WireSink};

use super::vectors::Acknowledged;

/// IA32_APIC_BASE.
const APIC_BASE: u32 = 0x1b;

/// A local APIC has something new for its core.
#[derive(Clone, Default)]
pub struct Attention(Arc<AtomicBool>);

impl Attention {
    /// The line that the local APIC raises then. From any thread.
    pub fn line(&self) -> impl LevelInterrupt + use<> {
        let wanted = Arc::clone(&self.0);
        level_from_fn(move |up| {
            if up {
                wanted.store(true, Ordering::SeqCst);
            }
            Ok(())
        })
    }

    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn given(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Inputs of a core.
pub struct Inputs {
    pub intr: Arc<dyn WireSink>,
    pub nmi: Arc<dyn WireSink>,
    pub wire: WireId,
}

pub struct Controller {
    cpu: u32,
    apic: LocalApic,
    pic: Pic,
    attention: Attention,
    inputs: Inputs,
    acknowledged: Arc<Acknowledged>,
    /// Whether INTR is up.
    up: AtomicBool,
    /// INIT and start-up that the core has not taken yet.
    startup: Mutex<Startup>,
}

impl Controller {
    pub fn new(
        cpu: u32,
        apic: LocalApic,
        pic: Pic,
        attention: Attention,
        inputs: Inputs,
        acknowledged: Arc<Acknowledged>,
    ) -> Self {
        Self {
            cpu,
            apic,
            pic,
            attention,
            inputs,
            acknowledged,
            up: AtomicBool::new(false),
            // rsemu's cores come up as if each were the bootstrap processor. The others wait for a start-up.
            startup: Mutex::new(Startup {
                init: cpu != 0,
                ..Startup::NONE
            }),
        }
    }

    /// Takes the local APIC's events and drives INTR as it says. To be called after whatever may have changed that, on the thread
    /// of the cores.
    pub fn attend(&self) {
        loop {
            self.attention.given();
            while let Some(event) = self.apic.next_event() {
                self.event(event);
            }
            let pending = self.apic.pending();
            if pending.event {
                continue;
            }
            if self.up.swap(pending.request, Ordering::SeqCst) != pending.request {
                let level = if pending.request { Level::High } else { Level::Low };
                self.inputs.intr.set_level(self.inputs.wire, 0, level);
            }
            if !self.attention.is_wanted() {
                return;
            }
        }
    }

    /// The same, if the local APIC wants it.
    pub fn attend_if_wanted(&self) {
        if self.attention.is_wanted() {
            self.attend();
        }
    }

    /// Whether there is nothing that a sleeping core would have to hear of.
    pub fn is_quiet(&self) -> bool {
        !self.attention.is_wanted() && !self.with_startup(|startup| startup.init || startup.page.is_some())
    }

    /// An access to the local APIC's page, if `address` is there.
    pub fn page_offset(&self, address: u64) -> Option<u64> {
        self.apic.page_offset(address)
    }

    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.apic.read(offset, data);
        self.attend_if_wanted();
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        self.apic.write(offset, data);
        // EOI, TPR, ICR, timer: any of them may change what is pending.
        self.attend();
    }

    fn event(&self, event: CpuEvent) {
        match event {
            CpuEvent::Init => self.with_startup(|startup| {
                *startup = Startup {
                    init: true,
                    ..Startup::NONE
                };
            }),
            CpuEvent::StartUp(vector) => self.with_startup(|startup| startup.page = Some(vector.0)),
            CpuEvent::Nmi => {
                self.inputs.nmi.set_level(self.inputs.wire, 0, Level::High);
                self.inputs.nmi.set_level(self.inputs.wire, 0, Level::Low);
            }
            // There is no firmware that would have a handler.
            CpuEvent::Smi => {}
        }
    }

    fn with_startup<R>(&self, f: impl FnOnce(&mut Startup) -> R) -> R {
        f(&mut self.startup.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl IntAck for Controller {
    fn acknowledge(&self, _: IntAckCycle) -> IntAckResponse {
        const SPURIOUS: u8 = 0xff;
        let vector = match self.apic.acknowledge() {
            Some(Request::Vector(vector)) => {
                self.acknowledged.vector(self.cpu, vector);
                vector.0
            }
            Some(Request::External) => {
                let vector = self.pic.acknowledge();
                self.acknowledged.external(vector);
                vector.0
            }
            None => SPURIOUS,
        };
        self.attend();
        IntAckResponse::Vector(vector.into())
    }
}

impl LocalController for Controller {
    fn take_startup(&self) -> Startup {
        self.attend_if_wanted();
        self.with_startup(|startup| std::mem::replace(startup, Startup::NONE))
    }

    fn base_register(&self) -> u64 {
        self.apic.read_msr(APIC_BASE).unwrap_or(0)
    }

    fn set_base_register(&self, value: u64) {
        // rsemu has no way to say #GP here.
        let _ = self.apic.write_msr(APIC_BASE, value);
        self.attend();
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("cpu", &self.cpu)
            .finish_non_exhaustive()
    }
}
