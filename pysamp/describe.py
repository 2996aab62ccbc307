"""Targets and samplers as JSON, and back: how a run folder knows what was run without pickling.

A frozen dataclass becomes its class path and its fields. Numbers survive exactly: Python writes the
shortest decimal that reads back to the same bits. Rebuilding imports from the pysamp namespace
only, so opening a folder never runs foreign code; what cannot be rebuilt (a function, a network, a
user's own class) is recorded by name and digest, to be compared. The digest of a network is that of its
parameters and buffers, and of the plain attributes of its modules, such as a mask or a number of bins.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from typing import Any

import torch
from torch import Tensor

from pysamp.fingerprint import Digest

MAX_NUMBERS = (
    1_000_000  # a larger tensor is recorded by its digest: the manifest stays a text to read
)


class NotRebuildableError(ValueError):
    """A description that holds something from outside pysamp."""


def describe(value: Any) -> Any:
    """A JSON tree that says what `value` is."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (tuple, list)):
        items = [describe(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: describe(item) for key, item in value.items()}}
    if isinstance(value, (torch.dtype, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if type(value) is Tensor and value.numel() <= MAX_NUMBERS and not value.is_complex():
        return {
            "tensor": json.dumps(value.detach().cpu().tolist()),  # as text, to stay on one line
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "device": str(value.device),
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in _arguments(value)}
        return {"class": _path(type(value)), "fields": fields}
    if isinstance(value, torch.nn.Module):
        return {"network": _path(type(value)), "digest": digest(_content(value))}
    named = value if isinstance(value, type) or _has_name(value) else type(value)
    return {"opaque": _path(named), "digest": digest(value)}


def _content(network: torch.nn.Module) -> list[Any]:
    """What a network computes with: tensors, and the settings of each module by its name."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    settings = {}
    for name, module in network.named_modules():
        own = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training"}
        settings[name] = [_path(type(module)), own]
    return [{name: tensor.detach() for name, tensor in tensors.items()}, settings]


def digest(value: Any) -> str:
    """sha256 of the content of a value, by the rules of `target.fingerprint`."""
    content = Digest()
    content.add(value)
    return content.hash.hexdigest()


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run as each checkpoint repeats it: without the numbers of a target."""
    return {key: digest(value) if key == "target" else value for key, value in config.items()}


def rebuild(tree: Any, where: str = "") -> Any:
    """The object that `describe` described.

    Raises NotRebuildableError, naming the part, if it is not made of pysamp's own dataclasses.
    """
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, list):
        return [rebuild(item, f"{where}[{i}]") for i, item in enumerate(tree)]
    kinds = tree.keys()
    if kinds == {"float"}:
        return float(tree["float"])
    if kinds == {"tuple"}:
        return tuple(rebuild(item, f"{where}[{i}]") for i, item in enumerate(tree["tuple"]))
    if kinds == {"dict"}:
        return {key: rebuild(item, f"{where}[{key!r}]") for key, item in tree["dict"].items()}
    if kinds == {"dtype"}:
        return getattr(torch, tree["dtype"])
    if kinds == {"device"}:
        return torch.device(tree["device"])
    if kinds == {"tensor", "shape", "dtype", "device"}:
        kind = {"dtype": getattr(torch, tree["dtype"]), "device": tree["device"]}
        return torch.tensor(json.loads(tree["tensor"]), **kind).reshape(tree["shape"])
    if kinds == {"class", "fields"}:
        cls = _own_class(tree["class"], where)
        fields = {
            name: rebuild(item, f"{where}.{name}" if where else name)
            for name, item in tree["fields"].items()
        }
        return cls(**fields)
    if kinds == {"network", "digest"}:
        name = tree["network"].replace(":", ".")
        raise NotRebuildableError(
            f"{where or 'it'} is the network {name}, whose parameters it does not hold"
        )
    raise _foreign(where, tree.get("opaque", "of an unknown kind"))


def _foreign(where: str, path: str) -> NotRebuildableError:
    name = path.replace(":", ".")
    return NotRebuildableError(f"{where or 'it'} is {name}, from outside pysamp")


def differences(recorded: Any, given: Any, key: str = "") -> list[str]:
    """Lines "key: recorded …, given …", one for each leaf in which two descriptions differ."""
    if isinstance(recorded, dict) and isinstance(given, dict):
        out = []
        for name in sorted(recorded.keys() | given.keys()):
            # What only tells one kind of node from another is no part of the name of a value.
            inner = key if name in ("fields", "dict", "tuple") else f"{key}.{name}".strip(".")
            absent = "nothing"
            out += differences(recorded.get(name, absent), given.get(name, absent), inner)
        return out
    if recorded == given and type(recorded) is type(given):
        return []
    return [f"{key}: recorded {_short(recorded)}, given {_short(given)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _arguments(value: Any) -> list[dataclasses.Field]:
    """Fields that make the object: not what it computes, nor counters and caches left out of ==."""
    optional = dataclasses.MISSING
    return [
        f
        for f in dataclasses.fields(value)
        if f.init and (f.compare or (f.default is optional and f.default_factory is optional))
    ]


def _own_class(path: str, where: str) -> type:
    """A dataclass by its path, from the pysamp namespace and nowhere else."""
    module_name, _, name = path.partition(":")
    if module_name.split(".")[0] != "pysamp" or not name.isidentifier():
        raise _foreign(where, path)
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise NotRebuildableError(f"this version of pysamp has no {module_name}.{name}") from error
    if not (
        isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module_name
    ):
        raise NotRebuildableError(f"{module_name}.{name} is not a dataclass of pysamp")
    return cls


def _has_name(value: Any) -> bool:
    """True of functions and whatever else carries a name of its own."""
    return isinstance(getattr(value, "__qualname__", None), str)


def _path(named: Any) -> str:
    return f"{named.__module__}:{named.__qualname__}"
