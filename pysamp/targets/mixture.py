"""Gaussian mixtures of any kind: densities with known modes in R^d.

Eight Gaussians and two modes are test problems of Grenioux, Noble, Gabrie and Oliviero
Durmus, Stochastic localization via iterative posterior sampling (2024, arXiv 2402.10758); the two
modes of unlike covariances are those of Grenioux, Noble and Gabrie, Improving the evaluation of
samplers on multi-modal targets (2025, arXiv 2504.08916); four modes are those of Grenioux, Durmus,
Moulines and Gabrie, On sampling with approximate transport maps (2023, arXiv 2302.04763).
Every density here is normalised, so log_z = 0, can be sampled exactly, and has its first two moments.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysamp import ops, rng
from pysamp.target import NativeEnergy


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """sum_k w_k N(m_k, C_k).

    means: (k, d); covariances: (k, d, d) full, (k, d) variances or (k,) one variance per component;
    weights: (k,), positive, normalised here, equal if None. All are kept in float64 on the CPU.
    `mode` is the component of largest responsibility and `mode_weights` are the w_k: the two agree
    as far as the components do not overlap.
    `native` exists for diagonal covariances only: ("mixture", [log c_k, m_k, 1 / variances],
    (k, d)) with log c_k = log w_k - d/2 log 2 pi - 1/2 log det C_k.

    Raises: ValueError for shapes that do not match, weights that are not positive, covariances
    that are not symmetric positive definite, or numbers that are not finite.
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor | None = None
    native: NativeEnergy = field(init=False, repr=False, compare=False)
    _log_scale: Tensor = field(init=False, repr=False, compare=False)  # (k,) log c_k
    _factor: Tensor = field(init=False, repr=False, compare=False)  # (k, d) sd or (k, d, d) L
    _whitener: Tensor = field(
        init=False, repr=False, compare=False
    )  # (k, d) 1/var or (k, d, d) L^-1
    _copies: dict = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        means = _float64(self.means, "means")
        if means.ndim != 2 or 0 in means.shape:
            raise ValueError(f"means must be (k, d) with k, d > 0, got shape {tuple(means.shape)}")
        k, d = means.shape
        covariances = _float64(self.covariances, "covariances")
        if covariances.shape not in ((k, d, d), (k, d), (k,)):
            raise ValueError(
                f"covariances must be {(k, d, d)}, {(k, d)} or {(k,)} for means of shape {(k, d)}, "
                f"got shape {tuple(covariances.shape)}"
            )
        given = torch.ones(k) if self.weights is None else self.weights
        weights = _float64(given, "weights")
        if weights.shape != (k,) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be ({k},) and positive, got {self.weights}")
        if (
            abs(float(weights.sum()) - 1) > 1e-12
        ):  # else as given: normalising twice would move bits
            weights = weights / weights.sum()

        if covariances.ndim == 3:
            factor, whitener = _cholesky(covariances)
            log_sd = factor.diagonal(dim1=1, dim2=2).log().sum(1)  # (k,)
        else:
            if not bool((covariances > 0).all()):
                raise ValueError(f"covariances must be positive variances, got {self.covariances}")
            variances = covariances.reshape(k, -1).expand(k, d).contiguous()
            factor, whitener = variances.sqrt(), 1 / variances
            log_sd = factor.log().sum(1)  # (k,)
        log_scale = weights.log() - 0.5 * d * math.log(2 * math.pi) - log_sd

        fields = {"means": means, "covariances": covariances, "weights": weights}
        fields |= {"_log_scale": log_scale, "_factor": factor, "_whitener": whitener}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if covariances.ndim != 3:
            flat = torch.cat([log_scale, means.reshape(-1), whitener.reshape(-1)])
            native = NativeEnergy("mixture", tuple(flat.tolist()), (k, d))
            object.__setattr__(self, "native", native)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.means.shape[1],)

    @property
    def mode_weights(self) -> Tensor:
        assert self.weights is not None  # set in __post_init__
        return self.weights

    @property
    def log_z(self) -> float:
        return 0.0

    @property
    def mean(self) -> Tensor:
        return self.mode_weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """(d, d): the mean of the covariances and the covariance of the means."""
        w, offset = self.mode_weights, self.means - self.mean  # (k,), (k, d)
        between = (w[:, None] * offset).T @ offset
        if self.covariances.ndim == 3:
            return between + torch.einsum("k,kij->ij", w, self.covariances)
        return between + torch.diag(w @ (self._factor * self._factor))

    def log_prob(self, x: Tensor) -> Tensor:
        if self.covariances.ndim < 3:
            return self._diagonal(x)[0]
        return torch.logsumexp(self._terms(x)[0], dim=1)

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.covariances.ndim < 3:
            return self._diagonal(x)
        terms, pull = self._terms(x)  # (n, k), (n, k, d)
        log_prob = torch.logsumexp(terms, dim=1)
        responsibility = torch.exp(terms - log_prob[:, None])  # (n, k)
        return log_prob, -(responsibility[:, :, None] * pull).sum(1)

    def mode(self, x: Tensor) -> Tensor:
        return self._terms(x)[0].argmax(dim=1)

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact draws (n, d): a uniform picks the component, then m_k + L_k z."""
        k, d = self.means.shape
        how: dict[str, Any] = {
            "seed": seed,
            "stream": rng.STREAMS["target"],
            "first_chain": first_chain,
        }
        # The component is picked in float64 whatever the dtype: draws in both have the same labels.
        u = rng.uniform((n, 1), **how, step=0, device=device, dtype=torch.float64)[:, 0]
        z = rng.normal((n, d), **how, step=1, device=device, dtype=dtype)
        means, factor = self._at(z)[:2]
        # Without the last edge no rounding of the sum can push a draw past the last component.
        edges = self.mode_weights.cumsum(0)[:-1].to(u.device)
        component = torch.searchsorted(edges, u, right=True)  # (n,)
        if factor.ndim == 2:
            return means[component] + factor[component] * z
        x = torch.empty_like(z)
        for j in range(k):  # one (d, d) factor at a time: gathering them would need n d^2 memory
            rows = component == j
            x[rows] = means[j] + z[rows] @ factor[j].T
        return x

    def _diagonal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The op that fused chains use, so that both give the same numbers."""
        params, table = self._at(x)[4:]
        return ops.mixture(x, params, table, list(self.means.shape))

    def _terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log(w_k N(x; m_k, C_k)) (n, k) and C_k^-1 (x - m_k) (n, k, d).

        The quadratic form is taken of the difference, not expanded: |x|^2 - 2 x m + |m|^2 loses all
        digits in float32 far from the origin.
        """
        means, _, whitener, log_scale = self._at(x)[:4]
        offset = x[:, None, :] - means  # (n, k, d)
        if whitener.ndim == 2:
            pull = whitener * offset
            return log_scale - 0.5 * (pull * offset).sum(2), pull
        white = torch.einsum("kij,nkj->nki", whitener, offset)
        pull = torch.einsum("kji,nkj->nki", whitener, white)
        return log_scale - 0.5 * (white * white).sum(2), pull

    def _at(self, x: Tensor) -> tuple[Tensor, ...]:
        """The parameters on the device and in the dtype of x, converted once.

        Means, factors, whiteners, log scales; for diagonal covariances also what the op takes.
        """
        key = (x.device, x.dtype)
        if key not in self._copies:
            with torch.inference_mode(False):  # what is kept must serve autograd too
                self._copies[key] = self._converted(*key)
        return self._copies[key]

    def _converted(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        parts = (self.means, self._factor, self._whitener, self._log_scale)
        copies = tuple(part.to(device=device, dtype=dtype) for part in parts)
        if self.covariances.ndim < 3:
            means, _, precision, log_scale = copies
            params = torch.cat([log_scale, means.reshape(-1), precision.reshape(-1)])
            copies += (params, torch.empty(0, dtype=torch.int32, device=device))
        return copies


def _float64(value: Tensor, name: str) -> Tensor:
    tensor = torch.as_tensor(value).detach().to(device="cpu", dtype=torch.float64, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return tensor


def _cholesky(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Lower factors L (k, d, d) with C = L L^T, and their inverses."""
    asymmetry = (covariances - covariances.mT).abs().amax(dim=(1, 2))
    # A product A A^T in float32 is symmetric to about 1e-7.
    if bool((asymmetry > 1e-5 * covariances.abs().amax(dim=(1, 2))).any()):
        raise ValueError(f"covariances must be symmetric, differ by {asymmetry.max().item()}")
    factor, info = torch.linalg.cholesky_ex(0.5 * (covariances + covariances.mT))
    if bool((info != 0).any()):
        bad = int((info != 0).nonzero()[0, 0])
        raise ValueError(
            f"covariances must be positive definite, component {bad} is {covariances[bad].tolist()}"
        )
    identity = torch.eye(covariances.shape[-1], dtype=torch.float64)
    return factor, torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def EightGaussians() -> GaussianMixture:
    """Equal weights, means 10 (sin(i pi/4), cos(i pi/4)), variance 0.7, d = 2."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = 10 * torch.stack([angle.sin(), angle.cos()], dim=1)
    return GaussianMixture(means, torch.full((8,), 0.7, dtype=torch.float64))


def TwoModes(dim: int, a: float = 1.0, variance: float = 0.05) -> GaussianMixture:
    """2/3 N(-(2/3) a 1, variance I) + 1/3 N((4/3) a 1, variance I): mean zero, unequal weights."""
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    corner = torch.ones(dim, dtype=torch.float64) * a
    means = torch.stack([-(2 / 3) * corner, (4 / 3) * corner])
    variances = torch.full((2,), variance, dtype=torch.float64)
    return GaussianMixture(means, variances, torch.tensor([2.0, 1.0]))


def FourModes(dim: int, a: float | None = None) -> GaussianMixture:
    """Equal weights, unit variances, means a (-1, +1), a (+1, +1), a (-1, -1), a (+1, -1) by halves.

    dim must be even. a: 0.5910 sqrt(2 ln dim) by default, the published one (1.39 at 16, 1.97 at 256).
    The variance of every coordinate is 1 + a^2.
    """
    if not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ValueError(f"dim must be an even int of at least 2, got {dim}")
    if a is None:
        a = 0.5910 * math.sqrt(2 * math.log(dim))
    signs = torch.tensor([[-1, 1], [1, 1], [-1, -1], [1, -1]], dtype=torch.float64)
    means = a * signs.repeat_interleave(dim // 2, dim=1)  # (4, dim)
    return GaussianMixture(means, torch.ones(4, dtype=torch.float64))


@dataclass(frozen=True)
class BracketTwoModes:
    """2/3 N(-a 1, diag(v)) + 1/3 N(a 1, diag(v reversed)), v from `low` to `high` in equal steps.

    The stiff directions of one mode are the loose ones of the other, so that no metric suits both;
    a (half the distance in each coordinate) and dim are two scales of difficulty. Mode 0 is where
    the density of the first component, without its weight, exceeds that of the second, and
    `mode_weights` are the masses of the two regions: 2/3 but for a small overlap.

    In float32, log_prob between distant modes is a large number and known to 6e-8 of it only: at
    dim = 256, a = 10 to 0.1 half-way, but to 1e-4 inside the modes. `mode` is taken in float64.
    """

    dim: int
    a: float = 1.0
    low: float = 0.01
    high: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"dim must be an int of at least 1, got {self.dim}")
        for name in ("a", "low", "high"):
            if not isinstance(getattr(self, name), (int, float)):
                raise TypeError(f"{name} must be a number, got {getattr(self, name)!r}")
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")

    @functools.cached_property
    def mixture(self) -> GaussianMixture:
        corner = torch.full((self.dim,), float(self.a), dtype=torch.float64)
        v = torch.linspace(self.low, self.high, self.dim, dtype=torch.float64)
        weights = torch.tensor([2.0, 1.0], dtype=torch.float64)
        return GaussianMixture(torch.stack([-corner, corner]), torch.stack([v, v.flip(0)]), weights)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def log_z(self) -> float:
        return 0.0

    @property
    def native(self) -> NativeEnergy:
        return self.mixture.native

    @property
    def mean(self) -> Tensor:
        return self.mixture.mean

    @property
    def covariance(self) -> Tensor:
        return self.mixture.covariance

    @functools.cached_property
    def mode_weights(self) -> Tensor:
        """With L the log ratio of the components, q = P(L > 0) under the first: (1 + q)/3, (2 - q)/3.

        Reflecting x and its order exchanges the components, hence P(L > 0) = 1 - q under the second,
        and E exp((it - 1/2) L) is real and even in t. Inverted along that line, t = tan(phi)/2:
            1 - q = 1/pi int_0^(pi/2) prod_i sqrt(v_i cos phi) D_i^(-1/4) exp(-a^2 m_i / (2 D_i)) dphi,
            D_i = (m_i cos phi)^2 + (e_i sin phi)^2,   m_i, e_i = half the sum, half the difference
        of the two variances of coordinate i. The integrand is smooth: Gauss-Legendre, error < 1e-12.
        """
        v = np.linspace(self.low, self.high, self.dim)
        half_sum, half_difference = (v + v[::-1]) / 2, (v - v[::-1]) / 2
        node, weight = np.polynomial.legendre.leggauss(200)
        phi = (node[:, None] + 1) * (np.pi / 4)
        d = (half_sum * np.cos(phi)) ** 2 + (half_difference * np.sin(phi)) ** 2  # (200, dim)
        log_m = 0.5 * np.log(v * np.cos(phi)) - 0.25 * np.log(d) - self.a**2 / 2 * half_sum / d
        missed = float(weight @ np.exp(log_m.sum(1))) / 4  # 1 - q
        return torch.tensor([2 - missed, 1 + missed], dtype=torch.float64) / 3

    def mode(self, x: Tensor) -> Tensor:
        v = torch.linspace(self.low, self.high, self.dim, dtype=torch.float64, device=x.device)
        x = x.double()
        ratio = ((x - self.a) ** 2 / v.flip(0) - (x + self.a) ** 2 / v).sum(1)  # 2 L
        return (ratio <= 0).long()

    def log_prob(self, x: Tensor) -> Tensor:
        return self.mixture.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        return self.mixture.score(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mixture.log_prob_and_score(x)

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
        return self.mixture.sample(
            n, seed=seed, first_chain=first_chain, device=device, dtype=dtype
        )


def ManyModes(
    dim: int = 2, n_modes: int = 16, box: float = 10.0, variance: float = 1.0, seed: int = 0
) -> GaussianMixture:
    """A random mixture: means uniform in [-box, box]^dim, weights Dirichlet(1, ..., 1).

    A function of the seed. Means may lie close to each other, and some weights are small.
    """
    if dim < 1 or n_modes < 1 or not box > 0:
        raise ValueError(
            f"dim, n_modes and box must be positive, got dim={dim}, n_modes={n_modes}, box={box}"
        )
    how: dict[str, Any] = {"seed": seed, "stream": rng.STREAMS["target"], "dtype": torch.float64}
    means = box * (2 * rng.uniform((n_modes, dim), step=2, **how) - 1)
    # Normalised independent exponentials are Dirichlet(1, ..., 1).
    weights = -torch.log(rng.uniform((n_modes, 1), step=3, **how)[:, 0])
    return GaussianMixture(means, torch.full((n_modes,), variance, dtype=torch.float64), weights)
