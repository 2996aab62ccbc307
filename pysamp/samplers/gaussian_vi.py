"""Variational inference: a normal density N(m, L Lᵀ) fitted by the reverse Kullback–Leibler divergence.

    ELBO(m, L) = E_z[ln p(m + L z)] + Σ ln L_ii + (d/2) ln 2πe  =  ln Z − KL(q ‖ p),   z ~ N(0, 1)

The gradient goes through x = m + L z (Kingma and Welling 2014, arXiv 1312.6114), and reaches the target
only by its score. Reverse KL seeks one mode: of a density with separated modes q covers one, and its ELBO
is ln(weight of that mode), the failure measured in Grenioux, Noble, Gabrié (2025), arXiv 2504.08916, whose
settings for it (5000 steps of 256 points, rate 1e-2, start at N(0, 1)) are the defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pysamp import metrics, rng, train
from pysamp.distributed import Progress, show_loss, show_progress, world
from pysamp.samplers.arguments import check_at_least, check_budget, check_n, check_positive, counted
from pysamp.samplers.importance import (
    facts,
    tail_fault,
    weights_of,
)
from pysamp.samplers.reverse_kl import log_prob_along
from pysamp.samples import Samples
from pysamp.target import Target, log_prob_of

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class GaussianVI:
    """Fits q = N(m, L Lᵀ) to the target by Adam, then draws from it, with weights p/q.

    full: L is a lower triangle; else diagonal. The rate falls as a cosine to 0, gradients are not
    clipped. Cost: n_steps · batch gradients for any number of draws, and one density a draw.
    """

    n_steps: int = 5000
    batch: int = 256
    learning_rate: float = 1e-2
    full: bool = True

    def __post_init__(self) -> None:
        check_at_least(self.n_steps, 1, "n_steps")
        check_at_least(self.batch, 1, "batch")
        check_positive(self.learning_rate, "learning_rate")
        if not isinstance(self.full, bool):
            raise TypeError(f"full must be True or False, got {self.full!r}")

    def sample(
        self, target: Target, n: int, *, seed: int, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, progress: bool = False,
    ) -> Samples:  # fmt: skip
        """Samples x (n, 1, *event) of q with log_weight = ln p − ln q.

        info: elbo and elbo_error of the draws; `mean` (d,) and `covariance` (d, d) of q; `loss` (n_steps,),
        minus the ELBO of each batch; log_z and its error by importance sampling from q.
        Raises pysamp.train.NonFiniteError where log_prob or the score is not finite at a point of q.
        """
        check_n(n)
        target = counted(target, "GaussianVI")
        event = tuple(target.event_shape)
        d = math.prod(event)
        like = torch.empty(0, device=device, dtype=dtype or torch.float32)
        with (
            show_progress(self.n_steps, "GaussianVI", world(), show=progress) as bar,
            torch.inference_mode(False),  # a tensor made in inference mode cannot be trained
        ):
            q, history = self._trained(target, event, seed, like, bar)

        z = rng.normal(
            (n, d), seed=seed, stream="importance", substep=1,
            device=like.device, dtype=like.dtype,
        )  # fmt: skip
        x = q.at(z).reshape(n, *event)
        log_sd = q.log_sd.double().sum()
        log_q = -0.5 * (z.double().square().sum(1) + d * LOG_2PI) - log_sd
        log_prob = log_prob_of(target, x)
        log_weight, nonfinite = weights_of(log_prob, log_q)
        found = facts(log_weight)
        factor = q.factor().double().cpu()
        note = (
            "q minimises the reverse Kullback–Leibler divergence, which leaves out modes: neither ELBO nor "
            "weights show a mode that q does not reach"
        )
        info = {
            **found,
            "elbo": float(metrics.elbo(log_weight)),
            "elbo_error": float(log_weight.std() / math.sqrt(n)) if n > 1 else math.inf,
            "mean": q.mean.double().cpu(),
            "covariance": factor @ factor.T,
            "loss": history.loss,
            "nonfinite": nonfinite,
            "evaluations": target.evaluations,
            "gradients": target.gradients,
            "notes": [note],
            "warnings": tail_fault(found["pareto_k"], n),
        }
        return Samples(x[:, None], log_prob[:, None], log_weight[:, None], info)

    def _trained(
        self, target: Target, event: tuple[int, ...], seed: int, like: Tensor, bar: Progress
    ) -> tuple[Normal, train.History]:
        d = math.prod(event)
        below = like.new_zeros(d, d) if self.full else None
        q = Normal(like.new_zeros(d), like.new_zeros(d), below)

        def loss(step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
            z = rng.normal(
                (self.batch, d), seed=seed, stream="importance", step=step,
                device=like.device, dtype=like.dtype,
            )  # fmt: skip
            x = q.at(z)
            log_prob = log_prob_along(target, x.reshape(-1, *event)).mean()
            entropy = q.entropy()
            return -(log_prob + entropy), {"log_prob": log_prob, "entropy": entropy}

        params = [tensor.requires_grad_(True) for tensor in q.tensors()]
        history = train.fit(
            loss, params, steps=self.n_steps, lr=self.learning_rate, clip=None,
            callback=lambda step, row: show_loss(bar, row),
        )  # fmt: skip
        for tensor in params:
            tensor.requires_grad_(False)
        return q, history

    def for_budget(self, n: int, gradients: int) -> GaussianVI:
        """The same with n_steps such that n_steps · batch gradients and n densities fit in `gradients`.

        Raises ValueError where not even one step fits.
        """
        check_budget(n, gradients, least=self.batch + n)
        return replace(self, n_steps=(gradients - n) // self.batch)


@dataclass(frozen=True, eq=False)
class Normal:
    """x = m + L z with ln L_ii and, for a full factor, the entries below the diagonal as parameters."""

    mean: Tensor  # (d,)
    log_sd: Tensor  # (d,) ln L_ii
    below: Tensor | None  # (d, d), of which the strict lower triangle is used

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.mean, self.log_sd, self.below) if t is not None]

    def factor(self) -> Tensor:
        diagonal = torch.diag(self.log_sd.exp())
        return diagonal if self.below is None else diagonal + self.below.tril(-1)

    def at(self, z: Tensor) -> Tensor:
        """z (n, d) -> x (n, d)"""
        if self.below is None:
            return self.mean + self.log_sd.exp() * z
        return self.mean + z @ self.factor().T

    def entropy(self) -> Tensor:
        return self.log_sd.sum() + 0.5 * len(self.log_sd) * (LOG_2PI + 1)
