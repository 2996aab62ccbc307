"""φ⁴ fields: the continuum chain of the sampling papers, and the lattice form of field theory.

Both are one energy (csrc/phi4.h): with Δ_x = z φ_x − Σ_{y~x} φ_y,

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

from pysamp import exact, ops, reference
from pysamp.target import NativeEnergy


@functools.lru_cache(maxsize=64)
def _table(shape: tuple[int, ...], periodic: bool) -> tuple[int, ...]:
    """Neighbours as the native functor reads them; chains need none."""
    if len(shape) == 1:
        return ()
    return tuple(reference.lattice_neighbours(shape, periodic).reshape(-1).tolist())


@functools.lru_cache(maxsize=64)
def lattice_colours(shape: tuple[int, ...], periodic: bool) -> tuple[Tensor, ...]:
    """Sites by colour, so that no two neighbours share one: flat site numbers (int64).

    Two colours, (Σ_μ x_μ) mod 2, unless a periodic extent is odd: a ring of odd length needs three. A
    proper colouring of each axis modulo 3 adds up to a proper colouring modulo 3 of the lattice.
    """
    odd = periodic and any(length % 2 for length in shape)
    total = torch.zeros(shape, dtype=torch.int64)
    for axis, length in enumerate(shape):
        along = torch.arange(length) % 2
        if periodic and length % 2:
            along[-1] = 2
        total = total + along.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    colour = (total % (3 if odd else 2)).reshape(-1)
    parts = (torch.nonzero(colour == c).flatten() for c in range(3 if odd else 2))
    return tuple(sites for sites in parts if len(sites))


@dataclass(frozen=True)
class _Field:
    """A field with couplings (J, v₁, v₂, v₄) on a lattice of 1, 2 or 3 dimensions."""

    shape: tuple[int, ...]
    periodic: bool
    couplings: tuple[float, float, float, float]

    @functools.cached_property
    def native(self) -> NativeEnergy:
        n_sites = math.prod(self.shape)
        layout = (n_sites, 2 * len(self.shape), int(self.periodic))
        return NativeEnergy("phi4", self.couplings, layout, None, _table(self.shape, self.periodic))

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 1 + len(self.shape) or tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (n, {', '.join(map(str, self.shape))}), "
                             f"got {tuple(x.shape)}")  # fmt: skip
        params, table = _tensors(self.native, x.device, x.dtype)
        log_prob, score = ops.phi4(
            x.reshape(x.shape[0], math.prod(self.shape)), params, table, list(self.native.layout)
        )
        return log_prob, score.reshape(x.shape)

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        params, _ = _tensors(self.native, x.device, x.dtype)
        neighbours = reference.lattice_neighbours(self.shape, self.periodic).to(x.device)
        return reference.phi4_local(x.reshape(x.shape[0], -1), sites, new, params, neighbours)


@functools.lru_cache(maxsize=64)
def _tensors(
    native: NativeEnergy, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # what is kept must serve autograd too
        return (
            torch.tensor(native.params, dtype=dtype, device=device),
            torch.tensor(native.table, dtype=torch.int32, device=device),
        )


def _finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


@dataclass(frozen=True)
class Phi4Chain:
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
        _finite(a=self.a, beta=self.beta, h=self.h)
        for name, value in (("a", self.a), ("beta", self.beta)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.n_sites,)

    @functools.cached_property
    def _field(self) -> _Field:
        stiffness = self.beta * self.a * self.n_sites
        site = self.beta / (self.a * self.n_sites)
        return _Field((self.n_sites,), False, (stiffness, site * self.h, 0.0, site / 4))

    @property
    def native(self) -> NativeEnergy:
        return self._field.native

    def log_prob(self, x: Tensor) -> Tensor:
        return self._field.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self._field.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._field.log_prob_and_score(x)

    @property
    def colours(self) -> tuple[Tensor, ...]:
        return lattice_colours((self.n_sites,), False)

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        return self._field.local_difference(x, sites, new)

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

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        """Per field: middle site, mean field, and −log p per site."""
        mid = x[:, self.n_sites // 2]
        return {
            "phi_mid": mid,
            "phi_mid²": mid * mid,
            "magnetisation": x.mean(1),
            "energy": -self.log_prob(x) / self.n_sites,
        }


@dataclass(frozen=True)
class Phi4:
    """Lattice φ⁴ in d = 1, 2 or 3 dimensions, p ∝ e^{−S}, periodic unless `periodic=False` (zeros outside):

        S = Σ_x [ −2κ Σ_{μ=1}^d φ_x φ_{x+μ} + φ_x² + λ (φ_x² − 1)² ]

    An extent of 2 has two bonds between its two sites, x+μ and x−μ being the same site. The mode of a
    field is the sign of its mean, mode 0 the negative one, each of weight ½ by symmetry. Raises
    ValueError for other dimensions, extents below 2, or λ < 0.
    """

    shape: tuple[int, ...]
    kappa: float
    lam: float
    periodic: bool = True

    def __post_init__(self) -> None:
        shape = (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)
        if not 1 <= len(shape) <= 3 or any(not isinstance(s, int) or s < 2 for s in shape):
            raise ValueError(f"shape must be 1 to 3 extents of at least 2, got {self.shape}")
        object.__setattr__(self, "shape", shape)
        _finite(kappa=self.kappa, lam=self.lam)
        if self.lam < 0:
            raise ValueError(f"lam must not be negative, got {self.lam}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    @functools.cached_property
    def _field(self) -> _Field:
        # −2κ Σ φφ + Σ φ² = κ Σ φ Δ + (1 − 2dκ) Σ φ²
        square = 1.0 - 2.0 * len(self.shape) * self.kappa
        return _Field(self.shape, self.periodic, (2.0 * self.kappa, 0.0, square, self.lam))

    @property
    def native(self) -> NativeEnergy:
        return self._field.native

    def log_prob(self, x: Tensor) -> Tensor:
        return self._field.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self._field.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._field.log_prob_and_score(x)

    @property
    def colours(self) -> tuple[Tensor, ...]:
        return lattice_colours(self.shape, self.periodic)

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        return self._field.local_difference(x, sites, new)

    @property
    def mode_weights(self) -> Tensor:
        return torch.tensor([0.5, 0.5], dtype=torch.float64)

    def mode(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1) > 0).long()

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        """Per field: mean, its modulus and square, φ² and the action per site."""
        flat = x.flatten(1)
        m = flat.mean(1)
        return {
            "magnetisation": m,
            "|magnetisation|": m.abs(),
            "magnetisation²": m * m,
            "phi²": (flat * flat).mean(1),
            "energy": -self.log_prob(x) / flat.shape[1],
        }
