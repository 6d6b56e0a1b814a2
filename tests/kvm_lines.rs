//! The lines of the KVM backend, seen from the pins of the kernel's 8259 and IOAPIC. No vCPU runs.
#![cfg(all(feature = "kvm", target_os = "linux", target_arch = "x86_64"))]

#[path = "support/skip.rs"]
mod skip;

use std::{
    io,
    os::fd::AsRawFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use devisor::{
    backends::kvm::{Gsi, KvmIrqError, KvmIrqs, Resampler},
    interrupt::{Interrupt, LevelInterrupt, SharedLine},
};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, kvm_enable_cap, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::{Kvm, VmFd};
use skip::skipped;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A GSI of the IOAPIC, whose request register follows the wire.
const WIRE: Gsi = Gsi(20);
/// A GSI of the master 8259, whose request register keeps an edge.
const EDGE: Gsi = Gsi(5);

/// A VM without an interrupt controller.
fn bare_vm() -> Option<Arc<VmFd>> {
    match Kvm::new() {
        Ok(kvm) => Some(Arc::new(kvm.create_vm().unwrap())),
        Err(error) => {
            skipped(format_args!("/dev/kvm cannot be opened: {error}"));
            None
        }
    }
}

fn vm() -> Option<Arc<VmFd>> {
    let vm = bare_vm()?;
    vm.create_irq_chip().unwrap();
    Some(vm)
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

fn irqchip(vm: &VmFd, chip_id: u32) -> kvm_irqchip {
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).unwrap();
    chip
}

/// Whether the IOAPIC sees the wire up.
fn is_up(vm: &VmFd, gsi: Gsi) -> bool {
    // SAFETY: the kernel has filled in the union's variant for the chip that was asked for.
    let irr = unsafe { irqchip(vm, KVM_IRQCHIP_IOAPIC).chip.ioapic.irr };
    irr & 1 << gsi.0 != 0
}

fn pic(vm: &VmFd) -> kvm_pic_state {
    // SAFETY: as above.
    unsafe { irqchip(vm, KVM_IRQCHIP_PIC_MASTER).chip.pic }
}

/// Whether the master 8259 has latched an edge.
fn is_latched(vm: &VmFd, gsi: Gsi) -> bool {
    pic(vm).irr & 1 << gsi.0 != 0
}

fn forget_edges(vm: &VmFd) {
    let mut chip = irqchip(vm, KVM_IRQCHIP_PIC_MASTER);
    chip.chip.pic.irr = 0;
    vm.set_irqchip(&chip).unwrap();
}

/// An irqfd delivers from a work queue of the kernel's, so it takes a moment.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn an_irqfd_delivers_an_edge() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(EDGE, "disk").unwrap().irqfd().unwrap();
    assert!(!is_latched(&vm, EDGE));
    line.trigger().unwrap();
    eventually("the edge is latched", || is_latched(&vm, EDGE));
    // An edge and not a level: the wire is down again.
    eventually("the wire fell", || pic(&vm).last_irr & 1 << EDGE.0 == 0);
}

#[test]
fn an_irqfd_signals_by_one_write_and_whoever_holds_its_eventfd_can_do_the_same() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(EDGE, "disk").unwrap().irqfd().unwrap();
    assert_eq!(line.as_raw_fd(), line.eventfd().as_raw_fd());
    line.eventfd().try_clone().unwrap().write(1).unwrap();
    eventually("the edge is latched", || is_latched(&vm, EDGE));

    // With nobody to take them, the signals can be counted.
    vm.unregister_irqfd(line.eventfd(), EDGE.0).unwrap();
    line.trigger().unwrap();
    line.trigger().unwrap();
    assert_eq!(line.eventfd().read().unwrap(), 2);
}

#[test]
fn a_pulse_delivers_an_edge_before_it_returns() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(EDGE, "disk").unwrap().irq_pulse().unwrap();
    for _ in 0..3 {
        line.trigger().unwrap();
        assert!(is_latched(&vm, EDGE));
        assert_eq!(pic(&vm).last_irr & 1 << EDGE.0, 0, "the wire fell");
        forget_edges(&vm);
    }
}

#[test]
fn an_irq_line_follows_its_device_at_once_however_often_it_is_told() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(WIRE, "uart").unwrap().irq_line().unwrap();
    assert!(!is_up(&vm, WIRE));
    line.trigger().unwrap();
    line.trigger().unwrap();
    assert!(is_up(&vm, WIRE));
    line.clear().unwrap();
    assert!(!is_up(&vm, WIRE), "two triggers and one clear");
    line.clear().unwrap();
    line.trigger().unwrap();
    assert!(is_up(&vm, WIRE), "one trigger after two clears");
}

#[test]
fn a_resample_irqfd_raises_the_wire() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(WIRE, "uart").unwrap().resample_irqfd().unwrap();
    assert!(!is_up(&vm, WIRE));
    line.trigger().unwrap();
    assert!(line.is_up());
    eventually("the wire is up", || is_up(&vm, WIRE));
}

#[test]
fn two_devices_on_one_wire_hold_it_up_until_both_have_let_go() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let wire = SharedLine::new(irqs.claim(WIRE, "uart, rtc").unwrap().irq_line().unwrap());
    let (uart, rtc) = (wire.source().unwrap(), wire.source().unwrap());
    uart.trigger().unwrap();
    rtc.trigger().unwrap();
    uart.clear().unwrap();
    assert!(is_up(&vm, WIRE), "the clock still holds it");
    drop(rtc);
    assert!(!is_up(&vm, WIRE), "a dropped device lets go");
}

#[test]
fn dropping_a_level_line_lowers_its_wire_and_frees_its_gsi() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();

    let line = irqs.claim(WIRE, "uart").unwrap().irq_line().unwrap();
    line.trigger().unwrap();
    assert!(is_up(&vm, WIRE));
    drop(line);
    assert!(!is_up(&vm, WIRE));

    let line = irqs.claim(WIRE, "uart").unwrap().resample_irqfd().unwrap();
    line.trigger().unwrap();
    eventually("the wire is up", || is_up(&vm, WIRE));
    drop(line);
    assert!(!is_up(&vm, WIRE));

    // Both kinds can follow each other on one GSI, and neither inherits a level.
    let line = irqs.claim(WIRE, "uart").unwrap().irq_line().unwrap();
    assert!(!is_up(&vm, WIRE));
    drop(line);
}

#[test]
fn a_duplicate_of_the_eventfd_of_a_dropped_line_signals_nothing() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();

    let line = irqs.claim(EDGE, "disk").unwrap().irqfd().unwrap();
    let duplicate = line.eventfd().try_clone().unwrap();
    duplicate.write(1).unwrap();
    drop(line);
    assert!(
        is_latched(&vm, EDGE),
        "what came before the drop is delivered before it"
    );
    forget_edges(&vm);
    duplicate.write(1).unwrap();

    let line = irqs.claim(WIRE, "disk").unwrap().resample_irqfd().unwrap();
    let other = line.eventfd().try_clone().unwrap();
    drop(line);
    other.write(1).unwrap();

    // KVM takes what it delivers off an eventfd: these signals are still there, so nobody is going to deliver them.
    assert_eq!(duplicate.read().unwrap(), 1);
    assert_eq!(other.read().unwrap(), 1);
    assert!(!is_latched(&vm, EDGE));
    assert!(!is_up(&vm, WIRE));
}

#[test]
fn an_edge_that_cannot_be_signalled_is_an_error_and_what_was_signalled_before_is_not_lost() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(EDGE, "disk").unwrap().irqfd().unwrap();

    // Somebody takes the eventfd off behind our back, and it fills up.
    vm.unregister_irqfd(line.eventfd(), EDGE.0).unwrap();
    line.trigger().unwrap();
    line.eventfd().write(u64::MAX - 2).unwrap();
    assert_eq!(line.trigger().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(!is_latched(&vm, EDGE));

    vm.register_irqfd(line.eventfd(), EDGE.0).unwrap();
    eventually("the earlier signals are an edge", || is_latched(&vm, EDGE));
}

#[test]
fn a_level_that_cannot_be_signalled_is_told_by_the_next_trigger() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 0..=23).unwrap();
    let line = irqs.claim(WIRE, "uart").unwrap().resample_irqfd().unwrap();
    vm.unregister_irqfd(line.eventfd(), WIRE.0).unwrap();
    line.eventfd().write(u64::MAX - 1).unwrap();
    assert_eq!(line.trigger().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(!line.is_up(), "a refusal leaves the wire as it was");

    let _ = line.eventfd().read();
    vm.register_irqfd_with_resample(line.eventfd(), line.resample_fd(), WIRE.0)
        .unwrap();
    line.trigger().unwrap();
    eventually("the next signal carries it", || is_up(&vm, WIRE));
}

#[test]
fn a_gsi_has_one_line_and_dropping_it_makes_room_for_another() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(vm, 4..=6).unwrap();
    let uart = irqs.claim(Gsi(5), "uart").unwrap().irqfd().unwrap();
    let error = irqs.claim(Gsi(5), "disk").unwrap_err();
    assert_eq!(error.to_string(), "GSI 5 is claimed by `uart` (devices have 4 to 6)");

    let first = irqs.allocate("disk").unwrap().irq_pulse().unwrap();
    let second = irqs.allocate("net").unwrap().irqfd().unwrap();
    assert_eq!(second.gsi(), Gsi(6));
    let error = irqs.clone().allocate("rng").unwrap_err();
    assert_eq!(error.to_string(), "no GSI is free: all of 4 to 6 are claimed");

    drop((uart, first));
    assert_eq!(irqs.allocate("rng").unwrap().gsi(), Gsi(4));
    irqs.claim(Gsi(5), "rng").unwrap().irq_line().unwrap();
}

#[test]
fn without_an_interrupt_controller_every_line_says_what_is_missing_and_gives_its_gsi_back() {
    let vm = or_skip!(bare_vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 5..=5).unwrap();
    let errors = [
        irqs.allocate("disk").unwrap().irqfd().map(drop),
        irqs.allocate("disk").unwrap().resample_irqfd().map(drop),
        irqs.allocate("disk").unwrap().irq_line().map(drop),
        irqs.allocate("disk").unwrap().irq_pulse().map(drop),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(matches!(error, KvmIrqError::NoIrqchip { .. }), "{error:?}");
        assert!(error.to_string().contains("KVM_CREATE_IRQCHIP"), "{error}");
    }
    vm.create_irq_chip().unwrap();
    irqs.allocate("disk").unwrap().irqfd().unwrap();
}

#[test]
fn a_gsi_that_leads_nowhere_is_refused_and_not_silent() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(vm, 24..=24).unwrap();
    let errors = [
        irqs.allocate("disk").unwrap().irqfd().map(drop),
        irqs.allocate("disk").unwrap().resample_irqfd().map(drop),
        irqs.allocate("disk").unwrap().irq_line().map(drop),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(
            matches!(error, KvmIrqError::NoRoute { gsi: Gsi(24) }),
            "GSI 24 has no default route: {error:?}"
        );
    }
}

#[test]
fn the_split_irqchip_takes_no_wires() {
    let vm = or_skip!(bare_vm());
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = 24;
    vm.enable_cap(&split).unwrap();
    let irqs = KvmIrqs::new(vm, 5..=5).unwrap();
    let error = irqs.allocate("disk").unwrap().resample_irqfd().unwrap_err();
    assert!(error.to_string().contains("split irqchip"), "{error}");
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "it is refused")]
fn a_range_that_the_kernel_cannot_route_is_refused() {
    let vm = or_skip!(vm());
    for range in [5..=4, 0..=u32::MAX, 4096..=4096] {
        let error = KvmIrqs::new(Arc::clone(&vm), range).unwrap_err();
        assert!(matches!(error, KvmIrqError::BadRange { .. }), "{error}");
    }
    KvmIrqs::new(vm, 0..=4095).unwrap();
}

#[test]
fn a_resampler_tells_each_line_and_forgets_the_dropped_ones() {
    let vm = or_skip!(vm());
    let irqs = KvmIrqs::new(Arc::clone(&vm), 16..=23).unwrap();
    let resampler = Resampler::new().unwrap();
    let lines = [(); 3].map(|()| Arc::new(irqs.allocate("device").unwrap().resample_irqfd().unwrap()));
    for line in &lines {
        resampler.add(line).unwrap();
    }
    assert_eq!(
        resampler.add(&lines[0]).unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );

    // As KVM would after an EOI. Taking the irqfd off leaves the signal to be counted.
    for (line, up) in lines.iter().zip([true, false, true]) {
        vm.unregister_irqfd(line.eventfd(), line.gsi().0).unwrap();
        if up {
            line.trigger().unwrap();
            assert_eq!(line.eventfd().read().unwrap(), 1);
        }
        line.resample_fd().write(1).unwrap();
    }
    let duplicate = lines[2].resample_fd().try_clone().unwrap();
    let [first, second, third] = lines;
    drop(third);

    // An event loop of the embedder's finds that there is something to do, and afterwards nothing: not even for the
    // line that is gone, whose eventfd somebody still has and nobody reads.
    let event_loop = Epoll::new().unwrap();
    let readable = EpollEvent::new(EventSet::IN, 0);
    event_loop
        .ctl(ControlOperation::Add, resampler.as_raw_fd(), readable)
        .unwrap();
    let is_readable = || event_loop.wait(0, &mut [EpollEvent::default()]).unwrap() == 1;
    assert!(is_readable());
    resampler.serve().unwrap();
    assert!(!is_readable());
    assert_eq!(first.eventfd().read().unwrap(), 1, "still up: signalled again");
    assert!(second.eventfd().read().is_err(), "down: left alone");
    assert!(first.resample_fd().read().is_err(), "the notice was taken");
    assert_eq!(duplicate.read().unwrap(), 1, "nobody has the third line any more");
    assert_eq!(resampler.failures(), 0);

    // A failure is counted, ends nothing, and stays owed.
    first.eventfd().write(u64::MAX - 1).unwrap();
    first.resample_fd().write(1).unwrap();
    resampler.serve().unwrap();
    assert_eq!(resampler.failures(), 1);
}

#[test]
fn a_resampler_runs_until_it_is_stopped_and_can_run_again() {
    let resampler = Resampler::new().unwrap();
    for _ in 0..2 {
        thread::scope(|scope| {
            let running = scope.spawn(|| resampler.run());
            resampler.stop().unwrap();
            running.join().unwrap().unwrap();
        });
    }
    resampler.stop().unwrap();
    resampler.run().unwrap();
}
