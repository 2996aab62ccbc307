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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysamp import metrics, rng
from pysamp.mcmc.proposals import TILE, check_period, proposal_of, rows_of_a_pass
from pysamp.nets.flow import Flow
from pysamp.samplers.arguments import check_budget, check_n
from pysamp.samples import Samples
from pysamp.target import Counted, HasLogZ, Target, log_prob_of

BLOCK = 1 << 22  # numbers in the points that are evaluated at once
# Exact draws of a target and of a proposal of the same seed would be made of the same random numbers,
# and their distance would come out too small: the golden ratio in 64 bits keeps the seeds apart.
OTHER_SEED = 0x9E3779B97F4A7C15


@dataclass(frozen=True, eq=False)
class Importance:
    """n weighted draws of `proposal`, a flow (also of zuko) or another density that can be drawn from; the
    weights are kept, in float64.

    Cost: one density of the target and one of the proposal a draw, of a flow the pass that made the draw;
    no gradient. What the proposal does not reach is missed, and no number of the result shows it.
    Neural importance sampling with a flow: Müller et al. (2019), arXiv 1808.03856.
    """

    proposal: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "proposal", proposal_of(self.proposal))

    def sample(
        self, target: Target, n: int, *, seed: int, first_chain: int = 0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> Samples:  # fmt: skip
        """Samples x (n, 1, *event) with log_weight = ln p − ln q; log_z, log_z_error, ess in `info`.

        dtype: float32 by default; a flow has a device and a dtype of its own.
        Raises ValueError for a proposal of another event shape, or with no density at a draw of its own,
        and for a flow of angles whose period the target does not have.
        """
        check_n(n)
        event = tuple(target.event_shape)
        if tuple(self.proposal.event_shape) != event:
            raise ValueError(
                f"proposal has events {tuple(self.proposal.event_shape)}, the target {event}"
            )
        counted = Counted(target)
        x, log_q = self._draw(n, (seed + OTHER_SEED) % (1 << 64), first_chain, device, dtype)
        if not bool(torch.isfinite(log_q).all()):
            bad = int((~torch.isfinite(log_q)).nonzero()[0, 0])
            raise ValueError(
                f"proposal has log_prob = {float(log_q[bad])} at draw {first_chain + bad} of its own"
            )
        if isinstance(self.proposal, Flow):
            check_period(self.proposal, counted, x)
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

    def _draw(
        self, n: int, seed: int, first_chain: int, device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Draws (n, *event), and their normalised log q (n,) in float64."""
        proposal = self.proposal
        if isinstance(proposal, Flow):
            size = rows_of_a_pass(proposal.dim)
            parts = []
            for begin in range(0, n, size):
                count = min(size, n - begin)
                drawn = proposal.sample_and_log_prob(
                    count + -count % TILE, seed=seed, first_chain=first_chain + begin,
                    device=device, dtype=dtype,
                )  # fmt: skip
                parts.append([value[:count] for value in drawn])
            points, logs = (torch.cat(values) for values in zip(*parts, strict=True))
            return points, logs.double()
        x = proposal.sample(
            n, seed=seed, first_chain=first_chain, device=device, dtype=dtype or torch.float32
        )
        log_q = log_prob_of(proposal, x).double()
        return x, log_q - proposal.log_z if isinstance(proposal, HasLogZ) else log_q

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


def independent_accept(log_weight: Tensor) -> float:
    """Stationary acceptance of independent Metropolis–Hastings, from draws of its proposal.

    E[min(1, w(y)/w(x))], y a draw, x one in proportion to its weight: with the weights in
    ascending order, Σ_j w_j (2(n − j) + 1) / (n Σ_j w_j), j = 1 … n. NaN where all weights are 0.
    """
    n = len(log_weight)
    weight = torch.softmax(log_weight.double().sort().values, 0)
    above = torch.arange(n - 1, -1, -1, device=weight.device, dtype=torch.float64)
    return float((weight * (2 * above + 1)).sum() / n)


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
