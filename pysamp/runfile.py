"""A run described by a YAML file: what the file may say, and what it is told when it says something else.

    target:  {name: Phi4Chain, n_sites: 100, h: 0.0025}
    sampler: {name: ParallelTempering, kernel: {name: MALA}}
    n_chains: 64
    n_draws: 1000

Names of targets are those of `pysamp.targets`, names of samplers those of `pysamp`; their parameters
are read off the signatures, so that a new class needs nothing here. A parameter that is itself a
kernel, target or network is written the same way, with a `name`. Paths are relative to the folder
that the command runs in.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from pysamp import nets, train
from pysamp.yaml_file import Key, RunFileError, read, unknown_key, unknown_name


@dataclass(frozen=True)
class Run:
    """What `pysamp.sample` is called with."""

    target: Any
    sampler: Any
    settings: dict[str, Any]  # keyword arguments of sample, only those that were given


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file, apply overrides "sampler.step_size=0.02", and build what it describes.

    Raises: RunFileError with file and line (or the override), key, value and the nearest valid key.
    """
    return read(path, overrides, _build_run)


# ---------------------------------------------------------------------------- what a file may say
def _plain_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value is not a number")
    return value


def _whole_number(value: Any) -> Any:
    # YAML 1.1 reads 1e4 as a string and 1.0e+4 as a float: both are meant as 10000.
    value = _plain_number(value)
    if isinstance(value, str):
        number = float(value)
        return int(number) if number.is_integer() else value
    return value


def _numbers(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, list):
        raise ValueError("not a list of numbers")
    return torch.tensor(_floats(value), dtype=torch.float64)


def _floats(value: Any) -> Any:
    return [_floats(item) for item in value] if isinstance(value, list) else float(value)


Float = Annotated[float, BeforeValidator(_plain_number)]
Int = Annotated[int, BeforeValidator(_whole_number)]
Numbers = Annotated[Any, BeforeValidator(_numbers)]


class RunFile(BaseModel):
    """The top level of the file. Whatever is left out takes the default of `pysamp.sample`."""

    model_config = ConfigDict(extra="forbid")

    target: str | dict[str, Any] = Field(description="a name or a mapping with a name")
    sampler: str | dict[str, Any] = Field(description="a name or a mapping with a name")
    n_chains: Int | None = Field(None, gt=0, description="a positive integer")
    n_draws: Int | None = Field(None, gt=0, description="a positive integer")
    warmup: Int | None = Field(None, ge=0, description="an integer, 0 or more")
    thin: Int | None = Field(None, gt=0, description="a positive integer")
    seed: Int | None = Field(None, ge=0, lt=2**64, description="an integer in [0, 2**64)")
    device: str | None = Field(None, description="a string such as cpu or cuda:0")
    dtype: Literal["float32", "float64"] | None = Field(None, description="float32 or float64")
    out: str | None = Field(None, description="the name of a folder")
    keep: Literal["x", "observables"] | None = Field(None, description="x or observables")
    measure_every: Int | None = Field(
        None, gt=0, description="a positive integer that divides thin"
    )


def _build_run(tree: dict[str, Any]) -> Run:
    for key, value in tree.items():
        if key not in RunFile.model_fields:
            raise unknown_key((key,), value, RunFile.model_fields)
    for key in ("target", "sampler"):
        if key not in tree:
            raise RunFileError((), f"{key} is missing: write {key}: {{name: …}}")
    try:
        file = RunFile.model_validate(tree)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        wanted = RunFile.model_fields[key].description
        raise RunFileError((key,), f"{key} must be {wanted}, got {tree[key]!r}") from None
    settings = file.model_dump(exclude={"target", "sampler"}, exclude_none=True)
    if "dtype" in settings:
        settings["dtype"] = getattr(torch, settings["dtype"])
    return Run(
        target=build(file.target, ("target",), targets(), "target"),
        sampler=build(file.sampler, ("sampler",), samplers(), "sampler"),
        settings=settings,
    )


# ---------------------------------------------------------------------------- names to objects
Maker = Callable[..., Any]


def targets() -> dict[str, Maker]:
    """Name -> what makes the target: classes, their class methods, and functions that return one."""
    import pysamp.targets as package

    found: dict[str, Maker] = {}
    for name, value in _public(package):
        if inspect.ismodule(value) and value.__name__.startswith("pysamp.targets."):
            inner = {f"{name}.{n}": v for n, v in _public(value) if made_by(v)}
            found |= {n: v for n, v in inner.items() if v not in dict(_public(package)).values()}
        elif made_by(value):
            found[name] = value
    for name, cls in [(n, v) for n, v in found.items() if inspect.isclass(v)]:
        methods = inspect.getmembers(cls, inspect.ismethod)
        found |= {f"{name}.{n}": m for n, m in methods if n[0] != "_" and made_by(m, cls)}
    return found


def _public(package: Any) -> list[tuple[str, Any]]:
    names = getattr(package, "__all__", None) or [n for n in vars(package) if n[0] != "_"]
    return [(name, getattr(package, name)) for name in names]


def made_by(make: Any, owner: type | None = None) -> type | None:
    """The class of target that a class, function or class method makes; None if it makes none."""
    made = make
    if inspect.isroutine(make):
        made = _hints(make).get("return")
        made = owner if made is typing.Self else made
    concrete = inspect.isclass(made) and not inspect.isabstract(made)
    ours = concrete and made.__module__.startswith("pysamp.targets")
    return made if ours and _defines(made, "log_prob") else None


def samplers() -> dict[str, Maker]:
    """Name -> class of every public kernel (it has `step`) and sampler (sample takes a target)."""
    import pysamp

    found: dict[str, Maker] = {}
    for name, value in _public(pysamp):
        if inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            draw = getattr(value, "sample", None)
            draws = draw is not None and "target" in inspect.signature(draw).parameters
            if draws or _defines(value, "step"):
                found[name] = value
    return found


def _defines(cls: type, method: str) -> bool:
    return callable(getattr(cls, method, None))


_CAPABILITIES = {
    "native": "native kernel",
    "mode_weights": "exact mode weights",
    "log_z": "exact log Z",
    "sample": "exact draws",
}


def capabilities(cls: type | None) -> list[str]:
    """What targets of a class offer besides log p, in words."""
    members = {*dir(cls), *getattr(cls, "__annotations__", {})}
    return [words for member, words in _CAPABILITIES.items() if member in members]


def citation(method: str) -> tuple[str, str]:
    """The module that holds a sampler, target or network, and its docstring, which names the papers.

    A module's own name will do too. Raises ValueError with the nearest name.
    """
    import pysamp

    known: dict[str, Any] = {
        name: inspect.getmodule(made_by(m) or m) for name, m in _parts().items()
    }
    for package in ("mcmc", "samplers", "targets", "theory", "nets"):
        for folder in pysamp.__path__:
            for info in pkgutil.iter_modules([str(Path(folder) / package)]):
                known.setdefault(info.name, f"pysamp.{package}.{info.name}")
    name = {n.lower(): n for n in known}.get(method.lower())
    if name is None:
        raise ValueError(unknown_name("method", method, known))
    module = known[name]
    module = importlib.import_module(module) if isinstance(module, str) else module
    return module.__name__, inspect.getdoc(module) or ""


def build(spec: Any, key: Key, known: Mapping[str, Maker], kind: str) -> Any:
    """The object that a name or a mapping with a name describes; `key` is its place in the file."""
    spec = {"name": spec} if isinstance(spec, str) else dict(spec)
    where = ".".join(key)
    if "name" not in spec:
        raise RunFileError(key, f"{where}.name is missing: {kind}s are {', '.join(sorted(known))}")
    name = spec.pop("name")
    if not isinstance(name, str) or name not in known:
        raise RunFileError((*key, "name"), f"{where}.name: {unknown_name(kind, name, known)}")
    make = known[name]
    parameters = parameters_of(make)
    hints = _hints(make)
    given = {}
    for parameter, value in spec.items():
        inner = (*key, str(parameter))
        if parameter not in parameters:
            raise unknown_key(inner, value, parameters)
        given[parameter] = _convert(value, hints.get(parameter, Any), inner)
    for parameter, p in parameters.items():
        if p.default is p.empty and parameter not in given:
            raise RunFileError(
                key, f"{where}.{parameter} is missing: {name}{inspect.signature(make)}"
            )
    try:
        return make(**given)
    except (ValueError, TypeError, OSError) as error:
        named = [p for p in given if p in str(error).split()]
        raise RunFileError((*key, *named[:1]), f"{where}: {error}") from error


def parameters_of(make: Maker) -> dict[str, inspect.Parameter]:
    """What a file may give to what it names."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in inspect.signature(make).parameters.items() if p.kind in named}


def _hints(make: Maker) -> dict[str, Any]:
    try:
        return typing.get_type_hints(make.__init__ if inspect.isclass(make) else make)
    except NameError:  # an annotation imported for the type checker only
        return {}


def _convert(value: Any, hint: Any, key: Key) -> Any:
    """A value of the file as the type that the signature asks for."""
    if isinstance(value, str) and hint is not str:
        known = _parts()
        if value in known:
            return build(value, key, known, "object")
    if isinstance(value, dict) and "name" in value:
        return build(value, key, _parts(), "object")
    if isinstance(value, list):  # a list may hold such objects, as the kernels of a cycle
        value = [_part(item, (*key, str(i))) for i, item in enumerate(value)]
    try:
        adapter = TypeAdapter(_adapt(hint), config=ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_python(value)
    except (ValidationError, ValueError):
        raise RunFileError(
            key, f"{'.'.join(key)} must be {_describe(hint)}, got {value!r}"
        ) from None


def _part(value: Any, key: Key) -> Any:
    named = isinstance(value, str) or (isinstance(value, dict) and "name" in value)
    return _convert(value, Any, key) if named else value


def _parts() -> dict[str, Maker]:
    """What may stand inside another object: kernels, samplers, targets, networks and decays of a rate."""
    networks: dict[str, Maker] = {
        name: made
        for name, made in _public(nets)
        if _defines(made, "forward") and not inspect.isabstract(made) and made is not nets.Compose
    }
    return {**networks, "StepDecay": train.StepDecay, **targets(), **samplers()}


def _adapt(hint: Any) -> Any:
    if hint in (float, int, Tensor):
        return {float: Float, int: Int, Tensor: Numbers}[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_adapt(a) for a in arguments)]  # noqa: UP007 - built at run time
    return hint


def _describe(hint: Any) -> str:
    plain = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "a string",
        Tensor: "a list of numbers",
        type(None): "null",
    }
    if hint in plain:
        return plain[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in arguments)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (tuple, list) or (inspect.isclass(origin) and issubclass(origin, Sequence)):
        return "a list, each entry " + _describe(arguments[0]) if arguments else "a list"
    if inspect.isclass(hint):
        return f"a {hint.__name__}, written {{name: …}}"
    return str(hint)
