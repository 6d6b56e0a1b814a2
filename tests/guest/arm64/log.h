// The log: text lines, as tests/recordings/README.md describes them, gathered in RAM and written out at the end. Every
// access that counts goes through here.
#pragma once
#include "machine.h"

// A line made of a tag and numbers in hexadecimal.
void log_line(const char *tag, u32 count, const u64 *values);
#define LOG(tag, ...) log_line(tag, sizeof((u64[]){__VA_ARGS__}) / sizeof(u64), (u64[]){__VA_ARGS__})

// Ends the run: 0 where all went well.
_Noreturn void finish(u32 code);
_Noreturn void fail(const char *why, u64 value);
// The words that follow the program's name on its command line, as numbers.
u64 argument(u32 index);

u64 dist_read(u32 offset, u32 size);
void dist_write(u32 offset, u32 size, u64 value);
u64 redist_read(u32 cpu, u32 offset, u32 size);
void redist_write(u32 cpu, u32 offset, u32 size, u64 value);
u64 its_read(u32 offset, u32 size);
void its_write(u32 offset, u32 size, u64 value);
// Writes memory that the GIC reads.
void memory_write(u64 address, u32 words, const u64 *values);
// Of the CPU that runs.
u64 icc_read(enum icc reg);
void icc_write(enum icc reg, u64 value);
