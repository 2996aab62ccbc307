"""The normal density, and the bridge of unnormalised densities from one to any other density.

    N(x; m, C),      log p_λ(x) = λ log p(x) − (1 − λ) ½ (x − m)ᵀ P (x − m),   P = C⁻¹, 0 ≤ λ ≤ 1

The bridge is the geometric path of annealed importance sampling (Neal, Statistics and Computing 11, 125,
2001, doi 10.1023/A:1008923215028). The constant of the normal density is left out of it: its integral at
λ = 0 is exp(log_norm), not 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pysamp import ops, rng
from pysamp.target import HasNative, NativeEnergy, Target, log_prob_and_score
from pysamp.targets.mixture import GaussianMixture

DRAWS = 4  # step of the stream "target"; mixtures use those below


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance), normalised.

    mean: (d,), or of the shape of an event of d numbers; covariance: () one variance, (d,) variances
    or (d, d), of the flattened event. Both are kept in float64 on the CPU, in the form given; a
    matrix that is diagonal counts as variances, and equal variances as one.
    `native` exists unless the covariance is a full matrix.

    Raises ValueError for shapes that do not match, numbers that are not finite, variances that are
    not positive, a matrix that is not symmetric positive definite.
    """

    mean: Tensor
    covariance: Tensor | float
    native: NativeEnergy = field(init=False, repr=False, compare=False)
    _mixture: GaussianMixture = field(init=False, repr=False, compare=False)
    _copies: dict = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        mean, covariance = (_float64(getattr(self, name), name) for name in ("mean", "covariance"))
        d = mean.numel()
        if mean.ndim == 0 or d == 0:
            raise ValueError(f"mean must be (d,) with d > 0, got shape {tuple(mean.shape)}")
        if covariance.shape not in ((), (d,), (d, d)):
            raise ValueError(
                f"covariance must be (), {(d,)} or {(d, d)} for a mean of {d} numbers, got shape "
                f"{tuple(covariance.shape)}"
            )
        simple = _simplest(covariance)
        if simple.ndim < 2 and not bool((simple > 0).all()):
            raise ValueError(f"covariance must have positive variances, got {self.covariance}")
        if simple.ndim == 2:
            _check_matrix(simple)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "_mixture", GaussianMixture(mean.reshape(1, d), simple[None]))
        if isinstance(self._mixture, HasNative):
            object.__setattr__(self, "native", self._mixture.native)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.mean.shape)

    @property
    def log_z(self) -> float:
        return 0.0

    @property
    def variance(self) -> float | None:
        """The variance of all coordinates where it is one and they are independent, else None."""
        simple = self._covariance
        return float(simple) if simple.ndim == 0 else None

    @cached_property
    def precision(self) -> Tensor:
        """The inverse covariance (d, d)."""
        simple, d = self._covariance, self.mean.numel()
        if simple.ndim < 2:
            return torch.diag((1 / simple).expand(d))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(simple))
        return 0.5 * (inverse + inverse.T)

    @cached_property
    def log_norm(self) -> float:
        """log of the integral of exp(−½ (x − m)ᵀ P (x − m)): ½ d log 2π + ½ log det C."""
        simple, d = self._covariance, self.mean.numel()
        log_det = torch.logdet(simple) if simple.ndim == 2 else simple.log().expand(d).sum()
        return 0.5 * (d * math.log(2 * math.pi) + float(log_det))

    @property
    def largest_variance(self) -> float:
        """That of the widest direction."""
        simple = self._covariance
        return float(torch.linalg.eigvalsh(simple)[-1] if simple.ndim == 2 else simple.max())

    def log_prob(self, x: Tensor) -> Tensor:
        return self._mixture.log_prob(x.flatten(1))

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = self._mixture.log_prob_and_score(x.flatten(1))
        return log_prob, score.reshape(x.shape)

    def sample(
        self,
        n: int,
        *,
        seed: int,
        first_chain: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Exact draws (n, *event_shape)."""
        z = rng.normal(
            (n, *self.event_shape), seed=seed, stream="target", step=DRAWS,
            first_chain=first_chain, device=device, dtype=dtype,
        )  # fmt: skip
        return self.place(z)

    def place(self, z: Tensor) -> Tensor:
        """m + L z with C = L Lᵀ: a draw for each standard normal z (n, *event_shape)."""
        mean, factor, _ = self._at(z)
        if factor.ndim < 2:
            return mean + (factor * z.flatten(1)).reshape(z.shape)
        return mean + (z.flatten(1) @ factor.T).reshape(z.shape)

    def offset_and_pull(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x − m and P (x − m), both of the shape of x."""
        mean, _, precision = self._at(x)
        offset = x - mean
        flat = offset.flatten(1)
        pull = flat * precision if precision.ndim < 2 else flat @ precision
        return offset, pull.reshape(x.shape)

    @cached_property
    def _covariance(self) -> Tensor:
        """(), (d,) or (d, d): the simplest that says the same."""
        assert isinstance(self.covariance, Tensor)  # set in __post_init__
        return _simplest(self.covariance)

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, factor L and precision (both () or (d,) where diagonal) like x, converted once."""
        key = (x.device, x.dtype)
        if key not in self._copies:
            simple = self._covariance
            factor, precision = simple.sqrt(), 1 / simple
            if simple.ndim == 2:
                factor, precision = torch.linalg.cholesky(simple), self.precision
            with torch.inference_mode(False):  # what is kept must serve autograd too
                parts = (self.mean, factor, precision)
                self._copies[key] = tuple(part.to(x.device, x.dtype) for part in parts)
        return self._copies[key]


@dataclass(frozen=True, eq=False)
class Bridged:
    """log p(x) = λ log p_base(x) − (1 − λ) ½ (x − m)ᵀ P (x − m), with the m and P of `reference`.

    lam: λ, one number for all rows or one for each (n,). At λ = 0 the base counts for nothing, even
    where its density is 0.

    Raises ValueError for λ outside [0, 1] and for a reference with another event shape.
    """

    base: Target
    reference: Gaussian
    lam: float | Tensor

    def __post_init__(self) -> None:
        numbers = torch.as_tensor(self.lam)
        if numbers.ndim > 1:
            raise ValueError(f"lam must be a number or (n,), got shape {tuple(numbers.shape)}")
        if not bool(((numbers >= 0) & (numbers <= 1)).all()):
            raise ValueError(f"lam must lie in [0, 1], got {self.lam}")
        check_reference(self.reference, self.base)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def log_prob(self, x: Tensor) -> Tensor:
        return self._bridge(x, self.base.log_prob(x))[0]

    def score(self, x: Tensor) -> Tensor:
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = log_prob_and_score(self.base, x)
        value, pull = self._bridge(x, log_prob)
        return value, _scaled(self._lam(x, x.ndim), score) - pull

    def tilt(self, x: Tensor) -> tuple[Tensor, bool]:
        """The strength s of the Gaussian part, −½ s times a square, and whether it is that of x − m.

        () or (n,): (1 − λ)/variance and True where the reference is isotropic, else 1 − λ.
        """
        rest = 1.0 - self._lam(x, 1)
        variance = self.reference.variance
        return (rest, False) if variance is None else (rest / variance, True)

    def _bridge(self, x: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """The log density from that of the base, and minus the score of the Gaussian part."""
        strength, isotropic = self.tilt(x)
        offset, pull = self.reference.offset_and_pull(x)
        if isotropic:
            pull = offset
        # The fixed order of sum32 makes accept decisions equal on every backend.
        square = ops.sum32((offset * pull).flatten(1))
        value = _scaled(self._lam(x, 1), log_prob) - (0.5 * strength) * square
        if strength.ndim:
            strength = strength.reshape(-1, *(1,) * (x.ndim - 1))
        return value, strength * pull

    def _lam(self, x: Tensor, ndim: int) -> Tensor:
        """() or (n, 1, …, 1) of ndim axes, like x: what a native call is given."""
        lam = torch.as_tensor(self.lam, dtype=x.dtype, device=x.device)
        if lam.ndim and len(lam) != len(x):
            raise ValueError(f"lam has {len(lam)} entries but x has {len(x)} rows")
        return lam.reshape(-1, *(1,) * (ndim - 1)) if lam.ndim else lam


def check_reference(reference: object, target: Target) -> None:
    """Raises TypeError, ValueError unless it is a Gaussian on the events of the target."""
    if not isinstance(reference, Gaussian):
        raise TypeError(f"reference must be a Gaussian, got {type(reference).__name__}")
    if reference.event_shape != tuple(target.event_shape):
        raise ValueError(
            f"reference must have the event shape of the target, {tuple(target.event_shape)}, got "
            f"{reference.event_shape}"
        )


def _scaled(lam: Tensor, value: Tensor) -> Tensor:
    """λ value, and 0 where λ = 0, also of an infinite value."""
    return torch.where(lam == 0, 0.0, lam * value)


def _float64(value: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu").detach().clone()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return tensor


def _simplest(covariance: Tensor) -> Tensor:
    """(d, d) -> (d,) where diagonal; (d,) -> () where all are equal."""
    if covariance.ndim == 2 and torch.equal(covariance, torch.diag(covariance.diagonal())):
        covariance = covariance.diagonal().clone()
    if covariance.ndim == 1 and bool((covariance == covariance[0]).all()):
        covariance = covariance[0].clone()
    return covariance


def _check_matrix(covariance: Tensor) -> None:
    largest = covariance.abs().max()
    asymmetry = (covariance - covariance.T).abs().max()
    if bool(asymmetry > 1e-5 * largest):  # a product A Aᵀ in float32 is symmetric to about 1e-7
        raise ValueError(f"covariance must be symmetric, differs by {float(asymmetry)}")
    if int(torch.linalg.cholesky_ex(0.5 * (covariance + covariance.T))[1]):
        least = float(torch.linalg.eigvalsh(0.5 * (covariance + covariance.T))[0])
        raise ValueError(f"covariance must be positive definite, least eigenvalue {least:.3g}")
