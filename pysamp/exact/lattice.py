"""Phi^4 on a small periodic lattice, in its kappa, lambda form, by transfer matrix.

The transfer matrix acts on rows of the smaller extent; each site is integrated by the Gauss rule of its own
weight, nodes by Golub and Welsch (1969), doi 10.1090/S0025-5718-69-99647-1.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Phi4LatticeExact:
    """Exact expectations of the periodic lattice phi^4 action."""

    log_z: float
    action: float  # E[S], of the whole lattice
    phi_square: float  # E[phi_x^2]
    phi_fourth: float  # E[phi_x^4]
    neighbour: tuple[float, ...]  # E[phi_x phi_{x+mu}], one for each direction mu


@functools.lru_cache(maxsize=64)
def phi4_lattice(shape: tuple[int, ...], kappa: float, lam: float) -> Phi4LatticeExact:
    """Exact expectations under exp(-S) on a periodic lattice,

        S = sum_x [ -2 kappa sum_mu phi_x phi_{x+mu} + phi_x^2 + lam (phi_x^2 - 1)^2 ].

    shape is (L,), a ring, or (L1, L2), a torus with min(L1, L2) at most 3. An extent of 2 joins its
    two sites twice, an extent of 1 joins a site with itself, as the formula says. The transfer
    matrix acts on rows of the smaller extent; each site is integrated by the Gauss rule of its own
    weight, with more nodes until log_z and the action are stable to 1e-9.

    Raises ValueError for a shape out of reach, for an action that is not bounded below, or without
    convergence.
    Cost: an eigendecomposition of n^rows states; seconds for rows of 3.
    """
    if not (1 <= len(shape) <= 2 and all(isinstance(n, int) and n >= 1 for n in shape)):
        raise ValueError(f"shape must be (L,) or (L1, L2) with positive extents, got {shape}")
    if len(shape) == 2 and min(shape) > 3:
        raise ValueError(f"shape must have an extent of at most 3, got {shape}")
    if not math.isfinite(kappa):
        raise ValueError(f"kappa must be finite, got {kappa}")
    if not (math.isfinite(lam) and lam >= 0):
        raise ValueError(f"lam must be non-negative and finite, got {lam}")
    if lam == 0 and 2 * abs(kappa) * len(shape) >= 1:
        raise ValueError(f"kappa must be below 1 / (2 dim) in size when lam = 0, got {kappa}")

    rows = 1 if len(shape) == 1 else min(shape)
    schedule = {1: range(12, 97, 12), 2: range(8, 41, 4), 3: range(6, 15, 2)}[rows]
    previous: Phi4LatticeExact | None = None
    for n_nodes in schedule:
        value = _phi4_lattice_with_nodes(shape, kappa, lam, n_nodes)
        if previous is not None and all(
            abs(new - old) <= 1e-9 * max(1.0, abs(new))
            for new, old in (
                (value.log_z, previous.log_z),
                (value.action, previous.action),
                (value.phi_square, previous.phi_square),
            )
        ):
            return value
        previous = value
    raise ValueError(
        f"phi4_lattice did not converge with {schedule[-1]} nodes a site for {shape=}, {kappa=}, "
        f"{lam=}"
    )


def _phi4_lattice_with_nodes(
    shape: tuple[int, ...], kappa: float, lam: float, n_nodes: int
) -> Phi4LatticeExact:
    strip = len(shape) == 2
    rows, length = (min(shape), max(shape)) if strip else (1, shape[0])
    # Each bond widens a site's density beyond exp(-S) of the site alone, at most by exp(2 |kappa|
    # x^2) a direction; a quarter of that in the weight of the rule, taken out again below, needs
    # the fewest nodes near and off criticality.
    widening = 0.5 * abs(kappa) * len(shape)
    node, log_weight = _gauss_rule(lambda x: (widening - 1) * x**2 - lam * (x**2 - 1) ** 2, n_nodes)
    log_weight = log_weight - widening * node**2
    index = torch.tensor(list(itertools.product(range(n_nodes), repeat=rows)))  # (states, rows)
    row = node[index]  # (states, rows)
    along = (row * row.roll(-1, 1)).mean(1) if strip else torch.zeros(len(row)).double()
    # Symmetric transfer matrix: half of each row's own weight on either side of the bonds between
    # two rows.
    log_half = 0.5 * (log_weight[index].sum(1) + 2 * kappa * rows * along)
    log_transfer = log_half[:, None] + 2 * kappa * (row @ row.T) + log_half
    shift = log_transfer.max()
    eigenvalue, vector = torch.linalg.eigh((log_transfer - shift).exp())
    top = eigenvalue.abs().max()
    ratio = eigenvalue / top
    power = ratio**length
    z = power.sum()
    # Marginal of one row: the diagonal of the transfer matrix to the power L.
    state = (vector**2 @ power) / z  # (states,)

    def mean_of(f: Tensor) -> float:
        return float(state @ f)

    # Tr(X T X T^(L-1)) in the eigenbasis of T, X = phi of one site of the row.
    field = vector.T @ (row[:, :1] * vector)
    across = float((field**2 * ratio[:, None] * ratio ** (length - 1)).sum() / z)
    square, fourth = mean_of(row[:, 0] ** 2), mean_of(row[:, 0] ** 4)
    neighbour: tuple[float, ...] = (across,)
    if strip:
        neighbour = (mean_of(along), across) if shape[0] <= shape[1] else (across, mean_of(along))
    site = -2 * kappa * sum(neighbour) + square + lam * (fourth - 2 * square + 1)
    return Phi4LatticeExact(
        log_z=float(z.log()) + length * float(top.log() + shift),
        action=rows * length * site,
        phi_square=square,
        phi_fourth=fourth,
        neighbour=neighbour,
    )


def _gauss_rule(log_weight: Callable[[Tensor], Tensor], n_nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss nodes and log-weights (n,), (n,) for an even, fast decaying weight on the line.

    Lanczos on a fine trapezoidal rule gives the recurrence of the orthogonal polynomials, whose
    Jacobi matrix has the nodes as eigenvalues (Golub and Welsch 1969).
    """
    x_max = 4.0
    while True:
        x = torch.linspace(-x_max, x_max, 8001, dtype=torch.float64)
        log_w = log_weight(x)
        top = log_w.max()
        if (
            log_w[-1] < top - 400
        ):  # polynomials of twice the largest order cannot raise e^-400 again
            break
        x_max *= 1.5
    w = (log_w - top).exp() * (x[1] - x[0])
    # Exponential convergence: if twice the spacing is good to 1e-7, this one is good to 1e-14.
    coarse, fine = float(2 * w[::2].sum()), float(w.sum())
    if not abs(coarse - fine) <= 1e-7 * fine:
        raise ValueError(f"the site weight is too narrow for a spacing of {2 * x_max / 8000}")
    basis = [w.sqrt() / w.sum().sqrt()]
    diagonal, off = [], []
    for _ in range(n_nodes):
        v = x * basis[-1]
        diagonal.append(v @ basis[-1])
        # Twice over all earlier vectors: plain Lanczos loses orthogonality after a few dozen steps.
        known = torch.stack(basis)
        for _ in range(2):
            v = v - known.T @ (known @ v)
        off.append(v.norm())
        basis.append(v / off[-1])
    off_diagonal = torch.stack(off[:-1])
    jacobi = torch.diag(torch.stack(diagonal)) + off_diagonal.diag(1) + off_diagonal.diag(-1)
    node, vector = torch.linalg.eigh(jacobi)
    return node, (vector[0] ** 2).log() + w.sum().log() + top
