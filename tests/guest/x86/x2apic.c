// x2APIC mode.

#include "guest.h"

const struct check x2apic_checks[] = {
    {0},
};
