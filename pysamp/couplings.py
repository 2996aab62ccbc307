"""The torch definition of a stack of affine couplings; csrc/coupling.h is the same in C++.

Coupling c reads the coordinates u that it keeps and moves the others v, with S and T small networks of u:

    s = a tanh S(u),  t = a T(u);     forward  v ← (v + t) e^s,  ln det += Σ s
                                      inverse  v ← v e^{−s} − t, ln det −= Σ s

Real NVP of Dinh, Sohl-Dickstein and Bengio (2017), arXiv 1605.08803, in the form of Grenioux, Durmus,
Moulines and Gabrié (2023), arXiv 2302.04763: the shift comes before the scale, and a = 1/(number of pairs
of couplings) bounds every log scale. Even couplings move the first set of coordinates and read the second,
odd ones the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """What the weights of a stack look like.

    alternate: the first set is the coordinates 0, 2, 4, …; else the first ⌊dim/2⌋. nets: 2 for networks S
    and T apart, 1 for one network with both as outputs.
    """

    dim: int
    n_couplings: int
    hidden: int
    n_hidden: int  # hidden layers of each network
    nets: int
    alternate: bool

    def layout(self) -> list[int]:
        """The integers that the native kernel reads."""
        return [
            self.dim,
            self.n_couplings,
            self.hidden,
            self.n_hidden,
            self.nets,
            int(self.alternate),
        ]

    @classmethod
    def of_layout(cls, layout: Sequence[int]) -> Shape:
        dim, n_couplings, hidden, n_hidden, nets, alternate = layout
        return cls(dim, n_couplings, hidden, n_hidden, nets, bool(alternate))

    def sizes(self, coupling: int) -> tuple[int, int]:
        """How many coordinates it reads, and how many it moves."""
        first = (self.dim + 1) // 2 if self.alternate else self.dim // 2
        moved = first if coupling % 2 == 0 else self.dim - first
        return self.dim - moved, moved

    def parameters(self, coupling: int) -> list[tuple[int, ...]]:
        """Shapes of its tensors in their order: weight (nets, in, out) and bias (nets, out) of each layer.

        The first layer has one input for all networks and is stored as one, (in, nets · hidden).
        """
        read, moved = self.sizes(coupling)
        shapes: list[tuple[int, ...]] = [
            (read, self.nets * self.hidden),
            (self.nets * self.hidden,),
        ]
        for _ in range(self.n_hidden - 1):
            shapes += [(self.nets, self.hidden, self.hidden), (self.nets, self.hidden)]
        out = 2 * moved // self.nets
        return [*shapes, (self.nets, self.hidden, out), (self.nets, out)]

    def unpack(self, flat: Tensor) -> list[list[Tensor]]:
        """Views of all tensors, which stand one behind the other in `flat`."""
        shapes = [self.parameters(c) for c in range(self.n_couplings)]
        sizes = [math.prod(shape) for group in shapes for shape in group]
        pieces = iter(flat.split(sizes))  # one node of the graph: its gradient is one concatenation
        return [[next(pieces).view(shape) for shape in group] for group in shapes]

    def n_parameters(self) -> int:
        return sum(
            math.prod(shape) for c in range(self.n_couplings) for shape in self.parameters(c)
        )


def conditioner(u: Tensor, tensors: Sequence[Tensor], nets: int) -> tuple[Tensor, Tensor]:
    """S(u) and T(u), (n, moved) each, by networks with rectified linear units."""
    h = torch.relu(torch.addmm(tensors[1], u, tensors[0]))  # (n, nets · hidden)
    parts = list(h.chunk(nets, 1))
    for weight, bias in zip(tensors[2::2], tensors[3::2], strict=True):
        last = weight is tensors[-2]
        parts = [torch.addmm(bias[k], part, weight[k]) for k, part in enumerate(parts)]
        parts = parts if last else [torch.relu(part) for part in parts]
    found = parts[0].chunk(2, 1) if nets == 1 else parts
    return found[0], found[1]


def stack(
    x: Tensor, couplings: Sequence[Sequence[Tensor]], shape: Shape, scale: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    """All couplings in turn, or their inverses in the opposite order: (n, d) -> (n, d) and ln det (n,).

    `scale` is a. The two sets of coordinates are kept apart until the end: nothing is masked.
    """
    first = shape.sizes(0)[1]
    sets = [x[:, ::2], x[:, 1::2]] if shape.alternate else [x[:, :first], x[:, first:]]
    log_det = x.new_zeros(x.shape[0])
    order = range(shape.n_couplings)
    for c in reversed(order) if inverse else order:
        raw_scale, raw_shift = conditioner(sets[1 - c % 2], couplings[c], shape.nets)
        s, t = scale * torch.tanh(raw_scale), scale * raw_shift
        v = sets[c % 2]
        if inverse:
            sets[c % 2], log_det = v * torch.exp(-s) - t, log_det - s.sum(1)
        else:
            sets[c % 2], log_det = (v + t) * torch.exp(s), log_det + s.sum(1)
    if not shape.alternate:
        return torch.cat(sets, 1), log_det
    out = torch.empty_like(x)
    out = out.index_copy(1, torch.arange(0, shape.dim, 2, device=x.device), sets[0])
    return out.index_copy(1, torch.arange(1, shape.dim, 2, device=x.device), sets[1]), log_det


def affine_couplings(
    x: Tensor, params: Tensor, scale: float, layout: list[int], inverse: bool
) -> tuple[Tensor, Tensor]:
    """As `stack`, with the weights in one flat tensor."""
    shape = Shape.of_layout(layout)
    return stack(x, shape.unpack(params), shape, scale, inverse)


def affine_couplings_vjp(
    x: Tensor, params: Tensor, scale: float, layout: list[int], inverse: bool, image: Tensor,
    grad_image: Tensor, grad_log_det: Tensor, weights: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and, if `weights`, of params; differentiable once more. `image` is not needed here."""
    given = (x, params, grad_image, grad_log_det)
    again = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        params = params if params.requires_grad or not weights else params.detach().requires_grad_()
        out, log_det = affine_couplings(x, params, scale, layout, inverse)
        found = torch.autograd.grad(
            (out, log_det), (x, params) if weights else (x,), (grad_image, grad_log_det),
            create_graph=again,
        )  # fmt: skip
    return found[0], found[1] if weights else params.new_empty(0)
