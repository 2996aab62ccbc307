"""Runs that keep observables instead of configurations: what is measured, and means over windows.

A draw is then the K numbers that `target.from_record` makes of a record (capabilities.HasRecord), or
those of `target.observables`. A record may be the mean over a window, measured every few of its steps:
the variance of log p inside the window goes with it, so that ⟨e²⟩, and the specific heat, lose nothing
(mcmc/records.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from pysamp import rng
from pysamp.capabilities import RECORD
from pysamp.mcmc.base import Info, Kernel, State
from pysamp.mcmc.records import mean_record
from pysamp.plan import Plan, of_chains, positive
from pysamp.target import HasObservables, HasRecord, Target

KEEPS = ("x", "observables")


@runtime_checkable
class HasStart(Protocol):
    """A target that does not live on all of R^d makes its own starting points (n, *event_shape)."""

    def start(
        self, n: int, *, seed: int, first_chain: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor: ...


@runtime_checkable
class Measures(Protocol):
    """A kernel that measures while it runs, so that no configuration has to leave it."""

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """n transitions of a target with a record; Info.x is (n_chains, n // thin, 9): the records of
        windows of thin steps, each the mean of the measurements after every `every` of them."""


def starting_points(
    target: Target, plan: Plan, first: int, count: int, x0: Tensor | None
) -> Tensor:
    """Where chains first … first + count - 1 begin: (count, *event_shape)."""
    if x0 is not None:
        return x0[first : first + count].detach().to(plan.device)
    if isinstance(target, HasStart):
        return target.start(
            count, seed=plan.seed, first_chain=first, device=plan.device, dtype=plan.dtype
        )
    return rng.normal(
        (count, *plan.event_shape),
        seed=plan.seed,
        stream=rng.STREAMS["start"],
        first_chain=first,
        device=plan.device,
        dtype=plan.dtype,
    )


# ---------------------------------------------------------------------------- what is kept
def check_keep(keep: str, measure_every: int | None) -> None:
    if keep not in KEEPS:
        raise ValueError(f"keep must be one of {', '.join(KEEPS)}, got {keep!r}")
    if keep == "x" and measure_every is not None:
        raise ValueError(
            f"measure_every has a meaning with keep='observables' only, got {measure_every}"
        )


def of_observables(
    plan: Plan,
    target: Target,
    kernel: Kernel,
    measure_every: int | None,
    x0: Tensor | None,
) -> Plan:
    """The plan of a run that keeps the observables of the target.

    Raises ValueError for a target that has none, and for windows that do not fit together.
    """
    every = positive(measure_every, "measure_every", plan.thin)
    if plan.thin % every:
        raise ValueError(f"measure_every must divide thin = {plan.thin}, got {every}")
    name = type(target).__name__
    recorded = isinstance(target, HasRecord)
    if not recorded and every != plan.thin:
        raise ValueError(
            f"measure_every must be thin = {plan.thin} for {name}, which has no record to be "
            f"averaged over a window, got {every}"
        )
    if isinstance(target, HasRecord):
        names = tuple(target.from_record(torch.zeros(1, RECORD, dtype=torch.float64)))
    elif isinstance(target, HasObservables):
        first, _ = of_chains(target, kernel, 0, 1)
        at = starting_points(first, plan, 0, 1, x0)
        names = tuple(cast(HasObservables, first).observables(at))
    else:
        names = ()
    if not names:
        raise ValueError(f"keep='observables' needs a target with observables, {name} has none")
    records = recorded and isinstance(kernel, Measures)
    return replace(plan, names=names, measure_every=every, records=records)


# ---------------------------------------------------------------------------- one call
class Part(NamedTuple):
    """What one call leaves: x, or records (…, 9) of windows, or observables (…, K) without records."""

    kept: Tensor  # (rows, n, *event), (rows, n, 9) or (rows, n, K)
    log_prob: Tensor  # (rows, n)
    measured: int  # measurements in all


def advance(
    target: Target, kernel: Kernel, state: State, steps: int, count: int, plan: Plan
) -> tuple[State, Info, Part]:
    """`steps` transitions, with `count` states or measurements evenly among them.

    Windows are plan.thin steps long, or all of the steps if these are fewer.
    """
    windows = max(1, steps // plan.thin)
    if plan.records:
        thin = steps // windows
        measuring = cast(Measures, kernel)
        state, info = measuring.measure(target, state, steps, thin=thin, every=steps // count)
        record = _filled(info, f"{type(kernel).__name__}.measure", thin, (windows, RECORD))
        return state, info, Part(record, record[..., 0], count)
    thin = steps // count
    state, info = kernel.step(target, state, steps, thin=thin)
    x = _filled(info, f"{type(kernel).__name__}.step", thin, (count, *plan.event_shape))
    log_prob = cast(Tensor, info.log_prob)
    if plan.names is None:
        return state, info, Part(x, log_prob, count)
    flat = x.reshape(-1, *plan.event_shape)
    if not isinstance(target, HasRecord):
        values = _stacked(cast(HasObservables, target).observables(flat), plan)
        return state, info, Part(values.reshape(*x.shape[:2], -1), log_prob, count)
    record = target.record(flat)
    if record.shape != (len(flat), RECORD):
        raise ValueError(
            f"target.record must return ({len(flat)}, {RECORD}), got {tuple(record.shape)}"
        )
    per = count // windows
    record = mean_record(record.reshape(len(x), windows, per, RECORD), [1] * per)
    return state, info, Part(record, record[..., 0], count)


def finished(target: Target, parts: list[Part], plan: Plan) -> tuple[Tensor, Tensor]:
    """What is kept of the draws of some calls, and log p; several calls are pieces of one window."""
    if plan.names is None or not isinstance(target, HasRecord):
        return parts[-1].kept, parts[-1].log_prob
    record = mean_record(torch.stack([p.kept for p in parts], 2), [p.measured for p in parts])
    return _stacked(target.from_record(record), plan), record[..., 0]


def _stacked(found: dict[str, Tensor], plan: Plan) -> Tensor:
    """Observables side by side: (…, K) of the dtype of the run."""
    if tuple(found) != plan.names:
        raise ValueError(f"observables were {plan.names} and are now {tuple(found)}")
    return torch.stack([value.detach().to(plan.dtype) for value in found.values()], -1)


def _filled(info: Info, method: str, thin: int, shape: tuple[int, ...]) -> Tensor:
    """Info.x, checked with Info.log_prob: (rows, *shape) and (rows, shape[0])."""
    name = f"{method} with thin={thin}"
    if info.x is None or info.log_prob is None:
        raise TypeError(f"{name} must fill x and log_prob of its Info")
    if info.x.shape[1:] != shape or info.log_prob.shape != info.x.shape[:2]:
        raise ValueError(
            f"{name} must return x (n_chains, {', '.join(map(str, shape))}), "
            f"got {tuple(info.x.shape)} and log_prob {tuple(info.log_prob.shape)}"
        )
    return info.x
