//! Numbers of the traditional memory balloon device (virtio 1.2, section 5.5).

/// Bytes of the pages that the balloon counts in, whatever the guest's and the host's are (section 5.5.6).
pub const PAGE: u64 = 4096;

/// Feature bits (section 5.5.3), as masks.
pub mod feature {
    /// `VIRTIO_BALLOON_F_MUST_TELL_HOST`: the host is told before pages of the balloon are used.
    pub const MUST_TELL_HOST: u64 = 1 << 0;
    /// `VIRTIO_BALLOON_F_STATS_VQ`: there is a queue for memory statistics.
    pub const STATS_VQ: u64 = 1 << 1;
    /// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: the guest takes pages back when it runs out of memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// `VIRTIO_BALLOON_F_FREE_PAGE_HINT`: there is a queue for hints which pages are free.
    pub const FREE_PAGE_HINT: u64 = 1 << 3;
    /// `VIRTIO_BALLOON_F_PAGE_POISON`: the guest fills free pages with `poison_val`.
    pub const PAGE_POISON: u64 = 1 << 4;
    /// `VIRTIO_BALLOON_F_PAGE_REPORTING`: there is a queue for reports of free pages.
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Offsets in the configuration space (section 5.5.4), each of 32 bits.
pub mod config {
    pub const NUM_PAGES: usize = 0;
    pub const ACTUAL: usize = 4;
    pub const FREE_PAGE_HINT_CMD_ID: usize = 8;
    pub const POISON_VAL: usize = 12;
    pub const LEN: usize = 16;
}

/// Reserved command IDs of free page hinting (section 5.5.6.3).
pub mod command {
    /// `VIRTIO_BALLOON_CMD_ID_STOP`.
    pub const STOP: u32 = 0;
    /// `VIRTIO_BALLOON_CMD_ID_DONE`.
    pub const DONE: u32 = 1;
    /// The first that is not reserved.
    pub const FIRST: u32 = 2;
}

/// Bytes of a `struct virtio_balloon_stat` (section 5.5.6.1): tag and value.
pub const STAT: usize = 10;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hints,
    Reporting,
}

/// Which queue is what, if the driver has accepted `features` (section 5.5.2): with numbers of their own, as the specification has it.
pub fn role(index: u16, features: u64) -> Option<Role> {
    match index {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        2 if features & feature::STATS_VQ != 0 => Some(Role::Statistics),
        3 if features & feature::FREE_PAGE_HINT != 0 => Some(Role::Hints),
        4 if features & feature::PAGE_REPORTING != 0 => Some(Role::Reporting),
        _ => None,
    }
}

/// The same with the queues moved up that there are, into the places of those that there are not. This is how Linux counts them (up to
/// 6.10 without exception), and with it all that were tried with Linux.
pub fn contiguous_role(index: u16, features: u64) -> Option<Role> {
    let there = (0..5).filter_map(|index| role(index, features));
    there.into_iter().nth(index.into())
}
