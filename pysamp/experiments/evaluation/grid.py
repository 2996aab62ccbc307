"""The map of separation × dimension: nine samplers, those published beside their errors.

Grenioux, Noble, Gabrié (2025), arXiv 2504.08916. No settings were published. SMC and RE are told the true
moments (oracle), as the Gaussian that they start from, SLIPS the best of a few t0 (oracle); without, it
takes its own. SMC resamples where the effective sample size is low: at every level, multinomially, the
noise alone would be √(128 w(1−w)/n) = 17 points for modes that are apart, against the 2 to 3 published.
Shown beside them: AIS, and SLIPS without an oracle, for which nothing was published. SLIPS returns states
here; the posterior means that were published have the same weights but shrink every mode to a variance
of s⁴/(s² + σ²/g²), for far modes to nearly nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure

from pysamp.evaluate import Cell, Entry, Exact, aggregate, suite
from pysamp.evaluate.plots import error_map
from pysamp.experiments.base import Experiment, Outcome, Progress, Row, near, panels, within
from pysamp.experiments.evaluation import (
    COLLAPSE,
    DIMS,
    PUBLISHED,
    SOURCE,
    A,
    found,
    limited,
    moments,
    named,
    place,
    problems,
    published,
    seeds,
)
from pysamp.mcmc import MALA, ParallelTempering
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.samplers import AIS, SLIPS, SMC, GaussianVI, Importance
from pysamp.samples import Samples
from pysamp.sampling import Sampler
from pysamp.target import HasMoments, Target

MOMENTS = ("true moments",)
MCMC, VI, EVERY, BEST, FREE = "MCMC", "VI-Gauss", "SMC every level", "SLIPS best t0", "SLIPS"
NAMES = {"SMC": "SMC", "RE": "RE", "IS-Gauss": "IS-Gauss", BEST: "SLIPS"}  # ours: published
EVERY_CELL = (4, 5.25)  # where 8 … 22 points are expected of it
NEAR_CELL = (4, 0.5)  # the only cell in which local chains see both modes
FLAT = 1.5  # error of SLIPS with 2048 draws, in most cells
N_EXACT = 2048
FREED = 25.0  # error of MCMC below which it has left the mode of its start


@dataclass(frozen=True)
class Settings:
    """Sizes; the published ones are not known, so that these are ours."""

    dims: tuple[int, ...]
    a: tuple[float, ...]
    runs: int
    t0: tuple[float, ...]  # of which the best is taken
    particles: int = 2048  # of SLIPS
    n_times: int = 1024
    n_copies: int = 4
    share: float = 30 / 35  # of cells whose error is at most FLAT
    chains: int = 1024  # of MCMC
    local: int = 2048  # steps of its warm-up
    levels: int = 128  # of SMC and AIS
    # Of RE. All copies of a chain begin at its start, and are gone after about rungs/rate steps, where
    # the rate of round trips falls to 0.02 a step in the far corner of the map.
    rungs: int = 32
    ensembles: int = 1024
    warmup: int = 8192  # steps, of 8 transitions each
    draws: int = 4
    thin: int = 64
    vi_steps: int = 5000


@dataclass(frozen=True, eq=False)
class Unweighted:
    """The draws of a sampler without their weights: q itself, as it was published."""

    sampler: Sampler

    def sample(self, target: Target, n: int, **how: Any) -> Samples:
        drawn = self.sampler.sample(target, n, **how)
        info = {k: v for k, v in drawn.info.items() if k in ("evaluations", "gradients", "elbo")}
        return replace(drawn, log_weight=None, info=info)


def entries(settings: Settings) -> list[Entry]:
    def smc(target: Target) -> SMC:
        return SMC(moments(target), n_levels=settings.levels)

    def every(target: Target) -> SMC:
        return SMC(moments(target), n_levels=settings.levels, resample="multinomial", threshold=1.0)

    def exchange(target: Target) -> ParallelTempering:
        return ParallelTempering(
            MALA(), n_rungs=settings.rungs, swap_every=8, reference=moments(target)
        )

    lengths = {"n_times": settings.n_times, "n_copies": settings.n_copies}

    def best(target: Target) -> SLIPS:
        assert isinstance(target, HasMoments)
        sigma = math.sqrt(float(target.covariance.diagonal().mean()))
        return SLIPS(
            "standard",
            sigma=sigma,
            mean=target.mean,
            t0=settings.t0[0],
            start="published",  # whose weights the values of t0 are meant for
            **lengths,  # type: ignore[arg-type]
        )

    return [
        Entry("exact", Exact(), n=N_EXACT),
        Entry(MCMC, MALA(), n_chains=settings.chains, n_draws=16, warmup=settings.local, x0=0),
        Entry("IS-Gauss", lambda t: Importance(moments(t)), MOMENTS, n=16_384),
        Entry(VI, Unweighted(GaussianVI(n_steps=settings.vi_steps)), n=8192),
        Entry("SMC", smc, MOMENTS, n=1024),
        Entry(EVERY, every, MOMENTS, n=1024),
        Entry("AIS", lambda t: AIS(moments(t), n_levels=settings.levels), MOMENTS, n=1024),
        Entry(
            "RE",
            exchange,
            MOMENTS,
            n_chains=settings.ensembles,
            n_draws=settings.draws,
            warmup=settings.warmup,
            thin=settings.thin,
        ),
        Entry(
            BEST, best, ("sigma and mean: true",), n=settings.particles, tune=("t0", settings.t0)
        ),
        Entry(FREE, SLIPS(**lengths), n=settings.particles),  # type: ignore[arg-type]
    ]


def run(settings: Settings, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    made = suite(
        problems(settings.dims, settings.a), entries(settings),
        seeds=seeds(seed, settings.runs), device=device, progress=progress,
    )  # fmt: skip
    cells = aggregate(made)
    rows = [*_rows(cells, made, settings)]
    tuned = {
        named_of(row): row["tuning"] for row in made if row["status"] == "done" and row["tuning"]
    }
    data = {"cells": [cell.to_dict() for cell in cells], "tuning": tuned}
    figures = {
        "grid_map.png": functools.partial(save, error_map(cells, ("a", "dim"))),
        "grid_published.png": functools.partial(save, _beside(cells)),
    }
    return Outcome(rows, data, figures)


def named_of(row: dict) -> str:
    return f"{row['sampler']} d={row['parameters']['dim']} a={row['parameters']['a']:g}"


# ---------------------------------------------------------------------------- rows
def _rows(cells: Sequence[Cell], made: Sequence[dict], settings: Settings) -> Iterator[Row]:
    of = {name: [c for c in cells if c.sampler == name] for name in (*NAMES, MCMC, VI, EVERY)}
    for cell in of[MCMC]:
        if place(cell) == NEAR_CELL:
            wanted = published(MCMC, *NEAR_CELL)
            assert wanted is not None
            # It falls with the length of the run, which was not published.
            yield within(named(cell), *found(cell), wanted, SOURCE, high=FREED, reference_error=0.5)
        else:
            yield near(named(cell), *found(cell), COLLAPSE, SOURCE, tolerance=0.5)
    for cell in of[VI]:
        # It starts between the modes, and ends in the lighter one as well.
        yield within(
            named(cell), *found(cell), COLLAPSE, SOURCE, low=COLLAPSE - 0.5, high=2 * COLLAPSE + 0.5,
            reference_error=0.5,
        )  # fmt: skip
    yield from _bounds(made)
    for sampler in ("IS-Gauss", "SMC", "RE"):
        yield from limited(of[sampler], sampler)
        yield from _trend(of[sampler], sampler)
    for cell in of[EVERY]:
        if place(cell) == EVERY_CELL:
            yield within(named(cell), *found(cell), 12.5, "17·√(2/π)", low=8, high=22)
    best = of[BEST]
    limit = FLAT * math.sqrt(N_EXACT / settings.particles)
    good = sum(found(cell)[0] <= limit for cell in best)
    p = good / len(best)
    yield within(
        f"cells with error ≤ {limit:.2g}, {BEST}", p, math.sqrt(p * (1 - p) / len(best)), 1.0,
        SOURCE, low=settings.share,
    )  # fmt: skip
    for cell in best:
        wanted = published("SLIPS", *place(cell))
        if wanted is not None:
            yield within(
                named(cell), *found(cell), wanted, SOURCE, high=round(2 * limit, 2),
                reference_error=PUBLISHED["SLIPS"].reading,
            )  # fmt: skip
    for sampler in ("SMC", "RE", BEST):
        yield from _shape([row for row in made if row["sampler"] == sampler], sampler)


def _bounds(made: Sequence[dict]) -> Iterator[Row]:
    """The evidence bounds of VI, which are at most the logarithm of the heavier mode's weight."""
    apart = [r for r in made if r["sampler"] == VI and r["status"] == "done"]
    apart = [r for r in apart if r["parameters"]["a"] != NEAR_CELL[1]]
    for name in dict.fromkeys(named_of(row) for row in apart):
        elbo = [row["details"]["elbo"] for row in apart if named_of(row) == name]
        mean = sum(elbo) / len(elbo)
        error = math.sqrt(sum((e - mean) ** 2 for e in elbo)) / len(elbo)
        yield within(
            f"ELBO, {name}", mean, error, math.log(2 / 3), "ln of a weight",
            high=round(math.log(2 / 3) + 0.01, 4),
        )  # fmt: skip


def _trend(cells: Sequence[Cell], sampler: str) -> Iterator[Row]:
    """That the error at the largest a grows from the least d to the largest."""
    widest = [cell for cell in cells if place(cell)[1] == max(A)]
    if len(widest) > 1:
        (low, low_se), (high, high_se) = found(widest[0]), found(widest[-1])
        (d0, a), (d1, _) = place(widest[0]), place(widest[-1])
        first, last = published(sampler, d0, a), published(sampler, d1, a)
        if first is not None and last is not None:
            yield within(
                f"{sampler} (oracle) d={d1} less d={d0} a={a:g}", high - low,
                math.hypot(low_se, high_se), last - first, SOURCE, low=0.0,
                reference_error=math.sqrt(2) * PUBLISHED[sampler].reading,
            )  # fmt: skip


def _shape(made: Sequence[dict], sampler: str) -> Iterator[Row]:
    """Variances inside modes over exact ones, the worst of all cells, within 10 % and 5 σ of noise."""
    shapes = [row["within_modes"] for row in made if row.get("within_modes")]
    if not shapes:
        return
    noise = [math.sqrt(2 / shape["draws"]) for shape in shapes]
    for k, what in enumerate(("least", "largest")):
        ratios = [shape["variance_ratio"][k] for shape in shapes]
        sign = -1 if k == 0 else 1
        worst = max(range(len(ratios)), key=lambda i: sign * (ratios[i] - 1) - 5 * noise[i])
        limit = 1 + sign * (0.1 + 5 * noise[worst])
        bounds = {"low": limit} if k == 0 else {"high": limit}
        yield within(
            f"{what} variance inside, {sampler}", ratios[worst], noise[worst], 1.0, "exact", **bounds
        )  # fmt: skip


# ---------------------------------------------------------------------------- figures
def _beside(cells: Sequence[Cell]) -> Figure:
    """Errors of ours against published ones, above the limit that rows allow."""
    figure, axes = panels(
        ("every cell of the map", "published error (points)", "our error (points)")
    )
    ax = axes[0]
    for k, (ours, theirs) in enumerate(NAMES.items()):
        mine = [c for c in cells if c.sampler == ours and published(theirs, *place(c)) is not None]
        label = ours if ours not in (BEST,) else "SLIPS, best t0"
        ax.errorbar(
            [published(theirs, *place(c)) or math.nan for c in mine],
            [max(found(c)[0], 0.05) for c in mine],
            [found(c)[1] for c in mine],
            fmt="os^D"[k], ms=4, capsize=2, lw=1, color=CYCLE[k], label=f"{label} (oracle)",
        )  # fmt: skip
    x = [0.5, 1, 2, 4, 8, 16, 40]
    ax.plot(x, x, color=EXACT, lw=0.8, label="equal")
    ax.plot(x, [1.5 * v + 1 for v in x], color=EXACT, lw=0.8, ls="--", label="1½ × published + 1")
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    legend(ax)
    return figure


EXPERIMENT = Experiment(
    title="error and spread of samplers over the separation of two modes and the dimension",
    source=SOURCE,
    settings={
        "quick": Settings(
            (4, 16), (0.5, 5.25), 4, (0.25, 0.3, 0.4, 0.65), n_times=128, n_copies=1,
            share=0.75, chains=512, rungs=16, ensembles=64, warmup=1500, draws=16, thin=32, vi_steps=3000,
        ),
        "paper": Settings(
            DIMS, A, 32,
            (0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32,
             0.36, 0.4, 0.45, 0.5, 0.58, 0.65, 0.75, 1.0),
        ),
    },
    run=run,
)  # fmt: skip
