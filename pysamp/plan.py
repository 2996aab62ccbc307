"""The sizes of a Markov run: every argument of `sample` checked where the user's value enters.

What has one row per chain (a step size, the values of a wrapper) is cut here as the chains are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pysamp.capabilities import RECORD
from pysamp.distributed import World
from pysamp.mcmc.base import Kernel, Tunable
from pysamp.mcmc.cycle import Cycle
from pysamp.mcmc.langevin import ULA
from pysamp.mcmc.metropolis import needs_scale
from pysamp.mcmc.tempering import ParallelTempering
from pysamp.target import Target, Tempered, Tilted

N_CHAINS, N_DRAWS, WARMUP = 256, 1000, 500  # defaults
BLOCK_BYTES = 1 << 26  # of draws made by one fused call, of all chains together: 64 MiB
BLOCK_STEPS = 128  # of one fused call: amortises its overhead, and a slow target still ticks
CALL_STEPS = 1 << 16  # the most of one call, whatever thin is: float32 counts exactly to 2^24
MAX_CHUNKS = 4096  # files of a run of observables, and so what a kill may cost: 1/4096 of the run
WORDS = 1 << 32  # chains, and steps, that the counter of the random numbers tells apart


@dataclass(frozen=True)
class Plan:
    """The sizes of a Markov run."""

    n_chains: int
    n_draws: int
    warmup: int
    thin: int
    seed: int
    event_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    names: tuple[str, ...] | None = None  # of the observables kept of a draw; None: x is kept
    measure_every: int | None = None  # steps between two measurements; None: one a draw
    records: bool = False  # the kernel measures by itself, and no x leaves it

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of what is kept of a draw."""
        return self.event_shape if self.names is None else (len(self.names),)

    @property
    def every(self) -> int:
        return self.measure_every or self.thin

    def draw_bytes(self) -> int:
        """What is kept of one draw of all chains."""
        return self._bytes(math.prod(self.kept_shape))

    def block(self) -> int:
        """Draws of one fused call: a function of the sizes of the whole run, never of time."""
        fits = min(self.fits() * self.every // self.thin, BLOCK_STEPS // self.thin)
        return max(1, min(self.n_draws, fits))

    def fits(self) -> int:
        """Measurements whose states may be in memory at once; a kernel that measures holds none."""
        if self.records:
            return max(1, BLOCK_BYTES // self._bytes(RECORD)) * (self.thin // self.every)
        return max(1, BLOCK_BYTES // self._bytes(math.prod(self.event_shape)))

    def chunk(self) -> int:
        """Draws of one file on disk, in blocks: observables are small, and files must not be many."""
        block = self.block()
        if self.names is None:
            return block
        wanted = min(-(-self.n_draws // MAX_CHUNKS), BLOCK_BYTES // self.draw_bytes())
        return -(-max(1, wanted) // block) * block

    def _bytes(self, numbers: int) -> int:
        return self.n_chains * max(1, numbers) * torch.finfo(self.dtype).bits // 8


def make_plan(
    target: Target,
    here: World,
    n_chains: int | None,
    n_draws: int | None,
    warmup: int | None,
    thin: int,
    seed: int,
    x0: Tensor | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Plan:
    event = tuple(target.event_shape)
    if x0 is not None:
        if not isinstance(x0, Tensor):
            raise TypeError(f"x0 must be a Tensor, got {type(x0).__name__}")
        n_chains = x0.shape[0] if n_chains is None and x0.ndim else n_chains
        device, dtype = x0.device if device is None else device, dtype or x0.dtype
    plan = Plan(
        n_chains=positive(n_chains, "n_chains", N_CHAINS),
        n_draws=positive(n_draws, "n_draws", N_DRAWS),
        warmup=positive(warmup, "warmup", WARMUP, least=0),
        thin=positive(thin, "thin", 1),
        seed=check_seed(seed),
        event_shape=event,
        dtype=choose_dtype(dtype),
        device=choose_device(device, here),
    )
    if here.size > plan.n_chains:
        raise ValueError(
            f"n_chains={plan.n_chains} is fewer than the {here.size} processes: each needs a chain"
        )
    if x0 is not None:
        if tuple(x0.shape) != (plan.n_chains, *event):
            raise ValueError(
                f"x0 must have shape {(plan.n_chains, *event)} = (n_chains, *event_shape), "
                f"got {tuple(x0.shape)}"
            )
        if x0.dtype != plan.dtype:
            raise ValueError(f"x0 must have dtype {plan.dtype}, got {x0.dtype}")
        if x0.device.type != plan.device.type:
            raise ValueError(f"x0 must be on device {plan.device}, got {x0.device}")
        bad = (~torch.isfinite(x0)).reshape(plan.n_chains, -1).any(1)
        if bool(bad.any()):
            chain = int(bad.nonzero()[0])
            raise ValueError(
                f"x0 must be finite, got {x0[chain].flatten()[:8].tolist()} at chain {chain}"
            )
    return plan


def positive(value: int | None, name: str, default: int, least: int = 1) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed


def choose_dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return dtype


def choose_device(device: torch.device | str | None, here: World) -> torch.device:
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be such as 'cpu' or 'cuda', got {device!r}") from error
    if found.type != "cuda":
        return found
    if not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r} was asked for, but torch sees no CUDA device")
    # Of several processes each has its own GPU, whatever index the shared script names.
    return torch.device("cuda", here.local_rank if here.size > 1 else found.index or 0)


def check_kernel(kernel: Kernel, target: Target, plan: Plan) -> None:
    """Refuse, before anything is made, sizes that do not go together or that the counters lack."""
    name = type(kernel).__name__
    rungs, swap_every = 1, 1
    if isinstance(kernel, ParallelTempering):
        rungs, swap_every = len(kernel.ladder()), kernel.swap_every
    inner = kernel.kernel if isinstance(kernel, ParallelTempering) else kernel
    if isinstance(inner, Cycle):  # whose kernels count apart
        swap_every *= len(inner.kernels)
    ladder = f" of {rungs} rungs" if rungs > 1 else ""
    if plan.n_chains * rungs > WORDS:
        raise ValueError(
            f"n_chains must be at most 2**32{ladder and ' in all'}, got {plan.n_chains}{ladder}"
        )
    steps = (plan.warmup + plan.n_draws * plan.thin) * swap_every
    if steps > WORDS:
        raise ValueError(
            f"warmup + n_draws * thin must be at most {WORDS // swap_every} steps of {name}, got "
            f"{plan.warmup} + {plan.n_draws} * {plan.thin}"
        )
    scale = _scale(kernel)
    if needs_scale(kernel, target) and plan.warmup == 0:
        raise ValueError(
            f"{name} has no step size or width and warmup=0 leaves no steps to adapt it: give one "
            "of the two"
        )
    if isinstance(scale, Tensor) and scale.ndim:
        one = (rungs,) if isinstance(kernel, ParallelTempering) else ()
        allowed = [shape for shape in (one, (plan.n_chains, *one)) if shape]
        if tuple(scale.shape) not in allowed:
            raise ValueError(
                f"the step size or width of {name} must be a number or have shape "
                f"{' or '.join(map(str, allowed))}, got {tuple(scale.shape)}"
            )
    while isinstance(target, (Tempered, Tilted)):
        for argument, value in _rows(target).items():
            wrapper = f"{argument} of {type(target).__name__}"
            if len(value) != plan.n_chains:
                raise ValueError(
                    f"{wrapper} has {len(value)} rows, but n_chains is {plan.n_chains}"
                )
            if isinstance(kernel, ParallelTempering):
                raise ValueError(
                    f"{wrapper} must be one for all chains with ParallelTempering, whose walkers "
                    f"are {rungs} to a chain; got {len(value)} rows"
                )
        target = target.base


def of_chains(target: Target, kernel: Kernel, first: int, count: int) -> tuple[Target, Kernel]:
    """Target and kernel of chains first … first + count - 1, after `check_kernel`."""
    scale = _scale(kernel)
    if isinstance(scale, Tensor) and scale.ndim == 1 + isinstance(kernel, ParallelTempering):
        mine = scale[first : first + count]
        if isinstance(kernel, ULA):
            kernel = replace(kernel, step_size=mine)
        elif isinstance(kernel, Tunable):
            kernel = kernel.with_scale(mine)
    return _cut(target, first, count), kernel


def _cut(target: Target, first: int, count: int) -> Target:
    if not isinstance(target, (Tempered, Tilted)):
        return target
    mine = {name: value[first : first + count] for name, value in _rows(target).items()}
    return replace(target, base=_cut(target.base, first, count), **mine)  # type: ignore[arg-type]


def _rows(wrapper: Tempered | Tilted) -> dict[str, Tensor]:
    """The arguments of a wrapper that have a row for each chain."""
    ndim = {"beta": 1, "precision": 1, "centre": 1 + len(wrapper.event_shape)}
    given = {name: vars(wrapper).get(name) for name in ndim}
    return {k: v for k, v in given.items() if isinstance(v, Tensor) and v.ndim == ndim[k]}


def _scale(kernel: Kernel) -> Tensor | float | None:
    if isinstance(kernel, ULA):  # which warm-up cannot tune
        return kernel.step_size
    return kernel.scale() if isinstance(kernel, Tunable) else None
