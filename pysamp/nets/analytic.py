"""Flows in closed form, as imperfect maps with a known fault: linear maps, and a funnel of the wrong width.

The maps by which Grenioux, Durmus, Moulines, Gabrié (ICML 2023), arXiv 2302.04763, try what a flow must be
good for: three Gaussians and Neal's funnel. Where the fault is a factor s between two Gaussians in d
coordinates, independent proposals are accepted with probability 2 I(d/2, d/2; 1/(1 + s²)), s > 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pysamp.nets.bases import Base, check_square
from pysamp.nets.flow import Flow


class LinearFlow(Flow):
    """x = A z + shift, z from the base; A (d, d) invertible, shift (d,) or 0.

    Constants are kept in float64 and used in the dtype of the points.
    Raises ValueError for shapes that do not match, numbers that are not finite, a singular matrix.
    """

    form: Tensor  # empty, of the dtype and device of the points
    matrix: Tensor
    unmatrix: Tensor
    shift: Tensor
    log_det: Tensor

    def __init__(self, matrix: Any, shift: Any = None, base: Base | None = None) -> None:
        matrix = torch.as_tensor(matrix).detach().to("cpu", torch.float64, copy=True)
        d = check_square(matrix, "matrix")
        shift = matrix.new_zeros(d) if shift is None else torch.as_tensor(shift).detach()
        shift = shift.to("cpu", torch.float64, copy=True)
        if shift.shape != (d,):
            raise ValueError(f"shift must be ({d},), got shape {tuple(shift.shape)}")
        for name, value in (("matrix", matrix), ("shift", shift)):
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite, got {value}")
        inverse, failed = torch.linalg.inv_ex(matrix)
        size = float(matrix.abs().sum(0).max() * inverse.abs().sum(0).max())  # condition number
        if int(failed) or not size < 1e15:
            raise ValueError(f"matrix must be invertible, got condition number {size:.3g}")
        super().__init__(d, base)
        self.register_buffer("form", torch.empty(0), persistent=False)
        self.register_buffer("matrix", matrix)
        self.register_buffer("unmatrix", inverse)
        self.register_buffer("shift", shift)
        self.register_buffer("log_det", torch.linalg.slogdet(matrix).logabsdet)

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = z @ self.matrix.to(z.dtype).T + self.shift.to(z.dtype)
        return x, self.log_det.to(z.dtype).expand(len(z))

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - self.shift.to(x.dtype)) @ self.unmatrix.to(x.dtype).T
        return z, -self.log_det.to(x.dtype).expand(len(x))


class FunnelFlow(Flow):
    """x_0 = √variance z_0, x_i = e^(x_0/2) z_i / √beta: Neal's funnel for beta = 1, its neck always right.

    log|det dx/dz| = ½ ln variance − ½ (d − 1) ln beta + ½ (d − 1) x_0.
    Raises ValueError for dim below 2, and for a beta or variance that is not positive and finite.
    """

    form: Tensor  # empty, of the dtype and device of the points

    def __init__(self, dim: int, beta: float = 1.0, variance: float = 3.0) -> None:
        super().__init__(dim)
        if self.dim < 2:
            raise ValueError(f"dim must be at least 2, got {dim}")
        for name, value in (("beta", beta), ("variance", variance)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self.beta, self.variance = float(beta), float(variance)
        self.register_buffer("form", torch.empty(0), persistent=False)

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        neck = math.sqrt(self.variance) * z[:, :1]  # (n, 1)
        x = torch.cat([neck, torch.exp(0.5 * neck) * z[:, 1:] / math.sqrt(self.beta)], 1)
        return x, self._log_det(neck[:, 0])

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        neck = x[:, :1]
        rest = math.sqrt(self.beta) * torch.exp(-0.5 * neck) * x[:, 1:]
        return torch.cat([neck / math.sqrt(self.variance), rest], 1), -self._log_det(neck[:, 0])

    def _log_det(self, neck: Tensor) -> Tensor:
        constant = math.log(self.variance) - (self.dim - 1) * math.log(self.beta)
        return 0.5 * (constant + (self.dim - 1) * neck)

    def extra_repr(self) -> str:
        return f"{self.dim}, beta={self.beta:g}, variance={self.variance:g}"
