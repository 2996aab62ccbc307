"""All weights right without being told anything: parallel tempering along powers of the density.

The target is that of Grenioux, Noble, Gabrié (2025), arXiv 2504.08916. On a power p^β modes of equal
determinants have weights in the ratio 2^β, and widen until they merge at β ~ s²/(d a²): unlike the linear
bridge from a Gaussian (RE, SMC) no step of the ladder is a jump, and a power of 1e-6 is beyond the merging
of all cells, so that nothing of the target need be known. The price is a ladder whose
number of rungs grows as √d ln(1/β_min).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from pysamp.evaluate import Cell, Entry, aggregate, suite
from pysamp.experiments.base import Experiment, Outcome, Progress, Row, panels, within
from pysamp.experiments.evaluation import (
    DIMS,
    SOURCE,
    A,
    found,
    named,
    place,
    problems,
    published,
    seeds,
)
from pysamp.mcmc import MALA, ParallelTempering
from pysamp.plots import CYCLE, EXACT, legend, save

BETA_MIN = 1e-6
LABEL = "PT powers"
GOAL = 2.0  # percentage points
GOAL_FAR = 3.0  # above 64 dimensions


@dataclass(frozen=True)
class Settings:
    cells: tuple[tuple[int, float], ...]  # d, a
    runs: int
    chains: int = 128
    # Steps for each rung, as the way up and down the ladder takes as many more as it has rungs.
    warmup: int = 100
    thin: int = 8
    draws: int = 16
    swap_every: int = 4  # transitions a step


def rungs(d: int) -> int:
    """So many that neighbours differ by ln β ≈ 2/√d, which swaps about one time in three."""
    return max(16, math.ceil(math.log(1 / BETA_MIN) * math.sqrt(d) / 2))


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    cells: list[Cell] = []
    rows: list[Row] = []
    for i, (d, a) in enumerate(settings.cells):
        k = rungs(d)
        kernel = ParallelTempering(
            MALA(), n_rungs=k, beta_min=BETA_MIN, swap_every=settings.swap_every
        )
        entry = Entry(
            LABEL, kernel, n_chains=settings.chains, n_draws=settings.draws,
            warmup=settings.warmup * k, thin=settings.thin * k,
        )  # fmt: skip
        made = suite(
            problems((d,), (a,)), [entry], seeds=seeds(seed, settings.runs, i), device=device,
            progress=progress,
        )  # fmt: skip
        cells += aggregate(made)
        rows.append(
            within(named(cells[-1]), *found(cells[-1]), 0.0, "exact",
                   high=GOAL if d <= max(DIMS) else GOAL_FAR)
        )  # fmt: skip
        rows += _shape(made, d, a)
    data = {
        "cells": [cell.to_dict() for cell in cells],
        "rungs": {d: rungs(d) for d, _ in settings.cells},
    }
    return Outcome(rows, data, {"no_oracle.png": functools.partial(save, _figure(cells))})


def _shape(made: Sequence[dict], d: int, a: float) -> list[Row]:
    """Extreme variances of coordinates inside a mode over exact ones, means over runs."""
    shapes = [row["within_modes"] for row in made if row.get("within_modes")]
    if not shapes:
        return []
    # Of m draws, which depend on each other within a chain.
    noise = math.sqrt(2 / (sum(shape["draws"] for shape in shapes) / len(shapes)))
    rows = []
    for k, what in enumerate(("least", "largest")):
        ratio = sum(shape["variance_ratio"][k] for shape in shapes) / len(shapes)
        limit = 1 + (2 * k - 1) * (0.1 + 5 * noise)
        bounds = {"low": limit} if k == 0 else {"high": limit}
        rows.append(
            within(f"{what} variance inside, d={d} a={a:g}", ratio, noise, 1.0, "exact", **bounds)
        )
    return rows


def _figure(cells: Sequence[Cell]) -> Figure:
    figure, axes = panels(("PT along powers, no oracle", "a", "error (points)"))
    ax = axes[0]
    for k, d in enumerate(dict.fromkeys(place(cell)[0] for cell in cells)):
        mine = [cell for cell in cells if place(cell)[0] == d]
        ax.errorbar(
            [place(c)[1] for c in mine], [found(c)[0] for c in mine], [found(c)[1] for c in mine],
            fmt="os^Dv<>"[k % 7], ms=4, capsize=2, lw=1, color=CYCLE[k % len(CYCLE)], label=f"d = {d}",
        )  # fmt: skip
        theirs = [(a, e) for a in A if (e := published("RE", d, a)) is not None]
        ax.plot(*zip(*theirs, strict=True), ":", lw=1, color=CYCLE[k % len(CYCLE)],
                label="RE, published" if k == 0 else None)  # fmt: skip
    ax.axhline(GOAL, color=EXACT, lw=0.8)
    ax.set_ylim(bottom=0)
    legend(ax)
    return figure


EXPERIMENT = Experiment(
    title="weights of two modes without an oracle, by a ladder of powers",
    source=SOURCE,
    settings={
        "quick": Settings(((4, 0.5), (4, 10.0), (16, 10.0)), 4),
        "paper": Settings(tuple((d, a) for d in (*DIMS, 128, 256) for a in A), 32, chains=512, warmup=400),
    },
    run=run,
)  # fmt: skip
