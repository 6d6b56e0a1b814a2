//! The 8042 with its keyboard and its mouse, driven through its ports as a guest would and by a host that types.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use devisor::{
    bus::BusDevice,
    interrupt::{LevelInterrupt, level_from_fn},
    platform::i8042::{I8042, I8042Lines, I8042State, Key, Motion, Source},
};
use proptest::prelude::*;

const OBF: u8 = 1 << 0;
const SYS: u8 = 1 << 2;
const COMMAND: u8 = 1 << 3;
const UNLOCKED: u8 = 1 << 4;
const AUX_OBF: u8 = 1 << 5;

const READ_COMMAND_BYTE: u8 = 0x20;
const WRITE_COMMAND_BYTE: u8 = 0x60;
const BOTH_INTERRUPTS: u8 = 0x03;
const TRANSLATE: u8 = 0x40;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const DISABLE_AUX: u8 = 0xa7;
const ENABLE_AUX: u8 = 0xa8;
const WRITE_AUX: u8 = 0xd4;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// What a line has heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<bool>>>);

impl Heard {
    fn line(&self) -> Box<dyn LevelInterrupt> {
        let log = Arc::clone(&self.0);
        Box::new(level_from_fn(move |up| {
            log.lock().unwrap().push(up);
            Ok(())
        }))
    }

    fn take(&self) -> Vec<bool> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A machine with an 8042 in it.
struct Pc {
    i8042: I8042,
    keyboard: Heard,
    mouse: Heard,
    a20: Heard,
    resets: Arc<AtomicU32>,
}

impl Pc {
    fn new() -> Self {
        let [keyboard, mouse, a20] = [(); 3].map(|()| Heard::default());
        let resets = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&resets);
        let i8042 = I8042::new(I8042Lines {
            keyboard: keyboard.line(),
            mouse: mouse.line(),
            a20: a20.line(),
            reset: Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)),
        });
        Self {
            i8042,
            keyboard,
            mouse,
            a20,
            resets,
        }
    }

    fn status(&self) -> u8 {
        let mut byte = [0xa5];
        self.i8042.command_port().read(0, &mut byte);
        byte[0]
    }

    fn command(&self, command: u8) {
        self.i8042.command_port().write(0, &[command]);
    }

    fn data(&self, data: u8) {
        self.i8042.data_port().write(0, &[data]);
    }

    fn read(&self) -> u8 {
        let mut byte = [0xa5];
        self.i8042.data_port().read(0, &mut byte);
        byte[0]
    }

    /// All that is there to read.
    fn all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.status() & OBF != 0 {
            all.push(self.read());
        }
        all
    }

    fn ask(&self, command: u8) -> u8 {
        self.command(command);
        assert_eq!(self.status() & (OBF | AUX_OBF), OBF);
        self.read()
    }

    fn keyboard(&self, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| self.data(*byte));
        self.all()
    }

    fn mouse(&self, bytes: &[u8]) -> Vec<u8> {
        for byte in bytes {
            self.command(WRITE_AUX);
            self.data(*byte);
        }
        let mut all = Vec::new();
        while self.status() & OBF != 0 {
            assert_eq!(self.status() & AUX_OBF, AUX_OBF);
            all.push(self.read());
        }
        all
    }

    fn set_command_byte(&self, value: u8) {
        self.command(WRITE_COMMAND_BYTE);
        self.data(value);
    }

    fn press(&self, key: Key) -> Vec<u8> {
        assert!(self.i8042.key(key, true));
        self.all()
    }

    fn release(&self, key: Key) -> Vec<u8> {
        assert!(self.i8042.key(key, false));
        self.all()
    }
}

fn key(code: u8) -> Key {
    Key::new(code).expect("it is one")
}

fn to(x: i16, y: i16) -> Motion {
    Motion {
        x,
        y,
        ..Motion::default()
    }
}

// The controller.

#[test]
fn a_controller_after_power_on_has_both_devices_and_nothing_to_say() {
    let pc = Pc::new();
    assert_eq!(pc.status(), UNLOCKED | COMMAND);
    assert_eq!(pc.ask(READ_COMMAND_BYTE), BOTH_INTERRUPTS);
    assert_eq!(pc.a20.take(), [true]);
    assert_eq!(pc.ask(0xd0), 0xcf, "the output port");
    assert_eq!(pc.ask(0xc0), 0x80, "the input port: the lock is open");
}

#[test]
fn tests_of_the_controller_find_nothing() {
    let pc = Pc::new();
    assert_eq!(pc.ask(0xaa), 0x55);
    assert_eq!(pc.status() & SYS, SYS);
    assert_eq!(pc.ask(0xab), 0);
    assert_eq!(pc.ask(0xa9), 0);
}

#[test]
fn the_system_flag_is_that_of_the_command_byte() {
    let pc = Pc::new();
    pc.set_command_byte(0x04 | 0x80);
    assert_eq!(pc.status() & SYS, SYS);
    assert_eq!(pc.ask(READ_COMMAND_BYTE), 0x04, "bit 7 is reserved");
    pc.set_command_byte(0);
    assert_eq!(pc.status() & SYS, 0);
}

#[test]
fn the_memory_of_the_controller_keeps_what_is_written() {
    let pc = Pc::new();
    for index in 1..32 {
        pc.command(WRITE_COMMAND_BYTE + index);
        pc.data(0x80 + index);
    }
    for index in 1..32 {
        assert_eq!(pc.ask(READ_COMMAND_BYTE + index), 0x80 + index);
    }
}

#[test]
fn status_tells_commands_from_data() {
    let pc = Pc::new();
    pc.data(0xee);
    assert_eq!(pc.status() & COMMAND, 0);
    pc.command(0xaa);
    assert_eq!(pc.status() & COMMAND, COMMAND);
}

#[test]
fn an_empty_buffer_still_has_what_was_in_it() {
    let pc = Pc::new();
    assert_eq!(pc.ask(0xaa), 0x55);
    assert_eq!(pc.status() & OBF, 0);
    assert_eq!(pc.read(), 0x55);
}

#[test]
fn a_command_that_waits_for_data_is_off_when_another_command_comes() {
    let pc = Pc::new();
    pc.command(WRITE_COMMAND_BYTE);
    pc.command(0xaa);
    assert_eq!(pc.read(), 0x55);
    assert_eq!(pc.keyboard(&[0xee]), [0xee], "it went to the keyboard");
}

#[test]
fn what_the_guest_puts_into_the_buffers_comes_from_where_it_says() {
    let pc = Pc::new();
    pc.command(0xd2);
    pc.data(0x1c);
    assert_eq!(pc.status() & (OBF | AUX_OBF), OBF);
    assert_eq!(pc.read(), 0x1c);
    pc.command(0xd3);
    pc.data(0x1d);
    assert_eq!(pc.status() & (OBF | AUX_OBF), OBF | AUX_OBF);
    assert_eq!(pc.read(), 0x1d);
}

#[test]
fn a20_follows_the_output_port_and_the_commands_for_it() {
    let pc = Pc::new();
    pc.command(0xd1);
    pc.data(0xdd);
    assert!(!pc.i8042.a20());
    pc.command(0xdf);
    pc.command(0xdd);
    pc.command(0xd1);
    pc.data(0xdf);
    assert_eq!(pc.a20.take(), [true, false, true, false, true]);
    assert_eq!(pc.resets.load(Ordering::SeqCst), 0);
}

#[test]
fn the_machine_is_reset_by_a_pulse_or_by_the_output_port() {
    let pc = Pc::new();
    for (command, resets) in [(0xff, 0), (0xfd, 0), (0xfe, 1), (0xf0, 2)] {
        pc.command(command);
        assert_eq!(pc.resets.load(Ordering::SeqCst), resets, "{command:#x}");
    }
    for (value, resets) in [(0xcf, 2), (0xce, 3), (0xce, 3), (0xcf, 3)] {
        pc.command(0xd1);
        pc.data(value);
        assert_eq!(pc.resets.load(Ordering::SeqCst), resets, "{value:#x}");
    }
}

// Interrupts.

#[test]
fn each_byte_is_an_edge_of_the_line_that_stays_up_until_it_is_read() {
    let pc = Pc::new();
    pc.i8042.key(Key::extended(0x75).unwrap(), true);
    assert_eq!(pc.keyboard.take(), [true]);
    assert_eq!(pc.read(), 0xe0);
    assert_eq!(pc.keyboard.take(), [false, true]);
    assert_eq!(pc.read(), 0x75);
    assert_eq!(pc.keyboard.take(), [false]);
    assert_eq!(pc.mouse.take(), []);

    pc.command(WRITE_AUX);
    pc.data(0xf2);
    assert_eq!(pc.mouse.take(), [true]);
    assert_eq!([pc.read(), pc.read()], [ACK, 0]);
    assert_eq!(pc.mouse.take(), [false, true, false]);
    assert_eq!(pc.keyboard.take(), []);
}

#[test]
fn an_interrupt_that_is_enabled_while_a_byte_waits_comes_at_once() {
    let pc = Pc::new();
    pc.set_command_byte(0);
    pc.i8042.key(key(0x1c), true);
    assert_eq!(pc.keyboard.take(), []);
    pc.set_command_byte(1);
    assert_eq!(pc.keyboard.take(), [true]);
    pc.set_command_byte(0);
    assert_eq!(pc.keyboard.take(), [false]);
}

#[test]
fn a_device_that_is_disabled_keeps_what_it_has_to_say() {
    let pc = Pc::new();
    pc.command(DISABLE_KEYBOARD);
    pc.i8042.key(key(0x1c), true);
    assert_eq!(pc.status() & OBF, 0);
    pc.command(ENABLE_KEYBOARD);
    assert_eq!(pc.all(), [0x1c]);

    assert_eq!(pc.mouse(&[0xf4]), [ACK]);
    pc.command(DISABLE_AUX);
    pc.i8042.mouse(to(1, 0));
    assert_eq!(pc.status() & OBF, 0);
    pc.command(ENABLE_AUX);
    assert_eq!(pc.all(), [0x08, 1, 0]);
}

#[test]
fn what_is_sent_to_a_device_enables_it() {
    let pc = Pc::new();
    pc.set_command_byte(0x30);
    assert_eq!(pc.keyboard(&[0xee]), [0xee]);
    assert_eq!(pc.mouse(&[0xf2]), [ACK, 0]);
    assert_eq!(pc.ask(READ_COMMAND_BYTE), 0);
}

// The keyboard.

#[test]
fn keys_send_the_codes_of_set_2_or_translated_those_of_set_1() {
    let pc = Pc::new();
    let up = Key::extended(0x75).unwrap();
    for (key, pressed, released, translated) in [
        (key(0x1c), &[0x1c][..], &[0xf0, 0x1c][..], [&[0x1e][..], &[0x9e]]),
        (up, &[0xe0, 0x75], &[0xe0, 0xf0, 0x75], [&[0xe0, 0x48], &[0xe0, 0xc8]]),
        (key(0x83), &[0x83], &[0xf0, 0x83], [&[0x41], &[0xc1]]),
        (
            Key::PRINT_SCREEN,
            &[0xe0, 0x12, 0xe0, 0x7c],
            &[0xe0, 0xf0, 0x7c, 0xe0, 0xf0, 0x12],
            [&[0xe0, 0x2a, 0xe0, 0x37], &[0xe0, 0xb7, 0xe0, 0xaa]],
        ),
        (
            Key::PAUSE,
            &[0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77],
            &[],
            [&[0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5], &[]],
        ),
    ] {
        pc.set_command_byte(0);
        assert_eq!(pc.press(key), pressed);
        assert_eq!(pc.release(key), released);
        pc.set_command_byte(TRANSLATE);
        assert_eq!([pc.press(key), pc.release(key)], translated);
        pc.set_command_byte(0);
        assert_eq!(pc.keyboard(&[0xf0, 1]), [ACK, ACK], "set 1");
        assert_eq!([pc.press(key), pc.release(key)], translated);
        assert_eq!(pc.keyboard(&[0xf0, 2]), [ACK, ACK]);
    }
}

#[test]
fn no_key_has_the_code_of_a_prefix_an_answer_or_an_error() {
    for code in [0x00, 0x80, 0xaa, 0xe0, 0xe1, 0xf0, 0xfa, 0xfe, 0xff] {
        assert_eq!((Key::new(code), Key::extended(code)), (None, None), "{code:#x}");
    }
}

#[test]
fn commands_of_the_keyboard_are_answered() {
    let pc = Pc::new();
    for (bytes, answer) in [
        (&[0xee][..], &[0xee][..]),
        (&[0xf2], &[ACK, 0xab, 0x83]),
        (&[0xed, 0x07], &[ACK, ACK]),
        (&[0xf3, 0x00], &[ACK, ACK]),
        (&[0xf0, 0x00], &[ACK, ACK, 2]),
        (&[0xf0, 0x03], &[ACK, RESEND]),
        (&[0xf0, 0x00], &[ACK, ACK, 2]),
        (&[0xf4], &[ACK]),
        (&[0xf5], &[ACK]),
        (&[0xf6], &[ACK]),
        (&[0x00], &[RESEND]),
        (&[0xff], &[ACK, 0xaa]),
    ] {
        let mut heard = Vec::new();
        for byte in bytes {
            heard.extend(pc.keyboard(&[*byte]));
        }
        assert_eq!(heard, answer, "{bytes:x?}");
    }
    pc.set_command_byte(TRANSLATE);
    assert_eq!(pc.keyboard(&[0xf2]), [ACK, 0xab, 0x41], "answers are translated too");
}

#[test]
fn a_byte_is_sent_again_to_who_asks() {
    let pc = Pc::new();
    assert_eq!(pc.press(key(0x1c)), [0x1c]);
    assert_eq!(pc.keyboard(&[RESEND]), [0x1c]);
}

#[test]
fn a_command_in_place_of_an_argument_is_carried_out() {
    let pc = Pc::new();
    pc.keyboard(&[0xed]);
    assert_eq!(pc.keyboard(&[0xee]), [0xee]);
    assert_eq!(pc.i8042.indicators(), 0);
}

#[test]
fn the_lights_are_those_that_the_guest_sets() {
    let pc = Pc::new();
    pc.keyboard(&[0xed]);
    pc.keyboard(&[0x05]);
    assert_eq!(pc.i8042.indicators(), 5);
    pc.keyboard(&[0xff]);
    assert_eq!(pc.i8042.indicators(), 0);
}

#[test]
fn a_keyboard_that_is_disabled_hears_no_keys() {
    let pc = Pc::new();
    assert_eq!(pc.keyboard(&[0xf5]), [ACK]);
    assert!(!pc.i8042.key(key(0x1c), true));
    assert_eq!(pc.all(), []);
    assert_eq!(pc.keyboard(&[0xf4]), [ACK]);
    assert_eq!(pc.press(key(0x1c)), [0x1c]);
}

#[test]
fn a_keyboard_with_its_defaults_scans_if_it_did_before() {
    let pc = Pc::new();
    assert_eq!(pc.keyboard(&[0xf6]), [ACK]);
    assert_eq!(pc.press(key(0x1c)), [0x1c]);
    pc.keyboard(&[0xf5]);
    pc.keyboard(&[0xf6]);
    assert!(!pc.i8042.key(key(0x1c), true));
    pc.keyboard(&[0xff]);
    assert_eq!(pc.press(key(0x1c)), [0x1c]);
}

#[test]
fn an_answer_comes_before_the_keys_that_wait() {
    let pc = Pc::new();
    pc.command(DISABLE_KEYBOARD);
    pc.i8042.key(key(0x1c), true);
    assert_eq!(pc.keyboard(&[0xed]), [ACK, 0x1c]);
}

#[test]
fn keys_that_nobody_reads_end_in_one_overrun() {
    let pc = Pc::new();
    pc.command(DISABLE_KEYBOARD);
    for _ in 0..16 {
        assert!(pc.i8042.key(key(0x1c), true));
    }
    for _ in 0..3 {
        assert!(!pc.i8042.key(key(0x32), true));
    }
    pc.command(ENABLE_KEYBOARD);
    let all = pc.all();
    assert_eq!((all.len(), &all[15..]), (17, &[0x1c, 0x00][..]));
    assert_eq!(pc.press(key(0x32)), [0x32]);
}

// The mouse.

#[test]
fn commands_of_the_mouse_are_answered() {
    let pc = Pc::new();
    for (bytes, answer) in [
        (&[0xf2][..], &[ACK, 0][..]),
        (&[0xe9], &[ACK, 0x00, 2, 100]),
        (&[0xe8, 3], &[ACK, ACK]),
        (&[0xe8, 4], &[ACK, RESEND]),
        (&[0xf3, 40], &[ACK, ACK]),
        (&[0xf3, 41], &[ACK, RESEND]),
        (&[0xe7], &[ACK]),
        (&[0xf4], &[ACK]),
        (&[0xe9], &[ACK, 0x30, 3, 40]),
        (&[0xf0], &[ACK]),
        (&[0xeb], &[ACK, 0x08, 0, 0]),
        (&[0xe9], &[ACK, 0x70, 3, 40]),
        (&[0xee], &[ACK]),
        (&[0xe9], &[0xe9]),
        (&[0x12], &[0x12]),
        (&[0xec], &[ACK]),
        (&[0xf6], &[ACK]),
        (&[0xe9], &[ACK, 0x00, 2, 100]),
        (&[0xfe], &[100]),
        (&[0x00], &[RESEND]),
        (&[0xff], &[ACK, 0xaa, 0]),
    ] {
        let mut heard = Vec::new();
        for byte in bytes {
            heard.extend(pc.mouse(&[*byte]));
        }
        assert_eq!(heard, answer, "{bytes:x?}");
    }
}

#[test]
fn movements_are_reported_once_the_guest_enables_them() {
    let pc = Pc::new();
    pc.i8042.mouse(to(5, -6));
    assert_eq!(pc.all(), []);
    assert_eq!(pc.mouse(&[0xf4]), [ACK, 0x28, 5, 0xfa]);
    pc.i8042.mouse(Motion {
        x: -1,
        buttons: 0b101,
        ..Motion::default()
    });
    assert_eq!(pc.all(), [0x1d, 0xff, 0]);
    pc.i8042.mouse(to(0, 0));
    assert_eq!(pc.all(), [0x08, 0, 0], "the buttons are up");
    pc.i8042.mouse(to(0, 0));
    assert_eq!(pc.all(), [], "and nothing is new");
}

#[test]
fn a_movement_that_is_too_long_for_a_report_goes_on_in_the_next() {
    let pc = Pc::new();
    pc.mouse(&[0xf4]);
    pc.i8042.mouse(to(300, -128));
    assert_eq!(pc.all(), [0x28, 127, 0x81, 0x28, 127, 0xff, 0x08, 46, 0]);
}

#[test]
fn clicks_that_wait_are_not_lost_and_movements_between_them_are_one() {
    let pc = Pc::new();
    pc.command(DISABLE_AUX);
    for buttons in [1, 1, 0, 1] {
        pc.i8042.mouse(Motion {
            x: 2,
            buttons,
            ..Motion::default()
        });
    }
    assert_eq!(pc.mouse(&[0xf4]), [ACK, 0x09, 4, 0, 0x08, 2, 0, 0x09, 2, 0]);
}

#[test]
fn scaling_makes_long_movements_longer() {
    let pc = Pc::new();
    pc.mouse(&[0xe7]);
    pc.mouse(&[0xf4]);
    for (counts, reported) in [(1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12), (100, 200)] {
        pc.i8042.mouse(to(counts, 0));
        assert_eq!(pc.all(), [0x08, reported, 0]);
        pc.i8042.mouse(to(-counts, 0));
        assert_eq!(pc.all(), [0x18, reported.wrapping_neg(), 0]);
    }
}

#[test]
fn a_wheel_and_two_more_buttons_are_there_for_who_asks() {
    let pc = Pc::new();
    let rates = |rates: [u8; 3]| rates.iter().for_each(|rate| _ = pc.mouse(&[0xf3, *rate]));
    let all = Motion {
        x: 1,
        y: 1,
        wheel: -9,
        buttons: 0b11000,
    };
    pc.mouse(&[0xf4]);
    pc.i8042.mouse(all);
    assert_eq!(pc.all(), [0x08, 1, 1]);

    rates([200, 100, 80]);
    assert_eq!(pc.mouse(&[0xf2]), [ACK, 3]);
    pc.i8042.mouse(all);
    assert_eq!(pc.all(), [0x08, 1, 1, 0xf8, 0x08, 0, 0, 0xff]);

    rates([200, 200, 80]);
    assert_eq!(pc.mouse(&[0xf2]), [ACK, 4]);
    pc.i8042.mouse(all);
    assert_eq!(pc.all(), [0x08, 1, 1, 0x38, 0x08, 0, 0, 0x3f]);
}

#[test]
fn a_remote_mouse_reports_when_it_is_asked() {
    let pc = Pc::new();
    pc.mouse(&[0xf0]);
    pc.mouse(&[0xf4]);
    pc.i8042.mouse(to(7, 0));
    assert_eq!(pc.all(), []);
    assert_eq!(pc.mouse(&[0xeb]), [ACK, 0x08, 7, 0]);
}

// State.

/// What a guest and a user do.
#[derive(Clone, Debug)]
enum Step {
    Command(u8),
    Data(u8),
    ToMouse(u8),
    Read,
    Key(u8, bool),
    Mouse(i16, u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<u8>().prop_map(Step::Command),
        any::<u8>().prop_map(Step::Data),
        (0xe6..=0xff_u8).prop_map(Step::Data),
        (0xe6..=0xff_u8).prop_map(Step::ToMouse),
        Just(Step::Read),
        (any::<u8>(), any::<bool>()).prop_map(|(code, down)| Step::Key(code, down)),
        (any::<i16>(), any::<u8>()).prop_map(|(x, buttons)| Step::Mouse(x, buttons)),
    ]
}

fn run(pc: &Pc, step: &Step) {
    match *step {
        Step::Command(command) => pc.command(command),
        Step::Data(data) => pc.data(data),
        Step::ToMouse(data) => {
            pc.command(WRITE_AUX);
            pc.data(data);
        }
        Step::Read => _ = pc.read(),
        Step::Key(code, down) => _ = Key::new(code).map(|key| pc.i8042.key(key, down)),
        Step::Mouse(x, buttons) => pc.i8042.mouse(Motion {
            x,
            buttons,
            ..Motion::default()
        }),
    }
}

proptest! {
    #[test]
    fn a_restored_controller_goes_on_as_the_saved_one(
        before in prop::collection::vec(any_step(), 0..60),
        after in prop::collection::vec(any_step(), 0..60),
    ) {
        let (saved, restored) = (Pc::new(), Pc::new());
        before.iter().for_each(|step| run(&saved, step));
        let state = saved.i8042.save();
        restored.i8042.restore(&state).expect("it was saved");
        prop_assert_eq!(restored.i8042.save(), state);
        for step in &after {
            run(&saved, step);
            run(&restored, step);
            prop_assert_eq!(saved.i8042.save(), restored.i8042.save());
        }
        prop_assert_eq!(saved.all(), restored.all());
    }
}

#[test]
fn a_restored_line_is_up_if_the_saved_one_was() {
    let saved = Pc::new();
    saved.i8042.key(key(0x1c), true);
    let restored = Pc::new();
    restored.i8042.restore(&saved.i8042.save()).unwrap();
    assert_eq!(restored.keyboard.take(), [true]);
    assert_eq!(restored.all(), [0x1c]);
}

#[test]
fn a_state_that_no_controller_can_be_in_is_refused() {
    let pc = Pc::new();
    let good = pc.i8042.save();
    type Change = fn(&mut I8042State);
    let changes: [(&str, Change); 9] = [
        ("command byte", |state| state.memory[0] = 0x80),
        ("argument", |state| state.argument_of = Some(0x20)),
        ("output port", |state| state.output_port = 4),
        ("16 bytes", |state| state.keyboard.codes = vec![0; 18].into()),
        ("scan code sets", |state| state.keyboard.set = 3),
        ("0xed", |state| state.keyboard.argument_of = Some(0xf4)),
        ("16 movements", |state| {
            state.mouse.motions = vec![Motion::default(); 17].into()
        }),
        ("resolution", |state| state.mouse.resolution = 4),
        ("type", |state| state.mouse.device_type = 1),
    ];
    for (what, change) in changes {
        let mut state = good.clone();
        change(&mut state);
        let refused = pc.i8042.restore(&state).expect_err(what);
        assert!(refused.to_string().contains(what), "{refused}");
        assert_eq!(pc.i8042.save(), good);
    }
}

#[test]
fn a_reset_of_the_system_forgets_what_was_typed() {
    let pc = Pc::new();
    pc.i8042.key(key(0x1c), true);
    pc.command(0xdd);
    pc.i8042.reset();
    assert_eq!(pc.all(), []);
    assert!(pc.i8042.a20());
    assert_eq!(pc.keyboard.take(), [true, false]);
    assert_eq!(pc.i8042.save().full, None::<Source>);
}
