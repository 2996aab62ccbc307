"""A cycle of kernels: each step runs all of them once, in order.

If every kernel leaves a density invariant, so does the cycle (Tierney, Ann. Statist. 22, 1701, 1994,
sec. 2.4). The usual one for spins is a heat bath and several over-relaxations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp.mcmc import fused, sites
from pysamp.mcmc.base import Info, Kernel, State, Tunable, check_steps, replace
from pysamp.mcmc.cluster import SwendsenWang, Wolff
from pysamp.mcmc.heat_bath import HeatBath
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.metropolis import Bounded, Metropolis, needs_scale
from pysamp.mcmc.moves import Move
from pysamp.mcmc.over_relaxation import OverRelaxation
from pysamp.target import HasSites, Target, log_prob_of


@dataclass(frozen=True, eq=False, init=False)
class Cycle:
    """`Cycle(HeatBath(), OverRelaxation(), OverRelaxation())`: K kernels, each once a step.

    Kernel i of step t has the counter t K + i, so that no two share random numbers. Sweeps of sites run
    in one fused call, others one after the other. One kernel may leave its scale to warm-up, if the
    others never refuse, as the acceptance is that of the cycle: `Info.accept` is the mean over the sweeps
    or kernels that can refuse. A cycle within a cycle is its kernels.
    Cost: that of its kernels; one gradient more for each that needs scores.

    Raises TypeError for what is no kernel, or keeps more than a field and its density; ValueError for no
    kernels, and for scales that warm-up cannot tell apart.
    """

    kernels: tuple[Kernel, ...]

    def __init__(self, *args: Kernel, kernels: Sequence[Kernel] = ()) -> None:
        given: list[Kernel] = []
        for kernel in (*args, *kernels):
            if isinstance(kernel, type) or not isinstance(kernel, Kernel):
                raise TypeError(f"kernels must be kernels, got {kernel!r}")
            if isinstance(kernel, MALA) and kernel.adapt is not None:
                raise ValueError(f"kernels must not adapt by themselves, got adapt={kernel.adapt}")
            given += kernel.kernels if isinstance(kernel, Cycle) else (kernel,)
        if not given:
            raise ValueError("kernels must hold at least one kernel, got none")
        object.__setattr__(self, "kernels", tuple(given))
        tunable = [kernel for kernel in given if isinstance(kernel, Tunable)]
        loose = [kernel for kernel in tunable if not isinstance(kernel.scale(), float)]
        if not all(_alike(kernel, loose[0]) for kernel in loose):
            names = " and ".join(type(kernel).__name__ for kernel in loose)
            raise ValueError(
                f"kernels must have one scale at most that is left out or differs between chains, got "
                f"those of {names}"
            )
        if tunable:  # the scale of the cycle is that one, or else the first
            self._offer((loose or tunable)[0])

    def _offer(self, tuned: Tunable) -> None:
        """A cycle has a scale where one of its kernels has one."""

        def with_scale(scale: Tensor | float) -> Cycle:
            new = tuned.with_scale(scale)
            return Cycle(*(new if _alike(kernel, tuned) else kernel for kernel in self.kernels))

        members: dict[str, Any] = {"with_scale": with_scale}
        for name in ("scale", "target_accept", "initial_scale", "groups"):
            members[name] = getattr(tuned, name)
        if isinstance(tuned, Bounded):
            members["largest_scale"] = tuned.largest_scale
        for name, member in members.items():
            object.__setattr__(self, name, member)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        for kernel in self.kernels:
            state = kernel.init(target, x, seed=seed, first_chain=first_chain)
            if state.aux:
                raise TypeError(
                    f"kernels must keep nothing in State.aux, got {type(kernel).__name__} with "
                    f"{sorted(state.aux)}"
                )
        untuned = [kernel for kernel in self.kernels if needs_scale(kernel, target)]
        for kernel in self.kernels if untuned else ():
            if not _alike(kernel, untuned[0]) and _refuses(kernel, target):
                raise ValueError(
                    f"{type(untuned[0]).__name__} must be given its scale, as {type(kernel).__name__} "
                    "of the same cycle refuses moves, too"
                )
        return State(x, log_prob_of(target, x), None, seed, 0, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        program = self._program(target, state)
        if program is not None:
            return sites.sweeps(target, state, program[0], n, thin, program[1])
        parts, kept_x, kept_log_prob = [], [], []
        for k in range(1, n + 1):
            state, info = self._one(target, state)
            parts.append(info)
            if thin and k % thin == 0:
                kept_x.append(state.x)
                kept_log_prob.append(state.log_prob)
        info = sites.add_up(parts)
        if thin:
            info = info._replace(x=torch.stack(kept_x, 1), log_prob=torch.stack(kept_log_prob, 1))
        return state, info

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """As `HeatBath.measure`; a record is taken after whole steps of the cycle."""
        program = self._program(target, state)
        if program is not None:
            return sites.measure(target, state, program[0], n, thin, every, program[1])

        def step(state: State, n: int) -> tuple[State, Info]:
            return self.step(target, state, n)

        return sites.measure_steps(step, target, state, n, thin, every)

    # ------------------------------------------------------------------------ parts
    def _program(
        self, target: Target, state: State
    ) -> tuple[tuple[Move, ...], Tensor | None] | None:
        """The cycle as sweeps of one call, and their width; None where it is more than that."""
        if len(self.kernels) > fused.MAX_MOVES or not isinstance(target, HasSites):
            return None
        moves: list[Move] = []
        width: Metropolis | None = None
        for kernel in self.kernels:
            if isinstance(kernel, HeatBath):
                moves.append("heat_bath")
            elif isinstance(kernel, OverRelaxation):
                moves.append("reflect")
            elif isinstance(kernel, Metropolis) and kernel.by_site(target):
                if width is not None and not _same_width(width, kernel):
                    return None
                width = kernel
                moves.append("metropolis")
            else:
                return None
        scale = None if width is None else width.widths(target, state.log_prob)
        return tuple(moves), scale

    def _one(self, target: Target, state: State) -> tuple[State, Info]:
        """One step, kernel by kernel."""
        parts = []
        x, log_prob, step = state.x, state.log_prob, state.step
        for i, kernel in enumerate(self.kernels):
            inner = State(x, log_prob, None, state.seed, 0, state.first_chain)
            if not isinstance(kernel, OWN):  # it may need the score of this point
                inner = kernel.init(target, x, seed=state.seed, first_chain=state.first_chain)
            inner = replace(inner, step=step * len(self.kernels) + i)
            inner, info = kernel.step(target, inner)
            x, log_prob = inner.x, inner.log_prob
            parts.append((kernel, info))
        refusing = [info.accept for kernel, info in parts if _refuses(kernel, target)]
        accept = torch.stack(refusing).mean(0) if refusing else torch.ones_like(log_prob)
        extra = {"nonfinite": torch.zeros_like(log_prob)}
        for name in {name: None for _, info in parts for name in info.extra}:
            found = [info.extra[name] for _, info in parts if name in info.extra]
            total = torch.stack(found).sum(0)
            extra[name] = total if name == "nonfinite" else total / len(found)
        new = replace(state, x=x, log_prob=log_prob, score=None, step=step + 1)
        return new, Info(accept, extra)


OWN = (Metropolis, HeatBath, OverRelaxation, SwendsenWang, Wolff)  # they need no score


def _alike(a: Kernel | Tunable, b: Kernel | Tunable) -> bool:
    """Whether two kernels share the scale that warm-up finds."""
    if a is b:
        return True
    if type(a) is not type(b) or not isinstance(a, Tunable) or not isinstance(b, Tunable):
        return False
    return a.scale() is None and b.scale() is None and vars(a) == vars(b)


def _same_width(a: Metropolis, b: Metropolis) -> bool:
    if a is b or (a.width is None and b.width is None):
        return True
    return isinstance(a.width, float) and isinstance(b.width, float) and a.width == b.width


def _refuses(kernel: Kernel, target: Target) -> bool:
    """Whether an acceptance belongs to it."""
    if isinstance(kernel, (OverRelaxation, SwendsenWang, Wolff)):
        return False
    return not isinstance(kernel, HeatBath) or sites.can_refuse(target, "heat_bath")
