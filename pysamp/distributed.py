"""Several processes: which one this is, which chains are its own, and how rows come together.

Chains are split by global index into contiguous ranges, and random numbers are keyed by that index,
so the draws do not depend on the number of processes. Only warm-up and training exchange anything.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

LINE_SECONDS = 10.0  # between two lines of progress in a log file
_alone = ContextVar("alone", default=False)


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes; `local_rank` counts those on one machine and picks the GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def world() -> World:
    """Read what torchrun set, and join the process group on the first call if there are several.

    A group that the caller has initialised is used as it is. Otherwise: gloo, with nccl for tensors
    on CUDA where there is CUDA. Call it in every process, before the first use of CUDA.
    Inside `alone` it is the one process of a run of its own.
    """
    if _alone.get():
        return World()
    if dist.is_available() and dist.is_initialized():
        rank, size = dist.get_rank(), dist.get_world_size()
        return World(rank, size, _number("LOCAL_RANK", rank))
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return World()
    me = World(_number("RANK", None), size, _number("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(me.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    atexit.register(_leave)
    return me


def _leave() -> None:
    """A group that is left to the interpreter's end may abort a process that has done its work."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """What is sampled inside is a run of this process alone, whatever the others do meanwhile.

    It is for sharing out whole runs. Name the device: the local rank no longer picks it.
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise ValueError(f"{name} must be set by torchrun to a number, got {text!r}")
    return int(text)


def is_main(world: World) -> bool:
    """True in the one process that writes for all and speaks to the user."""
    return world.rank == 0


def barrier(world: World) -> None:
    """Wait until every process is here."""
    if world.size > 1:
        dist.all_reduce(torch.zeros(1, device=_meeting_place()))


def _meeting_place() -> str:
    """Where small tensors are exchanged: the CPU, unless the caller's group is of nccl alone."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def split(n: int, world: World) -> tuple[int, int]:
    """(first, count) of the contiguous range of 0 … n-1 that belongs to this process.

    Counts differ by one at most; with more processes than items the last ones get none.
    """
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")
    base, extra = divmod(n, world.size)
    first = world.rank * base + min(world.rank, extra)
    return first, base + (world.rank < extra)


def gather_chains(t: Tensor, world: World, n_total: int | None = None) -> Tensor:
    """Rows of all processes in rank order, in every process: (rows here, *event) -> (rows, *event).

    Processes may hold different numbers of rows, zero included. `n_total` is the number of rows
    that must come out: a mismatch means that the processes do not run the same problem.
    """
    if world.size == 1:
        out = t
    else:
        count = torch.tensor([t.shape[0]], dtype=torch.int64, device=_meeting_place())
        counts = [torch.zeros_like(count) for _ in range(world.size)]
        dist.all_gather(counts, count)
        sizes = [int(c) for c in counts]
        # Collectives want equal shapes: shorter ranges are padded, and cut again on arrival.
        padded = t.new_zeros(max(sizes), *t.shape[1:])
        padded[: t.shape[0]] = t
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        out = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    if n_total is not None and out.shape[0] != n_total:
        raise ValueError(
            f"n_total must be the rows of all processes, {out.shape[0]}, got {n_total}"
        )
    return out


def gather_bytes(data: bytes, world: World) -> list[bytes]:
    """The bytes of every process, in rank order, in every process."""
    if world.size == 1:
        return [data]
    here = _meeting_place()
    flat = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).to(here)
    sizes = gather_chains(torch.tensor([len(data)], device=here), world).tolist()
    parts = gather_chains(flat, world).cpu().split(sizes)
    return [part.numpy().tobytes() for part in parts]


# ------------------------------------------------------------------------------------- progress
class Progress(Protocol):
    def update(self, n: int) -> object: ...

    def note(self, text: str) -> None:
        """How it goes, in a few words, shown from the next update on."""


def show_loss(bar: Progress, row: dict[str, float]) -> None:
    """One step of a training on, with its loss, and its acceptance where there is one."""
    accept = f", acceptance {row['accept']:.3f}" if "accept" in row else ""
    bar.note(f"loss {row['loss']:.4g}{accept}")
    bar.update(1)


class _Bar(tqdm):
    monitor_interval = 0  # no watching thread: it would outlive the bar and survive a fork badly

    def note(self, text: str) -> None:
        self.set_postfix_str(text, refresh=False)


class _Silent:
    def update(self, n: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class _Lines:
    """Progress for a log file: a line every few seconds."""

    def __init__(self, total: int, name: str, done: int) -> None:
        self.total, self.name, self.done = total, name, done
        self.last, self.text = time.monotonic(), ""

    def update(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            percent = 100 * self.done // self.total
            sys.stderr.write(f"{self.name}: {self.done} of {self.total} ({percent} %){self.text}\n")
            sys.stderr.flush()

    def note(self, text: str) -> None:
        self.text = f", {text}"


@contextmanager
def show_progress(
    total: int, name: str, world: World, *, done: int = 0, show: bool = True
) -> Iterator[Progress]:
    """A bar on a terminal, a line every ten seconds elsewhere; rank 0 only, on stderr."""
    if not show or not is_main(world) or total < 1:
        yield _Silent()
    elif sys.stderr.isatty():
        with _Bar(total=total, desc=name, initial=done, dynamic_ncols=True, leave=False) as bar:
            yield bar
    else:
        yield _Lines(total, name, done)
