//! DPDK's virtio-user as the front end of two network interfaces on one switch: what goes in at one comes out at the other.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{
    daemon::folder,
    guests::{Guest, devisord_at, program},
};

/// More than a ring has room for, and not more than the switch lets wait: none is ever dropped.
const FRAMES: usize = 500;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;

/// Frames of all lengths, from one station to another, whose bytes follow no rule.
fn frames(from: u8, to: u8) -> Vec<Vec<u8>> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(from);
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let frame = |_| {
        let len = 60 + random() as usize % 1455;
        let mut frame = vec![0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from, 0x88, 0xb5];
        frame.resize_with(len, || random() as u8);
        frame
    };
    (0..FRAMES).map(frame).collect()
}

/// Makes datagrams of them, each from a port of its own, so that they go by all queues.
fn make_flows(frames: &mut [Vec<u8>]) {
    for (port, frame) in (1..).zip(frames) {
        let len = (frame.len() - 14) as u16;
        let ip = [
            0x45,
            0,
            (len >> 8) as u8,
            len as u8,
            0,
            0,
            0,
            0,
            64,
            17,
            0,
            0,
            10,
            0,
            0,
            1,
            10,
            0,
            0,
            2,
        ];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..34].copy_from_slice(&ip);
        frame[34..36].copy_from_slice(&u16::to_be_bytes(port));
        frame[36..40].copy_from_slice(&[0, 9, ((len - 20) >> 8) as u8, (len - 20) as u8]);
    }
}

fn write_pcap(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65535, ETHERNET] {
        file.extend(u32::to_le_bytes(word));
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    fs::write(path, file).unwrap();
}

fn read_pcap(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).unwrap();
    let (mut rest, mut frames) = (&file[24..], Vec::new());
    while let Some((head, after)) = rest.split_first_chunk::<16>() {
        let len = u32::from_le_bytes(*head[8..].first_chunk().unwrap()) as usize;
        frames.push(after[..len].to_vec());
        rest = &after[len..];
    }
    frames
}

/// `dpdk-testpmd` at work, and its prompt.
struct Testpmd {
    output: Guest,
    input: ChildStdin,
}

impl Testpmd {
    /// Port 0 reads and writes files, 1 and 2 are ours, 3 reads and writes files: what comes in at 0 goes out at 1, and at 2 to 3, and
    /// the other way round.
    /// Each has so many pairs of queues.
    fn start(program: &Path, folder: &Path, sockets: &[&Path; 2], queues: usize, ring: &str) -> Self {
        let prefix = format!("devisor{}", std::process::id());
        // What it prints is to come at once.
        let mut command = Command::new("stdbuf");
        let file = |number: usize| {
            let name = |way: &str, queue| folder.join(format!("{way}{number}-{queue}")).display().to_string();
            let files =
                (0..queues).map(|queue| format!(",rx_pcap={},tx_pcap={}", name("in", queue), name("out", queue)));
            format!("net_pcap{number}{}", files.collect::<String>())
        };
        let ours = |number: usize| {
            let socket = sockets[number].display();
            format!("net_virtio_user{number},path={socket},queues={queues},queue_size=256,{ring}")
        };
        command
            .arg("-oL")
            .arg(program)
            .args([
                "-l",
                "0,1",
                "--no-huge",
                "-m",
                "128",
                "--no-pci",
                "--no-telemetry",
                "--single-file-segments",
                "--file-prefix",
                &prefix,
            ])
            .args([
                "--vdev",
                &file(0),
                "--vdev",
                &ours(0),
                "--vdev",
                &ours(1),
                "--vdev",
                &file(1),
            ])
            .args([
                "--",
                "-i",
                // What waits when it starts is not thrown away.
                "--no-flush-rx",
                "--nb-cores=1",
                "--total-num-mbufs=8192",
                "--port-topology=paired",
                &format!("--rxq={queues}"),
                &format!("--txq={queues}"),
            ])
            .stdin(Stdio::piped());
        let mut output = Guest::start_with_input(command);
        let input = output.child().stdin.take().unwrap();
        Self { output, input }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// How many packets a port has sent.
    fn sent(&mut self, port: usize) -> usize {
        self.say(&format!("show port stats {port}"));
        self.output.assert_says("TX-packets:", Duration::from_secs(10));
        let line = self.output.all.lines().next_back().unwrap();
        let number = line
            .split("TX-packets:")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        number.unwrap().parse().unwrap()
    }
}

/// Each polls with all that a core has.
static ONE_BY_ONE: Mutex<()> = Mutex::new(());

/// Sends frames both ways at once, to a daemon with `more` arguments, and compares what has come out. `None`: it does not run here.
fn exchange(name: &str, queues: usize, ring: &str, more: &[&str]) -> Option<()> {
    let testpmd = program("dpdk-testpmd")?;
    let _alone = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folder(&format!("dpdk-{name}"));
    let sockets = [folder.join("s0"), folder.join("s1")];
    let sockets = sockets.each_ref().map(|socket| &**socket);
    let count = queues.to_string();
    let arguments = ["net", "--switch", "--packed", "--in-order", "--queues", &count];
    let _daemon = devisord_at(&[&arguments, more].concat(), &sockets)?;
    let mut sent = [frames(1, 2), frames(2, 1)];
    if queues > 1 {
        // Some wait for another queue than the one that they have come to, in a device that lets fewer wait than the switch does.
        sent.iter_mut().for_each(|frames| {
            frames.truncate(400);
            make_flows(frames);
        });
    }
    for (number, frames) in sent.iter().enumerate() {
        for (queue, frames) in frames.chunks(frames.len() / queues).enumerate() {
            write_pcap(&folder.join(format!("in{number}-{queue}")), frames);
        }
    }
    let mut testpmd = Testpmd::start(&testpmd, &folder, &sockets, queues, ring);
    // A full ring is tried again.
    testpmd.say("set fwd io retry");
    testpmd.say("set burst tx delay 10 retry 100000");
    testpmd.say("start");
    for _ in 0..100 {
        if testpmd.sent(0) >= sent[0].len() && testpmd.sent(3) >= sent[1].len() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    testpmd.say("stop");
    testpmd.say("quit");
    testpmd.output.until("Bye", Duration::from_secs(20));
    let _ = testpmd.output.child().wait();
    let said = &testpmd.output.all;
    let got = [0, 1].map(|number| {
        let files = (0..queues).map(|queue| read_pcap(&folder.join(format!("out{number}-{queue}"))));
        files.collect::<Vec<_>>()
    });
    for queue in 0..queues {
        // Of a flow both ways, the later frame comes to the queue that the earlier one was sent by. Which that is nobody knows.
        let some = got.iter().any(|by_queue| !by_queue[queue].is_empty());
        assert!(some, "{name}: queue {queue} got nothing:\n{said}");
    }
    let ([to_first, to_second], [to_second_sent, to_first_sent]) = (got, sent);
    for (number, by_queue, mut sent) in [(1, to_second, to_second_sent), (0, to_first, to_first_sent)] {
        let mut got = by_queue.concat();
        if queues > 1 {
            // Of several queues, each has an order of its own.
            got.sort_unstable();
            sent.sort_unstable();
        }
        assert_eq!(got.len(), sent.len(), "{name}: frames to {number}:\n{said}");
        let wrong = got.iter().zip(&sent).position(|(got, sent)| got != sent);
        assert_eq!(wrong, None, "{name}: a frame to {number} is another");
    }
    let _ = fs::remove_dir_all(&folder);
    Some(())
}

#[test]
fn dpdk_gets_from_one_interface_what_it_has_sent_by_the_other_in_each_ring_format() {
    for packed in [0, 1] {
        for in_order in [0, 1] {
            for mergeable in [0, 1] {
                let name = format!("{packed}{in_order}{mergeable}");
                let ring = format!("packed_vq={packed},in_order={in_order},mrg_rxbuf={mergeable}");
                if exchange(&name, 1, &ring, &[]).is_none() {
                    return;
                }
            }
        }
    }
}

#[test]
fn dpdks_vectorized_drivers_get_what_they_have_sent() {
    for packed in [0, 1] {
        let ring = format!("packed_vq={packed},in_order=1,mrg_rxbuf=0,vectorized=1");
        if exchange(&format!("v{packed}"), 1, &ring, &[]).is_none() {
            return;
        }
    }
}

#[test]
fn dpdk_gets_what_it_has_sent_from_a_daemon_that_polls() {
    for packed in [0, 1] {
        let ring = format!("packed_vq={packed},in_order=0,mrg_rxbuf=1");
        if exchange(&format!("p{packed}"), 2, &ring, &["--poll"]).is_none() {
            return;
        }
    }
}

#[test]
fn dpdk_sends_and_gets_by_two_pairs_of_queues_without_a_control_queue_of_ours() {
    for packed in [0, 1] {
        let ring = format!("packed_vq={packed},in_order=0,mrg_rxbuf=1");
        if exchange(&format!("q{packed}"), 2, &ring, &[]).is_none() {
            return;
        }
    }
}
