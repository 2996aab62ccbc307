"""One page about a set of draws: statistics, acceptance, modes, cost, and a verdict in plain words.

The statistics are those of `metrics` (rank-normalised R-hat and ESS: Vehtari et al. 2021, arXiv
1903.08008), for a field on a lattice also those of `errors` (autocorrelation times, and the errors of
response functions by jackknife), the sentences those of `verdict`; this file decides which series are
looked at.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pysamp import errors, metrics, verdict
from pysamp.target import (
    HasLogZ,
    HasModes,
    HasObservables,
    HasRecord,
    HasZeroMeans,
    Target,
)

if TYPE_CHECKING:
    from pysamp.samples import Samples

SETTINGS = (  # of info
    "sampler", "backend", "device", "dtype", "seed", "warmup", "thin", "measure_every", "scale"
)  # fmt: skip
COST = ("evaluations", "gradients", "local_moves", "seconds")
MAX_COORDINATES = 8  # those of larger events are of no interest, and no table holds them
WIDTH = 100  # columns of the text
MAX_LINES = 12  # modes printed; the others are in `to_dict`
TIMED = ("energy", "|magnetisation|")  # whose autocorrelation times are printed and judged
WITHIN = "energy_within"  # variance inside the window of a draw: no quantity of its own


@dataclass(frozen=True, eq=False)
class Summary:
    """Tables as lists of dicts; an empty `verdict` means that nothing wrong was found."""

    title: str
    rows: list[dict[str, Any]]
    modes: list[dict[str, Any]]
    facts: dict[str, Any]  # accept, log_z, evaluations, gradients, seconds, backend, seed, …
    notes: list[str]  # what a reader should know though it is no fault of the run
    verdict: list[str] = field(default_factory=list)
    times: list[dict[str, Any]] = field(default_factory=list)  # τ_int in draws, of lattice fields
    derived: list[dict[str, Any]] = field(default_factory=list)  # response functions and errors

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN and infinities become None."""
        keys = ("title", "rows", "times", "derived", "modes", "notes", "verdict")
        out = {key: getattr(self, key) for key in keys}
        return jsonable({**out, **self.facts, "ok": not self.verdict})

    def __str__(self) -> str:
        return "\n".join(_lines(self))


# ------------------------------------------------------------------------------------- numbers
def summarise(samples: Samples, target: Target | None = None) -> Summary:
    """All numbers of the page. Cost: one pass over the draws, a few sorts of each scalar series."""
    series, label, n_bad = scalars(samples, target)
    observed = _of_lattice(series, samples, target)
    times = {name: errors.integrated_time(s) for name, s in observed.items() if name != WITHIN}
    rows = [
        _row(name, values, samples.log_weight, times.get(name))
        for name, values in series.items()
        if name != WITHIN
    ]
    shown = [{"name": name, **vars(times[name])} for name in TIMED if name in times]
    derived = _derived(observed, target)
    zero_means = target.zero_means if isinstance(target, HasZeroMeans) else ()
    notes = verdict.notes(samples)
    facts = _facts(samples, target, notes)
    facts["nonfinite_draws"] = n_bad
    modes: list[dict[str, Any]] = []
    if label is not None:
        reference = _exact(target, "mode_weights", notes)
        if reference is None:
            reference = torch.full((max(1, int(label.max()) + 1),), math.nan)
        modes = _modes(label, reference, samples.log_weight)
        if samples.n_draws > 1:
            facts["mode_changes"] = int((label[:, 1:] != label[:, :-1]).sum())
    sentences = [
        *verdict.judge_proposals(facts, samples),
        *verdict.judge_chains(rows, modes, facts, samples),
        *verdict.judge_times(shown, samples),
        *verdict.judge_symmetry(rows, zero_means),
        *verdict.judge_modes(modes, facts, samples),
        *verdict.judge_weights(facts, samples),
    ]
    title = _title(samples, target)
    return Summary(title, rows, modes, facts, notes, sentences, shown, derived)


def _of_lattice(
    series: dict[str, Tensor], samples: Samples, target: Target | None
) -> dict[str, Tensor]:
    """Observables that were kept, or of a target with records: they have autocorrelation times."""
    if samples.log_weight is not None:
        return {}
    names: Iterable[str] = samples.names or ()
    if isinstance(target, HasRecord):
        names = target.from_record(torch.zeros(1, 9))
    return {name: series[name] for name in names if name in series}


def _derived(observed: dict[str, Tensor], target: Target | None) -> list[dict[str, Any]]:
    """Response functions with errors from blocks of chains and time."""
    if not observed or not isinstance(target, HasRecord):
        return []
    means = {name: values.double() for name, values in observed.items()}
    if "energy" in means:
        means["energy²"] = means["energy"].square() + means.get(WITHIN, 0.0)
    value, error = errors.jackknife(target.derived, means)
    return [{"name": k, "value": float(value[k]), "error": float(error[k])} for k in value]


def _has(target: Target | None, protocol: type) -> bool:
    """isinstance, which Python before 3.12 answers by reading properties: one that fails is there."""
    try:
        return isinstance(target, protocol)
    except ValueError:
        return True


def _exact(target: Any, name: str, notes: list[str]) -> Any:
    """What the target knows exactly; None where it cannot be computed, and the reason in the notes."""
    try:
        return getattr(target, name)
    except ValueError as error:
        notes.append(f"no exact {name} to compare with: {error}")
        return None


def scalars(
    samples: Samples, target: Target | None
) -> tuple[dict[str, Tensor], Tensor | None, int]:
    """Series (chain, draw) by name, mode labels (chain, draw) or None, number of draws not finite.

    Observables of the target, then log_prob, then the coordinates of events of at most 8 numbers; or
    the observables that were kept, and log_prob.
    """
    if samples.names is not None:
        kept = {name: samples.x[..., k] for k, name in enumerate(samples.names)}
        bad = int((~torch.isfinite(samples.x)).any(2).sum())
        return {**kept, "log_prob": samples.log_prob}, None, bad
    observed: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    n_bad = 0
    event = samples.event_shape
    size = math.prod(event)
    coordinates = coordinate_names(event)
    with_modes = _has(target, HasModes)
    for block in samples.blocks():
        chain, draw = block.shape[:2]
        x = block.reshape(chain * draw, *event)
        numbers = x.reshape(chain * draw, size)
        found: dict[str, Tensor] = {}
        if isinstance(target, HasObservables):
            found |= target.observables(x)
        if coordinates:
            found |= dict(zip(coordinates, numbers.unbind(1), strict=True))
        for name, values in found.items():
            observed.setdefault(name, []).append(values.detach().reshape(chain, draw))
        if with_modes:
            labels.append(cast(HasModes, target).mode(x).reshape(chain, draw))
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


def _row(
    name: str, series: Tensor, log_weight: Tensor | None, time: errors.Time | None = None
) -> dict[str, Any]:
    """Statistics of one series (chain, draw); with τ_int the error is the larger of the two."""
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
    elif series.shape[1] >= verdict.MIN_DRAWS:
        bulk, tail = float(metrics.ess(series, "bulk")), float(metrics.ess(series, "tail"))
        rhat = float(metrics.rhat(series))
    else:
        bulk = float(series.shape[0])
    if time is not None and not math.isnan(time.tau):
        mcse = max(mcse, float(errors.mean(series, time).error))
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
    if n_draws >= verdict.MIN_DRAWS:
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
        # A mode of few draws has a poor error of its own; the exact weight allows no smaller one.
        floor = math.sqrt(exact[k] * (1 - exact[k]) / label.numel())
        scale = max(error, floor)
        difference = weight - exact[k]  # NaN where the exact weight is not known
        z = difference / scale if scale > 0 else difference * math.inf
        judged = n_draws >= verdict.MIN_DRAWS and log_weight is None
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


def _facts(samples: Samples, target: Target | None, notes: list[str]) -> dict[str, Any]:
    info = samples.info
    facts: dict[str, Any] = {
        "n_chains": samples.n_chains,
        "n_draws": samples.n_draws,
        **{key: info[key] for key in SETTINGS + COST if key in info},
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
    facts |= verdict.flow_facts(info)
    if "swap_accept" in info:  # (n_chains, n_rungs - 1)
        facts["swap_accept"] = torch.as_tensor(info["swap_accept"]).double().mean(0).tolist()
    if "log_z" in facts and _has(target, HasLogZ):
        log_z = _exact(target, "log_z", notes)
        facts |= {} if log_z is None else {"log_z_exact": float(log_z)}
    if samples.log_weight is not None:
        facts["weights_ess"] = float(metrics.ess_weights(samples.log_weight))
    return facts


def _title(samples: Samples, target: Target | None) -> str:
    name = samples.info.get("sampler", "samples")
    on = "" if target is None else f" on {type(target).__name__}"
    info = samples.info
    parts = [("warmup", "warm-up"), ("thin", "thin")]
    if info.get("measure_every") != info.get("thin"):
        parts.append(("measure_every", "measured every"))
    extra = "".join(f", {label} {info[key]}" for key, label in parts if info.get(key))
    return f"{name}{on}: {samples.n_chains} chains × {samples.n_draws} draws{extra}"


# ------------------------------------------------------------------------------------- text
_COLUMNS = (("sd", 9), ("q5", 10), ("q50", 10), ("q95", 10), ("ess_bulk", 8), ("ess_tail", 8))
_FLOW = (("flow_accept", "accept"), ("local_accept", "local"), ("mc_ess", "ESS of candidates"))
_SHORT = {  # names that the first column has no room for
    "magnetisation": "m",
    "|magnetisation|": "|m|",
    "magnetisation²": "m²",
    "magnetisation⁴": "m⁴",
}
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
        name = _SHORT.get(row["name"], row["name"])
        name = name if len(name) <= 11 else name[:10] + "…"
        yield f"{name:<11}{mean:>21}{cells} {_number(row['rhat'], 4, 5):>6}"
    yield ""
    for i, time in enumerate(summary.times):
        tau = f"{_number(time['tau'])} ± {_number(time['error'], 2)} draws"
        yield f"{'' if i else 'τ_int':<11} {_SHORT.get(time['name'], time['name']):<20}{tau}"
    for i, row in enumerate(summary.derived):
        value = f"{_number(row['value'])} ± {_number(row['error'], 2)}"
        yield f"{'' if i else 'derived':<11} {row['name']:<20}{value}"
    if "accept" in facts:
        spread = facts["accept_spread"]
        labels = ("min", "5 %", "median", "95 %", "max")
        inner = ", ".join(f"{label} {x:.3f}" for label, x in zip(labels, spread.values()))
        yield f"accept      {facts['accept']:.3f}   over chains: {inner}"
    if "flow_accept" in facts:
        named = [f"{label} {_number(facts[key])}" for key, label in _FLOW if key in facts]
        yield "flow        " + "   ".join(named)
    if "swap_accept" in facts:
        swaps = ", ".join(f"{accept:.2f}" for accept in facts["swap_accept"])
        yield from textwrap.wrap(
            swaps, WIDTH, initial_indent="swaps       ", subsequent_indent=" " * 12
        )
    if "log_z" in facts:
        error = f" ± {_number(facts['log_z_error'], 2)}" if "log_z_error" in facts else ""
        exact = f"   exact {facts['log_z_exact']:.6g}" if "log_z_exact" in facts else ""
        yield f"log Z       {facts['log_z']:.6g}{error}{exact}"
    compared = any(not math.isnan(mode["z"]) for mode in summary.modes)
    order = (lambda m: -abs(m["z"])) if compared else (lambda m: -m["weight"])
    shown = sorted(summary.modes, key=order)[:MAX_LINES]
    for mode in sorted(shown, key=lambda m: m["mode"]):
        exact = f"   exact {mode['exact']:.4f}   z {mode['z']:+.1f}" if compared else ""
        yield f"mode {mode['mode']:<6} {mode['weight']:.4f} ± {mode['error']:.4f}{exact}"
    if len(summary.modes) > len(shown):
        fewer = "closer to exact" if compared else "of less weight"
        yield f"            and {len(summary.modes) - len(shown)} more modes, all {fewer}"
    if "weights_ess" in facts:
        yield f"weights     {facts['weights_ess']:.1f} effective draws (Kish)"
    counts = [f"{k.replace('_', ' ')} {facts[k]:,.0f}" for k in COST[:3] if facts.get(k)]
    if counts:
        yield "cost        " + "   ".join(counts)
    rest = [f"wall {facts['seconds']:.2f} s"] if "seconds" in facts else []
    rest += [f"{k} {facts[k]}" for k in ("backend", "device", "dtype", "seed") if k in facts]
    if rest:
        yield "run         " + "   ".join(rest)
    for note in summary.notes:
        yield from textwrap.wrap(
            note, WIDTH, initial_indent="note        ", subsequent_indent=" " * 12
        )
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


def jsonable(value: Any) -> Any:
    """A tree for JSON, which has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, Tensor):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
