"""Kernel distances: maximum mean discrepancy of two samples, kernel Stein discrepancy of one.

MMD: Gretton, Borgwardt, Rasch, Schoelkopf and Smola (2012), Journal of Machine Learning Research 13,
with the Gaussian kernel exp(-|x - y|^2 / (2 bandwidth^2)). KSD: Liu, Lee and Jordan (2016), arXiv
1602.03253, with the inverse multiquadric kernel (scale^2 + |x - y|^2)^exponent of Gorham and Mackey
(2017), arXiv 1703.01717, which detects samples that do not converge.

Samples are (n, *event) with weights exp(log_weight) normalised to a probability, equal if None;
results are float64 on the device of x. Time is n m kernels; memory is that of a block of rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysamp.metrics.arrays import pair, points, probabilities, row_blocks, squared_distances

_MEDIAN_POINTS = 2000  # whose distances the median is taken of


def mmd(
    x: Tensor, y: Tensor, bandwidth: float | None = None, *,
    log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Maximum mean discrepancy of two weighted samples: the distance of their kernel means.

    Not negative, 0 for equal samples, and about sqrt((1 - E k) (1/n + 1/m)) for samples of one
    density (`mmd_squared` has no such bias). A bandwidth of None is `median_distance(y)`: pass the
    exact draws as y, so that all samplers meet one kernel.

    Shapes: x (n, *event), y (m, *event) -> ().
    """
    x, a, y, b, bandwidth = _prepared(x, log_weight_x, y, log_weight_y, bandwidth)
    within = _mean_kernel(x, a, x, a, bandwidth) + _mean_kernel(y, b, y, b, bandwidth)
    return (within - 2 * _mean_kernel(x, a, y, b, bandwidth)).clamp(min=0.0).sqrt()


def mmd_squared(
    x: Tensor, y: Tensor, bandwidth: float | None = None, *,
    log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Unbiased estimate of the squared discrepancy (U-statistic): pairs of distinct points only.

    Its mean is 0 for samples of one density, so it is often negative. Unbiased for equal weights;
    with importance weights up to the usual 1 / ess of a ratio.

    Shapes: x (n, *event), y (m, *event), n and m at least 2 -> ().
    """
    x, a, y, b, bandwidth = _prepared(x, log_weight_x, y, log_weight_y, bandwidth)
    within = x.new_zeros(())
    for name, z, weight in (("x", x, a), ("y", y, b)):
        within += _off_diagonal(name, _mean_kernel(z, weight, z, weight, bandwidth), weight, weight)
    return within - 2 * _mean_kernel(x, a, y, b, bandwidth)


def median_distance(x: Tensor) -> float:
    """Median distance of pairs of x, of at most 2000 points evenly spaced among its rows.

    Shapes: x (n, *event), n at least 2.
    Raises: ValueError if half of the points coincide.
    """
    flat = points("x", x)
    if len(flat) < 2:
        raise ValueError(f"x must hold at least 2 points, got {len(flat)}")
    number = min(len(flat), _MEDIAN_POINTS)
    chosen = flat[torch.linspace(0, len(flat) - 1, number, dtype=torch.float64).round().long()]
    i, j = torch.triu_indices(number, number, 1, device=flat.device)
    median = math.sqrt(float(squared_distances(chosen, chosen)[i, j].median()))
    if not median > 0:
        raise ValueError("x must not hold mostly equal points: their median distance is 0")
    return median


def ksd(
    x: Tensor, score: Tensor, *, log_weight: Tensor | None = None, scale: float = 1.0,
    exponent: float = -0.5,
) -> Tensor:  # fmt: skip
    """Kernel Stein discrepancy of a weighted sample from the density that has this score.

    No exact draws are needed, but it hardly sees the relative weights of modes that lie apart: the
    score does not know them. Not negative (V-statistic), of order 1 / sqrt(n) for exact draws.

    Shapes: x (n, *event), score the gradient of log_prob at x, same shape -> ().
    Raises: ValueError for bad shapes or numbers, `exponent` outside (-1, 0), `scale` not positive.
    """
    x, s, weight = _stein(x, score, log_weight, scale, exponent)
    return _mean_stein(x, s, weight, scale, exponent)[0].clamp(min=0.0).sqrt()


def ksd_squared(
    x: Tensor, score: Tensor, *, log_weight: Tensor | None = None, scale: float = 1.0,
    exponent: float = -0.5,
) -> Tensor:  # fmt: skip
    """Unbiased estimate of the squared Stein discrepancy (U-statistic), of mean 0 for exact draws.

    Shapes, errors: as `ksd`, with 2 points or more.
    """
    x, s, weight = _stein(x, score, log_weight, scale, exponent)
    mean, own = _mean_stein(x, s, weight, scale, exponent)
    return _off_diagonal("x", mean, weight, weight * own)


def _off_diagonal(name: str, mean: Tensor, weight: Tensor, diagonal: Tensor) -> Tensor:
    """Mean over distinct pairs, from that over all: `diagonal` is weight_i k(x_i, x_i)."""
    rest = 1 - weight.square().sum()
    if len(weight) < 2 or not rest > 1e-12:
        raise ValueError(f"{name} must hold at least 2 points of weight, got {len(weight)} points")
    return (mean - (weight * diagonal).sum()) / rest


def _prepared(
    x: Tensor, log_weight_x: Tensor | None, y: Tensor, log_weight_y: Tensor | None,
    bandwidth: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:  # fmt: skip
    x, y = pair(x, y)
    bandwidth = median_distance(y) if bandwidth is None else float(bandwidth)
    if not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth must be positive and finite, got {bandwidth}")
    a = probabilities("log_weight_x", log_weight_x, x)
    b = probabilities("log_weight_y", log_weight_y, y)
    return x, a, y, b, bandwidth


def _mean_kernel(x: Tensor, a: Tensor, y: Tensor, b: Tensor, bandwidth: float) -> Tensor:
    """sum_ij a_i b_j k(x_i, y_j)."""
    total = x.new_zeros(())
    for rows in row_blocks(len(x), len(y)):
        kernel = torch.exp(squared_distances(x[rows], y) / (-2 * bandwidth**2))
        total += a[rows] @ kernel @ b
    return total


def _stein(
    x: Tensor, score: Tensor, log_weight: Tensor | None, scale: float, exponent: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if not -1 < exponent < 0:
        raise ValueError(f"exponent must lie in (-1, 0), got {exponent}")
    if score.shape != x.shape:
        raise ValueError(
            f"score must have the shape of x, {tuple(x.shape)}, got {tuple(score.shape)}"
        )
    x, s = points("x", x), points("score", score).to(x.device)
    # Centred: differences of positions are formed by products below, and lose digits far out.
    return x - x.mean(0), s, probabilities("log_weight", log_weight, x)


def _mean_stein(
    x: Tensor, s: Tensor, weight: Tensor, scale: float, exponent: float
) -> tuple[Tensor, Tensor]:
    """sum_ij w_i w_j k_p(x_i, x_j), and k_p(x_i, x_i) (n,).

    With u = scale^2 + r^2 and k = u^exponent,

        k_p = k s_i . s_j + 2 c u^(c-1) (s_j - s_i) . (x_i - x_j) - 2 c d u^(c-1)
              - 4 c (c - 1) u^(c-2) r^2,      c = exponent.
    """
    c, d = exponent, x.shape[1]
    own = (s * x).sum(1)  # s_i . x_i
    total = x.new_zeros(())
    for rows in row_blocks(len(x), 4 * len(x)):
        square = squared_distances(x[rows], x)
        u = scale**2 + square
        # (s_j - s_i) . (x_i - x_j)
        turn = x[rows] @ s.T + s[rows] @ x.T - own - own[rows, None]
        kernel = u**c * (s[rows] @ s.T) + 2 * c * u ** (c - 1) * (turn - d)
        kernel -= 4 * c * (c - 1) * u ** (c - 2) * square
        total += weight[rows] @ kernel @ weight
    diagonal = scale ** (2 * c) * s.square().sum(1) - 2 * c * d * scale ** (2 * c - 2)
    return total, diagonal
