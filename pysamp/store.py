"""The run folder: what was run, the draws, and where to go on. A kill at any moment loses little.

    manifest.json                 what is run, and how far it is: "running", "done" or "failed"
    draws.zarr/rank0/…            x (chain, draw, *event), or (chain, draw, K) of the observables that
                                  config.names lists, and log_prob (chain, draw); a group per part
    checkpoint/rank0.safetensors  state of the walkers after the last draws that are safe
    metrics.json                  numbers of the finished run, means over chains

The chains are cut into contiguous parts, one for each process of the run that began. Arrays have
their final length from the beginning, and NaN where nothing was drawn; each append fills whole
chunks, so nothing that a checkpoint counts on is ever rewritten. Order of a step: chunks, fsync,
checkpoint to a temporary name, fsync, rename. What a crash leaves beyond the last checkpoint is
drawn again, to the same bits. No pickle anywhere.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import zarr
from safetensors.torch import save
from torch import Tensor

from pysamp.describe import differences, identity
from pysamp.samples import Samples, fsync, read_json, read_tensors, reading, replace_file
from pysamp.tally import Checkpoint, Tally, decode, encode, merge_info
from pysamp.target import Target

FORMAT = 1


# ------------------------------------------------------------------------------------- manifest
def create(
    path: str | os.PathLike, config: dict[str, Any], parts: list[tuple[int, int]], **more: Any
) -> None:
    """Make a new run folder. `config` is what makes two runs the same; parts: (first_chain, count).

    Raises FileExistsError as `check_free` does.
    """
    path = Path(path)
    check_free(path, config)
    (path / "checkpoint" / "x0.safetensors").unlink(missing_ok=True)  # of a run that never began
    with _full_disk(path, "nothing was drawn yet", "start again"):
        (path / "checkpoint").mkdir(parents=True, exist_ok=True)
        manifest = {
            "format": FORMAT,
            "status": "running",
            "started": _now(),
            "versions": versions(),
            **more,
            "config": config,
            "parts": [list(part) for part in parts],
        }
        _write_json(path / "manifest.json", manifest)


def check_free(path: str | os.PathLike, config: dict[str, Any]) -> None:
    """Refuse a folder that holds another run (with the differences), this one, or no run.

    A run that failed before its first checkpoint, as by a wrong argument, is none.
    """
    path = Path(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"out must be a folder, but {path} is a file")
    begun = any((path / "checkpoint").glob("rank*.safetensors"))
    if (path / "manifest.json").exists():
        recorded = read_manifest(path)
        if recorded["status"] == "failed" and not begun:
            return
        lines = differences(recorded["config"], config)
        if lines:
            raise FileExistsError(
                f"out={path} holds another run; choose a new folder. It differs in\n  "
                + "\n  ".join(lines)
            )
        state = "is done" if recorded["status"] == "done" else "was begun"
        raise FileExistsError(
            f"out={path} holds this same run, which {state}: pysamp.resume({str(path)!r}) goes on "
            "with it"
        )
    # What a crash before the first manifest leaves is ours to overwrite.
    foreign = sorted(
        p.name
        for p in path.iterdir()
        if p.name != "checkpoint" and not (p.name.startswith("manifest.") and p.suffix == ".tmp")
    )
    if foreign or begun:
        raise FileExistsError(
            f"out={path} is not empty and holds no run (it has "
            f"{', '.join(foreign[:3]) or 'checkpoint'})"
        )


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    path = Path(path)
    file = path / "manifest.json"
    try:
        manifest = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} is no run folder: it has no manifest.json") from None
    if manifest["format"] != FORMAT:
        raise ValueError(f"{path} has the format {manifest['format']}, this pysamp reads {FORMAT}")
    with reading(file):
        for entry, kind in (("status", str), ("versions", dict), ("config", dict), ("parts", list)):
            if not isinstance(manifest.get(entry), kind):
                raise TypeError(f"{entry} is {manifest.get(entry)!r:.40}, no {kind.__name__}")
        dict(manifest["parts"])  # pairs, or this raises
    return manifest


def update_manifest(path: str | os.PathLike, **changes: Any) -> None:
    """Change entries of the manifest; None removes one."""
    merged = {**read_manifest(path), **changes}
    kept = {key: value for key, value in merged.items() if value is not None}
    with _full_disk(Path(path), _SAFE):
        _write_json(Path(path) / "manifest.json", kept)


def restart(path: str | os.PathLike, parts: list[tuple[int, int]]) -> None:
    """Forget draws and checkpoints, for another cut into parts: a run that was killed in warm-up.

    Hold the locks of the old and of the new parts.
    """
    path = Path(path)
    update_manifest(path, status="running", error=None, parts=[list(part) for part in parts])
    for file in (path / "checkpoint").glob("rank*.safetensors*"):
        file.unlink()
    shutil.rmtree(path / "draws.zarr", ignore_errors=True)
    with _full_disk(path, "nothing was drawn yet"):
        zarr.create_group(path / "draws.zarr", zarr_format=3)


@contextmanager
def noting_failure(path: str | os.PathLike) -> Iterator[None]:
    """Write an error that ends the run into its manifest, where there is room for it."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # of a full disk
            update_manifest(path, status="failed", error=f"{type(error).__name__}: {error}")
        raise


def finish(path: str | os.PathLike) -> None:
    """The run is done: write metrics.json, say so, and sweep away what torn writes left."""
    info = read(path).info
    numbers = {
        key: float(value.double().mean()) if isinstance(value, Tensor) else value
        for key, value in info.items()
        if isinstance(value, (Tensor, bool, int, float, str))
    }
    write_metrics(path, numbers)
    update_manifest(path, status="done", error=None, finished=_now())
    for pattern in ("*.tmp", "checkpoint/*.tmp", "checkpoint/*.lock"):
        for file in Path(path).glob(pattern):
            file.unlink()


def refuse_if_different(path: str | os.PathLike, recorded: Any, given: Any, what: str) -> None:
    """Raise ValueError that prints every difference between two descriptions."""
    if lines := differences(recorded, given, what):
        raise ValueError(
            f"{path} was made with another {what}; it differs in\n  " + "\n  ".join(lines)
        )


def write_metrics(path: str | os.PathLike, numbers: dict[str, Any]) -> None:
    """Write metrics.json: what `finish` knows, or the whole of a `Summary.to_dict()`."""
    with _full_disk(Path(path), _SAFE):
        _write_json(Path(path) / "metrics.json", numbers)


def versions() -> dict[str, str]:
    try:
        own = version("pysamp")
    except PackageNotFoundError:  # run from the source tree
        own = "source"
    return {
        "pysamp": own,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "zarr": zarr.__version__,
        "python": platform.python_version(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text))


# ------------------------------------------------------------------------------------- one part
def save_checkpoint(path: str | os.PathLike, part: int, checkpoint: Checkpoint) -> None:
    content, file = encode(checkpoint), checkpoint_file(path, f"rank{part}")
    with _full_disk(Path(path), _SAFE):
        replace_file(file, lambda temporary: temporary.write_bytes(content))


def load_checkpoint(path: str | os.PathLike, part: int) -> Checkpoint | None:
    """The last checkpoint of a part, on the CPU; None if there is none yet.

    Raises ValueError if it is damaged, or if the manifest was changed since it was written.
    """
    file = checkpoint_file(path, f"rank{part}")
    if not file.exists():
        return None
    content = file.read_bytes()
    with reading(file):
        checkpoint = decode(content)
    if lines := differences(checkpoint.config, identity(read_manifest(path)["config"]), "config"):
        raise ValueError(
            f"{path} was begun with another configuration than its manifest.json says now; it "
            "differs in\n  " + "\n  ".join(lines)
        )
    return checkpoint


def save_start(path: str | os.PathLike, x0: Tensor) -> None:
    """Keep the user's starting points: a run that is killed in warm-up begins again from them."""
    content = save({"x0": x0.detach().cpu().contiguous().clone()})
    with _full_disk(Path(path), "nothing was drawn yet"):
        replace_file(Path(path) / "checkpoint" / "x0.safetensors", lambda t: t.write_bytes(content))


def load_start(path: str | os.PathLike) -> Tensor | None:
    file = Path(path) / "checkpoint" / "x0.safetensors"
    return read_tensors(file)[0]["x0"] if file.exists() else None


def checkpoint_file(path: str | os.PathLike, name: str) -> Path:
    return Path(path) / "checkpoint" / f"{name}.safetensors"


@dataclass(frozen=True, eq=False)
class Writer:
    """The draws of one part: arrays on disk that `append` fills."""

    path: Path
    part: int
    arrays: dict[str, zarr.Array]

    def append(self, first: int, **values: Tensor) -> None:
        """Write draws first, first + 1, … of the arrays named (chain, draws, *event) safely.

        `first`, and the number of draws unless they are the last, must be multiples of the chunk.
        """
        with _full_disk(self.path, _SAFE):
            for name, value in values.items():
                array, last = self.arrays[name], first + value.shape[1]
                chunk = array.chunks[1]
                if first % chunk or (last % chunk and last != array.shape[1]):
                    raise ValueError(f"first must be a multiple of the chunk {chunk}, got {first}")
                array[:, first:last] = value.detach().cpu().numpy()
                folder = self.path / "draws.zarr" / f"rank{self.part}" / name / "c" / "0"
                for k in range(first // chunk, -(-last // chunk)):
                    # With one dimension less than two, k is the chunk itself and not a folder.
                    for file in [folder / str(k), *(folder / str(k)).rglob("*")]:
                        if file.exists():
                            fsync(file)
                fsync(folder)


def open_part(
    path: str | os.PathLike,
    part: int,
    first_chain: int,
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]],
    chunk: int,
    *,
    done: int,
) -> Writer:
    """The writer of a part; `shapes`: (chain, draw, *event) and dtype by array name.

    Hold the lock of the part. With no draws done it begins afresh; otherwise half-written files of
    an earlier process are removed. Raises ValueError if draws that were done are missing.
    """
    path = Path(path)
    with _full_disk(path, "nothing was drawn yet"):
        folder = path / "draws.zarr" / f"rank{part}"
        if done == 0:
            shutil.rmtree(folder, ignore_errors=True)
            group = zarr.create_group(
                folder, zarr_format=3, attributes={"first_chain": first_chain}
            )
            for name, (shape, dtype) in shapes.items():
                event = [f"x_dim_{i}" for i in range(len(shape) - 2)]
                group.create_array(
                    name,
                    shape=shape,
                    chunks=(shape[0], min(chunk, shape[1]), *shape[2:]),
                    dtype=str(dtype).removeprefix("torch."),
                    fill_value=float("nan"),  # zero would look like a draw
                    compressors=None,  # mantissas of random numbers do not compress
                    dimension_names=["chain", "draw", *event],
                )
            for made in [folder.parent, folder.parent / "zarr.json", folder, *folder.rglob("*")]:
                fsync(made)
        checkpoints = (path / "checkpoint").glob(f"rank{part}.safetensors.*.tmp")
        for torn in [*folder.rglob("*.partial"), *checkpoints]:
            torn.unlink()
        arrays = {name: _open(folder / name, "r+", done) for name in shapes}
    return Writer(path, part, arrays)


def save_whole(path: str | os.PathLike, samples: Samples, block_bytes: int) -> None:
    """Write draws that were made in one go, and finish the run. Hold the lock of part 0."""
    path, x = Path(path), samples.x
    restart(path, [(0, samples.n_chains)])
    given = {"x": x, "log_prob": samples.log_prob, "log_weight": samples.log_weight}
    values = {name: value for name, value in given.items() if value is not None}
    chunk = max(1, block_bytes // max(1, x[:, :1].numel() * x.element_size()))
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in values.items()}
    writer = open_part(path, 0, 0, shapes, chunk, done=0)
    for first in range(0, samples.n_draws, chunk):
        writer.append(first, **{k: v[:, first : first + chunk] for k, v in values.items()})
    tally = Tally(once=samples.info, seconds=float(samples.info.get("seconds", 0.0)))
    made, config = {"arrays": list(values)}, identity(read_manifest(path)["config"])
    save_checkpoint(path, 0, Checkpoint(samples.n_draws, made, {}, tally, config))
    finish(path)


@contextmanager
def lock(path: str | os.PathLike, part: int) -> Iterator[None]:
    """Hold a part for writing. The kernel frees the lock when the process dies, however it dies.

    Raises RuntimeError if another process holds it.
    """
    file = Path(path) / "checkpoint" / f"rank{part}.lock"
    with open(file, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            who = handle.read().strip() or "unknown"
            raise RuntimeError(f"{path} is being written by another process ({who})") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # A file system without locks: the run goes on, as it did before there was a lock.
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        yield


# ------------------------------------------------------------------------------------- reading
@dataclass(frozen=True, eq=False)
class _Parts:
    """x of all parts on disk, in chain order: `samples.Stored`."""

    arrays: list[zarr.Array]
    shape: tuple[int, ...]

    def read(self, first: int, last: int) -> Tensor:
        return _join(self.arrays, first, last)


def _join(arrays: list[zarr.Array], first: int, last: int) -> Tensor:
    return torch.cat([torch.from_numpy(np.asarray(a[:, first:last])) for a in arrays])


def _open(path: Path, mode: Literal["r", "r+"], n_draws: int) -> zarr.Array:
    """The array in a folder, after a look for the file of every chunk below n_draws, and its size."""
    with reading(path):
        with zarr.config.set({"array.write_empty_chunks": True}):  # NaN is there, or it is lost
            array = zarr.open_array(path, mode=mode)
        size = math.prod(array.chunks) * array.dtype.itemsize
    for first in range(0, n_draws, array.chunks[1]):
        at = ["0", str(first // array.chunks[1]), *["0"] * (array.ndim - 2)]
        file = path.joinpath("c", *at)
        if not file.exists() or file.stat().st_size != size:
            last = min(first + array.chunks[1], n_draws)
            raise ValueError(f"draws {first} to {last - 1} are missing: {file} is not whole")
    return array


def read(path: str | os.PathLike, target: Target | None = None) -> Samples:
    """The Samples of a run folder, finished or not: the draws that all parts have.

    x is read when it is used. Raises ValueError if there are none yet, or some are missing.
    """
    path = Path(path)
    manifest = read_manifest(path)
    parts = manifest["parts"]
    checkpoints = [load_checkpoint(path, part) for part in range(len(parts))]
    saved = [c for c in checkpoints if c is not None]
    n_draws = min((c.n_draws for c in saved), default=0) if len(saved) == len(parts) else 0
    if n_draws == 0:
        raise ValueError(f"{path} holds no draws yet (status: {manifest['status']})")
    folders = [path / "draws.zarr" / f"rank{part}" for part in range(len(parts))]

    def arrays(name: str) -> list[zarr.Array]:
        return [_open(folder / name, "r", n_draws) for folder in folders]

    x = arrays("x")
    n_chains = sum(count for _, count in parts)
    log_weight = None
    if "log_weight" in saved[0].state.get("arrays", ()):
        log_weight = _join(arrays("log_weight"), 0, n_draws)
    info = {
        **manifest.get("info", {}),
        **merge_info([count for _, count in parts], [c.tally for c in saved]),
    }
    return Samples(
        x=_Parts(x, (n_chains, n_draws, *x[0].shape[2:])),  # type: ignore[arg-type]
        log_prob=_join(arrays("log_prob"), 0, n_draws),
        log_weight=log_weight,
        info=info,
        target=target,
        names=manifest["config"].get("names"),
    )


_SAFE = "the last checkpoint is whole"


@contextmanager
def _full_disk(path: Path, state: str, then: str = "") -> Iterator[None]:
    """Say what a full disk means for the run."""
    then = then or f"pysamp.resume({str(path)!r}) goes on"
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"no space left while writing the run folder {path}; {state}: make room, then {then}",
        ) from error
