//! Messages, and the vectors that send them.

use std::{
    io,
    sync::{Arc, Mutex},
};

use devisor::interrupt::{Interrupt, MsiMessage, MsiSink, MsiVectors, RequesterId, SinkVectors};

#[derive(Default)]
struct Sent(Mutex<Vec<(u16, MsiMessage)>>);

impl MsiSink for Sent {
    fn send(&self, requester: RequesterId, message: MsiMessage) -> io::Result<()> {
        self.0.lock().unwrap().push((requester.0, message));
        Ok(())
    }
}

#[test]
fn vectors_over_a_sink_send_the_message_that_they_were_last_given() {
    let sink = Arc::new(Sent::default());
    let vectors = SinkVectors::new(Arc::clone(&sink));
    let (a, b) = (
        vectors.vector(RequesterId(8)).unwrap(),
        vectors.vector(RequesterId(9)).unwrap(),
    );
    let message = |data| MsiMessage {
        address: 0xfee0_0000,
        data,
    };
    a.program(Some(message(1))).unwrap();
    b.program(Some(message(2))).unwrap();
    a.trigger().unwrap();
    b.trigger().unwrap();
    a.program(Some(message(3))).unwrap();
    a.trigger().unwrap();
    assert_eq!(
        *sink.0.lock().unwrap(),
        [(8, message(1)), (9, message(2)), (8, message(3))]
    );
}

#[test]
fn a_vector_whose_message_was_taken_away_is_an_error_and_silent() {
    let sink = Arc::new(Sent::default());
    let vector = SinkVectors::new(Arc::clone(&sink)).vector(RequesterId(8)).unwrap();
    vector.program(Some(MsiMessage::default())).unwrap();
    vector.program(None).unwrap();
    assert_eq!(vector.trigger().unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert!(sink.0.lock().unwrap().is_empty());
}

/// The PCI layer takes vectors generically, an embedder has them behind a pointer.
#[test]
fn vectors_behind_a_pointer_are_vectors() {
    fn program(vectors: impl MsiVectors) -> io::Result<()> {
        let vector = vectors.vector(RequesterId(8))?;
        fn generic(vector: impl devisor::interrupt::MsiVector) -> io::Result<()> {
            vector.program(Some(MsiMessage::default()))?;
            vector.trigger()
        }
        generic(vector)
    }
    let sink = Arc::new(Sent::default());
    let vectors: Arc<dyn MsiVectors> = Arc::new(SinkVectors::new(Arc::clone(&sink)));
    program(&vectors).unwrap();
    program(vectors).unwrap();
    assert_eq!(sink.0.lock().unwrap().len(), 2);
}
