"""Cluster moves: spins that agree turn over together, so that a chain does not slow down at T_c.

A random direction r, |r| = 1, makes an Ising model of the projections σ_x = r·φ_x with couplings
J |σ_x| |σ_y|: the reflection φ_x → φ_x − 2 σ_x r changes their signs and nothing else of a density
that couples sites by J Σ_<xy> φ_x·φ_y (Wolff, Phys. Rev. Lett. 62, 361, 1989; of fields of any length:
Brower and Tamayo, ibid. 1087). For one component σ = φ. A bond is active with probability

    1 − exp(−2 J σ_x σ_y)   if σ_x σ_y > 0,   else 0,

and active bonds join sites to clusters. Swendsen and Wang, Phys. Rev. Lett. 58, 86 (1987), reflect
each cluster with probability ½; Wolff reflects the cluster of a random site.

Numbers of the stream "cluster": 4i + μ for the bond (i, i + μ), 4i + 3 for the cluster whose least site
is i; r in substep 1, Wolff's site in substep 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pysamp import reference, rng
from pysamp.mcmc import fused
from pysamp.mcmc.base import Info, State, check_start, check_steps, replace
from pysamp.target import Counted, HasBonds, HasRecord, HasSites, Target, Tempered, log_prob_of

Rule = Literal["swendsen_wang", "wolff"]
LENGTH = 1e-3  # by which a spin of a start may miss it


@dataclass(frozen=True)
class SwendsenWang:
    """Every cluster is reflected with probability ½; all sites take part in a step.

    For O(n) spins, and for φ⁴ and soft O(n) fields, whose lengths |φ_x| it keeps: there it has to take
    turns with a kernel that changes them (`Cycle`). Nothing is refused, and `Info.accept` is 1;
    extra["cluster_size"] is the mean of Σ_clusters size²/V², for one component of fixed length an
    estimator of m² with less noise than m² itself.
    Cost: V d bonds and the search for clusters.

    Raises ValueError for a target without couplings or with J < 0, and for a tilted one, as its density
    changes under reflections.
    """

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return _init(target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return _step("swendsen_wang", target, state, n, thin)

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """n steps; `Info.x` is a record (capabilities.HasRecord) of every thin steps, the mean of those
        after every `every` of them, (n_chains, n // thin, 9), and `Info.log_prob` its first column."""
        return _measure("swendsen_wang", target, state, n, thin, every)


@dataclass(frozen=True)
class Wolff:
    """The cluster of a random site is reflected, always: sites in large clusters are met most often.

    As `SwendsenWang`, but a step turns only a share of the lattice, extra["cluster_size"] in the mean,
    which is again an estimator of m² for one component of fixed length.
    """

    def init(self, target: Target, x: Tensor, *, seed: int, first_chain: int = 0) -> State:
        return _init(target, x, seed, first_chain)

    def step(
        self, target: Target, state: State, n: int = 1, *, thin: int | None = None
    ) -> tuple[State, Info]:
        return _step("wolff", target, state, n, thin)

    def measure(
        self, target: Target, state: State, n: int, *, thin: int, every: int = 1
    ) -> tuple[State, Info]:
        """As `SwendsenWang.measure`."""
        return _measure("wolff", target, state, n, thin, every)


# ---------------------------------------------------------------------------- what both share
def _init(target: Target, x: Tensor, seed: int, first_chain: int) -> State:
    log_prob = log_prob_of(target, x)
    model = Model.of(target, x)
    check_start(log_prob, first_chain)
    if model.unit_length:
        length = torch.linalg.vector_norm(model.by_site(x), dim=2)
        exactly = model.n_components == 1  # an Ising spin is never set back to ±1
        off = ((length - 1).abs() > (0 if exactly else LENGTH)).nonzero()
        if len(off):
            row, site = (int(i) for i in off[0])
            raise ValueError(
                f"x0 must hold spins of length 1, got length {float(length[row, site]):.6g} at site "
                f"{site} of chain {first_chain + row}"
            )
    return State(x, log_prob, None, seed, 0, first_chain)


def _step(rule: Rule, target: Target, state: State, n: int, thin: int | None) -> tuple[State, Info]:
    check_steps(n, thin)
    new, info = _run(rule, target, state, n, thin, None)
    if info.x is not None:
        kept = [log_prob_of(target, info.x[:, k]) for k in range(info.x.shape[1])]
        info = info._replace(log_prob=torch.stack(kept, 1))
    return new, info


def _measure(
    rule: Rule, target: Target, state: State, n: int, thin: int, every: int
) -> tuple[State, Info]:
    check_steps(n, thin)
    if not isinstance(every, int) or every < 1 or thin % every:
        raise ValueError(f"every must divide thin = {thin}, got every = {every}")
    if not isinstance(target, HasRecord):
        raise ValueError(f"measure needs a target with a record, got {type(target).__name__}")
    new, info = _run(rule, target, state, n, thin, every)
    assert info.x is not None
    return new, info._replace(log_prob=info.x[..., 0])


def _run(
    rule: Rule, target: Target, state: State, n: int, thin: int | None, every: int | None
) -> tuple[State, Info]:
    """n steps; Info.x has every thin-th x, or with `every` the records of windows of thin steps."""
    model = Model.of(target, state.x)
    done = fused.clusters(target, state, rule, n, thin, every)
    x, info = _run_torch(rule, model, target, state, n, thin, every) if done is None else done
    return replace(state, x=x, log_prob=log_prob_of(target, x), step=state.step + n), info


def _run_torch(
    rule: Rule, model: Model, target: Target, state: State, n: int, thin: int | None,
    every: int | None,
) -> tuple[Tensor, Info]:  # fmt: skip
    x, size = state.x, torch.zeros_like(state.log_prob)
    kept: list[Tensor] = []
    window: list[Tensor] = []
    for k, (x, share) in enumerate(_moves(rule, model, state, n), 1):
        size = size + share
        if every and k % every == 0 and isinstance(target, HasRecord):
            window.append(target.record(x))
        if thin and k % thin == 0:
            kept.append(mean_record(window) if every else x)
            window = []
    extra = {"cluster_size": size / n}
    return x, Info(torch.ones_like(size), extra, torch.stack(kept, 1) if thin else None)


def mean_record(records: list[Tensor]) -> Tensor:
    """The record (n, 9) of a window, column 1 the variance of log p in it, as csrc/measure.h has it."""
    first = records[0][:, 0]
    total, squares = torch.zeros_like(records[0]), torch.zeros_like(first)
    for record in records:
        shift = record[:, 0] - first  # sums of log p itself would lose its fluctuations
        total = total + torch.cat((shift[:, None], record[:, 1:]), 1)
        squares = squares + shift * shift
    share = first.new_tensor(1.0) / len(records)
    out = total * share
    variance = squares * share - out[:, 0] * out[:, 0]
    out[:, 0] = first + out[:, 0]
    out[:, 1] = variance.clamp_min(0.0)
    return out


# ---------------------------------------------------------------------------- the move
@dataclass(frozen=True)
class Model:
    """What the move needs of a target: −2βJ for each row or for all, neighbours, and what a site is."""

    coefficient: Tensor  # (rows or 1, 1, 1)
    ahead: Tensor  # (V, d) the site in direction +μ; V stands for outside
    n_components: int
    unit_length: bool

    @classmethod
    def of(cls, target: Target, x: Tensor) -> Model:
        """Through `Counted` and `Tempered`. Raises ValueError as `SwendsenWang` says."""
        base, betas = target, []
        while isinstance(base, (Counted, Tempered)):
            if isinstance(base, Tempered):
                betas.append(base.beta)
            base = base.base
        name = type(base).__name__
        if not isinstance(base, HasBonds) or not isinstance(base, HasSites):
            raise ValueError(
                "cluster moves need a target that reflections change only by its couplings "
                f"J s_x·s_y, without a field or a tilt, got {name}"
            )
        coupling, table = base.couplings
        if not coupling >= 0:
            raise ValueError(f"cluster moves need a coupling J ≥ 0, got J = {coupling} of {name}")
        coefficient = x.new_tensor(coupling) * -2.0
        for beta in reversed(betas):
            coefficient = torch.as_tensor(beta, dtype=x.dtype, device=x.device) * coefficient
        ahead = table[:, 1::2].to(x.device)
        return cls(coefficient.reshape(-1, 1, 1), ahead, base.n_components, base.unit_length)

    @property
    def n_sites(self) -> int:
        return self.ahead.shape[0]

    def by_site(self, x: Tensor) -> Tensor:
        """(rows, *event_shape) -> (rows, V, n_components)"""
        return x.reshape(x.shape[0], self.n_sites, self.n_components)


def _moves(rule: Rule, model: Model, state: State, n: int) -> Iterator[tuple[Tensor, Tensor]]:
    """x and the cluster size (rows,) after each of n steps."""
    rows, v, m = state.n_chains, model.n_sites, model.n_components
    phi = model.by_site(state.x)  # (rows, V, m)
    for step in range(state.step, state.step + n):
        at: dict[str, Any] = {
            "seed": state.seed, "stream": "cluster", "step": step,
            "first_chain": state.first_chain, "device": phi.device,
        }  # fmt: skip
        direction = _direction(m, at, phi) if m > 1 else None  # (rows, m)
        sigma = phi[..., 0] if direction is None else _along(phi, direction)  # (rows, V)
        log_u = rng.log_uniform((rows, v, 4), dtype=phi.dtype, **at)
        label = cluster_labels(_active(model, sigma, log_u), model.ahead)  # (rows, V)
        if rule == "wolff":
            word = rng.bits((rows, 1), substep=2, **at).long() & reference.MASK32
            turn = label == label.gather(1, (word * v) >> 32)
            size = turn.sum(1).to(phi.dtype) / v
        else:
            coin = rng.uniform((rows, v, 4), dtype=phi.dtype, **at)[..., 3] < 0.5
            turn = coin.gather(1, label)
            sizes = torch.zeros_like(label).scatter_add_(1, label, torch.ones_like(label))
            size = ((sizes * sizes).sum(1).double() / (v * v)).to(phi.dtype)
        twice = (sigma * 2.0)[..., None]
        turned = -phi if direction is None else phi - twice * direction[:, None, :]
        phi = torch.where(turn[..., None], turned, phi)
        if model.unit_length and m > 1 and reference.renormalises(step):
            phi = phi * (1.5 - _dot(phi, phi) * 0.5)[..., None]
        yield phi.reshape(state.x.shape), size


def _direction(m: int, at: dict[str, Any], like: Tensor) -> Tensor:
    xi = rng.normal((like.shape[0], m), substep=1, dtype=like.dtype, **at)
    return xi * (1.0 / reference.sqrt_rn(_dot(xi, xi)))[:, None]


def _along(phi: Tensor, direction: Tensor) -> Tensor:
    return _dot(phi, direction[:, None, :])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ_c a_c b_c in the order of c."""
    total = a[..., 0] * b[..., 0]
    for c in range(1, a.shape[-1]):
        total = total + a[..., c] * b[..., c]
    return total


def _active(model: Model, sigma: Tensor, log_u: Tensor) -> Tensor:
    """Which bonds (i, i + μ) join their sites: (rows, V, d)."""
    other = torch.nn.functional.pad(sigma, (0, 1))[:, model.ahead]  # 0 outside
    joined = log_u[..., : other.shape[2]] > (sigma[..., None] * other) * model.coefficient
    return joined & (model.ahead < model.n_sites)


def cluster_labels(active: Tensor, ahead: Tensor) -> Tensor:
    """The least site of the cluster of each site: (rows, V) int64.

    active: (rows, V, d), whether the bond from a site to `ahead` (V, d) joins the two. Labels fall
    along bonds and are replaced by the labels of their labels, until nothing changes.
    """
    rows, v, d = active.shape
    site = torch.arange(v, device=active.device)
    here, there = site.repeat_interleave(d), ahead.clamp(max=v - 1).reshape(-1)  # (V d,)
    joined = active.reshape(rows, v * d)
    label = site.expand(rows, v)
    while True:
        a, b = label[:, here], label[:, there]
        low = torch.where(joined, torch.minimum(a, b), a)
        high = torch.where(joined, torch.maximum(a, b), a)
        lower = label.scatter_reduce(1, high, low, "amin")
        lower = lower.gather(1, lower)
        if torch.equal(lower, label):
            return label
        label = lower


__all__ = ["SwendsenWang", "Wolff", "cluster_labels", "mean_record"]
