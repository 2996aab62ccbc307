"""Records of lattice fields while a kernel runs: means over windows of measurements.

A record (capabilities.HasRecord) has the variance of log p inside its window, so that windows can be
measured in pieces: the mean of pieces of sizes w, W in all, has

    variance = Σ (w/W) [variance_piece + (mean_piece − mean)²]

(Chan, Golub, LeVeque, Am. Stat. 37, 242, 1983). csrc/measure.h does the same in the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pysamp.mcmc.base import check_steps, name_of
from pysamp.target import HasRecord, Target


def mean_record(records: Tensor, counts: list[int]) -> Tensor:
    """The record (…, 9) of a window from those (…, parts, 9) of its parts and their sizes."""
    if len(counts) == 1:
        return records[..., 0, :]
    sizes = torch.tensor(counts, dtype=torch.float64, device=records.device)
    share = (sizes / sizes.sum())[:, None]
    double = records.double()
    mean = (double * share).sum(-2)
    inside = double[..., 1:2] + (double[..., :1] - mean[..., None, :1]).square()
    mean[..., 1] = (inside * share).sum(-2)[..., 0]
    return mean.to(records.dtype)


class Windows:
    """Records of the states shown to it: of every `every`-th, averaged over `thin` of them."""

    def __init__(self, target: Target, thin: int, every: int) -> None:
        assert isinstance(target, HasRecord)
        self.target, self.thin, self.every = target, thin, every
        self.seen = 0
        self.waiting: list[Tensor] = []
        self.closed: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        self.seen += 1
        if self.seen % self.every == 0:
            self.waiting.append(self.target.record(x))
        if self.seen % self.thin == 0:
            self.closed.append(mean_record(torch.stack(self.waiting, -2), [1] * len(self.waiting)))
            self.waiting = []

    def records(self) -> Tensor:
        """(n_chains, windows, 9)"""
        return torch.stack(self.closed, 1)


def check_windows(target: Target, n: int, thin: int, every: int) -> None:
    check_steps(n, thin)
    if not isinstance(every, int) or every < 1 or thin % every:
        raise ValueError(f"every must divide thin = {thin}, got every = {every}")
    if not isinstance(target, HasRecord):
        raise ValueError(f"measure needs a target with a record, got {name_of(target)}")
