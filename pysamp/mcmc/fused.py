"""The native path of the Markov kernels: n transitions of all chains in one call.

`plan(target, state)` looks through the wrappers of a target: a native energy, possibly tempered,
possibly tilted, possibly counted, in that order from the inside. Anything else has no plan, and the
kernel runs its torch text. That text is the definition; the call gives the same numbers.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pysamp import _native
from pysamp.mcmc.base import Info, State, replace
from pysamp.target import Counted, NativeEnergy, Target, Tempered, Tilted

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


@dataclass(frozen=True)
class Plan:
    """A native energy with the temper and tilt of each row, ready to be called."""

    module: ModuleType
    energy: NativeEnergy
    beta: Tensor | None  # (rows,)
    centre: Tensor | None  # (rows, n)
    precision: Tensor | None  # (rows,)
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
    centre = precision = beta = None
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
    return Plan(module, energy, beta, centre, precision, tuple(counted))


def chain(
    driver: str, target: Target, state: State, n: int, thin: int | None, scale: Tensor, *,
    n_leapfrog: int = 1, adapt: tuple[float, float, float, float] = NO_ADAPTATION,
) -> tuple[State, Info] | None:  # fmt: skip
    """n transitions of `driver` ("mala", "ula", "hmc", "metropolis"), or None without a native path.

    scale: (rows,). `adapt` is (factor, cap, ln a_low, ln a_high) of the per-chain rule of MALA.
    """
    found = plan(target, state.x)
    call = found.function(driver) if found is not None else None
    if found is None or call is None:
        return None
    if state.score is None and driver != "metropolis":
        raise ValueError(
            f"state has no score, which {driver} needs: start it with this kernel's init"
        )
    rows, dtype, device = state.n_chains, state.x.dtype, state.x.device
    x = state.x.reshape(rows, -1).contiguous()
    score = None if state.score is None else state.score.reshape(rows, -1).contiguous()
    out = torch.empty_like(x)
    score_out = None if score is None else torch.empty_like(x)
    log_prob, accept, nonfinite, scale_out = torch.empty((4, rows), dtype=dtype, device=device)
    kept = n // thin if thin else 0
    trace_x = x.new_empty((rows, kept, x.shape[1])) if thin else None
    trace_log_prob = x.new_empty((rows, kept)) if thin else None
    call(
        x, state.log_prob.contiguous(), score, scale,
        _params_on(found.energy.params, device, dtype), _table_on(found.energy.table, device),
        list(found.energy.layout), found.beta, found.centre, found.precision,
        state.seed, state.step, state.first_chain, n, thin or 0, n_leapfrog, list(adapt),
        out, log_prob, score_out, accept, nonfinite,
        scale_out if adapt != NO_ADAPTATION else None, trace_x, trace_log_prob,
    )  # fmt: skip
    gradients = n * rows * (n_leapfrog if driver == "hmc" else 1)
    for counted in found.counted:
        counted.counts.evaluations += n * rows
        if driver != "metropolis":
            counted.counts.gradients += gradients
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
    return new, Info(accept, {"nonfinite": nonfinite}, kept_x, trace_log_prob)


def sites(
    target: Target, state: State, n: int, thin: int | None, scale: Tensor, order: Tensor,
    starts: list[int],
) -> tuple[Tensor, Info] | None:  # fmt: skip
    """n sweeps of single-site moves: the new x and what is known of it, or None without a native path."""
    found = plan(target, state.x)
    call = found.function("sites") if found is not None else None
    if found is None or call is None or len(starts) > MAX_COLOURS + 1:
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
