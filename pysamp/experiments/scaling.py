"""What experiments of finite-size scaling share: curves of all sizes, and powers of L fitted to them.

Scaling of Fisher and Barber, Phys. Rev. Lett. 28, 1516 (1972): at criticality a quantity is a power of L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp.experiments.base import Chains, Progress, measure
from pysamp.mcmc.base import Kernel


@dataclass(frozen=True, eq=False)
class Curves:
    """Means of all quantities at all sizes and couplings, (sizes, k) float64 each."""

    sizes: tuple[int, ...]
    at: Tensor  # (k,) couplings
    mean: dict[str, Tensor]
    error: dict[str, Tensor]

    def to_dict(self, *names: str) -> dict[str, Any]:
        table: dict[str, Any] = {"sizes": list(self.sizes), "at": self.at.tolist()}
        for name in names:
            table[name] = self.mean[name].tolist()
            table[f"{name} error"] = self.error[name].tolist()
        return table


def curves(
    make: Callable[[int, float], Any],
    kernel: Kernel,
    sizes: Sequence[int],
    at: Tensor,
    chains: Chains,
    *,
    seed: int,
    device: str | None,
    progress: Progress,
) -> Curves:
    """Measure make(size, coupling) everywhere; every point has random numbers of its own."""
    means: list[list[dict[str, Tensor]]] = []
    errors: list[list[dict[str, Tensor]]] = []
    for i, size in enumerate(sizes):
        progress(f"L={size}")
        found = [
            measure(make(size, x), kernel, chains, seed=10_000 * seed + 100 * i + k, device=device)
            for k, x in enumerate(at.tolist())
        ]
        means.append([f.mean for f in found])
        errors.append([f.error for f in found])

    def table(rows: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        names = rows[0][0]
        return {n: torch.stack([torch.stack([c[n] for c in row]) for row in rows]) for n in names}

    return Curves(tuple(sizes), at, table(means), table(errors))


def least_squares(terms: Tensor, y: Tensor, error: Tensor) -> tuple[Tensor, Tensor, float]:
    """Weighted fit of y = terms @ p: p, its errors, and χ² per degree of freedom (NaN without any).

    Shapes: terms (k, p), y and error (k,) -> (p,), (p,).
    """
    scaled = terms / error[:, None]
    covariance = (scaled.T @ scaled).inverse()
    value = covariance @ (scaled.T @ (y / error))
    free = len(y) - terms.shape[1]
    chi2 = float((((y - terms @ value) / error) ** 2).sum())
    return value, covariance.diagonal().sqrt(), chi2 / free if free > 0 else math.nan


def polynomial(x: Tensor, degree: int) -> Tensor:
    """The terms 1, x, …, x^degree: (k,) -> (k, degree + 1)."""
    return torch.stack([x**p for p in range(degree + 1)], 1)


def power(
    sizes: Sequence[int], y: Tensor, error: Tensor, correction: float | None = None
) -> tuple[float, float, float, Callable[[Tensor], Tensor]]:
    """y = A L^b, or A L^b exp(c L^−correction): b, its error, χ² per degree of freedom and the curve."""

    def terms(lengths: Tensor) -> Tensor:
        more = [] if correction is None else [lengths**-correction]
        return torch.stack([torch.ones_like(lengths), lengths.log(), *more], 1)

    value, spread, chi2 = least_squares(
        terms(torch.tensor(list(sizes), dtype=torch.float64)), y.log(), error / y
    )
    return float(value[1]), float(spread[1]), chi2, lambda at: (terms(at) @ value).exp()
