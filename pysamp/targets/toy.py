"""Small densities with one hard feature each, exact draws and exact moments.

Funnel: Neal, Slice sampling (2003), section 8, with the parameters of Grenioux et al. (2024,
arXiv 2402.10758), whose rings are here, too: variance 3 for the neck variable; other papers use 9.
Checkerboard: the picture that flows are shown on, as in Grathwohl et al., FFJORD (2019, arXiv
1810.01367), here with a density.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pysamp import ops, rng
from pysamp.target import NativeEnergy
from pysamp.targets.field import native_tensors


@dataclass(frozen=True)
class Funnel:
    """z = x_0 ~ N(0, variance); x_i given z ~ N(0, exp(z)), i = 1 ... dim - 1. Normalised."""

    dim: int = 10
    variance: float = 3.0

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 2:
            raise ValueError(f"dim must be an int of at least 2, got {self.dim}")
        if not 0 < self.variance < math.inf:
            raise ValueError(f"variance must be positive and finite, got {self.variance}")

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
        rest = torch.full((self.dim,), math.exp(self.variance / 2), dtype=torch.float64)
        rest[0] = self.variance
        return torch.diag(rest)

    @functools.cached_property
    def native(self) -> NativeEnergy:
        constant = 0.5 * self.dim * math.log(2 * math.pi) + 0.5 * math.log(self.variance)
        return NativeEnergy("funnel", (1 / self.variance, constant), (self.dim,))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        params, table = native_tensors(self.native, x.device, x.dtype)
        return ops.funnel(x, params, table, [self.dim])

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


@dataclass(frozen=True)
class Checkerboard:
    """n x n squares of the plane around the origin, uniform on every second one, with soft edges.

    It is the law of a uniform point plus noise N(0, width^2): with the squares of i + j even black,
        p(x) = 2/n^2 sum_black f_i(x_0) f_j(x_1),
        f_i(t) = [Phi((t - l_i) / width) - Phi((t - h_i) / width)] / side,
    l_i and h_i the edges of square i. Normalised, smooth and positive everywhere.
    `mode` is the domino, a black square and the white one beside it in its row, the outer ones going
    on to infinity: n^2/2 of them, row by row, of exactly known `mode_weights` (about 2/n^2).

    Raises ValueError unless n is even and side at least 4 widths.
    """

    n: int = 4
    side: float = 2.0
    width: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 2 or self.n % 2:
            raise ValueError(f"n must be an even int of at least 2, got {self.n}")
        if not 0 < self.width < math.inf:
            raise ValueError(f"width must be positive and finite, got {self.width}")
        if not 4 * self.width <= self.side < math.inf:
            raise ValueError(f"side must be finite and at least 4 widths, got {self.side}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def log_z(self) -> float:
        return 0.0

    @property
    def mean(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        along = (self.n * self.side) ** 2 / 12 + self.width**2
        across = self.side**2 / 4  # black squares have i and j of one parity
        return torch.tensor([[along, across], [across, along]], dtype=torch.float64)

    @functools.cached_property
    def mode_weights(self) -> Tensor:
        black = self._black().double()  # (n, n)
        along = self._mass(self._edges()[::2])  # (n / 2, n) of dominoes, from squares
        across = self._mass(self._edges())  # (n, n) of rows, from squares
        return (2 / self.n**2 * (across @ black @ along.T)).reshape(-1)

    def mode(self, x: Tensor) -> Tensor:
        row = torch.floor(x[:, 1] / self.side + self.n / 2).long().clamp(0, self.n - 1)
        domino = torch.floor(x[:, 0] / (2 * self.side) + self.n / 4).long()
        return row * (self.n // 2) + domino.clamp(0, self.n // 2 - 1)

    def log_prob(self, x: Tensor) -> Tensor:
        even, odd, _, _ = self._parities(x)
        return torch.logaddexp(even, odd)

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        even, odd, even_slope, odd_slope = self._parities(x)
        log_prob = torch.logaddexp(even, odd)
        share = torch.exp(even - log_prob)[:, None]
        return log_prob, share * even_slope + torch.exp(odd - log_prob)[:, None] * odd_slope

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact draws (n, 2): square, point in it, noise."""
        how: dict[str, Any] = {
            "seed": seed,
            "stream": rng.STREAMS["target"],
            "first_chain": first_chain,
            "device": device,
            "dtype": torch.float64,
        }
        u = rng.uniform((n, 3), **how, step=0)
        z = rng.normal((n, 2), **how, step=1)
        squares = self._black().nonzero().to(u.device)  # (n^2 / 2, 2): row, column
        square = squares[torch.floor(u[:, 0] * len(squares)).long()].flip(1)  # (n, 2): i, j
        corner = self.side * (square - self.n / 2)
        return (corner + self.side * u[:, 1:] + self.width * z).to(dtype)

    def _edges(self) -> Tensor:
        """(n + 1,)"""
        return self.side * (torch.arange(self.n + 1, dtype=torch.float64) - self.n / 2)

    def _black(self) -> Tensor:
        """(n, n) by row j and column i"""
        i = torch.arange(self.n)
        return (i[:, None] + i) % 2 == 0

    def _mass(self, edges: Tensor) -> Tensor:
        """int f_i over the intervals between edges, the outer ones to infinity: (intervals, n)."""
        z = (edges[1:-1, None] - self._edges()) / self.width  # (inner edges, n + 1)
        phi = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        integral = z * torch.special.ndtr(z) + phi  # of Phi, from -infinity
        below = -integral.diff(dim=1) * self.width / self.side  # (inner edges, n)
        ends = below.new_zeros(1, self.n), below.new_ones(1, self.n)
        return torch.cat([ends[0], below, ends[1]]).diff(dim=0)

    def _parities(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log p of the black squares of even and of odd i (n,), and their gradients (n, 2)."""
        centre = self.side * (
            torch.arange(self.n, dtype=x.dtype, device=x.device) - (self.n - 1) / 2
        )
        u = (x[:, :, None] - centre) / self.width  # (n, 2, squares)
        t, half = u.abs(), self.side / (2 * self.width)
        # Phi(half - t) - Phi(-half - t) and its slope, from ratios: far outside all four are 0
        near, far = torch.special.log_ndtr(half - t), torch.special.log_ndtr(-half - t)
        share = -torch.expm1(far - near)  # of the nearer edge
        log_f = near + share.log()
        mills = math.sqrt(2 / math.pi) / torch.special.erfcx((t - half) / math.sqrt(2))
        slope = mills * torch.expm1(-2 * half * t) / share * torch.sign(u) / self.width
        constant = math.log(2 / self.n**2) - 2 * math.log(self.side)
        values, slopes = [], []
        for first in (0, 1):
            terms = log_f[:, :, first::2]
            values.append(torch.logsumexp(terms, dim=2).sum(1) + constant)
            slopes.append((torch.softmax(terms, dim=2) * slope[:, :, first::2]).sum(2))
        return values[0], values[1], slopes[0], slopes[1]


@dataclass(frozen=True)
class Rings:
    """Rings of radius 1 ... n_rings in the plane: r ~ mean_k N(k, width^2), uniform angle.

    p(x) = p_r(|x|) / (2 pi |x|). The mass that p_r leaves at r < 0 (3e-12 for the width of 0.15) is
    not folded back, so log_z = 0 to that precision. The density has an integrable 1/|x| peak at the
    origin, of relative height exp(-22); |x| is not taken below 1e-12, which keeps log_prob and
    score finite there. `mode` is the nearest ring, of weight 1 / n_rings exactly, by symmetry.
    """

    n_rings: int = 4
    width: float = 0.15

    def __post_init__(self) -> None:
        if not isinstance(self.n_rings, int) or self.n_rings < 1:
            raise ValueError(f"n_rings must be an int of at least 1, got {self.n_rings}")
        if not 0 < self.width <= 0.2:  # beyond, the mass at r < 0 is no longer negligible
            raise ValueError(f"width must lie in (0, 0.2], got {self.width}")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def mode_weights(self) -> Tensor:
        return torch.full((self.n_rings,), 1 / self.n_rings, dtype=torch.float64)

    @property
    def log_z(self) -> float:
        return 0.0

    @property
    def mean(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        square = (self.n_rings + 1) * (2 * self.n_rings + 1) / 6 + self.width**2  # E r^2
        return 0.5 * square * torch.eye(2, dtype=torch.float64)

    @functools.cached_property
    def native(self) -> NativeEnergy:
        constant = math.log(self.n_rings * self.width) + 1.5 * math.log(2 * math.pi)
        params = (1 / self.width, 1 / self.width**2, constant)
        return NativeEnergy("rings", params, (self.n_rings,))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[0]

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        params, table = native_tensors(self.native, x.device, x.dtype)
        return ops.rings(x, params, table, [self.n_rings])

    def mode(self, x: Tensor) -> Tensor:
        nearest = torch.round(torch.linalg.vector_norm(x, dim=1)).long()
        return nearest.clamp(1, self.n_rings) - 1

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact draws (n, 2): ring, radius and angle."""
        how: dict[str, Any] = {
            "seed": seed,
            "stream": rng.STREAMS["target"],
            "first_chain": first_chain,
        }
        u = rng.uniform((n, 2), **how, step=0, device=device, dtype=torch.float64)
        z = rng.normal((n, 1), **how, step=1, device=device, dtype=torch.float64)[:, 0]
        r = 1 + torch.floor(self.n_rings * u[:, 0]) + self.width * z
        angle = 2 * math.pi * u[:, 1]
        return (r[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)).to(dtype)
