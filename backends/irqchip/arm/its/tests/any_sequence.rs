//! Any sequence of commands and messages beside a reference that has no tables: maps by number, looked up each time.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// What a guest can do, with numbers few enough to meet and some that do not exist.
#[derive(Clone, Copy, Debug)]
enum Action {
    Command(Command),
    Message(u16, u32),
    Enable(bool),
    /// Another ITS in the place of this one, with its state.
    Migrate,
}

#[derive(Default)]
struct Reference {
    enabled: bool,
    /// The table's number, and the bits of event.
    devices: HashMap<u32, (u64, u32)>,
    collections: HashMap<u16, u32>,
    /// By table and event: LPI and collection. They outlive the device's mapping.
    events: HashMap<(u64, u32), (u32, u16)>,
    pending: BTreeSet<(u32, u32)>,
    refused: u64,
    /// Commands that came while it was disabled.
    waiting: Vec<Command>,
}

/// Devices that the table has room for.
const DEVICES: u32 = 512;

impl Reference {
    fn act(&mut self, action: Action) {
        match action {
            Action::Command(command) if !self.enabled => self.waiting.push(command),
            Action::Command(command) => self.command(command),
            Action::Message(device, event) if self.enabled => {
                if let Some((cpu, lpi)) = self.translate(device.into(), event) {
                    self.pending.insert((cpu, lpi));
                }
            }
            Action::Message(..) | Action::Migrate => {}
            Action::Enable(enabled) => {
                self.enabled = enabled;
                if enabled {
                    for command in mem::take(&mut self.waiting) {
                        self.command(command);
                    }
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        if self.try_command(command).is_none() {
            self.refused += 1;
        }
    }

    fn entry(&self, device: u32, event: u32) -> Option<(u64, u32)> {
        let &(table, bits) = self.devices.get(&device)?;
        (u64::from(event) < 1 << bits).then_some((table, event))
    }

    fn translate(&self, device: u32, event: u32) -> Option<(u32, u32)> {
        let &(lpi, collection) = self.events.get(&self.entry(device, event)?)?;
        Some((*self.collections.get(&collection)?, lpi))
    }

    fn try_command(&mut self, [first, second, third, fourth]: Command) -> Option<()> {
        let (device, event, collection) = ((first >> 32) as u32, second as u32, third as u16);
        let processor = |word: u64| {
            let number = (word >> 16) as u32 & 0xffff;
            (number < CPUS).then_some(number)
        };
        let has_collection = u32::from(collection) < 1 << CONFIG.collection_bits;
        match first as u8 {
            0x08 => {
                let bits = (second as u32 & 0x1f) + 1;
                if device >= DEVICES || (third >> 63 == 1 && bits > CONFIG.event_bits) {
                    return None;
                }
                match third >> 63 {
                    1 => self.devices.insert(device, (third & 0x000f_ffff_ffff_ff00, bits)),
                    _ => self.devices.remove(&device),
                };
            }
            0x09 => {
                if !has_collection {
                    return None;
                }
                match third >> 63 {
                    1 => self.collections.insert(collection, processor(third)?),
                    _ => self.collections.remove(&collection),
                };
            }
            opcode @ (0x0a | 0x0b) => {
                let lpi = if opcode == 0x0a { (second >> 32) as u32 } else { event };
                if !has_collection || !(8192..1 << LPI_BITS).contains(&lpi) {
                    return None;
                }
                self.events.insert(self.entry(device, event)?, (lpi, collection));
            }
            0x01 => {
                let (from, lpi) = self.translate(device, event)?;
                let to = *self.collections.get(&collection)?;
                self.events.insert(self.entry(device, event)?, (lpi, collection));
                if self.pending.remove(&(from, lpi)) {
                    self.pending.insert((to, lpi));
                }
            }
            0x03 => drop(self.pending.insert(self.translate(device, event)?)),
            0x04 => drop(self.pending.remove(&self.translate(device, event)?)),
            0x0f => {
                self.pending.remove(&self.translate(device, event)?);
                self.events.remove(&self.entry(device, event)?);
            }
            0x0c => drop(self.translate(device, event)?),
            0x0d => drop(self.collections.get(&collection)?),
            0x05 => drop(processor(third)?),
            0x0e => {
                let (from, to) = (processor(third)?, processor(fourth)?);
                let all = mem::take(&mut self.pending).into_iter();
                self.pending = all
                    .map(|(cpu, lpi)| (if cpu == from { to } else { cpu }, lpi))
                    .collect();
            }
            _ => return None,
        }
        Some(())
    }
}

fn device() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0_u32..3, 1 => Just(511), 1 => 512_u32..514, 1 => any::<u32>()]
}

fn event() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0_u32..6, 1 => 30_u32..34, 1 => any::<u32>()]
}

fn collection() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0_u16..4, 1 => 254_u16..258, 1 => any::<u16>()]
}

fn processor() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..CPUS, 1 => Just(CPUS), 1 => 0_u32..0x1_0000]
}

fn lpi() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 8190_u32..8198, 1 => (1_u32 << LPI_BITS) - 1..=1 << LPI_BITS, 1 => any::<u32>()]
}

fn action() -> impl Strategy<Value = Action> {
    let command = prop_oneof![
        3 => (device(), 0_u64..4, 1_u32..10).prop_map(|(device, table, bits)| {
            command::mapd(device, ITTS + table * 0x1_0000, bits)
        }),
        1 => device().prop_map(command::unmapd),
        3 => (collection(), processor()).prop_map(|(collection, cpu)| command::mapc(collection, cpu)),
        1 => collection().prop_map(command::unmapc),
        8 => (device(), event(), lpi(), collection())
            .prop_map(|(device, event, lpi, collection)| command::mapti(device, event, lpi, collection)),
        1 => (device(), event(), collection())
            .prop_map(|(device, event, collection)| command::mapi(device, event, collection)),
        4 => (device(), event(), collection())
            .prop_map(|(device, event, collection)| command::movi(device, event, collection)),
        4 => (device(), event()).prop_map(|(device, event)| command::int(device, event)),
        2 => (device(), event()).prop_map(|(device, event)| command::clear(device, event)),
        2 => (device(), event()).prop_map(|(device, event)| command::discard(device, event)),
        1 => (device(), event()).prop_map(|(device, event)| command::inv(device, event)),
        1 => collection().prop_map(command::invall),
        1 => processor().prop_map(command::sync),
        1 => (processor(), processor()).prop_map(|(from, to)| command::movall(from, to)),
        1 => any::<Command>(),
    ];
    prop_oneof![
        12 => command.prop_map(Action::Command),
        8 => (device(), event()).prop_map(|(device, event)| Action::Message(device as u16, event)),
        1 => any::<bool>().prop_map(Action::Enable),
        1 => Just(Action::Enable(true)),
        1 => Just(Action::Migrate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leaves_the_same_lpis_pending_as_the_reference(actions in prop::collection::vec(action(), 1..120)) {
        let mut reference = Reference { enabled: true, ..Reference::default() };
        // Of 128 commands, so that all of a run fit that come while it is disabled.
        let mut world = World::with(CONFIG, DEVICE_TABLE, COLLECTION_TABLE);
        let mut refused = 0;
        for action in actions {
            match action {
                // A device ID of 32 bits and random tables may be anything but these.
                Action::Command([first, _, third, _])
                    if first as u8 == 0x08 && third >> 63 == 1 && !(ITTS..ITTS + 0x4_0000).contains(&(third & !VALID)) =>
                {
                    continue;
                }
                Action::Command(command) => world.write(CWRITER, world.queue(world.read(CWRITER), command)),
                Action::Message(device, event) => drop(world.message(device, event)),
                Action::Enable(enabled) => world.write(CTLR, enabled.into()),
                Action::Migrate => {
                    let state = world.its.save();
                    refused += world.its.refused_commands();
                    world = World::over(CONFIG, world.memory, world.lpis);
                    world.its.restore(&state).unwrap();
                }
            }
            reference.act(action);
            prop_assert_eq!(&*lock(&world.lpis.pending), &reference.pending, "{:x?}", action);
            prop_assert_eq!(refused + world.its.refused_commands(), reference.refused, "{:x?}", action);
        }
    }
}

const VALID: u64 = command::VALID;
