"""The entry points: `sample` draws from a target with any kernel or sampler, `resume` goes on."""

from __future__ import annotations

import inspect
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pysamp import _native, store
from pysamp.chains import clock, in_folder, in_memory, static_info
from pysamp.describe import NotRebuildableError, describe, digest, rebuild
from pysamp.distributed import World, barrier, is_main, split, world
from pysamp.fingerprint import fingerprint
from pysamp.mcmc.base import Kernel
from pysamp.measure import check_keep, of_observables
from pysamp.plan import (
    BLOCK_BYTES,
    N_CHAINS,
    WORDS,
    Plan,
    check_kernel,
    check_seed,
    choose_device,
    choose_dtype,
    make_plan,
    positive,
)
from pysamp.samples import Samples
from pysamp.tally import gather_samples
from pysamp.target import Target, as_target


@runtime_checkable
class Sampler(Protocol):
    """A method that makes n draws at once, such as SLIPS.

    What it takes besides: device and dtype; `progress`, whether to show it; `checkpoint`, a file that it
    goes on from if it was killed in its training; `first_chain`, if its draws are independent of each
    other, draw r being a function of the seed and of first_chain + r: several processes then share them.
    """

    def sample(self, target: Target, n: int, *, seed: int) -> Samples: ...


@runtime_checkable
class Learned(Protocol):
    """A sampler that is trained on the target before it draws."""

    @property
    def fitted(self) -> bool: ...

    def fit(self, target: Target, *, seed: int) -> object: ...


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
    keep: str = "x",
    measure_every: int | None = None,
    progress: bool = True,
) -> Samples:
    """Draw from `target`.

    target: a Target, or a callable (n, *event_shape) -> (n,) with `event_shape`.
    sampler: an MCMC kernel (256 chains of 1000 draws after 500 steps of warm-up, which adapts a
    step size that was left out), or a Sampler, which makes n_chains * n_draws draws in a shape of
    its own (n_draws is 1 by default); a learned one that is not fitted is fitted first.
    thin: keep every thin-th state. x0: starting points (n_chains, *event_shape), else standard
    normal, or the target's own if it has `start`. device, dtype: those of x0, else CPU and float32.
    out: a new run folder that the draws are streamed into; memory then stays bounded and `resume`
    goes on after an interruption.
    keep: "x", or "observables" to keep of each draw the target's observables instead, whose names are
    in Samples.names; configurations then never add up in memory. measure_every: steps between two
    measurements, of which a draw is the mean over its `thin` steps (log_prob, too); one by default.

    Under torchrun the chains are shared out; every process gets all draws, the same for any number.
    Raises ValueError, TypeError for arguments, FileExistsError for `out`, OSError on a full disk.
    """
    here = world()
    check_keep(keep, measure_every)
    t = as_target(target, None if event_shape is None else tuple(event_shape))
    if isinstance(sampler, type):
        raise TypeError(f"sampler is the class {sampler.__name__}: pass an instance of it")
    if isinstance(sampler, Kernel):
        plan = make_plan(t, here, n_chains, n_draws, warmup, thin, seed, x0, device, dtype)
        check_kernel(sampler, t, plan)
        if keep == "observables":
            plan = of_observables(plan, t, sampler, measure_every, x0)
        if out is None:
            return in_memory(t, sampler, plan, here, x0, progress)
        config = _config(t, sampler, plan, x0)
        store.check_free(out, config)
        barrier(here)  # nobody makes the folder before all have seen that it is free
        if is_main(here):
            parts = [split(plan.n_chains, replace(here, rank=r)) for r in range(here.size)]
            info = static_info(sampler, plan)
            more = {"device": str(plan.device), "block": plan.block(), "info": info}
            more |= {} if plan.names is None else {"chunk": plan.chunk()}
            store.create(out, config, parts, **more)
            if x0 is not None:
                store.save_start(out, x0)
        barrier(here)
        return in_folder(Path(out), t, sampler, plan, here, progress)
    if isinstance(sampler, Sampler):
        for name, value, none in (("warmup", warmup, 0), ("thin", thin, 1), ("x0", x0, None)):
            if value is not None and value is not none:
                raise ValueError(f"{name}={value} has no meaning for {type(sampler).__name__}")
        if keep != "x":
            raise ValueError(f"keep={keep!r} has no meaning for {type(sampler).__name__}")
        n = positive(n_chains, "n_chains", N_CHAINS) * positive(n_draws, "n_draws", 1)
        if n > WORDS:
            raise ValueError(f"n_chains * n_draws must be at most 2**32 draws, got {n}")
        return _independent(
            t, sampler, n, check_seed(seed), here, device, dtype, out, show=progress
        )
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
    """Go on with the run in folder `path`; the Samples are those of the uninterrupted run.

    A run of pysamp's own target and sampler needs nothing else; a user's own must be given again,
    and must be the same. A finished run is read. The number of processes may have changed.

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
    device, dtype = manifest.get("device"), config["dtype"]
    with _native.backend(manifest["info"]["backend"]):  # the same bits need the same kernels
        if not isinstance(k, Kernel):
            kind = None if dtype is None else getattr(torch, dtype)
            n, seed = config["n"], config["seed"]
            return _independent(t, k, n, seed, here, device, kind, path, again=True, show=progress)
        sizes = {key: config[key] for key in ("n_chains", "n_draws", "warmup", "thin", "seed")}
        plan = make_plan(t, here, **sizes, x0=None, device=device, dtype=getattr(torch, dtype))
        check_kernel(k, t, plan)
        if (names := config.get("names")) is not None:
            plan = of_observables(plan, t, k, config["measure_every"], store.load_start(path))
            store.refuse_if_different(path, names, list(plan.names or ()), "observables")
        return in_folder(path, t, k, plan, here, progress)


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
    show: bool = True,
) -> Samples:
    """Draws of a sampler, which makes them in one go: a folder holds all of them or none.

    Draws that are independent of each other are shared out among the processes; of other samplers every
    process makes all.
    """
    given: dict[str, Any] = {} if device is None else {"device": choose_device(device, here)}
    given |= {} if dtype is None else {"dtype": choose_dtype(dtype)}
    takes = inspect.signature(sampler.sample).parameters
    given |= {"progress": show} if "progress" in takes else {}
    shared = here.size > 1 and "first_chain" in takes and n >= here.size
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
                held.enter_context(store.noting_failure(out))
                if "checkpoint" in takes:
                    given["checkpoint"] = store.checkpoint_file(out, "training")
        begin = time.perf_counter()
        if isinstance(sampler, Learned) and not sampler.fitted:
            sampler.fit(target, seed=seed)
        if shared:
            first, count = split(n, here)
            given["first_chain"] = first
            part = sampler.sample(target, count, seed=seed, **given)
            samples = gather_samples(part, here, n)
        else:
            samples = sampler.sample(target, n, seed=seed, **given)
        info |= {
            "seconds": clock(samples.x.device) - begin,
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
    observed: dict[str, Any] = {}
    if plan.names is not None:
        observed = {"names": list(plan.names), "measure_every": plan.every}
    return _common_config(target, kernel, plan.seed) | {
        "n_chains": plan.n_chains,
        "n_draws": plan.n_draws,
        "warmup": plan.warmup,
        "thin": plan.thin,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "x0": None if x0 is None else digest(x0),
        **observed,
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
                f"the target of {path} cannot be rebuilt to the same bits here: give it, "
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
    except (NotRebuildableError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the {what} of {path} cannot be made from its manifest alone ({error}): give it, "
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
