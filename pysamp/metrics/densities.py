"""Distances of densities that are fitted to samples: total variation of kernel estimates, Gaussian KL.

As Grenioux, Durmus, Moulines and Gabrie, On sampling with approximate transport maps (2023, arXiv
2302.04763) judge chains. Bandwidth: Scott, Multivariate density estimation (1992), page 152, with the
smaller of the standard deviation and the interquartile range over 1.349, the convention of KDEpy, which
their code used.

Samples are (n, *event) with weights exp(log_weight) normalised to a probability, equal if None; results are
float64 on the device of x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysamp.metrics.arrays import chains_beside, directions, points, probabilities, row_blocks

_NORMAL_IQR = 1.3489795003921634  # of N(0, 1)
_TINY = 1e-10  # a bandwidth, relative to the range of the data, that is rounding of 0


def sliced_total_variation(
    x: Tensor, exact: Tensor, n_directions: int = 128, n_grid: int = 2048, seed: int = 0, *,
    log_weight_x: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Mean over random directions of the total variation distance of kernel density estimates.

    On each direction both samples get a Gaussian kernel of Scott's bandwidth on `n_grid` equidistant
    points between the extreme values of all draws (of all chains, where published code took those of
    each); the distance is half the integral of |p - q| there. It is 1 where the bandwidth vanishes, as
    it does for a chain that stands on one point for most of its time. Noise alone gives about 0.03 for
    1000 against 10 000 draws: compare with `noise_floor`. With weights the bandwidth is that of the
    weighted deviation, interquartile range and Kish number (published code: Botev et al. 2010).

    Shapes: x (n, *event), or (chain, n, *event) for one value a chain; exact (m, *event); log_weight_x
    (n,), the same for all chains -> () or (chain,).
    Raises: ValueError for bad samples, or exact draws that do not differ.
    """
    if n_grid < 16:
        raise ValueError(f"n_grid must be at least 16, got {n_grid}")
    single = x.ndim == exact.ndim
    flats, target = chains_beside(x, exact)
    weight_x = probabilities("log_weight_x", log_weight_x, flats[0])
    weight_y = probabilities("exact", None, target)
    centre = target.mean(0)
    along = directions(n_directions, target.shape[1], seed, target.device)
    total = target.new_zeros(len(flats))
    for rows in row_blocks(n_directions, 4 * len(target) + 4 * n_grid + len(flats) * len(flats[0])):
        on_exact = along[rows] @ (target - centre).T  # (k, m)
        width_exact = scott(on_exact, weight_y)
        if not bool((width_exact > 0).all()):
            raise ValueError(f"exact must hold draws that differ, got {len(exact)} of one value")
        on_chains = [along[rows] @ (flat - centre).T for flat in flats]  # (k, n) each
        low = torch.stack([t.amin(1) for t in (on_exact, *on_chains)]).amin(0)
        high = torch.stack([t.amax(1) for t in (on_exact, *on_chains)]).amax(0)
        q = _kernel_density(on_exact, weight_y, width_exact, low, high, n_grid)
        for c, on_x in enumerate(on_chains):
            width = scott(on_x, weight_x)
            seen = width > _TINY * (high - low)
            width = torch.where(seen, width, torch.ones_like(width))
            p = _kernel_density(on_x, weight_x, width, low, high, n_grid)
            apart = 0.5 * (high - low) * (p - q).abs().mean(1)
            total[c] += torch.where(seen, apart.clamp(max=1.0), torch.ones_like(apart)).sum()
    mean = total / n_directions
    return mean[0] if single else mean


def scott(x: Tensor, weight: Tensor) -> Tensor:
    """Scott's bandwidth min(sd, IQR / 1.349) n^(-1/5) of points on lines; n is Kish's for weights.

    Shapes: x (k, n), weight (n,) of sum 1 -> (k,). Equal weights: the unbiased variance, and quantiles
    that interpolate linearly between order statistics.
    """
    n_effective = 1 / weight.square().sum()
    centred = x - (x @ weight)[:, None]
    variance = centred.square() @ weight / (1 - weight.square().sum()).clamp_min(1e-300)
    ordered, order = x.sort(1)
    if bool((weight == weight[0]).all()):
        place = torch.tensor([0.25, 0.75], dtype=x.dtype, device=x.device) * (x.shape[1] - 1)
        left = place.floor().long()
        right = (left + 1).clamp(max=x.shape[1] - 1)
        quartile = torch.lerp(ordered[:, left], ordered[:, right], place - left)  # (k, 2)
    else:
        below = weight[order].cumsum(1)  # (k, n)
        levels = below.new_tensor([0.25, 0.75]).expand(len(x), 2).contiguous()
        place = torch.searchsorted(below, levels).clamp(max=x.shape[1] - 1)
        quartile = ordered.gather(1, place)
    spread = (quartile[:, 1] - quartile[:, 0]) / _NORMAL_IQR
    return torch.minimum(variance.sqrt(), spread) * n_effective**-0.2


def _kernel_density(
    x: Tensor, weight: Tensor, width: Tensor, low: Tensor, high: Tensor, n_grid: int
) -> Tensor:
    """Gaussian kernel density on n_grid points of [low, high]: (k, n), (n,), (k,) ... -> (k, n_grid).

    Each point is shared between its two neighbours on the grid, then the kernel is applied in Fourier
    space, where it is normalised on any grid. Twice the length keeps the ends from meeting.
    """
    step = (high - low)[:, None] / (n_grid - 1)
    place = (x - low[:, None]) / step
    left = place.floor().clamp(0, n_grid - 2)
    share = place - left
    index = left.long()
    mass = x.new_zeros(len(x), 2 * n_grid)
    mass.scatter_add_(1, index, (1 - share) * weight)
    mass.scatter_add_(1, index + 1, share * weight)
    frequency = torch.fft.rfftfreq(2 * n_grid, device=x.device).to(x.dtype) * (2 * math.pi)
    kernel = (-0.5 * (frequency * width[:, None] / step) ** 2).exp()
    smooth = torch.fft.irfft(torch.fft.rfft(mass) * kernel, n=2 * n_grid)
    return smooth[:, :n_grid] / step


def gaussian_kl(
    x: Tensor, mean: Tensor, covariance: Tensor, *, log_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """KL(exact | fitted) and KL(fitted | exact), fitted being the Gaussian of the moments of x.

    The exact one has `mean` (d,) and `covariance` (d, d) of the flattened event. Fewer than d + 1 different
    points have no density: inf, inf.

    Shapes: x (n, *event), log_weight (n,) -> (), ().
    Raises: ValueError for bad samples, other shapes, a covariance that is not positive definite.
    """
    flat = points("x", x)
    d = flat.shape[1]
    mean, covariance = (t.detach().to(x.device, torch.float64) for t in (mean, covariance))
    if mean.numel() != d or covariance.shape != (d, d):
        raise ValueError(
            f"mean and covariance must be ({d},) and ({d}, {d}), got {tuple(mean.shape)} and "
            f"{tuple(covariance.shape)}"
        )
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        raise ValueError(f"covariance must be positive definite, fails at row {int(failed)}")
    weight = probabilities("log_weight", log_weight, x)
    found = weight @ flat
    centred = flat - found
    own = centred.T @ (weight[:, None] * centred) / (1 - weight.square().sum()).clamp_min(1e-300)
    own_factor, failed = torch.linalg.cholesky_ex(own)
    scale = own.diagonal().sqrt()
    # A singular matrix may pass by rounding; its pivots are then of the size of the rounding.
    if int(failed) or not bool((own_factor.diagonal() > 1e-7 * scale).all()):
        infinite = flat.new_full((), math.inf)
        return infinite, infinite
    offset = found - mean.reshape(-1)
    return _kl(factor, own_factor, offset), _kl(own_factor, factor, offset)


def _kl(first: Tensor, second: Tensor, offset: Tensor) -> Tensor:
    """KL(N(0, A A^T) | N(offset, B B^T)) of lower factors A, B."""
    d = len(first)
    between = torch.linalg.solve_triangular(second, first, upper=False)
    shift = torch.linalg.solve_triangular(second, offset[:, None], upper=False)
    logs = second.diagonal().log().sum() - first.diagonal().log().sum()
    return 0.5 * (between.square().sum() + shift.square().sum() - d) + logs
