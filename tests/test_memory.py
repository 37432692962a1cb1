from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ringload import BudgetError, ConfigError, Field
from ringload.ring.plan import AUTO_SLOTS, MAX_SLOTS, MIN_SLOTS, human, make_plan, parse_bytes
from ringload.system.cgroups import Usable

GB = 10**9
FIELDS = {"image": Field((224, 224, 3), "u1"), "label": Field((), "i8")}
USABLE = Usable(64 * GB, "memory available on this machine")


@pytest.mark.parametrize(
    ("amount", "n_bytes"),
    [
        ("48GB", 48 * GB),
        ("48gb", 48 * GB),
        ("48 GB", 48 * GB),
        ("1.5GB", 1_500_000_000),
        ("48GiB", 48 << 30),
        ("512M", 512_000_000),
        ("512MiB", 512 << 20),
        ("1TB", 10**12),
        ("1_000_000", 1_000_000),
        ("123456 bytes"[:6], 123_456),
        ("50%", 32 * GB),
        (0.5, 32 * GB),
        (1.0, 64 * GB),
        ("1.0", 64 * GB),
        ("0.5", 32 * GB),
        (".5", 32 * GB),
        ("100%", 64 * GB),
        ("48 G", 48 * GB),
        ("48g", 48 * GB),
        ("2e11", 200 * GB),
        (48e9, 48 * GB),
        (np.int64(48 * GB), 48 * GB),
        (np.float32(0.5), 32 * GB),
        (48_000_000_000, 48 * GB),
    ],
)
def test_amounts_of_memory(amount: Any, n_bytes: int) -> None:
    assert parse_bytes(amount, USABLE) == n_bytes


@pytest.mark.parametrize("amount", ["", "GB", "48XB", "-1GB", 0, -5, 0.0, True, None, "101%", "0%", "50%b", "5i", [1]])
def test_what_is_no_amount_is_refused(amount: Any) -> None:
    with pytest.raises(ConfigError, match="ram_budget is bytes"):
        parse_bytes(amount, USABLE)


def plan(budget: Any, **options: Any) -> Any:
    arguments: dict[str, Any] = {"batch_size": 256, "n_workers": 12, "index_bytes": 2 * GB, "max_sample_bytes": GB, **options}
    usable = arguments.pop("usable", USABLE)
    return make_plan(FIELDS, arguments.pop("batch_size"), arguments.pop("n_workers"), budget, usable, **arguments)


def test_the_budget_covers_everything() -> None:
    made = plan("48GB")
    assert made.total_bytes <= 48 * GB < made.total_bytes + made.slot_bytes + made.control_bytes
    assert made.ring_bytes == made.n_slots * made.slot_bytes
    assert made.slot_bytes >= 256 * (224 * 224 * 3 + 8 + 8)
    assert made.slot_bytes % 4096 == 0
    parts = made.ring_bytes + made.index_bytes + made.workers_bytes + made.control_bytes + made.page_tables_bytes
    assert parts == made.total_bytes


def test_auto_is_the_smaller_of_a_quarter_and_64_batches() -> None:
    assert plan("auto", usable=Usable(400 * GB, "")).n_slots == AUTO_SLOTS
    small = plan("auto", usable=Usable(20 * GB, ""), n_workers=1)
    assert small.budget_bytes == 5 * GB
    assert small.n_slots < AUTO_SLOTS
    tight = plan("auto", usable=Usable(8 * GB, ""), n_workers=1)  # a quarter would not do: the least, up to a half
    assert (tight.n_slots, tight.total_bytes <= 4 * GB) == (MIN_SLOTS, True)


def test_too_small_a_budget_names_the_least_that_would_do() -> None:
    with pytest.raises(
        BudgetError, match=r"ram_budget='3GB' is 3\.0 GB, and the least that would do is (.*) GB: .*max_pixels"
    ) as caught:
        plan("3GB")
    least = str(caught.value).split("the least that would do is ")[1].split(" GB")[0]
    plan(f"{float(least) + 0.1}GB")
    with pytest.raises(BudgetError):
        plan(f"{float(least) - 0.1}GB")


def test_more_than_there_is_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(BudgetError, match=r"is 65\.0 GB, and 64\.0 GB is memory available on this machine"):
        plan("65GB")


def test_scratch_grows_with_the_budget_and_the_rest_waits_its_turn() -> None:
    small, large = plan("8GB"), plan("60GB")
    assert small.scratch_bytes < large.scratch_bytes <= GB
    assert small.exclusive_bytes == GB
    one = plan("60GB", n_workers=1)
    assert (one.scratch_bytes, one.exclusive_bytes) == (GB, 0)


@pytest.mark.parametrize(("budget", "n_bytes"), [("48GB", GB), ("1.5GB", 750_000_000), ("1GB", 500_000_000)])
def test_a_source_that_refuses_what_is_large_gets_half_of_a_small_budget(budget: str, n_bytes: int) -> None:
    """Whatever the number of workers, if the least that works leaves so much."""
    for n_workers in (0, 1, 2):
        made = plan(budget, n_workers=n_workers, batch_size=16, index_bytes=0, refuses_large=True)
        assert made.max_sample_bytes == n_bytes
        assert made.total_bytes <= made.budget_bytes
        assert made.exclusive_bytes in (0, made.max_sample_bytes)
        assert n_workers == 0 or made.exclusive_bytes or made.scratch_bytes == made.max_sample_bytes
    with pytest.raises(BudgetError):
        plan("500MB", n_workers=2, batch_size=16, index_bytes=0)


def test_half_of_a_budget_that_is_tight_is_what_is_left() -> None:
    for budget_bytes in range(180_000_000, 400_000_000, 7_000_000):
        try:
            made = plan(budget_bytes, n_workers=2, batch_size=4, index_bytes=0, refuses_large=True)
        except BudgetError:
            assert budget_bytes < 190_000_000
            continue
        assert made.total_bytes <= budget_bytes
        assert 32 << 20 <= made.max_sample_bytes <= max(32 << 20, budget_bytes // 2)


def test_no_workers_no_processes() -> None:
    made = plan("8GB", n_workers=0)
    assert (made.workers_bytes, made.n_slots) == (0, AUTO_SLOTS)


def test_no_more_slots_than_batches() -> None:
    assert plan("48GB", max_slots=20).n_slots == 20
    assert plan("48GB", max_slots=1).n_slots == MIN_SLOTS
    assert plan("48GB", batch_size=1).n_slots == MAX_SLOTS


def test_human() -> None:
    assert [human(n) for n in (5, 1500, 48 * GB, 3 * 10**12)] == ["5 bytes", "1.5 kB", "48.0 GB", "3.0 TB"]
