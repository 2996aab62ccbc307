"""Native kernels against pure torch on this machine, in half a minute: what `pysamp bench` runs.

The same work is done in up to three ways. "native" is the compiled kernel. "torch" is its
definition, which pays for equal numbers with a Philox generator in int64 arithmetic. "torch eager"
is the fastest plain torch known here (opponents.py), with numbers of its own: the fair opponent.
benchmarks/ builds its larger cases from the pieces of this file.
"""

from __future__ import annotations

import functools
import math
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pysamp import __version__ as version
from pysamp import _native, opponents, rng
from pysamp.mcmc.base import State
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.metropolis import Metropolis
from pysamp.opponents import stepping
from pysamp.targets import GaussianMixture, Phi4, Phi4Chain
from pysamp.timing import Case, Variant, check, interleave, using_threads

SEED = 20  # of every start and every check: a check passes for ever or fails for ever


# ---------------------------------------------------------------------------- building cases
def native_on(device: torch.device) -> bool:
    """Is there a compiled module for this device?"""
    found = _native.info()
    return bool(found["cuda_module"] if device.type == "cuda" else found["cpu_module"])


@dataclass(frozen=True)
class Problem:
    """A kernel, its target, and a state typical enough to be timed from."""

    kernel: Any
    target: Any
    state: State

    def run(self, backend: Literal["native", "torch"]) -> Callable[[int], Tensor]:
        """run(n): n steps in one call, from the same state every time."""

        def run(n: int) -> Tensor:
            with _native.backend(backend):
                return self.kernel.step(self.target, self.state, n)[0].x

        return run


def _problem(kernel: Any, target: Any, x: Tensor, n: int, seed: int = SEED) -> Problem:
    state = kernel.init(target, x, seed=seed)
    return Problem(kernel, target, kernel.step(target, state, n)[0])


def sites_problem(
    shape: tuple[int, ...], n_chains: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Problem:
    """Single-site Metropolis on a periodic lattice; acceptance near 0.65."""
    kappa = 0.25 if len(shape) == 2 else 0.18  # in the disordered phase: short relaxation
    x = rng.normal((n_chains, *shape), seed=SEED, stream="start", device=device, dtype=dtype)
    kernel = Metropolis(width=1.2, moves="site")
    return _problem(kernel, Phi4(shape, kappa=kappa, lam=0.5), x, 20)


def chain_problem(
    kernel: Any, n_chains: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Problem:
    """The φ⁴ chain of 100 sites in its positive mode."""
    x = 1 + 0.1 * rng.normal((n_chains, 100), seed=SEED, stream="start", device=device, dtype=dtype)
    # Another seed: a chain must not meet the noise again that brought it where it is.
    warm = _problem(MALA(MALA_STEP), CHAIN, x, 20, seed=SEED + 1).state
    return _problem(kernel, CHAIN, warm.x, 1)


CHAIN = Phi4Chain(n_sites=100, a=0.1, beta=20.0)
MALA_STEP, HMC_STEP = 5e-4, 0.02  # acceptance 0.6 and 0.85 on this chain


def mixture_problem(k: int, d: int, n_chains: int, device: torch.device) -> Problem:
    """MALA on k Gaussians with diagonal covariances, from exact draws; acceptance near 0.85."""
    mean = 2 * rng.normal((k, d), seed=SEED, stream="user", dtype=torch.float64)
    u = rng.uniform((k, d), seed=SEED, stream="user", step=1, dtype=torch.float64)
    target = GaussianMixture(mean - mean.mean(0), 0.3 + 0.4 * u)
    x = target.sample(n_chains, seed=SEED, device=device)
    return _problem(MALA(0.3 * d ** (-1 / 3)), target, x, 1)


def of_problem(
    name: str, unit: str, per_chain: int, problem: Problem, eager: Callable[[int], Tensor] | None,
    steps: tuple[int, int, int], agree: Literal["equal", "close"] = "equal",
) -> Case:  # fmt: skip
    """The ways of a Markov kernel; `steps` of a timed call: definition, native, eager."""
    x0, target = problem.state.x, problem.target

    def observe(x: Tensor) -> dict[str, Tensor]:
        x = x.to(x0)
        return {
            "displacement": ((x - x0) ** 2).flatten(1).mean(1),
            # the share of numbers never moved: what tells acceptances apart
            "rest": torch.isclose(x, x0, rtol=1e-6, atol=1e-7).flatten(1).double().mean(1),
            "square": (x**2).flatten(1).mean(1),
            "log p": target.log_prob(x),
        }

    dtype = str(x0.dtype).removeprefix("torch.")
    variants = [Variant("torch", problem.run("torch"), steps[0], dtype=dtype)]
    if native_on(x0.device):
        variants.append(Variant("native", problem.run("native"), steps[1], agree, dtype))
    if eager is not None:
        variants.append(Variant("torch eager", eager, steps[2], dtype=dtype))
    size = f"{'×'.join(map(str, x0.shape[1:]))}, {len(x0)} chains"
    return Case(name, size, unit, len(x0) * per_chain, tuple(variants), observe)


def sites_case(name: str, problem: Problem, steps: tuple[int, int, int] = (1, 100, 8)) -> Case:
    x, target = problem.state.x, problem.target
    eager = opponents.sweeping(opponents.half_sweep, target, problem.kernel.width, x)
    return of_problem(name, "site update", x[0].numel(), problem, eager, steps)


def mala_case(
    name: str, unit: str, problem: Problem, energy: opponents.Energy,
    steps: tuple[int, int, int] = (1, 50, 10), agree: Literal["equal", "close"] = "equal",
) -> Case:  # fmt: skip
    x, h = problem.state.x, problem.kernel.step_size
    eager = stepping(lambda *s: opponents.mala_step(energy, h, *s), energy, x)
    per_chain = x.shape[1] if unit == "step·dim" else 1
    return of_problem(name, unit, per_chain, problem, eager, steps, agree)


def hmc_case(name: str, problem: Problem, steps: tuple[int, int, int] = (1, 20, 2)) -> Case:
    x, eps, n = problem.state.x, problem.kernel.step_size, problem.kernel.n_leapfrog
    energy, score = opponents.chain_energy(CHAIN), opponents.chain_score(CHAIN)
    eager = stepping(lambda *s: opponents.hmc_step(energy, score, eps, n, *s), energy, x)
    return of_problem(name, "leapfrog·dim", n * x.shape[1], problem, eager, steps)


def fill_case(name: str, opponent: Callable[..., Tensor], n: int, device: torch.device) -> Case:
    """n numbers by rng.<name>, in rows of 1000."""
    shape, draw = (n // 1000, 1000), getattr(rng, name)

    def ours(backend: Literal["native", "torch"]) -> Callable[[int], Tensor]:
        def run(n_fills: int) -> Tensor:
            with _native.backend(backend):
                for step in range(n_fills):
                    out = draw(shape, seed=SEED, step=step, device=device)
            return out

        return run

    def theirs(n_fills: int) -> Tensor:
        for _ in range(n_fills):
            out = opponent(shape, device=device)
        return out

    def observe(x: Tensor) -> dict[str, Tensor]:
        return {"value": x.flatten(), "square": x.flatten().double() ** 2}

    variants = [Variant("torch", ours("torch"), 1)]
    if native_on(device):
        variants.append(Variant("native", ours("native"), 4, "equal"))
    variants.append(Variant("torch eager", theirs, 4))
    work = math.prod(shape)
    return Case(f"{name}_fill", f"{work} numbers", "number", work, tuple(variants), observe)


# ---------------------------------------------------------------------------- the quick benchmark
def quick(
    *, threads: int = 1, seconds: float = 0.1, repeats: int = 5, n_chains: int = 1024
) -> dict[str, Any]:
    """Check and time five cases on the CPU; JSON values: rates are work per second.

    One thread is timed in CPU time, which holds on a machine that does other things meanwhile.
    Raises DisagreementError where a native kernel and its definition differ.
    """
    device = torch.device("cpu")
    begin = time.perf_counter()
    with torch.random.fork_rng(devices=[]), using_threads(threads):
        torch.manual_seed(SEED)
        mixture = mixture_problem(8, 2, 4 * n_chains, device)
        direct = opponents.mixture_energy(mixture.target, mixture.state.x)
        chain = chain_problem(MALA(MALA_STEP), n_chains, device)
        hmc = chain_problem(HMC(HMC_STEP, n_leapfrog=10), n_chains, device)
        cases = (
            fill_case("normal", torch.randn, 1000 * n_chains, device),
            sites_case("phi4_2d_sites", sites_problem((16, 16), n_chains, device)),
            mala_case("mala_chain", "step·dim", chain, opponents.chain_energy(CHAIN)),
            hmc_case("hmc_chain", hmc),
            mala_case("mala_mixture", "step", mixture, direct, agree="close"),
        )
        rows = [_quick_row(case, seconds, repeats, device) for case in cases]
    found = _native.info()
    return {
        "pysamp": version,
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "threads": threads,
        "isa": found["cpu_isa"],
        "native": native_on(device),
        "cases": rows,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def _quick_row(case: Case, seconds: float, repeats: int, device: torch.device) -> dict[str, Any]:
    check(case)
    runs = {v.name: functools.partial(v.run, v.steps) for v in case.variants}
    timings = interleave(runs, repeats=repeats, seconds=seconds, device=device)
    rate = {v.name: case.work * v.steps / timings[v.name].quartiles()[1] for v in case.variants}
    agree = {v.name: v.agree for v in case.variants}
    row: dict[str, Any] = {"case": case.name, "size": case.size, "unit": case.unit}
    row["clock"] = timings["torch"].clock
    for name in ("native", "torch", "torch eager"):
        row[name] = rate.get(name)
    if "native" in rate:
        row["agreement"] = "to the last bit" if agree["native"] == "equal" else "to rounding"
        row["native/torch"] = rate["native"] / rate["torch"]
        row["native/torch eager"] = rate["native"] / rate["torch eager"]
    return row


def cpu_model() -> str:
    """The processor as the system names it."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return name.group(1).strip() if name else platform.machine()


_TITLES = {
    "normal_fill": "normal numbers",
    "phi4_2d_sites": "φ⁴ in 2D, Metropolis by site",
    "mala_chain": "φ⁴ chain, MALA",
    "hmc_chain": "φ⁴ chain, HMC",
    "mala_mixture": "mixture of 8, MALA",
}


def text(report: dict[str, Any]) -> str:
    """The report for people, at most 100 columns wide."""
    isa = f"native kernels for {report['isa']}" if report["native"] else "no native kernels"
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    lines = [
        f"pysamp {report['pysamp']}, torch {report['torch']}, {isa}",
        f"{report['cpu']}, {threads}",
        "",
        f"{'work per second':<30}{'native':>10}{'torch':>10}{'eager':>10}   native is faster than",
    ]
    for row in report["cases"]:
        cells = [si(row[name]) for name in ("native", "torch", "torch eager")]
        line = f"{_TITLES[row['case']]:<30}{cells[0]:>10}{cells[1]:>10}{cells[2]:>10}"
        if row["native"] is not None:
            line += f"   torch {row['native/torch']:.0f}×, eager {row['native/torch eager']:.1f}×"
        lines.append(line)
    units = ", ".join(dict.fromkeys(f"{row['unit']}s" for row in report["cases"]))
    lines += ["", f"In {units} per second.", *_LEGEND]
    if report["native"]:
        lines.append("Before timing, all three were found to agree.")
    else:
        lines.append(
            "No native kernels: only the torch columns exist; for the cause: pysamp doctor"
        )
    return "\n".join(lines)


_LEGEND = (
    "torch: the definition that the kernels equal to the last bit (mixture: to rounding).",
    "eager: the fastest plain torch we could write, with torch's own random numbers.",
)


def si(rate: float | None) -> str:
    """1.23 G and the like: three digits."""
    if rate is None:
        return "–"
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= 0.9995 * scale:
            return f"{rate / scale:.3g} {prefix}"
    return f"{rate:.3g}"
