//! The guest: a disk and a source of entropy, used through drivers that sleep until they are interrupted.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use devisor::bus::BusDevice;
use virtio_drivers::{
    Error,
    device::{
        blk::{BlkReq, BlkResp, VirtIOBlk},
        rng::VirtIORng,
    },
};

use crate::{
    guest_cpu::{CallError, Cpu, Sleeper, barrier_before_sleep},
    guest_drivers::{GuestDma, MmioTransport, Sleeping},
};

/// Something is wrong with a device, as the guest sees it.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The driver does not find its device.
    #[error("no device: {0}")]
    NoDevice(String),
    /// A call of the driver failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The device did what the driver asked for, but not right.
    #[error("{0}")]
    #[allow(dead_code, reason = "for guests that verify")]
    Wrong(String),
}

impl From<Error> for GuestError {
    fn from(error: Error) -> Self {
        Self::Call(error.into())
    }
}

/// A block device, with several requests in flight.
pub struct Disk<T: Sleeping = MmioTransport> {
    driver: VirtIOBlk<GuestDma, T>,
    sleeper: Sleeper,
    cpu: Rc<dyn Cpu>,
    requests: u64,
}

/// Some sectors, to be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sectors {
    /// The first.
    pub first: usize,
    /// The contents, a multiple of 512 bytes.
    pub data: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// A request that the device has, and the buffers that it has with it.
struct Flight<'a> {
    token: u16,
    request: Box<BlkReq>,
    response: Box<BlkResp>,
    sectors: &'a mut Sectors,
}

impl Disk {
    /// Resets and initializes the device. Its interrupts are taken by `cpu`.
    ///
    /// # Errors
    /// The device is not one that the driver takes.
    #[allow(dead_code, reason = "for tests of virtio-mmio")]
    pub fn new(device: Arc<dyn BusDevice>, cpu: Rc<dyn Cpu>) -> Result<Self, GuestError> {
        Self::over(MmioTransport::new(device).map_err(GuestError::NoDevice)?, cpu)
    }
}

impl<T: Sleeping> Disk<T> {
    /// As [`new`](Disk::new), over another transport.
    ///
    /// # Errors
    /// As there.
    #[allow(dead_code, reason = "for other transports than virtio-mmio")]
    pub fn over(transport: T, cpu: Rc<dyn Cpu>) -> Result<Self, GuestError> {
        let sleeper = transport.sleeper();
        Ok(Self {
            driver: VirtIOBlk::new(transport)?,
            sleeper,
            cpu,
            requests: 0,
        })
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// The driver itself.
    #[allow(dead_code, reason = "for tests of single calls")]
    pub fn driver(&mut self) -> &mut VirtIOBlk<GuestDma, T> {
        &mut self.driver
    }

    /// The name of the disk.
    ///
    /// # Errors
    /// [`GuestError::Call`].
    pub fn id(&mut self) -> Result<String, GuestError> {
        self.requests += 1;
        let mut id = [0; 20];
        let len = self.sleeper.sleeping(&self.cpu, || self.driver.device_id(&mut id))?;
        Ok(String::from_utf8_lossy(&id[..len]).into_owned())
    }

    /// Has everything that was written reach the storage.
    ///
    /// # Errors
    /// [`GuestError::Call`].
    pub fn flush(&mut self) -> Result<(), GuestError> {
        self.requests += 1;
        Ok(self.sleeper.sleeping(&self.cpu, || self.driver.flush())?)
    }

    /// Writes all of `batch`, with up to `depth` requests in flight.
    ///
    /// # Errors
    /// The first of those that the requests had. All have ended, unless it is [`CallError::NotWoken`]: drop the disk then.
    pub fn write(&mut self, batch: &mut [Sectors], depth: usize) -> Result<(), GuestError> {
        self.transfer(Direction::Write, batch, depth)
    }

    /// Reads all of `batch`, with up to `depth` requests in flight.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&mut self, batch: &mut [Sectors], depth: usize) -> Result<(), GuestError> {
        self.transfer(Direction::Read, batch, depth)
    }

    fn transfer(&mut self, direction: Direction, batch: &mut [Sectors], depth: usize) -> Result<(), GuestError> {
        let mut waiting: VecDeque<_> = batch.iter_mut().collect();
        let mut flying = Vec::new();
        let mut result = Ok(());
        loop {
            while flying.len() < depth
                && let Some(sectors) = waiting.pop_front()
            {
                match self.submit(direction, sectors) {
                    Ok(flight) => flying.push(flight),
                    Err((Error::QueueFull, sectors)) if !flying.is_empty() => {
                        waiting.push_front(sectors);
                        break;
                    }
                    Err((error, _)) => result = result.and(Err(error.into())),
                }
            }
            if flying.is_empty() {
                return result;
            }
            self.cpu.take_interrupt().map_err(CallError::NotWoken)?;
            self.driver.disable_interrupts();
            while let Some(token) = self.next_used() {
                let flight = flying.iter().position(|flight| flight.token == token);
                let flight = flying.swap_remove(flight.expect("what was used was in flight"));
                let completed = self.complete(direction, flight);
                result = result.and(completed.map_err(Into::into));
            }
        }
    }

    /// The next request that the device has used. If there is none, the next one will interrupt.
    fn next_used(&mut self) -> Option<u16> {
        self.driver.peek_used().or_else(|| {
            self.driver.enable_interrupts();
            barrier_before_sleep();
            self.driver.peek_used()
        })
    }

    fn submit<'a>(
        &mut self,
        direction: Direction,
        sectors: &'a mut Sectors,
    ) -> Result<Flight<'a>, (Error, &'a mut Sectors)> {
        let mut request = Box::<BlkReq>::default();
        let mut response = Box::<BlkResp>::default();
        let Sectors { first, data } = &mut *sectors;
        // SAFETY: the buffers go into a `Flight`, where nobody touches them until `complete`. Should a flight be given
        // up instead, so is the driver: the device only knows of the copies that `GuestDma` made.
        let token = unsafe {
            match direction {
                Direction::Read => self.driver.read_blocks_nb(*first, &mut request, data, &mut response),
                Direction::Write => self.driver.write_blocks_nb(*first, &mut request, data, &mut response),
            }
        };
        match token {
            Ok(token) => {
                self.requests += 1;
                Ok(Flight {
                    token,
                    request,
                    response,
                    sectors,
                })
            }
            Err(error) => Err((error, sectors)),
        }
    }

    fn complete(&mut self, direction: Direction, flight: Flight<'_>) -> virtio_drivers::Result {
        let Flight {
            token,
            request,
            mut response,
            sectors,
        } = flight;
        // SAFETY: these are the buffers of this token.
        unsafe {
            match direction {
                Direction::Read => self
                    .driver
                    .complete_read_blocks(token, &request, &mut sectors.data, &mut response),
                Direction::Write => self
                    .driver
                    .complete_write_blocks(token, &request, &sectors.data, &mut response),
            }
        }
    }
}

/// An entropy device.
pub struct Rng<T: Sleeping = MmioTransport> {
    driver: VirtIORng<GuestDma, T>,
    sleeper: Sleeper,
    cpu: Rc<dyn Cpu>,
    requests: u64,
}

impl Rng {
    /// As [`Disk::new`].
    ///
    /// # Errors
    /// As there.
    #[allow(dead_code, reason = "for tests of virtio-mmio")]
    pub fn new(device: Arc<dyn BusDevice>, cpu: Rc<dyn Cpu>) -> Result<Self, GuestError> {
        Self::over(MmioTransport::new(device).map_err(GuestError::NoDevice)?, cpu)
    }
}

impl<T: Sleeping> Rng<T> {
    /// As [`new`](Rng::new), over another transport.
    ///
    /// # Errors
    /// As there.
    #[allow(dead_code, reason = "for other transports than virtio-mmio")]
    pub fn over(transport: T, cpu: Rc<dyn Cpu>) -> Result<Self, GuestError> {
        let sleeper = transport.sleeper();
        Ok(Self {
            driver: VirtIORng::new(transport)?,
            sleeper,
            cpu,
            requests: 0,
        })
    }

    /// How many requests were made.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Up to `len` random bytes, as many as the device gives.
    ///
    /// # Errors
    /// [`GuestError::Call`].
    pub fn request(&mut self, len: usize) -> Result<Vec<u8>, GuestError> {
        self.requests += 1;
        let mut bytes = vec![0; len];
        let given = self
            .sleeper
            .sleeping(&self.cpu, || self.driver.request_entropy(&mut bytes))?;
        bytes.truncate(given);
        Ok(bytes)
    }
}
