"""Normalising constants from importance weights: log Z, its bounds from both sides, their errors.

With log w = log p(x) - log q(x), p unnormalised and q normalised,

    E_q[log w] <= log Z = log E_q[w] <= E_p[log w],

the evidence lower bound and the evidence upper bound (Blessing, Jia, Esslinger, Vargas and Neumann
2024, arXiv 2406.07423); draws of q that miss a mode leave the first two right for what they saw and
only the last one shows it. Tail index of the weights: Vehtari, Simpson, Gelman, Yao and Gabry (2024),
arXiv 1507.02646, fitted as Zhang and Stephens (2009), doi 10.1198/tech.2009.08017.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysamp.metrics.arrays import relative_weights


def elbo(log_weight: Tensor) -> Tensor:
    """Mean of log p - log q over draws of q, a lower bound of log Z; -inf where p vanishes.

    Shapes: any, all entries are one sample -> ().
    """
    return _mean(log_weight, math.inf)


def eubo(log_weight: Tensor) -> Tensor:
    """Mean of log p - log q over exact draws of p / Z, an upper bound of log Z.

    +inf where q vanishes: q misses a part of p. Needs exact draws; otherwise it bounds nothing.

    Shapes: any, all entries are one sample -> ().
    """
    return _mean(log_weight, -math.inf)


def log_z(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight, and its standard error by the delta method, sd(w) / (mean(w) sqrt(n)).

    The rows are independent: their means are the n terms, so draws inside a row may be correlated.
    The estimate of Z is unbiased, that of log Z low by about error^2 / 2. An error near 1 says that a
    few weights carry the sum and is itself too small then; so is it for `pareto_k` above 0.7. What no
    draw has seen is in no error.

    Shapes: (n,) or (n, draw) -> (), ().
    Error inf for one row or if every weight vanishes (value -inf).
    """
    if log_weight.ndim not in (1, 2):
        raise ValueError(f"log_weight must be (n,) or (n, draw), got {tuple(log_weight.shape)}")
    weight = relative_weights(log_weight).reshape(len(log_weight), -1).mean(1)  # (n,)
    n, mean = len(weight), weight.mean()
    infinite = torch.full_like(mean, math.inf)
    if not mean > 0:
        return -infinite, infinite
    value = log_weight.detach().max().to(torch.float64) + mean.log()
    return value, weight.std() / (mean * math.sqrt(n)) if n > 1 else infinite


def log_z_error(log_weight: Tensor) -> Tensor:
    """The standard error of `log_z` alone.

    Shapes: (n,) or (n, draw) -> ().
    """
    return log_z(log_weight)[1]


def pareto_k(log_weight: Tensor) -> Tensor:
    """Tail index of importance weights: moments of order 1/k and above do not exist.

    Below 0.5 the variance of the weights exists and errors can be believed; above 0.7 (with fewer
    than 2000 weights: above 1 - 1 / log10 n) neither estimates nor errors can. The generalised Pareto
    distribution is fitted to the min(n / 5, 3 sqrt(n)) largest weights, with the conventions of
    ArviZ (`az.psislw`). inf for fewer than 5 weights in the tail, unless all weights are equal: -inf.

    Shapes: any, all entries are one independent sample -> ().
    """
    weight = relative_weights(log_weight).flatten().sort().values
    if bool((weight == weight[0]).all()):
        return torch.full_like(weight[0], -math.inf if weight[0] > 0 else math.inf)
    size = math.ceil(min(len(weight) / 5, 3 * math.sqrt(len(weight))))
    cut = weight[-size - 1] if size < len(weight) else weight[0]
    # Weights below the smallest double are a tail of their own in the logarithm, not here.
    cut = cut.clamp(min=torch.finfo(torch.float64).tiny)
    tail = weight[weight > cut] - cut
    return _pareto_shape(tail) if len(tail) > 4 else torch.full_like(cut, math.inf)


def _pareto_shape(x: Tensor) -> Tensor:
    """Shape k of a generalised Pareto distribution, x (n,) ascending and positive -> ().

    Posterior mean of theta = -k / sigma over a grid with the likelihood profiled over k, then k at
    that theta, drawn to 1/2 with the weight of ten observations.
    """
    n = len(x)
    m = 30 + math.isqrt(n)
    grid = torch.arange(1, m + 1, dtype=torch.float64, device=x.device) - 0.5
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - (m / grid).sqrt()) / (3 * quartile)  # (m,)
    shape = torch.log1p(-theta[:, None] * x).mean(1)
    log_likelihood = n * (torch.log(-theta / shape) - shape - 1)
    k = torch.log1p(-(torch.softmax(log_likelihood, 0) @ theta) * x).mean()
    return (n * k + 5) / (n + 10)


def _mean(log_weight: Tensor, impossible: float) -> Tensor:
    log_weight = log_weight.detach().to(torch.float64)
    if log_weight.numel() == 0 or log_weight.isnan().any() or (log_weight == impossible).any():
        raise ValueError(
            f"log_weight must be non-empty without NaN or {impossible:+}, got "
            f"{tuple(log_weight.shape)} with {int(log_weight.isnan().sum())} NaN and "
            f"{int((log_weight == impossible).sum())} {impossible:+}"
        )
    return log_weight.mean()
