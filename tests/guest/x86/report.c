// The report: one line a check on the serial port, a verdict, and the exit.

#include "guest.h"

#define SERIAL 0x3f8
#define LINE_STATUS 5
#define TRANSMITTER_EMPTY 0x20
#define EXIT 0xf4

static void put(char c) {
    for (u32 patience = 10000; patience && !(in8(SERIAL + LINE_STATUS) & TRANSMITTER_EMPTY); patience--) relax();
    out8(SERIAL, c);
}

static void put_number(u32 value, u32 base) {
    char digits[10];
    u32 count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count) put(digits[--count]);
}

/// %s, %u and %x (with its 0x).
void print(const char *format, ...) {
    va_list args;
    va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = va_arg(args, const char *); *s; s++) put(*s);
            break;
        case 'u':
            put_number(va_arg(args, u32), 10);
            break;
        case 'x':
            put('0');
            put('x');
            put_number(va_arg(args, u32), 16);
            break;
        }
    }
    va_end(args);
}

static const struct check *current;
static u32 failures;
static const char *absence, *skipping;

void fail(const char *what, u32 got, u32 want) {
    failures++;
    print("FAIL %s: %s: got %x want %x\n", current->name, what, got, want);
}

void absent(const char *reason) { absence = reason; }
void skip(const char *reason) { skipping = reason; }

void ignore_vector(u32 vector) { vectors[vector].known = true; }

void expect_taken(u32 vector, u32 want) {
    ignore_vector(vector);
    u32 got = taken(vector);
    if (got == want) return;
    failures++;
    print("FAIL %s: interrupts at vector %x: got %u want %u\n", current->name, vector, got, want);
}

void expect_taken_on(u32 cpu, u32 vector, u32 want) {
    ignore_vector(vector);
    u32 got = vectors[vector].taken[cpu];
    if (got == want) return;
    failures++;
    print("FAIL %s: interrupts at vector %x on CPU %u: got %u want %u\n", current->name, vector, cpu, got, want);
}

/// All as a check may expect it: lines down, everything masked, nothing pending, no counts.
static void clean(void) {
    disable();
    for (u32 vector = 0; vector < VECTORS; vector++) {
        vectors[vector].hook = NULL;
        vectors[vector].end = END_APIC;
    }
    static const u8 lines[] = {3, 5, 6, 7, 10, 11, 14, 15};
    for (u32 i = 0; i < COUNT(lines); i++) line(lines[i], 0);
    pit_stop();
    ioapic_init();
    pic_init(1);
    lapic_init();
    for (u32 vector = 0; vector < VECTORS; vector++) {
        for (u32 cpu = 0; cpu < cpus; cpu++) vectors[vector].taken[cpu] = 0;
        vectors[vector].known = false;
    }
    ignore_vector(WAKE);
}

static struct { u32 ok, failed, skipped, absent; } verdict;

static void run(const struct check *check) {
    if (cpus < check->cpus) return;
    current = check;
    failures = 0;
    absence = skipping = NULL;
    clean();
    check->run();
    disable();
    for (u32 vector = 0; vector < VECTORS; vector++) {
        if (!vectors[vector].known) expect_taken(vector, 0);
    }
    if (failures) {
        verdict.failed++;
    } else if (absence) {
        verdict.absent++;
        print("absent %s: %s\n", check->name, absence);
    } else if (skipping) {
        verdict.skipped++;
        print("skip %s: %s\n", check->name, skipping);
    } else {
        verdict.ok++;
        print("ok %s\n", check->name);
    }
}

// The command line: `cpus=N`, and `only=PREFIX,PREFIX`. Other words are for others.
static const char *only;

static bool starts_with(const char *text, const char *start, u32 length) {
    for (u32 i = 0; i < length; i++) {
        if (text[i] != start[i]) return false;
    }
    return true;
}

static bool word_ends(char c) { return c == 0 || c == ' ' || c == ','; }

static bool chosen(const char *name) {
    if (!only) return true;
    const char *prefix = only;
    for (;;) {
        u32 length = 0;
        while (!word_ends(prefix[length])) length++;
        if (length && starts_with(name, prefix, length)) return true;
        if (prefix[length] != ',') return false;
        prefix += length + 1;
    }
}

static void run_all(const struct check *checks) {
    for (; checks->name; checks++) {
        if (chosen(checks->name)) run(checks);
    }
}

static void command_line(const char *words) {
    while (*words) {
        if (starts_with(words, "only=", 5)) only = words + 5;
        if (starts_with(words, "cpus=", 5)) cpus = words[5] - '0';
        while (*words && *words++ != ' ') {}
    }
}

static void finish(void) {
    const char *word = verdict.failed || !verdict.ok ? "FAIL" : "PASS";
    print("%s: %u ok, %u failed, %u skipped, %u absent, %u CPUs\n", word, verdict.ok, verdict.failed, verdict.skipped,
          verdict.absent, cpus);
    for (;;) out8(EXIT, verdict.failed || !verdict.ok);
}

/// A fact that decides which checks make sense here.
static void probe(void) {
    static const struct check check = {"in-service", NULL, 1};
    extern bool find_ends_on_delivery(void);
    current = &check;
    clean();
    print("note: %u MHz\n", tsc_per_us);
    if (find_ends_on_delivery()) print("note: this CPU ends interrupts on delivery\n");
}

/// Called by the assembly, with what the loader left in eax and ebx.
void boot(u32 magic, u32 *info) {
    if (magic != 0x2badb002) {
        print("FAIL no multiboot loader: %x\n", magic);
        for (;;) out8(EXIT, 1);
    }
    cpus = fw_cfg_cpus();
    if (info[0] & 4) command_line((const char *)info[4]);
    if (cpus < 1 || cpus > MAX_CPUS) {
        print("FAIL between 1 and %u CPUs, not %u\n", MAX_CPUS, cpus);
        for (;;) out8(EXIT, 1);
    }
    interrupts_init();
    out8(SERIAL + 1, 0);
    time_init();
    clean();
    secondaries_start();
    probe();
    run_all(pic_checks);
    run_all(ioapic_checks);
    run_all(lapic_checks);
    run_all(timer_checks);
    run_all(smp_checks);
    run_all(mixed_checks);
    // Those that change the mode of the APIC come last.
    run_all(x2apic_checks);
    finish();
}
