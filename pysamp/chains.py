"""Markov runs: start, warm-up, then draws in blocks of fused steps, in memory or in a run folder.
Everything random is a function of (seed, global chain index, step), so neither the size of a block,
nor the number of processes, nor where a run was killed or how often it was saved changes a draw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pysamp import _native, store
from pysamp.describe import identity
from pysamp.distributed import (
    Progress,
    World,
    barrier,
    gather_bytes,
    gather_chains,
    is_main,
    show_progress,
    split,
)
from pysamp.mcmc.adapt import warm_up
from pysamp.mcmc.base import Kernel, State, Tunable
from pysamp.mcmc.langevin import ULA
from pysamp.measure import Part, advance, finished, starting_points
from pysamp.plan import BLOCK_BYTES, CALL_STEPS, Plan, of_chains
from pysamp.samples import Samples
from pysamp.tally import Checkpoint, Tally, decode, encode, merge_info
from pysamp.target import Counted, Counts, HasNative, Target

CHECKPOINT_SECONDS = 5.0  # between checkpoints: what a kill may cost, far above what saving costs


def unadjusted(kernel: object) -> bool:
    """Whether a kernel, or one that it is made of, has no accept/reject step."""
    parts = vars(kernel).values() if isinstance(kernel, Kernel) else ()
    inner = [p for part in parts for p in (part if isinstance(part, tuple) else (part,))]
    return isinstance(kernel, ULA) or any(unadjusted(p) for p in inner if isinstance(p, Kernel))


def static_info(sampler: object, plan: Plan) -> dict[str, Any]:
    measured = {} if plan.names is None else {"measure_every": plan.every}
    return {
        "sampler": type(sampler).__name__,
        **({"unadjusted": True} if unadjusted(sampler) else {}),
        "markov": True,
        "warmup": plan.warmup,
        "thin": plan.thin,
        "seed": plan.seed,
        "backend": _native.backend_name(),
        "device": str(plan.device),
        "dtype": str(plan.dtype).removeprefix("torch."),
        **measured,
    }


def _begin(
    target: Counted,
    kernel: Kernel,
    plan: Plan,
    chains: tuple[int, int],
    here: World,
    x0: Tensor | None,
    show: bool,
) -> tuple[Kernel, State, Tally]:
    """Start and warm up the chains of this process. Only here do processes wait for each other."""
    first, count = chains
    begin = clock(plan.device)
    x = starting_points(target.base, plan, first, count, x0)
    state = kernel.init(target, x, seed=plan.seed, first_chain=first)
    _refuse_coupled_rows(target.base, x, state.log_prob)
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
    tally.seconds = clock(plan.device) - begin
    return kernel, state, tally


def _refuse_coupled_rows(target: Target, x: Tensor, log_prob: Tensor) -> None:
    """The density of chain 0 may not change with the other rows; their number stays, as a wrapper
    may have values for each."""
    if len(x) < 2 or isinstance(target, HasNative):
        return
    others = x[:1].expand_as(x).clone()  # a point where the density is known to be finite
    if torch.equal(others, x):
        others[1:] += 0.1
    with torch.no_grad():
        changed = float(target.log_prob(others)[0])
    before = float(log_prob[0])
    tolerance = 1e-3 if x.dtype == torch.float32 else 1e-8  # far above what the order of sums does
    if not abs(changed - before) <= tolerance * (1 + abs(before)):  # NaN is a change, too
        raise ValueError(
            f"target.log_prob of a row depends on the other rows of the batch, or is random: chain 0 "
            f"has {before} among {len(x)} chains and {changed} when the others move; see "
            "pysamp.check_target"
        )


def _draw(
    target: Counted,
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
    while done < plan.n_draws:
        n = min(block, plan.n_draws - done)
        begin = clock(plan.device)
        parts: list[Part] = []
        for steps, count in _calls(n, plan):
            before = replace(target.counts)
            if count:
                state, info, part = advance(target, kernel, state, steps, count, plan)
                parts.append(part)
            else:
                state, info = kernel.step(target, state, steps)
            tally.add({"accept": info.accept, **_cost(target, before), **info.extra}, steps)
            bar.update(steps)
        x, log_prob = finished(target, parts, plan)
        tally.seconds += clock(plan.device) - begin
        keep(done, x, log_prob, state)
        done += n


def _calls(n: int, plan: Plan) -> Iterator[tuple[int, int]]:
    """(steps, states or measurements kept of them) of the calls that make n draws.

    That is one call, unless a single draw takes too many steps, or too many states to hold at once.
    """
    units = n * plan.thin // plan.every
    most = units if n > 1 else max(1, min(CALL_STEPS // plan.every, plan.fits()))
    while units:
        count = min(most, units)
        left = count * plan.every
        while n == 1 and left > CALL_STEPS:
            yield CALL_STEPS, 0
            left -= CALL_STEPS
        yield left, count
        units -= count


def _cost(target: Counted, before: Counts) -> dict[str, Tensor]:
    """What was evaluated since `before`; a kernel that reports its cost is believed instead."""
    since = {key: now - getattr(before, key) for key, now in vars(target.counts).items()}
    return {key: torch.tensor(n, dtype=torch.float64) for key, n in since.items()}


def clock(device: torch.device) -> float:
    """Seconds, after the work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_memory(
    target: Target, kernel: Kernel, plan: Plan, here: World, x0: Tensor | None, show: bool
) -> Samples:
    first, count = split(plan.n_chains, here)
    try:
        x = torch.empty(count, plan.n_draws, *plan.kept_shape, dtype=plan.dtype, device=plan.device)
    except RuntimeError as error:
        gigabytes = count * plan.draw_bytes() / plan.n_chains * plan.n_draws / 1e9
        raise MemoryError(
            f"{count} chains × {plan.n_draws} draws do not fit in memory ({gigabytes:.1f} GB): "
            "use fewer draws, a larger thin, or out= to stream them to disk"
        ) from error
    log_prob = torch.empty(count, plan.n_draws, dtype=plan.dtype, device=plan.device)
    mine, kernel = of_chains(target, kernel, first, count)
    counted = Counted(mine)
    kernel, state, tally = _begin(counted, kernel, plan, (first, count), here, x0, show)

    def keep(at: int, block: Tensor, values: Tensor, _: State) -> None:
        x[:, at : at + block.shape[1]] = block
        log_prob[:, at : at + block.shape[1]] = values

    with show_progress(plan.n_draws * plan.thin, "steps", here, show=show) as bar:
        _draw(counted, kernel, state, plan, plan.block(), tally, 0, keep, bar)
    parts = [split(plan.n_chains, replace(here, rank=r))[1] for r in range(here.size)]
    reports = [decode(data) for data in gather_bytes(encode(_report(tally)), here)]
    info = static_info(kernel, plan) | merge_info(parts, [r.tally for r in reports])
    return Samples(
        x=gather_chains(x, here, plan.n_chains),
        log_prob=gather_chains(log_prob, here, plan.n_chains),
        info=info,
        target=target,
        names=plan.names,
    )


def _report(tally: Tally) -> Checkpoint:
    return Checkpoint(n_draws=0, state={}, kernel={}, tally=tally)


def in_folder(
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
        with store.noting_failure(path):
            if not begun and is_main(here):
                parts = [split(plan.n_chains, replace(here, rank=r)) for r in range(here.size)]
                store.restart(path, parts)
            elif is_main(here):
                store.update_manifest(path, status="running", error=None)
            barrier(here)
            manifest = store.read_manifest(path)
            for part in range(here.rank, len(manifest["parts"]), here.size):
                _fill(path, part, manifest, target, kernel, plan, here, show)
        barrier(here)
        if is_main(here):
            store.finish(path)
        barrier(here)
    return store.read(path, target)


def _fill(
    path: Path,
    part: int,
    manifest: dict[str, Any],
    target: Target,
    kernel: Kernel,
    plan: Plan,
    here: World,
    show: bool,
) -> None:
    """Draw one part of the folder from its checkpoint, or from the start if it has none."""
    first, count = manifest["parts"][part]
    block, config = manifest["block"], manifest["config"]
    chunk = manifest.get("chunk", block)
    mine, kernel = of_chains(target, kernel, first, count)
    counted = Counted(mine)
    saved = store.load_checkpoint(path, part)
    if saved is None:
        x0 = store.load_start(path)
        kernel, state, tally = _begin(counted, kernel, plan, (first, count), here, x0, show)
        saved = Checkpoint(0, _state_tree(state), _kernel_tree(kernel), tally, identity(config))
        store.save_checkpoint(path, part, saved)
    state = _state(saved.state, plan.device)
    kernel = _with_scale(kernel, saved.kernel, plan.device)
    shape = (count, plan.n_draws)
    shapes = {"x": ((*shape, *plan.kept_shape), plan.dtype), "log_prob": (shape, plan.dtype)}
    done = saved.n_draws
    writer = store.open_part(path, part, first, shapes, chunk, done=done)
    tally = saved.tally
    waiting: list[tuple[Tensor, Tensor]] = []
    last_save = time.monotonic()

    def keep(at: int, x: Tensor, log_prob: Tensor, state: State) -> None:
        nonlocal last_save
        waiting.append((x.cpu(), log_prob.cpu()))
        end = at + x.shape[1]
        size = sum(block.numel() * block.element_size() for block, _ in waiting)
        recent = time.monotonic() - last_save < CHECKPOINT_SECONDS and size < BLOCK_BYTES
        if end < plan.n_draws and (recent or end % chunk):
            return
        xs, log_probs = (torch.cat(blocks, 1) for blocks in zip(*waiting, strict=True))
        writer.append(end - xs.shape[1], x=xs, log_prob=log_probs)
        store.save_checkpoint(
            path, part, replace(saved, n_draws=end, state=_state_tree(state), tally=tally)
        )
        waiting.clear()
        last_save = time.monotonic()

    total, made = plan.n_draws * plan.thin, done * plan.thin
    with show_progress(total, "steps", here, done=made, show=show) as bar:
        _draw(counted, kernel, state, plan, block, tally, done, keep, bar)


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
