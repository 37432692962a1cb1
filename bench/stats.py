"""Computes figures from lines of results: ratios of pairs, their medians and spread, and whether a goal is met.

A pair is two measurements directly after each other in one round, one of ringload and one of a peer. The speed of machines
changes by a factor of 2 within minutes, which hardly affects the ratio of a pair.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.scenario import Goal, Scenario
from bench.scenarios import SCENARIOS

OURS = "ringload"
LEAST = 1e-4  # the least share of waited time in a ratio, as ratios of tiny shares are meaningless


@dataclass(frozen=True)
class Figure:
    """Medians of a peer and of ringload in one scenario, over the same rounds."""

    scenario: Scenario
    peer: str
    ours: float
    theirs: float
    ratios: tuple[float, ...]  # ours / theirs
    goal: Goal | None = None

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.ratios), max(self.ratios)

    @property
    def is_met(self) -> bool | None:
        """None: there is no goal."""
        if self.goal is None:
            return None
        value = self.ratio if self.goal.peer else self.ours
        return value >= self.goal.limit if self.goal.at_least else value <= self.goal.limit


@dataclass(frozen=True)
class Results:
    """One file of results."""

    path: Path
    session: dict[str, Any]
    measurements: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # peers that failed before any measurement, and why
    is_complete: bool = True  # the run was not interrupted

    def of(self, scenario: Scenario, peer: str) -> list[dict[str, Any]]:
        """The successful measurements of one peer."""
        name = scenario.of or scenario.name
        return [
            line
            for line in self.measurements
            if line["scenario"] == name and line["peer"] == peer and "error" not in line["result"]
        ]

    def values(self, scenario: Scenario, peer: str) -> list[float]:
        return [line["result"][scenario.metric] for line in self.of(scenario, peer) if scenario.metric in line["result"]]

    def failures(self, scenario: Scenario) -> dict[str, str]:
        """Peer -> why it could not be measured here."""
        name = scenario.of or scenario.name
        return {
            line["peer"]: line["result"]["error"]
            for line in self.measurements
            if line["scenario"] == name and "error" in line["result"]
        }


def read(path: Path) -> Results:
    """Read a file that bench.run wrote.

    Raises:
        ValueError: the file has no session line, or a line is not JSON.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    sessions = [line for line in lines if line["kind"] == "session"]
    if len(sessions) != 1:
        raise ValueError(f"{path} has {len(sessions)} session lines, not one")
    failed = {line["peer"]: line["error"] for line in lines if line["kind"] == "failed"}
    measurements = [line for line in lines if line["kind"] == "measurement"]
    return Results(path, sessions[0], measurements, failed, lines[-1]["kind"] == "end")


def figure(results: Results, scenario: Scenario, peer: str) -> Figure | None:
    """The figure of a peer in a scenario. None: there is no pair."""
    ours = {line["pair"]: line["result"].get(scenario.metric) for line in results.of(scenario, OURS)}
    pairs = []
    for line in results.of(scenario, peer):
        mine, theirs = ours.get(line["pair"]), line["result"].get(scenario.metric)
        if mine is not None and theirs is not None:
            pairs.append((mine, theirs))
    if not pairs:
        return None
    return Figure(
        scenario,
        peer,
        statistics.median(mine for mine, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        tuple(max(mine, LEAST) / max(theirs, LEAST) for mine, theirs in pairs),
        next((goal for goal in scenario.goals if goal.peer in (peer, "")), None),
    )


def figures(results: Results, scenarios: Iterable[Scenario] = SCENARIOS) -> list[Figure]:
    """All figures, in the order of the scenarios and of their peers."""
    found = (figure(results, scenario, peer) for scenario in scenarios for peer in scenario.peers)
    return [one for one in found if one is not None]
