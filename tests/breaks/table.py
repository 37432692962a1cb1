"""All breaks, those first whose faults are hardest to see harm of."""

from tests.breaks import (
    Break,
    arrays,
    deaths,
    dropin,
    ends,
    images,
    interruptions,
    leases,
    limits,
    memory,
    packages,
    processes,
    samples,
    tables,
    templates,
    waits,
)

TABLE: tuple[Break, ...] = (
    *interruptions.TABLE,
    *ends.TABLE,
    *leases.TABLE,
    *deaths.TABLE,
    *waits.TABLE,
    *memory.TABLE,
    *limits.TABLE,
    *samples.TABLE,
    *processes.TABLE,
    *templates.TABLE,
    *tables.TABLE,
    *dropin.TABLE,
    *arrays.TABLE,
    *images.TABLE,
    *packages.TABLE,
)
