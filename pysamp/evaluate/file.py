"""An evaluation described by a YAML file.

    targets:
      - {name: TwoModes, dim: {grid: [4, 16]}, a: {grid: [0.5, 1.0]}}      # four targets
    samplers:
      - {label: local, name: MALA, x0: mode 0}
      - {name: ParallelTempering, kernel: MALA, reference: moments}
      - {name: SLIPS, t0: {oracle: [0.1, 0.2, 0.4]}}
      - exact
    n: 2048
    budgets: [1e6, 1e7]
    seeds: 8
    metrics: [sliced_ks]

Names and parameters are those of a run file (`runfile`). A parameter of a target may be {grid: […]}; all
combinations are taken. An entry of samplers may have a label, n for a sampler, n_chains, n_draws, warmup,
thin and x0 for a kernel. Its parameters may be words that stand for something true of the target, by
which the sampler becomes an oracle: `moments` (the Gaussian of the true mean and covariance), `diagonal
moments`, `true mean`, `true sd` (the root of the mean variance), and {oracle: […]}, the best of these
values. `exact` is no sampler but exact draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pysamp.evaluate.distances import known
from pysamp.evaluate.problems import Entry, Exact, Problem
from pysamp.runfile import Int, build, parameters_of, samplers, targets
from pysamp.target import HasMoments, Target
from pysamp.targets.gaussian import Gaussian
from pysamp.yaml_file import Key, RunFileError, read, unknown_key

EXACT = "exact"
OF_KERNEL = ("n_chains", "n_draws", "warmup", "thin", "x0")
ORACLE, GRID = "oracle", "grid"


@dataclass(frozen=True)
class Evaluation:
    """What `suite` is called with, but for `out` and `progress`."""

    problems: list[Problem]
    samplers: list[Entry]
    settings: dict[str, Any]  # keyword arguments that were given, and config
    out: str | None


class EvaluationFile(BaseModel):
    """The top level of the file. Whatever is left out takes the default of `suite`."""

    model_config = ConfigDict(extra="forbid")

    targets: list[str | dict[str, Any]] = Field(min_length=1, description="a list of targets")
    samplers: list[str | dict[str, Any]] = Field(min_length=1, description="a list of samplers")
    n: Int | None = Field(None, gt=0, description="a positive integer")
    budgets: list[Int] | None = Field(
        None, min_length=1, description="a list of numbers of gradients"
    )
    seeds: Int | list[Int] | None = Field(
        None, description="a positive number of repetitions, or a list of seeds"
    )
    metrics: list[str] | None = Field(None, description="a list of names")
    n_metric: Int | None = Field(None, gt=1, description="an integer of at least 2")
    device: str | None = Field(None, description="a string such as cpu or cuda:0")
    dtype: Literal["float32", "float64"] | None = Field(None, description="float32 or float64")
    out: str | None = Field(None, description="the name of a folder")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Evaluation:
    """Read the file, apply overrides "n=1024" or "samplers.0.step_size=0.1", and make all it describes.

    Raises RunFileError with file and line (or the override), key, value and the nearest valid key.
    """
    return read(path, overrides, _build)


def _build(tree: dict[str, Any]) -> Evaluation:
    for key, value in tree.items():
        if key not in EvaluationFile.model_fields:
            raise unknown_key((key,), value, EvaluationFile.model_fields)
    for key in ("targets", "samplers"):
        if key not in tree:
            raise RunFileError((), f"{key} is missing: write {key}: [{{name: …}}]")
    try:
        file = EvaluationFile.model_validate(tree)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        wanted = EvaluationFile.model_fields[key].description
        raise RunFileError((key,), f"{key} must be {wanted}, got {tree[key]!r}") from None
    problems = [
        problem for i, spec in enumerate(file.targets) for problem in _problems(spec, str(i))
    ]
    entries = [_entry(spec, str(i), problems) for i, spec in enumerate(file.samplers)]
    settings = file.model_dump(exclude={"targets", "samplers", "out"}, exclude_none=True)
    if "dtype" in settings:
        settings["dtype"] = getattr(torch, settings["dtype"])
    # Where it runs and where it is kept are no part of what is compared.
    settings["config"] = {k: v for k, v in tree.items() if k not in ("out", "device")}
    return Evaluation(problems, entries, settings, file.out)


# ---------------------------------------------------------------------------- targets
def _problems(spec: str | dict[str, Any], place: str) -> list[Problem]:
    """One entry of the list, with all combinations of its grids."""
    key = ("targets", place)
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    axes = {name: _choices(value, GRID, (*key, name)) for name, value in spec.items()}
    grids = {name: values for name, values in axes.items() if values is not None}
    found = []
    for point in itertools.product(*grids.values()):
        given = {**spec, **dict(zip(grids, point, strict=True))}
        target = build(given, key, targets(), "target")
        parameters = {k: _plain(v) for k, v in given.items() if k != "name"}
        found.append(Problem(target, str(given["name"]), parameters))
    return found


def _choices(value: Any, word: str, key: Key) -> list[Any] | None:
    """The values of {grid: […]} or {oracle: […]}; None for anything else."""
    if not isinstance(value, dict) or word not in value:
        return None
    values = value[word]
    if len(value) > 1 or not isinstance(values, list) or not values:
        name = ".".join(key)
        raise RunFileError(key, f"{name} must be {{{word}: [values]}}, got {value!r}")
    return values


def _plain(value: Any) -> Any:
    """1e4 is a string in YAML 1.1; an axis wants the number."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return value


# ---------------------------------------------------------------------------- samplers
def _entry(spec: str | dict[str, Any], place: str, problems: list[Problem]) -> Entry:
    key = ("samplers", place)
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    label = spec.pop("label", spec.get("name"))
    if not isinstance(label, str) or not label:
        raise RunFileError((*key, "label"), f"label must be a word, got {label!r}")
    if spec.get("name") == EXACT:
        given = _settings({k: v for k, v in spec.items() if k != "name"}, ("n",), {}, key)
        return Entry(label, Exact(), **given)
    known_samplers = samplers()
    if spec.get("name") not in known_samplers:
        valid = {**known_samplers, EXACT: Exact}
        build({k: v for k, v in spec.items() if k == "name"}, key, valid, "sampler")  # raises
    make = known_samplers[spec["name"]]
    own = dict(parameters_of(make))
    kernel = callable(getattr(make, "step", None))
    extra = [name for name in (OF_KERNEL if kernel else ("n",)) if name not in own]
    given = {k: v for k, v in spec.items() if k not in own and k != "name"}
    given = _settings(given, extra, own, key)
    spec = {k: v for k, v in spec.items() if k == "name" or k in own}
    tune: tuple[str, tuple[Any, ...]] | None = None
    told = []
    for parameter, value in spec.items():
        where = f"{'.'.join((*key, parameter))}"
        values = _choices(value, ORACLE, (*key, parameter))
        if values is not None and tune is not None:
            raise RunFileError((*key, parameter), f"{where}: only one parameter can be chosen")
        if values is not None:
            tune = (parameter, tuple(values))
        elif isinstance(value, str) and value in WORDS:
            told.append(f"{parameter}: {value}")
    factory = _factory(spec, key, None if tune is None else tune[0], problems)
    if tune is not None:
        parameter = tune[0]
        made = [factory(problems[0].target, {parameter: value}) for value in tune[1]]
        tune = (parameter, tuple(getattr(sampler, parameter) for sampler in made))
    for problem in problems:
        factory(problem.target)  # what is wrong is said now, with its line
    return Entry(label, factory, oracle=tuple(told), tune=tune, **given)


def _settings(
    given: dict[str, Any], valid: Sequence[str], parameters: dict[str, Any], key: Key
) -> dict[str, Any]:
    """n, n_chains, … of an entry as integers, and x0 as the number of a mode."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        inner = (*key, name)
        if name not in valid:
            raise unknown_key(inner, value, [*parameters, *valid, "label"])
        if name == "x0":
            word, _, mode = value.partition(" ") if isinstance(value, str) else ("", "", "")
            if word != "mode" or not mode.isdecimal():
                text = f"x0 must be such as 'mode 0', the mode to start in, got {value!r}"
                raise RunFileError(inner, text)
            out[name] = int(mode)
            continue
        number = _plain(value)
        if isinstance(number, bool) or not isinstance(number, int) or number < (name != "warmup"):
            raise RunFileError(inner, f"{name} must be a positive integer, got {value!r}")
        out[name] = number
    return out


def _factory(
    spec: dict[str, Any], key: Key, chosen: str | None, problems: list[Problem]
) -> Callable[..., Any]:
    """What makes the sampler of an entry for a target; where nothing depends on it, always the same."""
    words = {k: WORDS[v] for k, v in spec.items() if isinstance(v, str) and v in WORDS}
    plain = {k: v for k, v in spec.items() if k not in words and k != chosen}
    if chosen is not None:  # until it is chosen, the first
        plain[chosen] = spec[chosen][ORACLE][0]

    def make(target: Target, other: dict[str, Any] | None = None) -> Any:
        told = {}
        for parameter, word in words.items():
            try:
                told[parameter] = word(target)
            except ValueError as error:
                where = ".".join((*key, parameter))
                raise RunFileError((*key, parameter), f"{where}: {error}") from None
        return build({**plain, **told, **(other or {})}, key, samplers(), "sampler")

    if words:
        return make
    same = make(problems[0].target)
    return lambda target, other=None: make(target, other) if other else same


def _moments(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    mean = known(target, "mean", HasMoments)
    covariance = known(target, "covariance", HasMoments)
    if mean is None or covariance is None:
        raise ValueError(f"the moments of {type(target).__name__} are not known")
    d = mean.numel()
    if covariance.ndim < 2:  # of a Gaussian: one variance, or one for each coordinate
        covariance = covariance.expand(d).diag()
    return mean, covariance


def _gaussian(target: Target) -> Gaussian:
    return Gaussian(*_moments(target))


def _diagonal(target: Target) -> Gaussian:
    mean, covariance = _moments(target)
    return Gaussian(mean, covariance.diagonal().clone())


def _mean(target: Target) -> torch.Tensor:
    return _moments(target)[0]


def _sd(target: Target) -> float:
    covariance = _moments(target)[1]
    return float(covariance.diagonal().mean().sqrt())


WORDS: dict[str, Callable[[Target], Any]] = {
    "moments": _gaussian,
    "diagonal moments": _diagonal,
    "true mean": _mean,
    "true sd": _sd,
}
