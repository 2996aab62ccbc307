"""Flows that are trained on a target and looked at on the way, and what their weights say of them.

Residual RealNVP (pysamp.nets.RealNVP) with the losses and settings of the public code of Grenioux, Durmus,
Moulines, Gabrié, ICML 2023, arXiv 2302.04763:

    forward    −E_p[log q(x)],            x exact draws of the target p
    backward   E_q[log q(x) − log p(x)],  x draws of the flow q

each with 5·10⁻⁵ Σ|W|² of the matrices of the scale networks; Adam with an L2 term of 10⁻⁴, a rate that is
multiplied by a constant once in a period, gradients not clipped, float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp import metrics, train
from pysamp.experiments.flow_mcmc.common import REFERENCE_SEED
from pysamp.nets import RealNVP
from pysamp.nets.bases import Base
from pysamp.nets.flow import Flow
from pysamp.samplers.flow_training import squared_weights
from pysamp.samplers.reverse_kl import at_draws
from pysamp.target import Target, log_prob_of

PENALTY = 5e-5
WEIGHT_DECAY = 1e-4
CHECK_SEED = 2_000_003  # added to the seed for the draws that judge a flow


@dataclass(frozen=True)
class Recipe:
    """The network of one dimension and its training."""

    n_steps: int
    period: int  # steps after which the rate is multiplied by gamma
    learning_rate: float
    gamma: float
    hidden: int
    n_blocks: int

    def flow(self, dim: int, base: Base | None, device: str | None, seed: int) -> RealNVP:
        flow = RealNVP(dim, self.n_blocks, self.hidden, base=base, seed=seed)
        return flow.to(device or "cpu", torch.float32)


def interpolated(dim: int, low: int, first: Recipe, high: int, last: Recipe) -> Recipe:
    """Between the recipes of two dimensions: rates geometrically, all else linearly and rounded down."""
    share = (dim - low) / (high - low)

    def whole(a: int, b: int) -> int:
        return max(1, int(a + (b - a) * share))

    return Recipe(
        whole(first.n_steps, last.n_steps),
        whole(first.period, last.period),
        first.learning_rate * (last.learning_rate / first.learning_rate) ** share,
        first.gamma,
        whole(first.hidden, last.hidden),
        whole(first.n_blocks, last.n_blocks),
    )


Loss = Callable[[RealNVP, int], Tensor]


def forward(target: Any, batch: int, seed: int) -> Loss:
    """−E_p[log q] over exact draws, new ones in each step."""

    def loss(flow: RealNVP, step: int) -> Tensor:
        x = target.sample(
            batch,
            seed=seed,
            first_chain=step * batch,
            device=flow.like.device,
            dtype=flow.like.dtype,
        )
        return -flow.log_prob(x).mean()

    return loss


def backward(target: Target, batch: int, seed: int) -> Loss:
    """E_q[log q − log p] over draws of the flow; no graph goes through the target."""

    def loss(flow: RealNVP, step: int) -> Tensor:
        log_q, log_p = at_draws(flow, target, batch, seed, step)
        return (log_q - log_p).mean()

    return loss


@dataclass(frozen=True, eq=False)
class Training:
    """Copies of a flow after some numbers of steps, and the loss, without its penalty, of each step."""

    flows: dict[int, Flow]
    loss: Tensor  # (steps,)


def trained(flow: RealNVP, loss: Loss, recipe: Recipe, stops: Sequence[int]) -> Training:
    """Train `flow` in place until the last of `stops`, whatever the recipe has for its own end."""
    wanted = set(stops)
    flows: dict[int, Flow] = {}

    def total(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        value = loss(flow, step)
        return value + PENALTY * squared_weights(flow), {"value": value}

    def keep(step: int, row: dict[str, float]) -> None:
        if step + 1 in wanted:
            flows[step + 1] = copy.deepcopy(flow).requires_grad_(False)

    with torch.inference_mode(False):
        history = train.fit(
            total, flow, steps=max(wanted), lr=recipe.learning_rate,
            lr_decay=train.StepDecay(recipe.period, recipe.gamma), weight_decay=WEIGHT_DECAY,
            clip=None, callback=keep,
        )  # fmt: skip
    return Training(flows, history.terms["value"])


def quality(flow: Flow, target: Any, n: int, seed: int) -> dict[str, float]:
    """What weights p/q say of the flow, over n exact draws of the target and n of the flow.

    "accept" is that of independent proposals in equilibrium, "ess" the effective share of the draws of
    the flow, "KL(exact|flow)" = E_p[log p − log q] with p normalised by its exact log Z.
    """
    like = flow.like
    x = target.sample(n, seed=seed + REFERENCE_SEED, device=like.device, dtype=like.dtype)
    y, log_q = flow.sample_and_log_prob(n, seed=seed + CHECK_SEED)
    with torch.no_grad():
        of_target = (log_prob_of(target, x) - flow.log_prob(x)).double()
    of_flow = (log_prob_of(target, y) - log_q).double()
    accept, accept_error = metrics.independent_accept(of_target, of_flow)
    log_z, log_z_error = metrics.log_z(of_flow)
    return {
        "accept": float(accept),
        "accept error": float(accept_error),
        "log_z": float(log_z),
        "log_z error": float(log_z_error),
        "ess": float(metrics.ess_weights(of_flow)) / n,
        "KL(exact|flow)": float(of_target.mean()) - target.log_z,
        "KL(exact|flow) error": float(of_target.std()) / n**0.5,
    }
