//! `free_page_vq` (section 5.5.6.3): hints which pages need not be copied to another host.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use super::{registers::command, shared::Shared};
use crate::{
    sync::lock,
    virtio::{ChainError, Fault, QueueHandler, Round, queue::Chain},
};

pub(super) struct HintQueue(pub Arc<Shared>);

impl HintQueue {
    fn answer(&self, chain: &Chain<'_, '_>) -> Result<u32, ChainError> {
        let shared = &self.0;
        let Some(hints) = &shared.hints else {
            return Err(ChainError::Request("nobody takes hints"));
        };
        match chain.readable_len() {
            0 => {}
            4 => {
                let mut id = [0; 4];
                chain.reader().read(&mut id)?;
                let id = u32::from_le_bytes(id);
                let mut hinting = lock(&shared.hinting);
                let answered = hinting.answered.take();
                match id {
                    command::STOP => {
                        drop(hinting);
                        if answered.is_some() {
                            hints.ended();
                        }
                    }
                    // Of an old one nothing counts any more.
                    _ if id == hinting.command && id >= command::FIRST => hinting.answered = Some(id),
                    _ => {}
                }
            }
            _ => return Err(ChainError::Request("not a command ID")),
        }
        // "MUST ignore pages that are provided with a command ID that does not match the current value".
        let current = {
            let hinting = lock(&shared.hinting);
            hinting.answered.filter(|&id| id == hinting.command)
        };
        if let Some(id) = current {
            for page in chain.writable().iter().filter(|page| page.len != 0) {
                shared.counters.hinted.fetch_add(page.len.into(), SeqCst);
                hints.hinted(id, page.address, page.len.into());
            }
        }
        if chain.readable_len() == 0 && chain.writable_len() == 0 {
            return Err(ChainError::Request("neither a command ID nor a page"));
        }
        Ok(0)
    }
}

impl QueueHandler for HintQueue {
    fn serve(&mut self, round: &mut Round<'_>) -> Result<(), Fault> {
        Ok(round.each(|chain| self.answer(chain))?)
    }
}
