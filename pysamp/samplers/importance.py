"""Importance sampling: draws of a proposal q, weighted by p/q, and the normalising constant of p.

    ∫ f p / ∫ p ≈ Σ w_i f(x_i) / Σ w_i,    Z ≈ (1/n) Σ w_i,    w_i = p(x_i) / q(x_i),   x_i ~ q

Self-normalised, as in Owen, Monte Carlo theory, methods and examples (2013), chapter 9; effective size of
Kish. The error of ln Z is that of the delta method, sd(w) / (√n mean(w)): it is honest only where the draws
have met the large weights, which the tail index of the weights tells in part. `around` makes the weighted
points near a centre that RDMC and OAT estimate scores with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp import metrics, rng
from pysamp.samplers.arguments import check_budget, check_n
from pysamp.samples import Samples
from pysamp.target import Counted, HasLogZ, Target, log_prob_of

BLOCK = 1 << 22  # numbers in the points that are evaluated at once
# Exact draws of a target and of a proposal of the same seed would be made of the same random numbers,
# and their distance would come out too small: the golden ratio in 64 bits keeps the seeds apart.
OTHER_SEED = 0x9E3779B97F4A7C15


@runtime_checkable
class Proposal(Protocol):
    """A density that can be drawn from; log_prob is normalised, or `log_z` tells by how much not."""

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def log_prob(self, x: Tensor) -> Tensor: ...

    def sample(
        self, n: int, *, seed: int, first_chain: int, device: Any, dtype: torch.dtype
    ) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Importance:
    """n weighted draws of `proposal`; the weights are kept, in float64.

    Cost: one density of the target and one of the proposal a draw; no gradient. What the proposal does
    not reach is missed, and no number of the result shows it.
    """

    proposal: Proposal

    def __post_init__(self) -> None:
        if not isinstance(self.proposal, Proposal):
            raise TypeError(
                "proposal must have event_shape, log_prob and sample, got "
                f"{type(self.proposal).__name__}"
            )

    def sample(
        self, target: Target, n: int, *, seed: int, first_chain: int = 0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> Samples:  # fmt: skip
        """Samples x (n, 1, *event) with log_weight = ln p − ln q; log_z, log_z_error, ess in `info`.

        Raises ValueError for a proposal of another event shape, or with no density at a draw of its own.
        """
        check_n(n)
        event = tuple(target.event_shape)
        if tuple(self.proposal.event_shape) != event:
            raise ValueError(
                f"proposal has events {tuple(self.proposal.event_shape)}, the target {event}"
            )
        counted = Counted(target)
        x = self.proposal.sample(
            n, seed=(seed + OTHER_SEED) % (1 << 64), first_chain=first_chain, device=device,
            dtype=dtype or torch.float32,
        )  # fmt: skip
        log_q = log_prob_of(self.proposal, x).double()
        if isinstance(self.proposal, HasLogZ):
            log_q = log_q - self.proposal.log_z
        if not bool(torch.isfinite(log_q).all()):
            bad = int((~torch.isfinite(log_q)).nonzero()[0, 0])
            raise ValueError(
                f"proposal has log_prob = {float(log_q[bad])} at draw {first_chain + bad} of its own"
            )
        log_prob = log_prob_of(counted, x)
        log_weight, nonfinite = weights_of(log_prob, log_q)
        note = (
            "importance sampling sees only what its proposal reaches: a mode without draws is missed, "
            "and neither weights nor log Z show it"
        )
        found = facts(log_weight)
        info = {
            **found,
            "nonfinite": nonfinite,
            "evaluations": counted.evaluations,
            "gradients": counted.gradients,
            "notes": [note],
            "warnings": tail_fault(found["pareto_k"], n),
        }
        return Samples(x[:, None], log_prob[:, None], log_weight[:, None], info)

    def for_budget(self, n: int, gradients: int) -> Importance:
        """Itself: n draws cost n densities. Raises ValueError for a smaller budget."""
        check_budget(n, gradients, least=n)
        return self


# ------------------------------------------------------------------------------------- weights
def weights_of(log_prob: Tensor, log_q: Tensor) -> tuple[Tensor, int]:
    """ln p − ln q in float64, −∞ where log_prob is NaN or +∞; and how often that was."""
    bad = log_prob.isnan() | (log_prob == math.inf)
    log_weight = (log_prob.double() - log_q.double()).masked_fill(bad, -math.inf)
    return log_weight, int(bad.sum())


def facts(log_weight: Tensor) -> dict[str, float]:
    """log_z and its error by the delta method, Kish's effective size, tail index of the weights."""
    value, error = metrics.log_z(log_weight)
    return {
        "log_z": float(value),
        "log_z_error": float(error),
        "ess": float(metrics.ess_weights(log_weight)),
        "pareto_k": float(metrics.pareto_k(log_weight)),
    }


def tail_fault(k: float, n: int) -> list[str]:
    """A sentence where the tail of n weights is too heavy for any mean to be believed."""
    if n < 25:  # k is fitted to the largest fifth, and needs five of them
        return []
    limit = min(0.7, 1 - 1 / math.log10(n))  # Vehtari et al. (2024), arXiv 1507.02646
    if k <= limit:
        return []
    return [
        f"importance weights have a tail of index {k:.2g} (want at most {limit:.2g}): weighted means and "
        "log Z are off by more than their errors say"
    ]


# ------------------------------------------------------------------------------------- points
class Points(NamedTuple):
    """Normal points around rows of centres, and how much each counts."""

    noise: Tensor  # (n, k, *event): z of the points centre + scale z
    weight: Tensor  # (n, k) of sum 1; all 0 in rows without a point of positive density
    ess: Tensor  # (n,) Kish; 0 where no point has a density
    nonfinite: Tensor  # (n,) points whose log_prob is NaN or +∞, which have weight 0


def around(
    target: Target, centre: Tensor, scale: float, n_points: int, *, antithetic: bool, seed: int,
    step: int, first_chain: int,
) -> Points:  # fmt: skip
    """k points centre + scale z, z ~ N(0, 1), weighted by p(x): samples of p(x) N(x; centre, scale²).

    antithetic: n_points pairs of z and −z, all the z first. Cost: k densities for each row of centre.
    """
    event = centre.shape[1:]
    z = rng.normal(
        (len(centre), n_points, *event), seed=seed, stream="importance", step=step,
        first_chain=first_chain, device=centre.device, dtype=centre.dtype,
    )  # fmt: skip
    z = torch.cat([z, -z], 1) if antithetic else z
    x = (centre[:, None] + scale * z).reshape(-1, *event)
    log_prob = log_prob_of(target, x).reshape(z.shape[:2])
    bad = log_prob.isnan() | (log_prob == math.inf)
    log_prob = log_prob.masked_fill(bad, -math.inf)
    weight = torch.exp(log_prob - log_prob.amax(1, keepdim=True)).nan_to_num(0.0)
    total = weight.sum(1, keepdim=True)
    tiny = torch.finfo(total.dtype).tiny
    ess = total[:, 0] ** 2 / (weight * weight).sum(1).clamp_min(tiny)
    return Points(z, weight / total.clamp_min(tiny), ess, bad.sum(1))


def blocks(n: int, numbers: int) -> Iterator[tuple[int, int]]:
    """Rows first … last of n, so many that `numbers` of each row stay within one block."""
    size = max(1, BLOCK // max(1, numbers))
    for first in range(0, n, size):
        yield first, min(n, first + size)
