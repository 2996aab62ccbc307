"""Convergence diagnostics of Markov chains: R-hat, effective sample size, Monte Carlo errors.

The rank-normalised split statistics of Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021),
arXiv 1903.08008, the ESS with Geyer's (1992) initial monotone sequence. Every convention is that of
ArviZ 0.23 (`az.rhat`, `az.ess`, `az.mcse`): chains are split in halves and the middle draw of an
odd number dropped, ties get average ranks, ESS is at most n log10(n), fewer than 4 draws or a NaN
anywhere gives NaN, infinities are ranked like any value.

Draws are `(chain, draw, *event)` and all arithmetic is float64 on the device of the argument.
Statistics of one event coordinate never depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pysamp.metrics.arrays import check_draws

_BLOCK = 1 << 23  # numbers worked on at once: 64 MiB of float64, a few such buffers live together
_RESOLUTION = 1e-15  # np.finfo(float).resolution: ArviZ calls a smaller range constant


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
    check_draws(x)
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
