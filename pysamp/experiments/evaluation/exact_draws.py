"""The metric itself: what independent exact draws score, and the weight of a mode that is not 2/3.

Grenioux, Noble, Gabrié (2025), arXiv 2504.08916. A mode is where its component has the larger density, so
that for near modes its weight is not that of the component: π(S₁) = 0.66647 at a = 0.5, d = 4. The error
of n draws is |N(0, w(1−w)/n)|, 37.6/√n points, and their spread 47.1/√n.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from pysamp.evaluate import Entry, Exact, aggregate, suite
from pysamp.evaluate.rows import floor_of
from pysamp.experiments.base import Experiment, Outcome, Progress, Row, equal, near, panels
from pysamp.experiments.evaluation import SOURCE, named, place, problems, seeds
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.targets import BracketTwoModes

CELL = (4, 0.5)  # dimension and half distance at which the modes overlap
PUBLISHED_WEIGHT = 0.66647
BLOCK = 1 << 18


@dataclass(frozen=True)
class Settings:
    runs: int
    dims: tuple[int, ...]
    a: tuple[float, ...]
    draws: int  # for the weight where modes overlap
    n: int = 2048


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    rows = [*overlap(settings, seed)]
    cells = []
    for i, problem in enumerate(problems(settings.dims, settings.a)):
        # One seed draws the same modes in every dimension: every cell has seeds of its own.
        found = suite(
            [problem], [Entry("exact", Exact())], n=settings.n,
            seeds=seeds(seed, settings.runs, i), device=device, progress=progress,
        )  # fmt: skip
        cells += aggregate(found)
    for cell in cells:
        floor, spread = floor_of([2 / 3, 1 / 3], settings.n)
        # |N| has the standard deviation √(1 − 2/π), and a spread of R runs is known to 1/√(2R).
        noise = spread * math.sqrt((1 - 2 / math.pi) / settings.runs)
        assert cell.error is not None and cell.spread is not None
        rows.append(
            near(f"error, {named(cell)}", cell.error, noise, floor, "|N(0, w(1−w)/n)|",
                 tolerance=5 * noise)
        )  # fmt: skip
        noise = spread / math.sqrt(2 * settings.runs)
        rows.append(
            near(f"spread, {named(cell)}", cell.spread, noise, spread, "√(w(1−w)/n)",
                 tolerance=5 * noise)
        )  # fmt: skip
    figure, axes = panels(
        (f"{settings.runs} runs of {settings.n} exact draws", "a", "percentage points"),
    )
    widest = max(settings.a)
    for k, what in enumerate(("error", "spread")):
        for m, d in enumerate(settings.dims):
            mine = [(cell, row) for cell, row in zip(cells, rows[2 + k :: 2], strict=True)
                    if place(cell)[0] == d]  # fmt: skip
            axes[0].errorbar(
                [place(cell)[1] + 0.015 * m * widest for cell, _ in mine],
                [row.ours for _, row in mine], [row.error for _, row in mine], fmt="os^Dv"[m % 5],
                ms=4, capsize=2, lw=1, color=CYCLE[k], label=f"{what}, d = {d}",
            )  # fmt: skip
        axes[0].axhline(floor_of([2 / 3, 1 / 3], settings.n)[k], color=EXACT, lw=0.8)
    axes[0].set_ylim(bottom=0)
    legend(axes[0])
    data = {"cells": [cell.to_dict() for cell in cells]}
    return Outcome(rows, data, {"exact_draws.png": functools.partial(save, figure)})


def overlap(settings: Settings, seed: int) -> list[Row]:
    """The weight of a mode where modes overlap: computed, counted, and published."""
    target = BracketTwoModes(CELL[0], a=CELL[1])
    inside = 0
    for first in range(0, settings.draws, BLOCK):
        n = min(BLOCK, settings.draws - first)
        x = target.sample(n, seed=seed, first_chain=first, dtype=torch.float64)
        inside += int((target.mode(x) == 0).sum())
    w = float(target.mode_weights[0])
    counted = inside / settings.draws
    error = math.sqrt(w * (1 - w) / settings.draws)
    return [
        equal("π(S₁), counted, d=4 a=0.5", counted, error, w, "characteristic function",
              precision=1e-3),
        near("π(S₁), computed, d=4 a=0.5", w, 0.0, PUBLISHED_WEIGHT, "4·10⁶ draws",
             tolerance=0.0009),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    title="what exact draws score where samplers are compared",
    source=SOURCE,
    settings={
        "quick": Settings(64, (4, 64), (0.5, 5.25), 1_000_000),
        "paper": Settings(256, (4, 8, 16, 32, 64), (0.5, 2.875, 5.25, 7.625, 10.0), 4_000_000),
    },
    run=run,
)
