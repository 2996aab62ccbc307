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
from pysamp.mcmc.base import Info, State, arrived, check_spins, check_start, check_steps
from pysamp.mcmc.records import Windows, check_windows
from pysamp.reference import dot
from pysamp.target import Counted, HasBonds, HasSites, Target, Tempered, log_prob_of

Rule = Literal["swendsen_wang", "wolff"]


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
        check_spins(model.by_site(x), first_chain)
    return State(x, log_prob, None, seed, 0, first_chain)


def _step(rule: Rule, target: Target, state: State, n: int, thin: int | None) -> tuple[State, Info]:
    check_steps(n, thin)
    return arrived(target, state, *_run(rule, target, state, n, thin, None), n)


def _measure(
    rule: Rule, target: Target, state: State, n: int, thin: int, every: int
) -> tuple[State, Info]:
    check_windows(target, n, thin, every)
    x, info = _run(rule, target, state, n, thin, every)
    assert info.x is not None
    return arrived(target, state, x, info._replace(log_prob=info.x[..., 0]), n)


def _run(
    rule: Rule, target: Target, state: State, n: int, thin: int | None, every: int | None
) -> tuple[Tensor, Info]:
    """n steps; Info.x has every thin-th x, or with `every` the records of windows of thin steps."""
    model = Model.of(target, state.x)
    done = fused.clusters(target, state, rule, n, thin, every)
    if done is not None:
        return done
    windows = Windows(target, thin, every) if thin and every else None
    x, size = state.x, torch.zeros_like(state.log_prob)
    kept: list[Tensor] = []
    for k, (x, share) in enumerate(_moves(rule, model, state, n), 1):
        size = size + share
        if windows is not None:
            windows.add(x)
        elif thin and k % thin == 0:
            kept.append(x)
    found = windows.records() if windows is not None else torch.stack(kept, 1) if thin else None
    return x, Info(torch.ones_like(size), {"cluster_size": size / n}, found)


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
        sigma = phi[..., 0] if direction is None else dot(phi, direction[:, None, :])  # (rows, V)
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
            phi = phi * (1.5 - dot(phi, phi) * 0.5)[..., None]
        yield phi.reshape(state.x.shape), size


def _direction(m: int, at: dict[str, Any], like: Tensor) -> Tensor:
    xi = rng.normal((like.shape[0], m), substep=1, dtype=like.dtype, **at)
    return xi * (1.0 / reference.sqrt_rn(dot(xi, xi)))[:, None]


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


__all__ = ["SwendsenWang", "Wolff", "cluster_labels"]
