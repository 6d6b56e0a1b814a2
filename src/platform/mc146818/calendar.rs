//! The ten bytes of time and alarm, and the century: how they are written, and how time goes on in them.

use super::registers::*;

const DAY: u64 = 24 * 60 * 60;
/// Days of 400 years, after which the calendar is the same but for the years.
const DAYS_OF_400_YEARS: u64 = 146_097;
/// Of 10000 years: what two digits of the century and two of the year hold.
const ALL_DAYS: u64 = 25 * DAYS_OF_400_YEARS;
/// Day 0 is the first of March of the year 0; this is the one of 1970.
const DAY_OF_EPOCH: u64 = 719_468;
/// Day 0 was a Wednesday, and Sunday comes first.
const DAY_0_OF_WEEK: u64 = 3;

/// How register B says that numbers are written.
#[derive(Clone, Copy)]
struct Format {
    binary: bool,
    hours_24: bool,
}

impl Format {
    fn of(registers: &[u8; COUNT]) -> Self {
        Self {
            binary: registers[B] & b::DM != 0,
            hours_24: registers[B] & b::HOURS_24 != 0,
        }
    }

    fn write(self, value: u64) -> u8 {
        (if self.binary {
            value
        } else {
            value / 10 * 16 + value % 10
        }) as u8
    }

    /// What a byte says, or if it is no such number the nearest that is one.
    fn read(self, byte: u8, from: u64, to: u64) -> u64 {
        let byte = u64::from(byte);
        let value = if self.binary { byte } else { byte / 16 * 10 + byte % 16 };
        value.clamp(from, to)
    }

    fn write_hour(self, hour: u64) -> u8 {
        const PM: u8 = 1 << 7;
        if self.hours_24 {
            return self.write(hour);
        }
        self.write((hour + 11) % 12 + 1) | if hour >= 12 { PM } else { 0 }
    }

    fn read_hour(self, byte: u8) -> u64 {
        if self.hours_24 {
            return self.read(byte, 0, 23);
        }
        self.read(byte & 0x7f, 1, 12) % 12 + 12 * u64::from(byte >> 7)
    }
}

/// Writes the time that is so many seconds after 1970, in UTC.
pub(super) fn set(registers: &mut [u8; COUNT], seconds: u64) {
    let days = seconds / DAY + DAY_OF_EPOCH;
    write(registers, days, seconds % DAY);
    let day_of_week = (days + DAY_0_OF_WEEK) % 7 + 1;
    registers[DAY_OF_WEEK] = Format::of(registers).write(day_of_week);
}

/// Lets seconds pass, of which there are some. A byte that is no time counts as the nearest that is one. The day of the week goes
/// on by itself, whatever day the date is.
pub(super) fn advance(registers: &mut [u8; COUNT], seconds: u64) {
    let format = Format::of(registers);
    let field = |index: usize, from, to| format.read(registers[index], from, to);
    let year = field(CENTURY, 0, 99) * 100 + field(YEAR, 0, 99);
    let month = field(MONTH, 1, 12);
    let day = field(DATE_OF_MONTH, 1, days_of_month(year, month));
    let day_of_week = field(DAY_OF_WEEK, 1, 7);

    let time = time_of_day(registers) + seconds;
    let passed = time / DAY;
    write(registers, days(year, month, day) + passed, time % DAY);
    registers[DAY_OF_WEEK] = format.write((day_of_week - 1 + passed % 7) % 7 + 1);
}

/// In how many seconds the time comes to the alarm, if ever: in a day at most.
pub(super) fn until_alarm(registers: &[u8; COUNT]) -> Option<u64> {
    /// The two highest bits say that any is meant (the data sheet's "don't care" code).
    const ANY: u8 = 0xc0;
    let format = Format::of(registers);
    let is = |alarm: usize, byte: u8| registers[alarm] & ANY == ANY || registers[alarm] == byte;

    let now = time_of_day(registers);
    let mut time = now + 1;
    // Not second by second: at most 25 hours, 60 minutes in one of them, and 60 seconds in one of these, each twice.
    while time <= now + DAY {
        if !is(HOURS_ALARM, format.write_hour(time / 3600 % 24)) {
            time = (time / 3600 + 1) * 3600;
        } else if !is(MINUTES_ALARM, format.write(time / 60 % 60)) {
            time = (time / 60 + 1) * 60;
        } else if !is(SECONDS_ALARM, format.write(time % 60)) {
            // One that no second is called would be looked for in each minute.
            if !(0..60).any(|second| is(SECONDS_ALARM, format.write(second))) {
                return None;
            }
            time += 1;
        } else {
            return Some(time - now);
        }
    }
    None
}

fn time_of_day(registers: &[u8; COUNT]) -> u64 {
    let format = Format::of(registers);
    let sixtieth = |index: usize| format.read(registers[index], 0, 59);
    (format.read_hour(registers[HOURS]) * 60 + sixtieth(MINUTES)) * 60 + sixtieth(SECONDS)
}

fn write(registers: &mut [u8; COUNT], days: u64, time: u64) {
    let format = Format::of(registers);
    let (year, month, day) = date(days % ALL_DAYS);
    for (index, value) in [
        (SECONDS, time % 60),
        (MINUTES, time / 60 % 60),
        (DATE_OF_MONTH, day),
        (MONTH, month),
        (YEAR, year % 100),
        (CENTURY, year / 100 % 100),
    ] {
        registers[index] = format.write(value);
    }
    registers[HOURS] = format.write_hour(time / 3600);
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since the first of March of the year 0. January and February count to the year before, so that a leap day is the last of
/// its year; those of the year 0 come at the end of the 10000 years.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = match month {
        1 | 2 => (year + 9999, month + 9),
        _ => (year + 10_000, month - 3),
    };
    // 153 days in five months, from March on.
    (year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1) % ALL_DAYS
}

/// Year, month and day.
fn date(days: u64) -> (u64, u64, u64) {
    let (era, day) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year;
    match month {
        10 | 11 => ((year + 1) % 10_000, month - 9, day),
        _ => (year, month + 3, day),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn registers(format: u8) -> [u8; COUNT] {
        let mut registers = [0; COUNT];
        registers[B] = format;
        registers
    }

    /// Century, year, month, date, day of the week, hours, minutes and seconds.
    fn time(registers: &[u8; COUNT]) -> [u8; 8] {
        [
            CENTURY,
            YEAR,
            MONTH,
            DATE_OF_MONTH,
            DAY_OF_WEEK,
            HOURS,
            MINUTES,
            SECONDS,
        ]
        .map(|index| registers[index])
    }

    #[test]
    fn seconds_since_1970_are_the_date_that_they_are() {
        for (seconds, expected) in [
            (0, [0x19, 0x70, 1, 1, 5, 0, 0, 0]),
            (951_782_399, [0x20, 0, 2, 0x28, 2, 0x23, 0x59, 0x59]),
            (951_782_400, [0x20, 0, 2, 0x29, 3, 0, 0, 0]),
            (1_700_000_000, [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]),
            (4_107_542_400, [0x21, 0, 3, 1, 2, 0, 0, 0]),
        ] {
            let mut registers = registers(b::HOURS_24);
            set(&mut registers, seconds);
            assert_eq!(time(&registers), expected, "{seconds} s");
        }
    }

    #[test]
    fn each_day_of_ten_thousand_years_follows_the_one_before() {
        let (mut year, mut month, mut day) = (0, 3, 1);
        for count in 0..ALL_DAYS {
            assert_eq!(date(count), (year, month, day));
            assert_eq!(days(year, month, day), count);
            day += 1;
            if day > days_of_month(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = ((year + 1) % 10_000, 1);
            }
        }
        assert_eq!((year, month, day), (0, 3, 1));
    }

    #[test]
    fn hours_are_written_in_halves_of_a_day_where_the_guest_wants_them_so() {
        for (format, hours) in [
            (0, [0x12, 0x01, 0x11, 0x92, 0x81, 0x91]),
            (b::DM, [12, 1, 11, 0x8c, 0x81, 0x8b]),
        ] {
            for (hour, byte) in [0, 1, 11, 12, 13, 23].into_iter().zip(hours) {
                let format = Format::of(&registers(format));
                assert_eq!(format.write_hour(hour), byte);
                assert_eq!(format.read_hour(byte), hour);
            }
        }
    }

    fn any_registers() -> impl Strategy<Value = [u8; COUNT]> {
        let time = prop::collection::vec(any::<u8>(), A);
        (time, any::<u8>(), any::<u8>()).prop_map(|(time, b, century)| {
            let mut registers = registers(b);
            registers[..A].copy_from_slice(&time);
            registers[CENTURY] = century;
            registers
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50))]

        #[test]
        fn many_seconds_are_as_many_single_ones(registers in any_registers(), seconds in 1..5000_u64) {
            let (mut at_once, mut one_by_one) = (registers, registers);
            advance(&mut at_once, seconds);
            for _ in 0..seconds {
                advance(&mut one_by_one, 1);
            }
            prop_assert_eq!(at_once, one_by_one);
        }

        #[test]
        fn the_alarm_comes_when_all_three_bytes_are_those_of_the_time(
            registers in any_registers(),
            alarm in prop::array::uniform3(prop_oneof![Just(0xff_u8), 0..0x60_u8, any::<u8>()]),
        ) {
            let mut registers = registers;
            for (index, byte) in [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].into_iter().zip(alarm) {
                registers[index] = byte;
            }
            let until = until_alarm(&registers);
            let mut time = registers;
            let first = (1..=DAY).find(|_| {
                advance(&mut time, 1);
                [SECONDS, MINUTES, HOURS].into_iter().zip(alarm).all(|(index, byte)| byte >= 0xc0 || byte == time[index])
            });
            prop_assert_eq!(until, first);
        }
    }
}
