"""Measures every scenario with every peer, round after round, each in a new process. Writes one JSON line for each.

    python -m bench.run [--quick] [--only NAME ...] [--rounds 5]

In a round, ringload (R) runs between each two peers, and is paired with both: A R B, then B R A in the next round. Before that,
every peer runs a small epoch, which must contain every sample once and with the right content. A wrong, repeated or missing
sample, then or during a measurement, ends the run with an error. A peer that fails in another way is listed with the reason.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import click

from bench import slowfs
from bench.machine import Memory, commit, machine, versions
from bench.measure import WRONG
from bench.peers import PEERS, installed
from bench.scenario import Scenario, files_of, remote, rows, sleeps
from bench.scenarios import BY_NAME, SCENARIOS, prepare
from bench.stats import OURS
from bench.work import IMAGES

RESULTS = Path("bench/results")
ROOT = Path(__file__).parent.parent  # of the checkout, from which child processes import
LONGEST_S = 240  # time limit of one measurement
QUICK = {"rounds": 2, "shorter": 0.4}


def proof_work(kind: str) -> dict[str, Any]:
    """A small epoch of this kind of work."""
    if kind == "remote":
        return remote(32) | {"n_samples": 320, "n_files": 320}
    if kind in IMAGES and kind != "photos":
        return files_of(kind, 16 if kind == "12mp" else 32) | {"n_samples": 48 if kind == "12mp" else 320}
    if kind == "photos":
        return {"kind": "photos", "folder": "data/photos", "batch_size": 32, "size": 224, "n_samples": 320}
    if kind == "rows":
        return rows(64, (28, 28), n_rows=60_000) | {"n_samples": 640}
    return sleeps(16, 0.001) | {"n_samples": 320}


def call(spec: dict[str, Any], watch: bool = False) -> dict[str, Any]:
    """Run one measurement in a new process, and return its result, or {"error": reason}.

    Raises:
        ClickException: a payload was wrong, or ringload itself failed.
    """
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # pip has compiled the peers; ringload is run from the checkout
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.measure", json.dumps(spec)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    memory = Memory(process.pid)
    with memory if watch else nullcontext():
        try:
            said, errors = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            said, errors = f"RESULT {json.dumps({'error': f'not done after {LONGEST_S} s'})}", ""
        finally:
            end(process)
    lines = [line for line in said.splitlines() if line.startswith("RESULT ")]
    last_words = errors.strip().splitlines()[-1] if errors.strip() else "nothing on stderr"
    result: dict[str, Any] = json.loads(lines[-1][7:]) if lines else {"error": f"exit {process.returncode}: {last_words}"}
    if process.returncode == WRONG or ("error" in result and spec["peer"] == OURS):
        raise click.ClickException(f"{spec['peer']}: {result['error']}\n{errors[-2000:]}\n{json.dumps(spec)}")
    if watch and "error" not in result:
        result["memory"] = memory.samples
        result["peak_mb"] = max((mb for _, mb in memory.samples), default=0.0)
        result["own_mb"] = result["peak_mb"] - result["base_mb"]
    return result


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process, and all processes of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # no process is left
    process.wait()


def groups(peers: list[str], round_number: int) -> Iterator[tuple[int, list[str]]]:
    """(number, order): two peers with ringload between them."""
    for number, start in enumerate(range(0, len(peers), 2)):
        pair = peers[start : start + 2]
        order = [pair[0], OURS, *pair[1:]]
        yield number, order if round_number % 2 == 0 else order[::-1]


class Session:
    """Writes the lines of one run."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: TextIO = path.open("a")
        self.write({"kind": "session", **about})

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def run(self, scenario: Scenario, peers: list[str], rounds: int, shorter: float) -> None:
        """All rounds of one scenario."""
        failed: set[str] = set()
        for round_number in range(rounds):
            for group, order in groups([peer for peer in peers if peer not in failed], round_number):
                for peer in order:
                    spec = {
                        "peer": peer,
                        "work": scenario.work,
                        "workers": scenario.workers,
                        "method": scenario.method,
                        "seconds": scenario.seconds * shorter,
                        "warm_s": scenario.warm_s * shorter,
                        "open": scenario.ours if peer == OURS else {},
                        **scenario.options,
                    }
                    result = call(spec, watch=bool(scenario.options.get("watch")))
                    about = {"scenario": scenario.name, "peer": peer, "round": round_number, "pair": f"{round_number}.{group}"}
                    self.write({"kind": "measurement", **about, "at": time.time(), "spec": spec, "result": result})
                    if "error" in result:
                        failed.add(peer)
                    click.echo(f"  {round_number} {peer:<16} {shown(result, scenario)}")


def shown(result: dict[str, Any], scenario: Scenario) -> str:
    return result.get("error") or f"{result.get(scenario.metric, float('nan')):,.4g} {scenario.unit}"


@click.command()
@click.option("--quick", is_flag=True, help="a hint in 8 minutes: fewer scenarios and peers, 2 rounds, shorter")
@click.option("--only", multiple=True, type=click.Choice(list(BY_NAME)), help="these scenarios")
@click.option("--peer", "chosen", multiple=True, type=click.Choice(list(PEERS)), help="compare ringload with these")
@click.option("--rounds", type=click.IntRange(min=1), help="pairs of each  [default: 5; 2 if quick]")
@click.option("--proofs/--no-proofs", default=True, help="a whole verified epoch of every peer first")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(quick: bool, only: tuple[str, ...], chosen: tuple[str, ...], rounds: int | None, proofs: bool, out: Path) -> None:
    """Measure ringload and its peers. Writes one JSON line for each measurement into a new file in OUT."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the processes that it has started are ended, too
    scenarios = [one for one in SCENARIOS if not one.of and (not only or one.name in only) and (one.quick or not quick)]
    absent = {name: why for name, peer in PEERS.items() if (why := absent_here(name))}
    plan = {
        one.name: [
            peer for peer in (one.quick if quick else one.peers) if peer not in absent and (not chosen or peer in chosen)
        ]
        for one in scenarios
    }
    scenarios = [one for one in scenarios if plan[one.name]]
    left_out = {one.name: slowfs.refused() for one in scenarios if one.needs_root and slowfs.refused()}
    scenarios = [one for one in scenarios if one.name not in left_out]
    full = not (quick or only or chosen)
    n_rounds = rounds or (QUICK["rounds"] if quick else 5)
    begin_s = time.time()
    stamp = time.strftime("%Y-%m-%dT%H%M%S", time.gmtime())
    session = Session(
        out / f"{stamp}{'' if full else '-part'}.jsonl",
        {
            "at": begin_s,
            "command": shlex.join(["python", "-m", "bench.run", *sys.argv[1:]]),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
            "rounds": n_rounds,
            "quick": quick,
            "full": full,
            "load": os.getloadavg()[0],
            "absent": absent,
            "left_out": left_out,
        },
    )
    for name, why in absent.items():
        click.echo(f"absent: {name}: {why}")
    for one in scenarios:
        prepare(one)
    failed: dict[str, str] = {}
    if proofs:
        failed = prove(sorted({(peer, one.work["kind"]) for one in scenarios for peer in [OURS, *plan[one.name]]}))
    for name, why in failed.items():
        session.write({"kind": "failed", "peer": name, "error": why})
    for one in scenarios:
        plan[one.name] = [peer for peer in plan[one.name] if peer not in failed]
        click.echo(f"{one.name}: {one.title}")
        session.run(one, plan[one.name], int(n_rounds), QUICK["shorter"] if quick else 1.0)
    session.write({"kind": "end", "seconds": time.time() - begin_s})
    click.echo(f"{session.path}, {time.time() - begin_s:.0f} s")


def absent_here(name: str) -> str:
    """The reason why a peer cannot run: from bench.install, or from importing it in a new process, as some peers conflict."""
    noted = installed()
    if PEERS[name].packages and all("version" in noted.get(package, {}) for package in PEERS[name].packages):
        return ""
    code = f"from bench.peers import PEERS; print('ABSENT', PEERS[{name!r}].absent())"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ABSENT")]
    return lines[-1][7:].strip() if lines else f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"


def prove(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Verify a small epoch of each (peer, kind of work). Returns those that failed, except by a wrong payload, and why."""
    from bench import data
    from bench.work import Rows, make_work

    data.truth(data.PHOTOS, 224)
    work = make_work(proof_work("rows"))
    assert isinstance(work, Rows)
    data.rows(work.n_rows, work.shape, work.dtype)
    failed = {}
    for name, kind in pairs:
        if PEERS[name].is_yardstick:
            continue
        result = call({"peer": name, "work": proof_work(kind), "workers": 2, "method": "proof"})
        crops = (
            f": {result['mean_area']:.0%} of the area, {result['mirrored_share']:.0%} mirrored" if "mean_area" in result else ""
        )
        click.echo(f"proof: {name:<16} {kind:<8} {result.get('error') or 'every sample came once, and as it is'}{crops}")
        if "error" in result:
            failed[name] = f"{kind}: {result['error']}"
    return failed


if __name__ == "__main__":
    main()
