"""Random numbers as pure functions of (seed, stream, step, chain): Philox4x32-10, no hidden state.

    key = seed (64 bits)     counter = [ block, chain, step, stream << 24 | substep ]

The same call gives the same numbers on every backend, device and number of processes. Row r of a
result belongs to the global chain first_chain + r, so a batch may be split anywhere. Source: Salmon,
Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pysamp import ops

# One stream a purpose, as in csrc/streams.h. 0–199 belong to pysamp, 200–255 to users.
STREAMS: dict[str, int] = {
    "user": 0,
    "target": 1,
    "start": 2,
    "check": 3,
    "langevin": 10,
    "momentum": 11,
    "metropolis": 12,
    "site": 13,
    "swap": 14,
    "resample": 15,
    "cluster": 16,
    "observation": 17,
    "importance": 18,
    "diffusion": 19,
    "proposal": 20,
    "select": 21,
    "ellipse": 22,
    "training": 23,
}

_LIMIT = 1 << 32


def _stream_word(stream: int | str, substep: int) -> int:
    if isinstance(stream, str):
        if stream not in STREAMS:
            raise ValueError(f"stream must be one of {', '.join(STREAMS)} or 0…255, got {stream!r}")
        stream = STREAMS[stream]
    if not 0 <= stream < 256:
        raise ValueError(f"stream must lie in 0…255, got {stream}")
    if not 0 <= substep < 1 << 24:
        raise ValueError(f"substep must lie in 0…2^24 − 1, got {substep}")
    return stream << 24 | substep


def _draw(
    op: ops.Op, shape: tuple[int, ...], seed: int, stream: int | str, step: int, first_chain: int,
    device: torch.device | str | None, dtype: torch.dtype, substep: int, first: int,
) -> Tensor:  # fmt: skip
    shape = tuple(int(s) for s in shape)
    if not shape or any(s < 0 for s in shape):
        raise ValueError(f"shape must be (n_chains, …) without negative sizes, got {shape}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in 0…2^64 − 1, got {seed}")
    if not 0 <= step < _LIMIT:
        raise ValueError(f"step must lie in 0…2^32 − 1, got {step}")
    if first_chain < 0 or first_chain + shape[0] > _LIMIT:
        raise ValueError(f"first_chain must keep chains below 2^32, got {first_chain}")
    if dtype not in (torch.float32, torch.float64, torch.int32):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    n = math.prod(shape[1:])
    per_block = 2 if dtype == torch.float64 else 4
    if first < 0 or first + n > per_block * _LIMIT:
        raise ValueError(
            f"first must not be negative, and must keep blocks of {per_block} below 2^32, got {first}"
        )
    like = torch.empty(0, dtype=dtype, device=device)
    seed = seed - (1 << 64) if seed >= 1 << 63 else seed  # the schema's int is signed
    out = op(like, shape[0], n, seed, step, _stream_word(stream, substep), first_chain, first)
    return out.reshape(shape)


def uniform(
    shape: tuple[int, ...], *, seed: int, stream: int | str = 0, step: int = 0, first_chain: int = 0,
    device: torch.device | str | None = None, dtype: torch.dtype = torch.float32, substep: int = 0,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """Uniform in the open interval (0, 1); shape: (n_chains, *event).

    float32 holds 23 random bits, float64 52. `first` skips numbers of each chain's stream.
    Raises ValueError where an argument leaves its word of the counter.
    """
    return _draw(ops.uniform, shape, seed, stream, step, first_chain, device, dtype, substep, first)


def normal(
    shape: tuple[int, ...], *, seed: int, stream: int | str = 0, step: int = 0, first_chain: int = 0,
    device: torch.device | str | None = None, dtype: torch.dtype = torch.float32, substep: int = 0,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """Standard normal by Box–Muller; shape: (n_chains, *event). Tails to 6.7σ (float64: 8.6σ).

    Raises as `uniform`.
    """
    return _draw(ops.normal, shape, seed, stream, step, first_chain, device, dtype, substep, first)


def log_uniform(
    shape: tuple[int, ...], *, seed: int, stream: int | str = 0, step: int = 0, first_chain: int = 0,
    device: torch.device | str | None = None, dtype: torch.dtype = torch.float32, substep: int = 0,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """ln u, u uniform, with the resolution near u = 0 that acceptance tests need. Raises as `uniform`."""
    return _draw(
        ops.log_uniform, shape, seed, stream, step, first_chain, device, dtype, substep, first
    )


def bits(
    shape: tuple[int, ...], *, seed: int, stream: int | str = 0, step: int = 0, first_chain: int = 0,
    device: torch.device | str | None = None, substep: int = 0, first: int = 0,
) -> Tensor:  # fmt: skip
    """Random words as int32; shape: (n_chains, *event). Raises as `uniform`."""
    return _draw(
        ops.bits, shape, seed, stream, step, first_chain, device, torch.int32, substep, first
    )
