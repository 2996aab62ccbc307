"""Layers that mix coordinates: fixed permutations and learned invertible matrices, x = W z.

    "lu"           W = Q L U, L unit lower and U upper triangular,    |det| = Π U_ii
    "orthogonal"   W = Q exp(A − Aᵀ),                                 |det| = 1

with a fixed rotation or identity Q. Kingma and Dhariwal (2018), arXiv 1807.03039, have the first with a
permutation for Q. The logarithms of the U_ii are learned, so they stay positive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pysamp import rng
from pysamp.nets.bases import check_coordinates, check_dim
from pysamp.nets.coupling import ORDERS


class Permutation(nn.Module):
    """x_i = z_{order[i]}. `Permutation.reverse(d)` turns round, `Permutation.random(d, seed=)` shuffles."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        check_coordinates(order, len(order), "order")
        self.register_buffer("order", torch.tensor(order))
        self.register_buffer("back", torch.tensor(order).argsort())

    @classmethod
    def reverse(cls, dim: int) -> Permutation:
        return cls(range(check_dim(dim) - 1, -1, -1))

    @classmethod
    def random(cls, dim: int, *, seed: int, index: int = 0) -> Permutation:
        keys = rng.uniform(
            (1, check_dim(dim)), seed=seed, stream="start", step=index, substep=ORDERS
        )[0]
        return cls(keys.argsort(stable=True).tolist())

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_width(z, len(self.order), self)
        return z[:, self.order], z.new_zeros(len(z))

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_width(x, len(self.order), self)
        return x[:, self.back], x.new_zeros(len(x))


class InvertibleLinear(nn.Module):
    """x = W z with a matrix (dim, dim) that is learned; form: "lu" or "orthogonal".

    seed: W starts as a random rotation; None: as the identity. Raises ValueError for arguments.
    """

    start: Tensor  # Q
    above: Tensor  # (2, dim (dim − 1)/2) int64, where the entries of A stand

    def __init__(
        self, dim: int, form: str = "lu", *, seed: int | None = None, index: int = 0
    ) -> None:
        super().__init__()
        if form not in ("lu", "orthogonal"):
            raise ValueError(f'form must be "lu" or "orthogonal", got {form!r}')
        self.dim, self.form = check_dim(dim), form
        self.register_buffer(
            "start", torch.eye(dim) if seed is None else _rotation(dim, seed, index)
        )
        if form == "lu":
            # The strict triangles of L and U, and the logarithm of the diagonal of U.
            self.entries = nn.Parameter(torch.zeros(dim, dim))
        else:
            # The strict upper triangle of A, row by row.
            self.entries = nn.Parameter(torch.zeros(dim * (dim - 1) // 2))
            self.register_buffer("above", torch.triu_indices(dim, dim, 1), persistent=False)

    def weight(self) -> Tensor:
        """W (dim, dim)"""
        if self.form == "orthogonal":
            return self._rotation()
        lower, upper = self._triangles()
        return self.start.to(lower) @ lower @ upper

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_width(z, self.dim, self)
        return z @ self.weight().T, self._log_det(z)

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_width(x, self.dim, self)
        if self.form == "orthogonal":
            return x @ self._rotation(), -self._log_det(x)
        lower, upper = self._triangles()
        columns = torch.linalg.solve_triangular(
            lower, (x @ self.start.to(x)).T, upper=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper, columns, upper=True).T, -self._log_det(x)

    def _log_det(self, points: Tensor) -> Tensor:
        if self.form == "orthogonal":
            return points.new_zeros(len(points))
        return self.entries.diagonal().sum().expand(len(points))

    def _triangles(self) -> tuple[Tensor, Tensor]:
        diagonal = self.entries.diagonal()
        lower = self.entries.tril(-1) + torch.eye(self.dim).to(self.entries)
        return lower, self.entries.triu(1) + torch.diag(diagonal.exp())

    def _rotation(self) -> Tensor:
        above = self.entries.new_zeros(self.dim, self.dim)
        above = above.index_put((self.above[0], self.above[1]), self.entries)
        return self.start.to(above) @ torch.linalg.matrix_exp(above - above.T)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.form!r}"


def check_width(points: Tensor, dim: int, layer: nn.Module) -> None:
    """Raises ValueError unless points are (n, dim)."""
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(
            f"points must be (n, {dim}) for {type(layer).__name__} of {dim} coordinates, got shape "
            f"{tuple(points.shape)}"
        )


def _rotation(dim: int, seed: int, index: int) -> Tensor:
    """A random orthogonal matrix with determinant 1, in float64 so that the module may be converted."""
    noise = rng.normal(
        (1, dim, dim), seed=seed, stream="start", step=index, substep=ORDERS, dtype=torch.float64
    )[0]
    q, r = torch.linalg.qr(noise)
    q = q * r.diagonal().sign()  # else the law is not that of Haar
    q[:, 0] *= torch.linalg.det(q).sign()
    return q
