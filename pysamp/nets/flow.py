"""Flows: invertible maps x = T(z) with their log-determinants, as densities that are drawn from exactly.

    log q(x) = log p_base(z) + ln|det dz/dx| = log p_base(z) − ln|det dx/dz|,    z = T⁻¹(x)

(Rezende and Mohamed 2015, arXiv 1505.05770). `forward` goes from latent z to data x, `inverse` back; a
layer has the same two maps, on flat (n, d) tensors, by the names `transform` and `untransform`. z is
always flat; x has the event shape. Everything but the draws is differentiable.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pysamp.nets.bases import Base, Normal, check_dim

# Relative error of a round trip that still counts as an inverse: to find maps that are none, not rounding.
# Ours return to 1e-5 and 1e-14 where draws are; a trained spline flow in float32 to 4e-4 where its slope is
# e^8. Flows that invert by bisection or by integration stop near 1e-5. Log-determinants are granted ten
# times as much.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-4}


@runtime_checkable
class Layer(Protocol):
    """An invertible map on flat points: each method returns (n, d) and its own log|det| (n,)."""

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Flow(nn.Module, ABC):
    """A density on events of `event_shape`, the image of `base` under an invertible map.

    Subclasses give `transform` and `untransform` on flat (n, d) points. `circular`: flat coordinates
    of x that are angles in [−π, π).

    Points must have the device and dtype of the parameters (of the buffers, where there are none).
    Raises ValueError for points of another shape, device or dtype, and for a base of another dimension.
    """

    base: Base
    circular: tuple[int, ...] = ()

    def __init__(self, event_shape: int | Sequence[int], base: Base | None = None) -> None:
        super().__init__()
        shape = tuple(event_shape) if isinstance(event_shape, Sequence) else (event_shape,)
        if not shape:
            raise ValueError("event_shape must not be empty, got ()")
        self.event_shape = tuple(check_dim(size, "event_shape") for size in shape)
        self.dim = math.prod(self.event_shape)
        if base is None:
            base = Normal(self.dim)
        if not isinstance(base, Base):
            raise TypeError(f"base must be a base density, got {type(base).__name__}")
        if base.dim != self.dim:
            raise ValueError(
                f"base must have dimension {self.dim}, as events of {self.event_shape} have, got "
                f"{base.dim}"
            )
        self.base = base

    @abstractmethod
    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, d) -> x (n, d), log|det dx/dz| (n,)"""

    @abstractmethod
    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, d) -> z (n, d), log|det dz/dx| (n,)"""

    @property
    def like(self) -> Tensor:
        """A tensor of the device and dtype of the flow."""
        for tensor in chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
        return torch.empty(0)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (n, d) -> x (n, *event_shape), log|det dx/dz| (n,)"""
        self._check(z, (self.dim,), "z")
        x, log_det = self.transform(z)
        if x.shape != z.shape:
            raise ValueError(
                f"transform of {type(self).__name__} must return {tuple(z.shape)} as it was given, got "
                f"{tuple(x.shape)}"
            )
        return x.reshape(len(z), *self.event_shape), log_det

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, *event_shape) -> z (n, d), log|det dz/dx| (n,)"""
        self._check(x, self.event_shape, "x")
        return self.untransform(x.reshape(len(x), self.dim))

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density; (n, *event_shape) -> (n,)"""
        z, log_det = self.inverse(x)
        return self.base.log_prob(z) + log_det

    def push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = T(z) and log q(x) from one pass: z (n, d) -> (n, *event_shape), (n,)"""
        x, log_det = self.forward(z)
        return x, self.base.log_prob(z) - log_det

    def sample_and_log_prob(
        self, n: int, *, seed: int, stream: int | str = "proposal", step: int = 0,
        first_chain: int = 0, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Draws (n, *event_shape) and their log q (n,), without a graph; row r is that of chain
        first_chain + r. For gradients through draws, `push` a draw of the base.

        Raises ValueError for a device or dtype that is not the flow's.
        """
        like = self.like
        for name, asked, own in (("device", device, like.device), ("dtype", dtype, like.dtype)):
            if asked is not None and not _same(asked, own):
                raise ValueError(f"{name} must be that of the flow, {own}, got {asked}")
        with torch.no_grad():
            z = self.base.draw(
                n, seed=seed, stream=stream, step=step, first_chain=first_chain,
                device=like.device, dtype=like.dtype,
            )  # fmt: skip
            return self.push(z)

    def sample(
        self, n: int, *, seed: int, step: int = 0, first_chain: int = 0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """The points of `sample_and_log_prob`."""
        return self.sample_and_log_prob(
            n, seed=seed, step=step, first_chain=first_chain, device=device, dtype=dtype
        )[0]

    def _check(self, points: Tensor, event: tuple[int, ...], name: str) -> None:
        if points.ndim == 0 or tuple(points.shape[1:]) != event:
            sizes = ", ".join(str(size) for size in event)
            raise ValueError(f"{name} must be (n, {sizes}), got shape {tuple(points.shape)}")
        like = self.like
        if points.dtype != like.dtype or points.device != like.device:
            raise ValueError(
                f"{name} must be {like.dtype} on {like.device}, as the flow is, got {points.dtype} "
                f"on {points.device}"
            )


class Compose(Flow):
    """Layers one after the other: the first is applied to z first.

    layers: anything with `transform` and `untransform`, flows too (their bases are not used).
    event_shape: (base.dim,) where only a base is given. circular: see `Flow`.
    Raises ValueError without layers, where neither event_shape nor base is given, and for a layer of
    another number of coordinates.
    """

    def __init__(
        self, *layers: Any, event_shape: int | Sequence[int] | None = None,
        base: Base | None = None, circular: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        if event_shape is None:
            if base is None:
                raise ValueError("event_shape must be given where base is not, got None")
            event_shape = (base.dim,)
        super().__init__(event_shape, base)
        if not layers:
            raise ValueError("layers must not be empty")
        for layer in layers:
            if not isinstance(layer, Layer) or not isinstance(layer, nn.Module):
                raise TypeError(
                    "layers must be torch modules with transform and untransform, got "
                    f"{type(layer).__name__}"
                )
            if isinstance(layer, Flow) and layer.dim != self.dim:
                raise ValueError(
                    f"layers must have {self.dim} coordinates, got {type(layer).__name__} of {layer.dim}"
                )
        self.layers = nn.ModuleList(layers)
        self.circular = tuple(circular)

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(len(z))
        for layer in self.layers:
            z, part = layer.transform(z)  # type: ignore[operator]
            self._check_layer(layer, z)
            log_det = log_det + part
        return z, log_det

    def untransform(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for layer in reversed(self.layers):
            x, part = layer.untransform(x)  # type: ignore[operator]
            self._check_layer(layer, x)
            log_det = log_det + part
        return x, log_det

    def _check_layer(self, layer: nn.Module, points: Tensor) -> None:
        if points.shape[1] != self.dim:
            raise ValueError(
                f"layers must have {self.dim} coordinates, got {type(layer).__name__} that returns "
                f"{points.shape[1]}"
            )


def check_invertible(flow: Flow, x: Tensor) -> None:
    """Raises ValueError unless forward(inverse(x)) is x, with log-determinants that cancel, and draws have
    the density by which they were made.

    x: (n, *event_shape); as many draws. Errors of points are relative to 1 + |x|, angles compared as
    angles, those of logarithms relative to 1 + |ln det|; the worst row is named. Tolerance 1e-3 in
    float32, 1e-4 in float64, ten times that for logarithms. Cost: two passes in each direction.
    """
    with torch.no_grad():
        z, inverse_log_det = flow.inverse(x)
        again, log_det = flow.forward(z)
    off = (again - x).flatten(1)
    circular = list(flow.circular)
    off[:, circular] = torch.remainder(off[:, circular] + math.pi, 2 * math.pi) - math.pi
    error = (off.abs() / (1 + x.flatten(1).abs())).amax(1)
    finite = torch.isfinite(error) & torch.isfinite(z).all(1) & torch.isfinite(inverse_log_det)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"flow does not invert: inverse(x) or its image is not finite at row {row}, "
            f"x = {x[row].flatten()[:8].tolist()}"
        )
    tolerance = TOLERANCE[x.dtype]
    _within(error, tolerance, "forward(inverse(x)) is off by")
    sum_of_logs = (log_det + inverse_log_det).abs() / (1 + log_det.abs())
    _within(sum_of_logs, 10 * tolerance, "log-determinants of forward and inverse differ by")
    # A forward map with a bounded range may return all that, and still send many z to one x.
    with torch.no_grad():
        z = flow.base.draw(len(x), seed=0, stream="check", device=x.device, dtype=x.dtype)
        drawn, log_det = flow.forward(z)
        log_q = flow.base.log_prob(z) - log_det
        difference = (log_q - flow.log_prob(drawn)).abs() / (1 + log_det.abs())
    _within(difference, 10 * tolerance, "densities by forward and by inverse of draws differ by")


def check_event(proposal: Any, target: Any) -> None:
    """Raises ValueError unless both have the same event shape."""
    own, other = tuple(proposal.event_shape), tuple(target.event_shape)
    if own != other:
        raise ValueError(
            f"{type(proposal).__name__} must have the event shape of the target, {other}, got {own}"
        )


def as_flow(obj: Any) -> Flow:
    """A flow as it is, one of zuko in the form of ours. Raises TypeError for anything else."""
    if isinstance(obj, Flow):
        return obj
    from pysamp.nets import zuko  # it needs Flow

    wrapped = zuko.wrap(obj)
    if wrapped is None:
        raise TypeError(f"flow must be a pysamp.nets.Flow or a zuko flow, got {type(obj).__name__}")
    return wrapped


def _within(error: Tensor, tolerance: float, what: str) -> None:
    if len(error) and not bool(error.max() <= tolerance):
        row = int(error.argmax())
        raise ValueError(
            f"flow does not invert: {what} {float(error[row]):.3g} at row {row} (relative; at most "
            f"{tolerance:g} in {error.dtype})"
        )


def _same(asked: torch.device | str | torch.dtype, own: torch.device | torch.dtype) -> bool:
    """Whether it is the same, where "cuda" names any CUDA device."""
    if isinstance(own, torch.dtype) or isinstance(asked, torch.dtype):
        return asked == own
    wanted = torch.device(asked)
    return wanted.type == own.type and wanted.index in (None, own.index)
