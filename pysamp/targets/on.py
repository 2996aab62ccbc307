"""O(n) models: spins of fixed length, the soft φ⁴ form, and its limit of infinitely many components.

Fixed length, |s_x| = 1, each bond once (n = 1 Ising, 2 XY, 3 Heisenberg; Stanley, Phys. Rev. Lett. 20,
589 (1968)), and soft, a field in R^n with the Hamiltonian of Landau, Ginzburg and Wilson:

    log p(s) = β Σ_<xy> s_x·s_y,
    −log p(φ) = ½ Σ_<xy> (φ_x − φ_y)² + Σ_x [ ½ r φ_x² + (u/4n) (φ_x²)² ].

For n → ∞ the components of the soft field become independent free fields, whose mass solves a gap
equation (Moshe and Zinn-Justin, Phys. Rep. 385, 69 (2003), arXiv hep-th/0306133):

    G_k = 1/(k̂² + m²),   m² = r + (u/V) Σ_k G_k,   k̂² = Σ_μ 4 sin²(π q_μ/L_μ).

An extent of 2 has two bonds between its two sites, x+μ and x−μ being the same site.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import ops, reference, rng
from pysamp.capabilities import NativeEnergy
from pysamp.targets.field import (
    FieldTarget,
    Lattice,
    QuarticField,
    check_components,
    check_finite,
    lattice_colours,
    lattice_shape,
    native_tensors,
    neighbour_table,
    neighbours,
    of_one_field,
)


@dataclass(frozen=True)
class ON:
    """Spins of length 1 with n components: log p(s) = β Σ_<xy> s_x·s_y with respect to the uniform
    measure on spheres (n = 1: on ±1).

    Events are (*shape, n), in 1 to 3 dimensions, periodic unless `periodic=False` (no spins outside).
    β < 0 is the antiferromagnet. The density lives on unit spins only: it has site moves and cluster
    moves, but no score. `log_prob` is defined by the formula for all x.

    Raises ValueError for other dimensions, extents below 2, n outside 1…8, and |β| < 1e-6, where the energy
    could not be read off log_prob in float32 (take `Tempered(target, 0.0)` for free spins).
    """

    shape: tuple[int, ...]
    n: int
    beta: float
    periodic: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", lattice_shape(self.shape))
        check_components(self.n)
        check_finite(beta=self.beta)
        if abs(self.beta) < 1e-6:
            raise ValueError(
                "beta must not be 0, nor below 1e-6, for the energy is read off log_prob; "
                f"Tempered(target, 0.0) of another beta has free spins, got beta={self.beta}"
            )

    @staticmethod
    def soft(shape: tuple[int, ...], n: int, r: float, u: float, periodic: bool = True) -> SoftON:
        """Fields in R^n with a quartic potential instead of a fixed length."""
        return SoftON(shape, n, r, u, periodic)

    @staticmethod
    def large_n(shape: tuple[int, ...], r: float, u: float) -> LargeN:
        """One component of the soft model for n → ∞."""
        return LargeN(shape, r, u)

    @functools.cached_property
    def lattice(self) -> Lattice:
        return Lattice(self.shape, self.periodic, self.n, vector=True)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.lattice.event_shape

    @functools.cached_property
    def native(self) -> NativeEnergy:
        table = neighbour_table(self.shape, self.periodic)
        return NativeEnergy("spins", (float(self.beta),), self.lattice.layout, None, table)

    def log_prob(self, x: Tensor) -> Tensor:
        flat = self.lattice.flat(x)
        params, table = native_tensors(self.native, x.device, x.dtype)
        return ops.spins(flat, params, table, list(self.native.layout))[0]

    def start(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Random spins (n, *shape, n): uniform on the sphere, independent."""
        z = rng.normal(
            (n, *self.event_shape), seed=seed, stream="start", first_chain=first_chain,
            device=device, dtype=dtype,
        )  # fmt: skip
        if self.n == 1:
            return torch.where(z < 0, -1.0, 1.0).to(dtype)
        # In the order of the components, so that chains start from the same bits on every device.
        return z * (1.0 / reference.sqrt_rn(reference.dot(z, z)))[..., None]

    # ------------------------------------------------------------------------ moves
    @property
    def site_colours(self) -> tuple[Tensor, ...]:
        return lattice_colours(self.shape, self.periodic)

    @property
    def n_components(self) -> int:
        return self.n

    @property
    def unit_length(self) -> bool:
        return True

    def local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        """h = β Σ_{y~x} s_y: (n, len(sites), n)."""
        return self.lattice.around(x, sites) * x.new_tensor(self.beta)

    @property
    def couplings(self) -> tuple[float, Tensor]:
        return float(self.beta), neighbours(self.shape, self.periodic)

    @property
    def zero_means(self) -> tuple[str, ...]:
        return ("magnetisation",)

    # ------------------------------------------------------------------------ what is measured
    def record(self, x: Tensor) -> Tensor:
        return self.lattice.record(x, self.log_prob(x))

    def from_record(self, record: Tensor) -> dict[str, Tensor]:
        """Observables by name; the energy per site is −(1/V) Σ_<xy> s_x·s_y, in units of J = 1."""
        found = self.lattice.from_record(record, self.beta)
        del found["phi²"]  # it is 1
        return found | ({"current²": record[..., 8]} if self.n == 2 else {})

    def derived(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of field.py, with their factors of β, and for the XY model the helicity modulus

            Υ = −⟨e⟩/d − β ⟨current²⟩ = (1/V) [⟨Σ_x s_x·s_{x+μ}⟩ − β ⟨(Σ_x sin(θ_{x+μ} − θ_x))²⟩],

        averaged over the axes μ, in units of J = 1.
        """
        out = self.lattice.derived(mean, self.beta)
        if self.n == 2:
            out["helicity"] = -mean["energy"] / len(self.shape) - self.beta * mean["current²"]
        return out

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        """Per field: energy per site, moments of the mean spin, structure factor, for XY current²."""
        return of_one_field(self.from_record(self.record(x)))


@dataclass(frozen=True)
class SoftON(FieldTarget):
    """Fields φ_x in R^n, with bonds to the zeros outside unless periodic:

        −log p(φ) = ½ Σ_<xy> (φ_x − φ_y)² + Σ_x [ ½ r φ_x² + (u/4n) (φ_x²)² ].

    Events are (*shape, n). Raises ValueError for other than 1 to 3 dimensions, extents below 2, n
    outside 1…8, u < 0, or u = 0 with an r at which the density has no finite integral.
    """

    shape: tuple[int, ...]
    n: int
    r: float
    u: float
    periodic: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", lattice_shape(self.shape))
        check_components(self.n)
        check_finite(r=self.r, u=self.u)
        if self.u < 0:
            raise ValueError(f"u must not be negative, got {self.u}")
        lowest = 0.0  # eigenvalue of the lattice Laplacian
        if not self.periodic:
            lowest = sum(4 * math.sin(math.pi / (2 * (length + 1))) ** 2 for length in self.shape)
        if self.u == 0 and not self.r + lowest > 0:
            raise ValueError(f"r must exceed {-lowest} where u = 0, got {self.r}")

    @functools.cached_property
    def field(self) -> QuarticField:
        lattice = Lattice(self.shape, self.periodic, self.n, vector=True)
        return QuarticField(lattice, (1.0, 0.0, self.r / 2, self.u / (4 * self.n), 0.0))

    def local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        """h = Σ_{y~x} φ_y: (n, len(sites), n)."""
        return self.field.local_field(x, sites)

    @property
    def couplings(self) -> tuple[float, Tensor]:
        return self.field.bonds


@dataclass(frozen=True)
class LargeN(FieldTarget):
    """One component of the soft O(n) model for n → ∞, periodic: a free field of propagator G_k.

    Events are (*shape,). `log_z` and `sample` are exact. Raises ValueError for other than 1 to 3
    dimensions, extents below 2, u < 0, or r ≤ 0 where u = 0.
    """

    shape: tuple[int, ...]
    r: float
    u: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", lattice_shape(self.shape))
        check_finite(r=self.r, u=self.u)
        if self.u < 0:
            raise ValueError(f"u must not be negative, got {self.u}")
        if self.u == 0 and not self.r > 0:
            raise ValueError(f"r must be positive where u = 0, got {self.r}")

    @functools.cached_property
    def k_squared(self) -> Tensor:
        """k̂² (*shape), float64, in the order of torch.fft."""
        total = torch.zeros(self.shape, dtype=torch.float64)
        for axis, length in enumerate(self.shape):
            k = 4 * torch.sin(math.pi / length * torch.arange(length, dtype=torch.float64)) ** 2
            total = total + k.reshape([-1 if a == axis else 1 for a in range(len(self.shape))])
        return total

    @functools.cached_property
    def mass_squared(self) -> float:
        """The root m² > 0 of the gap equation.

        f(m²) = m² − r − (u/V) Σ_k G_k is increasing and concave, so that Newton's steps from a point
        below the root, that of k = 0 alone, rise to it.
        """
        k, v = self.k_squared, math.prod(self.shape)
        root = math.hypot(self.r, 2 * math.sqrt(self.u / v))
        mass = (self.r + root) / 2 if self.r >= 0 else 2 * self.u / v / (root - self.r)
        for _ in range(200):
            g = 1 / (k + mass)
            f = mass - self.r - self.u * float(g.mean())
            step = f / (1 + self.u * float(g.square().mean()))
            mass -= step
            if abs(step) <= 1e-15 * mass:
                break
        return mass

    @functools.cached_property
    def propagator(self) -> Tensor:
        """G_k (*shape), float64: the mean of |φ_k|²/V, φ_k = Σ_x φ_x e^{−ik·x}."""
        return 1 / (self.k_squared + self.mass_squared)

    @functools.cached_property
    def field(self) -> QuarticField:
        lattice = Lattice(self.shape, periodic=True)
        return QuarticField(lattice, (1.0, 0.0, self.mass_squared / 2, 0.0, 1.0))

    @property
    def couplings(self) -> tuple[float, Tensor]:
        return self.field.bonds

    @property
    def log_z(self) -> float:
        return 0.5 * float((2 * math.pi * self.propagator).log().sum())

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact draws (n, *shape): white noise times √G_k."""
        z = rng.normal(
            (n, *self.shape), seed=seed, stream="target", first_chain=first_chain, device=device,
            dtype=dtype,
        )  # fmt: skip
        axes = tuple(range(1, z.ndim))
        amplitude = self.propagator.sqrt().to(z)[..., : self.shape[-1] // 2 + 1]
        waves = torch.fft.rfftn(z, dim=axes) * amplitude
        return torch.fft.irfftn(waves, s=self.shape, dim=axes)
