//! TLS: certificates of both sides, and what is refused without them.

use std::{fs, path::Path, process::Command};

use devisor::virtio::block::{NbdError, NbdOptions, NbdStorage, NbdTls};

use crate::{
    channel::{clock, hasty},
    servers::{Place, connect, exercise, nbdkit},
    skip::skipped,
};

/// An authority, and what it has signed. `None`, and said so, if `certtool` is not installed.
pub fn certificates(place: &Place) -> Option<()> {
    let run = |arguments: &[&str]| Command::new("certtool").args(arguments).output();
    let at = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let make = |name: &str, template: &str, signed: bool| {
        let (key, certificate, text) = (
            at(&format!("{name}-key.pem")),
            at(&format!("{name}-cert.pem")),
            at("template"),
        );
        fs::write(&text, template).unwrap();
        run(&["--generate-privkey", "--outfile", &key])?;
        let (ca, ca_key) = (at("ca-cert.pem"), at("ca-key.pem"));
        let mut arguments = vec!["--template", &text, "--load-privkey", &key, "--outfile", &certificate];
        match signed {
            true => arguments.extend([
                "--generate-certificate",
                "--load-ca-certificate",
                &ca,
                "--load-ca-privkey",
                &ca_key,
            ]),
            false => arguments.push("--generate-self-signed"),
        }
        run(&arguments)
    };
    if make("ca", "cn = authority\nca\ncert_signing_key\n", false).is_err() {
        skipped("certtool is not installed");
        return None;
    }
    let server =
        "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\n";
    make("server", server, true).unwrap();
    make(
        "client",
        "cn = client\ntls_www_client\nencryption_key\nsigning_key\n",
        true,
    )
    .unwrap();
    Some(())
}

fn secure(socket: &Path, tls: Option<NbdTls>) -> Result<NbdStorage, NbdError> {
    let uri = format!("nbds+unix:///?socket={}", socket.display());
    let options = NbdOptions { tls, ..hasty() };
    NbdStorage::connect(&uri.parse()?, options, clock())
}

#[test]
fn a_server_that_demands_certificates_gets_them_and_nobody_else_gets_in() {
    let place = Place::new();
    let Some(()) = certificates(&place) else { return };
    let socket = place.path("socket");
    let directory = place.path("");
    let certificates = format!("--tls-certificates={}", directory.display());
    let arguments = ["--tls=require", &certificates, "--tls-verify-peer", "memory", "8M"];
    let Some(_server) = nbdkit(&socket, &arguments) else {
        return;
    };
    let ours = NbdTls::from_directory(&directory).unwrap();
    let storage = secure(&socket, Some(ours.clone())).unwrap();
    exercise(&storage, 9);
    assert_eq!(storage.status().lost, 0, "{:?}", storage.host_failures());

    assert!(matches!(connect(&socket, ""), Err(NbdError::TlsRequired)));
    assert!(matches!(secure(&socket, None), Err(NbdError::NoCertificates)));
    assert!(secure(&socket, Some(ours.with_name("other.example"))).is_err());
    let authorities = fs::read(place.path("ca-cert.pem")).unwrap();
    let anonymous = NbdTls::from_pem(&authorities, None).unwrap();
    assert!(secure(&socket, Some(anonymous)).is_err());
    assert!(NbdTls::from_pem(b"", None).is_err());
}

#[test]
fn a_server_without_tls_is_refused() {
    let place = Place::new();
    let Some(()) = certificates(&place) else { return };
    let socket = place.path("socket");
    let Some(_server) = nbdkit(&socket, &["memory", "8M"]) else {
        return;
    };
    let tls = NbdTls::from_directory(place.path("")).unwrap();
    assert!(matches!(secure(&socket, Some(tls)), Err(NbdError::NoTls)));
}
