"""Metrics against exact draws of a target: how right each mode is inside, and what noise alone gives.

Weights of modes can be right for wrong reasons; `within_modes` looks at what each mode holds, as
Grenioux, Noble and Gabrie (2025, arXiv 2504.08916) ask. `noise_floor` is the value that a metric has
for exact draws: a sampler cannot be told from a perfect one below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp.capabilities import HasModes, HasSampler
from pysamp.metrics.arrays import points, probabilities
from pysamp.metrics.distances import ks_statistic
from pysamp.metrics.weights import ess_weights


@dataclass(frozen=True, eq=False)
class WithinModes:
    """Each mode of a sample against exact draws of that mode; NaN where it has fewer than 2 draws.

    n (k,): draws in the mode. ess (k,): their Kish effective number. shift (k, d): mean minus exact
    mean, in exact standard deviations. variance_ratio (k, d): variance over exact variance. ks (k, 2):
    Kolmogorov-Smirnov distance of the coordinates with the smallest and the largest exact variance.
    n_exact (k,): exact draws compared with. For independent draws the noise of an entry is about
    sqrt(v), sqrt(2 v) and 0.87 sqrt(v) (in the mean), v = 1 / ess + 1 / n_exact, Gaussian modes.
    """

    n: Tensor
    ess: Tensor
    shift: Tensor
    variance_ratio: Tensor
    ks: Tensor
    n_exact: Tensor

    @property
    def worst_shift(self) -> Tensor:
        """Largest |shift| over the coordinates, (k,)."""
        return self.shift.abs().amax(1)

    @property
    def ratio_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest variance ratio over the coordinates, (k,), (k,)."""
        return self.variance_ratio.amin(1), self.variance_ratio.amax(1)


def within_modes(
    x: Tensor,
    target: HasModes,
    *,
    log_weight: Tensor | None = None,
    n_exact: int = 65536,
    seed: int = 0,
) -> WithinModes:
    """Compare the draws in every mode with exact draws of the target in that mode.

    Shapes: x (n, *event), log_weight (n,).
    Memory: n_exact events in float64.
    Raises: TypeError for a target without modes or without exact draws; ValueError for bad samples,
    and where fewer than 2 exact draws fall into a mode.
    """
    if not isinstance(target, HasModes) or not isinstance(target, HasSampler):
        raise TypeError(
            "target must have mode_weights, mode(x) and exact draws sample(n, seed=...), got "
            f"{type(target).__name__}"
        )
    flat = points("x", x)
    weight = probabilities("log_weight", log_weight, x)
    exact = target.sample(n_exact, seed=seed).to(x.device)
    if exact.shape[1:] != x.shape[1:]:
        raise ValueError(f"x must be (n, *{tuple(exact.shape[1:])}), got {tuple(x.shape)}")
    label, exact_label = target.mode(x), target.mode(exact)
    exact = points("target.sample", exact)
    k, d = len(target.mode_weights), flat.shape[1]
    n = torch.zeros(k, dtype=torch.int64, device=x.device)
    n_of_exact, ess = torch.zeros_like(n), flat.new_zeros(k)
    shift, ratio = flat.new_full((k, d), math.nan), flat.new_full((k, d), math.nan)
    ks = flat.new_full((k, 2), math.nan)
    for mode in range(k):
        reference = exact[exact_label == mode]
        if len(reference) < 2:
            raise ValueError(
                f"n_exact must be larger: mode {mode} of weight {float(target.mode_weights[mode]):.3g} "
                f"holds {len(reference)} of {n_exact} exact draws"
            )
        inside = (label == mode) & (weight > 0)
        n[mode], n_of_exact[mode] = inside.sum(), len(reference)
        if n[mode] < 2:
            ess[mode] = n[mode]
            continue
        draws, log_w = flat[inside], weight[inside].log()
        mean, variance, effective = _moments(draws, log_w)
        exact_mean, exact_variance, _ = _moments(reference, flat.new_zeros(len(reference)))
        ess[mode] = effective
        shift[mode] = (mean - exact_mean) / exact_variance.sqrt()
        ratio[mode] = variance / exact_variance
        extremes = (int(exact_variance.argmin()), int(exact_variance.argmax()))
        for place, j in enumerate(extremes):
            ks[mode, place] = ks_statistic(draws[:, j], reference[:, j], log_weight_x=log_w)
    return WithinModes(n, ess, shift, ratio, ks, n_of_exact)


def _moments(x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), variance (d,) with the factor ess / (ess - 1), effective number ()."""
    weight = torch.softmax(log_weight, 0)
    ess = ess_weights(log_weight)
    mean = weight @ x
    return mean, weight @ (x - mean).square() * ess / (ess - 1), ess


@dataclass(frozen=True)
class Floor:
    """A metric of pairs of exact samples: mean, lowest and highest value, all values."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


def noise_floor(
    metric: Callable[..., Tensor | float],
    target: HasSampler,
    n: int,
    *,
    repeats: int = 8,
    seed: int = 0,
    device: torch.device | str | None = None,
    **options: Any,
) -> Floor:
    """metric(x, y, **options) of two independent exact samples of size n, `repeats` times.

    Repeat r takes 2 n draws of seed + r and splits them.

    Raises: TypeError for a target without exact draws; ValueError for n or repeats below 1.
    """
    if not isinstance(target, HasSampler):
        raise TypeError(
            f"target must have exact draws sample(n, seed=...), got {type(target).__name__}"
        )
    for name, value in (("n", n), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    values = []
    for repeat in range(repeats):
        both = target.sample(2 * n, seed=seed + repeat).to(device)
        values.append(float(metric(both[:n], both[n:], **options)))
    return Floor(sum(values) / repeats, min(values), max(values), tuple(values))
