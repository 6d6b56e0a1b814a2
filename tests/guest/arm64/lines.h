// Interrupt sources that the program drives as it likes: level lines, and functions on PCI that send MSIs.
#pragma once
#include "machine.h"

#define PPIS 3
#define SPIS 4
#define MSI_DEVICES 2

extern const u32 ppis[PPIS], spis[SPIS];
// PCI's requester IDs, which are the DeviceIDs on this machine.
extern const u32 msi_devices[MSI_DEVICES];

void lines_init(void);
// On the CPU whose PPIs they are.
void ppis_init(void);
void ppi_set(u32 index, u32 level);
void spi_set(u32 index, u32 level);
void msi_send(u32 index, u32 event);
