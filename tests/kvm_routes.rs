//! The messages of the KVM backend, seen from the request register of a local APIC whose vCPU does not run.
#![cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[path = "support/skip.rs"]
mod skip;

use std::{
    fs::File,
    io::Write,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use devisor::{
    backends::kvm::{Gsi, KvmIrqError, KvmIrqs},
    interrupt::{Interrupt, LevelInterrupt, MsiMessage, MsiSink, MsiVector, MsiVectors, NoInterrupt, RequesterId},
    pci::{BarIndex, DeviceFunction, Endpoint, EndpointConfig, Identity, Slot},
};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQCHIP_IOAPIC, kvm_enable_cap, kvm_irqchip};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use skip::skipped;
use vmm_sys_util::eventfd::EventFd;

const REQUESTER: RequesterId = RequesterId(0x18);

/// A fixed interrupt at `vector` of the local APIC 0.
fn to(vector: u8) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: vector.into(),
    }
}

/// A VM with one local APIC that takes interrupts.
struct World {
    vm: Arc<VmFd>,
    irqs: KvmIrqs,
    vcpu: VcpuFd,
}

/// Spurious-interrupt vector register, with the software enable (Intel SDM volume 3, section 11.9).
const SVR: (usize, u32) = (0xf0, 0x1ff);
const IRR: usize = 0x200;

impl World {
    fn new() -> Option<Self> {
        Self::with(|vm| vm.create_irq_chip().unwrap())
    }

    fn split() -> Option<Self> {
        Self::with(|vm| {
            let mut cap = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..Default::default()
            };
            cap.args[0] = 24;
            vm.enable_cap(&cap).unwrap();
        })
    }

    fn with(controllers: impl FnOnce(&VmFd)) -> Option<Self> {
        let vm = match Kvm::new() {
            Ok(kvm) => Arc::new(kvm.create_vm().unwrap()),
            Err(error) => {
                skipped(format_args!("/dev/kvm cannot be opened: {error}"));
                return None;
            }
        };
        controllers(&vm);
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut apic = vcpu.get_lapic().unwrap();
        let (at, value) = SVR;
        apic.regs[at..at + 4].copy_from_slice(&value.to_le_bytes().map(|byte| byte as _));
        vcpu.set_lapic(&apic).unwrap();
        let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
        Some(Self { vm, irqs, vcpu })
    }

    /// The vectors that the local APIC was asked for since the last call.
    fn requested(&self) -> Vec<u8> {
        let mut apic = self.vcpu.get_lapic().unwrap();
        let bit = |vector: u8| {
            (
                IRR + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8),
                vector % 8,
            )
        };
        let requested: Vec<u8> = (0..=255)
            .filter(|&vector| {
                let (at, bit) = bit(vector);
                apic.regs[at] as u8 >> bit & 1 != 0
            })
            .collect();
        for &vector in &requested {
            apic.regs[bit(vector).0] = 0;
        }
        self.vcpu.set_lapic(&apic).unwrap();
        requested
    }

    fn vector(&self) -> Box<dyn MsiVector> {
        self.irqs.messages().vector(REQUESTER).unwrap()
    }

    fn is_up(&self, gsi: Gsi) -> bool {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_IOAPIC,
            ..Default::default()
        };
        self.vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: the kernel has filled in the union's variant for the chip that was asked for.
        unsafe { chip.chip.ioapic.irr & 1 << gsi.0 != 0 }
    }
}

/// Skips the test, loudly, where there is no /dev/kvm.
macro_rules! or_skip {
    ($made:expr) => {
        match $made {
            Some(made) => made,
            None => return,
        }
    };
}

/// An irqfd may deliver from a work queue of the kernel's.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

/// Who holds the vector's descriptor.
fn holder(vector: &dyn MsiVector) -> EventFd {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let duplicate = vector.descriptor().unwrap().try_clone_to_owned().unwrap();
    // SAFETY: an eventfd that is this function's own.
    unsafe { EventFd::from_raw_fd(duplicate.into_raw_fd()) }
}

#[test]
fn a_vector_sends_its_message_and_follows_a_rewritten_one_while_it_is_live() {
    let world = or_skip!(World::new());
    let vector = world.vector();
    assert!(vector.trigger().is_err(), "it has no message yet");
    vector.program(Some(to(0x41))).unwrap();
    vector.trigger().unwrap();
    eventually("it is sent", || world.requested() == [0x41]);
    vector.program(Some(to(0x52))).unwrap();
    vector.trigger().unwrap();
    eventually("the new one is sent", || world.requested() == [0x52]);
    vector.program(None).unwrap();
    assert!(vector.trigger().is_err());
    assert!(!vector.is_signalled(), "what was refused does not wait");
    assert_eq!(world.requested(), []);
}

#[test]
fn what_is_signalled_from_outside_without_a_message_waits_and_is_sent_once() {
    let world = or_skip!(World::new());
    let vector = world.vector();
    let holder = holder(&vector);
    vector.program(Some(to(0x41))).unwrap();
    holder.write(1).unwrap();
    eventually("the holder signals", || world.requested() == [0x41]);
    vector.program(None).unwrap();

    assert!(!vector.is_signalled());
    holder.write(1).unwrap();
    holder.write(1).unwrap();
    assert!(vector.is_signalled());
    assert!(vector.is_signalled(), "looking takes nothing");
    assert_eq!(world.requested(), []);
    vector.program(Some(to(0x43))).unwrap();
    assert!(!vector.is_signalled(), "it is on its way");
    eventually("it is sent along the new route", || world.requested() == [0x43]);
    vector.program(None).unwrap();
    assert!(!vector.is_signalled(), "it was sent");
    vector.program(Some(to(0x44))).unwrap();
    // Waits for what may be under way.
    vector.program(None).unwrap();
    assert_eq!(world.requested(), [], "once");

    holder.write(1).unwrap();
    assert!(vector.take_signal());
    assert!(!vector.take_signal());
    vector.program(Some(to(0x45))).unwrap();
    drop(vector);
    assert_eq!(world.requested(), [], "it was taken");
}

#[test]
fn a_dropped_vector_is_dead_for_all_who_hold_its_descriptor_and_its_gsi_is_free() {
    let world = or_skip!(World::new());
    let vector = world.vector();
    vector.program(Some(to(0x41))).unwrap();
    let holder = holder(&vector);
    drop(vector);
    let next = world.vector();
    next.program(Some(to(0x42))).unwrap();
    holder.write(1).unwrap();
    assert_eq!(holder.read().unwrap(), 1, "nobody took the signal");
    // The GSI is the same again, and the route another.
    assert!(format!("{:?}", world.irqs.messages()).contains("Gsi(24)"));
    assert!(!format!("{:?}", world.irqs.messages()).contains("Gsi(25)"));
    next.trigger().unwrap();
    eventually("the next one works", || world.requested() == [0x42]);
}

#[test]
fn the_route_of_a_dropped_vector_is_gone() {
    let world = or_skip!(World::new());
    let vector = world.vector();
    vector.program(Some(to(0x41))).unwrap();
    // On x86 this ioctl sends along whatever route a GSI has.
    world.vm.set_irq_line(24, true).unwrap();
    assert_eq!(world.requested(), [0x41]);
    drop(vector);
    let _ = world.vm.set_irq_line(24, true);
    assert_eq!(world.requested(), []);
}

#[test]
fn the_wires_work_as_before_beside_messages() {
    let world = or_skip!(World::new());
    let wire = Gsi(20);
    let line = world.irqs.claim(wire, "uart").unwrap().irq_line().unwrap();
    let edge = world.irqs.claim(Gsi(5), "disk").unwrap().irqfd().unwrap();
    let vector = world.vector();
    vector.program(Some(to(0x41))).unwrap();
    line.trigger().unwrap();
    assert!(world.is_up(wire));
    line.clear().unwrap();
    assert!(!world.is_up(wire));
    edge.trigger().unwrap();
    // And can still be made.
    world.irqs.claim(Gsi(21), "rtc").unwrap().irq_line().unwrap();
    world.irqs.claim(Gsi(3), "tty").unwrap().resample_irqfd().unwrap();
}

#[test]
fn a_guest_s_message_to_nowhere_is_refused_and_harms_no_other() {
    let world = or_skip!(World::new());
    let good = world.vector();
    good.program(Some(to(0x41))).unwrap();
    let bad = world.vector();
    for address in [0, 0xfed0_0000, 0x1_0000_0000, u64::MAX] {
        bad.program(Some(to(0x42))).unwrap();
        let message = MsiMessage { address, data: 0x42 };
        assert!(bad.program(Some(message)).is_err(), "{address:#x}");
        assert!(bad.trigger().is_err(), "it has no message now");
        assert!(world.irqs.messages().send(REQUESTER, message).is_err());
    }
    good.trigger().unwrap();
    eventually("the other one works", || world.requested() == [0x41]);
}

#[test]
fn a_message_that_the_kernel_itself_refuses_leaves_the_table_as_it_was() {
    let world = or_skip!(World::with(|vm| {
        // 32-bit APIC IDs: bits 7:0 of the upper address are reserved then, and make the whole table invalid.
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        cap.args[0] = 1;
        vm.enable_cap(&cap).unwrap();
        vm.create_irq_chip().unwrap();
    }));
    let (good, bad) = (world.vector(), world.vector());
    good.program(Some(to(0x41))).unwrap();
    bad.program(Some(to(0x42))).unwrap();
    let message = MsiMessage {
        address: 0x1_fee0_0000,
        data: 0x43,
    };
    assert!(bad.program(Some(message)).is_err());
    assert!(bad.trigger().is_err(), "it has no message now, and not the old one");
    good.program(Some(to(0x44))).unwrap();
    good.trigger().unwrap();
    eventually("the others follow their changes", || world.requested() == [0x44]);
    bad.program(Some(to(0x45))).unwrap();
    bad.trigger().unwrap();
    eventually("and so does it", || world.requested() == [0x45]);
    world.irqs.claim(Gsi(20), "uart").unwrap().irq_line().unwrap();
}

#[test]
fn a_restored_function_has_live_routes_and_sends_what_was_pending() {
    let world = or_skip!(World::new());
    let function = || {
        let mut config = EndpointConfig::new(Identity::default()).unwrap();
        config.msix(BarIndex::Bar0, 2).unwrap();
        let vectors = Arc::new(world.irqs.messages());
        let slot = Slot::new(DeviceFunction::new(3, 0).unwrap(), Box::new(NoInterrupt), vectors);
        Endpoint::new(config, slot)
    };
    let mask = |function: &Endpoint, vector: u64, masked: u32| {
        function.write_bar(BarIndex::Bar0, 16 * vector + 12, &masked.to_le_bytes());
    };
    let saved = {
        let function = function();
        function.write_config(0x04, &[6, 0]);
        function.write_config(0x42, &0x8000_u16.to_le_bytes());
        for vector in 0..2_u64 {
            function.write_bar(BarIndex::Bar0, 16 * vector, &0xfee0_0000_u64.to_le_bytes());
            function.write_bar(BarIndex::Bar0, 16 * vector + 8, &(0x41 + vector).to_le_bytes());
        }
        mask(&function, 1, 1);
        let mut holder = File::from(function.msix().unwrap().export(1).unwrap());
        holder.write_all(&1_u64.to_ne_bytes()).unwrap();
        function.save()
    };
    assert_eq!(world.requested(), []);
    let restored = function();
    restored.restore(&saved).unwrap();
    restored.msix().unwrap().trigger(0).unwrap();
    eventually("the route is live", || world.requested() == [0x41]);
    assert!(restored.msix().unwrap().is_pending(1));
    mask(&restored, 1, 0);
    eventually("what was pending is sent", || world.requested() == [0x42]);
}

#[test]
#[cfg(feature = "recorder")]
fn a_recorder_in_front_passes_the_descriptor_on_with_what_waits_in_it() {
    let world = or_skip!(World::new());
    let recorder = devisor::backends::recorder::Recorder::new();
    let vectors = recorder.wrap_vectors("nic", world.irqs.messages());
    let vector = vectors.vector(REQUESTER).unwrap();
    let holder = holder(&vector);
    holder.write(1).unwrap();
    assert!(vector.is_signalled());
    assert!(vector.take_signal());
    assert!(!vector.is_signalled());
    vector.program(Some(to(0x41))).unwrap();
    holder.write(1).unwrap();
    eventually("the holder signals", || world.requested() == [0x41]);
}

#[test]
fn the_sink_sends_before_it_returns() {
    let world = or_skip!(World::new());
    let sink = world.irqs.messages();
    for vector in [0x20, 0x41, 0xfe] {
        sink.send(REQUESTER, to(vector)).unwrap();
        assert_eq!(world.requested(), [vector]);
    }
}

#[test]
fn as_many_vectors_as_a_function_can_have_get_their_routes() {
    let world = or_skip!(World::new());
    if let Err(why) = allow_files(2048 + 256) {
        skipped(why);
        return;
    }
    let vectors: Vec<_> = (0..2048).map(|_| world.vector()).collect();
    for (index, vector) in (0..).zip(&vectors) {
        vector.program(Some(to(0x20 + (index % 200) as u8))).unwrap();
    }
    for index in [0, 1, 199, 1000, 2047] {
        vectors[index].trigger().unwrap();
        let expected = 0x20 + (index % 200) as u8;
        eventually("each goes its own way", || world.requested() == [expected]);
    }
    drop(vectors);
    world.vector().program(Some(to(0x41))).unwrap();
}

fn allow_files(count: u64) -> Result<(), String> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one `rlimit` is written, then read.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max.min(count.max(limit.rlim_cur));
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    if limit.rlim_cur < count {
        return Err(format!(
            "{} open files are allowed, and {count} are needed",
            limit.rlim_cur
        ));
    }
    Ok(())
}

#[test]
fn a_vm_that_has_no_gsi_left_says_so() {
    let world = or_skip!(World::new());
    let last = world.vm.check_extension_int(kvm_ioctls::Cap::IrqRouting) as u32 - 1;
    let irqs = KvmIrqs::new(Arc::clone(&world.vm), 0..=last - 1).unwrap();
    let only = irqs.messages().vector(REQUESTER).unwrap();
    let Err(error) = irqs.messages().vector(REQUESTER) else {
        panic!("there is no further one");
    };
    assert!(error.to_string().contains("no GSI is free"), "{error}");
    drop(only);
    irqs.messages().vector(REQUESTER).unwrap();
}

#[test]
fn with_the_split_irqchip_pins_are_routed_by_the_embedder_and_messages_work() {
    let world = or_skip!(World::split());
    let vector = world.vector();
    vector.program(Some(to(0x41))).unwrap();
    vector.trigger().unwrap();
    eventually("it is sent", || world.requested() == [0x41]);

    world
        .irqs
        .route_ioapic_pins(&[(4, Some(to(0x34))), (5, Some(to(0x35)))])
        .unwrap();
    world.vm.set_irq_line(5, true).unwrap();
    assert_eq!(world.requested(), [0x35]);
    world.irqs.route_ioapic_pins(&[(5, None), (4, Some(to(0x36)))]).unwrap();
    let _ = world.vm.set_irq_line(5, true);
    world.vm.set_irq_line(4, true).unwrap();
    assert_eq!(world.requested(), [0x36]);

    let nowhere = MsiMessage { address: 0, data: 0 };
    let refused = world.irqs.route_ioapic_pins(&[(4, None), (6, Some(nowhere))]);
    assert!(matches!(refused, Err(KvmIrqError::NoDoorbell { message }) if message == nowhere));
    world.vm.set_irq_line(4, true).unwrap();
    assert_eq!(world.requested(), [0x36], "nothing was changed");
    let refused = world.irqs.route_ioapic_pins(&[(24, None)]);
    assert!(matches!(refused, Err(KvmIrqError::OutOfRange { gsi: Gsi(24), .. })));
    vector.trigger().unwrap();
    eventually("messages still work", || world.requested() == [0x41]);
}

#[test]
fn the_pins_of_the_kernel_s_ioapic_are_the_kernel_s() {
    let world = or_skip!(World::new());
    let refused = world.irqs.route_ioapic_pins(&[(4, Some(to(0x34)))]);
    assert!(matches!(refused, Err(KvmIrqError::Wired { gsi: Gsi(4) })));
}

#[test]
fn without_an_interrupt_controller_a_vector_cannot_be_programmed_and_works_once_there_is_one() {
    let vm = match Kvm::new() {
        Ok(kvm) => Arc::new(kvm.create_vm().unwrap()),
        Err(error) => return skipped(format_args!("/dev/kvm cannot be opened: {error}")),
    };
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let vector = irqs.messages().vector(REQUESTER).unwrap();
    assert!(vector.program(Some(to(0x41))).is_err());
    assert!(vector.trigger().is_err());
    vm.create_irq_chip().unwrap();
    vector.program(Some(to(0x41))).unwrap();
    vector.trigger().unwrap();
    let wire = irqs.claim(Gsi(20), "uart").unwrap();
    wire.irq_line().expect("the wires have their routes");
}
