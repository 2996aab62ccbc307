"""Draws of a target, with their log densities, weights and what the sampler reports of itself.

Axes are (chain, draw, *event), the order of ArviZ; samplers of independent draws have one draw per
chain. The statistics are `metrics`; `summary` puts them on one page with a verdict in plain words.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pysamp import rng
from pysamp.summary import Summary, coordinate_names, scalars, summarise
from pysamp.target import Target

BLOCK_BYTES = 1 << 26  # a part of the draws that is looked at in one go: 64 MiB


@runtime_checkable
class Stored(Protocol):
    """Draws on disk: their shape (chain, draw, *event), and draws first to last - 1 of all."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, first: int, last: int) -> Tensor: ...


class _OnDemand:
    """The field `x`: a Tensor, or `Stored` draws that become one when they are first asked for."""

    def __get__(self, samples: Samples | None, owner: type) -> Tensor:
        if samples is None:
            raise AttributeError("x has no default")  # tells dataclass that the field is required
        value = samples.__dict__["x"]
        if isinstance(value, Stored):
            value = value.read(0, value.shape[1])
            samples.__dict__["x"] = value
        return value

    def __set__(self, samples: Samples, value: Tensor | Stored) -> None:
        samples.__dict__["x"] = value


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """What every sampler returns.

    `target`, if kept, gives `summary` its observables, modes and reference values; it is not saved.
    `info` holds tensors, numbers, text and dicts of these: acceptance, evaluations, seconds, log_z.
    A run folder hands over `x` unread: it is loaded when first used; `blocks` never loads it all.
    With `names`, x holds observables of these names instead of configurations, (chain, draw, K), and
    log_prob is their mean over the window of a draw where there was one.
    """

    x: Tensor = _OnDemand()  # type: ignore[assignment]  # (chain, draw, *event_shape)
    log_prob: Tensor  # type: ignore[misc]  # (chain, draw), unnormalised
    log_weight: Tensor | None = None  # (chain, draw) importance log-weights; None = equal
    info: dict[str, Any] = field(default_factory=dict)
    target: Target | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.__dict__["x"].shape)
        if len(shape) < 2 or 0 in shape[:2]:
            raise ValueError(f"x must be (chain, draw, *event) and not empty, got shape {shape}")
        for name, value in (("log_prob", self.log_prob), ("log_weight", self.log_weight)):
            if value is not None and tuple(value.shape) != shape[:2]:
                raise ValueError(f"{name} must be {shape[:2]} like x, got {tuple(value.shape)}")
        if self.names is not None:
            names = tuple(self.names)
            if shape[2:] != (len(names),) or len(set(names)) != len(names):
                raise ValueError(f"names must be {shape[2:]} different ones like x, got {names}")
            object.__setattr__(self, "names", names)

    @property
    def n_chains(self) -> int:
        return self.log_prob.shape[0]

    @property
    def n_draws(self) -> int:
        return self.log_prob.shape[1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.__dict__["x"].shape[2:])

    def __repr__(self) -> str:
        name = self.info.get("sampler", "sampler unknown")
        weights = "" if self.log_weight is None else ", weighted"
        what = str(self.event_shape) if self.names is None else ", ".join(self.names)
        return (
            f"Samples({self.n_chains} chains × {self.n_draws} draws of {what}"
            f"{weights}, {name}); .summary() says how good they are"
        )

    def observable(self, name: str) -> Tensor:
        """The series (chain, draw) of one name. Raises ValueError, with all names, for another."""
        if self.names is None or name not in self.names:
            raise ValueError(f"name must be one of {self.names or 'no observables'}, got {name!r}")
        return self.x[..., self.names.index(name)]

    def blocks(self) -> Iterator[Tensor]:
        """The draws in order, a bounded number of bytes at a time: (chain, some draws, *event)."""
        x = self.__dict__["x"]
        numbers = self.n_chains * max(1, math.prod(self.event_shape))
        size = max(1, BLOCK_BYTES // (8 * numbers))
        for first in range(0, self.n_draws, size):
            last = min(first + size, self.n_draws)
            yield x.read(first, last) if isinstance(x, Stored) else x[:, first:last]

    def flat(self) -> Tensor:
        """All draws as (n, *event_shape), chain after chain, without weights: see `resample`."""
        return self.x.reshape(-1, *self.event_shape)

    def resample(self, n: int, seed: int = 0) -> Tensor:
        """n draws (n, *event_shape) in proportion to their weights, by systematic resampling.

        One uniform u picks the quantiles (i + u)/n of the cumulative weights, so a draw of weight w
        appears floor(n w) or ceil(n w) times (Kitagawa 1996).
        """
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be a positive int, got {n}")
        log_weight = self.log_weight
        if log_weight is None:
            log_weight = torch.zeros_like(self.log_prob)
        weight = torch.softmax(log_weight.reshape(-1).double(), 0)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("log_weight must have a finite entry and neither NaN nor +inf")
        u = rng.uniform(
            (1, 1),
            seed=seed,
            stream=rng.STREAMS["resample"],
            device=weight.device,
            dtype=torch.float64,
        )
        at = (torch.arange(n, device=weight.device, dtype=torch.float64) + u[0]) / n
        # Without the last edge no rounding of the sum can point past the last draw.
        index = torch.searchsorted(weight.cumsum(0)[:-1], at, right=True)
        return self.flat()[index.to(self.x.device)]

    def summary(self, target: Target | None = None) -> Summary:
        """Statistics and verdict; `target` replaces the one that the samples carry."""
        return summarise(self, self.target if target is None else target)

    def plot(self, path: str | os.PathLike) -> None:
        """One figure of the draws, in the format of the file's ending. Needs matplotlib."""
        from pysamp import plots  # a higher layer, and an optional dependency

        plots.plot_samples(self, path)

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file (no pickle); an old file is replaced whole or not at all."""
        tensors = {"x": self.x, "log_prob": self.log_prob}
        if self.log_weight is not None:
            tensors["log_weight"] = self.log_weight
        header = split_tensors(self.info, "info", tensors)
        owned = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        metadata = {"format": "pysamp samples 1", "info": json.dumps(header)}
        metadata |= {} if self.names is None else {"names": json.dumps(self.names)}
        replace_file(path, lambda temporary: save_file(owned, temporary, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike, target: Target | None = None) -> Samples:
        """Read what `save` wrote, onto the CPU."""
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != "pysamp samples 1":
            raise ValueError(f"path must be a file written by Samples.save, got {path}")
        fields = {key: tensors.pop(key, None) for key in ("x", "log_prob", "log_weight")}
        info = join_tensors(json.loads(metadata["info"]), "info", tensors)
        names = json.loads(metadata.get("names", "null"))
        return cls(**fields, info=info, target=target, names=names)  # type: ignore[arg-type]

    def to_arviz(self) -> Any:
        """InferenceData (arviz < 1) or DataTree (arviz 1).

        The posterior holds x, unless observables were kept, and the target's observables; sample_stats
        holds lp and log_weight.
        """
        import arviz

        if self.names is not None:
            posterior = {name: self.observable(name).cpu().numpy() for name in self.names}
        else:
            posterior = {"x": self.x.detach().cpu().numpy()}
        if self.target is not None and self.names is None:
            skip = {"log_prob", *coordinate_names(self.event_shape)}
            posterior |= {
                name: value.cpu().numpy()
                for name, value in scalars(self, self.target)[0].items()
                if name not in skip
            }
        stats = {"lp": self.log_prob.detach().cpu().numpy()}
        if self.log_weight is not None:
            stats["log_weight"] = self.log_weight.detach().cpu().numpy()
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict({"posterior": posterior, "sample_stats": stats})
        return arviz.from_dict(posterior=posterior, sample_stats=stats)


# ------------------------------------------------------------------------------------- files
def replace_file(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Write `path` so that it is the old file or the new one, whole, even after a power cut."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # hides the errno of the write that failed
            full = "No space left" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error
        raise


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Say which file is damaged, whatever it makes of its reader. Raises ValueError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise  # of the disk, or a permission, which name the file
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error


class _Entries(dict):
    """An object of a JSON file, which says so where it lacks an entry."""

    path: Path

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.path} is damaged: it has no entry {key!r}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, naming the file, also for a missing entry."""
    found = type("Entries", (_Entries,), {"path": path})
    content = path.read_bytes()
    with reading(path):
        tree = json.loads(content.decode(), object_hook=found)
        if not isinstance(tree, dict):
            raise TypeError(f"it holds {tree!r:.40}")
    return tree


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            keys = file.keys()  # a method: the file itself cannot be iterated over
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def split_tensors(tree: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON part of a tree of dicts; its tensors are put into `tensors` under dotted keys."""
    if isinstance(tree, dict):
        return {str(k): split_tensors(v, f"{key}.{k}", tensors) for k, v in tree.items()}
    if isinstance(tree, Tensor):
        tensors[key] = tree
        return {"tensor": key}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, (tuple, list)):
        return [split_tensors(v, f"{key}.{i}", tensors) for i, v in enumerate(tree)]
    raise TypeError(
        f"{key} must be a tensor, a number, text, or a list or dict of them, "
        f"got {type(tree).__name__}"
    )


def join_tensors(tree: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `split_tensors` (tuples come back as lists)."""
    if isinstance(tree, dict):
        if tree.keys() == {"tensor"} and tree["tensor"] == key:
            return tensors[key]
        return {k: join_tensors(v, f"{key}.{k}", tensors) for k, v in tree.items()}
    if isinstance(tree, list):
        return [join_tensors(v, f"{key}.{i}", tensors) for i, v in enumerate(tree)]
    return tree
