"""Coupling layers: some coordinates v move, by an elementwise map that the others u choose.

    x_u = z_u,    x_v = f(z_v; θ(u))        so    ln|det| = Σ ln f′,    and the inverse needs θ(u) only

of Dinh, Sohl-Dickstein and Bengio (2017), arXiv 1605.08803. The affine one has the form that Grenioux,
Durmus, Moulines and Gabrié (2023), arXiv 2302.04763, use: shift before scale, and a bound on both,

    f(v) = (v + a T(u)) exp(a tanh S(u)),

with networks S and T. `RealNVP` is a stack of the same with all weights in one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pysamp import rng
from pysamp.nets.bases import check_coordinates, check_dim
from pysamp.nets.mlp import MLP

# Substeps of the stream "start" beyond the layers of an MLP, which count from 0.
_MASKS = 1 << 20
SHIFTS = _MASKS + 1
ORDERS = _MASKS + 2


class AffineCoupling(nn.Module):
    """v ← (v + a T(u)) e^{a tanh S(u)} for the coordinates `moved` of `dim`, in flat points (n, dim).

    a: `bound`, the largest log scale; 1/n_blocks in the paper's stacks of 2 n_blocks couplings. hidden,
    depth, init_scale, seed, index: those of the two networks, see `MLP`.

    Raises ValueError unless `moved` is some but not all of the coordinates.
    """

    def __init__(
        self, dim: int, moved: Sequence[int], hidden: int = 128, depth: int = 3, *,
        bound: float = 1.0, init_scale: float = 1e-6, seed: int = 0, index: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < bound < math.inf:
            raise ValueError(f"bound must be positive and finite, got {bound}")
        self.split, self.bound = Split(dim, moved), float(bound)
        read, moves = len(self.split.kept), len(self.split.moved)
        self.scale, self.shift = (
            MLP(read, hidden, depth, moves, init_scale, seed=seed, index=2 * index + k)
            for k in range(2)
        )

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u, v = self.split(z)
        s, t = self._scale_and_shift(u)
        return self.split.merge(z, (v + t) * s.exp()), s.sum(1)

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, v = self.split(x)
        s, t = self._scale_and_shift(u)
        return self.split.merge(x, v * (-s).exp() - t), -s.sum(1)

    def scale_weights(self) -> list[Tensor]:
        """The weight matrices of S, which a penalty may act on."""
        return list(self.scale.weights)

    def _scale_and_shift(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.bound * torch.tanh(self.scale(u)), self.bound * self.shift(u)


class Split(nn.Module):
    """x (n, dim) -> its coordinates (kept, moved), and back."""

    kept: Tensor  # int64
    moved: Tensor  # int64

    def __init__(self, dim: int, moved: Sequence[int]) -> None:
        super().__init__()
        check_dim(dim, least=2)
        chosen = check_coordinates(moved, dim, "moved")
        if not 0 < len(chosen) < dim:
            raise ValueError(f"moved must be some but not all of {dim} coordinates, got {moved}")
        kept = [i for i in range(dim) if i not in chosen]
        self.register_buffer("kept", torch.tensor(kept))
        self.register_buffer("moved", torch.tensor(chosen))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.kept], x[:, self.moved]

    def merge(self, x: Tensor, v: Tensor) -> Tensor:
        """x with `moved` replaced."""
        return x.index_copy(1, self.moved, v)

    def extra_repr(self) -> str:
        return f"moved={self.moved.tolist()}"


def random_masks(dim: int, n_layers: int, seed: int) -> list[list[int]]:
    """What each layer moves: a random half of the coordinates, the other half, another random half, …"""
    masks = []
    for pair in range((n_layers + 1) // 2):
        keys = rng.uniform((1, dim), seed=seed, stream="start", step=pair, substep=_MASKS)[0]
        order = keys.argsort(stable=True).tolist()
        masks += [sorted(order[: dim // 2]), sorted(order[dim // 2 :])]
    return masks[:n_layers]
