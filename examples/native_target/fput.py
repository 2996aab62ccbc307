"""The Fermi–Pasta–Ulam–Tsingou chain (Los Alamos report LA-1940, 1955) with its native energy.

    log p(x) = −β Σ_{i=0}^{n} V(x_i − x_{i−1}),   V(r) = ½ r² + (a/3) r³ + (b/4) r⁴,

with walls x_{−1} = x_n = 0. The torch text below is the definition. fput.cpp states the same
operations in the same order, so that native chains and torch chains are equal to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from pysamp.ops import sum32
from pysamp.target import NativeEnergy

import _fput  # isort: skip  (after torch, whose OpenMP runtime it then shares)


@dataclass(frozen=True)
class Fput:
    """n_sites masses between two walls; a and b are the cubic and quartic spring constants."""

    n_sites: int
    a: float = 0.25
    b: float = 1.0
    beta: float = 1.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.n_sites,)

    @property
    def native(self) -> NativeEnergy:
        params = (self.beta, self.a / 3, self.b / 4, self.a, self.b)
        return NativeEnergy("fput", params, (self.n_sites,), _fput)

    def log_prob(self, x: Tensor) -> Tensor:
        return sum32(self._spring(_bonds(x))) * -self.beta

    # Optional: without it torch differentiates log_prob, and the last bits of the score may differ.
    def score(self, x: Tensor) -> Tensor:
        r = _bonds(x)
        slope = r * ((r * self.b + self.a) * r + 1.0)  # V'(r)
        return (slope[:, 1:] - slope[:, :-1]) * self.beta

    # Optional: single-site moves, for Metropolis sweeps. Masses of one colour share no spring.
    @property
    def colours(self) -> tuple[Tensor, ...]:
        sites = torch.arange(self.n_sites)
        return tuple(colour for colour in (sites[::2], sites[1::2]) if len(colour))

    def local_difference(self, x: Tensor, sites: Tensor, new: Tensor) -> Tensor:
        around = pad(x, (1, 1))
        left, old, right = around[:, sites], x[:, sites], around[:, sites + 2]
        after = self._spring(new - left) + self._spring(right - new)
        before = self._spring(old - left) + self._spring(right - old)
        return (after - before) * -self.beta

    def _spring(self, r: Tensor) -> Tensor:
        return r * r * ((r * (self.b / 4) + self.a / 3) * r + 0.5)


def _bonds(x: Tensor) -> Tensor:
    """Extensions of the springs, walls included: (n, n_sites) -> (n, n_sites + 1)."""
    return torch.diff(pad(x, (1, 1)), dim=1)
