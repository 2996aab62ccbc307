"""Exact answers for the Ising model, and the published numbers of its critical point.

Finite torus: Kaufman, Phys. Rev. 76, 1232 (1949), in the form of Ferdinand and Fisher, Phys. Rev. 185, 832
(1969). Infinite plane: Onsager, Phys. Rev. 65, 117 (1944), and Yang, Phys. Rev. 85, 808 (1952). Small
lattices in any dimension: the sum over all states.

Conventions: log p = β Σ_<xy> s_x s_y, each bond once, an extent of 2 with two bonds between its sites;
energies are −Σ s s' without β, per site.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp.theory.lattice import derivatives, require_counts

BETA_C_2D = math.log(1 + math.sqrt(2)) / 2  # Kramers and Wannier (1941), Onsager (1944)
BINDER_2D = (
    0.61069014  # 1 − ⟨m⁴⟩/3⟨m²⟩², square torus: Kamieniarz and Blöte, J. Phys. A 26, 201 (1993)
)
BETA_C_3D = 0.22165462  # (2): Hasenbusch, Phys. Rev. B 82, 174433 (2010)
BETA_C_3D_ERROR = 0.00000002
BINDER_RATIO_3D = 1.6036  # (1): ⟨m⁴⟩/⟨m²⟩² on the cubic torus, ibid.
BINDER_RATIO_3D_ERROR = 0.0001
NU_2D, NU_3D = 1.0, 0.629971  # 3-D: (4), Kos, Poland, Simmons-Duffin, Vichi, JHEP 08 (2016) 036
OMEGA_3D = 0.832  # (6): leading correction to scaling, Hasenbusch (2010)
Z_METROPOLIS_2D = 2.1667  # (5): Nightingale and Blöte, Phys. Rev. B 62, 1089 (2000)
Z_METROPOLIS_2D_ERROR = 0.0005
Z_WOLFF_2D = (
    0.2,
    0.3,
)  # effective at L ~ 100: Wolff, Phys. Lett. B 228, 379 (1989), and later work
MAX_SITES = 20


@dataclass(frozen=True)
class IsingExact:
    """Exact expectations at one β; per site where it says so."""

    log_z: float  # of the whole torus; of the infinite plane, per site
    energy: float  # ⟨−Σ s s'⟩ per site
    specific_heat: float  # β² V (⟨e²⟩ − ⟨e⟩²)
    magnetisation: float | None = None  # spontaneous, of the infinite plane


@functools.lru_cache(maxsize=256)
def torus(shape: tuple[int, int], beta: float) -> IsingExact:
    """The L × M torus at any β > 0, in time L.

        Z = ½ (2 sinh 2β)^{LM/2} [Π 2cosh(Mγ_{2r+1}/2) + Π 2sinh(Mγ_{2r+1}/2)
                                  + Π 2cosh(Mγ_{2r}/2) + Π 2sinh(Mγ_{2r}/2)],   r = 0 … L−1,

    cosh γ_l = cosh² 2β / sinh 2β − cos(πl/L) and γ_0 = 2β + ln tanh β, negative above T_c.

    Raises ValueError for extents below 2 or β outside (0, 100].
    """
    if len(shape) != 2:
        raise ValueError(f"shape must be two extents, got {shape}")
    for extent in shape:
        require_counts(shape=(extent, 2))
    if not 0 < beta <= 100:
        raise ValueError(f"beta must be positive and at most 100, got {beta}")
    length, width = shape
    l = torch.arange(2 * length, dtype=torch.float64)

    def log_z(b: Tensor) -> Tensor:
        s = (2 * b).sinh()
        # cosh γ − 1 without cancellation; γ_0 apart, for its sign.
        x = (s - 1) ** 2 / s + 2 * (math.pi * l[1:] / (2 * length)).sin() ** 2
        gamma = 2 * (x / 2).sqrt().asinh()  # (2L − 1,), l = 1 … 2L−1
        half = width / 2 * gamma
        log_cosh = half + (-2 * half).exp().log1p()
        log_sinh = half + (-(-2 * half).expm1()).log()
        edge = width / 2 * (2 * b + b.tanh().log())
        # 2 cosh and 2 sinh of the mode l = 0 as two terms each: the sine may be negative or 0.
        even_cosh, even_sinh = log_cosh[1::2].sum(), log_sinh[1::2].sum()
        logs = torch.stack(
            [
                log_cosh[0::2].sum(),
                log_sinh[0::2].sum(),
                even_cosh + edge,
                even_cosh - edge,
                even_sinh + edge,
                even_sinh - edge,
            ]
        )
        sign = torch.tensor([1.0, 1, 1, 1, 1, -1], dtype=torch.float64)
        top = logs.max().detach()
        total = (sign * (logs - top).exp()).sum().log() + top
        return total - math.log(2) + length * width / 2 * (2 * s).log()

    value, slope, curvature = derivatives(log_z, beta)
    n_sites = length * width
    return IsingExact(value, -slope / n_sites, beta**2 * curvature / n_sites)


def infinite(beta: float) -> IsingExact:
    """The infinite square lattice; at β_c the specific heat is infinite.

    Raises ValueError for β outside (0, 100].
    """
    if not 0 < beta <= 100:
        raise ValueError(f"beta must be positive and at most 100, got {beta}")
    s, c, t = math.sinh(2 * beta), math.cosh(2 * beta), math.tanh(2 * beta)
    modulus = 2 * s / c**2
    complement = (s * s - 1) / c**2  # = 2 tanh² 2β − 1, its square is 1 − modulus²
    first, second = _elliptic(abs(complement))
    product = complement * first if complement != 0 else 0.0
    energy = -(1 + 2 / math.pi * product) / t
    heat = first - second - (1 - t * t) * (math.pi / 2 + product)
    # The integrand has period π and is even: the midpoint rule, fine enough for the kink at β_c.
    angle = (torch.arange(20_000, dtype=torch.float64) + 0.5) * (math.pi / 2 / 20_000)
    integral = (1 + (1 - (modulus * angle.sin()) ** 2).clamp_min(0).sqrt()).log().mean() / 2
    return IsingExact(
        log_z=math.log(math.sqrt(2) * c) + float(integral),
        energy=energy,
        specific_heat=4 / math.pi * (beta / t) ** 2 * heat,
        magnetisation=(1 - s**-4) ** 0.125 if s > 1 else 0.0,
    )


def _elliptic(complement: float) -> tuple[float, float]:
    """Complete elliptic integrals K, E of the modulus √(1 − complement²), by the AGM."""
    if complement == 0:
        return math.inf, 1.0
    a, g, loss, power = 1.0, complement, (1 - complement**2) / 2, 1.0
    while a - g > 1e-9 * a:  # squared in every turn, so that one more is not needed
        a, g, gap = (a + g) / 2, math.sqrt(a * g), (a - g) / 2
        loss += power * gap * gap
        power *= 2
    first = math.pi / (a + g)
    return first, first * (1 - loss)


@dataclass(frozen=True, eq=False)
class IsingStates:
    """All states of a small lattice by total energy and magnetisation."""

    n_sites: int
    energy: Tensor  # (k,) float64, −Σ s s'
    magnetisation: Tensor  # (k,) float64, Σ s
    count: Tensor  # (k,) float64, states with this pair; they sum to 2^n_sites

    def probability(self, beta: float) -> Tensor:
        """(k,), of each pair of energy and magnetisation."""
        return (self.count.log() - beta * self.energy).softmax(0)

    def log_z(self, beta: float) -> float:
        return float((self.count.log() - beta * self.energy).logsumexp(0))

    def moments(self, beta: float) -> dict[str, float]:
        """Means of the observables of the spin targets, per site, by their names, and "energy²"."""
        p = self.probability(beta)
        e, m = self.energy / self.n_sites, self.magnetisation / self.n_sites
        series = {
            "energy": e,
            "energy²": e**2,
            "|magnetisation|": m.abs(),
            "magnetisation²": m**2,
            "magnetisation⁴": m**4,
        }
        return {name: float(p @ values) for name, values in series.items()}


@functools.lru_cache(maxsize=16)
def states(shape: tuple[int, ...], periodic: bool = True) -> IsingStates:
    """Count the states of a lattice of at most 20 sites. Raises ValueError for a larger one."""
    for extent in shape:
        require_counts(shape=(extent, 2))
    n_sites = math.prod(shape)
    if not shape or n_sites > MAX_SITES:
        raise ValueError(f"shape must have 1 to {MAX_SITES} sites, got {shape}")
    n_bonds = n_sites * len(shape)  # at most
    table = torch.zeros((2 * n_bonds + 1) * (2 * n_sites + 1), dtype=torch.int64)
    bits = torch.arange(n_sites)
    for start in range(0, 2**n_sites, 1 << 16):
        number = torch.arange(start, min(start + (1 << 16), 2**n_sites))
        spin = (1 - 2 * (number[:, None] >> bits & 1)).reshape(-1, *shape)
        bonds = torch.zeros(len(number), dtype=torch.int64)
        for axis, extent in enumerate(shape, 1):
            product = spin * spin.roll(-1, axis)
            if not periodic:
                product = product.narrow(axis, 0, extent - 1)
            bonds += product.flatten(1).sum(1)
        cell = (n_bonds - bonds) * (2 * n_sites + 1) + spin.flatten(1).sum(1) + n_sites
        table += cell.bincount(minlength=len(table))
    cell = table.nonzero().flatten()
    return IsingStates(
        n_sites=n_sites,
        energy=(cell // (2 * n_sites + 1) - n_bonds).double(),
        magnetisation=(cell % (2 * n_sites + 1) - n_sites).double(),
        count=table[cell].double(),
    )
