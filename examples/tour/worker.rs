//! A thread of the embedder's that runs an event loop, and with it the devices whose doorbells lead there.

use std::{
    io,
    thread::{self, JoinHandle},
};

use devisor::event_loop::EventLoop;

/// A running worker. Dropping it stops the loop and its thread.
pub struct Worker {
    events: EventLoop,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Worker {
    /// Runs `events`.
    ///
    /// # Errors
    /// The operating system has no thread.
    pub fn spawn(events: &EventLoop) -> io::Result<Self> {
        let run = events.clone();
        let thread = thread::Builder::new().name("device".into()).spawn(move || run.run())?;
        Ok(Self {
            events: events.clone(),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.events.stop();
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
