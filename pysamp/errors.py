"""Errors of Markov chains: integrated autocorrelation time, and resampling of blocks for derived numbers.

With ρ(t) the autocorrelation of a series at lag t,

    τ_int = ½ + Σ_{t≥1} ρ(t),      error of a mean of N values = √(2 τ_int var / N),

so independent draws have τ_int = ½ and N draws are worth N/(2 τ_int). The sum ends at the window W of
Madras and Sokal, J. Stat. Phys. 50, 109 (1988), the least W ≥ c τ_int(W). The error of τ_int, and its
correction for a mean that is itself estimated, are those of Wolff, hep-lat/0306017, eqs. (42), (49):

    σ²(τ_int) = (4/N) (W + ½ − τ_int) τ_int²,      τ_int → τ_int (1 + (2W + 1)/N).

Series are (chain, draw) and times count draws. Autocovariances are taken around the mean of all chains,
so chains that stand in different places stay correlated instead of looking like good ones.
Numbers that are no plain mean (a susceptibility, a ratio) take `jackknife` or `bootstrap`, which leave
out or draw again whole blocks of time: only blocks much longer than τ_int are independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysamp import rng

WINDOW = 5.0  # c: what a window of 5 τ leaves out is e^-5 of τ for one exponential
LENGTH = 50.0  # draws per chain and τ below which a window is not trusted (Sokal's lectures, 1997)
BLOCKS = 256  # at most: the error then is known to 1/√(2·256) = 4 %
FEW_BLOCKS = (
    20  # below this the noise of the error (16 %) costs more than blocks that are too short
)
LONG, SHORT = 10.0, 2.0  # times τ: a block of 10 τ gives 95 % of the error, one of 2 τ gives 75 %
_BLOCK = 1 << 23  # numbers transformed at once: 64 MiB of float64

Series = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Time:
    """An integrated autocorrelation time, in draws; unpacks as `tau, error = …`.

    `warning` says why it cannot be trusted; it is None for a time that is resolved.
    """

    tau: float
    error: float
    window: int
    warning: str | None = None

    def __iter__(self) -> Iterator[float]:
        return iter((self.tau, self.error))


class Estimate(NamedTuple):
    """A value and its standard error, each a tensor or a dict of tensors, as the function gave them."""

    value: Any
    error: Any


# ---- autocorrelation -----------------------------------------------------------------------------


def integrated_time(x: Tensor, c: float = WINDOW) -> Time:
    """τ_int of a series (chain, draw) and its error, by the window of the header.

    A series that alternates, ρ(1) < 0, takes its window from ½ + Σ|ρ|, because its partial sums say
    nothing of how far it reaches, and the mean of the last two of them. τ_int is at least 1/(2W + 1),
    below which a window cannot tell it from 0. NaN with a warning: values that are not finite, a
    constant series, fewer than 4 draws. A series with no window below half its length has a warning, a
    τ_int that is a lower bound, and no error (NaN). Further warnings: fewer than 50 τ_int draws per
    chain; means of chains that spread more than √(2 τ_int var / n_draws), 5 standard errors beyond
    chance, which betrays a slow mode that the window left out.

    Raises ValueError for another shape or c ≤ 0. Cost: one FFT per chain.
    """
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must be (chain, draw) and not empty, got {tuple(x.shape)}")
    if not 0 < c < math.inf:
        raise ValueError(f"c must be positive, got {c}")
    n_chains, n_draws = x.shape
    if not bool(torch.isfinite(x).all()):
        return Time(math.nan, math.nan, 0, "the series holds NaN or infinity")
    if n_draws < 4:
        return Time(math.nan, math.nan, 0, f"{n_draws} draws per chain are fewer than 4")
    if bool(x.amax() == x.amin()):
        return Time(math.nan, math.nan, 0, "the series is constant")
    covariance = _autocovariance(x)
    rho = covariance / covariance[0]
    longest = n_draws // 2
    reach = rho[1 : longest + 1]
    tau = 0.5 + reach.cumsum(0)  # of the windows 1 … longest
    scale = tau
    if float(rho[1]) < 0:
        scale = 0.5 + reach.abs().cumsum(0)
        tau[1:] = (tau[1:] + tau[:-1]) / 2
    windows = torch.arange(1, longest + 1, device=x.device)
    wide = torch.nonzero(windows >= c * scale).flatten()
    total = n_chains * n_draws
    window = int(wide[0]) + 1 if len(wide) else longest
    found = float(tau[window - 1]) * (1 + (2 * window + 1) / total)
    value = max(found, 1 / (2 * window + 1))
    if not len(wide):
        text = f"{n_draws} draws per chain are too few: they stay correlated for half the run"
        return Time(value, math.nan, window, text)
    error = 2 * value * math.sqrt(max(0.0, window + 0.5 - value) / total)
    least, warning = LENGTH * value, None
    if n_draws < least:
        warning = f"{n_draws} draws per chain are fewer than {LENGTH:.0f} τ_int = {least:.0f}"
    elif n_chains > 1:
        explained = 2 * (value + 2 * error) * float(covariance[0]) / n_draws
        excess = float(x.to(torch.float64).mean(1).var()) / explained
        if excess > _unlikely(n_chains - 1):
            warning = f"chains differ {math.sqrt(excess):.1f} times as much as this explains"
    return Time(value, error, window, warning)


def _unlikely(freedom: int) -> float:
    """χ² per degree of freedom at 5 standard errors, as Wilson and Hilferty (1931) approximate it."""
    part = 2 / (9 * freedom)
    return (1 - part + 5 * math.sqrt(part)) ** 3


def mean(x: Tensor, time: Time | None = None) -> Estimate:
    """Mean of a series (chain, draw) and its error √(2 τ_int var / N), both () float64.

    The variance is the one about the true mean, N/(N − 2τ_int) times that about the estimate; the error
    is infinite where N ≤ 2τ_int. It is 0 for a constant series and NaN where τ_int is.
    """
    time = integrated_time(x) if time is None else time
    series = x.detach().to(torch.float64)
    value, n = series.mean(), series.numel()
    if bool(x.amax() == x.amin()):
        return Estimate(value, torch.zeros_like(value))
    free = n - 2 * time.tau
    variance = (series - value).square().mean()
    factor = 2 * time.tau / free if not free <= 0 else math.inf
    return Estimate(value, (variance * factor).sqrt())


def _autocovariance(x: Tensor) -> Tensor:
    """Γ(t) at every lag, about the mean of all, averaged over pairs: (chain, draw) -> (draw,)."""
    n_chains, n = x.shape
    centre = x.to(torch.float64).mean()
    length = 1 << (2 * n - 1).bit_length()  # twice as long: lags do not wrap
    power = torch.zeros(length // 2 + 1, dtype=torch.float64, device=x.device)
    size = max(1, _BLOCK // length)
    for first in range(0, n_chains, size):
        chains = x[first : first + size].to(torch.float64) - centre
        spectrum = torch.fft.rfft(chains, n=length)
        power += (spectrum.real.square() + spectrum.imag.square()).sum(0)
    pairs = torch.arange(n, 0, -1, device=x.device) * n_chains
    return torch.fft.irfft(power, n=length)[:n] / pairs


# ---- blocks --------------------------------------------------------------------------------------


def jackknife(
    f: Callable[..., Any],
    *series: Series,
    n_blocks: int | None = None,
    tau: float | None = None,
    unbiased: bool = False,
) -> Estimate:
    """f of the means of series, with the error by leaving out one block at a time.

    series: tensors (chain, draw, *event) or mappings of names to them, all of the same chains and draws.
    f is called with their means, (*event) float64 each, in mappings where mappings were given, and
    returns a tensor or a mapping of tensors. n_blocks: of equal length, in the order of chains. None:
    whole chains (in groups, where there are more than 256) if there are 20 or more, else each chain in
    pieces of 10 τ_int or longer, at most 256 in all; where this leaves fewer than 20, in up to 20 pieces
    that may be as short as 2 τ_int; and whole where τ_int is not resolved. tau: the longest τ_int, else
    that of all the series. unbiased: remove the bias of order 1/N from the value.

    Blocks of unequal size are weighted as in Busing, Meijer, van der Leeden, Stat. Comput. 9, 3 (1999),
    the usual formula if they are equal. The error is NaN if the run is worth a single block.
    Cost: one call of f a block; without tau one FFT of each coordinate.
    """
    totals, parts, sizes, rebuild = _blocks(series, n_blocks, tau)
    n, count = float(sizes.sum()), len(sizes)
    whole, keys = _values(f(*rebuild([total / n for total in totals])))
    if count < 2:
        nothing = [torch.full_like(value, math.nan) for value in whole]
        return Estimate(_shaped(whole, keys), _shaped(nothing, keys))
    left = [
        _values(f(*rebuild([(t - p[b]) / (n - float(sizes[b])) for t, p in zip(totals, parts)])))[0]
        for b in range(count)
    ]
    values, errors = [], []
    for k, value in enumerate(whole):
        without = torch.stack([found[k] for found in left])  # (B, …)
        share = (n / sizes).reshape(-1, *[1] * value.ndim)  # N/m
        pseudo = share * value - (share - 1) * without
        corrected = (pseudo / share).sum(0)
        variance = ((pseudo - corrected).square() / (share - 1)).mean(0)
        values.append(corrected if unbiased else value)
        errors.append(variance.sqrt())
    return Estimate(_shaped(values, keys), _shaped(errors, keys))


def bootstrap(
    f: Callable[..., Any],
    *series: Series,
    n_blocks: int | None = None,
    tau: float | None = None,
    n_resamples: int = 500,
    seed: int = 0,
) -> Estimate:
    """As `jackknife`, with the error from blocks drawn with replacement: the spread of n_resamples of f.

    It is the one to take for what is no smooth function of the means, such as a median or a crossing.
    A function of the seed. Cost: n_resamples calls of f.
    """
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int) or n_resamples < 2:
        raise ValueError(f"n_resamples must be an int of at least 2, got {n_resamples!r}")
    totals, parts, sizes, rebuild = _blocks(series, n_blocks, tau)
    n, count = float(sizes.sum()), len(sizes)
    whole, keys = _values(f(*rebuild([total / n for total in totals])))
    if count < 2:
        nothing = [torch.full_like(value, math.nan) for value in whole]
        return Estimate(_shaped(whole, keys), _shaped(nothing, keys))
    u = rng.uniform(
        (n_resamples, count), seed=seed, stream="resample", device=sizes.device, dtype=torch.float64
    )
    picked = (u * count).long().clamp(max=count - 1)
    times = torch.zeros_like(u).scatter_add_(1, picked, torch.ones_like(u))  # (R, B)
    drawn = times @ sizes
    again = [torch.tensordot(times, part, dims=1) for part in parts]  # (R, *event)
    found = [_values(f(*rebuild([a[r] / drawn[r] for a in again])))[0] for r in range(n_resamples)]
    spread = [torch.stack([one[k] for one in found]).std(0) for k in range(len(whole))]
    return Estimate(_shaped(whole, keys), _shaped(spread, keys))


def block_edges(
    n_chains: int, n_draws: int, n_blocks: int | None = None, tau: float = 0.5
) -> list[int]:
    """Where the blocks begin and end among all draws, chain after chain, by the rule of `jackknife`."""
    total = n_chains * n_draws
    if n_blocks is not None:
        if isinstance(n_blocks, bool) or not isinstance(n_blocks, int):
            raise TypeError(f"n_blocks must be an int, got {n_blocks!r}")
        if not 2 <= n_blocks <= total:
            raise ValueError(f"n_blocks must lie in 2…{total}, the number of draws, got {n_blocks}")
        return [i * total // n_blocks for i in range(n_blocks + 1)]
    if n_chains >= FEW_BLOCKS:
        group = -(-n_chains // BLOCKS)
        return [*range(0, total, group * n_draws), total]
    pieces = min(int(n_draws // (LONG * tau)), BLOCKS // n_chains)
    if pieces * n_chains < FEW_BLOCKS:
        pieces = min(-(-FEW_BLOCKS // n_chains), int(n_draws // (SHORT * tau)))
    pieces = max(1, min(pieces, n_draws))
    cuts = [i * n_draws // pieces for i in range(pieces)]
    return [*(chain * n_draws + cut for chain in range(n_chains) for cut in cuts), total]


def _blocks(
    series: tuple[Series, ...], n_blocks: int | None, tau: float | None
) -> tuple[list[Tensor], list[Tensor], Tensor, Callable[[list[Tensor]], list[Any]]]:
    """Sums over all, sums over blocks (B, *event), sizes (B,), and what puts means into their places."""
    if not series:
        raise ValueError("series must not be empty: give at least one (chain, draw, *event)")
    names = [None if isinstance(s, Tensor) else list(s) for s in series]
    tensors = [t for s in series for t in ([s] if isinstance(s, Tensor) else s.values())]
    shapes = {tuple(t.shape[:2]) for t in tensors}
    if len(shapes) != 1 or any(t.ndim < 2 or t.numel() == 0 for t in tensors):
        found = [tuple(t.shape) for t in tensors]
        raise ValueError(f"series must be (chain, draw, *event) of the same chains, got {found}")
    n_chains, n_draws = tensors[0].shape[:2]
    if n_blocks is None and n_chains < FEW_BLOCKS:
        tau = _longest(tensors) if tau is None else tau
        if not tau > 0:
            raise ValueError(f"tau must be positive, got {tau}")
    edges = block_edges(n_chains, n_draws, n_blocks, 0.5 if tau is None else tau)
    flat = [t.detach().reshape(n_chains * n_draws, *t.shape[2:]) for t in tensors]
    parts = [torch.stack([t[a:b].double().sum(0) for a, b in pairwise(edges)]) for t in flat]
    sizes = torch.tensor(edges, dtype=torch.float64, device=tensors[0].device).diff()

    def rebuild(means: list[Tensor]) -> list[Any]:
        left = iter(means)
        return [next(left) if keys is None else {key: next(left) for key in keys} for keys in names]

    return [part.sum(0) for part in parts], parts, sizes, rebuild


def _longest(tensors: list[Tensor]) -> float:
    """The longest τ_int of any coordinate: ½ where none is known, a whole chain where none is found."""
    coordinates = (c for t in tensors for c in t.reshape(*t.shape[:2], -1).unbind(2))
    known = [t for t in map(integrated_time, coordinates) if not math.isnan(t.tau)]
    whole = float(tensors[0].shape[1])
    return max((whole if math.isnan(t.error) else t.tau for t in known), default=0.5)


def _values(found: Any) -> tuple[list[Tensor], list[str] | None]:
    """What f returned, as float64 tensors and the names of a mapping."""
    if isinstance(found, Mapping):
        return [torch.as_tensor(v, dtype=torch.float64) for v in found.values()], list(found)
    return [torch.as_tensor(found, dtype=torch.float64)], None


def _shaped(values: list[Tensor], keys: list[str] | None) -> Any:
    return values[0] if keys is None else dict(zip(keys, values, strict=True))
