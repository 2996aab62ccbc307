"""Convergence diagnostics, Monte Carlo errors, mode weights and distances in one dimension.

R-hat, ESS and MCSE are the rank-normalised split statistics of Vehtari, Gelman, Simpson, Carpenter
and Buerkner (2021), arXiv 1903.08008, the ESS with Geyer's (1992) initial monotone sequence. Every
convention is that of ArviZ 0.23 (`az.rhat`, `az.ess`, `az.mcse`): chains are split in halves and
the middle draw of an odd number dropped, ties get average ranks, ESS is at most n log10(n), fewer
than 4 draws or a NaN anywhere gives NaN, infinities are ranked like any value.

Draws are `(chain, draw, *event)` and all arithmetic is float64 on the device of the argument.
Statistics of one event coordinate never depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

_BLOCK = 1 << 23  # numbers worked on at once: 64 MiB of float64, a few such buffers live together
_ERRORS = 4.0  # standard errors at which a mode weight is called wrong: there errors must be honest
_RESOLUTION = 1e-15  # np.finfo(float).resolution: ArviZ calls a smaller range constant


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


# ---- convergence of Markov chains ----------------------------------------------------------------


def rhat(x: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of bulk and folded (`az.rhat(method="rank")`).

    Shapes: x (chain, draw, *event) -> event.
    Returns NaN for one chain, although its halves could be compared: ArviZ asks for two, because
    halves of one chain share its mode. NaN for constant draws (no variance within chains); inf for
    chains that never move and differ.
    """

    def statistic(block: Tensor) -> Tensor:
        split = _split(block)
        bulk = _rhat_plain(_rank_normalise(split))
        folded = _rhat_plain(_rank_normalise((split - _median(split)[:, None, None]).abs()))
        # A folded value that is undefined (two-valued draws folded onto one value) leaves the bulk
        # value standing.
        return torch.where(folded > bulk, folded, bulk)

    return _per_coordinate(x, statistic, min_chains=2)


def ess(x: Tensor, kind: Literal["bulk", "tail", "mean"] = "bulk") -> Tensor:
    """Multi-chain effective sample size (`az.ess(method=kind)`).

    bulk: of the rank-normalised draws. tail: the smaller of the ESS of the indicators below the 5 %
    and the 95 % quantile. mean: of the draws themselves, the one that belongs to a Monte Carlo
    error of the mean.

    Shapes: x (chain, draw, *event) -> event. Constant draws count fully, as in ArviZ.
    Cost: one sort (bulk, tail) and one FFT per chain; memory a few times one coordinate's draws.
    """

    def tail(block: Tensor) -> Tensor:
        ordered = block.flatten(1).sort(-1).values
        below = [(block <= _quantile(ordered, p)[:, None, None]).double() for p in (0.05, 0.95)]
        return torch.minimum(*(_ess_plain(_split(b)) for b in below))

    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        "bulk": lambda block: _ess_plain(_rank_normalise(_split(block))),
        "tail": tail,
        "mean": lambda block: _ess_plain(_split(block)),
    }
    if kind not in statistics:
        raise ValueError(f"kind must be one of {sorted(statistics)}, got {kind!r}")
    return _per_coordinate(x, statistics[kind])


def mcse(x: Tensor) -> Tensor:
    """Monte Carlo standard error of the mean, sd / sqrt(ess mean) (`az.mcse(method="mean")`).

    Shapes: x (chain, draw, *event) -> event.
    """
    return _per_coordinate(
        x, lambda block: block.flatten(1).std(-1) / _ess_plain(_split(block)).sqrt()
    )


def _per_coordinate(
    x: Tensor, statistic: Callable[[Tensor], Tensor], *, min_chains: int = 1
) -> Tensor:
    """`statistic: (e, chain, draw) -> (e,)` of blocks of event coordinates, NaN where undefined."""
    _check_draws(x)
    n_chains, n_draws = x.shape[:2]
    event = x.shape[2:]
    flat = x.detach().reshape(n_chains, n_draws, -1)
    out = torch.full((flat.shape[2],), math.nan, dtype=torch.float64, device=x.device)
    if n_chains >= min_chains and n_draws >= 4:
        size = max(1, _BLOCK // (n_chains * n_draws))
        for first in range(0, flat.shape[2], size):
            block = flat[:, :, first : first + size].to(torch.float64).permute(2, 0, 1).contiguous()
            value = statistic(block)
            missing = block.isnan().flatten(1).any(-1)
            out[first : first + size] = value.masked_fill(missing, math.nan)
    return out.reshape(event)


def _split(block: Tensor) -> Tensor:
    half = block.shape[2] // 2
    return torch.cat([block[:, :, :half], block[:, :, -half:]], dim=1)  # (e, 2 chain, draw // 2)


def _median(block: Tensor) -> Tensor:
    # torch.median returns the lower middle value; a split block always holds an even number.
    ordered = block.flatten(1).sort(-1).values
    middle = ordered.shape[1] // 2
    return (ordered[:, middle - 1] + ordered[:, middle]) / 2


def _quantile(ordered: Tensor, p: float) -> Tensor:
    """R's type 7, in the operation order of scipy's `mquantiles`: ties must compare alike."""
    n = ordered.shape[1]
    position = n * p + (1.0 - p)
    k = math.floor(min(max(position, 1.0), n - 1.0))
    gamma = min(max(position - k, 0.0), 1.0)
    return (1.0 - gamma) * ordered[:, k - 1] + gamma * ordered[:, k]


def _rank_normalise(block: Tensor) -> Tensor:
    """Normal scores of the average ranks over all chains, with Blom's offset 3/8."""
    ordered, order = block.flatten(1).sort(-1)  # (e, n)
    n = ordered.shape[1]
    position = torch.arange(1, n + 1, dtype=torch.float64, device=block.device).expand_as(ordered)
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones_like(changes[:, :1])
    starts = torch.cat([edge, changes], dim=1)
    ends = torch.cat([changes, edge], dim=1)
    first = position.masked_fill(~starts, 0.0).cummax(-1).values
    last = position.masked_fill(~ends, n + 1.0).flip(-1).cummin(-1).values.flip(-1)
    score = torch.special.ndtri(((first + last) / 2 - 0.375) / (n + 0.25))
    score.masked_fill_(ordered.isnan().any(-1, keepdim=True), math.nan)
    return torch.empty_like(ordered).scatter_(1, order, score).reshape(block.shape)


def _rhat_plain(split: Tensor) -> Tensor:
    n_draws = split.shape[2]
    between = n_draws * split.mean(-1).var(-1)
    # Measured from its first draw a chain that never moves has a variance of exactly zero, not of
    # one rounding error.
    within = (split - split[:, :, :1]).var(-1).mean(-1)
    return ((between / within + n_draws - 1) / n_draws).sqrt()


def _ess_plain(split: Tensor) -> Tensor:
    """ESS of split chains (e, chain, draw) from their combined autocorrelation."""
    n_chains, n = split.shape[1:]
    n_total = n_chains * n
    covariance = _mean_autocovariance(split)  # (e, n)
    mean_variance = covariance[:, 0] * n / (n - 1.0)
    variance = mean_variance * (n - 1.0) / n
    if n_chains > 1:
        variance = variance + split.mean(-1).var(-1)
    rho = 1.0 - (mean_variance[:, None] - covariance) / variance[:, None]
    rho[:, 0] = 1.0

    # Geyer: sums over pairs of lags (2k, 2k + 1) are positive and decreasing for a reversible
    # chain. `n_pairs` pairs come before the first that is not positive (at the latest before the
    # end of the series); they are made decreasing.
    pairs = rho[:, : n // 2 * 2].reshape(len(rho), -1, 2).sum(-1)  # (e, n // 2)
    lag = torch.arange(1, n, 2, device=rho.device)
    goes_on = (pairs > 0) & (lag < n - 3)
    n_pairs = goes_on.long().cumprod(-1).sum(-1)
    kept = torch.arange(pairs.shape[1], device=rho.device) < n_pairs[:, None]
    total = pairs.cummin(-1).values.masked_fill(~kept, 0.0).sum(-1)
    # The even lag after the last pair still lowers the variance of the estimate when it is
    # positive.
    after = rho.gather(1, 2 * n_pairs[:, None])[:, 0]
    after_pair = pairs.gather(1, n_pairs[:, None])[:, 0]
    after = after.masked_fill(~((after > 0) | (after_pair >= 0)), 0.0)

    tau = (-1.0 + 2.0 * total + after).clamp(min=1.0 / math.log10(n_total))
    out = (n_total / tau).masked_fill(rho[:, 1].isnan(), math.nan)
    constant = split.amax((1, 2)) - split.amin((1, 2)) < _RESOLUTION
    return out.masked_fill(constant, float(n_total))


def _mean_autocovariance(split: Tensor) -> Tensor:
    """Autocovariance at every lag, biased by 1/n, averaged over chains: (e, chain, n) -> (e, n)."""
    n_events, n_chains, n = split.shape
    # Twice the length, zero padded, keeps lags from wrapping; a power of two is fast on every
    # backend. Averaging the power spectra leaves one inverse transform per coordinate.
    length = 1 << (2 * n - 1).bit_length()
    power = split.new_zeros(n_events, length // 2 + 1)
    size = max(1, _BLOCK // (n_events * length))
    for first in range(0, n_chains, size):
        chains = split[:, first : first + size]
        spectrum = torch.fft.rfft(chains - chains.mean(-1, keepdim=True), n=length)
        power += (spectrum.real.square() + spectrum.imag.square()).sum(1)
    return torch.fft.irfft(power / n_chains, n=length)[:, :n] / n


# ---- weights -------------------------------------------------------------------------------------


def ess_weights(log_weight: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / sum w^2; 0 if every weight vanishes.

    Shapes: any shape -> (); all entries are one sample.
    """
    weight = _relative_weights(log_weight)
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
    _check_draws(x)
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
    weight = _relative_weights(log_weight)
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


def _relative_weights(log_weight: Tensor) -> Tensor:
    """exp(log_weight - max), zero where -inf."""
    log_weight = log_weight.detach().to(torch.float64)
    if log_weight.numel() == 0 or log_weight.isnan().any() or (log_weight == math.inf).any():
        raise ValueError(
            f"log_weight must be non-empty without NaN or +inf, got {tuple(log_weight.shape)} with "
            f"{int(log_weight.isnan().sum())} NaN and {int((log_weight == math.inf).sum())} +inf"
        )
    largest = log_weight.max()
    if largest == -math.inf:
        return torch.zeros_like(log_weight)
    return (log_weight - largest).exp()


# ---- distances -----------------------------------------------------------------------------------


def total_variation(weights: Tensor, reference: Tensor) -> Tensor:
    """Total variation distance of two lists of mode weights, in [0, 1].

    Weights that sum to less than one leave the rest in a further cell ("in no mode"), which is
    compared too.

    Shapes: (k,), (k,) -> ().
    """
    if weights.ndim != 1 or weights.shape != reference.shape:
        raise ValueError(
            f"weights and reference must both be (k,), got {tuple(weights.shape)} and "
            f"{tuple(reference.shape)}"
        )
    for name, value in (("weights", weights), ("reference", reference)):
        if not bool(torch.isfinite(value).all() & (value >= 0).all()):
            raise ValueError(f"{name} must be finite and non-negative, got {value.tolist()}")
    difference = weights.to(torch.float64) - reference.to(weights.device, torch.float64)
    return 0.5 * (difference.abs().sum() + difference.sum().abs())


def ks_statistic(x: Tensor, y: Tensor) -> Tensor:
    """Two-sample Kolmogorov-Smirnov distance sup |F_x - F_y| of empirical distributions.

    Shapes: (n,), (m,) -> ().
    """
    x, y = _sorted_sample("x", x), _sorted_sample("y", y)
    both = torch.cat([x, y])
    f_x = torch.searchsorted(x, both, right=True).double() / len(x)
    f_y = torch.searchsorted(y, both, right=True).double() / len(y)
    return (f_x - f_y).abs().amax()


def ks_against(x: Tensor, cdf: Callable[[Tensor], Tensor]) -> Tensor:
    """One-sample Kolmogorov-Smirnov distance of x from `cdf: (n,) -> (n,)`.

    Shapes: (n,) -> ().
    """
    x = _sorted_sample("x", x)
    n = len(x)
    f = cdf(x).to(torch.float64)
    if f.shape != x.shape or not bool(((f >= 0) & (f <= 1)).all()):
        raise ValueError(
            f"cdf must return {tuple(x.shape)} values in [0, 1], got {tuple(f.shape)} "
            f"in [{float(f.min())}, {float(f.max())}]"
        )
    above = torch.arange(1, n + 1, dtype=torch.float64, device=x.device) / n
    return torch.maximum((above - f).amax(), (f - (above - 1.0 / n)).amax())


def _sorted_sample(name: str, x: Tensor) -> Tensor:
    if x.ndim != 1 or len(x) == 0 or x.isnan().any():
        raise ValueError(
            f"{name} must be a non-empty 1-d sample without NaN, got shape {tuple(x.shape)}"
        )
    return x.detach().to(torch.float64).sort().values


def _check_draws(x: Tensor) -> None:
    if x.ndim < 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"x must be (chain, draw, *event), got {tuple(x.shape)}")
