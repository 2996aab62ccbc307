"""What fields on a lattice share: sites and their colours, one quartic energy, what is measured.

A field has m components at each of V sites of a lattice of 1, 2 or 3 dimensions, periodic or with
zeros outside. With Δ_x = z φ_x − Σ_{y~x} φ_y, z being the number of neighbours,

    −log p(φ) = Σ_x [ φ_x·(½ J Δ_x) + v₁ φ_x + v₂ φ_x² + v₄ (φ_x² − c)² ],    v₁ for m = 1 only,

is csrc/phi4.h. What is measured follows finite-size scaling practice: the second-moment correlation
length of Cooper, Freedman, Preston, Nucl. Phys. B 210, 210 (1982), the cumulant of Binder, Z. Phys. B
43, 119 (1981), and the helicity modulus of Fisher, Barber, Jasnow, Phys. Rev. A 8, 1111 (1973).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import ops, reference
from pysamp.capabilities import RECORD, NativeEnergy
from pysamp.lattice import binder

BLOCK = 1 << 20  # numbers of a field that are measured at once
MAX_COMPONENTS = 8  # of the native functors, kMaxComponents of csrc/lattice.h


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


@functools.lru_cache(maxsize=64)
def neighbour_table(shape: tuple[int, ...], periodic: bool) -> tuple[int, ...]:
    """Neighbours as the native functors read them."""
    return tuple(reference.lattice_neighbours(shape, periodic).reshape(-1).tolist())


@functools.lru_cache(maxsize=64)
def neighbours(shape: tuple[int, ...], periodic: bool) -> Tensor:
    """(n_sites, 2d) int64 flat site numbers, −μ and +μ in turn; n_sites stands for outside."""
    with torch.inference_mode(False):  # what is kept must serve autograd too
        return reference.lattice_neighbours(shape, periodic)


@functools.lru_cache(maxsize=64)
def native_tensors(
    native: NativeEnergy, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Parameters and table as the op of an energy takes them."""
    with torch.inference_mode(False):
        return (
            torch.tensor(native.params, dtype=dtype, device=device),
            torch.tensor(native.table, dtype=torch.int32, device=device),
        )


def lattice_shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """The extents as a tuple. Raises ValueError unless 1 to 3 extents of at least 2."""
    extents = (shape,) if isinstance(shape, int) else tuple(shape)
    if not 1 <= len(extents) <= 3 or any(not isinstance(s, int) or s < 2 for s in extents):
        raise ValueError(f"shape must be 1 to 3 extents of at least 2, got {shape}")
    return extents


def check_components(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_COMPONENTS:
        raise ValueError(f"n must be from 1 to {MAX_COMPONENTS} components, got {n}")


def check_finite(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


@dataclass(frozen=True)
class Lattice:
    """Fields of m components on V sites; `vector` says whether events have an axis of components."""

    shape: tuple[int, ...]
    periodic: bool
    m: int = 1
    vector: bool = False

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (*self.shape, self.m) if self.vector else self.shape

    @property
    def n_sites(self) -> int:
        return math.prod(self.shape)

    @property
    def layout(self) -> tuple[int, int, int, int]:
        return (self.n_sites, 2 * len(self.shape), int(self.periodic), self.m)

    def flat(self, x: Tensor) -> Tensor:
        """(n, *event_shape) -> (n, V m). Raises ValueError for another shape."""
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x must have shape (n, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}"
            )
        return x.reshape(x.shape[0], self.n_sites * self.m)

    def by_site(self, x: Tensor) -> Tensor:
        """(n, V, m)"""
        return x.reshape(x.shape[0], self.n_sites, self.m)

    def neighbours(self, device: torch.device) -> Tensor:
        return neighbours(self.shape, self.periodic).to(device)

    def around(self, x: Tensor, sites: Tensor) -> Tensor:
        """Σ_{y~x} φ_y in the order of the functors: (n, len(sites), m)."""
        return reference.neighbour_sum(self.by_site(x), self.neighbours(x.device)[sites])

    def element_colours(self) -> tuple[Tensor, ...]:
        """Elements of the flattened event by colour: a component at a time, its sites by colour."""
        sites = lattice_colours(self.shape, self.periodic)
        return tuple(colour * self.m + a for a in range(self.m) for colour in sites)

    # ------------------------------------------------------------------------ what is measured
    def record(self, x: Tensor, log_prob: Tensor) -> Tensor:
        """As `_record`, some rows at a time: it works in float64, several times the size of x."""
        rows = max(1, BLOCK // (self.n_sites * self.m))
        parts = zip(x.split(rows), log_prob.split(rows), strict=True)
        found = [self._record(block, value) for block, value in parts]
        return torch.cat(found) if len(x) else log_prob.new_empty((0, RECORD))

    def _record(self, x: Tensor, log_prob: Tensor) -> Tensor:
        """The record (n, 9) of capabilities.HasRecord, summed in float64:

        m = (1/V) Σ_x φ_x,   F = (1/(d V²)) Σ_μ |Σ_x φ_x e^{2πi x_μ/L_μ}|²,
        current² = (1/(d V)) Σ_μ (Σ_x [φ_0(x) φ_1(x+μ) − φ_1(x) φ_0(x+μ)])², 0 for m = 1.
        """
        phi = self.by_site(x).double()
        v, d = self.n_sites, len(self.shape)
        mean = phi.mean(1)  # (n, m)
        square = (mean * mean).sum(1)
        structure, current = torch.zeros((2, x.shape[0]), dtype=phi.dtype, device=phi.device)
        on_grid = phi.reshape(x.shape[0], *self.shape, self.m)
        table = self.neighbours(x.device)
        outside = torch.nn.functional.pad(phi, (0, 0, 0, 1))  # a zero for the sites outside
        for axis, length in enumerate(self.shape):
            others = [1 + a for a in range(d) if a != axis]
            profile = on_grid.sum(others) if others else on_grid  # (n, L, m)
            angle = torch.arange(length, dtype=phi.dtype, device=phi.device) * (
                2 * math.pi / length
            )
            for wave in (angle.cos(), angle.sin()):
                structure = structure + (profile * wave[:, None]).sum(1).square().sum(1)
            if self.m > 1:
                ahead = outside[:, table[:, 2 * axis + 1]]
                twist = phi[..., 0] * ahead[..., 1] - phi[..., 1] * ahead[..., 0]
                current = current + twist.sum(1).square()
        columns = [
            torch.zeros_like(square), mean[:, 0], square.sqrt(), square, square * square,
            (phi * phi).sum(2).mean(1), structure / (d * v * v), current / (d * v),
        ]  # fmt: skip
        return torch.cat((log_prob[:, None], torch.stack(columns, dim=1).to(x.dtype)), dim=1)

    def from_record(self, record: Tensor, beta: float = 1.0) -> dict[str, Tensor]:
        """Observables per site by name; the energy is −log p / (β V)."""
        log_prob, within, m0, size, square, fourth, phi2, structure, _ = record.unbind(-1)
        unit = beta * self.n_sites
        out = {"energy": -log_prob / unit, "energy_within": within / unit**2}
        if self.m == 1:
            out["magnetisation"] = m0
        return out | {
            "|magnetisation|": size,
            "magnetisation²": square,
            "magnetisation⁴": fourth,
            "phi²": phi2,
            "structure": structure,
        }

    def derived(self, mean: Mapping[str, Tensor], beta: float = 1.0) -> dict[str, Tensor]:
        """Response functions from means of observables, of the shapes of these:

            susceptibility |β| V (⟨m²⟩ − ⟨|m|⟩²),   specific heat β² V (⟨e²⟩ − ⟨e⟩²),
            Binder 1 − ⟨m⁴⟩ / (3 ⟨m²⟩²),   correlation length √(⟨m²⟩/⟨F⟩ − 1) / (2 sin(π/L)),

        the last for periodic lattices of equal extents, NaN where F exceeds m².
        """
        v = self.n_sites
        square = mean["magnetisation²"]
        out = {
            "susceptibility": abs(beta) * v * (square - mean["|magnetisation|"] ** 2),
            "specific heat": beta**2 * v * (mean["energy²"] - mean["energy"] ** 2),
            "Binder": binder(square, mean["magnetisation⁴"]),
        }
        if self.periodic and len(set(self.shape)) == 1:
            ratio = square / mean["structure"] - 1
            out["correlation length"] = ratio.sqrt() / (2 * math.sin(math.pi / self.shape[0]))
        return out


def others_square(phi: Tensor, component: Tensor | int) -> Tensor:
    """Σ_{c≠a} φ_c², in order of c: (..., m) -> (...); the component a is one, or one for each."""
    total = torch.zeros_like(phi[..., 0])
    for c in range(phi.shape[-1]):
        further = total + phi[..., c] * phi[..., c]
        if isinstance(component, int):
            total = total if component == c else further
        else:
            total = torch.where(component == c, total, further)
    return total


@dataclass(frozen=True)
class QuarticField:
    """A field of the couplings (J, v₁, v₂, v₄, c) on a lattice."""

    lattice: Lattice
    couplings: tuple[float, float, float, float, float]

    @functools.cached_property
    def native(self) -> NativeEnergy:
        lattice = self.lattice
        if lattice.vector:
            table = neighbour_table(lattice.shape, lattice.periodic)
            return NativeEnergy("soft", self.couplings, lattice.layout, None, table)
        table = () if len(lattice.shape) == 1 else neighbour_table(lattice.shape, lattice.periodic)
        return NativeEnergy("phi4", self.couplings, lattice.layout, None, table)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.lattice.flat(x)
        params, table = native_tensors(self.native, x.device, x.dtype)
        energy = ops.soft if self.lattice.vector else ops.phi4
        log_prob, score = energy(flat, params, table, list(self.native.layout))
        return log_prob, score.reshape(x.shape)

    def local_difference(self, x: Tensor, elements: Tensor, new: Tensor) -> Tensor:
        """log p(x with an element replaced) − log p(x), each alone: (n, len(elements)).

        By (v²+p−c)² − (u²+p−c)² = (v−u)(v+u)(v²+u²+2(p−c)), p the square of the other components.
        """
        j, v1, v2, v4, c = self._coefficients(x)
        m = self.lattice.m
        sites, component = elements // m, elements % m
        phi = self.lattice.by_site(x)[:, sites]  # (n, k, m)
        at = component[None, :, None].expand(x.shape[0], -1, 1)
        old = phi.gather(2, at)[..., 0]
        around = self.lattice.around(x, sites).gather(2, at)[..., 0]
        rest = others_square(phi, component)
        quartic = (new * new + old * old) + (rest - c) * 2.0
        return (new - old) * (
            (around * j - v1) - (new + old) * (quartic * v4 + self._square(j, v2))
        )

    def quartic(self, x: Tensor, sites: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients A, B, b of the conditional density exp(−A v² − B v⁴ + b v) of a component."""
        j, v1, v2, v4, c = self._coefficients(x)
        rest = others_square(self.lattice.by_site(x)[:, sites], component)
        a = self._square(j, v2) + (v4 * 2.0) * (rest - c)
        return a, v4, self.lattice.around(x, sites)[..., component] * j - v1

    def local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        return self.lattice.around(x, sites) * self._coefficients(x)[0]

    @property
    def bonds(self) -> tuple[float, Tensor]:
        """J and the neighbours of capabilities.HasBonds."""
        return self.couplings[0], neighbours(self.lattice.shape, self.lattice.periodic)

    def _coefficients(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.new_tensor(self.couplings).unbind()

    def _square(self, j: Tensor, v2: Tensor) -> Tensor:
        """The coefficient of φ² in −log p."""
        return (j * 0.5) * float(2 * len(self.lattice.shape)) + v2


class FieldTarget:
    """The members of a target whose density is that of `field`, which a subclass provides."""

    @property
    def field(self) -> QuarticField:
        raise NotImplementedError(f"{type(self).__name__} must have a property `field`")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.field.lattice.event_shape

    @property
    def native(self) -> NativeEnergy:
        return self.field.native

    def log_prob(self, x: Tensor) -> Tensor:
        return self.field.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self.field.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.log_prob_and_score(x)

    @property
    def colours(self) -> tuple[Tensor, ...]:
        return self.field.lattice.element_colours()

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        return self.field.local_difference(x, sites, new)

    @property
    def site_colours(self) -> tuple[Tensor, ...]:
        return lattice_colours(self.field.lattice.shape, self.field.lattice.periodic)

    @property
    def n_components(self) -> int:
        return self.field.lattice.m

    @property
    def unit_length(self) -> bool:
        return False

    def quartic(self, x: Tensor, sites: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.field.quartic(x, sites, component)

    @property
    def zero_means(self) -> tuple[str, ...]:
        """φ → −φ is a symmetry unless there is a field v₁."""
        return ("magnetisation",) if self.field.couplings[1] == 0 else ()

    def record(self, x: Tensor) -> Tensor:
        return self.field.lattice.record(x, self.log_prob(x))

    def from_record(self, record: Tensor) -> dict[str, Tensor]:
        return self.field.lattice.from_record(record)

    def derived(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.field.lattice.derived(mean)

    def observables(self, x: Tensor) -> dict[str, Tensor]:
        """Per field: energy −log p and φ² per site, moments of the mean, structure factor."""
        return of_one_field(self.from_record(self.record(x)))


def of_one_field(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Observables without the variance of the energy inside a window, which is zero for one field."""
    return {name: value for name, value in found.items() if name != "energy_within"}
