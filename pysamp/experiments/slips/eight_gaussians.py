"""Eight Gaussians on a circle: Wasserstein distance, weights and widths of the modes.

Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758. A re-run by Cordero-Encinar, Duncan, Akyildiz
and co-authors (2025) has W2 = 0.66(11) for shifted modes, the floor of 8192 exact draws being 0.62. The
posterior mean that the method returns narrows a mode of variance s² to s⁴/(s² + σ²/g²(t_end)); four copies
of the chains, of which some settle in the neighbour's mode, widen it again.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from pysamp import metrics
from pysamp.experiments.base import Experiment, Outcome, Progress, near, panels, within
from pysamp.experiments.slips.common import (
    GEOM11,
    SOURCE,
    Toy,
    draws,
    exact_draws,
    noise_floor,
    scan,
    weight_row,
)
from pysamp.plots import CYCLE, EXACT, legend, save
from pysamp.samplers import SLIPS
from pysamp.target import HasModes
from pysamp.targets import EightGaussians

RADIUS, VARIANCE = 10.0, 0.7
T0 = 0.1  # of Geom(1, 1), fixed beforehand


def run(settings: Toy, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    target, n = EightGaussians(), settings.n
    progress("floor")
    floor = noise_floor(metrics.wasserstein2, target, settings, seed)
    found = scan(
        target, metrics.wasserstein2, floor, settings, seed=seed, device=device,
        progress=progress, R=RADIUS, tau=math.sqrt(VARIANCE),
    )  # fmt: skip
    progress("one copy")
    alone = SLIPS(
        t0=T0, t_end=found.at(GEOM11, T0).grid.t_end, R=RADIUS, tau=math.sqrt(VARIANCE), n_copies=1,
        n_times=settings.n_times,
    )  # fmt: skip
    one = draws(alone.sample(target, n, seed=seed, device=device))
    progress("without settings")
    plain = SLIPS(n_times=settings.n_times).sample(target, n, seed=seed, device=device)
    x = draws(plain)
    fixed, binomial = found.at(GEOM11, T0), math.sqrt(7 / 64 / n)
    accept = fixed.info["accept"].double()
    signal = fixed.grid.t_end / (1 - fixed.grid.t_end)
    narrowed = VARIANCE / (VARIANCE + fixed.info["sigma"] ** 2 / signal)
    means, four, lone = (variance_ratio(each, target) for each in (fixed.x, x, one))
    # The error of the variance of 2 n normal numbers.
    errors = [ratio / math.sqrt(n) for ratio in (means, four, lone)]
    w2 = float(metrics.wasserstein2(x, exact_draws(target, n, seed)))
    rows = [
        found.row(f"W2, {fixed.label}", fixed.value, settings.margin),
        found.row("W2, best t0 (oracle)", found.best.value, settings.margin),
        weight_row(f"weights, {fixed.label}", fixed.x, target, 4 * binomial),
        within(
            f"acceptance, {fixed.label}", accept.mean(), accept.std() / math.sqrt(n), 0.75,
            "target of the rule", low=0.60, high=0.75,
        ),
        within(
            "variance/s², posterior mean", means, errors[0], narrowed, "s²/(s² + σ²/g²)",
            low=0.6, high=0.9,
        ),
        found.row("W2, all settings left out", w2, settings.margin),
        weight_row("weights, all settings left out", x, target, 4 * binomial),
        within("variance/s², sample, 4 copies", four, errors[1], 1.0, "exact", low=0.9, high=1.25),
        near("variance/s², sample, 1 copy", lone, errors[2], 1.0, "exact", tolerance=0.1),
    ]  # fmt: skip
    data = found.data() | {
        "published re-run": {"SLIPS": 0.66, "error": 0.11},
        "sigma found": plain.info["sigma"],
        "sigma exact": math.sqrt(RADIUS**2 / 2 + VARIANCE),
    }
    figure, axes = panels(
        (f"eight Gaussians, N = {n}", "t0", "W2"),
        ("draws, all settings left out", "x", "y"),
        ("weights of the modes, line exact", "mode", "weight"),
    )
    found.draw(axes[0])
    axes[1].plot(*x.T, ".", ms=1.5, color=CYCLE[0], rasterized=True)
    axes[1].set_aspect("equal")
    axes[2].axhline(1 / 8, color=EXACT, lw=0.8)
    for k, (label, points) in enumerate(((fixed.label, fixed.x), ("left out", x))):
        weights, error = metrics.mode_weights(points[:, None], target)
        axes[2].errorbar(
            torch.arange(1, 9) + 0.15 * (k - 0.5), weights, error, fmt="o", ms=4, capsize=2,
            lw=1, color=CYCLE[k], label=label,
        )  # fmt: skip
    legend(axes[0])
    legend(axes[2])
    return Outcome(rows, data, {"eight_gaussians.png": functools.partial(save, figure)})


def variance_ratio(x: Tensor, target: HasModes) -> float:
    """The variance inside the modes, mean over modes and coordinates, over the exact one."""
    return float(metrics.within_modes(x, target).variance_ratio.mean())


EXPERIMENT = Experiment(
    title="SLIPS on eight Gaussians: W2 beside its floor, weights and widths of modes",
    source=SOURCE,
    settings={
        "quick": Toy(1024, 1024, 0.47),
        "paper": Toy(8192, 1024, 0.15, n_floors=4),
    },
    run=run,
)
