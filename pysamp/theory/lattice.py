"""Exact answers for lattice fields: chains by transfer operators, free fields, the limit n → ∞.

O(n) chains: the kernel exp(β s·s') on the sphere has the spherical harmonics as eigenfunctions (Stanley,
Phys. Rev. 179, 570 (1969); n = 1 Ising 1925, n = 3 Fisher, Am. J. Phys. 32, 343 (1964)). φ⁴ ring: the
transfer matrix of the action of Lüscher and Weisz, Nucl. Phys. B 290, 25 (1987), on a grid. Free field and
n → ∞: Gaussian, with the gap equation of Stanley, Phys. Rev. 176, 718 (1968).

Conventions are those of the targets: log p = β Σ s·s' for spins, energies without β and per site, each
bond counted once, an extent of 2 with two bonds between its sites. Functions take parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

T_KT = 0.8929  # 2-D XY square lattice: β = 1.1199(1), Hasenbusch, J. Phys. A 38, 5869 (2005)
T_KT_ERROR = 0.0001
# Υ/T at T_KT as L → ∞ on a square torus: 2/π less the windings of the boundary (ibid.). The correction
# is 1 + 1/(2 ln L + C): Weber and Minnhagen, Phys. Rev. B 37, 5986 (1988).
XY_JUMP = 0.63650817819
_MAX_BETA = 1e4


@dataclass(frozen=True, eq=False)
class Chain:
    """Exact expectations of a one-dimensional field."""

    log_z: float  # of exp(log_prob), over all components or over the surface of the spheres
    energy: float  # ⟨e⟩ per site: −Σ s·s' / V of spins, the action / V of φ⁴
    specific_heat: float  # V(⟨e²⟩ − ⟨e⟩²), for spins times β²
    two_point: Tensor  # (L,) ⟨φ_0·φ_r⟩; in an open chain of spins it is that of any two sites
    correlation_length: float  # −1 / ln(λ₁/λ₀), of the infinite chain
    periodic: bool
    helicity: float | None = None  # Υ of the XY ring, in units of J

    @property
    def magnetisation2(self) -> float:
        """⟨m²⟩ of m = (1/V) Σ φ."""
        g, length = self.two_point, len(self.two_point)
        if self.periodic:
            return float(g.mean())
        r = torch.arange(1, length, dtype=torch.float64)
        return float((length * g[0] + 2 * ((length - r) * g[1:]).sum()) / length**2)

    @property
    def structure(self) -> float:
        """⟨|Σ_x φ_x e^{2πi x/L}|²⟩ / V². Raises ValueError for an open chain."""
        if not self.periodic:
            raise ValueError("structure needs a periodic chain, got periodic=False")
        length = len(self.two_point)
        angle = 2 * math.pi / length * torch.arange(length, dtype=torch.float64)
        return float((self.two_point * angle.cos()).mean())

    @property
    def second_moment_length(self) -> float:
        """ξ = √(⟨m²⟩/F − 1) / (2 sin(π/L)), F the `structure`."""
        ratio = self.magnetisation2 / self.structure - 1
        return math.sqrt(ratio) / (2 * math.sin(math.pi / len(self.two_point)))


# ---- O(n) spins in one dimension -----------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def spin_chain(n_sites: int, n: int, beta: float, periodic: bool = True) -> Chain:
    """n-component spins |s| = 1 on a ring or an open chain, log p = β Σ s_x·s_{x+1}.

    Z = Σ_l d_l λ_l^L on the ring and λ₀^{L−1} on the open chain; λ_l is the eigenvalue of the
    harmonics of degree l. s takes degree l to l ± 1, so that

        ⟨s_0·s_r⟩ Z = Σ_l w_l (λ_l^{L−r} λ_{l+1}^r + λ_{l+1}^{L−r} λ_l^r),  w_l = d_l (l+n−2)/(2l+n−2).

    log_z integrates over the surface of each sphere (n = 1 sums over two states). A twist Φ of the
    XY ring multiplies λ_l^L by e^{ilΦ}, which gives its helicity modulus, (L/β) ⟨l²⟩.

    Raises ValueError for n_sites < 2, n < 1 or beta outside (0, 10⁴].
    """
    require_counts(n_sites=(n_sites, 2), n=(n, 1))
    if not 0 < beta <= _MAX_BETA:
        raise ValueError(f"beta must be positive and at most {_MAX_BETA:g}, got {beta}")
    top = 1 if n == 1 else 20 + math.ceil(10 * math.sqrt(beta))
    degree = torch.arange(top + 1, dtype=torch.float64)
    many = torch.tensor([_harmonics(n, l) for l in range(top + 1)], dtype=torch.float64)
    area = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)

    def log_z(b: Tensor) -> Tensor:
        log_eigenvalue = _log_sphere_eigenvalues(b, n, degree)
        if not periodic:
            return n_sites * area + (n_sites - 1) * log_eigenvalue[0]
        return n_sites * area + (many.log() + n_sites * log_eigenvalue).logsumexp(0)

    value, slope, curvature = derivatives(log_z, beta)
    log_ratio = _log_sphere_eigenvalues(torch.tensor(beta, dtype=torch.float64), n, degree)
    log_ratio = log_ratio - log_ratio[0]  # (l,)
    r = torch.arange(n_sites, dtype=torch.float64)
    helicity = None
    if periodic:
        weight = many * (n_sites * log_ratio).exp()  # (l,)
        z = weight.sum()
        step = torch.where(degree > 0, many * (degree + n - 2) / (2 * degree + n - 2), 1.0)[:-1]
        low, high = log_ratio[:-1, None], log_ratio[1:, None]
        terms = ((n_sites - r) * low + r * high).exp() + ((n_sites - r) * high + r * low).exp()
        two_point = step @ terms / z  # (r,)
        if n == 2:
            helicity = float(n_sites / beta * (degree**2 @ weight) / z)
    else:
        two_point = (r * log_ratio[1]).exp()
    return Chain(
        log_z=value,
        energy=-slope / n_sites,
        specific_heat=beta**2 * curvature / n_sites,
        two_point=two_point,
        correlation_length=-1 / float(log_ratio[1]),
        periodic=periodic,
        helicity=helicity,
    )


def _harmonics(n: int, degree: int) -> int:
    """Independent harmonics of one degree on the sphere in n dimensions."""
    lower = math.comb(degree + n - 3, n - 1) if degree + n >= 3 and degree >= 2 else 0
    return math.comb(degree + n - 1, n - 1) - lower


def _log_sphere_eigenvalues(beta: Tensor, n: int, degree: Tensor) -> Tensor:
    """ln λ_l, λ_l = Γ(n/2) (2/β)^{n/2−1} I_{n/2−1+l}(β), the measure of the sphere normalised to 1.

    The power series of the Bessel function has positive terms only, so nothing cancels.
    """
    size = float(beta.detach())
    k = torch.arange(math.ceil(size + 12 * math.sqrt(size)) + 60, dtype=torch.float64)
    log_half = (beta / 2).log()
    nu = degree[:, None] + n / 2
    terms = 2 * k * log_half - torch.lgamma(k + 1) - torch.lgamma(nu + k)  # (l, k)
    return math.lgamma(n / 2) + degree * log_half + terms.logsumexp(1)


# ---- φ⁴ on a ring --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def phi4_ring(n_sites: int, kappa: float, lam: float) -> Chain:
    """The periodic φ⁴ chain, p ∝ e^{−S}, S = Σ [−2κ φ_x φ_{x+1} + φ_x² + λ (φ_x² − 1)²].

    T(φ, φ') = exp(−V(φ)/2 + 2κ φφ' − V(φ')/2) on an equidistant grid, on which the trapezoidal rule
    converges exponentially; nodes are doubled until log Z, ⟨S⟩ and its variance stand to 10⁻⁹.

    Raises ValueError for n_sites < 2, an action that is not bounded below, or without convergence.
    """
    require_counts(n_sites=(n_sites, 2))
    if not math.isfinite(kappa):
        raise ValueError(f"kappa must be finite, got {kappa}")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be non-negative and finite, got {lam}")
    if lam == 0 and 2 * abs(kappa) >= 1:
        raise ValueError(f"kappa must be below 1/2 in size when lam = 0, got {kappa}")
    # Σ S ≥ Σ (1 − 2|κ|) φ² + λ (φ² − 1)²: beyond `edge` this bound is 50 above its minimum.
    x = torch.linspace(0, 100, 100_001, dtype=torch.float64)
    bound = (1 - 2 * abs(kappa)) * x**2 + lam * (x**2 - 1) ** 2
    edge = float(x[(bound - bound.min() < 50).nonzero()[-1]])
    previous: Chain | None = None
    for half in (50, 100, 200, 400):
        chain = _phi4_ring_on_grid(n_sites, kappa, lam, half, edge)
        if previous is not None and all(
            abs(new - old) <= 1e-9 * max(1.0, abs(new))
            for new, old in (
                (chain.log_z, previous.log_z),
                (chain.energy, previous.energy),
                (chain.specific_heat, previous.specific_heat),
            )
        ):
            return chain
        previous = chain
    raise ValueError(f"phi4_ring did not converge for {n_sites=}, {kappa=}, {lam=}")


def _phi4_ring_on_grid(n_sites: int, kappa: float, lam: float, half: int, edge: float) -> Chain:
    dx = edge / half
    x = torch.arange(-half, half + 1, dtype=torch.float64) * dx
    site = x**2 + lam * (x**2 - 1) ** 2
    action = (site[:, None] + site) / 2 - 2 * kappa * x[:, None] * x
    eigenvalue, vector = torch.linalg.eigh((-action).exp() * dx)
    top = eigenvalue.abs().max()
    ratio = eigenvalue / top  # ascending, the last one is 1

    def log_z(t: Tensor) -> Tensor:  # of exp(−t S), whose derivatives are the cumulants of S
        trace = torch.linalg.matrix_power((-t * action).exp() * (dx / top), n_sites).trace()
        return trace.log() + n_sites * top.log()

    value, slope, curvature = derivatives(log_z, 1.0)
    field = (vector.T @ (x[:, None] * vector)) ** 2  # |⟨i|φ|j⟩|²
    powers = torch.stack([ratio**r for r in range(n_sites + 1)])  # (r, i)
    two_point = torch.einsum("ri,ij,rj->r", powers[1:].flip(0), field, powers[:-1])
    order = ratio.abs().argsort(descending=True)
    return Chain(
        log_z=value,
        energy=-slope / n_sites,
        specific_heat=curvature / n_sites,
        two_point=two_point / powers[-1].sum(),
        correlation_length=-1 / math.log(float(ratio[order[1]].abs())),
        periodic=True,
    )


# ---- Gaussian fields -----------------------------------------------------------------------------


def lattice_momenta_squared(shape: tuple[int, ...]) -> Tensor:
    """k̂² = Σ_μ 4 sin²(π q_μ / L_μ) for all modes q, shape `shape`."""
    total = torch.zeros(shape, dtype=torch.float64)
    for axis, length in enumerate(shape):
        q = torch.arange(length, dtype=torch.float64)
        along = 4 * (math.pi * q / length).sin() ** 2
        total = total + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return total


def propagator(shape: tuple[int, ...], mass2: float, stiffness: float = 1.0) -> Tensor:
    """G_k = ⟨|φ_k|²⟩ / V = 1/(J k̂² + m²), shape `shape`, of −log p = ½ Σ [J (∇φ)² + m² φ²].

    φ_k = Σ_x φ_x e^{−ikx}. G_0 = V⟨m²⟩, the mean of G_k is ⟨φ²⟩, its inverse FFT is ⟨φ_0 φ_x⟩.
    Raises ValueError unless G_k is positive and finite for all k.
    """
    inverse = stiffness * lattice_momenta_squared(shape) + mass2
    if not bool((inverse > 0).all() & inverse.isfinite().all()):
        raise ValueError(
            f"mass2 must make J k² + m² positive everywhere, got {mass2} with stiffness {stiffness}"
        )
    return 1 / inverse


def phi4_propagator(shape: tuple[int, ...], kappa: float) -> Tensor:
    """G_k of the lattice φ⁴ action at λ = 0: 1/(2 − 4κ Σ_μ cos k_μ), that is J = 2κ, m² = 2 − 4dκ."""
    return propagator(shape, 2 - 4 * len(shape) * kappa, 2 * kappa)


def gap_mass2(shape: tuple[int, ...], r: float, u: float) -> float:
    """The root m² > 0 of m² = r + u (1/V) Σ_k 1/(k̂² + m²): the soft O(n) model as n → ∞.

    Its Hamiltonian is ½ Σ (∇φ)² + Σ [½ r φ² + (u/4n)(φ²)²]. Raises ValueError for u < 0, or u = 0 ≥ r.
    """
    if not (math.isfinite(r) and math.isfinite(u)):
        raise ValueError(f"r and u must be finite, got r={r}, u={u}")
    if u < 0 or (u == 0 and r <= 0):
        raise ValueError(f"u must be positive, or 0 with a positive r, got r={r}, u={u}")
    momenta = lattice_momenta_squared(shape)

    def excess(mass2: float) -> float:  # increases with mass2, from −∞ where u > 0
        return mass2 - r - u * float((1 / (momenta + mass2)).mean())

    if u == 0:
        return r
    high = max(r, 0.0) + math.sqrt(u)  # the mean is below 1/m²
    low = high
    while excess(low) > 0:
        low /= 4
    for _ in range(200):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


def large_n_phi2(shape: tuple[int, ...], r: float, u: float) -> tuple[float, float]:
    """a and b of ⟨φ²⟩/n = a + b/n + O(1/n²) of the soft O(n) model.

    With Π(q) = (1/V) Σ_k G_k G_{k+q}, the saddle point and the fluctuations around it give

        ln Z = n A(r) − ½ Σ_q ln(1 + u Π(q)) + O(1/n),     ⟨φ²⟩ = −(2/V) ∂ ln Z/∂r,

    where ∂m²/∂r = 1/(1 + u Π(0)). Raises as `gap_mass2`.
    """
    g = propagator(shape, gap_mass2(shape, r, u))
    axes = tuple(range(g.ndim))
    in_space, slope = (torch.fft.ifftn(f, dim=axes).real for f in (g, -(g**2)))  # G(x), ∂G(x)/∂m²
    bubble = torch.fft.fftn(in_space**2, dim=axes).real  # Π(q)
    bubble_slope = torch.fft.fftn(2 * in_space * slope, dim=axes).real
    response = 1 / (1 + u * float((g**2).mean()))
    b = response * float((u * bubble_slope / (1 + u * bubble)).mean())
    return float(g.mean()), b


# ---- common --------------------------------------------------------------------------------------


def derivatives(f: Callable[[Tensor], Tensor], at: float) -> tuple[float, float, float]:
    """f, f' and f''."""
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        value = f(x)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, x)
    return float(value.detach()), float(slope.detach()), float(curvature)


def require_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
