//! The log as a value change dump (IEEE 1364-2005, clause 18).

use std::io::{self, Write};

use super::{
    Action, Outcome,
    log::{Kind, Snapshot, unique},
};

/// The variables of one line.
struct Variables {
    /// Wire of a level line; event of an edge line; event `sent` of a sink or vector.
    signal: Code,
    /// `address`, `data` and `requester` of a sink or vector.
    registers: Option<[Code; 3]>,
    failed: Code,
}

/// Width in bits and name of the registers of a sink or vector.
const REGISTERS: [(u32, &str); 3] = [(64, "address"), (32, "data"), (16, "requester")];

pub(super) fn write(snapshot: &Snapshot, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "$version devisor recorder $end")?;
    writeln!(out, "$timescale 1 ns $end")?;
    if snapshot.left_out > 0 {
        writeln!(out, "$comment {} earlier events were dropped $end", snapshot.left_out)?;
    }
    let variables = declare(snapshot, out)?;
    writeln!(out, "$enddefinitions $end")?;

    let mut entries = snapshot.entries.iter().peekable();
    // The state before the first event, so just before it.
    let first = entries.peek().map_or(0, |first| first.time.as_nanos());
    let mut now = first.saturating_sub(1);
    writeln!(out, "#{now}")?;
    let mut levels: Vec<bool> = snapshot.lanes.iter().map(|lane| lane.was_up).collect();
    writeln!(out, "$dumpvars")?;
    for (lane, variables) in snapshot.lanes.iter().zip(&variables) {
        if lane.kind == Kind::Level {
            writeln!(out, "{}{}", u8::from(lane.was_up), variables.signal)?;
        }
        for register in variables.registers.iter().flatten() {
            writeln!(out, "bx {register}")?;
        }
    }
    writeln!(out, "$end")?;

    for entry in entries {
        // Never the same instant twice: a viewer shows one value of it.
        now = entry.time.as_nanos().max(now + 1);
        writeln!(out, "#{now}")?;
        let Variables {
            signal,
            registers,
            failed,
        } = &variables[entry.lane];
        match (entry.outcome, entry.action) {
            (Outcome::Pending, _) => {}
            (Outcome::Refused(_) | Outcome::Injected, _) => writeln!(out, "1{failed}")?,
            (Outcome::Delivered, Action::Trigger) => writeln!(out, "1{signal}")?,
            (Outcome::Delivered, Action::Raise | Action::Clear) => {
                let up = entry.action == Action::Raise;
                if levels[entry.lane] != up {
                    levels[entry.lane] = up;
                    writeln!(out, "{}{signal}", u8::from(up))?;
                }
            }
            (Outcome::Delivered, Action::Send { requester, message }) => {
                writeln!(out, "1{signal}")?;
                let values = [message.address, message.data.into(), requester.0.into()];
                for (register, value) in registers.iter().flatten().zip(values) {
                    writeln!(out, "b{value:b} {register}")?;
                }
            }
            (Outcome::Delivered, Action::Program(_)) => {}
        }
    }
    Ok(())
}

fn declare(snapshot: &Snapshot, out: &mut impl Write) -> io::Result<Vec<Variables>> {
    let mut codes = (0..).map(Code);
    let mut code = || codes.next().unwrap_or(Code(u64::MAX));
    let mut names: Vec<String> = Vec::new();
    let mut name = |wanted: String| {
        let name = unique(&wanted, "_", |name| names.iter().any(|taken| taken == name));
        names.push(name.clone());
        name
    };
    let mut variables = Vec::new();
    writeln!(out, "$scope module devisor $end")?;
    for lane in &snapshot.lanes {
        let signal = code();
        let simple = name(identifier(&lane.name));
        let mut registers = None;
        match lane.kind {
            Kind::Level => writeln!(out, "$var wire 1 {signal} {simple} $end")?,
            Kind::Edge => writeln!(out, "$var event 1 {signal} {simple} $end")?,
            Kind::Message => {
                let codes = REGISTERS.map(|_| code());
                writeln!(out, "$scope module {simple} $end")?;
                writeln!(out, "$var event 1 {signal} sent $end")?;
                for ((width, register), code) in REGISTERS.iter().zip(&codes) {
                    writeln!(out, "$var reg {width} {code} {register} $end")?;
                }
                writeln!(out, "$upscope $end")?;
                registers = Some(codes);
            }
        }
        let failed = code();
        let failed_name = name(format!("{simple}_failed"));
        writeln!(out, "$var event 1 {failed} {failed_name} $end")?;
        variables.push(Variables {
            signal,
            registers,
            failed,
        });
    }
    writeln!(out, "$upscope $end")?;
    Ok(variables)
}

/// A name that every viewer takes: a simple identifier of the language (3.7) without `$`.
fn identifier(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut identifier: String = name.chars().map(plain).collect();
    if !identifier.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        identifier.insert(0, '_');
    }
    identifier
}

/// The short name of a variable: printable ASCII without blanks, `!` to `~` (18.2.3.8).
struct Code(u64);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SYMBOLS: u64 = 94;
        let mut rest = self.0;
        loop {
            write!(f, "{}", char::from(b'!' + (rest % SYMBOLS) as u8))?;
            rest /= SYMBOLS;
            if rest == 0 {
                return Ok(());
            }
        }
    }
}
