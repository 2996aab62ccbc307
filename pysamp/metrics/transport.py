"""Wasserstein-2 distances of samples: exact, entropic and sliced.

    W2(x, y)^2 = min over plans P with marginals a, b of sum_ij P_ij |x_i - y_j|^2

Exact: linear assignment, or a linear programme solved on a growing set of arcs (column generation).
Entropic: Sinkhorn's iteration (Cuturi 2013, arXiv 1306.0895) in the log domain with successive
over-relaxation (Thibault, Chizat, Dossal and Papadakis 2021, arXiv 1711.01851); the divergence that
vanishes for x = y is that of Feydy et al. (2019, arXiv 1810.08278). Sliced: Bonneel et al. (2015),
doi 10.1007/s10851-014-0506-3.

Samples are (n, *event) with weights exp(log_weight) normalised to a probability, equal if None. All
results are distances, not squares, in float64 on the device of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pysamp.metrics.arrays import (
    mean_over_directions,
    pair,
    probabilities,
    row_blocks,
    squared_distances,
)

_ROUNDS = 200  # of arcs added to the linear programme
_NEAREST, _ADDED = 12, 6  # arcs of a point: at the start, and added in a round
_GAP = 3e-7  # reduced costs as negative as this, in units of the largest cost, count as zero
_KEEP = 1 << 25  # distances kept over the steps of Sinkhorn's iteration: 256 MiB, twice
_STEPS = 20  # at most, of Sinkhorn's iteration at an epsilon on the way
_RELAX = 1.9  # over-relaxation, which turns thousands of steps into hundreds


def wasserstein2(
    x: Tensor, y: Tensor, *, log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None
) -> Tensor:
    """The exact distance of two weighted samples.

    Equal weights: linear assignment, for sizes that have a small common multiple with every point
    repeated as often as its mass asks. One dimension: quantiles. Otherwise a linear programme over
    the arcs that can carry mass: duals of the programme on some arcs price all n m of them, and
    arcs of negative reduced cost are added until there are none, which proves the optimum.

    Shapes: x (n, *event), y (m, *event) -> ().
    Cost: about n^3 at worst on one core, and 8 n m bytes for the assignment (2 GiB at n = 16384).
    Raises: ValueError for bad samples or weights; RuntimeError if the programme is not solved.
    """
    x, y = pair(x, y)
    x, a = _with_mass(x, probabilities("log_weight_x", log_weight_x, x))
    y, b = _with_mass(y, probabilities("log_weight_y", log_weight_y, y))
    if x.shape[1] == 1:
        return _quantile_cost(x.T, a, y.T, b)[0].sqrt()
    size = math.lcm(len(x), len(y))
    equal = bool((a == a[0]).all() and (b == b[0]).all())
    if equal and size <= 2 * max(len(x), len(y)):
        return _assignment(
            x.repeat_interleave(size // len(x), 0), y.repeat_interleave(size // len(y), 0)
        )
    return _linear_programme(x, a, y, b)


def sinkhorn2(
    x: Tensor, y: Tensor, epsilon: float = 0.05, *,
    log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None,
    debiased: bool = False, tolerance: float = 1e-3, max_steps: int = 10_000,
) -> Tensor:  # fmt: skip
    """Entropic distance: sqrt(sum P |x_i - y_j|^2) of the plan P that minimises

        sum_ij P_ij |x_i - y_j|^2 + epsilon KL(P | a b^T),

    without the entropy, and never below `wasserstein2` but for the tolerance. `debiased`: the square
    root of the Sinkhorn divergence OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 instead, OT the minimum
    above with its entropy; it vanishes for x = y.

    epsilon has the units of a squared distance; it is approached by halving it from the largest cost.
    Done when the marginals of the plan are right to `tolerance` in total variation.

    Shapes: x (n, *event), y (m, *event) -> ().
    Cost: n m exponentials a step, hundreds to thousands of steps for epsilon far below the distances
    of modes of unequal weight; memory is bounded, and distances are kept up to 2^25 pairs.
    Raises: ValueError for bad arguments; RuntimeError if `max_steps` did not suffice.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), got {tolerance}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    x, y = pair(x, y)
    x, a = _with_mass(x, probabilities("log_weight_x", log_weight_x, x))
    y, b = _with_mass(y, probabilities("log_weight_y", log_weight_y, y))
    if not debiased:
        return _entropic(x, a, y, b, epsilon, tolerance, max_steps)[0].sqrt()
    both = _entropic(x, a, y, b, epsilon, tolerance, max_steps)[1]
    alone = [_self_entropic(z, w, epsilon, tolerance, max_steps) for z, w in ((x, a), (y, b))]
    return (both - 0.5 * (alone[0] + alone[1])).clamp(min=0.0).sqrt()


def sliced_wasserstein2(
    x: Tensor, y: Tensor, n_directions: int = 128, seed: int = 0, *,
    log_weight_x: Tensor | None = None, log_weight_y: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """sqrt of the mean over random directions u of W2(u . x, u . y)^2, exact on every direction.

    The directions are a function of the seed and uniform on the sphere; in d dimensions the value is
    about W2 / sqrt(d) for a shift.

    Shapes: x (n, *event), y (m, *event) -> ().
    """
    return mean_over_directions(
        _quantile_cost, x, y, n_directions, seed, log_weight_x, log_weight_y
    ).sqrt()


def _with_mass(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Without the points of weight zero."""
    kept = weight > 0
    return x[kept], weight[kept]


def _quantile_cost(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """W2^2 of samples on the line, the integral of (Q_x(u) - Q_y(u))^2 over u.

    Shapes: (k, n), (n,), (k, m), (m,) -> (k,).
    """
    (x, order_x), (y, order_y) = x.sort(1), y.sort(1)
    if x.shape == y.shape and bool((a == a[0]).all() and (b == b[0]).all()):
        return (x - y).square().mean(1)
    at_x, at_y, width = _pieces(a[order_x], b[order_y])
    return (width * (x.gather(1, at_x) - y.gather(1, at_y)).square()).sum(1)


def _pieces(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plan that moves mass in order: piece p takes `width` from at_x[p] to at_y[p].

    Shapes: masses (k, n), (k, m), each row of sum 1 -> three (k, n + m), indices and widths.
    """
    level_x, level_y = a.cumsum(1), b.cumsum(1)
    level_x[:, -1] = level_y[:, -1] = 1.0  # to the last piece, whatever the rounding of the sums
    levels = torch.cat([level_x, level_y], 1).sort(1).values
    width = levels.diff(dim=1, prepend=levels.new_zeros(len(levels), 1))
    middle = levels - 0.5 * width
    at_x = torch.searchsorted(level_x, middle).clamp(max=a.shape[1] - 1)
    at_y = torch.searchsorted(level_y, middle).clamp(max=b.shape[1] - 1)
    return at_x, at_y, width


def _assignment(x: Tensor, y: Tensor) -> Tensor:
    from scipy.optimize import linear_sum_assignment  # slow to import

    cost = np.empty((len(x), len(y)))
    for rows in row_blocks(len(x), len(y)):
        cost[rows] = squared_distances(x[rows], y).cpu().numpy()
    matched = cost[linear_sum_assignment(cost)]
    return torch.tensor(math.sqrt(matched.mean()), dtype=torch.float64, device=x.device)


# ---- a linear programme for unequal masses -------------------------------------------------------


def _linear_programme(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    n, m = len(x), len(y)
    arcs = torch.unique(torch.cat([_feasible_arcs(x, a, y, b), _nearest_arcs(x, y)]))  # i m + j
    for _ in range(_ROUNDS):
        i, j = arcs // m, arcs % m
        cost = (x[i] - y[j]).square().sum(1)
        value, u, v = _solve_on_arcs(i, j, cost, a, b)
        below = -_GAP * float(cost.max())
        wider = torch.unique(torch.cat([arcs, _lowest_arcs(x, u, y, v, _ADDED, below)]))
        # Nothing new: what is negative is so by the tolerance of the solver.
        if len(wider) == len(arcs):
            return value.clamp(min=0.0).sqrt()
        arcs = wider
    raise RuntimeError(
        f"the transport of {n} onto {m} points was not solved in {_ROUNDS} rounds; use sinkhorn2"
    )


def _solve_on_arcs(
    i: Tensor, j: Tensor, cost: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Least cost and duals u (n,), v (m,) of the transport over arcs i -> j."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    n, m, n_arcs = len(a), len(b), len(i)
    scale = max(n, m)  # masses of order one: tolerances of the solver are absolute
    row = torch.cat([i, n + j]).cpu().numpy()
    column = np.tile(np.arange(n_arcs), 2)
    # The last mass follows from the others; left in, rounding could make it contradict them.
    kept = row < n + m - 1
    matrix = coo_array(
        (np.ones(int(kept.sum())), (row[kept], column[kept])), shape=(n + m - 1, n_arcs)
    )
    mass = scale * torch.cat([a, b])[:-1].cpu().numpy()
    unit = float(cost.max()) or 1.0
    found = linprog(cost.cpu().numpy() / unit, A_eq=matrix.tocsr(), b_eq=mass, method="highs-ipm")
    if found.status != 0:
        raise RuntimeError(f"the transport of {n} onto {m} points failed: {found.message}")
    dual = torch.from_numpy(np.append(found.eqlin.marginals, 0.0) * unit).to(cost.device)
    value = torch.tensor(found.fun * unit / scale, dtype=torch.float64, device=cost.device)
    return value, dual[:n], dual[n:]


def _feasible_arcs(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """Arcs of the plan that is optimal along the axis of the largest variance: it always exists."""
    axis = int(torch.cat([x, y]).var(0).argmax())
    order_x, order_y = x[:, axis].argsort(), y[:, axis].argsort()
    at_x, at_y, _ = _pieces(a[order_x][None], b[order_y][None])
    return order_x[at_x[0]] * len(y) + order_y[at_y[0]]


def _nearest_arcs(x: Tensor, y: Tensor) -> Tensor:
    return _lowest_arcs(x, x.new_zeros(len(x)), y, y.new_zeros(len(y)), _NEAREST, math.inf)


def _lowest_arcs(x: Tensor, u: Tensor, y: Tensor, v: Tensor, k: int, below: float) -> Tensor:
    """i m + j of the k lowest |x_i - y_j|^2 - u_i - v_j of every i and of every j, if < `below`."""
    m, arcs = len(y), []
    for rows in row_blocks(len(x), m):
        reduced = squared_distances(x[rows], y) - u[rows, None] - v
        low = reduced.topk(min(k, m), largest=False)
        i = torch.arange(rows.start, rows.stop, device=x.device)[:, None]
        arcs.append((i * m + low.indices)[low.values < below])
    for rows in row_blocks(m, len(x)):
        reduced = squared_distances(y[rows], x) - v[rows, None] - u
        low = reduced.topk(min(k, len(x)), largest=False)
        j = torch.arange(rows.start, rows.stop, device=x.device)[:, None]
        arcs.append((low.indices * m + j)[low.values < below])
    return torch.cat(arcs)


# ---- entropic transport --------------------------------------------------------------------------


class _Costs:
    """|x_i - y_j|^2 in blocks of rows, kept if they are few."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._x, self._y = x, y
        self._rows = list(row_blocks(len(x), len(y)))
        self._kept = (
            [squared_distances(x[rows], y) for rows in self._rows]
            if (len(x) * len(y) <= _KEEP)
            else None
        )

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for number, rows in enumerate(self._rows):
            kept = self._kept
            yield rows, squared_distances(self._x[rows], self._y) if kept is None else kept[number]

    def largest(self) -> float:
        return max(float(cost.max()) for _, cost in self)

    def soft_minimum(self, potential: Tensor, log_mass: Tensor, epsilon: float) -> Tensor:
        """-epsilon log sum_j mass_j exp((potential_j - cost_ij) / epsilon), (n,)."""
        shift = potential / epsilon + log_mass
        parts = [torch.logsumexp(shift - cost / epsilon, 1) for _, cost in self]
        return -epsilon * torch.cat(parts)

    def expected(
        self, f: Tensor, log_a: Tensor, g: Tensor, log_b: Tensor, epsilon: float
    ) -> Tensor:
        """sum_ij P_ij cost_ij of the plan of the potentials."""
        total = f.new_zeros(())
        for rows, cost in self:
            log_plan = (f[rows, None] + g - cost) / epsilon + log_a[rows, None] + log_b
            total += (log_plan.exp() * cost).sum()
        return total


def _entropic(
    x: Tensor, a: Tensor, y: Tensor, b: Tensor, epsilon: float, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor]:
    """Cost of the plan, and the minimum with its entropy: the dual value <a, f> + <b, g>."""
    along, across = _Costs(x, y), _Costs(y, x)
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    largest = along.largest()
    scale = max(largest, epsilon)
    at_scale = 0  # steps made with this epsilon
    violation = math.inf
    for _ in range(max_steps):
        # The first step with a new epsilon is a plain one: what was extrapolated was another problem.
        relax = _RELAX if at_scale else 1.0
        f = f + relax * (along.soft_minimum(g, log_b, scale) - f)
        new = across.soft_minimum(f, log_a, scale)
        # With f fixed the column sums of the plan are b exp((g - new) / scale).
        violation = 0.5 * float((b * torch.expm1((g - new) / scale)).abs().sum())
        g = g + relax * (new - g)
        at_scale += 1
        if violation < tolerance or (scale > epsilon and at_scale >= _STEPS):
            if scale > epsilon:
                scale, at_scale = max(0.5 * scale, epsilon), 0
                continue
            f = along.soft_minimum(
                g, log_b, epsilon
            )  # rows exact; columns are known to `tolerance`
            new = across.soft_minimum(f, log_a, epsilon)
            violation = 0.5 * float((b * torch.expm1((g - new) / epsilon)).abs().sum())
            if violation < tolerance:
                value = along.expected(f, log_a, g, log_b, epsilon)
                return value, (a * f).sum() + (b * g).sum()
    raise _not_converged(max_steps, violation, tolerance, scale, epsilon, largest)


def _self_entropic(
    x: Tensor, a: Tensor, epsilon: float, tolerance: float, max_steps: int
) -> Tensor:
    """The minimum with its entropy for x onto itself, by averaged steps of the one potential.

    Alternating steps would pass mass between distant points for ever; the average of a step and of
    where it started has the right potential of an isolated point at once (Feydy et al. 2019).
    """
    costs, log_a, f = _Costs(x, x), a.log(), torch.zeros_like(a)
    violation = math.inf
    for _ in range(max_steps):
        new = costs.soft_minimum(f, log_a, epsilon)
        violation = 0.5 * float((a * torch.expm1((f - new) / epsilon)).abs().sum())
        f = 0.5 * (f + new)
        if violation < tolerance:
            return 2 * (a * f).sum()
    raise _not_converged(max_steps, violation, tolerance, epsilon, epsilon, costs.largest())


def _not_converged(
    steps: int, violation: float, tolerance: float, scale: float, epsilon: float, largest: float
) -> RuntimeError:
    return RuntimeError(
        f"Sinkhorn's iteration has not converged: after {steps} steps the marginals are off by "
        f"{violation:.2g} (tolerance {tolerance:g}) at epsilon {scale:.3g} on the way to {epsilon:g}, "
        f"with costs up to {largest:.3g}; raise max_steps or epsilon"
    )
