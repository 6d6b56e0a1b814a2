//! Whatever a guest does with configuration space and BARs, in any order and width, the device is in a state that the
//! specification allows.

use std::sync::atomic::Ordering::SeqCst;

use devisor::{
    pci::{BarIndex, Function},
    virtio::{
        QueueIndex,
        transport::{
            VirtioTransport,
            pci::VirtioPciState,
            status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK},
        },
    },
};
use proptest::prelude::*;

use crate::{
    driver::*,
    rest,
    ring::{Ring, writable},
};

#[derive(Clone, Debug)]
enum Step {
    Config(u64, Vec<u8>),
    Bar(BarIndex, u64, Vec<u8>),
    Read(BarIndex, u64, usize),
    ReadConfig(u64, usize),
    /// A register in its own width, with a value that often means something.
    Register(u64, u64),
    Command(u16),
    Msix(u16),
    Entry(u16, bool),
    Start,
    Offer(bool),
    Change,
    Process(u16),
    Refuse(bool),
    Isr,
    BusReset,
    SaveAndRestore,
}

const REGISTERS: [u64; 13] = [
    DEVICE_FEATURE_SELECT,
    DRIVER_FEATURE_SELECT,
    DRIVER_FEATURE,
    CONFIG_MSIX_VECTOR,
    DEVICE_STATUS,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_MSIX_VECTOR,
    QUEUE_ENABLE,
    QUEUE_DESC,
    QUEUE_DRIVER,
    QUEUE_DEVICE,
    QUEUE_RESET,
];

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..=9);
    let bar = || prop::sample::select(BarIndex::ALL.to_vec());
    let offset = || {
        prop_oneof![
            4 => 0..0x48u64,
            1 => 0xff8..0x1008u64,
            1 => 0x1ff8..0x200cu64,
            2 => 0x2ff8..0x3010u64,
            1 => any::<u64>(),
        ]
    };
    let value = prop_oneof![
        4 => 0..0x10u64,
        1 => Just(0x10000u64),
        1 => any::<u64>(),
    ];
    prop_oneof![
        2 => (0..0x108u64, bytes()).prop_map(|(at, data)| Step::Config(at, data)),
        3 => (bar(), offset(), bytes()).prop_map(|(bar, at, data)| Step::Bar(bar, at, data)),
        2 => (bar(), offset(), 0..=9usize).prop_map(|(bar, at, len)| Step::Read(bar, at, len)),
        1 => (0..0x108u64, 0..=9usize).prop_map(|(at, len)| Step::ReadConfig(at, len)),
        8 => (prop::sample::select(REGISTERS.to_vec()), value).prop_map(|(at, value)| Step::Register(at, value)),
        3 => any::<u16>().prop_map(Step::Command),
        2 => prop::sample::select(vec![0, ENABLE, ENABLE | FUNCTION_MASK]).prop_map(Step::Msix),
        3 => (0..4u16, any::<bool>()).prop_map(|(vector, masked)| Step::Entry(vector, masked)),
        5 => Just(Step::Start),
        6 => any::<bool>().prop_map(Step::Offer),
        2 => Just(Step::Change),
        2 => (0..3u16).prop_map(Step::Process),
        1 => any::<bool>().prop_map(Step::Refuse),
        1 => Just(Step::Isr),
        1 => Just(Step::BusReset),
        1 => Just(Step::SaveAndRestore),
    ]
}

/// The driver's rings, for steps that do something sensible.
struct Guest {
    driver: Driver,
    ring: Ring,
    /// The platform has refused something: then nobody knows what it still has.
    refused: bool,
}

impl Guest {
    fn apply(&mut self, step: &Step) {
        let driver = &self.driver;
        match step {
            Step::Config(at, data) => driver.pci.write_config(*at, data),
            Step::Bar(bar, at, data) => {
                if !driver.pci.endpoint().write_bar(*bar, *at, data) {
                    driver.pci.write_bar(*bar, *at, data);
                }
            }
            Step::Read(bar, at, len) => {
                let mut data = vec![0; *len];
                if !driver.pci.endpoint().read_bar(*bar, *at, &mut data) {
                    driver.pci.read_bar(*bar, *at, &mut data);
                }
            }
            Step::ReadConfig(at, len) => driver.pci.read_config(*at, &mut vec![0; *len]),
            Step::Register(at, value) => driver.set(*at, *value),
            Step::Command(value) => driver.set_config(COMMAND, 2, (*value).into()),
            Step::Msix(value) => driver.set_config(MSIX_CONTROL, 2, (*value).into()),
            Step::Entry(vector, masked) => driver.mask(*vector, *masked),
            Step::Start => {
                driver.set(DEVICE_STATUS, 0);
                driver.negotiate(ALL);
                self.ring = driver.set_up_queue(0);
                driver.map_vectors();
                driver.go();
            }
            Step::Offer(kick) => {
                self.ring.request(&[writable(0x8000, 1)]);
                if *kick {
                    driver.kick(0);
                }
            }
            Step::Change => driver.change(),
            Step::Process(queue) => driver.pci.process(QueueIndex(*queue)),
            Step::Refuse(refuse) => {
                self.refused |= refuse;
                driver.platform.refuse.store(*refuse, SeqCst);
            }
            Step::Isr => _ = driver.isr(),
            Step::BusReset => Function::reset(&*driver.pci),
            Step::SaveAndRestore => {
                let state = rest::at_rest(&*driver.pci);
                driver.set(DEVICE_STATUS, 0);
                driver.pci.restore(&state).expect("its own state");
                // What was pending because the platform had refused it may have gone out now.
                assert!(driver.pci.save() == Ok(state) || self.refused);
                driver.pci.resume();
            }
        }
    }

    fn check(&self, before: &Frozen) {
        let driver = &self.driver;
        let status = driver.status() as u32;
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | DEVICE_NEEDS_RESET | FAILED;
        assert_eq!(status & !known, 0);
        for (bit, after) in [(FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)] {
            assert!(status & bit == 0 || status & after != 0, "status {status:#x}");
        }
        let mut state = rest::at_rest(&*driver.pci);
        let state = rest::pci(&mut state);
        for vector in state.queue_vectors.iter().chain([&state.config_vector]) {
            assert!(*vector < 3 || u64::from(*vector) == NO_VECTOR);
        }
        assert_eq!(state.endpoint.causes & !3, 0);
        assert!(
            state.endpoint.causes == 0 || status & DRIVER_OK != 0,
            "an event for nobody"
        );
        // The wire is what the registers say.
        let command = driver.config(COMMAND, 2) as u16;
        let msix = driver.config(MSIX_CONTROL, 2) as u16;
        let up = state.endpoint.causes != 0 && msix & ENABLE == 0 && command & INTX_DISABLE == 0;
        assert_eq!(driver.pci.endpoint().intx().is_up(), up);
        // No message is at the platform past a mask.
        let entries = &state.endpoint.msix.as_ref().unwrap().entries;
        let open = msix & (ENABLE | FUNCTION_MASK) == ENABLE && command & BUS_MASTER != 0;
        let most = if open {
            entries.iter().filter(|entry| !entry.masked).count()
        } else {
            0
        };
        assert!(driver.platform.live.load(SeqCst) <= most || self.refused);
        if command & BUS_MASTER == 0 && before.no_master {
            assert_eq!(driver.processed(), before.processed, "memory was touched");
        }
        driver.pci.resume();
        // Registers that are frozen by DRIVER_OK.
        let now = Frozen::of(driver);
        if before.live && now.live && now.session == before.session {
            assert_eq!(now.features, before.features);
            assert_eq!(now.running, before.running);
        }
    }
}

/// What must not change while the driver is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Frozen {
    live: bool,
    /// Resets so far.
    session: u32,
    features: u64,
    /// The layouts of queues that run, unless they were reset by themselves.
    running: Vec<Option<devisor::virtio::queue::QueueLayout>>,
    no_master: bool,
    processed: u32,
}

impl Frozen {
    fn of(driver: &Driver) -> Self {
        let mut state = driver.saved();
        let state = rest::pci(&mut state);
        let (session, processed) = (driver.pci.with_device(|probe| probe.resets), driver.processed());
        Self {
            live: state.transport.status & DRIVER_OK != 0,
            session,
            features: state.transport.driver_features,
            running: Vec::new(),
            no_master: driver.config(COMMAND, 2) as u16 & BUS_MASTER == 0,
            processed,
        }
        .with_queues(state)
    }

    fn with_queues(mut self, state: &VirtioPciState) -> Self {
        let resettable = state.transport.driver_features & devisor::virtio::features::RING_RESET != 0;
        let queues = state.transport.queues.iter().zip(&state.transport.setup);
        // With RING_RESET a queue may be another one a step later: then what runs is at least what was set up.
        self.running = queues
            .map(|(queue, setup)| {
                if let Some(queue) = queue {
                    assert_eq!(queue.layout, setup.layout, "a queue runs otherwise than it was set up");
                }
                queue.as_ref().filter(|_| !resettable).map(|queue| queue.layout)
            })
            .collect();
        self
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_accesses_leaves_an_allowed_state(steps in prop::collection::vec(step(), 1..80)) {
        let driver = Driver::with_msix();
        let ring = Ring::new(&driver.memory, 0x10000, SIZE);
        let mut guest = Guest { driver, ring, refused: false };
        for step in &steps {
            let before = Frozen::of(&guest.driver);
            guest.apply(step);
            guest.check(&before);
        }
        // However it was left, a reset and a driver that knows the rules make it work.
        let Guest { driver, .. } = guest;
        driver.platform.refuse.store(false, SeqCst);
        Function::reset(&*driver.pci);
        driver.place();
        driver.enable_msix();
        let [mut ring, _] = driver.start();
        driver.sent();
        driver.request(0, &mut ring);
        prop_assert_eq!(ring.used().len(), 1);
        prop_assert_eq!(driver.sent(), [OF_QUEUE[0]]);
    }
}
