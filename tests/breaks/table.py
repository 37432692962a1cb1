"""All breaks, those first whose faults are hardest to see harm of."""

from tests.breaks import Break, deaths, ends, interruptions, leases, limits, memory, samples, waits

TABLE: tuple[Break, ...] = (
    *interruptions.TABLE,
    *ends.TABLE,
    *leases.TABLE,
    *deaths.TABLE,
    *waits.TABLE,
    *memory.TABLE,
    *limits.TABLE,
    *samples.TABLE,
)
