"""Independent proposals: Metropolis–Hastings (IMH), and iterated sampling-importance-resampling (i-SIR).

With weights w = p/q of a target p and a proposal density q, from the state x of a chain

    IMH     y ~ q, accepted with probability min(1, w(y) / w(x))
    i-SIR   x₁ = x, x₂ … x_N ~ q; the next state is x_I, P(I = i) = w(x_i) / Σ_j w(x_j)

(Tierney, Ann. Statist. 22, 1701, 1994; Andrieu, Lee, Vihola, Bernoulli 24, 842, 2018, arXiv 1312.6432). As
proposals of a flow: Grenioux, Durmus, Moulines, Gabrié, ICML 2023, arXiv 2302.04763. Both leave p
invariant for any q; how fast they mix is a matter of how large w becomes.

A step of i-SIR is made of two choices: one of x₂ … x_N in proportion to its weight, which needs no state;
then whether to go there, with probability 1 − w₁ / Σ_j w_j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp import reference
from pysamp.mcmc.base import Info, State, check_start, check_steps, columns, replace
from pysamp.mcmc.langevin import Collect, acceptance
from pysamp.mcmc.proposals import (
    Proposed,
    check_proposal,
    log_q_of,
    proposal_of,
    proposals,
    start_log_q,
)
from pysamp.target import Target, log_prob_of


@dataclass(frozen=True, eq=False)
class IMH:
    """Independent Metropolis–Hastings. `proposal`: a flow (also of zuko), or what has event_shape, log_prob
    and sample(n, *, seed, first_chain, device, dtype).

    log q of the state is kept in `State.aux["log_q"]`; where the proposal changes under a running chain,
    `refresh` it. `Info.extra` has "flow_accept", the mean acceptance probability, "flow_moves", the
    number of proposals that it is the mean of, and "nonfinite".
    Cost: one value of the target and one pass of the flow a step, of many steps at once.

    Raises TypeError for what is no proposal; at its start ValueError for another event shape than the
    target's, a flow that does not invert, and a chain where q has no finite density.
    """

    proposal: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "proposal", proposal_of(self.proposal))

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return advance(self.proposal, 1, target, state, n, thin)

    def refresh(self, state: State) -> State:
        """The state with log q of the proposal as it is now."""
        return refreshed(self.proposal, state)


@dataclass(frozen=True, eq=False)
class ISIR:
    """Iterated sampling-importance-resampling with n candidates, the current state among them.

    `proposal` and aux as in `IMH`. `Info.accept` is the mean of 1 − w₁/Σ w, the probability to leave;
    `Info.extra` has besides those of IMH "mc_ess", the mean of 1/Σ w̄² / n: the share of the candidates
    that counts. Candidates with a density NaN or +∞ have the weight 0 and are counted in "nonfinite";
    a chain whose candidates all have the weight 0 stays.
    Cost: n − 1 values of the target and passes of the flow a step.

    Raises as IMH; ValueError for n < 2.
    """

    proposal: Any
    n: int = 40

    def __post_init__(self) -> None:
        object.__setattr__(self, "proposal", proposal_of(self.proposal))
        check_candidates(self.n)

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return advance(self.proposal, self.n, target, state, n, thin)

    def refresh(self, state: State) -> State:
        """The state with log q of the proposal as it is now."""
        return refreshed(self.proposal, state)


# ------------------------------------------------------------------------------------- the two kernels
def start(kernel: IMH | ISIR, target: Target, x: Tensor, seed: int, first_chain: int) -> State:
    log_prob = log_prob_of(target, x)
    check_start(log_prob, first_chain)
    check_proposal(kernel.proposal, target, x, type(kernel).__name__)
    log_q = start_log_q(kernel.proposal, x, first_chain)
    return State(x, log_prob, None, seed, 0, first_chain, {"log_q": log_q})


def refreshed(proposal: Any, state: State) -> State:
    return replace(state, aux={**state.aux, "log_q": log_q_of(proposal, state.x)})


def advance(
    proposal: Any, n_candidates: int, target: Target, state: State, n: int, thin: int | None
) -> tuple[State, Info]:
    """n transitions; n_candidates = 1 is IMH, more are i-SIR with the current state among them."""
    check_steps(n, thin)
    if "log_q" not in state.aux:
        raise ValueError("state has no log_q: start it with this kernel's init")
    x, log_prob, log_q = state.x, state.log_prob, state.aux["log_q"]
    collect = Collect(state, n, thin)
    bad, mc_ess = torch.zeros_like(log_prob), torch.zeros_like(log_prob)
    steps = range(state.step, state.step + n)
    for proposed in proposals(target, proposal, state, steps, max(1, n_candidates - 1)):
        choice = choose(proposed, log_prob - log_q, n_candidates)
        x = torch.where(columns(choice.move, x), proposed.x, x)
        log_prob = torch.where(choice.move, proposed.log_prob, log_prob)
        log_q = torch.where(choice.move, proposed.log_q, log_q)
        collect.add(choice.probability, choice.usable, x, log_prob)
        bad, mc_ess = bad + proposed.bad, mc_ess + choice.mc_ess
    new = replace(
        state, x=x, log_prob=log_prob, step=state.step + n, aux={**state.aux, "log_q": log_q}
    )
    extra = {"flow_accept": collect.accept / n, "flow_moves": torch.full_like(log_prob, n)}
    if n_candidates > 1:
        extra["mc_ess"] = mc_ess / n
    info = collect.info(**extra)
    info.extra["nonfinite"] = info.extra["nonfinite"] + bad
    return new, info


# ------------------------------------------------------------------------------------- the decision
@dataclass(frozen=True, eq=False)
class Choice:
    """Whether each chain (n_chains,) goes to what was proposed."""

    probability: Tensor
    move: Tensor  # bool
    usable: Tensor  # bool: false where the weight of the state itself is NaN
    mc_ess: Tensor  # 1/Σ w̄² / N of the candidates with the state


def choose(proposed: Proposed, log_weight: Tensor, n_candidates: int) -> Choice:
    """From chains whose log weight is `log_weight` (n_chains,); n_candidates as in `advance`.

    A chain whose own weight is NaN, +∞, or with no weight but 0 to go to, stays.
    """
    usable = ~log_weight.isnan()
    somewhere = (proposed.total > 0) & (log_weight < math.inf)
    if n_candidates == 1:
        probability, finite = acceptance(proposed.top - log_weight)
        probability = torch.where(somewhere & finite, probability, 0.0)
        move = (proposed.log_u < proposed.top - log_weight) & somewhere & finite
        return Choice(probability, move, usable, torch.ones_like(probability))
    own = reference.exp_portable(log_weight - proposed.top)
    probability = torch.where(somewhere, proposed.total / (proposed.total + own), 0.0)
    move = reference.exp_portable(proposed.log_u) < probability
    stay = 1.0 - probability
    squares = proposed.concentration * (probability * probability) + stay * stay
    return Choice(probability, move, usable, 1.0 / (squares * n_candidates))


def check_candidates(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be an int, got {n!r}")
    if n < 2:
        raise ValueError(f"n must be at least 2, the current state and one candidate, got {n}")
