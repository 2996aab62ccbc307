"""What a density is: the target protocol, its capabilities, its wrappers, their contract test.

A target is an unnormalised log density log p(x) on events of a fixed shape. Everything else that it
may offer (score, modes, exact draws, a native energy, ...) is a capability: one runtime-checkable
protocol each, asked for with `isinstance`. From Python 3.12 on such a check looks at attributes
statically, so a capability that depends on a value is an attribute that is set or not set; a
property that raises AttributeError would count as present.

Conventions: x is (n, *event_shape); log_prob is (n,); the score is the gradient of log_prob and has
the shape of x. A temperature enters through `Boltzmann` and `Tempered` and nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import types
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pysamp import ops, rng


# ---------------------------------------------------------------------------- protocols
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
class HasLogZ(Protocol):
    """log of the integral of exp(log_prob)."""

    @property
    def log_z(self) -> float: ...


@runtime_checkable
class HasObservables(Protocol):
    """Named physical quantities, one number (n,) per configuration."""

    def observables(self, x: Tensor) -> dict[str, Tensor]: ...


@runtime_checkable
class HasLocal(Protocol):
    """A lattice with single-site moves.

    `colours`: int64 indices into the flattened event; every site has one colour and sites of one
    colour do not interact. `local_difference(x, sites, new)` with new (n, len(sites)) returns
    (n, len(sites)): log p(x with that site replaced by new) - log p(x), each site taken alone.
    """

    @property
    def colours(self) -> tuple[Tensor, ...]: ...

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NativeEnergy:
    """Name of a C++ functor, its flat parameters and its integer layout.

    `module` is the user's own extension module; None means the one of pysamp. `table` holds further
    integers that the functor reads, such as the neighbours of each site.
    """

    name: str
    params: tuple[float, ...]
    layout: tuple[int, ...]
    module: ModuleType | None = None
    table: tuple[int, ...] = ()


# ---------------------------------------------------------------------------- value and score
def _value_and_gradient(
    f: Callable[[Tensor], Tensor], x: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        # A tensor made in inference mode can never enter a graph: only its copy can.
        leaf = (x.clone() if x.is_inference() else x.detach()).requires_grad_(True)
        value = f(leaf)
        _check_log_prob(value, x, name)
        gradient = None
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"{name} is not differentiable by torch (its result does not depend on x through "
            f"autograd); give the target a method score(x), or use a gradient-free sampler"
        )
    return value.detach(), gradient


def _check_log_prob(value: Tensor, x: Tensor, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a Tensor, got {type(value).__name__}")
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must return shape ({x.shape[0]},) for x of shape {tuple(x.shape)}, "
            f"got {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise ValueError(f"{name} must return a floating dtype, got {value.dtype}")


def log_prob_and_score(target: Target, x: Tensor) -> tuple[Tensor, Tensor]:
    """Log density (n,) and score (n, *event_shape), with no graph attached.

    In this order: the target's own joint evaluation, its score, torch autograd.
    Cost: one evaluation, or one of each with a separate score.
    Raises: ValueError if log_prob has a wrong shape, is not floating, or is not differentiable.
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
    _check_log_prob(value, x, name)
    if score.shape != x.shape:
        raise ValueError(
            f"{type(target).__name__}.score must return shape {tuple(x.shape)}, "
            f"got {tuple(score.shape)}"
        )
    return value, score


# ---------------------------------------------------------------------------- wrappers
class Boltzmann(ABC):
    """A physical system: log p(x) = -beta U(x), the score by autograd through U.

    A subclass provides `event_shape`, `beta` (inverse temperature) and `energy`, and overrides
    nothing else.
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


def _per_chain(value: float | Tensor, x: Tensor, name: str) -> float | Tensor:
    """A float as it is; a tensor in the dtype and on the device of x, checked against its rows."""
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 1 and value.shape[0] != x.shape[0]:
        raise ValueError(f"{name} has {value.shape[0]} entries but x has {x.shape[0]} rows")
    return value.to(x)


def _over_event(value: float | Tensor, x: Tensor) -> float | Tensor:
    """(n,) -> (n, 1, ..., 1), so that it multiplies a score."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.reshape(-1, *(1,) * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class Tempered:
    """log p(x) = beta * log p_base(x), with one beta for all chains or one for each (n,)."""

    base: Target
    beta: float | Tensor

    def __post_init__(self) -> None:
        _check_scale(self.beta, "beta")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def log_prob(self, x: Tensor) -> Tensor:
        return _per_chain(self.beta, x, "beta") * self.base.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = log_prob_and_score(self.base, x)
        beta = _per_chain(self.beta, x, "beta")
        return beta * log_prob, _over_event(beta, x) * score


@dataclass(frozen=True, eq=False)
class Tilted:
    """log p(x) - precision/2 |x - centre|^2: the posterior of x observed in Gaussian noise.

    centre: (*event_shape) or (n, *event_shape); precision: a number or (n,).
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
        precision = _over_event(_per_chain(self.precision, x, "precision"), x)
        return self._tilt(log_prob, x, offset), score - precision * offset

    def _offset(self, x: Tensor) -> Tensor:
        if self.centre.ndim == x.ndim and self.centre.shape[0] != x.shape[0]:
            raise ValueError(f"centre has {self.centre.shape[0]} rows but x has {x.shape[0]}")
        return x - self.centre.to(x)

    def _tilt(self, log_prob: Tensor, x: Tensor, offset: Tensor) -> Tensor:
        square = (offset * offset).reshape(x.shape[0], math.prod(self.event_shape))  # (n, m)
        # The fixed order of sum32 makes accept decisions equal on every backend.
        precision = _per_chain(self.precision, x, "precision")
        return log_prob - (0.5 * precision) * ops.sum32(square)


@dataclass
class Counts:
    """Rows evaluated so far; `local_moves` counts single-site differences."""

    evaluations: int = 0
    gradients: int = 0
    local_moves: int = 0


@dataclass(frozen=True, eq=False)
class Counted:
    """The same density, counting: a batch of n adds n to `evaluations` or `gradients`.

    It has the capabilities of its base, except `native`: a fused chain does not pass through here
    and could not be counted. A gradient counts once, whether it comes from the score, from the
    joint evaluation or from a backward pass through `log_prob`.
    """

    base: Target
    counts: Counts = field(default_factory=Counts, compare=False)

    def __post_init__(self) -> None:
        counted = {"score": self._score, "local_difference": self._local_difference}
        for capability, members in _FORWARDED.items():
            if isinstance(self.base, capability):
                for member in members:
                    value = counted.get(member) or getattr(self.base, member)
                    object.__setattr__(self, member, value)

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

    def _count_backward(self, gradient: Tensor) -> None:
        self.counts.gradients += gradient.shape[0]


_FORWARDED: dict[type, tuple[str, ...]] = {
    HasScore: ("score",),
    HasModes: ("mode_weights", "mode"),
    HasSampler: ("sample",),
    HasLogZ: ("log_z",),
    HasObservables: ("observables",),
    HasLocal: ("colours", "local_difference"),
}


# ---------------------------------------------------------------------------- callables
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
        raise TypeError(
            "target must have event_shape and log_prob, or be callable, "
            f"got {type(target).__name__}"
        )
    if event_shape is None:
        raise ValueError("event_shape must be given with a callable target, e.g. event_shape=(10,)")
    return FunctionTarget(target, event_shape)


# ---------------------------------------------------------------------------- fingerprint
def fingerprint(target: Target) -> str:
    """sha256 of what the target is: class name, fields, code of functions, and 4 probe values.

    It guards resuming a run. Equal in every process under one Python version (bytecode differs
    between versions). Dataclass fields with compare=False are caches and left out. The probes
    catch what no field shows, such as a global that a function reads; they are rounded (9 digits
    in float64, 4 in float32), so that another machine's last bits do not refuse a resume.
    """
    if isinstance(target, Counted):
        return fingerprint(target.base)
    digest = _Digest()
    digest.add(target)
    event = tuple(target.event_shape)
    dtypes = [digest.dtype] if digest.dtype is not None else [torch.float64, torch.float32]
    for attempt, dtype in enumerate(dtypes):
        z = rng.normal((4, *event), seed=0, stream=rng.STREAMS["check"], dtype=torch.float64)
        try:
            with torch.no_grad():
                value = _unbatched(target).log_prob(z.to(device=digest.device, dtype=dtype))
        except (RuntimeError, TypeError) as error:
            if attempt + 1 < len(dtypes):
                continue
            raise ValueError(
                f"fingerprint: {type(target).__name__}.log_prob failed on {dtype} probe points: "
                f"{error}"
            ) from error
        digits = 8 if value.dtype == torch.float64 else 3
        digest.add([f"{v:.{digits}e}" for v in value.tolist()])
        break
    return digest.hash.hexdigest()


def _unbatched(target: Target) -> Target:
    """The target whose log_prob takes any number of rows: without per-chain tempering or tilt."""
    while isinstance(target, (Tempered, Tilted, Counted)):
        target = target.base
    return target


class _Digest:
    """Feeds values to sha256, each as tag, length and content, so that no two values collide."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.device = torch.device("cpu")
        self.dtype: torch.dtype | None = None  # of the first floating tensor met
        self._open: list[int] = []  # objects being visited, against cycles; never hashed

    def _put(self, tag: str, content: bytes = b"") -> None:
        self.hash.update(f"{tag}:{len(content)}:".encode() + content)

    def add(self, value: Any) -> None:
        if id(value) in self._open:
            self._put("cycle", str(len(self._open) - self._open.index(id(value))).encode())
            return
        self._open.append(id(value))
        self._add(value)
        self._open.pop()

    def _add(self, value: Any) -> None:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            self._put(type(value).__name__, repr(value).encode())
        elif isinstance(value, Tensor):
            if self.dtype is None and value.is_floating_point():
                self.dtype, self.device = value.dtype, value.device
            flat = value.detach().cpu().contiguous().reshape(-1)
            self._put("tensor", f"{value.dtype}{tuple(value.shape)}".encode())
            self._put("data", flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        elif isinstance(value, (np.ndarray, np.generic)):
            self._put("array", f"{value.dtype}{value.shape}".encode())
            self._put("data", np.ascontiguousarray(value).tobytes())
        elif isinstance(value, (tuple, list)):
            self._put("sequence", str(len(value)).encode())
            for item in value:
                self.add(item)
        elif isinstance(value, (set, frozenset)):
            self._put("set", "".join(sorted(self._digest_of(item) for item in value)).encode())
        elif isinstance(value, dict):
            self._put("dict", str(len(value)).encode())
            for key in sorted(value, key=repr):
                self.add(key)
                self.add(value[key])
        else:
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        if isinstance(value, types.CodeType):
            self._put("code", value.co_code)
            self.add((value.co_names, value.co_consts))
        elif isinstance(value, types.FunctionType):
            self._put("function", value.__qualname__.encode())
            cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
            self.add((value.__code__, value.__defaults__, value.__kwdefaults__, cells))
        elif isinstance(value, types.MethodType):
            self._put("method")
            self.add((value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._put("partial")
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, ModuleType):
            self._put("module", value.__name__.encode())
        elif isinstance(value, (type, types.BuiltinFunctionType)):
            self._put("name", value.__qualname__.encode())
        elif isinstance(value, (torch.dtype, torch.device)):
            self._put("torch", str(value).encode())
        else:
            self._put("object", type(value).__qualname__.encode())
            self.add(_state(value))

    def _digest_of(self, value: Any) -> str:
        inner = _Digest()
        inner.add(value)
        return inner.hash.hexdigest()


def _state(value: Any) -> dict[str, Any]:
    """The named values that make an object what it is."""
    if isinstance(value, torch.nn.Module):
        return dict(value.state_dict())
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value) if f.compare]
        return {name: getattr(value, name) for name in names}
    return dict(getattr(value, "__dict__", {}))


# ---------------------------------------------------------------------------- contract test
def check_target(
    target: Target | Callable[[Tensor], Tensor],
    *,
    event_shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    points: Tensor | None = None,
) -> None:
    """Run the contract of a target; return None if it holds.

    dtype: None checks float64 and float32 and that they agree. points: (n, *event_shape) where the
    density is finite; without them, the target's own draws if it has a sampler, else normal and
    uniform points, of which those with log_prob = -inf are taken to lie outside the support.
    Checked: shape, dtype, device, finiteness, no change of the input, independence of the rows of a
    batch, empty and strided batches, score against central differences, members of capabilities.

    Raises: ValueError naming the check that failed, with the numbers.
    """
    t = as_target(target, event_shape)
    dtypes = (torch.float64, torch.float32) if dtype is None else (dtype,)
    if any(d not in (torch.float64, torch.float32) for d in dtypes):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    pool = _pool(t, torch.device(device), dtypes[0], points)
    inside = isinstance(t, HasSampler) or points is not None
    value = _check_values(t, pool, must_be_finite=inside)
    _check_rows(t, pool, value)
    x = pool[torch.isfinite(value)]
    _check_score(t, x)
    _check_capabilities(t, x)
    for other in dtypes[1:]:
        _check_agreement(t, x.to(other))


def _fail(check: str, text: str, cause: BaseException | None = None) -> None:
    raise ValueError(f"check_target: {check}: {text}") from cause


def _row(bad: Tensor) -> int:
    """Index of the first row that is marked."""
    return int(bad.nonzero()[0, 0])


def _pool(t: Target, device: torch.device, dtype: torch.dtype, points: Tensor | None) -> Tensor:
    event = tuple(t.event_shape)
    if points is not None:
        if points.shape[1:] != event or points.ndim != len(event) + 1 or points.shape[0] == 0:
            raise ValueError(
                f"points must be (n, *{event}) with n > 0, got shape {tuple(points.shape)}"
            )
        return points.detach().to(device=device, dtype=dtype, copy=True)
    if isinstance(t, HasSampler):
        draws = t.sample(16, seed=0)
        if draws.shape != (16, *event) or not draws.is_floating_point():
            _fail(
                "sampler",
                f"sample(16, seed=0) must be floating of shape {(16, *event)}, "
                f"got {draws.dtype} of shape {tuple(draws.shape)}",
            )
        if not torch.equal(draws, t.sample(16, seed=0)):
            _fail("sampler", "two calls with seed=0 differ: draws must be a function of the seed")
        if torch.equal(draws, t.sample(16, seed=1)):
            _fail("sampler", "seed=0 and seed=1 give the same draws")
        return draws.to(device=device, dtype=dtype)
    how: dict[str, Any] = {
        "seed": 0,
        "stream": rng.STREAMS["check"],
        "device": device,
        "dtype": dtype,
    }
    normal = rng.normal((8, *event), step=0, **how)
    uniform = rng.uniform((4, *event), step=1, **how)
    return torch.cat([normal, uniform, 0.1 * rng.normal((4, *event), step=2, **how)])


def _log_prob(t: Target, x: Tensor, what: str) -> Tensor:
    """log_prob of x, checked for form and for leaving its input alone."""
    before = x.clone()  # x itself is passed, as a clone would lose its strides
    try:
        with torch.no_grad():
            value = t.log_prob(x)
    except Exception as error:
        _fail(what, f"log_prob raised on x of shape {tuple(x.shape)}, {x.dtype}: {error!r}", error)
    if not torch.equal(before, x):
        _fail("input", "log_prob changed its input in place")
    try:
        _check_log_prob(value, x, "log_prob")
    except (TypeError, ValueError) as error:
        _fail(what, str(error), error)
    if value.dtype != x.dtype or value.device != x.device:
        _fail(
            "dtype and device",
            f"log_prob of {x.dtype} on {x.device} must keep both, "
            f"got {value.dtype} on {value.device}",
        )
    return value


def _check_values(t: Target, pool: Tensor, must_be_finite: bool) -> Tensor:
    value = _log_prob(t, pool, "shape")
    wrong = torch.isnan(value) | (value == math.inf)
    if must_be_finite:
        wrong = ~torch.isfinite(value)
    if bool(wrong.any()):
        row = _row(wrong)
        _fail("finite", f"log_prob = {value[row].item()} at row {row}, x = {pool[row].tolist()}")
    if not bool(torch.isfinite(value).any()):
        _fail(
            "finite",
            f"log_prob = -inf at all {len(pool)} normal and uniform points; pass points= of "
            f"shape (n, *{tuple(t.event_shape)}) inside the support",
        )
    return value


def _is_double(value: Tensor) -> bool:
    """Whether float64 was used all the way: a float32 computation, cast at the end, shows here."""
    return value.dtype == torch.float64 and not torch.equal(value, value.float().double())


def _relative(value: Tensor) -> float:
    """Wide enough for matrix products whose blocking depends on the batch, too narrow for a leak."""
    return 1e-6 if _is_double(value) else 1e-2


def _close(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a - b).abs() <= _relative(b) * (1 + b.abs()))


def _check_rows(t: Target, pool: Tensor, value: Tensor) -> None:
    order = torch.arange(len(pool) - 1, -1, -1, device=pool.device)
    single = torch.cat([_log_prob(t, pool[i : i + 1], "single row") for i in range(len(pool))])
    turned = pool.movedim(0, -1)
    strided = torch.stack([turned, torch.zeros_like(turned)], dim=-1)[..., 0].movedim(-1, 0)
    for how, other in (
        ("alone", single),
        ("in a reversed batch", _log_prob(t, pool[order], "reversed batch")[order]),
        ("in a strided batch", _log_prob(t, strided, "strided batch")),
    ):
        bad = ~_close(other, value)
        if bool(bad.any()):
            row = _row(bad)
            _fail(
                "rows",
                f"log_prob of row {row} is {value[row].item()} in a batch of {len(pool)} "
                f"but {other[row].item()} {how}",
            )
    _log_prob(t, pool[:0], "empty batch")


def _check_score(t: Target, x: Tensor) -> None:
    """Score along directions against central differences, at steps from coarse to fine."""
    score = _score_of(t, x)
    if score is None:
        return
    event = tuple(t.event_shape)
    size = math.prod(event)
    if size <= 16:
        directions = torch.eye(size, dtype=x.dtype, device=x.device)
    else:
        how: dict[str, Any] = {
            "seed": 0,
            "stream": rng.STREAMS["check"],
            "device": x.device,
            "dtype": x.dtype,
        }
        directions = torch.sign(rng.normal((8, size), step=3, **how)) / math.sqrt(size)
    double = x.dtype == torch.float64
    steps = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6) if double else (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
    relative, floor = (1e-4, 1e-6) if double else (5e-2, 2e-2)
    flat = score.reshape(len(x), size)
    typical = flat.square().mean(1).sqrt()  # (n,)
    value = _log_prob(t, x, "shape")
    unit = torch.finfo(torch.float64 if _is_double(value) else torch.float32).eps
    rounding = 16 * unit * value.abs()  # (n,)
    reach = x.reshape(len(x), size).square().mean(1).sqrt().clamp_min(1.0)  # (n,)
    for k, direction in enumerate(directions):
        slope = flat @ direction  # (n,)
        differences, noises = [], []
        for step in steps:
            h = step * reach
            noises.append(rounding / h)
            move = (h[:, None] * direction).reshape(x.shape)
            up, down = (_log_prob(t, x + s * move, "shape") for s in (1, -1))
            differences.append((up - down) / (2 * h))
        fd = torch.stack(differences)  # (steps, n)
        # A step too small to change log_prob, or one that leaves the support, says nothing.
        known = torch.isfinite(fd) & ((fd != 0) | (fd == 0).all(0))
        # Neighbouring steps can agree by accident in a noisy log_prob; two pairs hardly do.
        change = (fd[1:] - fd[:-1]).abs().where(known[1:] & known[:-1], math.inf)
        spread = change.sort(0).values[1]
        error = ((fd - slope).abs() - torch.stack(noises)).where(known, math.inf).amin(0)
        allowed = relative * slope.abs() + floor * typical + 10 * spread
        bad = torch.isfinite(error) & (error > allowed)
        if bool(bad.any()):
            row = _row(bad)
            nearest = (fd[:, row] - slope[row]).abs().where(known[:, row], math.inf).argmin()
            where = f"coordinate {k}" if size <= 16 else f"random direction {k}"
            _fail(
                "score",
                f"row {row}, {where}: score gives {slope[row].item():.8g} but central "
                f"differences of log_prob give {fd[nearest, row].item():.8g}",
            )


def _score_of(t: Target, x: Tensor) -> Tensor | None:
    """The score, checked for form; None if there is none and torch cannot differentiate."""
    if not isinstance(t, (HasScore, HasValueAndScore)):
        with torch.enable_grad():
            if not t.log_prob(x.clone().requires_grad_(True)).requires_grad:
                return None
    given = x.clone()
    value, score = log_prob_and_score(t, given)
    if not torch.equal(given, x):
        _fail("input", "the score changed its input in place")
    if not bool(_close(value, _log_prob(t, x, "shape")).all()):
        _fail("score", "log_prob_and_score gives another log density than log_prob")
    if score.dtype != x.dtype or score.device != x.device:
        _fail(
            "score",
            f"score of {x.dtype} on {x.device} must keep both, got {score.dtype} on {score.device}",
        )
    wrong = ~torch.isfinite(score.reshape(len(x), -1)).all(1)
    if bool(wrong.any()):
        row = _row(wrong)
        _fail("score", f"not finite at row {row}: x = {x[row].tolist()}, {score[row].tolist()}")
    if isinstance(t, HasScore):
        if t.score(x[:0]).shape != x[:0].shape:
            _fail("score", f"empty batch gives shape {tuple(t.score(x[:0]).shape)}")
        tolerance = _relative(score) * (1 + score.abs().amax())
        for i in range(len(x)):
            if bool(((t.score(x[i : i + 1])[0] - score[i]).abs() > tolerance).any()):
                _fail("rows", f"score of row {i} in a batch of {len(x)} differs from it alone")
    return score


def _check_agreement(t: Target, x: Tensor) -> None:
    """float32 against float64 at the same float32 points."""
    low, high = _log_prob(t, x, f"{x.dtype}"), _log_prob(t, x.double(), "float64")
    score = _score_of(t, x)
    allowed = 1e-3 * (1 + high.abs())
    if score is not None:  # what a rounding of x alone does to log_prob
        reach = (x * score).abs().reshape(len(x), -1).sum(1)
        allowed = allowed + 1e-5 * reach.double()
    bad = ~((low.double() - high).abs() <= allowed) & torch.isfinite(high)
    if bool(bad.any()):
        row = _row(bad)
        _fail(
            "precision",
            f"log_prob of row {row} is {low[row].item()} in float32 but {high[row].item()} in "
            "float64; pass dtype=torch.float64 if the target is meant for float64 only",
        )


def _check_capabilities(t: Target, x: Tensor) -> None:
    n = len(x)
    if isinstance(t, HasModes):
        weights, label = t.mode_weights, t.mode(x)
        total = float(weights.sum())
        if weights.ndim != 1 or bool((weights < 0).any()) or abs(total - 1) > 1e-6:
            _fail("mode_weights", f"must be (k,), not negative, of sum 1, got {weights.tolist()}")
        if label.shape != (n,) or label.dtype != torch.int64:
            _fail("mode", f"must be ({n},) int64, got {tuple(label.shape)} {label.dtype}")
        if bool(((label < 0) | (label >= len(weights))).any()):
            _fail("mode", f"labels must lie in [0, {len(weights)}), got {label.tolist()}")
    if isinstance(t, HasLogZ) and not math.isfinite(t.log_z):
        _fail("log_z", f"must be finite, got {t.log_z}")
    if isinstance(t, HasNative) and not isinstance(t.native, NativeEnergy):
        _fail("native", f"must be a NativeEnergy, got {type(t.native).__name__}")
    if isinstance(t, HasObservables):
        for name, value in t.observables(x).items():
            if value.shape != (n,):
                _fail("observables", f"{name!r} must be ({n},), got {tuple(value.shape)}")
    if isinstance(t, HasLocal):
        _check_local(t, x)


def _check_local(t: Any, x: Tensor) -> None:
    sites = torch.cat([colour.cpu() for colour in t.colours])
    size = math.prod(t.event_shape)
    if sites.dtype != torch.int64 or not torch.equal(sites.sort().values, torch.arange(size)):
        _fail("colours", f"must hold each of the {size} sites once, as int64")
    value, flat = _log_prob(t, x, "shape"), x.reshape(len(x), size)
    relative = _relative(value)
    donor = flat.roll(1, 0)  # values of another row: they lie in the domain of a site
    for c, colour in enumerate(t.colours):
        at = colour.to(x.device)
        difference = t.local_difference(x, at, donor[:, at])
        if difference.shape != (len(x), len(at)):
            _fail("local_difference", f"must be {(len(x), len(at))}, got {tuple(difference.shape)}")
        # All sites of a colour at once test that they do not interact; a few alone, the difference.
        trials = [(at, difference.sum(1), f"all sites of colour {c} (do they interact?)")]
        trials += [(at[j : j + 1], difference[:, j], f"site {int(at[j])}") for j in range(len(at))][
            :8
        ]
        for where, claimed, name in trials:
            moved = flat.clone()
            moved[:, where] = donor[:, where]
            actual = _log_prob(t, moved.reshape(x.shape), "shape") - value
            scale = 1 + value.abs() + actual.abs()
            bad = torch.isfinite(actual) & ((claimed - actual).abs() > relative * scale)
            if bool(bad.any()):
                row = _row(bad)
                _fail(
                    "local_difference",
                    f"row {row}, {name}: {claimed[row].item()} but log_prob changes by "
                    f"{actual[row].item()}",
                )
