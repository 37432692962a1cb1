"""Reports one file of results: as a table in the terminal, a page of HTML with all plots, PNGs, and the README's table.

    python -m bench.report [FILE] [--page bench/results/bench.html] [--png bench/results] [--readme] [--markdown]

Without FILE, reports the newest file that bench.run wrote. --readme always uses the newest full run. --markdown prints the
README's table of any run, also of one that measured only some scenarios.
"""

from __future__ import annotations

import html
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.peers import PEERS
from bench.run import RESULTS
from bench.scenario import Scenario
from bench.scenarios import BY_NAME, SCENARIOS
from bench.stats import Figure, Results, figures, read

README = Path("README.md")
BEGIN, END = "<!-- begin: written by python -m bench.report --readme -->", "<!-- end: bench -->"
WHOLE = (
    "decode-64",
    "recipe",
    "12mp",
    "png",
    "webp",
)  # scenarios of which the README lists all peers, also those without a goal
HEADINGS = ("figure", "ringload", "compared with", "its figure", "ratio", "spread", "pairs", "goal", "")


def newest(folder: Path = RESULTS, full_only: bool = False) -> Path | None:
    """The newest file of results, by its name; or the newest of a complete full run."""
    files = sorted(folder.glob("*.jsonl"))
    if full_only:
        files = [path for path in files if not path.stem.endswith("-part") and read(path).is_complete]
    return files[-1] if files else None


def number(value: float, unit: str) -> str:
    """A value with its unit, to 3 digits."""
    if unit == "of the time":
        return f"{value:.1%} {unit}"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def goal_of(figure: Figure) -> str:
    """The goal of a ratio, or of ringload's own figure, as text."""
    if figure.goal is None:
        return ""
    sign = ">=" if figure.goal.at_least else "<="
    return f"{sign} {figure.goal.limit:g}" if figure.goal.peer else f"{sign} {number(figure.goal.limit, figure.scenario.unit)}"


def kind_of(scenario: Scenario) -> str:
    """The kind of its work."""
    kind: str = (BY_NAME[scenario.of] if scenario.of else scenario).work["kind"]
    return kind


def cells(figure: Figure) -> list[str]:
    """A row of the tables."""
    met = {None: "", True: "met", False: "missed"}[figure.is_met]
    low, high = figure.spread
    return [
        figure.scenario.title,
        number(figure.ours, figure.scenario.unit),
        PEERS[figure.peer].called(kind_of(figure.scenario)),
        number(figure.theirs, figure.scenario.unit),
        f"{figure.ratio:.3g}",
        f"{low:.3g} to {high:.3g}",
        str(len(figure.ratios)),
        goal_of(figure),
        met,
    ]


def about(results: Results) -> str:
    """Machine, time and command, in a sentence."""
    session, machine = results.session, results.session["machine"]
    when = time.strftime("%d %B %Y", time.gmtime(session["at"]))
    where = f"{machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gb']} GB, Linux {machine['kernel']}"
    how = f"{session['rounds']} pairs, load {session['load']:.1f} at the start"
    return f"{where}; {when}; `{session['command']}`, commit {session['commit']}; {how}"


def missing(results: Results) -> list[str]:
    """The peers that were not measured, and why."""
    session = results.session
    told = [f"{PEERS[name].title}: {why}" for name, why in session["absent"].items() if name in PEERS]
    told += [f"{PEERS[name].title}: {why}" for name, why in results.failed.items()]
    told += [f"scenario {name}: {why}" for name, why in session["left_out"].items()]
    for scenario in SCENARIOS:
        if not scenario.of:
            told += [f"{PEERS[peer].title} in {scenario.name}: {why}" for peer, why in results.failures(scenario).items()]
    return told


def print_table(results: Results) -> None:
    """The whole table, in the terminal."""
    table = Table(title=about(results), title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading)
    last = ""
    for one in figures(results):
        row = cells(one)
        title, row[0] = row[0], "" if row[0] == last else row[0]
        if last and title != last:
            table.add_section()
        table.add_row(*row, style={None: None, True: "green", False: "red"}[one.is_met])
        last = title
    console = Console(width=200) if not Console().is_terminal else Console()
    console.print(table)
    for line in missing(results):
        console.print(f"absent: {line}", markup=False, soft_wrap=True)


def readme_block(results: Results | None) -> str:
    """The text between the README's two marks."""
    if results is None:
        return "No full run of `make bench` has been recorded yet; this table is written from its results."
    chosen = [one for one in figures(results) if one.goal is not None or one.scenario.name in WHOLE]
    lines = [
        f"{about(results)}.",
        "",
        "| figure | ringload | compared with | its figure | ratio (spread) | goal |",
        "|---|---|---|---|---|---|",
    ]
    last = ""
    for one in chosen:
        title, ours, peer, theirs, ratio, spread, _, goal, met = cells(one)
        first, last = ("" if title == last else title), title
        lines.append(f"| {first} | {ours} | {peer} | {theirs} | {ratio} ({spread}) | {goal}{', ' if goal else ''}{met} |")
    if told := missing(results):
        lines += ["", f"Not measured: {'; '.join(told)}."]
    return "\n".join(lines)


def write_readme(path: Path = README, folder: Path = RESULTS) -> None:
    """Put the newest full run's table into the README.

    Raises:
        ValueError: the README does not have both marks.
    """
    before, begun, rest = path.read_text().partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{path} lacks the marks {BEGIN} and {END}")
    file = newest(folder, full_only=True)
    block = readme_block(None if file is None else read(file))
    path.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")


def write_page(results: Results, path: Path) -> None:
    """Write one page with the tables and plots."""
    from bench.plots import PLOTS, as_svg

    rows = []
    last = ""
    for one in figures(results):
        row = cells(one)
        title, row[0] = row[0], "" if row[0] == last else row[0]
        kind = ' class="first"' if title != last else ""
        last = title
        tds = "".join(f'<td class="{one_class(place, text)}">{html.escape(text)}</td>' for place, text in enumerate(row))
        rows.append(f"<tr{kind}>{tds}</tr>")
    drawings = [f"<figure>{svg}</figure>" for name in PLOTS if (svg := as_svg(name, results))]
    versions = ", ".join(f"{name} {version}" for name, version in results.session["versions"].items())
    told = "".join(f"<li>{html.escape(line)}</li>" for line in missing(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        PAGE.format(
            about=html.escape(about(results)),
            versions=html.escape(versions),
            drawings="\n".join(drawings),
            headings="".join(f"<th>{heading}</th>" for heading in HEADINGS),
            rows="\n".join(rows),
            missing=f"<h2>Not measured</h2><ul>{told}</ul>" if told else "",
        )
    )


def one_class(place: int, text: str) -> str:
    return text if place == len(HEADINGS) - 1 and text else "n" if 3 <= place <= 6 or place == 1 else "t"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ringload: the bench</title>
<style>
:root {{ color-scheme: light dark; --ink: #24292f; --page: #ffffff; --line: #d0d7de; --good: #1a7f37; --bad: #cf222e }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6edf3; --page: #0d1117; --line: #30363d; --good: #3fb950; --bad: #f85149 }}
}}
body {{ color: var(--ink); background: var(--page); font: 15px/1.5 system-ui, sans-serif }}
body {{ max-width: 75rem; margin: 2rem auto; padding: 0 1rem }}
figure {{ display: inline-block; margin: 0.5rem 0; width: 36rem; max-width: 100%; vertical-align: top }}
figure svg {{ width: 100%; height: auto }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px }}
th {{ text-align: left; border-bottom: 2px solid var(--line) }}
th, td {{ padding: 0.2rem 0.7rem; vertical-align: top }}
td.n {{ white-space: nowrap; font-variant-numeric: tabular-nums }}
tr.first td {{ border-top: 1px solid var(--line) }}
.met {{ color: var(--good) }} .missed {{ color: var(--bad); font-weight: bold }}
</style></head><body>
<h1>ringload compared with its peers</h1>
<p>{about}</p>
<p>A ratio is ringload's figure over the other's: the median over pairs that were measured next to each other, each in a
fresh process, with its least and its greatest. Every batch was verified.</p>
<div>{drawings}</div>
<h2>All figures</h2>
<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>
{rows}
</tbody></table></div>
{missing}
<p>{versions}</p>
</body></html>
"""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="where the newest is")
@click.option("--page", type=click.Path(path_type=Path), help="write the page there")
@click.option("--png", type=click.Path(path_type=Path), help="write the plots into this folder")
@click.option("--readme", is_flag=True, help="write the newest full run's table into README.md")
@click.option("--markdown", is_flag=True, help="print the table in the form of the README")
def main(file: Path | None, results: Path, page: Path | None, png: Path | None, readme: bool, markdown: bool) -> None:
    """Report FILE, or the newest results."""
    if readme:
        write_readme()
    path = file or newest(results)
    if path is None:
        raise click.ClickException(f"there are no results in {results}: make bench, or make bench-quick")
    found = read(path)
    click.echo(readme_block(found)) if markdown else print_table(found)
    if page is not None:
        write_page(found, page)
        click.echo(page)
    if png is not None:
        from bench.plots import write_pngs

        for written in write_pngs(found, png):
            click.echo(written)


if __name__ == "__main__":
    main()
