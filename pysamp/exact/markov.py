"""Finite Markov chains: the stationary distribution of a transition matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def stationary_distribution(matrix: Tensor) -> Tensor:
    """The stationary distribution of an irreducible row-stochastic matrix.

    Grassmann, Taksar and Heyman's (1985) elimination: no subtraction, so every entry is accurate
    relative to itself.

    Shapes: (k, k) -> (k,).
    Raises ValueError if the matrix is not row-stochastic to 1e-9, or if some state cannot be
    reached from another.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"matrix must be (k, k), got {tuple(matrix.shape)}")
    p = matrix.detach().to(torch.float64).clone()
    k = len(p)
    if not bool((p >= 0).all()):
        raise ValueError(f"matrix must have entries of at least 0, got {float(p.min())}")
    worst = (p.sum(1) - 1).abs().max()
    if not worst <= 1e-9:
        raise ValueError(f"matrix must have rows that sum to 1, got one off by {float(worst):.3g}")
    reached = ((p > 0) | torch.eye(k, dtype=torch.bool, device=p.device)).double()
    for _ in range(max(1, (k - 1).bit_length())):
        reached = (reached @ reached > 0).double()  # paths of twice the length
    if not bool(reached.all()):
        source, sink = (int(i) for i in (reached == 0).nonzero()[0])
        raise ValueError(f"matrix must be irreducible, got no path from state {source} to {sink}")
    for n in range(k - 1, 0, -1):
        p[:n, n] /= p[n, :n].sum()
        p[:n, :n] += torch.outer(p[:n, n], p[n, :n])
    pi = torch.ones_like(p[0])
    for n in range(1, k):
        pi[n] = pi[:n] @ p[:n, n]
    return pi / pi.sum()
