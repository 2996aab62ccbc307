"""What the metrics share: points and weights from their arguments, blocks, random directions.

Samples are (n, *event), flattened to points (n, d) in float64 on their device; log-weights are any
numbers up to a common constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pysamp import rng

BLOCK = 1 << 23  # numbers worked on at once: 64 MiB of float64, a few such buffers live together


def points(name: str, x: Tensor) -> Tensor:
    """Flattened to (n, d) in float64; one-dimensional samples (n,) become (n, 1).

    Raises: ValueError for an empty sample or one that is not finite everywhere.
    """
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"{name} must be (n, *event) and not empty, got shape {tuple(x.shape)}")
    flat = x.detach().reshape(len(x), -1).to(torch.float64)  # (n, d)
    bad = int((~flat.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got {bad} of {len(x)} points with NaN or inf")
    return flat


def pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples as points of the same space, on the device of x."""
    x, y = points("x", x), points("y", y).to(x.device)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have events of one size, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def chains_beside(x: Tensor, exact: Tensor) -> tuple[list[Tensor], Tensor]:
    """One sample (n, *event) or several (chain, n, *event), and another (m, *event), as points."""
    if x.ndim not in (exact.ndim, exact.ndim + 1):
        raise ValueError(
            f"x must be (n, *event) or (chain, n, *event) for exact of shape {tuple(exact.shape)}, "
            f"got {tuple(x.shape)}"
        )
    chains = x[None] if x.ndim == exact.ndim else x
    if len(chains) == 0:
        raise ValueError(f"x must hold a chain, got shape {tuple(x.shape)}")
    pairs = [pair(chain, exact) for chain in chains]
    return [flat for flat, _ in pairs], pairs[0][1]


def relative_weights(log_weight: Tensor, name: str = "log_weight") -> Tensor:
    """exp(log_weight - max) in float64, zero where -inf, and everywhere if all are -inf.

    Raises: ValueError for an empty tensor, NaN or +inf.
    """
    log_weight = log_weight.detach().to(torch.float64)
    if log_weight.numel() == 0 or log_weight.isnan().any() or (log_weight == math.inf).any():
        raise ValueError(
            f"{name} must be non-empty without NaN or +inf, got {tuple(log_weight.shape)} with "
            f"{int(log_weight.isnan().sum())} NaN and {int((log_weight == math.inf).sum())} +inf"
        )
    largest = log_weight.max()
    if largest == -math.inf:
        return torch.zeros_like(log_weight)
    return (log_weight - largest).exp()


def probabilities(name: str, log_weight: Tensor | None, x: Tensor) -> Tensor:
    """Weights (n,) of the n rows of x, of sum 1; equal ones for None.

    Raises: ValueError for another shape, NaN, +inf, or -inf everywhere.
    """
    n = len(x)
    if log_weight is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=x.device)
    if log_weight.shape != (n,):
        raise ValueError(f"{name} must be ({n},), got {tuple(log_weight.shape)}")
    weight = relative_weights(log_weight, name).to(x.device)
    if not weight.sum() > 0:
        raise ValueError(f"{name} must have a finite entry, got -inf everywhere")
    return weight / weight.sum()


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Rows of an (n, width) array in blocks of at most BLOCK numbers."""
    size = max(1, BLOCK // max(1, width))
    for first in range(0, n, size):
        yield slice(first, min(n, first + size))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, shapes (n, d), (m, d) -> (n, m).

    From differences: |x|^2 - 2 x y + |y|^2 loses the distances of near points far from the origin.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def directions(n_directions: int, d: int, seed: int, device: torch.device) -> Tensor:
    """Unit vectors (n_directions, d), uniform on the sphere; a function of the seed."""
    if n_directions < 1:
        raise ValueError(f"n_directions must be at least 1, got {n_directions}")
    z = rng.normal((n_directions, d), seed=seed, stream="check", step=1, dtype=torch.float64)
    return (z / torch.linalg.vector_norm(z, dim=1, keepdim=True)).to(device)


def mean_over_directions(
    distance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    n_directions: int,
    seed: int,
    log_weight_x: Tensor | None,
    log_weight_y: Tensor | None,
) -> Tensor:
    """Mean over random unit vectors u of the distances of u . x and u . y.

    distance: points on lines (k, n) with weights (n,), (k, m) with weights (m,) -> (k,).
    """
    x, y = pair(x, y)
    a = probabilities("log_weight_x", log_weight_x, x)
    b = probabilities("log_weight_y", log_weight_y, y)
    along = directions(n_directions, x.shape[1], seed, x.device)
    total = x.new_zeros(())
    for rows in row_blocks(n_directions, 4 * (len(x) + len(y))):
        total += distance(along[rows] @ x.T, a, along[rows] @ y.T, b).sum()
    return total / n_directions


def check_draws(x: Tensor) -> None:
    if x.ndim < 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"x must be (chain, draw, *event), got {tuple(x.shape)}")
