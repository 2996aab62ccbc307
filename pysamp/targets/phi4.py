"""φ⁴ fields: the continuum chain of the sampling papers, and the lattice form of field theory.

Both are one energy (field.py) with c = 1: with Δ_x = z φ_x − Σ_{y~x} φ_y,

    −log p(φ) = Σ_x [ φ_x (½ J Δ_x + v₁ + v₂ φ_x) + v₄ (φ_x² − 1)² ].

Chain: Grenioux, Noble, Gabrié, Durmus, "Stochastic localization via iterative posterior sampling",
arXiv 2402.10758, and Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119 (2022). Lattice form: the
action of Lüscher and Weisz, Nucl. Phys. B 290, 25 (1987).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import exact
from pysamp.targets.field import (
    FieldTarget,
    Lattice,
    QuarticField,
    check_finite,
    lattice_shape,
    of_one_field,
)


@dataclass(frozen=True)
class Phi4Chain(FieldTarget):
    """The φ⁴ chain of d = `n_sites` sites with φ₀ = φ_{d+1} = 0:

        log p = −β [ (a d/2) Σ_{i=1}^{d+1} (φ_i − φ_{i−1})² + (1/(a d)) Σ_{i=1}^d ( (1−φ_i²)²/4 + h φ_i ) ]

    Two modes, φ ≈ ±1; h > 0 favours the negative one. The mode of a field is the sign of its middle
    site φ_{⌊d/2⌋} (from 0); mode 0 is the negative one. `mode_weights` and `log_z` are exact, by
    transfer matrix. Raises ValueError for n_sites < 1, a ≤ 0, β ≤ 0 or numbers that are not finite.
    """

    n_sites: int = 100
    a: float = 0.1
    beta: float = 20.0
    h: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.n_sites, int) or self.n_sites < 1:
            raise ValueError(f"n_sites must be a positive integer, got {self.n_sites}")
        check_finite(a=self.a, beta=self.beta, h=self.h)
        for name, value in (("a", self.a), ("beta", self.beta)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.h == 0:  # a field h knows up from down, and no reflection keeps the density
            object.__setattr__(self, "couplings", self.field.bonds)

    @functools.cached_property
    def field(self) -> QuarticField:
        stiffness = self.beta * self.a * self.n_sites
        site = self.beta / (self.a * self.n_sites)
        lattice = Lattice((self.n_sites,), periodic=False)
        return QuarticField(lattice, (stiffness, site * self.h, 0.0, site / 4, 1.0))

    @property
    def exact(self) -> exact.Phi4ChainExact:
        """Exact answers by transfer matrix (cached)."""
        return exact.phi4_chain(self.n_sites, self.a, self.beta, self.h)

    @property
    def log_z(self) -> float:
        return self.exact.log_z

    @property
    def mode_weights(self) -> Tensor:
        plus = self.exact.weight_plus
        return torch.tensor([1 - plus, plus], dtype=torch.float64)

    def mode(self, x: Tensor) -> Tensor:
        return (x[:, self.n_sites // 2] > 0).long()

    @property
    def coupled_precision(self) -> Tensor:
        """P = β [(2c + 1/c) 1 − c (neighbours)], c = a d: the free field with φ²/(2c) at a site.

        (d, d) float64. The base "coupled" of Gabrié, Rotskoff and Vanden-Eijnden (2022), arXiv
        2105.12603; their "uncoupled" one is N(0, 1/a).
        """
        d, c = self.n_sites, self.a * self.n_sites
        eye = torch.eye(d, dtype=torch.float64)
        neighbours = torch.diag(eye.new_ones(d - 1), 1)
        return self.beta * ((2 * c + 1 / c) * eye - c * (neighbours + neighbours.T))

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact independent fields (n, d). Raises ValueError where β or d are out of reach."""
        return exact.phi4_chain_draws(
            self.n_sites, self.a, self.beta, self.h, n, seed=seed, first_chain=first_chain,
            device=device, dtype=dtype,
        )  # fmt: skip

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        """Per field: the middle site and its square, and those of every field (field.py)."""
        mid = x[:, self.n_sites // 2]
        record = self.from_record(self.record(x))
        return {"phi_mid": mid, "phi_mid²": mid * mid, **of_one_field(record)}


def _adjacency_ends(shape: tuple[int, ...], periodic: bool) -> tuple[float, float]:
    """Largest and least eigenvalue of Σ_{y~x}, the sum over neighbours."""
    if not periodic:
        end = sum(2 * math.cos(math.pi / (length + 1)) for length in shape)
        return end, -end
    least = sum(2 * math.cos(math.pi * (1 + length % 2 / length)) for length in shape)
    return 2.0 * len(shape), least


@dataclass(frozen=True)
class Phi4(FieldTarget):
    """Lattice φ⁴ in d = 1, 2 or 3 dimensions, p ∝ e^{−S}, periodic unless `periodic=False` (zeros outside):

        S = Σ_x [ −2κ Σ_{μ=1}^d φ_x φ_{x+μ} + φ_x² + λ (φ_x² − 1)² ]

    An extent of 2 has two bonds between its two sites, x+μ and x−μ being the same site. The mode of a
    field is the sign of its mean, mode 0 the negative one, each of weight ½ by symmetry. Raises
    ValueError for other dimensions, extents below 2, λ < 0, or λ = 0 with a κ at which the density has no
    finite integral.
    """

    shape: tuple[int, ...]
    kappa: float
    lam: float
    periodic: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", lattice_shape(self.shape))
        check_finite(kappa=self.kappa, lam=self.lam)
        if self.lam < 0:
            raise ValueError(f"lam must not be negative, got {self.lam}")
        # S at λ = 0 has the eigenvalues 1 − κ a, with a those of the adjacency of the lattice.
        highest = max(self.kappa * a for a in _adjacency_ends(self.shape, self.periodic))
        if self.lam == 0 and not highest < 1 - 1e-12:
            raise ValueError(
                f"kappa must lie below 1/a where lam = 0, a being {highest / self.kappa:.6g}, an "
                f"eigenvalue of the sum over neighbours, got {self.kappa}"
            )

    @functools.cached_property
    def field(self) -> QuarticField:
        # −2κ Σ φφ + Σ φ² = κ Σ φ Δ + (1 − 2dκ) Σ φ²
        square = 1.0 - 2.0 * len(self.shape) * self.kappa
        lattice = Lattice(self.shape, self.periodic)
        return QuarticField(lattice, (2.0 * self.kappa, 0.0, square, self.lam, 1.0))

    @property
    def couplings(self) -> tuple[float, Tensor]:
        return self.field.bonds

    @property
    def mode_weights(self) -> Tensor:
        return torch.tensor([0.5, 0.5], dtype=torch.float64)

    def mode(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1) > 0).long()
