// LPIs: tables, commands and the events of devices.
#pragma once
#include "machine.h"

// Tables and queue, collections and devices: CPU 0, once the redistributors of all have their tables.
void its_init(u32 cpus);
// The tables of this CPU's redistributor.
void lpis_init(void);
// A random command or MSI.
void its_step(void);
