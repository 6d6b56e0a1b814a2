//! TLS, by `rustls` (feature `nbd-tls`).

use std::{
    fmt,
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use vm_memory::VolatileSlice;

use super::{
    NbdError,
    vectors::{Vector, Vectors},
};
use crate::virtio::host_io;

/// Whom a client trusts, and how it shows who it is. TLS 1.2 and 1.3, with certificates. There is no use of pre-shared keys: `rustls`
/// has none.
#[derive(Clone)]
pub struct NbdTls {
    config: Arc<ClientConfig>,
    name: Option<String>,
}

impl NbdTls {
    /// Trusts whom the certificates in `authorities` have signed (PEM); shows the certificates and the key of `identity`, if the server
    /// asks for that.
    ///
    /// # Errors
    /// These are no certificates, or no key that fits.
    pub fn from_pem(authorities: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Self, NbdError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            roots.add(certificate.map_err(tls)?).map_err(tls)?;
        }
        if roots.is_empty() {
            return Err(NbdError::Tls("there is no certificate among the authorities".into()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificates, key)) => {
                let chain: Result<_, _> = CertificateDer::pem_slice_iter(certificates).collect();
                let key = PrivateKeyDer::from_pem_slice(key).map_err(tls)?;
                builder.with_client_auth_cert(chain.map_err(tls)?, key).map_err(tls)?
            }
        };
        Ok(Self::from_config(Arc::new(config)))
    }

    /// Reads `ca-cert.pem` in a directory, and `client-cert.pem` and `client-key.pem` if they are there, as the tools of NBD name them.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), or a file cannot be read.
    pub fn from_directory(path: impl AsRef<Path>) -> Result<Self, NbdError> {
        let read = |name: &str| std::fs::read(path.as_ref().join(name));
        let optional = |name| match read(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let authorities = read("ca-cert.pem").map_err(tls)?;
        let (certificates, key) = (
            optional("client-cert.pem").map_err(tls)?,
            optional("client-key.pem").map_err(tls)?,
        );
        Self::from_pem(&authorities, certificates.as_deref().zip(key.as_deref()))
    }

    /// With all that `rustls` can do.
    pub fn from_config(config: Arc<ClientConfig>) -> Self {
        Self { config, name: None }
    }

    /// What the certificate of the server has to be of, if that is not the host of the URI. A Unix socket has no host: it is
    /// `localhost` then.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..self
        }
    }

    /// For a server at `host`.
    pub(super) fn client(&self, host: &str) -> Result<Client, NbdError> {
        let name = self.name.as_deref().unwrap_or(host).to_owned();
        Ok(Client {
            config: Arc::clone(&self.config),
            name: ServerName::try_from(name).map_err(tls)?,
        })
    }
}

impl fmt::Debug for NbdTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdTls")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

fn tls(error: impl fmt::Display) -> NbdError {
    NbdError::Tls(error.to_string())
}

/// A side of TLS, for one server.
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    pub fn stream(&self, socket: Arc<OwnedFd>) -> Result<TlsStream, NbdError> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(tls)?;
        Ok(TlsStream { socket, connection })
    }
}

pub struct TlsStream {
    socket: Arc<OwnedFd>,
    connection: ClientConnection,
}

/// Bytes that are copied at a time: a record of TLS.
const COPIED: usize = 16 * 1024;

/// The socket, for one call.
struct Io<'a>(&'a OwnedFd);

impl Read for Io<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        host_io::read(self.0.as_raw_fd(), &[VolatileSlice::from(room)])
    }
}

impl Write for Io<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut vectors = Vectors::new();
        vectors.push(Vector::of(data));
        // SAFETY: it is only read, and there for the call.
        let slices = vectors
            .as_slice()
            .iter()
            .map(|vector| unsafe { VolatileSlice::new(vector.as_ptr(), vector.len()) });
        host_io::send(self.0.as_raw_fd(), &slices.collect::<Vec<_>>())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TlsStream {
    pub fn socket(&self) -> &Arc<OwnedFd> {
        &self.socket
    }

    /// # Safety
    /// As of [`Stream::read`](super::socket::Stream::read).
    pub unsafe fn read(&mut self, room: &Vectors) -> io::Result<usize> {
        let mut record = [0; COPIED];
        loop {
            let most = room.len().min(COPIED);
            match self.connection.reader().read(&mut record[..most]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    let mut done = 0;
                    for vector in room.as_slice() {
                        let here = vector.len().min(count - done);
                        // SAFETY: memory that may be written, as the caller promises.
                        let slice = unsafe { VolatileSlice::new(vector.as_ptr(), here) };
                        slice.copy_from(&record[done..done + here]);
                        done += here;
                    }
                    return Ok(count);
                }
            }
            if self.connection.read_tls(&mut Io(&self.socket))? == 0 {
                return Ok(0);
            }
            let processed = self.connection.process_new_packets();
            // An alert tells the server why.
            self.flush()?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    /// # Safety
    /// As of [`Stream::write`](super::socket::Stream::write).
    pub unsafe fn write(&mut self, data: &Vectors) -> io::Result<usize> {
        let mut record = [0; COPIED];
        let mut len = 0;
        for vector in data.as_slice() {
            let here = vector.len().min(COPIED - len);
            // SAFETY: memory that is there, as the caller promises.
            let slice = unsafe { VolatileSlice::new(vector.as_ptr(), here) };
            len += slice.copy_to(&mut record[len..len + here]);
        }
        let taken = self.connection.writer().write(&record[..len])?;
        self.flush()?;
        match taken {
            0 if len != 0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    pub fn flush(&mut self) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Io(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}
