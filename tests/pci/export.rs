//! Descriptors of vectors that others hold: they follow the table, and neither mask nor pending bit can be passed.

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex, OnceLock, Weak, atomic::Ordering::SeqCst},
};

use devisor::{
    interrupt::{Interrupt, MsiMessage, MsiSink, MsiVector, MsiVectors, NoInterrupt, RequesterId, SinkVectors},
    pci::*,
};

use crate::world::*;

const REQUESTER: RequesterId = RequesterId(3 << 3 | 1);

#[test]
fn a_vector_is_exported_while_it_is_masked_and_has_no_message_then() {
    let world = World::enabled(4);
    world.msix().export(2).unwrap();
    world.msix().export(2).unwrap();
    assert_eq!(world.platform.take(), [Event::Allocated(REQUESTER)]);
    world.open(2);
    assert_eq!(world.platform.take(), [Event::Programmed(Some(message(2)))]);
    world.platform.signal_outside(0);
    assert_eq!(world.platform.sent(), [message(2)]);
}

#[test]
fn what_is_signalled_outside_while_masked_is_pending_and_sent_once_on_either_unmask() {
    for function in [false, true] {
        let world = World::enabled(66);
        world.open(65);
        world.msix().export(65).unwrap();
        let mask = |on: bool| match function {
            true => _ = world.write(MSIX_CONTROL, if on { ENABLE | FUNCTION_MASK } else { ENABLE }),
            false => world.mask(65, on),
        };
        mask(true);
        world.platform.take();
        assert_eq!(world.table(PBA + 8, 8), 0);
        world.platform.signal_outside(0);
        world.platform.signal_outside(0);
        assert_eq!(world.table(PBA + 8, 8), 0b10);
        assert_eq!(world.table(PBA + 8, 8), 0b10, "a read takes nothing");
        assert!(world.msix().is_pending(65));
        // What the device itself has to tell is carried by the same message.
        assert_eq!(world.msix().trigger(65).unwrap(), Signalled::Pending);
        assert_eq!(world.platform.take(), []);
        mask(false);
        assert_eq!(world.platform.sent(), [message(65)]);
        assert_eq!(world.table(PBA + 8, 8), 0);
        mask(true);
        mask(false);
        assert_eq!(world.platform.sent(), [], "once");
    }
}

#[test]
fn the_pending_bits_of_others_are_not_those_of_an_exported_vector() {
    let world = World::enabled(4);
    (0..4).for_each(|vector| _ = world.msix().export(vector).unwrap());
    world.platform.signal_outside(1);
    world.platform.signal_outside(3);
    assert_eq!(world.table(PBA, 8), 0b1010);
}

#[test]
fn what_is_signalled_outside_follows_a_rewritten_message() {
    let world = World::enabled(4);
    world.open(0);
    world.msix().export(0).unwrap();
    world.set_table(0x08, 4, 0x77);
    world.platform.take();
    world.platform.signal_outside(0);
    let data = |data| MsiMessage { data, ..message(0) };
    assert_eq!(world.platform.sent(), [data(0x77)]);
    world.mask(0, true);
    world.platform.signal_outside(0);
    world.set_table(0x08, 4, 0x78);
    world.mask(0, false);
    assert_eq!(world.platform.sent(), [data(0x78)]);
}

#[test]
fn what_waits_outside_is_forgotten_with_msix_and_the_descriptor_is_dead() {
    let forget: [fn(&World); 3] = [
        |world| _ = world.write(MSIX_CONTROL, 0),
        |world| world.endpoint.reset(),
        |world| world.msix().release(),
    ];
    for forget in forget {
        let world = World::enabled(4);
        world.msix().export(0).unwrap();
        world.platform.signal_outside(0);
        forget(&world);
        assert_eq!(world.platform.alive.load(SeqCst), 0);
        assert_eq!(world.table(PBA, 8), 0);
        world.platform.signal_outside(0);
        world.write(COMMAND, MEMORY_SPACE | BUS_MASTER);
        world.write(MSIX_CONTROL, ENABLE);
        assert_eq!(world.platform.alive.load(SeqCst), 0, "nobody has asked for it again");
        world.open(0);
        assert_eq!(world.platform.sent(), []);
        world.msix().export(0).unwrap();
    }
}

#[test]
fn what_waits_outside_is_saved_and_sent_after_a_restore() {
    let world = World::enabled(4);
    world.open(1);
    world.msix().export(1).unwrap();
    world.mask(1, true);
    world.platform.signal_outside(0);
    let state = world.endpoint.save();
    assert_eq!(state.msix.as_ref().unwrap().pending, [0b10]);

    let restored = World::new(4);
    restored.endpoint.restore(&state).unwrap();
    assert_eq!(restored.table(PBA, 8), 0b10);
    assert_eq!(restored.platform.take(), []);
    restored.mask(1, false);
    assert_eq!(restored.platform.sent(), [message(1)]);
}

#[test]
fn a_refused_unmask_leaves_what_waits_outside_pending_and_the_next_signal_carries_it() {
    let world = World::enabled(4);
    world.msix().export(0).unwrap();
    world.platform.signal_outside(0);
    world.platform.refuse.store(true, SeqCst);
    world.open(0);
    assert_eq!(world.table(PBA, 8), 1);
    // Also what comes after the refusal, which reaches nobody.
    world.platform.signal_outside(0);
    assert!(world.msix().trigger(0).is_err());
    assert_eq!(world.table(PBA, 8), 1);
    world.platform.refuse.store(false, SeqCst);
    world.platform.take();
    world.msix().trigger(0).unwrap();
    assert_eq!((world.platform.sent(), world.table(PBA, 8)), (vec![message(0)], 0));
}

#[test]
fn an_export_that_cannot_be_says_why() {
    let kind = |world: &World, vector| world.msix().export(vector).unwrap_err().kind();
    let world = World::new(4);
    assert_eq!(kind(&world, 0), ErrorKind::NotConnected, "MSI-X is not enabled");
    world.write(MSIX_CONTROL, ENABLE);
    assert_eq!(kind(&world, 4), ErrorKind::InvalidInput);
    world.platform.refuse.store(true, SeqCst);
    assert_eq!(kind(&world, 0), ErrorKind::Other, "what the platform said");
    world.platform.refuse.store(false, SeqCst);
    world.msix().export(0).unwrap();

    struct Nowhere;
    impl MsiSink for Nowhere {
        fn send(&self, _: RequesterId, _: MsiMessage) -> std::io::Result<()> {
            Ok(())
        }
    }
    let vectors = Arc::new(SinkVectors::new(Arc::new(Nowhere)));
    let endpoint = Endpoint::new(config(4), Slot::new(at(1, 0), Box::new(NoInterrupt), vectors));
    endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    let unsupported = endpoint.msix().unwrap().export(0).unwrap_err();
    assert_eq!(unsupported.kind(), ErrorKind::Unsupported);
}

#[test]
fn vectors_of_msi_are_exported_too() {
    let world = World::enabled(4);
    world.write(MSIX_CONTROL, 0);
    assert_eq!(world.msi().export(1).unwrap_err().kind(), ErrorKind::NotConnected);
    world.write32(MSI + 4, 0xfee0_0000);
    world.write(MSI + 0x0c, 0x40);
    // Two vectors, of which both are masked.
    world.write32(MSI + 0x10, 0b11);
    world.write(MSI + 2, 1 | 1 << 4);
    world.msi().export(5).unwrap();
    world.platform.signal_outside(0);
    assert_eq!(world.read(MSI + 0x14, 4), 0b10, "vector 5 of 2 is 1");
    world.platform.take();
    world.write32(MSI + 0x10, 0);
    let sent = MsiMessage {
        address: 0xfee0_0000,
        data: 0x41,
    };
    assert_eq!(world.platform.sent(), [sent]);
}

/// What a platform does of its own accord.
type Meddle = fn(&Endpoint, &Platform);

/// A platform that does something when a vector loses its message.
struct Meddling {
    endpoint: OnceLock<Weak<Endpoint>>,
    platform: Arc<Platform>,
    /// What it does, once.
    then: Mutex<Option<Meddle>>,
}

/// An endpoint on such a platform, with the bus mastered and MSI-X enabled, every vector masked.
fn meddled_with(then: Meddle) -> (Arc<Endpoint>, Arc<Platform>) {
    let platform = Arc::new(Platform::default());
    let meddling = Arc::new(Meddling {
        endpoint: OnceLock::new(),
        platform: Arc::clone(&platform),
        then: Mutex::new(Some(then)),
    });
    let vectors = Arc::new(MeddlingVectors(Arc::clone(&meddling)));
    let endpoint = Arc::new(Endpoint::new(
        config(4),
        Slot::new(at(3, 1), Box::new(NoInterrupt), vectors),
    ));
    assert!(meddling.endpoint.set(Arc::downgrade(&endpoint)).is_ok());
    endpoint.write_config(COMMAND, &BUS_MASTER.to_le_bytes());
    endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    (endpoint, platform)
}

struct MeddlingVector(Box<dyn MsiVector>, Arc<Meddling>);

struct MeddlingVectors(Arc<Meddling>);

impl MsiVectors for MeddlingVectors {
    fn vector(&self, requester: RequesterId) -> std::io::Result<Box<dyn MsiVector>> {
        let vector = Vectors(Arc::clone(&self.0.platform)).vector(requester)?;
        Ok(Box::new(MeddlingVector(vector, Arc::clone(&self.0))))
    }
}

impl Interrupt for MeddlingVector {
    fn trigger(&self) -> std::io::Result<()> {
        self.0.trigger()
    }
}

impl MsiVector for MeddlingVector {
    fn program(&self, message: Option<MsiMessage>) -> std::io::Result<()> {
        self.0.program(message)?;
        if message.is_none() {
            let then = self.1.then.lock().unwrap().take();
            let endpoint = self.1.endpoint.get().and_then(Weak::upgrade);
            then.zip(endpoint)
                .inspect(|(then, endpoint)| then(endpoint, &self.1.platform));
        }
        Ok(())
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.0.descriptor()
    }

    fn is_signalled(&self) -> bool {
        self.0.is_signalled()
    }

    fn take_signal(&self) -> bool {
        self.0.take_signal()
    }
}

#[test]
fn what_waited_before_msix_was_disabled_for_a_moment_is_not_sent_after_it() {
    // The mask takes the message away, and within that MSI-X is disabled and enabled again.
    let (endpoint, platform) = meddled_with(|endpoint, platform| {
        platform.signal_outside(0);
        endpoint.write_config(MSIX_CONTROL, &[0; 2]);
        endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
        // Not the descriptor of before, which is about to die.
        let export = endpoint.msix().unwrap().export(0);
        assert_eq!(export.unwrap_err().kind(), ErrorKind::WouldBlock);
    });
    let mask = |masked: u32| endpoint.write_bar(MSIX_BAR, 0x0c, &masked.to_le_bytes());
    mask(0);
    let msix = endpoint.msix().unwrap();
    msix.export(0).unwrap();
    mask(1);
    assert!(!msix.is_pending(0));
    mask(0);
    assert_eq!(platform.sent(), []);
    assert_eq!(platform.alive.load(SeqCst), 1);
    msix.export(0).unwrap();
}

#[test]
fn a_masked_vector_is_given_back_also_if_msix_was_disabled_for_a_moment() {
    // Vector 0 goes first, and within that MSI-X is enabled again: nobody has told the platform of vector 1 yet.
    let (endpoint, platform) = meddled_with(|endpoint, _| {
        endpoint.write_config(MSIX_CONTROL, &ENABLE.to_le_bytes());
    });
    endpoint.write_bar(MSIX_BAR, 0x0c, &[0; 4]);
    let msix = endpoint.msix().unwrap();
    msix.export(1).unwrap();
    platform.signal_outside(1);
    assert!(msix.is_pending(1));
    endpoint.write_config(MSIX_CONTROL, &[0; 2]);
    assert!(msix.is_enabled());
    assert!(!msix.is_pending(1), "of before");
    assert_eq!(platform.alive.load(SeqCst), 1, "vector 0, which is open");
    msix.export(1).unwrap();
    endpoint.write_bar(MSIX_BAR, 0x1c, &[0; 4]);
    assert_eq!(platform.sent(), []);
}
