//! Guest drivers that others wrote, over both transports, woken by recorded interrupts: two interfaces of one guest talk to each
//! other over a switch.

use std::{ops::Range, rc::Rc, sync::Arc, time::Duration};

use devisor::{
    backends::recorder::Recorder,
    bus::BusDevice,
    interrupt::{LevelInterrupt, MsiMessage, NoInterrupt, SinkVectors},
    pci::{DeviceFunction, HostBridge, RootBus},
    virtio::{
        VirtioMmio, VirtioPci, VirtioTransport,
        net::{Mac, Net, NetOptions, Switch, SwitchOptions},
        transport::mmio::Line,
    },
};
use virtio_drivers::{device::net::VirtIONetRaw, transport::Transport};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::{
    guest::{OTHER, OWN, frame},
    guest_cpu::{Cpu, RecorderCpu},
    guest_drivers::{GuestDma, MmioTransport, acknowledge, give_dma_memory},
    guest_pci::{Messages, PciTransport, guest_bus},
    worker::{Bell, Worker},
};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the drivers have of the guest's memory.
const DMA: Range<u64> = 0x1000..1 << 20;
const SIZE: usize = 16;

/// A driver, and the CPU that takes the interrupts of its device.
struct Interface<T: Transport> {
    driver: VirtIONetRaw<GuestDma, T, SIZE>,
    cpu: Rc<dyn Cpu>,
    _worker: Worker,
    _device: Arc<dyn VirtioTransport>,
}

impl<T: Transport> Interface<T> {
    /// Sends a frame, and sleeps until the device has used it.
    fn send(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; 12 + frame.len()];
        let header = self.driver.fill_buffer_header(&mut bytes).unwrap();
        assert_eq!(header, 12);
        bytes[header..].copy_from_slice(frame);
        // SAFETY: the buffer stays until the transmission is complete.
        let token = unsafe { self.driver.transmit_begin(&bytes) }.unwrap();
        while self.driver.poll_transmit().is_none() {
            self.cpu.take_interrupt().unwrap();
        }
        // SAFETY: the token and the buffer of this transmission.
        assert_eq!(unsafe { self.driver.transmit_complete(token, &bytes) }, Ok(0));
    }

    /// Gives the device a buffer, does something that has a frame come, and sleeps until it is there.
    fn receive(&mut self, meanwhile: impl FnOnce()) -> Vec<u8> {
        let mut buffer = vec![0; 2048];
        // SAFETY: the buffer stays until the frame is complete.
        let token = unsafe { self.driver.receive_begin(&mut buffer) }.unwrap();
        meanwhile();
        while self.driver.poll_receive().is_none() {
            self.cpu.take_interrupt().unwrap();
        }
        // SAFETY: the token and the buffer of this reception.
        let (header, len) = unsafe { self.driver.receive_complete(token, &mut buffer) }.unwrap();
        buffer[header..header + len].to_vec()
    }
}

fn nic(switch: &Switch, mac: [u8; 6]) -> Net {
    let options = NetOptions {
        mac: Some(Mac(mac)),
        ..NetOptions::default()
    };
    Net::new([switch.port()], options).unwrap()
}

fn over_mmio(switch: &Switch, mac: [u8; 6], memory: &GuestMemoryMmap) -> Interface<MmioTransport> {
    let recorder = Recorder::new();
    let line = Line::Level(Arc::new(recorder.level("mmio")));
    let bell = Bell::default();
    let device = VirtioMmio::new(nic(switch, mac), Arc::new(memory.clone()), line).unwrap();
    let device = Arc::new(device.with_doorbell(bell.clone()));
    let worker = Worker::spawn(&bell, {
        let device = Arc::clone(&device);
        move || device.run()
    });
    let registers = Arc::clone(&device) as Arc<dyn BusDevice>;
    let cpu = RecorderCpu::new(recorder.line("mmio").unwrap(), PATIENCE, {
        let registers = Arc::clone(&registers);
        move || !acknowledge(&*registers).is_empty()
    });
    Interface {
        driver: VirtIONetRaw::new(MmioTransport::new(registers).unwrap()).unwrap(),
        cpu: Rc::new(cpu),
        _worker: worker.unwrap(),
        _device: device,
    }
}

fn over_pci(switch: &Switch, mac: [u8; 6], memory: &GuestMemoryMmap) -> Interface<PciTransport> {
    let recorder = Recorder::new();
    let silent = || Arc::new(NoInterrupt) as Arc<dyn LevelInterrupt>;
    let sink = SinkVectors::new(Arc::new(recorder.sink("pci")));
    let root = RootBus::new([silent(), silent(), silent(), silent()], Arc::new(sink));
    let bridge = HostBridge::new(root.slot(DeviceFunction::new(0, 0).unwrap()).unwrap());
    root.insert(Arc::new(bridge)).unwrap();
    let slot = root.slot(DeviceFunction::new(1, 0).unwrap()).unwrap();
    let bell = Bell::default();
    let device = VirtioPci::new(nic(switch, mac), Arc::new(memory.clone()), slot).unwrap();
    let device = Arc::new(device.with_doorbell(bell.clone()));
    root.insert(Arc::clone(&device) as _).unwrap();
    let worker = Worker::spawn(&bell, {
        let device = Arc::clone(&device);
        move || device.run()
    });
    let message = |data| MsiMessage {
        address: 0xfee0_0000,
        data,
    };
    let messages = Messages::MsiX(vec![message(0x40), message(0x41)]);
    let transport = PciTransport::new(&guest_bus(&root), &messages).unwrap();
    let cpu = RecorderCpu::new(recorder.line("pci").unwrap(), PATIENCE, || true);
    Interface {
        driver: VirtIONetRaw::new(transport).unwrap(),
        cpu: Rc::new(cpu),
        _worker: worker.unwrap(),
        _device: device,
    }
}

#[test]
fn drivers_on_both_transports_talk_to_each_other() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    give_dma_memory(&memory, DMA);
    let switch = Switch::new(SwitchOptions::default());
    let mut first = over_mmio(&switch, OWN, &memory);
    let mut second = over_pci(&switch, OTHER, &memory);
    assert_eq!((first.driver.mac_address(), second.driver.mac_address()), (OWN, OTHER));
    for len in [14, 60, 1000, 1514] {
        let mut there = frame(OTHER, len);
        there[6..12].copy_from_slice(&OWN);
        assert!(second.receive(|| first.send(&there)) == there, "{len} bytes");
        let back = frame(OWN, len);
        assert!(first.receive(|| second.send(&back)) == back, "{len} bytes");
    }
    assert_eq!(switch.whereabouts(Mac(OTHER)), Some(1));
}

#[test]
fn a_driver_sends_more_than_a_ring_has_room_for() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    give_dma_memory(&memory, DMA);
    let switch = Switch::new(SwitchOptions::default());
    let mut first = over_mmio(&switch, OWN, &memory);
    let mut second = over_pci(&switch, OTHER, &memory);
    for n in 0..200 {
        let mut sent = frame(OTHER, 60 + n);
        sent[6..12].copy_from_slice(&OWN);
        assert!(second.receive(|| first.send(&sent)) == sent, "frame {n}");
    }
}
