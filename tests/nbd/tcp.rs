//! Over TCP, on a port of the system's choice: in the clear and with TLS, on several connections, and with a server that is killed.

use std::process::Command;

use devisor::virtio::block::{AsyncStorage, NbdError, NbdOptions, NbdStorage};

use crate::{
    channel::{Driver, clock, hasty, pattern},
    lost::survives,
    servers::{At, Place, exercise, nbdkit, qemu_nbd},
    skip::skipped,
};

fn connect(scheme: &str, host: &str, at: &At, options: NbdOptions) -> Result<NbdStorage, NbdError> {
    let At::Port(port) = at else {
        panic!("it is no port: {at:?}")
    };
    NbdStorage::connect(&format!("{scheme}://{host}:{port}/").parse()?, options, clock())
}

fn plain(at: &At) -> NbdStorage {
    connect("nbd", "127.0.0.1", at, hasty()).expect("a server that listens")
}

/// Each of four queues writes on a connection of its own, and reads what another has written once that has flushed.
fn four_connections(storage: &NbdStorage) {
    let clock = clock();
    let mut drivers = [(); 4].map(|()| Driver::open(storage, &clock));
    for (queue, driver) in (0..).zip(&mut drivers) {
        driver.write(queue << 20, &pattern(queue, 200_192)).unwrap();
        driver.flush().unwrap();
    }
    for (queue, driver) in (0..4).rev().zip(&mut drivers) {
        assert!(driver.read(queue << 20, 200_192).unwrap() == pattern(queue, 200_192));
    }
    let status = storage.status();
    assert_eq!((status.established, status.connected, status.lost), (4, 4, 0));
}

fn qcow2(place: &Place) -> Option<std::path::PathBuf> {
    let image = place.path("qcow2");
    let mut made = Command::new("qemu-img");
    made.args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("16M");
    match made.status() {
        Ok(_) => Some(image),
        Err(_) => {
            skipped("qemu-img is not installed");
            None
        }
    }
}

#[test]
fn what_is_read_is_what_was_written_over_tcp() {
    let place = Place::new();
    let at = At::free_port();
    let Some(server) = nbdkit(&at, &["memory", "8M"]) else {
        return;
    };
    let storage = plain(&at);
    exercise(&storage, 21);
    assert_eq!(storage.capacity().unwrap(), 8 << 20);
    assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
    four_connections(&plain(&at));
    drop(server);

    let Some(image) = qcow2(&place) else { return };
    let at = At::free_port();
    let Some(_server) = qemu_nbd(&at, &image, &["-f", "qcow2", "--discard=unmap"]) else {
        return;
    };
    // The name has two addresses, of which the server may have but one.
    let storage = connect("nbd", "localhost", &at, hasty()).unwrap();
    exercise(&storage, 22);
    assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
}

#[test]
fn a_port_that_nobody_listens_on_is_an_error_at_once() {
    let error = connect("nbd", "127.0.0.1", &At::free_port(), hasty());
    assert!(matches!(error, Err(NbdError::Connect(_))), "{error:?}");
}

#[test]
fn nothing_is_lost_over_tcp_when_qemu_nbd_is_killed_with_writes_in_its_caches() {
    let place = Place::new();
    let Some(image) = qcow2(&place) else { return };
    let at = At::free_port();
    let there = at.clone();
    survives(|| plain(&there), move || qemu_nbd(&at, &image, &["-f", "qcow2"]), 4);
}

#[cfg(feature = "nbd-tls")]
mod secured {
    use super::*;
    use crate::tls::certificates;
    use devisor::virtio::block::NbdTls;

    fn secured(place: &Place) -> NbdOptions {
        let tls = Some(NbdTls::from_directory(place.path("")).expect("certificates"));
        NbdOptions { tls, ..hasty() }
    }

    /// How the two servers are told of certificates.
    fn of_nbdkit(place: &Place) -> [String; 3] {
        let directory = format!("--tls-certificates={}", place.path("").display());
        ["--tls=require".into(), directory, "--tls-verify-peer".into()]
    }

    fn of_qemu(place: &Place) -> [String; 4] {
        let object = format!(
            "tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}",
            place.path("").display()
        );
        ["--object".into(), object, "--tls-creds".into(), "tls".into()]
    }

    #[test]
    fn what_is_read_is_what_was_written_over_tls_on_tcp() {
        let place = Place::new();
        let Some(()) = certificates(&place) else { return };
        let at = At::free_port();
        let told = of_nbdkit(&place);
        let arguments: Vec<_> = told
            .iter()
            .map(|argument| &**argument)
            .chain(["memory", "8M"])
            .collect();
        let Some(server) = nbdkit(&at, &arguments) else { return };
        // The certificate has this address, and that name.
        for host in ["127.0.0.1", "localhost"] {
            let storage = connect("nbds", host, &at, secured(&place)).unwrap_or_else(|error| panic!("{host}: {error}"));
            exercise(&storage, 23);
            assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
        }
        four_connections(&connect("nbds", "127.0.0.1", &at, secured(&place)).unwrap());
        let in_the_clear = connect("nbd", "127.0.0.1", &at, hasty());
        assert!(matches!(in_the_clear, Err(NbdError::TlsRequired)), "{in_the_clear:?}");
        let without = connect("nbds", "127.0.0.1", &at, hasty());
        assert!(matches!(without, Err(NbdError::NoCertificates)), "{without:?}");
        // Another address of the same host, which the certificate does not have.
        let elsewhere = connect("nbds", "127.0.0.2", &at, secured(&place));
        assert!(elsewhere.is_err());
        drop(server);

        let image = place.file("raw", 8 << 20);
        let at = At::free_port();
        let told = of_qemu(&place);
        let arguments: Vec<_> = told.iter().map(|argument| &**argument).chain(["-f", "raw"]).collect();
        let Some(_server) = qemu_nbd(&at, &image, &arguments) else {
            return;
        };
        let storage = connect("nbds", "127.0.0.1", &at, secured(&place)).unwrap();
        exercise(&storage, 24);
        four_connections(&connect("nbds", "localhost", &at, secured(&place)).unwrap());
        assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());
    }

    #[test]
    fn nothing_is_lost_over_tls_on_tcp_when_the_server_is_killed() {
        let place = Place::new();
        let Some(()) = certificates(&place) else { return };
        let (at, options, told) = (At::free_port(), secured(&place), of_nbdkit(&place));
        let file = place.file("disk", 16 << 20).display().to_string();
        let there = at.clone();
        survives(
            || connect("nbds", "127.0.0.1", &there, options).expect("a server that listens"),
            move || {
                let of_file = ["--filter=delay", "file", &file, "wdelay=1ms"];
                let arguments: Vec<_> = told.iter().map(|argument| &**argument).chain(of_file).collect();
                nbdkit(&at, &arguments)
            },
            3,
        );
    }
}
