"""Plots of one file of results. Each function draws one plot, or returns None if the file has no data for it.

Each plot is drawn for a light and for a dark page, with the same colours; text and axes have the text colour of the page.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.ticker

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from bench.peers import PEERS, Kind
from bench.scenarios import BY_NAME
from bench.stats import OURS, Results, figure

INK = {"light": "#24292f", "dark": "#e6edf3"}
PAGE_INK = "#010203"  # replaced by currentColor in the page
OURS_COLOR = "#e4572e"
COLORS = {
    "ringload": OURS_COLOR,
    "ringload-default": "#f2a97e",
    "roofline": "#8b949e",
    "copying": "#8b949e",
    "torch": "#4c8eda",
    "torch-pillow": "#86b4e8",
    "torch-vision": "#2f6db5",
    "torch-opencv": "#4c8eda",
    "torch-area": "#86b4e8",
    "torch-draft": "#2f6db5",
    "torch-numpy": "#9a7fd1",
    "tfdata": "#3fa796",
    "grain": "#c9a227",
    "keras": "#c2678d",
}
OTHER = "#9aa4ae"


def throughput(results: Results) -> Any:
    """Rates of photographs."""
    return shares_of_roofline(results, "decode-64", "photographs, 224 x 224, batches of 64, 2 workers")


def recipe(results: Results) -> Any:
    """Rates of random parts."""
    return shares_of_roofline(
        results, "recipe", "random resized crop and flip, 500 pixels to 224 x 224, batches of 64, 2 workers"
    )


def shares_of_roofline(results: Results, name: str, title: str) -> Any:
    """Rate of every peer, as a share of the roofline."""
    scenario = BY_NAME[name]
    kind: Kind = scenario.work["kind"]
    roof = figure(results, scenario, "roofline")
    if roof is None:
        return None
    shares = [("ringload", roof.ratio, roof.ours)]
    for peer in scenario.peers:
        found = figure(results, scenario, peer)
        if found is not None and peer != "roofline":
            shares.append((peer, roof.ratio / found.ratio, found.theirs))
    shares.sort(key=lambda share: share[1])
    names = [wrapped(PEERS[name].called(kind)) for name, _, _ in shares]
    is_narrow = any("\n" in one for one in names)  # the labels leave little room for the bars
    fig, axes = plt.subplots(figsize=(8, (0.55 if is_narrow else 0.42) * len(shares) + 1.2))
    axes.barh(names, [share for _, share, _ in shares], color=[COLORS.get(name, OTHER) for name, _, _ in shares])
    for row, (_, share, rate) in enumerate(shares):
        inside = share > 0.7  # outside, it would overlap the dashed line
        place, side, ink = (share - 0.01, "right", {"color": "white"}) if inside else (share + 0.01, "left", {})
        axes.text(place, row, f"{rate:,.0f} images/s", va="center", ha=side, fontsize=8, **ink)
    axes.axvline(1.0, color=COLORS["roofline"], linestyle="--", linewidth=1)
    axes.set_xlim(0, max(1.22, max(share for _, share, _ in shares) + 0.2))
    end = "\n" if is_narrow else " "
    axes.set_xlabel(f"share of the roofline (dashed):{end}ringload's decoder in 2 processes, no transport")
    axes.set_title(title.replace(", batches", ",\nbatches") if is_narrow else title)
    return fig


def wrapped(label: str) -> str:
    """A label on two lines, if it is long."""
    first, comma, last = label.rpartition(", ")
    return f"{first},\n{last}" if comma and len(label) > 40 else label


def formats(results: Results) -> Any:
    """Images/s of other sizes and formats."""
    groups = {"12mp": "12 megapixels, JPEG", "png": "500 pixels, PNG", "webp": "500 pixels, WebP"}
    names = [name for name in groups if results.values(BY_NAME[name], OURS)]
    if not names:
        return None
    order = (OURS, "torch-opencv", "torch-draft", "torch-pillow", "tfdata")
    peers = [peer for peer in order if any(results.values(BY_NAME[name], peer) for name in names)]

    def value(group: int, peer: str) -> float | None:
        values = results.values(BY_NAME[names[group]], peer)
        return float(np.median(values)) if values else None

    fig, axes = plt.subplots(figsize=(8, 3.9))
    labels = {
        "torch-opencv": "torch DataLoader, OpenCV, not antialiased",
        "torch-draft": "torch DataLoader, Pillow's draft mode",
        "torch-pillow": "torch DataLoader, Pillow",
        "tfdata": "tf.data, not antialiased",
    }
    grouped(axes, [groups[name] for name in names], peers, value, "photos", labels)
    axes.set_ylabel("images/s")
    legend_below(axes, ncols=2)
    axes.set_title("other sizes and formats to 224 x 224, 2 workers (more is better)")
    return fig


def stalls(results: Results) -> Any:
    """Share of the time that the trainer waits."""
    names = [name for name in ("skew", "step-0.5", "step-1", "step-2") if results.values(BY_NAME[name], OURS)]
    if not names:
        return None
    peers = [peer for peer in (OURS, "torch", "grain") if any(waits(results, name, peer) is not None for name in names)]
    labels = {"skew": "skewed samples,\nstep 1.1 x load"}
    fig, axes = plt.subplots(figsize=(8, 3.6))
    groups = [labels.get(name, f"step {name[5:]} x load") for name in names]
    grouped(axes, groups, peers, lambda group, peer: waits(results, names[group], peer), "sleeps")
    axes.set_ylabel("share of the time waited, %")
    axes.set_title("trainer that waits for data (less is better)")
    return fig


def waits(results: Results, name: str, peer: str) -> float | None:
    values = [line["result"]["wait_share"] for line in results.of(BY_NAME[name], peer)]
    return float(np.median(values)) * 100 if values else None


def first_batch(results: Results) -> Any:
    """Seconds to the first batch, by the number of files."""
    sizes = {"first-4k": "4 thousand", "first-1m": "1 million", "first-30m": "30 million"}
    names = [name for name in sizes if results.values(BY_NAME[name], OURS)]
    if not names:
        return None
    peers = [peer for peer in (OURS, "torch", "tfdata", "grain") if any(results.values(BY_NAME[name], peer) for name in names)]

    def value(group: int, peer: str) -> float | None:
        values = results.values(BY_NAME[names[group]], peer)
        return float(np.median(values)) if values else None

    fig, axes = plt.subplots(figsize=(8, 3.6))
    grouped(axes, [f"{sizes[name]} files" for name in names], peers, value, "photos")
    log_scale(axes)
    axes.set_ylabel("seconds (log)")
    axes.set_title("from making the loader to its first batch of 256, framework imported (less is better)")
    return fig


def memory(results: Results) -> Any:
    """PSS of all processes over time."""
    scenario = BY_NAME["memory-2"]
    fig, axes = plt.subplots(figsize=(8, 3.6))
    for peer in (OURS, "ringload-default", "torch"):
        lines = results.of(scenario, peer)
        if lines:
            seconds, mb = zip(*lines[0]["result"]["memory"], strict=True)
            axes.plot(seconds, mb, label=PEERS[peer].called("photos"), color=COLORS[peer], linewidth=2)
    if not axes.lines:
        plt.close(fig)
        return None
    axes.set_ylim(0)
    axes.set_xlabel("seconds since the process began (imports included)")
    axes.set_ylabel("PSS of all processes, MB")
    axes.set_title("memory, 2 workers, batches of 64; ringload has as many ahead as torch, and its default")
    legend_below(axes)
    return fig


def scaling(results: Results) -> Any:
    """Samples/s by number of workers, of samples that sleep."""
    scenario = BY_NAME["scaling"]
    fig, axes = plt.subplots(figsize=(8, 3.6))
    counts: list[int] = scenario.options["counts"]
    cost_s = scenario.work["cost_s"]
    for peer in (OURS, "torch", "grain"):
        lines = results.of(scenario, peer)
        if lines:
            rates = [np.median([line["result"]["at"][str(n)] for line in lines]) for n in counts]
            axes.plot(counts, rates, "o-", label=PEERS[peer].called("sleeps"), color=COLORS[peer], linewidth=2)
    if not axes.lines:
        plt.close(fig)
        return None
    axes.plot(counts, [n / cost_s for n in counts], "--", label="ideal", color=COLORS["roofline"], linewidth=1)
    axes.set_xticks(counts)
    axes.set_ylim(0)
    axes.set_xlabel("workers")
    axes.set_ylabel("samples/s")
    axes.set_title(
        f"samples that sleep {cost_s * 1000:.0f} ms, batches of {scenario.work['batch_size']}: the loader's own scaling"
    )
    legend_below(axes)
    return fig


def transport(results: Results) -> Any:
    """GB/s of batches that only need copying."""
    names = [name for name in ("copy-0.05", "copy-9.6", "copy-38.5", "copy-154") if results.values(BY_NAME[name], OURS)]
    if not names:
        return None
    peers = [
        peer
        for peer in ("copying", OURS, "torch", "grain", "torch-numpy")
        if any(results.values(BY_NAME[n], peer) for n in names)
    ]

    def value(group: int, peer: str) -> float | None:
        values = results.values(BY_NAME[names[group]], peer)
        return float(np.median(values)) if values else None

    fig, axes = plt.subplots(figsize=(8, 3.6))
    grouped(axes, [f"{name[5:]} MB" for name in names], peers, value, "rows")
    log_scale(axes)
    axes.set_ylabel("GB/s (log)")
    axes.set_title("batches that only need copying, by their size, 2 workers (more is better)")
    return fig


def grouped(
    axes: Any,
    groups: list[str],
    peers: list[str],
    value: Callable[[int, str], float | None],
    kind: Kind,
    labels: dict[str, str] | None = None,
) -> None:
    """Bars of peers, side by side in groups, with their numbers on top. Peers without a value in a group are left out. `labels`
    replace the titles of some peers."""
    titles = {peer: PEERS[peer].called(kind) for peer in peers} | (labels or {})
    width = 0.8 / len(peers)
    labelled: set[str] = set()
    for group in range(len(groups)):
        present = [(peer, height) for peer in peers if (height := value(group, peer)) is not None]
        for number, (peer, height) in enumerate(present):
            place = group + (number - (len(present) - 1) / 2) * width
            label = None if peer in labelled else titles[peer]
            labelled.add(peer)
            axes.bar(place, height, width * 0.92, color=COLORS.get(peer, OTHER), label=label)
            axes.annotate(f"{height:.3g}", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.margins(y=0.15)
    legend_below(axes)


def log_scale(axes: Any) -> None:
    """A logarithmic axis with plain numbers as labels."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def legend_below(axes: Any, ncols: int = 4) -> None:
    """A legend under the plot, where no bar or line is."""
    below = -0.2 if not axes.get_xlabel() else -0.28
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, below), ncols=ncols)


PLOTS: dict[str, Callable[[Results], Any]] = {
    "throughput": throughput,
    "recipe": recipe,
    "formats": formats,
    "transport": transport,
    "stalls": stalls,
    "first-batch": first_batch,
    "memory": memory,
    "scaling": scaling,
}


def drawn(name: str, results: Results, ink: str) -> Any:
    """A plot in the colour of a page's text; None if there is nothing to draw."""
    style = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), ink),
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
    }
    with mpl.rc_context(style):
        fig = PLOTS[name](results)
        if fig is not None:
            for axes in fig.axes:
                if (legend := axes.get_legend()) is not None:
                    for text in legend.get_texts():
                        text.set_color(ink)
            fig.tight_layout()
        return fig


def as_svg(name: str, results: Results) -> str:
    """A plot as SVG, in the text colour of the page; "" if there is no plot."""
    fig = drawn(name, results, PAGE_INK)
    if fig is None:
        return ""
    out = io.StringIO()
    fig.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    plt.close(fig)
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace(PAGE_INK, "currentColor")


def write_pngs(results: Results, folder: Path) -> list[Path]:
    """`NAME-light.png` and `NAME-dark.png` of every plot."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PLOTS:
        for mode, ink in INK.items():
            fig = drawn(name, results, ink)
            if fig is None:
                continue
            path = folder / f"{name}-{mode}.png"
            fig.savefig(path, dpi=150, facecolor="#ffffff" if mode == "light" else "#0d1117")
            plt.close(fig)
            written.append(path)
    return written
