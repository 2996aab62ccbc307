"""Hamiltonian Monte Carlo with unit masses (Duane, Kennedy, Pendleton, Roweth, PLB 195, 216, 1987).

Fresh momenta p ~ N(0, 1), then L leapfrog steps of size ε of H = −log p(x) + ½|p|²; the end point is
accepted with probability min(1, e^{−ΔH}).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp.mcmc import fused
from pysamp.mcmc.base import Info, State, check_steps, columns, per_chain, replace
from pysamp.mcmc.langevin import (
    Collect,
    Numbers,
    acceptance,
    check_scale,
    needed,
    noise_size,
    squared_norm,
    start,
)
from pysamp.target import Target, log_prob_and_score


@dataclass(frozen=True, eq=False)
class HMC:
    """L = `n_leapfrog` steps of size ε = `step_size`: a number, one per chain, or None (warm-up finds it).

    Cost: L gradients a step.
    """

    step_size: Tensor | float | None = None
    n_leapfrog: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", check_scale(self.step_size, "step_size"))
        if type(self.n_leapfrog) is not int or self.n_leapfrog < 1:
            raise ValueError(f"n_leapfrog must be a positive integer, got {self.n_leapfrog}")

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return start(self, target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        check_steps(n, thin)
        eps = per_chain(needed(self.step_size, "step_size"), "step_size", state.log_prob)
        done = fused.chain("hmc", target, state, n, thin, eps, n_leapfrog=self.n_leapfrog)
        if done is not None:
            return done

        x, log_prob, score = state.x, state.log_prob, state.score
        if score is None:
            raise ValueError("state has no score: start it with this kernel's init")
        collect = Collect(state, n, thin)
        ex = columns(eps, x)
        half = columns(eps * 0.5, x)
        numbers = Numbers(state, "momentum")
        for step in range(state.step, state.step + n):
            p = numbers.normal(step)
            log_u = numbers.log_uniform(step, 1, first=noise_size(x))[:, 0]
            before = squared_norm(p)
            p = p + half * score
            x_new = x + ex * p
            for _ in range(self.n_leapfrog - 1):
                _, score_new = log_prob_and_score(target, x_new)
                p = p + ex * score_new
                x_new = x_new + ex * p
            log_prob_new, score_new = log_prob_and_score(target, x_new)
            p = p + half * score_new
            log_ratio = (log_prob_new - log_prob) + (before - squared_norm(p)) * 0.5  # −ΔH
            probability, finite = acceptance(log_ratio)
            move = (log_u < log_ratio) & finite
            x = torch.where(columns(move, x), x_new, x)
            score = torch.where(columns(move, x), score_new, score)
            log_prob = torch.where(move, log_prob_new, log_prob)
            collect.add(probability, finite, x, log_prob)
        new = replace(state, x=x, log_prob=log_prob, score=score, step=state.step + n)
        return new, collect.info()

    def scale(self) -> Tensor | float | None:
        return self.step_size

    def with_scale(self, scale: Tensor | float) -> HMC:
        return replace(self, step_size=scale)

    def target_accept(self, target: Target) -> float:
        return (
            0.8  # above the asymptotic 0.651 (Beskos et al., Bernoulli 19, 1501, 2013): safer tails
        )

    def initial_scale(self, target: Target) -> float:
        return 0.1

    def groups(self, state: State) -> Tensor | None:
        return None
