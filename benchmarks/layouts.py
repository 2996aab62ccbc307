"""Which layout of a lattice sweep is faster: layouts/MOVE/SHAPE/CHAINS, on the CPU.

With chains in the lanes a vector holds one site of 16 chains, and a call costs whole tiles of them;
with sites in the lanes it holds 16 sites of one chain. Both give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.bench import Bench, NotHereError, On, state_bytes
from benchmarks.lattice import WORKS, Shape, size_of, steps_of, text_of, typical
from benchmarks.limits import LIMITS
from pysamp.mcmc import fused
from pysamp.quickbench import native_on
from pysamp.timing import Case, Variant

MOVES = ("phi4_metropolis", "ising_metropolis")
LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
CHAINS = (1, 2, 4, 8, 16, 32)


def layout(name: str, shape: Shape, n_chains: int, on: On) -> Bench:
    """Native sweeps with chains or sites in the lanes, and what the kernel chooses by itself."""
    if on.cuda or not native_on(on.device):
        raise NotHereError("lanes are a matter of the CPU's native kernels")
    work, sites = WORKS[name], math.prod(shape)
    problem = typical(work, shape, n_chains, on.device)
    target, state = problem.target, problem.state
    scale = None if work.width == 0 else torch.full_like(state.log_prob, work.width)
    tiles = -(-n_chains // 16) * 16  # chains in lanes cost whole tiles
    steps = steps_of(work, "native", tiles, sites)

    def run(in_lanes: str, n: int) -> Tensor:
        done = fused.sweeps(target, state, ("metropolis",), n, None, scale, in_lanes=in_lanes)
        if done is None:
            raise NotHereError("there is no native path")
        return done[0]

    variants = [
        Variant("native", functools.partial(run, "auto"), steps),
        Variant("native chains", functools.partial(run, "chains"), steps, "equal"),
        Variant("native sites", functools.partial(run, "sites"), steps, "equal"),
    ]
    case = Case(
        f"layouts/{name}/{text_of(shape)}/{n_chains}", size_of(shape, n_chains), work.unit,
        float(n_chains * sites), tuple(variants), lambda x: {}, check_steps=2,
    )  # fmt: skip
    return Bench(
        case, call_bytes=state_bytes(problem), draws=work.draws,
        instructions=LIMITS[name](len(shape)), repeats=5,
    )  # fmt: skip


CELLS: dict[str, Callable[[On], Bench]] = {
    f"layouts/{name}/{length}x{length}/{n}": functools.partial(layout, name, (length, length), n)
    for name in MOVES
    for length in LENGTHS
    for n in CHAINS
}
