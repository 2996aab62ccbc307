"""Coupling layers with a monotone rational-quadratic spline in each coordinate, on the line or the circle.

With knots (x_k, y_k), derivatives δ_k, slopes s = (y_{k+1} − y_k)/(x_{k+1} − x_k) of the bins, and
ξ = (x − x_k)/(x_{k+1} − x_k), between the knots of [−B, B]

    f(x) = y_k + (y_{k+1} − y_k) [s ξ² + δ_k ξ(1−ξ)] / D,        D = s + (δ_{k+1} + δ_k − 2s) ξ(1−ξ)
    f′(x) = s² [δ_{k+1} ξ² + 2s ξ(1−ξ) + δ_k (1−ξ)²] / D²

(Durkan, Bekasov, Murray, Papamakarios 2019, arXiv 1906.04032, eqs. (4), (5)). On the line f is the identity
outside, with derivative 1 at ±B. On the circle B = π and both ends have the same derivative (Rezende et al.
2020, arXiv 2002.02428). f leaves the ends where they are, so each layer may have other ends:
x → f(x + c) − c modulo 2π with a fixed random c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pysamp import rng
from pysamp.nets.bases import Base, Torus, check_coordinates, check_dim
from pysamp.nets.coupling import SHIFTS, Split, random_masks
from pysamp.nets.flow import Compose
from pysamp.nets.mlp import MLP

LEAST = 1e-3  # of a width and height, as a fraction of 2B, and of a derivative (the paper's code has it)
# softplus(ONE) + LEAST = 1: a network that returns 0 makes the identity.
ONE = math.log(math.expm1(1 - LEAST))
INIT = 1e-2  # scale of the last layer: log-derivatives of this order at first


class SplineCoupling(nn.Module):
    """A spline with linear tails in each of the coordinates `moved` of `dim`, chosen by the others.

    n_bins: K. bound: B. The network has rectified units, see `MLP`, and reads the others clipped to
    [−B, B]; it starts near the identity, by init_scale. Raises ValueError for arguments.
    """

    def __init__(
        self, dim: int, moved: Sequence[int], hidden: int = 64, depth: int = 3, *,
        n_bins: int = 8, bound: float = 5.0, init_scale: float = INIT, seed: int = 0,
        index: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.split = Split(dim, moved)
        self.splines = _Splines(len(self.split.moved), (), n_bins, bound)
        self.net = MLP(
            len(self.split.kept), hidden, depth, self.splines.n_numbers, init_scale,
            hidden_scale=math.sqrt(2), seed=seed, index=index,
        )  # fmt: skip

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, inverse=False)

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        u, v = self.split(x)
        v, log_det = self.splines(v, self.net(self.splines.clip(u)), inverse)
        return self.split.merge(x, v), log_det


class CircularSplineCoupling(nn.Module):
    """As `SplineCoupling`, where the coordinates `circular` (None: all) are angles of period 2π.

    An angle that moves has a spline of the circle and ends in [−π, π]; one that is kept enters the network
    by its cosine and sine. So the density has no seam. shift: each angle has its own fixed random c.
    """

    shift: Tensor  # c of what moves, 0 where it is no angle
    angles: Tensor  # int64, which of what is kept are angles
    lengths: Tensor  # int64, the others

    def __init__(
        self, dim: int, moved: Sequence[int], hidden: int = 64, depth: int = 3, *,
        circular: Sequence[int] | None = None, n_bins: int = 8, bound: float = 5.0,
        shift: bool = True, init_scale: float = INIT, seed: int = 0, index: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.split = Split(dim, moved)
        angles = set(
            range(dim) if circular is None else check_coordinates(circular, dim, "circular")
        )
        kept, moves = self.split.kept.tolist(), self.split.moved.tolist()
        turning = [k for k, i in enumerate(moves) if i in angles]
        self.splines = _Splines(len(moves), turning, n_bins, bound)
        self.register_buffer(
            "angles", torch.tensor([k for k, i in enumerate(kept) if i in angles]).long()
        )
        self.register_buffer(
            "lengths", torch.tensor([k for k, i in enumerate(kept) if i not in angles]).long()
        )
        self.net = MLP(
            2 * len(self.angles) + len(self.lengths), hidden, depth, self.splines.n_numbers,
            init_scale, hidden_scale=math.sqrt(2), seed=seed, index=index,
        )  # fmt: skip
        c = torch.zeros(len(moves))
        if shift:
            uniform = rng.uniform(
                (1, len(moves)), seed=seed, stream="start", step=index, substep=SHIFTS
            )[0]
            c[turning] = ((2 * uniform - 1) * math.pi)[turning]
        self.register_buffer("shift", c)

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, inverse=False)

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        u, v = self.split(x)
        angle = u[:, self.angles]
        lengths = self.splines.clip(u[:, self.lengths])
        seen = torch.cat((lengths, angle.cos(), angle.sin()), 1)
        v, log_det = self.splines(v + self.shift, self.net(seen), inverse)
        return self.split.merge(x, self.splines.wrap(v - self.shift)), log_det


class _Splines(nn.Module):
    """Splines in `dim` coordinates, of which `turning` are angles, from n_numbers raw numbers each point.

    The raw numbers are K widths and K heights a coordinate, then the derivatives at inner knots, and for
    an angle at its ends.
    """

    turns: Tensor  # (dim,) bool
    which: Tensor  # (dim, K + 1): which of the raw derivatives a knot has; the last one is ONE

    def __init__(self, dim: int, turning: Sequence[int], n_bins: int, bound: float) -> None:
        super().__init__()
        self.n_bins = check_dim(n_bins, "n_bins", least=2)
        if n_bins * LEAST >= 1:
            raise ValueError(f"n_bins must be less than {1 / LEAST:.0f}, got {n_bins}")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}")
        turns = torch.zeros(dim, dtype=torch.bool)
        turns[list(turning)] = True
        rows, n_derivatives = [], 0
        for turn in turns.tolist():
            inner = list(range(n_derivatives, n_derivatives + n_bins - 1))
            n_derivatives += n_bins - 1
            end = n_derivatives if turn else -1
            n_derivatives += int(turn)
            rows.append([end, *inner, end])
        self.n_numbers = 2 * n_bins * dim + n_derivatives
        which = torch.tensor(rows)
        self.register_buffer("which", torch.where(which < 0, n_derivatives, which))
        self.register_buffer("turns", turns)
        self.bound = float(bound)

    def forward(self, v: Tensor, raw: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """v (n, dim), raw (n, n_numbers) -> (n, dim), ln|det| (n,)"""
        n, dim = v.shape
        bins = raw[:, : 2 * self.n_bins * dim].reshape(n, 2, dim, self.n_bins)
        sizes = LEAST + (1 - LEAST * self.n_bins) * bins.softmax(-1)
        ends = raw.new_zeros(n, 1)
        table = torch.cat((raw[:, 2 * self.n_bins * dim :], ends), 1) + ONE
        slopes = LEAST + functional.softplus(table)[:, self.which]  # (n, dim, K + 1)
        v = self.wrap(v)
        bound = torch.where(self.turns, v.new_full((), math.pi), v.new_full((), self.bound))
        inside = v.abs() <= bound
        y, log_slope = rational_quadratic(
            v.clamp(-bound, bound), sizes[:, 0], sizes[:, 1], slopes, bound, inverse
        )
        return torch.where(inside, y, v), torch.where(inside, log_slope, 0.0).sum(1)

    def clip(self, u: Tensor) -> Tensor:
        """u to [−B, B]. A network that extrapolates makes splines too steep for single precision."""
        return u.clamp(-self.bound, self.bound)

    def wrap(self, v: Tensor) -> Tensor:
        """Angles to [−π, π]; the others stay."""
        wrapped = torch.remainder(v + math.pi, 2 * math.pi) - math.pi
        return torch.where(self.turns & (v.abs() > math.pi), wrapped, v)


def rational_quadratic(
    v: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """f(v), or the root of f(·) = v, and the log of its derivative, elementwise.

    v: (…) in [−bound, bound]; widths, heights: (…, K), positive with sum 1; slopes: (…, K + 1), positive.
    """
    x_knots, y_knots = (_knots(sizes, bound) for sizes in (widths, heights))
    knots = y_knots if inverse else x_knots
    k = (v[..., None] >= knots[..., 1:-1]).sum(-1, keepdim=True)  # bin of v
    x0, x1 = (x_knots.gather(-1, k + i).squeeze(-1) for i in (0, 1))
    y0, y1 = (y_knots.gather(-1, k + i).squeeze(-1) for i in (0, 1))
    d0, d1 = (slopes.gather(-1, k + i).squeeze(-1) for i in (0, 1))
    s = (y1 - y0) / (x1 - x0)
    bend = d0 + d1 - 2 * s
    if inverse:
        # a ξ² + b ξ + c = 0; of the two forms of the root the one without cancellation. Only for b > 0
        # is it that of the paper, eq. (29); a > 0 where b < 0.
        a = (y1 - y0) * (s - d0) + (v - y0) * bend
        b = (y1 - y0) * d0 - (v - y0) * bend
        c = -s * (v - y0)
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        xi = torch.where(b > 0, 2 * c, root - b) / torch.where(b > 0, -b - root, 2 * a)
    else:
        xi = (v - x0) / (x1 - x0)
    rest = xi * (1 - xi)
    denominator = s + bend * rest
    numerator = d1 * xi.square() + 2 * s * rest + d0 * (1 - xi).square()
    log_slope = 2 * s.log() + numerator.log() - 2 * denominator.log()
    if inverse:
        return x0 + xi * (x1 - x0), -log_slope
    return y0 + (y1 - y0) * (s * xi.square() + d0 * rest) / denominator, log_slope


def _knots(sizes: Tensor, bound: Tensor) -> Tensor:
    """−B, …, B from sizes (…, K) that sum to 1; both ends exact."""
    inner = sizes[..., :-1].cumsum(-1)
    fractions = functional.pad(functional.pad(inner, (1, 0)), (0, 1), value=1.0)
    return bound[..., None] * (2 * fractions - 1)


class SplineFlow(Compose):
    """n_layers spline couplings; each pair moves a random half of the coordinates, then the other half."""

    def __init__(
        self, event_shape: int | Sequence[int], n_layers: int = 8, hidden: int = 64, depth: int = 3,
        n_bins: int = 8, bound: float = 5.0, base: Base | None = None, *, init_scale: float = INIT,
        seed: int = 0,
    ) -> None:  # fmt: skip
        dim = _dim(event_shape)
        masks = random_masks(dim, check_dim(n_layers, "n_layers", least=2), seed)
        layers = [
            SplineCoupling(
                dim, moved, hidden, depth, n_bins=n_bins, bound=bound, init_scale=init_scale,
                seed=seed, index=i,
            )
            for i, moved in enumerate(masks)
        ]  # fmt: skip
        super().__init__(*layers, event_shape=event_shape, base=base)


class CircularSplineFlow(Compose):
    """As `SplineFlow`, where the flat coordinates `circular` (None: all) are angles.

    base: uniform on the torus by default; a `Product` where some coordinates are no angles, which must be
    given then.
    """

    def __init__(
        self, event_shape: int | Sequence[int], n_layers: int = 8, hidden: int = 64, depth: int = 3,
        n_bins: int = 8, bound: float = 5.0, base: Base | None = None, *,
        circular: Sequence[int] | None = None, shift: bool = True, init_scale: float = INIT,
        seed: int = 0,
    ) -> None:  # fmt: skip
        dim = _dim(event_shape)
        angles = (
            tuple(range(dim)) if circular is None else check_coordinates(circular, dim, "circular")
        )
        masks = random_masks(dim, check_dim(n_layers, "n_layers", least=2), seed)
        layers = [
            CircularSplineCoupling(
                dim, moved, hidden, depth, circular=angles, n_bins=n_bins, bound=bound, shift=shift,
                init_scale=init_scale, seed=seed, index=i,
            )
            for i, moved in enumerate(masks)
        ]  # fmt: skip
        if base is None:
            if len(angles) < dim:
                raise ValueError(
                    f"base must be given where only {len(angles)} of {dim} coordinates are angles"
                )
            base = Torus(dim)
        super().__init__(*layers, event_shape=event_shape, base=base, circular=angles)


def _dim(event_shape: int | Sequence[int]) -> int:
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    dim = math.prod(check_dim(size, "event_shape") for size in shape)
    if dim < 2:
        raise ValueError(f"event_shape must hold at least 2 coordinates, got {event_shape}")
    return dim
