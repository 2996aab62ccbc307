"""When a number is bad enough to be said: limits with their reasons, and the sentences.

Each function yields sentences about one thing; a run of which none is true passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pysamp.samples import Samples

# Vehtari et al. (2021), section 4: the threshold of rank-normalised R-hat, and the effective draws
# below which R-hat, ESS and errors are themselves unreliable.
RHAT_GOOD, MIN_ESS = 1.01, 400
RHAT_BAD = 1.1  # Gelman and Rubin's: chains disagree as a whole, they are not merely short
LOW_ACCEPT = 0.05  # the best scalings accept 0.23 to 0.65; at 0.05 nearly all work is thrown away
LOW_FLOW_ACCEPT = (
    0.01  # a chain then takes one proposal of the flow in a hundred: it is not one of many
)
MIN_FLOW_MOVES = 100  # before a single chain is held against it
LOW_SWAP = 0.02  # a copy then crosses the pair once in 100 turns, and the ladder is cut in two
Z_LIMIT = 4.0  # standard errors: 6e-5 by chance for one weight, so 100 modes raise few alarms
MIN_EXPECTED = 10.0  # draws due to a mode before its absence is held against the sampler: e^-10
MIN_WEIGHT_ESS = 0.01  # of the draws; below it a few weights decide every mean
MIN_DRAWS = 4  # per chain, below which autocorrelation and R-hat are undefined


def notes(samples: Samples) -> list[str]:
    notes = [str(note) for note in samples.info.get("notes", [])]
    if samples.info.get("unadjusted") or samples.info.get("sampler") == "ULA":
        notes.append(
            "ULA has no accept/reject step: its draws have a bias that grows with the step size "
            "and that no number here shows"
        )
    if samples.n_chains == 1 and samples.n_draws > 1:
        notes.append("one chain only: whether chains agree (R-hat) cannot be judged")
    return notes


def judge_proposals(facts: dict[str, Any], samples: Samples) -> Iterator[str]:
    yield from (str(warning) for warning in samples.info.get("warnings", []))  # the sampler's own
    if bad := facts["nonfinite_draws"]:
        total = samples.n_chains * samples.n_draws
        yield f"{bad} of {total} draws are not finite: the sampler diverged; try a smaller step"
    nonfinite = int(facts.get("nonfinite", 0))
    if "accept" in facts:
        never = facts["chains_never_accepted"]
        independent = "flow_accept" in facts and "local_accept" not in facts
        if facts["accept"] == 0:
            if nonfinite:
                cause = f"log_prob was NaN or +inf at {nonfinite} proposals: check the target"
            elif independent:
                cause = "the proposal is nowhere near the target"
            else:
                cause = "the step size or width is much too large"
            yield f"no proposal was ever accepted (acceptance 0): {cause}"
        elif never:
            yield (
                f"{never} of {samples.n_chains} chains never accepted a proposal: they still stand "
                "where sampling began"
            )
        elif independent:
            pass  # judged below, by a limit of its own
        elif not facts["accept"] >= LOW_ACCEPT and not _without_scale(samples):
            yield (
                f"acceptance is only {facts['accept']:.2g}: the step size or width is too large, "
                "or the proposal is far from the target"
            )
    yield from _judge_flow(facts, samples)
    if "swap_accept" in facts:
        least = min(facts["swap_accept"])
        rung = facts["swap_accept"].index(least)
        if least < LOW_SWAP:
            yield (
                f"rungs {rung} and {rung + 1} of the ladder hardly ever swap (acceptance "
                f"{least:.2g}): use more rungs between them"
            )
    if nonfinite:
        yield f"{nonfinite} proposals had log_prob NaN or +inf and were rejected: check the target"


def flow_facts(info: dict[str, Any]) -> dict[str, Any]:
    """Of a run with global moves: the mean acceptances of both kinds of moves, and the chains that take
    nearly none of the global ones."""
    values = {
        key: torch.as_tensor(info[key]).double()
        for key in ("flow_accept", "local_accept", "mc_ess")
        if key in info
    }
    facts: dict[str, Any] = {key: float(value.mean()) for key, value in values.items()}
    if "flow_accept" not in facts or math.isnan(facts["flow_accept"]):  # none was made
        return {}
    moves = torch.as_tensor(info.get("flow_moves", 0.0)).double()
    few = (values["flow_accept"] < LOW_FLOW_ACCEPT) & (moves >= MIN_FLOW_MOVES)
    return {**facts, "chains_of_low_flow_accept": int(few.sum())}


def _judge_flow(facts: dict[str, Any], samples: Samples) -> Iterator[str]:
    """Global moves that are hardly ever taken: the chains are then as apart as without them. And local
    moves of mixtures, whose share of the acceptance would not show."""
    local = facts.get("local_accept", math.nan)
    if local < LOW_ACCEPT:
        yield (
            f"the local moves are accepted with probability {local:.2g} only: their step size is too large "
            "or their masses are wrong"
        )
    accept = facts.get("flow_accept", math.nan)
    if accept < LOW_FLOW_ACCEPT:
        yield (
            f"the flow's proposals are accepted with probability {accept:.2g} only, below "
            f"{LOW_FLOW_ACCEPT}: they carry nothing between modes; train the flow longer, with walkers "
            "in every mode, use more candidates (ISIR, Ex2MCMC with a larger n), or, for one mode, Neutra "
            "or TransportSlice, which need no such acceptance"
        )
    elif few := facts.get("chains_of_low_flow_accept", 0):
        yield (
            f"{few} of {samples.n_chains} chains accept the flow's proposals with probability below "
            f"{LOW_FLOW_ACCEPT}: they stand where the flow has far too little density; train it on "
            "walkers that have been there"
        )


def _without_scale(samples: Samples) -> bool:
    """Heat baths and flips of Ising spins: what they accept is physics, not a setting."""
    lattice = samples.info.get("sampler") in ("HeatBath", "Metropolis", "Cycle")
    return lattice and "scale" not in samples.info


def judge_chains(
    rows: list[dict[str, Any]],
    modes: list[dict[str, Any]],
    facts: dict[str, Any],
    samples: Samples,
) -> Iterator[str]:
    if samples.info.get("markov") and samples.n_draws < MIN_DRAWS:
        yield (
            f"{samples.n_draws} draws per chain: mixing cannot be judged with fewer than "
            f"{MIN_DRAWS}"
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


def judge_times(times: list[dict[str, Any]], samples: Samples) -> Iterator[str]:
    """Autocorrelation times that the run is too short to know, and with them the errors."""
    poor = [time for time in times if time["warning"]]
    if poor and samples.n_draws >= MIN_DRAWS:
        worst = max(poor, key=lambda time: 0.0 if math.isnan(time["tau"]) else time["tau"])
        yield f"τ_int of {worst['name']} is not resolved, nor are the errors: {worst['warning']}"


def judge_symmetry(rows: list[dict[str, Any]], zero_means: tuple[str, ...]) -> Iterator[str]:
    """Means that a symmetry makes 0: a run that saw one phase of a broken symmetry is far from it."""
    for row in rows:
        if row["name"] in zero_means and abs(row["mean"]) > Z_LIMIT * row["mcse"]:
            yield (
                f"{row['name']} is {row['mean']:.3g} ± {row['mcse']:.2g}, but its mean is 0 by symmetry: "
                "one phase of several was seen, or one more than the others"
            )


def judge_modes(
    modes: list[dict[str, Any]], facts: dict[str, Any], samples: Samples
) -> Iterator[str]:
    total = samples.n_chains * samples.n_draws
    for mode in modes:
        if mode["draws"] == 0 and mode["exact"] * total >= MIN_EXPECTED:
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


def judge_weights(facts: dict[str, Any], samples: Samples) -> Iterator[str]:
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
        rounding = 1e-6 * abs(exact)  # of float32 sums, for methods whose own error vanishes
        if abs(value - exact) > Z_LIMIT * error + rounding:
            yield f"log Z is wrong: {value:.6g} ± {error:.2g} against {exact:.6g} exact"
