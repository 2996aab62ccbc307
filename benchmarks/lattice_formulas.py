"""The moves of lattice sites as peers write them: one text for torch.compile and for JAX.

A move takes `xp` (torch or jax.numpy), lists of arrays (chains, *half of the lattice) - the old values of
the m components at the sites of one colour, the sums over their neighbours, uniforms, normals - and
the couplings; it returns the new components. (Components as one array cost XLA a factor of eight,
where its fusions then end.) Wherever there is a choice, a
peer has the cheapest proposal that leaves the density invariant: fresh directions for Heisenberg
spins, both components of a soft spin at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pysamp.targets import ON, Phi4, SoftON


@dataclass(frozen=True)
class Couplings:
    """Of φ⁴: κ, λ; of spins: β; of soft spins: ½(2d + r) and u/4n; δ of the proposals."""

    kappa: float = 0.0
    lam: float = 0.0
    beta: float = 0.0
    square: float = 0.0
    quartic: float = 0.0
    width: float = 0.0

    @classmethod
    def of(cls, target: Any, width: float = 0.0) -> Couplings:
        if isinstance(target, Phi4):
            return cls(kappa=target.kappa, lam=target.lam, width=width)
        if isinstance(target, SoftON):
            square = len(target.shape) + target.r / 2
            return cls(square=square, quartic=target.u / (4 * target.n), width=width)
        if isinstance(target, ON):
            return cls(beta=target.beta, width=width)
        raise TypeError(f"target must be Phi4, SoftON or ON, got {type(target).__name__}")

    def envelope(self) -> tuple[float, float, float]:
        """A, B and the least C of the heat bath of φ⁴: exp(−A v² − B v⁴ + b v), b = 2κ Σ φ_y.

        v is drawn from exp(−(A + 2BC) v² + b v) and kept with probability exp(−B (v² − C)²).
        """
        a, b = 1 - 2 * self.lam, self.lam
        return a, b, 1 / (a + math.sqrt(a * a + 4 * b))


Move = Callable[..., Any]


def _dot(a: Any, b: Any) -> Any:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _take(xp: Any, move: Any, new: Any, old: Any) -> list[Any]:
    return [xp.where(move, a, b) for a, b in zip(new, old, strict=True)]


def _gain(new: Any, old: Any, around: Any) -> Any:
    return sum((a - b) * h for a, b, h in zip(new, old, around, strict=True))


def phi4_metropolis(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    (phi,), (h,) = old, around
    new = phi + c.width * (2 * u[0] - 1)
    inner = (new + phi) * (1 + c.lam * (new * new + phi * phi - 2)) - 2 * c.kappa * h
    return _take(xp, xp.log(u[1]) < (phi - new) * inner, [new], old)


def phi4_heat_bath(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    a, b, least = c.envelope()
    pull = 2 * c.kappa * around[0]
    v = abs(pull) * least  # the mode, by two steps of Newton's method
    for _ in range(2):
        v2 = v * v
        v = (8 * b * v * v2 + abs(pull)) / (12 * b * v2 + 2 * a)
    centre = xp.where(v * v > least, v * v, least)
    precision = a + 2 * b * centre
    new = 0.5 * pull / precision + xp.sqrt(0.5 / precision) * xi[0]
    gap = new * new - centre
    return _take(xp, xp.log(u[0]) < -b * gap * gap, [new], old)


def ising_metropolis(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    return _take(xp, u[0] < xp.exp(-2 * c.beta * around[0] * old[0]), [-old[0]], old)


def ising_heat_bath(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    return [xp.where(u[0] * (1 + xp.exp(-2 * c.beta * around[0])) < 1, 1.0, -1.0)]


def xy_metropolis(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    angle = c.width * (2 * u[0] - 1)
    cos, sin = xp.cos(angle), xp.sin(angle)
    new = [old[0] * cos - old[1] * sin, old[0] * sin + old[1] * cos]
    return _take(xp, xp.log(u[1]) < c.beta * _gain(new, old, around), new, old)


def xy_heat_bath(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    """One try of Best and Fisher, from a wrapped Cauchy density."""
    norm = xp.sqrt(_dot(around, around))
    k = c.beta * norm
    tau = 1 + xp.sqrt(1 + 4 * k * k)
    angle = math.pi * (2 * u[0] - 1)
    z = xp.cos(angle)
    d = 2 * k * z + tau
    f = (tau * z + 2 * k) / d
    g = xp.sqrt(2 * tau) * xp.sin(angle) / d
    w = tau / 2 - k * f
    e = [h / norm for h in around]
    new = [e[0] * f - e[1] * g, e[1] * f + e[0] * g]
    return _take(xp, xp.log(u[1]) < xp.log(w) + 1 - w, new, old)


def heisenberg_metropolis(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    z = 2 * u[0] - 1
    rho, angle = xp.sqrt(1 - z * z), 2 * math.pi * u[1]
    new = [rho * xp.cos(angle), rho * xp.sin(angle), z]
    return _take(xp, xp.log(u[2]) < c.beta * _gain(new, old, around), new, old)


def heisenberg_heat_bath(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    norm = xp.sqrt(_dot(around, around))
    k = c.beta * norm
    w = 1 + xp.log(u[0] + (1 - u[0]) * xp.exp(-2 * k)) / k
    rho, angle = xp.sqrt((1 - w * w).clip(0)), 2 * math.pi * u[1]
    p, m = rho * xp.cos(angle), rho * xp.sin(angle)
    e = [h / norm for h in around]
    sign = xp.where(e[2] < 0, -1.0, 1.0)  # the frame around e of Duff et al., JCGT 6, 1 (2017)
    a = -1 / (sign + e[2])
    b = e[0] * e[1] * a
    return [
        e[0] * w + (1 + sign * e[0] * e[0] * a) * p + b * m,
        e[1] * w + sign * b * p + (sign + e[1] * e[1] * a) * m,
        e[2] * w - sign * e[0] * p - e[1] * m,
    ]


def over_relaxation(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    factor = 2 * _dot(old, around) / _dot(around, around)
    return [factor * h - s for h, s in zip(around, old, strict=True)]


def soft_metropolis(xp: Any, old: Any, around: Any, u: Any, xi: Any, c: Couplings) -> Any:
    new = [phi + c.width * (2 * u[k] - 1) for k, phi in enumerate(old)]
    q, p = _dot(new, new), _dot(old, old)
    log_ratio = _gain(new, old, around) - (q - p) * (c.square + c.quartic * (q + p))
    return _take(xp, xp.log(u[2]) < log_ratio, new, old)


# move -> formula, uniforms and normals of a site
MOVES: dict[str, tuple[Move, int, int]] = {
    "phi4_metropolis": (phi4_metropolis, 2, 0),
    "phi4_heat_bath": (phi4_heat_bath, 1, 1),
    "ising_metropolis": (ising_metropolis, 1, 0),
    "ising_heat_bath": (ising_heat_bath, 1, 0),
    "xy_metropolis": (xy_metropolis, 2, 0),
    "xy_heat_bath": (xy_heat_bath, 2, 0),
    "xy_over_relaxation": (over_relaxation, 0, 0),
    "heisenberg_metropolis": (heisenberg_metropolis, 3, 0),
    "heisenberg_heat_bath": (heisenberg_heat_bath, 2, 0),
    "heisenberg_over_relaxation": (over_relaxation, 0, 0),
    "soft_metropolis": (soft_metropolis, 3, 0),
    "soft_over_relaxation": (over_relaxation, 0, 0),
}
