"""Independent proposals of many transitions at once, with the weights that decide on them.

    w(x) = p(x) / q(x)

is the weight of a point x, p the target and q the density that proposals are drawn from (Tierney, Ann.
Statist. 22, 1701, 1994). What is proposed does not depend on where a chain is, so the points of many
transitions are made, and evaluated, in one pass. Candidates of chain c at transition t are rows c k …
c k + k − 1 of the draws with that step, whatever batch they are made in.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pysamp import ops, reference, rng
from pysamp.mcmc.base import State
from pysamp.mcmc.langevin import refuse_spins
from pysamp.nets.flow import Flow, as_flow, check_event, check_invertible
from pysamp.target import Counted, HasSites, Proposal, Target, Tempered, Tilted, log_prob_of

PERIOD = 2 * math.pi
PERIOD_ERROR = {torch.float32: 1e-3, torch.float64: 1e-6}  # of log p, relative to 1 + |log p|
ROWS = 1 << 15  # points of one pass of a network: its hidden layers must fit in memory, too
NUMBERS = 1 << 22  # coordinates of one pass
# BLAS sums a row in another order where it is one of the last few that fill no tile: in batches of a
# multiple of this size it has the same bits whatever rows it is evaluated with (measured with MKL).
TILE = 32


class Proposed(NamedTuple):
    """One transition of all chains: the candidate drawn in proportion to its weight, and the weights."""

    x: Tensor  # (n_chains, *event)
    log_prob: Tensor  # (n_chains,) of the target
    log_q: Tensor  # (n_chains,)
    top: Tensor  # (n_chains,) the largest log weight of the candidates, 0 where all weights are 0
    total: Tensor  # (n_chains,) Σ w e^−top over the candidates
    concentration: Tensor  # (n_chains,) Σ w² / (Σ w)², 0 where all weights are 0
    bad: Tensor  # (n_chains,) candidates with NaN or +∞ for a density or a weight
    log_u: Tensor  # (n_chains,) ln of the uniform number that accepts


# ------------------------------------------------------------------------------------- arguments
def proposal_of(given: Any) -> Any:
    """A density to draw from: a flow, also one of zuko, or another Proposal.

    Raises TypeError for anything else, such as a distribution of torch, whose draws know no seed.
    """
    if isinstance(given, Flow):
        return given
    wanted = "event_shape, log_prob and sample(n, *, seed, first_chain, device, dtype)"
    if not _is_proposal(given):
        try:
            return as_flow(given)
        except TypeError as error:
            raise TypeError(
                f"proposal must be a flow or have {wanted}, got {_name(given)}"
            ) from error
    taken = inspect.signature(given.sample).parameters
    loose = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    missing = [name for name in ("seed", "first_chain", "device", "dtype") if name not in taken]
    if missing and not loose:
        raise TypeError(f"proposal must have {wanted}: sample of {_name(given)} lacks {missing}")
    return given


def _is_proposal(given: Any) -> bool:
    if isinstance(given, (type, torch.distributions.Distribution)):
        return False
    return isinstance(given, Proposal)


def _name(given: Any) -> str:
    return given.__name__ if isinstance(given, type) else type(given).__name__


def check_proposal(proposal: Any, target: Target, x: Tensor, kernel: str) -> None:
    """Refuse what cannot be proposed from: spins, another event shape, a flow that does not invert at x,
    a flow of angles for a target that does not have their period.

    Raises ValueError.
    """
    if isinstance(target, HasSites) and target.unit_length:
        refuse_spins(target, kernel)
    check_event(proposal, target)
    if isinstance(proposal, Flow):
        check_invertible(proposal, x)
        check_period(proposal, target, x)


def check_period(flow: Flow, target: Target, x: Tensor) -> None:
    """Raises ValueError unless the target has the period 2π in the circular coordinates of the flow, which
    gives x and x + 2π one density. A target of density 0 outside [−π, π) is right too, for x inside.

    x: (n, *event), of which at most 8 are looked at, all where the target has values for each chain.
    Cost: two values of the target for each of these and each circular coordinate.
    """
    if not flow.circular:
        return
    few = max(1, min(8, 32 // len(flow.circular)))
    points = x if has_rows(target) else x[:few]
    within = 1.000001 * math.pi  # rounded angles are
    inside = bool((x.flatten(1)[:, list(flow.circular)].abs() <= within).all())
    own = log_prob_of(target, points)

    def moved(i: int, to: Tensor) -> Tensor:
        other = points.flatten(1).clone()
        other[:, i] = to
        return log_prob_of(target, other.reshape(points.shape))

    for i in flow.circular:
        angle = points.flatten(1)[:, i]
        for shift in (PERIOD, -PERIOD):
            there = moved(i, angle + shift)
            near = (there - own).abs() <= PERIOD_ERROR[x.dtype] * (1 + own.abs())
            wrong = ~near & (there != own) & (own < math.inf)
            if inside and bool((wrong & (there == -math.inf)).any()):
                # The box may be another one, such as [0, 2π): look next to the edges of ours.
                edges = [moved(i, torch.full_like(angle, s * 1.001 * math.pi)) for s in (1, -1)]
                walls = (edges[0] == -math.inf) & (edges[1] == -math.inf)
                wrong &= ~((there == -math.inf) & walls)
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"target must have the period 2π in coordinate {i}, an angle of the flow, or log_prob "
                    f"−∞ outside [−π, π) with all points inside: at {float(angle[row]):.6g} log_prob is "
                    f"{float(own[row]):.6g}, at {float(angle[row]) + shift:.6g} {float(there[row]):.6g}"
                )


def start_log_q(proposal: Any, x: Tensor, first_chain: int) -> Tensor:
    """log q at starting points (n_chains,). Raises ValueError, naming the chain, where it is not finite."""
    log_q = log_q_of(proposal, x)
    bad = torch.nonzero(~torch.isfinite(log_q)).flatten()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"x0 is where the proposal has no finite density, in {len(bad)} of {len(x)} chains: at chain "
            f"{first_chain + row} log_prob of {_name(proposal)} is {float(log_q[row])}, and no proposal "
            "would ever be accepted there"
        )
    return log_q


# ------------------------------------------------------------------------------------- densities
def in_passes(
    f: Callable[[Tensor], tuple[Tensor, ...]], points: Tensor, rows: int | None = None
) -> tuple[Tensor, ...]:
    """f (rows -> tensors of as many rows) of all points, without a graph, in passes of bounded memory."""
    rows = rows_of_a_pass(points[0].numel()) if rows is None else rows
    parts = []
    with torch.no_grad():
        for block in points.split(rows):
            fill = -len(block) % TILE
            whole = torch.cat((block, block[-1:].expand(fill, *block.shape[1:]))) if fill else block
            parts.append(tuple(value[: len(block)] for value in f(whole)))
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def rows_of_a_pass(size: int) -> int:
    """How many points of `size` coordinates are evaluated at once."""
    return max(1, min(ROWS, NUMBERS // size))


def log_q_of(proposal: Any, x: Tensor) -> Tensor:
    """(n, *event) -> (n,), without a graph."""
    if isinstance(proposal, Flow):
        return in_passes(lambda points: (proposal.log_prob(points),), x)[0]
    return log_prob_of(proposal, x)


def finite_rows(x: Tensor) -> Tensor:
    """Whether all coordinates of a point are finite; (n, *event) -> (n,)."""
    return torch.linalg.vector_norm(x.flatten(1), ord=math.inf, dim=1) < math.inf


def has_rows(target: Target) -> bool:
    """Whether it has values of its own for each chain, and so must be asked for all of them at once."""
    from pysamp.mcmc.neutra import PulledBack  # it needs this module

    while isinstance(target, (Counted, Tempered, Tilted, PulledBack)):
        if isinstance(target, PulledBack):
            target = target.target
            continue
        if isinstance(target, Tempered) and torch.as_tensor(target.beta).ndim:
            return True
        if isinstance(target, Tilted):
            per_event = target.centre.ndim == len(target.event_shape)
            if torch.as_tensor(target.precision).ndim or not per_event:
                return True
        target = target.base
    return False


# ------------------------------------------------------------------------------------- proposals
def proposals(
    target: Target, proposal: Any, state: State, steps: Sequence[int], k: int
) -> Iterator[Proposed]:
    """What transitions `steps` propose, one after the other, of k candidates for each chain.

    They are made for as many transitions at once as memory allows.
    """
    rows = rows_of_a_pass(state.x[0].numel())
    at_once = max(1, rows // (state.n_chains * k))
    for begin in range(0, len(steps), at_once):
        yield from _propose(target, proposal, state, steps[begin : begin + at_once], k, rows)


def _propose(
    target: Target, proposal: Any, state: State, steps: Sequence[int], k: int, rows: int
) -> Iterator[Proposed]:
    n = state.n_chains
    together = n if has_rows(target) else max(1, min(n, rows // k))
    parts = [
        _candidates(target, proposal, state, steps, k, begin, min(together, n - begin))
        for begin in range(0, n, together)
    ]
    whole = Proposed(*(torch.cat(values, 1) for values in zip(*parts, strict=True)))
    for m in range(len(steps)):
        yield Proposed(*(value[m] for value in whole))


def _candidates(
    target: Target,
    proposal: Any,
    state: State,
    steps: Sequence[int],
    k: int,
    begin: int,
    count: int,
) -> Proposed:
    """Of chains begin … begin + count − 1 of the state; the fields have a first axis for the steps."""
    event, m = state.x.shape[1:], len(steps)
    x, log_q = _draw(proposal, state, steps, (state.first_chain + begin) * k, count * k)
    x = x.reshape(m, count, k, *event)
    log_q = log_q.reshape(m, count, k)
    log_prob = _densities(target, x)
    log_weight = log_prob - log_q
    good = (log_weight < math.inf) & finite_rows(x.flatten(0, 2)).reshape(m, count, k)
    log_weight = torch.where(good, log_weight, -math.inf)

    log_u = _numbers(rng.log_uniform, state, steps, begin, count, dtype=state.x.dtype)
    top = log_weight.amax(2)
    top = torch.where(top > -math.inf, top, 0.0)
    w = reference.exp_portable(log_weight - top[..., None])
    total, squares = (ops.sum32(v.reshape(-1, k)).reshape(m, count) for v in (w, w * w))
    concentration = torch.where(total > 0, squares / (total * total), 0.0)
    if k == 1:
        chosen = torch.zeros((m, count), dtype=torch.int64, device=x.device)
    else:  # float64, so that a small weight among many candidates is not rounded away
        u = _numbers(rng.uniform, state, steps, begin, count, dtype=torch.float64, substep=1)
        reached = w.double().cumsum(2)
        chosen = (reached <= (u * reached[..., -1])[..., None]).sum(2).clamp_(max=k - 1)
    at = chosen[..., None]
    row = at.reshape(m, count, 1, *(1,) * len(event)).expand(m, count, 1, *event)
    return Proposed(
        x=x.gather(2, row).squeeze(2),
        log_prob=log_prob.gather(2, at).squeeze(2),
        log_q=log_q.gather(2, at).squeeze(2),
        top=top,
        total=total,
        concentration=concentration,
        bad=(~good).sum(2).to(log_prob.dtype),
        log_u=log_u,
    )


def _draw(
    proposal: Any, state: State, steps: Sequence[int], first: int, count: int
) -> tuple[Tensor, Tensor]:
    """Draws first … first + count − 1 of each step, and log q: (steps · count, …)."""
    x = state.x
    if isinstance(proposal, Flow):
        z = [
            proposal.base.draw(
                count, seed=state.seed, stream="proposal", step=step, first_chain=first,
                device=x.device, dtype=x.dtype,
            )
            for step in steps
        ]  # fmt: skip
        found = in_passes(proposal.push, torch.cat(z), rows_of_a_pass(x[0].numel()))
        return found[0], found[1]
    points = [
        proposal.sample(
            count, seed=_seed(state.seed, step), first_chain=first, device=x.device, dtype=x.dtype
        )
        for step in steps
    ]
    drawn = torch.cat(points)
    if drawn.shape != (len(steps) * count, *x.shape[1:]) or drawn.dtype != x.dtype:
        raise ValueError(
            f"{_name(proposal)}.sample must return {x.dtype} of shape {(count, *x.shape[1:])}, got "
            f"{points[0].dtype} of shape {tuple(points[0].shape)}"
        )
    return drawn, log_prob_of(proposal, drawn)


def _seed(seed: int, step: int) -> int:
    """A seed for each transition: 64 random bits."""
    high, low = rng.bits((1, 2), seed=seed, stream="proposal", step=step)[0].tolist()
    return (high & 0xFFFFFFFF) << 32 | (low & 0xFFFFFFFF)


def _numbers(
    kind: Callable[..., Tensor], state: State, steps: Sequence[int], begin: int, count: int,
    **more: Any,
) -> Tensor:  # fmt: skip
    """One number for each step and chain: (steps, count)."""
    found = [
        kind(
            (count, 1), seed=state.seed, stream="select", step=step,
            first_chain=state.first_chain + begin, device=state.x.device, **more,
        )
        for step in steps
    ]  # fmt: skip
    return torch.stack(found).squeeze(2)


def _densities(target: Target, x: Tensor) -> Tensor:
    """log p of candidates (steps, chains, k, *event) -> (steps, chains, k)."""
    m, count, k = x.shape[:3]
    if not has_rows(target):
        return log_prob_of(target, x.flatten(0, 2)).reshape(m, count, k)
    rows = x.transpose(1, 2).flatten(0, 1)  # (steps · k, chains, *event)
    found = torch.stack([log_prob_of(target, row.contiguous()) for row in rows])
    return found.reshape(m, k, count).transpose(1, 2).contiguous()
