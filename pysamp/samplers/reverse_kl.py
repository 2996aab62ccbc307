"""What losses of the reverse Kullback–Leibler divergence are made of: log p at draws of q, with gradient.

The gradient goes through the draws (Kingma and Welling 2014, arXiv 1312.6114) and reaches the target only
by its score: no graph goes through the target, whose own score may be native or in closed form.
"""

from __future__ import annotations

from torch import Tensor

from pysamp.nets.flow import Flow
from pysamp.target import Target, log_prob_and_score


def log_prob_along(target: Target, x: Tensor) -> Tensor:
    """log p(x) (n,) with a gradient with respect to x (n, *event). Cost: one value and one score."""
    value, score = log_prob_and_score(target, x.detach())
    return value + ((x - x.detach()) * score).flatten(1).sum(1)


def at_draws(flow: Flow, target: Target, n: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """log q and log p (n,) at n draws of the flow, with gradients with respect to its parameters.

    The draws are those of a training step. The mean of the difference is KL(q ‖ p) − ln Z.
    """
    like = flow.like
    z = flow.base.draw(
        n, seed=seed, stream="training", step=step, device=like.device, dtype=like.dtype
    )
    x, log_q = flow.push(z)
    return log_q, log_prob_along(target, x)
