//! Which way an event goes: a vector of MSI-X, or ISR status and INTx (virtio 1.2, sections 4.1.4.5 and 4.1.5). A change of
//! the configuration is in ISR status either way.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
};

use super::registers::{ISR_CONFIGURATION, ISR_QUEUE, NO_VECTOR};
use crate::{
    pci::{Endpoint, Intx, MsiX, Signalled},
    virtio::{QueueIndex, queue::VirtioInterrupt},
};

/// The ISR status: the causes of INTx, and noted with them that the driver is ready for events. While MSI-X is on, what it
/// says does not reach the wire; what is still in it when MSI-X goes off does.
pub(super) struct Isr<'a>(pub &'a Intx);

impl Isr<'_> {
    /// From here on, events are for the driver.
    fn ready(&self) {
        self.0.update_noted(|isr, _| (isr, true));
    }

    #[inline]
    fn is_ready(&self) -> bool {
        self.0.is_noted()
    }

    /// No event is pending, and none that was decided on before this is taken any more.
    fn reset(&self) {
        self.0.update_noted(|_, _| (0, false));
    }

    /// The driver reads the register: what it reads is gone, and INTx with it.
    pub fn read(&self) -> u8 {
        let isr = self.0.update(|_| 0);
        // A refusal is counted, and the line told again by the next call.
        let _ = self.0.settle();
        isr
    }

    /// Sets the bit and tells nobody, if a driver is ready. Whether one is.
    fn set(&self, event: u8) -> bool {
        let (_, ready) = self.0.update_noted(|isr, ready| match ready {
            true => (isr | event, true),
            false => (isr, false),
        });
        ready
    }

    /// Sets the bit, then raises INTx; nothing, if no driver is ready.
    fn raise(&self, event: u8) -> io::Result<()> {
        if self.set(event) { self.0.settle() } else { Ok(()) }
    }
}

/// The function's interrupts, and the vectors that the driver has mapped.
///
/// Which way holds is asked at the moment of signalling, for drivers switch at run time. A configuration interrupt that
/// was on its way when the driver reset the device may still come as a message: a posted write in flight would, too.
pub(super) struct PciInterrupt {
    pub endpoint: Endpoint,
    /// Vectors that are mapped: existing ones, or NO_VECTOR.
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    /// The device was reset, and the platform has to hear of it.
    was_reset: AtomicBool,
}

impl PciInterrupt {
    pub fn new(endpoint: Endpoint, queues: usize) -> Self {
        Self {
            endpoint,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            was_reset: AtomicBool::new(false),
        }
    }

    #[inline]
    pub fn isr(&self) -> Isr<'_> {
        Isr(self.endpoint.intx())
    }

    pub fn queues(&self) -> usize {
        self.queue_vectors.len()
    }

    /// How many vectors the driver can map.
    pub fn vectors(&self) -> u16 {
        self.endpoint.msix().map_or(0, MsiX::len)
    }

    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    /// The vector of `queue`; of a queue that does not exist, none.
    #[inline]
    pub fn queue_vector(&self, queue: QueueIndex) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue.0));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// The driver maps configuration changes to `vector`. One that cannot be reads back as NO_VECTOR.
    pub fn map_config(&self, vector: u16) {
        self.config_vector.store(self.mapped(vector), Ordering::SeqCst);
    }

    /// The driver maps `queue` to `vector`.
    pub fn map_queue(&self, queue: QueueIndex, vector: u16) {
        if let Some(mapped) = self.queue_vectors.get(usize::from(queue.0)) {
            mapped.store(self.mapped(vector), Ordering::SeqCst);
        }
    }

    /// NO_VECTOR, if there is no such vector or the platform has none to give: a driver then tries to do with fewer.
    fn mapped(&self, vector: u16) -> u16 {
        match self.endpoint.msix() {
            Some(msix) if msix.reserve(vector).is_ok() => vector,
            _ => NO_VECTOR,
        }
    }

    /// Takes over mapped vectors that were checked.
    pub fn restore_vectors(&self, config: u16, queues: &[u16]) {
        self.config_vector.store(config, Ordering::SeqCst);
        for (mapped, &vector) in self.queue_vectors.iter().zip(queues) {
            mapped.store(vector, Ordering::SeqCst);
        }
    }

    fn unmap_all(&self) {
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    /// Sends a message, if that is the way now; `false` says that it is not. NO_VECTOR is silence.
    #[inline(always)]
    fn send(&self, vector: u16) -> io::Result<bool> {
        match self.endpoint.msix() {
            // Checked here too: what is mapped may come from a saved state.
            Some(msix) if vector < msix.len() => Ok(msix.trigger(vector)? != Signalled::Disabled),
            Some(msix) => Ok(msix.is_enabled()),
            None => Ok(false),
        }
    }

    /// A message for each vector that one of the queues has; if that is not the way now, ISR for all of them.
    fn used_on_several(&self, queues: &[QueueIndex]) -> io::Result<()> {
        let mut result = Ok(());
        for (position, &queue) in queues.iter().enumerate() {
            let vector = self.queue_vector(queue);
            let shared = |&earlier: &QueueIndex| self.queue_vector(earlier) == vector;
            if queues[..position].iter().any(shared) {
                continue;
            }
            match self.send(vector) {
                Ok(true) => {}
                Ok(false) => return self.isr().raise(ISR_QUEUE),
                Err(refusal) => result = Err(refusal),
            }
        }
        result
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn used(&self, queues: &[QueueIndex]) -> io::Result<()> {
        if !self.isr().is_ready() {
            return Ok(());
        }
        let &[queue] = queues else {
            return self.used_on_several(queues);
        };
        match self.send(self.queue_vector(queue)) {
            Ok(true) => Ok(()),
            Ok(false) => self.isr().raise(ISR_QUEUE),
            Err(refusal) => Err(refusal),
        }
    }

    /// "The device MUST set the Device Configuration Interrupt bit in ISR status before sending a device configuration
    /// change notification" (section 4.1.4.5.1): only the queue bit hangs on MSI-X, as drivers with one vector for
    /// everything rely on. It is set for NO_VECTOR too, where it is all that there is.
    fn config_changed(&self) -> io::Result<()> {
        if !self.isr().set(ISR_CONFIGURATION) || self.send(self.config_vector())? {
            return Ok(());
        }
        self.endpoint.intx().settle()
    }

    fn ready(&self) {
        self.isr().ready();
    }

    fn reset(&self) {
        self.isr().reset();
        self.unmap_all();
        if let Some(msix) = self.endpoint.msix() {
            msix.forget();
        }
        self.was_reset.store(true, Ordering::SeqCst);
    }

    fn settle(&self) {
        if self.was_reset.load(Ordering::SeqCst)
            && self.was_reset.swap(false, Ordering::SeqCst)
            && let Some(msix) = self.endpoint.msix()
        {
            msix.settle_all();
        }
        if !self.endpoint.intx().is_settled() {
            // A refusal is counted, and told again by the next call.
            let _ = self.endpoint.intx().settle();
        }
    }
}

impl fmt::Debug for PciInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciInterrupt")
            .field("endpoint", &self.endpoint)
            .field("config_vector", &self.config_vector)
            .field("queue_vectors", &self.queue_vectors)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    };

    use super::*;
    use crate::{
        interrupt::{MsiMessage, MsiSink, NoInterrupt, RequesterId, SinkVectors},
        pci::{BarIndex, DeviceFunction, EndpointConfig, Identity, Pin, Slot},
    };

    /// Messages that came, and how many of the next are refused.
    #[derive(Default)]
    struct Count(AtomicU32, AtomicU32);

    impl MsiSink for Count {
        fn send(&self, _requester: RequesterId, _message: MsiMessage) -> io::Result<()> {
            if self.1.load(SeqCst) != 0 {
                self.1.fetch_sub(1, SeqCst);
                return Err(io::Error::other("as told"));
            }
            self.0.fetch_add(1, SeqCst);
            Ok(())
        }
    }

    /// With two vectors, enabled and not masked, and a queue.
    fn interrupt() -> (PciInterrupt, Arc<Count>) {
        let mut config = EndpointConfig::new(Identity::default()).unwrap();
        config.pin(Pin::A).msix(BarIndex::Bar1, 2).unwrap();
        let count = Arc::new(Count::default());
        let vectors = Arc::new(SinkVectors::new(Arc::clone(&count)));
        let slot = Slot::new(DeviceFunction::new(1, 0).unwrap(), Box::new(NoInterrupt), vectors);
        let endpoint = Endpoint::new(config, slot);
        endpoint.write_config(0x04, &[0x04, 0]);
        endpoint.write_config(0x42, &[0, 0x80]);
        endpoint.write_bar(BarIndex::Bar1, 0x0c, &[0; 4]);
        endpoint.write_bar(BarIndex::Bar1, 0x1c, &[0; 4]);
        (PciInterrupt::new(endpoint, 3), count)
    }

    #[test]
    fn a_vector_out_of_range_is_silent_when_used() {
        let (interrupt, count) = interrupt();
        interrupt.ready();
        interrupt.restore_vectors(2, &[7, 1, NO_VECTOR]);
        interrupt.used(&[QueueIndex(0)]).unwrap();
        interrupt.used(&[QueueIndex(9)]).unwrap();
        interrupt.config_changed().unwrap();
        assert_eq!((count.0.load(SeqCst), interrupt.isr().read()), (0, ISR_CONFIGURATION));
        interrupt.used(&[QueueIndex(0), QueueIndex(1)]).unwrap();
        assert_eq!(count.0.load(SeqCst), 1);
    }

    #[test]
    fn before_the_driver_is_ready_mapped_vectors_are_silent() {
        let (interrupt, count) = interrupt();
        interrupt.restore_vectors(0, &[1; 3]);
        interrupt.config_changed().unwrap();
        interrupt.used(&[QueueIndex(0)]).unwrap();
        assert_eq!((count.0.load(SeqCst), interrupt.isr().read()), (0, 0));
        interrupt.ready();
        interrupt.config_changed().unwrap();
        assert_eq!((count.0.load(SeqCst), interrupt.isr().read()), (1, ISR_CONFIGURATION));
    }

    #[test]
    fn the_configuration_bit_is_there_when_the_message_comes_and_moves_no_wire_until_messages_are_off() {
        let (interrupt, count) = interrupt();
        let intx = interrupt.endpoint.intx();
        interrupt.ready();
        interrupt.restore_vectors(0, &[1; 3]);
        count.1.store(1, SeqCst);
        assert!(interrupt.config_changed().is_err());
        assert_eq!(
            intx.causes(),
            ISR_CONFIGURATION,
            "set first, whatever becomes of the message"
        );
        interrupt.used(&[QueueIndex(0)]).unwrap();
        interrupt.settle();
        assert_eq!((intx.causes(), intx.is_up()), (ISR_CONFIGURATION, false));
        interrupt.endpoint.write_config(0x42, &[0, 0]);
        assert!(intx.is_up());
        assert_eq!((interrupt.isr().read(), intx.is_up()), (ISR_CONFIGURATION, false));
    }

    #[test]
    fn queues_that_share_a_vector_are_one_message() {
        let (interrupt, count) = interrupt();
        interrupt.ready();
        interrupt.restore_vectors(NO_VECTOR, &[1, 0, 1]);
        interrupt.used(&[QueueIndex(0), QueueIndex(2), QueueIndex(1)]).unwrap();
        assert_eq!(count.0.load(SeqCst), 2);
    }

    #[test]
    fn a_refused_message_of_one_queue_keeps_back_that_of_no_other() {
        let (interrupt, count) = interrupt();
        interrupt.ready();
        interrupt.restore_vectors(NO_VECTOR, &[0, 1, 1]);
        count.1.store(1, SeqCst);
        assert!(interrupt.used(&[QueueIndex(0), QueueIndex(1)]).is_err());
        assert_eq!(count.0.load(SeqCst), 1);
        assert!(interrupt.endpoint.msix().unwrap().is_pending(0));
    }

    #[test]
    fn an_event_that_comes_after_the_reset_is_dropped() {
        let (interrupt, count) = interrupt();
        interrupt.ready();
        interrupt.restore_vectors(0, &[0; 3]);
        interrupt.reset();
        interrupt.settle();
        // Decided on while the driver was there, by a thread that has come no further until now.
        interrupt.config_changed().unwrap();
        interrupt.used(&[QueueIndex(0)]).unwrap();
        assert_eq!((count.0.load(SeqCst), interrupt.endpoint.intx().causes()), (0, 0));
        interrupt.endpoint.write_config(0x42, &[0, 0]);
        interrupt.config_changed().unwrap();
        assert_eq!(interrupt.isr().read(), 0, "nobody would ever read it");
        interrupt.ready();
        interrupt.config_changed().unwrap();
        assert_eq!(interrupt.isr().read(), ISR_CONFIGURATION);
    }

    #[test]
    fn a_reset_forgets_at_once_and_takes_nothing_of_the_next_driver_when_the_platform_hears_of_it() {
        let (interrupt, count) = interrupt();
        let mask = |masked: u32| {
            interrupt
                .endpoint
                .write_bar(BarIndex::Bar1, 0x0c, &masked.to_le_bytes())
        };
        let use_vector_0 = || {
            interrupt.ready();
            interrupt.restore_vectors(0, &[0; 3]);
            interrupt.used(&[QueueIndex(0)]).unwrap();
        };
        mask(1);
        use_vector_0();
        assert!(interrupt.endpoint.msix().unwrap().is_pending(0));
        interrupt.reset();
        assert!(
            !interrupt.endpoint.msix().unwrap().is_pending(0),
            "before the status reads 0"
        );
        // Another thread sees to the platform, and is slow: the driver has found the status 0, and come back.
        use_vector_0();
        interrupt.settle();
        assert!(interrupt.endpoint.msix().unwrap().is_pending(0));
        mask(0);
        assert_eq!(count.0.load(SeqCst), 1);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! `RUSTFLAGS="--cfg loom" cargo test --release --lib loom_`

    use loom::{
        sync::{Arc, atomic::AtomicU64},
        thread,
    };
    use std::sync::atomic::Ordering::SeqCst;

    use super::*;
    use crate::interrupt::level_from_fn;

    struct World {
        intx: Intx,
        /// The wire, as the interrupt controller samples it.
        wire: Arc<AtomicU64>,
        used_idx: AtomicU64,
    }

    impl World {
        fn new() -> Arc<Self> {
            let wire = Arc::new(AtomicU64::new(0));
            let heard = wire.clone();
            // Swapped, not stored: in loom, a swap may overtake a store that it should have read.
            let line = level_from_fn(move |up| {
                heard.swap(up.into(), SeqCst);
                Ok(())
            });
            let world = Arc::new(Self {
                intx: Intx::new(Box::new(line)),
                wire,
                used_idx: AtomicU64::new(0),
            });
            Isr(&world.intx).ready();
            world
        }

        fn device(world: &Arc<Self>, events: u64) -> thread::JoinHandle<()> {
            let world = world.clone();
            thread::spawn(move || {
                for index in 1..=events {
                    world.used_idx.store(index, SeqCst);
                    Isr(&world.intx).raise(ISR_QUEUE).unwrap();
                }
            })
        }

        /// Takes at most `rounds` interrupts, and notes what was seen. Whether the wire is down.
        fn take(&self, rounds: u32, seen: &mut u64) -> bool {
            for _ in 0..rounds {
                if self.wire.load(SeqCst) == 0 {
                    return true;
                }
                if Isr(&self.intx).read() & ISR_QUEUE != 0 {
                    *seen = self.used_idx.load(SeqCst);
                }
            }
            false
        }
    }

    fn explore(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    #[test]
    fn loom_a_driver_that_reads_isr_misses_no_event() {
        explore(|| {
            let world = World::new();
            let device = World::device(&world, 2);
            let mut seen = 0;
            world.take(2, &mut seen);
            device.join().unwrap();
            assert!(world.take(4, &mut seen), "an interrupt storm");
            assert_eq!(seen, 2, "a used buffer was not handled");
        });
    }

    #[test]
    fn loom_an_event_that_races_with_a_reset_leaves_no_wire_up() {
        explore(|| {
            let world = World::new();
            let device = World::device(&world, 1);
            Isr(&world.intx).reset();
            world.intx.settle().unwrap();
            device.join().unwrap();
            world.intx.settle().unwrap();
            assert_eq!((world.intx.causes(), world.wire.load(SeqCst)), (0, 0));
        });
    }
}
