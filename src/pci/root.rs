//! A root bus: which functions are on it, where their BARs decode, and which wires they pull.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, Weak},
};

use super::{
    address::DeviceFunction,
    bar::{Bar, BarIndex, BarKind},
    config::Pin,
    exchange::Exchange,
    function::Function,
    registers::*,
    slot::{Slot, Slots},
};
use crate::{
    bus::{Bus, BusDevice},
    interrupt::{LevelInterrupt, LineSource, MsiVectors, SharedLine},
    sync::lock,
};

/// A function cannot be placed on a [`RootBus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootBusError {
    /// The slot is out, or a function is in it.
    #[error("{0} is taken: a slot is free again when its endpoint is dropped")]
    Taken(DeviceFunction),
    /// The function's slot is not one of this bus.
    #[error("{0} was not built in a slot of this bus: make its endpoint with what `slot` gives")]
    Foreign(DeviceFunction),
}

type Wire = SharedLine<LineSource<Arc<dyn LevelInterrupt>>>;

/// Bus 0 of a host bridge: up to 256 functions.
///
/// *For embedders*: give it the four wires that INTA to INTD end at and where messages go, build an
/// [`Endpoint`](super::Endpoint) in each [`slot`](Self::slot) and [insert](Self::insert) the function around it, then
/// place its faces on your [`Bus`]: [`ecam`](Self::ecam) or [`config_ports`](Self::config_ports), and windows for what the
/// BARs decode. A BAR that the guest places outside of them is not reached. Clones are the same bus.
///
/// BARs are looked up where they decode at the moment of an access. If a guest lays one over another, the function
/// with the lower address has it, and the other one is back when they part.
///
/// # Threads
/// Every method may be called from any thread. No device is called while the bus is locked, so an access that has begun may
/// end after its BAR was moved or its function removed.
///
/// ```
/// use devisor::{bus::Bus, interrupt::NoInterrupt, pci::*};
/// use std::sync::Arc;
///
/// let wires = [(); 4].map(|()| Arc::new(NoInterrupt) as Arc<dyn devisor::interrupt::LevelInterrupt>);
/// let pci = RootBus::new(wires, Arc::new(NoMessages));
/// let bridge = HostBridge::new(pci.slot(DeviceFunction::new(0, 0).unwrap())?);
/// pci.insert(Arc::new(bridge))?;
///
/// let mut mmio = Bus::new();
/// mmio.insert(0x3000_0000, Ecam::SIZE, Arc::new(pci.ecam()))?;
/// mmio.insert(0x4000_0000, 0x1000_0000, Arc::new(pci.memory_window(0x4000_0000)))?;
///
/// let mut id = [0; 4];
/// mmio.read(0x3000_0000, &mut id)?;
/// assert_eq!(id, [0x36, 0x1b, 0x08, 0x00]);
/// mmio.read(0x3000_8000, &mut id)?;
/// assert_eq!(id, [0xff; 4], "no device 1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RootBus {
    shared: Arc<Shared>,
}

struct Shared {
    /// For each device a wire for each pin.
    wires: Vec<[Wire; 4]>,
    vectors: Arc<dyn MsiVectors>,
    state: Mutex<State>,
    /// Where the functions' BARs decode. An access works on the one that it found.
    decoder: Exchange<Decoder>,
}

#[derive(Default)]
struct State {
    /// Slots that are out, with the function once it is inserted.
    slots: BTreeMap<DeviceFunction, Option<Arc<dyn Function>>>,
}

#[derive(Default)]
struct Decoder {
    memory: Bus,
    ports: Bus,
}

/// A BAR as a region of the decoder.
struct BarFace {
    function: Arc<dyn Function>,
    bar: BarIndex,
    /// The endpoint answers, not the device.
    of_endpoint: bool,
}

impl BusDevice for BarFace {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.of_endpoint {
            true => self.read_endpoint(offset, data),
            false => self.function.read_bar(self.bar, offset, data),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match self.of_endpoint {
            true => self.write_endpoint(offset, data),
            false => self.function.write_bar(self.bar, offset, data),
        }
    }
}

impl BarFace {
    #[inline(never)]
    fn read_endpoint(&self, offset: u64, data: &mut [u8]) {
        self.function.endpoint().read_bar(self.bar, offset, data);
    }

    #[inline(never)]
    fn write_endpoint(&self, offset: u64, data: &[u8]) {
        self.function.endpoint().write_bar(self.bar, offset, data);
    }
}

impl RootBus {
    /// A bus without functions. `wires` are INTA to INTD, all down; `vectors` takes the messages.
    pub fn new(wires: [Arc<dyn LevelInterrupt>; 4], vectors: Arc<dyn MsiVectors>) -> Self {
        let roots = wires.map(SharedLine::new);
        let pins = [Pin::A, Pin::B, Pin::C, Pin::D];
        // A shared line for each device on top of the root's, as 64 functions are too many sources for one.
        let wires = (0..32).map(|device| {
            pins.map(|pin| {
                let source = roots[DeviceFunction(device << 3).wire(pin)].source();
                SharedLine::new(source.expect("32 devices are less than a shared line takes"))
            })
        });
        let shared = Shared {
            wires: wires.collect(),
            vectors,
            state: Mutex::default(),
            decoder: Exchange::new(Decoder::default()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A slot to build an endpoint in.
    ///
    /// # Errors
    /// [`RootBusError::Taken`] if it is out already.
    pub fn slot(&self, address: DeviceFunction) -> Result<Slot, RootBusError> {
        let mut state = lock(&self.shared.state);
        if state.slots.contains_key(&address) {
            return Err(RootBusError::Taken(address));
        }
        state.slots.insert(address, None);
        let bus: Weak<dyn Slots> = Arc::<Shared>::downgrade(&self.shared);
        Ok(Slot::on(bus, address, Arc::clone(&self.shared.vectors)))
    }

    /// Places `function` in the slot that its endpoint was built in. A guest finds a device by its function 0: insert that
    /// one too.
    ///
    /// # Errors
    /// [`RootBusError`] if its slot is not of this bus, or it is inserted already.
    pub fn insert(&self, function: Arc<dyn Function>) -> Result<(), RootBusError> {
        let address = function.endpoint().address();
        if !function.endpoint().slot().is_of(&self.shared) {
            return Err(RootBusError::Foreign(address));
        }
        {
            let mut state = lock(&self.shared.state);
            match state.slots.get_mut(&address) {
                Some(place @ None) => *place = Some(function),
                _ => return Err(RootBusError::Taken(address)),
            }
        }
        self.shared.refresh();
        Ok(())
    }

    /// Takes the function at `address` off the bus: no access reaches it any more. Its wire, its vectors and its doorbells
    /// are as they were until it is reset or dropped, and the slot is taken until its endpoint is dropped.
    pub fn remove(&self, address: DeviceFunction) -> Option<Arc<dyn Function>> {
        let function = lock(&self.shared.state).slots.get_mut(&address)?.take()?;
        self.shared.refresh();
        Some(function)
    }

    /// The function at `address`.
    pub fn function(&self, address: DeviceFunction) -> Option<Arc<dyn Function>> {
        lock(&self.shared.state).slots.get(&address)?.clone()
    }

    /// All functions, lowest address first.
    pub fn functions(&self) -> Vec<Arc<dyn Function>> {
        lock(&self.shared.state).slots.values().flatten().cloned().collect()
    }

    /// A reset of the bus (PCI Local Bus 3.0, section 2.2.1, RST#): that of every function on it, one after the other. What the faces hold
    /// is not the bus's: see [`ConfigPorts::set_address`](super::ConfigPorts::set_address).
    pub fn reset(&self) {
        for function in self.functions() {
            function.reset();
        }
    }

    /// The guest reads the configuration space of `address`: ones, if nothing is there.
    pub fn read_config(&self, address: DeviceFunction, offset: u64, data: &mut [u8]) {
        let Some(function) = self.function(address) else {
            return data.fill(0xff);
        };
        function.read_config(offset, data);
        let header = (HEADER_TYPE as u64)
            .checked_sub(offset)
            .and_then(|at| data.get_mut(usize::try_from(at).ok()?));
        if let Some(byte) = header
            && self.has_several(address.device())
        {
            *byte |= MULTI_FUNCTION;
        }
    }

    /// The guest writes the configuration space of `address`.
    pub fn write_config(&self, address: DeviceFunction, offset: u64, data: &[u8]) {
        if let Some(function) = self.function(address) {
            function.write_config(offset, data);
        }
    }

    fn has_several(&self, device: u8) -> bool {
        let (first, last) = (DeviceFunction(device << 3), DeviceFunction(device << 3 | 7));
        let state = lock(&self.shared.state);
        let functions = state
            .slots
            .range(first..=last)
            .filter(|(_, function)| function.is_some());
        functions.count() > 1
    }

    /// The face for accesses to memory that PCI decodes from the address `base` on: place it where the host bridge forwards to
    /// that address.
    pub fn memory_window(&self, base: u64) -> Window {
        self.window(base, false)
    }

    /// The face for accesses to ports from `base` on.
    pub fn port_window(&self, base: u64) -> Window {
        self.window(base, true)
    }

    fn window(&self, base: u64, ports: bool) -> Window {
        let shared = Arc::clone(&self.shared);
        Window { shared, base, ports }
    }
}

impl Slots for Shared {
    fn line(&self, address: DeviceFunction, pin: Pin) -> Option<Box<dyn LevelInterrupt>> {
        let wire = &self.wires[usize::from(address.device())][pin as usize - 1];
        // A slot is out once, so a wire has no more than eight sources.
        wire.source().ok().map(|source| Box::new(source) as _)
    }

    /// Decodes by what the endpoints say now. Whoever changes that comes here afterwards, so the last one sees it all.
    fn refresh(&self) {
        let before = {
            let state = lock(&self.state);
            self.decoder.replace(Decoder::new(state.slots.values().flatten()))
        };
        // It may hold the last of a removed function, whose slot wants the lock.
        drop(before);
    }

    fn free(&self, address: DeviceFunction) {
        lock(&self.state).slots.remove(&address);
    }
}

impl Decoder {
    fn new<'a>(functions: impl Iterator<Item = &'a Arc<dyn Function>>) -> Self {
        let mut decoder = Self::default();
        for function in functions {
            for (bar, window) in BarIndex::ALL.into_iter().zip(function.endpoint().windows()) {
                let Some((Bar { kind, size }, base)) = window else {
                    continue;
                };
                let space = match kind {
                    BarKind::Io => &mut decoder.ports,
                    _ => &mut decoder.memory,
                };
                let function = Arc::clone(function);
                let of_endpoint = function.endpoint().has_bar(bar);
                // One that overlaps is the guest's doing: it is not reached until the guest moves it.
                let _ = space.insert(
                    base,
                    size,
                    Arc::new(BarFace {
                        function,
                        bar,
                        of_endpoint,
                    }),
                );
            }
        }
        decoder
    }
}

/// Accesses from the host's side to what the functions' BARs decode. What nobody decodes reads as ones.
///
/// [`RootBus::memory_window`] and [`RootBus::port_window`] make one.
#[derive(Clone)]
pub struct Window {
    shared: Arc<Shared>,
    base: u64,
    ports: bool,
}

impl Decoder {
    #[inline]
    fn space(&self, ports: bool) -> &Bus {
        if ports { &self.ports } else { &self.memory }
    }
}

impl BusDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Nobody there has left ones, and so does an address that wraps.
        let decoder = self.shared.decoder.get();
        let _ = decoder.space(self.ports).read(self.base.wrapping_add(offset), data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let decoder = self.shared.decoder.get();
        let _ = decoder.space(self.ports).write(self.base.wrapping_add(offset), data);
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("base", &format_args!("{:#x}", self.base))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RootBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slots: Vec<_> = lock(&self.shared.state).slots.keys().copied().collect();
        f.debug_struct("RootBus").field("slots", &slots).finish_non_exhaustive()
    }
}
