"""Plain torch at its best: what the native kernels are timed against.

Written as by someone who needs no equal numbers: torch's own generators, analytic gradients,
updates in place, a lattice kept as two arrays of one colour each. Nothing samples with this
file. It is the one place besides rng.py that draws; callers put torch's generators back afterwards.

Conventions are those of mcmc/: Langevin steps x + h ∇log p + √(2h) ξ, proposals x + δ (2u − 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pysamp.targets import GaussianMixture, Phi4, Phi4Chain

Energy = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (n, d) -> log p (n,), score (n, d)
Walkers = tuple[Tensor, Tensor, Tensor]  # x (n, d), log p (n,), score (n, d)


def chain_laplace(x: Tensor) -> Tensor:
    laplace = 2 * x  # (n, d), zeros outside
    laplace[:, 1:] -= x[:, :-1]
    laplace[:, :-1] -= x[:, 1:]
    return laplace


def chain_energy(target: Phi4Chain) -> Energy:
    """The φ⁴ chain without tilt (h = 0), by hand."""
    stiffness, _, _, quartic, _ = target.native.params

    def energy(x: Tensor) -> tuple[Tensor, Tensor]:
        laplace, w = chain_laplace(x), x * x - 1
        bonds, sites = torch.linalg.vecdot(x, laplace), torch.linalg.vecdot(w, w)
        score = laplace.mul_(-stiffness).addcmul_(w, x, value=-4 * quartic)
        return -(0.5 * stiffness * bonds + quartic * sites), score

    return energy


def chain_score(target: Phi4Chain) -> Callable[[Tensor], Tensor]:
    stiffness, _, _, quartic, _ = target.native.params

    def score(x: Tensor) -> Tensor:
        return chain_laplace(x).mul_(-stiffness).addcmul_(x * x - 1, x, value=-4 * quartic)

    return score


def mixture_energy(target: GaussianMixture, like: Tensor) -> Energy:
    """A diagonal mixture in the direct form, the arithmetic of the kernel."""
    k, d = target.means.shape
    params = torch.tensor(target.native.params, dtype=like.dtype, device=like.device)
    log_scale, mean, precision = params.split([k, k * d, k * d])
    mean, precision = mean.reshape(k, d), precision.reshape(k, d)

    def energy(x: Tensor) -> tuple[Tensor, Tensor]:
        gap = x[:, None] - mean  # (n, k, d)
        pull = gap * precision
        a = log_scale - 0.5 * torch.linalg.vecdot(gap, pull)  # (n, k)
        log_prob = torch.logsumexp(a, 1)
        responsibility = torch.exp(a - log_prob[:, None])
        return log_prob, -torch.einsum("nk,nkd->nd", responsibility, pull)

    return energy


def expanded_mixture_energy(target: GaussianMixture, like: Tensor) -> Energy:
    """The same with expanded squares: two matrix products, and digits lost far from the origin."""
    k, d = target.means.shape
    params = torch.tensor(target.native.params, dtype=like.dtype, device=like.device)
    log_scale, mean, precision = params.split([k, k * d, k * d])
    mean, precision = mean.reshape(k, d), precision.reshape(k, d)
    scaled = precision * mean  # (k, d)
    constant = log_scale - 0.5 * torch.linalg.vecdot(scaled, mean)

    def energy(x: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.addmm(constant, x, scaled.T).addmm_(x * x, precision.T, alpha=-0.5)  # (n, k)
        log_prob = torch.logsumexp(a, 1)
        responsibility = a.sub_(log_prob[:, None]).exp_()
        return log_prob, (responsibility @ scaled).addcmul_(x, responsibility @ precision, value=-1)

    return energy


def by_autograd(log_prob: Callable[[Tensor], Tensor]) -> Energy:
    """An energy from a density alone, as most scripts have it."""

    def energy(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        value = log_prob(leaf)
        (score,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), score

    return energy


def chain_log_prob(target: Phi4Chain) -> Callable[[Tensor], Tensor]:
    stiffness, _, _, quartic, _ = target.native.params

    def log_prob(x: Tensor) -> Tensor:
        bonds = torch.nn.functional.pad(x, (1, 1)).diff(dim=1)  # (n, d + 1)
        return -(0.5 * stiffness * (bonds**2).sum(1) + quartic * ((x * x - 1) ** 2).sum(1))

    return log_prob


def mixture_log_prob(target: GaussianMixture, like: Tensor) -> Callable[[Tensor], Tensor]:
    mean, scale = target.means.to(like), target.covariances.sqrt().to(like)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(probs=target.mode_weights.to(like)),
        torch.distributions.Independent(torch.distributions.Normal(mean, scale), 1),
        validate_args=False,
    ).log_prob


def ula_step(energy: Energy, h: float, x: Tensor, log_prob: Tensor, score: Tensor) -> Walkers:
    noise = torch.randn_like(x)
    y = torch.add(x, score, alpha=h).add_(noise, alpha=math.sqrt(2 * h))
    return (y, *energy(y))


def mala_step(energy: Energy, h: float, x: Tensor, log_prob: Tensor, score: Tensor) -> Walkers:
    noise = torch.randn_like(x)
    y = torch.add(x, score, alpha=h).add_(noise, alpha=math.sqrt(2 * h))
    log_prob_y, score_y = energy(y)
    back = (x - y).sub_(score_y, alpha=h)
    forth = 0.5 * torch.linalg.vecdot(noise, noise)
    log_ratio = log_prob_y - log_prob + forth - torch.linalg.vecdot(back, back) / (4 * h)
    return _move(torch.rand_like(log_prob).log() < log_ratio, (y, log_prob_y, score_y),
                 (x, log_prob, score))  # fmt: skip


def hmc_step(
    energy: Energy, score_of: Callable[[Tensor], Tensor], eps: float, n_leapfrog: int,
    x: Tensor, log_prob: Tensor, score: Tensor,
) -> Walkers:  # fmt: skip
    p = torch.randn_like(x)
    before = torch.linalg.vecdot(p, p)
    p.add_(score, alpha=eps / 2)
    y = torch.add(x, p, alpha=eps)
    for _ in range(n_leapfrog - 1):
        p.add_(score_of(y), alpha=eps)
        y.add_(p, alpha=eps)
    log_prob_y, score_y = energy(y)
    p.add_(score_y, alpha=eps / 2)
    log_ratio = log_prob_y - log_prob + 0.5 * (before - torch.linalg.vecdot(p, p))
    return _move(torch.rand_like(log_prob).log() < log_ratio, (y, log_prob_y, score_y),
                 (x, log_prob, score))  # fmt: skip


def _move(accepted: Tensor, new: Walkers, old: Walkers) -> Walkers:
    rows = accepted[:, None]
    return (
        torch.where(rows, new[0], old[0]),
        torch.where(accepted, new[1], old[1]),
        torch.where(rows, new[2], old[2]),
    )


def stepping(step: Callable[..., Walkers], energy: Energy, x: Tensor) -> Callable[[int], Tensor]:
    """run(n): n steps of (x, log p, score) from `x`."""
    start = (x, *energy(x))

    def run(n: int) -> Tensor:
        state = start
        for _ in range(n):
            state = step(*state)
        return state[0]

    return run


def random_walk(
    density: Callable[[Tensor], Tensor], width: float, x: Tensor
) -> Callable[[int], Tensor]:
    """run(n): n Metropolis steps of the whole event from `x`."""
    start = (x, density(x))

    def run(n: int) -> Tensor:
        x, log_prob = start
        for _ in range(n):
            y = torch.rand_like(x).sub_(0.5).mul_(2 * width).add_(x)
            log_prob_y = density(y)
            move = torch.rand_like(log_prob).log_() < log_prob_y - log_prob
            x = torch.where(move[:, None], y, x)
            log_prob = torch.where(move, log_prob_y, log_prob)
        return x

    return run


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where the mask is 1, `old` where it is 0: on a CPU lerp is several times faster than where."""
    return torch.lerp(old, new, mask)


def accept(log_ratio: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Metropolis' decision: `new` with probability exp(log_ratio)."""
    log_u = torch.rand_like(log_ratio).log_()
    return choose(torch.lt(log_u, log_ratio, out=log_u), new, old)


def neighbour_sum(other: Tensor, right: Tensor, first_axis: int = 1) -> Tensor:
    """Sums over the neighbours of the sites of one colour, given the other; `right` as in half_sweep.

    The axes of the lattice are those from `first_axis` on, the last of them with half the sites.
    """
    around = choose(right.to(other.dtype), other.roll(-1, -1), other.roll(1, -1)).add_(other)
    for axis in range(first_axis, other.ndim - 1):
        around.add_(other.roll(1, axis)).add_(other.roll(-1, axis))
    return around


def whole_neighbour_sum(phi: Tensor, first_axis: int = 1) -> Tensor:
    """The same for all sites of a periodic lattice that is not split."""
    around = torch.zeros_like(phi)
    for axis in range(first_axis, phi.ndim):
        around.add_(phi.roll(1, axis)).add_(phi.roll(-1, axis))
    return around


def half_sweep(
    phi: Tensor, other: Tensor, right: Tensor, kappa: float, lam: float, width: float
) -> Tensor:
    """One colour of a periodic φ⁴ field, given the other; `right`: rows where it sits at x + 1."""
    around = neighbour_sum(other, right).mul_(2 * kappa)
    step = torch.rand_like(phi).sub_(0.5).mul_(2 * width)
    new = phi + step
    # S(new) − S(old) = (new − φ) [ (new + φ) (1 + λ (new² + φ² − 2)) − 2κ Σ φ_y ]
    squares = torch.addcmul(new * new, phi, phi)
    difference = squares.sub_(2).mul_(lam).add_(1).mul_(phi + new).sub_(around).mul_(step)
    return accept(difference.neg_(), new, phi)


def plain_half_sweep(
    phi: Tensor, other: Tensor, right: Tensor, kappa: float, lam: float, width: float
) -> Tensor:
    """The same without updates in place: slower eagerly, up to twice as fast when compiled."""
    around = other + torch.where(right, other.roll(-1, -1), other.roll(1, -1))
    for axis in range(1, phi.ndim - 1):
        around = around + other.roll(1, axis) + other.roll(-1, axis)
    new = phi + width * (2 * torch.rand_like(phi) - 1)
    old_action, new_action = (
        v * v + lam * (v * v - 1) ** 2 - 2 * kappa * v * around for v in (phi, new)
    )
    return torch.where(torch.rand_like(phi).log() < old_action - new_action, new, phi)


def masked_sweep(
    phi: Tensor, colours: tuple[Tensor, Tensor], kappa: float, lam: float, width: float
) -> Tensor:
    """Both colours in turn, each by a pass over the whole lattice, half of it for nothing."""
    for mask in colours:
        around = whole_neighbour_sum(phi)
        new = phi + (torch.rand_like(phi) * 2 - 1) * width
        terms = [v * v + lam * (v * v - 1) ** 2 - 2 * kappa * v * around for v in (phi, new)]
        move = (torch.rand_like(phi).log_() < terms[0] - terms[1]) & mask
        phi = torch.where(move, new, phi)
    return phi


def colour_rows(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows along the last axis whose even sites are the odd columns: (*shape[:-1], 1)."""
    axes = [torch.arange(length, device=device) for length in shape[:-1]]
    total = torch.zeros((), dtype=torch.int64, device=device)
    for index in torch.meshgrid(*axes, indexing="ij"):
        total = total + index
    return (total % 2 == 1)[..., None]


def sweeping(
    half: Callable[..., Tensor], target: Phi4, width: float, x: Tensor
) -> Callable[[int], Tensor]:
    """run(n): n sweeps of a field kept as two arrays, one a colour: (n, *shape[:-1], L / 2)."""
    right = colour_rows(target.shape, x.device)
    left = ~right
    pairs = x.unflatten(-1, (-1, 2))
    start = (torch.where(right, pairs[..., 1], pairs[..., 0]),
             torch.where(right, pairs[..., 0], pairs[..., 1]))  # fmt: skip

    def run(n: int) -> Tensor:
        even, odd = start
        for _ in range(n):
            even = half(even, odd, right, target.kappa, target.lam, width)
            odd = half(odd, even, left, target.kappa, target.lam, width)
        columns = (torch.where(right, odd, even), torch.where(right, even, odd))
        return torch.stack(columns, -1).flatten(-2)

    return run
