//! The steps of the random sequences that are made beside the reference.

use crate::guest::*;
use devisor::backends::irqchip::gicv3::SysReg;
use proptest::{prelude::*, sample::select};

pub const CPUS: usize = 3;
/// The interrupts that the sequences play with, few, so that they meet.
pub const SGIS: [u32; 2] = [0, 5];
pub const PPIS: [u32; 2] = [27, 1057];
pub const SPIS: [u32; 4] = [32, 33, 63, 4100];
pub const LPIS: [u32; 3] = [8192, 8255, 65535];
const SPECIALS: [u32; 6] = [1020, 1023, 700, 5119, 8191, 0xff_ffff];

/// What a guest, its devices and its embedder do.
#[derive(Clone, Debug)]
pub enum Step {
    Line {
        cpu: usize,
        intid: u32,
        up: bool,
    },
    Pulse {
        intid: u32,
    },
    SendSgi {
        register: SysReg,
        list: u64,
        to_others: bool,
        intid: u32,
    },
    Lpi {
        intid: u32,
        pending: bool,
    },
    MessageLpi {
        cpu: u32,
        intid: u32,
    },
    ConfigureLpi {
        intid: u32,
        entry: u8,
        all: bool,
    },
    EnableLpis {
        on: bool,
    },
    Bit {
        array: Array,
        intid: u32,
    },
    Group {
        intid: u32,
        group: u32,
    },
    Edge {
        intid: u32,
        edge: bool,
    },
    Priority {
        intid: u32,
        priority: u8,
    },
    Route {
        intid: u32,
        router: u64,
    },
    Forward {
        groups: u64,
    },
    Sleep {
        asleep: bool,
    },
    OptOut {
        dpg: [bool; 2],
    },
    Enable {
        group: usize,
        on: bool,
    },
    Mask {
        value: u64,
    },
    BinaryPoint {
        group: usize,
        value: u64,
    },
    Control {
        value: u64,
    },
    ActivePriorities {
        group: usize,
        value: u32,
    },
    Acknowledge {
        group: usize,
    },
    /// Ends the last that this CPU has acknowledged.
    End,
    /// Ends anything, which may be another CPU's.
    EndAny {
        group: usize,
        intid: u32,
    },
    Deactivate {
        intid: u32,
    },
    Migrate,
}

/// A step and the CPU that makes it.
pub fn step() -> impl Strategy<Value = (usize, Step)> {
    let wired = || prop_oneof![1 => select(&SGIS[..]), 1 => select(&PPIS[..]), 3 => select(&SPIS[..])];
    let lpi = || select(&LPIS[..]);
    let any_of_them = || prop_oneof![4 => wired(), 2 => lpi(), 1 => select(&SPECIALS[..])];
    let priority = || select(&[0x00, 0x10, 0x28, 0x40, 0x47, 0xa0, 0xf0, 0xff][..]);
    let arrays = [
        Array::SetEnable,
        Array::SetEnable,
        Array::ClearEnable,
        Array::SetPending,
        Array::ClearPending,
        Array::SetActive,
        Array::ClearActive,
    ];
    let registers = [
        SysReg::ICC_SGI1R_EL1,
        SysReg::ICC_SGI1R_EL1,
        SysReg::ICC_SGI0R_EL1,
        SysReg::ICC_ASGI1R_EL1,
    ];
    let routers = [0, 1, 2, 3, ONE_OF_N, ONE_OF_N, ONE_OF_N | 1];
    let mostly_on = || prop_oneof![3 => Just(true), 1 => Just(false)];
    let devices = prop_oneof![
        6 => (0..CPUS, prop_oneof![1 => select(&PPIS[..]), 2 => select(&SPIS[..])], any::<bool>())
            .prop_map(|(cpu, intid, up)| Step::Line { cpu, intid, up }),
        4 => select(&SPIS[..]).prop_map(|intid| Step::Pulse { intid }),
        4 => (select(registers.to_vec()), 0..16_u64, any::<bool>(), select(&SGIS[..]))
            .prop_map(|(register, list, to_others, intid)| Step::SendSgi { register, list, to_others, intid }),
        3 => (lpi(), mostly_on()).prop_map(|(intid, pending)| Step::Lpi { intid, pending }),
        2 => (0..CPUS as u32, lpi()).prop_map(|(cpu, intid)| Step::MessageLpi { cpu, intid }),
    ];
    let configuration = prop_oneof![
        1 => (lpi(), any::<u8>(), any::<bool>()).prop_map(|(intid, entry, all)| Step::ConfigureLpi { intid, entry, all }),
        1 => mostly_on().prop_map(|on| Step::EnableLpis { on }),
        6 => (select(arrays.to_vec()), wired()).prop_map(|(array, intid)| Step::Bit { array, intid }),
        2 => (wired(), 0..2_u32).prop_map(|(intid, group)| Step::Group { intid, group }),
        1 => (wired(), any::<bool>()).prop_map(|(intid, edge)| Step::Edge { intid, edge }),
        3 => (wired(), priority()).prop_map(|(intid, priority)| Step::Priority { intid, priority }),
        3 => (select(&SPIS[..]), select(routers.to_vec())).prop_map(|(intid, router)| Step::Route { intid, router }),
        1 => prop_oneof![2 => Just(3), 1 => any::<u64>()].prop_map(|groups| Step::Forward { groups }),
        1 => mostly_on().prop_map(|awake| Step::Sleep { asleep: !awake }),
        1 => any::<[bool; 2]>().prop_map(|dpg| Step::OptOut { dpg }),
        1 => (0..2_usize, mostly_on()).prop_map(|(group, on)| Step::Enable { group, on }),
        1 => prop_oneof![3 => Just(0xff), 1 => any::<u64>()].prop_map(|value| Step::Mask { value }),
        1 => (0..2_usize, any::<u64>()).prop_map(|(group, value)| Step::BinaryPoint { group, value }),
        1 => prop_oneof![2 => Just(0), 1 => any::<u64>()].prop_map(|value| Step::Control { value }),
        1 => (0..2_usize, prop_oneof![2 => Just(0), 1 => any::<u32>()])
            .prop_map(|(group, value)| Step::ActivePriorities { group, value }),
    ];
    let handling = prop_oneof![
        12 => prop_oneof![1 => Just(0), 2 => Just(1)].prop_map(|group| Step::Acknowledge { group }),
        8 => Just(Step::End),
        2 => (0..2_usize, any_of_them()).prop_map(|(group, intid)| Step::EndAny { group, intid }),
        2 => any_of_them().prop_map(|intid| Step::Deactivate { intid }),
        1 => Just(Step::Migrate),
    ];
    (0..CPUS, prop_oneof![4 => devices, 4 => configuration, 5 => handling])
}
