"""`sample` draws from a target with any kernel or sampler, in memory or into a run folder; `resume` goes on with a folder.

A Markov run is: starting points, warm-up, then blocks of draws, each one fused call of the kernel. Everything random is a
function of (seed, global chain index, step), and the size of a block of the configuration, so neither the number of processes,
nor where a run was killed, nor how often it was saved changes a bit of the draws.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp import _native, rng, store
from pysamp.describe import NotRebuildable, describe, digest, rebuild
from pysamp.distributed import (
    Progress,
    World,
    barrier,
    gather_bytes,
    gather_chains,
    is_main,
    progress as show_progress,
    split,
    world,
)
from pysamp.mcmc.adapt import warm_up
from pysamp.mcmc.base import Info, Kernel, State, Tunable
from pysamp.samples import Samples
from pysamp.store import Checkpoint, Tally
from pysamp.target import Counted, Counts, Target, as_target, fingerprint

N_CHAINS, N_DRAWS, WARMUP = 256, 1000, 500  # defaults of a Markov run
BLOCK_BYTES = 1 << 26  # of draws made by one fused call, of all chains together: 64 MiB
BLOCK_STEPS = 128  # of one fused call: amortises its overhead, and a slow target still ticks
CHECKPOINT_SECONDS = 5.0  # between checkpoints: what a kill may cost, far above what saving costs


@runtime_checkable
class Sampler(Protocol):
    """A method that makes n draws at once, such as SLIPS."""

    def sample(self, target: Target, n: int, *, seed: int) -> Samples: ...


@runtime_checkable
class Learned(Protocol):
    """A sampler that is trained on the target before it draws."""

    @property
    def fitted(self) -> bool: ...

    def fit(self, target: Target, *, seed: int) -> object: ...


@runtime_checkable
class HasStart(Protocol):
    """A target that does not live on all of R^d: it makes its own starting points (n, *event_shape)."""

    def start(
        self, n: int, *, seed: int, first_chain: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor: ...


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

    def block(self) -> int:
        """Draws of one fused call; of all chains, so that every process counts the same blocks."""
        itemsize = torch.finfo(self.dtype).bits // 8
        draw = self.n_chains * max(1, math.prod(self.event_shape)) * itemsize
        return max(1, min(self.n_draws, BLOCK_BYTES // draw, BLOCK_STEPS // self.thin))


# ------------------------------------------------------------------------------------- entry points
def sample(
    target: Target | Callable[[Tensor], Tensor],
    sampler: Kernel | Sampler,
    *,
    n_chains: int | None = None,
    n_draws: int | None = None,
    warmup: int | None = None,
    thin: int = 1,
    seed: int = 0,
    event_shape: Sequence[int] | None = None,
    x0: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    out: str | os.PathLike | None = None,
    progress: bool = True,
) -> Samples:
    """Draw from `target`.

    target: a Target, or a callable (n, *event_shape) -> (n,) with `event_shape`.
    sampler: an MCMC kernel (256 chains of 1000 draws after 500 steps of warm-up, which adapts a
    step size that was left out), or a Sampler, which makes n_chains * n_draws draws in its own shape
    (n_draws is 1 by default); a learned one that is not fitted is fitted first.
    thin: keep every thin-th state. x0: starting points (n_chains, *event_shape), else standard
    normal, or the target's own if it has `start`. device, dtype: those of x0, else CPU and float32.
    out: a new run folder that the draws are streamed into; memory then stays bounded and `resume`
    goes on after an interruption.

    Under torchrun the chains are shared out; every process gets all draws, the same for any number.
    Raises ValueError, TypeError for arguments, FileExistsError for `out`, OSError on a full disk.
    """
    here = world()
    t = as_target(target, None if event_shape is None else tuple(event_shape))
    if isinstance(sampler, type):
        raise TypeError(f"sampler is the class {sampler.__name__}: pass an instance of it")
    if isinstance(sampler, Kernel):
        plan = _plan(t, here, n_chains, n_draws, warmup, thin, seed, x0, device, dtype)
        _check_scale(sampler, plan)
        if out is None:
            return _in_memory(t, sampler, plan, here, x0, progress)
        config = _config(t, sampler, plan, x0)
        store.check_free(out, config)
        barrier(here)  # nobody makes the folder before all have seen that it is free
        if is_main(here):
            parts = [split(plan.n_chains, replace(here, rank=r)) for r in range(here.size)]
            info = _static_info(sampler, plan)
            more = {"device": str(plan.device), "block": plan.block(), "info": info}
            store.create(out, config, parts, **more)
            if x0 is not None:
                store.save_start(out, x0)
        barrier(here)
        return _in_folder(Path(out), t, sampler, plan, here, progress)
    if isinstance(sampler, Sampler):
        for name, value, none in (("warmup", warmup, 0), ("thin", thin, 1), ("x0", x0, None)):
            if value is not None and value is not none:
                raise ValueError(f"{name}={value} has no meaning for {type(sampler).__name__}")
        n = _positive(n_chains, "n_chains", N_CHAINS) * _positive(n_draws, "n_draws", 1)
        return _independent(t, sampler, n, _seed(seed), here, device, dtype, out)
    raise TypeError(
        "sampler must be a kernel (init and step) or a sampler (sample), "
        f"got {type(sampler).__name__}"
    )


def resume(
    path: str | os.PathLike,
    target: Target | Callable[[Tensor], Tensor] | None = None,
    *,
    sampler: Kernel | Sampler | None = None,
    progress: bool = True,
) -> Samples:
    """Go on with the run in folder `path` and return its Samples: the bits of the uninterrupted run.

    A run of pysamp's own target and sampler needs nothing else; a user's own must be given again and
    must be the same. A finished run is read. The number of processes may have changed.

    Raises ValueError, with every difference, for another target or sampler.
    """
    path = Path(path)
    here = world()
    manifest = store.read_manifest(path)
    config = manifest["config"]
    t = _same_target(path, config, target)
    k = _same_sampler(path, config, sampler)
    if manifest["status"] == "done":
        return store.read(path, t)
    _warn_of_changes(path, manifest)
    device, dtype = manifest["device"], config["dtype"]
    with _native.backend(manifest["info"]["backend"]):  # the same bits need the same kernels
        if not isinstance(k, Kernel):
            kind = None if dtype is None else getattr(torch, dtype)
            n, seed = config["n"], config["seed"]
            return _independent(t, k, n, seed, here, device, kind, path, again=True)
        sizes = {key: config[key] for key in ("n_chains", "n_draws", "warmup", "thin", "seed")}
        plan = _plan(t, here, **sizes, x0=None, device=device, dtype=getattr(torch, dtype))
        return _in_folder(path, t, k, plan, here, progress)


# ------------------------------------------------------------------------------------- arguments
def _plan(
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
        n_chains=_positive(n_chains, "n_chains", N_CHAINS),
        n_draws=_positive(n_draws, "n_draws", N_DRAWS),
        warmup=_positive(warmup, "warmup", WARMUP, least=0),
        thin=_positive(thin, "thin", 1),
        seed=_seed(seed),
        event_shape=event,
        dtype=_dtype(dtype),
        device=_device(device, here),
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


def _positive(value: int | None, name: str, default: int, least: int = 1) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    return seed


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return dtype


def _device(device: torch.device | str | None, here: World) -> torch.device:
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


def _check_scale(kernel: Kernel, plan: Plan) -> None:
    if isinstance(kernel, Tunable) and kernel.scale() is None and plan.warmup == 0:
        raise ValueError(
            f"{type(kernel).__name__} has no step size or width and warmup=0 leaves no steps to "
            "adapt it: give one of the two"
        )


# ------------------------------------------------------------------------------------- Markov runs
def _begin(
    target: Target,
    kernel: Kernel,
    plan: Plan,
    here: World,
    x0: Tensor | None,
    show: bool,
) -> tuple[Kernel, State, Tally]:
    """Start and warm up the chains of this process; the only place where processes wait for each other."""
    first, count = split(plan.n_chains, here)
    target = Counted(target)
    begin = _clock(plan.device)
    if x0 is not None:
        x = x0[first : first + count].to(plan.device)
    elif isinstance(target, HasStart):
        x = target.start(
            count, seed=plan.seed, first_chain=first, device=plan.device, dtype=plan.dtype
        )
    else:
        x = rng.normal(
            (count, *plan.event_shape),
            seed=plan.seed,
            stream=rng.STREAMS["start"],
            first_chain=first,
            device=plan.device,
            dtype=plan.dtype,
        )
    state = kernel.init(target, x, seed=plan.seed, first_chain=first)
    tally = Tally()
    if plan.warmup:
        with show_progress(plan.warmup, "warm-up", here, show=show) as bar:
            kernel, state, report = warm_up(
                kernel,
                target,
                state,
                plan.warmup,
                gather=lambda rows: gather_chains(rows, here),
                progress=bar.update,
            )
        tally.once["warm_up"] = report
    if isinstance(kernel, Tunable) and kernel.scale() is not None:
        tally.once["scale"] = kernel.scale()
    tally.add(_cost(target, Counts()), 0)
    tally.seconds = _clock(plan.device) - begin
    return kernel, state, tally


def _draw(
    target: Target,
    kernel: Kernel,
    state: State,
    plan: Plan,
    block: int,
    tally: Tally,
    done: int,
    keep: Callable[[int, Tensor, Tensor, State], None],
    bar: Progress,
) -> None:
    """Make draws done, done + 1, … of one part, a block at a time; each goes to `keep`."""
    target = Counted(target)
    while done < plan.n_draws:
        n = min(block, plan.n_draws - done)
        begin, before = _clock(plan.device), replace(target.counts)
        state, info = kernel.step(target, state, n * plan.thin, thin=plan.thin)
        x, log_prob = _kept(info, kernel, n, plan)
        tally.add(
            {"accept": info.accept, **_cost(target, before), **info.extra}, n * plan.thin
        )
        tally.seconds += _clock(plan.device) - begin
        keep(done, x, log_prob, state)
        done += n
        bar.update(n)


def _cost(target: Counted, before: Counts) -> dict[str, Tensor]:
    """What was evaluated since `before`. A kernel that reports its cost itself is believed instead."""
    since = {key: now - getattr(before, key) for key, now in vars(target.counts).items()}
    return {key: torch.tensor(n, dtype=torch.float64) for key, n in since.items()}


def _kept(info: Info, kernel: Kernel, n: int, plan: Plan) -> tuple[Tensor, Tensor]:
    name = f"{type(kernel).__name__}.step with thin="
    if info.x is None or info.log_prob is None:
        raise TypeError(f"{name}{plan.thin} must fill x and log_prob of its Info")
    if info.x.shape[1:] != (n, *plan.event_shape) or info.log_prob.shape != info.x.shape[:2]:
        raise ValueError(
            f"{name}{plan.thin} must return x (n_chains, {n}, *{plan.event_shape}), "
            f"got {tuple(info.x.shape)} and log_prob {tuple(info.log_prob.shape)}"
        )
    return info.x, info.log_prob


def _clock(device: torch.device) -> float:
    """Seconds, after the work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _in_memory(
    target: Target, kernel: Kernel, plan: Plan, here: World, x0: Tensor | None, show: bool
) -> Samples:
    first, count = split(plan.n_chains, here)
    try:
        x = torch.empty(
            count, plan.n_draws, *plan.event_shape, dtype=plan.dtype, device=plan.device
        )
    except RuntimeError as error:
        gigabytes = count * plan.n_draws * math.prod(plan.event_shape) * 4 / 1e9
        raise MemoryError(
            f"{count} chains × {plan.n_draws} draws do not fit in memory (about {gigabytes:.1f} GB): "
            "use fewer draws, a larger thin, or out= to stream them to disk"
        ) from error
    log_prob = torch.empty(count, plan.n_draws, dtype=plan.dtype, device=plan.device)
    kernel, state, tally = _begin(target, kernel, plan, here, x0, show)

    def keep(at: int, block: Tensor, values: Tensor, _: State) -> None:
        x[:, at : at + block.shape[1]] = block
        log_prob[:, at : at + block.shape[1]] = values

    with show_progress(plan.n_draws, "draws", here, show=show) as bar:
        _draw(target, kernel, state, plan, plan.block(), tally, 0, keep, bar)
    parts = [split(plan.n_chains, replace(here, rank=r))[1] for r in range(here.size)]
    reports = [store.decode(data) for data in gather_bytes(store.encode(_report(tally)), here)]
    info = _static_info(kernel, plan) | store.merge_info(parts, [r.tally for r in reports])
    return Samples(
        x=gather_chains(x, here, plan.n_chains),
        log_prob=gather_chains(log_prob, here, plan.n_chains),
        info=info,
        target=target,
    )


def _report(tally: Tally) -> Checkpoint:
    return Checkpoint(n_draws=0, state={}, kernel={}, tally=tally)


def _in_folder(
    path: Path, target: Target, kernel: Kernel, plan: Plan, here: World, show: bool
) -> Samples:
    """Draw what the folder lacks. Each process takes every size-th part."""
    with ExitStack() as held:
        n_parts = len(store.read_manifest(path)["parts"])
        for part in range(here.rank, max(n_parts, here.size), here.size):
            held.enter_context(store.lock(path, part))
        barrier(here)
        begun = all(store.load_checkpoint(path, part) for part in range(n_parts))
        barrier(here)  # nobody changes the folder before all have looked
        try:
            if not begun and is_main(here):
                parts = [split(plan.n_chains, replace(here, rank=r)) for r in range(here.size)]
                store.restart(path, parts)
            elif is_main(here):
                store.update_manifest(path, status="running", error=None)
            barrier(here)
            manifest = store.read_manifest(path)
            parts, block = manifest["parts"], manifest["block"]
            for part in range(here.rank, len(parts), here.size):
                _fill(path, part, parts[part], target, kernel, plan, block, here, show)
        except BaseException as error:
            with suppress(OSError):  # a full disk has no room for this either
                text = f"{type(error).__name__}: {error}"
                store.update_manifest(path, status="failed", error=text)
            raise
        barrier(here)
        if is_main(here):
            store.finish(path)
        barrier(here)
    return store.read(path, target)


def _fill(
    path: Path,
    part: int,
    chains: tuple[int, int],
    target: Target,
    kernel: Kernel,
    plan: Plan,
    block: int,
    here: World,
    show: bool,
) -> None:
    """Draw one part of the folder from its checkpoint, or from the start if it has none."""
    first, count = chains
    saved = store.load_checkpoint(path, part)
    if saved is None:
        kernel, state, tally = _begin(target, kernel, plan, here, store.load_start(path), show)
        saved = Checkpoint(0, _state_tree(state), _kernel_tree(kernel), tally)
        store.save_checkpoint(path, part, saved)
    state = _state(saved.state, plan.device)
    kernel = _with_scale(kernel, saved.kernel, plan.device)
    shape = (count, plan.n_draws)
    shapes = {"x": ((*shape, *plan.event_shape), plan.dtype), "log_prob": (shape, plan.dtype)}
    done = saved.n_draws
    writer = store.open_part(path, part, first, shapes, block, new=done == 0)
    tally = saved.tally
    waiting: list[tuple[Tensor, Tensor]] = []
    last_save = time.monotonic()

    def keep(at: int, x: Tensor, log_prob: Tensor, state: State) -> None:
        nonlocal last_save
        waiting.append((x.cpu(), log_prob.cpu()))
        end = at + x.shape[1]
        size = sum(block.numel() * block.element_size() for block, _ in waiting)
        recent = time.monotonic() - last_save < CHECKPOINT_SECONDS
        if recent and size < BLOCK_BYTES and end < plan.n_draws:
            return
        xs, log_probs = (torch.cat(blocks, 1) for blocks in zip(*waiting, strict=True))
        writer.append(end - xs.shape[1], x=xs, log_prob=log_probs)
        store.save_checkpoint(
            path, part, Checkpoint(end, _state_tree(state), _kernel_tree(kernel), tally)
        )
        waiting.clear()
        last_save = time.monotonic()

    with show_progress(plan.n_draws, "draws", here, done=done, show=show) as bar:
        _draw(target, kernel, state, plan, block, tally, done, keep, bar)


def _state_tree(state: State) -> dict[str, Any]:
    return {
        "x": state.x,
        "log_prob": state.log_prob,
        "score": state.score,
        "seed": state.seed,
        "step": state.step,
        "first_chain": state.first_chain,
        "aux": state.aux,
    }


def _state(tree: dict[str, Any], device: torch.device) -> State:
    def there(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: there(item) for key, item in value.items()}
        return value.to(device) if isinstance(value, Tensor) else value

    return State(**there(tree))


def _kernel_tree(kernel: Kernel) -> dict[str, Any]:
    return {"scale": kernel.scale() if isinstance(kernel, Tunable) else None}


def _with_scale(kernel: Kernel, tree: dict[str, Any], device: torch.device) -> Kernel:
    """The kernel with the scale that warm-up found."""
    scale = tree["scale"]
    if not isinstance(kernel, Tunable) or kernel.scale() is not None or scale is None:
        return kernel
    return kernel.with_scale(scale.to(device) if isinstance(scale, Tensor) else scale)


# ------------------------------------------------------------------------------------- samplers
def _independent(
    target: Target,
    sampler: Sampler,
    n: int,
    seed: int,
    here: World,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    out: str | os.PathLike | None,
    again: bool = False,
) -> Samples:
    """Draws of a sampler, which makes them in one go: a folder holds all of them or none.

    Every process calls the sampler, which may share its work out among them; they get the same draws.
    """
    given = {} if device is None else {"device": _device(device, here)}
    given |= {} if dtype is None else {"dtype": _dtype(dtype)}
    info = {
        "sampler": type(sampler).__name__,
        "seed": seed,
        "backend": _native.backend_name(),
    }
    with ExitStack() as held:
        if out is not None:
            name = None if dtype is None else str(dtype).removeprefix("torch.")
            config = _common_config(target, sampler, seed) | {"n": n, "dtype": name}
            if not again:
                store.check_free(out, config)
                barrier(here)
                if is_main(here):
                    where = None if device is None else str(device)
                    store.create(out, config, [(0, n)], device=where, info=info)
            if is_main(here):
                held.enter_context(store.lock(out, 0))
        begin = time.perf_counter()
        if isinstance(sampler, Learned) and not sampler.fitted:
            sampler.fit(target, seed=seed)
        samples = sampler.sample(target, n, seed=seed, **given)
        info |= {
            "seconds": _clock(samples.x.device) - begin,
            "device": str(samples.x.device),
            "dtype": str(samples.x.dtype).removeprefix("torch."),
            **samples.info,
        }
        samples = replace(samples, info=info, target=target)
        if out is not None and is_main(here):
            store.save_whole(out, samples, BLOCK_BYTES)
        barrier(here)
    return samples if out is None else store.read(out, target)


# ------------------------------------------------------------------------------------- the same run
def _static_info(sampler: object, plan: Plan) -> dict[str, Any]:
    return {
        "sampler": type(sampler).__name__,
        "markov": True,
        "warmup": plan.warmup,
        "thin": plan.thin,
        "seed": plan.seed,
        "backend": _native.backend_name(),
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
    }


def _common_config(target: Target, sampler: object, seed: int) -> dict[str, Any]:
    return {
        "target": describe(target),
        "target_fingerprint": fingerprint(target),
        "event_shape": list(target.event_shape),
        "sampler": describe(sampler),
        "seed": seed,
    }


def _config(target: Target, kernel: Kernel, plan: Plan, x0: Tensor | None) -> dict[str, Any]:
    """What must agree for two runs to be the same."""
    return _common_config(target, kernel, plan.seed) | {
        "n_chains": plan.n_chains,
        "n_draws": plan.n_draws,
        "warmup": plan.warmup,
        "thin": plan.thin,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "x0": None if x0 is None else digest(x0),
    }


def _same_target(path: Path, config: dict[str, Any], given: Any) -> Target:
    """The target of the run: rebuilt from the manifest, or the given one if it is the same."""
    if given is None:
        target = _rebuilt(path, config["target"], "target")
    else:
        target = as_target(given, tuple(config["event_shape"]) if callable(given) else None)
    found = fingerprint(target)
    if found != config["target_fingerprint"]:
        if given is None:
            raise ValueError(
                f"the target of {path} cannot be rebuilt to the same bits by this version: give it, "
                f"pysamp.resume({str(path)!r}, target=...)"
            )
        recorded = {"target": config["target"], "fingerprint": config["target_fingerprint"]}
        store.refuse_if_different(
            path, recorded, {"target": describe(target), "fingerprint": found}, "target"
        )
    return target


def _same_sampler(path: Path, config: dict[str, Any], given: Any) -> Any:
    if given is None:
        return _rebuilt(path, config["sampler"], "sampler")
    store.refuse_if_different(path, config["sampler"], describe(given), "sampler")
    return given


def _rebuilt(path: Path, tree: Any, what: str) -> Any:
    try:
        return rebuild(tree)
    except (NotRebuildable, TypeError) as error:
        raise ValueError(
            f"the {what} of {path} is not made of pysamp's own parts alone ({error}): give it, "
            f"pysamp.resume({str(path)!r}, {what}=...)"
        ) from error


def _warn_of_changes(path: Path, manifest: dict[str, Any]) -> None:
    now = store.versions()
    changed = [
        f"{name} {manifest['versions'].get(name)} then, {now[name]} now"
        for name in ("pysamp", "torch")
        if manifest["versions"].get(name) != now[name]
    ]
    if changed:
        warnings.warn(
            f"{path} was begun with other versions ({'; '.join(changed)}): the draws may differ in "
            "their last bits from an uninterrupted run",
            stacklevel=3,
        )
