"""Small densities with one hard feature each and exact draws.

Funnel: Neal, Slice sampling (2003), section 8, with the parameters of Grenioux et al. (2024,
arXiv 2402.10758): variance 3 for the neck variable; other papers use 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import rng


@dataclass(frozen=True)
class Funnel:
    """z = x_0 ~ N(0, variance); x_i given z ~ N(0, exp(z)), i = 1 ... dim - 1. Normalised."""

    dim: int = 10
    variance: float = 3.0

    def __post_init__(self) -> None:
        if self.dim < 2:
            raise ValueError(f"dim must be at least 2, got {self.dim}")
        if not 0 < self.variance < math.inf:
            raise ValueError(f"variance must be positive and finite, got {self.variance}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def log_z(self) -> float:
        return 0.0

    def log_prob(self, x: Tensor) -> Tensor:
        z, square = x[:, 0], (x[:, 1:] * x[:, 1:]).sum(1)
        constant = 0.5 * self.dim * math.log(2 * math.pi) + 0.5 * math.log(self.variance)
        neck = -0.5 * z * z / self.variance - 0.5 * (self.dim - 1) * z
        return neck - 0.5 * square * torch.exp(-z) - constant

    def score(self, x: Tensor) -> Tensor:
        z, rest = x[:, 0], x[:, 1:]
        precision = torch.exp(-z)  # (n,)
        along = 0.5 * (rest * rest).sum(1) * precision - z / self.variance - 0.5 * (self.dim - 1)
        return torch.cat([along[:, None], -rest * precision[:, None]], dim=1)

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact draws (n, dim)."""
        xi = rng.normal(
            (n, self.dim),
            seed=seed,
            stream=rng.STREAMS["target"],
            first_chain=first_chain,
            device=device,
            dtype=dtype,
        )
        z = math.sqrt(self.variance) * xi[:, :1]  # (n, 1)
        return torch.cat([z, torch.exp(0.5 * z) * xi[:, 1:]], dim=1)
