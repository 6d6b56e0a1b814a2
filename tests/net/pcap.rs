//! What passes a port, as other programs read it.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    process::Command,
    sync::Arc,
    time::Duration,
};

use devisor::{
    time::ManualClock,
    virtio::{
        VirtioTransport,
        net::{Header, Mac, NetOptions, Pcap, Port, Switch, SwitchOptions, Wire},
    },
};

use crate::{guest::*, skip::skipped};

#[test]
fn frames_of_both_directions_are_recorded_up_to_a_length() {
    let clock = Arc::new(ManualClock::new(Duration::new(1_700_000_000, 5)));
    let port = Arc::new(Pcap::new(Wire::new(8), Vec::new(), 64, Arc::clone(&clock)));
    let mut guest = Guest::over([Arc::clone(&port)], options(), MRG_RXBUF);
    guest.transmit(Header::default(), &frame(OTHER, 60));
    clock.advance(Duration::from_nanos(7));
    guest.buffer(0, 20);
    assert!(port.port().put(plain(OWN, 200)));
    guest.nic.run();
    drop(guest);
    let bytes = Arc::into_inner(port).unwrap().into_writer();

    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let header: Vec<_> = (0..24).step_by(4).map(word).collect();
    assert_eq!(header, [0xa1b2_3c4d, 0x0004_0002, 0, 0, 64, 1]);
    let packet = |at: usize| [word(at), word(at + 4), word(at + 8), word(at + 12)];
    assert_eq!(packet(24), [1_700_000_000, 5, 60, 60]);
    assert_eq!(bytes[40..100], frame(OTHER, 60));
    assert_eq!(packet(100), [1_700_000_000, 12, 64, 200]);
    assert_eq!(bytes[116..], frame(OWN, 200)[..64]);
}

/// Takes so many bytes.
struct Small(usize);

impl Write for Small {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(self.0);
        self.0 -= len;
        if len == 0 {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(len)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_record_that_cannot_be_written_holds_up_nothing() {
    let port = Arc::new(Pcap::new(Wire::new(8), Small(50), 64, ManualClock::default()));
    let mut guest = Guest::over([Arc::clone(&port)], options(), 0);
    for _ in 0..3 {
        guest.transmit(Header::default(), &frame(OTHER, 60));
        assert!(port.port().take().is_some());
    }
    assert_eq!(port.failures().count, 1);
    assert_eq!(guest.nic.with_device(|nic| nic.host_failures().count), 0);
}

#[test]
fn what_two_guests_say_to_each_other_over_a_switch_is_read_by_tcpdump() {
    let path = std::env::temp_dir().join(format!("devisor-net-{}.pcap", std::process::id()));
    let switch = Switch::new(SwitchOptions::default());
    let clock = Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000)));
    let file = BufWriter::new(File::create(&path).unwrap());
    let port = Arc::new(Pcap::new(switch.port(), file, 65_535, clock));
    let with = |mac, port: Arc<dyn Port>| {
        let options = NetOptions {
            mac: Some(Mac(mac)),
            ..options()
        };
        Guest::over([port], options, 0)
    };
    let mut first = with(OWN, Arc::clone(&port) as _);
    let mut second = with(OTHER, Arc::new(switch.port()));
    first.buffer(0, 2048);
    second.buffer(0, 2048);

    // An ARP request and its answer.
    let arp = |to: [u8; 6], from: [u8; 6], operation: u8, ends: [u8; 2]| {
        let mut data = [
            &to[..],
            &from,
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation],
            &from,
            &[10, 0, 0, ends[0]],
        ]
        .concat();
        data.extend(if operation == 1 { [0; 6] } else { to });
        data.extend([10, 0, 0, ends[1]]);
        data
    };
    let question = arp(BROADCAST, OWN, 1, [1, 2]);
    let answer = arp(OWN, OTHER, 2, [2, 1]);
    first.transmit(Header::default(), &question);
    second.nic.run();
    assert_eq!(second.received(0)[0].1, question);
    second.transmit(Header::default(), &answer);
    first.nic.run();
    assert_eq!(first.received(0)[0].1, answer);
    port.sync();

    let output = Command::new("tcpdump").args(["-n", "-e", "-r"]).arg(&path).output();
    let text = match output {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        Err(error) => return skipped(format!("tcpdump: {error}")),
    };
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].contains("52:54:00:00:00:01 > ff:ff:ff:ff:ff:ff"), "{text}");
    assert!(lines[0].contains("Request who-has 10.0.0.2 tell 10.0.0.1"), "{text}");
    assert!(lines[1].contains("Reply 10.0.0.2 is-at 52:54:00:00:00:02"), "{text}");
}
