#include "log.h"

static char *const log_start = (char *)LOG_START;
static char *log_end = (char *)LOG_START;
// Set by the handler of an access that is undefined.
volatile u32 undefined;

static void put(char c) {
    *log_end++ = c;
}

static void put_text(const char *text) {
    while (*text)
        put(*text++);
}

static void put_hex(u64 value) {
    int shift = 60;
    while (shift && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void put_values(u32 count, const u64 *values) {
    while (count--) {
        put(' ');
        put_hex(*values++);
    }
    put('\n');
    if (log_end > (char *)LOG_END)
        finish(2);
}

void log_line(const char *tag, u32 count, const u64 *values) {
    put_text(tag);
    put_values(count, values);
}

void finish(u32 code) {
    u64 open[3] = {(u64) ":tt", 4, 3};
    u64 file = semihosting(0x01, open);
    u64 write[3] = {file, (u64)log_start, log_end - log_start};
    semihosting(0x05, write);
    u64 exit[2] = {0x20026, code};
    semihosting(0x20, exit);
    for (;;)
        ;
}

void fail(const char *why, u64 value) {
    put_text("! ");
    put_text(why);
    put_values(1, &value);
    finish(1);
}

u64 argument(u32 index) {
    static char line[256];
    u64 block[2] = {(u64)line, sizeof line};
    semihosting(0x15, block);
    const char *at = line;
    for (index++; index; index--) {
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    u64 value = 0;
    while (*at >= '0' && *at <= '9')
        value = value * 10 + *at++ - '0';
    return value;
}

u64 dist_read(u32 offset, u32 size) {
    u64 value = load(GICD + offset, size);
    LOG("dr", offset, size, value);
    return value;
}

static u64 of_size(u32 size, u64 value) {
    return value << (64 - 8 * size) >> (64 - 8 * size);
}

void dist_write(u32 offset, u32 size, u64 value) {
    value = of_size(size, value);
    LOG("dw", offset, size, value);
    store(GICD + offset, size, value);
}

u64 redist_read(u32 cpu, u32 offset, u32 size) {
    u64 value = load(GICR(cpu) + offset, size);
    LOG("rr", cpu, offset, size, value);
    return value;
}

void redist_write(u32 cpu, u32 offset, u32 size, u64 value) {
    value = of_size(size, value);
    LOG("rw", cpu, offset, size, value);
    store(GICR(cpu) + offset, size, value);
}

u64 its_read(u32 offset, u32 size) {
    u64 value = load(GITS + offset, size);
    LOG("ir", offset, size, value);
    return value;
}

void its_write(u32 offset, u32 size, u64 value) {
    LOG("iw", offset, size, value);
    store(GITS + offset, size, value);
}

void memory_write(u64 address, u32 words, const u64 *values) {
    for (u32 n = 0; n < words; n++) {
        LOG("m", address + 8 * n, values[n]);
        store(address + 8 * n, 8, values[n]);
    }
}

static const char *const names[] = {
#define X(name, register) #name,
    ICC_REGISTERS(X)
#undef X
};

static void log_icc(const char *tag, enum icc reg, u32 has_value, u64 value) {
    put_text(tag);
    put(' ');
    put_hex(this_cpu());
    put(' ');
    put_text(names[reg]);
    put_values(has_value, &value);
}

u64 icc_read(enum icc reg) {
    u64 value = 0;
    undefined = 0;
    switch (reg) {
#define X(name, register) \
    case name: asm volatile("mrs %0, " #register : "+r"(value)::"memory"); break;
        ICC_REGISTERS(X)
#undef X
    }
    if (undefined)
        log_icc("sru", reg, 0, 0);
    else
        log_icc("sr", reg, 1, value);
    return value;
}

void icc_write(enum icc reg, u64 value) {
    undefined = 0;
    switch (reg) {
#define X(name, register) \
    case name: asm volatile("msr " #register ", %0\n isb" ::"r"(value) : "memory"); break;
        ICC_REGISTERS(X)
#undef X
    }
    log_icc(undefined ? "swu" : "sw", reg, 1, value);
}
