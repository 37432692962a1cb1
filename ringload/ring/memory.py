"""The budget: from "48GB" to how many slots, before anything is allocated.

    total = server + n_workers * (producer + scratch) + exclusive + index + control + n_slots * slot + page tables

`scratch` is what a producer may use while it decodes one sample. A sample that needs more (a huge PNG) waits until no other
producer decodes such a one; for that one, `exclusive` is set aside. The more budget, the larger the scratch, so that this
is rare; it changes when a sample is loaded, never what is.

Page tables: each process that maps a page of the ring has an entry of 8 bytes for it, and sooner or later every producer and
the trainer has touched each: 1/512 of ring and index for each of them (measured: 2,052 kB for 1 GiB, VmPTE in
/proc/PID/status). A cgroup counts them, as kernel memory: 1.2 GB for 48 GB and 12 producers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ringload.data.fields import Field
from ringload.errors import BudgetError, ConfigError
from ringload.ring.limits import Usable
from ringload.ring.slots import Layout
from ringload.shared import PAGE_BYTES

SERVER_BYTES = 64 << 20  # the server's process, with numpy and the decoders (measured: 45 MB)
PRODUCER_BYTES = 24 << 20  # what a producer has of its own beside its scratch (measured: 15 MB)
OBJECT_FACTOR = 4  # of a pickle's size: what its objects take in each producer (measured: 4 for a list of paths)
MIN_SLOTS = 3  # one lent, one that the trainer has just given back and nobody has posted yet, one filling
MAX_SLOTS = 1 << 14  # more batches ahead than this help nobody
AUTO_SLOTS = 64
AUTO_SHARE = 0.25  # of what is usable
MIN_SCRATCH_BYTES = 32 << 20
PAGE_ENTRY_BYTES = 8  # of a page table, on every 64-bit machine
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_bytes(amount: int | float | str, usable: Usable) -> int:
    """Bytes from 48_000_000_000, "48GB", "48GiB", "64 MB", or a share of what is usable (0.5, "50%").

    Raises:
        ConfigError: none of these.
    """
    if isinstance(amount, str):
        match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*)\s*(%|[kmgt]?i?)b?\s*", amount.lower())
        if match and match[2] == "%":
            amount = float(match[1]) / 100
        elif match and match[2] in UNITS:
            return int(float(match[1]) * UNITS[match[2]])
    if isinstance(amount, float) and 0 < amount <= 1:
        return int(amount * usable.n_bytes)
    if isinstance(amount, int) and not isinstance(amount, bool) and amount > 1:
        return amount
    raise ConfigError(f'ram_budget is bytes, "48GB", "48GiB", or a share in (0, 1] of what is usable, not {amount!r}')


@dataclass(frozen=True)
class Plan:
    """What is allocated for what, in bytes; `usable` is what this process may still take."""

    batch_size: int
    n_workers: int
    n_slots: int
    slot_bytes: int
    control_bytes: int
    index_bytes: int
    server_bytes: int
    producer_bytes: int
    scratch_bytes: int
    exclusive_bytes: int
    budget_bytes: int
    usable: Usable

    @property
    def ring_bytes(self) -> int:
        """All slots."""
        return self.n_slots * self.slot_bytes

    @property
    def producers_bytes(self) -> int:
        """All processes that ringload starts, with what they decode in."""
        if self.n_workers == 0:
            return 0
        each = self.producer_bytes + self.scratch_bytes
        return self.server_bytes + self.n_workers * each + self.exclusive_bytes

    @property
    def page_tables_bytes(self) -> int:
        """Page tables of the producers and the trainer, for what all of them map."""
        mapped_bytes = self.ring_bytes + self.control_bytes + self.index_bytes
        return (self.n_workers + 1) * -(-mapped_bytes // PAGE_BYTES) * PAGE_ENTRY_BYTES

    @property
    def total_bytes(self) -> int:
        """Everything: what the budget has to cover."""
        return self.ring_bytes + self.control_bytes + self.index_bytes + self.producers_bytes + self.page_tables_bytes

    def arithmetic(self) -> str:
        """The sum in words, for messages."""
        parts = [
            f"{self.n_slots} slots of {human(self.slot_bytes)}",
            f"index {human(self.index_bytes + self.control_bytes)}",
            f"page tables {human(self.page_tables_bytes)}",
        ]
        if self.n_workers:
            each = self.producer_bytes + self.scratch_bytes
            parts.append(f"server {human(self.server_bytes)}")
            parts.append(f"{self.n_workers} producers of {human(each)}")
        if self.exclusive_bytes:
            parts.append(f"the largest sample {human(self.exclusive_bytes)} (for images: lower max_pixels)")
        return f"{' + '.join(parts)} = {human(self.total_bytes)}"


def make_plan(
    fields: Mapping[str, Field],
    batch_size: int,
    n_workers: int,
    ram_budget: int | float | str,
    usable: Usable,
    *,
    index_bytes: int = 0,
    source_bytes: int = 0,
    max_sample_bytes: int = 0,
    with_valid: bool = False,
    max_slots: int = MAX_SLOTS,
) -> Plan:
    """Divide the budget. `index_bytes` are shared by all; `source_bytes` is what else of the source each producer unpickles.

    Raises:
        BudgetError: the budget is below the least that works, or above what this process may use.
    """
    if n_workers == 0:  # a batch is filled when it is asked for: more slots than are lent at once are of no use
        max_slots = min(max_slots, AUTO_SLOTS)
    max_slots = max(MIN_SLOTS, min(max_slots, MAX_SLOTS))
    layout = Layout(fields, batch_size, max_slots, n_workers, with_valid)
    auto = ram_budget == "auto"
    budget_bytes = int(AUTO_SHARE * usable.n_bytes) if auto else parse_bytes(ram_budget, usable)
    least = Plan(
        batch_size,
        n_workers,
        MIN_SLOTS,
        layout.slot_bytes,
        layout.slots_start,
        index_bytes,
        SERVER_BYTES if n_workers else 0,
        PRODUCER_BYTES + OBJECT_FACTOR * source_bytes,
        0,
        0,
        budget_bytes,
        usable,
    )
    if n_workers:
        least = _with_scratch(least, max_sample_bytes, MIN_SCRATCH_BYTES)
    if auto:
        budget_bytes = max(budget_bytes, min(least.total_bytes, usable.n_bytes // 2))
        max_slots = min(max_slots, AUTO_SLOTS)
    if least.total_bytes > budget_bytes:
        raise BudgetError(
            f"ram_budget={ram_budget!r} is {human(budget_bytes)}, and the least that would do is "
            f"{human(least.total_bytes)}: {least.arithmetic()}. Raise ram_budget, or lower batch_size or workers"
        )
    if budget_bytes > usable.n_bytes:
        raise BudgetError(
            f"ram_budget={ram_budget!r} is {human(budget_bytes)}, and {human(usable.n_bytes)} is {usable.bound}. "
            f"Lower ram_budget, or ask for a share of what there is, such as ram_budget=0.5"
        )
    if n_workers:
        roomy = _with_scratch(least, max_sample_bytes, max(MIN_SCRATCH_BYTES, budget_bytes // 8 // n_workers))
        least = roomy if roomy.total_bytes <= budget_bytes else least
    one_more = replace(least, n_slots=MIN_SLOTS + 1).total_bytes - least.total_bytes
    n_slots = MIN_SLOTS + (budget_bytes - least.total_bytes) // one_more
    return replace(least, n_slots=min(max_slots, n_slots), budget_bytes=budget_bytes)


def _with_scratch(plan: Plan, max_sample_bytes: int, scratch_bytes: int) -> Plan:
    """With so much scratch a producer, or with what any sample needs if this is less."""
    exclusive_bytes = max_sample_bytes if max_sample_bytes > scratch_bytes else 0
    return replace(plan, scratch_bytes=min(max_sample_bytes, scratch_bytes), exclusive_bytes=exclusive_bytes)


def human(n_bytes: int) -> str:
    """Bytes in decimal units, as the budget is given: 48.0 GB."""
    amount = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.0f} {unit}" if unit == "bytes" else f"{amount:,.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
