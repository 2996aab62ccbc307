"""Schedules of the observation process of stochastic localisation, and the grids of times on them.

    Y_t = α(t) X + σ W_t,   α(t) = √t g(t),   t in (0, T_gen)

g² grows from 0 to ∞; with σ² the variance of X per coordinate it is the signal-to-noise ratio of Y_t.
Times are equidistant in log g². All numbers are float64 on the host; what would lose digits near T_gen
is computed from g², never from 1 − t. Source: Grenioux, Noble, Gabrié, Durmus, Stochastic localization
via iterative posterior sampling (2024), arXiv 2402.10758, section 3, with the constants of the
conditions of log-concavity derived anew.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """An observation process by its g²; t is a float or a float64 tensor."""

    @property
    def t_gen(self) -> float:
        """Where g² is infinite."""

    def snr(self, t: Tensor) -> Tensor:
        """g²(t)."""

    def time(self, snr: Tensor) -> Tensor:
        """The inverse of `snr`."""

    def d_alpha(self, t: Tensor) -> Tensor:
        """α′(t)."""

    def noise(self, t0: Tensor, t1: Tensor) -> Tensor:
        """V = α(t₁)² ∫ dt / α² from t₀ to t₁: variance of a step of the linear part, in units of σ²."""


def alpha(schedule: Schedule, t: Tensor) -> Tensor:
    """α(t) = √(t g²(t))."""
    return (t * schedule.snr(t)).sqrt()


def _checked(name: str, value: float, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (least <= value < math.inf):
        raise ValueError(f"{name} must be finite and at least {least:g}, got {value}")


@dataclass(frozen=True)
class Geometric:
    """g² = tᵃ (1 − t)⁻ᵇ on (0, 1): Geom(a, b) of the paper, a ≥ 1, b > 0."""

    a: float = 1.0
    b: float = 1.0

    def __post_init__(self) -> None:
        _checked("a", self.a, 1.0)
        _checked("b", self.b, 0.0)
        if self.b == 0:
            raise ValueError("b must be positive, got 0: GeometricInfinite has b = 0")

    @property
    def t_gen(self) -> float:
        return 1.0

    def snr(self, t: Tensor) -> Tensor:
        return t**self.a * (1 - t) ** (-self.b)

    def time(self, snr: Tensor) -> Tensor:
        if (self.a, self.b) == (1, 1):
            return snr / (1 + snr)
        if (self.a, self.b) == (2, 1):
            return 2 / (1 + (1 + 4 / snr).sqrt())  # (−v + √(v² + 4v))/2 without a difference
        return _bisect(self.snr, snr)

    def d_alpha(self, t: Tensor) -> Tensor:
        return alpha(self, t) * ((self.a + 1) / t + self.b / (1 - t)) / 2

    def noise(self, t0: Tensor, t1: Tensor) -> Tensor:
        if self.b != 1 or self.a not in (1, 2):
            return _quadrature(self, t0, t1)
        if self.a == 1:
            integral = (1 / t0 - 1 / t1) - (t1 / t0).log()
        else:
            integral = (1 / t0**2 - 1 / t1**2) / 2 - (1 / t0 - 1 / t1)
        return alpha(self, t1) ** 2 * integral


@dataclass(frozen=True)
class GeometricInfinite:
    """g² = tᵃ on (0, ∞): Geom-∞(a), a ≥ 1."""

    a: float = 2.0

    def __post_init__(self) -> None:
        _checked("a", self.a, 1.0)

    @property
    def t_gen(self) -> float:
        return math.inf

    def snr(self, t: Tensor) -> Tensor:
        return t**self.a

    def time(self, snr: Tensor) -> Tensor:
        return snr ** (1 / self.a)

    def d_alpha(self, t: Tensor) -> Tensor:
        return (self.a + 1) / 2 * t ** ((self.a - 1) / 2)

    def noise(self, t0: Tensor, t1: Tensor) -> Tensor:
        return t1 * torch.expm1(self.a * (t1 / t0).log()) / self.a


@dataclass(frozen=True)
class Standard(GeometricInfinite):
    """g² = t: classical stochastic localisation, α(t) = t."""

    a: float = 1.0

    def __post_init__(self) -> None:
        if self.a != 1:
            raise ValueError(f"a must be 1, got {self.a}: GeometricInfinite has another")


def _bisect(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """t in (0, 1) with function(t) = value, of an increasing function, to the last bits."""
    low, high = torch.zeros_like(value), torch.ones_like(value)
    for _ in range(200):
        middle = (low + high) / 2
        below = function(middle) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _quadrature(schedule: Schedule, t0: Tensor, t1: Tensor, n: int = 64) -> Tensor:
    """V by Gauss–Legendre in log t, in which 1/α² is smooth for steps of a grid in log g²."""
    nodes, weights = _legendre(n)
    half = (t1 / t0).log() / 2
    t = t0[..., None] * torch.exp(half[..., None] * (1 + nodes))
    integral = half * (weights * t / alpha(schedule, t) ** 2).sum(-1)
    return alpha(schedule, t1) ** 2 * integral


def _legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [−1, 1] from the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, 2 * vectors[0] ** 2


@dataclass(frozen=True, eq=False)
class Grid:
    """K times, float64 (K,): t_k, g²(t_k) and α(t_k)."""

    t: Tensor
    snr: Tensor
    alpha: Tensor


def snr_grid(schedule: Schedule, t0: float, t_end: float, n_times: int) -> Grid:
    """n_times times from t0 to t_end with equal increments of log g².

    Raises ValueError for t0 outside (0, T_gen), t_end not in (t0, T_gen), fewer than 2 times.
    """
    if isinstance(n_times, bool) or not isinstance(n_times, int) or n_times < 2:
        raise ValueError(f"n_times must be an integer of at least 2, got {n_times}")
    check_time(schedule, t0)
    if not t0 < t_end < schedule.t_gen:
        raise ValueError(
            f"t_end must lie in (t0, T_gen) = ({t0:g}, {schedule.t_gen:g}), got {t_end}"
        )
    ends = torch.tensor([t0, t_end], dtype=torch.float64)
    first, last = schedule.snr(ends).log().tolist()
    snr = torch.linspace(first, last, n_times, dtype=torch.float64).exp()
    t = schedule.time(snr)
    return Grid(t, snr, (t * snr).sqrt())


def check_time(schedule: Schedule, t: float, name: str = "t0") -> None:
    if isinstance(t, (bool, str)) or not 0 < t < schedule.t_gen:
        raise ValueError(f"{name} must lie in (0, T_gen) = (0, {schedule.t_gen:g}), got {t}")


def log_concave_times(
    schedule: Schedule, sigma: float, R: float, tau: float
) -> tuple[float, float]:
    """(t_q, t_p): posteriors of X are log-concave from t_q on, the law of Y_t up to t_p.

    For X = U + N with |U| ≤ R and N ~ N(0, τ²): g²(t_q) = σ² (R² − τ²)/τ⁴ and g²(t_p) = σ²/(R² − τ²).
    A start between the two has a guarantee; there is such a time if R² ≤ 2τ².

    Raises ValueError unless 0 < τ < R and σ > 0.
    """
    if not 0 < tau < R < math.inf:
        raise ValueError(f"tau must lie in (0, R), got tau={tau}, R={R}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    gap = R**2 - tau**2
    snr = torch.tensor([sigma**2 * gap / tau**4, sigma**2 / gap], dtype=torch.float64)
    t_q, t_p = schedule.time(snr).tolist()
    return t_q, t_p


_NUMBER = r"\s*(\d+\.?\d*)\s*"
_NAMES = re.compile(rf"(standard)|geom\({_NUMBER},{_NUMBER}\)|geom-inf\({_NUMBER}\)")


def schedule_of(schedule: Schedule | str) -> Schedule:
    """A schedule, or the one of a name: "standard", "geom(a, b)", "geom-inf(a)". Raises for others."""
    if isinstance(schedule, str):
        found = _NAMES.fullmatch(schedule.strip().lower())
        if found is not None:
            standard, a, b, infinite = found.groups()
            if standard:
                return Standard()
            return GeometricInfinite(float(infinite)) if infinite else Geometric(float(a), float(b))
    elif isinstance(schedule, Schedule) and not isinstance(schedule, type):
        return schedule
    raise ValueError(
        f'schedule must be "standard", "geom(a, b)", "geom-inf(a)" or a Schedule, got {schedule!r}'
    )
