"""The training loop: Adam on any loss that is a function of the step alone.

`loss(step)` draws its batch and its noise from `rng` at that step, so what is learnt is a function of the
initial parameters, the seed and the number of steps, and a run that goes on from a checkpoint ends where
the uninterrupted one does, bit for bit on one device. Where the batch comes from something that moves
along, such as Markov chains, that is handed over as `carry` and kept with the checkpoint. Adam: Kingma and
Ba (2015), arXiv 1412.6980.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from pysamp.samples import read_tensors, replace_file

Loss = Callable[[int], "Tensor | tuple[Tensor, dict[str, Tensor | float]]"]
FORMAT = "pysamp training 1"
SHOWN = 4  # differences that an error lists: another network differs in every tensor


class NonFiniteError(ArithmeticError):
    """A loss or a gradient that is NaN or infinite: the message names the step and the term."""


@dataclass(frozen=True)
class StepDecay:
    """The rate lr · gamma^⌊step/period⌋, which `torch.optim.lr_scheduler.StepLR` has, too."""

    period: int
    gamma: float

    def __post_init__(self) -> None:
        if isinstance(self.period, bool) or not isinstance(self.period, int) or self.period < 1:
            raise ValueError(f"period must be a positive int, got {self.period!r}")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {self.gamma}")


Decay = str | StepDecay | None


class Carried(Protocol):
    """What moves along with the training, and is saved and put back with it."""

    def tensors(self) -> dict[str, Tensor]:
        """All that the next call of the loss needs of the calls before, under names of its own."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to where `tensors` was taken. Raises ValueError where it is of something else."""


@dataclass(frozen=True, eq=False)
class History:
    """What every step was like, (steps,) float64 each; `terms` are those that the loss named."""

    loss: Tensor
    grad_norm: Tensor  # before clipping
    terms: dict[str, Tensor] = field(default_factory=dict)
    stopped: bool = False  # by `stop`, before all steps were done

    @property
    def steps(self) -> int:
        return len(self.loss)


def fit(
    loss: Loss,
    params: torch.nn.Module | Iterable[Tensor],
    *,
    steps: int,
    lr: float = 1e-3,
    lr_decay: Decay = "cosine",
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    ema: float | None = None,
    carry: Carried | None = None,
    checkpoint: str | os.PathLike | None = None,
    identity: Mapping[str, Any] | None = None,
    every: int = 1000,
    callback: Callable[[int, dict[str, float]], object] | None = None,
    stop: Callable[[int, dict[str, float]], bool] | None = None,
) -> History:
    """Minimise `loss` over `params`, in place.

    loss: step -> a scalar, or a scalar and a dict of its terms by name, for the record.
    lr_decay: "cosine", lr (1 + cos(π step/steps))/2; a StepDecay; or None for a constant rate.
    weight_decay: adds weight_decay · parameter to each gradient, after clipping (the L2 term of Adam).
    clip: largest norm of the gradient of all parameters together; None leaves it.
    ema: decay of an average of the parameters, which they hold at the end in place of the last iterate;
    the decay is at most (1 + step)/(10 + step), so that the start is soon forgotten.
    checkpoint: a file written after every `every` steps and at the end; where it exists, training goes on
    from it. carry: what the loss moves along from step to step, which is saved and put back, too.
    identity: what else must be the same for a training to go on, by name; values that JSON can hold.
    callback: called after every step with the step, and loss, grad_norm, lr and the terms. stop: called
    likewise; where it is true that step is the last, and `History.stopped` says so.

    Raises NonFiniteError at the first loss or gradient that is not finite, with the parameters as they
    were before that step; ValueError for arguments, and for a checkpoint of another training.
    """
    names, tensors = _named(params)
    _check(steps, lr, lr_decay, weight_decay, clip, ema, every)
    settings = {
        "steps": steps,
        "lr": lr,
        "lr_decay": list(vars(lr_decay).values()) if isinstance(lr_decay, StepDecay) else lr_decay,
        "clip": clip,
        "ema": ema,
        "weight_decay": weight_decay,
        **(identity or {}),
    }
    optimiser = torch.optim.Adam(tensors, lr=lr, weight_decay=weight_decay)
    average = None if ema is None else [tensor.detach().clone() for tensor in tensors]
    rows: list[dict[str, float]] = []
    stopped = False
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        rows, stopped = _load(path, settings, names, tensors, average, optimiser, carry)

    for step in range(len(rows), len(rows) if stopped else steps):
        rate = _rate(lr, lr_decay, step, steps)
        row = _gradient(loss, step, names, tensors, optimiser)
        if rows and row.keys() - {"lr"} != rows[0].keys() - {"lr"}:
            raise ValueError(
                f"loss must name the same terms at every step, got {sorted(row)} at step {step} and "
                f"{sorted(rows[0])} at step 0"
            )
        if clip is not None and row["grad_norm"] > clip:
            for tensor in tensors:
                if tensor.grad is not None:
                    tensor.grad.mul_(clip / row["grad_norm"])
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        if ema is not None and average is not None:
            decay = min(ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, tensor in zip(average, tensors, strict=True):
                    mean.lerp_(tensor, 1 - decay)
        rows.append({**row, "lr": rate})
        done = step + 1
        stopped = stop is not None and done < steps and stop(step, dict(rows[-1]))
        if path is not None and (done % every == 0 or done == steps or stopped):
            _save(path, settings, names, tensors, average, optimiser, carry, rows, stopped)
        if callback is not None:
            callback(step, dict(rows[-1]))
        if stopped:
            break

    optimiser.zero_grad(set_to_none=True)
    if average is not None:
        with torch.no_grad():
            for tensor, mean in zip(tensors, average, strict=True):
                tensor.copy_(mean)
    columns = {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]
    }
    terms = {name: columns[name] for name in columns if name not in ("loss", "grad_norm", "lr")}
    return History(columns["loss"], columns["grad_norm"], terms, stopped)


def _rate(lr: float, decay: Decay, step: int, steps: int) -> float:
    if isinstance(decay, StepDecay):
        return lr * decay.gamma ** (step // decay.period)
    return lr if decay is None else lr * (1 + math.cos(math.pi * step / steps)) / 2


def _gradient(
    loss: Loss, step: int, names: list[str], tensors: list[Tensor], optimiser: torch.optim.Adam
) -> dict[str, float]:
    """Loss, gradient norm and terms of a step; the gradients are left in the parameters."""
    optimiser.zero_grad(set_to_none=True)
    with torch.inference_mode(False), torch.enable_grad():
        found = loss(step)
        value, terms = found if isinstance(found, tuple) else (found, {})
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar Tensor, got {shape} at step {step}")
        if value.requires_grad:
            value.reshape(()).backward()
    if reserved := terms.keys() & {"loss", "grad_norm", "lr"}:
        raise ValueError(f"loss must not name a term {min(reserved)!r}: that is recorded anyway")
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    if not gradients:
        raise ValueError(f"loss does not depend on params at step {step}")

    norm = torch.nn.utils.get_total_norm(gradients)
    row = _numbers({**terms, "loss": value, "grad_norm": norm})
    if not math.isfinite(row["loss"]):
        bad = [f"{name} = {row[name]}" for name in (*terms, "loss") if not math.isfinite(row[name])]
        raise NonFiniteError(f"the loss is not finite at step {step}: {', '.join(bad)}")
    if math.isfinite(row["grad_norm"]):
        return row
    where = f"at step {step}, where the loss is {row['loss']:.6g}"
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.grad is not None and (bad_entries := int((~torch.isfinite(tensor.grad)).sum())):
            raise NonFiniteError(
                f"the gradient is not finite {where}: {bad_entries} of {tensor.numel()} entries of "
                f"the gradient of {name}"
            )
    raise NonFiniteError(f"the norm of the gradient overflows {where}")


def _numbers(values: dict[str, Tensor | float]) -> dict[str, float]:
    """Scalars as floats, in one transfer from the device."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    scalars = [value.detach().reshape(()).double() for value in tensors.values()]
    found = dict(zip(tensors, torch.stack(scalars).tolist(), strict=True))
    return {name: float(found.get(name, value)) for name, value in values.items()}


# ------------------------------------------------------------------------------------- arguments
def _named(params: torch.nn.Module | Iterable[Tensor]) -> tuple[list[str], list[Tensor]]:
    if isinstance(params, torch.nn.Module):
        pairs: list[tuple[str, Tensor]] = [
            pair for pair in params.named_parameters() if pair[1].requires_grad
        ]
    else:
        pairs = [(f"params[{i}]", tensor) for i, tensor in enumerate(params)]
    if not pairs:
        raise ValueError("params must hold at least one tensor to be trained, got none")
    for name, tensor in pairs:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if not tensor.requires_grad or not tensor.is_leaf:
            raise ValueError(f"{name} must be a leaf tensor that requires a gradient")
    return [name for name, _ in pairs], [tensor for _, tensor in pairs]


def _check(
    steps: int, lr: float, lr_decay: Any, weight_decay: float, clip: float | None, ema: float | None,
    every: int,
) -> None:  # fmt: skip
    for name, value in (("steps", steps), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not isinstance(lr_decay, StepDecay) and lr_decay not in ("cosine", None):
        raise ValueError(f'lr_decay must be "cosine", a StepDecay or None, got {lr_decay!r}')
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if ema is not None and not 0 < ema < 1:
        raise ValueError(f"ema must lie in (0, 1) or be None, got {ema}")


# ------------------------------------------------------------------------------------- checkpoint
def _save(
    path: Path, settings: dict[str, Any], names: list[str], tensors: list[Tensor],
    average: list[Tensor] | None, optimiser: torch.optim.Adam, carry: Carried | None,
    rows: list[dict[str, float]], stopped: bool,
) -> None:  # fmt: skip
    """Parameters, their average, the moments of Adam, what is carried and the record, in one file."""
    state = {f"param.{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
    if average is not None:
        state |= {f"ema.{name}": mean for name, mean in zip(names, average, strict=True)}
    for name, tensor in zip(names, tensors, strict=True):
        state |= {f"adam.{key}.{name}": value for key, value in optimiser.state[tensor].items()}
    if carry is not None:
        state |= {f"carry.{name}": value for name, value in carry.tensors().items()}
    for key in rows[0]:
        state[f"record.{key}"] = torch.tensor([row[key] for row in rows], dtype=torch.float64)
    owned = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    metadata = {"format": FORMAT, "settings": json.dumps(settings), "stopped": str(stopped)}
    replace_file(path, lambda temporary: save_file(owned, temporary, metadata))


def _load(
    path: Path, settings: dict[str, Any], names: list[str], tensors: list[Tensor],
    average: list[Tensor] | None, optimiser: torch.optim.Adam, carry: Carried | None,
) -> tuple[list[dict[str, float]], bool]:  # fmt: skip
    """Put what `_save` wrote in its place; the record so far, and whether `stop` ended it."""
    state, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"checkpoint must be a file written by fit, got {path}")
    then = json.loads(metadata["settings"])
    different = [
        f"{key} = {then.get(key)} there, {settings.get(key)} here"
        for key in (settings | then)
        if then.get(key) != settings.get(key)
    ]
    shapes = {key[6:]: tuple(v.shape) for key, v in state.items() if key.startswith("param.")}
    here = {name: tuple(tensor.shape) for name, tensor in zip(names, tensors, strict=True)}
    different += [
        f"{name} is {shapes.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(shapes.keys() | here.keys())
        if shapes.get(name) != here.get(name)
    ]
    if different:
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise ValueError(
            f"checkpoint {path} is of another training: {'; '.join(different[:SHOWN])}{more}"
        )
    with torch.no_grad():
        for i, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
            tensor.copy_(state[f"param.{name}"])
            if average is not None:
                average[i].copy_(state[f"ema.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (value := state.get(f"adam.{key}.{name}")) is not None:
                    # Adam keeps its own count of steps on the CPU
                    where = value if key == "step" else value.to(tensor.device)
                    optimiser.state[tensor][key] = where
    if carry is not None:
        carry.restore({key[6:]: v for key, v in state.items() if key.startswith("carry.")})
    record = {key[7:]: v.tolist() for key, v in state.items() if key.startswith("record.")}
    rows = [dict(zip(record, values, strict=True)) for values in zip(*record.values(), strict=True)]
    return rows, metadata.get("stopped") == "True"
