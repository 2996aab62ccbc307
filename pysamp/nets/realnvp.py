"""The coupling flow "residual RealNVP" of Grenioux, Durmus, Moulines, Gabrié (ICML 2023), arXiv 2302.04763.

Pairs of affine couplings (`pysamp.couplings` has the formulas), each log scale at most 1/n_blocks, weights
so small at first that the flow begins as the identity. The whole stack is one native call, and so is its
gradient on a CPU. Real NVP: Dinh, Sohl-Dickstein, Bengio (2017), arXiv 1605.08803.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pysamp import _native, couplings, ops, rng
from pysamp.nets.bases import Base, check_dim
from pysamp.nets.flow import Flow


class RealNVP(Flow):
    """n_blocks pairs of affine couplings with networks [in, hidden × (depth − 2), out].

    dim: number of coordinates, or the event shape of a field. depth counts the layers of numbers, input
    and output included: 3 has one hidden layer. mask: "half" moves the first ⌊d/2⌋ coordinates, then the
    others; "alternate" the even ones, then the odd ones. conditioner: "separate" networks for scale and
    shift, the paper's, or a "joint" one with both as outputs, which costs half. base: density of z, N(0, 1)
    by default. Weights start as N(0, (init_scale/√fan_in)²), from `seed`; fan_in is d in the first layer.

    Only weights that act are stored: the paper's code, whose networks read and write all d coordinates
    behind a mask, counts 42 560 for d = 16, 5 blocks, hidden 64; 21 920 of these act.
    Raises ValueError for arguments, TypeError for a dim that is no integer.
    """

    def __init__(
        self, dim: int | tuple[int, ...], n_blocks: int = 5, hidden: int = 128, depth: int = 3, *,
        mask: str = "half", conditioner: str = "separate", init_scale: float = 1e-6,
        base: Base | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        sizes = tuple(dim) if isinstance(dim, Sequence) else (dim,)
        shape = tuple(check_dim(size) for size in sizes)
        n = math.prod(shape)
        if n < 2:
            raise ValueError(f"dim must give at least 2 coordinates, got {dim}")
        for name, value, least in (
            ("n_blocks", n_blocks, 1),
            ("hidden", hidden, 1),
            ("depth", depth, 3),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        if mask not in ("half", "alternate"):
            raise ValueError(f'mask must be "half" or "alternate", got {mask!r}')
        if conditioner not in ("separate", "joint"):
            raise ValueError(f'conditioner must be "separate" or "joint", got {conditioner!r}')
        if not 0 < init_scale < math.inf:
            raise ValueError(f"init_scale must be positive and finite, got {init_scale}")
        super().__init__(shape, base)
        self.n_blocks, self.mask, self.conditioner = n_blocks, mask, conditioner
        self.shape = couplings.Shape(
            n, 2 * n_blocks, hidden, depth - 2, 2 if conditioner == "separate" else 1,
            mask == "alternate",
        )  # fmt: skip
        pieces = []
        for c in range(self.shape.n_couplings):
            for k, size in enumerate(self.shape.parameters(c)):
                fan_in = n if k == 0 else hidden
                noise = rng.normal((1, *size), seed=seed, stream="start", step=c, substep=k)[0]
                pieces.append(
                    torch.zeros(size) if k % 2 else init_scale / math.sqrt(fan_in) * noise
                )
        # One tensor for all weights: the kernel reads it as it is, and the optimiser has one to look at.
        self.weights = nn.Parameter(torch.cat([piece.flatten() for piece in pieces]))

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(z, False)

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, True)

    def scale_weights(self) -> list[Tensor]:
        """The weight matrices of the networks for the scale, which a penalty may act on.

        A joint network is taken whole.
        """
        found = []
        for tensors in self.shape.unpack(self.weights):
            found.append(tensors[0][:, : self.shape.hidden])
            found += [weight[0] for weight in tensors[2::2]]
        return found

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        w, scale = self.weights, 1 / self.n_blocks
        native = _native.module_for(x.device) is not None and not torch.compiler.is_compiling()
        learning = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
        if not native or (learning and x.device.type != "cpu"):  # on a GPU autograd is as good
            return couplings.stack(x, self.shape.unpack(w), self.shape, scale, inverse)
        return ops.affine_couplings(x, w, scale, self.shape.layout(), inverse)

    def extra_repr(self) -> str:
        s = self.shape
        form = f'mask="{self.mask}", conditioner="{self.conditioner}"'
        depth = s.n_hidden + 2
        return f"{self.event_shape}, n_blocks={self.n_blocks}, hidden={s.hidden}, depth={depth}, {form}"
