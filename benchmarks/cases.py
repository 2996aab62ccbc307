"""The benchmark cases: the work, the ways to do it, and what it costs at least (bench.py).

One function per case makes a `Bench`. Variants: "torch", the definition; "native", the kernels;
"torch eager", the fastest plain torch known (pysamp/opponents.py), and its relatives;
"torch.compile", the eager step compiled; then the peers of peers.py. The cells of lattice.py, each a
move on one lattice with some number of chains, are cases too.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import lattice, lattice_jax, lattice_numba, layouts, peers
from benchmarks.bench import Bench, NotHereError, On, compiled, installed, state_bytes
from benchmarks.flows import (
    affine_couplings_vjp_batch,
    affine_couplings_walkers,
    realnvp_64_forward,
    realnvp_64_inverse,
    realnvp_128_forward,
    realnvp_128_inverse,
    realnvp_train_16,
    realnvp_train_64,
)
from benchmarks.lattice_formulas import Couplings
from benchmarks.single import (
    CHAIN_FLOPS,
    MALA_FLOPS,
    bits_fill,
    funnel_energy,
    log_uniform_fill,
    logistic_energy,
    mixture_energy,
    mixture_flops,
    normal_fill,
    phi4_energy,
    rings_energy,
    soft_energy,
    spins_energy,
    sum32_rows,
    uniform_fill,
)
from benchmarks.slips import slips_8_gaussians, slips_phi4
from pysamp import _native, opponents
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA, ULA
from pysamp.mcmc.metropolis import Metropolis
from pysamp.opponents import stepping
from pysamp.quickbench import (
    CHAIN,
    HMC_STEP,
    MALA_STEP,
    SEED,
    Problem,
    chain_problem,
    hmc_case,
    mala_case,
    mixture_problem,
    native_on,
    of_problem,
    sites_case,
    sites_problem,
)
from pysamp.timing import Case, Variant

ULA_STEP = 1e-4  # its bias is a few per cent
WIDTH = 0.015  # of moves of the whole chain; acceptance 0.3


# ---------------------------------------------------------------------------- lattice Metropolis
def _sites(
    on: On, name: str, shape: tuple[int, ...], n_chains: int, dtype: torch.dtype = torch.float32
) -> tuple[Bench, Problem]:
    problem = sites_problem(shape, n_chains, on.device, dtype)
    # reference.phi4_local: neighbours 2d − 1, proposal 4, sum and difference 2, quartic 4, the rest 7
    flops = 16.0 + 2 * len(shape)
    case, moved = sites_case(name, problem), state_bytes(problem)
    # two random numbers: the proposal and the decision
    return Bench(case, flops, moved, draws=("uniform", 2)), problem


def _sites_others(on: On, problem: Problem) -> list[Variant]:
    target, x, width = problem.target, problem.state.x, problem.kernel.width
    constants = {"kappa": target.kappa, "lam": target.lam, "width": width}
    half = compiled(on, functools.partial(opponents.plain_half_sweep, **constants))
    variants = []
    if half is not None:
        run = opponents.sweeping(lambda *fields: half(*fields[:3]), target, width, x)
        variants.append(Variant("torch.compile", run, 8))
    move, c = "phi4_metropolis", Couplings.of(target, width)
    variants += installed(jax=(50, lambda: lattice_jax.setup_sweeps(move, target, c, x)))
    if not on.cuda:
        variants += installed(numba=(5, lambda: lattice_numba.setup_sweeps(move, target, c, x)))
    return variants


def phi4_2d_16(on: On) -> Bench:
    bench, problem = _sites(on, "phi4_2d_16", (16, 16), 1024)
    return bench.adding(*_sites_others(on, problem))


def phi4_2d_64(on: On) -> Bench:
    bench, problem = _sites(on, "phi4_2d_64", (64, 64), 8192 if on.cuda else 64)
    return bench.adding(*_sites_others(on, problem))


def phi4_3d_16(on: On) -> Bench:
    bench, problem = _sites(on, "phi4_3d_16", (16, 16, 16), 2048 if on.cuda else 32)
    target, x, width = problem.target, problem.state.x, problem.kernel.width
    odd = opponents.colour_rows((*target.shape, 1), on.device)[..., 0]  # (*shape)

    def masked(n: int) -> Tensor:
        phi = x
        for _ in range(n):
            phi = opponents.masked_sweep(phi, (~odd, odd), target.kappa, target.lam, width)
        return phi

    return bench.adding(Variant("torch masked", masked, 4), *_sites_others(on, problem))


def phi4_2d_16_float64(on: On) -> Bench:
    bench, problem = _sites(on, "phi4_2d_16_float64", (16, 16), 1024, torch.float64)
    if not native_on(on.device):
        return bench
    kernel, target = problem.kernel, problem.target
    single = Problem(kernel, target, kernel.init(target, problem.state.x.float(), seed=SEED))
    return bench.adding(Variant("native float32", single.run("native"), 100))


def phi4_2d_16_isa(on: On) -> Bench:
    """The build for every level that this CPU can run, side by side in one process."""
    if on.cuda or not native_on(on.device):
        raise NotHereError("instruction sets are a matter of the CPU's native kernels")
    bench, problem = _sites(on, "phi4_2d_16_isa", (16, 16), 1024)
    run, (definition, *_) = problem.run("native"), bench.case.variants
    names = _native._LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("_cpu",))
    builds = []
    for module in (importlib.import_module(f"pysamp.{name}") for name in names):
        with_module = functools.partial(_run_with, module, run)
        builds.append(Variant(f"native {module.isa}", with_module, 100, "equal"))
    x, target = problem.state.x, problem.target
    move, c = "phi4_metropolis", Couplings.of(target, problem.kernel.width)
    others = installed(jax=(50, lambda: lattice_jax.setup_sweeps(move, target, c, x)))
    return replace(bench, case=replace(bench.case, variants=(definition, *builds, *others)))


def _run_with(module: Any, run: Callable[[int], Tensor], n: int) -> Tensor:
    with mock.patch.object(_native, "_cpu", module):
        return run(n)


# ---------------------------------------------------------------------------- chains
def _mala_others(on: On, problem: Problem, energy: opponents.Energy, density: Any) -> list[Variant]:
    target, x, h = problem.target, problem.state.x, problem.kernel.step_size
    by_autograd = opponents.by_autograd(density)
    auto = stepping(lambda *s: opponents.mala_step(by_autograd, h, *s), by_autograd, x)
    variants = [Variant("torch autograd", auto, 4)]
    step = compiled(on, lambda *s: opponents.mala_step(energy, h, *s))
    if step is not None:
        variants.append(Variant("torch.compile", stepping(step, energy, x), 4))
    return variants + installed(
        jax=(10, lambda: peers.setup_jax_mala(target, x, h)),
        blackjax=(10, lambda: peers.setup_blackjax_mala(target, x, h)),
    )


def _mala(on: On, name: str, n_chains: int) -> Bench:
    problem = chain_problem(MALA(MALA_STEP), n_chains, on.device)
    energy, density = opponents.chain_energy(CHAIN), opponents.chain_log_prob(CHAIN)
    case = mala_case(name, "step·dim", problem, energy)
    bench = Bench(case, MALA_FLOPS, state_bytes(problem), draws=("normal", 1))
    return bench.adding(*_mala_others(on, problem, energy, density))


def _chain_count(on: On) -> int:
    return 65_536 if on.cuda else 4096


def mala_chain(on: On) -> Bench:
    return _mala(on, "mala_chain", _chain_count(on))


def mala_chain_4096(on: On) -> Bench:
    if not on.cuda:
        raise NotHereError("this is mala_chain on the CPU")
    return _mala(on, "mala_chain_4096", 4096)


def mala_chain_16(on: On) -> Bench:
    """Latency: 16 chains, 100 fused steps; the unit is one step of all of them."""
    bench = _mala(on, "mala_chain_16", 16)
    variants = [replace(v, steps=100) if v.name == "native" else v for v in bench.case.variants]
    case = replace(bench.case, unit="step of all", work=1, variants=tuple(variants))
    return replace(bench, case=case, flops=1600 * MALA_FLOPS, draws=("normal", 1600))


def ula_chain(on: On) -> Bench:
    problem = chain_problem(ULA(ULA_STEP), _chain_count(on), on.device)
    energy, x = opponents.chain_energy(CHAIN), problem.state.x

    def step(*state: Tensor) -> opponents.Walkers:
        return opponents.ula_step(energy, ULA_STEP, *state)

    eager = stepping(step, energy, x)
    case = of_problem("ula_chain", "step·dim", 100, problem, eager, (1, 50, 10))
    bench = Bench(case, CHAIN_FLOPS + 4, state_bytes(problem), draws=("normal", 1))
    fast = compiled(on, step)
    if fast is not None:
        bench = bench.adding(Variant("torch.compile", stepping(fast, energy, x), 10))
    return bench.adding(*installed(jax=(10, lambda: peers.setup_jax_ula(CHAIN, x, ULA_STEP))))


def hmc_chain(on: On) -> Bench:
    problem = chain_problem(HMC(HMC_STEP, n_leapfrog=10), _chain_count(on), on.device)
    flops = 8.0 + 4  # the score alone; momentum and position
    case = hmc_case("hmc_chain", problem)
    bench = Bench(case, flops, state_bytes(problem), draws=("normal", 0.1))
    x, energy, score = problem.state.x, opponents.chain_energy(CHAIN), opponents.chain_score(CHAIN)
    step = compiled(on, lambda *s: opponents.hmc_step(energy, score, HMC_STEP, 10, *s))
    if step is not None:
        bench = bench.adding(Variant("torch.compile", stepping(step, energy, x), 2))
    others = installed(
        jax=(2, lambda: peers.setup_jax_hmc(CHAIN, x, HMC_STEP, 10)),
        blackjax=(2, lambda: peers.setup_blackjax_hmc(CHAIN, x, HMC_STEP, 10)),
    )
    return bench.adding(*others)


def metropolis_chain(on: On) -> Bench:
    """Random walk of the whole event."""
    problem = chain_problem(Metropolis(WIDTH, moves="all"), _chain_count(on), on.device)
    eager = opponents.random_walk(opponents.chain_log_prob(CHAIN), WIDTH, problem.state.x)
    case = of_problem("metropolis_chain", "step·dim", 100, problem, eager, (1, 50, 10))
    flops = 4.0 + 12  # proposal, value
    return Bench(case, flops, state_bytes(problem), draws=("uniform", 1))


def _mixture(on: On, k: int, d: int) -> Bench:
    n_chains = 4096 if not on.cuda else 262_144 if d == 2 else 65_536
    problem = mixture_problem(k, d, n_chains, on.device)
    target, x, h = problem.target, problem.state.x, problem.kernel.step_size
    energy = opponents.mixture_energy(target, x)
    case = mala_case(f"mala_mixture_{k}_{d}", "step", problem, energy, (1, 50, 4), agree="close")
    flops = mixture_flops(k, d) + 11 * d
    bench = Bench(case, flops, state_bytes(problem), draws=("normal", d))
    expanded = opponents.expanded_mixture_energy(target, x)
    run = stepping(lambda *s: opponents.mala_step(expanded, h, *s), expanded, x)
    density = opponents.mixture_log_prob(target, x)
    others = _mala_others(on, problem, energy, density)
    return bench.adding(Variant("torch expanded", run, 4), *others)


def mala_mixture_8_2(on: On) -> Bench:
    return _mixture(on, 8, 2)


def mala_mixture_2_64(on: On) -> Bench:
    return _mixture(on, 2, 64)


def mala_mixture_8_64(on: On) -> Bench:
    return _mixture(on, 8, 64)


def mala_mixture_16_128(on: On) -> Bench:
    return _mixture(on, 16, 128)


# ---------------------------------------------------------------------------- threads
def _scaling(on: On, bench: Bench) -> Bench:
    """All threads against one, of the native kernel alone."""
    definition, native = bench.case.variants[:2]

    def alone(n: int) -> Any:
        torch.set_num_threads(1)
        try:
            return native.run(n)
        finally:
            torch.set_num_threads(on.threads)

    one = Variant("native 1 thread", alone, native.steps, "equal", threads=1)
    return replace(bench, case=replace(bench.case, variants=(definition, native, one)))


def _check_threads(on: On) -> None:
    if on.cuda or on.threads < 2 or not native_on(on.device):
        raise NotHereError("needs native kernels on the CPU and --threads 2 or more")


def phi4_2d_16_scaling(on: On) -> Bench:
    _check_threads(on)
    return _scaling(on, _sites(on, "phi4_2d_16_scaling", (16, 16), 1024)[0])


def mala_chain_scaling(on: On) -> Bench:
    _check_threads(on)
    problem = chain_problem(MALA(MALA_STEP), 4096, on.device)
    case = mala_case("mala_chain_scaling", "step·dim", problem, opponents.chain_energy(CHAIN))
    return _scaling(on, Bench(case, MALA_FLOPS, state_bytes(problem), draws=("normal", 1)))


# ---------------------------------------------------------------------------- first call
def first_call(on: On) -> Bench:
    """From the end of the imports to the end of a MALA step of 4096 chains, in a fresh process."""
    names = ["native"] if native_on(on.device) else []
    names += ["torch", "torch eager", *(n for n in ("jax", "blackjax") if peers.available(n))]
    names += [] if on.quick else ["torch.compile"]
    variants = (Variant(n, functools.partial(_in_fresh_process, n, on.device), 1) for n in names)
    case = Case("first_call", "100, 4096 chains", "first call", 1, tuple(variants), lambda x: {})
    return Bench(case, times_itself=True)


def _in_fresh_process(name: str, device: torch.device, n: int) -> float:
    code = f"from benchmarks.cases import time_first_call as t; print(t({name!r}, '{device}'))"
    with tempfile.TemporaryDirectory() as empty:  # no compiled graphs from earlier runs
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": empty},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"first call of {name} failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout.split()[-1])


def time_first_call(name: str, device: str) -> float:
    """Seconds of the first step in this process, which has done nothing else with `name`."""
    if name in peers.PEERS:
        importlib.import_module(name)
    x = 1 + 0.1 * torch.sin(torch.arange(409_600.0)).reshape(4096, 100).to(device)
    begin = time.perf_counter()
    out = _first_step(name, x)
    if out.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    if not bool(torch.isfinite(out).all()) or torch.equal(out, x):
        raise RuntimeError(f"{name} made no step")
    return seconds


def _first_step(name: str, x: Tensor) -> Tensor:
    if name in ("native", "torch"):
        with _native.backend("native" if name == "native" else "torch"):
            kernel = MALA(MALA_STEP)
            return kernel.step(CHAIN, kernel.init(CHAIN, x, seed=SEED))[0].x
    if name in peers.PEERS:
        setup = peers.setup_jax_mala if name == "jax" else peers.setup_blackjax_mala
        return torch.as_tensor(setup(CHAIN, x, MALA_STEP)(1)).to(x.device)
    energy = opponents.chain_energy(CHAIN)
    step = functools.partial(opponents.mala_step, energy, MALA_STEP)
    return stepping(torch.compile(step) if name == "torch.compile" else step, energy, x)(1)


CASES: dict[str, Callable[[On], Bench]] = {
    case.__name__: case
    for case in (
        bits_fill, uniform_fill, normal_fill, log_uniform_fill, sum32_rows, phi4_energy,
        soft_energy, spins_energy, mixture_energy, rings_energy, funnel_energy, logistic_energy,
        phi4_2d_16, phi4_2d_64, phi4_3d_16, phi4_2d_16_float64, phi4_2d_16_isa,
        mala_chain, mala_chain_4096, mala_chain_16, ula_chain, hmc_chain, metropolis_chain,
        mala_mixture_8_2, mala_mixture_2_64, mala_mixture_8_64, mala_mixture_16_128,
        phi4_2d_16_scaling, mala_chain_scaling, first_call, slips_8_gaussians, slips_phi4,
        realnvp_64_forward, realnvp_64_inverse, realnvp_128_forward, realnvp_128_inverse,
        realnvp_train_16, realnvp_train_64, affine_couplings_walkers, affine_couplings_vjp_batch,
    )
}  # fmt: skip
CASES |= lattice.CELLS | layouts.CELLS
