//! `guest-request` (section 5.15.6): what the driver asks for, and what it is answered.

use std::{
    io,
    ops::Range,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use super::{
    blocks::Blocks,
    region::{Now, Region},
    registers::{BlockState, RESPONSE, Response, request},
};
use crate::{
    sync::lock,
    virtio::{ChainError, Fault, QueueHandler, Round, queue::Chain},
};

pub(super) struct Requests(pub Arc<Region>);

impl QueueHandler for Requests {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|chain| self.0.answer(chain))?)
    }
}

impl Region {
    /// Answers one request. Returns how many bytes were written.
    fn answer(&self, chain: &Chain<'_, '_>) -> Result<u32, ChainError> {
        if chain.writable_len() < RESPONSE as u32 {
            return Err(ChainError::Request("a memory request has no room for its response"));
        }
        let mut state = BlockState::Plugged;
        let response = match chain.readable_len() {
            // "All requests are 24 bytes long": what is behind that is ignored.
            len if len >= request::LEN as u32 => {
                let mut bytes = [0; request::LEN];
                chain.reader().read(&mut bytes)?;
                self.run(&bytes, &mut state)
            }
            _ => Response::Error,
        };
        let mut bytes = [0; RESPONSE];
        bytes[..2].copy_from_slice(&(response as u16).to_le_bytes());
        bytes[8..].copy_from_slice(&(state as u16).to_le_bytes());
        chain.writer().write(&bytes)?;
        Ok(RESPONSE as u32)
    }

    fn run(&self, bytes: &[u8; request::LEN], state: &mut BlockState) -> Response {
        let le16 = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let addr = u64::from_le_bytes(std::array::from_fn(|i| bytes[request::ADDR + i]));
        let blocks = || self.locate(addr, le16(request::NB_BLOCKS));
        match le16(0) {
            request::PLUG => blocks().map_or(Response::Error, |blocks| self.plug(blocks)),
            request::UNPLUG => blocks().map_or(Response::Error, |blocks| self.unplug(blocks)),
            request::UNPLUG_ALL => self.unplug_all(),
            request::STATE => match blocks() {
                Some(blocks) => {
                    *state = self.state(blocks);
                    Response::Ack
                }
                None => Response::Error,
            },
            _ => Response::Error,
        }
    }

    /// The blocks that a request names, if they are some, and usable.
    fn locate(&self, addr: u64, count: u16) -> Option<Range<u64>> {
        let block_size = self.options.block_size;
        let offset = addr.checked_sub(self.options.region.start)?;
        let usable = lock(&self.now).usable / block_size;
        let first = offset / block_size;
        // Far below 2^64: blocks are at least 4096 bytes.
        let end = first + u64::from(count);
        (count != 0 && offset.is_multiple_of(block_size) && end <= usable).then_some(first..end)
    }

    /// Where blocks are in guest memory.
    fn addresses(&self, blocks: &Range<u64>) -> (u64, u64) {
        let block_size = self.options.block_size;
        let address = self.options.region.start + blocks.start * block_size;
        (address, (blocks.end - blocks.start) * block_size)
    }

    fn state(&self, blocks: Range<u64>) -> BlockState {
        let count = blocks.end - blocks.start;
        match lock(&self.now).blocks.plugged_in(blocks) {
            0 => BlockState::Unplugged,
            plugged if plugged == count => BlockState::Plugged,
            _ => BlockState::Mixed,
        }
    }

    /// What is wrong comes first, then what is too much, then what cannot be now.
    fn plug(&self, blocks: Range<u64>) -> Response {
        let _alone = lock(&self.alone);
        let count = blocks.end - blocks.start;
        {
            let now = lock(&self.now);
            if now.blocks.plugged_in(blocks.clone()) != 0 {
                return Response::Error;
            }
            if now.blocks.plugged() + count > now.requested / self.options.block_size {
                return Response::Nack;
            }
        }
        if self.busy.load(SeqCst) {
            return Response::Busy;
        }
        let (address, len) = self.addresses(&blocks);
        if let Err(error) = self.reclaim.populate(address, len) {
            self.failures.record(error);
            // It may have come half way: blocks that are not plugged have no memory, if that can be.
            let _ = self.give_back(&blocks);
            return Response::Busy;
        }
        self.change(|now| now.blocks.set(blocks, true));
        Response::Ack
    }

    fn unplug(&self, blocks: Range<u64>) -> Response {
        let _alone = lock(&self.alone);
        let count = blocks.end - blocks.start;
        if lock(&self.now).blocks.plugged_in(blocks.clone()) != count {
            return Response::Error;
        }
        if self.busy.load(SeqCst) {
            return Response::Busy;
        }
        match self.give_back(&blocks) {
            Ok(()) => {
                self.change(|now| now.blocks.set(blocks, false));
                Response::Ack
            }
            // They stay plugged, and the driver asks again. It does not count on what was in them.
            Err(error) => {
                self.failures.record(error);
                Response::Busy
            }
        }
    }

    fn unplug_all(&self) -> Response {
        let _alone = lock(&self.alone);
        if self.busy.load(SeqCst) {
            return Response::Busy;
        }
        match self.clear() {
            Ok(()) => Response::Ack,
            Err(error) => {
                self.failures.record(error);
                Response::Busy
            }
        }
    }

    /// Unplugs every block, and makes the usable region as small as it may be. After an error those that were unplugged are.
    /// To be called with [`alone`](Region::alone) locked.
    pub(super) fn clear(&self) -> io::Result<()> {
        let mut from = 0;
        // The lock is not held while the kernel is at it: the configuration space is read meanwhile.
        while let Some(blocks) = { lock(&self.now).blocks.next_run(from) } {
            self.give_back(&blocks)?;
            from = blocks.end;
            self.change(|now| now.blocks.set(blocks, false));
        }
        self.change(|now| now.usable = self.options.usable(now.requested));
        Ok(())
    }

    /// Changes what the configuration space shows, because the driver has asked for it: it is not told, and a read of a half of it does not
    /// pass for one of all.
    fn change(&self, change: impl FnOnce(&mut Now)) {
        let mut now = lock(&self.now);
        change(&mut now);
        if let Some(handle) = self.handle.get() {
            handle.note_config_change();
        }
    }

    fn give_back(&self, blocks: &Range<u64>) -> io::Result<()> {
        let (address, len) = self.addresses(blocks);
        self.reclaim.discard(address, len).map(|_| ())
    }

    /// Has memory for every block that is plugged.
    pub(super) fn populate(&self, blocks: &Blocks) -> io::Result<()> {
        let mut from = 0;
        while let Some(run) = blocks.next_run(from) {
            let (address, len) = self.addresses(&run);
            self.reclaim.populate(address, len)?;
            from = run.end;
        }
        Ok(())
    }
}
