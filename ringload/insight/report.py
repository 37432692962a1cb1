"""Plans and summaries as tables."""

from __future__ import annotations

from rich.table import Table

from ringload.ring.memory import Plan, human


def plan_table(plan: Plan) -> Table:
    """What is allocated for what."""
    table = Table(title="ringload: what would be allocated", show_footer=True)
    table.add_column("for", footer="total")
    table.add_column("how much", footer=human(plan.total_bytes), justify="right", no_wrap=True)
    bound = f"of {human(plan.budget_bytes)}; {human(plan.usable.n_bytes)} {plan.usable.bound}"
    table.add_column("how it comes about", footer=bound)
    slots = f"{plan.n_slots:,} slots (batches of {plan.batch_size:,}) of {human(plan.slot_bytes)}"
    table.add_row("ring", human(plan.ring_bytes), slots)
    table.add_row("index", human(plan.index_bytes), "paths and labels of all samples, once for all producers")
    table.add_row("control", human(plan.control_bytes), "what the processes tell each other")
    mapped_by = f"{plan.n_workers} producers and the trainer" if plan.n_workers else "the trainer"
    table.add_row("page tables", human(plan.page_tables_bytes), f"8 bytes a page of ring and index, for {mapped_by}")
    if plan.n_workers:
        table.add_row("server", human(plan.server_bytes), "the process that forks the producers")
        table.add_row(
            "producers",
            human(plan.n_workers * (plan.producer_bytes + plan.scratch_bytes)),
            f"{plan.n_workers} of {human(plan.producer_bytes)}, with up to {human(plan.scratch_bytes)} each to decode in",
        )
    if plan.exclusive_bytes:
        table.add_row("largest sample", human(plan.exclusive_bytes), "what one image of max_pixels may need; one at a time")
    return table
