"""The contract of a target, as one test that its author runs: `check_target`.

Every check compares the target with itself (rows with batches, score with central differences of
log_prob, float32 with float64), so no reference density is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pysamp import rng
from pysamp.target import (
    HasBonds,
    HasLocal,
    HasLocalField,
    HasLogZ,
    HasModes,
    HasNative,
    HasObservables,
    HasQuartic,
    HasRecord,
    HasSampler,
    HasScore,
    HasSites,
    HasValueAndScore,
    NativeEnergy,
    Target,
    as_target,
    check_log_prob,
    log_prob_and_score,
)


def check_target(
    target: Target | Callable[[Tensor], Tensor],
    *,
    event_shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    points: Tensor | None = None,
) -> None:
    """Run the contract of a target; return None if it holds.

    dtype: None checks float64 and float32 and that they agree. points: (n, *event_shape) where the
    density is finite; without them, the target's own draws if it has a sampler, else normal and
    uniform points, of which those with log_prob = -inf are taken to lie outside the support.
    Checked: shape, dtype, device, finiteness, no change of the input, independence of the rows of a
    batch, empty and strided batches, score against central differences, members of capabilities.

    Raises: ValueError naming the check that failed, with the numbers.
    """
    t = as_target(target, event_shape)
    dtypes = (torch.float64, torch.float32) if dtype is None else (dtype,)
    if any(d not in (torch.float64, torch.float32) for d in dtypes):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    pool = _pool(t, torch.device(device), dtypes[0], points)
    inside = isinstance(t, HasSampler) or points is not None
    value = _check_values(t, pool, must_be_finite=inside)
    _check_rows(t, pool, value)
    x = pool[torch.isfinite(value)]
    _check_score(t, x)
    _check_capabilities(t, x)
    for other in dtypes[1:]:
        _check_agreement(t, x.to(other))


def _fail(check: str, text: str, cause: BaseException | None = None) -> None:
    raise ValueError(f"check_target: {check}: {text}") from cause


def _row(bad: Tensor) -> int:
    """Index of the first row that is marked."""
    return int(bad.nonzero()[0, 0])


def _pool(t: Target, device: torch.device, dtype: torch.dtype, points: Tensor | None) -> Tensor:
    event = tuple(t.event_shape)
    if points is not None:
        if points.shape[1:] != event or points.ndim != len(event) + 1 or points.shape[0] == 0:
            raise ValueError(
                f"points must be (n, *{event}) with n > 0, got shape {tuple(points.shape)}"
            )
        return points.detach().to(device=device, dtype=dtype, copy=True)
    if isinstance(t, HasSampler):
        draws = t.sample(16, seed=0)
        if draws.shape != (16, *event) or not draws.is_floating_point():
            _fail(
                "sampler",
                f"sample(16, seed=0) must be floating of shape {(16, *event)}, "
                f"got {draws.dtype} of shape {tuple(draws.shape)}",
            )
        if not torch.equal(draws, t.sample(16, seed=0)):
            _fail("sampler", "two calls with seed=0 differ: draws must be a function of the seed")
        if torch.equal(draws, t.sample(16, seed=1)):
            _fail("sampler", "seed=0 and seed=1 give the same draws")
        return draws.to(device=device, dtype=dtype)
    how: dict[str, Any] = {
        "seed": 0,
        "stream": rng.STREAMS["check"],
        "device": device,
        "dtype": dtype,
    }
    normal = rng.normal((8, *event), step=0, **how)
    uniform = rng.uniform((4, *event), step=1, **how)
    return torch.cat([normal, uniform, 0.1 * rng.normal((4, *event), step=2, **how)])


def _log_prob(t: Target, x: Tensor, what: str) -> Tensor:
    """log_prob of x, checked for form and for leaving its input alone."""
    before = x.clone()  # x itself is passed, as a clone would lose its strides
    try:
        with torch.no_grad():
            value = t.log_prob(x)
    except Exception as error:
        _fail(what, f"log_prob raised on x of shape {tuple(x.shape)}, {x.dtype}: {error!r}", error)
    if not torch.equal(before, x):
        _fail("input", "log_prob changed its input in place")
    try:
        check_log_prob(value, x, "log_prob")
    except (TypeError, ValueError) as error:
        _fail(what, str(error), error)
    if value.dtype != x.dtype or value.device != x.device:
        _fail(
            "dtype and device",
            f"log_prob of {x.dtype} on {x.device} must keep both, "
            f"got {value.dtype} on {value.device}",
        )
    return value


def _check_values(t: Target, pool: Tensor, must_be_finite: bool) -> Tensor:
    value = _log_prob(t, pool, "shape")
    wrong = torch.isnan(value) | (value == math.inf)
    if must_be_finite:
        wrong = ~torch.isfinite(value)
    if bool(wrong.any()):
        row = _row(wrong)
        _fail("finite", f"log_prob = {value[row].item()} at row {row}, x = {pool[row].tolist()}")
    if not bool(torch.isfinite(value).any()):
        _fail(
            "finite",
            f"log_prob = -inf at all {len(pool)} normal and uniform points; pass points= of "
            f"shape (n, *{tuple(t.event_shape)}) inside the support",
        )
    return value


def _is_double(value: Tensor) -> bool:
    """Whether float64 was used all the way: a float32 computation, cast at the end, shows here."""
    return value.dtype == torch.float64 and not torch.equal(value, value.float().double())


def _relative(value: Tensor) -> float:
    """Wide enough for matrix products blocked by batch size, too narrow for a leak."""
    return 1e-6 if _is_double(value) else 1e-2


def _close(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | ((a - b).abs() <= _relative(b) * (1 + b.abs()))


def _check_rows(t: Target, pool: Tensor, value: Tensor) -> None:
    order = torch.arange(len(pool) - 1, -1, -1, device=pool.device)
    single = torch.cat([_log_prob(t, pool[i : i + 1], "single row") for i in range(len(pool))])
    turned = pool.movedim(0, -1)
    strided = torch.stack([turned, torch.zeros_like(turned)], dim=-1)[..., 0].movedim(-1, 0)
    for how, other in (
        ("alone", single),
        ("in a reversed batch", _log_prob(t, pool[order], "reversed batch")[order]),
        ("in a strided batch", _log_prob(t, strided, "strided batch")),
    ):
        bad = ~_close(other, value)
        if bool(bad.any()):
            row = _row(bad)
            _fail(
                "rows",
                f"log_prob of row {row} is {value[row].item()} in a batch of {len(pool)} "
                f"but {other[row].item()} {how}",
            )
    _log_prob(t, pool[:0], "empty batch")


def _check_score(t: Target, x: Tensor) -> None:
    """Score along directions against central differences, at steps from coarse to fine."""
    score = _score_of(t, x)
    if score is None:
        return
    event = tuple(t.event_shape)
    size = math.prod(event)
    if size <= 16:
        directions = torch.eye(size, dtype=x.dtype, device=x.device)
    else:
        how: dict[str, Any] = {
            "seed": 0,
            "stream": rng.STREAMS["check"],
            "device": x.device,
            "dtype": x.dtype,
        }
        directions = torch.sign(rng.normal((8, size), step=3, **how)) / math.sqrt(size)
    double = x.dtype == torch.float64
    steps = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6) if double else (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
    relative, floor = (1e-4, 1e-6) if double else (5e-2, 2e-2)
    flat = score.reshape(len(x), size)
    typical = flat.square().mean(1).sqrt()  # (n,)
    value = _log_prob(t, x, "shape")
    unit = torch.finfo(torch.float64 if _is_double(value) else torch.float32).eps
    rounding = 16 * unit * value.abs()  # (n,)
    reach = x.reshape(len(x), size).square().mean(1).sqrt().clamp_min(1.0)  # (n,)
    for k, direction in enumerate(directions):
        slope = flat @ direction  # (n,)
        differences, noises = [], []
        for step in steps:
            h = step * reach
            noises.append(rounding / h)
            move = (h[:, None] * direction).reshape(x.shape)
            up, down = (_log_prob(t, x + s * move, "shape") for s in (1, -1))
            differences.append((up - down) / (2 * h))
        fd = torch.stack(differences)  # (steps, n)
        # A step too small to change log_prob, or one that leaves the support, says nothing.
        known = torch.isfinite(fd) & ((fd != 0) | (fd == 0).all(0))
        # Neighbouring steps can agree by accident in a noisy log_prob; two pairs hardly do.
        change = (fd[1:] - fd[:-1]).abs().where(known[1:] & known[:-1], math.inf)
        spread = change.sort(0).values[1]
        error = ((fd - slope).abs() - torch.stack(noises)).where(known, math.inf).amin(0)
        allowed = relative * slope.abs() + floor * typical + 10 * spread
        bad = torch.isfinite(error) & (error > allowed)
        if bool(bad.any()):
            row = _row(bad)
            nearest = (fd[:, row] - slope[row]).abs().where(known[:, row], math.inf).argmin()
            where = f"coordinate {k}" if size <= 16 else f"random direction {k}"
            _fail(
                "score",
                f"row {row}, {where}: score gives {slope[row].item():.8g} but central "
                f"differences of log_prob give {fd[nearest, row].item():.8g}",
            )


def _score_of(t: Target, x: Tensor) -> Tensor | None:
    """The score, checked for form; None if there is none and torch cannot differentiate."""
    if not isinstance(t, (HasScore, HasValueAndScore)):
        with torch.enable_grad():
            if not t.log_prob(x.clone().requires_grad_(True)).requires_grad:
                return None
    given = x.clone()
    value, score = log_prob_and_score(t, given)
    if not torch.equal(given, x):
        _fail("input", "the score changed its input in place")
    if not bool(_close(value, _log_prob(t, x, "shape")).all()):
        _fail("score", "log_prob_and_score gives another log density than log_prob")
    if score.dtype != x.dtype or score.device != x.device:
        _fail(
            "score",
            f"score of {x.dtype} on {x.device} must keep both, got {score.dtype} on {score.device}",
        )
    wrong = ~torch.isfinite(score.reshape(len(x), -1)).all(1)
    if bool(wrong.any()):
        row = _row(wrong)
        _fail("score", f"not finite at row {row}: x = {x[row].tolist()}, {score[row].tolist()}")
    if isinstance(t, HasScore):
        if t.score(x[:0]).shape != x[:0].shape:
            _fail("score", f"empty batch gives shape {tuple(t.score(x[:0]).shape)}")
        tolerance = _relative(score) * (1 + score.abs().amax())
        for i in range(len(x)):
            if bool(((t.score(x[i : i + 1])[0] - score[i]).abs() > tolerance).any()):
                _fail("rows", f"score of row {i} in a batch of {len(x)} differs from it alone")
    return score


def _check_agreement(t: Target, x: Tensor) -> None:
    """float32 against float64 at the same float32 points."""
    low, high = _log_prob(t, x, f"{x.dtype}"), _log_prob(t, x.double(), "float64")
    score = _score_of(t, x)
    allowed = 1e-3 * (1 + high.abs())
    if score is not None:  # what a rounding of x alone does to log_prob
        reach = (x * score).abs().reshape(len(x), -1).sum(1)
        allowed = allowed + 1e-5 * reach.double()
    bad = ~((low.double() - high).abs() <= allowed) & torch.isfinite(high)
    if bool(bad.any()):
        row = _row(bad)
        _fail(
            "precision",
            f"log_prob of row {row} is {low[row].item()} in float32 but {high[row].item()} in "
            "float64; pass dtype=torch.float64 if the target is meant for float64 only",
        )


def _check_capabilities(t: Target, x: Tensor) -> None:
    n = len(x)
    if isinstance(t, HasModes):
        weights, label = t.mode_weights, t.mode(x)
        total = float(weights.sum())
        if weights.ndim != 1 or bool((weights < 0).any()) or abs(total - 1) > 1e-6:
            _fail("mode_weights", f"must be (k,), not negative, of sum 1, got {weights.tolist()}")
        if label.shape != (n,) or label.dtype != torch.int64:
            _fail("mode", f"must be ({n},) int64, got {tuple(label.shape)} {label.dtype}")
        if bool(((label < 0) | (label >= len(weights))).any()):
            _fail("mode", f"labels must lie in [0, {len(weights)}), got {label.tolist()}")
    if isinstance(t, HasLogZ) and not math.isfinite(t.log_z):
        _fail("log_z", f"must be finite, got {t.log_z}")
    if isinstance(t, HasNative) and not isinstance(t.native, NativeEnergy):
        _fail("native", f"must be a NativeEnergy, got {type(t.native).__name__}")
    if isinstance(t, HasObservables):
        for name, value in t.observables(x).items():
            if value.shape != (n,):
                _fail("observables", f"{name!r} must be ({n},), got {tuple(value.shape)}")
    if isinstance(t, HasLocal):
        _check_local(t, x)
    if isinstance(t, HasSites):
        _check_sites(t, x)
    if isinstance(t, HasRecord):
        _check_record(t, x)


def _check_local(t: Any, x: Tensor) -> None:
    size = math.prod(t.event_shape)
    _check_colours(t.colours, size, "colours")
    flat = x.reshape(len(x), size)
    donor = flat.roll(1, 0)  # values of another row: they lie in the domain of a site
    for c, colour in enumerate(t.colours):
        at = colour.to(x.device)
        difference = t.local_difference(x, at, donor[:, at])
        _check_moves(t, x, "local_difference", c, at[:, None], donor[:, at, None], difference)


def _check_sites(t: Any, x: Tensor) -> None:
    """Conditional densities of the sites, from a reflection of each and from each component alone."""
    size, m = math.prod(t.event_shape), t.n_components
    if m < 1 or size % m:
        _fail("n_components", f"must divide the {size} numbers of an event, got {m}")
    _check_colours(t.site_colours, size // m, "site_colours")
    flat = x.reshape(len(x), size // m, m)
    if t.unit_length:
        flat = flat / torch.linalg.vector_norm(flat, dim=2, keepdim=True)
        x = flat.reshape(x.shape)
    donor = flat.roll(1, 0)
    component = torch.arange(m, device=x.device)
    for c, colour in enumerate(t.site_colours):
        at = colour.to(x.device)
        old = flat[:, at]  # (n, k, m)
        if isinstance(t, HasLocalField):
            field = t.local_field(x, at)
            if field.shape != old.shape:
                _fail("local_field", f"must be {tuple(old.shape)}, got {tuple(field.shape)}")
            claimed = -2 * (field * old).sum(2)
            _check_moves(t, x, "local_field", c, at[:, None] * m + component, -old, claimed)
        for a in range(m) if isinstance(t, HasQuartic) else ():
            square, fourth, linear = t.quartic(x, at, a)
            u, v = old[..., a], donor[:, at, a]
            claimed = linear * (v - u) - square * (v**2 - u**2) - fourth * (v**4 - u**4)
            _check_moves(t, x, "quartic", c, at[:, None] * m + a, v[..., None], claimed)
    if isinstance(t, HasBonds):
        coupling, table = t.couplings
        v = size // m
        if not math.isfinite(coupling) or table.ndim != 2 or len(table) != v:
            _fail("couplings", f"must be J and ({v}, 2d), got {coupling}, {tuple(table.shape)}")
        here = torch.arange(v, device=table.device)[:, None].expand_as(table)
        inner = table < v
        ends = torch.stack([here[inner], table[inner]])
        if not torch.equal(*((e[0] * v + e[1]).sort().values for e in (ends, ends.flip(0)))):
            _fail("couplings", "a bond is in the table from one of its ends only")


def _check_record(t: Any, x: Tensor) -> None:
    n = len(x)
    record = t.record(x)
    if record.shape != (n, 9) or record.dtype != x.dtype:
        _fail("record", f"must be ({n}, 9) {x.dtype}, got {tuple(record.shape)} {record.dtype}")
    value = _log_prob(t, x, "shape")
    if not bool(_close(record[:, 0], value).all()) or bool(record[:, 1].any()):
        _fail("record", "columns 0 and 1 of a single measurement must be log_prob and 0")
    found = t.from_record(record)
    observed = t.observables(x) if isinstance(t, HasObservables) else {}
    for name, values in found.items():
        if values.shape != (n,):
            _fail("from_record", f"{name!r} must be ({n},), got {tuple(values.shape)}")
        if name in observed and not bool(_close(values, observed[name]).all()):
            _fail("from_record", f"{name!r} differs from that of observables")
    means = {name: values.double().mean() for name, values in found.items()}
    if "energy" in found:
        means["energy²"] = found["energy"].double().square().mean()
    for name, values in t.derived(means).items():
        if values.shape != ():
            _fail(
                "derived", f"{name!r} must have the shape of the means, got {tuple(values.shape)}"
            )


def _check_colours(colours: tuple[Tensor, ...], count: int, name: str) -> None:
    sites = torch.cat([colour.cpu() for colour in colours])
    if sites.dtype != torch.int64 or not torch.equal(sites.sort().values, torch.arange(count)):
        _fail(name, f"must hold each of the {count} sites once, as int64")


def _check_moves(
    t: Any, x: Tensor, what: str, c: int, elements: Tensor, new: Tensor, claimed: Tensor
) -> None:
    """Moves that set the elements (k, e) of the event to `new` (n, k, e), and the change of log p that
    they claim, (n, k): some of them alone, and those of a colour at once, which must not interact."""
    if claimed.shape != new.shape[:2]:
        _fail(what, f"must be {tuple(new.shape[:2])}, got {tuple(claimed.shape)}")
    value, flat = _log_prob(t, x, "shape"), x.reshape(len(x), -1)
    relative = _relative(value)
    k = len(elements)
    trials = [(slice(None), f"all sites of colour {c} (do they interact?)")]
    trials += [(slice(j, j + 1), f"element {int(elements[j, 0])}") for j in range(min(k, 8))]
    for which, name in trials:
        moved = flat.clone()
        moved[:, elements[which].flatten()] = new[:, which].flatten(1)
        actual = _log_prob(t, moved.reshape(x.shape), "shape") - value
        total = claimed[:, which].sum(1)
        scale = 1 + value.abs() + actual.abs()
        bad = torch.isfinite(actual) & ((total - actual).abs() > relative * scale)
        if bool(bad.any()):
            row = _row(bad)
            _fail(
                what,
                f"row {row}, {name}: {total[row].item()} but log_prob changes by "
                f"{actual[row].item()}",
            )
