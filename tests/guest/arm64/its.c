#include "its.h"
#include "lines.h"
#include "log.h"
#include "random.h"

#define DEVICES 3
#define EVENTS 16
#define LPIS (DEVICES * EVENTS)
#define FIRST_LPI 8192
#define VALID (1ul << 63)

#define GITS_CTLR 0x0000
#define GITS_CBASER 0x0080
#define GITS_CWRITER 0x0088
#define GITS_CREADR 0x0090
#define GITS_BASER(n) (0x0100 + 8 * (n))
#define GICR_CTLR 0x0000
#define GICR_PROPBASER 0x0070
#define GICR_PENDBASER 0x0078

#define QUEUE_SIZE 0x10000

static u32 cpus;
static u32 write_offset;
// Which CPU each collection goes to: collection n starts on CPU n.
static u32 collections[MAX_CPUS];
static u8 properties[LPIS];
static struct event {
    u32 mapped, collection;
} events[DEVICES][EVENTS];

// The last one is no function on PCI: only commands raise its events. They are such that MAPI can map them, where the
// EventID is the INTID.
static u32 device_id(u32 device) {
    return device < MSI_DEVICES ? msi_devices[device] : 0x100;
}

static u32 event_id(u32 device, u32 event) {
    return device < MSI_DEVICES ? event : FIRST_LPI + device * EVENTS + event;
}

static void command(u64 operation, u64 word1, u64 word2, u64 word3) {
    u64 words[4] = {operation, word1, word2, word3};
    memory_write(COMMANDS + write_offset, 4, words);
    write_offset = (write_offset + 32) % QUEUE_SIZE;
    its_write(GITS_CWRITER, 8, write_offset);
    if (its_read(GITS_CREADR, 8) != write_offset)
        fail("a command is not taken", operation);
}

static void on_event(u64 operation, u32 device, u32 event, u64 intid, u64 collection) {
    u64 id = device_id(device);
    command(operation | id << 32, event_id(device, event) | intid << 32, collection, 0);
}

static void map_device(u32 device, u64 valid) {
    u64 bits = device < MSI_DEVICES ? 4 : 14;
    command(0x08 | (u64)device_id(device) << 32, bits - 1, valid | ITT(device), 0);
}

static void map_collection(u64 collection, u64 cpu) {
    command(0x09, 0, VALID | cpu << 16 | collection, 0);
    collections[collection] = cpu;
}

static void map_event(u32 device, u32 event) {
    u32 collection = below(cpus);
    if (device < MSI_DEVICES)
        on_event(0x0a, device, event, FIRST_LPI + device * EVENTS + event, collection);
    else
        on_event(0x0b, device, event, 0, collection);
    events[device][event] = (struct event){1, collection};
}

static void discard_event(u32 device, u32 event) {
    on_event(0x0f, device, event, 0, 0);
    events[device][event].mapped = 0;
}

static void invalidate_all(void) {
    for (u64 collection = 0; collection < cpus; collection++)
        command(0x0d, 0, collection, 0);
}

// The properties of the eight LPIs around `lpi` are one word of the table.
static void write_properties(u32 lpi) {
    u64 word = 0;
    for (u32 n = 0; n < 8; n++)
        word |= (u64)properties[(lpi & ~7u) + n] << 8 * n;
    memory_write(PROPERTIES + (lpi & ~7u), 1, &word);
}

static u8 random_properties(void) {
    return (below(32) << 3) | 2 | !one_in(5);
}

void lpis_init(void) {
    u32 cpu = this_cpu();
    redist_write(cpu, GICR_PROPBASER, 8, PROPERTIES | 14);
    redist_write(cpu, GICR_PENDBASER, 8, PENDING(cpu) | 1ul << 62);
    redist_write(cpu, GICR_CTLR, 4, 1);
    redist_read(cpu, GICR_CTLR, 4);
    redist_read(cpu, GICR_PROPBASER, 8);
    redist_read(cpu, GICR_PENDBASER, 8);
}

void its_init(u32 count) {
    cpus = count;
    its_read(0x0008, 8); // GITS_TYPER
    for (u32 n = 0; n < 8; n++) {
        u64 type = its_read(GITS_BASER(n), 8) >> 56 & 7;
        if (type == 1)
            its_write(GITS_BASER(n), 8, VALID | DEVICE_TABLE | 0xf);
        else if (type == 4)
            its_write(GITS_BASER(n), 8, VALID | COLLECTION_TABLE | 0xf);
        its_read(GITS_BASER(n), 8);
    }
    its_write(GITS_CBASER, 8, VALID | COMMANDS | (QUEUE_SIZE / 4096 - 1));
    its_read(GITS_CBASER, 8);
    its_write(GITS_CWRITER, 8, 0);
    its_write(GITS_CTLR, 4, 1);
    its_read(GITS_CTLR, 4);
    for (u32 lpi = 0; lpi < LPIS; lpi++) {
        properties[lpi] = random_properties();
        if (lpi % 8 == 7)
            write_properties(lpi);
    }
    for (u32 n = 0; n < cpus; n++)
        map_collection(n, n);
    invalidate_all();
    for (u32 device = 0; device < DEVICES; device++) {
        map_device(device, VALID);
        for (u32 event = 0; event < EVENTS - 2; event++)
            map_event(device, event);
    }
}

// All that goes to one CPU now goes to another, with what is pending there.
static void move_all(void) {
    u64 from = below(cpus), to = below(cpus);
    for (u32 collection = 0; collection < cpus; collection++)
        if (collections[collection] == from)
            map_collection(collection, to);
    command(0x05, 0, from << 16, 0);
    command(0x0e, 0, from << 16, to << 16);
    command(0x05, 0, to << 16, 0);
}

static void remap_device(u32 device) {
    for (u32 event = 0; event < EVENTS; event++)
        if (events[device][event].mapped)
            discard_event(device, event);
    map_device(device, 0);
    map_device(device, VALID);
    for (u32 event = 0; event < EVENTS - 2; event++)
        map_event(device, event);
}

static void change_properties(void) {
    u32 lpi = below(LPIS);
    u32 device = lpi / EVENTS, event = lpi % EVENTS;
    properties[lpi] = random_properties();
    write_properties(lpi);
    if (events[device][event].mapped && !one_in(4))
        on_event(0x0c, device, event, 0, 0);
    else
        invalidate_all();
}

void its_step(void) {
    u32 device = below(DEVICES), event = below(EVENTS);
    struct event *known = &events[device][event];
    u32 choice = below(64);
    if (choice < 24 && device < MSI_DEVICES)
        return msi_send(device, event_id(device, event)); // mapped or not
    if (choice < 2)
        return move_all();
    if (choice < 3)
        return remap_device(device);
    if (choice < 12)
        return change_properties();
    if (!known->mapped)
        return map_event(device, event);
    if (choice < 18)
        on_event(0x04, device, event, 0, 0); // CLEAR
    else if (choice < 22)
        discard_event(device, event);
    else if (choice < 30) {
        known->collection = below(cpus);
        on_event(0x01, device, event, 0, known->collection); // MOVI
    } else
        on_event(0x03, device, event, 0, 0); // INT
}
