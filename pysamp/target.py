"""How a density is evaluated, and its wrappers: at another temperature, tilted, counted, a function.

What a target is and what it may offer is capabilities.py; the names there belong to this module, too.

Conventions: x is (n, *event_shape); log_prob is (n,); the score is the gradient of log_prob and has
the shape of x. A temperature enters through `Boltzmann` and `Tempered` and nowhere else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pysamp import ops
from pysamp.capabilities import (
    HasBonds,
    HasLocal,
    HasLocalField,
    HasLogZ,
    HasModes,
    HasMoments,
    HasNative,
    HasObservables,
    HasQuartic,
    HasRecord,
    HasSampler,
    HasScore,
    HasSites,
    HasValueAndScore,
    HasZeroMeans,
    NativeEnergy,
    Proposal,
    Target,
)

__all__ = [
    "Boltzmann",
    "Counted",
    "Counts",
    "FunctionTarget",
    "HasBonds",
    "HasLocal",
    "HasLocalField",
    "HasLogZ",
    "HasModes",
    "HasMoments",
    "HasNative",
    "HasObservables",
    "HasQuartic",
    "HasRecord",
    "HasSampler",
    "HasScore",
    "HasSites",
    "HasValueAndScore",
    "HasZeroMeans",
    "NativeEnergy",
    "Proposal",
    "Target",
    "Tempered",
    "Tilted",
    "as_target",
    "check_log_prob",
    "log_prob_and_score",
    "log_prob_of",
]


def _value_and_gradient(
    f: Callable[[Tensor], Tensor], x: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        # A tensor made in inference mode can never enter a graph: only its copy can.
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
        value = f(leaf)
        check_log_prob(value, x, name)
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"{name} is not differentiable by torch (its result does not depend on x through "
            f"autograd); give the target a method score(x), or use a gradient-free sampler"
        )
    return value.detach(), gradient


def check_log_prob(value: Tensor, x: Tensor, name: str) -> None:
    """Refuse a log density that is no tensor (n,) of the dtype of x."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a Tensor, got {type(value).__name__}")
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must return shape ({x.shape[0]},) for x of shape {tuple(x.shape)}, "
            f"got {tuple(value.shape)}"
        )
    if value.dtype != x.dtype:  # mixed precision would make draws depend on how steps are fused
        raise ValueError(f"{name} must return {x.dtype}, the dtype of x, got {value.dtype}")


def log_prob_of(target: Target, x: Tensor) -> Tensor:
    """Log density (n,), checked, with no graph attached. Raises as `log_prob_and_score`."""
    with torch.no_grad():
        value = target.log_prob(x)
    check_log_prob(value, x, f"{type(target).__name__}.log_prob")
    return value


def log_prob_and_score(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (n,) and score (n, *event_shape), with no graph attached.

    In this order: the target's own joint evaluation, its score, torch autograd. Cost: one of each.
    Raises: ValueError if log_prob has a wrong shape or dtype, or is not differentiable.
    """
    name = f"{type(target).__name__}.log_prob"
    if isinstance(target, HasValueAndScore):
        with torch.no_grad():
            value, score = target.log_prob_and_score(x)
    elif isinstance(target, HasScore):
        with torch.no_grad():
            value, score = target.log_prob(x), target.score(x)
    else:
        return _value_and_gradient(target.log_prob, x, name)
    check_log_prob(value, x, name)
    if score.shape != x.shape:
        name = f"{type(target).__name__}.score"
        raise ValueError(f"{name} must return shape {tuple(x.shape)}, got {tuple(score.shape)}")
    return value, score


class Boltzmann(ABC):
    """A physical system: log p(x) = -beta U(x), the score by autograd through U.

    A subclass provides `event_shape`, `beta` (inverse temperature) and `energy`, nothing else.
    """

    event_shape: tuple[int, ...]
    beta: float

    @abstractmethod
    def energy(self, x: Tensor) -> Tensor:
        """Potential energy U (n,), without beta."""

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.beta * self.energy(x)

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, gradient = _value_and_gradient(self.energy, x, f"{type(self).__name__}.energy")
        return -self.beta * energy, -self.beta * gradient


def _check_scale(value: float | Tensor, name: str) -> None:
    numbers = torch.as_tensor(value)
    if numbers.ndim > 1:
        raise ValueError(f"{name} must be a number or (n,), got shape {tuple(numbers.shape)}")
    if not bool((torch.isfinite(numbers) & (numbers >= 0)).all()):
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def _per_chain(value: float | Tensor, name: str, x: Tensor, ndim: int = 1) -> float | Tensor:
    """A float as it is; a tensor like x, checked against its rows: (n, 1, ..., 1) of ndim axes."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1 and value.shape[0] != x.shape[0]:
        raise ValueError(f"{name} has {value.shape[0]} entries but x has {x.shape[0]} rows")
    return value.to(x).reshape(-1, *(1,) * (ndim - 1)) if value.ndim else value.to(x)


def _offer(wrapper: Target, base: Target, capability: type, **members: Any) -> None:
    """Give a wrapper a capability of its base: these members in its way, the others as they are."""
    if isinstance(base, capability):
        for name in _MEMBERS[capability]:
            object.__setattr__(wrapper, name, members.get(name) or getattr(base, name))


@dataclass(frozen=True, eq=False)
class Tempered:
    """log p(x) = beta * log p_base(x), with one beta for all chains or one for each (n,).

    It has single-site moves, and the couplings of its base (without beta), where its base has them.
    """

    base: Target
    beta: float | Tensor

    def __post_init__(self) -> None:
        _check_scale(self.beta, "beta")
        _offer(self, self.base, HasLocal, local_difference=self._local_difference)
        _offer(self, self.base, HasSites)
        _offer(self, self.base, HasLocalField, local_field=self._local_field)
        _offer(self, self.base, HasQuartic, quartic=self._quartic)
        _offer(self, self.base, HasBonds)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def log_prob(self, x: Tensor) -> Tensor:
        return _per_chain(self.beta, "beta", x) * self.base.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = log_prob_and_score(self.base, x)
        beta, over_event = (_per_chain(self.beta, "beta", x, ndim) for ndim in (1, x.ndim))
        return beta * log_prob, over_event * score

    def _local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        difference = self.base.local_difference(x, sites, new)  # type: ignore[attr-defined]
        return _per_chain(self.beta, "beta", x, new.ndim) * difference

    def _local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        field = self.base.local_field(x, sites)  # type: ignore[attr-defined]
        return _per_chain(self.beta, "beta", x, field.ndim) * field

    def _quartic(self, x: Tensor, sites: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        beta = _per_chain(self.beta, "beta", x, 2)
        square, fourth, linear = self.base.quartic(x, sites, component)  # type: ignore[attr-defined]
        return beta * square, beta * fourth, beta * linear


@dataclass(frozen=True, eq=False)
class Tilted:
    """log p(x) - precision/2 |x - centre|^2: the posterior of x observed in Gaussian noise.

    centre: (*event_shape) or (n, *event_shape); precision: a number or (n,). It has single-site
    moves where its base has them, but no local field: it changes under rotations.
    Reference: the conditional q_t(x|y) of SLIPS (Grenioux et al. 2024, arXiv 2402.10758).
    """

    base: Target
    centre: Tensor
    precision: float | Tensor

    def __post_init__(self) -> None:
        _check_scale(self.precision, "precision")
        event = tuple(self.base.event_shape)
        shape = tuple(self.centre.shape)
        if shape != event and not (len(shape) == len(event) + 1 and shape[1:] == event):
            raise ValueError(f"centre must have shape {event} or (n, *{event}), got {shape}")
        _offer(self, self.base, HasLocal, local_difference=self._local_difference)
        _offer(self, self.base, HasSites)
        if isinstance(self.base, HasSites):
            _offer(self, self.base, HasQuartic, quartic=self._quartic)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def log_prob(self, x: Tensor) -> Tensor:
        return self._tilt(self.base.log_prob(x), x, self._offset(x))

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = log_prob_and_score(self.base, x)
        offset = self._offset(x)
        precision = _per_chain(self.precision, "precision", x, x.ndim)
        return self._tilt(log_prob, x, offset), score - precision * offset

    def _local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        difference = self.base.local_difference(x, sites, new)  # type: ignore[attr-defined]
        centre = self._centre_at(x, sites)
        flat = x.reshape(x.shape[0], math.prod(self.event_shape))
        now, then = flat[:, sites] - centre, new - centre
        # The order of operations of csrc/energy.h, so that sweeps are equal on every backend.
        half = 0.5 * _per_chain(self.precision, "precision", x, new.ndim)
        return difference - half * (then * then - now * now)

    def _quartic(self, x: Tensor, sites: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        square, fourth, linear = self.base.quartic(x, sites, component)  # type: ignore[attr-defined]
        element = sites * self.base.n_components + component  # type: ignore[attr-defined]
        precision = _per_chain(self.precision, "precision", x, 2)
        centre = self._centre_at(x, element)
        return square + 0.5 * precision, fourth, linear + precision * centre

    def _centre_at(self, x: Tensor, elements: Tensor) -> Tensor:
        """(1 or n, len(elements))"""
        return self._centre_for(x).reshape(-1, math.prod(self.event_shape))[:, elements]

    def _centre_for(self, x: Tensor) -> Tensor:
        if self.centre.ndim == x.ndim and self.centre.shape[0] != x.shape[0]:
            raise ValueError(f"centre has {self.centre.shape[0]} rows but x has {x.shape[0]}")
        return self.centre.to(x)

    def _offset(self, x: Tensor) -> Tensor:
        return x - self._centre_for(x)

    def _tilt(self, log_prob: Tensor, x: Tensor, offset: Tensor) -> Tensor:
        square = (offset * offset).reshape(x.shape[0], math.prod(self.event_shape))  # (n, m)
        # The fixed order of sum32 makes accept decisions equal on every backend.
        precision = _per_chain(self.precision, "precision", x)
        return log_prob - (0.5 * precision) * ops.sum32(square)


@dataclass
class Counts:
    """Rows evaluated so far; `local_moves` counts moves of single sites that were proposed."""

    evaluations: int = 0
    gradients: int = 0
    local_moves: int = 0


@dataclass(frozen=True, eq=False)
class Counted:
    """The same density, counting: a batch of n adds n to `evaluations` or `gradients`.

    It has the capabilities of its base, except `native`: the driver of a fused chain takes `base`
    and adds to `counts`. A gradient counts once, also one by a backward pass through `log_prob`.
    """

    base: Target
    counts: Counts = field(default_factory=Counts, compare=False)

    def __post_init__(self) -> None:
        counted = {
            "score": self._score,
            "local_difference": self._local_difference,
            "local_field": self._local_field,
            "quartic": self._quartic,
        }
        for capability in _MEMBERS:
            try:
                _offer(self, self.base, capability, **counted)
            except ValueError:
                continue  # an exact answer out of reach; the density itself is fine

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    @property
    def evaluations(self) -> int:
        return self.counts.evaluations

    @property
    def gradients(self) -> int:
        return self.counts.gradients

    def log_prob(self, x: Tensor) -> Tensor:
        self.counts.evaluations += x.shape[0]
        value = self.base.log_prob(x)
        check_log_prob(value, x, f"{type(self.base).__name__}.log_prob")
        if value.requires_grad:
            value.register_hook(self._count_backward)
        return value

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.counts.evaluations += x.shape[0]
        self.counts.gradients += x.shape[0]
        return log_prob_and_score(self.base, x)

    def _score(self, x: Tensor) -> Tensor:
        self.counts.gradients += x.shape[0]
        return self.base.score(x)  # type: ignore[attr-defined]

    def _local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        self.counts.local_moves += new.numel()
        return self.base.local_difference(x, sites, new)  # type: ignore[attr-defined]

    def _local_field(self, x: Tensor, sites: Tensor) -> Tensor:
        self.counts.local_moves += x.shape[0] * len(sites)
        return self.base.local_field(x, sites)  # type: ignore[attr-defined]

    def _quartic(self, x: Tensor, sites: Tensor, component: int) -> tuple[Tensor, Tensor, Tensor]:
        self.counts.local_moves += x.shape[0] * len(sites)
        return self.base.quartic(x, sites, component)  # type: ignore[attr-defined]

    def _count_backward(self, gradient: Tensor) -> None:
        self.counts.gradients += gradient.shape[0]


_MEMBERS: dict[type, tuple[str, ...]] = {
    HasScore: ("score",),
    HasModes: ("mode_weights", "mode"),
    HasSampler: ("sample",),
    HasLogZ: ("log_z",),
    HasMoments: ("mean", "covariance"),
    HasObservables: ("observables",),
    HasLocal: ("colours", "local_difference"),
    HasSites: ("site_colours", "n_components", "unit_length"),
    HasLocalField: ("local_field",),
    HasQuartic: ("quartic",),
    HasBonds: ("couplings",),
    HasRecord: ("record", "from_record", "derived"),
}


@dataclass(frozen=True)
class FunctionTarget:
    """A plain function (n, *event_shape) -> (n,) as a target."""

    fn: Callable[[Tensor], Tensor]
    event_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"fn must be callable, got {type(self.fn).__name__}")
        object.__setattr__(self, "event_shape", _as_shape(self.event_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.fn(x)


def _as_shape(event_shape: Any) -> tuple[int, ...]:
    if not isinstance(event_shape, (tuple, list)) or not all(
        isinstance(size, int) and size > 0 for size in event_shape
    ):
        raise ValueError(f"event_shape must be a tuple of positive ints, got {event_shape!r}")
    return tuple(event_shape)


def as_target(
    target: Target | Callable[[Tensor], Tensor], event_shape: tuple[int, ...] | None = None
) -> Target:
    """The target itself, or a callable wrapped with its event_shape.

    Raises: ValueError for a callable without event_shape and for an event_shape that differs from
    the target's own; TypeError for anything that is neither.
    """
    if isinstance(target, type):
        raise TypeError(f"target is the class {target.__name__}: pass an instance of it")
    if isinstance(target, Target):
        own = _as_shape(target.event_shape)
        if event_shape is not None and _as_shape(event_shape) != own:
            raise ValueError(f"event_shape={event_shape} but the target has event_shape={own}")
        return target
    if not callable(target):
        got = type(target).__name__
        raise TypeError(f"target must have event_shape and log_prob, or be callable, got {got}")
    if event_shape is None:
        raise ValueError("event_shape must be given with a callable target, e.g. event_shape=(10,)")
    return FunctionTarget(target, event_shape)
