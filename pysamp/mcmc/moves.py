"""Moves of the sites of a lattice field: the torch text that csrc/moves.h equals bit for bit.

With h = J Σ_{y~x} s_y (tempered: β h), the moves of a site are

    Metropolis    φ_a' = φ_a + δ y;   a turn by δ y in one coordinate plane;   s' = −s;   y in (−1, 1);
    heat bath     s' from exp(h·s'), or φ_a' from exp(−A v² − B v⁴ + b v);
    reflection    s' = 2 (s·h/h²) h − s, at the same energy.

Sources: Metropolis et al. (1953); the reflection of Creutz, Phys. Rev. D 36, 515 (1987) and of Brown and
Woch, Phys. Rev. Lett. 58, 2394 (1987); the XY heat bath by rejection from a wrapped Cauchy density, Best
and Fisher, Appl. Statist. 28, 152 (1979); the Heisenberg heat bath by inversion, Miyatake et al., J. Phys.
C 19, 2539 (1986), in the frame of Duff et al., JCGT 6, 1 (2017).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pysamp import reference, rng
from pysamp.mcmc.base import State
from pysamp.reference import dot

Move = Literal["metropolis", "heat_bath", "reflect"]


@dataclass(frozen=True)
class Sweep:
    """A field that the moves change in place, and the random numbers of one sweep."""

    target: Any
    x: Tensor  # (rows, *event_shape)
    phi: Tensor  # (rows, V, m), the same memory
    colours: list[Tensor]
    starts: list[int]
    width: Tensor | None
    state: State  # whose seed and chains the numbers belong to
    counter: int

    def by_colour(self) -> Iterator[tuple[Tensor, slice]]:
        """Sites and ranks of each colour."""
        for sites, begin, end in zip(self.colours, self.starts[:-1], self.starts[1:], strict=True):
            yield sites, slice(begin, end)

    def numbers(self, kind: Callable[..., Tensor], per_site: int, substep: int = 0) -> Tensor:
        """(rows, V, per_site) by rank."""
        v = self.phi.shape[1]
        out = kind(
            (len(self.x), v * per_site), seed=self.state.seed, stream="site", step=self.counter,
            first_chain=self.state.first_chain, device=self.x.device, dtype=self.x.dtype,
            substep=substep,
        )  # fmt: skip
        return out.reshape(len(self.x), v, per_site)

    def signed(self, k: int, per_site: int, substep: int = 0) -> Tensor:
        """Number k of each site, in (−1, 1)."""
        return self.numbers(rng.uniform, per_site, substep)[..., k] * 2.0 - 1.0

    def log_uniform(self, k: int, per_site: int, substep: int = 0) -> Tensor:
        return self.numbers(rng.log_uniform, per_site, substep)[..., k]

    def field(self, sites: Tensor) -> Tensor:
        return self.target.local_field(self.x, sites)  # (rows, k, m)

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.state.log_prob)


def move_of(move: Move, m: int, spins: bool) -> Callable[[Sweep], tuple[Tensor, Tensor]]:
    """The function that makes a sweep, and returns how many moved, and were bad, in each row."""
    if move == "reflect":
        return _reflect
    if not spins:
        return _metropolis if move == "metropolis" else _heat_bath
    if move == "metropolis":
        return _flip if m == 1 else _turn_in_a_plane
    return (_heat_bath_ising, _heat_bath_xy, _heat_bath_heisenberg)[m - 1]


def _decide(log_ratio: Tensor, log_u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Metropolis: what moves; how much of it in each row; what had a density NaN or +∞."""
    finite = log_ratio < torch.inf
    move = (log_u < log_ratio) & finite
    return move, move.sum(1), (~finite).sum(1)


def _metropolis(s: Sweep) -> tuple[Tensor, Tensor]:
    moved, bad = s.zeros(), s.zeros()
    flat, m = s.x.view(len(s.x), -1), s.phi.shape[2]
    assert s.width is not None
    for a in range(m):
        y, log_u = s.signed(0, 2, a), s.log_uniform(1, 2, a)
        for sites, ranks in s.by_colour():
            elements = sites * m + a
            old = flat[:, elements]
            new = old + s.width[:, None] * y[:, ranks]
            log_ratio = s.target.local_difference(s.x, elements, new)
            move, n_moved, n_bad = _decide(log_ratio, log_u[:, ranks])
            flat[:, elements] = torch.where(move, new, old)
            moved, bad = moved + n_moved, bad + n_bad
    return moved, bad


def _flip(s: Sweep) -> tuple[Tensor, Tensor]:
    moved, bad = s.zeros(), s.zeros()
    log_u = s.log_uniform(0, 1)
    for sites, ranks in s.by_colour():
        old = s.phi[:, sites, 0]
        new = -old
        log_ratio = s.field(sites)[..., 0] * (new - old)
        # A flip that is always taken would let some states flip for ever among themselves.
        damped = torch.where(log_ratio < 0, log_ratio, 0.0) - 0.0625
        damped = torch.where(log_ratio < torch.inf, damped, log_ratio)
        move, n_moved, n_bad = _decide(damped, log_u[:, ranks])
        s.phi[:, sites, 0] = torch.where(move, new, old)
        moved, bad = moved + n_moved, bad + n_bad
    return moved, bad


def _turn_in_a_plane(s: Sweep) -> tuple[Tensor, Tensor]:
    """By an angle in (−δ, δ) in a plane of two components, which the counter chooses."""
    moved, bad = s.zeros(), s.zeros()
    planes = list(itertools.combinations(range(s.phi.shape[2]), 2))
    a, b = planes[(reference.scatter(s.counter) >> 16) % len(planes)]
    assert s.width is not None
    y = s.signed(0, 2) * (s.width * 0.3183098861837907)[:, None]  # in units of π
    log_u = s.log_uniform(1, 2)
    for sites, ranks in s.by_colour():
        h = s.field(sites)
        cos, sin = _turn(y[:, ranks])
        u, v = s.phi[:, sites, a], s.phi[:, sites, b]
        u_new, v_new = u * cos - v * sin, u * sin + v * cos
        log_ratio = h[..., a] * (u_new - u) + h[..., b] * (v_new - v)
        move, n_moved, n_bad = _decide(log_ratio, log_u[:, ranks])
        s.phi[:, sites, a] = torch.where(move, u_new, u)
        s.phi[:, sites, b] = torch.where(move, v_new, v)
        moved, bad = moved + n_moved, bad + n_bad
    return moved, bad


def _heat_bath_ising(s: Sweep) -> tuple[Tensor, Tensor]:
    u = s.numbers(rng.uniform, 1)[..., 0]
    for sites, ranks in s.by_colour():
        up = 1.0 / (reference.exp_portable(s.field(sites)[..., 0] * -2.0) + 1.0)
        s.phi[:, sites, 0] = torch.where(u[:, ranks] < up, 1.0, -1.0).to(s.x.dtype)
    return s.zeros(), s.zeros()


def _heat_bath_xy(s: Sweep) -> tuple[Tensor, Tensor]:
    """One try of Best and Fisher, from a wrapped Cauchy density around the direction of h.

    A refused try keeps the spin: refusals do not depend on it, so exp(h·s) stays as it is.
    """
    moved = s.zeros()
    y, log_u = s.signed(0, 2), s.log_uniform(1, 2)
    for sites, ranks in s.by_colour():
        h0, h1 = s.field(sites).unbind(2)
        q = h0 * h0 + h1 * h1
        k = reference.sqrt_rn(q)
        tau = reference.sqrt_rn(q * 4.0 + 1.0) + 1.0
        k2 = k * 2.0
        cos, sin = _turn(y[:, ranks])
        d = k2 * cos + tau
        f, g = (tau * cos + k2) / d, (reference.sqrt_rn(tau * 2.0) * sin) / d
        w = tau * 0.5 - k * f
        move = log_u[:, ranks] < (reference.log_portable(w) + 1.0) - w
        inverse = torch.where(q > no_field(q), 1.0 / k, 0.0)
        e0, e1 = torch.where(q > no_field(q), h0 * inverse, 1.0), h1 * inverse
        new = torch.stack((e0 * f - e1 * g, e1 * f + e0 * g), 2)
        s.phi[:, sites] = torch.where(move[..., None], new, s.phi[:, sites])
        moved = moved + move.sum(1)
    return moved, s.zeros()


def _heat_bath_heisenberg(s: Sweep) -> tuple[Tensor, Tensor]:
    """w = ln(cosh k + y sinh k)/k is the cosine to h, by its series where the logarithm loses digits."""
    small = 0.03125 if s.x.dtype == torch.float32 else 0.0009765625
    signed = s.numbers(rng.uniform, 2) * 2.0 - 1.0
    for sites, ranks in s.by_colour():
        h0, h1, h2 = s.field(sites).unbind(2)
        q = (h0 * h0 + h1 * h1) + h2 * h2
        k = reference.sqrt_rn(q)
        y = signed[:, ranks, 0]
        t = reference.exp_portable(k * -2.0)
        mixed = ((1.0 - y) * t + (y + 1.0)) * 0.5
        direct = reference.log_portable(mixed) / k + 1.0
        one = 1.0 - y * y
        curved = y * (1 / 3) - k * ((y * y) * 0.25 - (1 / 12))
        series = (0.5 - k * curved) * (k * one) + y
        w = torch.where(k < small, series, direct)
        w = torch.where(w > 1.0, 1.0, w)
        w = torch.where(w < -1.0, -1.0, w)
        rho = reference.sqrt_rn(1.0 - w * w)
        cos, sin = _turn(signed[:, ranks, 1])
        p, m = rho * cos, rho * sin
        inverse = torch.where(q > no_field(q), 1.0 / k, 0.0)
        e0, e1, e2 = h0 * inverse, h1 * inverse, torch.where(q > no_field(q), h2 * inverse, 1.0)
        sign = torch.where(e2 >= 0, 1.0, -1.0).to(e2.dtype)
        a = -1.0 / (sign + e2)
        b = (e0 * e1) * a
        new = (
            (e0 * w + ((e0 * e0) * a * sign + 1.0) * p) + b * m,
            (e1 * w + (sign * b) * p) + ((e1 * e1) * a + sign) * m,
            (e2 * w + (-(sign * e0)) * p) + (-e1) * m,
        )
        s.phi[:, sites] = torch.stack(new, 2)
    return s.zeros(), s.zeros()


def _heat_bath(s: Sweep) -> tuple[Tensor, Tensor]:
    """One try of exp(−A v² − B v⁴ + b v): v from exp(−(A + 2BC) v² + b v), kept with probability
    exp(−B (v² − C)²). Any C ≥ C₀, the variance of the proposal at b = 0, is right; near the square of the
    mode it is kept most often. Refusals do not depend on the old value."""
    moved = s.zeros()
    rows, v, m = s.phi.shape
    for component in range(m):
        # Sites of ranks 2c and 2c + 1 share four numbers, two normal and two uniform ones.
        cells = (len(s.x), (v + 1) // 2, 4)
        at: dict[str, Any] = {
            "seed": s.state.seed, "stream": "site", "step": s.counter, "substep": component,
            "first_chain": s.state.first_chain, "device": s.x.device, "dtype": s.x.dtype,
        }  # fmt: skip
        xi = rng.normal(cells, **at)[..., :2].reshape(rows, -1)
        log_u = rng.log_uniform(cells, **at)[..., 2:].reshape(rows, -1)
        for sites, ranks in s.by_colour():
            a, b, linear = torch.broadcast_tensors(*s.target.quartic(s.x, sites, component))
            root = reference.sqrt_rn(a * a + b * 4.0)
            t = torch.where(a < 0, (b * 4.0) / (root - a), a + root)
            variance = 1.0 / t
            strength = torch.where(linear < 0, -linear, linear)
            # Newton's steps fall to the mode, where 4Bv³ + 2Av = |b|, from any point above it: the sum of
            # the mode at b = 0 and of that at A = 0, or the lesser of those at A = 0 and at B = 0.
            cubed = strength / (b * 4.0)
            cube_root = reference.exp_portable(reference.log_portable(cubed) * (1 / 3))
            straight = strength / (a * 2.0)
            lesser = torch.where(straight < cube_root, straight, cube_root)
            well = reference.sqrt_rn(torch.where(a < 0, -a / (b * 2.0), 0.0))
            mode = torch.where(a > 0, lesser, well + cube_root)
            for _ in range(2):
                square = mode * mode
                slope = square * (b * 12.0) + a * 2.0
                nearer = ((mode * square) * (b * 8.0) + strength) / slope
                mode = torch.where(slope > 0, nearer, mode)
            square = mode * mode
            c = torch.where(square > variance, square, variance)
            precise = a + (b * 2.0) * c
            spread = reference.sqrt_rn(0.5 / precise) * xi[:, ranks]
            new = linear / (precise * 2.0) + spread
            gap = new * new - c
            move = log_u[:, ranks] < -((gap * gap) * b)
            s.phi[:, sites, component] = torch.where(move, new, s.phi[:, sites, component])
            moved = moved + move.sum(1)
    return moved, s.zeros()


def _reflect(s: Sweep) -> tuple[Tensor, Tensor]:
    for sites, _ in s.by_colour():
        h, phi = s.field(sites), s.phi[:, sites]
        along, q = dot(phi, h), dot(h, h)
        factor = torch.where(q > no_field(q), (along + along) / q, 0.0)[..., None]
        s.phi[:, sites] = factor * h - phi
    return s.zeros(), s.zeros()


def no_field(q: Tensor) -> float:
    """Below this the square of a field has lost its digits, and the field counts as none."""
    return 1e-30 if q.dtype == torch.float32 else 1e-280


def _turn(y: Tensor) -> tuple[Tensor, Tensor]:
    """cos πy and sin πy for |y| ≤ 1."""
    c, s = reference.cos_quarter(y), reference.sin_quarter(y)
    return c * c - s * s, (s * c) * 2.0
