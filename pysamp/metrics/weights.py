"""Weights of modes and of draws: mode weights with honest errors, effective sizes, what was lost.

Mode weights and their errors at equal and importance weights; the rules by which Grenioux, Noble and
Gabrie, Improving the evaluation of samplers on multi-modal targets (2025, arXiv 2504.08916) judge
them; entropic mode coverage of Blessing, Jia, Esslinger, Vargas and Neumann, Beyond ELBOs (2024,
arXiv 2406.07423).

Draws are `(chain, draw, *event)`, mode weights (k,), all in float64 on the device of the argument.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp.metrics.arrays import check_draws, relative_weights
from pysamp.metrics.convergence import mcse

_ERRORS = 4.0  # standard errors at which a mode weight is called wrong: there errors must be honest


@runtime_checkable
class Draws(Protocol):
    """What `mode_weights` reads of a sampler's output."""

    @property
    def x(self) -> Tensor: ...  # (chain, draw, *event)
    @property
    def log_weight(self) -> Tensor | None: ...  # (chain, draw)


@runtime_checkable
class Modes(Protocol):
    """What `mode_weights` reads of a target."""

    @property
    def mode_weights(self) -> Tensor: ...  # (k,)
    def mode(self, x: Tensor) -> Tensor: ...  # (n, *event) -> (n,) int64, -1 = in no mode


def ess_weights(log_weight: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / sum w^2; 0 if every weight vanishes.

    Shapes: any shape -> (); all entries are one sample.
    """
    weight = relative_weights(log_weight)
    total = weight.sum()
    return torch.where(total > 0, total.square() / weight.square().sum(), torch.zeros_like(total))


def mode_weights(
    samples: Draws | Tensor, target: Modes, log_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fraction of the draws in each mode, with errors that stay honest when chains are stuck.

    With weights w and the indicator I of a mode the estimate is p = sum w I / sum w, and its error
    that of the mean of the series g = w (I - p) / mean(w) (delta method; g = I - p for equal
    weights). The error is the largest of

    * sd(g) / sqrt(ess mean of g), over chains and draws (4 draws or more);
    * sd(chain means of g) / sqrt(n_chains), with 4 chains or more;
    * sqrt(p (1 - p) / m), if the weights are unequal (m their Kish ESS), and if no chain ever
      enters or leaves the mode or there are fewer than 4 draws (m the Kish ESS of the chains' total
      weights, which is n_chains for equal weights);
    * a quarter of the way that four standard errors of ln(p / (1 - p)) carry p. The odds of a mode
      are the ratio of the mean stay in it to that outside. Stays are taken as geometric, ending
      after a draw with probability r; the logarithm of the mean of k of them has a variance of
      about (1 - r) psi'(k - 1/2), psi' the trigamma function, 1/2 for the stay that the end of the
      run cuts off. From e ends in n draws, r = (e - sqrt(e)) / n, a standard error below e / n.
      With many stays this is the binomial error; with few it bounds what the other errors, then
      estimates from hardly any data, miss by luck.

    If all draws or none lie in a mode, nothing was seen to fluctuate and the error is min(1, 3 / m)
    with m as in the last case: the rule of three, the 95 % bound on a probability that m
    independent trials did not show. All draws of a chain that never entered or left the mode count
    as one trial.

    Shapes: samples.x or tensor (chain, draw, *event), log_weight (chain, draw) or None -> weights
    (k,), errors (k,). A draw in no mode (-1) counts in the denominator only, so the weights may sum
    to less than one.
    """
    if not isinstance(target, Modes):
        raise TypeError(f"target must have mode_weights and mode(x), got {type(target).__name__}")
    if isinstance(samples, Tensor):
        x = samples
    elif isinstance(samples, Draws):
        x = samples.x
        log_weight = samples.log_weight if log_weight is None else log_weight
    else:
        raise TypeError(
            f"samples must be a tensor or have x and log_weight, got {type(samples).__name__}"
        )
    check_draws(x)
    n_chains, n_draws = x.shape[:2]
    label = target.mode(x.reshape(n_chains * n_draws, *x.shape[2:]))
    k = len(target.mode_weights)
    if label.shape != (n_chains * n_draws,) or label.is_floating_point():
        raise ValueError(
            f"target.mode must return ({n_chains * n_draws},) integers, got "
            f"{tuple(label.shape)} {label.dtype}"
        )
    if label.min() < -1 or label.max() >= k:
        raise ValueError(
            f"target.mode must return -1 to {k - 1}, got {int(label.min())} to {int(label.max())}"
        )
    label = label.reshape(n_chains, n_draws)
    if log_weight is None:
        log_weight = torch.zeros(n_chains, n_draws, dtype=torch.float64, device=x.device)
    if log_weight.shape != (n_chains, n_draws):
        raise ValueError(f"log_weight must be {(n_chains, n_draws)}, got {tuple(log_weight.shape)}")
    weight = relative_weights(log_weight)
    if not weight.sum() > 0:
        raise ValueError("log_weight must have a finite entry, got -inf everywhere")
    per_mode = [_probability((label == m).double(), weight) for m in range(k)]
    return torch.stack([p for p, _ in per_mode]), torch.stack([error for _, error in per_mode])


def _probability(indicator: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean of a 0/1 series (chain, draw) and its error, as `mode_weights` states."""
    n_chains, n_draws = weight.shape
    chain_trials = ess_weights(weight.sum(1).log())
    counted = weight > 0
    inside = (indicator > 0) & counted
    if not inside.any() or bool((inside == counted).all()):
        p = inside.any().double()
        return p, (3.0 / chain_trials).clamp(max=1.0)

    p = (weight * indicator).sum() / weight.sum()
    influence = weight * (indicator - p) / weight.mean()  # (chain, draw)
    candidates = []
    stuck = bool((~inside.any(1) | (inside == counted).all(1)).all())
    if n_draws >= 4 and not stuck:
        candidates.append(mcse(influence))
    if n_chains >= 4:
        candidates.append(influence.mean(1).std() / math.sqrt(n_chains))
    if stuck or n_draws < 4:
        candidates.append((p * (1 - p) / chain_trials).sqrt())
    candidates.append(_error_of_stays(p, inside, counted & ~inside))
    if bool((weight != weight.flatten()[0]).any()):
        candidates.append((p * (1 - p) / ess_weights(weight.log())).sqrt())
    return p, torch.stack(candidates).amax()


def _error_of_stays(p: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Error of p from the stays in a mode and outside it, as `mode_weights` states.

    Shapes: (), (chain, draw) bools, both true somewhere -> ().
    """
    variance = torch.zeros_like(p)
    for here in (inside, outside):
        stays = (here[:, 0].sum() + (here[:, 1:] & ~here[:, :-1]).sum()).double()
        ends = (here[:, :-1] & ~here[:, 1:]).sum().double()
        leaving = (ends - ends.sqrt()) / here.sum()
        variance += (1 - leaving) * torch.polygamma(1, stays - 0.5)
    reach = _ERRORS * variance.sqrt()
    log_odds = torch.logit(p)
    ends_at = torch.stack([log_odds - reach, log_odds + reach]).sigmoid()
    return (ends_at - p).abs().amax() / _ERRORS


def free_energy_difference(
    inside: Tensor, log_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """beta (F_inside - F_outside) = ln P(outside) / P(inside) of two states, with its error.

    Shapes: inside (chain, draw) bools, log_weight (chain, draw) or None -> (), ().

    Draws of a chain and weights to another density, such as -beta (U_2 - U_1) for one of another field,
    give its difference by reweighting; independent draws (n, 1) of a proposal with their importance
    weights give it directly. The error is that of `mode_weights`, over P (1 - P): it counts
    autocorrelation, unequal weights and chains that never change sides. Value +inf or -inf with an error
    inf where one state was never seen.
    Reference: Gabrie, Rotskoff and Vanden-Eijnden (2022), arXiv 2105.12603.
    """
    if inside.ndim != 2 or 0 in inside.shape or inside.dtype != torch.bool:
        raise ValueError(
            f"inside must be (chain, draw) of bools, got {tuple(inside.shape)} {inside.dtype}"
        )
    if log_weight is None:
        log_weight = torch.zeros(inside.shape, dtype=torch.float64, device=inside.device)
    if log_weight.shape != inside.shape:
        raise ValueError(f"log_weight must be {tuple(inside.shape)}, got {tuple(log_weight.shape)}")
    weight = relative_weights(log_weight)
    if not weight.sum() > 0:
        raise ValueError("log_weight must have a finite entry, got -inf everywhere")
    p, error = _probability(inside.double(), weight)
    return torch.log1p(-p) - p.log(), error / (p * (1 - p))


def independent_accept(
    log_weight_target: Tensor, log_weight_proposal: Tensor
) -> tuple[Tensor, Tensor]:
    """Stationary acceptance of independent Metropolis-Hastings, E min(1, w(y) / w(x)), and its error.

    x are draws of the target, y of the proposal, both independent, w = target / proposal up to a constant.

    Shapes: (n,), (n,) -> (), ().
    """
    if log_weight_target.ndim != 1 or log_weight_target.shape != log_weight_proposal.shape:
        raise ValueError(
            "log_weight_target and log_weight_proposal must both be (n,), got "
            f"{tuple(log_weight_target.shape)} and {tuple(log_weight_proposal.shape)}"
        )
    relative_weights(log_weight_target, "log_weight_target")
    relative_weights(log_weight_proposal, "log_weight_proposal")
    ratio = log_weight_proposal.detach().double() - log_weight_target.detach().double()
    accept = ratio.clamp(max=0.0).exp()
    return accept.mean(), accept.std() / math.sqrt(len(accept))


# ---- comparing mode weights ----------------------------------------------------------------------


def total_variation(weights: Tensor, reference: Tensor) -> Tensor:
    """Total variation distance of two lists of mode weights, in [0, 1].

    Weights that sum to less than one leave the rest in a further cell ("in no mode"), which is
    compared too.

    Shapes: (k,), (k,) -> ().
    """
    weights, reference = _two_weights(weights, reference)
    difference = weights - reference
    return 0.5 * (difference.abs().sum() + difference.sum().abs())


def mode_weight_error(weights: Tensor, reference: Tensor) -> Tensor:
    """The largest |weight - exact weight| over the modes, in [0, 1]; times 100 in points.

    With two modes that hold every draw it is |w_1 - exact| of Grenioux et al. (2025). Over repeated
    runs the mean is their error, the standard deviation of w_1 their spread.

    Shapes: (k,), (k,) -> ().
    """
    weights, reference = _two_weights(weights, reference)
    return (weights - reference).abs().amax()


def collapsed(weights: Tensor, reference: Tensor | None = None, threshold: float = 1e-3) -> bool:
    """Whether a mode was lost: its weight is below `threshold`.

    With exact weights a mode is lost below the smaller of `threshold` and a tenth of its own weight,
    so that light modes are not called lost where they should be light; a mode of weight zero cannot
    be lost.

    Shapes: (k,), (k,).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1), got {threshold}")
    if reference is None:
        return bool((_mode_weights("weights", weights) < threshold).any())
    weights, reference = _two_weights(weights, reference)
    return bool((weights < (reference / 10).clamp(max=threshold)).any())


def mode_coverage(weights: Tensor) -> Tensor:
    """Entropic mode coverage, -sum_k p_k log p_k / log k of the weights normalised to sum 1.

    0 for one mode only, 1 for k equal ones. A target whose modes are not equal has a coverage below
    1 itself: compare with that of the exact weights, or use `jensen_shannon`.

    Shapes: (k,), k at least 2 -> ().
    """
    p = _mode_weights("weights", weights)
    if len(p) < 2 or not p.sum() > 0:
        raise ValueError(f"weights must be of 2 modes or more, not all 0, got {weights.tolist()}")
    p = p / p.sum()
    return torch.special.entr(p).sum() / math.log(len(p))


def jensen_shannon(weights: Tensor, reference: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits of two lists of mode weights: 0 if equal, 1 if disjoint.

    What is missing to a sum of one is a further cell ("in no mode"), as in `total_variation`.

    Shapes: (k,), (k,) -> ().
    """
    weights, reference = (_with_rest(w) for w in _two_weights(weights, reference))
    entropy = torch.special.entr(torch.stack([weights, reference, 0.5 * (weights + reference)]))
    own, other, middle = entropy.sum(1)
    return ((middle - 0.5 * (own + other)) / math.log(2)).clamp(0.0, 1.0)


def _mode_weights(name: str, weights: Tensor) -> Tensor:
    if weights.ndim != 1 or len(weights) == 0:
        raise ValueError(f"{name} must be (k,), got shape {tuple(weights.shape)}")
    if not bool(torch.isfinite(weights).all() & (weights >= 0).all()):
        raise ValueError(f"{name} must be finite and non-negative, got {weights.tolist()}")
    return weights.detach().to(torch.float64)


def _two_weights(weights: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if weights.ndim != 1 or weights.shape != reference.shape:
        raise ValueError(
            f"weights and reference must both be (k,), got {tuple(weights.shape)} and "
            f"{tuple(reference.shape)}"
        )
    first, second = _mode_weights("weights", weights), _mode_weights("reference", reference)
    return first, second.to(first.device)


def _with_rest(weights: Tensor) -> Tensor:
    """(k + 1,) of sum 1."""
    full = torch.cat([weights, (1 - weights.sum()).clamp(min=0.0)[None]])
    return full / full.sum()
