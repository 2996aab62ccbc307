"""Random-walk Metropolis: on the whole event, or site by site on a lattice (Metropolis et al., 1953).

Proposals are uniform, x' = x + δ (2u − 1), with half-width δ. Single-site sweeps go colour by colour:
sites of one colour do not interact, so a colour may be updated at once and the result is that of
updating its sites in turn. The numbers of a site belong to its rank in the order of colours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pysamp.mcmc import fused
from pysamp.mcmc.base import Info, State, check_start, check_steps, columns, per_chain, replace
from pysamp.mcmc.langevin import Collect, Numbers, acceptance, check_scale, needed
from pysamp.target import HasLocal, Target, log_prob_of


@dataclass(frozen=True, eq=False)
class Metropolis:
    """Half-width δ = `width`: a number, one per chain, or None (warm-up finds it).

    moves: "site" sweeps a lattice once per step (the target needs single-site moves), "all" moves the
    whole event at once, "auto" takes sites where the target has them. For "site" the acceptance
    reported is the accepted fraction of proposals. Cost: one value a step, or one sweep of local
    differences. Raises ValueError for "site" on a target without single-site moves.
    """

    width: Tensor | float | None = None
    moves: Literal["auto", "site", "all"] = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", check_scale(self.width, "width"))
        if self.moves not in ("auto", "site", "all"):
            raise ValueError(f"moves must be 'auto', 'site' or 'all', got {self.moves!r}")

    def by_site(self, target: Target) -> bool:
        local = isinstance(target, HasLocal)
        if self.moves == "site" and not local:
            raise ValueError(
                f"moves='site' needs a target with local_difference and colours, got "
                f"{type(target).__name__}"
            )
        return local and self.moves != "all"

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        self.by_site(target)
        log_prob = log_prob_of(target, x)
        check_start(log_prob, first_chain)
        return State(x, log_prob, None, seed, 0, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        width = per_chain(needed(self.width, "width"), "width", state.log_prob)
        if self.by_site(target):
            return _sweeps(target, state, n, thin, width)
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

    def scale(self) -> Tensor | float | None:
        return self.width

    def with_scale(self, scale: Tensor | float) -> Metropolis:
        return replace(self, width=scale)

    def target_accept(self, target: Target) -> float:
        # one coordinate at a time 0.44, many at once 0.234: Roberts, Gelman, Gilks, AAP 7, 110 (1997)
        return 0.44 if self.by_site(target) else 0.234

    def initial_scale(self, target: Target) -> float:
        return 0.5

    def groups(self, state: State) -> Tensor | None:
        return None


def _sweeps(
    target: Target, state: State, n: int, thin: int | None, width: Tensor
) -> tuple[State, Info]:
    assert isinstance(target, HasLocal)
    colours = [c.to(state.x.device) for c in target.colours]
    order = torch.cat(colours)
    starts = [0]
    for colour in colours:
        starts.append(starts[-1] + len(colour))
    done = fused.sites(target, state, n, thin, width, order, starts)
    if done is None:
        x, info = _sweeps_torch(target, state, n, thin, width, colours, starts)
    else:
        x, info = done
    log_prob = log_prob_of(target, x)
    if info.x is not None:
        kept = [log_prob_of(target, info.x[:, k]) for k in range(info.x.shape[1])]
        info = info._replace(log_prob=torch.stack(kept, dim=1))
    return replace(state, x=x, log_prob=log_prob, step=state.step + n), info


def _sweeps_torch(
    target: HasLocal, state: State, n: int, thin: int | None, width: Tensor,
    colours: list[Tensor], starts: list[int],
) -> tuple[Tensor, Info]:  # fmt: skip
    x = state.x.clone()
    flat = x.reshape(len(x), -1)  # (n_chains, n_sites), a view of x
    accept, nonfinite = torch.zeros((2, len(x)), dtype=x.dtype, device=x.device)
    kept = []
    numbers = Numbers(state, "site")
    shape = (len(x), 2 * flat.shape[1])
    for step in range(state.step, state.step + n):
        u = numbers.uniform(step, shape)[:, 0::2]  # (n_chains, n_sites) by rank
        log_u = numbers.log_uniform(step, shape[1])[:, 1::2]
        moved = torch.zeros_like(accept)
        for colour, begin, end in zip(colours, starts[:-1], starts[1:], strict=True):
            new = flat[:, colour] + width[:, None] * (u[:, begin:end] * 2.0 - 1.0)
            log_ratio = target.local_difference(x, colour, new)
            finite = log_ratio < torch.inf
            move = (log_u[:, begin:end] < log_ratio) & finite
            flat[:, colour] = torch.where(move, new, flat[:, colour])
            moved = moved + move.sum(1)
            nonfinite = nonfinite + (~finite).sum(1)
        accept = accept + moved / flat.shape[1]
        if thin and (step - state.step + 1) % thin == 0:
            kept.append(x.clone())
    info = Info(accept / n, {"nonfinite": nonfinite}, torch.stack(kept, 1) if thin else None, None)
    return x, info
