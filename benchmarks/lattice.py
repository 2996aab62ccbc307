"""Lattice moves, each at several sizes: lattice/MOVE/SHAPE/CHAINS.

`scaling/…` are the cells for the cost of an update against the number of chains. Before a cell is timed,
its variants are compared on a small lattice (agreement): native and torch to the last bit, the others in
law after equilibration from a hot start.

A variant is left out of a cell, with the reason in the row, where one of its steps would take longer
than LIMIT; the `cost` of a move, in ns a unit, is for this and for choosing the steps of a call only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import lattice_jax, lattice_numba, lattice_torch, peers
from benchmarks.bench import Bench, Counting, NotHereError, On, compiled, state_bytes
from benchmarks.lattice_formulas import Couplings
from benchmarks.limits import LIMITS
from pysamp import _native, opponents, rng
from pysamp.mcmc.cluster import SwendsenWang, Wolff
from pysamp.mcmc.heat_bath import HeatBath
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.metropolis import Metropolis
from pysamp.mcmc.over_relaxation import OverRelaxation
from pysamp.quickbench import SEED, Problem, native_on
from pysamp.targets import ON, Phi4, SoftON
from pysamp.timing import Case, Variant

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = ((64, 64), (128, 128), (512, 512), (32, 32, 32))
CHAINS = (1, 64, 4096)
LARGEST = 2**28  # sites of all chains; beyond it φ⁴ Metropolis alone, in its native form
COMPILED = (
    ((64, 64), 64),
    ((32, 32, 32), 64),
)  # cells with torch.compile, which takes 10 s a shape
LIMIT = 0.5  # seconds of a step of a variant
CALL = 0.05  # seconds that a call should take
MEMORY = 24 * 2**30  # bytes that a cell may take
N_LEAPFROG = 10
COLUMNS = [0, 4, 6, 7]  # of a record: log p, m², φ², structure factor, as phi4_observables has them
# Seconds that a step takes at least: kernels of torch, or the turn of a loop.
LEAST = {"native": 2e-6, "torch eager": 3e-4, "torch masked": 3e-4, "torch.compile": 1e-4,
         "jax": 3e-5, "blackjax": 1e-4, "numba": 1e-6}  # fmt: skip


# ---------------------------------------------------------------------------- models
def _phi4(shape: Shape) -> Phi4:
    return Phi4(shape, kappa=0.25 if len(shape) == 2 else 0.18, lam=0.5)


def _spins(n: int, two: float, three: float) -> Callable[[Shape], ON]:
    return lambda shape: ON(shape, n, two if len(shape) == 2 else three)


def _soft(shape: Shape) -> SoftON:
    return ON.soft(shape, 2, r=-0.5, u=1.0)


_ising = _spins(1, 0.4, 0.2)
_critical = _spins(1, math.log(1 + math.sqrt(2)) / 2, 0.22165462)
_xy, _heisenberg = _spins(2, 0.8, 0.4), _spins(3, 1.0, 0.6)


@dataclass(frozen=True)
class Work:
    """A move: the model, the kernel, how it gets typical, and what it costs, in ns a unit."""

    model: Callable[[Shape], Any]
    kernel: Any
    cost: Mapping[str, float]
    warm: Any = None  # kernel of the first 20 steps, where it is another one
    kind: Literal["sites", "measured", "hmc", "clusters"] = "sites"
    unit: str = "site update"
    draws: tuple[Literal["uniform", "normal"], float] | None = None
    check_steps: int = 60
    check: Literal["law", "close"] = "law"  # of the variants with numbers of their own

    @property
    def width(self) -> float:
        return self.kernel.width or 0.0 if isinstance(self.kernel, Metropolis) else 0.0

    def kernel_for(self, shape: Shape) -> Any:
        """HMC needs a step that shrinks with the volume; acceptance near 0.8."""
        if self.kind != "hmc":
            return self.kernel
        return HMC(0.25 * (64 / math.prod(shape)) ** 0.25, n_leapfrog=N_LEAPFROG)

    @property
    def per_site(self) -> int:
        return N_LEAPFROG if self.kind == "hmc" else 1


def _cost(
    native: float, eager: float, jax: float, numba: float | None = None, **more: float
) -> Any:
    found = {"native": native, "torch eager": eager, "torch.compile": 1.5 * eager, "jax": jax}
    return found | ({} if numba is None else {"numba": numba}) | more


_SITE = functools.partial(Work, draws=("uniform", 2))
_CLUSTERS = functools.partial(Work, kernel=None, kind="clusters", warm=SwendsenWang())
WORKS: dict[str, Work] = {
    "phi4_metropolis": _SITE(_phi4, Metropolis(1.2, moves="site"), _cost(1.8, 12, 13, 36)),
    "phi4_heat_bath": Work(_phi4, HeatBath(), _cost(3, 15, 13, 75)),
    "phi4_measured": _SITE(
        _phi4, Metropolis(1.2, moves="site"), _cost(2.5, 20, 14), kind="measured"
    ),
    "phi4_hmc": Work(
        _phi4, None, _cost(0.4, 2.6, 4.2, blackjax=4.2), warm=Metropolis(1.2, moves="site"), kind="hmc",
        unit="leapfrog·site", draws=("normal", 1 / N_LEAPFROG), check_steps=40,
    ),
    "ising_metropolis": Work(
        _ising, Metropolis(moves="site"), _cost(1.2, 7, 7, 17), draws=("uniform", 1)
    ),
    "ising_heat_bath": Work(_ising, HeatBath(), _cost(1.2, 6, 12, 12), draws=("uniform", 1)),
    "ising_wolff": _CLUSTERS(
        _critical, kernel=Wolff(), cost=_cost(9, 400, 0, 17), unit="flipped site", check_steps=100
    ),
    "ising_swendsen_wang": _CLUSTERS(
        _critical, kernel=SwendsenWang(), cost=_cost(18, 400, 0, 50), unit="site"
    ),
    "xy_metropolis": _SITE(_xy, Metropolis(1.5, moves="site"), _cost(2.5, 18, 33, 55)),
    "xy_heat_bath": _SITE(_xy, HeatBath(), _cost(3.5, 23, 34, 70)),
    "xy_over_relaxation": Work(
        _xy, OverRelaxation(), _cost(0.8, 5.5, 2.5, 9.5), warm=HeatBath(), check_steps=1, check="close"
    ),
    "heisenberg_metropolis": _SITE(
        _heisenberg, Metropolis(1.5, moves="site"), _cost(2.5, 25, 58, 88)
    ),
    "heisenberg_heat_bath": _SITE(_heisenberg, HeatBath(), _cost(5, 26, 50, 80)),
    "heisenberg_over_relaxation": Work(
        _heisenberg, OverRelaxation(), _cost(1.2, 8, 4, 16), warm=HeatBath(), check_steps=1,
        check="close",
    ),
    "soft_metropolis": Work(
        _soft, Metropolis(1.2, moves="site"), _cost(4, 19, 25, 70), draws=("uniform", 4)
    ),
    "soft_over_relaxation": Work(
        _soft, OverRelaxation(), _cost(1.2, 5, 2.5, 9.5), warm=Metropolis(1.2, moves="site"),
        check_steps=1, check="close",
    ),
}  # fmt: skip


def hot_start(target: Any, n_chains: int, device: torch.device) -> Tensor:
    if isinstance(target, ON):
        return target.start(n_chains, seed=SEED, device=device)
    shape = (n_chains, *target.event_shape)
    return rng.normal(shape, seed=SEED, stream="start", device=device)


def hot(work: Work, shape: Shape, n_chains: int, device: torch.device) -> Problem:
    target, kernel = work.model(shape), work.kernel_for(shape)
    x = hot_start(target, n_chains, device)
    return Problem(kernel, target, kernel.init(target, x, seed=SEED))


def typical(work: Work, shape: Shape, n_chains: int, device: torch.device) -> Problem:
    """A state after 20 steps; more than 64 chains start as copies of 64."""
    target, kernel = work.model(shape), work.kernel_for(shape)
    warm = work.warm or kernel
    few = min(n_chains, 64)
    # Another seed: a chain must not meet the noise again that brought it where it is.
    state = warm.init(target, hot_start(target, few, device), seed=SEED + 1)
    x = warm.step(target, state, 20)[0].x
    copies = -(-n_chains // few)
    x = x.repeat(copies, *(1,) * (x.ndim - 1))[:n_chains] if copies > 1 else x
    return Problem(kernel, target, kernel.init(target, x, seed=SEED))


# ---------------------------------------------------------------------------- variants
def own_run(work: Work, problem: Problem, backend: Literal["native", "torch"]) -> Any:
    kernel, target, state = problem.kernel, problem.target, problem.state
    sites = math.prod(target.shape)

    def measured(n: int) -> Tensor:
        with _native.backend(backend):
            return kernel.measure(target, state, n, thin=1)[1].x[..., COLUMNS]

    def counted(n: int) -> tuple[Tensor, float]:
        with _native.backend(backend):
            new, info = kernel.step(target, state, n)
        return new.x, float(info.extra["cluster_size"].double().sum()) * sites * n

    if work.kind == "measured":
        return measured
    return Counting(counted) if isinstance(kernel, Wolff) else problem.run(backend)


def setups(name: str, problem: Problem) -> dict[str, Callable[[], Any]]:
    """How to make the run of each opponent and peer there is for a move."""
    work, target, x = WORKS[name], problem.target, problem.state.x
    c = Couplings.of(target, work.width)
    if work.kind == "clusters":
        wolff = isinstance(work.kernel, Wolff)
        return {
            "torch eager": lambda: Counting(lattice_torch.clusters(target, x, wolff=wolff)),
            "numba": lambda: Counting(lattice_numba.setup_clusters(target, x, wolff=wolff)),
        }
    if work.kind == "measured":
        return {
            "torch eager": lambda: lattice_torch.measuring(target, c, x),
            "jax": lambda: lattice_jax.setup_measuring(target, c, x),
        }
    if work.kind == "hmc":
        return _hmc(problem)
    half = lattice_torch.in_place(name, c)
    return {
        "torch eager": lambda: lattice_torch.sweeping(half, target, x),
        "jax": lambda: lattice_jax.setup_sweeps(name, target, c, x),
        "numba": lambda: lattice_numba.setup_sweeps(name, target, c, x),
    }


def _hmc(problem: Problem) -> dict[str, Callable[[], Any]]:
    target, x, eps = problem.target, problem.state.x, problem.kernel.step_size
    flat = x.flatten(1)

    def shaped(run: Callable[[int], Any]) -> Callable[[int], Tensor]:
        return lambda n: torch.as_tensor(run(n)).reshape(x.shape)

    def eager() -> Any:
        energy, score = lattice_torch.phi4_energy(target), lattice_torch.phi4_score(target)
        step = functools.partial(opponents.hmc_step, energy, score, eps, N_LEAPFROG)
        return shaped(opponents.stepping(step, energy, flat))

    return {
        "torch eager": eager,
        "jax": lambda: shaped(peers.setup_jax_hmc(target, flat, eps, N_LEAPFROG)),
        "blackjax": lambda: shaped(peers.setup_blackjax_hmc(target, flat, eps, N_LEAPFROG)),
    }


def here(on: On, variant: str) -> str | None:
    """Why a variant cannot run here at all."""
    if variant in peers.PEERS and not peers.available(variant):
        return "not installed"
    return "numba runs on the CPU" if variant == "numba" and on.cuda else None


def seconds_of(work: Work, variant: str, n_chains: int, sites: int) -> float:
    """Of a step, roughly: for choosing how many of them make a call."""
    units = n_chains * sites * work.per_site
    return LEAST[variant] * work.per_site + work.cost[variant] * 1e-9 * units


def steps_of(work: Work, variant: str, n_chains: int, sites: int) -> int:
    seconds = seconds_of(work, variant, n_chains, sites)
    least, most = 1, 100 if variant in ("jax", "blackjax") else 1000
    if variant == "native" and work.kind != "clusters":
        # enough to make loading and storing a field a small part of the call
        least = 10 if seconds < 0.1 else 4 if n_chains * sites <= LARGEST else 2
    return max(least, min(most, round(CALL / seconds)))


# ---------------------------------------------------------------------------- agreement
def _observe(work: Work, target: Any) -> Callable[[Tensor], dict[str, Tensor]]:
    sites, m = math.prod(target.shape), target.n_components

    def of_field(x: Tensor) -> dict[str, Tensor]:
        mean = x.reshape(len(x), sites, m).mean(1)
        found = {"energy": -target.log_prob(x) / sites, "m²": mean.square().sum(1)}
        return found if target.unit_length else found | {"φ²": x.flatten(1).square().mean(1)}

    def of_records(records: Tensor) -> dict[str, Tensor]:  # (chains, n, 4)
        last = records[:, records.shape[1] // 2 :].double().mean(1)
        return dict(zip(("energy", "m²", "φ²", "structure"), last.unbind(1), strict=True))

    return of_records if work.kind == "measured" else of_field


@functools.cache
def agreement(on: On, name: str, d: int, n_chains: int = 256) -> Case:
    """All variants but the compiled one, on 8² or 4³ sites.

    From a hot start, so that what does not move is found out; reflections, which keep the energy, are
    compared number by number, and from typical fields, as they amplify what small fields lose.
    """
    work = WORKS[name]
    shape = (8, 8) if d == 2 else (4, 4, 4)
    begin = typical if work.check == "close" else hot
    problem = begin(work, shape, n_chains, on.device)
    variants = [Variant("torch", own_run(work, problem, "torch"), 1)]
    if native_on(on.device):  # a record is summed in float64 by torch
        agree: Literal["close", "equal"] = "close" if work.kind == "measured" else "equal"
        variants.append(Variant("native", own_run(work, problem, "native"), 1, agree))
    variants += [
        Variant(variant, setup(), 1, work.check)
        for variant, setup in setups(name, problem).items()
        if here(on, variant) is None
    ]
    label = f"{name} on {text_of(shape)}"
    observe = _observe(work, problem.target)
    return Case(label, f"{n_chains} chains", "", 1, tuple(variants), observe, work.check_steps)


def _compiled(on: On, name: str, problem: Problem) -> tuple[Variant, Case] | None:
    """The compiled variant, and its comparison with the eager one from a hot start at this size."""
    work, target, x = WORKS[name], problem.target, problem.state.x
    c = Couplings.of(target, work.width)
    half = compiled(on, lattice_torch.plain(name, c)) if work.kind == "sites" else None
    if half is None:
        return None
    start = x if work.check == "close" else hot_start(target, len(x), on.device)
    pair = (
        Variant("torch eager", lattice_torch.sweeping(lattice_torch.in_place(name, c), target, start), 1),
        Variant("torch.compile", lattice_torch.sweeping(half, target, start), 1, work.check),
    )  # fmt: skip
    label = f"{name} compiled on {text_of(target.shape)}"
    case = Case(label, "", "", 1, pair, _observe(work, target), work.check_steps)
    steps = steps_of(work, "torch.compile", len(x), math.prod(target.shape))
    return Variant("torch.compile", lattice_torch.sweeping(half, target, x), steps), case


# ---------------------------------------------------------------------------- cells
def text_of(shape: Shape) -> str:
    return "x".join(map(str, shape))


def size_of(shape: Shape, n_chains: int) -> str:
    return f"{'×'.join(map(str, shape))}, {n_chains} chain{'s' if n_chains > 1 else ''}"


def _memory(on: On) -> int:
    if on.cuda:
        return torch.cuda.mem_get_info(on.device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return MEMORY
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvail")), None)
    return MEMORY if kilobytes is None else min(MEMORY, 1024 * int(kilobytes))


def _check_memory(on: On, work: Work, shape: Shape, n_chains: int) -> None:
    """Field and result, and a few fields more on the way there."""
    fields = 10 if work.kind == "hmc" else 4
    need = (
        fields * 4 * n_chains * math.prod(work.model((2,) * len(shape)).event_shape[len(shape) :])
    )
    need *= math.prod(shape)
    if need > _memory(on):
        raise NotHereError(f"needs {need / 2**30:.0f} GiB, there are {_memory(on) / 2**30:.0f}")


def cell(prefix: str, name: str, shape: Shape, n_chains: int, on: On) -> Bench:
    """A move on one lattice with some number of chains."""
    work, sites, d = WORKS[name], math.prod(shape), len(shape)
    _check_memory(on, work, shape, n_chains)
    problem = typical(work, shape, n_chains, on.device)
    left_out: dict[str, str] = {}
    variants = []
    if native_on(on.device):
        steps = steps_of(work, "native", n_chains, sites)
        variants.append(Variant("native", own_run(work, problem, "native"), steps))
    others = setups(name, problem)
    if prefix == "goal":
        c = Couplings.of(problem.target, work.width)
        x = problem.state.x
        others["torch masked"] = lambda: lattice_torch.masked(problem.target, c, name, x)
    for variant, setup in others.items():
        cost = "torch eager" if variant == "torch masked" else variant
        seconds = seconds_of(work, cost, n_chains, sites)
        reason = here(on, variant)
        if reason is None and seconds > LIMIT:
            reason = f"a step would take {seconds:.1f} s"
        if reason is not None:
            left_out[variant] = reason
            continue
        variants.append(Variant(variant, setup(), steps_of(work, cost, n_chains, sites)))
    agreements = [agreement(on, name, d)]
    if prefix == "lattice" and (shape, n_chains) in COMPILED:
        found = _compiled(on, name, problem)
        if found is not None:
            variants.append(found[0])
            agreements.append(found[1])
    if not any(v.name == "torch.compile" for v in variants):
        left_out["torch.compile"] = (
            "cells of 64 chains on 64x64 and 32x32x32 only" if work.kind == "sites"
            else "its steps are not compiled"
        )  # fmt: skip
    work_of_step = float(n_chains * sites * work.per_site)
    case_name = f"{prefix}/{name}/{text_of(shape)}/{n_chains}"
    case = Case(
        case_name, size_of(shape, n_chains), work.unit, work_of_step, tuple(variants), lambda x: {}
    )
    return Bench(
        case,
        call_bytes=state_bytes(problem),
        draws=work.draws,
        instructions=LIMITS[name](d),
        agreements=tuple(agreements),
        left_out=left_out,
        repeats=3 if n_chains * sites > 2**21 else 5,
    )


# ---------------------------------------------------------------------------- names
def _cells() -> dict[str, Callable[[On], Bench]]:
    wanted = [
        ("lattice", name, shape, n)
        for name in WORKS
        for shape in SHAPES
        for n in CHAINS
        if n * math.prod(shape) <= LARGEST or name == "phi4_metropolis"
    ]
    # the lattices and the opponent that the goals of O(3) were set on: C5, and G4 for a GPU
    wanted += [
        ("goal", "heisenberg_metropolis", (16, 16, 16), 32),
        ("goal", "heisenberg_metropolis", (16, 16, 16), 2048),
        ("goal", "heisenberg_over_relaxation", (16, 16, 16), 32),
    ]
    for name, shape in (("phi4_metropolis", (16, 16)), ("ising_metropolis", (32, 32))):
        counts = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16_384, 100_000)
        wanted += [("scaling", name, shape, n) for n in counts]
    return {
        f"{prefix}/{name}/{text_of(shape)}/{n}": functools.partial(cell, prefix, name, shape, n)
        for prefix, name, shape, n in wanted
    }


CELLS = _cells()
