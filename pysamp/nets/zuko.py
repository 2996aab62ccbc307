"""Flows of zuko (Rozet et al. 2022, doi 10.5281/zenodo.7625672) with the interface of ours.

A zuko flow is a module that returns a distribution; its transform goes from x to z, ours from z to x. zuko
is looked for only among the modules that are imported already: whoever has a zuko flow has imported it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Uniform
from torch.distributions import Normal as TorchNormal

from pysamp import rng
from pysamp.nets.bases import Base, Normal, OfNoise
from pysamp.nets.flow import Flow


def wrap(obj: Any) -> Flow | None:
    """The flow of a zuko flow without context, or of the distribution that one has returned.

    None for what is neither. A returned distribution keeps the parameters that it had, so it cannot be
    trained. Raises TypeError for a base other than a fixed normal or uniform one, ValueError for a flow
    that needs a context, for events that are not vectors and for a circular flow (NCSF).
    """
    zuko = sys.modules.get("zuko")
    if zuko is None:
        return None
    flow = zuko.distributions.NormalizingFlow
    if isinstance(obj, flow):
        return ZukoFlow(lambda: obj, obj)
    if not isinstance(obj, zuko.lazy.LazyDistribution):
        return None
    try:
        found = obj()
        if isinstance(found, flow):
            base = found.base.base_dist if isinstance(found.base, Independent) else found.base
            with torch.no_grad():
                found.log_prob(base.mean.reshape(1, -1))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"flow must be a zuko flow without context, got a {type(obj).__name__} whose density at a "
            f"point fails without one: {error}"
        ) from error
    if not isinstance(found, flow):
        raise TypeError(
            f"flow must be a zuko flow that is a transform of a base, got a {type(obj).__name__} that "
            f"returns {type(found).__name__}"
        )
    return ZukoFlow(obj, found)


class ZukoFlow(Flow):
    """A zuko flow, of which `build` returns the distribution and `found` is one example."""

    def __init__(self, build: Callable[[], Any], found: Any) -> None:
        shape = tuple(found.event_shape)
        if len(shape) != 1:
            raise ValueError(f"flow must have events (d,), got {shape}")
        super().__init__(shape, _base(found.base))
        # A module is registered, so that its parameters are trained, moved and saved with this one.
        self.build = build
        if isinstance(self.base, Box) and self._is_circular(self.base):
            # Its networks read angles as numbers: outside of the box its density is neither 0 nor periodic.
            raise ValueError(
                "flow must not wrap angles, as zuko's NCSF does: its density is wrong outside [−π, π); "
                f"use nets.CircularSplineFlow({self.dim}) in its place"
            )

    def _is_circular(self, box: Box) -> bool:
        """Whether a coordinate of x and the same a period on have one image."""
        width = box.upper - box.lower
        with torch.no_grad():
            x = self.transform(((box.lower + box.upper) / 2)[None])[0]
            back = self.transform(self.untransform(x + width)[0])[0]
        return bool(((back - x).abs() < 0.01 * width).any())

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _summed(*self.build().transform.inv.call_and_ladj(z))

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _summed(*self.build().transform.call_and_ladj(x))


class Box(OfNoise):
    """Uniform between `lower` and `upper` (d,), with density 0 outside."""

    noise = staticmethod(rng.uniform)
    standard = False
    lower: Tensor
    upper: Tensor

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.dim = len(lower)
        self.register_buffer("like", lower.new_empty(0), persistent=False)
        self.register_buffer("lower", lower.detach().clone())
        self.register_buffer("upper", upper.detach().clone())

    def place(self, xi: Tensor) -> Tensor:
        """lower + (upper − lower) ξ for ξ uniform in (0, 1)."""
        lower, upper = self.lower.to(xi), self.upper.to(xi)
        return lower + (upper - lower) * xi

    def log_prob(self, z: Tensor) -> Tensor:
        lower, upper = self.lower.to(z), self.upper.to(z)
        inside = ((z >= lower) & (z <= upper)).all(1)
        density = (0 * z.sum(1)) - (upper - lower).log().sum()  # NaN stays NaN
        return torch.where(inside | density.isnan(), density, -math.inf)


def _base(found: Distribution) -> Base:
    """The base density of a zuko flow in a form that draws from `pysamp.rng`."""
    one = found.base_dist if isinstance(found, Independent) else found
    constants = {TorchNormal: ("loc", "scale"), Uniform: ("low", "high")}.get(type(one))
    if constants is None:
        raise TypeError(
            f"base of a zuko flow must be DiagNormal or BoxUniform, got {type(found).__name__} of "
            f"{type(one).__name__}"
        )
    first, second = (getattr(one, name) for name in constants)
    if first.requires_grad or second.requires_grad:
        raise TypeError(
            f"base of a zuko flow must be fixed (buffer=True), got one that is trained: {found}"
        )
    if isinstance(one, Uniform):
        return Box(first, second)
    if not bool(first.any()) and bool((second == 1).all()):
        return Normal(len(first)).to(first)
    return Normal(mean=first, covariance=second.double().square()).to(first)


def _summed(points: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    """A transform of scalars gives one logarithm a coordinate."""
    return points, log_det.sum(1) if log_det.ndim == 2 else log_det
