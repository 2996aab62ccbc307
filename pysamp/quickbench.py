"""Native kernels against pure torch on this machine, in half a minute: what `pysamp bench` runs.

The same work is done in up to three ways. "native" is the compiled kernel. "torch" is the
definition it equals, number for number; equality costs that one a Philox generator in int64 arithmetic. "torch
eager" is the fastest plain torch known here (opponents.py), which draws its own random numbers: the
fair opponent. benchmarks/ builds its larger cases from the pieces of this file.
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pysamp import __version__ as version
from pysamp import _native, opponents, rng
from pysamp.mcmc.base import Kernel, State
from pysamp.mcmc.hmc import HMC
from pysamp.mcmc.langevin import MALA
from pysamp.mcmc.metropolis import Metropolis
from pysamp.opponents import stepping
from pysamp.target import Target
from pysamp.targets import GaussianMixture, Phi4, Phi4Chain
from pysamp.timing import Case, Variant, check, interleave

SEED = 20  # of every start and every check: a check passes for ever or fails for ever


# ---------------------------------------------------------------------------- building cases
def native_on(device: torch.device) -> bool:
    """Is there a compiled module for this device?"""
    found = _native.info()
    return bool(found["cuda_module"] if device.type == "cuda" else found["cpu_module"])


def of_kernel(kernel: Kernel, target: Target, state: State, name: str) -> Callable[[int], Tensor]:
    """run(n) of a pysamp kernel with the backend `name`."""

    def run(n: int) -> Tensor:
        with _native.backend("torch" if name == "torch" else "native"):
            return kernel.step(target, state, n)[0].x

    return run


def chain_start(kernel: Kernel, target: Target, x: Tensor, n: int) -> State:
    """A state after n steps from `x`: typical enough to be timed from."""
    state = kernel.init(target, x, seed=SEED)
    return kernel.step(target, state, n)[0]


def of_chain(
    name: str, unit: str, per_step: int, kernel: Kernel, target: Target, state: State, eager: Any,
    steps: tuple[int, int, int], agree: Literal["equal", "close"] = "equal",
) -> Case:  # fmt: skip
    """The three ways of a Markov kernel; steps: of a timed call of definition, native, eager."""
    x0 = state.x

    def observe(x: Tensor) -> dict[str, Tensor]:
        x = x.to(x0)
        moved = ((x - x0) ** 2).flatten(1).mean(1)
        return {
            "displacement": moved,
            "square": (x**2).flatten(1).mean(1),
            "log p": target.log_prob(x),
        }

    dtype = str(x0.dtype).removeprefix("torch.")
    variants = [Variant("torch", of_kernel(kernel, target, state, "torch"), steps[0], dtype=dtype)]
    if native_on(x0.device):
        run = of_kernel(kernel, target, state, "native")
        variants.append(Variant("native", run, steps[1], agree, dtype))
    if eager is not None:
        variants.append(Variant("torch eager", eager, steps[2], dtype=dtype))
    size = f"{'×'.join(map(str, x0.shape[1:]))}, {len(x0)} chains"
    return Case(name, size, unit, len(x0) * per_step, tuple(variants), observe)


def fill(name: str, opponent: Callable[..., Tensor], n: int, device: torch.device) -> Case:
    """n float32 numbers by rng.<name>, rows of 1000."""
    shape = (n // 1000, 1000)
    draw = getattr(rng, name)

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

    variants = [Variant("torch", ours("torch"), 1)]
    if native_on(device):
        variants.append(Variant("native", ours("native"), 4, "equal"))
    variants.append(Variant("torch eager", theirs, 4))

    def observe(x: Tensor) -> dict[str, Tensor]:
        return {"value": x.flatten(), "square": x.flatten() ** 2}

    size, work = f"{n} numbers", math.prod(shape)
    return Case(f"{name}_fill", size, "number", work, tuple(variants), observe)


def phi4_sites(
    name: str, shape: tuple[int, ...], n_chains: int, device: torch.device,
    dtype: torch.dtype = torch.float32, steps: tuple[int, int, int] = (1, 100, 8),
) -> Case:  # fmt: skip
    """Single-site Metropolis on a periodic lattice; acceptance near 0.65."""
    kappa = 0.25 if len(shape) == 2 else 0.18  # in the disordered phase: short relaxation
    target, kernel = Phi4(shape, kappa=kappa, lam=0.5), Metropolis(width=1.2, moves="site")
    x = rng.normal((n_chains, *shape), seed=SEED, stream="start", device=device, dtype=dtype)
    state = chain_start(kernel, target, x, 20)
    eager = opponents.sweeping(opponents.half_sweep, target, 1.2, state.x)
    sites = math.prod(shape)
    return of_chain(name, "site update", sites, kernel, target, state, eager, steps)


MALA_STEP, HMC_STEP = 5e-4, 0.02  # acceptance 0.6 and 0.85 on the chain of 100 sites
CHAIN = Phi4Chain(n_sites=100, a=0.1, beta=20.0)


def on_chain(n_chains: int, device: torch.device, dtype: torch.dtype) -> State:
    """The start of the chain cases: the positive mode, warmed up."""
    x = 1 + 0.1 * rng.normal((n_chains, 100), seed=SEED, stream="start", device=device, dtype=dtype)
    return chain_start(MALA(MALA_STEP), CHAIN, x, 20)


def mala_chain(
    name: str, n_chains: int, device: torch.device, dtype: torch.dtype = torch.float32,
    steps: tuple[int, int, int] = (1, 50, 10),
) -> Case:  # fmt: skip
    """MALA on the φ⁴ chain with d = 100."""
    state, energy = on_chain(n_chains, device, dtype), opponents.chain_energy(CHAIN)
    eager = stepping(lambda *s: opponents.mala_step(energy, MALA_STEP, *s), energy, state.x)
    return of_chain(name, "step·dim", 100, MALA(MALA_STEP), CHAIN, state, eager, steps)


def hmc_chain(
    name: str, n_chains: int, device: torch.device, steps: tuple[int, int, int] = (1, 20, 2)
) -> Case:
    """HMC with 10 leapfrog steps on the φ⁴ chain with d = 100."""
    state, energy = on_chain(n_chains, device, torch.float32), opponents.chain_energy(CHAIN)
    score, kernel = opponents.chain_score(CHAIN), HMC(HMC_STEP, n_leapfrog=10)
    eager = stepping(
        lambda *s: opponents.hmc_step(energy, score, HMC_STEP, 10, *s), energy, state.x
    )
    return of_chain(name, "leapfrog·dim", 1000, kernel, CHAIN, state, eager, steps)


def mixture(k: int, d: int) -> GaussianMixture:
    """k components with diagonal covariances, centred, a few widths apart."""
    mean = 2 * rng.normal((k, d), seed=SEED, stream="user", dtype=torch.float64)
    variance = 0.3 + 0.4 * rng.uniform(
        (k, d), seed=SEED, stream="user", step=1, dtype=torch.float64
    )
    return GaussianMixture(mean - mean.mean(0), variance)


def mala_mixture(
    name: str, k: int, d: int, n_chains: int, device: torch.device,
    steps: tuple[int, int, int] = (1, 50, 5),
) -> Case:  # fmt: skip
    """MALA on a mixture of k Gaussians in d dimensions, from exact draws; acceptance 0.6 to 0.9."""
    target, h = mixture(k, d), 0.3 * d ** (-1 / 3)
    kernel = MALA(h)
    state = chain_start(kernel, target, target.sample(n_chains, seed=SEED, device=device), 1)
    energy = opponents.mixture_energy(target, state.x)
    eager = stepping(lambda *s: opponents.mala_step(energy, h, *s), energy, state.x)
    return of_chain(name, "step", 1, kernel, target, state, eager, steps, agree="close")


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
    with torch.random.fork_rng(devices=[]), _threads(threads):
        torch.manual_seed(SEED)
        cases = (
            fill("normal", torch.randn, 1000 * n_chains, device),
            phi4_sites("phi4_2d_sites", (16, 16), n_chains, device),
            mala_chain("mala_chain", n_chains, device),
            hmc_chain("hmc_chain", n_chains, device),
            mala_mixture("mala_mixture", 8, 2, 4 * n_chains, device),
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


main = quick  # what the command line calls


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
