"""Random-walk Metropolis: on the whole event, or site by site on a lattice (Metropolis et al., 1953).

Proposals are uniform, x' = x + δ (2u − 1), with half-width δ. Single-site sweeps are sites.py: there a
component of a field moves so, a spin of length 1 turns by an angle δ (2u − 1), and an Ising spin flips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp.mcmc import fused, sites
from pysamp.mcmc.base import (
    Info,
    Kernel,
    State,
    Tunable,
    check_start,
    check_steps,
    columns,
    per_chain,
    replace,
)
from pysamp.mcmc.langevin import (
    Collect,
    Numbers,
    acceptance,
    check_scale,
    needed,
    refuse_spins,
)
from pysamp.target import HasLocal, HasSites, Target, log_prob_of


@runtime_checkable
class Bounded(Protocol):
    """A tunable kernel whose scale has an end, or no use, on some targets."""

    def largest_scale(self, target: Target) -> float:
        """The largest scale that makes sense; 0 where none is used, ∞ where there is no end."""


def needs_scale(kernel: Kernel, target: Target) -> bool:
    """Whether warm-up has to find a scale before the kernel can sample the target."""
    if not isinstance(kernel, Tunable) or kernel.scale() is not None:
        return False
    return not (isinstance(kernel, Bounded) and kernel.largest_scale(target) == 0)


@dataclass(frozen=True, eq=False)
class Metropolis:
    """Half-width δ = `width`: a number, one per chain, or None (warm-up finds it).

    moves: "site" sweeps a lattice once per step (the target needs single-site moves), "all" moves the
    whole event at once, "auto" takes sites where the target has them. For "site" the acceptance
    reported is the accepted fraction of proposals. Spins of length 1 have sites only, and a δ of at most
    π, the angle of a turn; Ising spins need no δ.
    Cost: one value a step, or one sweep of local differences.

    Raises ValueError for "site" on a target without single-site moves, "all" on spins of length 1, and
    there for δ > π.
    """

    width: Tensor | float | None = None
    moves: Literal["auto", "site", "all"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", check_scale(self.width, "width"))
        if self.moves not in ("auto", "site", "all"):
            raise ValueError(f"moves must be 'auto', 'site' or 'all', got {self.moves!r}")

    def by_site(self, target: Target) -> bool:
        spins = sites.is_spins(target)
        if self.moves == "all":
            if spins:
                refuse_spins(target, "Metropolis(moves='all')")
            return False
        by_site = spins or isinstance(target, HasLocal)
        if self.moves == "site" and not by_site:
            sites.check_moves(target, ("metropolis",))
        return by_site

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        if self.by_site(target):
            sites.check_moves(target, ("metropolis",))
            self._check_width(target)
            return sites.start(target, x, seed, first_chain)
        log_prob = log_prob_of(target, x)
        check_start(log_prob, first_chain)
        return State(x, log_prob, None, seed, 0, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        if self.by_site(target):
            width = self.widths(target, state.log_prob)
            return sites.sweeps(target, state, ("metropolis",), n, thin, width)
        width = per_chain(needed(self.width, "width"), "width", state.log_prob)
        done = fused.chain("metropolis", target, state, n, thin, width)
        if done is not None:
            return done

        x, log_prob = state.x, state.log_prob
        collect = Collect(state, n, thin)
        numbers = Numbers(state, "metropolis")
        for step in range(state.step, state.step + n):
            u = numbers.uniform(step, tuple(x.shape))
            log_u = numbers.log_uniform(step, 1, first=math.prod(x.shape[1:]))[:, 0]
            x_new = x + columns(width, x) * (u * 2.0 - 1.0)
            log_prob_new = log_prob_of(target, x_new)
            log_ratio = log_prob_new - log_prob
            probability, finite = acceptance(log_ratio)
            move = (log_u < log_ratio) & finite
            x = torch.where(columns(move, x), x_new, x)
            log_prob = torch.where(move, log_prob_new, log_prob)
            collect.add(probability, finite, x, log_prob)
        return replace(state, x=x, log_prob=log_prob, step=state.step + n), collect.info()

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """As `HeatBath.measure`."""
        if not self.by_site(target):

            def step(state: State, n: int) -> tuple[State, Info]:
                return self.step(target, state, n)

            return sites.measure_steps(step, target, state, n, thin, every)
        width = self.widths(target, state.log_prob)
        return sites.measure(target, state, ("metropolis",), n, thin, every, width)

    def widths(self, target: Target, like: Tensor) -> Tensor | None:
        """δ of each row for moves by site; None for Ising spins, which have no use for one."""
        largest = self.largest_scale(target)
        if largest == 0:
            return None
        width = per_chain(needed(self.width, "width"), "width", like)
        if largest == math.inf:
            return width
        self._check_width(target)
        return width.clamp(max=largest)

    def _check_width(self, target: Target) -> None:
        largest = self.largest_scale(target)
        if self.width is None or largest in (0.0, math.inf):
            return
        given = float(torch.as_tensor(self.width).max())
        if given > largest * (1 + 1e-6):  # beyond what a rounding of π in float32 explains
            raise ValueError(
                f"width must be at most π, a half turn, for spins of length 1, got {given}"
            )

    def scale(self) -> Tensor | float | None:
        return self.width

    def with_scale(self, scale: Tensor | float) -> Metropolis:
        return replace(self, width=scale)

    def target_accept(self, target: Target) -> float:
        # one coordinate at a time 0.44, many at once 0.234: Roberts, Gelman, Gilks, AAP 7, 110 (1997)
        return 0.44 if self.by_site(target) else 0.234

    def initial_scale(self, target: Target) -> float:
        return 0.5

    def largest_scale(self, target: Target) -> float:
        """The largest δ that makes sense: π for turns, 0 where δ is not used, else ∞."""
        if isinstance(target, HasSites) and target.unit_length:
            return 0.0 if target.n_components == 1 else math.pi
        return math.inf

    def groups(self, state: State) -> Tensor | None:
        return None
