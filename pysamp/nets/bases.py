"""Base densities of flows: what a flow draws its latent points z from, with their normalised density.

    Normal   z = m + L ξ, ξ ~ N(0, 1), C = L Lᵀ       log p(z) = −½ |L⁻¹(z − m)|² − ln det L − ½ d ln 2π
    Torus    z uniform on [−π, π)^d                    log p(z) = −d ln 2π
    Product  some coordinates of the one, the others of the other, independent

The matched and the coupled bases of Gabrié, Rotskoff and Vanden-Eijnden (2022), arXiv 2105.12603, are
normal: of the moments of a mixture, and of the precision matrix of a free field.

Constants are buffers: they move and convert with the flow, and a state dict holds them. They are kept in
float64 until the module is converted, and used in the dtype of the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pysamp import rng

LOG_2PI = math.log(2 * math.pi)
BLOCK = 4  # numbers of a Philox block in float32, and two blocks in float64


@runtime_checkable
class Base(Protocol):
    """A normalised density on (n, dim) whose row r is drawn from the numbers of chain first_chain + r.

    `place` makes z of the noise that `draw` is made of. `standard`: it is N(0, 1). Those of this module
    are torch modules; they draw on the device and in the dtype of their buffer `like` unless told.
    """

    dim: int
    standard: bool

    def draw(
        self, n: int, *, seed: int, stream: int | str = "proposal", step: int = 0,
        first_chain: int = 0, substep: int = 0, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, first: int = 0,
    ) -> Tensor: ...  # fmt: skip

    def place(self, xi: Tensor) -> Tensor: ...

    def log_prob(self, z: Tensor) -> Tensor: ...


class OfNoise(nn.Module):
    """A base whose z is `place` of independent numbers of one kind, those of `noise`: `rng.normal` or
    `rng.uniform`. Its buffer `like` has the device and dtype of draws."""

    noise: Callable[..., Tensor]
    dim: int
    like: Tensor

    def draw(
        self, n: int, *, seed: int, stream: int | str = "proposal", step: int = 0,
        first_chain: int = 0, substep: int = 0, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, first: int = 0,
    ) -> Tensor:  # fmt: skip
        """Draws (n, d); arguments as those of `noise`."""
        xi = self.noise(
            (n, self.dim), seed=seed, stream=stream, step=step, first_chain=first_chain,
            substep=substep, device=device or self.like.device, dtype=dtype or self.like.dtype,
            first=first,
        )  # fmt: skip
        return self.place(xi)

    def place(self, xi: Tensor) -> Tensor:
        raise NotImplementedError


class Normal(OfNoise):
    """N(mean, covariance) on (n, d); `Normal(d)` is N(0, 1).

    mean: (d,); covariance: () one variance, (d,) variances or (d, d). `Normal.from_precision(P, mean)`
    takes the inverse covariance (d, d).

    Raises ValueError for shapes that do not match, numbers that are not finite, a covariance or precision
    that is not positive definite and symmetric.
    """

    mean: Tensor
    factor: Tensor  # L: (), (d,) or (d, d), with C = L Lᵀ
    whiten: Tensor  # L⁻¹ in the same form
    noise = staticmethod(rng.normal)

    def __init__(self, dim: int | None = None, *, mean: Any = None, covariance: Any = 1.0) -> None:
        super().__init__()
        self.standard = mean is None
        if mean is None:
            self.dim = check_dim(dim)
            if torch.as_tensor(covariance).ndim or float(covariance) != 1.0:
                mean, self.standard = torch.zeros(self.dim), False
        if mean is not None:
            mean = _finite(mean, "mean")
            if mean.ndim != 1 or not len(mean):
                raise ValueError(f"mean must be (d,) with d > 0, got shape {tuple(mean.shape)}")
            if dim is not None and dim != len(mean):
                raise ValueError(f"dim must be the length of mean, {len(mean)}, got {dim}")
            self.dim = len(mean)
        self.register_buffer("like", torch.empty(0), persistent=False)
        factor, whiten = _factors(covariance, self.dim)
        self.register_buffer("mean", torch.zeros(self.dim) if mean is None else mean)
        self.register_buffer("factor", factor)
        self.register_buffer("whiten", whiten)

    @classmethod
    def from_precision(cls, precision: Any, mean: Any = None) -> Normal:
        """N(mean, P⁻¹), mean 0 by default. With P = R Rᵀ: L = R⁻ᵀ, L⁻¹ = Rᵀ."""
        precision = _finite(precision, "precision")
        d = check_square(precision, "precision")
        lower = _cholesky(precision, "precision")
        base = cls(mean=torch.zeros(d) if mean is None else mean, covariance=1.0)
        if base.dim != d:
            raise ValueError(f"precision must be ({base.dim}, {base.dim}), got {(d, d)}")
        base.factor = torch.linalg.solve_triangular(lower.T, torch.eye(d).to(lower), upper=True)
        base.whiten = lower.T.contiguous()
        return base

    def place(self, xi: Tensor) -> Tensor:
        """m + L ξ for standard normal ξ (n, d)."""
        if self.standard:
            return xi
        factor = self.factor.to(xi)
        return self.mean.to(xi) + (factor * xi if factor.ndim < 2 else xi @ factor.T)

    def log_prob(self, z: Tensor) -> Tensor:
        if self.standard:
            return -0.5 * (z.square().sum(1) + self.dim * LOG_2PI)
        whiten, offset = self.whiten.to(z), z - self.mean.to(z)
        xi = whiten * offset if whiten.ndim < 2 else offset @ whiten.T
        scales = whiten.diagonal() if whiten.ndim == 2 else whiten.expand(self.dim)
        return scales.abs().log().sum() - 0.5 * (xi.square().sum(1) + self.dim * LOG_2PI)

    def extra_repr(self) -> str:
        form = "standard" if self.standard else f"covariance {tuple(self.factor.shape)}"
        return f"{self.dim}, {form}"


class Torus(OfNoise):
    """Uniform on the angles [−π, π)^dim. Its noise, which `place` takes, is uniform in (0, 1)."""

    noise = staticmethod(rng.uniform)
    standard = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = check_dim(dim)
        self.register_buffer("like", torch.empty(0), persistent=False)

    def place(self, xi: Tensor) -> Tensor:
        return (2 * xi - 1) * math.pi

    def log_prob(self, z: Tensor) -> Tensor:
        """The density of the angles, of period 2π in each: every z is on the torus. NaN stays NaN."""
        return 0 * z.sum(1) - self.dim * LOG_2PI

    def extra_repr(self) -> str:
        return f"{self.dim}"


class Product(nn.Module):
    """Independent `normal` and `torus` on d = normal.dim + torus.dim coordinates.

    circular: those of the torus, in its order, from 0 to d − 1; the others are of the normal.
    Raises ValueError for coordinates that repeat, lie outside, or are not torus.dim in number.
    """

    like: Tensor
    standard = False

    def __init__(self, normal: Normal, torus: Torus, circular: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = normal.dim + torus.dim
        self.circular = check_coordinates(circular, self.dim, "circular")
        if len(self.circular) != torus.dim:
            raise ValueError(
                f"circular must hold {torus.dim} coordinates, as the torus has, got {circular}"
            )
        self.normal, self.torus = normal, torus
        rest = [i for i in range(self.dim) if i not in self.circular]
        # Where each coordinate stands in (normal, torus), and back.
        order = torch.tensor([*rest, *self.circular])
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    order: Tensor
    back: Tensor

    def draw(
        self, n: int, *, seed: int, stream: int | str = "proposal", step: int = 0,
        first_chain: int = 0, substep: int = 0, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, first: int = 0,
    ) -> Tensor:  # fmt: skip
        """Draws (n, d). Normals and uniforms are made of different blocks of random bits."""
        shared: dict[str, Any] = {
            "seed": seed, "stream": stream, "step": step, "first_chain": first_chain,
            "substep": substep, "device": device or self.like.device,
            "dtype": dtype or self.like.dtype,
        }  # fmt: skip
        after = first + BLOCK * math.ceil(self.normal.dim / BLOCK)
        parts = (
            self.normal.draw(n, first=first, **shared),
            self.torus.draw(n, first=after, **shared),
        )
        return torch.cat(parts, 1)[:, self.back]

    def place(self, xi: Tensor) -> Tensor:
        """z of standard normal ξ in the coordinates of the normal, uniform ξ in those of the torus."""
        normal, torus = self._split(xi)
        return torch.cat((self.normal.place(normal), self.torus.place(torus)), 1)[:, self.back]

    def log_prob(self, z: Tensor) -> Tensor:
        normal, torus = self._split(z)
        return self.normal.log_prob(normal) + self.torus.log_prob(torus)

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        ordered = z[:, self.order]
        return ordered[:, : self.normal.dim], ordered[:, self.normal.dim :]

    def extra_repr(self) -> str:
        return f"circular={self.circular}"


# ---- checks --------------------------------------------------------------------------------------


def check_dim(dim: object, name: str = "dim", least: int = 1) -> int:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{name} must be an integer, got {dim!r}")
    if dim < least:
        raise ValueError(f"{name} must be at least {least}, got {dim}")
    return dim


def check_coordinates(coordinates: Any, dim: int, name: str) -> tuple[int, ...]:
    """Different integers in 0 … dim − 1, in the order given."""
    found = tuple(check_dim(i, name, least=0) for i in coordinates)
    if len(set(found)) != len(found) or any(i >= dim for i in found):
        raise ValueError(f"{name} must be different coordinates below {dim}, got {coordinates}")
    return found


def check_square(matrix: Tensor, name: str) -> int:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"{name} must be (d, d), got shape {tuple(matrix.shape)}")
    return len(matrix)


def _finite(value: Any, name: str) -> Tensor:
    tensor = torch.as_tensor(value).detach().to("cpu", torch.float64, copy=True)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got {value}")
    return tensor


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    symmetric = 0.5 * (matrix + matrix.T)
    asymmetry = float((matrix - matrix.T).abs().max())
    if asymmetry > 1e-5 * float(matrix.abs().max()):  # A Aᵀ in float32 is symmetric to about 1e-7
        raise ValueError(f"{name} must be symmetric, differs by {asymmetry}")
    lower, failed = torch.linalg.cholesky_ex(symmetric)
    if int(failed):
        least = float(torch.linalg.eigvalsh(symmetric)[0])
        raise ValueError(f"{name} must be positive definite, least eigenvalue {least:.3g}")
    return lower


def _factors(covariance: Any, d: int) -> tuple[Tensor, Tensor]:
    """L and L⁻¹ in the form of the covariance."""
    covariance = _finite(covariance, "covariance")
    if covariance.shape not in ((), (d,), (d, d)):
        raise ValueError(
            f"covariance must be (), {(d,)} or {(d, d)} for {d} coordinates, got shape "
            f"{tuple(covariance.shape)}"
        )
    if covariance.ndim < 2:
        if not bool((covariance > 0).all()):
            raise ValueError(f"covariance must have positive variances, got {covariance}")
        return covariance.sqrt(), covariance.rsqrt()
    lower = _cholesky(covariance, "covariance")
    return lower, torch.linalg.solve_triangular(lower, torch.eye(d).to(lower), upper=False)
