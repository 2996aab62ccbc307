"""The banana: pairs of coordinates bent along a parabola, exact draws and exact moments.

Haario, Saksman and Tamminen (1999), doi 10.1007/s001800050022, in the form of Grenioux, Durmus,
Moulines and Gabrie, On sampling with approximate transport maps (2023, arXiv 2302.04763).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pysamp import rng


@dataclass(frozen=True)
class Banana:
    """x_0 = scale z_0, x_1 = z_1 + bend (x_0^2 - scale^2), z ~ N(0, 1), and so for every pair after it.

    Even coordinates are wide, the odd one after each bends with it; all means are 0, the variance of an
    odd coordinate is 1 + 2 bend^2 scale^4, 9 by default, and pairs are uncorrelated. Normalised.
    """

    dim: int = 2
    scale: float = 10.0
    bend: float = 0.02

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 2 or self.dim % 2:
            raise ValueError(f"dim must be an even int of at least 2, got {self.dim}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not math.isfinite(self.bend):
            raise ValueError(f"bend must be finite, got {self.bend}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def log_z(self) -> float:
        return 0.0

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self.dim, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        pair = [self.scale**2, 1 + 2 * self.bend**2 * self.scale**4]
        return torch.diag(torch.tensor(pair, dtype=torch.float64).repeat(self.dim // 2))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (n, {self.dim}), got {tuple(x.shape)}")
        wide, rest = self._straight(x)
        norm = self.dim / 2 * (math.log(self.scale) + math.log(2 * math.pi))
        log_prob = -0.5 * (wide * wide + rest * rest).sum(1) - norm
        along = 2 * self.bend * x[:, ::2] * rest - wide / self.scale
        return log_prob, torch.stack([along, -rest], 2).flatten(1)

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
        z = rng.normal(
            (n, self.dim), seed=seed, stream="target", first_chain=first_chain, device=device,
            dtype=dtype,
        )  # fmt: skip
        wide = self.scale * z[:, ::2]  # (n, dim / 2)
        bent = z[:, 1::2] + self.bend * (wide * wide - self.scale**2)
        return torch.stack([wide, bent], 2).flatten(1)

    def _straight(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The standard normal numbers that x is made of, (n, dim / 2) each."""
        wide, bent = x[:, ::2], x[:, 1::2]
        return wide / self.scale, bent - self.bend * (wide * wide - self.scale**2)
