"""The torch definition of every native energy: oracle of its tests, fallback, fake kernel, gradient.

Each function gives log p (n,) and its gradient (n, d) of the C++ functor of the same name. Energies of
+ − × ÷ and sum32 state their operations in the same order, one rounding each, and both give the same
bits; those with exponentials and logarithms take the ones of torch and agree to rounding. The
parameters are flat, as the header of the functor says; `table` is empty but for lattices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pysamp.reference import dot, neighbour_sum, sqrt_rn, sum32

Energy = tuple[Tensor, Tensor]  # log p (n,), score (n, d)

# --- φ⁴ and spins (csrc/phi4.h, csrc/spins.h) ------------------------------------------------------


def _field(x: Tensor, table: Tensor, layout: list[int]) -> tuple[Tensor, Tensor]:
    """The field as (n, n_sites, components), and its sum over neighbours."""
    n_sites, z, periodic, m = layout
    field = x.reshape(len(x), n_sites, m)
    if table.numel():
        return field, neighbour_sum(field, table.reshape(n_sites, z).long())
    wrapped = (
        torch.nn.functional.pad(field, (0, 0, 1, 1))
        if not periodic
        else torch.cat((field[:, -1:], field, field[:, :1]), dim=1)
    )
    return field, wrapped[:, :-2] + wrapped[:, 2:]


def phi4(x: Tensor, params: Tensor, table: Tensor, layout: list[int]) -> Energy:
    """log p and its gradient of csrc/phi4.h; x: (n, n_sites · m), layout: (n_sites, z, periodic, m)."""
    field, around = _field(x, table, layout)
    j, v1, v2, v4, shift = params.unbind()
    q = dot(field, field)
    w = q - shift
    z = float(layout[1])
    square, linear = (j * 0.5) * z + v2, (j * z + v2 * 2.0) - (v4 * 4.0) * shift
    site = dot(field, v1 - around * (j * 0.5)) + (q * square + w * w * v4)
    score = (around * j - v1) - field * (q * (v4 * 4.0) + linear)[..., None]
    return -sum32(site), score.reshape(x.shape)


def spins(x: Tensor, params: Tensor, table: Tensor, layout: list[int]) -> Energy:
    """log p and its gradient in all of R^{n_sites · m} of csrc/spins.h; layout as of `phi4`."""
    field, around = _field(x, table, layout)
    (j,) = params.unbind()
    return sum32(dot(field, around) * (j * 0.5)), (around * j).reshape(x.shape)


# --- Mixtures (csrc/mixture.h) ---------------------------------------------------------------------


def mixture(x: Tensor, params: Tensor, table: Tensor, layout: list[int]) -> Energy:
    """log p and its gradient of a diagonal Gaussian mixture; x: (n, d), layout: (K, d)."""
    k, d = layout
    w, mean, precision = params.split([k, k * d, k * d])
    mean, precision = mean.reshape(k, d), precision.reshape(k, d)
    gap = x[:, None, :] - mean  # (n, K, d)
    a = w - 0.5 * (gap * gap * precision).sum(-1)  # (n, K)
    log_prob = torch.logsumexp(a, dim=-1)
    responsibility = torch.exp(a - log_prob[:, None])  # (n, K)
    score = -(responsibility[:, :, None] * gap * precision).sum(1)
    return log_prob, score


# --- Rings and the funnel (csrc/toy.h) -------------------------------------------------------------


def rings(x: Tensor, params: Tensor, table: Tensor, layout: list[int]) -> Energy:
    """Rings in the plane; x: (n, 2), layout: (K,)."""
    inverse_width, inverse_variance, constant = params.unbind()
    r = sqrt_rn((x * x).sum(1).clamp_min(1e-24))  # clamped before the root: no 0/0 in autograd
    away = r[:, None] - torch.arange(1, layout[0] + 1, dtype=x.dtype, device=x.device)  # (n, K)
    terms = -0.5 * (away * inverse_width) ** 2
    log_prob = torch.logsumexp(terms, dim=1) - torch.log(r) - constant
    slope = -(torch.softmax(terms, dim=1) * away).sum(1) * inverse_variance - 1 / r  # d log p / dr
    return log_prob, slope[:, None] * (x / r[:, None])


def funnel(x: Tensor, params: Tensor, table: Tensor, layout: list[int]) -> Energy:
    """Neal's funnel; x: (n, d), layout: (d,)."""
    inverse_variance, constant = params.unbind()
    z, rest, half = x[:, 0], x[:, 1:], 0.5 * (layout[0] - 1)
    precision = torch.exp(-z)  # (n,)
    energy = 0.5 * (sum32(rest * rest) * precision)
    log_prob = -(0.5 * inverse_variance * z * z + half * z + energy) - constant
    along = energy - half - z * inverse_variance
    return log_prob, torch.cat([along[:, None], -rest * precision[:, None]], dim=1)


# --- Logistic regression (csrc/logistic.h) ---------------------------------------------------------

BLOCK = 8  # rows of data that a functor takes at once, Logistic::kBlock


def logistic_blocks(rows: Tensor) -> Tensor:
    """Rows ±(x, 1) (N, d) as the functor reads them: [block][i][row of the block], flat, zeros behind."""
    n, d = rows.shape
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -n % BLOCK))
    return padded.reshape(-1, BLOCK, d).mT.reshape(-1)


def logistic(x: Tensor, params: Tensor, table: Tensor, layout: list[int]) -> Energy:
    """Bayesian logistic regression; x: (n, d) weights and bias, layout: (N, d)."""
    n_rows, d = layout
    weight, bias, constant = params[:3].unbind()
    rows = params[3:].reshape(-1, d, BLOCK).mT.reshape(-1, d)[:n_rows]
    t = x @ rows.T  # (n, N)
    precision = torch.cat([weight.expand(d - 1), bias[None]])
    pull = x * precision
    log_prob = torch.nn.functional.logsigmoid(t).sum(1) - 0.5 * (pull * x).sum(1) - constant
    return log_prob, torch.sigmoid(-t) @ rows - pull
