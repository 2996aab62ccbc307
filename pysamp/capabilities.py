"""What a density may offer: the target protocol and its capabilities.

A target is an unnormalised log density on events of a fixed shape. What else it has (a score, modes,
exact draws, a native energy, the moves of a lattice, ...) is a capability: a runtime-checkable
protocol, asked for with `isinstance`. From Python 3.12 on such a check looks at attributes
statically, so a capability that depends on a value is an attribute that is set or not; a property
that raises counts as present.

Conventions: x is (n, *event_shape); log_prob is (n,). A lattice of V sites with m components a site
has the event shape (*shape, m) or, for m = 1, (*shape,); element `site * m + component` of the
flattened event is that component of that site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Target(Protocol):
    """An unnormalised density: (n, *event_shape) -> (n,)."""

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def log_prob(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class HasScore(Protocol):
    """The gradient of log_prob in closed form, shape of x."""

    def score(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class HasValueAndScore(Protocol):
    """Log density (n,) and score (n, *event_shape) from one evaluation."""

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class HasNative(Protocol):
    """A C++ energy functor that equals log_prob, for fused chains."""

    @property
    def native(self) -> NativeEnergy: ...


@runtime_checkable
class HasModes(Protocol):
    """A partition of space into k modes: weights (k,) that sum to 1, labels (n,) int64."""

    @property
    def mode_weights(self) -> Tensor: ...

    def mode(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class HasSampler(Protocol):
    """Exact independent draws (n, *event_shape), a function of the seed."""

    def sample(self, n: int, *, seed: int) -> Tensor: ...


@runtime_checkable
class Proposal(Protocol):
    """A density that can be drawn from; log_prob is normalised, or `log_z` tells by how much not.

    Row r of the draws (n, *event_shape) is a function of the seed and of first_chain + r.
    """

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def log_prob(self, x: Tensor) -> Tensor: ...

    def sample(
        self, n: int, *, seed: int, first_chain: int, device: Any, dtype: torch.dtype
    ) -> Tensor: ...


@runtime_checkable
class HasLogZ(Protocol):
    """log of the integral of exp(log_prob)."""

    @property
    def log_z(self) -> float: ...


@runtime_checkable
class HasMoments(Protocol):
    """The first two moments: mean (*event_shape), covariance (d, d) of the flattened event; float64."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def covariance(self) -> Tensor: ...


@runtime_checkable
class HasObservables(Protocol):
    """Named physical quantities, one number (n,) per configuration."""

    def observables(self, x: Tensor) -> dict[str, Tensor]: ...


@runtime_checkable
class HasLocal(Protocol):
    """A lattice with single-site moves.

    `colours`: int64 indices into the flattened event; each site once, no neighbours of one colour.
    `local_difference`: log p(x with a site replaced by new) - log p(x), each site taken alone; new
    and the result are (n, len(sites)).
    """

    @property
    def colours(self) -> tuple[Tensor, ...]: ...

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor: ...


@runtime_checkable
class HasSites(Protocol):
    """A lattice of sites with components, swept colour by colour.

    `site_colours`: int64 site numbers; each site once, no neighbours of one colour. `unit_length`:
    the components of a site are a vector of length 1, so no kernel may move them freely.
    """

    @property
    def site_colours(self) -> tuple[Tensor, ...]: ...

    @property
    def n_components(self) -> int: ...

    @property
    def unit_length(self) -> bool: ...


@runtime_checkable
class HasLocalField(Protocol):
    """The field h that acts on a site: log p = h . s + what does not change when |s| is kept.

    The result is (n, len(sites), n_components).
    """

    def local_field(self, x: Tensor, sites: Tensor) -> Tensor: ...


@runtime_checkable
class HasQuartic(Protocol):
    """Conditional densities exp(-A v^2 - B v^4 + b v) of one component v, all else fixed.

    The result is A, B, b, each of a shape that broadcasts to (n, len(sites)).
    """

    def quartic(
        self, x: Tensor, sites: Tensor, component: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...


@runtime_checkable
class HasBonds(Protocol):
    """Sites coupled by J s_x . s_y, and by nothing that a reflection of a site would change.

    `couplings`: J, and the neighbours (n_sites, 2d) int64 in the order -0, +0, -1, +1, ...; n_sites
    stands for outside, where the field is zero. Each bond is in the table from both its ends.
    """

    @property
    def couplings(self) -> tuple[float, Tensor]: ...


RECORD = 9  # numbers of a record, kRecord of csrc/measure.h


@runtime_checkable
class HasZeroMeans(Protocol):
    """Names of observables whose mean is 0 by a symmetry of the density."""

    @property
    def zero_means(self) -> tuple[str, ...]: ...


@runtime_checkable
class HasRecord(Protocol):
    """What a kernel measures while it runs: nine numbers a configuration, and what follows from them.

    `record`: (n, *event_shape) -> (n, 9), or over a window of w measurements their mean:
        0 log_prob  1 its variance inside the window (0 for w = 1)  2 component 0 of m, the mean spin
        3 |m|  4 |m|^2  5 |m|^4  6 the mean of phi^2  7 F, the structure factor at the smallest k
        8 the square of the current of the first two components.
    `from_record`: (..., 9) -> observables (...) by name. `derived`: means of these by name, and
    "energy²" = <energy² + energy_within> -> response functions by name.
    """

    def record(self, x: Tensor) -> Tensor: ...

    def from_record(self, record: Tensor) -> dict[str, Tensor]: ...

    def derived(self, mean: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class NativeEnergy:
    """Name of a C++ functor, its flat parameters, integer layout and table (such as neighbours).

    `module` is the user's own extension module; None means the one of pysamp.
    """

    name: str
    params: tuple[float, ...]
    layout: tuple[int, ...]
    module: ModuleType | None = None
    table: tuple[int, ...] = ()
