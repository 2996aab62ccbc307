"""What a part of a run remembers: its walkers, and the sums of what the kernels reported.

Sums are float64 and kept in checkpoints, so a resumed run reports the same acceptance to the bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pysamp import metrics
from pysamp.distributed import World, gather_bytes, gather_chains
from pysamp.samples import Samples, join_tensors, split_tensors

COSTS = ("evaluations", "gradients", "local_moves")
PER_DRAW = ("accept", "step_size")  # of what samplers of independent draws report
MOVES = ("flow_moves", "local_steps")  # of a kernel that mixes two kinds of transitions
COUNTS = (
    "nonfinite",
    *MOVES,
    *COSTS,
)  # summed over the steps; else an Info reports means over them,
# or over those of one kind only, whose number it reports, too
MEAN_OVER = {"flow_accept": "flow_moves", "mc_ess": "flow_moves", "local_accept": "local_steps"}


@dataclass
class Tally:
    """What the kernels report of themselves, added up over the steps of a part."""

    steps: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)  # float64, on the CPU
    once: dict[str, Any] = field(default_factory=dict)  # said once, such as the adapted scale

    def add(self, values: dict[str, Tensor], steps: int) -> None:
        """Add the report of `steps` steps: counts as they are, all else as a mean over them."""
        told = {k: value.detach().to("cpu", torch.float64) for k, value in values.items()}
        for key, value in told.items():
            over = told.get(MEAN_OVER.get(key, ""), steps)
            term = value if key in COUNTS else value * over
            self.sums[key] = self.sums[key] + term if key in self.sums else term
        self.steps += steps

    def means(self) -> dict[str, Tensor]:
        """Counts, and means; NaN of what never happened."""
        found = {}
        for key, value in self.sums.items():
            over = self.sums.get(MEAN_OVER.get(key, ""), max(1, self.steps))
            found[key] = value if key in COUNTS else value / over
        return found


def merge_info(counts: list[int], tallies: list[Tally]) -> dict[str, Any]:
    """One report for all chains from the chains and the tally of each part, in chain order.

    Values with an entry for each chain are joined; of others, counts are added and means averaged
    over chains. Evaluations, gradients and local moves come out as totals.
    """
    info: dict[str, Any] = {}
    means = [tally.means() for tally in tallies]
    total = sum(counts)
    for key in means[0]:
        values = [mean[key] for mean in means]
        if all(v.ndim > 0 and v.shape[0] == n for v, n in zip(values, counts, strict=True)):
            info[key] = torch.cat(values)
        elif key in COUNTS:
            info[key] = torch.stack(values).sum(0)
        else:
            shares = zip(values, counts, strict=True)
            info[key] = torch.stack([v * (n / total) for v, n in shares]).sum(0)
        if key in COSTS:
            info[key] = int(info[key].sum())
    info["seconds"] = max(tally.seconds for tally in tallies)
    for key, value in tallies[0].once.items():
        rows = [tally.once[key] for tally in tallies]
        per_row = all(
            isinstance(row, Tensor) and row.ndim > 0 and row.shape[0] == n
            for row, n in zip(rows, counts, strict=True)
        )
        info[key] = torch.cat(rows) if per_row else value
    return info


def gather_samples(part: Samples, world: World, n: int) -> Samples:
    """The independent draws of all processes, n in all, as one.

    Of `info`, values with an entry a draw (PER_DRAW) are joined, counts added, sentences put together; of
    other numbers, the mean over draws; other tensors are those of this process. log Z, and what is said
    of the weights, is computed anew from all of them.
    """
    counts = gather_chains(torch.tensor([part.n_chains]), world).tolist()
    tensors: dict[str, Tensor] = {}
    header = split_tensors(part.info, "info", tensors)
    per_draw = {
        f"info.{key}": gather_chains(part.info[key].contiguous(), world, n)
        for key in PER_DRAW
        if key in part.info
    }
    infos = [json.loads(data) for data in gather_bytes(json.dumps(header).encode(), world)]
    info: dict[str, Any] = {}
    for key in dict.fromkeys(key for other in infos for key in other):
        found = [(other[key], c) for other, c in zip(infos, counts, strict=True) if key in other]
        value = found[0][0]
        if isinstance(value, dict) and value.get("tensor") == f"info.{key}":
            name = value["tensor"]
            if name in per_draw or name in tensors:
                info[key] = per_draw.get(name, tensors.get(name))
        elif key in COUNTS:
            info[key] = sum(v for v, _ in found)
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):
            info[key] = list(dict.fromkeys(text for texts, _ in found for text in texts))
        elif isinstance(value, float):  # a check may have been made in one process alone
            info[key] = sum(v * c for v, c in found) / sum(c for _, c in found)
        else:
            info[key] = value
    x = gather_chains(part.x.contiguous(), world, n)
    log_prob = gather_chains(part.log_prob.contiguous(), world, n)
    log_weight = part.log_weight
    if log_weight is not None:
        log_weight = gather_chains(log_weight.contiguous(), world, n)
        log_z, error = metrics.log_z(log_weight)
        again = {
            "log_z": log_z,
            "log_z_error": error,
            "ess": metrics.ess_weights(log_weight),
            "pareto_k": metrics.pareto_k(log_weight),
        }
        info |= {key: float(value) for key, value in again.items() if key in info}
    return replace(part, x=x, log_prob=log_prob, log_weight=log_weight, info=info)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The walkers of a part after `n_draws` draws; trees of tensors and JSON."""

    n_draws: int
    state: dict[str, Any]
    kernel: dict[str, Any]
    tally: Tally
    config: dict[str, Any] = field(default_factory=dict)  # of the run, to be compared: JSON


def encode(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as one safetensors file."""
    tree = {"n_draws": checkpoint.n_draws, "state": checkpoint.state, "kernel": checkpoint.kernel}
    tree |= {"tally": vars(checkpoint.tally)}
    tensors: dict[str, Tensor] = {}
    header = split_tensors(tree, "run", tensors)
    owned = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    return save(owned, {"run": json.dumps(header), "config": json.dumps(checkpoint.config)})


def decode(data: bytes) -> Checkpoint:
    """The inverse of `encode`; tensors come back on the CPU."""
    # The header of the format: its length as 8 bytes, then JSON.
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    tree = join_tensors(json.loads(metadata["run"]), "run", load(data))
    config = json.loads(metadata["config"])
    return Checkpoint(**{**tree, "tally": Tally(**tree["tally"]), "config": config})
