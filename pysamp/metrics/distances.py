"""Distances of distribution functions on the line and on random directions, and of variances.

Kolmogorov-Smirnov statistics of weighted samples, and the two quantities by which Grenioux, Noble,
Gabrie and Durmus, Stochastic localization via iterative posterior sampling (2024, arXiv 2402.10758)
judge samples of the funnel and of two modes, as their code computes them: `sliced_ks_histogram` and
`variance_gap`.

Samples are (n, *event) with weights exp(log_weight) normalised to a probability, equal if None;
results are float64 on the device of x.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pysamp.metrics.arrays import (
    chains_beside,
    directions,
    mean_over_directions,
    pair,
    probabilities,
    row_blocks,
)


def ks_statistic(
    x: Tensor, y: Tensor, *, log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None
) -> Tensor:
    """Two-sample Kolmogorov-Smirnov distance sup |F_x - F_y| of empirical distributions.

    Shapes: (n,), (m,), on the line; infinities are ranked like any value -> ().
    """
    _check_line("x", x)
    _check_line("y", y)
    a = probabilities("log_weight_x", log_weight_x, x)
    b = probabilities("log_weight_y", log_weight_y, y).to(x.device)
    return _ks(x.detach()[None].double(), a, y.detach()[None].to(x.device, torch.float64), b)[0]


def ks_against(
    x: Tensor, cdf: Callable[[Tensor], Tensor], *, log_weight: Tensor | None = None
) -> Tensor:
    """One-sample Kolmogorov-Smirnov distance of x from `cdf: (n,) -> (n,)`.

    Shapes: (n,) -> ().
    """
    _check_line("x", x)
    x, order = x.detach().to(torch.float64).sort()
    f = cdf(x).to(torch.float64)
    if f.shape != x.shape or not bool(((f >= 0) & (f <= 1)).all()):
        raise ValueError(
            f"cdf must return {tuple(x.shape)} values in [0, 1], got {tuple(f.shape)} "
            f"in [{float(f.min())}, {float(f.max())}]"
        )
    above = probabilities("log_weight", log_weight, x)[order].cumsum(0)
    below = torch.cat([above.new_zeros(1), above[:-1]])
    return torch.maximum((above - f).amax(), (f - below).amax())


def sliced_ks(
    x: Tensor, y: Tensor, n_directions: int = 128, seed: int = 0, *,
    log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean over random directions u of the Kolmogorov-Smirnov distance of u . x and u . y.

    The directions are a function of the seed and uniform on the sphere; no binning.

    Shapes: x (n, *event), y (m, *event) -> ().
    """
    return mean_over_directions(_ks, x, y, n_directions, seed, log_weight_x, log_weight_y)


def sliced_ks_histogram(
    x: Tensor, exact: Tensor, n_directions: int = 128, n_bins: int = 256, seed: int = 0, *,
    log_weight_x: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The sliced KS distance of Grenioux et al. (2024): histograms over the range of exact draws.

    On each direction both samples are counted in `n_bins` bins between the extreme values of
    `exact`; what falls outside is dropped and the rest normalised, so heavy tails beyond the exact
    ones are not seen (`sliced_ks` sees them). The maximum of the difference of the cumulative sums is
    averaged over the directions. A direction with no draw in range counts 1.

    Shapes: x (n, *event), or (chain, n, *event) for one value a chain; exact (m, *event); log_weight_x
    (n,), the same for all chains -> () or (chain,).
    Raises: ValueError for bad samples, or exact draws that do not differ.
    """
    if n_bins < 2:
        raise ValueError(f"n_bins must be at least 2, got {n_bins}")
    single = x.ndim == exact.ndim
    flats, exact = chains_beside(x, exact)
    a = probabilities("log_weight_x", log_weight_x, flats[0])
    equal = probabilities("exact", None, exact)
    along = directions(n_directions, exact.shape[1], seed, exact.device)
    total = exact.new_zeros(len(flats))
    for rows in row_blocks(n_directions, 4 * (len(flats[0]) + len(exact))):
        on_exact = along[rows] @ exact.T  # (k, m)
        low, high = on_exact.amin(1, keepdim=True), on_exact.amax(1, keepdim=True)
        if not bool((high > low).all()):
            raise ValueError(f"exact must hold draws that differ, got {len(exact)} equal ones")
        g = _binned(on_exact, equal, low, high, n_bins)
        for c, flat in enumerate(flats):
            f = _binned(along[rows] @ flat.T, a, low, high, n_bins)
            seen = f[:, -1] > 0
            apart = (f / f[:, -1:] - g / g[:, -1:]).abs().amax(1)
            total[c] += torch.where(seen, apart, torch.ones_like(apart)).sum()
    mean = total / n_directions
    return mean[0] if single else mean


def variance_gap(
    x: Tensor, y: Tensor, *, log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None
) -> Tensor:
    """|sqrt(tr Cov(x) / d) - sqrt(tr Cov(y) / d)|, what Grenioux et al. (2024) call sliced W2.

    It compares total variances only: samples of other means or modes can have a gap of zero.

    Shapes: x (n, *event), y (m, *event) -> ().
    """
    x, y = pair(x, y)
    scales = []
    for z, weight in (
        (x, probabilities("log_weight_x", log_weight_x, x)),
        (y, probabilities("log_weight_y", log_weight_y, y)),
    ):
        centred = z - weight @ z
        scales.append((weight @ centred.square()).mean().sqrt())
    return (scales[0] - scales[1]).abs()


def _ks(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """Largest distance of the distribution functions, (k, n), (n,), (k, m), (m,) -> (k,)."""
    (x, order_x), (y, order_y) = x.sort(1), y.sort(1)
    both = torch.cat([x, y], 1)  # (k, n + m): the difference is constant between these
    return (_cdf(x, a[order_x], both) - _cdf(y, b[order_y], both)).abs().amax(1)


def _cdf(ordered: Tensor, weight: Tensor, at: Tensor) -> Tensor:
    """Mass of the points at or below each of `at`, (k, n), (k, n), (k, p) -> (k, p)."""
    mass = torch.cat([weight.new_zeros(len(weight), 1), weight.cumsum(1)], 1)  # (k, n + 1)
    return mass.gather(1, torch.searchsorted(ordered, at, right=True))


def _binned(x: Tensor, weight: Tensor, low: Tensor, high: Tensor, n_bins: int) -> Tensor:
    """Cumulative sums of the mass in equal bins of [low, high], (k, n) -> (k, n_bins)."""
    place = ((x - low) / (high - low) * n_bins).floor().clamp(-1, n_bins).long()
    place = torch.where(x == high, n_bins - 1, place)  # the last bin is closed
    inside = (x >= low) & (x <= high)
    place = place.clamp(0, n_bins - 1)
    mass = torch.where(inside, weight.expand_as(x), torch.zeros_like(x))
    counts = x.new_zeros(len(x), n_bins).scatter_add_(1, place, mass)
    return counts.cumsum(1)


def _check_line(name: str, x: Tensor) -> None:
    if x.ndim != 1 or len(x) == 0 or x.isnan().any():
        raise ValueError(
            f"{name} must be a non-empty 1-d sample without NaN, got shape {tuple(x.shape)}"
        )
