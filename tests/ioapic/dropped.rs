//! Messages that nobody accepts.

use crate::guest::*;
use devisor::{
    backends::irqchip::{
        Vector,
        ioapic::{IoApic, IoApicConfig, Pin},
    },
    interrupt::{Acceptance, Interrupt, LevelInterrupt, MsiMessage, MsiSink, RequesterId},
};
use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
};

#[test]
fn a_level_that_nobody_accepts_is_not_in_service_and_is_sent_once_somebody_accepts() {
    type Next = fn(&IoApic, &dyn LevelInterrupt);
    let nexts: [Next; 4] = [
        |_, line| {
            line.clear().unwrap();
            line.trigger().unwrap();
        },
        |ioapic, _| ioapic.retry(),
        |ioapic, _| ioapic.eoi(Vector(0xff)),
        |ioapic, _| program(ioapic, 19, LEVEL | 0x81),
    ];
    for next in nexts {
        let (ioapic, sink) = new();
        program(&ioapic, 19, LEVEL | 0x81);
        let line = ioapic.level_line(Pin(19)).unwrap();
        sink.drops.store(true, SeqCst);
        line.trigger().unwrap();
        assert_eq!(entry(&ioapic, 19), LEVEL | DELIVERY_STATUS | 0x81);
        assert!(ioapic.owes());
        sink.drops.store(false, SeqCst);
        next(&ioapic, &line);
        assert_eq!(sink.vectors(), [0x81]);
        assert_eq!(entry(&ioapic, 19), LEVEL | REMOTE_IRR | 0x81);
        assert!(!ioapic.owes());
        assert_eq!(ioapic.refusals(), 0, "to drop is not to refuse");
    }
}

#[test]
fn a_level_that_nobody_accepted_and_that_has_gone_is_sent_no_more() {
    let (ioapic, sink) = new();
    program(&ioapic, 19, LEVEL | 0x81);
    let line = ioapic.level_line(Pin(19)).unwrap();
    sink.drops.store(true, SeqCst);
    line.trigger().unwrap();
    line.clear().unwrap();
    sink.drops.store(false, SeqCst);
    ioapic.retry();
    assert_eq!((sink.vectors(), entry(&ioapic, 19)), (vec![], LEVEL | 0x81));
}

/// As by a message of PCI: there is nothing that would bring it back.
#[test]
fn an_edge_and_a_pulse_that_nobody_accepts_are_lost() {
    let (ioapic, sink) = new();
    for trigger_mode in [0, LEVEL] {
        sink.drops.store(true, SeqCst);
        program(&ioapic, 19, trigger_mode | 0x81);
        ioapic.edge_line(Pin(19)).unwrap().trigger().unwrap();
        sink.drops.store(false, SeqCst);
        ioapic.retry();
        assert_eq!(sink.vectors(), []);
        assert_eq!(entry(&ioapic, 19), trigger_mode | 0x81);
    }
}

#[test]
fn a_level_that_nobody_accepts_is_owed_after_a_move() {
    let (ioapic, sink) = new();
    program(&ioapic, 19, LEVEL | 0x81);
    let line = ioapic.level_line(Pin(19)).unwrap();
    sink.drops.store(true, SeqCst);
    line.trigger().unwrap();
    let (other, sink) = new();
    other.restore(&ioapic.save()).unwrap();
    assert_eq!(sink.vectors(), [0x81]);
}

#[test]
fn each_event_offers_a_level_that_nobody_accepts_once() {
    let (ioapic, sink) = new();
    sink.drops.store(true, SeqCst);
    let lines: Vec<_> = (0..24).map(|pin| ioapic.level_line(Pin(pin)).unwrap()).collect();
    for (pin, line) in (0..).zip(&lines) {
        program(&ioapic, pin, LEVEL | 0x30);
        line.trigger().unwrap();
    }
    *sink.tries.lock().unwrap() = 0;
    ioapic.retry();
    assert_eq!(*sink.tries.lock().unwrap(), 24);
}

/// The local APIC is enabled on its CPU while the message finds it disabled.
#[test]
fn a_retry_that_comes_while_a_message_is_being_dropped_or_refused_is_not_lost() {
    struct Late {
        ioapic: Mutex<Option<IoApic>>,
        refuses: bool,
        sent: Mutex<u32>,
    }
    impl MsiSink for Late {
        fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
            unreachable!("an IOAPIC offers")
        }

        fn offer(&self, _: RequesterId, _: MsiMessage) -> io::Result<Acceptance> {
            let Some(ioapic) = self.ioapic.lock().unwrap().take() else {
                *self.sent.lock().unwrap() += 1;
                return Ok(Acceptance::Accepted);
            };
            ioapic.retry();
            match self.refuses {
                true => Err(io::Error::other("refused")),
                false => Ok(Acceptance::Dropped),
            }
        }
    }
    for refuses in [false, true] {
        let sink = Arc::new(Late {
            ioapic: Mutex::default(),
            refuses,
            sent: Mutex::default(),
        });
        let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&sink)).unwrap();
        program(&ioapic, 19, LEVEL | 0x81);
        *sink.ioapic.lock().unwrap() = Some(ioapic.clone());
        ioapic.level_line(Pin(19)).unwrap().trigger().unwrap();
        assert_eq!(*sink.sent.lock().unwrap(), 1, "refused: {refuses}");
    }
}

#[test]
fn a_late_refusal_does_not_undo_a_later_message() {
    /// Brings out a second message before it refuses the first.
    struct Nested {
        ioapic: Mutex<Option<IoApic>>,
        sent: Mutex<u32>,
    }
    impl MsiSink for Nested {
        fn send(&self, _: RequesterId, _: MsiMessage) -> io::Result<()> {
            let Some(ioapic) = self.ioapic.lock().unwrap().take() else {
                *self.sent.lock().unwrap() += 1;
                return Ok(());
            };
            // While the first message is under way, an EOI brings out a second one, which is taken.
            ioapic.eoi(Vector(0x40));
            Err(io::Error::other("late"))
        }
    }
    let sink = Arc::new(Nested {
        ioapic: Mutex::default(),
        sent: Mutex::default(),
    });
    let ioapic = IoApic::new(IoApicConfig::default(), Arc::clone(&sink)).unwrap();
    program(&ioapic, 3, LEVEL | 0x40);
    *sink.ioapic.lock().unwrap() = Some(ioapic.clone());
    ioapic.level_line(Pin(3)).unwrap().trigger().unwrap();
    assert_eq!(*sink.sent.lock().unwrap(), 1);
    assert_eq!(entry(&ioapic, 3), LEVEL | REMOTE_IRR | 0x40);
    ioapic.retry();
    assert_eq!(*sink.sent.lock().unwrap(), 1, "it was not sent twice");
}
