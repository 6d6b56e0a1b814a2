//! Save and restore of a device behind virtio-pci.

use super::{VirtioPci, interrupt::PciInterrupt, registers::*};
use crate::virtio::{
    QueueIndex, VirtioDevice,
    transport::{
        saved::{NotStill, RestoreError, SavedDevice, SavedTransport, VirtioPciState},
        status::DRIVER_OK,
    },
};

impl PciInterrupt {
    fn check(&self, state: &VirtioPciState) -> Result<(), RestoreError> {
        let VirtioPciState {
            transport,
            endpoint,
            config_vector,
            queue_vectors,
        } = state;
        let (saved, needed) = (queue_vectors.len(), self.queues());
        if saved != needed {
            let field = "queue_vectors";
            return Err(RestoreError::QueueCount { field, saved, needed });
        }
        let vectors = self.vectors();
        let stray = |&&vector: &&u16| vector >= vectors && vector != NO_VECTOR;
        if let Some(&vector) = queue_vectors.iter().chain([config_vector]).find(stray) {
            return Err(RestoreError::Vector { vector, vectors });
        }
        // Before DRIVER_OK, nothing can be pending.
        let ready = transport.status & DRIVER_OK != 0;
        let possible = if ready { ISR_QUEUE | ISR_CONFIGURATION } else { 0 };
        if endpoint.causes & !possible != 0 {
            return Err(RestoreError::Register {
                register: "the ISR status",
                value: endpoint.causes.into(),
                possible: possible.into(),
            });
        }
        Ok(self.endpoint.check(endpoint)?)
    }

    fn restore(&self, state: &VirtioPciState) -> Result<(), RestoreError> {
        let VirtioPciState {
            transport: _,
            endpoint,
            config_vector,
            queue_vectors,
        } = state;
        self.restore_vectors(*config_vector, queue_vectors);
        Ok(self.endpoint.restore(endpoint)?)
    }
}

impl<D: VirtioDevice> VirtioPci<D> {
    pub(super) fn save_all(&self) -> Result<SavedDevice, NotStill> {
        let (transport, device) = self.core.save()?;
        let queues = 0..self.core.queue_count();
        let transport = SavedTransport::Pci(VirtioPciState {
            transport,
            endpoint: self.interrupt.endpoint.save(),
            config_vector: self.interrupt.config_vector(),
            queue_vectors: queues
                .map(|index| self.interrupt.queue_vector(QueueIndex(index)))
                .collect(),
        });
        Ok(SavedDevice { transport, device })
    }

    pub(super) fn restore_all(&self, state: &SavedDevice) -> Result<(), RestoreError> {
        let SavedTransport::Pci(pci) = &state.transport else {
            return Err(RestoreError::Transport("virtio-pci"));
        };
        self.interrupt.check(pci)?;
        self.core.restore(&pci.transport, &state.device)?;
        self.interrupt.restore(pci)?;
        // Queues are looked at when the embedder resumes.
        self.derive_outside();
        Ok(())
    }
}
