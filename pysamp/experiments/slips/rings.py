"""Four rings: Wasserstein distance and the weights of the rings.

Grenioux, Noble, Gabrié, Durmus, ICML 2024, arXiv 2402.10758, with R = 4, tau = 0.15, a bound that is wider
than the target. The re-run by Cordero-Encinar, Duncan, Akyildiz and co-authors (2025) has W2 = 0.19(2).
"""

from __future__ import annotations

import functools

import torch

from pysamp import metrics
from pysamp.experiments.base import Experiment, Outcome, Progress, panels
from pysamp.experiments.slips.common import (
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
from pysamp.targets import Rings


def run(settings: Toy, *, seed: int, device: str | None, progress: Progress) -> Outcome:
    target, n = Rings(), settings.n
    progress("floor")
    floor = noise_floor(metrics.wasserstein2, target, settings, seed)
    found = scan(
        target, metrics.wasserstein2, floor, settings, seed=seed, device=device,
        progress=progress, R=4.0, tau=0.15,
    )  # fmt: skip
    progress("without settings")
    plain = SLIPS(n_times=settings.n_times).sample(target, n, seed=seed, device=device)
    x, best = draws(plain), found.best
    w2 = float(metrics.wasserstein2(x, exact_draws(target, n, seed)))
    rows = [
        found.row("W2, best t0 (oracle)", best.value, settings.margin),
        weight_row("rings, best t0 (oracle)", best.x, target, 0.06),
        found.row("W2, all settings left out", w2, settings.margin),
        weight_row("rings, all settings left out", x, target, 0.06),
    ]
    data = found.data() | {"best": best.label, "published re-run": {"SLIPS": 0.19, "error": 0.02}}
    data |= {"sigma found": plain.info["sigma"], "sigma exact": 1.939}
    figure, axes = panels(
        (f"rings, N = {n}", "t0", "W2"),
        (f"draws, {best.label}", "x", "y"),
        ("weights of the rings, line exact", "ring", "weight"),
    )
    found.draw(axes[0])
    axes[1].plot(*best.x.T, ".", ms=1.5, color=CYCLE[0], rasterized=True)
    axes[1].set_aspect("equal")
    axes[2].axhline(1 / 4, color=EXACT, lw=0.8)
    for k, (label, points) in enumerate(((best.label, best.x), ("all left out", x))):
        weights, error = metrics.mode_weights(points[:, None], target)
        axes[2].errorbar(
            torch.arange(1, 5) + 0.1 * (k - 0.5), weights, error, fmt="o", ms=4, capsize=2, lw=1,
            color=CYCLE[k], label=label,
        )  # fmt: skip
    axes[2].set_xticks([1, 2, 3, 4])
    legend(axes[0])
    legend(axes[2])
    return Outcome(rows, data, {"rings.png": functools.partial(save, figure)})


EXPERIMENT = Experiment(
    title="SLIPS on four rings: W2 beside its floor, weights of the rings",
    source=SOURCE,
    settings={
        "quick": Toy(1024, 1024, 0.12),
        "paper": Toy(8192, 1024, 0.08, n_floors=4),
    },
    run=run,
)
