//! What the back end calls becomes a message of the vector that the driver has mapped, and waits while that is masked: through us, or by
//! a descriptor of the platform's that it calls itself.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, FromRawFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use devisor::{
    interrupt::{Interrupt, MsiMessage, MsiVector, MsiVectors, RequesterId},
    pci::{BarIndex, Function},
    virtio::QueueIndex,
};

use crate::{
    back::FEATURE,
    front::{Front, connect_to},
};

const LONG: Duration = Duration::from_secs(10);
const VECTOR: u16 = 1;
const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: 0x77,
};
/// The pending bits are on the page after the table.
const PBA: u64 = 0x1000;

/// Vectors as a hypervisor has them: a descriptor each, which it looks at while there is a message.
#[derive(Clone, Default)]
struct Platform {
    vectors: Arc<Mutex<Vec<Arc<Shown>>>>,
    sent: Arc<Mutex<Vec<MsiMessage>>>,
}

struct Shown {
    event: File,
    message: Mutex<Option<MsiMessage>>,
}

struct Vector(Arc<Shown>, Platform);

impl Shown {
    fn take(&self) -> bool {
        matches!((&self.event).read(&mut [0; 8]), Ok(8))
    }
}

impl Platform {
    /// What the kernel does when a descriptor is signalled.
    fn look(&self) {
        for shown in self.vectors.lock().unwrap().iter() {
            if let Some(message) = *shown.message.lock().unwrap()
                && shown.take()
            {
                self.sent.lock().unwrap().push(message);
            }
        }
    }

    fn sent(&self) -> Vec<MsiMessage> {
        self.look();
        std::mem::take(&mut *self.sent.lock().unwrap())
    }
}

impl MsiVectors for Platform {
    fn vector(&self, _: RequesterId) -> io::Result<Box<dyn MsiVector>> {
        let shown = Arc::new(Shown {
            // SAFETY: the call takes numbers, and its result is a descriptor that nobody else has.
            event: unsafe { File::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) },
            message: Mutex::default(),
        });
        self.vectors.lock().unwrap().push(Arc::clone(&shown));
        Ok(Box::new(Vector(shown, self.clone())))
    }
}

impl Interrupt for Vector {
    fn trigger(&self) -> io::Result<()> {
        self.1
            .sent
            .lock()
            .unwrap()
            .push(self.0.message.lock().unwrap().unwrap());
        Ok(())
    }
}

impl MsiVector for Vector {
    fn program(&self, message: Option<MsiMessage>) -> io::Result<()> {
        *self.0.message.lock().unwrap() = message;
        self.1.look();
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.event.as_fd())
    }

    fn is_signalled(&self) -> bool {
        let taken = self.0.take();
        if taken {
            (&self.0.event).write_all(&1_u64.to_ne_bytes()).unwrap();
        }
        taken
    }

    fn take_signal(&self) -> bool {
        self.0.take()
    }
}

/// The driver's side of MSI-X.
fn write_table(front: &Front, offset: u64, value: u64, len: usize) {
    let at = u64::from(VECTOR) * 16 + offset;
    let endpoint = front.machine.pci().endpoint();
    assert!(endpoint.write_bar(BarIndex::Bar1, at, &value.to_le_bytes()[..len]));
}

fn mask(front: &Front, masked: bool) {
    write_table(front, 12, masked.into(), 4);
}

fn is_pending(front: &Front) -> bool {
    let mut pending = [0; 8];
    assert!(
        front
            .machine
            .pci()
            .endpoint()
            .read_bar(BarIndex::Bar1, PBA, &mut pending)
    );
    pending[0] & 1 << VECTOR != 0
}

/// Enables MSI-X, and has `VECTOR` mapped to the first queue.
fn map_vector(front: &Front) {
    let device = front.machine.pci();
    let byte = |at: u64| {
        let mut byte = [0];
        device.read_config(at, &mut byte);
        u64::from(byte[0])
    };
    let mut capability = byte(0x34);
    while byte(capability) != 0x11 {
        capability = byte(capability + 1);
    }
    device.write_config(capability + 2, &0x8000_u16.to_le_bytes());
    write_table(front, 0, MESSAGE.address, 8);
    write_table(front, 8, MESSAGE.data.into(), 4);
    mask(front, false);
    device.write_bar(BarIndex::Bar0, 0x16, &0_u16.to_le_bytes());
    device.write_bar(BarIndex::Bar0, 0x1a, &VECTOR.to_le_bytes());
}

/// Asks, and lets the back end answer.
fn exchange(front: &mut Front) {
    front.machine.rings[0].want_signal();
    front.ask(0);
    front.settle();
}

#[test]
fn what_a_back_end_calls_while_the_vector_is_masked_is_pending_and_sent_once() {
    for is_exported in [false, true] {
        let platform = Platform::default();
        let (connect, backs) = connect_to(&Arc::default());
        let mut front = Front::with_vectors(connect, Arc::new(platform.clone()));
        map_vector(&front);
        front.machine.start(FEATURE);
        if is_exported {
            let vector = front.machine.pci().endpoint().msix().unwrap().export(VECTOR).unwrap();
            front
                .machine
                .with_device(|device| device.set_call(QueueIndex(0), Some(vector)));
        }
        for round in 0..3 {
            if round == 2 {
                // Another one calls the same.
                backs.lock().unwrap().clear();
            }
            exchange(&mut front);
            assert!(
                front.work_until(LONG, |_| platform.sent().contains(&MESSAGE)),
                "{is_exported} {round}"
            );
            front.work_until(Duration::from_millis(30), |_| false);
            platform.sent();
            mask(&front, true);
            exchange(&mut front);
            assert!(front.work_until(LONG, is_pending_in), "{is_exported} {round}");
            assert_eq!(platform.sent(), [], "{is_exported} {round}");
            mask(&front, false);
            assert_eq!(platform.sent(), [MESSAGE], "{is_exported} {round}");
            assert!(!is_pending(&front));
        }
    }
}

fn is_pending_in(front: &mut Front) -> bool {
    is_pending(front)
}
