#!/usr/bin/env python3
"""Turns QEMU's trace of a PC's interrupt controllers and its timer (what record_pc.sh asks of QEMU 7.2) into a recording as
tests/recordings/README.md describes it.

QEMU names a write, and a change of a line, before it takes effect, and a read after it. What a clock answers happened between
the event before and the one that names it: so the recording tells when each could have been.

QEMU does not name the CPU that takes an interrupt. It shows its registers: each has a GDT of its own, and whose it is, is known
from the EOI that comes next.
"""
import collections
import re
import sys

STAMP = re.compile(r"^\d+@(\d+)\.(\d+):(\w+)\s*(.*)$")
RESET = re.compile(r"^CPU Reset \(CPU (\d+)\)")
TAKEN = re.compile(r"^\s*\d+: v=([0-9a-f]{2}) e=\w+ i=([01])")
GDT = re.compile(r"^GDT=\s+([0-9a-f]+)")
ACCESS = re.compile(r"cpu (-?\d+) mr \w+ addr (0x[0-9a-f]+) value (0x[0-9a-f]+) size (\d) name '([\w-]+)'")
NUMBERS = re.compile(r"0x[0-9a-f]+|\b\d+\b")

LOCAL_APICS = 0xFEE00000
IOAPIC = 0xFEC00000
EOI = 0xB0
# Of a local APIC: LVT timer, initial and current count, and the divider.
TIMED = (0x320, 0x380, 0x390, 0x3E0)
COUNTERS = range(0x40, 0x44)
PORT_B = 0x61
REFRESH = 1 << 4


def events(lines):
    """What happened: (microseconds, kind, words). An event without a time has that of the one before."""
    now = 0
    for line in lines:
        if stamped := STAMP.match(line):
            seconds, micros, name, text = stamped.groups()
            now = int(seconds) * 1_000_000 + int(micros)
            if name.startswith("memory_region_ops_"):
                cpu, address, value, size, region = ACCESS.search(text).groups()
                yield now, name.rsplit("_", 1)[1], (int(cpu), int(address, 0), int(value, 0), int(size), region)
            else:
                yield now, name, tuple(int(number, 0) for number in NUMBERS.findall(text))
        elif reset := RESET.match(line):
            yield now, "reset", (int(reset.group(1)),)
        elif taken := TAKEN.match(line):
            yield now, "taken", (int(taken.group(1), 16), taken.group(2) == "1")
        elif gdt := GDT.match(line):
            yield now, "gdt", (int(gdt.group(1), 16),)


def is_message(kind, words):
    return kind == "write" and words[4] == "apic-msi" and (words[1] >= LOCAL_APICS + 0x1000 or words[1] & 0xFF0 == 0)


def interrupts(trace):
    """Of each interrupt that a CPU took: the index of its event, the vector and the CPU."""
    found, votes = [], collections.defaultdict(collections.Counter)
    waiting = []
    for at, (_, kind, words) in enumerate(trace):
        if kind == "taken":
            vector, software = words
            # The 8259's acknowledge is the last event before it.
            external = trace[at - 1][1] == "pic_interrupt"
            if external or vector >= 0x20 and not software:
                assert trace[at + 1][1] == "gdt"
                gdt = trace[at + 1][2][0]
                found.append((at, vector, gdt, external))
                if not external:
                    waiting.append(gdt)
        elif kind == "write" and words[4] == "apic-msi" and words[1] == LOCAL_APICS + EOI:
            for gdt in waiting:
                votes[gdt][words[0]] += 1
            waiting.clear()
    # INTR of the 8259s is heard by the first alone, once it has a GDT or not.
    owner = {gdt: counter.most_common(1)[0][0] for gdt, counter in votes.items()}
    return {at: (0 if external else owner[gdt], vector) for at, vector, gdt, external in found}


class Recording:
    def __init__(self, cpus):
        self.lines = [f"cpus {cpus}"]
        self.start = None
        # Of the IOAPIC: its index register, and the low halves of its entries.
        self.index = 0
        self.entries = {}
        # Whether it is the IOAPIC's turn to speak.
        self.ioapic = False
        # The last read of port B, and the line that told it if it only said the same again.
        self.port_b = None
        self.repeated = []

    def add(self, *words):
        self.lines += self.repeated
        self.repeated = []
        self.port_b = None
        self.lines.append(" ".join(w if isinstance(w, str) else f"{w:x}" for w in words))

    def timed(self, before, after, *words):
        self.add("t", max(before - self.start, 0), max(after - self.start, 0))
        self.add(*words)

    def read_port_b(self, before, after, value):
        """The guest polls it: of equal answers the first and the last are enough. QEMU moves the refresh bit with each read."""
        lines = [f"t {before - self.start:x} {after - self.start:x}", f"pr {PORT_B:x} {value:x}"]
        if self.port_b == value & ~REFRESH:
            self.repeated = lines
        else:
            self.lines += self.repeated + lines
            self.repeated = []
        self.port_b = value & ~REFRESH

    def access(self, kind, words, times):
        cpu, address, value, size, region = words
        before, now, after = times
        write = kind == "write"
        window = (now, after) if write else (before, now)
        letter = "w" if write else "r"
        if region == "apic-msi":
            assert size == 4
            offset = address - LOCAL_APICS
            line = ("l" + letter, cpu, offset, value)
            self.timed(*window, *line) if offset in TIMED else self.add(*line)
        elif region == "ioapic":
            assert size == 4
            offset = address - IOAPIC
            if write and offset == 0:
                self.index = value
            elif write and offset == 0x10 and self.index >= 0x10 and not self.index & 1:
                self.entries[self.index] = value & 0xFF
            self.add("i" + letter, offset, value)
        else:
            assert size == 1
            if address == PORT_B and not write:
                self.read_port_b(*window, value)
            elif address == PORT_B or address in COUNTERS:
                self.timed(*window, "p" + letter, address, value)
            else:
                self.add("p" + letter, address, value)

    def event(self, at, trace, taken):
        now, kind, words = trace[at]
        if self.start is None:
            self.start = now
        times = trace[at - 1][0], now, trace[at + 1][0] if at + 1 < len(trace) else now
        if is_message(kind, words):
            _, address, value, _, _ = words
            own = self.ioapic and value & 0xFF in self.entries.values()
            self.add("g" if own else "m", address, value)
            return
        if kind.startswith("ioapic_"):
            self.ioapic = True
        elif kind in ("read", "write"):
            self.ioapic = words[4] == "ioapic"
        elif kind not in ("apic_deliver_irq", "apic_report_irq_delivered"):
            self.ioapic = False

        if kind in ("read", "write"):
            self.access(kind, words, times)
        elif kind == "pic_set_irq":
            # IRQ 2 of the first is the second.
            master, irq, level = words
            if (master, irq) != (1, 2):
                line = ("p", irq if master else 8 + irq, level)
                self.timed(times[0], now, *line) if line[1] == 0 else self.add(*line)
        elif kind == "ioapic_set_irq":
            # QEMU turns the timer's around inside.
            pin, level = words
            self.add("l", pin or 2, level)
        elif kind == "apic_local_deliver" and words[0] == 0:
            self.timed(times[0], now, "x")
        elif kind == "reset":
            self.add("c", words[0])
        elif at in taken:
            self.add("i", *taken[at])


def main():
    with open(sys.argv[2]) as lines:
        trace = list(events(lines))
    # All before the first access is QEMU's own.
    first = next(at for at, (_, kind, _) in enumerate(trace) if kind in ("read", "write"))
    trace = trace[first:]
    taken = interrupts(trace)
    recording = Recording(int(sys.argv[1]))
    for at in range(len(trace)):
        recording.event(at, trace, taken)
    print("\n".join(recording.lines + recording.repeated))


main()
