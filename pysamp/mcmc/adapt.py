"""Warm-up: find the step size or width that brings the acceptance to its target, then let it rest.

The logarithm x of the scale follows dual averaging (Nesterov, Math. Program. 120, 221, 2009), Eq. 6
of Hoffman and Gelman, JMLR 15, 1593 (2014); δ is the acceptance aimed at, α_t its mean over chains:

    x_{t+1} = μ − (√t / γ) (t + t₀)⁻¹ Σ_{i≤t} (δ − α_i),
    x̄_{t+1} = t^{−κ} x_{t+1} + (1 − t^{−κ}) x̄_t.

One scale serves all chains, or all entries of one group (a rung of a ladder). The mean is taken in
float64 over all chains in their global order, so any number of processes finds the same bits.

Inverse masses are the variances of all n draws of a window, drawn to a small number as in Stan,
σ² n/(n + 5) + 10⁻³ · 5/(n + 5) (Carpenter et al., J. Stat. Softw. 76, 2017, doi 10.18637/jss.v076.i01);
after each window but the last the search for a scale starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp.mcmc.base import Info, Kernel, State, Tunable, replace
from pysamp.mcmc.hmc import HasMasses
from pysamp.mcmc.metropolis import Bounded, needs_scale
from pysamp.target import Target

SEARCH_FACTOR = 4.0  # between the trial scales of the search; dual averaging does the rest
LOWEST, HIGHEST = 1e-14, 1e8  # scales tried, relative to the initial one
STUCK = 0.01  # mean acceptance of a chain over a few steps, below which it stands still
REST = 3  # the last third of a warm-up runs at the scale found
BLOCK = 32  # steps of one fused call where nothing is adapted
PRIOR_DRAWS, PRIOR_VARIANCE = 5, 1e-3  # what a variance is drawn to, of few draws more than of many


@dataclass(frozen=True)
class DualAveraging:
    """Dual averaging of log scales; every field is one number or a float64 tensor of one per group.

    `scale` is the one to try next and `averaged` the one to keep.
    """

    target: float
    mu: Tensor  # log scale that x is drawn to
    log_scale: Tensor
    log_averaged: Tensor
    error: Tensor  # Σ (δ − α)
    t: int = 0
    gamma: float = 0.05
    t0: float = 10.0
    kappa: float = 0.75

    @classmethod
    def start(cls, scale: Tensor | float, target: float) -> DualAveraging:
        """Begin at `scale`, which is also μ (theirs is 10 times it)."""
        if not 0 < target < 1:
            raise ValueError(f"target must lie in (0, 1), got {target}")
        values = torch.as_tensor(scale, dtype=torch.float64)
        if not bool(((values > 0) & torch.isfinite(values)).all()):
            raise ValueError(f"scale must be positive and finite, got {scale}")
        x = values.log()
        return cls(target, x, x, x, torch.zeros_like(x))

    def update(self, accept: Tensor | float) -> DualAveraging:
        """The state after a step at `scale` whose mean acceptance was `accept`."""
        t = self.t + 1
        error = self.error + (self.target - torch.as_tensor(accept, dtype=torch.float64))
        log_scale = self.mu - math.sqrt(t) / (self.gamma * (t + self.t0)) * error
        weight = t**-self.kappa
        averaged = weight * log_scale + (1 - weight) * self.log_averaged
        return replace(self, log_scale=log_scale, log_averaged=averaged, error=error, t=t)

    def clamp(self, low: float, high: float) -> DualAveraging:
        """The same with the next scale kept in [low, high]."""
        return replace(self, log_scale=self.log_scale.clamp(math.log(low), math.log(high)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @property
    def averaged(self) -> Tensor:
        return self.log_averaged.exp()


@runtime_checkable
class Respacing(Protocol):
    """A kernel with a ladder of temperatures that warm-up may space anew."""

    @property
    def respaces(self) -> bool:
        """Whether the ladder is to be adapted."""

    def respace(self, state: State, swap_accept: Tensor) -> State:
        """The state on a better ladder, from the swap acceptance (n_rungs − 1,) on this one."""


def warm_up(
    kernel: Kernel,
    target: Target,
    state: State,
    n_steps: int,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[Kernel, State, dict[str, Any]]:
    """Make n_steps steps and return the kernel with the scale found, the state, and a report.

    A kernel without a scale, or with one given, only runs. Otherwise a coarse search brackets the
    acceptance aimed at; chains that started where this scale is too large to move are freed by
    smaller ones, as they would not be seen in a mean over chains; dual averaging goes on from there,
    beginning afresh in windows that double in length, to forget the way in from the starting points;
    and the last third of the steps runs at the averaged scale. A ladder is spaced anew, and masses are
    set, at the end of each window but the last. Of a kernel that mixes global moves with local ones, the
    acceptance is that of the local ones ("local_accept" of its `Info.extra`); steps without any teach
    nothing.

    gather: rows of this process -> rows of all processes in global order; None for one process.
    progress: called with the number of steps just made.
    The report: "steps"; "accept", the mean acceptance in the last third; "scale", if one was found:
    a float, or a list with one for each group; "swap_accept" (a list) and "ladder" of a ladder;
    "inverse_mass" (a list), if masses were adapted.

    Raises ValueError where a scale is to be found in 0 steps, RuntimeError where none was found.
    """
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 0:
        raise ValueError(f"n_steps must be an integer of at least 0, got {n_steps}")
    tune = needs_scale(kernel, target)
    if tune and n_steps == 0:
        raise ValueError(
            f"step_size or width of {type(kernel).__name__} is None and n_steps = 0 leaves no "
            "steps to adapt it: give one of the two"
        )
    run = _Run(target, state, gather or (lambda rows: rows), progress or (lambda n: None))
    respace = isinstance(kernel, Respacing) and kernel.respaces
    masses = isinstance(kernel, HasMasses) and kernel.adapts_masses
    report: dict[str, Any] = {"steps": n_steps}
    n_adapt = n_steps - n_steps // REST if tune or respace or masses else 0
    run.moments = _Moments() if masses else None
    if tune:
        kernel, found = _adapt(kernel, run, n_adapt, respace)
        report["scale"] = float(found) if found.ndim == 0 else found.tolist()
    else:
        for end in _windows(n_adapt):
            while run.done < end:
                info = run.step(kernel)
                if respace:
                    run.swaps.append(run.mean(info.extra["swap_accept"]))
            if end < n_adapt:
                _end_of_window(kernel, run, respace)
    if run.moments is not None:
        report["inverse_mass"] = run.moments.last
        run.moments = None
    _rest(kernel, run, n_steps, report)
    accept = report.get("accept")
    if tune and accept == 0:
        raise RuntimeError(
            f"{n_steps} steps of warm-up were too few to find a step size or width: at "
            f"{report['scale']} every proposal was rejected"
        )
    return kernel, run.state, report


# ---------------------------------------------------------------------------- parts
class _Run:
    """The state under way, and what its steps report."""

    def __init__(
        self,
        target: Target,
        state: State,
        gather: Callable[[Tensor], Tensor],
        progress: Callable[[int], Any],
    ) -> None:
        self.target, self.state, self.gather, self.progress = target, state, gather, progress
        self.done = 0
        self.moments: _Moments | None = None  # of the points of a window, where masses are adapted
        self.swaps: list[Tensor] = []  # swap acceptance (n_rungs − 1,) of the steps of a window

    def step(self, kernel: Kernel, n: int = 1) -> Info:
        self.state, info = kernel.step(self.target, self.state, n)
        self.done += n
        self.progress(n)
        if self.moments is not None and isinstance(kernel, HasMasses):
            self.moments.add(kernel.coordinates(self.state))
        return info

    def mean(self, values: Tensor) -> Tensor:
        """Over all chains: (rows,) -> (), (rows, k) -> (k,), in float64 on the CPU."""
        rows = self.gather(values).cpu()
        ids = torch.arange(rows[0].numel()).expand(len(rows), -1)
        return _means(rows, ids).reshape(rows.shape[1:])

    def accept(self, kernel: Kernel, info: Info) -> Tensor:
        """Mean acceptance: (), or one for each group (k,)."""
        if _tunable(kernel).groups(self.state) is None:
            return self.mean(_accept(info))
        return _means(*self.by_group(kernel, info))

    def least_accept(self, kernel: Kernel, info: Info) -> Tensor:
        """Acceptance of the worst chain: (), or one for each group (k,)."""
        values, ids = self.by_group(kernel, info)
        least = torch.full((int(ids.max()) + 1,), math.inf, dtype=values.dtype)
        least.scatter_reduce_(0, ids.reshape(-1), values.reshape(-1), "amin")
        return least[0] if _tunable(kernel).groups(self.state) is None else least

    def by_group(self, kernel: Kernel, info: Info) -> tuple[Tensor, Tensor]:
        """Acceptance of every chain, and the group (0 if there is one) that it belongs to."""
        ids = _tunable(kernel).groups(self.state)
        if ids is None:
            rows = self.gather(_accept(info)).cpu()
            return rows, torch.zeros(len(rows), dtype=torch.int64)
        values = info.extra.get("rung_accept", _accept(info))  # of the shape of ids
        return self.gather(values).cpu(), self.gather(ids).cpu()


class _Moments:
    """Sums over the points of a window, of every chain apart: gathered, they add up in one order."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []  # Σ x and Σ x² (n_chains, d), float64
        self.last: list[float] | None = None  # the variances set

    def add(self, x: Tensor) -> None:
        x = x.detach().flatten(1).double()
        new = [x, x * x]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.count else new
        self.count += 1

    def variance(self, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Of all chains and steps of the window (d,), on the CPU; and forget them."""
        first, second = (gather(rows).cpu() for rows in self.sums)
        n = self.count * len(first)
        mean = first.sum(0) / n
        variance = (second.sum(0) / n - mean * mean).clamp_min(0)
        variance = (variance * n + PRIOR_VARIANCE * PRIOR_DRAWS) / (n + PRIOR_DRAWS)
        self.count, self.sums, self.last = 0, [], variance.tolist()
        return variance


def _accept(info: Info) -> Tensor:
    """The acceptance that a scale answers for (n_chains,)."""
    return info.extra.get("local_accept", info.accept)


def _n_judged(info: Info, n: int) -> int:
    """Of n steps, those that have such an acceptance."""
    return int(info.extra["local_steps"].max()) if "local_steps" in info.extra else n


def _means(values: Tensor, ids: Tensor) -> Tensor:
    """Mean of the values of each group 0, 1, …; bincount adds in the order of the entries."""
    ids = ids.reshape(-1)
    total = torch.bincount(ids, weights=values.reshape(-1).double())
    return total / torch.bincount(ids)


def _windows(n: int) -> Iterator[int]:
    """Where windows of lengths 1 : 1 : 2 : 4 end."""
    yield from (n * part // 8 for part in (1, 2, 4))
    yield n


def _tunable(kernel: Kernel) -> Tunable:
    assert isinstance(kernel, Tunable)
    return kernel


def _set(kernel: Kernel, run: _Run, scale: Tensor) -> Kernel:
    """The kernel at one scale (), or at one for each group (k,) laid out as its groups are."""
    if scale.ndim == 0:
        return _tunable(kernel).with_scale(float(scale))
    ids = _tunable(kernel).groups(run.state)
    assert ids is not None
    rows = scale.to(device=run.state.x.device, dtype=run.state.x.dtype)[ids]
    return _tunable(kernel).with_scale(rows)


def _try(kernel: Kernel, run: _Run, scale: Tensor) -> Tensor | None:
    """One step at `scale`: its mean acceptance, of the same shape; None where the step has none."""
    info = run.step(_set(kernel, run, scale))
    if isinstance(kernel, Respacing) and kernel.respaces:
        run.swaps.append(run.mean(info.extra["swap_accept"]))
    return run.accept(kernel, info) if _n_judged(info, 1) else None


def _adapt(kernel: Kernel, run: _Run, n: int, respace: bool) -> tuple[Kernel, Tensor]:
    """n steps that end with a scale for each group: the kernel at it, and the scale."""
    tunable = _tunable(kernel)
    delta = tunable.target_accept(run.target)
    initial = tunable.initial_scale(run.target)
    low, high = initial * LOWEST, initial * HIGHEST
    if isinstance(kernel, Bounded):
        high = min(high, kernel.largest_scale(run.target))
    ids = tunable.groups(run.state)
    start = torch.tensor(initial, dtype=torch.float64)
    if ids is not None:
        start = start.expand(int(run.gather(ids).max()) + 1).clone()
    scale = _search(kernel, run, n, start, delta, low, high)
    _free(kernel, run, n, scale, low)
    for end in _windows(n):
        averaging = DualAveraging.start(scale, delta)
        while run.done < end:
            accept = _try(kernel, run, averaging.scale)
            if accept is not None:
                averaging = averaging.update(accept).clamp(low, high)
        scale = averaging.averaged.clamp(low, high)
        if end < n and _end_of_window(kernel, run, respace):
            scale = _search(kernel, run, n - run.done, scale, delta, low, high)
    return _set(kernel, run, scale), scale


def _search(
    kernel: Kernel, run: _Run, n: int, scale: Tensor, delta: float, low: float, high: float
) -> Tensor:
    """Move the scale of each group by SEARCH_FACTOR until its acceptance crosses delta."""
    up: Tensor | None = None
    for _ in range(n):
        accept = _try(kernel, run, scale)
        if accept is None:
            continue
        above = accept > delta
        up = above if up is None else up
        searching = above == up
        moved = torch.where(up, scale * SEARCH_FACTOR, scale / SEARCH_FACTOR)
        if bool((searching & (moved < low)).any()):
            raise RuntimeError(
                f"no step size or width of {type(kernel).__name__} from {float(scale.min()):.3g} "
                f"to {low / LOWEST:.3g} brings the acceptance to {delta}: at the smallest it was "
                f"{float(accept.min()):.3g}; check that log_prob is finite near the start and that "
                "the score is its gradient"
            )
        searching = searching & (moved <= high)
        if not bool(searching.any()):
            break
        scale = torch.where(searching, moved, scale)
    return scale


def _free(kernel: Kernel, run: _Run, n: int, scale: Tensor, low: float) -> None:
    """Blocks of steps at ever smaller scales while a chain stands still, and back at `scale`, until
    all chains move there or a quarter of the n steps is over."""
    block = max(1, min(BLOCK, n // 32))
    divisions = torch.zeros_like(scale)
    while run.done + block <= n // 4:
        tried = (scale / SEARCH_FACTOR**divisions).clamp_min(low)
        info = run.step(_set(kernel, run, tried), block)
        if not _n_judged(info, block):
            continue
        still = run.least_accept(kernel, info) < STUCK
        if not bool((still | (divisions > 0)).any()):
            break
        divisions = torch.where(still, divisions + 1, 0.0)


def _end_of_window(kernel: Kernel, run: _Run, respace: bool) -> bool:
    """Space a ladder anew, set masses; whether the scale must be searched again."""
    if respace:
        _respace(kernel, run)
    if run.moments is None or not run.moments.count or not isinstance(kernel, HasMasses):
        return False
    run.state = kernel.with_variance(run.state, run.moments.variance(run.gather))
    return True


def _respace(kernel: Kernel, run: _Run) -> None:
    assert isinstance(kernel, Respacing)
    if run.swaps:
        run.state = kernel.respace(run.state, torch.stack(run.swaps).mean(0))
    run.swaps = []


def _rest(kernel: Kernel, run: _Run, n_steps: int, report: dict[str, Any]) -> None:
    """The steps that are left, at a fixed scale; their acceptance goes into the report."""
    total, judged, left = 0.0, 0, n_steps - run.done
    swaps: Tensor | float = 0.0
    while run.done < n_steps:
        n = min(BLOCK, n_steps - run.done)
        info = run.step(kernel, n)
        m = _n_judged(info, n)
        total, judged = total + m * float(run.mean(_accept(info))), judged + m
        if "swap_accept" in info.extra:
            swaps = swaps + n * run.mean(info.extra["swap_accept"])
    if judged:
        report["accept"] = total / judged
    if left and isinstance(swaps, Tensor):
        report["swap_accept"] = (swaps / left).tolist()
    if "ladder" in run.state.aux:
        report["ladder"] = run.state.aux["ladder"][0].tolist()


__all__ = ["DualAveraging", "Respacing", "warm_up"]
