//! All connections of a device, and what its queues share.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{
    Host, Incoming, Ready, SocketKind, Stream, Token, VsockOptions,
    connection::{Connection, Flow, Key, Phase},
    registers::{HOST_CID, Header, RX, TX, feature},
};
use crate::{
    sync::lock,
    time::Clock,
    virtio::{FailureLog, Handle, QueueIndex},
};

/// The first port of the host's end of connections that the host side asks for.
const FIRST_PORT: u32 = 1 << 30;

/// What the control face and the queues share. A connection is locked before the table, and never after it.
pub(super) struct Shared {
    // Configured.
    pub options: VsockOptions,
    // Plugged in.
    pub host: Box<dyn Host>,
    pub clock: Arc<dyn Clock>,
    pub handle: OnceLock<Handle>,
    pub failures: Arc<FailureLog>,
    // What the guest can change.
    pub negotiated: AtomicU64,
    /// The driver is to hear of VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
    pub event_owed: AtomicBool,
    pub table: Mutex<Table>,
}

#[derive(Default)]
pub(super) struct Table {
    by_key: HashMap<Key, Arc<Connection>>,
    by_token: HashMap<Token, Arc<Connection>>,
    /// Those that have something for the guest, each once.
    ready: VecDeque<Arc<Connection>>,
    /// Those that have something for the host side, which has room.
    flush: VecDeque<Arc<Connection>>,
    /// Refusals of what is no connection.
    resets: VecDeque<Header>,
    /// The tx queue waits for room among these.
    tx_waits: bool,
    deadlines: BTreeSet<(Duration, Token)>,
    last_token: u64,
    last_port: u32,
    /// Places of connections that are being made.
    reserved: usize,
    /// The rx queue has a refusal that is in the guest's hands or back among the others soon.
    reset_out: bool,
}

/// What the guest is to get next.
pub(super) enum Work {
    Reset(Header),
    Connection(Arc<Connection>),
}

impl Table {
    fn is_full(&self, options: &VsockOptions) -> bool {
        self.by_key.len() + self.reserved >= options.max_connections
    }

    fn token(&mut self) -> Token {
        self.last_token += 1;
        Token(self.last_token)
    }

    /// A port for the host's end of a connection to `guest_port`.
    fn port(&mut self, guest_port: u32) -> Key {
        loop {
            // The last number is VMADDR_PORT_ANY.
            self.last_port = match self.last_port.saturating_add(1) {
                next @ FIRST_PORT..=0xffff_fffe => next,
                _ => FIRST_PORT,
            };
            let key = Key {
                host_port: self.last_port,
                guest_port,
            };
            // There are far more ports than connections.
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }

    /// In the place that was reserved.
    fn insert(&mut self, key: Key, token: Token, kind: SocketKind, flow: Flow) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            key,
            token,
            kind,
            flow: Mutex::new(flow),
            queued: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
        });
        self.reserved -= 1;
        self.by_key.insert(key, Arc::clone(&connection));
        self.by_token.insert(token, Arc::clone(&connection));
        connection
    }

    fn remove(&mut self, connection: &Connection) {
        if self.by_token.remove(&connection.token).is_some() {
            self.by_key.remove(&connection.key);
        }
    }
}

impl Shared {
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    fn look(&self, queue: u16) {
        if let Some(handle) = self.handle.get() {
            handle.look(QueueIndex(queue));
        }
    }

    /// The type of socket that the driver means, if it has negotiated that (section 5.10.3). Without
    /// VIRTIO_VSOCK_F_NO_IMPLIED_STREAM, stream sockets are there in any case.
    pub fn kind(&self, code: u16) -> Option<SocketKind> {
        let negotiated = self.negotiated.load(Ordering::SeqCst);
        let stream = negotiated & feature::STREAM != 0 || negotiated & feature::NO_IMPLIED_STREAM == 0;
        [
            (SocketKind::Stream, stream),
            (SocketKind::Seqpacket, negotiated & feature::SEQPACKET != 0),
        ]
        .into_iter()
        .find_map(|(kind, there)| (there && kind.code() == code).then_some(kind))
    }

    /// Whether a packet is of the guest, and for the host.
    pub fn is_for_host(&self, header: &Header) -> bool {
        header.src_cid == u64::from(self.options.guest_cid) && header.dst_cid == HOST_CID
    }

    pub fn find(&self, key: Key) -> Option<Arc<Connection>> {
        self.table().by_key.get(&key).cloned()
    }

    /// Whether there is room for a refusal. If not, the tx queue is looked at when there is.
    pub fn can_refuse(&self) -> bool {
        let mut table = self.table();
        let room = table.resets.len() + usize::from(table.reset_out) < self.options.max_resets;
        table.tx_waits |= !room;
        room
    }

    /// Answers `packet` with RST.
    pub fn refuse(&self, packet: &Header) {
        self.table().resets.push_back(packet.reset());
        self.look(RX);
    }

    pub fn is_full(&self) -> bool {
        self.table().is_full(&self.options)
    }

    /// A place for a connection, and its name, if there is one. It is [taken](Self::connected) or [given back](Self::give_up), whatever
    /// the other queue does meanwhile.
    pub fn reserve(&self) -> Option<Token> {
        let mut table = self.table();
        if table.is_full(&self.options) {
            return None;
        }
        table.reserved += 1;
        Some(table.token())
    }

    /// The place is not needed.
    pub fn give_up(&self) {
        self.table().reserved -= 1;
    }

    /// The guest's connection to the host side, in the place that was reserved. Its answer is owed.
    pub fn connected(&self, key: Key, token: Token, kind: SocketKind, stream: Box<dyn Stream>, request: &Header) {
        let mut flow = Flow::new(kind, stream, None, self.host.tells_of_more());
        flow.credit(request);
        let connection = self.table().insert(key, token, kind, flow);
        self.settle(&connection, lock(&connection.flow), TX);
    }

    /// Takes the connections that the host side asks for. Whether there was room for more than these.
    pub fn accept(&self) -> bool {
        while let Some(token) = self.reserve() {
            let Some(Incoming { port, kind, stream }) = self.host.accept(token) else {
                self.give_up();
                return true;
            };
            if self.kind(kind.code()).is_none() {
                // The driver has no such sockets: refused by being closed.
                self.give_up();
                continue;
            }
            let deadline = self.now().saturating_add(self.options.connect_timeout);
            let flow = Flow::new(kind, stream, Some(deadline), self.host.tells_of_more());
            let connection = {
                let mut table = self.table();
                let key = table.port(port);
                table.insert(key, token, kind, flow)
            };
            self.settle(&connection, lock(&connection.flow), RX);
        }
        false
    }

    /// Acts on what has changed in a connection. `queue` is being served.
    pub fn settle(&self, connection: &Arc<Connection>, mut flow: MutexGuard<'_, Flow>, queue: u16) {
        if flow.phase == Phase::Open {
            flow.settle(self.now(), &self.options);
        }
        let gone = flow.phase == Phase::Gone;
        let ready = flow.wants_guest() && !connection.queued.swap(true, Ordering::SeqCst);
        let flush = flow.wants_host() && !connection.flushing.swap(true, Ordering::SeqCst);
        let deadline = flow.deadline;
        if !gone && !ready && !flush && deadline == flow.deadline_noted {
            return;
        }
        let before = flow.deadline_noted.take();
        flow.deadline_noted = deadline;
        let mut table = self.table();
        if let Some(before) = before {
            table.deadlines.remove(&(before, connection.token));
        }
        if let Some(deadline) = deadline {
            table.deadlines.insert((deadline, connection.token));
        }
        if gone {
            table.remove(connection);
        }
        if ready {
            table.ready.push_back(Arc::clone(connection));
        }
        if flush {
            table.flush.push_back(Arc::clone(connection));
        }
        drop((table, flow));
        // A deadline is waited for by the rx queue, and so is a place for a connection.
        if queue != RX && (ready || gone || before != deadline) {
            self.look(RX);
        }
        if queue != TX && flush {
            self.look(TX);
        }
    }

    /// Asks the host what has become possible. `told` is room for that.
    pub fn poll(&self, told: &mut Vec<(Token, Ready)>) {
        self.host
            .poll(self.now(), &mut |token, ready| told.push((token, ready)));
        for (token, ready) in told.drain(..) {
            let connection = self.table().by_token.get(&token).cloned();
            if let Some(connection) = connection {
                let mut flow = lock(&connection.flow);
                flow.ready(ready);
                self.settle(&connection, flow, RX);
            }
        }
    }

    /// Resets connections whose time is over.
    pub fn expire(&self) {
        let now = self.now();
        loop {
            let connection = {
                let mut table = self.table();
                let due = |(deadline, _): &(Duration, Token)| *deadline <= now;
                let Some(entry) = table.deadlines.first().copied().filter(due) else {
                    return;
                };
                match table.by_token.get(&entry.1) {
                    Some(connection) => Arc::clone(connection),
                    None => {
                        table.deadlines.remove(&entry);
                        continue;
                    }
                }
            };
            let mut flow = lock(&connection.flow);
            if flow.deadline.is_some_and(|deadline| deadline <= now) {
                flow.kill();
            }
            self.settle(&connection, flow, RX);
        }
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.table().deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// What the guest is to get next. It is taken away.
    pub fn work(&self) -> Option<Work> {
        let mut table = self.table();
        if let Some(header) = table.resets.pop_front() {
            table.reset_out = true;
            return Some(Work::Reset(header));
        }
        table.ready.pop_front().map(Work::Connection)
    }

    /// There was no room for this: it comes first again.
    pub fn put_back(&self, work: Work) {
        let mut table = self.table();
        match work {
            Work::Reset(header) => {
                table.reset_out = false;
                table.resets.push_front(header);
            }
            Work::Connection(connection) => table.ready.push_front(connection),
        }
    }

    /// A refusal has gone: there is room for another.
    pub fn refused(&self) {
        let waits = {
            let mut table = self.table();
            table.reset_out = false;
            std::mem::take(&mut table.tx_waits)
        };
        if waits {
            self.look(TX);
        }
    }

    /// Writes what is held for host sides that have room.
    pub fn flush(&self) {
        loop {
            let Some(connection) = self.table().flush.pop_front() else {
                return;
            };
            let mut flow = lock(&connection.flow);
            connection.flushing.store(false, Ordering::SeqCst);
            flow.flush(&self.options, &self.failures);
            self.settle(&connection, flow, TX);
        }
    }

    pub fn connections(&self) -> usize {
        self.table().by_key.len()
    }

    /// The device is reset: all connections end.
    pub fn reset(&self) {
        self.negotiated.store(0, Ordering::SeqCst);
        self.event_owed.store(false, Ordering::SeqCst);
        // All handlers are gone: nothing is reserved.
        let old = {
            let mut table = self.table();
            let Table {
                last_token, last_port, ..
            } = *table;
            let new = Table {
                last_token,
                last_port,
                ..Table::default()
            };
            std::mem::replace(&mut *table, new)
        };
        // Streams go with nothing locked.
        for connection in old.by_token.values() {
            lock(&connection.flow).end(Phase::Gone);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{time::ManualClock, virtio::vsock::MemoryHost};

    #[test]
    fn a_refusal_in_the_hands_of_the_other_queue_keeps_its_place() {
        let options = VsockOptions {
            max_resets: 1,
            ..VsockOptions::default()
        };
        let shared = Shared {
            options,
            host: Box::new(MemoryHost::new(16)),
            clock: Arc::new(ManualClock::new(Duration::ZERO)),
            handle: OnceLock::new(),
            failures: Arc::default(),
            negotiated: AtomicU64::new(0),
            event_owed: AtomicBool::new(false),
            table: Mutex::default(),
        };
        shared.refuse(&Header::default());
        // Meanwhile there is no buffer for it, and it comes back.
        let work = shared.work();
        assert!(!shared.can_refuse());
        work.into_iter().for_each(|work| shared.put_back(work));
        assert!(!shared.can_refuse());
        assert!(matches!(shared.work(), Some(Work::Reset(_))));
        shared.refused();
        assert!(shared.can_refuse());
    }
}
