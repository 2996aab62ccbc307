"""The phi^4 chain with Dirichlet ends by transfer matrix.

The chain of Grenioux et al. (SLIPS, 2024, arXiv 2402.10758) and Gabrie, Rotskoff and Vanden-Eijnden
(2022, arXiv 2105.12603). One transfer operator per bond, a trapezoidal rule replacing each integral: the
integrands are analytic and decay, so the rule converges exponentially.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp.exact.arguments import check_chain, require_count

_EDGE = 1e-16  # density at the end of a grid, relative to its largest value, that counts as zero
_MAX_GRID = 100_001
_REACH = 370.0  # bonds of more energy than this count as broken


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
    check_chain(n_sites, a, beta, h)
    require_count("n_grid", n_grid, 101)
    if n_grid % 2 == 0:
        raise ValueError(f"n_grid must be odd so that 0 is a node, got {n_grid}")
    if not (math.isfinite(x_max) and x_max > 0):
        raise ValueError(f"x_max must be positive and finite, got {x_max}")

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
