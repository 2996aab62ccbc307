"""What every Markov kernel shares: the state of the walkers, and what a transition reports.

A kernel is a frozen dataclass of its parameters with two methods, `init` and `step`. `step` makes n
transitions of all chains; on built-in targets they are fused into one native call, elsewhere they run
as batched torch, and both draw the same random numbers. All randomness is a function of
(seed, global chain index, step): fusing steps, splitting the batch or resuming changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp.target import Counted, Target, log_prob_of

LENGTH = 1e-3  # by which a spin of a start may miss the length 1


@dataclass(frozen=True)
class State:
    """n_chains walkers in lockstep: what the next transition needs, nothing else.

    `seed` is the Philox key and `step` the number of transitions done, its counter word;
    `first_chain` is the global index of row 0, so that splitting a batch does not change it.
    """

    x: Tensor  # (n_chains, *event_shape)
    log_prob: Tensor  # (n_chains,)
    score: Tensor | None  # (n_chains, *event_shape), None for gradient-free kernels
    seed: int
    step: int = 0
    first_chain: int = 0
    aux: dict[str, Tensor] = field(default_factory=dict)  # further tensors of a kernel, chain first

    @property
    def n_chains(self) -> int:
        return self.x.shape[0]


class Info(NamedTuple):
    """What n transitions report. `x` and `log_prob` are filled when `thin` was given."""

    accept: Tensor  # (n_chains,) mean acceptance probability over the n transitions
    extra: dict[str, Tensor]  # "nonfinite": (n_chains,) proposals whose density was NaN or +inf; …
    x: Tensor | None = None  # (n_chains, n // thin, *event_shape): every thin-th state
    log_prob: Tensor | None = None  # (n_chains, n // thin)


@runtime_checkable
class Kernel(Protocol):
    """A Markov kernel that leaves the target invariant (ULA: up to its step-size bias)."""

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        """Evaluate the target at the start `x` (n_chains, *event_shape).

        Raises ValueError where a start has no finite log density, naming the chain.
        """

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        """Make n transitions; with `thin`, also return every thin-th state (n divisible by it)."""


@runtime_checkable
class Tunable(Protocol):
    """A kernel with a scale (step size or proposal width) that warm-up can adapt."""

    def scale(self) -> Tensor | float | None:
        """The scale in use: a float, one per row of the state, or None where it is to be adapted."""

    def with_scale(self, scale: Tensor | float) -> Kernel:
        """The same kernel with another scale."""

    def target_accept(self, target: Target) -> float:
        """The mean acceptance that warm-up aims at."""

    def initial_scale(self, target: Target) -> float:
        """Where the search for a scale begins."""

    def groups(self, state: State) -> Tensor | None:
        """int64, one entry per number in `accept`: those that share a scale carry the same number;
        None: all share one."""


def check_start(log_prob: Tensor, first_chain: int = 0) -> None:
    """Refuse starting points whose log density is not finite."""
    bad = torch.nonzero(~torch.isfinite(log_prob)).flatten()
    if bad.numel():
        chain = int(bad[0])
        raise ValueError(
            f"x0 has no finite log_prob in {bad.numel()} of {log_prob.numel()} chains: chain "
            f"{first_chain + chain} has log_prob = {float(log_prob[chain])}"
        )


def name_of(target: Target) -> str:
    while isinstance(target, Counted):
        target = target.base
    return type(target).__name__


def check_spins(x: Tensor, first_chain: int) -> None:
    """Refuse a start whose spins (..., n_components) have not the length 1."""
    length = torch.linalg.vector_norm(x, dim=-1).reshape(x.shape[0], -1)
    exactly = x.shape[-1] == 1  # an Ising spin is never set back to ±1
    bad = ((length - 1).abs() > (0 if exactly else LENGTH)).nonzero()
    if len(bad):
        row, site = (int(i) for i in bad[0])
        raise ValueError(
            f"x0 must hold spins of length 1, got length {float(length[row, site]):.6g} at site {site} "
            f"of chain {first_chain + row}"
        )


def arrived(target: Target, state: State, x: Tensor, info: Info, n: int) -> tuple[State, Info]:
    """The state at x after n steps, and what is known of them with the densities of kept states."""
    if info.x is not None and info.log_prob is None:
        kept = [log_prob_of(target, info.x[:, k]) for k in range(info.x.shape[1])]
        info = info._replace(log_prob=torch.stack(kept, 1))
    return replace(state, x=x, log_prob=log_prob_of(target, x), step=state.step + n), info


def check_steps(n: int, thin: int | None) -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a positive number of steps, got {n}")
    if thin is not None and (thin < 1 or n % thin):
        raise ValueError(f"thin must divide n = {n}, got thin = {thin}")


def per_chain(value: Tensor | float, name: str, like: Tensor) -> Tensor:
    """A positive parameter as one number per row: float or (n_chains,) -> (n_chains,)."""
    if (
        isinstance(value, float) and 0 < value < math.inf
    ):  # the usual case, without a device transfer
        return like.new_full((like.shape[0],), value)
    out = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if out.ndim not in (0, 1) or (out.ndim == 1 and out.shape[0] != like.shape[0]):
        raise ValueError(
            f"{name} must be a number or one per chain ({like.shape[0]},), got {tuple(out.shape)}"
        )
    if not bool(((out > 0) & torch.isfinite(out)).all()):
        bad = out if out.ndim == 0 else out[~((out > 0) & torch.isfinite(out))][0]
        raise ValueError(f"{name} must be positive and finite, got {float(bad)}")
    return out.expand(like.shape[0]).contiguous()


def columns(value: Tensor, like: Tensor) -> Tensor:
    """(n_chains,) -> (n_chains, 1, …) to multiply an event of the shape of `like`."""
    return value.reshape(-1, *([1] * (like.ndim - 1)))


__all__ = ["Info", "Kernel", "State", "Tunable", "check_start", "columns", "per_chain", "replace"]
