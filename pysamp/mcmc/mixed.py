"""Global moves of an independent proposal among local moves: AdaptiveMCMC and Ex2MCMC.

Transition t is a global move where t is a multiple of 1 + n_local, and a step of the local kernel
otherwise; every transition is a step that may be kept. The global move of AdaptiveMCMC is independent
Metropolis–Hastings (Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119, 2022, arXiv 2105.12603), that
of Ex2MCMC is i-SIR (Samsonov, Lagutin, Gabrié, Durmus, Naumov, Moulines, NeurIPS 2022, arXiv 2111.02702;
FlEx2MCMC where the proposal is a flow). The schedule of one global move and n_local local ones is that
of Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763.

Each kernel leaves the target invariant, and so does their sequence. The proposal density of the state is
evaluated at every global move, never kept: local moves cannot leave it stale, nor can a flow that learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pysamp.mcmc.base import Info, Kernel, State, Tunable, check_steps, columns, replace
from pysamp.mcmc.hmc import HMC, HasMasses
from pysamp.mcmc.independent import IMH, ISIR, check_candidates, choose
from pysamp.mcmc.langevin import MALA, ULA
from pysamp.mcmc.metropolis import Bounded
from pysamp.mcmc.proposals import (
    Proposed,
    check_proposal,
    log_q_of,
    proposal_of,
    proposals,
    start_log_q,
)
from pysamp.target import Target, log_prob_and_score


@dataclass(frozen=True, eq=False)
class AdaptiveMCMC:
    """One step of IMH with `proposal`, then n_local steps of the kernel `local`, and so on.

    `proposal` as in `IMH`. `local` is any kernel that moves points of R^d and keeps nothing but them and
    their densities; its scale, if it is left out, and its masses are adapted in warm-up by the
    acceptance of local moves alone. `Info.accept` is the mean over all transitions; `Info.extra` has
    "local_accept" and "flow_accept", the means over the local and the global ones of these n
    (0 where there was none), and their numbers "local_steps" and "flow_moves".
    Cost of a global move: one value and two passes of the flow, one of them its inverse; one gradient
    where the local kernel keeps scores.

    Raises as IMH, and TypeError, ValueError for the local kernel and n_local.
    """

    proposal: Any
    local: Kernel = field(default_factory=MALA)
    n_local: int = 50

    def __post_init__(self) -> None:
        prepare(self)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return advance(self, 1, target, state, n, thin)


@dataclass(frozen=True, eq=False)
class Ex2MCMC:
    """One step of i-SIR with n candidates, then n_local steps of the kernel `local`, and so on.

    As `AdaptiveMCMC`; n as in `ISIR`, the current state among the candidates; "flow_accept" is the
    probability to leave, and "mc_ess" is reported with it. Cost of a global move: n − 1 values and n
    passes of the flow, and one gradient where the local kernel keeps scores.
    """

    proposal: Any
    n: int = 40
    local: Kernel = field(default_factory=MALA)
    n_local: int = 50

    def __post_init__(self) -> None:
        check_candidates(self.n)
        prepare(self)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return advance(self, self.n, target, state, n, thin)


Mixed = AdaptiveMCMC | Ex2MCMC


# ------------------------------------------------------------------------------------- arguments
def prepare(kernel: Mixed) -> None:
    """Check the fields, and give the kernel the scale and the masses of its local kernel."""
    object.__setattr__(kernel, "proposal", proposal_of(kernel.proposal))
    local, n_local = kernel.local, kernel.n_local
    if isinstance(local, type) or not isinstance(local, Kernel):
        raise TypeError(f"local must be a kernel, got {local!r}")
    if isinstance(local, ULA):
        raise TypeError("local must leave its target invariant, got ULA")
    if isinstance(local, (IMH, ISIR, AdaptiveMCMC, Ex2MCMC)):
        raise TypeError(f"local must be a kernel of local moves, got {type(local).__name__}")
    if isinstance(n_local, bool) or not isinstance(n_local, int):
        raise TypeError(f"n_local must be an int, got {n_local!r}")
    if n_local < 1:
        raise ValueError(
            f"n_local must be at least 1, got {n_local}: without local moves take IMH or ISIR"
        )
    members: dict[str, Any] = {}
    if isinstance(local, Tunable):
        members["with_scale"] = lambda scale: replace(kernel, local=local.with_scale(scale))
        for name in ("scale", "target_accept", "initial_scale", "groups"):
            members[name] = getattr(local, name)
        if isinstance(local, Bounded):
            members["largest_scale"] = local.largest_scale
    if isinstance(local, HasMasses):
        for name in ("adapts_masses", "coordinates", "with_variance"):
            members[name] = getattr(local, name)
    for name, member in members.items():
        object.__setattr__(kernel, name, member)


def start(kernel: Mixed, target: Target, x: Tensor, seed: int, first_chain: int) -> State:
    state = kernel.local.init(target, x, seed=seed, first_chain=first_chain)
    if state.aux and not isinstance(kernel.local, (MALA, HMC)):  # theirs does not depend on x
        raise TypeError(
            f"local must keep nothing in State.aux, which a global move would leave stale, got "
            f"{type(kernel.local).__name__} with {sorted(state.aux)}"
        )
    check_proposal(kernel.proposal, target, x, type(kernel).__name__)
    start_log_q(kernel.proposal, x, first_chain)
    return state


# ------------------------------------------------------------------------------------- transitions
def advance(
    kernel: Mixed, n_candidates: int, target: Target, state: State, n: int, thin: int | None
) -> tuple[State, Info]:
    """n transitions; n_candidates as in `independent.advance`."""
    check_steps(n, thin)
    period, begin, end = 1 + kernel.n_local, state.step, state.step + n
    when = [t for t in range(begin, end) if t % period == 0]
    moves = proposals(target, kernel.proposal, state, when, max(1, n_candidates - 1))
    told = _Report(state)
    kept: list[tuple[Tensor, Tensor]] = []  # x and log_prob of states kept, (n_chains, some, …)
    while state.step < end:
        if state.step % period == 0:
            state = _global(kernel, target, state, next(moves), n_candidates, told)
            if thin and (state.step - begin) % thin == 0:
                kept.append((state.x[:, None], state.log_prob[:, None]))
            continue
        stop = min(end, (state.step // period + 1) * period)
        for steps, every in _pieces(state.step - begin, stop - begin, thin):
            state, info = kernel.local.step(target, state, steps, thin=every)
            told.local(info, steps)
            if info.x is not None and info.log_prob is not None:
                kept.append((info.x, info.log_prob))
    info = told.info(len(when), n, n_candidates)
    if thin:
        info = info._replace(
            x=torch.cat([x for x, _ in kept], 1), log_prob=torch.cat([lp for _, lp in kept], 1)
        )
    return state, info


def _pieces(begin: int, end: int, thin: int | None) -> Iterator[tuple[int, int | None]]:
    """(steps, thin) of the calls that make transitions begin … end of a call and keep every thin-th."""
    if thin is None:
        yield end - begin, None
        return
    first = min(end, -(-begin // thin) * thin)  # the next one that is kept
    last = max(first, end // thin * thin)
    if first > begin:
        kept = first % thin == 0
        yield first - begin, first - begin if kept else None
    if last > first:
        yield last - first, thin
    if end > last:
        yield end - last, None


def _global(
    kernel: Mixed, target: Target, state: State, proposed: Proposed, n: int, told: _Report
) -> State:
    """One global move; log p and the score at the new points are those of the local kernel's evaluation."""
    log_q = log_q_of(kernel.proposal, state.x)
    choice = choose(proposed, state.log_prob - log_q, n)
    told.flow(choice.probability, choice.mc_ess, proposed.bad + (~choice.usable).to(proposed.bad))
    x = torch.where(columns(choice.move, state.x), proposed.x, state.x)
    log_prob, score = proposed.log_prob, state.score
    if score is not None:
        log_prob, moved = log_prob_and_score(target, x)
        score = torch.where(columns(choice.move, x), moved, score)
    log_prob = torch.where(choice.move, log_prob, state.log_prob)
    return replace(state, x=x, log_prob=log_prob, score=score, step=state.step + 1)


class _Report:
    """Sums over the transitions of a call."""

    def __init__(self, state: State) -> None:
        zeros = torch.zeros_like(state.log_prob)
        self.local_accept, self.flow_accept, self.mc_ess, self.nonfinite = (zeros,) * 4

    def local(self, info: Info, steps: int) -> None:
        self.local_accept = self.local_accept + info.accept * steps
        if "nonfinite" in info.extra:
            self.nonfinite = self.nonfinite + info.extra["nonfinite"]

    def flow(self, probability: Tensor, mc_ess: Tensor, bad: Tensor) -> None:
        self.flow_accept = self.flow_accept + probability
        self.mc_ess = self.mc_ess + mc_ess
        self.nonfinite = self.nonfinite + bad

    def info(self, n_moves: int, n: int, n_candidates: int) -> Info:
        extra = {
            "nonfinite": self.nonfinite,
            "flow_accept": self.flow_accept / max(1, n_moves),
            "flow_moves": torch.full_like(self.nonfinite, n_moves),
            "local_accept": self.local_accept / max(1, n - n_moves),
            "local_steps": torch.full_like(self.nonfinite, n - n_moves),
        }
        if n_candidates > 1:
            extra["mc_ess"] = self.mc_ess / max(1, n_moves)
        return Info((self.local_accept + self.flow_accept) / n, extra)
