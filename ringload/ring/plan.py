"""The budget: from "48GB" to how many slots, before anything is allocated.

    total = server + n_workers * (worker + scratch) + exclusive + index + cache + control + n_slots * slot + page tables + store

`scratch` is what a worker may use while it decodes one sample. A sample that needs more (a huge PNG) waits until no other
worker decodes such a one; for that one, `exclusive` is set aside. The more budget, the larger the scratch.

How much a sample may need at most (`max_sample_bytes`): what its source says. A source that refuses what is larger than there
is (`refuses_large`: images without max_pixels) gets a half of the budget, or what it says if that is less; so a budget for
small images need not hold the largest there may be, and how large one may be depends on the budget alone. Only where the
least that works leaves less than that half is it what is left.

Page tables: each process that maps a page of the ring has an entry of 8 bytes for it, and sooner or later every worker and
the trainer has touched each: 1/512 of ring and index for each of them (measured: 2,052 kB for 1 GiB, VmPTE in
/proc/PID/status). A cgroup counts them, as kernel memory: 1.2 GB for 48 GB and 12 workers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ringload.checks import short
from ringload.errors import BudgetError, ConfigError
from ringload.fields import Field
from ringload.ring.layout import Layout
from ringload.system.cgroups import Usable
from ringload.system.segment import PAGE_BYTES

SERVER_BYTES = 64 << 20  # the server's process, with numpy and the decoders (measured: 45 MB)
WORKER_BYTES = 24 << 20  # what a worker has of its own beside its scratch (measured: 15 MB)
STARTED_BYTES = 16 << 20  # of that: what it needs beside its source, and what it comes to take later
OBJECT_FACTOR = 4  # of a pickle's size: what its objects take in each worker (measured: 4 for a list of paths)
MIN_SLOTS = 3  # one lent, one just given back and not posted yet, one filling
MAX_SLOTS = 1 << 14  # more batches ahead have no use
AUTO_SLOTS = 64
AUTO_SHARE = 0.25  # of what is usable
MIN_SCRATCH_BYTES = 32 << 20
LARGEST_SHARE = 0.5  # of the budget: what one sample may need of a source that refuses larger ones
PAGE_ENTRY_BYTES = 8  # of a page table, on every 64-bit machine
LEAST_BUDGET_BYTES = 10_000  # no ring is smaller: less was meant in another unit
AMOUNT = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]*)?(?:e[0-9]+)?|\.[0-9]+)\s*(%|(?:[kmgt]i?)?b?)\s*")
BUDGET = 'ram_budget is bytes, "48GB", "48GiB", or a share in (0, 1] of what is usable, such as 0.5 or "50%", or "auto"; not {}'
PLAN_TITLE = "ringload: what is allocated for what"
UNITS = {"%": 0.01, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def parse_bytes(amount: Any, usable: Usable) -> int:
    """Bytes from 48_000_000_000, 48e9, "48GB", "48 GiB", "64 MB"; or a share of what is usable: 0.5, "0.5", "50%", 1.0 for all.

    Raises:
        ConfigError: none of these, or of a size that cannot be meant.
    """
    given = short(amount)
    if isinstance(amount, str) and (match := AMOUNT.fullmatch(amount.lower())):
        number, unit = match[1].replace("_", ""), match[2].removesuffix("b")
        if unit:
            amount = float(number) * UNITS[unit] if unit == "%" else int(float(number) * UNITS[unit])
        else:
            amount = int(number) if number.isdigit() else float(number)
        if unit == "%" and amount > 1:
            raise ConfigError(BUDGET.format(given))
    if not isinstance(amount, int | float | np.number) or isinstance(amount, bool) or not 0 < amount < 1 << 62:
        raise ConfigError(BUDGET.format(given))
    if isinstance(amount, float | np.floating) and amount <= 1:
        return int(amount * usable.n_bytes)
    if amount < LEAST_BUDGET_BYTES:
        share = ", or 1.0 for all that is usable" if amount == 1 else ""
        raise ConfigError(f'ram_budget={given} is {amount:g} bytes: did you mean "{amount:g}GB"{share}?')
    return int(amount)


@dataclass(frozen=True, repr=False)
class Plan:
    """What is allocated for what, in bytes; `usable` is what this process may still take. Its repr is a table."""

    batch_size: int
    n_workers: int
    n_slots: int
    slot_bytes: int
    control_bytes: int
    index_bytes: int
    server_bytes: int
    worker_bytes: int
    scratch_bytes: int
    exclusive_bytes: int
    budget_bytes: int
    usable: Usable
    max_sample_bytes: int = 0  # what one sample may need; what needs more is refused. 0: the source has not said
    ahead_bytes: int = 0  # of scratch_bytes: contents that a worker has read ahead
    store_bytes: int = 0  # of Ray's object store
    are_here: bool = True  # the workers are processes of this machine
    cache_bytes: int = 0  # decoded samples, which the cache of the loader keeps in memory
    cache_all_bytes: int = 0  # what all of them would take

    @property
    def n_here(self) -> int:
        """How many workers take this machine's memory."""
        return self.n_workers if self.are_here else 0

    @property
    def ring_bytes(self) -> int:
        """All slots."""
        return self.n_slots * self.slot_bytes

    @property
    def workers_bytes(self) -> int:
        """All processes that ringload starts, with what they decode in."""
        if self.n_here == 0:
            return 0
        each = self.worker_bytes + self.scratch_bytes
        return self.server_bytes + self.n_here * each + self.exclusive_bytes

    @property
    def page_tables_bytes(self) -> int:
        """Page tables of the workers and the trainer, for what all of them map."""
        mapped_bytes = self.ring_bytes + self.control_bytes + self.index_bytes + self.cache_bytes
        return (self.n_here + 1) * -(-mapped_bytes // PAGE_BYTES) * PAGE_ENTRY_BYTES

    @property
    def total_bytes(self) -> int:
        """Everything: what the budget has to cover."""
        shared_bytes = self.ring_bytes + self.control_bytes + self.index_bytes + self.cache_bytes + self.store_bytes
        return shared_bytes + self.workers_bytes + self.page_tables_bytes

    def rows(self) -> list[tuple[str, int, str]]:
        """(for what, how many bytes, how they come about), of what is allocated; their sum is `total_bytes`."""
        mapped_by = f"{self.n_here} workers and the trainer" if self.n_here else "the trainer"
        n_slots = f"{self.n_slots:,} slots (batches of {self.batch_size:,}) of {human(self.slot_bytes)}"
        rows = [
            ("ring", self.ring_bytes, n_slots),
            ("index", self.index_bytes, "paths and labels of all samples, once for all workers"),
            ("control", self.control_bytes, "what the processes tell each other"),
            ("page tables", self.page_tables_bytes, f"8 bytes a page of ring and index, for {mapped_by}"),
        ]
        if self.cache_all_bytes:
            share = f"{self.cache_bytes / self.cache_all_bytes:.0%} of the decoded samples, which take "
            rows.insert(1, ("cache", self.cache_bytes, f"room for {share}{human(self.cache_all_bytes)}; once for all workers"))
        if self.store_bytes:
            rows.append(("object store", self.store_bytes, "of Ray: rows on their way to the ring, and a copy of the index"))
        if self.n_here:
            ahead = f", of which {human(self.ahead_bytes)} for what is read ahead" if self.ahead_bytes else ""
            decoding = f"with up to {human(self.scratch_bytes)} each to decode in{ahead}"
            each = f"{self.n_workers} of {human(self.worker_bytes)}, {decoding}"
            rows.append(("server", self.server_bytes, "the process that forks the workers"))
            rows.append(("workers", self.n_workers * (self.worker_bytes + self.scratch_bytes), each))
            if self.exclusive_bytes:
                rows.append(("largest sample", self.exclusive_bytes, "what one image may need at most; one at a time"))
        return rows

    @property
    def bound(self) -> str:
        """What the total is out of, in words."""
        return f"of {human(self.budget_bytes)}; {human(self.usable.n_bytes)} {self.usable.bound}"

    def __repr__(self) -> str:
        rows = [(what, human(n_bytes), how) for what, n_bytes, how in [*self.rows(), ("total", self.total_bytes, self.bound)]]
        left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join([PLAN_TITLE, *(f"  {what:<{left}}  {size:>{middle}}  {how}" for what, size, how in rows)])

    def arithmetic(self) -> str:
        """The sum in words, for messages."""
        parts = [
            f"{self.n_slots} slots of {human(self.slot_bytes)}",
            f"index {human(self.index_bytes + self.control_bytes)}",
            f"page tables {human(self.page_tables_bytes)}",
        ]
        if self.cache_bytes:
            parts.append(f"cache {human(self.cache_bytes)}")
        if self.store_bytes:
            parts.append(f"object store {human(self.store_bytes)}")
        if self.n_here:
            each = self.worker_bytes + self.scratch_bytes
            parts.append(f"server {human(self.server_bytes)}")
            parts.append(f"{self.n_workers} workers of {human(each)}")
        if self.exclusive_bytes:
            parts.append(f"the largest sample {human(self.exclusive_bytes)}")
        return f"{' + '.join(parts)} = {human(self.total_bytes)}"


@dataclass(frozen=True)
class Room:
    """What a plan leaves for the sources of workers: `own_bytes` for all of them together, at their start. For what they take
    beyond that, slots are given up, which take `slot_bytes` each with their page tables."""

    own_bytes: int
    slot_bytes: int

    def n_slots(self, n_slots: int, own_bytes: int) -> int:
        """How many of the slots there is room for, where workers have taken so much."""
        return n_slots - max(0, -(-(own_bytes - self.own_bytes) // self.slot_bytes))


def room_in(plan: Plan) -> Room:
    """What the sources of workers may take: what was planned for them, and what the plan leaves of the budget."""
    planned_bytes = plan.n_here * (plan.worker_bytes - STARTED_BYTES)
    one_more = replace(plan, n_slots=plan.n_slots + 1).total_bytes - plan.total_bytes
    return Room(planned_bytes + plan.budget_bytes - plan.total_bytes, one_more)


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
    ahead_bytes: int = 0,
    refuses_large: bool = False,
    with_valid: bool = False,
    max_slots: int = MAX_SLOTS,
    are_here: bool = True,
    store_bytes: Callable[[int, int], int] = lambda slot_bytes, index_bytes: 0,
    cache_bytes: int | None = None,
    cache_all_bytes: int = 0,
) -> Plan:
    """Divide the budget. `index_bytes` are shared by all; `source_bytes` is what else of the source each worker unpickles. Of
    `max_sample_bytes`, each worker keeps `ahead_bytes` between samples. The cache of decoded samples, which take
    `cache_all_bytes`, has `cache_bytes`; None: see `_with_cache`.

    Raises:
        BudgetError: the budget is below the least that works, or above what this process may use.
    """
    least_scratch_bytes = MIN_SCRATCH_BYTES + ahead_bytes
    if n_workers == 0:  # a batch is filled when it is asked for: more slots than are lent at once are of no use
        max_slots = min(max_slots, AUTO_SLOTS)
    max_slots = max(MIN_SLOTS, min(max_slots, MAX_SLOTS))
    layout = Layout(fields, batch_size, max_slots, n_workers, with_valid)
    auto = ram_budget == "auto"
    budget_bytes = int(AUTO_SHARE * usable.n_bytes) if auto else parse_bytes(ram_budget, usable)
    of_slots = MIN_SLOTS, layout.slot_bytes, layout.slots_start
    of_workers = SERVER_BYTES if n_workers else 0, WORKER_BYTES + OBJECT_FACTOR * source_bytes, 0, 0
    least = Plan(batch_size, n_workers, *of_slots, index_bytes, *of_workers, budget_bytes, usable, ahead_bytes=ahead_bytes)
    least = replace(least, store_bytes=store_bytes(layout.slot_bytes, index_bytes), are_here=are_here)
    least = replace(least, cache_bytes=min(cache_bytes or 0, cache_all_bytes), cache_all_bytes=cache_all_bytes)
    if n_workers:
        most_bytes = min(max_sample_bytes, least_scratch_bytes) if refuses_large else max_sample_bytes
        least = _with_scratch(least, most_bytes, least_scratch_bytes)
    if auto:
        budget_bytes = max(budget_bytes, min(least.total_bytes, usable.n_bytes // 2))
        max_slots = min(max_slots, AUTO_SLOTS)
    if least.total_bytes > budget_bytes:
        raise BudgetError(
            f"ram_budget={short(ram_budget)} is {human(budget_bytes)}, and the least that would do is "
            f"{human(least.total_bytes)}: {least.arithmetic()}. Raise ram_budget, or lower batch_size or workers"
            f"{' or, for images, max_pixels' if least.exclusive_bytes else ''}{' or cache_bytes' if cache_bytes else ''}"
        )
    _refuse_unusable(ram_budget, budget_bytes, usable)
    if refuses_large:
        largest_bytes = int(min(LARGEST_SHARE * budget_bytes, budget_bytes - least.total_bytes))
        max_sample_bytes = min(max_sample_bytes, max(least_scratch_bytes, largest_bytes))
    least = replace(least, max_sample_bytes=max_sample_bytes)
    if n_workers:
        least = _with_scratch(least, max_sample_bytes, least_scratch_bytes)
        roomy = _with_scratch(least, max_sample_bytes, max(least_scratch_bytes, budget_bytes // 8 // n_workers))
        least = roomy if roomy.total_bytes <= budget_bytes else least
    one_more = replace(least, n_slots=MIN_SLOTS + 1).total_bytes - least.total_bytes
    if cache_bytes is None and cache_all_bytes:
        least = _with_cache(least, budget_bytes - least.total_bytes, one_more * (min(max_slots, AUTO_SLOTS) - MIN_SLOTS))
    n_slots = MIN_SLOTS + (budget_bytes - least.total_bytes) // one_more
    return replace(least, n_slots=min(max_slots, n_slots), budget_bytes=budget_bytes)


def _refuse_unusable(ram_budget: int | float | str, budget_bytes: int, usable: Usable) -> None:
    if budget_bytes > usable.n_bytes:
        raise BudgetError(
            f"ram_budget={short(ram_budget)} is {human(budget_bytes)}, and {human(usable.n_bytes)} is {usable.bound}. "
            f"Lower ram_budget, or ask for a share of what there is, such as ram_budget=0.5"
        )


def _with_cache(plan: Plan, left_bytes: int, ring_bytes: int) -> Plan:
    """With a cache of what is left beside a ring of 64 batches (`ring_bytes` beyond the least); or of a half, if that is more.
    A longer ring would save less time than samples that need not be decoded."""
    entries = (plan.n_here + 1) * PAGE_ENTRY_BYTES / PAGE_BYTES  # of page tables, for each byte
    most_bytes = max(0, int(max(left_bytes // 2, left_bytes - ring_bytes) / (1 + entries)) - PAGE_BYTES)
    return replace(plan, cache_bytes=min(plan.cache_all_bytes, most_bytes))


def _with_scratch(plan: Plan, max_sample_bytes: int, scratch_bytes: int) -> Plan:
    """With so much scratch a worker, or with what any sample needs if this is less."""
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
