//! What moves with a device: its back end's own state, and the pages that are written meanwhile.

use std::io;

use super::{
    super::{log::Log, peer::after, regions::SharedRegion},
    Link,
};

impl Link {
    /// Whether it has a state of its own.
    pub fn has_state(&self) -> bool {
        self.has_state
    }

    /// The back end's own state, if it has one that can be moved and a driver has begun to use it. All rings are stopped.
    pub fn save_state(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(state) = &self.state {
            return Ok(Some(state.clone()));
        }
        let (most, deadline) = (self.options.most_state, after(self.options.drain));
        let session = self.session()?;
        match session.peer.has_state() && session.accepted.is_some() {
            true => session.peer.save(most, deadline).map(Some),
            false => Ok(None),
        }
    }

    /// The back end has this state from now on.
    pub fn set_state(&mut self, state: Option<Vec<u8>>) -> io::Result<()> {
        self.state = state;
        self.load_state()
    }

    pub(super) fn load_state(&mut self) -> io::Result<()> {
        let deadline = after(self.options.drain);
        let (Some(session), Some(state)) = (&mut self.session, &self.state) else {
            return Ok(());
        };
        session.peer.load(state, deadline)?;
        // That had a time of its own.
        self.begin_turn();
        Ok(())
    }

    /// Writes to guest memory are logged from here on, or no longer.
    pub fn set_logging(&mut self, regions: Option<Vec<SharedRegion>>) -> io::Result<()> {
        let set = self.try_logging(regions);
        if set.is_err() {
            // In this order: the kernel writes to one that it was told of.
            self.lose();
            self.log = None;
        }
        set
    }

    fn try_logging(&mut self, regions: Option<Vec<SharedRegion>>) -> io::Result<()> {
        let deadline = self.deadline();
        let logs = regions.is_some();
        match (&self.log, &regions) {
            (None, Some(regions)) => self.log = Some(Log::new(regions)?),
            (None, None) => return Ok(()),
            _ => {}
        }
        let Some(session) = self.session.as_mut() else {
            if !logs {
                self.log = None;
            }
            return Ok(());
        };
        if let Some(regions) = regions.filter(|_| session.accepted.is_some()) {
            self.set_memory(regions)?;
        }
        let session = self.session.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        if let Some(accepted) = session.accepted {
            session.accept(accepted, logs, deadline)?;
        }
        let rings: Vec<_> = session.rings.iter().flatten().copied().collect();
        for ring in rings {
            let addresses = session.addresses(&ring)?;
            session.peer.log_ring(&ring, addresses, logs, deadline)?;
        }
        if !logs {
            session.knows_log = false;
            self.log = None;
        }
        Ok(())
    }

    /// Whether the back end can log what it writes.
    pub fn can_log(&self) -> bool {
        self.can_log
    }

    pub fn log(&self) -> Option<&Log> {
        self.log.as_ref()
    }
}
