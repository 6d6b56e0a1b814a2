//! Frames that wait in the device.

use std::collections::VecDeque;

use super::{Header, MAX_FRAME, header::HEADROOM};

/// A frame that waits in the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetFrame {
    /// What is left to do for it.
    pub header: Header,
    /// From its Ethernet header on.
    pub data: Vec<u8>,
}

/// Frames that wait for a receive queue.
#[derive(Default)]
pub(super) struct Backlog {
    pub frames: VecDeque<NetFrame>,
    bytes: usize,
    /// Room for others, with what was in it.
    spare: Vec<Vec<u8>>,
}

/// Bytes that a backlog holds at most, and one frame.
const BACKLOG_BYTES: usize = 4 << 20;
/// As many buffers are kept for other frames, none of them large.
const SPARE: usize = 64;

impl Backlog {
    /// Takes a frame, if there is room for it.
    pub fn push(&mut self, frame: NetFrame, limit: u32) -> bool {
        let room = self.frames.len() < limit as usize && self.bytes < BACKLOG_BYTES;
        if room {
            self.bytes += frame.data.len();
            self.frames.push_back(frame);
        } else {
            self.recycle(frame.data);
        }
        room
    }

    /// Puts one back that was taken.
    pub fn put_back(&mut self, frame: NetFrame) {
        self.bytes += frame.data.len();
        self.frames.push_front(frame);
    }

    pub fn pop(&mut self) -> Option<NetFrame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.data.len();
        Some(frame)
    }

    /// Room for a frame, with anything in it.
    pub fn room(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn recycle(&mut self, data: Vec<u8>) {
        if self.spare.len() < SPARE && data.capacity() <= 2048 {
            self.spare.push(data);
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Room for any frame, and its header.
pub(super) fn frame_buffer() -> Box<[u8]> {
    vec![0; HEADROOM + MAX_FRAME].into()
}
