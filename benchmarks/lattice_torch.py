"""The same lattice work in plain torch, as fast as we could write it.

Split checkerboards: a field is two arrays, one a colour, (m, chains, *half of the lattice) with the
components first; all chains at once, torch's own random numbers, updates in place. The formulas are
those of lattice_formulas.py, which the compiled variant uses as they stand. Cluster moves label all
chains at once. sweeping(...) and its like give run(n): n steps from the same start.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.lattice_formulas import MOVES, Couplings
from pysamp.mcmc.cluster import cluster_labels
from pysamp.opponents import Energy, accept, colour_rows, neighbour_sum, whole_neighbour_sum

Update = Callable[[Tensor, Tensor], Tensor]  # old values and neighbour sums -> new values
Half = Callable[[Tensor, Tensor, Tensor], Tensor]  # one colour, the other, its rows -> the colour


# ---------------------------------------------------------------------------- fields
def split(x: Tensor, shape: tuple[int, ...], right: Tensor) -> tuple[Tensor, Tensor]:
    """(chains, *shape) or (chains, *shape, m) -> the even and the odd sites."""
    field = x.reshape(len(x), *shape, -1).movedim(-1, 0).contiguous()  # else slower fivefold
    pairs = field.unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]
    return torch.where(right, b, a), torch.where(right, a, b)


def merge(even: Tensor, odd: Tensor, right: Tensor, like: Tensor) -> Tensor:
    columns = (torch.where(right, odd, even), torch.where(right, even, odd))
    return torch.stack(columns, -1).flatten(-2).movedim(0, -1).reshape(like.shape)


def eager(update: Update) -> Half:
    return lambda phi, other, right: update(phi, neighbour_sum(other, right, 2))


def plain(move: str, c: Couplings) -> Half:
    """Half a sweep by the common formulas, to be compiled."""
    formula, uniforms, normals = MOVES[move]

    def around(other: Tensor, right: Tensor) -> Tensor:
        total = other + torch.where(right, other.roll(-1, -1), other.roll(1, -1))
        for axis in range(1, other.ndim - 1):
            total = total + other.roll(1, axis) + other.roll(-1, axis)
        return total

    def half(phi: Tensor, other: Tensor, right: Tensor) -> Tensor:
        u = [torch.rand_like(phi[0]) for _ in range(uniforms)]
        xi = [torch.randn_like(phi[0]) for _ in range(normals)]
        sums = [around(component, right) for component in other]
        return torch.stack(formula(torch, list(phi), sums, u, xi, c))

    return half


def sweeping(half: Half, target: Any, x: Tensor) -> Callable[[int], Tensor]:
    right = colour_rows(target.shape, x.device)
    left = ~right
    start = split(x, target.shape, right)

    def run(n: int) -> Tensor:
        even, odd = start
        for _ in range(n):
            even = half(even, odd, right)
            odd = half(odd, even, left)
        return merge(even, odd, right, x)

    return run


# ---------------------------------------------------------------------------- moves in place
def _along(a: Tensor, b: Tensor) -> Tensor:
    """Σ_c a_c b_c."""
    total = a[0] * b[0]
    for c in range(1, len(a)):
        total.addcmul_(a[c], b[c])
    return total


def phi4_metropolis(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    step = torch.rand_like(old).sub_(0.5).mul_(2 * c.width)
    new = old + step
    difference = torch.addcmul(new * new, old, old).sub_(2).mul_(c.lam).add_(1).mul_(old + new)
    difference.sub_(around, alpha=2 * c.kappa).mul_(step)
    return accept(difference.neg_(), new, old)


def phi4_heat_bath(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    a, b, least = c.envelope()
    pull = around.mul_(2 * c.kappa)
    strength = pull.abs()
    v = strength * least
    for _ in range(2):
        v2 = v * v
        top = (v * v2).mul_(8 * b).add_(strength)
        v = top.div_(v2.mul_(12 * b).add_(2 * a))
    centre = v.square_().clamp_(min=least)
    half_variance = (centre * (2 * b)).add_(a).reciprocal_().mul_(0.5)
    new = pull.mul_(half_variance)
    new.addcmul_(half_variance.sqrt_(), torch.randn_like(old))
    gap = torch.mul(new, new).sub_(centre).square_().mul_(-b)
    return accept(gap, new, old)


def ising_metropolis(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    weight = around.mul_(old).mul_(-2 * c.beta).exp_()
    flip = torch.lt(torch.rand_like(old), weight, out=weight)
    return flip.mul_(-2).add_(1).mul_(old)


def ising_heat_bath(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    up = around.mul_(2 * c.beta).sigmoid_()
    return torch.lt(torch.rand_like(old), up, out=up).mul_(2).sub_(1)


def xy_metropolis(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    angle = torch.rand_like(old[0]).sub_(0.5).mul_(2 * c.width)
    cos, sin = angle.cos(), angle.sin_()
    new = old * cos
    new[0].addcmul_(old[1], sin, value=-1)
    new[1].addcmul_(old[0], sin)
    log_ratio = _along(new - old, around).mul_(c.beta)
    return accept(log_ratio, new, old)


def xy_heat_bath(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    e = around
    norm = _along(e, e).sqrt_()
    e.div_(norm)
    k = norm.mul_(c.beta)
    tau = (k * k).mul_(4).add_(1).sqrt_().add_(1)
    angle = torch.rand_like(k).sub_(0.5).mul_(2 * math.pi)
    z, sin = angle.cos(), angle.sin_()
    d = (k * z).mul_(2).add_(tau)
    f = (tau * z).add_(k, alpha=2).div_(d)
    g = sin.mul_((tau * 2).sqrt_()).div_(d)
    w = tau.mul_(0.5).addcmul_(k, f, value=-1)
    new = e * f
    new[0].addcmul_(e[1], g, value=-1)
    new[1].addcmul_(e[0], g)
    return accept(w.log().add_(1).sub_(w), new, old)


def heisenberg_metropolis(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    new = torch.empty_like(old)
    z = torch.rand(old[0].shape, out=new[2]).mul_(2).sub_(1)
    rho = (1 - z * z).sqrt_()
    angle = torch.rand_like(z).mul_(2 * math.pi)
    torch.mul(rho, angle.cos(), out=new[0])
    torch.mul(rho, angle.sin_(), out=new[1])
    log_ratio = _along(new - old, around).mul_(c.beta)
    return accept(log_ratio, new, old)


def heisenberg_heat_bath(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    e = around
    norm = _along(e, e).sqrt_()
    e.div_(norm)
    k = norm.mul_(c.beta)
    u = torch.rand_like(k)
    w = (1 - u).mul_((k * -2).exp_()).add_(u).log_().div_(k).add_(1)
    rho = (1 - w * w).clamp_(min=0).sqrt_()
    angle = u.uniform_(0, 2 * math.pi)
    p, m = angle.cos().mul_(rho), angle.sin_().mul_(rho)
    sign = e[2].sign()
    a = (sign + e[2]).reciprocal_().neg_()
    b = (e[0] * e[1]).mul_(a)
    new = e * w
    new[0].add_(p).addcmul_((e[0] * e[0]).mul_(sign).mul_(a), p).addcmul_(b, m)
    new[1].addcmul_(b.mul_(sign), p).addcmul_((e[1] * e[1]).mul_(a).add_(sign), m)
    new[2].addcmul_(sign.mul_(e[0]), p, value=-1).addcmul_(e[1], m, value=-1)
    return new


def over_relaxation(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    factor = _along(old, around).mul_(2).div_(_along(around, around))
    return around.mul_(factor).sub_(old)


def soft_metropolis(c: Couplings, old: Tensor, around: Tensor) -> Tensor:
    step = torch.rand_like(old).sub_(0.5).mul_(2 * c.width)
    new = old + step
    q, p = _along(new, new), _along(old, old)
    log_ratio = _along(step, around)
    log_ratio.sub_((q + p).mul_(c.quartic).add_(c.square).mul_(q.sub_(p)))
    return accept(log_ratio, new, old)


UPDATES: dict[str, Callable[[Couplings, Tensor, Tensor], Tensor]] = {
    "phi4_metropolis": phi4_metropolis,
    "phi4_heat_bath": phi4_heat_bath,
    "ising_metropolis": ising_metropolis,
    "ising_heat_bath": ising_heat_bath,
    "xy_metropolis": xy_metropolis,
    "xy_heat_bath": xy_heat_bath,
    "xy_over_relaxation": over_relaxation,
    "heisenberg_metropolis": heisenberg_metropolis,
    "heisenberg_heat_bath": heisenberg_heat_bath,
    "heisenberg_over_relaxation": over_relaxation,
    "soft_metropolis": soft_metropolis,
    "soft_over_relaxation": over_relaxation,
}


def in_place(move: str, c: Couplings) -> Half:
    return eager(functools.partial(UPDATES[move], c))


def masked(target: Any, c: Couplings, move: str, x: Tensor) -> Callable[[int], Tensor]:
    """A lattice updated as a whole, once for each colour, with a mask: the simplest that works."""
    odd = colour_rows((*target.shape, 1), x.device)[..., 0]
    update = functools.partial(UPDATES[move], c)

    def run(n: int) -> Tensor:
        field = x.reshape(len(x), *target.shape, -1).movedim(-1, 0).contiguous()
        for _ in range(n):
            for mask in (~odd, odd):
                field = torch.where(mask, update(field, whole_neighbour_sum(field, 2)), field)
        return field.movedim(0, -1).reshape(x.shape)

    return run


# ---------------------------------------------------------------------------- φ⁴: what else there is
def phi4_observables(target: Any, x: Tensor) -> Tensor:
    """(chains, 4): log p, m², φ² per site, structure factor per site; as columns of a record."""
    v, d = math.prod(target.shape), len(target.shape)
    square = x * x
    sites = (square - 1).square_().mul_(target.lam).add_(square)
    sites.addcmul_(x, whole_neighbour_sum(x), value=-target.kappa)
    flat = x.reshape(len(x), v)
    waves = flat @ fourier(target.shape).to(x)  # (chains, 2d)
    mean = flat.mean(1)
    return torch.stack(
        [-sites.flatten(1).sum(1), mean * mean, square.flatten(1).mean(1),
         waves.square_().sum(1).div_(d * v * v)], 1
    )  # fmt: skip


@functools.cache
def fourier(shape: tuple[int, ...]) -> Tensor:
    """cos and sin of 2π x_μ / L_μ at each site: (V, 2d)."""
    waves = []
    for axis, length in enumerate(shape):
        along = torch.arange(length) * (2 * math.pi / length)
        along = along.reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
        waves += [along.cos().flatten(), along.sin().flatten()]
    return torch.stack(waves, 1)


def measuring(target: Any, c: Couplings, x: Tensor) -> Callable[[int], Tensor]:
    """run(n): n sweeps, measured after each: (chains, n, 4)."""
    right = colour_rows(target.shape, x.device)
    left, half = ~right, in_place("phi4_metropolis", c)
    start = split(x, target.shape, right)

    def run(n: int) -> Tensor:
        (even, odd), found = start, []
        for _ in range(n):
            even = half(even, odd, right)
            odd = half(odd, even, left)
            found.append(phi4_observables(target, merge(even, odd, right, x)))
        return torch.stack(found, 1)

    return run


def phi4_energy(target: Any) -> Energy:
    """log p and score of flattened fields (chains, V)."""

    def energy(x: Tensor) -> tuple[Tensor, Tensor]:
        phi = x.reshape(len(x), *target.shape)
        around, square = whole_neighbour_sum(phi).mul_(2 * target.kappa), phi * phi
        bonds = torch.linalg.vecdot(x, around.flatten(1)).mul_(0.5)
        w = square - 1
        sites = (w * w).mul_(target.lam).add_(square).flatten(1).sum(1)
        score = around.addcmul_(phi, w.mul_(2 * target.lam).add_(1), value=-2)
        return bonds - sites, score.flatten(1)

    return energy


def phi4_score(target: Any) -> Callable[[Tensor], Tensor]:
    def score(x: Tensor) -> Tensor:
        phi = x.reshape(len(x), *target.shape)
        around = whole_neighbour_sum(phi).mul_(2 * target.kappa)
        w = (phi * phi).sub_(1).mul_(2 * target.lam).add_(1)
        return around.addcmul_(phi, w, value=-2).flatten(1)

    return score


# ---------------------------------------------------------------------------- Ising clusters
def clusters(target: Any, x: Tensor, *, wolff: bool) -> Callable[[int], tuple[Tensor, float]]:
    """run(n): n cluster moves of all chains by labels; the spins, and how many of them were flipped."""
    _, table = target.couplings
    ahead = table[:, 1::2].to(x.device)  # (V, d)
    rows, (v, d) = len(x), ahead.shape
    keep = math.exp(-2 * target.beta)

    def run(n: int) -> tuple[Tensor, float]:
        s, flipped = x.reshape(rows, v), 0
        for _ in range(n):
            bonds = (s[:, ahead] == s[..., None]) & (torch.rand(rows, v, d, device=x.device) > keep)
            label = cluster_labels(bonds, ahead)
            if wolff:
                site = torch.randint(v, (rows, 1), device=x.device)
                turn = label == label.gather(1, site)
            else:
                turn = (torch.rand(rows, v, device=x.device) < 0.5).gather(1, label)
            s = torch.where(turn, -s, s)
            flipped += int(turn.sum()) if wolff else rows * v
        return s.reshape(x.shape), float(flipped)

    return run
