"""Two modes of weights 2/3 and 1/3 in d = 8 … 64: the error of the weights as a function of t0.

Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758, whose poster gives the published values, of
a t0 selected by the known weights. What the curve is, derived here: chains of the denoiser start at
y/α ~ N(0, σ²/t0), run down to the mode on their side, and stay there for ever, the modes being 25 standard
deviations or more apart; neither the Langevin steps nor the later times move mass between them. With modes
at −(2/3) a 1 and (4/3) a 1, whose middle lies at a√d/3 along the line that joins them,

    weight of the heavy mode = Φ(a √(d t0) / (3 σ)),

which is 2/3 at t0 = (1.292 σ/a)²/d, and at no other.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import (
    Experiment,
    Outcome,
    Progress,
    Row,
    equal,
    near,
    panels,
    points,
    within,
)
from pysamp.experiments.slips.common import HARD, SOURCE, STANDARD, draws, published, some
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.samplers import SLIPS
from pysamp.targets import TwoModes

PUBLISHED = {8: (0.31, 0.32), 16: (0.31, 0.26), 32: (0.58, 0.59), 64: (0.53, 0.31)}  # in %, sd
VARIANCE, HEAVY = 0.05, 2 / 3
START = "weight of its start, Φ"


@dataclass(frozen=True)
class Settings:
    n: int
    n_times: int
    dims: tuple[int, ...]
    repeats: int  # of the runs at the best t0
    limit: float  # of their mean error, in %


def radius(d: int) -> float:
    """R as published, the norm of the farther mode."""
    return 4 / 3 * math.sqrt(d)


def sigma_of(d: int) -> float:
    return math.sqrt(radius(d) ** 2 / d + VARIANCE)


def weight_of_start(d: int, t0: float, sigma: float) -> float:
    return NormalDist().cdf(math.sqrt(d * t0) / (3 * sigma))


def best_t0(d: int, sigma: float) -> float:
    return (3 * NormalDist().inv_cdf(HEAVY) * sigma) ** 2 / d


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    (grid,) = some(HARD, STANDARD)
    n, rows = settings.n, []
    sd = 100 * math.sqrt(HEAVY * (1 - HEAVY) / n)
    data: dict[str, Any] = {"sd of a weight in %": sd, "curves": {}}
    figure, axes = panels(
        ("weights follow the start, lines Φ(√(d t0)/3σ)", "t0", "weight − 2/3 in %"),
        ("mean error at the t0 that the truth gives", "d", "|weight − 2/3| in %"),
    )
    for d, colour in zip(settings.dims, CYCLE, strict=False):
        target, scale = TwoModes(d), {"R": radius(d), "tau": math.sqrt(VARIANCE)}
        sigma = sigma_of(d)

        def error_of(
            sampler: SLIPS, seed: int, target: Any = target
        ) -> tuple[float, Tensor, dict[str, Any]]:
            samples = sampler.sample(target, n, seed=seed, device=device)
            x = draws(samples)
            weight = float(metrics.mode_weights(x[:, None], target)[0][0])
            return 100 * (weight - HEAVY), x, samples.info

        curve = []
        for t0 in grid.t0:
            progress(f"d = {d}, t0 = {t0:g}")
            value, _, info = error_of(published(grid, t0, settings.n_times, **scale), seed)
            expected = 100 * (weight_of_start(d, t0, sigma) - HEAVY)
            curve.append([t0, value, expected, info["start_dependence"]])
        data["curves"][d] = curve
        seeds = range(seed + 1, seed + 1 + settings.repeats)
        progress(f"d = {d}, the best t0")
        t0 = best_t0(d, sigma)
        tuned = [error_of(published(grid, t0, settings.n_times, **scale), s) for s in seeds]
        errors = [abs(value) for value, _, _ in tuned]
        rows += _rows(d, curve, errors, tuned[0], settings, sd)
        progress(f"d = {d}, t0 left out")
        value, _, info = error_of(published(grid, None, settings.n_times, **scale), seed)
        start = 100 * (weight_of_start(d, info["t0"], sigma) - HEAVY)
        rows.append(equal(f"d = {d}, weight − 2/3, t0 left out", value, sd, start, START,
                          precision=2.0))  # fmt: skip
        data[f"tuned, d = {d}"] = {"t0": t0, "errors": [value for value, _, _ in tuned]}
        data[f"t0 left out, d = {d}"] = {
            "t0": info["t0"], "error": value, "notes": info["notes"],
        }  # fmt: skip
        times = [0.02 * 1.05**k for k in range(68)]
        lines = [100 * (weight_of_start(d, t, sigma) - HEAVY) for t in times]
        axes[0].plot(times, lines, color=colour, lw=0.8)
        points(axes[0], grid.t0, [c[1] for c in curve], sd, f"d = {d}", colour)
        spread = stdev(errors) / math.sqrt(len(errors)) if len(errors) > 1 else sd
        points(axes[1], [d], [fmean(errors)], spread, "ours" if d == settings.dims[0] else "_",
               CYCLE[0])  # fmt: skip
    axes[0].axhline(0, color=EXACT, lw=0.8)
    axes[0].set_xscale("log")
    axes[0].set_xticks(grid.t0)
    axes[0].minorticks_off()
    axes[0].xaxis.set_major_formatter("{x:g}")
    told = [d for d in settings.dims if d in PUBLISHED]
    points(axes[1], [1.04 * d for d in told], [PUBLISHED[d][0] for d in told],
           [PUBLISHED[d][1] for d in told], "published, sd", CYCLE[1])  # fmt: skip
    axes[1].axhline(math.sqrt(2 / math.pi) * sd, color=EXACT, lw=0.8, label=f"noise of N = {n}")
    axes[1].set_xscale("log", base=2)
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].set_ylim(bottom=0)
    legend(axes[0])
    legend(axes[1])
    return Outcome(rows, data, {"two_modes.png": functools.partial(save, figure)})


def _rows(
    d: int, curve: list[list[float]], errors: list[float],
    tuned: tuple[float, Tensor, dict[str, Any]], settings: Settings, sd: float,
) -> list[Row]:  # fmt: skip
    """Those of the curve, of the runs at the best t0, and of the widths of the modes there."""
    _, x, info = tuned
    gap = max(abs(value - expected) for _, value, expected, _ in curve)
    mean, spread = PUBLISHED.get(d, (math.sqrt(2 / math.pi) * sd, sd))
    # All of a row's own error is counted, also where few repetitions agree by chance.
    error = math.sqrt(1 - 2 / math.pi) * sd / math.sqrt(len(errors))
    ratio = float(metrics.within_modes(x, TwoModes(d)).variance_ratio.mean())
    narrowed = VARIANCE / (VARIANCE + info["sigma"] ** 2 / info["t_end"])
    return [
        within(f"d = {d}, largest gap to Φ in %", gap, sd, 0.0, START, high=5 * sd),
        within(
            f"d = {d}, |error| in %, t0 oracle", fmean(errors), error, mean, "published",
            high=settings.limit, reference_error=spread,
        ),
        near(
            f"d = {d}, variance/s², mean", ratio, ratio * math.sqrt(2 / (d * settings.n / 3)),
            narrowed, "s²/(s² + σ²/g²)", tolerance=0.08,
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    title="SLIPS on two modes: the weights are those of its start, for every t0",
    source=SOURCE,
    settings={
        "quick": Settings(1024, 64, (8, 16, 32, 64), 2, 4.0),
        "paper": Settings(8192, 1024, (8, 16, 32, 64), 4, 1.0),
    },
    run=run,
)
