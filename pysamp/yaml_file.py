"""A YAML file of settings: parsed, overridden, and refused with the line of what is wrong with it.

Two files use it: that of a run (`runfile`) and that of an evaluation (`evaluation_file`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

Key = tuple[str, ...]
T = TypeVar("T")
_BOOL = "tag:yaml.org,2002:bool"
_WORDS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # a name, and <<


class _Loader(yaml.SafeLoader):
    """YAML with the truth values of its version 1.2, true and false: ON is the name of a target."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - an attribute of PyYAML
        first: [(tag, words) for tag, words in found if tag != _BOOL]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_TRUTH = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_Loader.add_implicit_resolver(_BOOL, _TRUTH, list("tTfF"))


class RunFileError(ValueError):
    """The file, or an override, says something that cannot be run; `key` is the place."""

    def __init__(self, key: Key, message: str) -> None:
        super().__init__(message)
        self.key = key


def read(path: str | Path, overrides: Sequence[str], make: Callable[[dict[str, Any]], T]) -> T:
    """What `make` makes of the mapping in a file; its RunFileError gets the line of its key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RunFileError((), f"cannot read the run file {path}: {reason}") from None
    places: dict[Key, str] = {}
    try:
        tree = _parse(text, str(path), places)
        for override in overrides:
            _override(tree, override, places)
        return make(tree)
    except RunFileError as error:
        place = next((places[k] for k in _prefixes(error.key) if k in places), str(path))
        raise RunFileError(error.key, f"{place}: {error}") from None


def _parse(text: str, file: str, places: dict[Key, str]) -> dict[str, Any]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        _mark(node, (), file, places)
        tree = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RunFileError((), f"not valid YAML{line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise RunFileError((), f"not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict):
        raise RunFileError((), "a run file is a mapping such as target: {name: …}")
    return tree


def _mark(
    node: Any, key: Key, file: str, places: dict[Key, str], above: tuple[Any, ...] = ()
) -> None:
    """Note the line of every key, and refuse what YAML passes over: a key that is no word or is given
    twice, and an anchor inside its own value."""
    if node in above:
        raise RunFileError(key, f"{'.'.join(key)} contains itself")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            places[(*key, str(i))] = f"{file}, line {item.start_mark.line + 1}"
            _mark(item, (*key, str(i)), file, places, above)
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        place = f"{file}, line {name.start_mark.line + 1}"
        if name.tag not in _WORDS:
            raise RunFileError(key, f"line {name.start_mark.line + 1}: keys must be words")
        inner = (*key, name.value)
        twice = inner in places
        places[inner] = place
        if twice:
            raise RunFileError(inner, f"{'.'.join(inner)} is given twice")
        _mark(value, inner, file, places, above)


def _override(tree: dict[str, Any], text: str, places: dict[Key, str]) -> None:
    name, equals, raw = text.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise RunFileError(
            (), f"an override is key=value, such as sampler.step_size=0.02, got {text!r}"
        )
    try:
        _mark(yaml.compose(raw, Loader=_Loader), key, f"-o {text}", {})
        value = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError:
        raise RunFileError((), f"the value of the override {text!r} is not valid YAML") from None
    here: Any = tree
    for depth, part in enumerate(key, start=1):
        at: Any = part
        if isinstance(here, list):  # samplers.0.step_size=0.02
            at = int(part) if part.isdecimal() and int(part) < len(here) else None
        if at is None or not isinstance(here, (dict, list)):
            above = ".".join(key[: depth - 1])
            raise RunFileError(key[: depth - 1], f"{above} is {here!r}: it has no key {part}")
        if depth == len(key):
            here[at] = value
            break
        inner = here.setdefault(at, {}) if isinstance(here, dict) else here[at]
        if isinstance(inner, str):  # sampler: MALA is short for sampler: {name: MALA}
            inner = here[at] = {"name": inner}
        here = inner
    places[key] = f"-o {text}"


def _prefixes(key: Key) -> list[Key]:
    return [key[:n] for n in range(len(key), 0, -1)]


# ---------------------------------------------------------------------------- near misses
def nearest(word: Any, valid: Any) -> str | None:
    """The valid word most like the one given, whatever its case."""
    folded = {str(v).lower(): str(v) for v in valid}
    close = difflib.get_close_matches(str(word).lower(), list(folded), 1, 0.5)
    return folded[close[0]] if close else None


def unknown_name(kind: str, name: Any, valid: Any) -> str:
    """The sentence for a name that is not there."""
    close = nearest(name, valid)
    hint = f"did you mean {close}?" if close else f"valid are {', '.join(sorted(valid))}"
    return f"unknown {kind} {name!r}; {hint}"


def unknown_key(key: Key, value: Any, valid: Any) -> RunFileError:
    """The error for a key that is not there."""
    close = nearest(key[-1], valid)
    hint = f"did you mean {close}?" if close else f"valid are {', '.join(map(str, valid))}"
    return RunFileError(key, f"unknown key {'.'.join(key)} (value {value!r}); {hint}")
