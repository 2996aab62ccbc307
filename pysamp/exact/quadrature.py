"""Moments and weights of unnormalised densities in one and two dimensions by quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp.exact.arguments import require_count, require_interval


@dataclass(frozen=True, eq=False)
class Moments1d:
    log_z: float
    mean: float
    var: float
    cdf: Callable[[Tensor], Tensor]  # distribution function, any shape -> same shape, float64


@dataclass(frozen=True, eq=False)
class Moments2d:
    log_z: float
    mean: Tensor  # (2,)
    cov: Tensor  # (2, 2)
    weight: Callable[
        [Callable[[Tensor], Tensor]], float
    ]  # probability of {x: mask(x)}, mask: (m, 2) -> (m,) bool


def moments_1d(
    log_prob: Callable[[Tensor], Tensor], lo: float, hi: float, n: int = 20001
) -> Moments1d:
    """Simpson's rule for an unnormalised log density on [lo, hi], `log_prob: (n,) -> (n,)`.

    The density outside [lo, hi] counts as zero; inside it must be smooth on the scale of (hi - lo)
    / n. The distribution function interpolates linearly, with an error of order ((hi - lo) / n)^2.
    """
    require_interval(lo, hi)
    require_count("n", n, 5)
    if n % 2 == 0:
        raise ValueError(f"n must be odd for Simpson's rule, got {n}")
    x = torch.linspace(lo, hi, n, dtype=torch.float64)
    dx = (hi - lo) / (n - 1)
    density, shift = _relative_density(log_prob(x), n)
    simpson = torch.full_like(x, 2.0)
    simpson[1::2] = 4.0
    simpson[0] = simpson[-1] = 1.0
    w = density * simpson * (dx / 3)
    z = w.sum()
    mean = (w @ x) / z
    cumulative = torch.cat([x.new_zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)])
    fine, coarse = float(cumulative[-1]), float(density[::2].sum() - (density[0] + density[-1]) / 2)
    if not abs(2 * coarse - fine) <= 1e-3 * fine:
        raise ValueError(f"n must be larger to resolve the density on [{lo}, {hi}], got {n}")
    cumulative = cumulative / cumulative[-1]

    def cdf(t: Tensor) -> Tensor:
        position = ((t.to("cpu", torch.float64) - lo) / dx).clamp(0.0, n - 1.0)
        left = position.floor().clamp(max=n - 2.0)
        i = left.long()
        value = cumulative[i] + (position - left) * (cumulative[i + 1] - cumulative[i])
        return value.clamp(0.0, 1.0).to(t.device)

    return Moments1d(
        log_z=float(z.log()) + shift,
        mean=float(mean),
        var=float((w @ (x - mean) ** 2) / z),
        cdf=cdf,
    )


def moments_2d(
    log_prob: Callable[[Tensor], Tensor],
    lo: tuple[float, float],
    hi: tuple[float, float],
    n: int = 1000,
) -> Moments2d:
    """Midpoint rule on n x n cells of a box for a log density, `log_prob: (m, 2) -> (m,)`.

    The density outside the box counts as zero. Moments converge exponentially in n for a smooth
    density that vanishes at the box's sides; the weight of a region is a sum over the cells whose
    centre lies in it, with an error of the order of the cell size times the density on the region's
    border (of its square if the border runs along cell sides: take n even and the box symmetric for
    a half-plane).
    """
    require_count("n", n, 2)
    for i in range(2):
        require_interval(lo[i], hi[i])
    step = [(hi[i] - lo[i]) / n for i in range(2)]
    axes = [lo[i] + step[i] * (torch.arange(n, dtype=torch.float64) + 0.5) for i in range(2)]
    x = torch.cartesian_prod(*axes)  # (n^2, 2)
    density, shift = _relative_density(log_prob(x), n * n)
    z = density.sum()
    p = density / z
    mean = p @ x
    centred = x - mean

    def weight(mask: Callable[[Tensor], Tensor]) -> float:
        inside = mask(x)
        if inside.shape != p.shape or inside.dtype != torch.bool:
            raise ValueError(
                f"mask must return {tuple(p.shape)} bools, got {tuple(inside.shape)} {inside.dtype}"
            )
        return float(p[inside].sum())

    return Moments2d(
        log_z=float(z.log()) + shift + math.log(step[0] * step[1]),
        mean=mean,
        cov=centred.T @ (p[:, None] * centred),
        weight=weight,
    )


def _relative_density(log_prob: Tensor, n: int) -> tuple[Tensor, float]:
    """exp(log_prob - max) and the maximum, checked."""
    log_prob = log_prob.detach().to("cpu", torch.float64)
    if log_prob.shape != (n,):
        raise ValueError(f"log_prob must return ({n},), got {tuple(log_prob.shape)}")
    shift = float(log_prob.max())
    if not math.isfinite(shift):  # max is NaN if any entry is
        raise ValueError(
            f"log_prob must be below +inf and not -inf everywhere, got maximum {shift}"
        )
    return (log_prob - shift).exp(), shift
