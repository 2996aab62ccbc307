"""One page about a set of draws: statistics, acceptance, weights of modes, cost, and a verdict in plain words.

The statistics are those of `metrics` (rank-normalised R-hat and ESS: Vehtari et al. 2021, arXiv 1903.08008); what this file
decides is which series are looked at and when a number is bad enough to be said.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pysamp import metrics
from pysamp.target import HasLogZ, HasModes, HasObservables, Target

if TYPE_CHECKING:
    from pysamp.samples import Samples

MAX_COORDINATES = 8  # coordinates of larger events are no quantity of interest, and no table holds them
RHAT_GOOD = 1.01  # Vehtari et al. (2021), section 4: the threshold for rank-normalised R-hat
RHAT_BAD = 1.1  # Gelman and Rubin's old threshold: chains as a whole disagree, not merely short ones
MIN_ESS = 400  # Vehtari et al. (2021), section 4: below it R-hat, ESS and errors are themselves unreliable
LOW_ACCEPT = 0.05  # the best scalings accept 0.23 to 0.65; at 0.05 nearly all work is thrown away
Z_LIMIT = 4.0  # standard errors; by chance 6e-5 for each weight, so a table of 100 modes raises few alarms
MIN_EXPECTED = 10.0  # draws that a mode must have been due before its absence is held against the sampler
MIN_WEIGHT_ESS = 0.01  # of the draws; below it a few weights decide every mean
MIN_DRAWS = 4  # per chain, below which autocorrelation and R-hat are undefined
WIDTH = 100  # columns of the text
MAX_LINES = 12  # modes printed; the others are in `to_dict`


@dataclass(frozen=True, eq=False)
class Summary:
    """`rows` and `modes` are tables as lists of dicts; an empty `verdict` means nothing wrong was found."""

    title: str
    rows: list[dict[str, Any]]
    modes: list[dict[str, Any]]
    facts: dict[str, Any]  # accept, log_z, evaluations, gradients, seconds, backend, seed, …
    notes: list[str]  # what a reader should know though it is no fault of the run
    verdict: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN and infinities become None."""
        out = {key: getattr(self, key) for key in ("title", "rows", "modes", "notes", "verdict")}
        return _jsonable({**out, **self.facts, "ok": not self.verdict})

    def __str__(self) -> str:
        return "\n".join(_lines(self))


# ------------------------------------------------------------------------------------- numbers
def summarise(samples: Samples, target: Target | None = None) -> Summary:
    """All numbers of the page. Cost: one pass over the draws, and one sort of each scalar series."""
    series, label, n_bad = scalars(samples, target)
    rows = [_row(name, values, samples.log_weight) for name, values in series.items()]
    facts = _facts(samples, target)
    facts["nonfinite_draws"] = n_bad
    modes: list[dict[str, Any]] = []
    if label is not None and isinstance(target, HasModes):
        modes = _modes(label, target.mode_weights, samples.log_weight)
        if samples.n_draws > 1:
            facts["mode_changes"] = int((label[:, 1:] != label[:, :-1]).sum())
    notes = _notes(samples)
    verdict = [
        *_judge_proposals(facts, samples),
        *_judge_chains(rows, modes, facts, samples),
        *_judge_modes(modes, facts, samples),
        *_judge_weights(facts, samples),
    ]
    return Summary(_title(samples, target), rows, modes, facts, notes, verdict)


def scalars(
    samples: Samples, target: Target | None
) -> tuple[dict[str, Tensor], Tensor | None, int]:
    """Series (chain, draw) by name, mode labels (chain, draw) or None, number of draws that are not finite.

    Observables of the target, then log_prob, then the coordinates of events of at most 8 numbers.
    """
    observed: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    n_bad = 0
    event = samples.event_shape
    size = math.prod(event)
    coordinates = coordinate_names(event)
    for block in samples.blocks():
        chain, draw = block.shape[:2]
        x = block.reshape(chain * draw, *event)
        numbers = x.reshape(chain * draw, size)
        found = target.observables(x) if isinstance(target, HasObservables) else {}
        if coordinates:
            found = found | dict(zip(coordinates, numbers.unbind(1), strict=True))
        for name, values in found.items():
            observed.setdefault(name, []).append(values.detach().reshape(chain, draw))
        if isinstance(target, HasModes):
            labels.append(target.mode(x).reshape(chain, draw))
        n_bad += int((~torch.isfinite(numbers)).any(1).sum())
    series = {name: torch.cat(parts, 1) for name, parts in observed.items()}
    last = {name: series.pop(name) for name in coordinates}
    series = {**series, "log_prob": samples.log_prob, **last}
    return series, torch.cat(labels, 1) if labels else None, n_bad


def coordinate_names(event_shape: tuple[int, ...]) -> list[str]:
    """Names of the coordinates that the table shows; none for an event of more than 8 numbers."""
    size = math.prod(event_shape)
    if size > MAX_COORDINATES:
        return []
    return [f"x[{i}]" for i in range(size)] if event_shape else ["x"]


def _row(name: str, series: Tensor, log_weight: Tensor | None) -> dict[str, Any]:
    """Statistics of one series (chain, draw)."""
    series = series.double()
    weight = _weight(series, log_weight)
    mean = (weight * series).sum()
    centred = series - mean
    sd = (weight * centred.square()).sum().sqrt()
    if log_weight is None and series.numel() > 1:
        sd = sd * math.sqrt(series.numel() / (series.numel() - 1))
    mcse, bulk, tail, rhat = _error(centred, weight, log_weight), math.nan, math.nan, math.nan
    if log_weight is not None:
        bulk = float(metrics.ess_weights(log_weight))
    elif series.shape[1] >= MIN_DRAWS:
        bulk, tail = float(metrics.ess(series, "bulk")), float(metrics.ess(series, "tail"))
        rhat = float(metrics.rhat(series))
    else:
        bulk = float(series.shape[0])
    quantiles = _quantiles(series.flatten(), weight.flatten(), (0.05, 0.5, 0.95))
    return {
        "name": name,
        "mean": float(mean),
        "mcse": mcse,
        "sd": float(sd),
        **dict(zip(("q5", "q50", "q95"), quantiles, strict=True)),
        "ess_bulk": bulk,
        "ess_tail": tail,
        "rhat": rhat,
        "constant": bool(series.amax() == series.amin()),
    }


def _weight(series: Tensor, log_weight: Tensor | None) -> Tensor:
    """Weights (chain, draw) of sum 1."""
    if log_weight is None:
        return torch.full_like(series, 1 / series.numel())
    flat = log_weight.to(series.device).double().flatten()
    return torch.softmax(flat, 0).reshape(series.shape)


def _error(centred: Tensor, weight: Tensor, log_weight: Tensor | None) -> float:
    """Standard error of the mean, by the delta method where there are weights."""
    n_chains, n_draws = centred.shape
    influence = centred if log_weight is None else centred * weight * weight.numel()
    if n_draws >= MIN_DRAWS:
        return float(metrics.mcse(influence))
    if n_chains == 1:
        return math.nan
    return float(influence.mean(1).std() / math.sqrt(n_chains))  # chains are independent


def _quantiles(x: Tensor, weight: Tensor, at: tuple[float, ...]) -> list[float]:
    """Inverse of the distribution function that joins (F_i - w_i/2, x_i) by straight lines."""
    if not bool(torch.isfinite(x).all()):
        return [math.nan] * len(at)
    order = x.argsort()
    x, weight = x[order], weight[order]
    middle = weight.cumsum(0) - weight / 2
    p = torch.tensor(at, dtype=x.dtype, device=x.device)
    right = torch.searchsorted(middle, p).clamp(1, max(1, len(x) - 1))
    if len(x) == 1:
        return [float(x[0])] * len(at)
    left = right - 1
    span = (middle[right] - middle[left]).clamp_min(torch.finfo(x.dtype).tiny)
    part = ((p - middle[left]) / span).clamp(0, 1)
    return (x[left] + part * (x[right] - x[left])).tolist()


@dataclass(frozen=True, eq=False)
class _Labelled:
    """Labels in the place of draws: `metrics.mode_weights` then needs no draw in memory."""

    mode_weights: Tensor

    def mode(self, x: Tensor) -> Tensor:
        return x


def _modes(label: Tensor, reference: Tensor, log_weight: Tensor | None) -> list[dict[str, Any]]:
    """Weight, error, exact weight, z-score and R-hat of the indicator of each mode."""
    n_draws = label.shape[1]
    weights, errors = metrics.mode_weights(label, _Labelled(reference), log_weight)
    out = []
    exact = reference.double().tolist()
    for k, (weight, error) in enumerate(zip(weights.tolist(), errors.tolist(), strict=True)):
        inside = label == k
        # A mode of few draws has a poor error of its own; under the exact weight it is at least this.
        floor = math.sqrt(exact[k] * (1 - exact[k]) / label.numel())
        scale = max(error, floor)
        difference = weight - exact[k]
        z = difference / scale if scale > 0 else math.copysign(math.inf, difference)
        judged = n_draws >= MIN_DRAWS and log_weight is None
        rhat = float(metrics.rhat(inside.double())) if judged else math.nan
        out.append(
            {
                "mode": k,
                "weight": weight,
                "error": error,
                "exact": exact[k],
                "z": 0.0 if difference == 0 else z,
                "draws": int(inside.sum()),
                "rhat": rhat,
            }
        )
    return out


def _facts(samples: Samples, target: Target | None) -> dict[str, Any]:
    info = samples.info
    plain = "sampler scale evaluations gradients seconds backend device dtype seed warmup thin".split()
    facts: dict[str, Any] = {
        "n_chains": samples.n_chains,
        "n_draws": samples.n_draws,
        **{key: info[key] for key in plain if key in info},
    }
    for key in ("nonfinite", "log_z", "log_z_error"):
        if key in info:
            facts[key] = float(torch.as_tensor(info[key]).double().sum())
    if "accept" in info:
        accept = torch.as_tensor(info["accept"]).double().flatten()
        equal = torch.full_like(accept, 1 / max(1, accept.numel()))
        q5, q50, q95 = _quantiles(accept, equal, (0.05, 0.5, 0.95))
        facts["accept"] = float(accept.mean())
        spread = {"min": float(accept.min()), "q5": q5, "median": q50, "q95": q95}
        facts["accept_spread"] = {**spread, "max": float(accept.max())}
        facts["chains_never_accepted"] = int((accept == 0).sum())
    if "log_z" in facts and isinstance(target, HasLogZ):
        facts["log_z_exact"] = float(target.log_z)
    if samples.log_weight is not None:
        facts["weights_ess"] = float(metrics.ess_weights(samples.log_weight))
    return facts


def _title(samples: Samples, target: Target | None) -> str:
    name = samples.info.get("sampler", "samples")
    on = "" if target is None else f" on {type(target).__name__}"
    extra = "".join(
        f", {label} {samples.info[key]}"
        for key, label in (("warmup", "warm-up"), ("thin", "thin"))
        if samples.info.get(key)
    )
    return f"{name}{on}: {samples.n_chains} chains × {samples.n_draws} draws{extra}"


# ------------------------------------------------------------------------------------- verdict
def _notes(samples: Samples) -> list[str]:
    notes = [str(note) for note in samples.info.get("notes", [])]
    if samples.info.get("sampler") == "ULA":
        notes.append(
            "ULA has no accept/reject step: its draws have a bias that grows with the step size "
            "and that no number here shows"
        )
    if samples.n_chains == 1 and samples.n_draws > 1:
        notes.append("one chain only: whether chains agree (R-hat) cannot be judged")
    return notes


def _judge_proposals(facts: dict[str, Any], samples: Samples) -> Iterator[str]:
    if bad := facts["nonfinite_draws"]:
        total = samples.n_chains * samples.n_draws
        yield f"{bad} of {total} draws are not finite: the sampler diverged; use a smaller step size"
    nonfinite = int(facts.get("nonfinite", 0))
    if "accept" in facts:
        never = facts["chains_never_accepted"]
        if facts["accept"] == 0:
            if nonfinite:
                cause = f"log_prob was NaN or +inf at {nonfinite} proposals: check the target"
            else:
                cause = "the step size or width is much too large"
            yield f"no proposal was ever accepted (acceptance 0): {cause}"
        elif never:
            yield (
                f"{never} of {samples.n_chains} chains never accepted a proposal: they still stand "
                "where sampling began"
            )
        elif not facts["accept"] >= LOW_ACCEPT:
            yield (
                f"acceptance is only {facts['accept']:.2g}: the step size or width is too large, or "
                "the proposal is far from the target"
            )
    if nonfinite:
        yield f"{nonfinite} proposals had log_prob NaN or +inf and were rejected: check the target"


def _judge_chains(
    rows: list[dict[str, Any]],
    modes: list[dict[str, Any]],
    facts: dict[str, Any],
    samples: Samples,
) -> Iterator[str]:
    if samples.info.get("markov") and samples.n_draws < MIN_DRAWS:
        yield (
            f"{samples.n_draws} draws per chain: mixing cannot be judged with fewer than {MIN_DRAWS}"
        )
    found = [(row["rhat"], row["name"]) for row in rows]
    found += [(mode["rhat"], f"mode indicator {mode['mode']}") for mode in modes]
    found = [item for item in found if not math.isnan(item[0])]
    if found:
        worst, name = max(found)
        facts["rhat_max"] = worst
        if worst > RHAT_BAD:
            yield f"chains have not mixed: R-hat {worst:.3g} ({name}), want < {RHAT_GOOD}"
        elif worst > RHAT_GOOD:
            yield (
                f"chains are too short to agree: R-hat {worst:.4g} ({name}), want < {RHAT_GOOD}; "
                "draw longer"
            )
    if samples.log_weight is not None:
        return
    sizes = [
        (row[key], f"{row['name']}, {key[4:]}")
        for row in rows
        for key in ("ess_bulk", "ess_tail")
        if not row["constant"] and not math.isnan(row[key])
    ]
    if sizes and min(sizes)[0] < MIN_ESS:
        size, name = min(sizes)
        yield f"too few effective draws: {size:.0f} ({name}), want {MIN_ESS}"


def _judge_modes(
    modes: list[dict[str, Any]], facts: dict[str, Any], samples: Samples
) -> Iterator[str]:
    total = samples.n_chains * samples.n_draws
    for mode in modes:
        if mode["draws"] == 0 and mode["exact"] > 0:
            if mode["exact"] * total >= MIN_EXPECTED:
                yield f"mode {mode['mode']} (weight {mode['exact']:.3g}) was never visited"
    wrong = [m for m in modes if m["draws"] and abs(m["z"]) > Z_LIMIT]
    if wrong:
        worst = max(wrong, key=lambda m: abs(m["z"]))
        yield (
            f"mode weights are wrong: mode {worst['mode']} has {worst['weight']:.3g} ± "
            f"{worst['error']:.2g} against {worst['exact']:.3g} exact"
        )
    occupied = sum(mode["draws"] > 0 for mode in modes)
    if occupied > 1 and facts.get("mode_changes") == 0:
        yield "no chain ever changed mode: weights only reflect the starting points"


def _judge_weights(facts: dict[str, Any], samples: Samples) -> Iterator[str]:
    total = samples.n_chains * samples.n_draws
    if "weights_ess" in facts:
        size = facts["weights_ess"]
        if size < MIN_WEIGHT_ESS * total:
            yield f"importance weights are degenerate: {size:.1f} effective draws of {total}"
        elif size < MIN_ESS:
            yield f"too few effective draws: {size:.0f} of {total} after weighting, want {MIN_ESS}"
    exact, value, error = (facts.get(k) for k in ("log_z_exact", "log_z", "log_z_error"))
    if value is not None and not math.isfinite(value):
        yield f"log Z is {value}"
    elif exact is not None and value is not None and error is not None:
        if abs(value - exact) > Z_LIMIT * error + 1e-6 * abs(exact):  # the last: float32 sums
            yield f"log Z is wrong: {value:.6g} ± {error:.2g} against {exact:.6g} exact"


# ------------------------------------------------------------------------------------- text
_COLUMNS = (("sd", 9), ("q5", 10), ("q50", 10), ("q95", 10), ("ess_bulk", 8), ("ess_tail", 8))
_HEADS = {"q5": "5 %", "q50": "50 %", "q95": "95 %", "ess_bulk": "ESS bulk", "ess_tail": "ESS tail"}


def _lines(summary: Summary) -> Iterator[str]:
    facts = summary.facts
    yield from textwrap.wrap(summary.title, WIDTH)
    yield ""
    heads = "".join(f" {_HEADS.get(key, key):>{width}}" for key, width in _COLUMNS)
    yield f"{'':11}{'mean ± error':>21}{heads} {'R-hat':>6}"
    for row in summary.rows:
        cells = "".join(
            f" {_whole(row[key]) if key.startswith('ess') else _number(row[key]):>{width}}"
            for key, width in _COLUMNS
        )
        mean = f"{_number(row['mean'])} ± {_number(row['mcse'], 2)}"
        name = row["name"] if len(row["name"]) <= 11 else row["name"][:10] + "…"
        yield f"{name:<11}{mean:>21}{cells} {_number(row['rhat'], 4, 5):>6}"
    yield ""
    if "accept" in facts:
        spread = facts["accept_spread"]
        keys = (("min", "min"), ("q5", "5 %"), ("median", "median"), ("q95", "95 %"), ("max", "max"))
        inner = ", ".join(f"{label} {spread[key]:.3f}" for key, label in keys)
        yield f"accept      {facts['accept']:.3f}   over chains: {inner}"
    if "log_z" in facts:
        error = f" ± {_number(facts['log_z_error'], 2)}" if "log_z_error" in facts else ""
        exact = f"   exact {facts['log_z_exact']:.6g}" if "log_z_exact" in facts else ""
        yield f"log Z       {facts['log_z']:.6g}{error}{exact}"
    shown = sorted(summary.modes, key=lambda m: -abs(m["z"]))[:MAX_LINES]
    for mode in sorted(shown, key=lambda m: m["mode"]):
        yield (
            f"mode {mode['mode']:<6} {mode['weight']:.4f} ± {mode['error']:.4f}   "
            f"exact {mode['exact']:.4f}   z {mode['z']:+.1f}"
        )
    if len(summary.modes) > len(shown):
        yield f"            and {len(summary.modes) - len(shown)} more modes, all closer to exact"
    if "weights_ess" in facts:
        yield f"weights     {facts['weights_ess']:.1f} effective draws (Kish)"
    counts = [f"{k} {facts[k]:,.0f}" for k in ("evaluations", "gradients") if k in facts]
    if counts:
        yield "cost        " + "   ".join(counts)
    rest = [f"wall {facts['seconds']:.2f} s"] if "seconds" in facts else []
    rest += [f"{k} {facts[k]}" for k in ("backend", "device", "dtype", "seed") if k in facts]
    if rest:
        yield "run         " + "   ".join(rest)
    for note in summary.notes:
        yield from textwrap.wrap(note, WIDTH, initial_indent="note        ", subsequent_indent=" " * 12)
    if not summary.verdict:
        yield "verdict     nothing wrong was found"
    for i, text in enumerate(summary.verdict):
        head = "verdict     " if i == 0 else " " * 12
        yield from textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * 14)


def _number(value: float, digits: int = 4, width: int = 9) -> str:
    """At most `width` characters; a dash where there is no number."""
    if math.isnan(value):
        return "–"
    text = f"{value:.{digits}g}"
    while len(text) > width and digits > 1:
        digits -= 1
        text = f"{value:.{digits}g}"
    return text


def _whole(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0f}" if value < 1e7 else f"{value:.1e}"


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, Tensor):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
