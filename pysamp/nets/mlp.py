"""The small network that the layers of flows are conditioned by: linear maps and rectified units.

Depth counts the layers of numbers, input and output included, as in the reference code of Grenioux,
Durmus, Moulines and Gabrié (2023), arXiv 2302.04763: depth 3 has one hidden layer.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from pysamp import rng
from pysamp.nets.bases import check_dim


class MLP(nn.Module):
    """(n, in_size) -> (n, out_size) through depth − 2 hidden layers of `hidden` rectified units.

    Biases start at 0, weights as N(0, (scale/√fan_in)²) from (seed, index): `init_scale` in the last
    layer, `hidden_scale` (None: init_scale too, as in that paper) in the others. √2 in the hidden layers
    keeps the size of what passes through them (He, Zhang, Ren and Sun 2015, arXiv 1502.01852).

    Raises ValueError for sizes below 1, depth below 2, scales that are not positive.
    """

    def __init__(
        self, in_size: int, hidden: int, depth: int, out_size: int, init_scale: float = 1e-6, *,
        hidden_scale: float | None = None, seed: int = 0, index: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [
            check_dim(in_size, "in_size"),
            *[check_dim(hidden, "hidden")] * (check_dim(depth, "depth", least=2) - 2),
            check_dim(out_size, "out_size"),
        ]
        hidden_scale = init_scale if hidden_scale is None else hidden_scale
        for name, scale in (("init_scale", init_scale), ("hidden_scale", hidden_scale)):
            if not 0 < scale < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {scale}")
        weights, biases = [], []
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            scale = init_scale if layer == depth - 2 else hidden_scale
            noise = rng.normal(
                (1, fan_out, fan_in), seed=seed, stream="start", step=index, substep=layer
            )[0]
            weights.append(nn.Parameter(scale / math.sqrt(fan_in) * noise))
            biases.append(nn.Parameter(torch.zeros(fan_out)))
        self.weights, self.biases = nn.ParameterList(weights), nn.ParameterList(biases)

    def forward(self, x: Tensor) -> Tensor:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = nn.functional.linear(torch.relu(x) if layer else x, weight, bias)
        return x

    def extra_repr(self) -> str:
        return " → ".join(str(w.shape[1]) for w in self.weights) + f" → {len(self.biases[-1])}"
