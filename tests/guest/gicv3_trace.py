#!/usr/bin/env python3
"""Turns QEMU's trace of a GICv3 (-d 'trace:gicv3_*,cpu_reset', QEMU 7.2) into a recording as tests/recordings/README.md describes it.

QEMU names an access to memory-mapped registers, and an acknowledge, after it took effect, and all else before it does. So
what it tells the CPUs is settled just before the latter and just after the former, and is written there.

Linux's own stores to the tables of the ITS are in no trace. Three things are put in from what is known of it:
the commands, from QEMU's account of each; the property byte of an LPI, which Linux writes (priority 0xa0, enabled or not)
just before the INV for it; and the first level of a two-level device table, whose second level may lie anywhere.
"""
import re
import sys

RESET = re.compile(r"^CPU Reset \(CPU (\d+)\)")
EVENT = re.compile(r"^(?:\d+@[\d.]+:)?(gicv3_\w+) (.*)$")
NUMBERS = re.compile(r"0x[0-9a-f]+|\b\d+\b")
VALID = 1 << 63
# Memory that the guest does not have.
SECOND_LEVEL = 0x60000000
FIRST_LPI = 8192


class Recording:
    def __init__(self, cpus):
        self.cpus = cpus
        self.lines = [f"cpus {cpus}"]
        # What each CPU hears now, and what was last written down: (FIQ, IRQ).
        self.outputs = [(0, 0)] * cpus
        self.written = list(self.outputs)
        # Of the ITS.
        self.cbaser = 0
        self.device_table = 0
        self.second_levels = {}
        self.propbaser = 0
        self.lpis = {}
        self.enabled = set()
        self.properties = False
        self.slot = 0

    def add(self, *words):
        self.lines.append(" ".join(w if isinstance(w, str) else f"{w:x}" for w in words))

    def settled(self):
        if self.written != self.outputs:
            masks = [sum(output[kind] << cpu for cpu, output in enumerate(self.outputs)) for kind in (0, 1)]
            self.add("o", *masks)
            self.written = list(self.outputs)

    def before(self, *words):
        self.settled()
        self.add(*words)

    def after(self, *words):
        self.add(*words)
        self.settled()

    def memory(self, address, value):
        self.add("m", address, value)

    def command(self, *words):
        base = self.cbaser & 0x000FFFFFFFFFF000
        for n, word in enumerate(words):
            self.memory(base + 32 * self.slot + 8 * n, word)

    def on_event(self, operation, device, event, intid=0, collection=0):
        self.command(operation | device << 32, event | intid << 32, collection, 0)

    def second_level(self, device):
        """Linux allocates pages of a two-level device table as devices come."""
        if not self.device_table >> 62 & 1:
            return
        page = (4096, 16384, 65536, 65536)[self.device_table >> 8 & 3]
        entry = (self.device_table >> 48 & 31) + 1
        index = device // (page // entry)
        if index not in self.second_levels:
            address = SECOND_LEVEL + page * len(self.second_levels)
            self.second_levels[index] = address
            base = self.device_table & 0x0000FFFFFFFFF000
            if page == 65536:
                base = self.device_table & 0x0000FFFFFFFF0000
            self.memory(base + 8 * index, VALID | address)

    def write_properties(self, lpi):
        table = self.propbaser & 0x000FFFFFFFFFF000
        first = lpi & ~7
        word = 0
        for n in range(8):
            word |= (0xA2 | (first + n in self.enabled)) << 8 * n
        self.memory(table + first - FIRST_LPI, word)


def icc(recording, name, text, numbers):
    """An access to a system register."""
    kind = name.rsplit("_", 1)[1]
    register = re.match(r"GICv3 ICC_(\w+)", text).group(1)
    cpu, value = numbers[-2:]
    if kind == "write":
        recording.before("sw", cpu, register, value)
    elif register in ("IAR0", "IAR1"):
        recording.after("sr", cpu, register, value)
    else:
        recording.before("sr", cpu, register, value)


def translate(recording, name, text):
    numbers = [int(number, 0) for number in NUMBERS.findall(text.replace("GICv3", ""))]
    short = name[len("gicv3_"):]
    if short == "cpuif_set_irqs":
        recording.outputs[numbers[0]] = tuple(numbers[1:])
    elif short == "icc_generate_sgi":
        # No trace tells the register: Linux has one use for one of them. The affinities above 0 are 0 on this machine.
        cpu, sgi, irm = numbers[:3]
        targets = int(re.search(r"targetlist 0x([0-9a-f]+)", text).group(1), 16)
        recording.before("sw", cpu, "SGI1R", sgi << 24 | irm << 40 | targets)
    elif short.startswith("icc_"):
        icc(recording, name, text, numbers)
    elif short in ("dist_read", "dist_write", "dist_badread", "dist_badwrite"):
        offset, *value, size, _secure = numbers
        recording.after("dw" if short.endswith("write") else "dr", offset, size, value[0] if value else 0)
    elif short in ("redist_read", "redist_write", "redist_badread", "redist_badwrite"):
        cpu, offset, *value, size, _secure = numbers
        if short == "redist_write" and offset == 0x70:
            recording.propbaser = value[0]
            if not recording.properties:
                # All of a new table is the default priority, in group 1 and disabled.
                recording.properties = True
                recording.add("mf", value[0] & 0x000FFFFFFFFFF000, (1 << (value[0] & 31) + 1) - FIRST_LPI, 0xA2)
        recording.after("rw" if short.endswith("write") else "rr", cpu, offset, size, value[0] if value else 0)
    elif short in ("its_read", "its_write", "its_badread", "its_badwrite"):
        offset, *value, size = numbers
        if short == "its_read" and 0x100 <= offset < 0x140 and value[0] >> 63 and value[0] >> 56 & 7 == 1:
            recording.device_table = value[0]
        if short == "its_write" and offset == 0x80:
            recording.cbaser = value[0]
        recording.after("iw" if short.endswith("write") else "ir", offset, size, value[0] if value else 0)
    elif short == "dist_set_irq":
        recording.before("l", *numbers)
    elif short == "redist_set_irq":
        recording.before("p", *numbers)
    elif short == "its_translation_write":
        recording.before("v", numbers[3], numbers[1])
    elif short == "its_process_command":
        recording.slot = numbers[0]
    elif short == "its_cmd_mapd":
        # The field of the address: 256-byte units.
        device, size, table, valid = numbers
        recording.second_level(device)
        recording.command(0x08 | device << 32, size, table << 8 | valid << 63, 0)
    elif short == "its_cmd_mapc":
        collection, target, valid = numbers
        recording.command(0x09, 0, collection | target << 16 | valid << 63, 0)
    elif short == "its_cmd_mapti":
        device, event, collection, intid = numbers
        recording.lpis[device, event] = intid
        recording.on_event(0x0A, device, event, intid, collection)
    elif short == "its_cmd_mapi":
        device, event, collection = numbers
        recording.lpis[device, event] = event
        recording.on_event(0x0B, device, event, 0, collection)
    elif short == "its_cmd_movi":
        recording.on_event(0x01, numbers[0], numbers[1], 0, numbers[2])
    elif short == "its_cmd_movall":
        recording.command(0x0E, 0, numbers[0] << 16, numbers[1] << 16)
    elif short == "its_cmd_inv":
        lpi = recording.lpis[tuple(numbers)]
        recording.enabled ^= {lpi}
        recording.write_properties(lpi)
        recording.on_event(0x0C, *numbers)
    elif short == "its_cmd_invall":
        recording.command(0x0D, 0, 0, 0)
    elif short == "its_cmd_int":
        recording.on_event(0x03, *numbers)
    elif short == "its_cmd_clear":
        recording.on_event(0x04, *numbers)
    elif short == "its_cmd_discard":
        recording.enabled.discard(recording.lpis.pop(tuple(numbers)))
        recording.on_event(0x0F, *numbers)
    elif short == "its_cmd_sync":
        recording.command(0x05, 0, 0, 0)
    elif re.match(r"its_(cte|dte|ite)_|cpuif_(update|virt)|redist_send_sgi", short):
        pass  # an account of the inside
    else:
        sys.exit(f"gicv3_trace.py: nothing is known of {name} {text}")


def main():
    recording = Recording(int(sys.argv[1]))
    with open(sys.argv[2]) as trace:
        for line in trace:
            event, reset = EVENT.match(line), RESET.match(line)
            if reset:
                recording.before("c", int(reset.group(1)))
            if event:
                translate(recording, *event.groups())
    recording.settled()
    print("\n".join(recording.lines))


main()
