"""A plan as a table."""

from __future__ import annotations

from rich.table import Table

from ringload.ring.plan import PLAN_TITLE, Plan, human


def plan_table(plan: Plan) -> Table:
    """The purpose, size and arithmetic of each allocation."""
    table = Table(title=PLAN_TITLE, show_footer=True)
    table.add_column("for", footer="total")
    table.add_column("how much", footer=human(plan.total_bytes), justify="right", no_wrap=True)
    table.add_column("how it comes about", footer=plan.bound)
    for what, n_bytes, how in plan.rows():
        table.add_row(what, human(n_bytes), how)
    return table
