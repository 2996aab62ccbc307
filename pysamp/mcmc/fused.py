"""The native path of the Markov kernels: n transitions of all chains in one call.

`plan(target, state)` looks through the wrappers of a target: a native energy, possibly tempered,
possibly tilted, possibly counted, in that order from the inside, or bridged to a Gaussian. Anything else
has no plan, and the kernel runs its torch text. That text is the definition; the call gives the same
numbers.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pysamp import _native
from pysamp.capabilities import RECORD
from pysamp.mcmc.base import Info, State, replace
from pysamp.target import Counted, NativeEnergy, Target, Tempered, Tilted
from pysamp.targets.gaussian import Bridged, Gaussian

NO_ADAPTATION = (1.0, 0.0, 0.0, 0.0)
MAX_COLOURS = 4  # Colours::kMax of csrc/chains.h; more are swept in torch


@functools.lru_cache(maxsize=128)
def _params_on(params: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve autograd too
        return torch.tensor(params, dtype=dtype, device=device)


@functools.lru_cache(maxsize=128)
def _table_on(table: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(table, dtype=torch.int32, device=device)


@functools.lru_cache(maxsize=16)
def _matrix_on(reference: Gaussian, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Its precision, symmetric to the last bit."""
    with torch.inference_mode(False):
        return reference.precision.to(device=device, dtype=dtype).contiguous()


@dataclass(frozen=True)
class Plan:
    """A native energy with the temper and tilt of each row, ready to be called."""

    module: ModuleType
    energy: NativeEnergy
    beta: Tensor | None  # (rows,)
    centre: Tensor | None  # (rows, n)
    precision: Tensor | None  # (rows,)
    matrix: Tensor | None  # (n, n)
    counted: tuple[Counted, ...]

    def function(self, driver: str) -> Any:
        return getattr(self.module, f"{self.energy.name}_{driver}", None)


def _rows(value: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(x.shape[0]).contiguous()


def _energy(target: Target) -> NativeEnergy | None:
    """The capability HasNative; asking for the protocol by isinstance would cost more than a step."""
    try:
        return target.native  # type: ignore[attr-defined]
    except AttributeError:
        return None


def plan(target: Target, x: Tensor) -> Plan | None:
    """How the density at rows x (rows, *event) is evaluated natively, or None where it cannot be."""
    if x.dtype not in (torch.float32, torch.float64):
        return None
    counted: list[Counted] = []
    centre = precision = beta = matrix = None
    while True:
        if isinstance(target, Counted):
            counted.append(target)
            target = target.base
        elif isinstance(target, Tilted) and centre is None and beta is None:
            shift = torch.as_tensor(target.centre, dtype=x.dtype, device=x.device)
            centre = shift.expand_as(x).reshape(x.shape[0], -1).contiguous()
            precision = _rows(target.precision, x)
            target = target.base
        elif isinstance(target, Tempered) and beta is None:
            beta = _rows(target.beta, x)
            target = target.base
        elif isinstance(target, Bridged) and beta is None and centre is None:
            reference, beta = target.reference, _rows(target.lam, x)
            mean = _params_on(tuple(reference.mean.flatten().tolist()), x.device, x.dtype)
            centre = mean.expand(x.shape[0], -1).contiguous()
            strength, isotropic = target.tilt(x)
            precision = _rows(strength, x)
            if not isotropic:
                matrix = _matrix_on(reference, x.device, x.dtype)
            target = target.base
        else:
            break
    energy = _energy(target)
    if energy is None:
        return None
    module = _native.module_for(x.device)
    own = energy.module
    if own is not None and _native.backend_name() == "native":
        module = own if own.device == x.device.type else None
    if module is None:
        return None
    return Plan(module, energy, beta, centre, precision, matrix, tuple(counted))


def chain(
    driver: str, target: Target, state: State, n: int, thin: int | None, scale: Tensor, *,
    n_leapfrog: int = 1, adapt: tuple[float, float, float, float] = NO_ADAPTATION, n_mean: int = 0,
) -> tuple[State, Info] | None:  # fmt: skip
    """n transitions of `driver` ("mala", "ula", "hmc", "metropolis"), or None without a native path.

    scale: (rows,). `adapt` is (factor, cap, ln a_low, ln a_high) of the per-chain rule of MALA; with
    n_mean, Info.extra has the "mean" of the last n_mean states. MALA of a state without a score evaluates
    the target first, and leaves none.
    """
    found = plan(target, state.x)
    call = found.function(driver) if found is not None else None
    if found is None or call is None:
        return None
    if state.score is None and driver not in ("metropolis", "mala"):
        raise ValueError(
            f"state has no score, which {driver} needs: start it with this kernel's init"
        )
    rows, dtype, device = state.n_chains, state.x.dtype, state.x.device
    x = state.x.reshape(rows, -1).contiguous()
    score = None if state.score is None else state.score.reshape(rows, -1).contiguous()
    fresh = driver == "mala" and score is None
    out = torch.empty_like(x)
    score_out = None if score is None else torch.empty_like(x)
    log_prob, accept, nonfinite, scale_out = torch.empty((4, rows), dtype=dtype, device=device)
    kept = n // thin if thin else 0
    trace_x = x.new_empty((rows, kept, x.shape[1])) if thin else None
    trace_log_prob = x.new_empty((rows, kept)) if thin else None
    mean = torch.empty_like(x) if n_mean else None
    call(
        x, None if fresh else state.log_prob.contiguous(), score, scale,
        _params_on(found.energy.params, device, dtype), _table_on(found.energy.table, device),
        list(found.energy.layout), found.beta, found.centre, found.precision, found.matrix,
        state.seed, state.step, state.first_chain, n, thin or 0, n_leapfrog, list(adapt), n_mean,
        out, log_prob, score_out, accept, nonfinite,
        scale_out if adapt != NO_ADAPTATION else None, trace_x, trace_log_prob, mean,
    )  # fmt: skip
    gradients = n * rows * (n_leapfrog if driver == "hmc" else 1)
    for counted in found.counted:
        counted.counts.evaluations += n * rows + fresh * rows
        if driver != "metropolis":
            counted.counts.gradients += gradients + fresh * rows
    adapted = {"step_size": scale_out} if adapt != NO_ADAPTATION else {}
    event = state.x.shape[1:]
    new = replace(
        state,
        x=out.reshape(state.x.shape),
        log_prob=log_prob,
        score=None if score_out is None else score_out.reshape(state.x.shape),
        step=state.step + n,
        aux={**state.aux, **adapted},
    )
    kept_x = None if trace_x is None else trace_x.reshape(rows, kept, *event)
    extra = {"nonfinite": nonfinite}
    if mean is not None:
        extra["mean"] = mean.reshape(state.x.shape)
    return new, Info(accept, extra, kept_x, trace_log_prob)


def sites(
    target: Target, state: State, n: int, thin: int | None, scale: Tensor, order: Tensor,
    starts: list[int],
) -> tuple[Tensor, Info] | None:  # fmt: skip
    """n sweeps of single-site moves: the new x and what is known of it, or None without a native path."""
    found = plan(target, state.x)
    call = found.function("sites") if found is not None else None
    if found is None or call is None or len(starts) > MAX_COLOURS + 1 or found.matrix is not None:
        return None
    rows, device = state.n_chains, state.x.device
    x = state.x.reshape(rows, -1).contiguous()
    out = torch.empty_like(x)
    accept, nonfinite = torch.empty((2, rows), dtype=x.dtype, device=device)
    kept = n // thin if thin else 0
    trace_x = x.new_empty((rows, kept, x.shape[1])) if thin else None
    call(
        x, scale, _params_on(found.energy.params, device, x.dtype),
        _table_on(found.energy.table, device), list(found.energy.layout),
        order.to(device=device, dtype=torch.int32), starts,
        found.beta, found.centre, found.precision, state.seed, state.step, state.first_chain,
        n, thin or 0, out, accept, nonfinite, trace_x,
    )  # fmt: skip
    for counted in found.counted:
        counted.counts.local_moves += n * rows * math.prod(state.x.shape[1:])
    kept_x = None if trace_x is None else trace_x.reshape(rows, kept, *state.x.shape[1:])
    return out.reshape(state.x.shape), Info(accept, {"nonfinite": nonfinite}, kept_x, None)


MOVES = ("metropolis", "heat_bath", "reflect")  # by number, Move of csrc/sweeps.h
IN_LANES = ("auto", "chains", "sites")  # Layout of csrc/fields.h; all give the same bits
MAX_MOVES = 16  # Program::kMax


def sweeps(
    target: Target, state: State, moves: tuple[str, ...], n: int, thin: int | None,
    scale: Tensor | None, every: int | None = None, *, in_lanes: str = "auto",
) -> tuple[Tensor, Info] | None:  # fmt: skip
    """n steps of one sweep of each of `moves`: the new x and what is known of it, or None.

    With `every`, what is kept every `thin` steps is a record, the mean over measurements `every`
    steps apart; else it is x. `in_lanes` forces a layout, to compare them.
    """
    found = plan(target, state.x)
    call = found.function("sweeps") if found is not None else None
    if found is None or call is None or len(moves) > MAX_MOVES or found.matrix is not None:
        return None
    if every is not None and (found.beta is not None or found.centre is not None):
        return None  # records are those of the density itself
    colours = target.site_colours  # type: ignore[attr-defined]
    starts = [0, *itertools.accumulate(map(len, colours))]
    kept = _Kept(found, state, n, thin, every)
    out = torch.empty_like(kept.x)
    accept, nonfinite = torch.empty((2, len(out)), dtype=out.dtype, device=out.device)
    call(
        kept.x, scale, *kept.energy, torch.cat(colours).to(out.device, torch.int32), starts,
        [MOVES.index(move) for move in moves], found.beta, found.centre, found.precision,
        state.seed, state.step, state.first_chain, n, thin or 0, every or 0,
        IN_LANES.index(in_lanes), out, accept, nonfinite, *kept.tensors,
    )  # fmt: skip
    components = 1 if target.unit_length else target.n_components  # type: ignore[attr-defined]
    for counted in found.counted:
        counted.counts.local_moves += n * len(moves) * len(out) * starts[-1] * components
    return out.reshape(state.x.shape), Info(accept, {"nonfinite": nonfinite}, kept.result(), None)


def clusters(
    target: Target, state: State, rule: str, n: int, thin: int | None, every: int | None = None
) -> tuple[Tensor, Info] | None:
    """n cluster steps, as `sweeps`; rule: "wolff" or "swendsen_wang"."""
    found = plan(target, state.x)
    call = found.function("clusters") if found is not None else None
    if found is None or call is None or found.centre is not None:
        return None
    if every is not None and found.beta is not None:
        return None
    kept = _Kept(found, state, n, thin, every)
    out = torch.empty_like(kept.x)
    size, accept, nonfinite = torch.empty((3, len(out)), dtype=out.dtype, device=out.device)
    call(
        kept.x, *kept.energy, rule == "wolff", found.beta, state.seed, state.step,
        state.first_chain, n, thin or 0, every or 0, out, size, accept, nonfinite, *kept.tensors,
    )  # fmt: skip
    return out.reshape(state.x.shape), Info(accept, {"cluster_size": size}, kept.result(), None)


class _Kept:
    """The field of a call on a lattice, its energy, and where what is kept of its steps goes."""

    def __init__(
        self, plan: Plan, state: State, n: int, thin: int | None, every: int | None
    ) -> None:
        rows, dtype, device = state.n_chains, state.x.dtype, state.x.device
        energy = plan.energy
        self.x = x = state.x.reshape(rows, -1).contiguous()
        self.event = state.x.shape[1:]
        self.energy = (
            _params_on(energy.params, device, dtype),
            _table_on(energy.table, device),
            list(energy.layout),
        )
        count = n // thin if thin else 0
        measures = every is not None
        self.trace = x.new_empty((rows, count, x.shape[1])) if thin and not measures else None
        self.records = x.new_empty((rows, count, RECORD)) if measures else None
        shape = tuple(self.event[: energy.layout[1] // 2])
        self.tensors = (
            self.trace,
            _waves(shape, device, dtype) if measures else None,
            self.records,
        )

    def result(self) -> Tensor | None:
        """(rows, n // thin, *event) or (rows, n // thin, 9), or None."""
        if self.records is not None:
            return self.records
        if self.trace is None:
            return None
        return self.trace.reshape(*self.trace.shape[:2], *self.event)


@functools.lru_cache(maxsize=16)
def _waves(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """cos and sin of 2π x_μ/L_μ at every site, axis after axis: (2d, n_sites)."""
    rows = []
    for axis, length in enumerate(shape):
        along = torch.arange(length, dtype=torch.float64) * (2 * math.pi / length)
        along = along.reshape([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
        rows += [along.cos().reshape(-1), along.sin().reshape(-1)]
    with torch.inference_mode(False):
        return torch.stack(rows).to(device=device, dtype=dtype)
