"""Cases of single ops: fills with random numbers, a sum, the energies of targets.

Energies go through inputs that together exceed twice the last cache, so that each is read from memory.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import Bench, On
from pysamp import _native, opponents, ops, rng
from pysamp.quickbench import CHAIN, SEED, fill_case, mixture_problem, native_on
from pysamp.targets import ON, Funnel, LogisticRegression, Rings
from pysamp.targets.field import native_tensors
from pysamp.timing import Case, Variant

CHAIN_FLOPS = 18.0  # energies.phi4, value and score: neighbours 1, φ² − 1 2, value 9, score 6
MALA_FLOPS = CHAIN_FLOPS + 11  # proposal 4, |ξ|² 2, |x − x' − h score'|² 5


def mixture_flops(k: int, d: int) -> float:
    return 7.0 * k * d  # of each component: gap 1, value 3, score 3


def _fill(on: On, name: str, opponent: Callable[..., Tensor], numpy: Any = None) -> Bench:
    case = fill_case(name, opponent, 100_000_000 if on.cuda else 1_000_000, on.device)
    bench = Bench(case, step_bytes=4.0 * case.work)  # every number is written

    def run(n: int) -> np.ndarray:
        for _ in range(n):
            out = numpy((1000, 1000), dtype=np.float32)
        return out

    return bench if numpy is None or on.cuda else bench.adding(Variant("numpy", run, 4))


def bits_fill(on: On) -> Bench:
    words = functools.partial(torch.randint, -(2**31), 2**31 - 1, dtype=torch.int32)
    return _fill(on, "bits", words)


def uniform_fill(on: On) -> Bench:
    return _fill(on, "uniform", torch.rand, np.random.Generator(np.random.SFC64(SEED)).random)


def normal_fill(on: On) -> Bench:
    numpy = np.random.Generator(np.random.SFC64(SEED)).standard_normal
    return _fill(on, "normal", torch.randn, numpy)


def log_uniform_fill(on: On) -> Bench:
    def opponent(shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.rand(shape, device=device).neg_().log1p_()  # torch's u may be 0, never 1

    return _fill(on, "log_uniform", opponent)


def _pool(on: On, shape: tuple[int, int]) -> list[Tensor]:
    """Inputs that together exceed twice the last cache, so that each is read from memory."""
    count = math.ceil((2**28 if on.cuda else 2**26) / (4 * math.prod(shape)))
    return [
        rng.normal(shape, seed=SEED, stream="user", step=k, device=on.device) for k in range(count)
    ]


def _of_op(
    on: On, name: str, size: str, unit: str, work: float, pool: list[Tensor],
    ours: Callable[[Tensor], Any], others: dict[str, Callable[[Tensor], Any]],
    agree: Literal["equal", "close"] = "equal",
) -> Case:  # fmt: skip
    """An op on the inputs of a pool in turn; a timed call takes each of them once."""

    def over(f: Callable[[Tensor], Any], backend: Any = None) -> Callable[[int], Any]:
        def run(n: int) -> Any:
            with _native.backend(backend) if backend else contextlib.nullcontext():
                for k in range(n):
                    out = f(pool[k % len(pool)])
            return out

        return run

    n = len(pool)
    variants = [Variant("torch", over(ours, "torch"), n)]
    if native_on(on.device):
        variants.append(Variant("native", over(ours, "native"), n, agree))
    variants += [Variant(other, over(f), n, "close") for other, f in others.items()]
    return Case(name, size, unit, work, tuple(variants), lambda x: {}, check_steps=2)


def sum32_rows(on: On) -> Bench:
    pool = _pool(on, (1000, 1003))
    n, others = pool[0].numel(), {"torch eager": lambda x: x.sum(1)}
    case = _of_op(on, "sum32_rows", "1000×1003", "number", n, pool, ops.sum32, others)
    return Bench(case, flops=1, step_bytes=4.0 * n)


def phi4_energy(on: On) -> Bench:
    pool = _pool(on, (4096, 100))
    density = opponents.chain_log_prob(CHAIN)
    others = {
        "torch eager": opponents.chain_energy(CHAIN),
        "torch autograd": opponents.by_autograd(density),
    }
    ours, n = CHAIN.log_prob_and_score, pool[0].numel()
    case = _of_op(on, "phi4_energy", "100, 4096 chains", "site", n, pool, ours, others)
    return Bench(case, flops=CHAIN_FLOPS, step_bytes=8.0 * n)  # field in, score out


def soft_energy(on: On) -> Bench:
    """A soft O(2) field in two dimensions: log p and score."""
    target = ON.soft((64, 64), 2, r=-0.5, u=1.0)
    pool = _pool(on, (256, 64 * 64 * 2))

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        phi = x.reshape(-1, 64, 64, 2)
        around = opponents.whole_neighbour_sum(phi.movedim(-1, 0), 2).movedim(0, -1)
        q, quartic = (phi * phi).sum(-1, keepdim=True), target.u / (4 * target.n)
        pull = q.mul(2 * quartic).add_(2 + target.r / 2)  # twice the first is φ's coefficient
        log_prob = (phi * around).sum((1, 2, 3)).mul_(0.5)
        log_prob.sub_((q * (q * quartic + (2 + target.r / 2))).sum((1, 2, 3)))
        return log_prob, around.addcmul_(phi, pull, value=-2).flatten(1)

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, score = target.log_prob_and_score(x.reshape(-1, *target.event_shape))
        return log_prob, score.flatten(1)

    n = pool[0].numel()
    case = _of_op(
        on, "soft_energy", "64×64×2, 256 fields", "site", n / 2, pool, ours, {"torch eager": eager}
    )
    return Bench(
        case, flops=26, step_bytes=8.0 * n
    )  # a component: bonds 7, site 6; field in, score out


def spins_energy(on: On) -> Bench:
    """Heisenberg spins in three dimensions: log p and its derivative."""
    target = ON((16, 16, 16), 3, 0.6)
    pool = _pool(on, (256, 4096 * 3))
    native = target.native
    params, table = native_tensors(native, on.device, pool[0].dtype)

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        s = x.reshape(-1, 16, 16, 16, 3).movedim(-1, 0)
        score = opponents.whole_neighbour_sum(s, 2).mul_(target.beta).movedim(0, -1).flatten(1)
        return torch.linalg.vecdot(x, score).mul_(0.5), score

    def ours(x: Tensor) -> tuple[Tensor, Tensor]:
        return ops.spins(x, params, table, list(native.layout))

    n = pool[0].numel()
    case = _of_op(
        on, "spins_energy", "16×16×16×3, 256 fields", "site", n / 3, pool, ours,
        {"torch eager": eager},
    )  # fmt: skip
    return Bench(case, flops=24, step_bytes=8.0 * n)  # a component: sum 5, score 1, product 2


def mixture_energy(on: On) -> Bench:
    target, pool = mixture_problem(8, 64, 4096, on.device).target, _pool(on, (4096, 64))
    others = {
        "torch eager": opponents.mixture_energy(target, pool[0]),
        "torch expanded": opponents.expanded_mixture_energy(target, pool[0]),
        "torch autograd": opponents.by_autograd(opponents.mixture_log_prob(target, pool[0])),
    }
    ours, size = target.log_prob_and_score, "8 in 64 dimensions, 4096 chains"
    case = _of_op(on, "mixture_energy", size, "row", 4096, pool, ours, others, "close")
    return Bench(case, flops=mixture_flops(8, 64), step_bytes=8.0 * pool[0].numel())


def rings_energy(on: On) -> Bench:
    """log p and score of four rings; exp and log count as 15 operations each."""
    target, pool = Rings(), [2 * x for x in _pool(on, (65_536, 2))]

    def density(x: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=1)
        gap = (r[:, None] - torch.arange(1, 5, device=x.device)) / target.width
        return torch.logsumexp(-0.5 * gap * gap, 1) - r.log() - target.native.params[2]

    others = {"torch autograd": opponents.by_autograd(density)}
    ours, n = target.log_prob_and_score, len(pool[0])
    case = _of_op(on, "rings_energy", "4, 65536 chains", "row", n, pool, ours, others, "close")
    return Bench(case, flops=4 * (3 + 21) + 30, step_bytes=20.0 * n)


def funnel_energy(on: On) -> Bench:
    """log p and score in ten dimensions."""
    target, pool = Funnel(), _pool(on, (65_536, 10))
    inverse, constant = target.native.params

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        z, rest = x[:, 0], x[:, 1:]
        precision = torch.exp(-z)
        energy = 0.5 * torch.linalg.vecdot(rest, rest) * precision
        score = x * precision[:, None].neg()
        score[:, 0] = energy - 4.5 - z * inverse
        return -(0.5 * inverse * z * z + 4.5 * z + energy) - constant, score

    ours, n = target.log_prob_and_score, len(pool[0])
    size, others = "10, 65536 chains", {"torch eager": eager}
    case = _of_op(on, "funnel_energy", size, "row", n, pool, ours, others, "close")
    return Bench(case, flops=3 * 9 + 25, step_bytes=84.0 * n)


def logistic_energy(on: On) -> Bench:
    """log p and score of a posterior of the size of the Sonar data: 166 rows of 60 features."""
    how: dict[str, Any] = {"seed": SEED, "stream": "user", "dtype": torch.float64}
    u = rng.uniform((166, 61), **how)
    target, pool = LogisticRegression(u[:, 1:], u[:, 0].round()), _pool(on, (4096, 61))
    params, _ = target._at(pool[0])
    signs = 2 * u[:, :1].round() - 1
    rows = (torch.cat([u[:, 1:], torch.ones_like(signs)], 1) * signs).to(pool[0])
    precision = torch.cat([params[:1].expand(60), params[1:2]])

    def eager(x: Tensor) -> tuple[Tensor, Tensor]:
        t, pull = x @ rows.T, x * precision  # (n, 166), (n, 61)
        log_prob = torch.nn.functional.logsigmoid(t).sum(1) - 0.5 * torch.linalg.vecdot(pull, x)
        return log_prob - params[2], torch.addmm(pull, t.neg_().sigmoid_(), rows, beta=-1)

    def density(x: Tensor) -> Tensor:
        t = x @ rows.T
        return torch.nn.functional.logsigmoid(t).sum(1) - 0.5 * (x * x) @ precision - params[2]

    others = {"torch eager": eager, "torch autograd": opponents.by_autograd(density)}
    size, ours = "166×61, 4096 chains", target.log_prob_and_score
    case = _of_op(on, "logistic_energy", size, "row", 4096, pool, ours, others, "close")
    return Bench(case, flops=166 * (4 * 61 + 25), step_bytes=8.0 * pool[0].numel())
