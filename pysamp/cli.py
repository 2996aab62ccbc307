"""The command line: it reads arguments, calls one function, prints, and turns errors into exit codes.

Exit codes: 0 done, 1 the run failed or a check did not pass, 2 the input is wrong. An error is one
line on stderr. With --json, stdout holds exactly one JSON object. Under torchrun rank 0 speaks.
torch is imported inside the commands, so that help and misspelt arguments answer at once.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

UsageError: type[Exception] = typer.BadParameter.__mro__[
    1
]  # typer brings its own click, or uses click

app = typer.Typer(
    name="pysamp",
    help="Sampling of unnormalised densities: statistical physics, Bayes, mixtures.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]


class FailedError(Exception):
    """The input was right and the work did not get done: exit code 1."""


def main(args: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    debug = "--debug" in args
    if debug:  # accepted anywhere on the line
        args = ["--debug", *(a for a in args if a != "--debug")]
    try:
        return app(args=args, prog_name="pysamp", standalone_mode=False) or 0
    except UsageError as error:
        return _complain(error.format_message(), 2, debug)  # type: ignore[attr-defined]
    except (ValueError, TypeError, FileNotFoundError, NotADirectoryError, FileExistsError) as error:
        return _complain(str(error), 2, debug)
    except Exception as error:
        reason = str(error) or type(error).__name__
        return _complain(reason, 1, debug)


def _complain(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    rank = _rank()
    # What is wrong with the input is the same on every rank; what went wrong in a run may not be.
    if rank == 0 or code == 1:
        name = f"error (rank {rank})" if rank else "error"
        print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _rank() -> int:
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0  # another word is refused where it is needed


def _say(text: str = "") -> None:
    if _rank() == 0:
        print(text, flush=True)


def _say_json(value: Any) -> None:
    _say(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """Numbers that JSON knows: NaN and infinity become null, tensors lists."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def _report(report: dict[str, Any], text: Callable[[dict[str, Any]], str], as_json: bool) -> None:
    if as_json:
        _say_json(report)
    else:
        _say(text(report))


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    pass


# ---------------------------------------------------------------------------- commands
@app.command()
def doctor(as_json: AsJson = False) -> int:
    """Check this installation: versions, devices, native kernels."""
    from pysamp.selftest import doctor, text

    report = doctor()
    _report(report, text, as_json)
    return 0 if report["ok"] else 1


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")] = Path(
        "runs/phi4-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random number.")] = 0,
    as_json: AsJson = False,
) -> int:
    """A sampler that fails, its cure, and the exact answer."""
    from pysamp.demo import demo, text

    try:
        report = demo(out, seed=seed)
    except KeyboardInterrupt:
        raise FailedError("interrupted; start again with: pysamp demo") from None
    _report(report, text, as_json)
    return 0 if report["ok"] else 1


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The run file.")],
    override: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="KEY=VALUE", help="E.g. sampler.step_size=0.02; may repeat."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The run folder; default: runs/ and FILE's name."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Draw what a run file describes."""
    from pysamp.runfile import load
    from pysamp.sampling import sample

    described = load(file, override or ())
    settings = dict(described.settings)
    named = settings.pop("out", None)
    folder = out or Path(named or Path("runs") / file.stem)
    with _resumable(folder):
        samples = sample(described.target, described.sampler, **settings, out=folder)
    return _conclude(samples, folder, as_json)


@app.command()
def resume(folder: Folder, as_json: AsJson = False) -> int:
    """Go on with an interrupted run, to the same bits."""
    from pysamp.sampling import resume

    with _resumable(folder):
        samples = resume(folder)
    return _conclude(samples, folder, as_json)


@contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        begun = (folder / "manifest.json").exists()
        hint = f"go on with: pysamp resume {folder}" if begun else "nothing was saved yet"
        raise FailedError(f"interrupted; {hint}") from None


def _conclude(samples: Any, folder: Path, as_json: bool) -> int:
    result = samples.summary()
    if as_json:
        _say_json({"folder": str(folder), "status": "done", **result.to_dict()})
        return 0
    _say(str(result))
    _say(f"saved       {folder}   (figure: pysamp plot {folder})")
    return 0


@app.command()
def summary(folder: Folder, as_json: AsJson = False) -> int:
    """Table and verdict of a run, finished or not."""
    samples, manifest = _opened(folder)
    result, status = samples.summary(), manifest["status"]
    if as_json:
        _say_json({"folder": str(folder), "status": status, **result.to_dict()})
        return 0
    _say(str(result))
    if status != "done":
        _say(f"status      {status}, not finished; go on with: pysamp resume {folder}")
    return 0


@app.command()
def plot(
    folder: Folder,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Default: DIR/summary.png; or .pdf, .svg."),
    ] = None,
) -> int:
    """One figure of a run: traces, marginals, modes, autocorrelation."""
    from pysamp.plots import plot_samples

    samples, _ = _opened(folder)
    path = out or folder / "summary.png"
    plot_samples(samples, path)
    _say(f"figure: {path}")
    return 0


def _opened(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The samples of a run folder, with the target if it is one of pysamp's own."""
    from pysamp import store
    from pysamp.describe import NotRebuildableError, rebuild

    manifest = store.read_manifest(folder)
    try:
        target = rebuild(manifest["config"]["target"])
    except NotRebuildableError:
        target = None
    return store.read(folder, target), manifest


@app.command()
def bench(
    quick_: Annotated[bool, typer.Option("--quick", help="The only size there is.")] = True,
    as_json: AsJson = False,
) -> int:
    """Native kernels against pure torch on this machine."""
    from pysamp.quickbench import quick, text

    _report(quick(), text, as_json)
    return 0


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="E.g. lattice/ising_2d; see --list.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the experiments.")] = False,
    scale: Annotated[
        str, typer.Option(help="quick: a minute or two; paper: the full sizes.")
    ] = "quick",
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random number.")] = 0,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="For results.json and figures; default: runs/NAME."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Files that the experiment needs, if any."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Published or exact numbers beside ours; exit code 1 if one is missed."""
    from pysamp import experiments

    if list_ or name is None:
        for known in experiments.names():
            _say(f"{known:<28} {experiments.find(known).title}")
        return 0
    folder = out or Path("runs") / name
    report = experiments.reproduce(
        name, scale=scale, seed=seed, device=device, out=folder, data=data, progress=_note
    )
    _report(report, experiments.text, as_json)
    if not as_json:
        _say(f"saved       {folder}")
    return 0 if report["ok"] else 1


def _note(line: str) -> None:
    """What is being done now, beside the results: to stderr."""
    if _rank() == 0:
        print(line, file=sys.stderr, flush=True)


@app.command()
def evaluate(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.yaml|DIR", help="What to compare, or the folder of results."),
    ],
    override: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="KEY=VALUE", help="E.g. n=1024; may repeat."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Default: runs/evaluate/ and FILE's name."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Samplers on targets whose answer is known; exit code 1 if a run failed."""
    from pysamp import evaluate
    from pysamp.evaluate import file as evaluation_file
    from pysamp.evaluate import plots

    if file.is_dir():
        if override or out is not None:
            raise ValueError(f"-o and --out have no meaning for the folder {file}")
        folder, rows = file, evaluate.read(file)
    else:
        described = evaluation_file.load(file, override or ())
        folder = out or Path(described.out or Path("runs") / "evaluate" / file.stem)
        try:
            rows = evaluate.suite(
                described.problems, described.samplers, **described.settings, out=folder,
                progress=_note_of_rank,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise FailedError("interrupted; the same command goes on") from None
    failed = sum(row["status"] == "failed" for row in rows)
    figures = [str(path) for path in plots.figures(rows, folder)] if _rank() == 0 else []
    if as_json:
        cells = [cell.to_dict() for cell in evaluate.aggregate(rows)]
        _say_json({"folder": str(folder), "failed": failed, "figures": figures, "cells": cells})
    else:
        _say(evaluate.table(rows))
        for path in figures:
            _say(f"figure      {path}")
        _say(f"rows        {folder}")
    return 1 if failed else 0


def _note_of_rank(line: str) -> None:
    """What a process that runs its own share of the work is doing: to stderr."""
    print(line, file=sys.stderr, flush=True)


@app.command()
def targets() -> int:
    """The built-in targets and what is known of them."""
    from pysamp import runfile

    for name, make in sorted(runfile.targets().items()):
        _say(f"{name}{_parameters(make)}")
        paragraphs = (inspect.getdoc(make) or "").split("\n\n")
        shown = (
            paragraphs[:2] if paragraphs[0].endswith(":") else paragraphs[:1]
        )  # with its formula
        for line in "\n".join(shown).splitlines():
            _say(f"    {line}")
        _say(f"    [{'; '.join(runfile.capabilities(runfile.made_by(make))) or 'log p only'}]\n")
    return 0


def _parameters(make: Any) -> str:
    parts = []
    for p in inspect.signature(make).parameters.values():
        parts.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return f"({', '.join(parts)})"


@app.command()
def cite(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A sampler, target or module.")],
) -> int:
    """The papers behind a method, as its module states them."""
    from pysamp import runfile

    module, about = runfile.citation(method)
    _say(f"{method}: {module}\n\n{about}")
    return 0
