"""Exact answers in float64: transfer matrices, quadrature and finite Markov chains.

`phi4_chain` is the one-dimensional phi^4 chain with Dirichlet ends of Grenioux et al. (SLIPS, 2024,
arXiv 2402.10758) and Gabrie, Rotskoff and Vanden-Eijnden (2022, arXiv 2105.12603). `phi4_lattice`
is the periodic lattice action in its kappa, lambda form. Both multiply one transfer operator per
site or row, a trapezoidal or Gauss rule replacing each integral; the integrands are analytic and
decay, so both rules converge exponentially. Functions take parameters, never targets.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_EDGE = 1e-16  # density at the end of a grid, relative to its largest value, that counts as zero
_MAX_GRID = 100_001
_REACH = 370.0  # bonds of more energy than this count as broken


# ---- phi^4 chain with Dirichlet ends -------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Phi4ChainExact:
    """Exact expectations of the phi^4 chain; "mid" is site d // 2 counted from 0."""

    log_z: float
    energy: float  # E[-log gamma] = beta E[U], minus the mean unnormalised log density
    weight_plus: float  # P(phi_mid > 0)
    log_ratio: float  # log P(phi_mid < 0) / P(phi_mid > 0), infinite if one of them underflows
    mid_mean: float
    mid_square: float  # E[phi_mid^2]
    mid_grid: Tensor  # (n,) equidistant, symmetric about 0
    mid_density: Tensor  # (n,) marginal density of phi_mid, its sum times the spacing is 1


@functools.lru_cache(maxsize=64)
def phi4_chain(
    n_sites: int, a: float, beta: float, h: float, n_grid: int = 2401, x_max: float = 2.6
) -> Phi4ChainExact:
    """Exact expectations under gamma(phi) with d = n_sites, phi_0 = phi_{d+1} = 0 and

        log gamma = -beta [ a d / 2 sum_{i=1}^{d+1} (phi_i - phi_{i-1})^2
                            + 1 / (a d) sum_{i=1}^{d} ((1 - phi_i^2)^2 / 4 + h phi_i) ]

    The grid is [-x_max, x_max] with n_grid nodes, or wider and finer where the density asks for it:
    until every site's density at the ends is below 1e-16 of its maximum and half a conditional
    standard deviation spans a spacing. Results are cached; the tensors are shared between callers.

    Raises ValueError for parameters out of range or if more than 100 001 nodes were needed.
    Cost: n_sites banded products, well under a second for 100 sites.
    """
    _require_count("n_sites", n_sites, 1)
    _require_count("n_grid", n_grid, 101)
    if n_grid % 2 == 0:
        raise ValueError(f"n_grid must be odd so that 0 is a node, got {n_grid}")
    for name, value in (("a", a), ("beta", beta), ("x_max", x_max)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not math.isfinite(h):
        raise ValueError(f"h must be finite, got {h}")

    while True:
        # Harmonic estimate of the narrowest conditional density of a site, at the end of the grid
        # where V'' is largest. A Gaussian summed with a spacing of sd / 2 is off by 2 exp(-8 pi^2)
        # ~ 1e-34.
        stiffness = beta * (2 * a * n_sites + max(2.0, 3 * x_max**2 - 1) / (a * n_sites))
        half = max(n_grid // 2, math.ceil(2 * x_max * math.sqrt(stiffness)))
        if 2 * half + 1 > _MAX_GRID:
            raise ValueError(
                f"phi4_chain needs {2 * half + 1} nodes, more than {_MAX_GRID}, for "
                f"{n_sites=}, {a=}, {beta=}, {h=}, {x_max=}"
            )
        result, edge = _phi4_chain_on_grid(n_sites, a * n_sites, beta, h, half, x_max)
        if edge < _EDGE:
            return result
        x_max *= 1.25


def _phi4_chain_on_grid(
    n_sites: int, c: float, beta: float, h: float, half: int, x_max: float
) -> tuple[Phi4ChainExact, float]:
    """The chain with c = a d on 2 half + 1 nodes, and its largest relative density at the ends."""
    dx = x_max / half
    x = torch.arange(-half, half + 1, dtype=torch.float64) * dx  # (n,)
    site_energy = beta / c * ((1 - x**2) ** 2 / 4 + h * x)
    log_site = math.log(dx) - site_energy
    end_energy = beta * c / 2 * x**2
    bond = _gaussian_bond(beta * c / 2 * dx**2, len(x))

    # messages[i] is the logarithm of what the sites 0 .. i-1 and the bond from them tell site i. The
    # chain is its own mirror image, so the message from the right is messages[d - 1 - i].
    # energies[i] is the mean energy of that bond, given site i.
    message = -end_energy
    messages, energies = [message], [end_energy]
    for _ in range(n_sites - 1):
        message, energy = bond(message + log_site)
        messages.append(message)
        energies.append(energy)
    left = torch.stack(messages)  # (d, n)
    weight = left + log_site + left.flip(0)  # (d, n) log marginals up to a constant each
    log_z = weight.logsumexp(1)  # (d,), of every site the same, or the grid is too coarse
    spread = float(log_z.max() - log_z.min())
    if not spread <= 1e-9 * max(1.0, abs(float(log_z[0]))):
        raise ValueError(f"phi4_chain underflows for {n_sites=}, a={c / n_sites}, {beta=}, {h=}")
    marginal = (weight - log_z[:, None]).exp()

    # Bonds to the left of each site, then the one to phi_{d+1} = 0.
    bond_energy = float(
        (marginal * torch.stack(energies)).sum() + (marginal[-1] * end_energy).sum()
    )
    mid = n_sites // 2
    p = marginal[mid]
    # Each phase has its own scale, so that the lesser one does not vanish beside the other.
    log_p = weight[mid] - log_z[mid]
    log_minus, log_plus = _log_half_mass(log_p.flip(0)), _log_half_mass(log_p)
    result = Phi4ChainExact(
        log_z=float(log_z[mid]),
        energy=bond_energy + float((marginal * site_energy).sum()),
        weight_plus=1 / (1 + math.exp(min(log_minus - log_plus, 700.0))),
        log_ratio=log_minus - log_plus,
        mid_mean=float((p * x).sum()),
        mid_square=float((p * x**2).sum()),
        mid_grid=x,
        mid_density=p / dx,
    )
    ends = torch.maximum(marginal[:, 0], marginal[:, -1]) / marginal.amax(1)
    return result, float(ends.max())


def _log_half_mass(log_p: Tensor) -> float:
    """Mass right of the middle node: trapezoidal rule, Euler-Maclaurin term dx^2 p'(0) / 12.

    The term is bounded where p falls too steeply for it, far below the mass on the other side.
    """
    middle = len(log_p) // 2
    top = log_p[middle:].max()
    if top == -math.inf:
        return -math.inf
    p = (log_p[middle - 1 :] - top).exp()  # from one node left of the middle on
    correction = ((p[2] - p[0]) / 24).clamp_min(-p[1] / 4)
    return float((p[2:].sum() + p[1] / 2 + correction).log() + top)


def _gaussian_bond(rate: float, n: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """log f -> log K f, and the mean energy (E K) f / K f, with E_ij = rate (i - j)^2, K = exp(-E).

    K is cut where it underflows. Rows are done in blocks, each scaled by the largest f in its reach;
    they all share one small dense matrix since K depends on i - j only. Only non-negative numbers
    are added, so small entries keep their relative accuracy; an FFT would lose them below 1e-16 of
    the largest.
    """
    # exp(-600) is the least that a block sees of its largest f: _REACH (1 + 1/4)^2 < 600.
    reach = min(n - 1, math.ceil(math.sqrt(_REACH / rate)))
    block = min(n, max(1, reach // 4), 256)
    n_blocks = -(-n // block)
    offset = torch.arange(block + 2 * reach)[:, None] - reach - torch.arange(block)  # (in, out)
    energy = rate * offset.double() ** 2
    kernel = (-energy).exp().masked_fill(offset.abs() > reach, 0.0)
    both = torch.cat([kernel, kernel * energy], dim=1)  # (block + 2 reach, 2 block)
    right_pad = reach + n_blocks * block - n

    def apply(log_f: Tensor) -> tuple[Tensor, Tensor]:
        padded = torch.nn.functional.pad(log_f, (reach, right_pad), value=-math.inf)
        window = padded.unfold(0, block + 2 * reach, block)  # (n_blocks, block + 2 reach)
        top = window.amax(1, keepdim=True)
        out = (window - top).exp() @ both  # (n_blocks, 2 block)
        total, moment = out[:, :block], out[:, block:]
        log_total = (total.log() + top).reshape(-1)[:n]
        mean = torch.where(total > 0, moment / total, 0.0)  # beyond reach there is no weight at all
        return log_total, mean.reshape(-1)[:n]

    return apply


# ---- phi^4 on a periodic lattice -----------------------------------------------------------------


@dataclass(frozen=True)
class Phi4LatticeExact:
    """Exact expectations of the periodic lattice phi^4 action."""

    log_z: float
    action: float  # E[S], of the whole lattice
    phi_square: float  # E[phi_x^2]
    phi_fourth: float  # E[phi_x^4]
    neighbour: tuple[float, ...]  # E[phi_x phi_{x+mu}], one for each direction mu


@functools.lru_cache(maxsize=64)
def phi4_lattice(shape: tuple[int, ...], kappa: float, lam: float) -> Phi4LatticeExact:
    """Exact expectations under exp(-S) on a periodic lattice,

        S = sum_x [ -2 kappa sum_mu phi_x phi_{x+mu} + phi_x^2 + lam (phi_x^2 - 1)^2 ].

    shape is (L,), a ring, or (L1, L2), a torus with min(L1, L2) at most 3. An extent of 2 joins its
    two sites twice, an extent of 1 joins a site with itself, as the formula says. The transfer
    matrix acts on rows of the smaller extent; each site is integrated by the Gauss rule of its own
    weight, with more nodes until log_z and the action are stable to 1e-9.

    Raises ValueError for a shape out of reach, for an action that is not bounded below, or without
    convergence.
    Cost: an eigendecomposition of n^rows states; seconds for rows of 3.
    """
    if not (1 <= len(shape) <= 2 and all(isinstance(n, int) and n >= 1 for n in shape)):
        raise ValueError(f"shape must be (L,) or (L1, L2) with positive extents, got {shape}")
    if len(shape) == 2 and min(shape) > 3:
        raise ValueError(f"shape must have an extent of at most 3, got {shape}")
    if not math.isfinite(kappa):
        raise ValueError(f"kappa must be finite, got {kappa}")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be non-negative and finite, got {lam}")
    if lam == 0 and 2 * abs(kappa) * len(shape) >= 1:
        raise ValueError(f"kappa must be below 1 / (2 dim) in size when lam = 0, got {kappa}")

    rows = 1 if len(shape) == 1 else min(shape)
    schedule = {1: range(12, 97, 12), 2: range(8, 41, 4), 3: range(6, 15, 2)}[rows]
    previous: Phi4LatticeExact | None = None
    for n_nodes in schedule:
        value = _phi4_lattice_with_nodes(shape, kappa, lam, n_nodes)
        if previous is not None and all(
            abs(new - old) <= 1e-9 * max(1.0, abs(new))
            for new, old in (
                (value.log_z, previous.log_z),
                (value.action, previous.action),
                (value.phi_square, previous.phi_square),
            )
        ):
            return value
        previous = value
    raise ValueError(
        f"phi4_lattice did not converge with {schedule[-1]} nodes a site for {shape=}, {kappa=}, "
        f"{lam=}"
    )


def _phi4_lattice_with_nodes(
    shape: tuple[int, ...], kappa: float, lam: float, n_nodes: int
) -> Phi4LatticeExact:
    strip = len(shape) == 2
    rows, length = (min(shape), max(shape)) if strip else (1, shape[0])
    # Each bond widens a site's density beyond exp(-S) of the site alone, at most by exp(2 |kappa|
    # x^2) a direction; a quarter of that in the weight of the rule, taken out again below, needs
    # the fewest nodes near and off criticality.
    widening = 0.5 * abs(kappa) * len(shape)
    node, log_weight = _gauss_rule(lambda x: (widening - 1) * x**2 - lam * (x**2 - 1) ** 2, n_nodes)
    log_weight = log_weight - widening * node**2
    index = torch.tensor(list(itertools.product(range(n_nodes), repeat=rows)))  # (states, rows)
    row = node[index]  # (states, rows)
    along = (row * row.roll(-1, 1)).mean(1) if strip else torch.zeros(len(row)).double()
    # Symmetric transfer matrix: half of each row's own weight on either side of the bonds between
    # two rows.
    log_half = 0.5 * (log_weight[index].sum(1) + 2 * kappa * rows * along)
    log_transfer = log_half[:, None] + 2 * kappa * (row @ row.T) + log_half
    shift = log_transfer.max()
    eigenvalue, vector = torch.linalg.eigh((log_transfer - shift).exp())
    top = eigenvalue.abs().max()
    ratio = eigenvalue / top
    power = ratio**length
    z = power.sum()
    # Marginal of one row: the diagonal of the transfer matrix to the power L.
    state = (vector**2 @ power) / z  # (states,)

    def mean_of(f: Tensor) -> float:
        return float(state @ f)

    # Tr(X T X T^(L-1)) in the eigenbasis of T, X = phi of one site of the row.
    field = vector.T @ (row[:, :1] * vector)
    across = float((field**2 * ratio[:, None] * ratio ** (length - 1)).sum() / z)
    square, fourth = mean_of(row[:, 0] ** 2), mean_of(row[:, 0] ** 4)
    neighbour: tuple[float, ...] = (across,)
    if strip:
        neighbour = (mean_of(along), across) if shape[0] <= shape[1] else (across, mean_of(along))
    site = -2 * kappa * sum(neighbour) + square + lam * (fourth - 2 * square + 1)
    return Phi4LatticeExact(
        log_z=float(z.log()) + length * float(top.log() + shift),
        action=rows * length * site,
        phi_square=square,
        phi_fourth=fourth,
        neighbour=neighbour,
    )


def _gauss_rule(log_weight: Callable[[Tensor], Tensor], n_nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss nodes and log-weights (n,), (n,) for an even, fast decaying weight on the line.

    Lanczos on a fine trapezoidal rule gives the recurrence of the orthogonal polynomials, whose
    Jacobi matrix has the nodes as eigenvalues (Golub and Welsch 1969).
    """
    x_max = 4.0
    while True:
        x = torch.linspace(-x_max, x_max, 8001, dtype=torch.float64)
        log_w = log_weight(x)
        top = log_w.max()
        if (
            log_w[-1] < top - 400
        ):  # polynomials of twice the largest order cannot raise e^-400 again
            break
        x_max *= 1.5
    w = (log_w - top).exp() * (x[1] - x[0])
    # Exponential convergence: if twice the spacing is good to 1e-7, this one is good to 1e-14.
    coarse, fine = float(2 * w[::2].sum()), float(w.sum())
    if not abs(coarse - fine) <= 1e-7 * fine:
        raise ValueError(f"the site weight is too narrow for a spacing of {2 * x_max / 8000}")
    basis = [w.sqrt() / w.sum().sqrt()]
    diagonal, off = [], []
    for _ in range(n_nodes):
        v = x * basis[-1]
        diagonal.append(v @ basis[-1])
        # Twice over all earlier vectors: plain Lanczos loses orthogonality after a few dozen steps.
        known = torch.stack(basis)
        for _ in range(2):
            v = v - known.T @ (known @ v)
        off.append(v.norm())
        basis.append(v / off[-1])
    off_diagonal = torch.stack(off[:-1])
    jacobi = torch.diag(torch.stack(diagonal)) + off_diagonal.diag(1) + off_diagonal.diag(-1)
    node, vector = torch.linalg.eigh(jacobi)
    return node, (vector[0] ** 2).log() + w.sum().log() + top


# ---- finite Markov chains ------------------------------------------------------------------------


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


# ---- densities in one and two dimensions ---------------------------------------------------------


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
    _require_interval(lo, hi)
    _require_count("n", n, 5)
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
    _require_count("n", n, 2)
    for i in range(2):
        _require_interval(lo[i], hi[i])
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


def _require_interval(lo: float, hi: float) -> None:
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"lo must be below hi and both finite, got lo={lo}, hi={hi}")


def _require_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
