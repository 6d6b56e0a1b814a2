//! The numbers of requests (`linux/vhost.h`), and the layout of their arguments.

const READ: u32 = 2;
const WRITE: u32 = 1;

/// As on x86, Arm and RISC-V: direction, size, type and number.
const fn request(direction: u32, number: u32, size: u32) -> u32 {
    const VHOST_VIRTIO: u32 = 0xaf;
    direction << 30 | size << 16 | VHOST_VIRTIO << 8 | number
}

/// How many bytes of an argument the number of a request says.
pub(super) const fn size(request: u32) -> usize {
    (request >> 16 & 0x3fff) as usize
}

/// Whether it is one of vhost's.
pub(super) const fn is_vhost(number: u32) -> bool {
    number >> 8 & 0xff == request(0, 0, 0) >> 8
}

pub(super) const GET_FEATURES: u32 = request(READ, 0x00, 8);
pub(super) const SET_FEATURES: u32 = request(WRITE, 0x00, 8);
pub(super) const SET_OWNER: u32 = request(0, 0x01, 0);
pub(super) const SET_MEM_TABLE: u32 = request(WRITE, 0x03, 8);
pub(super) const SET_LOG_BASE: u32 = request(WRITE, 0x04, 8);
pub(super) const SET_VRING_NUM: u32 = request(WRITE, 0x10, 8);
pub(super) const SET_VRING_ADDR: u32 = request(WRITE, 0x11, 40);
pub(super) const SET_VRING_BASE: u32 = request(WRITE, 0x12, 8);
pub(super) const GET_VRING_BASE: u32 = request(READ | WRITE, 0x12, 8);
pub(super) const SET_VRING_KICK: u32 = request(WRITE, 0x20, 8);
pub(super) const SET_VRING_CALL: u32 = request(WRITE, 0x21, 8);
pub(super) const SET_VRING_ERR: u32 = request(WRITE, 0x22, 8);
pub(super) const SET_BACKEND_FEATURES: u32 = request(WRITE, 0x25, 8);
pub(super) const GET_BACKEND_FEATURES: u32 = request(READ, 0x26, 8);
pub(super) const NET_SET_BACKEND: u32 = request(WRITE, 0x30, 8);
pub(super) const VSOCK_SET_GUEST_CID: u32 = request(WRITE, 0x60, 8);
pub(super) const VSOCK_SET_RUNNING: u32 = request(WRITE, 0x61, 4);
pub(super) const VDPA_GET_STATUS: u32 = request(READ, 0x71, 1);
pub(super) const VDPA_SET_STATUS: u32 = request(WRITE, 0x72, 1);
pub(super) const VDPA_GET_CONFIG: u32 = request(READ, 0x73, 8);
pub(super) const VDPA_SET_CONFIG: u32 = request(WRITE, 0x74, 8);
pub(super) const VDPA_SET_VRING_ENABLE: u32 = request(WRITE, 0x75, 8);
pub(super) const VDPA_SET_CONFIG_CALL: u32 = request(WRITE, 0x77, 4);
pub(super) const VDPA_SUSPEND: u32 = request(0, 0x7d, 0);
pub(super) const VDPA_GET_VQS_COUNT: u32 = request(READ, 0x80, 4);

/// `VHOST_BACKEND_F_*`: messages of the second version; the device can be suspended.
pub(super) const IOTLB_MSG_V2: u64 = 1 << 1;
pub(super) const SUSPEND: u64 = 1 << 4;

/// `VHOST_NET_F_VIRTIO_NET_HDR`: the socket has no header, and vhost makes one.
pub(super) const NET_HEADER: u64 = 1 << 27;
